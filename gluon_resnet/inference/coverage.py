# SPDX-License-Identifier: Apache-2.0
"""Which layers oneDNN's kernels compute, to know before the first image comes."""

from collections.abc import Callable
from typing import Optional

from gluon_resnet.graph import Graph
from gluon_resnet.inference import split_attention
from gluon_resnet.inference.steps import Step, steps_of
from gluon_resnet.models.traced import IMAGES, layer_of


def obstacle(graph: Graph) -> Optional[str]:
    """Say why kernels cannot compute a graph: "no kernel computes fc (Dropout)".

    graph: of `inference_graph`. None where they can.
    """
    for step in steps_of(graph):
        is_covered = _COVERED.get(step.op)
        if is_covered is None or not is_covered(step):
            layers = filter(None, map(layer_of, step.arrays))
            return f"no kernel computes {next(layers, step.name)} ({step.op})"
    if [value.node.op for value in graph.end.inputs] not in _ENDS:
        return "a plan ends in logits or in the pooled vector"
    return None


def _norms_image(step: Step) -> bool:
    """All other norms over the channels are convolutions by now."""
    source = step.inputs[0].node
    return source.name == IMAGES and step.attrs.get("axis", 1) in (1, -3)


def _is_of_attention(step: Step) -> bool:
    return split_attention.has_operator(step.output.node)


_ENDS = (["FullyConnected"], ["Flatten"])
# What operators.py computes, and what it takes for granted there.
_COVERED: dict[str, Callable[[Step], bool]] = {
    "Activation": lambda step: step.attrs["act_type"] == "relu",
    "BatchNorm": _norms_image,
    "Convolution": lambda step: set(step.attrs.get("dilate", ())) <= {1},
    "Flatten": lambda step: step.inputs[0].node.attributes.get("global_pool", False),
    "FullyConnected": lambda step: len(step.inputs) == 1,
    "Pooling": lambda step: step.attrs["pool_type"] in ("max", "avg"),
    "Reshape": _is_of_attention,
    "SliceChannel": _is_of_attention,
    "broadcast_mul": lambda step: len(step.inputs) == 2,
    "elemwise_add": lambda step: len(step.inputs) == 2,
    "elemwise_sub": lambda step: bool(step.factor and step.added),
    "sigmoid": lambda step: len(step.inputs) == 1,
    "softmax": _is_of_attention,
}
