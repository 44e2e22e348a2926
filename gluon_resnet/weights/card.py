# SPDX-License-Identifier: Apache-2.0
"""The card beside a weights file: NAME.json says how NAME.params is to be used.

Weights alone do not tell the pixels they were trained on, and other pixels cost points
of accuracy without any error.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.preprocess import Protocol


@dataclass(frozen=True)
class Card:
    """How to use a weights file."""

    model: str
    """Its network, a name of `list_models`."""
    protocol: Protocol
    """How images are prepared."""
    data_set: Optional[str] = None
    """Whose class names it answers with, for `load_class_names`; None: not named."""


def card_path(weights: Path) -> Path:
    """Return where the card of a weights file is: the same name, ending in .json."""
    return weights.with_suffix(".json")


def write_card(weights: Path, card: Card) -> None:
    """Write the card beside `weights`. Raises InputError where that cannot be done."""
    with replacing(card_path(weights)) as part:
        part.write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")


def read_card(weights: Path) -> Optional[Card]:
    """Return the card of `weights`, None if it has none.

    Raises InputError where the file is no card or its protocol breaks a rule.
    """
    path = card_path(weights)
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Card(**{**fields, "protocol": Protocol(**fields["protocol"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is no card of weights ({error}); it holds model, protocol and "
            "data_set as `gluon_resnet.train` writes them: mend or remove it"
        ) from None


def check_model(stored: str, model: str, weights: Path) -> None:
    """Raise InputError unless `weights`, which name `stored`, are of `model`.

    Some networks have the same parameters and compute otherwise: v1c and v1d.
    """
    if stored != model:
        raise InputError(
            f"{weights} says that these are weights of {stored}, not of {model}; give "
            f"--model {stored}"
        )
