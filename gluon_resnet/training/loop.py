# SPDX-License-Identifier: Apache-2.0
"""Training from record files by a recipe, safe against being killed."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock
from mxnet.gluon.contrib.nn import SyncBatchNorm
from tqdm import tqdm

import gluon_resnet
from gluon_resnet.create import create_model
from gluon_resnet.data.augment import one_hot
from gluon_resnet.data.loader import (
    Batch,
    Batches,
    Read,
    training_batches,
    validation_batches,
)
from gluon_resnet.data.records import RecordFile, in_memory
from gluon_resnet.errors import InputError
from gluon_resnet.models import model_spec, set_drop_block
from gluon_resnet.predictions import validate
from gluon_resnet.random_streams import Use, mxnet_seed, stream
from gluon_resnet.training.journal import draw_curves, journal
from gluon_resnet.training.recipe import (
    Recipe,
    described,
    drop_block_at,
    learning_rate,
    mix,
    training_pixels,
    training_transforms,
)
from gluon_resnet.training.run_state import (
    Interrupted,
    RunState,
    check_same_run,
    interrupts_held,
    load_state,
    save_state,
)
from gluon_resnet.training.step import TrainingStep
from gluon_resnet.weights import checkpoint, save_weights
from gluon_resnet.weights.card import Card, read_card, write_card

log = logging.getLogger(__name__)

REPORTS_PER_EPOCH = 10
# A data set of fewer bytes of pixels is decoded once and not in each epoch.
IN_MEMORY = 2**30


def train(
    recipe: Recipe,
    train_rec: Path,
    val_rec: Path,
    *,
    out: Path,
    resume: bool = False,
    contexts: Optional[Sequence[mx.Context]] = None,
    workers: Optional[int] = None,
    checkpoint_minutes: float = 10,
    max_images: Optional[int] = None,
) -> list[dict]:
    """Train by `recipe`; returns the log's entries of the epochs.

    out: folder for checkpoints (run_state.py), log.jsonl, tensorboard, curves.png and,
        with a card each, the weights: MODEL.params of the last epoch, MODEL.best.params
        of the one with the best top-1.
    resume: go on from the newest checkpoint in `out`, in the middle of an epoch, too;
        begin where there is none. The outcome is the same as without the break, bit for
        bit, on the same machine with the same versions and number of threads.
    contexts: devices that share each batch; default `mx.cpu()`.
    workers: threads that prepare images, by default one per core.
    checkpoint_minutes: time between checkpoints; one is written after each epoch, too.
    max_images: use the first so many of each file.

    Ctrl-C and SIGTERM end the run after a checkpoint (KeyboardInterrupt). Raises
    InputError for files, checkpoint or devices that do not fit the recipe, for an `out`
    that is in use or cannot be written, and for a loss that is not finite.
    """
    contexts = list(contexts or [mx.cpu()])
    train_records, val_records = (
        _open(path, recipe.num_classes, max_images) for path in (train_rec, val_rec)
    )
    state = RunState(described(recipe), len(train_records.offsets), _versions())
    saved = load_state(out)
    if saved and not resume:
        raise InputError(
            f"{out} holds an earlier run: give --resume to go on or another --out"
        )
    if saved:
        check_same_run(saved[0], state, out)
    for unfinished in out.glob(".*.part.*"):  # of a run that was killed while it wrote
        unfinished.unlink()

    # The order is part of the recipe: a seed, the parameters drawn with it, the step's
    # average that starts from them, and then what a checkpoint has instead.
    mx.random.seed(mxnet_seed(stream(recipe.seed, Use.INITIALISATION)))
    net = training_net(recipe, contexts, is_new=saved is None)
    step = TrainingStep(net, recipe, contexts)
    if saved:
        state, arrays = saved
        restore(step, arrays)
        log.info("going on from step %d", state.steps)
    # Inference with MXNet reorders weights in place, some time after the call. Training
    # that goes on with these weights rounds now one way, now the other.
    val_net = create_model(
        recipe.model, num_classes=recipe.num_classes, ctx=contexts[0]
    )
    val_net.hybridize(static_alloc=True, static_shape=True)

    train_batches = partial(
        training_batches,
        list(train_records.offsets),
        _reader(train_records),
        batch_size=recipe.batch_size,
        protocol=training_pixels(recipe),
        transforms=training_transforms(recipe),
        seed=recipe.seed,
        repeats=recipe.repeats,
        workers=workers,
    )
    val_batches = validation_batches(
        list(val_records.offsets),
        _reader(val_records),
        # On one device, and what fits it in training fits it here.
        batch_size=max(1, recipe.batch_size // (len(contexts) * recipe.accumulate)),
        protocol=recipe.protocol,
        workers=workers,
    )
    saved_at = time.perf_counter()
    with journal(out, state) as record, interrupts_held() as raise_held:
        try:
            while state.epoch < recipe.epochs:
                began, first_batch = time.perf_counter(), state.batch
                if recipe.drop_block:
                    set_drop_block(net, drop_block_at(recipe, state.epoch))
                batches = train_batches(epoch=state.epoch, start_batch=first_batch)
                title = f"epoch {state.epoch + 1}/{recipe.epochs}"
                bar = _bar(batches, raise_held, title, done=first_batch)
                states = train_epoch(recipe, step, bar, state, record)
                for state in states:
                    if time.perf_counter() - saved_at > 60 * checkpoint_minutes:
                        save_state(out, state, arrays_of(step))
                        saved_at = time.perf_counter()
                trained = time.perf_counter()

                copy_parameters(step.evaluated_parameters(), val_net)
                bar = _bar(val_batches, raise_held, "validation")
                accuracy = validate(val_net, bar, ctx=contexts[0])
                num_trained = (state.batch - first_batch) * recipe.batch_size
                entry = {
                    "epoch": state.epoch + 1,
                    "step": state.steps,
                    "loss": state.loss_sum / state.batch,
                    "top1": accuracy.top1,
                    "top5": accuracy.top5,
                    "seconds": time.perf_counter() - began,
                    "images_per_second": num_trained / (trained - began),
                }
                if accuracy.top1 > max((e["top1"] for e in state.history), default=-1):
                    _write_weights(out / f"{recipe.model}.best.params", recipe, val_net)
                record(entry)
                log.info("%s", json.dumps(entry))
                state = state.after_epoch(entry)
                save_state(out, state, arrays_of(step))
                saved_at = time.perf_counter()
                draw_curves(out / "curves.png", state.history)
        except Interrupted:
            path = save_state(out, state, arrays_of(step))
            log.warning("saved %s: give --resume to go on from there", path)
            raise
    copy_parameters(step.evaluated_parameters(), val_net)
    _write_weights(out / f"{recipe.model}.params", recipe, val_net)
    return list(state.history)


def train_epoch(
    recipe: Recipe,
    step: TrainingStep,
    batches: tqdm,
    state: RunState,
    record: Callable[[dict], None],
) -> Iterator[RunState]:
    """Train on the rest of an epoch; gives the state after each step.

    Raises InputError when the loss is not finite.
    """
    every = math.ceil(state.steps_per_epoch / REPORTS_PER_EPOCH)
    reported, reported_at = state, time.perf_counter()
    for images, labels in batches:
        # All that is drawn follows from seed and step: a resumed run draws the same.
        rng = stream(recipe.seed, Use.STEP, state.steps)
        mx.random.seed(mxnet_seed(rng))
        rate = learning_rate(recipe, state.steps, state.steps_per_epoch)
        targets = one_hot(labels, recipe.num_classes, smoothing=recipe.label_smoothing)
        loss = step(*mix(recipe, images, targets, rng), learning_rate=rate)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {state.epoch + 1}, step "
                f"{state.batch + 1}: lower the learning rate of {recipe.learning_rate}"
            )
        state = replace(state, batch=state.batch + 1, loss_sum=state.loss_sum + loss)
        if state.batch % every == 0:
            now, count = time.perf_counter(), state.batch - reported.batch
            pace = (now - reported_at) / count
            remaining = recipe.epochs * state.steps_per_epoch - state.steps
            entry = {
                "epoch": state.epoch + 1,
                "step": state.steps,
                "loss": (state.loss_sum - reported.loss_sum) / count,
                "learning_rate": rate,
                "images_per_second": recipe.batch_size / pace,
                "seconds_left": pace * remaining,
            }
            record(entry)
            _show(batches, entry)
            reported, reported_at = state, now
        yield state


def training_net(
    recipe: Recipe, contexts: Sequence[mx.Context], *, is_new: bool = True
) -> HybridBlock:
    """The recipe's network with the parameters that its training starts from.

    is_new: False leaves `initial_weights` aside, since a checkpoint will replace them.
    Raises InputError where those cannot be had or are of another model.
    """
    options = {}
    if recipe.sync_bn and len(contexts) > 1:
        options["norm_layer"] = SyncBatchNorm
        options["norm_options"] = {"num_devices": len(contexts)}
    name, pretrained = recipe.model, False
    if is_new and recipe.initial_weights is not None:
        name, pretrained = _published_or_file(recipe.initial_weights, recipe.model)
    net = create_model(
        name,
        pretrained=pretrained,
        num_classes=recipe.num_classes,
        ctx=contexts,
        dropout=recipe.dropout,
        drop_path=recipe.drop_path,
        drop_block=recipe.drop_block,
        last_gamma=recipe.last_gamma,
        **options,
    )
    if net.spec.name != model_spec(recipe.model).name:
        raise InputError(
            f"initial_weights {recipe.initial_weights} are for {net.spec.name}, the "
            f"model is {recipe.model}: give weights of it, or none"
        )
    return net


def _published_or_file(weights: str, model: str) -> tuple[str, Union[bool, Path]]:
    """What `create_model` takes as name and `pretrained` to begin with them."""
    path = Path(weights)
    if path.is_file():
        card = read_card(path)
        return card.model if card else model, path
    try:
        return checkpoint(weights).name, True
    except InputError as error:
        raise InputError(f"initial_weights {weights} is no file, and {error}") from None


def arrays_of(step: TrainingStep) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint: the net's as net.NAME, and all else the step has."""
    arrays = step.arrays()
    for name, parameter in step.parameters.items():
        arrays[f"net.{name}"] = parameter.list_data()[0]
    return {name: array.asnumpy() for name, array in arrays.items()}


def restore(step: TrainingStep, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill net and step from `arrays_of`."""
    values = {n: mx.nd.array(array, dtype=array.dtype) for n, array in arrays.items()}
    for name, parameter in step.parameters.items():
        parameter.set_data(values.pop(f"net.{name}"))
    step.restore(values)


def copy_parameters(values: Mapping[str, mx.nd.NDArray], target: HybridBlock) -> None:
    """Give `target` values under the names of `save_parameters`."""
    for name, parameter in target._collect_params_with_prefix().items():
        parameter.set_data(values[name])


def _write_weights(path: Path, recipe: Recipe, net: HybridBlock) -> None:
    """Write a net's weights and their card."""
    try:
        save_weights(net, path)
    except mx.base.MXNetError as error:  # MXNet's own way to say that a disk is full
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"cannot write {path}: {reason}; mend that and go on with --resume"
        ) from None
    write_card(path, Card(recipe.model, recipe.protocol, recipe.data_set))


def _open(path: Path, num_classes: int, max_images: Optional[int]) -> RecordFile:
    records = RecordFile.open(path, num_classes=num_classes)
    return replace(records, offsets=dict(list(records.offsets.items())[:max_images]))


def _reader(records: RecordFile) -> Read:
    """How images are read: from memory where all fit that are as large as the first."""
    _, image = records.read(next(iter(records.offsets)))
    fit = image.nbytes * len(records.offsets) <= IN_MEMORY
    return in_memory(records) if fit else records.read


def _bar(
    batches: Batches, before_each: Callable[[], None], title: str, *, done: int = 0
) -> tqdm:
    """The batches under a progress bar, on a terminal, with a call before each."""

    def called() -> Iterator[Batch]:
        for batch in batches:
            before_each()
            yield batch

    total = done + len(batches)
    return tqdm(called(), title, initial=done, total=total, unit="batch", disable=None)


def _show(bar: tqdm, entry: dict) -> None:
    """Tell how it goes: in the bar on a terminal, else in a line of the log."""
    left = timedelta(seconds=round(entry["seconds_left"]))
    text = (
        f"loss {entry['loss']:.4f}, learning rate {entry['learning_rate']:.3g}, "
        f"{entry['images_per_second']:.1f} images/s, {left} to finish"
    )
    if bar.disable:
        log.info("epoch %d, step %d: %s", entry["epoch"], entry["step"], text)
    else:
        bar.set_postfix_str(text)


def _versions() -> dict[str, str]:
    return {
        "gluon_resnet": gluon_resnet.__version__,
        "mxnet": mx.__version__,
        "numpy": np.__version__,
    }
