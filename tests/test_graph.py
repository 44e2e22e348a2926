# SPDX-License-Identifier: Apache-2.0
"""MXNet's symbols as graphs, and back."""

import json

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet import create_model
from gluon_resnet.graph import VARIABLE, Graph, Node, Value


def record(symbol):
    """What MXNet writes down, but for its count of the writes to each state.

    It writes both `true` and `True`.
    """
    graph = json.loads(symbol.tojson().replace('"true"', '"True"'))
    for node in graph["nodes"]:
        node["inputs"] = [entry[:2] for entry in node["inputs"]]
    return graph


@pytest.mark.parametrize(
    "name, options",
    [
        ("cifar_resnet20_v2", {}),
        ("resnest14d", {"dropout": 0.1, "drop_path": 0.1, "drop_block": 0.1}),
    ],
)
def test_symbol_is_the_same_after_it_was_a_graph(name, options):
    symbol = create_model(name, **options)(mx.sym.var("data"))
    assert record(Graph.of(symbol).symbol()) == record(symbol)


def test_fused_symbol_is_the_same_after_it_was_a_graph():
    net = create_model("cifar_resnet20_v1")
    fused = net(mx.sym.var("data")).get_backend_symbol("MKLDNN")
    graph = Graph.of(fused)
    assert any(node.subgraphs for node in graph.nodes)
    assert record(graph.symbol()) == record(fused)


@pytest.mark.parametrize(
    "text, value",
    [
        ("True", True),
        ("false", False),
        ("None", None),
        ("-3", -3),
        ("1e-05", 1e-5),
        ("relu", "relu"),
        ("(1, 2)", (1, 2)),
        ("[7]", (7,)),
        ("(3,)", (3,)),
        ("(None, 0.5)", (None, 0.5)),
        ("()", ()),
        ("(1, relu)", "(1, relu)"),
        ("((1, 2), (3, 4))", "((1, 2), (3, 4))"),
        ("(" * 100_000, "(" * 100_000),
    ],
)
def test_attributes_are_values(text, value):
    symbol = mx.sym.var("x", attr={"__note__": text})
    record = json.loads(symbol.tojson())
    record["nodes"][0]["attrs"]["plain"] = text
    (node,) = Graph._read(record).nodes
    assert node.attributes == {"__note__": text, "plain": value}
    assert type(node.attributes["plain"]) is type(value)


def variables(*names):
    return [Value(Node(VARIABLE, name)) for name in names]


def test_nodes_come_after_those_that_they_take_values_from():
    x, y = variables("x", "y")
    total = Node("elemwise_add", "sum", [x, y])
    product = Node("elemwise_mul", "product", [Value(total), y])
    graph = Graph([Value(product)])
    assert [node.name for node in graph.nodes] == ["x", "y", "sum", "product"]


def test_very_deep_graphs_are_read():
    value = variables("x")[0]
    for number in range(5000):
        value = Value(Node("relu", f"relu{number}", [value]))
    assert len(Graph([value]).nodes) == 5001


def test_users_are_told_for_each_use_and_each_output():
    x, y = variables("x", "y")
    square = Node("elemwise_mul", "square", [x, x])
    split = Node("SliceChannel", "split", [y], {"num_outputs": 2})
    total = Node("elemwise_add", "sum", [Value(square), Value(split, 1)])
    graph = Graph([Value(total), x])
    users = graph.users()
    assert users[x] == [square, square, graph.end]
    assert users[Value(split, 1)] == [total]
    assert not users[Value(split, 0)]


def test_replaced_values_are_replaced_everywhere_and_one_after_the_other():
    x, y, z = variables("x", "y", "z")
    total = Node("elemwise_add", "sum", [x, y])
    graph = Graph([Value(total), y])
    graph.replace({x: y, y: z})
    assert total.inputs == [z, z]
    assert graph.end.inputs == [Value(total), z]
    assert [node.name for node in graph.nodes] == ["z", "sum"]


def test_added_nodes_compute():
    graph = Graph.of(mx.sym.relu(mx.sym.var("x"), name="relu"))
    (output,) = graph.end.inputs
    clipped = Node("clip", "clipped", [output], {"a_min": 0.0, "a_max": 1.5})
    graph.end.inputs = [Value(clipped)]
    executor = graph.symbol().bind(mx.cpu(), {"x": mx.nd.array([-1, 1, 2])})
    np.testing.assert_array_equal(executor.forward()[0].asnumpy(), [0, 1, 1.5])
