# SPDX-License-Identifier: Apache-2.0
"""What the long commands share: one run a folder, and progress."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from gluon_resnet.errors import InputError
from gluon_resnet.files import FULL, locked

SECONDS_BETWEEN_LINES = 30.0


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
            if error.errno not in FULL:
                raise
            raise InputError(
                f"{target} cannot hold more ({error.strerror}): make room and give the "
                "same command again, it goes on from there"
            ) from error


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
