# SPDX-License-Identifier: Apache-2.0
"""A convolution by Winograd's algorithm: its kernel, its parts and blocks.

`Kernel` and `Call` are what onednn.py has by these names, for a plan to use both alike.
"""

import ctypes
from collections.abc import Callable, Mapping
from ctypes import addressof, c_void_p
from functools import cache, partial
from typing import Union

import numpy as np

from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import Descriptor, DType, Layout, Memory
from gluon_resnet.inference.packing import ALIGNMENT
from gluon_resnet.inference.winograd import functions
from gluon_resnet.inference.winograd.choice import Layer, Method
from gluon_resnet.inference.winograd.functions import Arguments, Variant
from gluon_resnet.inference.winograd.llvm import Code, Instructions
from gluon_resnet.inference.winograd.weights import (
    TransformedLayout,
    TransformedWeights,
)

_FLOAT = 4  # bytes
# Tiles of a block times points of a tile: 30 of 36, or 67 of 16. Half and twice as many
# are as fast; with fewer, U is read more often, with more, V and M leave the second
# level of the cache.
_BLOCK_POINTS = 1080
# A thread that has fewer tiles spends more on reading U than on products.
_FEWEST_TILES = 24


class Kernel:
    """What computes a layer; `bind` gives it its tensors."""

    kind = "convolution"

    def __init__(
        self, layer: Layer, method: Method, instructions: Instructions, threads: int
    ):
        """For as many OpenMP threads as a call may have."""
        suffix = "_bf16" if method.products == DType.BF16 else ""
        self.name = f"winograd:{method.tile.name}:{instructions.name}{suffix}"
        lanes = instructions.lanes
        vectors = _vectors_of_panel(
            -(-layer.filters // lanes), functions.most_vectors(instructions)
        )
        self.layer = layer
        self.weights = TransformedLayout(*method, vectors * lanes)
        self.instructions = instructions
        self._sizes = self._divided(threads)
        parts = self._sizes["tile_parts"] * self._sizes["panel_parts"]
        scratchpad = (parts * self._sizes["part_bytes"],)
        self.scratchpad = Descriptor(scratchpad, DType.U8, Layout.A)

    def _divided(self, threads: int) -> dict[str, int]:
        """Divide the layer into parts and blocks: `Arguments` but for addresses."""
        layer, lanes = self.layer, self.instructions.lanes
        tile, dtype, panel = self.weights.tile, self.weights.dtype, self.weights.panel
        image_tiles = tile.count(layer.height, layer.width)
        tiles = layer.images * image_tiles
        panels = -(-layer.filters // panel)
        tile_parts, panel_parts = _parts(threads, tiles, panels)
        # Blocks of equal size.
        share = -(-tiles // tile_parts)
        blocks = -(-share * tile.points**2 // _BLOCK_POINTS)
        block = -(-share // blocks)
        steps = -(-layer.channels // 2) if dtype == DType.BF16 else layer.channels
        v_row = _up(layer.channels, lanes) * dtype.nbytes
        # Without these more bytes all points would be a multiple of 4096 apart, where
        # the first level of the cache keeps but a few of them.
        v_plane = block * v_row + ALIGNMENT
        m_plane = block * panel * _FLOAT + ALIGNMENT
        outside = _pixel_bytes(layer.channels, layer.source, lanes)
        unused = _pixel_bytes(layer.filters, layer.destination, lanes)
        v = outside + unused
        m = v + _up(tile.points**2 * v_plane, ALIGNMENT)
        return {
            "height": layer.height,
            "width": layer.width,
            "channels": layer.channels,
            "filters": layer.filters,
            "tiles": tiles,
            "image_tiles": image_tiles,
            "row_tiles": tile.count(1, layer.width),
            "block": block,
            "panels": panels,
            "panel": panel,
            "steps": steps,
            "rows": functions.rows_of(self.instructions, panel // lanes),
            "v_row": v_row,
            "v_plane": v_plane,
            "u_plane": steps * panel * _FLOAT,
            "m_plane": m_plane,
            "part_bytes": m + _up(tile.points**2 * m_plane, ALIGNMENT),
            "unused": outside,
            "v": v,
            "m": m,
            "tile_parts": tile_parts,
            "panel_parts": panel_parts,
            "adds": layer.adds,
            "relu": layer.relu,
        }

    def bind(
        self, arguments: Mapping[int, Union[Memory, TransformedWeights]]
    ) -> "Call":
        """Return the kernel with its tensors, which stay where they are.

        Its code is generated if no other kernel had the same.
        """
        return Call(self, arguments)


class Call:
    """A kernel with its tensors; calling it runs it to its end."""

    def __init__(
        self,
        kernel: Kernel,
        arguments: Mapping[int, Union[Memory, TransformedWeights]],
    ):
        self.kernel = kernel
        layer, layout, instructions = kernel.layer, kernel.weights, kernel.instructions
        lanes = instructions.lanes
        has_tails = bool(layer.channels % lanes or layer.filters % layout.panel)
        variant = Variant(
            layout.tile, layer.source, layer.destination, layout.dtype, has_tails
        )
        run = _compiled_layer(instructions, variant)
        vectors = layout.panel // lanes
        products = _compiled_products(instructions, vectors, layout.dtype)
        no_bias = np.zeros(layer.filters, np.float32)
        bias = arguments.get(onednn.BIAS)
        told = Arguments(
            **kernel._sizes,
            products=addressof(products),
            source=arguments[onednn.SRC].address,
            destination=arguments[onednn.DST].address,
            weights=arguments[onednn.WEIGHTS].address,
            bias=bias.address if bias else no_bias.ctypes.data,
            scratchpad=arguments[onednn.SCRATCHPAD].address,
        )
        self._kept = (dict(arguments), no_bias, products, told)
        self._execute = partial(run, c_void_p(addressof(told)))

    def __call__(self) -> None:
        """Run the kernel."""
        self._execute()


def _vectors_of_panel(vectors: int, most: int) -> int:
    """Return how many registers of channels a panel has: few panels, little filling."""
    # Beside its products a panel costs about as much as half a register's.
    return min(
        range(most, 0, -1), key=lambda width: -(-vectors // width) * (2 * width + 1)
    )


def _parts(threads: int, tiles: int, panels: int) -> tuple[int, int]:
    """Return into how many parts, one a thread, tiles and panels are divided.

    Parts of the tiles read all of U each, parts of the panels transform the inputs
    again each: by tiles as long as there are enough.
    """
    panel_parts = 1
    for parts in range(2, min(threads, panels) + 1):
        if tiles * panel_parts >= _FEWEST_TILES * threads:
            break
        if threads % parts == 0:
            panel_parts = parts
    return threads // panel_parts, panel_parts


def _pixel_bytes(channels: int, dtype: DType, lanes: int) -> int:
    """The room for a pixel of a map, of which whole registers are written."""
    return _up(_up(channels, lanes) * dtype.nbytes, ALIGNMENT)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


@cache
def _compiled_layer(
    instructions: Instructions, variant: Variant
) -> Callable[[c_void_p], None]:
    code = Code(instructions)
    functions.write_layer(code, variant)
    return ctypes.CFUNCTYPE(None, c_void_p)(code.compiled()["run"])


@cache
def _compiled_products(
    instructions: Instructions, vectors: int, dtype: DType
) -> ctypes.Array:
    """The addresses of the products of 1, 2, ... tiles."""
    code = Code(instructions)
    functions.write_products(code, vectors, dtype)
    addresses = code.compiled()
    in_order = (addresses[f"product_{rows + 1}"] for rows in range(len(addresses)))
    return (ctypes.c_int64 * len(addresses))(*in_order)
