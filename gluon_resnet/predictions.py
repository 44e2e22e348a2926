# SPDX-License-Identifier: Apache-2.0
"""What a net answered to images of known labels, and what follows from it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.data.loader import Batch
from gluon_resnet.device import Device, device
from gluon_resnet.errors import InputError
from gluon_resnet.postprocess import best_classes, softmax

# With more classes there is no room for names and numbers.
MOST_NAMED_CLASSES = 30


@dataclass(frozen=True)
class Accuracy:
    """Shares, in percent, of images whose label is the first or in the first five."""

    top1: float
    top5: float
    count: int


@dataclass(frozen=True)
class Predictions:
    """The answers to N images, in their order."""

    labels: np.ndarray
    """int64 (N,)."""
    ranked: np.ndarray
    """int64 (N, 5): the five best classes, best first; with C < 5 classes, (N, C)."""
    num_classes: int

    @property
    def hits(self) -> np.ndarray:
        """Where the label is among the ranked classes, bool like `ranked`."""
        return self.ranked == self.labels[:, None]


def validate(
    net: HybridBlock, batches: Iterable[Batch], *, ctx: Device = None
) -> Accuracy:
    """Score every image of `batches` once; arguments and errors are `predict`'s."""
    return accuracy(predict(net, batches, ctx=ctx))


def predict(
    net: HybridBlock, batches: Iterable[Batch], *, ctx: Device = None
) -> Predictions:
    """Rank the classes for every image of `batches`, (images, labels (N,)), once.

    images: (N, 3, H, W), or (N, K, 3, H, W) with K crops of each, whose probabilities
    are averaged: Krizhevsky et al., NIPS 2012, section 4.1, "averaging the predictions
    made by the network's softmax layer on the ten patches", which is the "standard
    10-crop testing" of arXiv:1512.03385, section 3.4. (The ONNX Model Zoo and GluonCV
    have no ten-crop script for images; fb.resnet.torch adds up logits.)
    Among equals the lower class comes first. Raises InputError when there is no image,
    a label is no class of the net or a logit is not finite.
    """
    labels, ranked = [], []
    found = device(ctx)
    for images, batch_labels in batches:
        scores = _scores(net, images, found)
        num_classes = scores.shape[1]
        if not set(batch_labels) <= set(range(num_classes)):
            raise InputError(
                f"labels from {min(batch_labels)} to {max(batch_labels)} for a network "
                f"of {num_classes} classes: give the images that it was trained for"
            )
        labels.append(batch_labels)
        ranked.append(best_classes(scores, 5))
    if not labels:
        raise InputError("there is no image to validate on: give a filled record file")
    return Predictions(np.concatenate(labels), np.concatenate(ranked), num_classes)


def _scores(net: HybridBlock, images: np.ndarray, ctx: mx.Context) -> np.ndarray:
    """Logits (N, C), or the mean probabilities where there are crops."""
    if images.ndim == 5:
        # Crop by crop: what runs together is as large as without crops.
        crops = (_scores(net, images[:, k], ctx) for k in range(images.shape[1]))
        return np.mean([softmax(logits) for logits in crops], axis=0)
    logits = net(mx.nd.array(images, ctx=ctx)).asnumpy()
    if not np.isfinite(logits).all():
        raise InputError(
            "the network answers with logits that are not finite: its weights are "
            "damaged or its training diverged"
        )
    return logits


def accuracy(predictions: Predictions) -> Accuracy:
    """Return top-1 and top-5 of all images."""
    count = len(predictions.labels)
    hits = predictions.hits
    return Accuracy(
        100 * int(hits[:, 0].sum()) / count, 100 * int(hits.sum()) / count, count
    )


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Count the images of each label (row) by their answer (column): int64 (C, C)."""
    num_classes = predictions.num_classes
    cells = predictions.labels * num_classes + predictions.ranked[:, 0]
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def per_class(predictions: Predictions, class_names: Sequence[str]) -> list[dict]:
    """Return a row for each class, by label.

    {"label", "class", "count", "top1", "top5", "wrong_label", "wrong_class",
    "wrong_count"}: images of the class, top-k in percent, and the wrong class that
    they are taken for most often (the lower of two) and how often. What there is
    nothing to say of (no image, no mistake) is None.
    """
    found = predictions.labels[predictions.hits.any(axis=1)]
    in_top5 = np.bincount(found, minlength=predictions.num_classes)
    rows = []
    for label, answers in enumerate(confusion_matrix(predictions)):
        count = int(answers.sum())
        mistakes = answers.copy()
        mistakes[label] = 0
        worst = int(mistakes.argmax()) if mistakes.any() else None
        rows.append(
            {
                "label": label,
                "class": class_names[label],
                "count": count,
                "top1": 100 * int(answers[label]) / count if count else None,
                "top5": 100 * int(in_top5[label]) / count if count else None,
                "wrong_label": worst,
                "wrong_class": None if worst is None else class_names[worst],
                "wrong_count": None if worst is None else int(mistakes[worst]),
            }
        )
    return rows


def write_per_class(path: Path, rows: Sequence[dict]) -> None:
    """Write the rows of `per_class` as CSV; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def draw_confusion(path: Path, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a PNG of a confusion matrix (C, C), the colour telling the share of a row.

    Up to `MOST_NAMED_CLASSES` classes are named and counted. Of more there are only the
    colours; they rise with the cube root, so that one mistake in fifty images shows.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = len(matrix) <= MOST_NAMED_CLASSES
    side = max(4, 0.55 * len(matrix)) if named else 14
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        percent,
        cmap="Blues" if named else "inferno",
        norm=PowerNorm(1 / 2 if named else 1 / 3, 0, 100),
        interpolation="nearest",
    )
    figure.colorbar(picture, label="% of the label's images", shrink=0.8)
    axes.set(xlabel="answer", ylabel="label")
    if named:
        places = range(len(matrix))
        axes.set_xticks(places, class_names, rotation=45, ha="right")
        axes.set_yticks(places, class_names)
        for row, column in np.argwhere(matrix):
            colour = "white" if percent[row, column] > 30 else "black"
            count = matrix[row, column]
            axes.text(column, row, count, color=colour, ha="center", va="center")
    figure.savefig(path, format="png", bbox_inches="tight")
