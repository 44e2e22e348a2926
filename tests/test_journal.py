# SPDX-License-Identifier: Apache-2.0
"""The log, TensorBoard's events and the picture of a run."""

import json
import struct

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from gluon_resnet.errors import InputError
from gluon_resnet.training.journal import draw_curves, journal
from gluon_resnet.training.run_state import RunState

BEGIN = RunState({"batch_size": 10}, num_images=40, versions={})
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
    trained = RunState({"batch_size": 10}, num_images=40, versions={}, batch=4)
    assert trained.steps == EPOCH["step"]
    write(tmp_path, trained)
    assert logged(tmp_path) == [STEP]


def test_line_that_was_written_half_is_dropped(tmp_path):
    write(tmp_path, BEGIN, STEP)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    write(tmp_path, BEGIN.after_epoch(EPOCH), EPOCH)
    assert logged(tmp_path) == [STEP, EPOCH]


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
