# SPDX-License-Identifier: Apache-2.0
"""A plan: the kernels that map images of one shape to logits, and their memory.

All is decided when the plan is made: kernels, layouts, where each tensor lies. Tensors
are in NHWC, for which oneDNN has its fastest convolutions; those that are no longer
needed give their memory to later ones, which finds it in the cache.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Optional, Union

import numpy as np

from gluon_resnet import onednn
from gluon_resnet.onednn import (
    ACDB,
    BF16,
    F32,
    S8,
    U8,
    Call,
    Descriptor,
    Kernel,
    Memory,
    PostOp,
)
from gluon_resnet.steps import Step, Value

_ALIGNMENT = 64  # bytes: a line of the cache, and an AVX-512 register
SCALE = ":scale"  # after a weight's name: its array of steps, one for each channel
_RELU = PostOp("eltwise", onednn.RELU)


@dataclass
class _Storage:
    """Memory that tensors share because they are the same elements."""

    nbytes: int
    first: int
    """The call that writes it first."""
    last: int
    """The last call that needs it."""
    offset: int = 0


@dataclass(frozen=True)
class _Tensor:
    """A result (N, C, H, W): its elements times `scale` are the values."""

    dims: tuple[int, ...]
    dtype: int
    memory: Memory
    storage: Optional[_Storage]
    scale: float = 1.0
    start: int = 0
    """Bytes into the storage."""


@dataclass
class Weights:
    """A network's arrays, and the layouts that kernels wanted of them so far.

    Plans for other shapes use the same, where they want the same.
    """

    arrays: Mapping[str, np.ndarray]
    packed: dict[str, Memory] = field(default_factory=dict)

    def get(
        self, name: str, array: np.ndarray, layout: int, wanted: Descriptor
    ) -> Memory:
        """Return `array`, whose axes are in the order of `layout`, as `wanted`."""
        kept = self.packed.get(name)
        if kept is None or kept.descriptor != wanted:
            kept = Memory(wanted, _aligned(wanted.nbytes))
            dtype = S8 if array.dtype == np.int8 else F32
            plain = Memory(
                Descriptor(array.shape, dtype, layout), np.ascontiguousarray(array)
            )
            kernel = onednn.reorder(plain.descriptor, wanted)
            scratchpad = Memory(kernel.scratchpad, _aligned(kernel.scratchpad.nbytes))
            kernel.bind(
                {
                    onednn.SRC: plain,
                    onednn.DST: kept,
                    onednn.SCRATCHPAD: scratchpad,
                }
            )()
            self.packed[name] = kept
        return kept


class Plan:
    """Kernels and memory for images of one shape, as many OpenMP threads as there are.

    It runs on the number of threads that the calling thread has when the plan is made.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        weights: Weights,
        shape: tuple[int, int, int, int],
        dtype: int = F32,
    ):
        """shape: (N, C, H, W); dtype: of the layers' results, F32 or BF16."""
        self.calls: list[Call] = []
        self.names: list[str] = []
        self._weights = weights
        self._dtype = dtype
        self._placed: list[tuple[Memory, _Storage, int]] = []
        self._scratchpads: list[Memory] = []
        self._input = Memory(Descriptor(shape, F32, onednn.ABCD))
        image = _Tensor(shape, F32, self._input, None)
        # The one value that no step computes is the image.
        self._tensors: dict[Value, _Tensor] = defaultdict(lambda: image)
        steps = list(steps)
        self._readers = {}
        for position, step in enumerate(steps):
            for value in (*step.inputs, step.added):
                self._readers[value] = position
        for self._position, step in enumerate(steps):
            self._step = step
            result = _OPERATORS[step.op](
                self, step, *(self._tensors[value] for value in step.inputs)
            )
            if isinstance(result, list):
                for output, tensor in enumerate(result):
                    self._tensors[step.output._replace(output=output)] = tensor
            else:
                self._tensors[step.output] = result
        self._output = result.memory
        self.num_classes = result.dims[1]
        self._placed = [p for p in self._placed if p[1] is not result.storage]
        self._place()

    def run(self, images: int, logits: int) -> None:
        """Compute logits from images, both float32 in C order, given by address."""
        self._input.point_to(images)
        self._output.point_to(logits)
        for call in self.calls:
            call()

    def measure(self, rounds: int) -> list[dict]:
        """Time each call of a run: {"layer", "primitive", "kernel", "ms"}, medians."""
        images, logits = (
            np.zeros(memory.descriptor.nbytes, np.uint8)
            for memory in (self._input, self._output)
        )
        self.run(images.ctypes.data, logits.ctypes.data)
        seconds = np.empty((rounds, len(self.calls)))
        for row in seconds:
            for position, call in enumerate(self.calls):
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
            for name, call, median in zip(
                self.names, self.calls, np.median(seconds, axis=0)
            )
        ]

    # Memory

    def _place(self) -> None:
        """Give all tensors their memory, the largest first, where none needs it."""
        storages = {id(storage): storage for _, storage, _ in self._placed}
        done = []
        for storage in sorted(storages.values(), key=lambda s: -s.nbytes):
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

    def _tensor(self, dims, dtype, descriptor=None, scale=1.0) -> _Tensor:
        """A new tensor, written by the next call."""
        descriptor = descriptor or Descriptor(dims, dtype)
        nbytes = -(-descriptor.nbytes // _ALIGNMENT) * _ALIGNMENT
        storage = _Storage(nbytes, len(self.calls), len(self.calls))
        return self._view(storage, dims, dtype, descriptor, scale)

    def _view(self, storage, dims, dtype, descriptor, scale=1.0, start=0) -> _Tensor:
        memory = Memory(descriptor)
        self._placed.append((memory, storage, start))
        return _Tensor(tuple(dims), dtype, memory, storage, scale, start)

    def _constant(self, values, layout: int = onednn.A, dims=None) -> Memory:
        array = np.ascontiguousarray(values, np.float32)
        return Memory(Descriptor(dims or array.shape, F32, layout), array)

    def _call(
        self,
        describe: Callable[..., Kernel],
        tensors: Mapping[int, Union[_Tensor, Memory]],
        scales: Mapping[int, Union[float, np.ndarray]] = {},
        weight: Optional[tuple[str, np.ndarray, int]] = None,
    ) -> None:
        """Append a call of a kernel, which needs its tensors until then.

        describe: takes the masks of the scales and returns the kernel.
        scales: of which tensors the elements are multiples: of one factor, or of one
        for each channel.
        weight: name, array and layout, for the layout that the kernel wants.
        """
        grouped = weight is not None and weight[2] == onednn.ABCDE
        masks = {
            argument: (0b11 if grouped else 0b1) if np.ndim(factor) else 0
            for argument, factor in scales.items()
        }
        kernel = describe(scales=masks) if masks else describe()
        memories = {
            onednn.scale_of(argument): self._constant(np.atleast_1d(factor))
            for argument, factor in scales.items()
        }
        for argument, tensor in tensors.items():
            if isinstance(tensor, _Tensor):
                if tensor.storage:
                    tensor.storage.last = len(self.calls)
                tensor = tensor.memory
            memories[argument] = tensor
        if weight:
            memories[onednn.WEIGHTS] = self._weights.get(*weight, kernel.weights)
        if kernel.scratchpad.nbytes:
            memory = Memory(kernel.scratchpad)
            self._scratchpads.append(memory)
            memories[onednn.SCRATCHPAD] = memory
        self.calls.append(kernel.bind(memories))
        self.names.append(self._step.name)

    # Data types

    def _converted(
        self, x: _Tensor, dtype: int, limits: Optional[tuple[float, float]] = None
    ) -> _Tensor:
        """`x` as `dtype` in NHWC; with limits as int8 of that range."""
        scale = 1.0
        if limits:
            dtype, scale = _int8(limits)
        descriptor = Descriptor(x.dims, dtype)
        if x.scale == scale and x.memory.descriptor == descriptor:
            return x
        result = self._tensor(x.dims, dtype, descriptor, scale)
        scales = {onednn.SRC: x.scale, onednn.DST: scale}
        self._call(
            partial(onednn.reorder, x.memory.descriptor, descriptor),
            {onednn.SRC: x, onednn.DST: result},
            {argument: factor for argument, factor in scales.items() if factor != 1},
        )
        return result

    def _copied(self, x: _Tensor) -> _Tensor:
        result = self._tensor(x.dims, x.dtype, x.memory.descriptor, x.scale)
        kernel = partial(onednn.reorder, x.memory.descriptor, x.memory.descriptor)
        self._call(kernel, {onednn.SRC: x, onednn.DST: result})
        return result

    # Operators: each takes the step and its input tensors and returns its result.

    def _convolution(self, step: Step, x: _Tensor) -> _Tensor:
        kernel_size, stride, padding = (
            _pair(step.attrs[name]) for name in ("kernel", "stride", "pad")
        )
        groups = int(step.attrs["num_group"])
        weight, scales = self._weight(step)
        is_int8 = bool(scales)
        if is_int8:
            dtype, scale = _int8(step.limits)
            scales |= {onednn.SRC: x.scale, onednn.DST: scale}
        else:
            x = self._converted(x, F32 if x.dtype in (S8, U8) else x.dtype)
            dtype, scale = x.dtype, 1.0
        size = (
            (length + 2 * p - k) // s + 1
            for length, p, k, s in zip(x.dims[2:], padding, kernel_size, stride)
        )
        dims = (x.dims[0], len(weight), *size)
        post_ops = []
        if step.added:
            added = self._addend(step, dtype, is_int8)
            post_ops.append(PostOp("sum", alpha=added.scale, dtype=added.dtype))
            result = self._view(
                *(added.storage, dims, dtype, Descriptor(dims, dtype), scale)
            )
        else:
            result = self._tensor(dims, dtype, scale=scale)
        if step.relu:
            post_ops.append(_RELU)
        layout = onednn.ABCD
        if groups > 1:
            layout = onednn.ABCDE
            weight = weight.reshape(groups, -1, *weight.shape[1:])
        bias = self._bias(step)
        self._call(
            partial(
                onednn.convolution,
                x.memory.descriptor,
                Descriptor(weight.shape, S8 if is_int8 else x.dtype, onednn.ANY),
                bias and bias.descriptor,
                result.memory.descriptor,
                stride=stride,
                padding=padding,
                post_ops=post_ops,
            ),
            {onednn.SRC: x, onednn.DST: result} | ({onednn.BIAS: bias} if bias else {}),
            scales,
            (step.arrays[0], weight, layout),
        )
        if result.dtype == F32 and prod(dims[2:]) > 1:
            # The first one, whose image is float32, also where all others are not.
            result = self._converted(result, self._dtype)
        return self._converted(result, 0, step.limits) if step.limits else result

    def _addend(self, step: Step, dtype: int, is_int8: bool) -> _Tensor:
        """The tensor that a convolution may add its result to, in place."""
        x = self._tensors[step.added]
        if not is_int8:
            converted = self._converted(x, dtype)
        elif x.dtype not in (S8, U8):
            converted = self._converted(x, 0, step.limits)
        else:
            converted = x
        if converted is x and self._readers[step.added] > self._position:
            return self._copied(x)
        return converted

    def _weight(self, step: Step) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """The weight of a step, and its scales where it is int8."""
        name = step.arrays[0]
        weight = self._weights.arrays[name]
        scale = self._weights.arrays.get(name + SCALE)
        return weight, {} if scale is None else {onednn.WEIGHTS: scale}

    def _bias(self, step: Step) -> Optional[Memory]:
        if len(step.arrays) < 2:
            return None
        return self._constant(self._weights.arrays[step.arrays[1]])

    def _fully_connected(self, step: Step, x: _Tensor) -> _Tensor:
        weight, scales = self._weight(step)
        if scales:
            scales[onednn.SRC] = x.scale
        else:
            x = self._converted(x, F32)
        n, channels = x.dims[:2]
        flat = self._view(
            *(x.storage, (n, channels), x.dtype),
            *(Descriptor((n, channels), x.dtype, onednn.AB), x.scale, x.start),
        )
        dims = (n, len(weight))
        result = self._tensor(dims, F32, Descriptor(dims, F32, onednn.AB))
        bias = self._bias(step)
        self._call(
            partial(
                onednn.inner_product,
                flat.memory.descriptor,
                Descriptor(weight.shape, S8 if scales else F32, onednn.ANY),
                bias.descriptor,
                result.memory.descriptor,
            ),
            {onednn.SRC: flat, onednn.BIAS: bias, onednn.DST: result},
            scales,
            (step.arrays[0], weight, onednn.AB),
        )
        return result

    def _pooling(self, step: Step, x: _Tensor) -> _Tensor:
        attrs = step.attrs
        size = x.dims[2:]
        if attrs.get("global_pool") == "True":
            kernel_size, stride, before = size, (1, 1), (0, 0)
            outcome = (1, 1)
        else:
            kernel_size, stride, before = (
                _pair(attrs[name]) for name in ("kernel", "stride", "pad")
            )
            # "full" takes a last, incomplete window, too.
            more = [
                s - 1 if attrs["pooling_convention"] == "full" else 0 for s in stride
            ]
            outcome = tuple(
                (length + 2 * p - k + m) // s + 1
                for length, p, k, m, s in zip(size, before, kernel_size, more, stride)
            )
        after = tuple(
            (o - 1) * s + k - length - p
            for o, s, k, length, p in zip(outcome, stride, kernel_size, size, before)
        )
        algorithm = onednn.AVERAGE_WITH_PADDING
        if attrs["pool_type"] == "max":
            algorithm = onednn.MAX_POOLING
        elif attrs.get("count_include_pad") == "False":
            algorithm = onednn.AVERAGE_WITHOUT_PADDING
        dims = (*x.dims[:2], *outcome)
        result = self._tensor(dims, x.dtype, scale=x.scale)
        kernel = partial(
            onednn.pooling,
            x.memory.descriptor,
            result.memory.descriptor,
            algorithm=algorithm,
            kernel=kernel_size,
            stride=stride,
            padding=(before, after),
        )
        self._call(kernel, {onednn.SRC: x, onednn.DST: result})
        if x.dtype == BF16 and outcome == (1, 1):
            # What follows, attention or the classifier, is in float32: it is cheap.
            return self._converted(result, F32)
        return result

    def _add(self, step: Step, x: _Tensor, y: _Tensor) -> _Tensor:
        return self._binary(step, onednn.ADD, x, y)

    def _multiply(self, step: Step, x: _Tensor, y: _Tensor) -> _Tensor:
        return self._binary(step, onednn.MULTIPLY, x, y)

    def _binary(self, step: Step, algorithm: int, x: _Tensor, y: _Tensor) -> _Tensor:
        dtype, scale = x.dtype, 1.0
        tensors, post_ops = {}, []
        if step.added:
            added = self._tensors[step.added]
            tensors[onednn.operand_of(len(post_ops))] = added
            post_ops.append(PostOp("binary", onednn.ADD, other=added.memory.descriptor))
        if step.relu:
            post_ops.append(_RELU)
        if step.limits:
            dtype, scale = _int8(step.limits)
            post_ops.append(PostOp("eltwise", onednn.LINEAR, alpha=1 / scale))
        result = self._tensor(x.dims, dtype, scale=scale)
        kernel = partial(
            onednn.binary,
            algorithm,
            x.memory.descriptor,
            y.memory.descriptor,
            result.memory.descriptor,
            post_ops,
        )
        self._call(
            kernel, {onednn.SRC: x, onednn.SRC_1: y, onednn.DST: result, **tensors}
        )
        return result

    def _batch_norm(self, step: Step, x: _Tensor) -> _Tensor:
        """That of the image: all others are convolutions by now."""
        gamma, beta, mean, variance = (self._weights.arrays[n] for n in step.arrays)
        factor = 1 / np.sqrt(variance + float(step.attrs["eps"]))
        if step.attrs["fix_gamma"] != "True":
            factor = factor * gamma
        dims = (1, len(factor), 1, 1)
        factor, shift = (
            self._constant(values, ACDB, dims)
            for values in (factor, beta - mean * factor)
        )
        x = self._converted(x, F32)
        result = self._tensor(x.dims, F32)
        kernel = partial(
            onednn.binary,
            onednn.MULTIPLY,
            x.memory.descriptor,
            factor.descriptor,
            result.memory.descriptor,
            [PostOp("binary", onednn.ADD, other=shift.descriptor)],
        )
        tensors = {onednn.SRC: x, onednn.SRC_1: factor, onednn.DST: result}
        self._call(kernel, tensors | {onednn.operand_of(0): shift})
        return result

    def _activation(self, step: Step, x: _Tensor) -> _Tensor:
        algorithm = onednn.SIGMOID if step.op == "sigmoid" else onednn.RELU
        result = self._tensor(x.dims, x.dtype, x.memory.descriptor, x.scale)
        kernel = partial(onednn.eltwise, algorithm, x.memory.descriptor)
        self._call(kernel, {onednn.SRC: x, onednn.DST: result})
        return result

    def _same(self, step: Step, x: _Tensor) -> _Tensor:
        return x

    def _dequantize(self, step: Step, x: _Tensor) -> _Tensor:
        return self._converted(x, F32)

    def _quantize(self, step: Step, x: _Tensor) -> _Tensor:
        return self._converted(x, 0, step.limits)

    def _reshape(self, step: Step, x: _Tensor) -> _Tensor:
        shape = [int(n) for n in step.attrs["shape"].strip("()").split(",")]
        dims = [old if new == 0 else new for new, old in zip(shape, x.dims)]
        dims += shape[len(dims):]  # fmt: skip
        rest = prod(x.dims) // -prod(dims)
        dims = [rest if length == -1 else length for length in dims]
        descriptor = Descriptor(dims, x.dtype, onednn.ABCD)
        return self._view(x.storage, dims, x.dtype, descriptor, x.scale, x.start)

    def _softmax(self, step: Step, x: _Tensor) -> _Tensor:
        """Over axis 2 of (N, K, R, C); in memory R comes first in the result."""
        n, k, r, c = x.dims
        descriptor = Descriptor.strided(x.dims, F32, (k * c, c, n * k * c, 1))
        result = self._tensor(x.dims, F32, descriptor)
        if r != 2:
            kernel = partial(onednn.softmax, x.memory.descriptor, descriptor, 2)
            self._call(kernel, {onednn.SRC: x, onednn.DST: result})
            return result
        # Of two it is a sigmoid, for which oneDNN has a fast kernel: row by row, as it
        # wants its operands without gaps.
        kernel = partial(
            onednn.binary,
            onednn.SUBTRACT,
            *[Descriptor((1, c), F32, onednn.AB)] * 3,
            [PostOp("eltwise", onednn.SIGMOID)],
        )
        for row in range(n * k):
            logits = [self._row(x, 2 * row + part, c) for part in range(2)]
            for part, (this, other) in enumerate((logits, logits[::-1])):
                weights = self._row(result, part * n * k + row, c)
                tensors = {onednn.SRC: this, onednn.SRC_1: other, onednn.DST: weights}
                self._call(kernel, tensors)
        return result

    def _row(self, x: _Tensor, row: int, length: int) -> _Tensor:
        """A part of `x`, counted in parts of `length`."""
        descriptor = Descriptor((1, length), F32, onednn.AB)
        start = x.start + row * length * onednn.SIZES[F32]
        return self._view(x.storage, (1, length), F32, descriptor, start=start)

    def _split(self, step: Step, x: _Tensor) -> list[_Tensor]:
        """Along axis 2 of what `_softmax` gives, whose parts have no gaps."""
        n, k, r, c = x.dims
        dims = (n, k, 1, c)
        return [
            self._view(
                *(x.storage, dims, F32, Descriptor(dims, F32, onednn.ABCD)),
                start=x.start + part * n * k * c * onednn.SIZES[F32],
            )
            for part in range(r)
        ]


_OPERATORS = {
    "Activation": Plan._activation,
    "BatchNorm": Plan._batch_norm,
    "Convolution": Plan._convolution,
    "Flatten": Plan._same,
    "FullyConnected": Plan._fully_connected,
    "Pooling": Plan._pooling,
    "Reshape": Plan._reshape,
    "SliceChannel": Plan._split,
    "_contrib_dequantize": Plan._dequantize,
    "_contrib_quantize_v2": Plan._quantize,
    "broadcast_mul": Plan._multiply,
    "elemwise_add": Plan._add,
    "sigmoid": Plan._activation,
    "softmax": Plan._softmax,
}


def _int8(limits: tuple[float, float]) -> tuple[int, float]:
    """The type and the scale of MXNet's int8 for a range."""
    low, high = limits
    if low >= 0:
        return U8, high / 255
    return S8, max(-low, high) / 127


def _pair(text: str) -> tuple[int, int]:
    height, width = text.strip("()").split(",")
    return int(height), int(width)


def _aligned(nbytes: int) -> np.ndarray:
    """Bytes that start at a line of the cache."""
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes]
