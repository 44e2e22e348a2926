# SPDX-License-Identifier: Apache-2.0
"""The weights of a network, packed in the layouts that its kernels work with."""

from collections.abc import Mapping
from typing import NamedTuple, Optional
from weakref import WeakSet

import numpy as np

from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import Descriptor, DType, Layout, Memory

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
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = dict(arrays)
        self._shapes = {name: array.shape for name, array in arrays.items()}
        # What plans use, and of each weight what was packed last, to pack from.
        self._packed: dict[Weight, WeakSet[Memory]] = {}
        self._last: dict[Weight, Memory] = {}

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

    def packed(self, weight: Weight, wanted: Descriptor) -> Memory:
        """Return a weight as `wanted`."""
        memories = self._packed.setdefault(weight, WeakSet())
        for memory in memories:
            if memory.descriptor.equals(wanted):
                return memory
        source = self._source(weight)
        result = Memory(wanted, aligned(wanted.nbytes))
        kernel = onednn.reorder(source.descriptor, wanted)
        scratchpad = kernel.scratchpad
        kernel.bind(
            {
                onednn.SRC: source,
                onednn.DST: result,
                onednn.SCRATCHPAD: Memory(scratchpad, aligned(scratchpad.nbytes)),
            }
        )()
        memories.add(result)
        self._last[weight] = result
        if weight.dtype != DType.S8:
            self._arrays.pop(weight.name, None)
        return result

    def _source(self, weight: Weight) -> Memory:
        """What to pack from: what was packed last, or the array."""
        # Packed int8 weights hold sums beside the elements, and cannot be packed anew.
        if weight in self._last and weight.dtype != DType.S8:
            return self._last[weight]
        array = np.ascontiguousarray(self.values(weight.name))
        dtype = DType.F32 if array.dtype == np.float32 else DType.S8
        return Memory(Descriptor(weight.dims, dtype, _LAYOUTS[len(weight.dims)]), array)


def aligned(nbytes: int) -> np.ndarray:
    """Return bytes that start at a line of the cache."""
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + nbytes]
