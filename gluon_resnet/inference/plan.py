# SPDX-License-Identifier: Apache-2.0
"""A plan: the kernels that map images of one shape to logits, and their memory.

All is decided when the plan is made: kernels, layouts, where each tensor lies. Tensors
are in NHWC, for which oneDNN has its fastest convolutions; those that are no longer
needed give their memory to later ones, which find it in the cache.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np

from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import Descriptor, DType, Layout, Memory
from gluon_resnet.inference.packing import ALIGNMENT, Weight, Weights, aligned

if TYPE_CHECKING:
    from gluon_resnet.inference.winograd import kernel as winograd

    Kernel = Union[onednn.Kernel, winograd.Kernel]
    Call = Union[onednn.Call, winograd.Call]

# About what the code of a kernel takes, with all that describes it.
_CALL_BYTES = 2**15


class PlanError(ValueError):
    """There is no plan: images, arrays and steps do not fit together."""


@dataclass(eq=False)
class Storage:
    """Memory that tensors share because they are the same elements."""

    nbytes: int
    first: int
    """The call that writes it first."""
    last: int
    """The last call that needs it."""
    offset: int = 0
    """Where it lies in the plan's memory, in bytes."""


@dataclass(frozen=True)
class Tensor:
    """A result (N, C, H, W): its elements times `scale` are the values."""

    dims: tuple[int, ...]
    dtype: DType
    memory: Memory
    storage: Optional[Storage]
    """None for the image, which comes from outside."""
    scale: float = 1.0
    start: int = 0
    """The first of its elements in the storage."""
    is_pooled: bool = False
    """Whether its one pixel is the mean of a map, or was computed from one."""

    @property
    def descriptor(self) -> Descriptor:
        """Dimensions, data type and layout, for oneDNN."""
        return self.memory.descriptor

    @property
    def is_int8(self) -> bool:
        """Whether the elements are 8 bits."""
        return self.dtype in (DType.S8, DType.U8)


Operand = Union[Tensor, Memory]
Scale = Union[float, np.ndarray]
"""One for all elements, or of a weight one for each output channel."""


class Plan:
    """Calls of kernels, one after the other, and the memory they work on.

    It runs with the number of OpenMP threads that the thread had which made it, and for
    one caller at a time.
    """

    def __init__(
        self,
        calls: "Sequence[tuple[str, Call]]",
        image: Memory,
        logits: Memory,
        storages: Sequence[Storage],
        memory: np.ndarray,
        num_classes: int,
    ):
        """For `PlanBuilder.finish` to call.

        calls: each with the name of its layer.
        storages: where the tensors lie in `memory`, and when.
        """
        self._calls = calls
        self._image = image
        self._logits = logits
        self._memory = memory
        self.storages = storages
        self.num_classes = num_classes
        self.nbytes = memory.nbytes + _CALL_BYTES * len(calls)

    def run(self, images_address: int, logits_address: int) -> None:
        """Compute logits from images, both float32 in C order, given by address."""
        self._image.point_to(images_address)
        self._logits.point_to(logits_address)
        for _, call in self._calls:
            call()

    def measure(self, rounds: int) -> list[dict]:
        """Time each call of a run: {"layer", "primitive", "kernel", "ms"}, medians."""
        images, logits = (
            np.zeros(memory.descriptor.nbytes, np.uint8)
            for memory in (self._image, self._logits)
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


class _PlannedCall(NamedTuple):
    layer: str
    kernel: "Kernel"
    memories: dict[int, Memory]
    weight: Optional[Weight]


class PlanBuilder:
    """What will be a plan: operators ask for tensors and append calls, then `finish`.

    Until then no code is generated, no weight packed and no tensor has memory.
    """

    def __init__(
        self,
        weights: Weights,
        shape: tuple[int, int, int, int],
        dtype: DType,
        *,
        transforms: bool = True,
    ):
        """shape: of the images (N, C, H, W); dtype: of results, F32 or BF16.

        transforms: whether weights may be transformed for Winograd's kernels, which
        takes more memory.
        """
        self.weights = weights
        self.dtype = dtype
        self.transforms = transforms
        self.image = Tensor(
            tuple(shape),
            DType.F32,
            Memory(Descriptor(shape, DType.F32, Layout.ABCD)),
            None,
        )
        self._calls: list[_PlannedCall] = []
        self._placed: list[tuple[Tensor, Storage]] = []
        self._scratchpads: list[Memory] = []

    def tensor(
        self,
        dims: tuple[int, ...],
        dtype: DType,
        descriptor: Optional[Descriptor] = None,
        *,
        scale: float = 1.0,
        is_pooled: bool = False,
    ) -> Tensor:
        """Return a new tensor, which the next call writes."""
        if min(dims) < 1:
            raise PlanError(f"a layer's result would have the dimensions {dims}")
        descriptor = descriptor or Descriptor(dims, dtype)
        storage = Storage(_whole_lines(descriptor.nbytes), *[len(self._calls)] * 2)
        memory = Memory(descriptor)
        tensor = Tensor(dims, dtype, memory, storage, scale, 0, is_pooled)
        self._placed.append((tensor, storage))
        return tensor

    def view(
        self,
        x: Tensor,
        dims: tuple[int, ...],
        *,
        layout: Layout = Layout.ACDB,
        start: int = 0,
    ) -> Tensor:
        """Return elements of `x`, from element `start` on, as other dimensions.

        Raises PlanError where there are not as many.
        """
        return self._view(x, dims, x.dtype, x.scale, layout, x.start + start)

    def in_place_of(self, x: Tensor, dtype: DType, scale: float) -> Tensor:
        """Return a tensor whose int8 or other elements replace those of `x`."""
        return self._view(x, x.dims, dtype, scale, Layout.ACDB, x.start)

    def _view(
        self,
        x: Tensor,
        dims: tuple[int, ...],
        dtype: DType,
        scale: float,
        layout: Layout,
        start: int,
    ) -> Tensor:
        descriptor = Descriptor(dims, dtype, layout)
        end = start * dtype.nbytes + descriptor.nbytes
        # What is computed through a view must stay within what `finish` provides.
        if (
            x.storage is None
            or dtype.nbytes != x.dtype.nbytes
            or end > x.storage.nbytes
        ):
            raise PlanError(f"{dims} do not fit into a tensor of {x.dims}")
        view = Tensor(
            *(dims, dtype, Memory(descriptor), x.storage, scale, start, x.is_pooled)
        )
        self._placed.append((view, x.storage))
        return view

    def call(
        self,
        layer: str,
        describe: "Callable[..., Kernel]",
        tensors: Mapping[int, Operand],
        scales: Mapping[int, Scale] = {},
        weight: Optional[Weight] = None,
    ) -> None:
        """Append a call of a kernel, which needs its tensors until then.

        layer: the name to tell it by.
        describe: takes the masks of the scales and returns the kernel.
        scales: of those tensors whose elements are multiples of them.
        """
        masks = {
            argument: weight.channels if weight and np.ndim(factor) else 0
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
        scratchpad = kernel.scratchpad
        if scratchpad.nbytes:
            memory = Memory(scratchpad)
            self._scratchpads.append(memory)
            memories[onednn.SCRATCHPAD] = memory
        self._calls.append(_PlannedCall(layer, kernel, memories, weight))

    def converted(self, layer: str, x: Tensor, dtype: DType) -> Tensor:
        """Return the values of `x` as float elements, of `dtype`, in NHWC."""
        return self._reordered(layer, x, dtype, 1.0)

    def quantized(self, layer: str, x: Tensor, limits: tuple[float, float]) -> Tensor:
        """Return the values of `x` as int8 elements for a range, in NHWC."""
        return self._reordered(layer, x, *int8_of(limits))

    def _reordered(self, layer: str, x: Tensor, dtype: DType, scale: float) -> Tensor:
        descriptor = Descriptor(x.dims, dtype)
        if x.scale == scale and x.descriptor.equals(descriptor):
            return x
        result = self.tensor(
            x.dims, dtype, descriptor, scale=scale, is_pooled=x.is_pooled
        )
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
        result = self.tensor(
            x.dims, x.dtype, x.descriptor, scale=x.scale, is_pooled=x.is_pooled
        )
        kernel = partial(onednn.reorder, x.descriptor, x.descriptor)
        self.call(layer, kernel, {onednn.SRC: x, onednn.DST: result})
        return result

    def finish(self, logits: Tensor) -> Plan:
        """Return the plan that computes `logits` (N, classes), float32.

        The image and `logits` get their memory in each run, all else has it for good.
        Raises PlanError for a result that is none of logits.
        """
        placed = [p for p in self._placed if p[1] is not logits.storage]
        has_views = len(placed) < len(self._placed) - 1
        if has_views or (len(logits.dims), logits.dtype) != (2, DType.F32):
            raise PlanError(f"{logits.dims} are no logits (N, classes)")
        storages = list(dict.fromkeys(storage for _, storage in placed))
        size = lay_out(storages)
        scratchpad = max((m.descriptor.nbytes for m in self._scratchpads), default=0)
        arena = aligned(size + scratchpad)
        address = arena.ctypes.data
        for tensor, storage in placed:
            start = tensor.start * tensor.dtype.nbytes
            tensor.memory.point_to(address + storage.offset + start)
        for memory in self._scratchpads:
            memory.point_to(address + size)
        calls = []
        for layer, kernel, memories, weight in self._calls:
            tensors: dict[int, Any] = dict(memories)
            if weight:
                tensors[onednn.WEIGHTS] = self.weights.packed(weight, kernel.weights)
            calls.append((layer, kernel.bind(tensors)))
        return Plan(
            calls, self.image.memory, logits.memory, storages, arena, logits.dims[1]
        )


def lay_out(storages: Sequence[Storage]) -> int:
    """Give each storage its offset, and return the bytes that they all take.

    The largest comes first and lies where nothing is that is needed meanwhile.
    """
    done: list[Storage] = []
    for storage in sorted(storages, key=lambda s: -s.nbytes):
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
    return max((s.offset + s.nbytes for s in done), default=0)


def constant(
    values: np.ndarray,
    layout: Layout = Layout.A,
    dims: Optional[tuple[int, ...]] = None,
) -> Memory:
    """Return float32 values that are known when the plan is made."""
    array = np.ascontiguousarray(values, np.float32)
    return Memory(Descriptor(dims or array.shape, DType.F32, layout), array)


def int8_of(limits: tuple[float, float]) -> tuple[DType, float]:
    """Return the type and the scale of MXNet's int8 for a range."""
    low, high = limits
    if low >= 0:
        return DType.U8, high / 255
    return DType.S8, max(-low, high) / 127


def _whole_lines(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
