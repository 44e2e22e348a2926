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
from gluon_resnet.inference import form as forms
from gluon_resnet.inference import onednn, operators
from gluon_resnet.inference.form import check_precision, inference_form
from gluon_resnet.inference.onednn import Descriptor, DType, Layout, Memory
from gluon_resnet.inference.operators import plan_of
from gluon_resnet.inference.packing import Weight, Weights
from gluon_resnet.inference.plan import Plan, PlanBuilder, PlanError
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
        "fp32 by MXNet's own operators: no kernels of oneDNN for cpu(0)"
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
    monkeypatch.setattr(forms.cpu, "cpu_flags", set)
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
    end = max(storage.offset + storage.nbytes for storage in plan.storages)
    assert end < sum(storage.nbytes for storage in plan.storages) / 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["resnet18_v1b", "resnest14d", "cifar_resnet20_v1", "cifar_resnet20_v2"]
)
def test_logits_do_not_depend_on_the_shapes_before(name, precision):
    net = drawn(name)
    images = mx.nd.array(draw_images((1, 3, 32, 32)))  # whose last maps are one pixel
    expected = inference_form(net, precision=precision)(images).asnumpy()
    form = inference_form(net, precision=precision)
    for shape in ((1, 3, 64, 64), (4, 3, 64, 64), (1, 3, 224, 224)):
        form(mx.nd.array(draw_images(shape)))
    np.testing.assert_array_equal(form(images).asnumpy(), expected)


@pytest.fixture
def planned(monkeypatch):
    """The shapes that were planned for, one by one."""
    shapes = []

    def plan_of(steps, head, weights, shape, dtype):
        shapes.append(shape)
        return operators.plan_of(steps, head, weights, shape, dtype)

    monkeypatch.setattr(forms, "plan_of", plan_of)
    return shapes


def test_shapes_that_alternate_are_planned_once(model, planned):
    form = inference_form(model.net)
    batches = [
        mx.nd.array(draw_images(shape))
        for shape in ((1, 3, 28, 28), (1, 3, 32, 28), (6, 3, 28, 28), (7, 3, 28, 28))
    ]
    expected = [form(images).asnumpy() for images in batches]
    count = len(planned)
    for _ in range(3):
        for images, logits in zip(batches, expected):
            np.testing.assert_array_equal(form(images).asnumpy(), logits)
    assert len(planned) == count


def test_plans_of_earlier_calls_take_bounded_memory(model, planned, monkeypatch):
    form = inference_form(model.net)
    sizes = range(28, 68, 4)

    def nbytes():
        return sum(plan.nbytes for plans in form._plans.values() for plan in plans)

    form(mx.nd.zeros((1, 3, 64, 64)))
    bound = 3 * nbytes()
    monkeypatch.setattr(forms, "_KEPT_BYTES", bound // len(form._places))
    for size in sizes:
        form(mx.nd.zeros((1, 3, size, size)))
        assert nbytes() <= bound + max(p.nbytes for (p,) in form._plans.values())
    assert len(form._plans) > 3
    # The last ones are there, the first ones are not.
    count = len(planned)
    form(mx.nd.zeros((1, 3, 60, 60)))
    assert len(planned) == count
    form(mx.nd.zeros((1, 3, 28, 28)))
    assert len(planned) == count + 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_images_have_no_logits(model, dtype):
    images = mx.nd.array(np.zeros((0, 3, 28, 28)), dtype=dtype)
    logits = model.forward(images)
    assert (logits.shape, logits.dtype) == ((0, 10), np.float32)
    with pytest.raises(InputError, match="do not fit this network"):
        model.forward(mx.nd.array(np.zeros((0, 4, 28, 28))))


def test_images_on_another_device_are_refused(model):
    class OnGPU:
        shape, context, dtype = (1, 3, 28, 28), mx.gpu(0), np.float32

    with pytest.raises(InputError) as error:
        model.forward(OnGPU())
    assert str(error.value) == (
        "images on gpu(0); give images on the CPU, as the form is"
    )


def test_weights_that_were_packed_have_a_shape_and_no_values():
    weights = Weights({"w": np.ones((16, 3, 3, 3), np.float32), "b": np.ones(16)})
    weight = Weight("w", (16, 3, 3, 3), DType.F32)
    packed = weights.packed(weight, Descriptor(weight.dims, DType.F32))
    assert weights.packed(weight, Descriptor(weight.dims, DType.F32)) is packed
    assert weights.shape("w") == (16, 3, 3, 3)
    with pytest.raises(LookupError) as error:
        weights.values("w")
    assert str(error.value) == "w has no values any more: it was packed"
    # Of one layer, bfloat16 cannot become float32 again.
    with pytest.raises(LookupError):
        wanted = Descriptor(weight.dims, DType.BF16)
        weights.packed(weight._replace(dtype=DType.BF16), wanted)


def test_views_stay_within_their_storage():
    builder = PlanBuilder(Weights({}), (1, 3, 8, 8), DType.F32)
    x = builder.tensor((1, 16, 2, 2), DType.F32)
    assert builder.view(x, (1, 8, 2, 2), start=32).start == 32
    for dims, start in (((1, 16, 3, 3), 0), ((1, 16, 2, 2), 1), ((1, 16, 2, 2), 10**9)):
        with pytest.raises(PlanError):
            builder.view(x, dims, start=start)
    with pytest.raises(PlanError):
        builder.in_place_of(x, DType.S8, 1.0)
    with pytest.raises(PlanError):
        builder.view(builder.image, (1, 3, 8, 8))


@pytest.mark.parametrize(
    "op, attribute", [("Convolution", "stride"), ("Convolution", "pad")]
)
def test_operands_of_other_sizes_are_refused(op, attribute):
    graph, arrays = inference_graph(drawn("cifar_resnet20_v1"))
    (head,) = graph.end.inputs
    convolution = [node for node in graph.nodes if node.op == op][2]  # before a sum
    convolution.attributes[attribute] = (2, 2)
    with pytest.raises(PlanError, match="combines"):
        plan_of(steps_of(graph), head, Weights(arrays), (1, 3, 32, 32))


def test_a_value_that_no_step_computes_is_an_error():
    graph, arrays = inference_graph(drawn("cifar_resnet20_v1"))
    (head,) = graph.end.inputs
    steps = steps_of(graph)
    with pytest.raises(KeyError):
        plan_of(steps[1:], head, Weights(arrays), (1, 3, 32, 32))


def test_logits_are_the_graphs_head():
    graph, arrays = inference_graph(drawn("cifar_resnet20_v1"))
    steps = steps_of(graph)
    with pytest.raises(PlanError, match="are no logits"):
        plan_of(steps, steps[3].output, Weights(arrays), (1, 3, 32, 32))


@pytest.mark.parametrize(
    "status, kind, words",
    [
        (1, MemoryError, "out of memory"),
        (2, RuntimeError, "invalid arguments"),
        (3, RuntimeError, "not implemented"),
        (5, RuntimeError, "runtime error"),
        (77, RuntimeError, "status 77"),
    ],
)
def test_each_status_of_onednn_is_told(monkeypatch, status, kind, words):
    weight = Descriptor((16, 16, 1, 1), DType.F32)
    memory = Memory(weight, np.ones((16, 16), np.float32))
    call = onednn.reorder(weight, weight).bind({onednn.SRC: memory, onednn.DST: memory})
    monkeypatch.setattr(call, "_execute", lambda: status)
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith("oneDNN: ")
    assert str(error.value).endswith(f": {words}")

    class Library:
        def __getattr__(self, name):
            return lambda *arguments: status

    monkeypatch.setattr(onednn, "library", Library)
    with pytest.raises(kind) as error:
        Descriptor((1, 2), DType.F32, Layout.AB)
    assert str(error.value) == f"oneDNN: memory_desc_create_with_tag: {words}"


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError, KeyError])
def test_errors_that_are_none_of_the_images_stay_what_they_are(
    model, monkeypatch, kind
):
    form = inference_form(model.net)
    images = mx.nd.array(draw_images((4, 3, 28, 28)))
    expected = model.forward(images).asnumpy()

    def fail(*_):
        raise kind("as it is")

    with monkeypatch.context() as patch:
        patch.setattr(forms, "plan_of", fail)
        with pytest.raises(kind, match="as it is"):
            form(images)
    np.testing.assert_array_equal(form(images).asnumpy(), expected)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "run", fail)
        with pytest.raises(kind, match="as it is"):
            form(images)
    np.testing.assert_array_equal(form(images).asnumpy(), expected)


def test_memory_must_be_as_large_as_its_tensor():
    with pytest.raises(ValueError, match="252 bytes for a tensor of 256 bytes"):
        Memory(Descriptor((8, 8), DType.F32, Layout.AB), np.ones(63, np.float32))
