# SPDX-License-Identifier: Apache-2.0
"""The inference graph of a network: convolutions, and little else.

What is not one becomes one where it can: a BatchNorm that follows no convolution, a
split by channels. Kernels for convolutions are the fastest there are, take the ReLU
along, and int8 need not be left for fp32 and back. Exact: the graph answers as the net.
"""

from mxnet.gluon import HybridBlock

from gluon_resnet.graph import Graph
from gluon_resnet.inference import split_attention
from gluon_resnet.inference.fold import (
    Arrays,
    factor_and_shift,
    folded,
    is_channel_norm,
    norm_arrays,
    used_arrays,
)
from gluon_resnet.models.traced import IMAGES

FP32_LAYERS = {
    "stem.bn0": "the norm of the image, which int8 pixels would cost accuracy",
    **split_attention.FP32_LAYERS,
}
"""Layers that stay fp32 in any net: a pattern of their names, and why."""
_DEPTHWISE = {
    "kernel": (1, 1),
    "stride": (1, 1),
    "pad": (0, 0),
    "no_bias": False,
    "layout": "NCHW",
}


def inference_graph(net: HybridBlock) -> tuple[Graph, Arrays]:
    """Return the inference graph of `net` and its arrays, float32 copies.

    The graph maps `data`, images (N, C, H, W), to logits. Arrays are named as in files;
    of a weight that is split up the parts are LAYER.weight_radix0, ...
    """
    graph, arrays = folded(net)
    _norms_as_convolutions(graph, arrays)
    split_attention.rewrite(graph, arrays)
    return graph, used_arrays(graph, arrays)


def _norms_as_convolutions(graph: Graph, arrays: Arrays) -> None:
    """Make each BatchNorm that is left a depthwise 1x1 convolution.

    The BatchNorm of the image stays: it would have to run in int8.
    """
    for node in graph.nodes:
        if not is_channel_norm(node) or node.input().name == IMAGES:
            continue
        factor, shift = factor_and_shift(node.attributes, *norm_arrays(node, arrays))
        _, gamma, beta, *_ = node.inputs
        arrays[gamma.node.name] = factor[:, None, None, None]
        arrays[beta.node.name] = shift
        channels = len(factor)
        node.op = "Convolution"
        node.attributes = {**_DEPTHWISE, "num_filter": channels, "num_group": channels}
        node.inputs = node.inputs[:3]
