# SPDX-License-Identifier: Apache-2.0
"""The fastest form of a network: its values, its precisions, when it is taken."""

import logging
import os
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon

from gluon_resnet import bundled, create_model, inference, init_model
from gluon_resnet.errors import InputError
from gluon_resnet.inference import check_precision, inference_form
from gluon_resnet.loader import validation_batches
from gluon_resnet.records import RecordFile

# Of the largest logit: rounding of float32 through tens of layers in another order.
FP32_TOLERANCE = 3e-6
# bfloat16 keeps 8 bits, 0.4 % of a value; cutting off instead of rounding gives 0.03.
BF16_TOLERANCE = 0.012

FAMILIES = [
    "resnet50_v1",
    "resnet18_v1d",
    "resnet50_v2",
    "cifar_resnet20_v1",
    "cifar_resnet20_v2",  # a convolution both goes through a norm and is added
    "resnest14d",
    "resnest50d_1s4x24d",
    "resnest50d_4s2x40d",
]


def drawn(name):
    net = create_model(name)
    fill_gluon(net)
    return net


def difference(logits, expected):
    """The largest one, of the largest logit."""
    return np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def model():
    return init_model(bundled.NAME)


@pytest.mark.parametrize("name", FAMILIES)
def test_forms_answer_as_the_net_does_for_any_batch_and_size(name):
    net = drawn(name)
    fp32, bf16 = (inference_form(net, precision=p) for p in ("fp32", "bf16"))
    for shape in ((2, 3, 64, 64), (3, 3, 64, 64), (1, 3, 96, 64), (2, 3, 64, 64)):
        images = mx.nd.array(draw_images(shape))
        expected = net(images).asnumpy()
        assert difference(fp32(images).asnumpy(), expected) < FP32_TOLERANCE
        logits = bf16(images).asnumpy()
        assert logits.dtype == np.float32
        assert difference(logits, expected) < BF16_TOLERANCE


def test_form_is_fused():
    net = drawn("resnet18_v1")
    log = kernels_of("fp32", "resnet18_v1")
    assert len([1 for layer in net.collect_params() if "conv" in layer]) == 20
    assert log.count(",convolution,") == 20
    for alone in (",batch_normalization,", ",eltwise,", ",sum,", ",binary,"):
        assert alone not in log


def test_bf16_computes_convolutions_in_bf16_but_the_first():
    lines = kernels_of("bf16", "resnet18_v1").splitlines()
    types = [line.split(",")[6][:7] for line in lines if ",convolution," in line]
    assert types == ["src_f32"] + ["src_bf1"] * 19
    assert not any(",eltwise," in line for line in lines)


def kernels_of(precision, name):
    """What oneDNN prints for one answer."""
    code = (
        "import mxnet as mx\n"
        "from gluon_resnet import create_model\n"
        "from gluon_resnet.inference import inference_form\n"
        f"form = inference_form(create_model({name!r}), precision={precision!r})\n"
        "form(mx.nd.ones((1, 3, 64, 64))).wait_to_read()\n"
        "form(mx.nd.ones((1, 3, 64, 64))).wait_to_read()\n"
    )
    result = python("import gluon_resnet\n" + code, DNNL_VERBOSE="1")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if ",exec," in line]
    # The second answer's: from the last time that the first convolution ran.
    first = [i for i, line in enumerate(lines) if "ic3oc64" in line]
    return "\n".join(lines[first[-1] :])


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ".", **environment},
    )


def test_form_keeps_its_values_when_the_net_is_trained_on(model):
    net = drawn("cifar_resnet20_v1")
    form = inference_form(net)
    images = mx.nd.array(draw_images((1, 3, 32, 32)))
    before = form(images).asnumpy()
    for parameter in net.collect_params().values():
        parameter.set_data(parameter.data() * 2)
    assert (form(images).asnumpy() == before).all()


@pytest.mark.slow
def test_bf16_predicts_as_fp32_does(model):
    records = RecordFile.open(bundled.VAL_REC, num_classes=10)
    batches = validation_batches(
        list(records.offsets), records.read, batch_size=100, protocol=model.protocol
    )
    half = inference_form(model.net, precision="bf16")
    changed = errors = count = 0
    for images, _ in batches:
        images = mx.nd.array(images)
        expected, logits = model.forward(images).asnumpy(), half(images).asnumpy()
        changed += (expected.argmax(axis=1) != logits.argmax(axis=1)).sum()
        errors += ((expected - logits) ** 2).sum()
        count += logits.size
    # 99.9 % of 500 images leaves none, but for one whose two best are equal.
    assert changed <= 1
    # Cutting off instead of rounding, or a first layer in bf16, passes it by far.
    assert np.sqrt(errors / count) < 0.01


@pytest.mark.parametrize("weight", [1.00390625, -0.3, 3e-30])
def test_weights_are_rounded_to_the_nearest_bfloat16(weight):
    value = mx.nd.array([weight])
    rounded = inference._bfloat16(value).astype("float32").asscalar()
    # Half a step of 8 bits: cutting off errs by up to a whole one.
    assert abs(rounded - value.asscalar()) <= abs(weight) * 2**-8


@pytest.mark.parametrize(
    "precision, ctx, message",
    [
        ("fp16", mx.cpu(), "precision 'fp16'; use fp32, bf16, int8"),
        ("bf16", mx.gpu(), "precision bf16 runs on cpu, not on gpu(0); use cpu or"),
        ("int8", mx.gpu(), "precision int8 runs on cpu, not on gpu(0); use cpu or"),
    ],
)
def test_precision_that_cannot_run_is_named(precision, ctx, message):
    with pytest.raises(InputError) as error:
        check_precision(precision, ctx)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "environment", [{"DNNL_MAX_CPU_ISA": "AVX2"}, {"MXNET_MKLDNN_ENABLED": "0"}]
)
def test_precision_that_the_processor_cannot_run_is_refused(environment):
    code = "from gluon_resnet import init_model; init_model({!r}, precision='bf16')"
    result = python(code.format(bundled.NAME), **environment)
    assert result.stderr.splitlines()[-1] == (
        "gluon_resnet.errors.InputError: precision bf16 needs a processor with "
        "AVX-512, and oneDNN, which DNNL_MAX_CPU_ISA and MXNET_MKLDNN_ENABLED "
        "restrict; use fp32"
    )


def test_without_onednn_the_form_is_the_net(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gluon_resnet")
    monkeypatch.setenv("MXNET_MKLDNN_ENABLED", "0")
    assert inference_form(model.net) is model.net
    assert caplog.messages == ["fp32 on cpu(0): plain operators, nothing fused"]


def test_bf16_without_its_instructions_says_so(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gluon_resnet")
    monkeypatch.setattr(inference._before_mxnet, "cpu_flags", set)
    check_precision("bf16", mx.cpu())
    (message,) = caplog.messages
    assert message.startswith("bf16: the processor has no avx512_bf16, expect less")
