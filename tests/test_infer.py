# SPDX-License-Identifier: Apache-2.0
"""Classifying images: the function, the two calls of OpenMMLab, the command."""

import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gluon_resnet import (
    bundled,
    inference_model,
    init_model,
    postprocess,
    preprocess,
    read_image,
)
from gluon_resnet import infer as command
from gluon_resnet.cam import overlay_path
from gluon_resnet.errors import InputError
from gluon_resnet.infer import infer
from gluon_resnet.weights import DEFAULT_WEIGHTS

SAMPLES = sorted(bundled.IMAGES.glob("*.png"))
LABELS = [int(path.name.partition("-")[0]) for path in SAMPLES]


@pytest.fixture(scope="module")
def model():
    return init_model(bundled.NAME)


@pytest.fixture
def folder(tmp_path):
    """Two good images, one that is none, and a text file that is not asked."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    shutil.copy(SAMPLES[0], tmp_path / "b" / "c" / "second.PNG")
    shutil.copy(SAMPLES[1], tmp_path / "b" / "first.png")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "b" / "notes.txt").write_text("text")
    return tmp_path / "b"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """A user without a network, and with nothing in the cache."""
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    monkeypatch.setenv("GLUON_RESNET_CACHE", str(tmp_path / "cache"))


def run(*arguments):
    """What the command returns."""
    return command.main(command.parser().parse_args([*map(str, arguments)]))


def test_nine_of_ten_samples_are_right(model):
    answers = list(infer(model, SAMPLES, batch_size=10))
    best = [answer["predictions"][0]["label"] for answer in answers]
    assert len(SAMPLES) == 10
    assert sum(map(int.__eq__, best, LABELS)) >= 9


def test_answers_are_preprocess_net_postprocess(model):
    (answer,) = infer(model, SAMPLES[:1], k=3)
    images = preprocess(SAMPLES[0], **asdict(model.protocol))[None]
    expected = postprocess(model(images)[0], 3, class_names=model.class_names)
    assert answer.pop("seconds") > 0
    assert answer == {
        "image": str(SAMPLES[0]),
        "model": "cifar_resnet20_v1.fashion_mnist",
        "predictions": [
            {"label": label, "class": name, "score": score}
            for label, name, score in expected
        ],
    }


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_answer_as_single_images_do(model, batch_size):
    singly = list(infer(model, SAMPLES))
    together = list(infer(model, SAMPLES, batch_size=batch_size))
    for one, other in zip(singly, together):
        assert one["image"] == other["image"]
        for a, b in zip(one["predictions"], other["predictions"]):
            assert a["score"] == pytest.approx(b["score"], abs=1e-6)


def test_folders_are_searched_and_errors_stay_in_their_place(model, folder):
    answers = list(infer(model, [folder, SAMPLES[2]], batch_size=2))
    names = [Path(answer["image"]).name for answer in answers]
    assert names == ["broken.jpg", "second.PNG", "first.png", SAMPLES[2].name]
    assert "not an image" in answers[0]["error"]
    assert ["error" in answer for answer in answers] == [True, False, False, False]


def test_folder_without_images_is_an_answer(model, tmp_path):
    (answer,) = infer(model, [tmp_path])
    assert answer["error"].startswith(f"{tmp_path}: a folder without images; give")


def test_features_are_the_pooled_vectors(model, tmp_path, folder):
    out = tmp_path / "new" / "features.npz"
    answers = list(infer(model, [folder, *SAMPLES], batch_size=4, features=out))
    stored = np.load(out)
    readable = [answer for answer in answers if "error" not in answer]
    assert list(stored["images"]) == [answer["image"] for answer in readable]
    head = model.net.fc
    weight, bias = (p.data().asnumpy() for p in (head.weight, head.bias))
    logits = stored["features"] @ weight.T + bias
    best = [answer["predictions"][0]["label"] for answer in readable]
    assert list(logits.argmax(axis=1)) == best


def test_cams_are_pictures_of_the_input_size(model, tmp_path):
    answers = list(infer(model, SAMPLES[:2], cam=tmp_path))
    pictures = sorted(tmp_path.glob("*"))
    assert sorted(answer["cam"] for answer in answers) == [*map(str, pictures)]
    assert all(cv2.imread(str(path)).shape == (28, 28, 3) for path in pictures)


def test_every_image_has_a_picture_of_its_own(model, tmp_path, monkeypatch):
    long = tmp_path.joinpath(*["a" * 60] * 5)
    names = ["a/b_c.png", "a_b/c.png", "b/c.png", "b_c.png", ".c.png", "c.PNG"]
    names += [f"{'ä' * 110}.png", f"{long}/c.png", "../photos/c.png"]
    work = tmp_path / "work"
    for name in names:
        path = Path(os.path.normpath(work / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLES[0], path)
    monkeypatch.chdir(work)
    answers = list(infer(model, names, cam="heat"))
    assert not [answer["error"] for answer in answers if "error" in answer]
    pictures = {Path(answer["cam"]) for answer in answers}
    assert len(pictures) == len(names)
    assert pictures == set((work / "heat").relative_to(work).iterdir())
    assert not [path for path in pictures if path.name.startswith(".")]
    # The same picture for the same image, however it is named.
    (again,) = infer(model, str(work / "b_c.png"), cam="heat")
    assert Path(again["cam"]) in pictures


def test_picture_that_cannot_be_written_is_one_error(model, tmp_path):
    blocked = overlay_path(tmp_path, str(SAMPLES[0]))
    blocked.mkdir()
    first, second = infer(model, SAMPLES[:2], cam=tmp_path)
    assert first["error"].startswith(f"cannot write {blocked}: Is a directory; choose")
    assert first["predictions"]
    assert "error" not in second and Path(second["cam"]).exists()


def test_full_disk_ends_the_run_and_keeps_what_was_there(model, tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    path = overlay_path(tmp_path, str(SAMPLES[0]))
    path.touch()
    with pytest.raises(InputError) as error:
        list(infer(model, SAMPLES, cam=tmp_path))
    assert str(error.value) == (
        f"cannot write {path}: No space left on device; make room, the file that was "
        "there is kept"
    )
    assert list(tmp_path.iterdir()) == [path]


def test_bf16_answers_the_same_classes():
    half = init_model(bundled.NAME, precision="bf16")
    best = [answer["predictions"][0]["label"] for answer in infer(half, SAMPLES)]
    assert best == [
        answer["predictions"][0]["label"]
        for answer in infer(init_model(bundled.NAME), SAMPLES)
    ]


def test_features_and_cam_need_fp32(tmp_path):
    half = init_model(bundled.NAME, precision="bf16")
    with pytest.raises(InputError) as error:
        infer(half, SAMPLES, features=tmp_path / "features.npz")
    assert str(error.value) == (
        "features and cam need precision fp32; the model is bf16"
    )


@pytest.mark.parametrize("option", [{"k": 0}, {"batch_size": 0}])
def test_option_below_1_is_named_when_called(model, option):
    with pytest.raises(InputError, match=r"is 0; it must be at least 1$"):
        infer(model, SAMPLES, **option)


@pytest.mark.parametrize("option", ["features", "cam"])
def test_output_that_cannot_be_written_is_named_when_called(model, tmp_path, option):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=r"^cannot write .*: (File exists|Not a dir)"):
        infer(model, SAMPLES, **{option: file / "x"})
    assert list(tmp_path.iterdir()) == [file]


def images_of(model, images):
    """The names that the answers have."""
    return [answer["image"] for answer in infer(model, images, batch_size=4)]


def test_images_are_what_python_users_have(model):
    first, second = SAMPLES[:2]
    arrays = [read_image(first), read_image(second)]
    for one in (first, str(first)):
        assert images_of(model, one) == [str(first)]
    content = first.read_bytes()
    for one in (arrays[0], content, BytesIO(content), Image.fromarray(arrays[0])):
        assert images_of(model, one) == ["image 0"]
    assert images_of(model, [arrays[0], str(second)]) == ["image 0", str(second)]
    (together,) = {tuple(images_of(model, many)) for many in (arrays, np.stack(arrays))}
    assert together == ("image 0", "image 1")
    assert images_of(model, []) == []


def test_array_answers_as_its_file_does(model):
    (of_file,), (of_array,) = (
        list(infer(model, image)) for image in (SAMPLES[0], read_image(SAMPLES[0]))
    )
    assert of_file["predictions"] == of_array["predictions"]


def test_next_images_are_read_while_the_network_works(model, monkeypatch):
    read, seen = [], []

    def preprocess_and_tell(image, protocol):
        read.append(image)
        return preprocess(image, protocol)

    def slow(images):
        deadline = time.monotonic() + 5
        while len(read) < 2 * len(images) and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(len(read))
        return model.forward(images)

    monkeypatch.setattr(
        sys.modules["gluon_resnet.preprocess"], "preprocess", preprocess_and_tell
    )
    slow_model = replace(model)
    vars(slow_model)["forward"] = slow
    list(infer(slow_model, SAMPLES[:4], batch_size=2))
    assert seen[0] == 4


def test_model_tells_what_it_is_in_one_cell(model):
    assert repr(model) == (
        f"<Classifier {bundled.NAME}: 10 classes (T-shirt/top, Trouser, ...), images "
        "of 28 pixels, fp32 on cpu(0)>"
    )


def test_inference_model_returns_what_openmmlabs_does(model):
    answer = inference_model(model, SAMPLES[0])
    assert set(answer) == {"pred_label", "pred_class", "pred_score", "pred_scores"}
    assert answer["pred_class"] == model.class_names[answer["pred_label"]]
    assert answer["pred_scores"][answer["pred_label"]] == answer["pred_score"]
    assert sum(answer["pred_scores"]) == pytest.approx(1)


def test_own_weights_decide_the_number_of_classes(model):
    own = init_model("cifar_resnet20_v1", weights=bundled.weights())
    assert own.name == "cifar_resnet20_v1"
    assert own.net.fc.weight.shape == (10, 64)


def test_command_needs_no_model_where_the_weights_tell_it(capsys):
    assert run(SAMPLES[0], "--weights", bundled.weights(), "--topk", 1) == 0
    out, error = capsys.readouterr()
    assert (out.split()[-1], error) == ("T-shirt/top", "")


def test_weights_of_another_net_are_refused_with_the_keys(tmp_path):
    weights = shutil.copy(bundled.weights(), tmp_path / "no_card.params")
    message = r"does not fit cifar_resnet56_v1, .* missing: .*stage1\.3\.body\.conv1"
    with pytest.raises(InputError, match=message):
        init_model("cifar_resnet56_v1", weights)


def test_command_answers_every_image_as_json_and_fails_at_the_end(folder, capsys):
    code = run(folder, "--model", bundled.NAME, "--json", "--topk", 2)
    out, error = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert re.fullmatch(r"3 images, 1 failed, [\d.e+]+ a second\n", error)
    assert [len(answer.get("predictions", [])) for answer in answers] == [0, 2, 2]


def test_command_prints_classes_for_a_person(capsys):
    assert run(SAMPLES[0], "--model", bundled.NAME) == 0
    out, error = capsys.readouterr()
    image, *classes = out.splitlines()
    assert image.startswith(f"{SAMPLES[0]}  ({bundled.NAME}, ")
    assert (len(classes), error) == (5, "")


def test_command_prints_any_file_name_on_one_line(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9\n\x1b[2J.png")
    shutil.copy(SAMPLES[0], tmp_path / name)
    assert run(tmp_path / name, "--model", bundled.NAME, "--topk", 1) == 0
    image, _ = capsys.readouterr().out.splitlines()
    assert image.startswith(rf"{tmp_path}/caf\udce9\n\x1b[2J.png  ({bundled.NAME}, ")


def test_weights_that_tell_their_network_need_no_model(capsys):
    assert run(SAMPLES[0], "--weights", bundled.weights(), "--topk", 1) == 0
    image, answer = capsys.readouterr().out.splitlines()
    assert image.startswith(f"{SAMPLES[0]}  ({bundled.MODEL}, ")
    assert answer.endswith("  T-shirt/top")


def test_help_names_the_default_model():
    assert DEFAULT_WEIGHTS in command.parser().format_help()


def test_default_model_that_cannot_be_had_is_replaced_and_said(capsys, caplog):
    assert run(SAMPLES[0], "--json") == 1
    out, error = capsys.readouterr()
    assert json.loads(out)["model"] == bundled.NAME
    reason, replacement = caplog.messages
    assert "GLUON_RESNET_OFFLINE" in reason
    assert "T-shirt" in replacement
    assert error == (
        f"warning: {DEFAULT_WEIGHTS} could not be had; {bundled.NAME} has answered\n"
    )


def test_model_asked_for_by_name_is_never_replaced():
    with pytest.raises(InputError, match="GLUON_RESNET_OFFLINE forbids"):
        run(SAMPLES[0], "--model", "resnet50_v1b")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x.png", "--model", "resnet5"], "unknown model 'resnet5'; nearest: "),
        (["x.png", "--weights", "w"], "cannot read weights w: No such file"),
        (["x.png", "--model", bundled.NAME, "--precision", "int8"], "int8 needs a"),
        (["x.png", "--model", bundled.NAME, "--batch-size", 10**8], "GB are free"),
        (["x.png", "--model", bundled.NAME, "--ctx", "gpu(99)"], "is not there: MXNet"),
    ],
)
def test_users_mistake_is_told(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x.png", "--ctx", "tpu"], "--ctx/--device: 'tpu' is no device; use cpu, gpu"),
        (["x.png", "--precision", "fp8"], "invalid choice: 'fp8' (choose from"),
        ([], "the following arguments are required: IMAGE; see"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert message in line
