# SPDX-License-Identifier: Apache-2.0
"""Training on a toy set: bright images are of class 1."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet import train as module
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol
from gluon_resnet.train import (
    RECIPES,
    last_checkpoint,
    learning_rate,
    train,
    transforms,
)
from imagenet_prep.fashion_mnist import write_split

TOY = replace(
    RECIPES["fashion_mnist"],
    num_classes=2,
    protocol=Protocol(size=8, crop_pct=1, mean=(0.5,) * 3, std=(0.3,) * 3),
    epochs=3,
    batch_size=16,
    pad=1,
)
COUNT = 200  # not a multiple of the batch size


@pytest.fixture(scope="module")
def rec(tmp_path_factory):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, COUNT)
    images = rng.integers(0, 128, (COUNT, 8, 8)) + 127 * labels[:, None, None]
    prefix = tmp_path_factory.mktemp("toy") / "toy"
    write_split(prefix, images.astype(np.uint8), labels, range(COUNT), shuffle=False)
    return prefix.with_suffix(".rec")


@pytest.fixture(scope="module")
def finished(rec, tmp_path_factory):
    """Folder and log of a training without a break."""
    out = tmp_path_factory.mktemp("finished")
    return out, train(TOY, rec, rec, out=out)


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_training_learns_the_toy_set(finished):
    _, history = finished
    assert history[-1]["top1"] == 100
    assert history[-1]["loss"] < history[0]["loss"]


def test_folder_holds_weights_log_and_the_last_epoch(finished):
    out, history = finished
    assert names_in(out) == [
        "cifar_resnet20_v1.json",
        "cifar_resnet20_v1.params",
        "epoch-0003",
        "log.jsonl",
    ]
    lines = (out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [entry["epoch"] for entry in history] == [1, 2, 3]


def parameters_of(out):
    """Names and bytes of the weights in a folder."""
    values = mx.nd.load(str(out / f"{TOY.model}.params"))
    return {name: value.asnumpy().tobytes() for name, value in values.items()}


@pytest.mark.parametrize(
    ("home", "name"),
    [
        (mx.nd, "save"),  # while an epoch is being written
        (module, "write_log"),
        (Path, "rename"),  # when it is written, but has not got its name
        (shutil, "rmtree"),  # before the older one goes
    ],
)
def test_run_that_breaks_while_saving_resumes_to_equal_weights(
    finished, rec, tmp_path, monkeypatch, home, name
):
    class BreakError(Exception):
        pass

    calls = 0
    function = getattr(home, name)

    def breaks(*arguments, **options):
        nonlocal calls
        calls += (tmp_path / "epoch-0001").exists()
        if calls > 0:
            raise BreakError
        return function(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(BreakError):
        patch.setattr(home, name, breaks)
        train(TOY, rec, rec, out=tmp_path)
    history = train(TOY, rec, rec, out=tmp_path, resume=True)
    assert parameters_of(tmp_path) == parameters_of(finished[0])
    assert [e["top1"] for e in history] == [e["top1"] for e in finished[1]]
    assert names_in(tmp_path) == names_in(finished[0])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == TOY.epochs


def test_run_killed_at_some_moment_resumes_to_equal_weights(rec, tmp_path):
    recipe = replace(TOY, epochs=8)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    program = (
        "from pathlib import Path\n"
        "from gluon_resnet.preprocess import Protocol\n"
        "from gluon_resnet.train import Recipe, train\n"
        f"train({recipe!r}, Path({str(rec)!r}), Path({str(rec)!r}), "
        f"out=Path({str(out)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        while process.poll() is None and not list(out.glob("epoch-000[2-9]")):
            time.sleep(0.001)
        time.sleep(np.random.default_rng(os.getpid()).uniform(0, 0.2))
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    finished_epochs = int(last_checkpoint(out).name[-4:])
    assert 2 <= finished_epochs < recipe.epochs
    train(recipe, rec, rec, out=out, resume=True)
    train(recipe, rec, rec, out=whole)
    assert parameters_of(out) == parameters_of(whole)


def test_folder_in_use_needs_resume(finished, rec):
    assert error_of(train, TOY, rec, rec, out=finished[0]) == (
        f"{finished[0]} holds epoch-0003 of an earlier run: give --resume to go on "
        "from it or another --out"
    )


def test_another_recipe_does_not_resume(finished, rec):
    other = replace(TOY, learning_rate=0.2)
    assert error_of(train, other, rec, rec, out=finished[0], resume=True) == (
        f"{finished[0] / 'epoch-0003'} was trained by another recipe (its "
        "learning_rate differs): resume with the same one or give another --out"
    )


def test_file_smaller_than_a_batch_is_refused(rec, tmp_path):
    recipe = replace(TOY, batch_size=COUNT + 1)
    assert error_of(train, recipe, rec, rec, out=tmp_path) == (
        "200 images fill no batch of 201 in each of 1 processes: lower the batch size "
        "or give more images"
    )


def test_folder_that_cannot_be_written_fails_before_the_first_epoch(rec, tmp_path):
    out = tmp_path / "file"
    out.touch()
    assert error_of(train, TOY, rec, rec, out=out).startswith(
        f"cannot write {out / 'log.jsonl'}: File exists; "
    )


def test_command_answers_a_missing_file_with_one_line(tmp_path):
    command = [sys.executable, "-m", "gluon_resnet.train", "--recipe", "fashion_mnist"]
    rec = str(tmp_path / "a.rec")
    result = subprocess.run(
        [*command, "--train-rec", rec, "--val-rec", rec, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"python -m gluon_resnet.train: {rec} is not there; a record file is a .rec "
        "with its .idx beside it: give the path of the .rec\n"
    )


def test_training_that_diverges_stops(rec, tmp_path):
    recipe = replace(TOY, learning_rate=1e30, warmup_epochs=0)
    message = error_of(train, recipe, rec, rec, out=tmp_path)
    assert message.startswith("the loss is nan in epoch 1, step ")
    assert message.endswith(": lower the learning rate of 1e+30")


def test_learning_rate_warms_up_to_its_peak_and_falls_to_zero():
    recipe = replace(TOY, epochs=11, warmup_epochs=1, learning_rate=0.2)
    assert learning_rate(recipe, 0) == 0
    assert learning_rate(recipe, 0.5) == pytest.approx(0.1)
    assert learning_rate(recipe, 1) == pytest.approx(0.2)
    assert learning_rate(recipe, 6) == pytest.approx(0.1)
    assert learning_rate(recipe, 11) == pytest.approx(0)


def augmented(image, recipe, count):
    """The image as `count` trainings of it see it."""
    results = []
    for seed in range(count):
        rng, result = np.random.default_rng(seed), image
        for transform in transforms(recipe):
            result = transform(result, rng)
        results.append(result)
    return np.stack(results)


def test_augmentation_crops_and_mirrors_each_image_on_its_own():
    recipe = replace(TOY, erase=0)
    image = np.random.default_rng(0).integers(1, 256, (8, 8, 3), dtype=np.uint8)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    crops = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    possible = {c.tobytes() for crop in crops for c in (crop, crop[:, ::-1])}
    seen = augmented(image, recipe, 400)
    assert seen.dtype == np.uint8
    assert {result.tobytes() for result in seen} == possible
    assert len(possible) == 18


def test_augmentation_can_do_nothing():
    recipe = replace(TOY, pad=0, flip=False, erase=0)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (augmented(image, recipe, 4) == image).all()


def test_erasing_paints_a_share_of_the_images_with_the_mean():
    recipe = replace(TOY, pad=0, flip=False, erase=0.25)
    seen = augmented(np.zeros((28, 28, 3), np.uint8), recipe, 4000)
    assert set(np.unique(seen)) == {0, 128}
    # Three standard deviations of a share of 4000 images are 2 %.
    assert seen.any(axis=(1, 2, 3)).mean() == pytest.approx(0.25, abs=0.02)
