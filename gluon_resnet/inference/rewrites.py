# SPDX-License-Identifier: Apache-2.0
"""The inference graph of a network: convolutions, and little else.

What is not one becomes one where it can: a BatchNorm that follows no convolution, a
split by channels. Kernels for convolutions are the fastest there are, take the ReLU
along, and int8 need not be left for fp32 and back. Exact: the graph answers as the net.
"""

import json
from functools import partial

import mxnet as mx
from mxnet.gluon import HybridBlock

from gluon_resnet.inference.fold import Arrays, factor_and_shift, folded

_DEPTHWISE = {
    "kernel": "(1, 1)",
    "stride": "(1, 1)",
    "pad": "(0, 0)",
    "no_bias": "False",
    "layout": "NCHW",
}


def inference_graph(net: HybridBlock) -> tuple[mx.sym.Symbol, Arrays]:
    """Return the inference graph of `net` and its arrays, float32 copies.

    The symbol maps `data`, images (N, C, H, W), to logits. Arrays are named as the
    net's parameters; of a weight that is split up the parts are NAME_radix0, ...
    """
    symbol, arrays = folded(net)
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    for node in nodes:
        if node["op"] == "null":
            node.pop("attrs", None)  # shapes, which change below
    _norms_as_convolutions(nodes, arrays)
    _splits_as_convolutions(nodes, arrays)
    _products_as_broadcasts(nodes)
    _pairs_as_differences(nodes, arrays)
    # MXNet takes the nodes in any order and leaves those out that are of no use now.
    graph["arg_nodes"] = [i for i, node in enumerate(nodes) if node["op"] == "null"]
    graph["node_row_ptr"] = list(range(len(nodes) + 1))
    symbol = mx.sym.load_json(json.dumps(graph))
    names = set(symbol.list_inputs()) - {"data"}
    return symbol, {name: arrays[name] for name in names}


def _norms_as_convolutions(nodes: list[dict], arrays: Arrays):
    """Make each BatchNorm that is left a depthwise 1x1 convolution.

    The BatchNorm of the image stays: it would have to run in int8.
    """
    names = [node["name"] for node in nodes]
    for node in nodes:
        if node["op"] != "BatchNorm":
            continue
        source, *norm = (i[0] for i in node["inputs"])
        if names[source] == "data":
            continue
        factor, shift = factor_and_shift(
            node["attrs"], *(arrays[names[i]] for i in norm)
        )
        gamma, beta, *_ = norm
        arrays[names[gamma]] = factor[:, None, None, None]
        arrays[names[beta]] = shift
        channels = str(len(factor))
        node["op"] = "Convolution"
        node["attrs"] = _DEPTHWISE | {"num_filter": channels, "num_group": channels}
        node["inputs"] = [[source, 0, 0], [gamma, 0, 0], [beta, 0, 0]]


def _splits_as_convolutions(nodes: list[dict], arrays: Arrays):
    """Compute each part of a split attention's input by convolutions of its own.

    In a ResNeSt block conv1, ReLU, perhaps a pooling, the grouped convolution and ReLU
    end in a SliceChannel by radix, which neither runs in int8 nor keeps oneDNN's
    layout. Radix part r depends on the r-th part of each of these layers alone.
    """

    add = partial(_added, nodes)

    def part(node: dict, source: list, radix: int, of: int, grouped: bool) -> list:
        """Append the `radix`-th part of a layer, on top of `source`."""
        attrs, inputs = dict(node["attrs"]), [source]
        if node["op"] == "Convolution":
            filters = int(attrs["num_filter"]) // of
            groups = int(attrs["num_group"]) // of if grouped else 1
            attrs |= {"num_filter": str(filters), "num_group": str(groups)}
            for array, *_ in node["inputs"][1:]:
                name = f"{nodes[array]['name']}_radix{radix}"
                whole = arrays[nodes[array]["name"]]
                arrays[name] = whole[radix * filters : (radix + 1) * filters]
                inputs.append(add("null", name, []))
        return add(node["op"], f"{node['name']}_radix{radix}", inputs, **attrs)

    parts = {}
    for index, node in enumerate(list(nodes)):
        if node["op"] != "SliceChannel" or node["attrs"].get("axis", "1") != "1":
            continue
        chain = []
        while [layer["op"] for layer in chain].count("Convolution") < 2:
            node_before = nodes[(chain[0] if chain else node)["inputs"][0][0]]
            chain.insert(0, node_before)
        radix = int(node["attrs"]["num_outputs"])
        for r in range(radix):
            parts[index, r] = chain[0]["inputs"][0]
            for layer in chain:
                grouped = layer is not chain[0]
                parts[index, r] = part(layer, parts[index, r], r, radix, grouped)
    for node in nodes:
        node["inputs"] = [parts.get((i[0], i[1]), i) for i in node["inputs"]]


def _products_as_broadcasts(nodes: list[dict]):
    """Broadcast attention weights, which training spreads out for their gradient."""
    for node in nodes:
        if node["op"] != "elemwise_mul":
            continue
        spread = nodes[node["inputs"][1][0]]
        if spread["op"] == "reshape_like":
            product = nodes[spread["inputs"][0][0]]
            weights = nodes[product["inputs"][0][0]]  # (N, C, 1, 1) as (N * C, 1)
            node["op"], node["inputs"][1] = "broadcast_mul", weights["inputs"][0]


def _pairs_as_differences(nodes: list[dict], arrays: Arrays):
    """Weight the two parts of a split attention of radix 2 in one pass over them.

    The weights are a softmax of two logits, so sigmoid(a - b) and 1 less that: of
    parts x and y the sum is y + sigmoid(a - b) * (x - y). The layer that computes the
    logits computes their difference.
    """

    def input_of(node: dict, number: int = 0) -> dict:
        return nodes[node["inputs"][number][0]]

    add = partial(_added, nodes)
    for node in list(nodes):
        products = [nodes[i[0]] for i in node["inputs"]]
        if [product["op"] for product in products] != ["broadcast_mul"] * 2:
            continue
        split = input_of(input_of(products[0], 1))
        if split.get("attrs", {}).get("num_outputs") != "2":
            continue
        logits = input_of(input_of(split))  # (N, K, 2, C)
        layer = input_of(logits)  # (N, K * 2 * C, 1, 1)
        groups = int(layer["attrs"]["num_group"])
        for array, *_ in layer["inputs"][1:]:
            name = nodes[array]["name"]
            shape = arrays[name].shape
            pairs = arrays[name].reshape((groups, 2, -1))
            difference = pairs[:, 0] - pairs[:, 1]
            arrays[name] = difference.reshape((shape[0] // 2, *shape[1:]))
        filters = int(layer["attrs"]["num_filter"]) // 2
        layer["attrs"]["num_filter"] = str(filters)
        first, second = (product["inputs"][0] for product in products)
        weight = add("sigmoid", split["name"], logits["inputs"][:1])
        name = node["name"]
        change = add("elemwise_sub", f"{name}_difference", [first, second])
        change = add("broadcast_mul", f"{name}_change", [weight, change])
        node["inputs"] = [change, second]


def _added(nodes: list[dict], op: str, name: str, inputs: list, **attrs) -> list:
    """Append a node and return its output."""
    nodes.append({"op": op, "name": name, "inputs": inputs, "attrs": attrs})
    return [len(nodes) - 1, 0, 0]
