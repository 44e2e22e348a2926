# SPDX-License-Identifier: Apache-2.0
"""int8 as pairs of QuantizeLinear and DequantizeLinear, which runtimes fuse.

In the form that ONNX Runtime and OpenVINO turn into integer kernels completely: all
activations uint8, with zero point 0 after a ReLU; weights int8, symmetric by channel;
biases int32; a pair on both inputs of each sum.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Optional, Union

import mxnet as mx
import numpy as np
import onnx
from mxnet.gluon import HybridBlock
from onnx import helper, numpy_helper

from gluon_resnet.errors import InputError
from gluon_resnet.graph import VARIABLE, Graph, Node, Value
from gluon_resnet.inference import split_attention
from gluon_resnet.inference.calibration import Ranges, ranges_of
from gluon_resnet.inference.fold import Arrays
from gluon_resnet.inference.rewrites import FP32_LAYERS, inference_graph
from gluon_resnet.models.traced import IMAGES, layer_of
from gluon_resnet.onnx_export.check import runner
from gluon_resnet.onnx_export.exported import dims_of
from gluon_resnet.onnx_export.names import OwnNames
from gluon_resnet.onnx_export.outputs import LOGITS, PROBABILITIES, Answers
from gluon_resnet.onnx_export.writer import OPSETS, onnx_model

FIRST_OPSET = 13
"""The first that knows scales by channel."""
LEAST_AGREEMENT = 0.8
"""Of images that must get the same class: far less than working int8 reaches."""
_STEPS = 255  # of uint8; int8 weights have 127 on each side
_LARGEST_BIAS = 2.0**30
_ATTENTION = "attention: weights between 0 and 1, and sums of what they weight"


def exported_int8(
    net: HybridBlock,
    batches: Callable[[], Iterable[np.ndarray]],
    *,
    calibration: str = "naive",
    opset: int = OPSETS[-1],
    size: Optional[int] = None,
    outputs: Sequence[str] = (LOGITS,),
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a network in int8, and which of its operators stay float, with reasons.

    batches: gives an iterator over float32 images (N, 3, H, W), anew at each call.
    calibration: "naive" or "entropy", as `quantize` describes them. The other options
    are those of `exported`; the outputs are float. Raises InputError as it does, for an
    opset without scales by channel, and where a value is not finite.
    """
    if opset < FIRST_OPSET:
        raise InputError(
            f"opset {opset} has no int8 by channel; choose from {FIRST_OPSET} to "
            f"{OPSETS[-1]}"
        )
    graph, arrays = inference_graph(Answers(net, outputs))
    floats = _float_operators(graph)
    names = OwnNames(net.spec.name)
    quantized = _quantized_values(graph, floats)
    same = _same_steps(graph, floats)
    ranges = _ranges(graph, arrays, quantized, batches, calibration)
    values = dict(zip(graph.end.inputs, outputs))
    scales = {
        _name(value, values, names): _scale(*ranges[_origin(value, same)])
        for value in quantized
    }
    images, dims = dims_of(graph, net, outputs, size)
    model = onnx_model(
        graph, arrays, opset=opset, images=images, outputs=dims, names=names
    )
    kept = {names.node(node): reason for node, reason in floats.items()}
    _put_pairs(model.graph, scales, kept)
    return model, kept


def agreement(
    net: HybridBlock, model: onnx.ModelProto, batches: Iterable[np.ndarray]
) -> tuple[int, int]:
    """Return on how many images the file's first class is the network's, and of all.

    Raises InputError where they are fewer than `LEAST_AGREEMENT`, and for a file that
    answers neither with logits nor with probabilities.
    """
    outputs = [output.name for output in model.graph.output]
    by_class = [name for name in (LOGITS, PROBABILITIES) if name in outputs]
    if not by_class:
        raise InputError(
            f"the outputs are {', '.join(outputs)}; int8 is proven by its classes: add "
            f"{LOGITS} or {PROBABILITIES}"
        )
    run, same, count = runner(model, by_class[0]), 0, 0
    for images in batches:
        found, expected = run(images), net(mx.nd.array(images)).asnumpy()
        same += int((found.argmax(1) == expected.argmax(1)).sum())
        count += len(images)
    if same < LEAST_AGREEMENT * count:
        raise InputError(
            f"in int8 {net.spec.name} answers with another class than in float on "
            f"{count - same} of {count} images; give other images, calibration "
            "entropy, or leave it float"
        )
    return same, count


def _float_operators(graph: Graph) -> dict[Node, str]:
    """Return the operators that stay float, in order, and why."""
    floats = {}
    poolings = split_attention.poolings(graph)
    for node in graph.nodes:
        if node.op == VARIABLE:
            continue
        arrays = (value.node.name for value in node.inputs)
        reasons = [
            reason
            for array in arrays
            for pattern, reason in FP32_LAYERS.items()
            if fnmatch(layer_of(array), pattern)
        ]
        if reasons:
            floats[node] = reasons[0]
        elif node.op == "softmax" and node.input().op == "FullyConnected":
            floats[node] = "probabilities of the logits, which are float"
        elif node in poolings or not _has_kernel(node):
            floats[node] = _ATTENTION
    return floats


def _has_kernel(node: Node) -> bool:
    """Whether an operator runs on integers, or leaves a float conversion nothing."""
    if node.op == "elemwise_add":  # of a block; an attention sums up other things
        return any(value.node.op == "Convolution" for value in node.inputs)
    if node.op == "Convolution":
        return node.input(1).op == VARIABLE  # not the activation map's
    return node.op in ("Activation", "Pooling", "FullyConnected", "Flatten")


def _quantized_values(graph: Graph, floats: Mapping[Node, str]) -> list[Value]:
    """Return the values between integer operators, in order.

    These are what they take, and what convolutions give, after the ReLU where there
    is one: without it they would give floats.
    """
    users = graph.users()
    found: dict[Value, None] = {}
    for node in graph.nodes:
        if node.op in (VARIABLE, "Activation") or node in floats:
            continue
        found |= dict.fromkeys(node.inputs[: 2 if node.op == "elemwise_add" else 1])
        if node.op == "Convolution":
            value = Value(node)
            (first, *others) = users[value]
            is_relu = first.op == "Activation" and not others
            found[Value(first) if is_relu else value] = None
    return list(found)


def _same_steps(graph: Graph, floats: Mapping[Node, str]) -> dict[Value, Value]:
    """Map what passes on its input in the same steps to that input."""
    return {
        Value(node): node.inputs[0]
        for node in graph.nodes
        if node not in floats
        and (node.op == "Flatten" or node.attributes.get("pool_type") == "max")
    }


def _origin(value: Value, same: Mapping[Value, Value]) -> Value:
    while value in same:
        value = same[value]
    return value


def _ranges(
    graph: Graph,
    arrays: Arrays,
    values: Iterable[Value],
    batches: Callable[[], Iterable[np.ndarray]],
    calibration: str,
) -> dict[Value, tuple[float, float]]:
    outputs = {value: _mxnet_name(value) for value in values}
    ranges: Ranges = ranges_of(
        graph.symbol(), arrays, set(outputs.values()), batches, calibration
    )
    return {value: ranges[name] for value, name in outputs.items()}


def _mxnet_name(value: Value) -> str:
    name, count = value.node.name, value.node.attributes.get("num_outputs", 1)
    if value.node.op == VARIABLE:
        return name
    return f"{name}_output{value.output if count > 1 else ''}"


def _name(value: Value, outputs: Mapping[Value, str], names: OwnNames) -> str:
    if value.node.name == IMAGES:
        return IMAGES
    end = f"_{value.output}" if value.output else ""
    return outputs.get(value) or names.node(value.node) + end


def _scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point of uint8 for a range, which 0 is in."""
    scale = np.float32((high - low) / _STEPS)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, _STEPS))


def _put_pairs(
    graph: onnx.GraphProto,
    scales: Mapping[str, tuple[np.float32, np.uint8]],
    floats: Mapping[str, str],
) -> None:
    """Quantize the values of `scales`, and the weights of what takes them."""
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        arrays[name] = array
        return name

    def pair(value: str) -> None:
        scale, zero = scales[value]
        parameters = [
            constant(f"{value}_scale", np.asarray(scale)),
            constant(f"{value}_zero_point", np.asarray(zero)),
        ]
        steps, back = f"{value}_quantized", _back(value)
        nodes.append(
            helper.make_node("QuantizeLinear", [value, *parameters], [steps], steps)
        )
        nodes.append(
            helper.make_node("DequantizeLinear", [steps, *parameters], [back], back)
        )

    def dequantized(name: str, steps: np.ndarray, scale: np.ndarray) -> str:
        del arrays[name]
        inputs = [
            constant(f"{name}_quantized", steps),
            constant(f"{name}_scale", scale.astype(np.float32)),
            constant(f"{name}_zero_point", np.zeros(len(scale), steps.dtype)),
        ]
        nodes.append(
            helper.make_node(
                "DequantizeLinear", inputs, [_back(name)], _back(name), axis=0
            )
        )
        return _back(name)

    for value in graph.input:
        if value.name in scales:
            pair(value.name)
    for node in graph.node:
        source = node.input[0]
        if node.op_type in ("Conv", "Gemm") and node.name not in floats:
            weight, *bias = (arrays[name] for name in node.input[1:])
            scale = _weight_scale(weight, sum(bias), scales[source][0])
            steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
            node.input[1] = dequantized(node.input[1], steps.astype(np.int8), scale)
            if bias:
                scale = scale * np.float64(scales[source][0])
                steps = np.rint(bias[0] / scale).astype(np.int32)
                node.input[2] = dequantized(node.input[2], steps, scale)
        for number, value in enumerate(node.input):
            if value in scales:
                node.input[number] = _back(value)
        nodes.append(node)
        for value in node.output:
            if value in scales:
                pair(value)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items()
    )


def _weight_scale(
    weight: np.ndarray, bias: Union[np.ndarray, int], input_scale: np.float32
) -> np.ndarray:
    """Return the scale of each channel: its largest weight is 127, its bias an int32.

    A channel of tiny weights takes larger steps, or its bias would have too many.
    """
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim))).astype(np.float64)
    of_bias = np.abs(bias) / (np.float64(input_scale) * _LARGEST_BIAS)
    scale = np.maximum(largest / 127, of_bias)
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _back(name: str) -> str:
    return f"{name}_dequantized"
