# SPDX-License-Identifier: Apache-2.0
"""MXNet's operators as calls of oneDNN's kernels.

Each function takes the plan, the step and its input tensors, appends the calls that
compute the step, and returns the result.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Optional, Union

import numpy as np

from gluon_resnet.inference import onednn
from gluon_resnet.inference.fold import factor_and_shift
from gluon_resnet.inference.onednn import F32, S8, Descriptor, Memory, PostOp
from gluon_resnet.inference.plan import SCALE, Plan, Tensor, Weights, constant, int8_of
from gluon_resnet.inference.steps import Step, Value

_ACTIVATIONS = {
    "relu": PostOp("eltwise", onednn.RELU),
    "sigmoid": PostOp("eltwise", onednn.SIGMOID),
}
# From so many channels on oneDNN's product is faster in int8 than its depthwise
# convolution (with AVX-512).
_MANY_CHANNELS = 256


def plan_of(
    steps: Iterable[Step],
    weights: Weights,
    shape: tuple[int, int, int, int],
    dtype: int = F32,
) -> Plan:
    """Return the plan that does `steps` for images of a shape (N, C, H, W).

    dtype: of the maps, F32 or BF16; in int8 models of those that are not int8.
    """
    plan = Plan(weights, shape, dtype)
    # The one value that no step computes is the image.
    values: dict[Value, Tensor] = defaultdict(lambda: plan.image)
    for step in steps:
        inputs = [values[value] for value in step.inputs]
        inputs += [values[value] for value in (step.factor, step.added) if value]
        result = _OPERATORS[step.op](plan, step, *inputs)
        results = result if isinstance(result, list) else [result]
        for output, tensor in enumerate(results):
            values[step.output._replace(output=output)] = tensor
    plan.finish(result)
    return plan


def _convolution(
    plan: Plan, step: Step, x: Tensor, added: Optional[Tensor] = None
) -> Tensor:
    kernel_size, stride, padding = (
        step.attrs[name] for name in ("kernel", "stride", "pad")
    )
    groups = step.attrs["num_group"]
    weight, scales = _weight(plan, step)
    is_int8 = bool(scales)
    # Where no step takes the result as int8, it is float32.
    to_int8 = is_int8 and step.limits is not None
    if to_int8 and groups >= _MANY_CHANNELS and weight.shape[1:] == (1, 1, 1):
        return _int8_norm(plan, step, x)
    dtype, scale = int8_of(step.limits) if to_int8 else (F32, 1.0)
    if is_int8:
        scales[onednn.SRC] = x.scale
        if to_int8:
            scales[onednn.DST] = scale
    else:
        x = plan.converted(step.name, x, _float_of(x))
        dtype = x.dtype
    size = (
        (length + 2 * p - k) // s + 1
        for length, p, k, s in zip(x.dims[2:], padding, kernel_size, stride)
    )
    dims = (x.dims[0], len(weight), *size)
    post_ops = []
    if added:
        if not (to_int8 and added.is_int8):
            limits = step.limits if to_int8 else None
            added = plan.converted(step.name, added, dtype, limits)
        if not step.replaces_added:
            added = plan.copied(step.name, added)
        post_ops.append(PostOp("sum", alpha=added.scale, dtype=added.dtype))
        result = plan.view(added, dims, dtype=dtype, scale=scale)
    else:
        result = plan.tensor(dims, dtype, scale=scale)
    if step.activation:
        post_ops.append(_ACTIVATIONS[step.activation])
    layout, shape = onednn.ABCD, weight.shape
    if groups > 1:
        layout, shape = onednn.ABCDE, (groups, shape[0] // groups, *shape[1:])
    bias = _bias(plan, step)
    plan.call(
        step.name,
        partial(
            onednn.convolution,
            x.descriptor,
            Descriptor(shape, S8 if is_int8 else dtype, onednn.ANY),
            bias and bias.descriptor,
            result.descriptor,
            stride=stride,
            padding=padding,
            post_ops=post_ops,
        ),
        {onednn.SRC: x, onednn.DST: result} | ({onednn.BIAS: bias} if bias else {}),
        scales,
        (step.arrays[0], shape, layout),
    )
    if dtype == F32 and prod(dims[2:]) > 1:
        # The first one's image is float32 also where all other maps are not.
        result = plan.converted(step.name, result, plan.dtype)
    if step.limits:
        result = plan.converted(step.name, result, 0, step.limits)
    return result


def _int8_norm(plan: Plan, step: Step, x: Tensor) -> Tensor:
    """A norm, in the graph a depthwise convolution of one pixel, as product and sum."""
    weight, scales = _weight(plan, step)
    shift = plan.weights.arrays[step.arrays[1]]
    dtype, scale = int8_of(step.limits)
    factor = weight.ravel() * scales[onednn.WEIGHTS] * (x.scale / scale)
    result = plan.tensor(x.dims, dtype, scale=scale)
    return _scaled(plan, step, x, factor, shift / scale, result)


def _weight(plan: Plan, step: Step) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The weight of a step, and its scales where it is int8."""
    arrays, name = plan.weights.arrays, step.arrays[0]
    scale = arrays.get(name + SCALE)
    return arrays[name], {} if scale is None else {onednn.WEIGHTS: scale}


def _bias(plan: Plan, step: Step) -> Optional[Memory]:
    if len(step.arrays) < 2:
        return None
    return constant(plan.weights.arrays[step.arrays[1]])


def _fully_connected(plan: Plan, step: Step, x: Tensor) -> Tensor:
    weight, scales = _weight(plan, step)
    if scales:
        scales[onednn.SRC] = x.scale
    else:
        x = plan.converted(step.name, x, plan.dtype)
    flat = plan.view(x, x.dims[:2], layout=onednn.AB)
    dims = (x.dims[0], len(weight))
    result = plan.tensor(dims, F32, Descriptor(dims, F32, onednn.AB))
    bias = _bias(plan, step)
    plan.call(
        step.name,
        partial(
            onednn.inner_product,
            flat.descriptor,
            Descriptor(weight.shape, S8 if scales else plan.dtype, onednn.ANY),
            bias.descriptor,
            result.descriptor,
        ),
        {onednn.SRC: flat, onednn.BIAS: bias, onednn.DST: result},
        scales,
        (step.arrays[0], weight.shape, onednn.AB),
    )
    return result


def _pooling(plan: Plan, step: Step, x: Tensor) -> Tensor:
    attrs = step.attrs
    size = x.dims[2:]
    if attrs.get("global_pool"):
        kernel_size, stride, before, outcome = size, (1, 1), (0, 0), (1, 1)
    else:
        kernel_size, stride, before = (
            attrs[name] for name in ("kernel", "stride", "pad")
        )
        # "full" takes a last, incomplete window, too.
        more = [s - 1 if attrs["pooling_convention"] == "full" else 0 for s in stride]
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
    elif attrs.get("count_include_pad") is False:
        algorithm = onednn.AVERAGE_WITHOUT_PADDING
    result = plan.tensor((*x.dims[:2], *outcome), x.dtype, scale=x.scale)
    kernel = partial(
        onednn.pooling,
        x.descriptor,
        result.descriptor,
        algorithm=algorithm,
        kernel=kernel_size,
        stride=stride,
        padding=(before, after),
    )
    plan.call(step.name, kernel, {onednn.SRC: x, onednn.DST: result})
    return result


def _binary(
    algorithm: int,
    plan: Plan,
    step: Step,
    x: Tensor,
    y: Tensor,
    added: Optional[Tensor] = None,
) -> Tensor:
    x, y = (plan.converted(step.name, tensor, _float_of(tensor)) for tensor in (x, y))
    tensors, post_ops = {}, []
    if added:
        tensors[onednn.operand_of(0)] = added
        post_ops.append(PostOp("binary", onednn.ADD, other=added.descriptor))
    result = _result_like(plan, step, x, post_ops)
    kernel = partial(
        onednn.binary,
        *(algorithm, x.descriptor, y.descriptor, result.descriptor, post_ops),
    )
    tensors |= {onednn.SRC: x, onednn.SRC_1: y, onednn.DST: result}
    plan.call(step.name, kernel, tensors)
    return result


def _difference(
    plan: Plan, step: Step, x: Tensor, y: Tensor, factor: Tensor, added: Tensor
) -> Tensor:
    """(x - y) * factor + added, whose factor (N, C, 1, 1) is for all pixels."""
    # Image by image: for a factor that depends on the image oneDNN has no fast kernel.
    image = (1, *x.dims[1:])
    channels = (1, x.dims[1], 1, 1)
    post_ops = [
        PostOp("binary", onednn.MULTIPLY, other=Descriptor(channels, factor.dtype)),
        PostOp("binary", onednn.ADD, other=Descriptor(image, added.dtype)),
    ]
    result = _result_like(plan, step, x, post_ops)
    kernel = partial(
        onednn.binary,
        onednn.SUBTRACT,
        *(Descriptor(image, tensor.dtype) for tensor in (x, y, result)),
        post_ops,
    )
    for number in range(x.dims[0]):
        tensors = {
            argument: plan.view(tensor, dims, start=number * prod(dims))
            for argument, tensor, dims in (
                (onednn.SRC, x, image),
                (onednn.SRC_1, y, image),
                (onednn.operand_of(0), factor, channels),
                (onednn.operand_of(1), added, image),
                (onednn.DST, result, image),
            )
        }
        plan.call(step.name, kernel, tensors)
    return result


def _result_like(plan: Plan, step: Step, x: Tensor, post_ops: list[PostOp]) -> Tensor:
    """A tensor for a step's result, and the post-ops that the step ends in."""
    dtype, scale = x.dtype, 1.0
    if step.activation:
        post_ops.append(_ACTIVATIONS[step.activation])
    if step.limits:
        dtype, scale = int8_of(step.limits)
        post_ops.append(PostOp("eltwise", onednn.LINEAR, alpha=1 / scale))
    return plan.tensor(x.dims, dtype, scale=scale)


def _batch_norm(plan: Plan, step: Step, x: Tensor) -> Tensor:
    """That of the image: all others are convolutions by now."""
    norm = (plan.weights.arrays[name] for name in step.arrays)
    factor, shift = factor_and_shift(step.attrs, *norm)
    # In NCHW, as it comes: of three channels side by side a register takes no more.
    result = plan.tensor(x.dims, F32, x.descriptor)
    return _scaled(plan, step, x, factor, shift, result, onednn.ABCD)


def _scaled(
    plan: Plan,
    step: Step,
    x: Tensor,
    factor: np.ndarray,
    shift: np.ndarray,
    result: Tensor,
    layout: int = onednn.ACDB,
) -> Tensor:
    """Multiply by a factor and add a shift for each channel, and do the step's ReLU."""
    factor, shift = (
        constant(values, layout, (1, len(values), 1, 1)) for values in (factor, shift)
    )
    post_ops = [PostOp("binary", onednn.ADD, other=shift.descriptor)]
    if step.activation:
        post_ops.append(_ACTIVATIONS[step.activation])
    kernel = partial(
        onednn.binary,
        *(onednn.MULTIPLY, x.descriptor, factor.descriptor),
        *(result.descriptor, post_ops),
    )
    tensors = {onednn.SRC: x, onednn.SRC_1: factor, onednn.DST: result}
    plan.call(step.name, kernel, tensors | {onednn.operand_of(0): shift})
    return result


def _eltwise(algorithm: int, plan: Plan, step: Step, x: Tensor) -> Tensor:
    result = plan.tensor(x.dims, x.dtype, x.descriptor, x.scale)
    kernel = partial(onednn.eltwise, algorithm, x.descriptor)
    plan.call(step.name, kernel, {onednn.SRC: x, onednn.DST: result})
    return result


def _flatten(plan: Plan, step: Step, x: Tensor) -> Tensor:
    """Nothing to do: the pooled map is (N, C, 1, 1)."""
    return x


def _dequantize(plan: Plan, step: Step, x: Tensor) -> Tensor:
    return plan.converted(step.name, x, F32)


def _quantize(plan: Plan, step: Step, x: Tensor) -> Tensor:
    return plan.converted(step.name, x, 0, step.limits)


def _reshape(plan: Plan, step: Step, x: Tensor) -> Tensor:
    """Of tensors without pixels, which are the same in NCHW and NHWC."""
    shape = step.attrs["shape"]
    dims = [old if new == 0 else new for new, old in zip(shape, x.dims)]
    dims += shape[len(dims) :]
    rest = prod(x.dims) // -prod(dims)
    dims = [rest if length == -1 else length for length in dims]
    return plan.view(x, dims, layout=onednn.ABCD)


def _softmax(plan: Plan, step: Step, x: Tensor) -> Tensor:
    """Over axis 2 of (N, K, R, C); in memory R comes first in the result."""
    n, k, _, c = x.dims
    descriptor = Descriptor.strided(x.dims, F32, (k * c, c, n * k * c, 1))
    result = plan.tensor(x.dims, F32, descriptor)
    kernel = partial(onednn.softmax, x.descriptor, descriptor, 2)
    plan.call(step.name, kernel, {onednn.SRC: x, onednn.DST: result})
    return result


def _split(plan: Plan, step: Step, x: Tensor) -> list[Tensor]:
    """Along axis 2 of what `_softmax` gives, whose parts have no gaps."""
    n, k, r, c = x.dims
    length = n * k * c
    return [
        plan.view(x, (n, k, 1, c), layout=onednn.ABCD, start=part * length)
        for part in range(r)
    ]


def _float_of(x: Tensor) -> int:
    """The type to compute in: of pooled maps, those of attention, float32."""
    return F32 if x.is_int8 or prod(x.dims[2:]) == 1 else x.dtype


_OPERATORS: dict[str, Callable[..., Union[Tensor, list[Tensor]]]] = {
    "Activation": partial(_eltwise, onednn.RELU),
    "BatchNorm": _batch_norm,
    "Convolution": _convolution,
    "Flatten": _flatten,
    "FullyConnected": _fully_connected,
    "Pooling": _pooling,
    "Reshape": _reshape,
    "SliceChannel": _split,
    "_contrib_dequantize": _dequantize,
    "_contrib_quantize_v2": _quantize,
    "broadcast_mul": partial(_binary, onednn.MULTIPLY),
    "elemwise_add": partial(_binary, onednn.ADD),
    "elemwise_sub": _difference,
    "sigmoid": partial(_eltwise, onednn.SIGMOID),
    "softmax": _softmax,
}
