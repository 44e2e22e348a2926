# SPDX-License-Identifier: Apache-2.0
"""The images of a training run: the batches of its epochs and of its validations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import mxnet as mx

from gluon_resnet.data.in_memory import decoded_once
from gluon_resnet.data.loader import (
    Batches,
    OnDamaged,
    Read,
    training_batches,
    validation_batches,
)
from gluon_resnet.data.records import RecordFile
from gluon_resnet.training.recipe import Recipe, training_pixels, training_transforms


@dataclass(frozen=True)
class Images:
    """Two record files, as a recipe shows them."""

    recipe: Recipe
    train: RecordFile
    read_train: Read
    validation: RecordFile
    read_validation: Read
    validation_batch_size: int
    workers: Optional[int]

    def epoch(self, epoch: int, *, start_batch: int, on_damaged: OnDamaged) -> Batches:
        """Return the batches of an epoch, counted from 0, from `start_batch` on."""
        recipe = self.recipe
        return training_batches(
            list(self.train.offsets),
            self.read_train,
            batch_size=recipe.batch_size,
            protocol=training_pixels(recipe),
            transforms=training_transforms(recipe),
            seed=recipe.seed,
            epoch=epoch,
            repeats=recipe.repeats,
            start_batch=start_batch,
            workers=self.workers,
            on_damaged=on_damaged,
        )

    def validations(self, *, on_damaged: OnDamaged) -> Batches:
        """Return the batches of a validation."""
        return validation_batches(
            list(self.validation.offsets),
            self.read_validation,
            batch_size=self.validation_batch_size,
            protocol=self.recipe.protocol,
            workers=self.workers,
            on_damaged=on_damaged,
        )


def open_images(
    recipe: Recipe,
    train_rec: Path,
    val_rec: Path,
    *,
    contexts: Sequence[mx.Context],
    workers: Optional[int] = None,
    max_images: Optional[int] = None,
) -> Images:
    """Open the files of a run; of each, the first `max_images`.

    A file whose pixels fit in memory is decoded once and not in each epoch. Raises
    InputError where a file cannot be read.
    """
    train, validation = (
        _first(RecordFile.open(path, num_classes=recipe.num_classes), max_images)
        for path in (train_rec, val_rec)
    )
    # On one device, and what fits it in training fits it here.
    validation_batch_size = recipe.batch_size // (len(contexts) * recipe.accumulate)
    return Images(
        recipe,
        train,
        decoded_once(train),
        validation,
        decoded_once(validation),
        max(1, validation_batch_size),
        workers,
    )


def _first(records: RecordFile, count: Optional[int]) -> RecordFile:
    return replace(records, offsets=dict(list(records.offsets.items())[:count]))
