# SPDX-License-Identifier: Apache-2.0
"""The training loop on a toy set (bright images are of class 1), and every recipe."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import kill_training
import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet import bundled, create
from gluon_resnet.classifier import init_model
from gluon_resnet.data.augment import pad_and_crop, random_flip
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.files import locked
from gluon_resnet.models import model_spec
from gluon_resnet.predictions import Predictions, validate
from gluon_resnet.preprocess import Protocol
from gluon_resnet.train import main, numbered_folder, parser
from gluon_resnet.training import loop as module
from gluon_resnet.training.interrupts import Interrupted
from gluon_resnet.training.loop import train
from gluon_resnet.training.network import training_net
from gluon_resnet.training.recipe import described, smoke
from gluon_resnet.training.recipes import RECIPES
from gluon_resnet.training.run import Run, versions
from gluon_resnet.training.run_state import Sums, checkpoints, load_state
from gluon_resnet.training.step import Answer, TrainingStep
from gluon_resnet.weights.card import read_card
from imagenet_prep.fashion_mnist import write_split

TOY = replace(
    RECIPES["fashion_mnist"],
    num_classes=2,
    data_set=None,
    protocol=Protocol(size=8, crop_pct=1, mean=(0.5,) * 3, std=(0.3,) * 3),
    transforms=lambda size: (partial(pad_and_crop, pad=1), random_flip),
    epochs=3,
    batch_size=16,
    seed=2,  # 36 steps do not settle the running statistics with each
)
# With all that is drawn in a step, and all that has a state.
DRAWING = replace(
    TOY,
    epochs=2,
    batch_size=64,
    mixup=0.2,
    cutmix=1,
    dropout=0.2,
    drop_path=0.2,
    ema=0.9,
)
SLOW = pytest.mark.slow
COUNT = 200  # not a multiple of the batch size


def write_toy(prefix, labels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 128, (len(labels), 8, 8)) + 127 * labels[:, None, None]
    write_split(
        prefix, images.astype(np.uint8), labels, range(len(labels)), shuffle=False
    )
    return prefix.with_suffix(".rec")


@pytest.fixture(scope="module")
def rec(tmp_path_factory):
    labels = np.random.default_rng(1).integers(0, 2, COUNT)
    return write_toy(tmp_path_factory.mktemp("toy") / "toy", labels)


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


def parameters_of(out, name=f"{TOY.model}.params"):
    """Names and bytes of the weights in a folder."""
    values = mx.nd.load(str(out / name))
    return {name: value.asnumpy().tobytes() for name, value in values.items()}


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def outcome(history):
    """All of the entries but the times."""
    times = ("seconds", "seconds_left", "images_per_second")
    return [{k: v for k, v in entry.items() if k not in times} for entry in history]


def test_hits_of_training_are_counted_as_those_of_a_validation():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 12)).astype(np.float32)  # with many equals
    labels = rng.integers(0, 12, 200)
    sums = module.added(Sums(), Answer(0.5, logits), labels, damaged=3)
    hits = Predictions(labels, np.argsort(-logits, kind="stable")[:, :5], 12).hits
    assert sums == Sums(1, 0.5, int(hits[:, 0].sum()), int(hits.sum()), 3)
    twice = module.added(sums, Answer(0.25, logits), labels, damaged=3)
    assert twice == Sums(2, 0.75, 2 * sums.top1, 2 * sums.top5, 3)


def test_training_accuracy_is_that_of_the_epoch_s_batches(finished):
    first, *_, last = finished[1]
    assert 40 < first["train_top1"] < last["train_top1"] <= 100
    assert last["train_top5"] == 100  # of two classes


def test_folder_tells_the_recipe_and_each_start(rec, tmp_path):
    recipe = replace(TOY, epochs=1, warmup_epochs=0)
    train(recipe, rec, rec, out=tmp_path)
    train(recipe, rec, rec, out=tmp_path, resume=True)
    assert json.loads((tmp_path / "recipe.json").read_text()) == described(recipe)
    starts = json.loads((tmp_path / "run.json").read_text())
    assert [start["step"] for start in starts] == [0, 12]
    for start in starts:
        assert start["training"] == start["validation"] == str(rec)
        assert start["devices"] == ["cpu(0)"]
        assert (start["precision"], start["versions"]) == ("fp32", versions())


def test_start_and_epochs_are_told(rec, tmp_path, caplog):
    told = []
    with caplog.at_level(logging.INFO, "gluon_resnet.training"):
        recipe = replace(TOY, epochs=1, warmup_epochs=0)
        history = train(recipe, rec, rec, out=tmp_path, on_epoch=told.append)
    assert told == history
    model, recipe, training, validation, steps, devices, _, folder = caplog.messages[:8]
    assert model == (
        "model: cifar_resnet20_v1, 271,954 parameters, 2 classes (without names)"
    )
    assert recipe == f"recipe: {TOY.source}"
    assert training == f"training: 200 images of {rec}, 8 pixels a side"
    assert validation == f"validation: 200 images of {rec}, 8 pixels a side"
    assert steps == (
        "steps: 1 epochs of 12, with 16 images and nag at a rate of up to 0.1"
    )
    assert devices == "devices: cpu(0), fp32"
    assert folder == f"folder: {tmp_path}, beginning from fresh weights, seed 2"
    assert caplog.messages[-1].startswith("epoch 1/1: loss ")


def test_training_learns_the_toy_set(finished):
    _, history = finished
    assert history[-1]["top1"] == 100
    assert history[-1]["loss"] < history[0]["loss"]


def test_folder_holds_weights_logs_and_two_checkpoints(finished):
    assert names_in(finished[0]) == [
        "cifar_resnet20_v1.best.json",
        "cifar_resnet20_v1.best.params",
        "cifar_resnet20_v1.json",
        "cifar_resnet20_v1.params",
        "curves.png",
        "log.jsonl",
        "recipe.json",
        "run.json",
        "step-00000024.npz",
        "step-00000036.npz",
        "tensorboard",
    ]


def test_log_has_a_line_for_each_report_and_each_epoch(finished):
    out, history = finished
    lines = logged(out)
    assert [line for line in lines if "top1" in line] == history
    assert [(entry["epoch"], entry["step"]) for entry in history] == [
        (1, 12),
        (2, 24),
        (3, 36),
    ]
    reports = [line for line in lines if "top1" not in line]
    assert [report["step"] for report in reports] == list(range(2, 37, 2))
    assert reports[-1]["seconds_left"] == 0
    # Of intervals of equal length, hence their mean is that of the epoch.
    losses = np.reshape([report["loss"] for report in reports], (3, 6)).mean(axis=1)
    np.testing.assert_allclose(losses, [entry["loss"] for entry in history])


@pytest.mark.parametrize("name", ["", ".best"])
def test_weights_score_what_the_log_says(finished, rec, name):
    out, history = finished
    weights = out / f"{TOY.model}{name}.params"
    model = init_model(TOY.model, weights)
    records = RecordFile.open(rec, num_classes=2)
    batches = validation_batches(
        list(records.offsets), records.read, batch_size=50, protocol=model.protocol
    )
    top1 = [entry["top1"] for entry in history]
    assert model.protocol == TOY.protocol
    assert validate(model.net, batches).top1 == (max(top1) if name else top1[-1])


def test_card_tells_names_accuracy_and_what_the_training_began_with(rec, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("dark\nbright\n")
    weights = str(bundled.weights())
    recipe = replace(TOY, data_set=str(names), initial_weights=weights, epochs=2)
    history = train(recipe, rec, rec, out=tmp_path / "run")
    card = read_card(tmp_path / "run" / f"{TOY.model}.params")
    assert (card.model, card.protocol) == (TOY.model, TOY.protocol)
    assert (card.classes, card.parent) == (("dark", "bright"), weights)
    assert card.metrics == {key: history[-1][key] for key in ("top1", "top5")}
    best = read_card(tmp_path / "run" / f"{TOY.model}.best.params")
    assert best.metrics["top1"] == max(entry["top1"] for entry in history)
    model = init_model(TOY.model, tmp_path / "run" / f"{TOY.model}.params")
    assert model.class_names == ("dark", "bright")


class BreakError(Exception):
    """Stands for the moment at which a run is killed."""


@pytest.mark.parametrize(
    ("home", "name"),
    [
        (os, "fsync"),  # while a checkpoint is being written
        (Path, "replace"),  # when it is written, but has not got its name
        pytest.param(Path, "unlink", marks=SLOW),  # before an older one goes
        (Run, "save"),  # before the checkpoint of the epoch
        (module, "publish"),  # after it, and after the epoch's line in the log
        pytest.param(module, "save_weights", marks=SLOW),  # of the best epoch
        pytest.param(module, "draw_curves", marks=SLOW),
    ],
)
def test_run_that_breaks_after_an_epoch_resumes_to_equal_weights(
    finished, rec, tmp_path, monkeypatch, home, name
):
    function = getattr(home, name)

    def breaks(*arguments, **options):
        if (tmp_path / "step-00000012.npz").exists():
            raise BreakError
        return function(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(BreakError):
        patch.setattr(home, name, breaks)
        train(TOY, rec, rec, out=tmp_path)
    history = train(TOY, rec, rec, out=tmp_path, resume=True)
    for weights in (f"{TOY.model}.params", f"{TOY.model}.best.params"):
        assert parameters_of(tmp_path, weights) == parameters_of(finished[0], weights)
    assert outcome(history) == outcome(finished[1])
    assert names_in(tmp_path) == names_in(finished[0])
    assert [e for e in logged(tmp_path) if "top1" in e] == history


@pytest.mark.parametrize("contexts", [[mx.cpu()], [mx.cpu(0), mx.cpu(1)]])
def test_run_that_breaks_after_every_step_resumes_to_equal_weights(
    rec, tmp_path, monkeypatch, contexts
):
    """Between any two steps, and with two of the six steps in one life."""
    run = partial(train, DRAWING, rec, rec, contexts=contexts, checkpoint_minutes=0)
    whole = run(out=tmp_path / "whole")
    save = Run.save
    saved = 0

    def breaks(self):
        nonlocal saved
        save(self)
        saved += 1
        if saved % 2 == 0:
            raise BreakError

    monkeypatch.setattr(Run, "save", breaks)
    breaks_off = 0
    while True:
        try:
            history = run(out=tmp_path / "broken", resume=True)
        except BreakError:
            breaks_off += 1
        else:
            break
    assert breaks_off == 4
    assert outcome(history) == outcome(whole)
    assert parameters_of(tmp_path / "broken") == parameters_of(tmp_path / "whole")


@SLOW
def test_run_killed_at_random_moments_resumes_to_equal_weights(tmp_path):
    """The small form of kill_training.py."""
    assert kill_training.compare(tmp_path, kills=2, epochs=6, seed=os.getpid()) > 0


def test_damaged_checkpoint_costs_no_bit(finished, rec, tmp_path, caplog):
    out = shutil.copytree(finished[0], tmp_path / "out")
    newest = checkpoints(out)[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    (out / f"{TOY.model}.params").unlink()
    with caplog.at_level(logging.WARNING):
        history = train(TOY, rec, rec, out=out, resume=True)
    assert caplog.messages[0].startswith(f"{newest} is damaged")
    assert outcome(history) == outcome(finished[1])
    assert parameters_of(out) == parameters_of(finished[0])


def test_finished_run_resumes_to_what_it_is(finished, rec):
    out, history = finished
    before = parameters_of(out)
    assert train(TOY, rec, rec, out=out, resume=True) == history
    assert parameters_of(out) == before


def start_training(rec, out, *options):
    """A training by the command line that would take hours."""
    command = [sys.executable, "-m", "gluon_resnet.train", "--recipe", "fashion_mnist"]
    files = ["--train-rec", rec, "--val-rec", rec, "--out", out]
    return subprocess.Popen(
        [*command, *files, *options, "--set", "epochs=100000", "batch_size=16"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(rec, tmp_path, number):
    process = start_training(rec, tmp_path)
    log = tmp_path / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    saved = checkpoints(tmp_path)[-1]
    assert process.returncode == 130
    assert errors.splitlines()[-2:] == [
        f"saved {saved}: give --resume to go on from there",
        "python -m gluon_resnet.train: stopped by Ctrl-C",
    ]
    assert load_state(tmp_path)[0].steps > 0


def test_ctrl_c_in_a_validation_costs_no_step(finished, rec, tmp_path, monkeypatch):
    def interrupted(net, batches, ctx):
        next(iter(batches))
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "validate", interrupted)
        train(TOY, rec, rec, out=tmp_path)
    state, _ = load_state(tmp_path)
    assert (state.epoch, state.sums.batches, state.steps_per_epoch) == (0, 12, 12)
    history = train(TOY, rec, rec, out=tmp_path, resume=True)
    assert outcome(history) == outcome(finished[1])
    assert parameters_of(tmp_path) == parameters_of(finished[0])


def test_folder_in_use_needs_resume(finished, rec):
    assert error_of(train, TOY, rec, rec, out=finished[0]) == (
        f"{finished[0]} holds an earlier run: give --resume to go on or another --out"
    )


def test_folder_where_another_run_is_at_work_is_refused(rec, tmp_path):
    with locked(tmp_path):
        assert error_of(train, TOY, rec, rec, out=tmp_path) == (
            f"another run is at work in {tmp_path}: wait for it or choose another "
            "folder"
        )
        assert names_in(tmp_path) == [".lock"]


def test_another_recipe_does_not_resume(finished, rec):
    other = replace(TOY, learning_rate=0.2)
    assert error_of(train, other, rec, rec, out=finished[0], resume=True) == (
        f"{finished[0]} was trained by another recipe (learning_rate differs): resume "
        "with the same one or give another --out"
    )


def test_another_number_of_devices_does_not_resume(finished, rec):
    contexts = [mx.cpu(0), mx.cpu(1)]
    message = error_of(
        train, TOY, rec, rec, out=finished[0], resume=True, contexts=contexts
    )
    assert message.startswith("the training state does not fit: ")


def test_names_and_texts_do_for_recipe_files_and_devices(tmp_path):
    rec = str(bundled.VAL_REC)
    message = error_of(train, "fashion_mnits", rec, rec, out=str(tmp_path))
    assert message.startswith("unknown recipe 'fashion_mnits'; nearest: fashion_mnist")
    options = {"out": str(tmp_path / "out"), "contexts": ["cpu(0)", "cpu(1)"]}
    recipe = replace(RECIPES["fashion_mnist"], epochs=1, warmup_epochs=0)
    (entry,) = train(recipe, rec, rec, max_images=128, **options)
    assert entry["step"] == 1
    message = error_of(train, recipe, rec, rec, out=tmp_path, contexts=["gpu(99)"])
    assert message.startswith("gpu(99) is not there: ")


def test_file_smaller_than_a_batch_is_refused(rec, tmp_path):
    recipe = replace(TOY, batch_size=COUNT + 1)
    assert error_of(train, recipe, rec, rec, out=tmp_path) == (
        "200 images fill no batch of 201 in each of 1 processes: lower the batch size "
        "or give more images"
    )


def test_label_that_is_no_class_is_refused(tmp_path):
    rec = write_toy(tmp_path / "toy", np.array([0, 2] + 14 * [0]))
    assert error_of(train, TOY, rec, rec, out=tmp_path / "out") == (
        f"{rec}, record 1 at offset {RecordFile.open(rec, num_classes=3).offsets[1]}: "
        "its label 2 is none of 2 classes; give images with labels from 0 to 1"
    )


def test_file_without_images_is_refused(rec, tmp_path):
    empty = tmp_path / "empty.rec"
    empty.touch()
    empty.with_suffix(".idx").touch()
    for files in ((empty, rec), (rec, empty)):
        assert error_of(train, TOY, *files, out=tmp_path / "out") == (
            f"{empty} is empty: write it again"
        )


def test_folder_that_cannot_be_written_fails_before_the_first_epoch(rec, tmp_path):
    out = tmp_path / "file"
    out.touch()
    assert error_of(train, TOY, rec, rec, out=out).startswith(
        f"cannot write into {out}: File exists; "
    )


def test_full_disk_is_one_line_and_the_run_resumes(
    finished, rec, tmp_path, monkeypatch
):
    write_array = np.lib.format.write_array

    def full(*arguments, **options):
        if (tmp_path / "step-00000012.npz").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_array(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", full)
        assert error_of(train, TOY, rec, rec, out=tmp_path) == (
            f"cannot write {tmp_path / 'step-00000024.npz'}: No space left on device; "
            "make room, it is not there; then go on with --resume, step-00000012.npz "
            "is kept"
        )
    train(TOY, rec, rec, out=tmp_path, resume=True)
    assert parameters_of(tmp_path) == parameters_of(finished[0])


@SLOW
def test_full_disk_anywhere_is_one_line_and_the_run_resumes(
    finished, rec, tmp_path, capsys
):
    """On a file system of every size from almost nothing to enough."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    out, failures = folder / "run", []
    try:
        for kilobytes in range(300, 20_000, 1100):
            size = f"remount,size={kilobytes}k"
            subprocess.run(["mount", "-o", size, str(folder)], check=True)
            try:
                history = train(TOY, rec, rec, out=out, resume=True)
                break
            except InputError as error:
                failures.append(str(error))
        assert parameters_of(out) == parameters_of(finished[0])
        assert outcome(history) == outcome(finished[1])
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    for message in failures:
        assert re.fullmatch(
            f"cannot write {out}/[^;]+: [^;]+; (mend that|make room, [^;]+); then "
            r"(begin again|go on with --resume, step-\d+\.npz is kept)",
            message,
        )
    places = {Path(message.split(": ")[0]).name for message in failures}
    assert len(places) > 2, places


def write_damaged(rec, folder, keys):
    """A copy of a record file with images that cannot be read."""
    whole = RecordFile.open(rec, num_classes=2)
    content = bytearray(rec.read_bytes())
    for key in keys:
        place = content.index(whole.encoded_image(key))
        content[place : place + 8] = bytes(8)
    damaged = folder / "damaged.rec"
    damaged.write_bytes(content)
    damaged.with_suffix(".idx").write_bytes(rec.with_suffix(".idx").read_bytes())
    return damaged


def test_damaged_images_are_left_out_counted_and_told(rec, tmp_path, caplog):
    damaged = write_damaged(rec, tmp_path, [3, 150])
    run = partial(train, replace(TOY, epochs=2, batch_size=48), damaged, damaged)
    out, stopped = tmp_path / "run", tmp_path / "stopped"
    assert f"{damaged}, record " in error_of(run, out=stopped)
    with caplog.at_level(logging.INFO, "gluon_resnet.training"):
        history = run(out=out, skip_damaged=True)
    # In each epoch other eight images of 200 are in no whole batch.
    assert all(2 <= entry["damaged"] <= 4 for entry in history)
    lines = [m for m in caplog.messages if m.startswith(("epoch 1/2", "epoch 2/2"))]
    for line, entry in zip(lines, history):
        assert f", {entry['damaged']} damaged images left out, " in line
    assert [entry["damaged"] for entry in logged(out) if "top1" in entry] == [
        entry["damaged"] for entry in history
    ]


def test_damaged_images_are_counted_over_a_break(rec, tmp_path, monkeypatch):
    damaged = write_damaged(rec, tmp_path, [3, 150])
    run = partial(train, DRAWING, damaged, rec, skip_damaged=True, checkpoint_minutes=0)
    whole = run(out=tmp_path / "whole")
    save, broken = Run.save, tmp_path / "broken"

    def breaks(self):
        save(self)
        raise BreakError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", breaks)
        for _ in range(5):
            with pytest.raises(BreakError):
                run(out=broken, resume=True)
    assert outcome(run(out=broken, resume=True)) == outcome(whole)
    assert parameters_of(broken) == parameters_of(tmp_path / "whole")


def test_many_damaged_images_end_the_run(rec, tmp_path):
    damaged = write_damaged(rec, tmp_path, range(0, 200, 10))
    message = error_of(
        train, TOY, damaged, rec, out=tmp_path / "out", skip_damaged=True
    )
    assert message.startswith(
        "3 damaged records in 200 images are more than the 1% that are left out, the "
        f"first: {damaged}, record "
    )


def test_training_that_diverges_stops_and_keeps_what_was_finite(rec, tmp_path):
    recipe = replace(TOY, learning_rate=1e30, warmup_epochs=2)
    message = error_of(train, recipe, rec, rec, out=tmp_path, checkpoint_minutes=0)
    assert message.endswith(": lower the learning rate of 1e+30") or (
        " is not finite after step " in message
    )
    state, arrays = load_state(tmp_path)
    assert state.steps >= 1
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_loss_that_is_not_finite_is_told_with_its_step(rec, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, float("nan")])

    def answer(*_, **__):
        return Answer(next(losses), np.zeros((16, 2), np.float32))

    monkeypatch.setattr(TrainingStep, "__call__", answer)
    assert error_of(train, TOY, rec, rec, out=tmp_path) == (
        "the loss is nan in epoch 1, step 3: lower the learning rate of 0.1"
    )


BUNDLED_KERNEL = mx.nd.load(str(bundled.weights()))["stem.conv1.weight"].asnumpy()


def starts_from_bundled_weights(recipe, *, is_new):
    kernel = training_net(recipe, [mx.cpu()], is_new=is_new).stem.conv1.weight
    return (kernel.data().asnumpy() == BUNDLED_KERNEL).all()


def test_fine_tuning_starts_from_published_weights(monkeypatch):
    name = "resnet50_v1b.openmmlab_3rdparty-mill_in21k"
    local = replace(create.checkpoint(name), model=TOY.model, num_classes=10)
    monkeypatch.setattr(create, "checkpoint", lambda name: local)
    monkeypatch.setattr(create, "fetch", lambda row, **_: bundled.weights())
    recipe = replace(TOY, initial_weights=name)
    assert starts_from_bundled_weights(recipe, is_new=True)
    assert not starts_from_bundled_weights(recipe, is_new=False)


def test_fine_tuning_starts_from_a_file():
    recipe = replace(TOY, initial_weights=str(bundled.weights()))
    assert starts_from_bundled_weights(recipe, is_new=True)
    assert not starts_from_bundled_weights(recipe, is_new=False)


def test_licence_of_initial_weights_is_accepted_by_the_one_who_trains(monkeypatch):
    asked = []

    def fetch(row, *, accept_licence):
        asked.append(accept_licence)
        return bundled.weights()

    local = replace(
        create.checkpoint("resnet50_v1b.gluoncv"), model=TOY.model, num_classes=10
    )
    monkeypatch.setattr(create, "checkpoint", lambda name: local)
    monkeypatch.setattr(create, "fetch", fetch)
    recipe = replace(TOY, initial_weights="resnet50_v1b.gluoncv")
    for accept in (False, True):
        training_net(recipe, [mx.cpu()], accept_licence=accept)
    assert asked == [False, True]


def test_initial_weights_of_another_model_are_refused():
    weights = str(bundled.weights())
    recipe = replace(TOY, model="cifar_resnet20_v2", initial_weights=weights)
    assert error_of(training_net, recipe, [mx.cpu()]) == (
        f"initial_weights {weights} are for cifar_resnet20_v1, the model is "
        "cifar_resnet20_v2: give weights of it, or none"
    )


@pytest.mark.parametrize("name", ["mine.params", "cifar_resnet20_v1.gluonvc"])
def test_initial_weights_that_are_not_there_are_told(name):
    message = error_of(training_net, replace(TOY, initial_weights=name), [mx.cpu()])
    assert message.startswith(f"initial_weights {name} is no file, and unknown ")


@pytest.mark.parametrize(
    ("model", "size", "batch_size", "accumulate", "count"),
    [
        ("resnest14d", 72, 1, 1, 1),
        ("resnest14d", 72, 4, 4, 1),
        ("resnest14d", 72, 4, 2, 2),
        ("resnet18_v1b", 32, 1, 1, 1),
        ("resnet18_v2", 32, 2, 1, 2),
    ],
)
def test_pass_of_which_a_norm_sees_one_value_is_refused(
    model, size, batch_size, accumulate, count
):
    """As torch does: "Expected more than 1 value per channel when training"."""
    recipe = replace(
        TOY, model=model, train_size=size, batch_size=batch_size, accumulate=accumulate
    )
    contexts = [mx.cpu(index) for index in range(count)]
    assert error_of(training_net, recipe, contexts) == (
        f"a norm of {model} sees one value per channel in a pass of one image of "
        f"{size} pixels, and learns nothing: raise batch_size, which is {batch_size} "
        f"in {accumulate} passes on {count} devices"
    )
    twice = replace(recipe, batch_size=2 * batch_size)
    assert training_net(twice, contexts).spec.name == model


@pytest.mark.parametrize(
    ("model", "size"), [("cifar_resnet20_v2", 8), ("resnet18_v1b", 64)]
)
def test_pass_of_one_image_with_larger_maps_is_taken(model, size):
    recipe = replace(TOY, model=model, train_size=size, batch_size=1)
    assert training_net(recipe, [mx.cpu()]).spec.name == model


def test_batch_that_does_not_split_is_refused_before_the_images_are_opened(tmp_path):
    recipe = replace(TOY, batch_size=15)
    missing = tmp_path / "missing.rec"
    assert error_of(
        train, recipe, missing, missing, out=tmp_path, contexts=[mx.cpu(0), mx.cpu(1)]
    ) == (
        "a batch of 15 images does not split evenly into 2 devices x 1 passes: choose "
        "a batch size that is a multiple of 2"
    )


def test_norms_are_synchronised_over_several_devices_alone():
    recipe = replace(TOY, sync_bn=True)
    one, two = (
        training_net(recipe, [mx.cpu(i) for i in range(count)]) for count in (1, 2)
    )
    assert type(one.stem.bn1) is nn.BatchNorm
    assert type(two.stem.bn1) is SyncBatchNorm
    names = [list(net._collect_params_with_prefix()) for net in (one, two)]
    assert names[0] == names[1]


def run_command(*options):
    """Call the command in this process; returns what `main` does."""
    return main(parser().parse_args([str(option) for option in options]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "fashion_mnits"], "unknown recipe 'fashion_mnits'; nearest: "),
        (
            ["--recipe", "fashion_mnist", "--smoke", "--set", "epoch=1"],
            "unknown key 'epoch' in 'epoch=1'; nearest: epochs",
        ),
        (
            [
                "--recipe",
                "fashion_mnist",
                "--smoke",
                "--epochs",
                "3",
                "--set",
                "epochs=4",
            ],
            "epochs is set twice, again by 'epochs=4'; set it once",
        ),
        (
            ["--recipe", "fashion_mnist"],
            "--train-rec and --val-rec are needed: give both, or --smoke to try the ",
        ),
        (
            ["--recipe", "fashion_mnist", "--smoke", "--set", "precision=fp16"],
            "precision fp16 trains on a GPU, and cpu(0) is none: choose mixed, which ",
        ),
    ],
)
def test_command_answers_a_mistake_with_one_line(options, message):
    assert error_of(run_command, *options).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of the arguments --recipe --list-recipes is required"),
        (["--recipe", "fashion_mnist", "--ctx", "gpu(99)"], "gpu(99) is not there: "),
        (["--recipe", "fashion_mnist", "--device", "tpu"], "'tpu' is no device; use "),
    ],
)
def test_wrong_usage_is_one_line_and_2(capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run_command(*options)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert message in line


def test_help_is_there_at_once():
    """Nothing that takes a second is imported for it."""
    code = (
        "import sys; from gluon_resnet.train import parser; parser().format_help(); "
        "print(*sorted({'mxnet', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "\n"


def test_recipes_are_listed_in_80_columns(capsys):
    run_command("--list-recipes")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["recipe", "epochs", "batch", "top-1,", "%"]
    assert [row.split()[0] for row in rows] == list(RECIPES)
    assert max(map(len, rows)) < 80


def test_dry_run_prints_the_recipe_and_writes_nothing(rec, tmp_path, capsys):
    out = tmp_path / "run"
    files = ("--train-rec", rec, "--val-rec", rec, "--out", out)
    short = ("--epochs", 9, "--batch-size", 32, "--lr", 0.2, "--seed", 5)
    settings = ("--set", "num_classes=2", "data_set=none")
    run_command("--recipe", "fashion_mnist", *files, *short, *settings, "--dry-run")
    output, errors = capsys.readouterr()
    recipe = json.loads(output)
    assert [recipe[k] for k in ("epochs", "batch_size", "learning_rate", "seed")] == [
        *(9, 32, 0.2, 5)
    ]
    assert errors.splitlines()[-6:-1] == [
        f"validation: 200 images of {rec}, 28 pixels a side",
        "steps: 9 epochs of 6, with 32 images and nag at a rate of up to 0.2",
        "devices: cpu(0), fp32",
        f"versions: {', '.join(f'{n} {v}' for n, v in versions().items())}",
        f"folder: {out}, beginning from fresh weights, seed 5",
    ]
    assert not out.exists()


def test_smoke_command_needs_no_files(capsys, caplog):
    run_command("--recipe", "fashion_mnist", "--smoke", "--set", "ema=0.9", "--json")
    output, errors = capsys.readouterr()
    assert [json.loads(line)["epoch"] for line in output.splitlines()] == [1, 2]
    assert errors == "it runs; the weights of a smoke run are not kept\n"
    assert caplog.messages[-1].startswith("epoch 2/2: loss ")


def test_runs_without_a_folder_are_numbered(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fashion_mnist-7").mkdir(parents=True)  # an empty one is free
    assert error_of(numbered_folder, "fashion_mnist", resume=True) == (
        "there is no run runs/fashion_mnist-1 to resume: give its --out, or leave "
        "--resume out"
    )
    files = ("--train-rec", bundled.VAL_REC, "--val-rec", bundled.VAL_REC)
    command = ("--recipe", "fashion_mnist", *files, "--set", "model=cifar_resnet20_v2")
    short = ("epochs=1", "warmup_epochs=0", "batch_size=500", "learning_rate=0.01")
    run_command(*command, *short)
    assert names_in(tmp_path / "runs") == ["fashion_mnist-1", "fashion_mnist-7"]
    best, weights, following = capsys.readouterr().out.splitlines()
    folder = "runs/fashion_mnist-1/cifar_resnet20_v2"
    assert re.fullmatch(r"best: epoch 1 of 1, top-1 [\d.]+ %, top-5 [\d.]+ %", best)
    assert weights == (
        f"weights: {folder}.best.params; of the last epoch: {folder}.params"
    )
    assert following == (
        f"next: python -m gluon_resnet.validate --rec {bundled.VAL_REC} --model "
        f"cifar_resnet20_v2 --weights {folder}.best.params"
    )
    assert numbered_folder("fashion_mnist", resume=False).name == "fashion_mnist-2"
    assert numbered_folder("fashion_mnist", resume=True).name == "fashion_mnist-1"


def narrow(name):
    """One narrow block a stage: nets in full have tests of their own."""
    spec = model_spec(name)
    factor = 8 if spec.channels[0] >= 64 else 1
    if "2x40d" in name:  # whose groups do not divide fewer channels
        factor = 2
    return replace(
        spec,
        blocks=(1,) * len(spec.blocks),
        channels=tuple(channels // factor for channels in spec.channels),
    )


def treatment(recipe):
    """What the loop and its steps do otherwise from recipe to recipe."""
    drawn = (recipe.mixup, recipe.cutmix, recipe.drop_block, recipe.dropout)
    drawn += (recipe.drop_path, recipe.last_gamma, recipe.repeats > 1)
    return recipe.precision, recipe.loss, recipe.optimizer, *map(bool, drawn)


FIRST_OF_KIND = {treatment(RECIPES[name]): name for name in reversed(RECIPES)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[] if name in FIRST_OF_KIND.values() else SLOW,
        )
        for name in RECIPES
    ],
)
def test_recipe_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(create, "model_spec", narrow)
    recipe = smoke(RECIPES[name])
    files = bundled.TRAIN_REC, bundled.VAL_REC
    history = train(recipe, *files, out=tmp_path, max_images=8)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert all(np.isfinite(entry["loss"]) for entry in history)
    assert (tmp_path / f"{recipe.model}.params").exists()
    has_one_label = not (recipe.mixup or recipe.cutmix)
    assert all(("train_top1" in entry) == has_one_label for entry in history)
