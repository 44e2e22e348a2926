# SPDX-License-Identifier: Apache-2.0
"""What a run tells people."""

from pathlib import Path

import pytest

from gluon_resnet.training.recipes import RECIPES
from gluon_resnet.training.report import clock, end_lines, epoch_line, step_text

ENTRY = {
    "epoch": 3,
    "step": 1200,
    "loss": 0.51234,
    "train_top1": 81.234,
    "train_top5": 97.1,
    "top1": 85.321,
    "top5": 99.4,
    "damaged": 0,
    "images_per_second": 1234.5678,
    "seconds_left": 754.2,
}


def test_epoch_is_one_line():
    assert epoch_line(ENTRY, epochs=40) == (
        "epoch 3/40: loss 0.512, val 85.32/99.40 %, train 81.2/97.1 %, 1235/s, "
        "0:12:34 left"
    )


def test_accuracy_of_blended_images_is_not_told():
    mixed = {k: v for k, v in ENTRY.items() if not k.startswith("train_")}
    assert epoch_line({**mixed, "damaged": 2}, epochs=40) == (
        "epoch 3/40: loss 0.512, val 85.32/99.40 %, 2 damaged images left out, "
        "1235/s, 0:12:34 left"
    )


def test_step_tells_the_most_important_first():
    entry = {**ENTRY, "learning_rate": 0.0987654}
    assert step_text(entry) == (
        "loss 0.512, 0:12:34 to the end, 1235 images/s, rate 0.0988"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (59.6, "0:01:00"), (90_000, "1 day, 1:00:00")],
)
def test_times_are_rounded_to_seconds(seconds, text):
    assert clock(seconds) == text


def test_end_names_the_first_of_the_best_epochs_and_a_command():
    recipe = RECIPES["resnet50_v1d.gluoncv"]
    history = [
        {**ENTRY, "epoch": epoch, "top1": top1}
        for epoch, top1 in [(1, 50.0), (2, 78.126), (3, 78.126), (4, 77.0)]
    ]
    best, weights, following = end_lines(
        recipe, history, out=Path("a b/run"), val_rec=Path("val set.rec")
    )
    assert best == (
        "best: epoch 2 of 200, top-1 78.13 % (published: 79.15 %), top-5 99.40 %"
    )
    assert weights == (
        "weights: a b/run/resnet50_v1d.best.params; of the last epoch: "
        "a b/run/resnet50_v1d.params"
    )
    assert following == (
        "next: python -m gluon_resnet.validate --rec 'val set.rec' --model "
        "resnet50_v1d --weights 'a b/run/resnet50_v1d.best.params'"
    )
