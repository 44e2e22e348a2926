# SPDX-License-Identifier: Apache-2.0
"""Reading record files: a .rec with its .idx.

RecordIO, after dmlc-core's recordio.h: a part is the word 0xCED7230A, a word of three
bits for the kind of part and 29 for its length in bytes, these bytes, and padding to a
multiple of four. A record is one part (kind 0) or, where that first word occurs at a
multiple of four within it, the parts before, between and after such words (kinds 1, 2
and 3). What lies inside is mxnet.recordio's: `HEADER`, where it says so a list of
labels (float32), and an encoded image.
"""

import shlex
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_CUR
from pathlib import Path
from typing import BinaryIO, Optional

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image

MAGIC = bytes.fromhex("0a23d7ce")
# The number of labels that follow, 0 for the one beside it; the label; two identifiers,
# of which the first is the key.
HEADER = struct.Struct("<IfQQ")
NO_LABEL = -1


@dataclass(frozen=True)
class RecordFile:
    """A record file and where its records begin.

    `offsets` maps each key to a byte offset, in the order of the file. `num_classes` is
    that of the labels, None where labels do not matter.

    A label is one whole number, or a list of one (`im2rec --pack-label` and
    mxnet.recordio.pack with a list write such). Records with other labels, as of
    detection or of several classes an image, serve where labels do not matter.
    `labels` and `encoded_image` give what any of them holds: a function of your own can
    make of it the label and the image that `data.loader` reads.
    """

    path: Path
    offsets: dict[int, int]
    num_classes: Optional[int]

    @classmethod
    def open(cls, path: Path, *, num_classes: Optional[int]) -> "RecordFile":
        """Read the .idx beside the .rec file `path`.

        Raises InputError when one of them is missing or the .idx is no index of it.
        """
        path = Path(path)
        index = path.with_suffix(".idx")
        if path == index or not path.is_file():
            fault = "is no record file" if path.exists() else "is not there"
            raise InputError(
                f"{path} {fault}; a record file is a .rec with its .idx beside it: "
                "give the path of the .rec"
            )
        again = f"make it with python -m imagenet_prep.index {shlex.quote(str(path))}"
        if not index.is_file():
            raise InputError(f"{path} has no {index.name} beside it: {again}")
        size = path.stat().st_size
        if not size:
            raise InputError(f"{path} is empty: write it again")
        lines = index.read_text(encoding="utf-8", errors="replace").splitlines()
        offsets = {}
        for number, line in enumerate(lines, 1):
            try:
                key, offset = (int(field) for field in line.split("\t"))
            except ValueError:
                raise InputError(
                    f"{index} line {number} is not KEY<tab>OFFSET, two whole numbers: "
                    f"{again}"
                ) from None
            if key in offsets or not 0 <= offset < size:
                raise InputError(
                    f"{index} line {number} gives key {key} the offset {offset}; keys "
                    f"occur once and offsets lie below the {size} bytes of "
                    f"{path.name}: {again}"
                )
            offsets[key] = offset
        if not offsets:
            raise InputError(f"{index} lists no record: {again}")
        in_file_order = sorted(offsets.items(), key=lambda item: item[1])
        return cls(path, dict(in_file_order), num_classes)

    def read(self, key: int) -> tuple[int, np.ndarray]:
        """Label and image, uint8 RGB (H, W, 3), of one record.

        The label is NO_LABEL where labels do not matter. Raises InputError naming file,
        key and offset when the record is damaged, its label is no class or its image
        cannot be read.
        """
        labels, encoded = self._parts(key)
        label = NO_LABEL if self.num_classes is None else self._class(key, labels)
        try:
            return label, read_image(encoded)
        except InputError as error:
            raise self._damaged(key, str(error)) from error

    def encoded_image(self, key: int) -> bytes:
        """The image file of one record, whatever its labels.

        Raises InputError where the record is damaged.
        """
        return self._parts(key)[1]

    def labels(self, key: int) -> np.ndarray:
        """All labels of one record, float32 (n,).

        Raises InputError where the record is damaged.
        """
        return self._parts(key)[0]

    def _parts(self, key: int) -> tuple[np.ndarray, bytes]:
        """Labels (n,) and image file of one record."""
        content = self._content(key)
        if len(content) < HEADER.size:
            raise self._damaged(key, f"{len(content)} bytes are too few for a header")
        num_labels, label, _, _ = HEADER.unpack_from(content)
        if not num_labels:
            return np.array([label], np.float32), content[HEADER.size :]
        start = HEADER.size + 4 * num_labels
        if len(content) < start:
            raise self._damaged(key, f"it ends within its list of {num_labels} labels")
        labels = np.frombuffer(content, "<f4", num_labels, HEADER.size)
        return labels, content[start:]

    def _class(self, key: int, labels: np.ndarray) -> int:
        """The label, where it is one and a class."""
        classes = self.num_classes or 0
        label = float(labels[0]) if len(labels) == 1 else None
        if label is None:
            why = f"it has {len(labels)} labels, and a class is one"
        elif label.is_integer() and 0 <= label < classes:
            return int(label)
        elif label == NO_LABEL:
            why = "it has no label (-1), and a class is needed"
        elif not label.is_integer():
            why = f"its label {label:g} is no whole number"
        else:
            why = f"its label {label:.0f} is none of {classes} classes"
        raise InputError(
            f"{self._place(key)}: {why}; give images with labels from 0 to "
            f"{classes - 1}"
        )

    def _content(self, key: int) -> bytes:
        """The bytes of one record."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[key])
            try:
                return _read_record(file)
            except ValueError as error:
                raise self._damaged(key, str(error)) from None

    def _damaged(self, key: int, why: str) -> InputError:
        return InputError(
            f"{self._place(key)}: {why}; write the file again, or delete the line of "
            f"{key} in {self.path.with_suffix('.idx').name} to go without it"
        )

    def _place(self, key: int) -> str:
        return f"{self.path}, record {key} at offset {self.offsets[key]}"


def records_in(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of every record of a .rec file, without its index.

    Raises InputError where something else stands.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        while (offset := file.tell()) < size:
            try:
                content = _read_record(file)
                if len(content) < HEADER.size:
                    raise ValueError(f"{len(content)} bytes are too few for a header")
            except ValueError as error:
                raise InputError(
                    f"{path} at offset {offset}: {error}; write the file again"
                ) from None
            yield offset, content


def _read_record(file: BinaryIO) -> bytes:
    """The record that begins here, put together where it stands in parts.

    The file is left where the next one begins. Raises ValueError where it is damaged.
    """
    parts: list[bytes] = []
    while True:
        words = file.read(8)
        if len(words) < 8:
            raise ValueError("the file ends in its first words")
        magic, part_and_length = struct.unpack("<4sI", words)
        part, length = part_and_length >> 29, part_and_length & (1 << 29) - 1
        if magic != MAGIC or part not in ((2, 3) if parts else (0, 1)):
            raise ValueError("no record begins there")
        parts.append(file.read(length))
        if len(parts[-1]) < length:
            raise ValueError("the file ends within it")
        file.seek(-length % 4, SEEK_CUR)
        if part in (0, 3):
            return MAGIC.join(parts)
