# SPDX-License-Identifier: Apache-2.0
"""Winograd's convolutions: kernels, weights, and networks that have them."""

import ctypes
import logging
import mmap
import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from children import python
from draw import draw_images, fill_gluon

from gluon_resnet import create_model, inference_form, list_models, model_spec
from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import DType
from gluon_resnet.inference.packing import Weight, Weights
from gluon_resnet.inference.winograd.choice import Layer, Method, method_for
from gluon_resnet.inference.winograd.transforms import F2, F4
from gluon_resnet.models.resnet import resnet
from gluon_resnet.models.traced import traced
from gluon_resnet.weights import load_weights

kernel = pytest.importorskip(
    "gluon_resnet.inference.winograd.kernel", reason="llvmlite is not installed"
)
from gluon_resnet.inference.winograd import llvm  # noqa: E402
from gluon_resnet.inference.winograd.weights import TransformedLayout  # noqa: E402

F32, BF16 = DType.F32, DType.BF16

# Kernels


def available():
    """The instructions that this processor has kernels for."""
    known = {
        onednn.AVX512_BF16: llvm.AVX512_BF16,
        onednn.AVX512: llvm.AVX512,
        onednn.AVX2: llvm.AVX2,
    }
    return [known[isa] for isa in known if onednn.has(isa)]


INSTRUCTIONS = pytest.mark.parametrize(
    "instructions", available(), ids=lambda found: f"{found.name}{found.has_bf16}"
)


def layer(height, width, channels, filters, dtype=F32, images=1, **changes):
    shape = (images, height, width, channels, filters)
    options = {"destination": dtype, "adds": False, "relu": False}
    return Layer(*shape, source=dtype, **(options | changes))


class Guarded:
    """Bytes with forbidden memory behind them: to read or write there ends Python."""

    def __init__(self, values):
        pages = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, pages + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        forbidden = ctypes.c_void_p(start + pages)
        assert libc.mprotect(forbidden, mmap.PAGESIZE, 0) == 0
        buffer = np.frombuffer(self._map, np.uint8, pages)[pages - values.nbytes :]
        self.values = buffer.view(values.dtype).reshape(values.shape)
        self.values[...] = values
        self.address = self.values.ctypes.data


def as_bf16(values):
    """Cut off, so that nothing depends on how the kernel rounds."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def stored(values, dtype):
    return as_bf16(values) if dtype == BF16 else np.asarray(values, np.float32)


def loaded(values, dtype):
    if dtype == BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


@dataclass
class Drawn:
    """A layer's tensors as they are stored, but for the weights and the bias."""

    source: np.ndarray
    destination: np.ndarray
    weights: np.ndarray
    bias: np.ndarray


def drawn(case, seed=0):
    rng = np.random.default_rng(seed)
    maps = (case.images, case.height, case.width)
    weights = rng.normal(size=(case.filters, case.channels, 3, 3))
    weights *= (9 * case.channels) ** -0.5
    return Drawn(
        stored(rng.normal(size=(*maps, case.channels)), case.source),
        stored(rng.normal(size=(*maps, case.filters)), case.destination),
        weights.astype(np.float32),
        rng.normal(size=case.filters).astype(np.float32),
    )


def computed(case, method, instructions, tensors, threads=1):
    """What the kernel writes; its scratchpad is full of NaN before."""
    found = kernel.Kernel(case, method, instructions, threads)
    source, bias = Guarded(tensors.source), Guarded(tensors.bias)
    destination = Guarded(tensors.destination)
    scratchpad = np.full(found.scratchpad.nbytes + 64, 255, np.uint8)
    start = -scratchpad.ctypes.data % 64
    call = found.bind(
        {
            onednn.SRC: source,
            onednn.DST: destination,
            onednn.BIAS: bias,
            onednn.WEIGHTS: found.weights.packed(tensors.weights),
            onednn.SCRATCHPAD: SimpleNamespace(address=scratchpad.ctypes.data + start),
        }
    )
    call()
    assert (scratchpad[:start] == 255).all()
    assert (scratchpad[start + found.scratchpad.nbytes :] == 255).all()
    return destination.values.copy()


def expected(case, tensors):
    """The convolution in double precision."""
    x = loaded(tensors.source, case.source).astype(np.float64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    result = np.zeros((*x.shape[:3], case.filters)) + tensors.bias
    for i in range(3):
        for j in range(3):
            window = padded[:, i : i + case.height, j : j + case.width]
            result += window @ tensors.weights[:, :, i, j].T.astype(np.float64)
    if case.adds:
        result += loaded(tensors.destination, case.destination)
    return np.maximum(result, 0) if case.relu else result


# Of the largest result. bfloat16 keeps 8 bits: of all its values half a step is lost by
# rounding results, and more where V and U are rounded, too.
TOLERANCES = {(F2, F32): 1e-6, (F4, F32): 4e-6, (F2, BF16): 6e-3}
TOLERANCE_OF_BF16_MAPS = 5e-3


def assert_right(case, method, instructions, seed=0, threads=1):
    tensors = drawn(case, seed)
    found = computed(case, method, instructions, tensors, threads)
    exact = expected(case, tensors)
    error = np.abs(loaded(found, case.destination) - exact).max() / np.abs(exact).max()
    tolerance = TOLERANCES[method]
    if case.destination == BF16:
        tolerance = max(tolerance, TOLERANCE_OF_BF16_MAPS)
    assert error < tolerance, (case, method)


def methods_and_types(instructions):
    """The methods and types of maps that a kernel may be asked for."""
    for method in (Method(F2, F32), Method(F4, F32)):
        yield method, F32, F32
        if instructions.lanes == 16:
            yield method, F32, BF16
            yield method, BF16, BF16
    if instructions.has_bf16:
        yield Method(F2, BF16), BF16, BF16


@INSTRUCTIONS
def test_layers_of_odd_sizes_are_right(instructions):
    rng = np.random.default_rng(1)
    for seed in range(12):
        for method, source, destination in methods_and_types(instructions):
            images, height, width, channels, filters = (
                int(rng.integers(1, most)) for most in (4, 18, 18, 70, 140)
            )
            case = layer(
                *(height, width, channels, filters, source, images),
                destination=destination,
                adds=bool(rng.integers(2)),
                relu=bool(rng.integers(2)),
            )
            assert_right(
                case, method, instructions, seed, threads=int(rng.integers(1, 6))
            )


# Channels of the catalog's layers, and a few rows and columns of pixels.
CHANNELS = [
    *((16, 16), (24, 24), (10, 40), (20, 80), (40, 160), (64, 64), (80, 320)),
    *((96, 96), (160, 160), (128, 256), (512, 512), (3, 64)),
]


@INSTRUCTIONS
@pytest.mark.parametrize("channels, filters", CHANNELS)
def test_channels_of_the_catalog_are_right(instructions, channels, filters):
    for method, source, destination in methods_and_types(instructions):
        case = layer(7, 6, channels, filters, source, destination=destination)
        assert_right(case, method, instructions)


def catalog_layers():
    """H, W, input and output channels of the 3x3 layers of stride 1, of one group."""
    found = set()
    for name in list_models():
        spec = model_spec(name)
        graph = traced(resnet(spec))
        outputs = graph.symbol().get_internals()
        _, shapes, _ = outputs.infer_shape(data=(1, 3, spec.size, spec.size))
        shapes = dict(zip(outputs.list_outputs(), shapes))
        for node in graph.nodes:
            attributes = node.attributes
            if (attributes.get("kernel"), attributes.get("stride")) == ((3, 3), (1, 1)):
                filters, channels, *_ = shapes[node.inputs[1].node.name]
                size = shapes[f"{node.name}_output"][2:]
                found.add((*size, channels, filters // attributes["num_group"]))
    return sorted(found)


@pytest.mark.slow
def test_layers_of_the_catalog_are_right():
    layers = catalog_layers()
    assert (56, 56, 64, 64) in layers and len(layers) > 50
    for sizes in layers:
        for dtype in (F32, BF16):
            case = layer(*sizes, dtype, relu=True)
            method = method_for(case, available()[0].has_bf16)
            if method is not None and (dtype == F32 or available()[0].lanes == 16):
                assert_right(case, method, available()[0], threads=2)


@INSTRUCTIONS
def test_answers_do_not_depend_on_images_threads_or_blocks(instructions):
    for method, source, destination in methods_and_types(instructions):
        case = layer(9, 14, 40, 150, source, 5, destination=destination, relu=True)
        tensors = drawn(case)
        all_images = computed(case, method, instructions, tensors)
        for threads in (2, 3, 8):
            found = computed(case, method, instructions, tensors, threads)
            np.testing.assert_array_equal(found, all_images)
        last = replace(
            tensors, source=tensors.source[3:], destination=tensors.destination[3:]
        )
        found = computed(replace(case, images=2), method, instructions, last)
        np.testing.assert_array_equal(found, all_images[3:])


@INSTRUCTIONS
def test_relu_keeps_nan_and_a_pixel_spoils_no_tile_that_does_not_read_it(instructions):
    for value in (np.nan, np.inf):
        for tile in (F2, F4):
            method = Method(tile, F32)
            case = layer(12, 12, 16, 32, relu=True)
            tensors = drawn(case)
            clean = computed(case, method, instructions, tensors)
            tensors.source[0, 5, 6, 3] = value
            found = computed(case, method, instructions, tensors)
            spoiled = ~np.isfinite(found).all(axis=(0, 3))
            # At least what the convolution itself spoils, at most the tiles it lies in.
            if np.isnan(value):
                assert np.isnan(found[0, 4:7, 5:8]).all()
            rows, columns = np.nonzero(spoiled)
            m = tile.outputs
            assert {*(rows // m)} <= {4 // m, 5 // m, 6 // m}
            assert {*(columns // m)} <= {5 // m, 6 // m, 7 // m}
            np.testing.assert_array_equal(found[0, ~spoiled], clean[0, ~spoiled])


def test_result_is_rounded_to_the_nearest_bfloat16_and_nan_stays_nan():
    """By the instruction, and by integers where the processor has none."""
    values = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-16, -3e-3, 3.4e38]
    exact = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, np.float32(-0.0030059814), np.inf]
    case = layer(4, 4, 16, 16, destination=BF16)
    for instructions in available():
        if instructions.lanes < 16:
            continue
        tensors = drawn(case)
        tensors.weights[...] = 0
        tensors.bias[: len(values)] = values
        found = computed(case, Method(F4, F32), instructions, tensors)
        np.testing.assert_array_equal(
            loaded(found, BF16)[0, 0, 0, : len(values)], np.float32(exact)
        )
        tensors.bias[:] = np.nan
        found = computed(case, Method(F4, F32), instructions, tensors)
        assert np.isnan(loaded(found, BF16)).all()


def test_kernels_are_named_by_tile_and_instructions():
    case = layer(28, 28, 128, 128, BF16)
    names = [
        kernel.Kernel(case, Method(tile, products), instructions, threads=1).name
        for tile, products, instructions in (
            (F4, F32, llvm.AVX512_BF16),
            (F2, BF16, llvm.AVX512_BF16),
            (F4, F32, llvm.AVX2),
        )
    ]
    assert names == [
        "winograd:F(4x4,3x3):avx512",
        "winograd:F(2x2,3x3):avx512_bf16",
        "winograd:F(4x4,3x3):avx2",
    ]


@pytest.mark.parametrize(
    "vectors, width", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (6, 3), (10, 2), (32, 4)]
)
def test_panels_leave_few_lanes_empty(vectors, width):
    assert kernel._vectors_of_panel(vectors, 4) == width


@pytest.mark.parametrize(
    "threads, tiles, panels, parts",
    [
        (1, 1, 8, (1, 1)),
        (2, 196, 1, (2, 1)),
        (2, 16, 8, (1, 2)),
        (4, 49, 2, (2, 2)),
        (3, 16, 2, (3, 1)),  # no number of panels divides three threads but three
        (8, 16, 4, (2, 4)),
    ],
)
def test_layer_is_divided_by_tiles_while_there_are_enough(
    threads, tiles, panels, parts
):
    assert kernel._parts(threads, tiles, panels) == parts


# Weights


def test_transformed_weights_are_rounded_once():
    weights = drawn(layer(1, 1, 20, 70)).weights
    for tile in (F2, F4):
        layout = TransformedLayout(tile, F32, panel=64)
        packed = layout.packed(weights)._array.view(np.float32)
        g = weights.astype(np.float64)
        u = np.einsum("ij,kcjl,nl->inck", tile.weights, g, tile.weights)
        u = u.reshape(tile.points**2, 20, 70)
        panels = packed.reshape(2, tile.points**2, 20, 64)
        joined = np.concatenate(list(panels), axis=-1)
        np.testing.assert_allclose(joined[..., :70], u, rtol=6e-8, atol=1e-14)
        assert not joined[..., 70:].any()


def test_weights_are_transformed_once_and_nothing_else_is_kept():
    weights = drawn(layer(1, 1, 32, 32)).weights
    known = Weights({"w": weights})
    weight = Weight("w", weights.shape, F32)
    layout = TransformedLayout(F4, F32, panel=32)
    packed = known.packed(weight, layout)
    assert known.packed(weight, TransformedLayout(F4, F32, panel=32)) is packed
    assert known.is_transformed(weight)
    with pytest.raises(LookupError, match="w has no values any more"):
        known.values("w")


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_packed_weights_can_still_be_transformed(dtype):
    if dtype == BF16 and not onednn.computes_bf16():
        pytest.skip("the processor has no AVX-512")
    weights = loaded(as_bf16(drawn(layer(1, 1, 32, 32)).weights), BF16)
    known = Weights({"w": weights})
    weight = Weight("w", weights.shape, dtype)
    maps = onednn.Descriptor((1, 32, 8, 8), dtype)
    direct = onednn.convolution(
        *(maps, weight.descriptor, None, maps), stride=(1, 1), padding=(1, 1)
    )
    known.packed(weight, direct.weights)
    assert not known.is_transformed(weight)
    layout = TransformedLayout(F2, dtype, panel=32)
    packed = known.packed(weight, layout)
    np.testing.assert_array_equal(packed._array, layout.packed(weights)._array)


# Networks


BODY = """
import mxnet as mx
from gluon_resnet import bundled, inference_form, init_model
net = init_model(bundled.NAME).net
mx.random.seed(0)
images = mx.nd.random.normal(shape=(5, 3, 28, 28))
form = inference_form(net)
expected = net(images)
print(float((abs(form(images) - expected).max() / abs(expected).max()).asscalar()))
print(*sorted({kernel["kernel"] for kernel in form.kernels(images, 1)}))
"""


def test_processors_without_avx512_have_kernels_of_their_own():
    error, names = python(BODY, ONEDNN_MAX_CPU_ISA="AVX2")
    assert float(error) < 3e-6
    assert "winograd:F(4x4,3x3):avx2" in names


def test_switch_is_heeded_by_networks():
    error, names = python(BODY, GLUON_RESNET_WINOGRAD="0")
    assert float(error) < 3e-6 and "winograd" not in names


def test_more_threads_than_cores_change_nothing():
    assert python(BODY, OMP_NUM_THREADS="5") == python(BODY, OMP_NUM_THREADS="1")


def drawn_net(name):
    net = create_model(name)
    fill_gluon(net)
    return net


def names_of(form, images):
    return Counter(row["kernel"] for row in form.kernels(images, rounds=1))


def test_explained_kernels_have_names():
    net = drawn_net("resnet18_v1b")
    images = mx.nd.array(draw_images((1, 3, 224, 224)))
    names = names_of(inference_form(net), images)
    isa = available()[0].name
    assert names[f"winograd:F(4x4,3x3):{isa}"] == 10
    assert names[f"winograd:F(2x2,3x3):{isa}"] == 3
    if available()[0].has_bf16:
        names = names_of(inference_form(net, precision="bf16"), images)
        assert names["winograd:F(2x2,3x3):avx512_bf16"] == 9
        assert names["winograd:F(4x4,3x3):avx512"] == 4


def test_images_of_all_sizes_have_the_kernels_of_the_nets_own_size():
    net = drawn_net("resnet18_v1b")
    form = inference_form(net)
    small = mx.nd.array(draw_images((1, 3, 32, 32)))
    own = mx.nd.array(draw_images((1, 3, 224, 224)))
    expected = names_of(inference_form(net), own)
    for images in (small, own):
        names = names_of(form, images)
        for tile in ("F(2x2,3x3)", "F(4x4,3x3)"):
            name = f"winograd:{tile}:{available()[0].name}"
            assert names[name] == expected[name] > 0


def test_where_memory_ends_direct_kernels_answer(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gluon_resnet")

    def packed(layout, weights):
        raise MemoryError("no memory is left")

    monkeypatch.setattr(TransformedLayout, "packed", packed)
    net = drawn_net("cifar_resnet20_v1")
    images = mx.nd.array(draw_images((1, 3, 32, 32)))
    form = inference_form(net)
    expected = net(images).asnumpy()
    atol = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(form(images).asnumpy(), expected, rtol=0, atol=atol)
    assert not any("winograd" in name for name in names_of(form, images))
    assert caplog.messages[-1] == (
        "no memory for transformed weights (no memory is left): oneDNN's direct kernels"
    )


def test_two_forms_answer_on_two_threads_as_on_one():
    images = mx.nd.array(draw_images((1, 3, 32, 32)))
    forms = [inference_form(drawn_net("cifar_resnet20_v1")) for _ in range(2)]
    expected = [form(images).asnumpy() for form in forms]
    found = [[], []]

    def work(number):
        for _ in range(30):
            found[number].append(forms[number](images).asnumpy())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        for logits in found[number]:
            np.testing.assert_array_equal(logits, expected[number])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18_v1", "resnet50_v2", "resnest14d", "cifar_resnet20_v1"]
)
def test_logits_are_right(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import inference_model  # draws weights that behave as trained ones

    folder = tmp_path / name
    folder.mkdir()
    inference_model.main(folder)
    net = create_model(name)
    load_weights(net, folder / "weights.params")
    images = mx.nd.array(np.load(folder / "images.npy"))
    expected = np.load(folder / "reference.npy")
    spread = expected.std(axis=0).mean()
    found = inference_form(net)(images).asnumpy()
    assert np.abs(found - expected).max() / spread < 1e-4
