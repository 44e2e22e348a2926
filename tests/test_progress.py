# SPDX-License-Identifier: Apache-2.0
"""What is shown of long work, and where."""

import io
import logging
import os
import sys
import time
from types import SimpleNamespace

import pytest

from gluon_resnet import progress as module
from gluon_resnet.progress import Bar, Lines, LogLines, doing, progress, say


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.fixture
def terminal(monkeypatch):
    """Standard error is a terminal of 80 columns, standard output is one, too."""
    stream = Terminal()
    streams = SimpleNamespace(stderr=stream, stdout=Terminal(), modules=sys.modules)
    monkeypatch.setattr(module, "sys", streams)
    size = os.terminal_size((80, 24))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: size)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in (("LANG", "en_US.UTF-8"), ("LC_ALL", ""), ("LC_CTYPE", "")):
        monkeypatch.setenv(name, value)
    return stream


def bar_of(columns, **options):
    """A bar with 30 of 120 done in ten seconds, and what it says."""
    options = {"total": 120, "unit": "images", **options}
    bar = Bar(desc="epoch 3/90", ncols=columns, file=io.StringIO(), **options)
    bar.start_t = bar._time() - 10
    bar.n = 30
    bar.set_postfix_str("loss 2.3145, learning rate 0.1", refresh=False)
    return str(bar)


def test_bar_has_what_counts_first_and_the_rest_where_there_is_room():
    whole = (
        "epoch 3/90: 0:00:30 left, loss 2.3145, learning rate 0.1, 30/120, 3 images/s"
    )
    assert bar_of(77) == whole
    assert bar_of(70) == whole.removesuffix(", 3 images/s")
    assert bar_of(60) == whole.removesuffix(", 30/120, 3 images/s")
    assert bar_of(45) == "epoch 3/90: 0:00:30 left, loss 2.3145"
    assert bar_of(76 + 3 + 20) == f"{whole} |{'#' * 5}{' ' * 15}|"


@pytest.mark.parametrize("columns", [20, 40, 60, 79, 80, 81, 120, 200])
@pytest.mark.parametrize("total", [120, None])
def test_bar_is_as_wide_as_there_is_room(columns, total):
    text = bar_of(columns, total=total)
    assert len(text) <= columns
    assert columns < 100 or total is None or len(text) == columns


def test_bar_of_bytes_counts_in_prefixes():
    text = bar_of(200, total=400 * 10**6, initial=0, unit="B", unit_scale=True)
    assert ", 30.0B/400MB, 3.00B/s" in text


def test_bar_without_a_total_tells_the_time_gone():
    assert bar_of(60, total=None).startswith("epoch 3/90: 0:00:10, loss 2.3145")


def test_long_titles_lose_their_middle(capsys):
    bar = progress("imagenet_validation_of_2012.rec", range(3))
    assert bar.desc == "imagenet_v...of_2012.rec"


@pytest.fixture
def clock(monkeypatch):
    """A list of the one time that it is, in seconds."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(module, "time", clock)
    return now


def test_log_has_a_line_every_ten_seconds_and_one_at_the_end(capsys, clock):
    for _ in progress("validation", range(5), unit="batches"):
        clock[0] += 6
    assert capsys.readouterr().err.splitlines() == [
        "validation: 0:00:18 left, 2/5, 0.167 batches/s",
        "validation: 0:00:06 left, 4/5, 0.167 batches/s",
        "validation: 0:00:30, 5/5, 0.167 batches/s",
    ]


def test_line_tells_what_else_is_known(capsys, clock):
    with progress("epoch 1/2", total=40, done=10) as bar:
        bar.set_postfix_str("loss 2.31")
        clock[0] += 10
        bar.update(20)
    assert capsys.readouterr().err.splitlines()[0] == (
        "epoch 1/2: 0:00:05 left, loss 2.31, 30/40, 2 images/s"
    )


def test_short_work_leaves_no_line_in_a_log(capsys):
    with progress("images", total=10) as bar:
        assert isinstance(bar, Lines)
        bar.set_postfix_str("loss 2")
        bar.update(10)
    assert list(progress("images", [1, 2])) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_lines_end_with_work_that_breaks_off(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with pytest.raises(ZeroDivisionError):
        for item in progress("images", [1, 0]):
            1 // item
    assert capsys.readouterr().err.splitlines()[-1].startswith("images: ")


def test_terminal_gets_a_bar(terminal):
    with progress("images", total=10) as bar:
        assert isinstance(bar, Bar) and not bar.disable
    assert "\r" in terminal.getvalue()


@pytest.mark.parametrize(
    "name, value",
    [
        ("TERM", "dumb"),
        ("LC_ALL", "C"),
        ("LC_ALL", "POSIX"),
        ("LANG", "C"),
    ],
)
def test_plain_terminal_gets_lines(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert isinstance(progress("images", total=10), Lines)


def test_locale_that_python_has_set_itself_is_still_c(terminal, monkeypatch):
    monkeypatch.setenv("LANG", "C")
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    assert isinstance(progress("images", total=10), Lines)
    monkeypatch.setenv("LC_CTYPE", "de_DE.UTF-8")
    assert isinstance(progress("images", total=10), Bar)


def test_narrow_and_ascii_terminals_get_lines(terminal, monkeypatch):
    size = os.terminal_size((59, 24))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: size)
    assert isinstance(progress("images", total=10), Lines)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    assert isinstance(progress("images", total=10), Bar)
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert isinstance(progress("images", total=10), Lines)


def test_pager_has_the_screen_to_itself(terminal, monkeypatch):
    reading, writing = os.pipe()
    with open(reading), open(writing, "w") as piped:  # noqa: PTH123
        monkeypatch.setattr(module.sys, "stdout", piped)
        with progress("images", total=10) as bar, doing("loading"):
            bar.update(5)
        monkeypatch.setattr(module, "SILENT_SECONDS", 0.0)
        with doing("loading"):
            time.sleep(0.02)
    assert terminal.getvalue() == ""


def test_notebook_gets_a_bar_of_its_own(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert module._place() == "notebook"
    shell.config = {}  # a plain terminal with IPython
    assert module._place() == "lines"


def test_what_is_said_stands_above_the_bar(terminal):
    with progress("images", total=10):
        say("an answer", terminal)
        log = logging.getLogger("test of lines")
        log.addHandler(LogLines())
        log.warning("a warning")
    shown = terminal.getvalue()
    assert "an answer\n" in shown and "a warning\n" in shown


def test_what_takes_long_is_named(terminal, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.01)
    with doing("loading resnet50_v1b"):
        deadline = time.monotonic() + 5
        while not terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.005)
    assert terminal.getvalue() == "loading resnet50_v1b ...\n"


def test_what_is_done_at_once_is_not_named(terminal, capsys):
    with doing("loading resnet50_v1b"):
        pass
    time.sleep(0.01)
    assert terminal.getvalue() == ""


def test_verbose_names_it_at_once(caplog):
    with caplog.at_level(logging.INFO, "gluon_resnet"), doing("loading resnet50_v1b"):
        pass
    assert caplog.messages == ["loading resnet50_v1b ..."]
