# SPDX-License-Identifier: Apache-2.0
"""A network with all that its answers need: weights, pixels and class names."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet import bundled
from gluon_resnet.device import Device, device
from gluon_resnet.errors import InputError
from gluon_resnet.inference.form import Forward, check_precision, inference_form
from gluon_resnet.inference.int8 import Int8Model, is_int8, load_int8
from gluon_resnet.models import extract_feat, model_spec
from gluon_resnet.models.features import POOLED, Tap
from gluon_resnet.models.resnet import empty_resnet
from gluon_resnet.postprocess import load_class_names, postprocess
from gluon_resnet.precision import needs_quantizing
from gluon_resnet.preprocess import ImageSource, Protocol, preprocess
from gluon_resnet.weights import (
    Checkpoint,
    checkpoint,
    classes_of,
    fetch,
    load_weights,
    published_file,
)
from gluon_resnet.weights.card import Card, card_path, check_model, read_card

log = logging.getLogger(__name__)

# The data sets whose class names are known, by their number of classes.
_DATA_SETS = {1000: "imagenet", 10: "cifar10", 100: "cifar100"}


@dataclass(frozen=True)
class Classifier:
    """`classifier(images)` maps prepared images (N, 3, H, W) to logits (N, C)."""

    name: str
    """MODEL.TAG of published weights, or MODEL with a file of the user's."""
    net: Union[HybridBlock, Int8Model]
    """The network layer by layer in fp32; an int8 model has no layers to look into."""
    protocol: Protocol
    class_names: tuple[str, ...]
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
        """Copy prepared images to the network's device."""
        if isinstance(images, mx.nd.NDArray):
            return images.as_in_context(self.ctx)
        return mx.nd.array(images, ctx=self.ctx)


def init_model(
    name: str,
    weights: Union[str, Path, None] = None,
    ctx: Device = None,
    *,
    precision: Optional[str] = None,
    accept_licence: bool = False,
) -> Classifier:
    """Return a model that is ready to classify; to train one see `create_model`.

    name: a model or an alias, or MODEL.TAG for one of its published weights
    (`list_weights`), also as the path of OpenMMLab's configuration. Without a tag the
    model's default weights are taken.
    weights: a URL of a published file, which is fetched as by its name; or a file of
    the user's own, in any format that `load_weights` reads;
    its classifier decides the number of classes, and its card (`card.Card`), if it has
    one, the pixels and the class names; without a card the pixels are those of the
    weights that `name` stands for.
    ctx: the device, MXNet's own or named as in "gpu(0)"; default the CPU.
    precision: "fp32", "bf16" or "int8"; default that of the weights. int8 takes a file
    of `gluon_resnet.quantize` as weights.
    accept_licence: take weights under a non-commercial licence, too.
    Raises InputError for an unknown name, for weights that cannot be had or do not fit
    (no other weights are taken in their place), and for a precision that is not the
    weights' or that this machine cannot run.
    """
    ctx = device(ctx)
    # A Path makes one slash of two.
    if is_url := re.match("(https?):/+(.+)", str(weights)):
        row = _published("{}://{}".format(*is_url.groups()), name)
        name, weights = row.name, None
    if weights is not None and is_int8(weights):
        return _int8_model(model_spec(name).name, Path(weights), ctx, precision)
    precision = precision or "fp32"
    check_precision(precision, ctx)
    if precision == "int8":
        raise InputError(needs_quantizing(name))
    if weights is None and name.lower() != bundled.NAME:
        row = checkpoint(name)
        path, name = fetch(row, accept_licence=accept_licence), row.name
        num_classes = row.num_classes
        card = Card(row.model, row.protocol, row.data_set)
    else:
        path = bundled.weights() if weights is None else Path(weights)
        num_classes = classes_of(path)
        card = _card(name, path, num_classes)
        name = bundled.NAME if weights is None else card.model
    net = empty_resnet(model_spec(card.model), num_classes=num_classes, ctx=ctx)
    load_weights(net, path)
    class_names = _class_names(card.data_set, num_classes)
    return Classifier(name, net, card.protocol, class_names, ctx, precision)


def inference_model(model: Classifier, img: ImageSource) -> dict:
    """Classify one image, as OpenMMLab's function of this name does.

    Returns pred_label (int), pred_class (str), pred_score (its probability) and
    pred_scores (all probabilities, by label).
    Raises InputError where `img` is not an image that `preprocess` takes.
    """
    images = preprocess(img, **asdict(model.protocol))[None]
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
    model: str, weights: Path, ctx: mx.Context, precision: Optional[str]
) -> Classifier:
    if precision not in (None, "int8"):
        raise InputError(
            f"{weights} is an int8 model, precision {precision} wants the weights it "
            "was made from"
        )
    check_precision("int8", ctx)
    net = load_int8(weights)
    card = net.card
    check_model(card.model, model, weights)
    return Classifier(model, net, card.protocol, tuple(card.class_names), ctx, "int8")


def _published(url: str, name: str) -> Checkpoint:
    """Return the row of a published file, which is of the network `name`."""
    row = published_file(url)
    if row is None:
        raise InputError(
            f"{url} is in no table of weights: download it and give the file's path"
        )
    if row.model != model_spec(name).name:
        raise InputError(
            f"{url} is {row.name}, not weights of {name}: give a name and a file of "
            "the same network"
        )
    log.info("%s is %s: its pixels and its classes are taken", url, row.name)
    return row


def _card(name: str, weights: Path, num_classes: int) -> Card:
    """Return the card of a user's file, or what the weights of this name have."""
    card, model = read_card(weights), model_spec(name).name
    if card is None:
        row = checkpoint(name)
        if num_classes != row.num_classes:
            log.warning(
                "%s has no card %s: its images are prepared as those of %s",
                weights,
                card_path(weights).name,
                row.name,
            )
        return Card(model, row.protocol, _DATA_SETS.get(num_classes))
    check_model(card.model, model, card_path(weights))
    return card


def _class_names(data_set: Optional[str], num_classes: int) -> tuple[str, ...]:
    names = load_class_names(data_set) if data_set else ()
    if len(names) == num_classes:
        return names
    return tuple(f"class {label}" for label in range(num_classes))
