# SPDX-License-Identifier: Apache-2.0
"""The steps of an inference: MXNet's graph with all joined that one kernel can do.

A convolution does the sum, the activation and the rounding to int8 after it along, a
difference the product and the sum. Float graphs and those that `quantize` made become
steps of the same kinds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import mxnet as mx


class Value(NamedTuple):
    """An output of a node of the graph."""

    node: int
    output: int


@dataclass(frozen=True)
class Step:
    """One of MXNet's operators with what is done along with it."""

    op: str
    name: str
    inputs: tuple[Value, ...]
    """Values that are computed; those of `arrays` are given."""
    output: Value
    attrs: Mapping[str, str]
    arrays: tuple[str, ...] = ()
    """The names of weight and bias, where it has them."""
    factor: Optional[Value] = None
    """What the result is multiplied by."""
    added: Optional[Value] = None
    """What is added to the result."""
    replaces_added: bool = True
    """Whether no later step needs `added`, so that the result may take its place."""
    activation: Optional[str] = None
    """"relu" or "sigmoid"."""
    limits: Optional[tuple[float, float]] = None
    """The range of the result, where it becomes int8."""


# What may follow an operator within its step, in this order.
_FOLLOWERS = {
    "Convolution": (
        "elemwise_add",
        "Activation",
        "sigmoid",
        "_contrib_quantize_v2",
        "_contrib_dequantize",
    ),
    "broadcast_mul": ("elemwise_add", "_contrib_quantize_v2"),
    "elemwise_sub": ("broadcast_mul", "elemwise_add", "_contrib_quantize_v2"),
    "elemwise_add": ("Activation", "_contrib_quantize_v2"),
}


def steps_of(symbol: mx.sym.Symbol) -> list[Step]:
    """Return the steps of a graph in an order in which they can be done."""
    nodes = json.loads(symbol.tojson())["nodes"]
    inputs = [_inputs(nodes, node) for node in nodes]
    users = {}
    for index, values in enumerate(inputs):
        for value in values:
            users.setdefault(value, []).append(index)
    taken = set()
    steps = []
    for index, node in enumerate(nodes):
        if node["op"] == "null" or index in taken:
            continue
        step = _step(nodes, index, inputs[index])
        for op in _FOLLOWERS.get(step.op, ()):
            if len(users.get(step.output, ())) != 1:
                break
            (user,) = users[step.output]
            if nodes[user]["op"] != op:
                continue
            others = [value for value in inputs[user] if value != step.output]
            if any(other.node > index for other in others):
                break  # That one comes later, and its step does this along.
            if op == "elemwise_add":
                step = replace(step, added=others[0])
            elif op == "broadcast_mul":
                step = replace(step, factor=others[0])
            elif op in ("Activation", "sigmoid"):
                activation = nodes[user].get("attrs", {}).get("act_type", op)
                step = replace(step, activation=activation)
            elif op == "_contrib_dequantize":
                step = replace(step, limits=None)
            else:
                step = replace(step, limits=_limits(nodes[user]["attrs"]))
            step = replace(step, output=Value(user, 0))
            taken.add(user)
        steps.append(step)
    last_reader = {
        value: position
        for position, step in enumerate(steps)
        for value in (*step.inputs, step.factor, step.added)
    }
    return [
        replace(step, replaces_added=last_reader.get(step.added) == position)
        for position, step in enumerate(steps)
    ]


def _inputs(nodes: list[dict], node: dict) -> list[Value]:
    """The values that a node takes, but arrays and the range that comes with int8."""

    def is_computed(source: dict, output: int) -> bool:
        if source["op"] == "null":
            return source["name"] == "data"
        return output == 0 or source["op"] == "SliceChannel"

    return [
        Value(source, output)
        for source, output, *_ in node["inputs"]
        if is_computed(nodes[source], output)
    ]


def _step(nodes: list[dict], index: int, inputs: list[Value]) -> Step:
    """A node as a step, with what MXNet joined in it."""
    node = nodes[index]
    step = Step(
        op=node["op"],
        name=node["name"],
        inputs=tuple(inputs),
        output=Value(index, 0),
        attrs=node.get("attrs", {}),
        arrays=tuple(
            nodes[source]["name"]
            for source, *_ in node["inputs"]
            if nodes[source]["op"] == "null" and nodes[source]["name"] != "data"
        ),
    )
    if "max_calib_range" in step.attrs:
        step = replace(step, limits=_limits(step.attrs))
    if "subgraphs" in node:
        inner = next(n for n in node["subgraphs"][0]["nodes"] if n["op"] != "null")
        return replace(
            step,
            op=inner["op"],
            inputs=step.inputs[:1],
            attrs=inner["attrs"],
            added=inputs[1] if len(inputs) > 1 else None,
            activation="relu"
            if "true" in map(step.attrs.get, ("with_act", "with_postsum_act"))
            else None,
        )
    quantized = "_contrib_quantized_"
    if step.op.startswith(quantized):
        return replace(step, op=step.op[len(quantized) :].capitalize())
    return step


def _limits(attrs: Mapping[str, str]) -> tuple[float, float]:
    return float(attrs["min_calib_range"]), float(attrs["max_calib_range"])
