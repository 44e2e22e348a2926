# SPDX-License-Identifier: Apache-2.0
"""How far long work has come: a bar where a bar fits, else a plain line now and then.

===========================================  ======================================
standard error is                            what is shown
===========================================  ======================================
a terminal                                   a bar: time left first, then the rest
a terminal that is narrow, dumb or ASCII     a line every 10 s
a terminal, while standard output is piped   nothing: a pager may own the screen
a cell of a Jupyter notebook                 a bar of the notebook's
a file or a pipe                             a line every 10 s
===========================================  ======================================

What is printed while a bar may be there is printed by `say`.
"""

import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Optional, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
SILENT_SECONDS = 2.0
"""For so long nothing need be said of work that has no steps to count."""
NARROWEST = 60
"""Columns that a bar needs; on fewer there are lines."""

_LONGEST_TITLE = 24
_SHORTEST_BAR = 10


class Lines:
    """Progress in plain lines, each of its own time; none for short work.

    It has those methods of `tqdm.tqdm` that are used here.
    """

    def __init__(
        self,
        items: Optional[Iterable] = None,
        *,
        desc: str,
        total: Optional[int],
        initial: int,
        unit: str,
        unit_scale: bool,
    ):
        self.items, self.desc, self.total, self.unit = items, desc, total, unit
        self.n = self.initial = initial
        self.unit_scale, self.postfix = unit_scale, ""
        self._began = self._said_at = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator:
        with self:
            for item in self.items or ():
                yield item
                self.update()

    def update(self, count: int = 1) -> None:
        """Count what is done, and say so where the last line is some time ago."""
        self.n += count
        if time.monotonic() - self._said_at >= SECONDS_BETWEEN_LINES:
            self._say()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Tell something with the next line."""
        self.postfix = text

    def close(self) -> None:
        """Say how it ended, unless nothing has been said yet."""
        if self._said_at > self._began:
            self._say()
        self._began = self._said_at  # for a second call

    def _say(self) -> None:
        self._said_at = time.monotonic()
        say("".join(_parts(self, self._said_at - self._began, None)), sys.stderr)


class Bar(tqdm):
    """A bar that is never cut: what has no room is left out, the least first."""

    def __str__(self) -> str:
        meter = self.format_dict
        room = meter["ncols"] or NARROWEST
        text = ""
        for part in _parts(self, meter["elapsed"], meter["rate"]):
            if len(text) + len(part) > room:
                break
            text += part
        room -= len(text) + len(" ||")
        if self.total and room >= _SHORTEST_BAR:
            done = round(room * min(1, self.n / self.total))
            text += f" |{'#' * done}{' ' * (room - done)}|"
        return text


def progress(
    what: str,
    items: Optional[Iterable] = None,
    *,
    total: Optional[int] = None,
    done: int = 0,
    unit: str = "images",
) -> Any:
    """Return `items` under a bar or lines; without them, call its `update(count)`.

    It is also a context manager, and its `set_postfix_str(text)` tells more: the parts
    of the text, divided by ", ", in the order of their weight.

    total: how many there are, with those `done` before; default the length of `items`,
    if they have one. unit: what is counted; "B" for bytes.
    """
    if total is None and hasattr(items, "__len__"):
        total = done + len(items)  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "desc": _shortened(what),
        "total": total,
        "initial": done,
        "unit": unit,
        "unit_scale": unit == "B",
    }
    place = _place()
    if place == "lines":
        return Lines(items, **options)
    if place == "notebook":
        from tqdm.auto import tqdm as notebook_bar

        return notebook_bar(items, leave=False, **options)
    options["disable"] = place == "nothing"
    return Bar(items, file=sys.stderr, leave=False, dynamic_ncols=True, **options)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what is being done, if it takes a while and somebody looks on."""
    timer = threading.Timer(SILENT_SECONDS, say, (f"{what} ...", sys.stderr))
    timer.daemon = True
    if log.isEnabledFor(logging.INFO):
        log.info("%s ...", what)
    elif sys.stderr.isatty() and _place() != "nothing":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(line: str, file: Optional[TextIO] = None) -> None:
    """Print a line above the bars, if any; to standard output by default."""
    file = file or sys.stdout
    tqdm.write(line, file=file)
    file.flush()


class LogLines(logging.Handler):
    """Prints what is logged to standard error, above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            say(self.format(record), sys.stderr)
        except Exception:
            self.handleError(record)


def _place() -> str:
    """Return where progress is shown: notebook, bar, lines or nothing."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and "IPKernelApp" in shell.config:
        return "notebook"
    if not sys.stderr.isatty():
        return "lines"
    if _is_pipe(sys.stdout):
        return "nothing"
    return "lines" if _is_plain_terminal() else "bar"


def _is_pipe(stream: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def _is_plain_terminal() -> bool:
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # no file of the system's
        columns = 80
    # Python sets LC_CTYPE to C.UTF-8 where it finds the C locale.
    ctype = os.environ.get("LC_CTYPE", "").replace("C.UTF-8", "")
    locale = os.environ.get("LC_ALL") or ctype or os.environ.get("LANG")
    return (
        columns < NARROWEST
        or os.environ.get("TERM", "dumb") == "dumb"
        or locale in ("C", "POSIX")
        or "utf" not in (sys.stderr.encoding or "").lower()
    )


def _parts(bar: Any, elapsed: float, rate: Optional[float]) -> Iterator[str]:
    """Give what there is to say, in the order of its weight."""
    yield bar.desc.removesuffix(": ")
    rate = rate or (bar.n - bar.initial) / max(elapsed, 1e-9)
    if bar.total is None:
        yield f": {_clock(elapsed)}"
    elif bar.n < bar.total and rate:
        yield f": {_clock((bar.total - bar.n) / rate)} left"
    else:
        yield f": {_clock(elapsed)}"
    for said in filter(None, (bar.postfix or "").split(", ")):
        yield f", {said}"
    of_total = "" if bar.total is None else f"/{_amount(bar.total, bar)}"
    yield f", {_amount(bar.n, bar)}{of_total}"
    if rate:
        yield f", {_rate(rate, bar)}/s"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _amount(count: int, bar: Any) -> str:
    return f"{tqdm.format_sizeof(count)}B" if bar.unit_scale else str(count)


def _rate(rate: float, bar: Any) -> str:
    if bar.unit_scale:
        return f"{tqdm.format_sizeof(rate)}B"
    return f"{rate:,.0f} {bar.unit}" if rate >= 100 else f"{rate:.3g} {bar.unit}"


def _shortened(title: str) -> str:
    if len(title) <= _LONGEST_TITLE:
        return title
    kept = _LONGEST_TITLE - len("...")
    return f"{title[: kept // 2]}...{title[-(kept - kept // 2) :]}"
