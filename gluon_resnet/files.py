# SPDX-License-Identifier: Apache-2.0
"""Writing files: nothing half-written under its final name, one run in a folder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from gluon_resnet.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The ways in which a system says that a disk, or a share of it, is full."""

_LONGEST_STEM = 180  # bytes; what is joined to it must not make the name too long


class DiskFull(InputError):
    """There is no room for a file."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; it becomes `path` if the block succeeds.

    The folder is made where it is missing. The temporary file ends like `path`, which
    matters to writers that go by the suffix, and is removed if the block fails.
    Raises InputError where the folder cannot be made or written to, or `path` is one,
    and DiskFull; what `path` was before is kept.
    """
    part = _begun(path)
    try:
        yield part
        part.replace(path)
    except Exception as error:
        if not _is_full(error):
            raise
        reason = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
        kept = "the file that was there is kept" if path.exists() else "it is not there"
        raise DiskFull(f"cannot write {path}: {reason}; make room, {kept}") from None
    finally:
        part.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    # Of MXNet's, which tells no more.
    return "FileStream.Write incomplete" in str(error)


def check_writable(path: Path) -> None:
    """Raise InputError where `replacing` would, before there is something to write."""
    _begun(path).unlink()


def _begun(path: Path) -> Path:
    """Make the folder and the empty temporary file."""
    stem = os.fsdecode(os.fsencode(path.stem)[:_LONGEST_STEM])
    part = path.with_name(f".{stem}.{os.getpid()}.part{path.suffix}")
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
    return part


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other runs that lock it out until the block ends.

    The lock is the kernel's: it ends with the process, however that ends. Raises
    InputError where the folder cannot be made or written to, and where another run has
    locked it.
    """
    lock = folder / ".lock"
    with _open_locked(folder, lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _open_locked(folder: Path, lock: Path) -> TextIO:
    """Open and lock the file `lock`; closing it ends the lock."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except OSError as error:
            raise InputError(
                f"cannot write into {folder}: {error.strerror}; choose a folder that "
                "you may write to"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our two calls the run before may have removed the file: a lock on
            # what has no name any more keeps nobody out.
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise InputError(
                f"another run is at work in {folder}: wait for it or choose another "
                "folder"
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            raise InputError(
                f"cannot lock {lock}: {error.strerror}; choose a folder on another disk"
            ) from None
        file.close()
