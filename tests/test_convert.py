# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.convert` and the function behind it."""

import hashlib
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from draw import draw_tensor
from safetensors.numpy import load_file
from torch_files import write_torch

from gluon_resnet import (
    bundled,
    create_model,
    inference_model,
    init_model,
    load_weights,
    save_weights,
)
from gluon_resnet import convert as command
from gluon_resnet.convert import convert
from gluon_resnet.errors import InputError
from gluon_resnet.weights.card import read_card
from gluon_resnet.weights.published import checkpoint

MODEL = "cifar_resnet20_v1"


@pytest.fixture
def source(tmp_path):
    """A half-precision file of our own names and the values in it."""
    tensors = {
        name: draw_tensor(name, parameter.shape).astype(np.float16)
        for name, parameter in create_model(MODEL)._collect_params_with_prefix().items()
    }
    write_torch(tmp_path / "source.pth", {"state_dict": tensors}, is_zip=True)
    return tmp_path / "source.pth", tensors


def values(net):
    parameters = net._collect_params_with_prefix()
    return {name: p.data().asnumpy() for name, p in parameters.items()}


@pytest.mark.parametrize("suffix", ["params", "safetensors"])
def test_the_name_has_the_digest_and_the_values_stay(source, suffix, tmp_path):
    path, tensors = source
    folder = tmp_path / "new folder"
    converted, report = convert(path, folder / f"net.{suffix}", model=MODEL)
    digest = hashlib.sha256(converted.read_bytes()).hexdigest()
    assert list(folder.iterdir()) == [converted]
    assert converted.name == f"net-{digest[:8]}.{suffix}"
    assert report.converted == ("float16",)
    net = create_model(MODEL)
    load_weights(net, converted)
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, tensors[name].astype(np.float32), name)


def test_converting_again_gives_the_same_file(source, tmp_path):
    first, _ = convert(source[0], tmp_path / "net.params", model=MODEL)
    first.write_bytes(b"damaged")
    second, _ = convert(source[0], tmp_path / "net.params", model=MODEL)
    assert second == first
    assert mx.nd.load(str(second)).keys() == source[1].keys()


def test_what_does_not_fit_leaves_nothing(source, tmp_path):
    for options, message in (
        ({"model": "cifar_resnet56_v1"}, "does not fit cifar_resnet56_v1"),
        ({"model": MODEL, "num_classes": 7}, r"fc\.bias: \(10,\), \(7,\)"),
        ({}, "has no card source.json and is no published file: name the network"),
    ):
        with pytest.raises(InputError, match=message):
            convert(source[0], tmp_path / "out" / "net.params", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["params", "safetensors"])
def test_card_goes_along_under_the_new_name(suffix, tmp_path):
    converted, _ = convert(bundled.weights(), tmp_path / "out" / f"mine.{suffix}")
    beside = {entry.name for entry in converted.parent.iterdir()} - {converted.name}
    assert beside == ({f"{converted.stem}.json"} if suffix == "params" else set())
    card = read_card(converted)
    published = checkpoint(bundled.NAME).card
    assert card.parent == bundled.weights().name
    for fact in ("model", "protocol", "classes", "data_set", "metrics", "licence"):
        assert getattr(card, fact) == getattr(published, fact), fact
    model = init_model(None, converted)
    image = bundled.IMAGES / "0-t-shirt_top.png"
    assert inference_model(model, image)["pred_class"] == "T-shirt/top"
    # From one format to the other and back.
    for other in ("safetensors", "params"):
        converted, _ = convert(converted, tmp_path / f"again.{other}")
        assert read_card(converted).classes == published.classes


def test_card_of_a_published_file_is_its_row(tmp_path):
    source = tmp_path / "cifar_resnet20_v1-121e1579.params"
    save_weights(create_model(MODEL), source)
    converted, _ = convert(source, tmp_path / "mine.safetensors")
    row = checkpoint("cifar_resnet20_v1.gluoncv")
    assert read_card(converted) == replace(row.card, parent=row.name)


def test_tag_of_the_model_goes_into_the_card(source, tmp_path):
    converted, _ = convert(source[0], tmp_path / "net.params", model=bundled.NAME)
    assert read_card(converted).classes[0] == "T-shirt/top"
    bare, _ = convert(source[0], tmp_path / "bare.params", model=MODEL)
    assert read_card(bare) is None


def test_classes_and_channels_are_those_of_the_file(tmp_path):
    net = create_model(MODEL, num_classes=4, in_channels=2)
    source = save_weights(net, tmp_path / "two.safetensors")
    converted, report = convert(source, tmp_path / "net.params", model=MODEL)
    arrays = mx.nd.load(str(converted))
    assert arrays["stem.conv1.weight"].shape == (16, 2, 3, 3)
    assert arrays["fc.weight"].shape == (4, 64)
    assert report.loaded == len(arrays)


def test_the_verb_prints_the_path_and_what_it_read(source, run_command, tmp_path):
    options = ["--model", MODEL]
    done = run_command(command, source[0], tmp_path / "net.safetensors", *options)
    assert done.code == 0, done.err
    path = done.out.strip()
    assert load_file(path).keys() == source[1].keys()
    assert done.err == (
        f"{len(source[1])} tensors of {source[0]} (pth, named as own) as float32, "
        "from float16\n"
    )


def test_the_verbs_mistakes_are_one_line(source, run_command, tmp_path):
    done = run_command(command, source[0], tmp_path / "net.onnx", "--model", MODEL)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "python -m gluon_resnet.convert: cannot write weights as net.onnx; end the "
        "name in .params or .safetensors\n"
    )
    done = run_command(command, source[0])
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "python -m gluon_resnet.convert: the following arguments are required: DST; "
        "see python -m gluon_resnet.convert --help\n"
    )
