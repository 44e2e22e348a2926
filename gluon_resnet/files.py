# SPDX-License-Identifier: Apache-2.0
"""Writing files so that nothing half-written stays under its final name."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gluon_resnet.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; it becomes `path` if the block succeeds.

    The folder is made where it is missing. The temporary file ends like `path`, which
    matters to writers that go by the suffix, and is removed if the block fails.
    Raises InputError where the folder cannot be made or written to, or `path` is one.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a path in a folder that "
            "you may write to"
        ) from None
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
