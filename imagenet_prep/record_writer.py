# SPDX-License-Identifier: Apache-2.0
"""Writing record files that a killed run goes on with.

A record file is three: PREFIX.lst lists what goes in, PREFIX.rec holds the records in
that order and PREFIX.idx where each begins. While they grow, the latter two are called
.PREFIX.part.rec and .PREFIX.part.idx; the index follows the records and lists none that
is not on the disk, so that a run goes on from the last record listed. The .idx gets its
final name last: where it is, the others are whole. The bytes depend neither on the
number of workers nor on interruptions.

The format is the one of mxnet.recordio (gluon_resnet.data.records), written
here without MXNet, whose writer cannot go on with a file.
"""

import filecmp
import os
import random
import re
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Optional

from gluon_resnet.data.records import HEADER, MAGIC
from gluon_resnet.errors import InputError
from gluon_resnet.in_order import in_order
from gluon_resnet.progress import progress

LENGTH_BITS = 29
SHUFFLE_SEED = 100  # MXNet's im2rec.py shuffles with the same
SYNC_BYTES = 64 << 20
"""Bytes of records between two moments from which a killed run can go on."""

_BREAKS_A_LINE = re.compile("[\t\r\n]")
# A name that is no UTF-8 stands in a listing as it does on the disk.
_BYTES_AS_THEY_ARE = "surrogateescape"

Row = tuple[int, int, str]
"""Key, label and name of an image."""


def frame(content: bytes) -> bytes:
    """One record as it stands in the file; `content` has less than 2**29 bytes."""
    assert len(content) < 1 << LENGTH_BITS
    parts = []
    start, found = 0, content.find(MAGIC)
    while found >= 0:
        aligned = found % 4 == 0
        if aligned:
            parts.append(content[start:found])
            start = found + 4
        found = content.find(MAGIC, found + (4 if aligned else 1))
    parts.append(content[start:])
    kinds = [1, *[2] * (len(parts) - 2), 3] if len(parts) > 1 else [0]
    framed = b"".join(
        MAGIC + struct.pack("<I", kind << LENGTH_BITS | len(part)) + part
        for kind, part in zip(kinds, parts)
    )
    return framed + bytes(-len(framed) % 4)


def image_record(row: Row, encode: Callable[[int, str], bytes]) -> bytes:
    """The framed record of a row: a header with label and key, then the image file.

    Raises InputError for an image that no record can hold.
    """
    key, label, name = row
    content = HEADER.pack(0, label, key, 0) + encode(key, name)
    if len(content) >= 1 << LENGTH_BITS:
        raise InputError(
            f"{name} makes a record of {len(content)} bytes, which must be less than "
            f"{1 << LENGTH_BITS}: shrink the image or leave it out"
        )
    return frame(content)


def write_listing(prefix: Path, rows: Iterable[Row], *, shuffle: bool) -> int:
    """Write PREFIX.lst, a line KEY<tab>LABEL<tab>NAME a row; returns how many.

    `shuffle` brings the rows into an order that their number alone decides. Eight
    bytes of memory are taken a row.

    Raises InputError when there is no row, a name breaks the line, or records of other
    rows are there already.
    """
    lst, part = _path(prefix, "lst"), _part(prefix, "lst")
    starts = array("Q")
    with tempfile.TemporaryFile(dir=prefix.parent) as lines:
        for key, label, name in rows:
            if _BREAKS_A_LINE.search(name):
                raise InputError(
                    f"the file name {name!r} cannot stand in a line of {lst}: rename "
                    "the file without tabs and line ends"
                )
            starts.append(lines.tell())
            line = f"{key}\t{label}\t{name}\n"
            lines.write(line.encode(errors=_BYTES_AS_THEY_ARE))
        if not starts:
            raise InputError(f"there is no image to list in {lst}: give at least one")
        if shuffle:
            random.Random(SHUFFLE_SEED).shuffle(starts)
        with part.open("wb") as listing:
            for start in starts:
                lines.seek(start)
                listing.write(lines.readline())
    begun = _path(prefix, "idx").exists() or _part(prefix, "idx").exists()
    if begun and not (lst.exists() and filecmp.cmp(lst, part, shallow=False)):
        part.unlink()
        raise _other_records(prefix, "another list of images")
    part.replace(lst)
    return len(starts)


def write_records(
    prefix: Path,
    encode: Callable[[int, str], bytes],
    *,
    workers: Optional[int] = None,
) -> bool:
    """Write PREFIX.rec and PREFIX.idx from PREFIX.lst; False if they are there already.

    `encode`, called by several threads at once, gives the image file of a key and name.
    What a killed run has written is kept.

    Raises InputError for an image that no record can hold, and where the records that
    are there do not begin like the ones to be written.
    """
    lst, rec, idx = (_path(prefix, suffix) for suffix in ("lst", "rec", "idx"))
    rec_part, idx_part = _part(prefix, "rec"), _part(prefix, "idx")
    total, first = _count_lines(lst), image_record(next(_rows(lst)), encode)
    if idx.exists() and rec.exists():
        with rec.open("rb") as records:
            if _count_lines(idx) != total or records.read(len(first)) != first:
                raise _other_records(prefix, "other images or options")
        return False

    idx.unlink(missing_ok=True)
    if rec.exists() and idx_part.exists() and not rec_part.exists():
        rec.replace(rec_part)  # The run was killed between its last two steps.
    for path in (rec_part, idx_part):
        path.touch()
    with rec_part.open("r+b") as records, idx_part.open("r+b") as index:
        done = _go_on(records, index)
        if done and records.read(len(first)) != first:
            raise _other_records(prefix, "other images or options")
        offset = synced = records.seek(0, os.SEEK_END)
        lines = []
        rows = islice(_rows(lst), done, None)
        framed = in_order(
            lambda row: (row[0], image_record(row, encode)), rows, workers=workers
        )
        with progress(rec.name, total=total, done=done) as bar:
            for key, record in framed:
                records.write(record)
                lines.append(f"{key}\t{offset}\n")
                offset += len(record)
                bar.update()
                if offset - synced >= SYNC_BYTES:
                    _sync(records, index, lines)
                    synced = offset
            _sync(records, index, lines)
        os.fsync(index.fileno())
    rec_part.replace(rec)
    idx_part.replace(idx)
    return True


def _path(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")


def _part(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f".{prefix.name}.part.{suffix}")


def _other_records(prefix: Path, what: str) -> InputError:
    return InputError(
        f"{prefix}.rec was begun with {what}: give the same again, another "
        f"target, or remove {prefix}.idx and {_part(prefix, 'idx')}"
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def _rows(lst: Path) -> Iterator[Row]:
    with lst.open(encoding="utf-8", errors=_BYTES_AS_THEY_ARE, newline="\n") as lines:
        for line in lines:
            key, label, name = line.rstrip("\n").split("\t")
            yield int(key), int(label), name


def _sync(records: BinaryIO, index: BinaryIO, lines: list[str]) -> None:
    """Append `lines` to the index once the records that they list are on the disk."""
    records.flush()
    os.fsync(records.fileno())
    index.write("".join(lines).encode())
    index.flush()
    lines.clear()


def _go_on(records: BinaryIO, index: BinaryIO) -> int:
    """Cut both files after a whole record that both have; returns how many are left.

    The last record listed is cut off: the index tells where it begins, not where it
    ends. `records` is left at its start, `index` at its end.
    """
    size = records.seek(0, os.SEEK_END)
    count = end = last_line = last_record = 0
    for line in index:
        match = re.fullmatch(rb"\d+\t(\d+)\n", line)
        if not match or int(match[1]) > size:
            break
        count, last_line, last_record = count + 1, end, int(match[1])
        end += len(line)
    records.truncate(last_record)
    index.truncate(last_line)
    records.seek(0)
    index.seek(last_line)
    return max(count - 1, 0)
