# SPDX-License-Identifier: Apache-2.0
"""What the long commands share: one run a folder, worker threads, progress.

The workers are threads: reading files, decoding, resizing and encoding leave Python's
lock alone, and a killed run leaves no process behind.
"""

import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Optional, TypeVar

from tqdm import tqdm

from gluon_resnet.errors import InputError
from gluon_resnet.files import locked

SECONDS_BETWEEN_LINES = 30.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def working_in(target: Path) -> Iterator[None]:
    """Make the folder `target` and keep other runs out of it.

    Raises InputError where it cannot be made, where another run is at work in it and
    where the disk is full.
    """
    with locked(target):
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise InputError(
                f"{target} cannot hold more ({error.strerror}): make room and give the "
                "same command again, it goes on from there"
            ) from error


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: Optional[int] = None,
) -> Iterator[Result]:
    """The results of `function`, computed by threads, in the order of `items`.

    As many threads as cores if `workers` is None. At most four items a thread are
    taken ahead, so that memory stays bounded.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise InputError(f"{workers} workers do no work: give at least 1")
    waiting = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def print_written(written: Sequence[Path], wanted: int, target: Path) -> None:
    """Print the paths of record files, and tell where not all were to be written."""
    for path in written:
        print(path)
    if len(written) < wanted:
        print(f"{target} held the rest already", file=sys.stderr)


@contextmanager
def progress(
    what: str, total: int, unit: str, *, done: int = 0
) -> Iterator[Callable[[int], object]]:
    """Give a function to call with how many more are done.

    It draws a bar on a terminal and prints a line now and then into a log. Bytes
    (`unit` "B") are shown with prefixes.
    """
    if sys.stderr.isatty():
        with tqdm(
            desc=what, total=total, initial=done, unit=unit, unit_scale=unit == "B"
        ) as bar:
            yield bar.update
        return

    last = time.monotonic()

    def say() -> None:
        print(f"{what}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say()

    yield advance
    say()
