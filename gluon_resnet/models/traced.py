# SPDX-License-Identifier: Apache-2.0
"""The graph of a network outside training, traced from its layers.

What acts in training alone is left out, and what training writes in a form of its own
is written as everywhere else.
"""

import mxnet as mx
from mxnet.gluon import HybridBlock

from gluon_resnet.graph import Graph, Node, Value
from gluon_resnet.models.regularisers import IDENTITY

IMAGES = "data"
"""The name of the variable for the images (N, C, H, W)."""
_GLOBAL_POOLING = {
    "kernel": (1, 1),
    "pool_type": "avg",
    "global_pool": True,
    "layout": "NCHW",
}


def traced(net: HybridBlock) -> Graph:
    """Return the graph of `net` in inference; its arrays are named as in `net`."""
    answer = net(mx.sym.var(IMAGES))
    graph = Graph.of(mx.sym.Group(answer) if isinstance(answer, list) else answer)
    graph.replace(
        {Value(n): n.inputs[0] for n in graph.nodes if _acts_in_training_alone(n)}
    )
    for node in graph.nodes:
        if node.op == "_contrib_SyncBatchNorm":
            node.op = "BatchNorm"
            for name in ("key", "ndev"):
                del node.attributes[name]
        elif node.op == "mean" and _is_over_pixels(node):
            node.op, node.attributes = "Pooling", dict(_GLOBAL_POOLING)
    return graph


def layer_names(net: HybridBlock) -> dict[str, str]:
    """Map each array's name in the graph to its layer's, such as `stage1.0.body.bn1`.

    A layer's name is that of its parameters in a file without the last part.
    """
    parameters = net._collect_params_with_prefix().items()
    return {parameter.name: name.rpartition(".")[0] for name, parameter in parameters}


def _acts_in_training_alone(node: Node) -> bool:
    if node.op == "Dropout":
        return node.attributes.get("mode", "training") == "training"
    return IDENTITY in node.attributes


def _is_over_pixels(mean: Node) -> bool:
    """Whether it is the global pooling that a net trains with (training/step.py)."""
    attributes = mean.attributes
    keeps_all_axes = attributes.get("keepdims") and not attributes.get("exclude")
    return bool(keeps_all_axes) and attributes.get("axis") == (2, 3)
