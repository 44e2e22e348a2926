# SPDX-License-Identifier: Apache-2.0
"""The card of a weights file: how it is to be used, and where it comes from.

Weights alone tell neither the pixels that they were trained on nor what their classes
are, and a guess costs accuracy, or answers with wrong names, without any error. So the
card travels with them: inside a file whose format has room for texts (.safetensors and
.onnx, under the name `CARD_KEY`), beside any other as NAME.json.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.postprocess import load_class_names
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights.arrays import shown
from gluon_resnet.weights.formats import read_metadata

log = logging.getLogger(__name__)

CARD_KEY = "gluon_resnet.card"
"""What the card is called among the texts inside a file."""

_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class FileDigest:
    """Which file is meant."""

    name: str
    sha256: str
    """All 64 hexadecimal digits, or the first ones where no more are published."""


@dataclass(frozen=True)
class Card:
    """How to use weights, and where they come from."""

    model: str
    """Their network, a name of `list_models`."""
    protocol: Protocol
    """How images are prepared."""
    classes: Optional[tuple[str, ...]] = None
    """The names of the classes by label; None: not known."""
    data_set: Optional[str] = None
    """What they were trained on."""
    weights: Optional[FileDigest] = None
    """The file that the card lies beside, or that is published."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured: {"top1": percent, ...}."""
    licence: Optional[str] = None
    """SPDX identifier."""
    parent: Optional[str] = None
    """The weights that these were made from."""


def class_names_of(
    data_set: Optional[str], num_classes: int
) -> Optional[tuple[str, ...]]:
    """Return the names of a data set's classes where they are known and as many."""
    try:
        names = load_class_names(data_set) if data_set else ()
    except InputError:  # a data set of the user's own
        return None
    return names if len(names) == num_classes else None


def card_to_text(card: Card) -> str:
    """Return the card as JSON."""
    return json.dumps(asdict(card), indent=1, ensure_ascii=False)


def card_from_text(text: str, where: str) -> Card:
    """Return the card that `card_to_text` wrote; `where` names its place in an error.

    What a newer card tells beside is left out, with an info line. Raises InputError
    where the text is no card or its protocol breaks a rule.
    """
    try:
        return card_from_fields(json.loads(text), where)
    except ValueError as error:
        raise InputError(
            f"{where} is no card of weights ({shown(error)}): mend or remove it"
        ) from None


def card_from_fields(stored: Any, where: str) -> Card:
    """Return the card that is an object in JSON; raises InputError where it is none."""
    if not isinstance(stored, dict):
        raise InputError("it is no JSON object")
    names = {field.name for field in fields(Card)}
    if unknown := sorted(stored.keys() - names):
        log.info(
            "%s also tells %s, of which this version does not know",
            where,
            ", ".join(map(shown, unknown)),
        )
    values = {name: stored[name] for name in names & stored.keys()}
    for name in ("model", "protocol"):
        if name not in values:
            raise InputError(f"it does not tell the {name}")
    values["protocol"] = _protocol(values["protocol"])
    for name, (holds, rule) in _RULES.items():
        if name in values and values[name] is not None and not holds(values[name]):
            raise InputError(f"{name} must be {rule}")
    if values.get("classes") is not None:
        values["classes"] = tuple(values["classes"])
    if values.get("weights") is not None:
        values["weights"] = FileDigest(**values["weights"])
    if values.get("metrics") is None:
        values.pop("metrics", None)
    return Card(**values)


def card_path(weights: Path) -> Path:
    """Return where the card beside a weights file is: the same name, ending in .json.

    That of weights in parts is beside their index.
    """
    if weights.name.endswith(_INDEX):
        return weights.with_name(f"{weights.name[: -len(_INDEX)]}.json")
    return weights.with_suffix(".json")


def write_card(weights: Path, card: Card, *, written: Optional[Path] = None) -> None:
    """Write the card beside `weights`, which it tells the name and the digest of.

    written: where the weights are as long as they have not got their name.
    Raises InputError where that cannot be done.
    """
    digest = FileDigest(weights.name, digest_of(written or weights))
    with replacing(card_path(weights)) as part:
        text = card_to_text(replace(card, weights=digest))
        part.write_text(text + "\n", encoding="utf-8")


def read_card(
    weights: Path, metadata: Optional[Mapping[str, str]] = None
) -> Optional[Card]:
    """Return the card inside `weights`, else that beside it, None if it has none.

    The card of a link may also be beside the file that it leads to. A warning tells
    where a card beside a file was written for other bytes.
    metadata: the texts inside the file, where they have been read already.
    Raises InputError where the weights cannot be read, where the card is none or its
    protocol breaks a rule.
    """
    metadata = read_metadata(weights) if metadata is None else metadata
    if CARD_KEY in metadata:
        return card_from_text(metadata[CARD_KEY], f"the card in {weights}")
    for path in (card_path(weights), card_path(weights.resolve())):
        if path.is_file() and path != weights:
            return _card_beside(path, weights)
    return None


def check_model(stored: str, model: str, where: str) -> None:
    """Raise InputError unless the card or row at `where`, which names `stored`, fits.

    Some networks have the same parameters and compute otherwise: v1c and v1d.
    """
    if stored != model:
        raise InputError(
            f"{where} says that these are weights of {stored}, not of {model}; give "
            f"--model {stored}"
        )


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hexadecimal digits."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _card_beside(path: Path, weights: Path) -> Card:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(
            f"{path} is no card of weights ({reason}): mend or remove it"
        ) from None
    card = card_from_text(text, str(path))
    if card.weights and not digest_of(weights).startswith(card.weights.sha256):
        log.warning(
            "%s was written for another file than %s: its pixels and class names may "
            "not be those of these weights",
            path,
            weights,
        )
    return card


def _protocol(stored: Any) -> Protocol:
    if not isinstance(stored, dict):
        raise InputError("protocol must be an object")
    known = {field.name for field in fields(Protocol)}
    # Unlike a field of the card, one of the pixels cannot be left out.
    if unknown := sorted(stored.keys() - known):
        raise InputError(f"this version cannot prepare images by {shown(unknown[0])}")
    try:
        return Protocol(**stored)
    except TypeError:
        raise InputError("a value of protocol is of a wrong type") from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_RULES = {
    "model": (_is_text, "a text"),
    "classes": (
        lambda names: isinstance(names, list) and all(map(_is_text, names)),
        "a list of names",
    ),
    "data_set": (_is_text, "a text"),
    "weights": (
        lambda file: (
            isinstance(file, dict)
            and file.keys() == {"name", "sha256"}
            and all(map(_is_text, file.values()))
        ),
        "an object of name and sha256",
    ),
    "metrics": (
        lambda metrics: (
            isinstance(metrics, dict)
            and all(isinstance(value, (int, float)) for value in metrics.values())
        ),
        "an object of numbers",
    ),
    "licence": (_is_text, "a text"),
    "parent": (_is_text, "a text"),
}
