# SPDX-License-Identifier: Apache-2.0
"""The graph of a network as it trains in mixed precision."""

import json

import mxnet as mx

_MATRIX_PRODUCTS = ("Convolution", "FullyConnected")
_NEUTRAL = ("Activation", "Pooling", "elemwise_add")


def compute_in(symbol: mx.sym.Symbol, dtype: str) -> mx.sym.Symbol:
    """Return `symbol` with convolutions and dense layers in "bfloat16" or "float16".

    What stands between them stays in that type where it loses nothing by it; all else,
    the outputs and all parameters are float32. (`amp.convert_symbol` makes graphs that
    do not run where there is a Dropout.)

    In bfloat16 the convolution of the image is float32, too: with three channels oneDNN
    2.4 gives it a layout that its fast BatchNorm does not take.
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    image_layer = None
    if dtype == "bfloat16":
        image_layer = next(node for node in nodes if node["op"] == "Convolution")
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
        low = [entry for entry in inputs if is_low[entry[0]]]
        is_product = node["op"] in _MATRIX_PRODUCTS and node is not image_layer
        if is_product or (node["op"] in _NEUTRAL and low):
            is_low[index] = True
            for entry in inputs:
                if not is_low[entry[0]]:
                    cast(entry, dtype)
        elif node["op"] == "BatchNorm":  # its other inputs are parameters
            is_low[index] = bool(low)
        else:
            for entry in low:
                cast(entry, "float32")
    for entry in graph["heads"]:
        if is_low[entry[0]]:
            cast(entry, "float32")
    return mx.sym.load_json(json.dumps(graph))
