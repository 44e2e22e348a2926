# SPDX-License-Identifier: Apache-2.0
"""Split attention in inference: all that is known of it outside the network itself.

`models/split_attention.py` writes the layer as it trains fastest. Here its graph
becomes one of convolutions and a pass over the parts, of the same values. The operators
that only an attention has are made kernels here, too.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Optional, Union

import numpy as np

from gluon_resnet.graph import VARIABLE, Graph, Node, Value
from gluon_resnet.inference import onednn
from gluon_resnet.inference.onednn import Descriptor, DType, Layout
from gluon_resnet.inference.plan import PlanBuilder, PlanError, Tensor
from gluon_resnet.inference.steps import Step

FP32_LAYERS = {
    "*.conv2.fc1": "attention of 1x1 maps: nothing to win, and softmax sharpens errors",
    "*.conv2.fc2": "attention of 1x1 maps: nothing to win, and softmax sharpens errors",
}
"""Layers that stay fp32 in int8 models: a pattern of their names, and why."""
FP32_OPERATORS = ("elemwise_add",)
"""Where no convolution takes these in, they sum up what the attention pools."""


def rewrite(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """Give the split attentions of a folded graph their form for inference."""
    _splits_as_convolutions(graph, arrays)
    products_as_broadcasts(graph)
    _pairs_as_differences(graph, arrays)


def poolings(graph: Graph) -> list[Node]:
    """Return the poolings of attentions.

    What they average is turned into fp32 in any case, and an average rounded to the
    steps of the largest value has few of them.
    """
    flattened = [node.input() for node in graph.nodes if node.op == "Flatten"]
    return [
        node
        for node in graph.nodes
        if node.op == "Pooling"
        and node.attributes.get("global_pool")
        and node not in flattened
    ]


def has_operator(node: Node) -> bool:
    """Whether `node` is one that an operator of `OPERATORS` computes."""
    source = node.input()
    if node.op == "softmax":
        return node.attributes["axis"] == 2 and source.op == "Reshape"
    if node.op == "SliceChannel":
        return node.attributes.get("axis") == 2 and source.op == "softmax"
    if node.op == "Reshape":
        return source.op in ("Convolution", "SliceChannel")
    return False


def _splits_as_convolutions(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """Compute each part of a split attention's input by convolutions of its own.

    In a ResNeSt block conv1, ReLU, perhaps a pooling, the grouped convolution and ReLU
    end in a SliceChannel by radix, which neither runs in int8 nor keeps oneDNN's
    layout. Radix part r depends on the r-th part of each of these layers alone.
    """

    def part(layer: Node, source: Value, r: int, radix: int, grouped: bool) -> Value:
        """Return the `r`-th part of a layer, on top of `source`."""
        attributes, inputs = dict(layer.attributes), [source]
        if layer.op == "Convolution":
            filters = attributes["num_filter"] // radix
            groups = attributes["num_group"] // radix if grouped else 1
            attributes |= {"num_filter": filters, "num_group": groups}
            for array, _ in layer.inputs[1:]:
                name = f"{array.name}_radix{r}"
                arrays[name] = arrays[array.name][r * filters : (r + 1) * filters]
                inputs.append(Value(Node(VARIABLE, name)))
        return Value(Node(layer.op, f"{layer.name}_radix{r}", inputs, attributes))

    parts = {}
    for split in graph.nodes:
        if split.op != "SliceChannel" or split.attributes.get("axis", 1) != 1:
            continue
        radix = split.attributes["num_outputs"]
        chain = _layers_before(split, radix)
        for r in range(radix if chain else 0):
            result = chain[0].inputs[0]
            for layer in chain:
                result = part(layer, result, r, radix, grouped=layer is not chain[0])
            parts[Value(split, r)] = result
    graph.replace(parts)


def _layers_before(split: Node, radix: int) -> list[Node]:
    """Return conv1, ReLU, ... of `_splits_as_convolutions`, or none of something else.

    They are something else where a norm is left between them: one that looks at all
    channels, which is none of the parts' own.
    """
    chain = [split]
    convolutions: list[Node] = []
    while len(convolutions) < 2:
        layer = chain[0].input()
        if layer.op not in ("Convolution", "Activation", "Pooling"):
            return []
        chain.insert(0, layer)
        if layer.op == "Convolution":
            convolutions.insert(0, layer)
    groups = [layer.attributes["num_group"] for layer in convolutions]
    is_divided = groups[0] == 1 and groups[1] % radix == 0
    return chain[:-1] if is_divided else []


def products_as_broadcasts(graph: Graph) -> None:
    """Broadcast attention weights, which training spreads out for their gradient."""
    for node in graph.nodes:
        if node.op != "elemwise_mul" or node.input(1).op != "reshape_like":
            continue
        product = node.input(1).input()
        if [product.op, *(source.node.op for source in product.inputs)] == [
            *("dot", "Reshape", "ones_like")
        ]:
            weights = product.input()  # (N, C, 1, 1) as (N * C, 1)
            node.op, node.inputs[1] = "broadcast_mul", weights.inputs[0]


def _pairs_as_differences(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """Weight the two parts of a split attention of radix 2 in one pass over them.

    The weights are a softmax of two logits, so sigmoid(a - b) and 1 less that: of
    parts x and y the sum is y + sigmoid(a - b) * (x - y). The layer that computes the
    logits computes their difference.
    """
    for node in graph.nodes:
        split = _split_of_pair(node)
        if split is None:
            continue
        logits = split.input().input()  # (N, K, 2, C)
        layer = logits.input()  # (N, K * 2 * C, 1, 1)
        groups = layer.attributes["num_group"]
        for array, _ in layer.inputs[1:]:
            shape = arrays[array.name].shape
            pairs = arrays[array.name].reshape((groups, 2, -1))
            difference = pairs[:, 0] - pairs[:, 1]
            arrays[array.name] = difference.reshape((shape[0] // 2, *shape[1:]))
        layer.attributes["num_filter"] //= 2
        first, second = (product.node.inputs[0] for product in node.inputs)
        weight = Value(Node("sigmoid", split.name, logits.inputs[:1]))
        change = Value(Node("elemwise_sub", f"{node.name}_difference", [first, second]))
        change = Value(Node("broadcast_mul", f"{node.name}_change", [weight, change]))
        node.inputs = [change, second]


def _split_of_pair(node: Node) -> Optional[Node]:
    """Return what splits up the weights, where `node` sums up two weighted parts."""
    products = [value.node for value in node.inputs]
    if [node.op, *(product.op for product in products)] != [
        *("elemwise_add", "broadcast_mul", "broadcast_mul")
    ]:
        return None
    reshaped = [product.input(1) for product in products]
    if [weights.op for weights in reshaped] != ["Reshape", "Reshape"]:
        return None
    split = reshaped[0].input()
    is_pair = split.op == "SliceChannel" and split.attributes["num_outputs"] == 2
    both = [Value(split, 0), Value(split, 1)]
    return split if is_pair and [w.inputs[0] for w in reshaped] == both else None


def _reshape(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    """Of tensors without pixels, which are the same in NCHW and NHWC."""
    shape = step.attrs["shape"]
    dims = [old if new == 0 else new for new, old in zip(shape, x.dims)]
    dims += shape[len(dims) :]
    rest = prod(x.dims) // -prod(dims)
    dims = [rest if length == -1 else length for length in dims]
    if prod(dims) != prod(x.dims):
        raise PlanError(f"{step.name} makes {dims} of {x.dims}")
    return plan.view(x, tuple(dims), layout=Layout.ABCD)


def _softmax(plan: PlanBuilder, step: Step, x: Tensor) -> Tensor:
    """Over axis 2 of (N, K, R, C); in memory R comes first in the result."""
    n, k, _, c = x.dims
    descriptor = Descriptor.strided(x.dims, DType.F32, (k * c, c, n * k * c, 1))
    result = plan.tensor(x.dims, DType.F32, descriptor, is_pooled=x.is_pooled)
    kernel = partial(onednn.softmax, x.descriptor, descriptor, 2)
    plan.call(step.name, kernel, {onednn.SRC: x, onednn.DST: result})
    return result


def _split(plan: PlanBuilder, step: Step, x: Tensor) -> list[Tensor]:
    """Along axis 2 of what `_softmax` gives, whose parts have no gaps."""
    n, k, r, c = x.dims
    length = n * k * c
    return [
        plan.view(x, (n, k, 1, c), layout=Layout.ABCD, start=part * length)
        for part in range(r)
    ]


OPERATORS: Mapping[str, Callable[..., Union[Tensor, list[Tensor]]]] = {
    "Reshape": _reshape,
    "SliceChannel": _split,
    "softmax": _softmax,
}
"""The operators that only an attention has, for operators.py."""
