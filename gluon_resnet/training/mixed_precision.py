# SPDX-License-Identifier: Apache-2.0
"""The graph of a network as it trains in mixed precision."""

import mxnet as mx

from gluon_resnet.graph import Graph, Node, Value

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
    graph = Graph.of(symbol)
    image_layer = None
    if dtype == "bfloat16":
        image_layer = next(node for node in graph.nodes if node.op == "Convolution")
    low: set[Node] = set()
    casts: dict[tuple[Value, str], Value] = {}

    def cast(value: Value, target: str) -> Value:
        if (value, target) not in casts:
            name = f"{value.node.name}_{value.output}_{target}"
            node = Node("amp_cast", name, [value], {"dtype": target})
            casts[value, target] = Value(node)
        return casts[value, target]

    for node in (*graph.nodes, graph.end):
        has_low = any(value.node in low for value in node.inputs)
        is_product = node.op in _MATRIX_PRODUCTS and node is not image_layer
        if is_product or (node.op in _NEUTRAL and has_low):
            low.add(node)
            node.inputs = [v if v.node in low else cast(v, dtype) for v in node.inputs]
        elif node.op == "BatchNorm":  # its other inputs are parameters
            if has_low:
                low.add(node)
        else:
            node.inputs = [
                cast(v, "float32") if v.node in low else v for v in node.inputs
            ]
    return graph.symbol()
