# SPDX-License-Identifier: Apache-2.0
"""Feature maps of a network's stages."""

from collections.abc import Iterator, Sequence
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError

POOLED = "pooled"
MAP = "map"
"""What the pooling sees: the last stage's map, after the last norm of v2 nets."""

Tap = Union[int, str]


def extract_feat(
    model: Any,
    images: Union[np.ndarray, mx.nd.NDArray],
    stages: Optional[Sequence[Tap]] = None,
) -> tuple[mx.nd.NDArray, ...]:
    """Return what the named stages of a network give for `images`.

    model: a network of this package, or what `init_model` returns.
    images: float32 (N, C, H, W). A stage is 0 for the stem's map before its max-pool, 1
    to the number of stages, for its map (N, C, H, W), or "pooled", for the vector (N,
    C) that the classifier sees: after the last BN and ReLU of v2 nets. The results come
    in the order asked for. The default is stage 1 to the last, then "pooled"; of what
    `init_model` returns it is "pooled" alone, as of OpenMMLab's.
    Computed layer by layer in float32. Raises InputError for a stage that the network
    has not, for images of another shape, and for an int8 model.
    """
    if not isinstance(model, HybridBlock):
        return model.extract_feat(images, (POOLED,) if stages is None else stages)
    blocks = range(1, len(model.spec.blocks) + 1)
    available: list[Tap] = [0, *(i for i in blocks if _has_stage(model, i))]
    available += [POOLED] if "pool" in model._children else []
    stages = available[1:] if stages is None else stages
    for stage in stages:
        if stage not in available:
            raise InputError(
                f"{model.spec.name} has no stage {stage!r}; "
                f"choose from {', '.join(map(repr, available))}"
            )
    found = {}
    for tap, value in taps(model, as_images(model, images)):
        found[tap] = value
        if found.keys() >= set(stages):
            break
    return tuple(found[stage] for stage in stages)


def last_map(net: HybridBlock, images: mx.nd.NDArray) -> mx.nd.NDArray:
    """Return the map (N, C, H, W) that a network's pooling sees."""
    return next(value for tap, value in taps(net, images) if tap == MAP)


def taps(net: HybridBlock, x: Any) -> Iterator[tuple[Tap, Any]]:
    """Run layer by layer; yields (tap, value) of each as soon as it is there.

    x: images (N, C, H, W), as arrays or as a symbol.
    """
    stem = net.stem._children
    for name, layer in stem.items():
        if name != "pool":  # the last, where there is one
            x = layer(x)
    yield 0, x
    if "pool" in stem:
        x = stem["pool"](x)
    for index in range(1, len(net.spec.blocks) + 1):
        if not _has_stage(net, index):
            return
        x = getattr(net, f"stage{index}")(x)
        yield index, x
    if net.spec.preactivated and "norm" in net._children:
        x = net.relu(net.norm(x))
    yield MAP, x
    if "pool" in net._children:
        yield POOLED, net.flatten(net.pool(x))


def as_images(
    net: HybridBlock, images: Union[np.ndarray, mx.nd.NDArray]
) -> mx.nd.NDArray:
    """Return `images` as float32 on the network's device.

    Raises InputError unless they have the network's shape (N, C, H, W).
    """
    weight = net.stem.conv1.weight
    shape, in_channels = np.shape(images), weight.shape[1]
    if len(shape) != 4 or shape[1] != in_channels:
        raise InputError(
            f"images of shape {shape} do not fit {net.spec.name}; give (N, "
            f"{in_channels}, H, W)"
        )
    if isinstance(images, mx.nd.NDArray):
        return images.as_in_context(weight.list_ctx()[0]).astype("float32", copy=False)
    return mx.nd.array(images, ctx=weight.list_ctx()[0], dtype="float32")


def _has_stage(net: HybridBlock, index: int) -> bool:
    return f"stage{index}" in net._children
