# SPDX-License-Identifier: Apache-2.0
import mxnet as mx
import pytest

from gluon_resnet.device import device, device_name
from gluon_resnet.errors import InputError


@pytest.mark.parametrize("name", [None, "cpu", "CPU", "cpu(0)", mx.cpu()])
def test_device_is_what_it_is_called(name):
    assert device(name) == mx.cpu()


def test_another_number_is_another_device():
    assert device("cpu(1)") == mx.cpu(1)


@pytest.mark.parametrize("name", ["gpu(1)", "cuda:1", "gpu:1", "cuda(1)"])
def test_gpu_is_called_as_by_mxnet_or_by_pytorch(name, monkeypatch):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 2)
    assert device(name) == mx.gpu(1)


@pytest.mark.parametrize("name", ["tpu", "cuda1", "gpu1", "gpu()", "cpu(-1)", "", 0])
def test_what_is_no_device_is_refused(name):
    message = f"{name!r} is no device; use cpu, gpu(0), gpu(1), ..."
    for understand in (device, device_name):
        with pytest.raises(InputError) as error:
            understand(name)
        assert str(error.value) == message


@pytest.mark.parametrize("name", ["gpu", "gpu(0)", mx.gpu()])
def test_gpu_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 0)
    with pytest.raises(InputError) as error:
        device(name)
    assert str(error.value) == (
        "gpu(0) is not there: MXNet sees 0 GPUs; use cpu, or install "
        "requirements-cu112.txt on a machine with one"
    )
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    assert device(name) == mx.gpu()


def test_name_of_a_gpu_is_understood_without_one():
    assert device_name("gpu(7)") == "gpu(7)"
