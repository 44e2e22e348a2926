# SPDX-License-Identifier: Apache-2.0
"""A training run: what it is made of and where it begins."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

import gluon_resnet
from gluon_resnet.errors import InputError
from gluon_resnet.training.images import Images, open_images
from gluon_resnet.training.network import copy_parameters, evaluation_net, training_net
from gluon_resnet.training.precision import resolved
from gluon_resnet.training.recipe import Recipe, described
from gluon_resnet.training.run_state import (
    RunState,
    check_same_run,
    load_state,
    save_state,
)
from gluon_resnet.training.step import TrainingStep, check_split

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A training at work."""

    recipe: Recipe
    out: Path
    images: Images
    step: TrainingStep
    evaluated: HybridBlock
    """A network for validations, on the first device; `evaluate` fills it."""
    state: RunState
    """Where the run stands; each step and each epoch sets another one."""
    checkpoint_minutes: float
    skip_damaged: bool
    saved_at: float = field(default_factory=time.perf_counter)

    def save(self) -> Path:
        """Write a checkpoint of where the run stands; returns its path."""
        path = save_state(self.out, self.state, arrays_of(self.step))
        self.saved_at = time.perf_counter()
        return path

    def save_if_due(self) -> None:
        """Write a checkpoint where the last one is `checkpoint_minutes` old."""
        if time.perf_counter() - self.saved_at > 60 * self.checkpoint_minutes:
            self.save()

    def evaluate(self) -> HybridBlock:
        """Return the network to validate and write, as the training stands now."""
        copy_parameters(self.step.evaluated_parameters(), self.evaluated)
        return self.evaluated


def set_up(
    recipe: Recipe,
    train_rec: Path,
    val_rec: Path,
    *,
    out: Path,
    resume: bool,
    contexts: Sequence[mx.Context],
    workers: Optional[int] = None,
    checkpoint_minutes: float = 10,
    max_images: Optional[int] = None,
    accept_licence: bool = False,
    skip_damaged: bool = False,
    with_weights: bool = True,
) -> Run:
    """Make a run as it is before its next step; writes nothing.

    with_weights: False leaves the recipe's `initial_weights` aside.
    The rest is as in `loop.train`. Raises InputError for what does not fit, the cheap
    checks first.
    """
    # The order is important.
    # 1. The recipe against the devices.
    precision = resolved(recipe.precision, contexts)
    check_split(recipe.batch_size, passes=recipe.accumulate, num_devices=len(contexts))
    # 2. The images.
    images = open_images(
        recipe,
        train_rec,
        val_rec,
        contexts=contexts,
        workers=workers,
        max_images=max_images,
    )
    # 3. Where to begin: at a checkpoint, or fresh.
    num_images = len(images.train.offsets)
    fresh = RunState(described(recipe), num_images, precision, versions())
    saved = load_state(out)
    if saved and not resume:
        raise InputError(
            f"{out} holds an earlier run: give --resume to go on or another --out"
        )
    if saved:
        check_same_run(saved[0], fresh, out)
    # 4. The network and what trains it. The average of the parameters starts from the
    # initial weights; a checkpoint replaces all of that.
    net = training_net(
        recipe,
        contexts,
        is_new=with_weights and not saved,
        accept_licence=accept_licence,
    )
    step = TrainingStep(net, recipe, contexts)
    state = fresh
    if saved:
        state, arrays = saved
        restore(step, arrays)
    evaluated = evaluation_net(recipe, contexts[0])
    return Run(
        recipe, out, images, step, evaluated, state, checkpoint_minutes, skip_damaged
    )


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


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "gluon_resnet": gluon_resnet.__version__,
        "mxnet": mx.__version__,
        "numpy": np.__version__,
    }
