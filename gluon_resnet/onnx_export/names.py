# SPDX-License-Identifier: Apache-2.0
"""How an exported file names arrays and operators: as this package, as the Model Zoo.

The same names each time: they depend on the network alone.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Optional

from mxnet.gluon import HybridBlock

from gluon_resnet.graph import VARIABLE, Graph, Node
from gluon_resnet.weights.layouts import gluon_symbol

ZOO_PREFIXES = {
    **{
        f"resnet{depth}_v1": f"resnetv1{counter}_"
        for depth, counter in zip((18, 34, 50, 101, 152), "56789")
    },
    **{
        f"resnet{depth}_v2": f"resnetv2{counter}_"
        for depth, counter in zip((18, 34, 50, 101, 152), "23457")
    },
}
"""What all names of a network begin with in the ONNX Model Zoo's file of it."""
_LAYERS = ("Convolution", "BatchNorm", "FullyConnected")  # have arrays from input 1 on
_STAGE = re.compile(r"stage\d+_")


class OwnNames:
    """Arrays as in this package's own files, `stage1.0.body.conv1.weight`.

    An operator with arrays is called as its layer, another as MXNet calls it.
    """

    def __init__(self, model: str):
        self._prefix = f"{model}_"

    def array(self, name: str) -> str:
        """Return the name in files, which the graph has already."""
        return name

    def node(self, node: Node) -> str:
        """Return the layer's name, or the operator's without the network's."""
        array = _first_array(node)
        if array is None:
            return node.name.removeprefix(self._prefix)
        layer, _, parameter = array.rpartition(".")
        _, _, part = parameter.partition("_")  # radix1 of weight_radix1
        return f"{layer}_{part}" if part else layer


class ZooNames:
    """As in the ONNX Model Zoo's file of the same network: `gluon_symbol`, prefixed.

    Operators without arrays are numbered within their stage.
    """

    def __init__(self, net: HybridBlock, graph: Graph):
        self._prefix = ZOO_PREFIXES[net.spec.name]
        names = list(net._collect_params_with_prefix())
        self._arrays = gluon_symbol(net.spec, names) or {}
        self._nodes = self._numbered(graph)

    def array(self, name: str) -> str:
        """Return a parameter's name in the Model Zoo."""
        return self._prefix + self._arrays[name]

    def node(self, node: Node) -> str:
        """Return an operator's name in the Model Zoo."""
        return self._prefix + self._nodes[node]

    def _numbered(self, graph: Graph) -> Mapping[Node, str]:
        counts: Counter = Counter()
        names: dict[Node, str] = {}
        for node in graph.nodes:
            if node.op == VARIABLE:
                continue
            if (array := _first_array(node)) is not None:
                parameter = array.rpartition(".")[2]
                names[node] = f"{self._arrays[array].removesuffix(parameter)}fwd"
                continue
            stage = _STAGE.match(names[node.input()])
            scope = stage[0] if stage and node.op != "Pooling" else ""
            kind, end = _kind(node)
            names[node] = f"{scope}{kind}{counts[scope, kind]}{end}"
            counts[scope, kind] += 1
        return names


def _first_array(node: Node) -> Optional[str]:
    """Return the weight of a layer, or the gamma; None of what is none."""
    if node.op not in _LAYERS or node.input(1).op != VARIABLE:
        return None
    return node.input(1).name


def _kind(node: Node) -> tuple[str, str]:
    """Return what Gluon puts before and behind the number of an operator."""
    if node.op == "elemwise_add":
        return "_plus", ""
    if node.op == "Activation":
        is_last = node.input().op == "elemwise_add"
        return ("activation", "") if is_last else ("relu", "_fwd")
    return {"Pooling": ("pool", "_fwd"), "Flatten": ("flatten", "_reshape0")}[node.op]
