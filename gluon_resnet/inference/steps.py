# SPDX-License-Identifier: Apache-2.0
"""The steps of an inference: MXNet's graph with all joined that one kernel can do.

A convolution does the sum, the activation and the rounding to int8 after it along, a
difference the product and the sum. Float graphs and those that `quantize` made become
steps of the same kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional

from gluon_resnet.graph import VARIABLE, Graph, Node, Value
from gluon_resnet.models.traced import IMAGES


@dataclass(frozen=True)
class Step:
    """One of MXNet's operators with what is done along with it."""

    op: str
    name: str
    inputs: tuple[Value, ...]
    """Values that are computed; those of `arrays` are given."""
    output: Value
    attrs: Mapping[str, Any]
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


def steps_of(graph: Graph) -> list[Step]:
    """Return the steps of a graph in an order in which they can be done."""
    users = graph.users()
    position = {node: number for number, node in enumerate(graph.nodes)}
    taken: set[Node] = set()
    steps = []
    for node in position:
        if node.op == VARIABLE or node in taken:
            continue
        step = _step(node)
        for op in _FOLLOWERS.get(step.op, ()):
            if len(users[step.output]) != 1:
                break
            (user,) = users[step.output]
            if user.op != op:
                continue
            others = [value for value in _computed(user) if value != step.output]
            if op in ("elemwise_add", "broadcast_mul") and not others:
                break  # The other one is an array of the network.
            if any(position[other.node] > position[node] for other in others):
                break  # That one comes later, and its step does this along.
            if op == "elemwise_add":
                step = replace(step, added=others[0])
            elif op == "broadcast_mul":
                step = replace(step, factor=others[0])
            elif op in ("Activation", "sigmoid"):
                activation = user.attributes.get("act_type", op)
                if activation not in ("relu", "sigmoid"):
                    break
                step = replace(step, activation=activation)
            elif op == "_contrib_dequantize":
                step = replace(step, limits=None)
            else:
                step = replace(step, limits=_limits(user.attributes))
            step = replace(step, output=Value(user))
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


def _computed(node: Node) -> list[Value]:
    """The values that a node takes, but arrays and the range that comes with int8."""

    def is_computed(source: Node, output: int) -> bool:
        if source.op == VARIABLE:
            return source.name == IMAGES
        return output == 0 or source.op == "SliceChannel"

    return [value for value in node.inputs if is_computed(*value)]


def _step(node: Node) -> Step:
    """A node as a step, with what MXNet joined in it."""
    computed = _computed(node)
    sources = [value.node for value in node.inputs]
    step = Step(
        op=node.op,
        name=node.name,
        inputs=tuple(computed),
        output=Value(node),
        attrs=node.attributes,
        arrays=tuple(s.name for s in sources if s.op == VARIABLE and s.name != IMAGES),
    )
    if "max_calib_range" in step.attrs:
        step = replace(step, limits=_limits(step.attrs))
    if node.subgraphs:
        inner = next(n for n in node.subgraphs[0].nodes if n.op != VARIABLE)
        has_relu = step.attrs.get("with_act") or step.attrs.get("with_postsum_act")
        return replace(
            step,
            op=inner.op,
            inputs=step.inputs[:1],
            attrs=inner.attributes,
            added=computed[1] if len(computed) > 1 else None,
            activation="relu" if has_relu else None,
        )
    quantized = "_contrib_quantized_"
    if step.op.startswith(quantized):
        return replace(step, op=step.op[len(quantized) :].capitalize())
    return step


def _limits(attrs: Mapping[str, Any]) -> tuple[float, float]:
    return attrs["min_calib_range"], attrs["max_calib_range"]
