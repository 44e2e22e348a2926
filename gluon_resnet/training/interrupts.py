# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM, held back until a step is done."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised between two steps."""


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and SIGTERM back; give a function that raises Interrupted for them.

    So no step is broken off half done. A second signal is not held back. Ignored ones
    stay ignored; beside the main thread, which alone gets signals, nothing is done.
    """
    came: list[int] = []

    def hold(number: int, frame: object) -> None:
        came.append(number)
        log.info("stopping after this step; once more stops at once")
        put_back()

    def check() -> None:
        if came:
            raise Interrupted

    put_back = _handled_by(hold)
    try:
        yield check
    finally:
        put_back()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, too."""
    put_back = _handled_by(signal.default_int_handler, (signal.SIGTERM,))
    try:
        yield
    finally:
        put_back()


def _handled_by(
    handler: Callable[[int, Any], Any], numbers: tuple[signal.Signals, ...] = _SIGNALS
) -> Callable[[], None]:
    """Set a handler; returns what puts the former ones back, once."""
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, handler)

    def put_back() -> None:
        while former:
            signal.signal(*former.popitem())

    return put_back
