# SPDX-License-Identifier: Apache-2.0
"""MXNet's operators as calls of kernels, oneDNN's or, where faster, Winograd's.

Each function takes the plan, the step and its input tensors, appends the calls that
compute the step, and returns the result.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Optional, Union

import numpy as np

from gluon_resnet.graph import VARIABLE, Value
from gluon_resnet.inference import onednn, split_attention
from gluon_resnet.inference.fold import factor_and_shift
from gluon_resnet.inference.onednn import (
    Binary,
    Descriptor,
    DType,
    Eltwise,
    Layout,
    Memory,
    PostOp,
    Sum,
)
from gluon_resnet.inference.packing import Weight, Weights
from gluon_resnet.inference.plan import (
    Operand,
    Plan,
    PlanBuilder,
    PlanError,
    Scale,
    Tensor,
    constant,
    int8_of,
)
from gluon_resnet.inference.steps import Step
from gluon_resnet.inference.winograd.choice import Layer, kernel_for, method_here

if TYPE_CHECKING:
    from gluon_resnet.inference.winograd import kernel as winograd

log = logging.getLogger(__name__)

_ACTIVATIONS = {"relu": Eltwise(onednn.RELU), "sigmoid": Eltwise(onednn.SIGMOID)}
# From so many channels on oneDNN's product is faster in int8 than its depthwise
# convolution (with AVX-512).
_MANY_CHANNELS = 256


def plan_of(
    steps: Iterable[Step],
    head: Value,
    weights: Weights,
    shape: tuple[int, ...],
    dtype: DType = DType.F32,
) -> Plan:
    """Return the plan that does `steps` for images of a shape (N, C, H, W).

    head: the logits, or the pooled vector; an output of one of the steps.
    dtype: of the maps, F32 or BF16; in int8 models of those that are not int8.
    Raises PlanError for a shape that the steps do not take.
    """
    steps = list(steps)
    try:
        builder, logits = described(steps, head, weights, shape, dtype)
        return builder.finish(logits)
    except MemoryError as error:
        log.info(
            "no memory for transformed weights (%s): oneDNN's direct kernels", error
        )
        builder, logits = described(
            steps, head, weights, shape, dtype, transforms=False
        )
        return builder.finish(logits)


def described(
    steps: Iterable[Step],
    head: Value,
    weights: Weights,
    shape: tuple[int, ...],
    dtype: DType = DType.F32,
    *,
    transforms: bool = True,
) -> tuple[PlanBuilder, Tensor]:
    """Return what `plan_of` finishes, and the logits: all is checked, nothing made.

    transforms: see `PlanBuilder`.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise PlanError("there are no pixels")
    plan = PlanBuilder(weights, shape, dtype, transforms=transforms)
    values: dict[Value, Tensor] = {}

    def tensor(value: Value) -> Tensor:
        # The one variable that is none of the arrays is the image.
        return plan.image if value.node.op == VARIABLE else values[value]

    for step in steps:
        inputs = [tensor(value) for value in step.inputs]
        inputs += [tensor(value) for value in (step.factor, step.added) if value]
        result = _OPERATORS[step.op](plan, step, *inputs)
        results = result if isinstance(result, list) else [result]
        for output, found in enumerate(results):
            values[step.output._replace(output=output)] = found
    if head.node.op == "Flatten":
        return plan, _vector(plan, head.node.name, tensor(head))
    return plan, tensor(head)


def _convolution(
    plan: PlanBuilder, step: Step, x: Tensor, added: Optional[Tensor] = None
) -> Tensor:
    scales = plan.weights.scale(step.arrays[0])
    if scales is not None:
        return _int8_convolution(plan, step, x, added, scales)
    x = _as_float(plan, step, x)
    dims = _convolved_dims(plan, step, x)
    weight = _kernel_weight(plan, step, x.dtype)
    # The first one's image is float32 also where all other maps are not.
    wanted = x.dtype if x.is_pooled else plan.dtype
    images, channels, height, width = x.dims
    layer = Layer(
        *(images, height, width, channels, dims[1]),
        source=x.dtype,
        destination=x.dtype if added else wanted,
        adds=bool(added),
        relu=bool(step.activation),
    )
    winograd = _winograd_kernel(plan, step, weight, layer)
    post_ops: list[PostOp] = []
    if added:
        result = plan.converted(step.name, added, x.dtype)
        result = _with_summand(plan, step, result, dims, post_ops)
    else:
        dtype = layer.destination if winograd else x.dtype
        result = plan.tensor(dims, dtype, is_pooled=x.is_pooled)
    if winograd:
        if x.storage is None:  # the image, which each run has elsewhere
            x = plan.copied(step.name, x)
        tensors = _tensors(plan, step, x, result)
        plan.call(step.name, lambda: winograd, tensors, weight=weight)
    else:
        _append_convolution(plan, step, x, result, weight, post_ops)
    result = plan.converted(step.name, result, wanted)
    if step.limits:
        result = plan.quantized(step.name, result, step.limits)
    return result


def _int8_convolution(
    plan: PlanBuilder,
    step: Step,
    x: Tensor,
    added: Optional[Tensor],
    weight_scales: np.ndarray,
) -> Tensor:
    _check_int8(step, x)
    dims = _convolved_dims(plan, step, x)
    shape = plan.weights.shape(step.arrays[0])
    is_norm = shape == (x.dims[1], 1, 1, 1) and dims == x.dims
    if is_norm and dims[1] >= _MANY_CHANNELS and step.limits and not added:
        return _int8_norm(plan, step, x, step.limits)
    scales: dict[int, Scale] = {onednn.WEIGHTS: weight_scales, onednn.SRC: x.scale}
    if step.limits:
        dtype, scale = int8_of(step.limits)
        scales[onednn.DST] = scale
    else:  # no step takes the result as int8
        dtype, scale = DType.F32, 1.0
    post_ops: list[PostOp] = []
    if added:
        if not step.limits:
            added = plan.converted(step.name, added, dtype)
        elif not added.is_int8:
            added = plan.quantized(step.name, added, step.limits)
        added = _with_summand(plan, step, added, dims, post_ops)
        result = plan.in_place_of(added, dtype, scale)
    else:
        result = plan.tensor(dims, dtype, scale=scale, is_pooled=x.is_pooled)
    weight = _kernel_weight(plan, step, DType.S8)
    _append_convolution(plan, step, x, result, weight, post_ops, scales)
    return result


def _convolved_dims(plan: PlanBuilder, step: Step, x: Tensor) -> tuple[int, ...]:
    """Return the dimensions of a convolution's result."""
    out_channels, in_channels, *kernel = plan.weights.shape(step.arrays[0])
    in_channels *= step.attrs["num_group"]
    if in_channels != x.dims[1]:
        raise PlanError(f"{step.name} takes {in_channels} channels, not {x.dims[1]}")
    sides = zip(x.dims[2:], step.attrs["pad"], kernel, step.attrs["stride"])
    size = ((length + 2 * p - k) // s + 1 for length, p, k, s in sides)
    return (x.dims[0], out_channels, *size)


def _with_summand(
    plan: PlanBuilder,
    step: Step,
    added: Tensor,
    dims: tuple[int, ...],
    post_ops: list[PostOp],
) -> Tensor:
    """Append the sum to `post_ops`, and return the summand for the result to replace.

    dims: of the result.
    """
    _check_dims(step, added, dims)
    post_ops.append(Sum(added.scale, added.dtype))
    return added if step.replaces_added else plan.copied(step.name, added)


def _kernel_weight(plan: PlanBuilder, step: Step, dtype: DType) -> Weight:
    name, groups = step.arrays[0], step.attrs["num_group"]
    shape = plan.weights.shape(name)
    if groups > 1:
        shape = (groups, shape[0] // groups, *shape[1:])
    return Weight(name, shape, dtype)


def _winograd_kernel(
    plan: PlanBuilder, step: Step, weight: Weight, layer: Layer
) -> "Optional[winograd.Kernel]":
    """Return a convolution's kernel by Winograd, None where oneDNN's is faster."""
    attrs = step.attrs
    is_suitable = (
        weight.dims[2:] == (3, 3)  # no groups, which would come first
        and {*attrs["stride"], *attrs["pad"]} == {1}
        and step.activation in (None, "relu")
    )
    if not is_suitable:
        return None
    methods = plan.weights.methods
    if weight.name not in methods:
        methods[weight.name] = method_here(layer)
    method = methods[weight.name]
    if method is None or not (plan.transforms or plan.weights.is_transformed(weight)):
        return None
    return kernel_for(layer, method)


def _append_convolution(
    plan: PlanBuilder,
    step: Step,
    x: Tensor,
    result: Tensor,
    weight: Weight,
    post_ops: list[PostOp],
    scales: Mapping[int, Scale] = {},
) -> None:
    """Append oneDNN's convolution, and the step's activation."""
    if step.activation:
        post_ops.append(_ACTIVATIONS[step.activation])
    tensors = _tensors(plan, step, x, result)
    bias = tensors.get(onednn.BIAS)
    kernel = partial(
        onednn.convolution,
        x.descriptor,
        weight.descriptor,
        bias.descriptor if bias else None,
        result.descriptor,
        stride=step.attrs["stride"],
        padding=step.attrs["pad"],
        post_ops=post_ops,
    )
    plan.call(step.name, kernel, tensors, scales, weight)


def _tensors(
    plan: PlanBuilder, step: Step, x: Tensor, result: Tensor
) -> dict[int, Operand]:
    """The arguments of a layer's kernel but for its weight."""
    tensors: dict[int, Operand] = {onednn.SRC: x, onednn.DST: result}
    if bias := _bias(plan, step):
        tensors[onednn.BIAS] = bias
    return tensors


def _int8_norm(
    plan: PlanBuilder, step: Step, x: Tensor, limits: tuple[float, float]
) -> Tensor:
    """A norm, in the graph a depthwise convolution of one pixel, as product and sum."""
    weight, bias = step.arrays
    dtype, scale = int8_of(limits)
    factor = plan.weights.values(weight).ravel() * plan.weights.scale(weight)
    shift = plan.weights.values(bias) / scale
    result = plan.tensor(x.dims, dtype, scale=scale, is_pooled=x.is_pooled)
    return _scaled(plan, step, x, factor * (x.scale / scale), shift, result)


def _fully_connected(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    name = step.arrays[0]
    shape, scale = plan.weights.shape(name), plan.weights.scale(name)
    if (*x.dims[1:2], prod(x.dims[2:])) != (shape[1], 1):
        raise PlanError(f"{step.name} takes {shape[1]} values, not {x.dims[1:]}")
    scales: dict[int, Scale] = {}
    if scale is not None:
        _check_int8(step, x)
        scales = {onednn.WEIGHTS: scale, onednn.SRC: x.scale}
    else:
        x = plan.converted(step.name, x, plan.dtype)
    weight = Weight(name, shape, DType.S8 if scales else plan.dtype)
    flat = plan.view(x, x.dims[:2], layout=Layout.AB)
    dims = (x.dims[0], shape[0])
    result = plan.tensor(dims, DType.F32, Descriptor(dims, DType.F32, Layout.AB))
    tensors = _tensors(plan, step, flat, result)
    bias = tensors.get(onednn.BIAS)
    kernel = partial(
        onednn.inner_product,
        flat.descriptor,
        weight.descriptor,
        bias.descriptor if bias else None,
        result.descriptor,
    )
    plan.call(step.name, kernel, tensors, scales, weight)
    return result


def _bias(plan: PlanBuilder, step: Step) -> Optional[Memory]:
    if len(step.arrays) < 2:
        return None
    return constant(plan.weights.values(step.arrays[1]))


def _pooling(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    attrs = step.attrs
    size = x.dims[2:]
    is_global = bool(attrs.get("global_pool"))
    if is_global:
        kernel_size, stride, before, outcome = size, (1, 1), (0, 0), (1, 1)
    else:
        kernel_size, stride, before = (
            attrs[name] for name in ("kernel", "stride", "pad")
        )
        # "full" takes a last, incomplete window, too.
        is_full = attrs.get("pooling_convention") == "full"
        more = [s - 1 if is_full else 0 for s in stride]
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
    result = plan.tensor(
        (*x.dims[:2], *outcome), x.dtype, scale=x.scale, is_pooled=is_global
    )
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
    plan: PlanBuilder,
    step: Step,
    x: Tensor,
    y: Tensor,
    added: Optional[Tensor] = None,
) -> Tensor:
    x, y = (_as_float(plan, step, tensor) for tensor in (x, y))
    _check_dims(step, y, x.dims, is_broadcast=True)
    tensors: dict[int, Operand] = {}
    post_ops: list[PostOp] = []
    if added:
        added = _as_float(plan, step, added)
        _check_dims(step, added, x.dims)
        tensors[onednn.operand_of(0)] = added
        post_ops.append(Binary(onednn.ADD, added.descriptor))
    result = _result_like(plan, step, x, post_ops)
    kernel = partial(
        onednn.binary,
        algorithm,
        x.descriptor,
        y.descriptor,
        result.descriptor,
        post_ops,
    )
    tensors.update({onednn.SRC: x, onednn.SRC_1: y, onednn.DST: result})
    plan.call(step.name, kernel, tensors)
    return result


def _difference(
    plan: PlanBuilder, step: Step, x: Tensor, y: Tensor, factor: Tensor, added: Tensor
) -> Tensor:
    """(x - y) * factor + added, whose factor (N, C, 1, 1) is for all pixels."""
    x, y, factor, added = (_as_float(plan, step, t) for t in (x, y, factor, added))
    # Image by image: for a factor that depends on the image oneDNN has no fast kernel.
    image = (1, *x.dims[1:])
    channels = (1, x.dims[1], 1, 1)
    for tensor in (y, added):
        _check_dims(step, tensor, x.dims)
    _check_dims(step, factor, (x.dims[0], *channels[1:]))
    post_ops: list[PostOp] = [
        Binary(onednn.MULTIPLY, Descriptor(channels, factor.dtype)),
        Binary(onednn.ADD, Descriptor(image, added.dtype)),
    ]
    result = _result_like(plan, step, x, post_ops)
    kernel = partial(
        onednn.binary,
        onednn.SUBTRACT,
        Descriptor(image, x.dtype),
        Descriptor(image, y.dtype),
        Descriptor(image, result.dtype),
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


def _result_like(
    plan: PlanBuilder, step: Step, x: Tensor, post_ops: list[PostOp]
) -> Tensor:
    """A tensor for a step's result, and the post-ops that the step ends in."""
    dtype, scale = x.dtype, 1.0
    if step.activation:
        post_ops.append(_ACTIVATIONS[step.activation])
    if step.limits:
        dtype, scale = int8_of(step.limits)
        post_ops.append(Eltwise(onednn.LINEAR, alpha=1 / scale))
    return plan.tensor(x.dims, dtype, scale=scale, is_pooled=x.is_pooled)


def _batch_norm(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    """That of the image: all others are convolutions by now."""
    norm = (plan.weights.values(name) for name in step.arrays)
    factor, shift = factor_and_shift(step.attrs, *norm)
    # In NCHW, as it comes: of three channels side by side a register takes no more.
    result = plan.tensor(x.dims, DType.F32, x.descriptor)
    return _scaled(plan, step, x, factor, shift, result, Layout.ABCD)


def _scaled(
    plan: PlanBuilder,
    step: Step,
    x: Tensor,
    factor: np.ndarray,
    shift: np.ndarray,
    result: Tensor,
    layout: Layout = Layout.ACDB,
) -> Tensor:
    """Multiply by a factor and add a shift for each channel, and do the step's ReLU."""
    channels = (1, x.dims[1], 1, 1)
    factors, shifts = (constant(v, layout, channels) for v in (factor, shift))
    post_ops: list[PostOp] = [Binary(onednn.ADD, shifts.descriptor)]
    if step.activation:
        post_ops.append(_ACTIVATIONS[step.activation])
    kernel = partial(
        onednn.binary,
        onednn.MULTIPLY,
        x.descriptor,
        factors.descriptor,
        result.descriptor,
        post_ops,
    )
    tensors: dict[int, Operand] = {
        onednn.SRC: x,
        onednn.SRC_1: factors,
        onednn.operand_of(0): shifts,
        onednn.DST: result,
    }
    plan.call(step.name, kernel, tensors)
    return result


def _eltwise(algorithm: int, plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    if algorithm != onednn.RELU:  # which needs no scale
        x = _as_float(plan, step, x)
    result = plan.tensor(
        x.dims, x.dtype, x.descriptor, scale=x.scale, is_pooled=x.is_pooled
    )
    kernel = partial(onednn.eltwise, algorithm, x.descriptor)
    plan.call(step.name, kernel, {onednn.SRC: x, onednn.DST: result})
    return result


def _flatten(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    """Nothing to do: the pooled map is (N, C, 1, 1)."""
    return x


def _vector(plan: PlanBuilder, layer: str, x: Tensor) -> Tensor:
    """A pooled map as the float32 vector (N, C) that a net without classifier gives."""
    dims = x.dims[:2]
    flat = plan.view(x, dims, layout=Layout.AB)
    result = plan.tensor(dims, DType.F32, Descriptor(dims, DType.F32, Layout.AB))
    kernel = partial(onednn.reorder, flat.descriptor, result.descriptor)
    plan.call(layer, kernel, {onednn.SRC: flat, onednn.DST: result})
    return result


def _dequantize(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    return plan.converted(step.name, x, DType.F32)


def _quantize(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    if step.limits is None:
        raise PlanError(f"{step.name} has no range")
    return plan.quantized(step.name, x, step.limits)


def _as_float(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    """Return `x` in a type to compute in: of pooled maps, for attention, float32.

    The type may depend on the layer, but not on the size of the images: the same image
    would have other logits, and a weight two types.
    """
    is_float32 = x.is_int8 or x.is_pooled
    return plan.converted(step.name, x, DType.F32 if is_float32 else x.dtype)


def _check_int8(step: Step, x: Tensor) -> None:
    if not x.is_int8:
        raise PlanError(f"{step.name} has int8 weights, and what it takes is not int8")


def _check_dims(
    step: Step, x: Tensor, dims: Sequence[int], *, is_broadcast: bool = False
) -> None:
    """Raise PlanError unless an operand is as large as the result, or one pixel."""
    one_pixel = (*dims[:2], *[1] * len(dims[2:]))
    if x.dims != tuple(dims) and not (is_broadcast and x.dims == one_pixel):
        raise PlanError(f"{step.name} combines {tuple(dims)} with {x.dims}")


_OPERATORS: dict[str, Callable[..., Union[Tensor, list[Tensor]]]] = {
    "Activation": partial(_eltwise, onednn.RELU),
    "BatchNorm": _batch_norm,
    "Convolution": _convolution,
    "Flatten": _flatten,
    "FullyConnected": _fully_connected,
    "Pooling": _pooling,
    "_contrib_dequantize": _dequantize,
    "_contrib_quantize_v2": _quantize,
    "broadcast_mul": partial(_binary, onednn.MULTIPLY),
    "elemwise_add": partial(_binary, onednn.ADD),
    "elemwise_sub": _difference,
    "sigmoid": partial(_eltwise, onednn.SIGMOID),
    **split_attention.OPERATORS,
}
