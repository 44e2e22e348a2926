# SPDX-License-Identifier: Apache-2.0
"""Whether two graphs compute the same function of the same arrays, int8 or not.

MXNet's passes for int8 rename and join operators and turn sums around; the joined steps
are taken apart here again, and what only rounds is left out.
"""

from collections.abc import Hashable, Mapping
from typing import Any

from gluon_resnet.graph import VARIABLE, Graph, Value
from gluon_resnet.inference.steps import steps_of

Shapes = Mapping[str, tuple[int, ...]]
"""Of a graph's arrays, by their names."""

_CONVERSIONS = ("_contrib_quantize_v2", "_contrib_dequantize")
# Operators that a step may have along with its own, and what they are called for both.
_SUM, _PRODUCT = "elemwise_add", "broadcast_mul"


def compute_the_same(
    first: Graph, first_shapes: Shapes, second: Graph, second_shapes: Shapes
) -> bool:
    """Return whether operators, attributes and arrays agree, from images to logits."""
    numbers: dict[Hashable, int] = {}
    return _numbered(first, first_shapes, numbers) == _numbered(
        second, second_shapes, numbers
    )


def _numbered(
    graph: Graph, shapes: Shapes, numbers: dict[Hashable, int]
) -> tuple[int, ...]:
    """Return numbers of the outputs: equal ones have been computed in the same way."""

    def number(*way: Hashable) -> int:
        return numbers.setdefault(way, len(numbers))

    def both(op: str, one: int, other: int) -> int:
        return number(op, min(one, other), max(one, other))

    found: dict[Value, int] = {}

    def of(value: Value) -> int:
        if value.node.op == VARIABLE:
            return number("images")
        if value in found:
            return found[value]
        return number("output", value.output, found[Value(value.node)])

    for step in steps_of(graph):
        inputs = [of(value) for value in step.inputs]
        if step.op in _CONVERSIONS:
            (result,) = inputs
        elif step.op in (_SUM, _PRODUCT):
            result = both(step.op, *inputs)
        elif step.op in ("Activation", "sigmoid"):
            result = number(step.attrs.get("act_type", step.op), *inputs)
        else:
            arrays = ((name, shapes[name]) for name in step.arrays)
            result = number(step.op, _attributes(step.attrs), *inputs, *arrays)
        if step.factor:
            result = both(_PRODUCT, result, of(step.factor))
        if step.added:
            result = both(_SUM, result, of(step.added))
        if step.activation:
            result = number(step.activation, result)
        found[step.output] = result
    return tuple(map(of, graph.end.inputs))


def _attributes(attrs: Mapping[str, Any]) -> Hashable:
    """All but notes, which no operator reads, and numbers that may be any."""
    return frozenset(
        (name, value)
        for name, value in attrs.items()
        if name != "eps" and not name.startswith("__")
    )
