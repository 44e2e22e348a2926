# SPDX-License-Identifier: Apache-2.0
"""BatchNorm folded into the convolution before it.

In inference a BatchNorm multiplies and shifts each channel by constants, and so may the
convolution's weight and bias do in its place (arXiv:1712.05877, section 3.2).
"""

from collections.abc import Mapping
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.graph import VARIABLE, Graph, Node, Value
from gluon_resnet.models.traced import IMAGES, layer_of, named_parameters, traced

Arrays = dict[str, np.ndarray]


def folded(net: HybridBlock) -> tuple[Graph, Arrays]:
    """Return the graph of `net` with the BatchNorms after convolutions folded.

    The graph maps the variable `data`, images (N, C, H, W), to what `net` answers. The
    arrays of its other variables are float32 copies, named as in files; `net` itself
    stays as it is. A convolution that had no bias gets one, LAYER.bias beside its
    LAYER.weight.
    """
    graph, arrays = unfolded(net)
    users = graph.users()
    replacements = {}
    for norm in graph.nodes:
        if not is_channel_norm(norm):
            continue
        conv, output = norm.input(), norm.inputs[0]
        if conv.op != "Convolution" or len(users[output]) > 1:
            continue
        factor, shift = factor_and_shift(norm.attributes, *norm_arrays(norm, arrays))
        weight = conv.input(1).name
        arrays[weight] = arrays[weight] * factor[:, None, None, None]
        if conv.attributes.get("no_bias"):
            bias = f"{layer_of(weight)}.bias"
            conv.attributes["no_bias"] = False
            conv.inputs.append(Value(Node(VARIABLE, bias)))
        else:
            bias = conv.input(2).name
            shift += arrays[bias] * factor
        arrays[bias] = shift
        replacements[Value(norm)] = output
    graph.replace(replacements)
    return graph, used_arrays(graph, arrays)


def unfolded(net: HybridBlock) -> tuple[Graph, Arrays]:
    """Return the graph of `net` in inference and its arrays, with all norms.

    The graph and the arrays are as `folded` describes them.
    """
    graph = traced(net)
    return graph, _arrays(graph, net)


def is_channel_norm(node: Node) -> bool:
    """Whether `node` is a BatchNorm over the channels of (N, C, H, W)."""
    return node.op == "BatchNorm" and node.attributes.get("axis", 1) in (1, -3)


def norm_arrays(norm: Node, arrays: Arrays) -> list[np.ndarray]:
    """Return gamma, beta, mean and variance of a BatchNorm."""
    return [arrays[value.node.name] for value in norm.inputs[1:]]


def factor_and_shift(
    attrs: Mapping[str, Any],
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a BatchNorm of inference multiplies each channel by, and adds."""
    factor = 1 / np.sqrt(variance + attrs["eps"])
    if not attrs["fix_gamma"]:
        factor *= gamma
    return factor, beta - mean * factor


def used_arrays(graph: Graph, arrays: Arrays) -> Arrays:
    """Return those of `arrays` that `graph` has variables for."""
    names = (node.name for node in graph.nodes if node.op == VARIABLE)
    return {name: arrays[name] for name in names if name != IMAGES}


def _arrays(graph: Graph, net: HybridBlock) -> Arrays:
    """Copy the arrays of `net`, and drop the shapes that the graph notes beside them.

    The rewrites of the graph change shapes.
    """
    parameters = named_parameters(net)
    ctx = next(iter(parameters.values())).list_ctx()[0]
    # A training step goes on writing statistics, and MXNet lets them be read meanwhile.
    mx.nd.waitall()
    arrays = {}
    for node in graph.nodes:
        if node.op == VARIABLE and node.name != IMAGES:
            node.attributes.clear()
            array = parameters[node.name].data(ctx).asnumpy()
            arrays[node.name] = array.astype(np.float32, copy=False)
    return arrays
