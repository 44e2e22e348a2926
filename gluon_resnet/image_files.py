# SPDX-License-Identifier: Apache-2.0
"""Finding the image files below a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gluon_resnet.errors import InputError, one_line
from gluon_resnet.preprocess import IMAGE_SUFFIXES

log = logging.getLogger(__name__)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is kept for a program, not for people.

    Names that begin with a dot (`._x.jpg` and `.DS_Store` of macOS, Jupyter's
    `.ipynb_checkpoints` with its copies of images) and `__MACOSX`, where zip archives
    made by macOS keep files that are named like the images and are none.
    """
    return name.startswith(".") or name == "__MACOSX"


class LeftOut:
    """What a search passed over: how many of each kind, and the first of it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, path: str, reason: str) -> None:
        """Count a path."""
        self._counts[reason] += 1
        self._examples.setdefault(reason, path)

    def tell(self, folder: Path) -> None:
        """Log a warning with all counts, if there are any, for a search of `folder`."""
        told = "; ".join(
            f"{count:,} {reason}, such as {self._examples[reason]}"
            for reason, count in self._counts.items()
        )
        if told:
            log.warning("%s", one_line(f"{folder}: left out {told}"))


def image_files(folder: Path, left_out: LeftOut | None = None) -> Iterator[Path]:
    """Yield the image files below a folder, at any depth, sorted name by name.

    An image file ends in one of `IMAGE_SUFFIXES`, in letters of any case; a folder is
    searched whatever its name ends in. Links are followed, but each folder is searched
    once: a link that leads in a circle ends there, and of several ways to one folder
    the first in order counts. A name that is no UTF-8 is as `os.fsdecode` gives it.

    What is left out is counted: hidden names (`is_hidden`; not that of `folder`
    itself), files that are not named like images, links to nothing and folders that may
    not be read. It is told at the end, or added to `left_out` for the caller to tell.

    Raises InputError if `folder` itself cannot be read.
    """
    passed = LeftOut() if left_out is None else left_out
    try:
        begun = [_entries(folder)]
        searched = {_identity(folder)}
    except OSError as error:
        raise InputError(
            f"{folder} cannot be searched for images ({error.strerror}): give a folder "
            "that you may read"
        ) from None
    while begun:
        entry = next(begun[-1], None)
        if entry is None:
            begun.pop()
        elif reason := _reason_to_pass(entry):
            passed.add(entry.path, reason)
        elif not entry.is_dir():
            yield Path(entry.path)
        else:
            try:
                entries, identity = _entries(entry.path), _identity(entry.path)
            except OSError:
                passed.add(entry.path, "not readable")
                continue
            if identity not in searched:
                searched.add(identity)
                begun.append(entries)
    if left_out is None:
        passed.tell(folder)


def _reason_to_pass(entry: os.DirEntry[str]) -> str | None:
    if is_hidden(entry.name):
        return "hidden"
    if entry.is_symlink() and not os.path.exists(entry):  # noqa: PTH110 (no raise)
        return "linked to nothing"
    is_image = entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()
    return None if is_image or entry.is_dir() else "not named like an image"


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    # Not Path.iterdir: a million Path objects and calls of stat take a minute.
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _identity(folder: Path | str) -> tuple[int, int]:
    """What all ways to a folder have in common."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
