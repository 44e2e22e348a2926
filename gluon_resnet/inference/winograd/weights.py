# SPDX-License-Identifier: Apache-2.0
"""The weights of a convolution by Winograd's algorithm, transformed and packed."""

from dataclasses import dataclass
from math import prod

import numpy as np

from gluon_resnet.inference.onednn import DType
from gluon_resnet.inference.packing import aligned
from gluon_resnet.inference.winograd.choice import Method
from gluon_resnet.inference.winograd.transforms import Tile

_TAPS = 9


@dataclass(frozen=True)
class TransformedLayout:
    """How a kernel wants its weights: U = G g G' by panels, points, channels.

    Of bfloat16 two channels are side by side.
    """

    tile: Tile
    dtype: DType
    panel: int
    """Output channels of a panel; the last one is filled up with zeros."""

    @property
    def method(self) -> Method:
        """What the weights are transformed for."""
        return Method(self.tile, self.dtype)

    def equals(self, other: object) -> bool:
        """Return whether the layout is the same."""
        return self == other

    def packed(self, weights: np.ndarray) -> "TransformedWeights":
        """Transform weights (K, C, 3, 3), float32; they are rounded once."""
        filters, channels = weights.shape[:2]
        pairs = 2 if self.dtype == DType.BF16 else 1
        steps = -(-channels // pairs)
        matrix = np.kron(self.tile.weights, self.tile.weights)
        panels = -(-filters // self.panel)
        shape = (panels, len(matrix), steps, self.panel, pairs)
        buffer = aligned(prod(shape) * self.dtype.nbytes)
        result = buffer.view(_STORED[self.dtype]).reshape(shape)
        for panel, target in enumerate(result):
            some = weights[panel * self.panel :][: self.panel]
            whole = np.zeros((_TAPS, steps * pairs, self.panel))
            whole[:, :channels, : len(some)] = some.reshape(-1, channels, _TAPS).T
            # What is not finite makes NaN, as it does in other kernels.
            with np.errstate(invalid="ignore", over="ignore"):
                u = (matrix @ whole.reshape(_TAPS, -1)).astype(np.float32)
            u = u.reshape(len(matrix), steps, pairs, self.panel).swapaxes(2, 3)
            target[...] = _bf16_bits(u) if self.dtype == DType.BF16 else u
        return TransformedWeights(self, buffer)


_STORED = {DType.F32: np.float32, DType.BF16: np.uint16}


def _bf16_bits(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of float32 values, as their bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


class TransformedWeights:
    """Weights as a kernel wants them; its address is good as long as it lives."""

    def __init__(self, descriptor: TransformedLayout, array: np.ndarray):
        self.descriptor = descriptor
        self.nbytes = array.nbytes
        self.address = array.ctypes.data
        self._array = array
