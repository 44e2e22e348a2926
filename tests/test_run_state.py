# SPDX-License-Identifier: Apache-2.0
"""Checkpoints come back bit for bit or not at all."""

import errno
import logging
import os
import stat
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet.errors import InputError
from gluon_resnet.training.run_state import (
    RunState,
    Sums,
    check_same_run,
    checkpoints,
    load_state,
    save_state,
    told_in_one_line,
)

STATE = RunState(
    recipe={"batch_size": 10, "source": "a paper"},
    num_images=45,
    precision="fp32",
    versions={"numpy": "1.23.5"},
    epoch=2,
    sums=Sums(batches=3, loss=0.1 + 0.2, top1=7, top5=25, damaged=1),
    history=({"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 1 / 7}),
)
LATER = replace(STATE, sums=replace(STATE.sums, batches=4))
ARRAYS = {
    "net.fc.weight": np.random.default_rng(0).random((3, 5), np.float32),
    "count": np.array([2**40]),
    "scale": np.array(0.5, np.float32),
}


@pytest.fixture
def out(tmp_path):
    """A folder with the checkpoints of two steps."""
    save_state(tmp_path, STATE, ARRAYS)
    save_state(tmp_path, LATER, ARRAYS)
    return tmp_path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def message_of(function, *arguments):
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_steps_are_counted_over_epochs():
    assert STATE.steps_per_epoch == 4
    assert STATE.steps == 11


def test_next_epoch_begins_with_nothing_done():
    state = STATE.after_epoch({"epoch": 3})
    assert (state.epoch, state.sums) == (3, Sums())
    assert state.history == (*STATE.history, {"epoch": 3})


def test_checkpoint_comes_back_bit_for_bit(tmp_path):
    path = save_state(tmp_path, STATE, ARRAYS)
    assert path.name == "step-00000011.npz"
    state, arrays = load_state(tmp_path)
    assert state == STATE
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()


def test_folder_without_checkpoint_has_no_state(tmp_path):
    assert load_state(tmp_path / "missing") is None


def test_newest_two_are_kept(out):
    save_state(out, replace(STATE, epoch=3), ARRAYS)
    assert names_in(out) == ["step-00000012.npz", "step-00000015.npz"]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_checkpoint_cut_short_gives_way_to_the_one_before(out, caplog, share):
    newest = checkpoints(out)[-1]
    os.truncate(newest, int(share * newest.stat().st_size))
    with caplog.at_level(logging.WARNING):
        state, _ = load_state(out)
    assert state == STATE
    assert caplog.messages[0].startswith(f"{newest} is damaged (")
    assert caplog.messages[0].endswith("): taking the one before it")


def test_changed_byte_is_found(out):
    newest = checkpoints(out)[-1]
    content = bytearray(newest.read_bytes())
    content[content.index(ARRAYS["net.fc.weight"].tobytes())] ^= 1
    newest.write_bytes(content)
    assert load_state(out)[0] == STATE


def test_folder_with_damaged_checkpoints_alone_is_refused(out):
    for path in checkpoints(out):
        path.write_bytes(b"")
    assert message_of(load_state, out) == (
        f"no checkpoint in {out} is whole: give another --out to begin anew"
    )


def test_full_disk_is_one_line_and_leaves_older_checkpoints(out, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    assert message_of(save_state, out, replace(STATE, epoch=3), ARRAYS) == (
        f"cannot write {out / 'step-00000015.npz'}: No space left on device; make "
        "room, it is not there; then go on with --resume, step-00000012.npz is kept"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    arrays = {"net.fc.bias": np.array([0, np.inf], np.float32)}
    assert message_of(save_state, tmp_path, STATE, arrays) == (
        "net.fc.bias is not finite after step 11: lower the learning rate; there is no "
        "checkpoint yet"
    )
    assert names_in(tmp_path) == []


def test_another_recipe_is_refused(tmp_path):
    other = replace(STATE, recipe={"batch_size": 5, "source": "a paper"})
    assert message_of(check_same_run, STATE, other, tmp_path) == (
        f"{tmp_path} was trained by another recipe (batch_size differs): resume with "
        "the same one or give another --out"
    )


def test_another_source_is_no_other_recipe(tmp_path, caplog):
    other = replace(STATE, recipe={"batch_size": 10, "source": "a better paper"})
    check_same_run(STATE, other, tmp_path)
    assert caplog.messages == []


def test_another_training_file_is_refused(tmp_path):
    other = replace(STATE, num_images=46)
    assert message_of(check_same_run, STATE, other, tmp_path) == (
        f"{tmp_path} was trained on 45 images, the file now has 46: resume with the "
        "same file or give another --out"
    )


def test_more_epochs_are_a_new_run_from_the_weights(tmp_path):
    recipe = {**STATE.recipe, "epochs": 40, "model": "cifar_resnet20_v1"}
    saved = replace(STATE, recipe=recipe)
    started = replace(STATE, recipe={**recipe, "epochs": 60})
    assert message_of(check_same_run, saved, started, tmp_path) == (
        f"{tmp_path} is a run of 40 epochs, and its learning rate ends with them: "
        "resume with epochs=40, or train its weights on in a new run, with --set "
        f"epochs=60 initial_weights={tmp_path}/cifar_resnet20_v1.best.params and "
        "another --out"
    )


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("versions", {"numpy": "1.23.5"}, {"numpy": "2"}),
        ("precision", "fp32", "bf16"),
    ],
)
def test_what_may_change_the_outcome_is_told(tmp_path, caplog, name, before, now):
    check_same_run(STATE, replace(STATE, **{name: now}), tmp_path)
    (message,) = caplog.messages
    assert message == (
        f"the run began with {name} {before} and goes on with {now}: the outcome may "
        "differ"
    )


def test_checkpoint_outlives_damaged_ones_of_later_steps(out):
    for steps in (98, 99):
        (out / f"step-{steps:08d}.npz").write_bytes(b"damaged")
    assert load_state(out)[0] == LATER
    path = save_state(out, replace(STATE, epoch=3), ARRAYS)
    assert checkpoints(out) == [out / "step-00000012.npz", path]
    assert load_state(out)[0].epoch == 3


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    names = ["step-99999999.npz", "step-100000000.npz", "step-1000000000.npz"]
    for name in (*reversed(names), "step-best.npz", ".step-1.123.part.npz"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints(tmp_path)] == names


def test_file_and_folder_are_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if synced[-1]:
            assert names_in(tmp_path) == ["step-00000011.npz"]

    monkeypatch.setattr(os, "fsync", fsync)
    save_state(tmp_path, STATE, ARRAYS)
    assert synced == [False, True]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("encoder error -2"), "encoder error -2"),
        (
            mx.base.MXNetError("Traceback:\n  File\nCheck failed: fwrite"),
            "Check failed: fwrite",
        ),
    ],
    ids=["disk", "Pillow", "MXNet"],
)
def test_whatever_cannot_be_written_is_one_line(tmp_path, out, error, reason):
    def write(folder):
        with told_in_one_line(folder / "curves.png", folder):
            raise error

    empty = tmp_path / "empty"
    assert message_of(write, empty) == (
        f"cannot write {empty}/curves.png: {reason}; mend that; then begin again"
    )
    assert message_of(write, out) == (
        f"cannot write {out}/curves.png: {reason}; mend that; then go on with "
        "--resume, step-00000012.npz is kept"
    )
