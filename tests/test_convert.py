# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.convert` and the function behind it."""

import hashlib
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from draw import draw_tensor
from safetensors.numpy import load_file
from torch_files import write_torch

from gluon_resnet import create_model, load_weights
from gluon_resnet.convert import convert
from gluon_resnet.errors import InputError

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
    ):
        with pytest.raises(InputError, match=message):
            convert(source[0], tmp_path / "out" / "net.params", **options)
    assert not (tmp_path / "out").exists()


def run(*arguments):
    command = [sys.executable, "-m", "gluon_resnet.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verb_prints_the_path_and_what_it_read(source, tmp_path):
    done = run(source[0], tmp_path / "net.safetensors", "--model", MODEL)
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert load_file(path).keys() == source[1].keys()
    assert done.stderr == (
        f"{len(source[1])} tensors of {source[0]} (pth, named as own) as float32, "
        "from float16\n"
    )


def test_the_verbs_mistakes_are_one_line(source, tmp_path):
    done = run(source[0], tmp_path / "net.onnx", "--model", MODEL)
    assert done.returncode == 1
    assert done.stderr == (
        "python -m gluon_resnet.convert: cannot write weights as net.onnx; end the "
        "name in .params or .safetensors\n"
    )
    assert run(source[0]).returncode == 2
