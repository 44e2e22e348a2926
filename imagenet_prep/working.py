# SPDX-License-Identifier: Apache-2.0
"""What the long commands share: one run a folder, and what they print."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gluon_resnet.errors import InputError
from gluon_resnet.files import FULL, locked


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
