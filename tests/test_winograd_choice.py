# SPDX-License-Identifier: Apache-2.0
"""Winograd's matrices, and which convolutions are computed by them."""

from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from children import python

from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import DType
from gluon_resnet.inference.winograd import choice
from gluon_resnet.inference.winograd.choice import Layer, method_for
from gluon_resnet.inference.winograd.transforms import F2, F4, Tile, matrices

F32, BF16 = DType.F32, DType.BF16

# Matrices


@dataclass(frozen=True)
class Root2:
    """a + b * sqrt(2), exact: the numbers that F4's points are among."""

    a: Fraction
    b: Fraction = Fraction(0)

    def __add__(self, other):
        return Root2(self.a + other.a, self.b + other.b)

    def __sub__(self, other):
        return Root2(self.a - other.a, self.b - other.b)

    def __mul__(self, other):
        a = self.a * other.a + 2 * self.b * other.b
        return Root2(a, self.a * other.b + self.b * other.a)

    def __truediv__(self, other):
        norm = other.a**2 - 2 * other.b**2
        return self * Root2(other.a / norm, -other.b / norm)

    def __float__(self):
        return float(self.a) + float(self.b) * 2**0.5


ZERO, ONE, HALF = Root2(Fraction(0)), Root2(Fraction(1)), Fraction(1, 2)
ROOTS = [Root2(Fraction(0), b) for b in (HALF, -HALF, Fraction(1), Fraction(-1))]
POINTS = {
    F2: ([Fraction(p) for p in (0, 1, -1)], Fraction(1)),
    F4: ([ZERO, *ROOTS], ONE),
}


def exactly(a, b):
    """The product of two matrices of any numbers."""
    columns = list(zip(*b))
    product = []
    for row in a:
        terms = [[x * y for x, y in zip(row, column)] for column in columns]
        product.append([sum(found[1:], start=found[0]) for found in terms])
    return product


def transpose(a):
    return list(map(list, zip(*a)))


@pytest.mark.parametrize("tile", [F2, F4], ids=lambda tile: tile.name)
def test_matrices_convolve_exactly(tile):
    finite, one = POINTS[tile]
    input_, weights, output = matrices(finite, one)
    rng = np.random.default_rng(0)
    number = type(one)

    def drawn(side):
        rows = rng.integers(-9, 10, (side, side)).tolist()
        return [[number(Fraction(x)) for x in row] for row in rows]

    d, g = drawn(tile.points), drawn(3)
    u = exactly(exactly(weights, g), transpose(weights))
    v = exactly(exactly(input_, d), transpose(input_))
    m = [[x * y for x, y in zip(*rows)] for rows in zip(u, v)]
    found = exactly(exactly(output, m), transpose(output))
    side = range(tile.outputs)
    for i in side:
        for j in side:
            terms = [d[i + k][j + n] * g[k][n] for k in range(3) for n in range(3)]
            assert found[i][j] == sum(terms[1:], start=terms[0])


@pytest.mark.parametrize("tile", [F2, F4], ids=lambda tile: tile.name)
def test_matrices_in_double_precision_are_the_exact_ones(tile):
    for found, exact in zip(
        (tile.input, tile.weights, tile.output), matrices(*POINTS[tile])
    ):
        np.testing.assert_allclose(
            found, [[float(x) for x in row] for row in exact], rtol=0, atol=1e-15
        )


def test_f2_is_that_of_lavin_and_gray_but_for_signs():
    b = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    g = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    a = [[1, 1, 1, 0], [0, 1, -1, -1]]
    np.testing.assert_array_equal(F2.input, np.diag([-1, 1, 1, -1]) @ b)
    np.testing.assert_array_equal(F2.weights, np.diag([-1, 1, 1, 1]) @ g)
    np.testing.assert_array_equal(F2.output, a @ np.diag([1, 1, 1, -1]))


def test_f4_has_half_the_error_of_lavin_and_grays_points():
    def error(tile):
        rng = np.random.default_rng(0)
        tiles, channels, n, m = 50, 64, tile.points, tile.outputs
        d = rng.normal(size=(tiles, channels, n, n)).astype(np.float32)
        g = rng.normal(size=(channels, 3, 3)).astype(np.float32)
        u = (tile.weights @ g @ tile.weights.T).astype(np.float32)
        b, a = (x.astype(np.float32) for x in (tile.input, tile.output))
        found = a @ (b @ d @ b.T * u).sum(axis=1) @ a.T
        windows = np.lib.stride_tricks.sliding_window_view(d, (m, m), axis=(2, 3))
        exact = np.einsum("tcijkl,cij->tkl", windows.astype(np.float64), g)
        return np.sqrt(((found - exact) ** 2).mean())

    assert error(F4) < 0.6 * error(Tile(pairs=(1.0, 2.0)))


# The choice


def layer(height, width, channels, filters, dtype=F32):
    return Layer(
        *(1, height, width, channels, filters),
        source=dtype,
        destination=dtype,
        adds=False,
        relu=False,
    )


@pytest.mark.parametrize(
    "height, channels, filters, dtype, method",
    [
        (56, 64, 64, F32, (F4, F32)),
        (28, 128, 128, F32, (F4, F32)),
        (14, 256, 256, F32, (F4, F32)),
        (7, 512, 512, F32, (F2, F32)),
        (7, 256, 512, F32, (F2, F32)),
        (4, 512, 512, F32, (F2, F32)),
        (2, 512, 512, F32, None),
        (1, 512, 512, F32, None),
        (32, 16, 16, F32, (F4, F32)),
        (8, 64, 64, F32, (F4, F32)),
        (32, 3, 16, F32, None),
        (32, 32, 10, F32, None),
        (28, 128, 128, BF16, (F2, BF16)),
        (7, 512, 512, BF16, (F2, BF16)),
        (3, 512, 512, BF16, None),
        (56, 64, 64, BF16, (F4, F32)),
        (32, 16, 16, BF16, (F4, F32)),
    ],
)
def test_method_is_chosen_by_the_layer(
    height, channels, filters, dtype, method, monkeypatch
):
    monkeypatch.setattr(onednn, "has", lambda isa: isa != onednn.AMX)
    case = layer(height, height, channels, filters, dtype)
    assert method_for(case, has_bf16=True) == method
    assert method_for(replace(case, images=16, relu=True), has_bf16=True) == method


def test_maps_of_bfloat16_are_computed_in_float32_where_only_that_is_fast(monkeypatch):
    monkeypatch.setattr(onednn, "has", lambda isa: isa != onednn.AMX)
    case = layer(28, 28, 128, 128, BF16)
    assert method_for(case, has_bf16=False) == (F4, F32)


def test_with_amx_bfloat16_is_left_to_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "has", lambda isa: True)
    assert method_for(layer(28, 28, 128, 128, BF16), has_bf16=True) is None
    assert method_for(layer(28, 28, 128, 128), has_bf16=True) == (F4, F32)


@pytest.fixture
def undecided():
    """Whether there are kernels is asked anew in this test and after it."""
    choice._instructions.cache_clear()
    yield
    choice._instructions.cache_clear()


def assert_left_to_onednn(reason):
    assert choice.described() == f"oneDNN's direct kernels, because {reason}"
    assert choice.method_here(layer(28, 28, 64, 64)) is None


@pytest.mark.parametrize("value", ["0", ""])
def test_switch_leaves_layers_to_onednn(undecided, monkeypatch, value):
    monkeypatch.setenv("GLUON_RESNET_WINOGRAD", value)
    assert_left_to_onednn("GLUON_RESNET_WINOGRAD is 0")


def test_without_llvmlite_layers_are_left_to_onednn(undecided, monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(choice, "version", version)
    assert_left_to_onednn("llvmlite is not installed")


def test_another_llvmlite_leaves_layers_to_onednn(undecided, monkeypatch):
    monkeypatch.setattr(choice, "version", lambda package: "0.50.0")
    assert_left_to_onednn("llvmlite 0.50.0 is installed, which is not 0.43.x")


def test_without_avx2_layers_are_left_to_onednn(undecided, monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(onednn, "has", lambda isa: isa == 0)
    assert_left_to_onednn("they need AVX2, and oneDNN uses SSE4.1")


def test_llvmlite_that_cannot_be_loaded_leaves_layers_to_onednn():
    code = """
import sys
sys.modules["llvmlite"] = None
import gluon_resnet
from gluon_resnet.inference.winograd import choice
print(choice.described())
"""
    (line,) = python(code)
    assert line.startswith("oneDNN's direct kernels, because llvmlite ")


def test_where_new_code_is_forbidden_layers_are_left_to_onednn():
    code = """
import ctypes
from gluon_resnet.inference.winograd import choice
PR_SET_MDWE, refuse_exec_gain = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, refuse_exec_gain, 0, 0, 0):
    print("Linux before 6.3")
else:
    print(choice.described())
"""
    pytest.importorskip("llvmlite")
    (line,) = python(code)
    if line == "Linux before 6.3":
        pytest.skip(line)
    assert line == (
        "oneDNN's direct kernels, because this system allows no new executable memory"
    )
