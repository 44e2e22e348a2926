# SPDX-License-Identifier: Apache-2.0
"""From logits to named classes with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from gluon_resnet.errors import InputError

_CLASSES_DIR = Path(__file__).parent / "classes"


@cache
def load_class_names(dataset: str = "imagenet") -> tuple[str, ...]:
    """Return the names of a data set's classes, in label order.

    dataset: "imagenet" (the first name of each synset; "crane" and "maillot" stand
    for two classes each, so a label identifies a class and a name does not),
    "imagenet21k_miil" (MIIL's 11,221 classes, named so, too), "cub200", "cifar10",
    "cifar100" or "fashion_mnist". `classes/README.md` says where they are from.

    Raises InputError for another name.
    """
    known = sorted(path.stem for path in _CLASSES_DIR.glob("*.txt"))
    if dataset not in known:
        raise InputError(f"data set {dataset!r} is unknown; use {' or '.join(known)}")
    if dataset.startswith("imagenet"):
        return tuple(names.partition(",")[0] for _, names in synsets(dataset))
    return tuple(_lines(dataset))


def synsets(dataset: str) -> list[tuple[str, str]]:
    """Return WordNet ID and names of the classes of an ImageNet, in label order.

    A synset's names stand in one text: ("n01440764", "tench, Tinca tinca").
    """
    lines = (line.partition(" ") for line in _lines(dataset))
    return [(wnid, names) for wnid, _, names in lines]


def _lines(dataset: str) -> list[str]:
    return (_CLASSES_DIR / f"{dataset}.txt").read_text(encoding="utf-8").splitlines()


def postprocess(
    logits: np.ndarray, k: int = 5, *, class_names: Sequence[str] | None = None
) -> list:
    """Return the k most probable classes, the best first.

    logits: (C,) gives a list of (label, class name, probability); a batch (N, C) gives
    N such lists. An NDArray is taken as well. Equal logits: the lower label first.
    k above C gives all C. class_names: C names; ImageNet's if not given.
    The softmax is computed in float64.

    Raises InputError if a logit is not finite, the shape or k is wrong, or class_names
    does not have C entries.
    """
    logits = np.asarray(logits.asnumpy() if hasattr(logits, "asnumpy") else logits)
    names = load_class_names() if class_names is None else class_names
    if logits.ndim not in (1, 2):
        raise InputError(f"logits have shape {logits.shape}; give (C,) or (N, C)")
    if logits.ndim == 2:
        return [postprocess(row, k, class_names=names) for row in logits]
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 class")
    if len(names) != len(logits):
        raise InputError(
            f"there are {len(logits)} logits but {len(names)} class names; "
            "give class_names of the data set that the net was trained on"
        )
    if not np.isfinite(logits).all():
        raise InputError("a logit is NaN or infinite; check the weights and the input")

    probabilities = softmax(logits)
    best = best_classes(logits, k)
    return [(int(label), names[label], float(probabilities[label])) for label in best]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (..., C), in float64."""
    logits = logits.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def best_classes(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the labels of the k highest of scores (..., C), the best first.

    int64 (..., k), or (..., C) where k is above C. Equal scores: the lower label first.
    """
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]
