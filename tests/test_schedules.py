# SPDX-License-Identifier: Apache-2.0
"""Learning rates against the schedulers of torch, timm, mmengine, GluonCV and MXNet."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import mxnet as mx
import pytest
from gluoncv.utils import LRScheduler, LRSequential

from gluon_resnet.training.recipe import learning_rate
from gluon_resnet.training.recipes import RECIPES
from gluon_resnet.training.schedules import cosine, linear_warmup, step_decay

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("schedules.json").read_text()
)
STEPS, PEAK = GOLDEN["steps_per_epoch"], GOLDEN["peak"]
# torch and mmengine multiply each rate with the one before it, which rounds anew.
ROUNDING = 1e-12
LOW = 0.004 / PEAK

SHORT = replace(
    RECIPES["fashion_mnist"],
    epochs=10,
    learning_rate=PEAK,
    warmup_epochs=2,
    warmup_from=0.01,
)


def rates(recipe, steps_per_epoch=STEPS):
    count = recipe.epochs * steps_per_epoch
    return [learning_rate(recipe, step, steps_per_epoch) for step in range(count)]


@pytest.mark.parametrize("name", ["torch_cosine", "timm_cosine"])
def test_cosine_per_step_after_a_warm_up_is_torch_s_and_timm_s(name):
    recipe = replace(SHORT, schedule=partial(cosine, low=LOW))
    assert rates(recipe) == pytest.approx(GOLDEN[name], abs=ROUNDING)


def test_step_decay_is_openmmlab_s():
    decay = partial(step_decay, at=(3, 6, 9), factor=0.2)
    recipe = replace(SHORT, schedule=decay, warmup_epochs=0)
    assert rates(recipe) == pytest.approx(GOLDEN["mmengine_steps"], abs=ROUNDING)


@pytest.mark.parametrize(("name", "low"), [("mmengine_rsb", LOW), ("mmengine_cub", 0)])
def test_cosine_by_epoch_is_openmmlab_s(name, low):
    recipe = replace(SHORT, schedule=partial(cosine, low=low, by_epoch=True))
    warmup = 2 * STEPS
    ours, theirs = rates(recipe), GOLDEN[name]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=ROUNDING)
    # Theirs rises by 1 / 11 a step, not by 1 / 12, and is at the peak one step before.
    for step in range(warmup):
        assert theirs[step] == pytest.approx(
            PEAK * linear_warmup(step, warmup - 1, start=0.01), abs=ROUNDING
        )
    assert ours[:warmup] == pytest.approx(theirs[:warmup], abs=PEAK / (warmup - 1))


def test_rates_are_those_of_the_scheduler_resnest_was_trained_with():
    recipe = replace(RECIPES["resnest50d.in1k"], epochs=20)
    theirs = mx.lr_scheduler.CosineScheduler(
        20 * STEPS, base_lr=3.2, warmup_steps=5 * STEPS, warmup_begin_lr=0
    )
    assert rates(recipe) == pytest.approx(
        [theirs(step) for step in range(20 * STEPS)], abs=ROUNDING
    )


def test_rates_are_gluoncv_s_within_two_steps():
    # GluonCV counts steps from 1 and ends warm-up and cosine a step earlier.
    recipe = replace(RECIPES["resnet18_v1.gluoncv"], epochs=20)
    parts = (("linear", 0, 0.4, 5), ("cosine", 0.4, 0, 15))
    theirs = LRSequential(
        [
            LRScheduler(mode, base, target, nepochs=epochs, iters_per_epoch=STEPS)
            for mode, base, target, epochs in parts
        ]
    )
    ours = [*rates(recipe), 0, 0]
    for step in range(20 * STEPS):
        near = ours[step : step + 3]
        assert min(near) - ROUNDING <= theirs(step + 1) <= max(near) + ROUNDING


def test_fashion_mnist_keeps_its_rule_bit_for_bit():
    recipe, batches = RECIPES["fashion_mnist"], 468
    for epoch in (0, 1, 7, 39):
        for batch in range(batches):
            done = epoch + batch / batches
            if done < 1:
                expected = 0.1 * done / 1
            else:
                expected = 0.1 * (1 + math.cos(math.pi * ((done - 1) / (40 - 1)))) / 2
            assert learning_rate(recipe, epoch * batches + batch, batches) == expected


def test_a_rate_follows_from_the_step_alone():
    recipe = replace(SHORT, schedule=partial(cosine, by_epoch=True))
    forwards = rates(recipe)
    backwards = [learning_rate(recipe, s, STEPS) for s in reversed(range(10 * STEPS))]
    assert forwards == backwards[::-1]


def test_warm_up_leaves_the_epochs_of_a_step_decay_where_they_are():
    decay = partial(step_decay, at=(3, 6))
    rate = partial(learning_rate, replace(SHORT, schedule=decay), steps_per_epoch=10)
    assert [rate(step) / PEAK for step in (20, 29, 30, 59, 60)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


def test_cosine_by_epoch_stays_at_the_peak_after_half_an_epoch_of_warm_up():
    assert cosine(0.5, 10, 0.5, by_epoch=True) == cosine(0.9, 10, 0.5, by_epoch=True)
    assert cosine(0.9, 10, 0.5, by_epoch=True) == 1 > cosine(1, 10, 0.5, by_epoch=True)
