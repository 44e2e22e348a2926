# SPDX-License-Identifier: Apache-2.0
"""The card of a weights file, and what is done where there is none."""

import json
import logging
import shutil

import numpy as np
import onnx
import pytest
from draw import fill_gluon
from safetensors import safe_open

from gluon_resnet import (
    Protocol,
    bundled,
    create_model,
    inference_model,
    init_model,
    save_weights,
)
from gluon_resnet.errors import InputError
from gluon_resnet.weights.card import (
    CARD_KEY,
    Card,
    FileDigest,
    card_from_text,
    card_path,
    card_to_text,
    digest_of,
    read_card,
    write_card,
)
from gluon_resnet.weights.published import checkpoint

MODEL = "cifar_resnet20_v1"
CARD = Card(
    MODEL,
    Protocol(size=28, crop_pct=1, library="pil"),
    classes=("owl", "kea", "Ara"),
    data_set="parrots",
    metrics={"top1": 91.5},
    licence="CC0-1.0",
    parent="cifar_resnet20_v1.gluoncv",
)
GUESS = (
    " has no card mine.json: its pixels and class names are guesses. Images are "
    "prepared as those of cifar_resnet20_v1.gluoncv (32 pixels, crop 1, bilinear, "
    "short, cv2, mean 0.491 0.482 0.447, std 0.202 0.199 0.201), classes have numbers "
    "for names"
)


@pytest.fixture(scope="module")
def net():
    net = create_model(MODEL, num_classes=3)
    fill_gluon(net)
    return net


@pytest.fixture
def weights(net, tmp_path):
    """A file of one's own without a card."""
    return save_weights(net, tmp_path / "mine.params")


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_what_is_written_is_read(weights):
    write_card(weights, CARD)
    assert card_path(weights).name == "mine.json"
    card = read_card(weights)
    assert card.weights == FileDigest("mine.params", digest_of(weights))
    assert card == Card(**{**vars(CARD), "weights": card.weights})
    assert card_from_text(card_to_text(CARD), "here") == CARD


@pytest.mark.parametrize("suffix", ["params", "safetensors"])
def test_card_travels_with_saved_weights(net, suffix, tmp_path, caplog):
    path = save_weights(net, tmp_path / f"mine.{suffix}", card=CARD)
    beside = [entry.name for entry in tmp_path.iterdir() if entry != path]
    assert beside == (["mine.json"] if suffix == "params" else [])
    model = init_model(None, path)
    assert not warnings(caplog)
    assert model.name == MODEL
    assert model.protocol == CARD.protocol
    assert model.class_names == CARD.classes
    answer = inference_model(model, np.zeros((28, 28, 3), np.uint8))
    assert answer["pred_class"] in CARD.classes
    again = save_weights(model.net, tmp_path / "again.safetensors", card=model.card)
    assert read_card(again).classes == CARD.classes


def test_safetensors_stay_pytorchs_and_the_same_each_time(net, tmp_path):
    paths = [tmp_path / f"{n}.safetensors" for n in range(8)]
    for path in paths:
        save_weights(net, path, card=CARD)
    with safe_open(paths[0], "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata[CARD_KEY])["classes"] == ["owl", "kea", "Ara"]
    assert len({path.read_bytes() for path in paths}) == 1  # not by chance: 8 times


def test_card_inside_goes_before_one_beside(net, tmp_path):
    path = save_weights(net, tmp_path / "mine.safetensors", card=CARD)
    write_card(path, Card(MODEL, Protocol(), ("a", "b", "c")))
    assert read_card(path).classes == CARD.classes


def test_card_is_read_inside_onnx(tmp_path):
    graph = onnx.helper.make_graph([], "net", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"a": "b", CARD_KEY: card_to_text(CARD)})
    onnx.save(model, tmp_path / "mine.onnx")
    assert read_card(tmp_path / "mine.onnx") == CARD


def test_link_has_the_card_of_its_target(weights, tmp_path, caplog):
    write_card(weights, CARD)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "latest.params"
    link.symlink_to(weights)
    assert init_model(None, link).class_names == CARD.classes
    assert not warnings(caplog)


def test_index_of_parts_is_not_taken_for_its_card(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    assert card_path(index).name == "model.json"


@pytest.mark.parametrize("num_classes", [5, 10, 20, 100, 1000])
def test_names_are_never_guessed_from_the_number_of_classes(
    num_classes, tmp_path, caplog
):
    net = create_model(MODEL, num_classes=num_classes)
    path = save_weights(net, tmp_path / "mine.safetensors")
    model = init_model(MODEL, path)
    assert model.class_names == tuple(f"class {label}" for label in range(num_classes))
    assert warnings(caplog) == [f"{path}{GUESS}"]
    assert model.protocol == checkpoint(MODEL).protocol


def test_bundled_weights_without_their_card_are_known_by_their_bytes(tmp_path, caplog):
    path = shutil.copy(bundled.weights(), tmp_path / "mine.params")
    caplog.set_level(logging.INFO)
    model = init_model(bundled.MODEL, path)
    assert f"{path} is {bundled.NAME}, known by its sha256" in caplog.messages
    assert model.class_names[0] == "T-shirt/top"
    assert model.protocol.size == 28
    assert not warnings(caplog)


def test_card_for_other_bytes_is_told(net, weights, caplog):
    write_card(weights, CARD)
    changed = create_model(MODEL, num_classes=3)
    save_weights(changed, weights)
    assert init_model(MODEL, weights).class_names == CARD.classes
    assert warnings(caplog) == [
        (
            f"{card_path(weights)} was written for another file than {weights}: its "
            "pixels and class names may not be those of these weights"
        )
    ]


def test_card_with_another_number_of_names_is_refused(weights):
    write_card(weights, Card(MODEL, Protocol(), ("a", "b")))
    with pytest.raises(InputError) as caught:
        init_model(MODEL, weights)
    assert str(caught.value) == (
        f"the card of {weights} names 2 classes, the weights have 3: mend or remove it"
    )


def test_early_card_is_read(tmp_path, caplog):
    net = create_model(MODEL)
    path = save_weights(net, tmp_path / "mine.params")
    early = {"model": MODEL, "protocol": {"size": 28}, "data_set": "fashion_mnist"}
    card_path(path).write_text(json.dumps(early))
    model = init_model(None, path)
    assert model.class_names[1] == "Trouser"
    assert model.protocol == Protocol(size=28)
    early["data_set"] = "imagenet"  # which the ten classes are not of
    card_path(path).write_text(json.dumps(early))
    assert init_model(None, path).class_names[1] == "class 1"
    assert not warnings(caplog)


def test_card_of_another_model_is_refused(weights):
    write_card(weights, Card("cifar_resnet56_v1", Protocol()))
    with pytest.raises(InputError) as caught:
        init_model(MODEL, weights)
    assert str(caught.value) == (
        f"{weights} says that these are weights of cifar_resnet56_v1, not of {MODEL}; "
        "give --model cifar_resnet56_v1"
    )


def test_card_may_name_its_model_by_an_alias_but_not_an_unknown_one(weights):
    write_card(weights, Card("resnet51", Protocol()))
    with pytest.raises(
        InputError, match=rf"^the card of {weights}: unknown model 'resn"
    ):
        init_model(None, weights)
    net = create_model("resnest14d", num_classes=3)
    path = save_weights(net, weights, card=Card("resnest14", Protocol()))
    for name in (None, "resnest14d", "gluon_resnest14"):
        assert init_model(name, path).card.model == "resnest14d"


def test_model_must_be_named_where_nothing_tells_it(weights):
    with pytest.raises(InputError) as caught:
        init_model(None, weights)
    assert str(caught.value) == (
        f"{weights} has no card mine.json and is no published file: name the network "
        "that its weights are of (--model)"
    )
    with pytest.raises(InputError, match=r"^there is no model: give a name or a file"):
        init_model()


def test_unknown_fields_of_a_newer_card_are_left_out(weights, caplog):
    fields = json.loads(card_to_text(CARD)) | {"mood": "good", "zoo": [1]}
    card_path(weights).write_text(json.dumps(fields))
    caplog.set_level(logging.INFO)
    assert read_card(weights) == CARD
    assert caplog.messages == [
        (
            f"{card_path(weights)} also tells mood, zoo, of which this version does "
            "not know"
        )
    ]


GOOD = '"model": "m", "protocol": {}'
DAMAGED = {
    "": "Expecting value: line 1 column 1 (char 0)",
    "[]": "it is no JSON object",
    "{}": "it does not tell the model",
    '{"model": "m"}': "it does not tell the protocol",
    '{"model": 1, "protocol": {}}': "model must be a text",
    '{"model": "m", "protocol": []}': "protocol must be an object",
    '{"model": "m", "protocol": {"size": 0}}': "size 0 is not a positive whole number",
    '{"model": "m", "protocol": {"crop_pct": "x"}}': (
        "a value of protocol is of a wrong type"
    ),
    '{"model": "m", "protocol": {"gamma": 2}}': (
        "this version cannot prepare images by gamma"
    ),
    f'{{{GOOD}, "classes": "ab"}}': "classes must be a list of names",
    f'{{{GOOD}, "classes": [1]}}': "classes must be a list of names",
    f'{{{GOOD}, "weights": {{}}}}': "weights must be an object of name and sha256",
    f'{{{GOOD}, "metrics": {{"top1": "x"}}}}': "metrics must be an object of numbers",
    "\xff": "it is no text in UTF-8",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_card_is_one_line(weights, text):
    card_path(weights).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_card(weights)
    assert str(caught.value) == (
        f"{card_path(weights)} is no card of weights ({DAMAGED[text]}): mend or remove "
        "it"
    )


def test_weights_and_card_come_together_or_not_at_all(net, tmp_path):
    (tmp_path / "mine.json").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save_weights(net, tmp_path / "mine.params", card=CARD)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.json"]


# Published files, given by path


def published(folder, name, model, num_classes=1000):
    net = create_model(model, num_classes=num_classes)
    path = save_weights(net, folder / "x.params")
    return path.rename(folder / name)


@pytest.mark.parametrize(
    ("file", "model", "row"),
    [
        ("resnet18_b16x8_cifar10_20210528-bd6371c8.pth", "cifar_resnet18", None),
        ("cifar_resnet20_v1-121e1579.params", MODEL, "cifar_resnet20_v1.gluoncv"),
        ("cifar_resnet20_v1-121e1579.zip", MODEL, "cifar_resnet20_v1.gluoncv"),
        ("renamed-121e1579.params", MODEL, "cifar_resnet20_v1.gluoncv"),
        ("cifar_resnet20_v1.gluoncv.params", MODEL, "cifar_resnet20_v1.gluoncv"),
    ],
)
def test_published_file_is_known_by_its_name(file, model, row, tmp_path, caplog):
    row = checkpoint(row or file)
    path = published(tmp_path, file, model, row.num_classes)
    caplog.set_level(logging.INFO)
    for name in (None, model):
        found = init_model(name, path)
        assert found.name == row.name
        assert found.protocol == row.protocol
        assert found.class_names[0] == "airplane"
    assert not warnings(caplog)
    by = "the checksum in its name" if file.startswith("renamed") else "its name"
    assert f"{path} is {row.name}, known by {by}" in caplog.messages


def test_file_of_a_published_name_with_other_classes_is_not_that_file(tmp_path, caplog):
    name = "cifar_resnet20_v1-121e1579.params"
    path = published(tmp_path, name, MODEL, num_classes=7)
    assert init_model(MODEL, path).class_names[6] == "class 6"
    (warning,) = warnings(caplog)
    assert "its pixels and class names are guesses" in warning


def test_published_file_of_another_model_is_refused(tmp_path):
    path = published(tmp_path, "cifar_resnet20_v1-121e1579.params", MODEL, 10)
    with pytest.raises(InputError, match=r"does not fit cifar_resnet56_v1, .*missing"):
        init_model("cifar_resnet56_v1", path)


def test_published_file_that_fits_another_model_is_refused(tmp_path):
    name = "resnetv1c50_8xb32_in1k_20220214-3343eccd.pth"
    path = published(tmp_path, name, "resnet50_v1c")
    with pytest.raises(InputError) as caught:
        init_model("resnet50_v1d", path)  # with the same parameters
    assert str(caught.value) == (
        f"{path} says that these are weights of resnet50_v1c, not of resnet50_v1d; "
        "give --model resnet50_v1c"
    )


def test_tag_decides_the_pixels_of_a_file(net, tmp_path, caplog):
    path = save_weights(create_model(MODEL), tmp_path / "mine.params")
    model = init_model(bundled.NAME, path)
    assert model.name == MODEL
    assert model.protocol == checkpoint(bundled.NAME).protocol
    assert model.class_names[0] == "T-shirt/top"
    other = save_weights(net, tmp_path / "other.params")
    assert init_model(bundled.NAME, other).class_names[0] == "class 0"
    assert not warnings(caplog)


def test_tag_that_contradicts_the_card_is_told(tmp_path, caplog):
    net = create_model(MODEL)
    path = save_weights(
        net, tmp_path / "mine.params", card=checkpoint(bundled.NAME).card
    )
    model = init_model("cifar_resnet20_v1.gluoncv", path)
    assert model.protocol.size == 32
    assert model.class_names[0] == "T-shirt/top"
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{path} is known as {MODEL} (28 pixels, crop 1, ")
    assert warning.endswith("std 0.202 0.199 0.201), as asked")


def test_network_and_url_of_a_row_may_be_named_as_openmmlab_does(monkeypatch, caplog):
    asked = []

    def fetch(row, accept_licence):
        asked.append(row.name)
        raise InputError("stop")

    monkeypatch.setattr("gluon_resnet.classifier.fetch", fetch)
    url = (
        "https://download.openmmlab.com/mmclassification/v0/resnet/"
        "resnet50_8xb32_in1k_20210831-ea4938fc.pth"
    )
    for name in ("configs/resnet/resnet50_8xb32_in1k.py", "ResNet-50", None):
        with pytest.raises(InputError, match=r"^stop$"):
            init_model(name, url)
    assert asked == ["resnet50_v1b.openmmlab_8xb32"] * 3
