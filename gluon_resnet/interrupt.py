# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, from a command's first import to its last line: one line, exit code 130.

While a command works, Ctrl-C is a KeyboardInterrupt, so that what is open gets closed.
Before and after, where there is nothing to close and Python would show a traceback, and
at a second Ctrl-C, the process ends at once.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Optional

EXIT_CODE = 130

_COMMANDS = ("gluon_resnet", "imagenet_prep")  # as in `python -m`


def end_at_once(prog: str) -> None:
    """Let Ctrl-C end the process from now on, whatever runs."""

    def handle(number: int, frame: Optional[FrameType]) -> NoReturn:
        end(prog)

    _set_handler(prog, handle)


def raise_once(prog: str) -> None:
    """Let the first Ctrl-C from now on raise KeyboardInterrupt, a second end all.

    In the middle of an import the first ends all: others' modules have bare excepts
    around their imports, which would swallow the exception.
    """

    def handle(number: int, frame: Optional[FrameType]) -> NoReturn:
        if _is_importing(frame):
            end(prog)
        end_at_once(prog)
        raise KeyboardInterrupt

    _set_handler(prog, handle)


def end(prog: str) -> NoReturn:
    """Say so and end the process, with whatever still runs in it.

    Not by sys.exit: where the exception has passed a text that was run by `exec`, of
    which MXNet's import has many, Python would end by the signal instead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What was printed goes out, unless it is in the middle of that.
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{prog}: stopped by Ctrl-C\n".encode(errors="replace"))
    os._exit(EXIT_CODE)


def guard_start() -> None:
    """Call `end_at_once` if Python has just been started to run a command of ours.

    It is for the package's first import. Where another program imports the package,
    Ctrl-C stays that program's.
    """
    words = getattr(sys, "orig_argv", [])  # Python 3.9 has none
    if sys.argv[:1] == ["-m"] and "-m" in words[:-1]:  # runpy is looking for it
        module = words[words.index("-m") + 1]
        if module.partition(".")[0] in _COMMANDS:
            end_at_once(f"python -m {module}")
    elif sys.argv and Path(sys.argv[0]).name == "gluon-resnet":
        end_at_once("gluon-resnet")


def _is_importing(frame: Optional[FrameType]) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _set_handler(
    prog: str, handler: Callable[[int, Optional[FrameType]], object]
) -> None:
    # A background job ignores it, and that stays so.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    signal.signal(signal.SIGINT, handler)

    def show(
        kind: type[BaseException],
        error: BaseException,
        traceback: Optional[TracebackType],
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            end(prog)
        sys.__excepthook__(kind, error, traceback)

    def show_ignored(error: "sys.UnraisableHookArgs") -> None:
        # C code that called Python cannot pass an exception on: it would be lost.
        if issubclass(error.exc_type, KeyboardInterrupt):
            end(prog)
        sys.__unraisablehook__(error)

    sys.excepthook, sys.unraisablehook = show, show_ignored
