# SPDX-License-Identifier: Apache-2.0
"""A network as a graph of operators, to read and to rewrite.

The one place that knows how MXNet writes a `Symbol` down. Nodes refer to the nodes that
they take values from; a graph is what its outputs depend on.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mxnet as mx

VARIABLE = "null"
"""The `op` of variables: the images, and the network's arrays."""
# Without it MXNet takes a graph for one of an early version.
_MXNET_VERSION = json.loads(mx.sym.var("any").tojson())["attrs"]
_LIST = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None}


@dataclass(eq=False)
class Node:
    """An operator or a variable."""

    op: str
    name: str
    inputs: list["Value"] = field(default_factory=list, repr=False)
    attributes: dict[str, Any] = field(default_factory=dict)
    """Booleans, numbers, tuples of them, None, or text; always text where the name
    starts with two underscores: these are notes, which no operator reads."""
    subgraphs: list["Graph"] = field(default_factory=list, repr=False)
    """What MXNet's own fusion has put into an operator."""

    def input(self, number: int = 0) -> "Node":
        """Return the node that computes an input."""
        return self.inputs[number].node


class Value(NamedTuple):
    """An output of a node."""

    node: Node
    output: int = 0


class Graph:
    """All that the outputs of a network depend on."""

    def __init__(self, outputs: Iterable[Value]):
        self.end = Node("", "", list(outputs))
        """Takes the outputs, so that they are used as any other value is."""

    @classmethod
    def of(cls, symbol: mx.sym.Symbol) -> "Graph":
        """Return the graph of a symbol."""
        return cls.from_json(symbol.tojson())

    @classmethod
    def from_json(cls, text: str) -> "Graph":
        """Return the graph that MXNet wrote down as `text`.

        Of another text it raises what reading it happens to raise.
        """
        return cls._read(json.loads(text))

    def symbol(self) -> mx.sym.Symbol:
        """Return the graph as a symbol."""
        return mx.sym.load_json(json.dumps(self._written()))

    @property
    def nodes(self) -> list[Node]:
        """All nodes, each after those that it takes values from."""
        nodes: list[Node] = []
        seen = {self.end}
        path = [(self.end, iter(self.end.inputs))]
        while path:
            node, inputs = path[-1]
            source = next((i.node for i in inputs if i.node not in seen), None)
            if source is None:
                nodes.append(node)
                path.pop()
            else:
                seen.add(source)
                path.append((source, iter(source.inputs)))
        return nodes[:-1]  # without the end

    def users(self) -> Mapping[Value, list[Node]]:
        """Map each value to the nodes that take it, `end` among them."""
        users = defaultdict(list)
        for node in (*self.nodes, self.end):
            for value in node.inputs:
                users[value].append(node)
        return users

    def replace(self, replacements: Mapping[Value, Value]) -> None:
        """Let the users of some values take others instead."""
        for node in (*self.nodes, self.end):
            for number, value in enumerate(node.inputs):
                while value in replacements:
                    value = replacements[value]
                node.inputs[number] = value

    @classmethod
    def _read(cls, record: dict[str, Any]) -> "Graph":
        nodes: list[Node] = []

        def values(entries: list[list[int]]) -> list[Value]:
            return [Value(nodes[node], output) for node, output, *_ in entries]

        for entry in record["nodes"]:
            attributes = {
                name: text if name.startswith("__") else _parsed(text)
                for name, text in entry.get("attrs", {}).items()
            }
            subgraphs = [cls._read(inner) for inner in entry.get("subgraphs", ())]
            inputs = values(entry["inputs"])
            nodes.append(
                Node(entry["op"], entry["name"], inputs, attributes, subgraphs)
            )
        return cls(values(record["heads"]))

    def _written(self) -> dict[str, Any]:
        nodes = self.nodes
        index = {node: number for number, node in enumerate(nodes)}

        def entries(values: list[Value]) -> list[list[int]]:
            return [[index[value.node], value.output, 0] for value in values]

        return {
            "nodes": [
                {
                    "op": node.op,
                    "name": node.name,
                    "inputs": entries(node.inputs),
                    "attrs": {name: str(v) for name, v in node.attributes.items()},
                    "subgraphs": [inner._written() for inner in node.subgraphs],
                }
                for node in nodes
            ],
            "arg_nodes": [index[node] for node in nodes if node.op == VARIABLE],
            "heads": entries(self.end.inputs),
            "attrs": _MXNET_VERSION,
        }


def _parsed(text: str) -> Any:
    """Return what an attribute says: "(1, 1)", "True", "1e-05", "relu"."""
    listed = _LIST.fullmatch(text)
    if listed is None:
        return _parsed_item(text)
    items = [_parsed_item(item.strip()) for item in listed[1].split(",")]
    if items[-1] == "":  # after a last comma, or of nothing at all
        items.pop()
    return text if any(isinstance(item, str) for item in items) else tuple(items)


def _parsed_item(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text
