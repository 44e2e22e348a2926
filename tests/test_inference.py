# SPDX-License-Identifier: Apache-2.0
"""The fastest form of a network: its values, its precisions, when it is taken."""

import itertools
import logging
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon

from gluon_resnet import bundled, create_model, init_model
from gluon_resnet.cpu import cpu_flags
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.inference import form, onednn
from gluon_resnet.inference.form import check_precision, inference_form
from gluon_resnet.inference.operators import plan_of
from gluon_resnet.inference.packing import Weights
from gluon_resnet.inference.rewrites import inference_graph
from gluon_resnet.inference.steps import steps_of

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


def kernels_of(net, shape, precision="fp32"):
    form = inference_form(net, precision=precision)
    return form.kernels(mx.nd.array(draw_images(shape)), rounds=1)


@pytest.mark.parametrize("count", [1, 6])
def test_form_is_fused(count):
    net = drawn("resnet18_v1")
    kernels = kernels_of(net, (count, 3, 64, 64))
    assert len([1 for layer in net.collect_params() if "conv" in layer]) == 20
    found = Counter(kernel["primitive"] for kernel in kernels)
    # oneDNN's and, where llvmlite is installed, Winograd's
    found["convolution_forward"] += found.pop("convolution", 0)
    assert found == {
        "reorder": 1,  # of the image
        "convolution_forward": 20,
        "pooling_forward": 2,
        "inner_product_forward": 1,
    }


def test_split_attention_needs_no_reduction():
    kernels = kernels_of(drawn("resnest14d"), (1, 3, 64, 64))
    found = Counter(kernel["primitive"] for kernel in kernels)
    # Two splits in each of four blocks: the sum of the pooled, and the weighted sum.
    assert found["binary"] == 4 * 2
    assert "reduction" not in found and "softmax_forward" not in found


def test_bf16_computes_convolutions_in_bf16_but_the_first():
    kernels = kernels_of(drawn("resnet18_v1"), (1, 3, 64, 64), precision="bf16")
    names = [k["kernel"] for k in kernels if "convolution" in k["primitive"]]
    assert "bf16" not in names[0]
    if "avx512_bf16" in cpu_flags():
        # Winograd's kernels multiply maps of few channels in float32, as fast.
        direct = [name for name in names[1:] if "winograd" not in name]
        assert direct and all(name.endswith("bf16") for name in direct)


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


def test_precision_that_the_processor_cannot_run_is_refused():
    code = f"from gluon_resnet import *; init_model({bundled.NAME!r}, precision='bf16')"
    result = python(code, ONEDNN_MAX_CPU_ISA="AVX2")
    assert result.stderr.splitlines()[-1] == (
        "gluon_resnet.errors.InputError: precision bf16 needs a processor with "
        "AVX-512, which ONEDNN_MAX_CPU_ISA may restrict; use fp32"
    )


@pytest.mark.parametrize("name", ["SSE41", "AVX2", "AVX512_CORE"])
def test_older_processors_give_the_same_answers(name):
    code = (
        "import mxnet as mx\n"
        "from gluon_resnet import bundled, inference_form, init_model\n"
        "net = init_model(bundled.NAME).net\n"
        "images = mx.nd.random.normal(shape=(5, 3, 28, 28))\n"
        "print(abs(inference_form(net)(images) - net(images)).max().asscalar())\n"
    )
    result = python("import gluon_resnet\n" + code, ONEDNN_MAX_CPU_ISA=name)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-4


@pytest.fixture
def without_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "is_available", lambda: False)


def test_without_onednn_mxnets_operators_run(model, without_onednn, caplog):
    caplog.set_level(logging.INFO, "gluon_resnet")
    form = inference_form(model.net)
    assert caplog.messages == [
        "fp32 on cpu(0): MXNet's own operators, no fused kernels"
    ]
    images = mx.nd.array(draw_images((2, 3, 28, 28)))
    expected = model.net(images).asnumpy()
    assert difference(form(images).asnumpy(), expected) < FP32_TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_without_onednn_other_precisions_are_refused(without_onednn, precision):
    with pytest.raises(InputError) as error:
        check_precision(precision, mx.cpu())
    assert str(error.value) == (
        f"precision {precision} needs oneDNN: run `pip install -r requirements.txt`, "
        "on Linux x86-64; or use fp32"
    )


def test_a_missing_wheel_is_no_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "files", lambda name: None)
    assert onednn.library_path() is None


def test_a_library_that_cannot_be_loaded_is_no_onednn(monkeypatch, tmp_path):
    (tmp_path / "libdnnl.so.3").write_text("no library")
    monkeypatch.setattr(onednn, "library_path", lambda: str(tmp_path / "libdnnl.so.3"))
    onednn.library.cache_clear()
    try:
        assert not onednn.is_available.__wrapped__()
    finally:
        onednn.library.cache_clear()


def test_bf16_without_its_instructions_says_so(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gluon_resnet")
    monkeypatch.setattr(form.cpu, "cpu_flags", set)
    check_precision("bf16", mx.cpu())
    (message,) = caplog.messages
    assert message.startswith("bf16: the processor has no avx512_bf16, expect less")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_and_batches_change_nothing(model, precision):
    images = mx.nd.array(draw_images((7, 3, 28, 28)))
    form = inference_form(model.net, precision=precision)
    expected = form(images).asnumpy()
    for first, last in ((0, 1), (1, 3), (2, 7)):
        found = form(images[first:last]).asnumpy()
        np.testing.assert_allclose(found, expected[first:last], rtol=0, atol=1e-5)


def test_images_of_another_type_are_taken(model):
    images = mx.nd.array(draw_images((2, 3, 28, 28)))
    expected = model.forward(images).asnumpy()
    found = model.forward(images.astype("float64")).asnumpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 4, 28, 28), (28, 28)])
def test_images_that_do_not_fit_are_refused_and_others_still_taken(model, shape):
    fitting = mx.nd.array(draw_images((2, 3, 28, 28)))
    expected = model.forward(fitting).asnumpy()
    with pytest.raises(InputError, match="do not fit this network"):
        model.forward(mx.nd.zeros(shape))
    np.testing.assert_array_equal(model.forward(fitting).asnumpy(), expected)


def test_one_form_serves_several_threads(model):
    batches = [mx.nd.array(draw_images((n, 3, 28, 28))) for n in (1, 4, 2, 5)] * 5
    expected = [model.forward(images).asnumpy() for images in batches]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda images: model.forward(images).asnumpy(), batches)
        for logits, wanted in zip(found, expected):
            np.testing.assert_array_equal(logits, wanted)


def test_memory_of_a_tensor_is_given_on_and_never_shared(model):
    graph, arrays = inference_graph(drawn("resnet50_v1d"))
    (head,) = graph.end.inputs
    plan = plan_of(steps_of(graph), head, Weights(arrays), (1, 3, 64, 64))
    for one, other in itertools.combinations(plan.storages, 2):
        if one.first <= other.last and other.first <= one.last:
            assert (
                one.offset + one.nbytes <= other.offset
                or other.offset + other.nbytes <= one.offset
            )
    taken = max(storage.offset + storage.nbytes for storage in plan.storages)
    assert taken < sum(storage.nbytes for storage in plan.storages) / 4
