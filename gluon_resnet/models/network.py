# SPDX-License-Identifier: Apache-2.0
"""What `create_model` returns: a network that knows its row and its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from gluon_resnet.errors import InputError
from gluon_resnet.models.catalog import ModelSpec
from gluon_resnet.models.features import MAP, as_images, taps
from gluon_resnet.models.layers import Chain
from gluon_resnet.preprocess import ImageSource, Protocol, preprocess_batch


class Network(Chain):
    """Stem, stages, pooling and classifier; without classifier it ends in the vector.

    float32 images (N, C, H, W) -> logits (N, num_classes), or (N, channels).
    """

    spec: ModelSpec
    """Its row of the catalog."""
    protocol: Optional[Protocol] = None
    """How its images are prepared: as those of the weights that its name stands for."""
    fc: nn.Dense
    """The classifier, where there is one."""

    def preprocess(
        self, images: Union[ImageSource, Sequence[ImageSource]]
    ) -> mx.nd.NDArray:
        """Prepare an image, or a list of them, as `protocol` says.

        images: what `gluon_resnet.preprocess` takes. Returns float32 (N, 3, H, W) on
        the network's device.
        Raises InputError for what is no image, without a protocol, and for a network of
        other than three channels.
        """
        if self.protocol is None:
            raise InputError(
                f"this {self.spec.name} has no protocol: set net.protocol, or make it "
                "with create_model"
            )
        in_channels = self.stem.conv1.weight.shape[1]
        if in_channels != 3:
            raise InputError(
                f"this {self.spec.name} takes {in_channels} channels, and images are "
                "prepared as RGB: prepare them yourself, as they are in training"
            )
        batch = images if isinstance(images, (list, tuple)) else [images]
        pixels = preprocess_batch(batch, self.protocol)
        return mx.nd.array(pixels, ctx=self._contexts()[0])

    def forward_features(self, images: Union[np.ndarray, mx.nd.NDArray]):
        """Return the map (N, channels, h, w) that the pooling sees, as timm's does.

        images: float32 (N, C, H, W). Raises InputError for another shape.
        """
        return next(
            value for tap, value in taps(self, as_images(self, images)) if tap == MAP
        )

    def reset_classifier(self, num_classes: int) -> None:
        """Exchange the classifier for a fresh one; 0 leaves none, as in timm.

        A fresh one starts from N(0, 0.01), on the network's devices.
        Raises InputError for a number below 0.
        """
        check_num_classes(num_classes)
        contexts = self._contexts()
        self._clear_cached_op()  # the graph that was traced with the old one
        if "fc" in self._children:
            del self._children["fc"], self.fc
        if num_classes:
            with mx.name.Prefix(f"{self.spec.name}_"):
                self.fc = classifier(self.spec, num_classes)
            self.fc.initialize(ctx=contexts)

    def _contexts(self) -> list[mx.Context]:
        return next(iter(self.collect_params().values())).list_ctx()


@dataclass(frozen=True)
class Level:
    """A map of a `FeatureNet`: timm's `feature_info`."""

    index: int
    """0 for the stem, else the stage's number."""
    channels: int
    reduction: int
    """Side of the image / side of the map."""


class FeatureNet(Network):
    """The stem and the stages of a network; answers with some of their maps.

    float32 images (N, C, H, W) -> a list of maps (N, channels, h, w), level by level:
    0 is the stem before its max-pool, then come the stages.
    """

    def __init__(self, net: Network, out_indices: Sequence[int]):
        """out_indices: levels of `net`, ascending."""
        names = ("stem", *(f"stage{i}" for i in range(1, out_indices[-1] + 1)))
        super().__init__(**{name: getattr(net, name) for name in names})
        self.spec, self.protocol = net.spec, net.protocol
        self.feature_info = tuple(
            level for level in _levels(net) if level.index in out_indices
        )

    def hybrid_forward(self, F, x):
        """Return the maps of `feature_info`."""
        wanted = [level.index for level in self.feature_info]
        return [value for tap, value in taps(self, x) if tap in wanted]

    def reset_classifier(self, num_classes: int) -> None:
        """Raise InputError: there is none."""
        raise InputError("a network made with features_only has no classifier")


def classifier(spec: ModelSpec, num_classes: int) -> nn.Dense:
    """Return the last layer, not initialised: (N, channels) -> (N, num_classes)."""
    return nn.Dense(
        num_classes,
        in_units=spec.channels[-1],
        weight_initializer=mx.init.Normal(0.01),
    )


def check_num_classes(num_classes: int) -> None:
    """Raise InputError unless it is 0, for no classifier, or more."""
    if num_classes < 0:
        raise InputError(
            f"num_classes is {num_classes}; it must be at least 0 (0: no classifier)"
        )


def _levels(net: Network) -> list[Level]:
    stem = [layer for layer in net.stem if isinstance(layer, nn.Conv2D)]
    reduction = 2 if any(layer._kwargs["stride"] == (2, 2) for layer in stem) else 1
    levels = [Level(0, stem[-1].weight.shape[0], reduction)]
    reduction *= 2 if "pool" in net.stem._children else 1
    for index, channels in enumerate(net.spec.channels, 1):
        levels.append(Level(index, channels, reduction * 2 ** (index - 1)))
    return levels
