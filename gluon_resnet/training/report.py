# SPDX-License-Identifier: Apache-2.0
"""What a training run tells people: at its start, after each epoch, at its end."""

import shlex
from collections.abc import Iterator, Sequence
from datetime import timedelta
from math import prod
from pathlib import Path

from gluon_resnet.training.precision import reason
from gluon_resnet.training.recipe import Recipe, training_pixels
from gluon_resnet.training.run import Run


def start_lines(run: Run) -> Iterator[str]:
    """Say what is going to run."""
    recipe, state, step = run.recipe, run.state, run.step
    parameters = sum(prod(parameter.shape) for parameter in step.trained.values())
    names = recipe.data_set or "without names"
    yield (
        f"model: {recipe.model}, {parameters:,} parameters, {recipe.num_classes:,} "
        f"classes ({names})"
    )
    yield f"recipe: {recipe.source}"
    for purpose, records, size in (
        ("training", run.images.train, training_pixels(recipe).size),
        ("validation", run.images.validation, recipe.protocol.size),
    ):
        count = len(records.offsets)
        yield f"{purpose}: {count:,} images of {records.path}, {size} pixels a side"
    yield (
        f"steps: {recipe.epochs:,} epochs of {state.steps_per_epoch:,}, with "
        f"{recipe.batch_size:,} images and {recipe.optimizer} at a rate of up to "
        f"{recipe.learning_rate:g}"
    )
    devices = ", ".join(map(str, step.contexts))
    yield f"devices: {devices}, {reason(recipe.precision, step.precision)}"
    yield f"versions: {', '.join(f'{n} {v}' for n, v in state.versions.items())}"
    if state.steps:
        begin = f"going on from step {state.steps:,}, in epoch {state.epoch + 1}"
    elif recipe.initial_weights:
        begin = f"beginning from the weights {recipe.initial_weights}"
    else:
        begin = f"beginning from fresh weights, seed {recipe.seed}"
    yield f"folder: {run.out}, {begin}"
    yield "epochs: loss, top-1/top-5 in validation and training, images a second"


def step_text(entry: dict) -> str:
    """Say how an epoch goes, the most important first, for a bar or a line."""
    return (
        f"loss {entry['loss']:.3f}, {clock(entry['seconds_left'])} to the end, "
        f"{entry['images_per_second']:.4g} images/s, rate {entry['learning_rate']:.3g}"
    )


def epoch_line(entry: dict, *, epochs: int) -> str:
    """Say what an epoch came to, as the last of `start_lines` explains it."""
    parts = [
        f"epoch {entry['epoch']}/{epochs}: loss {entry['loss']:.3f}",
        f"val {entry['top1']:.2f}/{entry['top5']:.2f} %",
    ]
    if "train_top1" in entry:
        parts.append(f"train {entry['train_top1']:.1f}/{entry['train_top5']:.1f} %")
    if entry["damaged"]:
        parts.append(f"{entry['damaged']} damaged images left out")
    parts.append(f"{entry['images_per_second']:.4g}/s")
    parts.append(f"{clock(entry['seconds_left'])} left")
    return ", ".join(parts)


def end_lines(
    recipe: Recipe, history: Sequence[dict], *, out: Path, val_rec: Path
) -> Iterator[str]:
    """Say what a finished run came to, where it is and what can be done with it."""
    best = max(history, key=lambda entry: entry["top1"])
    published = recipe.published_top1
    told = f" (published: {published:.2f} %)" if published else ""
    yield (
        f"best: epoch {best['epoch']} of {recipe.epochs}, top-1 {best['top1']:.2f} %"
        f"{told}, top-5 {best['top5']:.2f} %"
    )
    weights = out / f"{recipe.model}.best.params"
    yield f"weights: {weights}; of the last epoch: {out / recipe.model}.params"
    words = ("--rec", val_rec, "--model", recipe.model, "--weights", weights)
    command = shlex.join(map(str, words))
    yield f"next: python -m gluon_resnet.validate {command}"


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds; days where there are some."""
    return str(timedelta(seconds=round(seconds)))
