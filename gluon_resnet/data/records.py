# SPDX-License-Identifier: Apache-2.0
"""Reading record files: a .rec with its .idx.

RecordIO, after dmlc-core's recordio.h: a part is the word 0xCED7230A, a word of three
bits for the kind of part and 29 for its length in bytes, these bytes, and padding to a
multiple of four. A record is one part (kind 0) or, where that first word occurs at a
multiple of four within it, the parts before, between and after such words (kinds 1, 2
and 3). What lies inside, header and encoded image, is mxnet.recordio's.
"""

import struct
from dataclasses import dataclass
from os import SEEK_CUR
from pathlib import Path

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image

MAGIC = bytes.fromhex("0a23d7ce")
# The number of labels that follow, 0 for the one beside it; the label; two identifiers.
HEADER = struct.Struct("<IfQQ")


@dataclass(frozen=True)
class RecordFile:
    """A record file and where its records begin.

    `offsets` maps each key to a byte offset, in the order of the file.
    """

    path: Path
    offsets: dict[int, int]
    num_classes: int

    @classmethod
    def open(cls, path: Path, *, num_classes: int) -> "RecordFile":
        """Read the .idx beside the .rec file `path`.

        Raises InputError when one of them is missing or the .idx is no index of it.
        """
        path = Path(path)
        index = path.with_suffix(".idx")
        for file in (path, index):
            if not file.is_file():
                raise InputError(
                    f"{file} is not there; a record file is a .rec with its .idx "
                    "beside it: give the path of the .rec"
                )
        size = path.stat().st_size
        lines = index.read_text(encoding="utf-8", errors="replace").splitlines()
        offsets = {}
        for number, line in enumerate(lines, 1):
            try:
                key, offset = (int(field) for field in line.split("\t"))
            except ValueError:
                raise InputError(
                    f"{index} line {number} is {line!r}, not KEY<tab>OFFSET: "
                    "write the index again"
                ) from None
            if key in offsets or not 0 <= offset < size:
                raise InputError(
                    f"{index} line {number} gives key {key} the offset {offset}; keys "
                    f"occur once and offsets lie below the {size} bytes of "
                    f"{path.name}: write the index again"
                )
            offsets[key] = offset
        if not offsets:
            raise InputError(f"{index} lists no record: write the index again")
        in_file_order = sorted(offsets.items(), key=lambda item: item[1])
        return cls(path, dict(in_file_order), num_classes)

    def read(self, key: int) -> tuple[int, np.ndarray]:
        """Label and image, uint8 RGB (H, W, 3), of one record.

        Raises InputError naming file, key and offset when the record is damaged, its
        label is no class or its image cannot be read.
        """
        content = self._content(key)
        if len(content) < HEADER.size:
            raise self._damaged(key, f"{len(content)} bytes are too few for a header")
        num_labels, label, _, _ = HEADER.unpack_from(content)
        if num_labels:
            raise self._damaged(key, f"it has a list of {num_labels} labels, not one")
        if label not in range(self.num_classes):
            raise self._damaged(
                key, f"its label {label} is none of {self.num_classes} classes"
            )
        try:
            image = read_image(content[HEADER.size :])
        except InputError as error:
            raise self._damaged(key, str(error)) from error
        return int(label), image

    def encoded_image(self, key: int) -> bytes:
        """The image of one record as it is stored, whatever its label.

        Raises InputError when the record is damaged.
        """
        content = self._content(key)
        if len(content) < HEADER.size:
            raise self._damaged(key, f"{len(content)} bytes are too few for a header")
        num_labels, *_ = HEADER.unpack_from(content)
        return content[HEADER.size + 4 * num_labels :]

    def _content(self, key: int) -> bytes:
        """The bytes of one record, put together where they stand in parts."""
        parts = []
        with self.path.open("rb") as file:
            file.seek(self.offsets[key])
            while True:
                words = file.read(8)
                if len(words) < 8:
                    raise self._damaged(key, "the file ends in its first words")
                magic, part_and_length = struct.unpack("<4sI", words)
                part, length = part_and_length >> 29, part_and_length & (1 << 29) - 1
                if magic != MAGIC or part not in ((2, 3) if parts else (0, 1)):
                    raise self._damaged(key, "no record begins there")
                parts.append(file.read(length))
                if len(parts[-1]) < length:
                    raise self._damaged(key, "the file ends within it")
                if part in (0, 3):
                    return MAGIC.join(parts)
                file.seek(-length % 4, SEEK_CUR)

    def _damaged(self, key: int, why: str) -> InputError:
        return InputError(
            f"{self.path}, record {key} at offset {self.offsets[key]}: {why}; "
            "write the file again"
        )
