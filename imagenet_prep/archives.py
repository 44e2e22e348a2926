# SPDX-License-Identifier: Apache-2.0
"""Taking files out of tar archives that are not trusted.

Nothing here lets tarfile write: names and kinds of members are checked first, and of a
member only its content is taken, with no owner, mode or time.
"""

import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Optional, Union

from gluon_resnet.errors import InputError
from gluon_resnet.progress import progress

ORIGIN = ".origin"
_ALGORITHMS = {32: "md5", 40: "sha1"}  # by the number of hexadecimal digits
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)  # neither sparse nor contiguous
_CHUNK = 1 << 20
# tarfile remembers each member that it passes; ImageNet's validation images are 50,000.
_MOST_MEMBERS = 200_000


def digest_of(path: Path, algorithm: str) -> str:
    """The MD5 ("md5") or SHA-1 ("sha1") of a file, in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        path.open("rb") as file,
        progress(f"checking {path.name}", total=path.stat().st_size, unit="B") as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def check_sum(path: Path, checksum: str) -> None:
    """Raise InputError unless the file has this MD5 or SHA-1, in hexadecimal."""
    algorithm = _ALGORITHMS[len(checksum)]
    digest = digest_of(path, algorithm)
    if digest != checksum:
        raise InputError(
            f"{path} has the {algorithm.upper()} {digest}, the published file "
            f"{checksum}: fetch it again"
        )


def begin(folder: Path, archive: Path, *, checksum: Optional[str]) -> None:
    """Make `folder` for what comes out of `archive`, after verifying its `checksum`.

    A folder that was begun from the same archive is kept, and the archive not read
    again; what came of another one is removed. None verifies nothing.
    """
    status = archive.stat()
    origin = f"{archive.name} {status.st_size} {status.st_mtime_ns} {checksum}\n"
    note = folder / ORIGIN
    if note.is_file() and note.read_text(encoding="utf-8") == origin:
        return
    if checksum:
        check_sum(archive, checksum)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    note.write_text(origin, encoding="utf-8")


def finish(part: Path, folder: Path) -> None:
    """Give what `begin` began its final name."""
    part.replace(folder)
    is_finished(folder)


def is_finished(folder: Path) -> bool:
    """Whether `finish` gave a folder that name."""
    # Not done before the renaming: a run killed in between would have to start anew.
    (folder / ORIGIN).unlink(missing_ok=True)
    return folder.is_dir()


@contextmanager
def open_archive(
    source: Union[Path, IO[bytes]],
    mode: Literal["r:", "r:gz"] = "r:",
    *,
    name: object,
) -> Iterator[tarfile.TarFile]:
    """A tar archive; what is wrong with it is an InputError that calls it `name`."""
    try:
        if isinstance(source, Path):
            archive = tarfile.open(source, mode)
        else:
            archive = tarfile.open(fileobj=source, mode=mode)
        with archive:
            yield archive
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        # gzip says "not a gzipped file" with an OSError that has no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{name} is damaged ({error}): fetch it again") from error


def regular_files(
    archive: tarfile.TarFile, *, name: object
) -> Iterator[tarfile.TarInfo]:
    """The members that are files, folders passed over.

    Raises InputError at a member of another kind (a link, a device), at a name that
    leads out of the folder the archive is unpacked in or is none, and at more members
    than any published archive has.
    """
    for number, member in enumerate(archive):
        if number == _MOST_MEMBERS:
            raise InputError(
                f"{name} holds more than {_MOST_MEMBERS} members: do not trust it, "
                "fetch the published file"
            )
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\0" in member.name:
            raise InputError(
                f"{name} holds {member.name!r}, a name that leads out of its folder: "
                "do not trust it, fetch the published file"
            )
        if member.type in _FILE_TYPES:
            yield member
        elif not member.isdir():
            raise InputError(
                f"{name} holds {member.name!r}, which is neither file nor folder: do "
                "not trust it, fetch the published file"
            )


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write a member's content to `path`, unless a file of that size is there."""
    if path.is_file() and path.stat().st_size == member.size:
        return
    with path.open("wb") as file, content_of(archive, member) as content:
        shutil.copyfileobj(content, file, _CHUNK)


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The content of one of `regular_files`."""
    content = archive.extractfile(member)
    assert content is not None  # Of another kind of member it is.
    return content
