# SPDX-License-Identifier: Apache-2.0
"""Training from record files by a recipe, safe against being killed."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np

from gluon_resnet.data.augment import one_hot
from gluon_resnet.data.loader import Batch, Batches, Skip, refuse
from gluon_resnet.device import Device, device
from gluon_resnet.errors import InputError
from gluon_resnet.files import locked
from gluon_resnet.models import set_drop_block
from gluon_resnet.predictions import Accuracy, validate
from gluon_resnet.progress import progress
from gluon_resnet.random_streams import Use, mxnet_seed, stream
from gluon_resnet.training.interrupts import Interrupted, interrupts_held
from gluon_resnet.training.journal import draw_curves, journal, note_start, write_json
from gluon_resnet.training.recipe import (
    Recipe,
    class_names,
    drop_block_at,
    learning_rate,
    mix,
)
from gluon_resnet.training.recipes import recipe_named
from gluon_resnet.training.report import epoch_line, start_lines, step_text
from gluon_resnet.training.run import Run, set_up, versions
from gluon_resnet.training.run_state import Sums, told_in_one_line
from gluon_resnet.training.step import Answer
from gluon_resnet.weights import save_weights
from gluon_resnet.weights.card import Card

log = logging.getLogger(__name__)

REPORTS_PER_EPOCH = 10

Record = Callable[[dict], None]
RaiseHeld = Callable[[], None]


def train(
    recipe: Union[Recipe, str],
    train_rec: Union[str, Path],
    val_rec: Union[str, Path],
    *,
    out: Union[str, Path],
    resume: bool = False,
    contexts: Sequence[Device] = ("cpu",),
    workers: Optional[int] = None,
    checkpoint_minutes: float = 10,
    max_images: Optional[int] = None,
    accept_licence: bool = False,
    skip_damaged: bool = False,
    on_epoch: Optional[Callable[[dict], None]] = None,
) -> list[dict]:
    """Train by `recipe` or its name; returns the log's entries of the epochs.

    out: folder for checkpoints (run_state.py), log.jsonl, tensorboard, curves.png,
        recipe.json, run.json and, with a card each, the weights: MODEL.params of the
        last epoch, MODEL.best.params of the one with the best top-1.
    resume: go on from the newest checkpoint in `out`, in the middle of an epoch, too;
        begin where there is none. The outcome is the same as without the break, bit for
        bit, on the same machine with the same versions and number of threads.
    contexts: devices that share each batch, as ("gpu(0)", "gpu(1)") or MXNet's own.
    workers: threads that prepare images, by default one per core.
    checkpoint_minutes: time between checkpoints; one is written after each epoch, too.
    max_images: use the first so many of each file.
    accept_licence: begin from weights under a non-commercial licence, too.
    skip_damaged: leave out images that cannot be read, up to one in a hundred of an
        epoch, where else the first one ends the run.
    on_epoch: called with each finished epoch's entry: "epoch", "step", "loss",
        "train_top1" and "train_top5" of the training's own batches, in percent (not
        with mixup or CutMix), "top1" and "top5" of the validation, "damaged" (images
        left out), "seconds", "images_per_second" (of training) and "seconds_left".

    Ctrl-C and SIGTERM end the run after a checkpoint (KeyboardInterrupt). Raises
    InputError for files, checkpoint or devices that do not fit the recipe, for an `out`
    that is in use or cannot be written, and for a loss that is not finite.
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    out = Path(out)
    with locked(out):
        for unfinished in out.glob(".*.part.*"):  # of a run that was killed
            unfinished.unlink()
        run = set_up(
            recipe,
            Path(train_rec),
            Path(val_rec),
            out=out,
            resume=resume,
            contexts=[device(each) for each in contexts],
            workers=workers,
            checkpoint_minutes=checkpoint_minutes,
            max_images=max_images,
            accept_licence=accept_licence,
            skip_damaged=skip_damaged,
        )
        tell_start(run)
        with journal(out, run.state) as record, interrupts_held() as raise_held:
            try:
                publish(run)  # what a break after the checkpoint may have cost
                while run.state.epoch < recipe.epochs:
                    entry = run_epoch(run, record, raise_held)
                    log.info("%s", epoch_line(entry, epochs=recipe.epochs))
                    if on_epoch:
                        on_epoch(entry)
            except Interrupted:
                log.warning("saved %s: give --resume to go on from there", run.save())
                raise
        write_weights(run, out / f"{recipe.model}.params")
    return list(run.state.history)


def tell_start(run: Run) -> None:
    """Log what is going to run, and note it in the run's folder."""
    for line in start_lines(run):
        log.info("%s", line)
    write_json(run.out / "recipe.json", run.state.recipe)
    note_start(
        run.out,
        {
            "step": run.state.steps,
            "training": str(run.images.train.path),
            "validation": str(run.images.validation.path),
            "devices": [str(context) for context in run.step.contexts],
            "precision": run.step.precision,
            "versions": versions(),
        },
    )


def run_epoch(run: Run, record: Record, raise_held: RaiseHeld) -> dict:
    """Train the rest of an epoch, validate, write the outcome; returns the entry."""
    began, first_batch = time.perf_counter(), run.state.sums.batches
    train_batches(run, record, raise_held)
    trained = time.perf_counter()
    accuracy, damaged = validated(run, raise_held)
    ended = time.perf_counter()

    sums, recipe = run.state.sums, run.recipe
    num_steps = sums.batches - first_batch
    pace = (trained - began) / max(1, num_steps)
    epoch_seconds = run.state.steps_per_epoch * pace + ended - trained
    entry = {
        "epoch": run.state.epoch + 1,
        "step": run.state.steps,
        "loss": sums.loss / sums.batches,
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "damaged": sums.damaged + damaged,
        "seconds": ended - began,
        "images_per_second": num_steps * recipe.batch_size / (trained - began),
        "seconds_left": (recipe.epochs - run.state.epoch - 1) * epoch_seconds,
    }
    if not (recipe.mixup or recipe.cutmix):  # whose images have two labels
        num_images = sums.batches * recipe.batch_size
        entry["train_top1"] = 100 * sums.top1 / num_images
        entry["train_top5"] = 100 * sums.top5 / num_images
    # First the checkpoint: what cannot be written after it is written by --resume.
    run.state = run.state.after_epoch(entry)
    run.save()
    record(entry)
    publish(run)
    return entry


def train_batches(run: Run, record: Record, raise_held: RaiseHeld) -> None:
    """Train on the rest of the epoch that `run` is in.

    Raises InputError when the loss is not finite.
    """
    recipe, start = run.recipe, run.state
    if recipe.drop_block:
        set_drop_block(run.step.net, drop_block_at(recipe, start.epoch))
    skip = Skip(start.num_images, count=start.sums.damaged)
    batches = run.images.epoch(
        start.epoch,
        start_batch=start.sums.batches,
        on_damaged=skip if run.skip_damaged else refuse,
    )
    title = f"epoch {start.epoch + 1}/{recipe.epochs}"
    bar = _bar(batches, raise_held, title, done=start.sums.batches)
    every = math.ceil(start.steps_per_epoch / REPORTS_PER_EPOCH)
    reported, reported_at = start, time.perf_counter()
    for images, labels in bar:
        state = run.state
        # All that is drawn follows from seed and step: a resumed run draws the same.
        rng = stream(recipe.seed, Use.STEP, state.steps)
        mx.random.seed(mxnet_seed(rng))
        rate = learning_rate(recipe, state.steps, state.steps_per_epoch)
        targets = one_hot(labels, recipe.num_classes, smoothing=recipe.label_smoothing)
        answer = run.step(*mix(recipe, images, targets, rng), learning_rate=rate)
        if not math.isfinite(answer.loss):
            raise InputError(
                f"the loss is {answer.loss} in epoch {state.epoch + 1}, step "
                f"{state.sums.batches + 1}: lower the learning rate of "
                f"{recipe.learning_rate}"
            )
        sums = added(state.sums, answer, labels, damaged=skip.count)
        run.state = replace(state, sums=sums)
        run.save_if_due()
        if sums.batches % every == 0:
            now, count = time.perf_counter(), sums.batches - reported.sums.batches
            pace = (now - reported_at) / count
            remaining = recipe.epochs * state.steps_per_epoch - run.state.steps
            entry = {
                "epoch": state.epoch + 1,
                "step": run.state.steps,
                "loss": (sums.loss - reported.sums.loss) / count,
                "learning_rate": rate,
                "images_per_second": recipe.batch_size / pace,
                "seconds_left": pace * remaining,
            }
            record(entry)
            bar.set_postfix_str(step_text(entry))
            reported, reported_at = run.state, now


def added(sums: Sums, answer: Answer, labels: np.ndarray, *, damaged: int) -> Sums:
    """Return the sums with a batch more; `damaged` is the epoch's count so far.

    Among classes of equal logits the lower one comes first, as in a validation.
    """
    logits, own = answer.logits, labels[:, None]
    own_logits = np.take_along_axis(logits, own, axis=1)
    is_lower = np.arange(logits.shape[1]) < own
    ahead = (logits > own_logits) | (logits == own_logits) & is_lower
    ranks = ahead.sum(axis=1)
    return Sums(
        sums.batches + 1,
        sums.loss + answer.loss,
        sums.top1 + int((ranks < 1).sum()),
        sums.top5 + int((ranks < 5).sum()),
        damaged,
    )


def validated(run: Run, raise_held: RaiseHeld) -> tuple[Accuracy, int]:
    """Validate; returns the accuracy and how many images were left out as damaged."""
    skip = Skip(len(run.images.validation.offsets))
    batches = run.images.validations(on_damaged=skip if run.skip_damaged else refuse)
    bar = _bar(batches, raise_held, "validation")
    return validate(run.evaluate(), bar, ctx=run.step.contexts[0]), skip.count


def publish(run: Run) -> None:
    """Write what follows from a finished epoch; to do it again changes nothing."""
    if not run.state.history or run.state.sums.batches:
        return
    *before, last = run.state.history
    if last["top1"] > max((entry["top1"] for entry in before), default=-1):
        write_weights(run, run.out / f"{run.recipe.model}.best.params")
    draw_curves(run.out / "curves.png", run.state.history)


def write_weights(run: Run, path: Path) -> None:
    """Write the weights as the training stands at the end of an epoch, with a card."""
    recipe, last = run.recipe, run.state.history[-1]
    card = Card(
        recipe.model,
        recipe.protocol,
        classes=class_names(recipe),
        data_set=recipe.data_set,
        metrics={"top1": last["top1"], "top5": last["top5"]},
        parent=recipe.initial_weights,
    )
    with told_in_one_line(path, run.out):
        save_weights(run.evaluate(), path, card=card)


def _bar(
    batches: Batches, before_each: Callable[[], None], title: str, *, done: int = 0
) -> Any:
    """The batches under `progress`, with a call before each."""

    def called() -> Iterator[Batch]:
        for batch in batches:
            before_each()
            yield batch

    total = done + len(batches)
    return progress(title, called(), total=total, done=done, unit="batches")
