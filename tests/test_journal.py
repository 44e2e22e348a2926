# SPDX-License-Identifier: Apache-2.0
"""The log, TensorBoard's events and the picture of a run."""

import errno
import json
import os
import struct
import sys
from dataclasses import replace
from datetime import datetime

import mxnet as mx
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from gluon_resnet.errors import InputError
from gluon_resnet.training.journal import draw_curves, journal, note_start
from gluon_resnet.training.run_state import RunState, Sums

BEGIN = RunState({"batch_size": 10}, 40, precision="fp32", versions={})
STEP = {"epoch": 1, "step": 2, "loss": 0.5}
EPOCH = {"epoch": 1, "step": 4, "loss": 0.25, "top1": 50.0, "top5": 90.0}


def write(out, state, *entries):
    with journal(out, state) as record:
        for entry in entries:
            record(entry)


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def events(out):
    """All events of a run, read as TFRecord has them: length, CRC, content, CRC."""
    found = []
    for path in sorted((out / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_entries_are_lines_of_the_log(tmp_path):
    write(tmp_path / "run", BEGIN, STEP, EPOCH)
    assert logged(tmp_path / "run") == [STEP, EPOCH]


def test_numbers_are_scalars_of_tensorboard(tmp_path):
    write(tmp_path, BEGIN, STEP, EPOCH)
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path)
        for value in event.summary.value
    }
    assert scalars == {
        ("step/loss", 2): 0.5,
        ("epoch/loss", 4): 0.25,
        ("epoch/top1", 4): 50,
        ("epoch/top5", 4): 90,
    }


def test_resumed_log_goes_on_from_the_checkpoint(tmp_path):
    later = {**STEP, "step": 6}
    write(tmp_path, BEGIN, STEP, EPOCH, later)
    write(tmp_path, BEGIN.after_epoch(EPOCH), {**later, "loss": 0.1})
    assert logged(tmp_path) == [STEP, EPOCH, {**later, "loss": 0.1}]
    assert [event.step for event in events(tmp_path) if event.session_log.status] == [
        1,
        5,
    ]


def test_epoch_that_was_not_saved_is_dropped(tmp_path):
    write(tmp_path, BEGIN, STEP, EPOCH)
    trained = replace(BEGIN, sums=Sums(batches=4))
    assert trained.steps == EPOCH["step"]
    write(tmp_path, trained)
    assert logged(tmp_path) == [STEP]


GARBAGE = [
    b'{"epoch": 1, "st',
    b"\x00\xff\xfe\x00",
    b"null",
    b"[1, 2]",
    b'{"epoch": "one", "step": 1}',
    b'{"step": 1}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda line: repr(line[:8]))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_line_that_is_no_entry_is_dropped_with_a_warning(
    tmp_path, garbage, place, caplog
):
    write(tmp_path, BEGIN, STEP, EPOCH)
    path = tmp_path / "log.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:place], garbage, *lines[place:]]))
    later = {**STEP, "epoch": 2, "step": 5}
    write(tmp_path, BEGIN.after_epoch(EPOCH), later)
    assert logged(tmp_path) == [STEP, EPOCH, later]
    assert caplog.messages == [
        f"{path}: left out 1 lines that are no entries, the first is line {place + 1}"
    ]


def test_epoch_that_is_saved_and_not_logged_is_logged(tmp_path):
    write(tmp_path, BEGIN, STEP)
    write(tmp_path, BEGIN.after_epoch(EPOCH))
    assert logged(tmp_path) == [STEP, EPOCH]
    tags = [v.tag for event in events(tmp_path) for v in event.summary.value]
    assert sorted(tags) == ["epoch/loss", "epoch/top1", "epoch/top5", "step/loss"]


@pytest.mark.parametrize("full", ["log.jsonl", "tensorboard"])
def test_full_disk_is_one_line_that_says_what_is_kept(tmp_path, monkeypatch, full):
    (tmp_path / "step-00000004.npz").touch()
    with pytest.raises(InputError) as error, journal(tmp_path, BEGIN) as record:
        if full == "log.jsonl":  # what Linux has for this
            (tmp_path / full).unlink()
            (tmp_path / full).symlink_to("/dev/full")
        else:
            monkeypatch.setattr(RecordWriter, "flush", refuse)
        record(STEP)
    assert str(error.value) == (
        f"cannot write {tmp_path / full}: No space left on device; mend that; then "
        "go on with --resume, step-00000004.npz is kept"
    )


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_error_of_the_training_is_not_told_as_one_of_the_disk(tmp_path):
    with pytest.raises(mx.base.MXNetError, match="out of memory"):
        with journal(tmp_path, BEGIN):
            raise mx.base.MXNetError("out of memory")


def test_starts_are_listed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", "a b"])
    note_start(tmp_path, {"step": 0})
    note_start(tmp_path, {"step": 7})
    first, second = json.loads((tmp_path / "run.json").read_text())
    assert (first["step"], second["step"]) == (0, 7)
    assert first["command"] == "train.py --out 'a b'"
    assert datetime.fromisoformat(first["started"]).tzinfo
    (tmp_path / "run.json").write_text("{")
    note_start(tmp_path, {"step": 9})
    assert [s["step"] for s in json.loads((tmp_path / "run.json").read_text())] == [9]
    assert caplog.messages == [
        f"{tmp_path / 'run.json'} is no list of starts: writing it anew"
    ]


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*log\.jsonl: File exists"):
        write(tmp_path / "file", BEGIN)


def test_curves_are_a_picture(tmp_path):
    second = {"epoch": 2, "loss": 0.2, "top1": 60.0, "top5": 95.0}
    draw_curves(tmp_path / "curves.png", [EPOCH, second])
    with Image.open(tmp_path / "curves.png") as image:
        assert (image.format, image.size) == ("PNG", (640, 240))
        assert len(image.convert("RGB").getcolors(maxcolors=2**16)) > 10
