# SPDX-License-Identifier: Apache-2.0
"""A network with all that its answers need: weights, pixels and class names."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.device import Device, device
from gluon_resnet.errors import InputError
from gluon_resnet.inference.form import Forward, check_precision, inference_form
from gluon_resnet.inference.int8 import Int8Model, is_int8, load_int8
from gluon_resnet.models import extract_feat, model_spec
from gluon_resnet.models.features import POOLED, Tap
from gluon_resnet.postprocess import postprocess
from gluon_resnet.precision import needs_quantizing
from gluon_resnet.preprocess import ImageSource, Protocol, preprocess
from gluon_resnet.weights.card import Card, check_model, class_names_of
from gluon_resnet.weights.download import fetch
from gluon_resnet.weights.load import net_of, read_weights
from gluon_resnet.weights.published import checkpoint, row_of_url
from gluon_resnet.weights.usage import Usage, in_words, usage_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """`classifier(images)` maps prepared images (N, 3, H, W) to logits (N, C)."""

    name: str
    """MODEL.TAG of published weights, or MODEL with a file of the user's."""
    net: Union[HybridBlock, Int8Model]
    """The network layer by layer in fp32; an int8 model has no layers to look into."""
    card: Card
    """How the weights are used; `save_weights` takes it."""
    class_names: tuple[str, ...]
    """By label; "class 0", ... where they are not known."""
    ctx: mx.Context
    precision: str = "fp32"

    def __repr__(self) -> str:
        first = ", ".join(self.class_names[:2])
        return (
            f"<Classifier {self.name}: {len(self.class_names)} classes ({first}, ...), "
            f"images of {self.protocol.size} pixels, {self.precision} on {self.ctx}>"
        )

    def __call__(self, images: Union[np.ndarray, mx.nd.NDArray]) -> mx.nd.NDArray:
        """Return the logits on the network's device."""
        return self.forward(self.to_device(images))

    @property
    def protocol(self) -> Protocol:
        """How images are prepared for it."""
        return self.card.protocol

    def extract_feat(
        self,
        images: Union[np.ndarray, mx.nd.NDArray],
        stages: Sequence[Tap] = (POOLED,),
    ) -> tuple[mx.nd.NDArray, ...]:
        """Return feature maps of prepared images: see `gluon_resnet.extract_feat`.

        The default is OpenMMLab's: a tuple of the vector (N, C) that the classifier
        sees. Raises InputError for an int8 model, too.
        """
        if isinstance(self.net, Int8Model):
            raise InputError(
                f"{self.name} in int8 has no layers to look into; give the weights "
                "that it was made from"
            )
        return extract_feat(self.net, images, stages)

    @cached_property
    def forward(self) -> Forward:
        """The fastest form of `net` for images on its device, made on first use."""
        if isinstance(self.net, Int8Model):
            return self.net.form()
        return inference_form(self.net, precision=self.precision)

    def to_device(self, images: Union[np.ndarray, mx.nd.NDArray]) -> mx.nd.NDArray:
        """Copy prepared images to the network's device.

        Raises InputError where they have another number of channels than the weights.
        """
        if images.ndim == 4 and images.shape[1] != (channels := self._in_channels):
            raise InputError(
                f"the images have {images.shape[1]} channels, {self.name} with these "
                f"weights takes {channels}; `preprocess` gives 3: prepare them "
                "yourself, as they were in training"
            )
        if isinstance(images, mx.nd.NDArray):
            return images.as_in_context(self.ctx)
        return mx.nd.array(images, ctx=self.ctx)

    @property
    def _in_channels(self) -> int:
        if isinstance(self.net, Int8Model):
            return 3  # as the images that it was calibrated on
        return self.net.stem.conv1.weight.shape[1]


def init_model(
    name: Optional[str] = None,
    weights: Union[str, Path, None] = None,
    ctx: Device = None,
    *,
    precision: Optional[str] = None,
    accept_licence: bool = False,
) -> Classifier:
    """Return a model that is ready to classify; to train one see `create_model`.

    name: a model or an alias, or MODEL.TAG for one of its published weights
    (`list_weights`), also as the path of OpenMMLab's configuration. Without a tag the
    model's default weights are taken. None where the weights tell their network.
    weights: a URL of a published file, which is fetched as by its name; or a file of
    the user's own, in any format that `load_weights` reads. Its tensors decide the
    numbers of classes and of channels. Its card (`weights.card.Card`), or the row of
    the published file that it is, decides model, pixels and class names; MODEL.TAG as
    `name` the pixels in any case. Where nothing tells them, the pixels are those of the
    weights that `name` stands for and classes are numbered, with a warning.
    ctx: the device, MXNet's own or named as in "gpu(0)"; default the CPU.
    precision: "fp32", "bf16" or "int8"; default that of the weights. int8 takes a file
    of `gluon_resnet.quantize` as weights.
    accept_licence: take weights under a non-commercial licence, too.
    Raises InputError for an unknown name, for weights that cannot be had or do not fit
    (no other weights are taken in their place), and for a precision that is not the
    weights' or that this machine cannot run.
    """
    ctx = device(ctx)
    if name is None and weights is None:
        raise InputError("there is no model: give a name or a file of weights")
    if (row := row_of_url(weights, name)) is not None:
        name, weights = row.name, None
    if weights is not None and is_int8(weights):
        return _int8_model(name, Path(weights), ctx, precision)
    precision = precision or "fp32"
    check_precision(precision, ctx)
    if precision == "int8":
        raise InputError(needs_quantizing(name or "MODEL"))
    if weights is None:
        assert name is not None  # as was looked at
        row = checkpoint(name)
        file = read_weights(fetch(row, accept_licence=accept_licence))
        usage = Usage(row.name, row.card)
    else:
        file = read_weights(weights)
        usage = usage_of(file, name)
    card = usage.card
    net, report = net_of(model_spec(card.model), file, ctx=ctx)
    if usage.guess:
        log.warning("%s", usage.guess)
    num_classes, in_channels = net.fc.weight.shape[0], net.stem.conv1.weight.shape[1]
    if in_channels != 3:
        log.warning(
            "%s takes images of %d channels, `preprocess` gives 3: prepare them "
            "yourself",
            file.path,
            in_channels,
        )
    names = _class_names(card, num_classes, file.path)
    log.info(
        "%s: %d tensors of %s (named as %s); %s; %d classes%s",
        usage.name,
        report.loaded,
        file.path,
        report.layout,
        in_words(card.protocol),
        num_classes,
        f" of {card.data_set}" if card.data_set else "",
    )
    return Classifier(usage.name, net, card, names, ctx, precision)


def inference_model(model: Classifier, img: ImageSource) -> dict:
    """Classify one image, as OpenMMLab's function of this name does.

    Returns pred_label (int), pred_class (str), pred_score (its probability) and
    pred_scores (all probabilities, by label).
    Raises InputError where `img` is not an image that `preprocess` takes.
    """
    images = preprocess(img, model.protocol)[None]
    ranked = postprocess(
        model(images)[0], len(model.class_names), class_names=model.class_names
    )
    label, class_name, score = ranked[0]
    return {
        "pred_label": label,
        "pred_class": class_name,
        "pred_score": score,
        "pred_scores": [probability for _, _, probability in sorted(ranked)],
    }


def _int8_model(
    name: Optional[str], weights: Path, ctx: mx.Context, precision: Optional[str]
) -> Classifier:
    if precision not in (None, "int8"):
        raise InputError(
            f"{weights} is an int8 model, precision {precision} wants the weights it "
            "was made from"
        )
    check_precision("int8", ctx)
    net = load_int8(weights)
    model = net.spec.name
    if name is not None:
        check_model(model, model_spec(name).name, str(weights))
    class_names = _class_names(net.card, net.num_classes, weights)
    return Classifier(model, net, net.card, class_names, ctx, "int8")


def _class_names(card: Card, num_classes: int, weights: Path) -> tuple[str, ...]:
    """Return the names that a card tells, else numbers."""
    names: Optional[Sequence[str]] = card.classes
    if names is None:  # as early cards, which tell the data set
        names = class_names_of(card.data_set, num_classes)
    elif len(names) != num_classes:
        raise InputError(
            f"the card of {weights} names {len(names)} classes, the weights have "
            f"{num_classes}: mend or remove it"
        )
    return tuple(names or (f"class {label}" for label in range(num_classes)))
