# SPDX-License-Identifier: Apache-2.0
"""The weights of a network, packed in the layouts that its kernels work with."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Optional, Union
from weakref import WeakSet

import numpy as np

from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import Descriptor, DType, Layout, Memory

if TYPE_CHECKING:
    from gluon_resnet.inference.winograd.choice import Method
    from gluon_resnet.inference.winograd.weights import (
        TransformedLayout,
        TransformedWeights,
    )

SCALE = ":scale"
"""After a weight's name: the scales of its int8 values, one for each channel."""
ALIGNMENT = 64  # bytes: a line of the cache, and an AVX-512 register


class Weight(NamedTuple):
    """A weight as its kernel takes it."""

    name: str
    dims: tuple[int, ...]
    """(O, I, H, W); in G groups (G, O / G, I / G, H, W); of a product (O, I)."""
    dtype: DType
    """That the kernel computes with. It depends on the layer, never on the images."""

    @property
    def descriptor(self) -> Descriptor:
        """What to ask a kernel for: it chooses the layout."""
        return Descriptor(self.dims, self.dtype, Layout.ANY)

    @property
    def channels(self) -> int:
        """oneDNN's mask of the dimensions that are the output channels."""
        return 0b11 if len(self.dims) == 5 else 0b1


_LAYOUTS = {2: Layout.AB, 4: Layout.ABCD, 5: Layout.ABCDE}


class Weights:
    """A network's arrays, and the layouts that kernels wanted of them so far.

    Plans for other shapes use the same, where they want the same. Once a float weight
    has been packed only its shape is left of the array: both would double the memory.
    What has been transformed for Winograd's kernels is transformed for good.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = dict(arrays)
        self._shapes = {name: array.shape for name, array in arrays.items()}
        # What plans use, and of each weight what was packed last, to pack from.
        self._packed: dict[Weight, WeakSet[_Packed]] = {}
        self._last: dict[Weight, _Packed] = {}
        self.methods: dict[str, Optional[Method]] = {}
        """How Winograd's kernels take a weight, None where it is left to oneDNN's. It
        is decided once: the same image has the same logits whatever came before."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self._shapes[name]

    def values(self, name: str) -> np.ndarray:
        """Return an array; raise LookupError for a float weight that was packed."""
        if name not in self._arrays:
            raise LookupError(f"{name} has no values any more: it was packed")
        return self._arrays[name]

    def scale(self, name: str) -> Optional[np.ndarray]:
        """Return the scales of an int8 weight's channels, None for a float weight."""
        return self._arrays.get(name + SCALE)

    def is_transformed(self, weight: Weight) -> bool:
        """Return whether a weight is one for Winograd's kernels by now."""
        return not isinstance(self._last.get(weight), (Memory, type(None)))

    def packed(
        self, weight: Weight, wanted: "Union[Descriptor, TransformedLayout]"
    ) -> "_Packed":
        """Return a weight as `wanted`."""
        memories = self._packed.setdefault(weight, WeakSet())
        for memory in memories:
            if wanted.equals(memory.descriptor):
                return memory
        source = self._source(weight)
        result: _Packed
        if isinstance(wanted, Descriptor):
            result = Memory(wanted, aligned(wanted.nbytes))
            _reorder(source, result)
        else:
            plain = Descriptor(weight.dims, DType.F32, _LAYOUTS[len(weight.dims)])
            values = np.empty(weight.dims, np.float32)
            _reorder(source, Memory(plain, values))
            result = wanted.packed(values)
        memories.add(result)
        self._last[weight] = result
        if weight.dtype != DType.S8:
            self._arrays.pop(weight.name, None)
        return result

    def _source(self, weight: Weight) -> Memory:
        """What to pack from: what was packed last, or the array."""
        # Packed int8 weights hold sums beside the elements, and cannot be packed anew.
        last = self._last.get(weight)
        if isinstance(last, Memory) and weight.dtype != DType.S8:
            return last
        array = np.ascontiguousarray(self.values(weight.name))
        dtype = DType.F32 if array.dtype == np.float32 else DType.S8
        return Memory(Descriptor(weight.dims, dtype, _LAYOUTS[len(weight.dims)]), array)


_Packed = Union[Memory, "TransformedWeights"]


def _reorder(source: Memory, result: Memory) -> None:
    """Copy into another layout or data type."""
    kernel = onednn.reorder(source.descriptor, result.descriptor)
    scratchpad = kernel.scratchpad
    kernel.bind(
        {
            onednn.SRC: source,
            onednn.DST: result,
            onednn.SCRATCHPAD: Memory(scratchpad, aligned(scratchpad.nbytes)),
        }
    )()


def aligned(nbytes: int) -> np.ndarray:
    """Return bytes that start at a line of the cache."""
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + nbytes]
