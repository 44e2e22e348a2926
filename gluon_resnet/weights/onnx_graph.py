# SPDX-License-Identifier: Apache-2.0
"""Weights of an ONNX file by their place in its graph.

Exporters of PyTorch fold a BN layer into the convolution before it and name what comes
out by number (`onnx::Conv_193`) or by the convolution's old name. What stays is the
graph. Both networks are read as layers with weights, each with the layers that its
input comes from; a layer of ours is the one of the file that has the same shape and
comes from the same layers. A folded BN layer of ours is set to change nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.graph import VARIABLE, Node, Value
from gluon_resnet.models.traced import IMAGES, layer_of, traced
from gluon_resnet.weights.arrays import float32, shown
from gluon_resnet.weights.onnx_format import INPUT, Attribute, Operator

_EPSILON = 1e-5  # of ONNX's BatchNormalization where it is not told

# Operators without weights that give each other's place to what follows.
_PLAIN = {
    *("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Add"),
    *("Sum", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
    *("Cast", "Constant", "ConstantOfShape", "Shape", "Gather", "Concat", "Slice"),
    *("Expand", "Pad"),
}
_ATTENTION = {"Mul", "Split", "ReduceSum", "Sigmoid", "Softmax", "Transpose"}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div"}
_OF_CONSTANTS = {"Identity", "Cast", "Transpose"}
_QUANTIZED = ("QLinear", "Quantize", "Dequantize", "ConvInteger", "MatMulInteger")


_MOST_OUTPUTS = 4  # of an operator of ours: a split of four
_IMAGE = -1  # among the sources of a layer


class _Array(NamedTuple):
    name: str
    values: np.ndarray


@dataclass(eq=False)
class _Layer:
    """A convolution, a BN layer that follows none, or a dense layer."""

    kind: str
    weight: _Array
    bias: Optional[_Array]
    sources: frozenset[int]
    """The layers that its input comes from; `_IMAGE` is the image."""
    settings: tuple
    """What two layers in the same place agree in, beside their sources."""
    norm: Optional[tuple[_Array, ...]] = None
    """Gamma, beta, mean and variance of its BN layer."""
    epsilon: float = _EPSILON


class Found(NamedTuple):
    """Weights by the names of our parameters."""

    tensors: dict[str, np.ndarray]
    keys: dict[str, str]
    """The file's name of each."""
    epsilons: dict[str, float]
    """Of BN layers by the name of their running variance."""


def by_place(
    net: HybridBlock,
    operators: Iterable[Operator],
    tensors: Mapping[str, np.ndarray],
) -> Found:
    """Find the weights of `net`, whose values and sizes do not matter, in a graph.

    Raises InputError where the graph is not the network's, naming the first difference.
    """
    parameters = net._collect_params_with_prefix().items()
    shapes = {n: np.broadcast_to(np.float32(0), p.shape) for n, p in parameters}
    ours = _Graph(_operators(net), shapes)
    theirs = _Graph(operators, tensors)
    _check(theirs, allowed=_PLAIN | _ATTENTION if _has_attention(net) else _PLAIN)
    found = Found({}, {}, {})
    for our_layer, their_layer in _matched(net.spec.name, ours, theirs):
        _take(our_layer, their_layer, found)
    return found


def dense_layers(
    operators: Iterable[Operator], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the weights (outputs, inputs) of the dense layers in a graph, by name."""
    layers = _Graph(operators, tensors).layers
    return {
        layer.weight.name: layer.weight.values
        for layer in layers
        if layer.kind == "dense"
    }


def epsilons(operators: Iterable[Operator]) -> dict[str, float]:
    """Return the epsilon of each BN layer by the name of its running variance."""
    return {
        operator.inputs[4]: float(operator.attributes.get("epsilon", _EPSILON))
        for operator in operators
        if operator.type == "BatchNormalization" and len(operator.inputs) > 4
    }


class _Graph:
    """The layers with weights of a graph, each after its sources."""

    def __init__(
        self, operators: Iterable[Operator], tensors: Mapping[str, np.ndarray]
    ):
        operators = list(operators)
        self.layers: list[_Layer] = []
        self.others: list[Operator] = []
        """Operators without weights of their own."""
        self.with_constants: list[Operator] = []
        """Those of them that compute with a constant."""
        self._constants = {name: _Array(name, t) for name, t in tensors.items()}
        self._reshaped: dict[str, str] = {}
        """The constant that a value is another shape of."""
        self._sources: dict[str, frozenset[int]] = {}
        self._made_by: dict[str, int] = {}
        """Layers by the value that they give."""
        self._users = Counter(name for each in operators for name in each.inputs)
        for operator in operators:
            self._add(operator)

    def _add(self, operator: Operator) -> None:
        arrays = [self._constants.get(name) for name in operator.inputs]
        if operator.type == INPUT:
            self._sources[operator.outputs[0]] = frozenset({_IMAGE})
        elif operator.type in _OF_CONSTANTS and arrays[0]:
            self._constants[operator.outputs[0]] = _same(operator, arrays[0])
        elif operator.type == "Conv" and arrays[1]:
            self._add_conv(operator, arrays[1], *arrays[2:3])
        elif operator.type in ("Gemm", "MatMul") and arrays[1]:
            self._add_dense(operator, arrays[1], *arrays[2:3])
        elif operator.type == "BatchNormalization" and all(arrays[1:5]):
            self._add_norm(operator, tuple(filter(None, arrays[1:5])))
        elif not self._is_bias(operator, arrays):
            self._pass_on(operator, arrays)

    def _add_conv(
        self, operator: Operator, weight: _Array, bias: Optional[_Array] = None
    ) -> None:
        attributes, shape = operator.attributes, weight.values.shape
        settings = (
            shape[0],
            shape[2:],
            attributes.get("strides", (1, 1)),
            attributes.get("pads", (0, 0, 0, 0)),
            attributes.get("dilations", (1, 1)),
            attributes.get("group", 1),
            attributes.get("auto_pad", "NOTSET"),
        )
        self._add_layer("conv", operator, weight, bias, settings)

    def _add_dense(
        self, operator: Operator, weight: _Array, bias: Optional[_Array] = None
    ) -> None:
        attributes = operator.attributes
        if not attributes.get("transB", 0):
            weight = _Array(weight.name, weight.values.T)
        if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
            self.with_constants.append(operator)
        self._add_layer("dense", operator, weight, bias, (weight.values.shape[-1],))

    def _add_norm(self, operator: Operator, norm: tuple[_Array, ...]) -> None:
        value = operator.inputs[0]
        epsilon = float(operator.attributes.get("epsilon", _EPSILON))
        number = self._made_by.get(value)
        if number is not None and self._users[value] == 1:
            layer = self.layers[number]
            if layer.kind == "conv" and layer.norm is None:
                layer.norm, layer.epsilon = norm, epsilon
                self._sources[operator.outputs[0]] = frozenset({number})
                return
        self._add_layer("norm", operator, norm[0], None, ())
        self.layers[-1].norm, self.layers[-1].epsilon = norm, epsilon

    def _add_layer(
        self,
        kind: str,
        operator: Operator,
        weight: _Array,
        bias: Optional[_Array],
        settings: tuple,
    ) -> None:
        sources = self._sources.get(operator.inputs[0], frozenset())
        value = operator.outputs[0]
        self._sources[value] = frozenset({len(self.layers)})
        if kind != "norm":
            self._made_by[value] = len(self.layers)
        self.layers.append(_Layer(kind, weight, bias, sources, settings))

    def _is_bias(self, operator: Operator, arrays: list[Optional[_Array]]) -> bool:
        """Take a sum with a constant for the bias of the layer before it."""
        if operator.type != "Add" or len([a for a in arrays if a]) != 1:
            return False
        (bias,) = filter(None, arrays)
        value = operator.inputs[0 if arrays[1] else 1]
        number = self._made_by.get(value)
        if number is None or self._users[value] != 1:
            return False
        layer = self.layers[number]
        channels = layer.weight.values.shape[0]
        if layer.bias or layer.norm or bias.values.size != channels:
            return False
        layer.bias = _Array(bias.name, bias.values.reshape(channels))
        self._made_by[operator.outputs[0]] = number
        self._sources[operator.outputs[0]] = frozenset({number})
        return True

    def _pass_on(self, operator: Operator, arrays: list[Optional[_Array]]) -> None:
        self.others.append(operator)
        if operator.type in ("Shape", "ConstantOfShape"):
            return  # a shape comes from nowhere
        sources = [self._sources.get(name, frozenset()) for name in operator.inputs]
        if any(arrays) and any(sources):
            self.with_constants.append(operator)
        if operator.type == "Reshape" and arrays[0]:
            self._reshaped[operator.outputs[0]] = arrays[0].name
        for value in operator.outputs:
            self._sources[value] = frozenset().union(*sources)

    def is_activation_map(self, operator: Operator) -> bool:
        """Return whether an operator is the classifier once more, place by place."""
        dense = {layer.weight.name for layer in self.layers if layer.kind == "dense"}
        return self._reshaped.get(operator.inputs[1]) in dense

    def is_answer(self, operator: Operator) -> bool:
        """Return whether an operator only works on what the classifier gives."""
        sources = self._sources.get(operator.outputs[0], frozenset())
        return bool(sources) and all(
            number != _IMAGE and self.layers[number].kind == "dense"
            for number in sources
        )


def _same(operator: Operator, array: _Array) -> _Array:
    """Return a constant behind an operator that changes at most its order."""
    if operator.type != "Transpose":
        return array
    order = operator.attributes.get("perm")
    return _Array(array.name, array.values.transpose(order))


def _check(graph: _Graph, allowed: set[str]) -> None:
    """Raise InputError where a graph has an operator that these networks have not."""
    for operator in graph.with_constants:
        if operator.type not in allowed | _ARITHMETIC:
            continue  # of quantization, for one; below
        raise InputError(
            f"its graph computes with a constant in {shown(operator.type)} "
            f"{shown(operator.outputs[0])}, which this network does not; export it "
            "without the preparation of images"
        )
    for operator in graph.others:
        kind = shown(operator.type)
        if operator.type in allowed:
            continue
        if operator.type in ("Softmax", "LogSoftmax") and graph.is_answer(operator):
            continue  # logits have probabilities behind them, which change no weights
        if operator.type == "Conv" and graph.is_activation_map(operator):
            continue
        if operator.type in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
            raise InputError(
                f"the weights of {kind} {shown(operator.outputs[0])} are computed in "
                "its graph; give a float model with its weights as initializers"
            )
        if operator.type.startswith(_QUANTIZED):
            raise InputError(
                f"it is quantized ({kind}); give the float model that it was made from"
            )
        if "." in operator.type:
            raise InputError(
                f"its graph has {kind}, which is not of ONNX itself; give the model as "
                "it was exported, before ONNX Runtime optimized it, with functions "
                "inlined (onnx.inliner.inline_local_functions)"
            )
        raise InputError(
            f"its graph has the operator {kind}, which this network has not; check the "
            "model's name"
        )


def _matched(model: str, ours: _Graph, theirs: _Graph) -> list[tuple[_Layer, _Layer]]:
    """Return each layer of ours with the one of theirs in its place."""
    free = defaultdict(list)
    for number, layer in enumerate(theirs.layers):
        free[layer.kind, layer.settings, layer.sources].append(number)
    places = {_IMAGE: _IMAGE}
    for number, layer in enumerate(ours.layers):
        sources = frozenset(places[source] for source in layer.sources)
        candidates = free[layer.kind, layer.settings, sources]
        if len(candidates) != 1:
            raise InputError(
                f"its graph is not that of {model}: in the place of "
                f"{layer_of(layer.weight.name)} it has "
                f"{len(candidates) or 'no'} such layers; check the model's name"
            )
        places[number] = candidates.pop()
    if more := len(theirs.layers) - len(ours.layers):
        raise InputError(
            f"its graph has {more} layers more than {model}; check the model's name"
        )
    return [(layer, theirs.layers[places[n]]) for n, layer in enumerate(ours.layers)]


def _take(ours: _Layer, theirs: _Layer, found: Found) -> None:
    """Give a layer of ours the weights of the one in its place."""

    def put(array: _Array, values: np.ndarray, key: str) -> None:
        found.tensors[array.name], found.keys[array.name] = values, key

    if ours.kind != "norm":
        put(ours.weight, theirs.weight.values, theirs.weight.name)
    channels = len(theirs.weight.values)
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    bias = float32(theirs.bias.values) if theirs.bias else zeros
    bias_key = theirs.bias.name if theirs.bias else f"bias of {theirs.weight.name}"
    if ours.norm is None:
        if theirs.norm or not (ours.bias or not bias.any()):
            raise InputError(
                f"{shown(theirs.weight.name)} has a BN layer or a bias in its graph, "
                f"{ours.weight.name} has none; check the model's name"
            )
        if ours.bias:
            put(ours.bias, bias, bias_key)
        return
    gamma, beta, mean, variance = ours.norm
    if ours.bias:
        put(ours.bias, bias if theirs.norm else zeros, bias_key)
        bias = zeros if theirs.norm else bias
    if theirs.norm is None:  # folded: ours changes nothing but by the bias
        key = f"BN of {theirs.weight.name}"
        put(gamma, ones, key)
        put(beta, bias, bias_key)
        put(mean, zeros, key)
        put(variance, ones, key)
        found.epsilons[variance.name] = 0.0
        return
    for array, (key, values) in zip(ours.norm, theirs.norm):
        put(array, values, key)
    # The convolution of ours has no bias to hold theirs.
    put(mean, float32(theirs.norm[2].values) - bias, theirs.norm[2].name)
    found.epsilons[variance.name] = theirs.epsilon


def _operators(net: HybridBlock) -> list[Operator]:
    """Return the graph of a network of ours in the words of ONNX."""
    operators = []
    for node in traced(net).nodes:
        if node.op != VARIABLE:
            inputs = tuple(map(_name, node.inputs))
            outputs = tuple(_name(Value(node, n)) for n in range(_MOST_OUTPUTS))
            operators.append(Operator(*_in_onnx(node), inputs, outputs))
        elif node.name == IMAGES:
            operators.append(Operator(INPUT, {}, (), (IMAGES,)))
    return operators


def _name(value: Value) -> str:
    node, output = value
    return node.name if node.op == VARIABLE else f"{node.name}:{output}"


def _in_onnx(node: Node) -> tuple[str, dict[str, Attribute]]:
    """Return type and attributes of an operator of MXNet as ONNX has them."""
    attributes = node.attributes
    if node.op == "Convolution":
        return "Conv", {
            "strides": attributes["stride"],
            "pads": attributes["pad"] * 2,  # at the beginning and at the end
            "dilations": attributes["dilate"],
            "group": attributes["num_group"],
        }
    if node.op == "FullyConnected":
        return "Gemm", {"transB": 1}
    if node.op == "BatchNorm":
        return "BatchNormalization", {}
    return node.op, {}


def _has_attention(net: HybridBlock) -> bool:
    return net.spec.family == "resnest"
