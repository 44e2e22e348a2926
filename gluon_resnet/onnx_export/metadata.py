# SPDX-License-Identifier: Apache-2.0
"""What an exported file tells of itself: JSON inside, a card and labels beside it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import mxnet as mx
import onnx
from onnx import helper

from gluon_resnet import __version__, bundled
from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.weights.card import (
    CARD_KEY,
    Card,
    FileDigest,
    card_from_text,
    card_to_text,
    digest_of,
    write_card,
)
from gluon_resnet.weights.download import cached_path
from gluon_resnet.weights.published import published_file

EXPORT_KEY = "gluon_resnet.export"
"""What the texts on the export itself are called in a file, beside those of the card:
form, input, outputs, accuracy and who measured it, versions."""
LABELS = "labels.txt"
"""The class names beside a file, one a line, by label."""


def describe(
    model: onnx.ModelProto, card: Card, weights: Path, export: Mapping[str, Any]
) -> None:
    """Put the card of `weights`, with their digest, and `export` into a model.

    No date is written: the same weights give the same file.
    """
    source = replace(card, weights=FileDigest(weights.name, digest_of(weights)))
    versions = {
        "exporter": f"gluon_resnet {__version__}",
        "mxnet": mx.__version__,
        "onnx": onnx.__version__,
    }
    told = json.dumps({**export, **versions}, indent=1, ensure_ascii=False)
    model.producer_version = __version__
    helper.set_model_props(model, {CARD_KEY: card_to_text(source), EXPORT_KEY: told})


def published_source(model: onnx.ModelProto) -> Optional[str]:
    """Return MODEL.TAG of the published weights that a model was made from.

    None where its card tells no published file, or the file is not on this machine.
    Raises InputError for a damaged card.
    """
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if CARD_KEY not in texts:
        return None
    told = card_from_text(texts[CARD_KEY], "the card in the file").weights
    row = published_file(told.name) if told else None
    if told is None or row is None:
        return None
    path = bundled.FOLDER / row.bundled if row.bundled else cached_path(row)
    is_it = path.is_file() and digest_of(path).startswith(told.sha256)
    return row.name if is_it else None


def check_labels(path: Path, card: Card) -> None:
    """Raise InputError where the labels beside `path` are those of other classes.

    A file that was exported before would answer with these from then on.
    """
    labels = path.with_name(LABELS)
    if card.classes is None or not labels.exists():
        return
    if labels.read_bytes() != _labels(card).encode():
        raise InputError(
            f"{labels} names other classes than those of {card.model}; export into "
            "another folder, or remove it"
        )


def write_beside(path: Path, card: Card, weights: Path, *, written: Path) -> None:
    """Write the card NAME.json beside `path`, and labels.txt where classes have names.

    weights: what was exported, the new card's parent. written: where the file is as
    long as it has not got its name. Raises InputError where that cannot be done.
    """
    if card.classes is not None:
        with replacing(path.with_name(LABELS)) as part:
            part.write_bytes(_labels(card).encode())
    write_card(path, replace(card, parent=weights.name), written=written)


def _labels(card: Card) -> str:
    return "".join(f"{name}\n" for name in card.classes or ())
