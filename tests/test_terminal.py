# SPDX-License-Identifier: Apache-2.0
"""Commands in a terminal, as somebody sees them who sits before it."""

import os
import shutil
import sys

import pexpect
import pyte
import pytest

from gluon_resnet import bundled

PROGRAM = [sys.executable, "-m", "gluon_resnet"]
INFER = ["infer", str(bundled.IMAGES), "--model", bundled.NAME, "--topk", "1"]
VALIDATE = ["validate", "--rec", str(bundled.VAL_REC), "--model", bundled.NAME]
INTERRUPT = "\x03"

pytestmark = pytest.mark.slow


class Session:
    """A command in a terminal of so many columns, and its screen after each output."""

    def __init__(self, command, columns, **environment):
        self.columns = columns
        self.screen = pyte.Screen(columns, 60)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.frames = []
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(60, columns),
            timeout=120,
            env={
                **os.environ,
                **{"TERM": "xterm", "LANG": "C.UTF-8", "PYTHONPATH": "."},
                **environment,
            },
        )

    def step(self):
        """Show what comes next; whether there is more."""
        try:
            data = self.child.read_nonblocking(4096, timeout=120)
        except pexpect.EOF:
            self.child.close()
            return False
        self.raw += data
        self._stream.feed(data)
        self.frames.append([line.rstrip() for line in self.screen.display])
        return True

    def run(self):
        """Show all of it; the lines that are left."""
        while self.step():
            pass
        return [line for line in self.frames[-1] if line]


@pytest.fixture
def images(tmp_path):
    """Enough of them for a bar to be seen."""
    for copy in range(30):
        for path in bundled.IMAGES.glob("*.png"):
            shutil.copy(path, tmp_path / f"{copy}-{path.name}")
    return tmp_path


@pytest.mark.parametrize("columns", [80, 200])
def test_bar_tells_the_time_left_and_leaves_the_answers_whole(columns, images):
    session = Session([*PROGRAM, "infer", str(images), *INFER[2:]], columns)
    lines = session.run()
    bars = [
        line
        for frame in session.frames
        for line in frame
        if line.startswith("images: ") and "/300" in line
    ]
    assert any(" left, " in bar and bar.endswith("|") for bar in bars)
    assert max(map(len, bars)) == columns - 1
    assert session.child.exitstatus == 0
    answer, summary = lines[-2:]
    assert answer.strip().endswith(("Coat", "Bag", "Ankle boot", "Sneaker", "Shirt"))
    assert summary.startswith("300 images, 0 failed, ")
    assert not [line for line in lines if line.startswith("images: ")]


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("verb", [["models", "resnet18"], ["weights", "resnet18_v1"]])
def test_tables_fit(verb, columns):
    session = Session([*PROGRAM, *verb], columns)
    lines = session.run()
    assert session.child.exitstatus == 0
    head, ruler, *rows = [line for line in lines if line]
    assert set(ruler) == {"-", " "} and len(ruler) <= 80
    assert len(head.split()) == len(ruler.split())
    assert any(row.startswith("resnet18_v1") for row in rows)


def test_dumb_terminal_gets_no_bar():
    session = Session([*PROGRAM, *VALIDATE], 80, TERM="dumb")
    outcome = "".join(session.run())
    assert f"{bundled.NAME}: top-1 95.60 %" in outcome
    assert session.raw.count(b"\r") == session.raw.count(b"\r\n")


def test_pager_has_the_screen_to_itself():
    command = " ".join([*PROGRAM, *INFER, "--json", "|", "wc", "-l"])
    lines = Session(["bash", "-c", command], 80).run()
    assert sorted(lines)[0] == "10"
    assert sorted(lines)[1].startswith("10 images, 0 failed, ")
    assert len(lines) == 2


def test_control_c_is_one_line_and_130():
    session = Session([*PROGRAM, "benchmark", "cifar_resnet20_v1", "--seconds=60"], 80)
    while b"measuring" not in session.raw:
        assert session.step()
    session.child.send(INTERRUPT)
    lines = session.run()
    assert session.child.exitstatus == 130
    assert lines[-1].endswith("python -m gluon_resnet benchmark: stopped by Ctrl-C")
    assert len(lines) == 2
