# SPDX-License-Identifier: Apache-2.0
"""The native functions of a convolution by Winograd's algorithm, for maps of any size.

They do these steps for a block of tiles at a time, which stays in the cache:

1. V = B' d B, for each of the n x n points a matrix (tiles, input channels).
2. M = V U, for each point and a panel of output channels. U are transformed weights.
3. Y = A' M A, with bias, sum and ReLU, of the type that the next layer takes.

2 and 3 come panel by panel, so that M is read while it is in the cache. Letters are
those of transforms.py; maps are NHWC.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from types import SimpleNamespace

import numpy as np

from gluon_resnet.inference import openmp
from gluon_resnet.inference.onednn import DType
from gluon_resnet.inference.winograd.llvm import (
    Code,
    Function,
    Instructions,
    Integer,
    Vector,
    Words,
)
from gluon_resnet.inference.winograd.transforms import Tile

_FLOAT = 4


class Arguments(ctypes.Structure):
    """What a layer's function is told.

    source, destination, weights, bias: addresses; weights are U by panels.
    height, width, channels, filters: H, W, C and K.
    tiles: how many in all images. image_tiles, row_tiles: in an image, in a row of it.
    block: how many tiles at a time. panels: how many. panel: channels of a panel.
    steps: turns of a product's loop. rows: tiles that a product takes at most, and
    products: the address of those functions' addresses.
    v_row, v_plane, u_plane, m_plane: bytes from a tile or from a point to the next.
    scratchpad: an address; each part has part_bytes there, the parts of which begin at
    0 (a pixel of zeros), unused (a pixel that nobody reads), v and m.
    tile_parts, panel_parts: the layer is divided by tiles and by panels.
    adds: 1 where the result is added to the destination, else 0. relu: likewise.
    """

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("source", "destination", "weights", "bias"),
            *("height", "width", "channels", "filters"),
            *("tiles", "image_tiles", "row_tiles", "block", "panels", "panel"),
            *("steps", "rows", "products"),
            *("v_row", "v_plane", "u_plane", "m_plane"),
            *("scratchpad", "part_bytes", "unused", "v", "m"),
            *("tile_parts", "panel_parts", "adds", "relu"),
        )
    ]


@dataclass(frozen=True)
class Variant:
    """What a layer's function is compiled for. All else it is told."""

    tile: Tile
    source: DType
    destination: DType
    products: DType
    """Of V and U. M is float32."""
    has_tails: bool
    """Whether some registers are not full, for the channels are no multiple of them."""


# A layer


def write_layer(code: Code, variant: Variant) -> None:
    """Write `run`, which takes the address of `Arguments` and computes the layer.

    It has the threads that OpenMP gives to oneDNN's kernels, too.
    """
    part = _write_part(code, variant)
    thread = code.function("thread", ["arguments"])
    (arguments,) = thread.parameters
    a = thread.fields(arguments, Arguments)
    number = thread.call_for_int(openmp.address_of("omp_get_thread_num"))
    threads = thread.call_for_int(openmp.address_of("omp_get_num_threads"))
    # OpenMP may give fewer threads than there are parts.
    with thread.loop(number, a.tile_parts * a.panel_parts, threads) as index:
        thread.call(part, arguments, index)
    thread.end()
    run = code.function("run", ["arguments"], exported=True)
    (arguments,) = run.parameters
    as_many_as_there_are = no_flags = 0
    run.call(
        openmp.address_of("GOMP_parallel"),
        run.address_of(thread),
        arguments,
        as_many_as_there_are,
        no_flags,
    )
    run.end()


def _write_part(code: Code, variant: Variant) -> Function:
    """Write what a thread does: some of the tiles, some of the panels."""
    input_transform = _write_input_transform(code, variant)
    products = _write_products_of_panel(code, variant)
    output_transform = _write_output_transform(code, variant)
    f = code.function("part", ["arguments", "index"])
    arguments, index = f.parameters
    a = f.fields(arguments, Arguments)
    scratch = a.scratchpad + index * a.part_bytes
    with f.loop(0, a.unused, _FLOAT * code.instructions.lanes) as offset:
        f.store(f.splat(0), scratch + offset)
    tile_begin, tile_end = _share(a.tiles, index // a.panel_parts, a.tile_parts)
    panel_begin, panel_end = _share(a.panels, index % a.panel_parts, a.panel_parts)
    with f.loop(tile_begin, tile_end, a.block) as first:
        count = f.minimum(a.block, tile_end - first)
        f.call(input_transform, arguments, scratch, first, count)
        with f.loop(panel_begin, panel_end) as panel:
            f.call(products, arguments, scratch, count, panel)
            f.call(output_transform, arguments, scratch, first, count, panel)
    return f.end()


def _share(total: Integer, part: Integer, parts: Integer) -> tuple[Integer, Integer]:
    """The first of a part's share, and the first after it."""
    return total * part // parts, total * (part + 1) // parts


def _write_input_transform(code: Code, variant: Variant) -> Function:
    """Write V = B' d B of `count` tiles from `first` on, for all input channels."""
    lanes, tile, n = code.instructions.lanes, variant.tile, variant.tile.points
    size = variant.source.nbytes
    f = code.function("input_transform", ["arguments", "scratch", "first", "count"])
    arguments, scratch, first, count = f.parameters
    a = f.fields(arguments, Arguments)
    pixels = f.words(n * n)
    with f.loop(0, count) as number:
        corner = _corner(a, tile, first + number, padding=1)
        pixel_bytes = a.channels * size
        _find_pixels(f, a, pixels, n, corner, a.source, pixel_bytes, outside=scratch)
        v = scratch + a.v + number * a.v_row
        with f.loop(0, a.channels, lanes) as channel:
            mask = f.first_lanes(a.channels - channel) if variant.has_tails else None
            columns = []
            for j in range(n):
                addresses = (pixels[i * n + j] + channel * size for i in range(n))
                column = [
                    f.load(address, variant.source, mask) for address in addresses
                ]
                columns.append(_times_input_matrix(f, tile, column))
            for i in range(n):
                row = _times_input_matrix(f, tile, [column[i] for column in columns])
                for j, value in enumerate(row):
                    address = v + a.v_plane * (i * n + j)
                    address = address + channel * variant.products.nbytes
                    f.store(value, address, variant.products)
    return f.end()


def _write_products_of_panel(code: Code, variant: Variant) -> Function:
    """Write M = V U of `count` tiles and a panel, for all points."""
    points = variant.tile.points**2
    f = code.function("products", ["arguments", "scratch", "count", "panel"])
    arguments, scratch, count, panel = f.parameters
    a = f.fields(arguments, Arguments)
    # Not a.rows and then what is left of them, which may be one.
    rows = (count - 1) // ((count - 1) // a.rows + 1) + 1
    m_row = a.panel * _FLOAT
    with f.loop(0, points) as point:
        u = a.weights + (panel * points + point) * a.u_plane
        v = scratch + a.v + point * a.v_plane
        m = scratch + a.m + point * a.m_plane
        with f.loop(0, count, rows) as first:
            number = f.minimum(rows, count - first)
            product = Words(f, a.products)[number - 1]
            tiles, sums = v + first * a.v_row, m + first * m_row
            f.call(product, tiles, a.v_row, u, sums, a.steps)
    return f.end()


def _write_output_transform(code: Code, variant: Variant) -> Function:
    """Write Y = A' M A of `count` tiles from `first` on and a panel into the map."""
    lanes, tile, n = code.instructions.lanes, variant.tile, variant.tile.points
    dtype, side = variant.destination, variant.tile.outputs
    f = code.function(
        "output_transform", ["arguments", "scratch", "first", "count", "panel"]
    )
    arguments, scratch, first, count, panel = f.parameters
    a = f.fields(arguments, Arguments)
    pixels = f.words(side * side)
    lowest = f.select_vector(a.relu, f.splat(0), f.splat(-inf))
    with f.loop(0, count) as number:
        pixel_bytes = a.filters * dtype.nbytes
        corner = _corner(a, tile, first + number, padding=0)
        outside = scratch + a.unused
        _find_pixels(f, a, pixels, side, corner, a.destination, pixel_bytes, outside)
        m = scratch + a.m + number * a.panel * _FLOAT
        with f.loop(0, a.panel, lanes) as offset:
            channel = panel * a.panel + offset
            mask = f.first_lanes(a.filters - channel) if variant.has_tails else None
            bias = f.load(a.bias + channel * _FLOAT, DType.F32, mask)
            columns = []
            for j in range(n):
                addresses = (
                    m + a.m_plane * (i * n + j) + offset * _FLOAT for i in range(n)
                )
                column = [f.load(address) for address in addresses]
                columns.append(_times_output_matrix(f, tile, column))
            for i in range(side):
                row = _times_output_matrix(f, tile, [column[i] for column in columns])
                for j, value in enumerate(row):
                    address = pixels[i * side + j] + channel * dtype.nbytes
                    result = f.variable(value + bias)
                    with f.unless_zero(a.adds):
                        result.value = result.value + f.load(address, dtype, mask)
                    result.value = f.maximum(lowest, result.value)
                    f.store(result.value, address, dtype, mask)
    return f.end()


def _corner(
    a: SimpleNamespace, tile: Tile, number: Integer, padding: int
) -> tuple[Integer, Integer, Integer]:
    """The image of a tile, and its first row and column, less the padding."""
    image, within = number // a.image_tiles, number % a.image_tiles
    row, column = within // a.row_tiles, within % a.row_tiles
    return image, row * tile.outputs - padding, column * tile.outputs - padding


def _find_pixels(
    f: Function,
    a: SimpleNamespace,
    table: Words,
    side: int,
    corner: tuple[Integer, Integer, Integer],
    first: Integer,
    pixel_bytes: Integer,
    outside: Integer,
) -> None:
    """Write into a table where side x side pixels are; those outside are at `outside`.

    So a tile at the border is computed as any other: it reads zeros from there, or
    writes what nobody reads.
    """
    image, row, column = corner
    row_bytes = a.width * pixel_bytes
    start = first + (image * a.height + row) * row_bytes + column * pixel_bytes
    is_column = [(column + j).is_within(a.width) for j in range(side)]
    for i in range(side):
        is_row = (row + i).is_within(a.height)
        for j in range(side):
            pixel = start + row_bytes * i + pixel_bytes * j
            pixel = f.select([is_row, is_column[j]], pixel, outside)
            table[i * side + j] = pixel


# Products

_MOST_ROWS = 8
"""With one register of channels their sums hide how long an addition takes."""


def most_vectors(instructions: Instructions) -> int:
    """Return how many registers of channels a panel has at most.

    With the 4 of AVX-512 and 6 tiles 24 sums are in registers, for which in each turn
    10 values are loaded; with the 2 of AVX2 12 sums, for 8 values.
    """
    return instructions.registers // 8


def rows_of(instructions: Instructions, vectors: int) -> int:
    """Return how many tiles a product of a panel's width takes at most.

    Their sums stay in registers, beside those of U and a value of V.
    """
    free = instructions.registers - vectors - 1
    return min(free // vectors, _MOST_ROWS)


def write_products(code: Code, vectors: int, dtype: DType) -> None:
    """Write product_1, product_2, ...: M = V U of 1, 2, ... tiles and a panel.

    In each turn a product loads a channel of U (of bfloat16 a pair) for all of the
    panel, and multiplies it by that channel of each tile.
    """
    for rows in range(1, rows_of(code.instructions, vectors) + 1):
        _write_product(code, rows, vectors, dtype)


def _write_product(code: Code, rows: int, vectors: int, dtype: DType) -> None:
    register = code.instructions.lanes * _FLOAT
    f = code.function(
        f"product_{rows}", ["v", "v_row", "u", "m", "steps"], exported=True
    )
    v, v_row, u, m, steps = f.parameters
    multiply_add = f.multiply_add_pairs if dtype == DType.BF16 else f.multiply_add
    sums = [[f.variable(f.splat(0)) for _ in range(vectors)] for _ in range(rows)]
    tiles = [v + v_row * row for row in range(rows)]
    with f.loop(0, steps) as step:
        weights = [
            f.load(u + step * (vectors * register) + vector * register)
            for vector in range(vectors)
        ]
        for tile, row in zip(tiles, sums):
            value = f.broadcast(tile + step * _FLOAT)
            for weight, total in zip(weights, row):
                total.value = multiply_add(value, weight, total.value)
    for number, total in enumerate(total for row in sums for total in row):
        f.store(total.value, m + number * register)
    f.end()


# Small matrices times registers


def _times_input_matrix(f: Function, tile: Tile, d: Sequence[Vector]) -> list[Vector]:
    """B' d. The rows of p and -p have the same even powers, and opposite odd ones."""
    first, *pairs, last = _float32(tile.input)
    results = [_combination(f, first, d)]
    for row in pairs[0::2]:
        even = _combination(f, row[0::2], d[0::2])
        odd = _combination(f, row[1::2], d[1::2])
        results += [even + odd, even - odd]
    return [*results, _combination(f, last, d)]


def _times_output_matrix(f: Function, tile: Tile, m: Sequence[Vector]) -> list[Vector]:
    """A' m. The columns of p and -p are the same in even rows, and opposite in odd."""
    first, *pairs, last = m
    sums = [p + q for p, q in zip(pairs[0::2], pairs[1::2])]
    differences = [p - q for p, q in zip(pairs[0::2], pairs[1::2])]
    return [
        _combination(
            f,
            [row[0], *row[1:-1:2], row[-1]],
            [first, *(differences if power % 2 else sums), last],
        )
        for power, row in enumerate(_float32(tile.output))
    ]


def _float32(matrix: np.ndarray) -> list[list[float]]:
    """The values in float32, where those that are 1 but for rounding are 1."""
    return matrix.astype(np.float32).tolist()


def _combination(
    f: Function, factors: Sequence[float], vectors: Sequence[Vector]
) -> Vector:
    """The sum of all factor * vector, as few instructions as it takes."""
    terms = [(k, vector) for k, vector in zip(factors, vectors) if k]
    # Begin with one that needs no product, where there is one.
    terms.sort(key=lambda term: term[0] != 1)
    k, vector = terms[0]
    result = vector if k == 1 else vector * f.splat(k)
    for k, vector in terms[1:]:
        if k == 1:
            result = result + vector
        elif k == -1:
            result = result - vector
        else:
            result = f.multiply_add(vector, f.splat(k), result)
    return result
