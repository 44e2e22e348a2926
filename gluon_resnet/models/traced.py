# SPDX-License-Identifier: Apache-2.0
"""The graph of a network outside training, traced from its layers.

What acts in training alone is left out, and what training writes in a form of its own
is written as everywhere else.
"""

from collections.abc import Iterable
from typing import Any

import mxnet as mx
from mxnet.gluon import HybridBlock, Parameter

from gluon_resnet.graph import VARIABLE, Graph, Node, Value
from gluon_resnet.models.regularisers import IDENTITY

IMAGES = "data"
"""The name of the variable for the images (N, C, H, W)."""
# What layers have in any case; the defaults are MXNet's.
_BATCH_NORM = {"axis": 1, "eps": 1e-3, "fix_gamma": True}
_GLOBAL_POOLING = {  # as `nn.GlobalAvgPool2D` writes it
    "global_pool": True,
    "kernel": (1, 1),
    "layout": "NCHW",
    "pad": (0, 0),
    "pool_type": "avg",
    "pooling_convention": "full",
    "stride": (1, 1),
}


def traced(net: HybridBlock) -> Graph:
    """Return the graph of `net` in inference.

    Of one model it is always the same, but for the number of channels and classes and
    the epsilon of its norms: options that only training knows leave no trace. Its
    arrays are named as in files, `stem.conv1.weight`.
    """
    answer = net(mx.sym.var(IMAGES))
    graph = Graph.of(mx.sym.Group(answer) if isinstance(answer, list) else answer)
    graph.replace(
        {Value(n): n.inputs[0] for n in graph.nodes if _acts_in_training_alone(n)}
    )
    names = {parameter.name: name for name, parameter in named_parameters(net).items()}
    for node in graph.nodes:
        if node.op == VARIABLE:
            node.name = names.get(node.name, node.name)
        elif node.op in ("BatchNorm", "_contrib_SyncBatchNorm"):
            node.op = "BatchNorm"
            node.attributes = {**_BATCH_NORM, **_of(node, _BATCH_NORM)}
        elif node.op == "mean" and _is_over_pixels(node):
            node.op, node.attributes = "Pooling", dict(_GLOBAL_POOLING)
    return graph


def named_parameters(net: HybridBlock) -> dict[str, Parameter]:
    """Return the parameters of `net` by the names that they have in files."""
    own = {p: name for name, p in net._collect_params_with_prefix().items()}
    # A layer of the user's may keep some from files; MXNet's names are unique, too.
    return {own.get(p, p.name): p for p in net.collect_params().values()}


def layer_of(array: str) -> str:
    """Return the layer of an array: `stem.conv1` of `stem.conv1.weight`."""
    return array.rpartition(".")[0]


def _of(node: Node, names: Iterable[str]) -> dict[str, Any]:
    return {name: node.attributes[name] for name in names if name in node.attributes}


def _acts_in_training_alone(node: Node) -> bool:
    if node.op == "Dropout":
        return node.attributes.get("mode", "training") == "training"
    return IDENTITY in node.attributes


def _is_over_pixels(mean: Node) -> bool:
    """Whether it is the global pooling that a net trains with (training/step.py)."""
    attributes = mean.attributes
    keeps_all_axes = attributes.get("keepdims") and not attributes.get("exclude")
    return bool(keeps_all_axes) and attributes.get("axis") == (2, 3)
