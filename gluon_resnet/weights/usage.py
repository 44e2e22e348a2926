# SPDX-License-Identifier: Apache-2.0
"""How a weights file is used: by its card, as a published file is, or by a guess.

Pixels and class names are never taken from the number of classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Optional

from gluon_resnet.errors import InputError
from gluon_resnet.models import model_spec
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights.card import Card, card_path, check_model, read_card
from gluon_resnet.weights.load import WeightsFile
from gluon_resnet.weights.published import (
    Checkpoint,
    checkpoint,
    names_weights,
    row_of_file,
)

log = logging.getLogger(__name__)

# MXNet's gallery took pixels as they are, 0 to 255: its networks begin with a norm.
_GALLERY_MEAN, _GALLERY_STD = (0.0,) * 3, (1 / 255,) * 3


class Usage(NamedTuple):
    """What is known of a file's weights."""

    name: str
    """MODEL.TAG of a published file, else MODEL."""
    card: Card
    is_row: bool = False
    """Whether a row of the table tells it, not a card."""
    guess: str = ""
    """What is only guessed, for a warning once the weights have been found to fit."""


def usage_of(file: WeightsFile, name: Optional[str] = None) -> Usage:
    """Return how a file's weights are used; what nothing tells is guessed.

    Options and errors are those of `stated_usage`.
    """
    usage = stated_usage(file, name)
    if usage is None:
        assert name is not None  # else the model is stated, or that is an error
        usage = _guessed(file, model_spec(name).name, checkpoint(name))
    return usage


def stated_usage(file: WeightsFile, name: Optional[str] = None) -> Optional[Usage]:
    """Return what a file's card tells, or the row of the published file that it is.

    None where it has no card, is not in the table and `name` is a model's.
    name: the model, or MODEL.TAG for pixels and classes of these weights; None for the
    model that the card or the row names.
    Raises InputError for a damaged card, where the model is neither given nor known,
    and where card or row name another one.
    """
    known = _known_usage(file)
    if name is None:
        if known is None:
            raise InputError(
                f"{file.path} has no card {card_path(file.path).name} and is no "
                "published file: name the network that its weights are of (--model)"
            )
        return known
    model = model_spec(name).name
    if known is not None and known.card.model != model:
        if known.is_row and not _fits(file, model):
            return None  # to be refused with its keys, as any file that does not fit
        check_model(known.card.model, model, str(file.path))
    if names_weights(name):
        return _asked(file, checkpoint(name), known)
    return known


def in_words(protocol: Protocol) -> str:
    """Return how images are prepared, short enough for a line of a message."""
    return (
        f"{protocol.size} pixels, crop {protocol.crop_pct:g}, "
        f"{protocol.interpolation}, {protocol.resize}, {protocol.library}, mean "
        f"{_listed(protocol.mean)}, std {_listed(protocol.std)}"
    )


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _known_usage(file: WeightsFile) -> Optional[Usage]:
    card = read_card(file.path, file.content.metadata)
    if card is not None:
        try:
            model = model_spec(card.model).name
        except InputError as error:
            raise InputError(f"the card of {file.path}: {error}") from None
        return Usage(model, replace(card, model=model))
    if (found := row_of_file(file.path)) is None:
        return None
    row, by = found
    if not _has_classes_of(file, row):
        return None
    log.info("%s is %s, known by %s", file.path, row.name, by)
    return Usage(row.name, row.card, is_row=True)


def _fits(file: WeightsFile, model: str) -> bool:
    """Return whether a file has all parameters of a network and no others."""
    named = file.named(model_spec(model))
    return len(named.tensors) == len(named.keys) and not named.unexpected


def _has_classes_of(file: WeightsFile, row: Checkpoint) -> bool:
    """Return whether a file that is named as a published one has its classes."""
    try:
        return file.named(model_spec(row.model)).num_classes == row.num_classes
    except InputError:
        return False


def _asked(file: WeightsFile, row: Checkpoint, known: Optional[Usage]) -> Usage:
    """Use a file as the published weights that it was given the name of."""
    if known is not None and known.name == row.name:
        return known
    if known is not None and known.card.protocol != row.protocol:
        log.warning(
            "%s is known as %s (%s); images are prepared as those of %s (%s), as asked",
            file.path,
            known.name,
            in_words(known.card.protocol),
            row.name,
            in_words(row.protocol),
        )
    if known is not None and known.card.classes is not None:
        return Usage(row.model, replace(known.card, protocol=row.protocol))
    if _has_classes_of(file, row):
        return Usage(row.model, row.card)
    return Usage(row.model, Card(row.model, row.protocol))


def _guessed(file: WeightsFile, model: str, row: Checkpoint) -> Usage:
    protocol = row.protocol
    if file.normalisation is not None:
        mean, std = file.normalisation
        protocol = replace(protocol, mean=mean, std=std)
    elif file.named(model_spec(model)).layout == "mxnet_gallery":
        protocol = replace(protocol, mean=_GALLERY_MEAN, std=_GALLERY_STD)
    guess = (
        f"{file.path} has no card {card_path(file.path).name}: its pixels and class "
        f"names are guesses. Images are prepared as those of {row.name} "
        f"({in_words(protocol)}), classes have numbers for names"
    )
    return Usage(model, Card(model, protocol), guess=guess)
