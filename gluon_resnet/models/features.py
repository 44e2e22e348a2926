# SPDX-License-Identifier: Apache-2.0
"""Feature maps of a network's stages."""

from collections.abc import Sequence
from typing import Optional, Union

import mxnet as mx

from gluon_resnet.errors import InputError


def extract_feat(
    net, images: mx.nd.NDArray, stages: Optional[Sequence[Union[int, str]]] = None
) -> tuple[mx.nd.NDArray, ...]:
    """Return what the named stages of a network of this package give for `images`.

    images: float32 (N, C, H, W). A stage is 1 to the number of stages, for its map
    (N, C, H, W), or "pooled", for the vector (N, C) that the classifier sees: after the
    last BN and ReLU of v2 nets. The results come in the order asked for; the default is
    every stage, then "pooled".
    Raises InputError for a stage that the network has not.
    """
    available = {i + 1: f"stage{i + 1}" for i in range(len(net.spec.blocks))}
    available["pooled"] = "flatten"
    stages = tuple(available) if stages is None else stages
    for stage in stages:
        if stage not in available:
            raise InputError(
                f"{net.spec.name} has no stage {stage!r}; "
                f"choose from {', '.join(map(repr, available))}"
            )
    maps = _outputs(net, images, {available[stage] for stage in stages})
    return tuple(maps[available[stage]] for stage in stages)


def last_map(net, images: mx.nd.NDArray) -> mx.nd.NDArray:
    """Return the map (N, C, H, W) that a network's pooling sees."""
    last = "relu" if net.spec.preactivated else f"stage{len(net.spec.blocks)}"
    return _outputs(net, images, {last})[last]


def _outputs(net, images: mx.nd.NDArray, wanted: set[str]) -> dict:
    """Run layer by layer until all `wanted` have answered; returns what ran."""
    outputs = {}
    for name, layer in net._children.items():
        if wanted <= outputs.keys():
            break
        images = outputs[name] = layer(images)
    return outputs
