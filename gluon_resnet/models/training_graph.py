# SPDX-License-Identifier: Apache-2.0
"""The graph of a network as it trains fastest."""

import json
from collections import Counter

import mxnet as mx
from mxnet.gluon import HybridBlock

# oneDNN keeps the maps of convolutions with such numbers of channels in blocks.
_BLOCK = 16
_MATRIX_PRODUCTS = ("Convolution", "FullyConnected")
_NORMS = ("BatchNorm", "_contrib_BatchNormWithReLU")
_NEUTRAL = ("Activation", "Pooling", "elemwise_add")


def fuse_norm_relu(symbol: mx.sym.Symbol, net: HybridBlock) -> mx.sym.Symbol:
    """Return `symbol`, the graph of `net`, with norms and their ReLUs as one operator.

    Values, gradients and parameters stay the same to the bit; the ReLU reads and writes
    no map of its own, forward and backward. Only CPUs have the operator.

    Fused are the BatchNorms that follow a convolution and whose maps are blocked. Where
    the map is not, but its gradient is, MXNet reorders the map for the gradient and
    forgets the operator's record of the zeros: gradients would be wrong.
    """
    graph = json.loads(symbol.tojson())
    nodes, parameters = graph["nodes"], net.collect_params()
    entries = [*graph["heads"], *(i for node in nodes for i in node["inputs"])]
    uses = Counter(source for source, *_ in entries)

    def is_blocked(node: dict) -> bool:
        if node["op"] != "Convolution":
            return False
        weight = parameters[nodes[node["inputs"][1][0]]["name"]]
        groups = int(node["attrs"]["num_group"])
        out_channels, group_channels, *_ = weight.shape
        return group_channels % _BLOCK == 0 and out_channels % (groups * _BLOCK) == 0

    fused = {}
    for index, node in enumerate(nodes):
        if node["op"] == "Activation" and node["attrs"]["act_type"] == "relu":
            norm = node["inputs"][0][0]
            if nodes[norm]["op"] == "BatchNorm" and uses[norm] == 1:
                if is_blocked(nodes[nodes[norm]["inputs"][0][0]]):
                    fused[index] = norm
    for norm in fused.values():
        nodes[norm]["op"] = "_contrib_BatchNormWithReLU"
    for entry in entries:
        entry[0] = fused.get(entry[0], entry[0])
    return mx.sym.load_json(json.dumps(graph))


def compute_in(symbol: mx.sym.Symbol, dtype: str) -> mx.sym.Symbol:
    """Return `symbol` with convolutions and dense layers in "bfloat16" or "float16".

    What stands between them stays in that type where it loses nothing by it; all else,
    the outputs and all parameters are float32. (`amp.convert_symbol` makes graphs that
    do not run where there is a Dropout.)
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    is_low = [False] * len(nodes)
    casts = {}

    def cast(entry: list[int], target: str) -> None:
        """Redirect the entry of a list of inputs to itself in another type."""
        key = *entry[:2], target
        if key not in casts:
            casts[key] = len(nodes)
            name = f"{nodes[entry[0]]['name']}_{entry[1]}_{target}"
            node = {"op": "amp_cast", "name": name, "attrs": {"dtype": target}}
            nodes.append(node | {"inputs": [list(entry)]})
        entry[:2] = casts[key], 0

    for index, node in enumerate(list(nodes)):
        inputs = node["inputs"]
        if node["op"] in _MATRIX_PRODUCTS:
            is_low[index] = True
            for entry in inputs:
                if not is_low[entry[0]]:
                    cast(entry, dtype)
            continue
        low = [entry for entry in inputs if is_low[entry[0]]]
        # The other inputs of a norm are its parameters.
        if node["op"] in _NORMS or (node["op"] in _NEUTRAL and low == inputs):
            is_low[index] = bool(low)
        else:
            for entry in low:
                cast(entry, "float32")
    for entry in graph["heads"]:
        if is_low[entry[0]]:
            cast(entry, "float32")
    return mx.sym.load_json(json.dumps(graph))
