# SPDX-License-Identifier: Apache-2.0
"""A plan: the kernels that map images of one shape to logits, and their memory.

All is decided when the plan is made: kernels, layouts, where each tensor lies. Tensors
are in NHWC, for which oneDNN has its fastest convolutions; those that are no longer
needed give their memory to later ones, which find it in the cache.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Optional, Union

import numpy as np

from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import F32, S8, U8, Call, Descriptor, Kernel, Memory

SCALE = ":scale"
"""After a weight's name: the steps of its int8 values, one for each channel."""
_ALIGNMENT = 64  # bytes: a line of the cache, and an AVX-512 register


@dataclass
class Storage:
    """Memory that tensors share because they are the same elements."""

    nbytes: int
    first: int
    """The call that writes it first."""
    last: int
    """The last call that needs it."""
    offset: int = 0
    """Where it lies in the plan's memory."""


@dataclass(frozen=True)
class Tensor:
    """A result (N, C, H, W): its elements times `scale` are the values."""

    dims: tuple[int, ...]
    dtype: int
    memory: Memory
    storage: Optional[Storage]
    """None for the image, which comes from outside."""
    scale: float = 1.0
    start: int = 0
    """Bytes into the storage."""

    @property
    def descriptor(self) -> Descriptor:
        """Dimensions, data type and layout, for oneDNN."""
        return self.memory.descriptor

    @property
    def is_int8(self) -> bool:
        """Whether the elements are 8 bits."""
        return self.dtype in (S8, U8)


class Weights:
    """A network's arrays, and the layouts that kernels wanted of them so far.

    Plans for other shapes use the same, where they want the same. Once a float weight
    has been packed, `arrays` has no more than its shape: it would double the memory.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)
        self._packed: dict[str, Memory] = {}

    def get(
        self, name: str, dims: tuple[int, ...], layout: int, wanted: Descriptor
    ) -> Memory:
        """Return a weight as `wanted`; its array has `dims`, in the order `layout`."""
        packed = self._packed.get(name)
        if packed is not None and packed.descriptor == wanted:
            return packed
        array = self.arrays[name]
        is_float = array.dtype == np.float32
        # Packed int8 weights hold sums beside the elements, and cannot be packed anew.
        if packed is None or not is_float:
            dtype = F32 if is_float else S8
            packed = Memory(
                Descriptor(dims, dtype, layout), np.ascontiguousarray(array)
            )
        result = Memory(wanted, _aligned(wanted.nbytes))
        kernel = onednn.reorder(packed.descriptor, wanted)
        scratchpad = kernel.scratchpad
        kernel.bind(
            {
                onednn.SRC: packed,
                onednn.DST: result,
                onednn.SCRATCHPAD: Memory(scratchpad, _aligned(scratchpad.nbytes)),
            }
        )()
        self._packed[name] = result
        if is_float:
            self.arrays[name] = np.broadcast_to(np.float32(), array.shape)
        return result


class Plan:
    """Calls of kernels, one after the other, and the memory they work on.

    It is made in two steps: operators.py asks for tensors and appends calls, then
    `finish` gives all of them memory. From then on it can `run`, with the number of
    OpenMP threads that the thread had which made it, by one caller at a time.
    """

    def __init__(self, weights: Weights, shape: tuple[int, int, int, int], dtype: int):
        """shape: of the images (N, C, H, W); dtype: of results, F32 or BF16."""
        self.weights = weights
        self.dtype = dtype
        self.image = Tensor(
            tuple(shape), F32, Memory(Descriptor(shape, F32, onednn.ABCD)), None
        )
        self._calls: list[tuple[str, Call]] = []
        self._placed: list[tuple[Memory, Storage, int]] = []
        self._scratchpads: list[Memory] = []

    def finish(self, logits: Tensor) -> None:
        """Give all tensors their memory, but the image and `logits`, which `run` gets.

        The largest comes first and lies where nothing is that is needed meanwhile.
        """
        self._logits = logits.memory
        self.num_classes = logits.dims[1]
        self._placed = [p for p in self._placed if p[1] is not logits.storage]
        done = []
        for storage in sorted(self.storages, key=lambda s: -s.nbytes):
            others = sorted(
                (o.offset, o.offset + o.nbytes)
                for o in done
                if o.first <= storage.last and storage.first <= o.last
            )
            offset = 0
            for start, end in others:
                if offset + storage.nbytes <= start:
                    break
                offset = max(offset, end)
            storage.offset = offset
            done.append(storage)
        size = max((s.offset + s.nbytes for s in done), default=0)
        scratchpad = max((m.descriptor.nbytes for m in self._scratchpads), default=0)
        self._arena = _aligned(size + scratchpad)
        address = self._arena.ctypes.data
        for memory, storage, start in self._placed:
            memory.point_to(address + storage.offset + start)
        for memory in self._scratchpads:
            memory.point_to(address + size)
        self.nbytes = self._arena.nbytes

    @property
    def storages(self) -> list[Storage]:
        """All memory of tensors, and when it is in use."""
        return [*{id(storage): storage for _, storage, _ in self._placed}.values()]

    def run(self, images: int, logits: int) -> None:
        """Compute logits from images, both float32 in C order, given by address."""
        self.image.memory.point_to(images)
        self._logits.point_to(logits)
        for _, call in self._calls:
            call()

    def measure(self, rounds: int) -> list[dict]:
        """Time each call of a run: {"layer", "primitive", "kernel", "ms"}, medians."""
        images, logits = (
            np.zeros(memory.descriptor.nbytes, np.uint8)
            for memory in (self.image.memory, self._logits)
        )
        self.run(images.ctypes.data, logits.ctypes.data)
        seconds = np.empty((rounds, len(self._calls)))
        for row in seconds:
            for position, (_, call) in enumerate(self._calls):
                started = time.perf_counter()
                call()
                row[position] = time.perf_counter() - started
        return [
            {
                "layer": name,
                "primitive": call.kernel.kind,
                "kernel": call.kernel.name,
                "ms": 1000 * median,
            }
            for (name, call), median in zip(self._calls, np.median(seconds, axis=0))
        ]

    # For operators

    def tensor(
        self,
        dims: tuple[int, ...],
        dtype: int,
        descriptor: Optional[Descriptor] = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Return a new tensor, which the next call writes."""
        descriptor = descriptor or Descriptor(dims, dtype)
        nbytes = -(-descriptor.nbytes // _ALIGNMENT) * _ALIGNMENT
        storage = Storage(nbytes, len(self._calls), len(self._calls))
        return self._tensor(dims, dtype, descriptor, storage, scale, 0)

    def view(
        self,
        x: Tensor,
        dims: tuple[int, ...],
        *,
        dtype: Optional[int] = None,
        scale: Optional[float] = None,
        layout: int = onednn.ACDB,
        start: int = 0,
    ) -> Tensor:
        """Return elements of `x`, from `start` on, as a tensor of other dimensions.

        With another data type of the same size what is written to the view takes the
        place of what was in `x`.
        """
        dtype, scale = dtype or x.dtype, scale or x.scale
        descriptor = Descriptor(dims, dtype, layout)
        start = x.start + start * onednn.SIZES[dtype]
        return self._tensor(dims, dtype, descriptor, x.storage, scale, start)

    def _tensor(self, dims, dtype, descriptor, storage, scale, start) -> Tensor:
        memory = Memory(descriptor)
        self._placed.append((memory, storage, start))
        return Tensor(tuple(dims), dtype, memory, storage, scale, start)

    def call(
        self,
        layer: str,
        describe: Callable[..., Kernel],
        tensors: Mapping[int, Union[Tensor, Memory]],
        scales: Mapping[int, Union[float, np.ndarray]] = {},
        weight: Optional[tuple[str, tuple[int, ...], int]] = None,
    ) -> None:
        """Append a call of a kernel, which needs its tensors until then.

        layer: the name to tell it by.
        describe: takes the masks of the scales and returns the kernel.
        scales: of which tensors the elements are multiples: of one factor, or of one
        for each channel.
        weight: its name, dimensions and layout, for `Weights.get`.
        """
        grouped = weight is not None and weight[2] == onednn.ABCDE
        masks = {
            argument: (0b11 if grouped else 0b1) if np.ndim(factor) else 0
            for argument, factor in scales.items()
        }
        kernel = describe(scales=masks) if masks else describe()
        memories = {
            onednn.scale_of(argument): constant(np.atleast_1d(factor))
            for argument, factor in scales.items()
        }
        for argument, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                if tensor.storage:
                    tensor.storage.last = len(self._calls)
                tensor = tensor.memory
            memories[argument] = tensor
        if weight:
            memories[onednn.WEIGHTS] = self.weights.get(*weight, kernel.weights)
        scratchpad = kernel.scratchpad
        if scratchpad.nbytes:
            memory = Memory(scratchpad)
            self._scratchpads.append(memory)
            memories[onednn.SCRATCHPAD] = memory
        self._calls.append((layer, kernel.bind(memories)))

    def converted(
        self,
        layer: str,
        x: Tensor,
        dtype: int,
        limits: Optional[tuple[float, float]] = None,
    ) -> Tensor:
        """Return `x` as `dtype` in NHWC; with limits as int8 of that range."""
        scale = 1.0
        if limits:
            dtype, scale = int8_of(limits)
        descriptor = Descriptor(x.dims, dtype)
        if x.scale == scale and x.descriptor == descriptor:
            return x
        result = self.tensor(x.dims, dtype, descriptor, scale)
        scales = {onednn.SRC: x.scale, onednn.DST: scale}
        self.call(
            layer,
            partial(onednn.reorder, x.descriptor, descriptor),
            {onednn.SRC: x, onednn.DST: result},
            {argument: factor for argument, factor in scales.items() if factor != 1},
        )
        return result

    def copied(self, layer: str, x: Tensor) -> Tensor:
        """Return a tensor with the elements of `x`."""
        result = self.tensor(x.dims, x.dtype, x.descriptor, x.scale)
        kernel = partial(onednn.reorder, x.descriptor, x.descriptor)
        self.call(layer, kernel, {onednn.SRC: x, onednn.DST: result})
        return result


def constant(
    values: np.ndarray,
    layout: int = onednn.A,
    dims: Optional[tuple[int, ...]] = None,
) -> Memory:
    """Return float32 values that are known when the plan is made."""
    array = np.ascontiguousarray(values, np.float32)
    return Memory(Descriptor(dims or array.shape, F32, layout), array)


def int8_of(limits: tuple[float, float]) -> tuple[int, float]:
    """Return the type and the scale of MXNet's int8 for a range."""
    low, high = limits
    if low >= 0:
        return U8, high / 255
    return S8, max(-low, high) / 127


def _aligned(nbytes: int) -> np.ndarray:
    """Bytes that start at a line of the cache."""
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes]
