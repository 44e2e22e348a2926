# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as record files.

    python -m imagenet_prep.cifar --archive cifar-10-python.tar.gz --target DIR

takes any of the four published archives, cifar-{10,100}-{python,binary}.tar.gz, and
writes train.rec (50,000 images, shuffled) and val.rec (10,000, the published test
images) with their .idx and .lst. The key of a record is the image's position in the
published order. Records are PNG files, the same from both archives of a data set. The
labels of CIFAR-100 are its fine ones. A killed run is gone on with by the same command.

The python archives are pickles. They are read by an unpickler that builds nothing but
strings, numbers, lists and dictionaries; for NumPy's arrays it puts a stand-in.
"""

import argparse
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from gluon_resnet import command
from gluon_resnet.errors import InputError
from imagenet_prep.archives import (
    content_of,
    digest_of,
    open_archive,
    regular_files,
)
from imagenet_prep.encoding import encode_png
from imagenet_prep.record_writer import write_listing, write_records
from imagenet_prep.working import print_written, working_in

SHAPE = (3, 32, 32)
VALUES = 3 * 32 * 32
COUNTS = {"train": 50_000, "val": 10_000}
_MOST_BYTES = 1 << 28  # of all members; the published archives unpack to 186 million
_ARCHIVES = "cifar-{10,100}-{python,binary}.tar.gz"
_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]

Batch = tuple[np.ndarray, np.ndarray]
"""Pixels (N, 3072), uint8, and labels (N,)."""


@dataclass(frozen=True)
class Layout:
    """How one archive holds a data set.

    files: paths of the members of each split. labels: the key of the pickled labels,
    None in a binary archive. label_bytes: of an image there; the last is its label.
    """

    md5: str
    num_classes: int
    files: Mapping[str, list[str]]
    labels: Optional[bytes] = None
    label_bytes: int = 0


LAYOUTS = (
    Layout(
        "c58f30108f718f92721af3b95e74349a",
        num_classes=10,
        files={
            "train": [f"cifar-10-batches-py/{batch}" for batch in _BATCHES],
            "val": ["cifar-10-batches-py/test_batch"],
        },
        labels=b"labels",
    ),
    Layout(
        "c32a1d4ab5d03f1284b67883e8d87530",
        num_classes=10,
        files={
            "train": [f"cifar-10-batches-bin/{batch}.bin" for batch in _BATCHES],
            "val": ["cifar-10-batches-bin/test_batch.bin"],
        },
        label_bytes=1,
    ),
    Layout(
        "eb9058c3a382ffc7106e4002c42a8d85",
        num_classes=100,
        files={"train": ["cifar-100-python/train"], "val": ["cifar-100-python/test"]},
        labels=b"fine_labels",
    ),
    Layout(
        "03b5dce01913d631647c71ecec9e9cb8",
        num_classes=100,
        files={
            "train": ["cifar-100-binary/train.bin"],
            "val": ["cifar-100-binary/test.bin"],
        },
        label_bytes=2,  # the coarse label first
    ),
)


class _Array:
    """Stands for numpy.ndarray in a pickle; keeps what would become one."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.content = state


class _DType:
    """Stands for numpy.dtype in a pickle."""

    def __init__(self, name: bytes, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        """Byte order and the like, which single bytes do not have."""


class _Unpickler(pickle.Unpickler):
    """Reads data and no code: of all names a pickle may call it knows three."""

    def find_class(self, module: str, name: str) -> object:
        """What stands for the global `name`."""
        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DType,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return known[module, name]


def read_pickle(content: bytes, labels: bytes) -> Batch:
    """The images of a pickled batch.

    `labels` is their key in the batch. Raises ValueError or pickle.UnpicklingError, and
    whatever else a damaged pickle ends in.
    """
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    pixels = batch[b"data"]
    if pixels.dtype.name != b"u1" or pixels.is_fortran:
        raise ValueError("its pixels are no array of unsigned bytes")
    values = np.frombuffer(pixels.content, np.uint8).reshape(pixels.shape)
    return values.reshape(-1, VALUES), np.array(batch[labels], dtype=np.int64)


def read_binary(content: bytes, label_bytes: int) -> Batch:
    """The images of a binary batch.

    Raises ValueError if it does not hold whole images.
    """
    rows = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + VALUES)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def read_archive(
    archive: Path, *, counts: Mapping[str, int] = COUNTS, verify: bool = True
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, 32, 32, 3), uint8 RGB, and labels (N,) of the splits train and val.

    Raises InputError for an archive that is missing, damaged, dangerous or holds
    something else. `verify` compares its MD5 before anything is unpacked.
    """
    if not archive.is_file():
        raise InputError(
            f"{archive} is not there: download it from "
            "https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    if verify:
        _check_published(archive)
    layout, batches = _read_batches(archive)
    splits = {}
    for split, names in layout.files.items():
        pixels, labels = map(
            np.concatenate, zip(*(batches.pop(name) for name in names))
        )
        if len(pixels) != counts[split]:
            raise InputError(
                f"{archive} holds {len(pixels)} images of {split}, not "
                f"{counts[split]}: fetch it again"
            )
        images = pixels.reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
        splits[split] = images, labels
    return splits


def prepare(
    archive: Path,
    target: Path,
    *,
    counts: Mapping[str, int] = COUNTS,
    verify: bool = True,
    workers: Optional[int] = None,
) -> list[Path]:
    """Write the record files of both splits into `target`; returns those written.

    What is there already is kept. Raises InputError as read_archive does, and where
    `target` holds records of other images.
    """
    written = []
    with working_in(target):
        splits = read_archive(archive, counts=counts, verify=verify)
        for split, (images, labels) in splits.items():
            prefix = target / split
            rows = [
                (key, int(label), f"{split}/{key:05d}.png")
                for key, label in enumerate(labels)
            ]
            write_listing(prefix, rows, shuffle=split == "train")
            if write_records(prefix, partial(_encode, images), workers=workers):
                written.append(target / f"{split}.rec")
    return written


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m imagenet_prep.cifar",
        description="Turn a published archive of CIFAR into record files.",
    )
    add = parser.add_argument
    add("--archive", type=Path, required=True, help="as published, python or binary")
    add("--target", type=Path, required=True, help="folder for the record files")
    add("--workers", type=int, help="threads; as many as cores if not given")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the paths of the record files written."""
    written = prepare(arguments.archive, arguments.target, workers=arguments.workers)
    print_written(written, len(COUNTS), arguments.target)


def _encode(images: np.ndarray, key: int, _: str) -> bytes:
    return encode_png(images[key])


def _check_published(archive: Path) -> None:
    """Raise InputError unless the file is one of the four published."""
    digest = digest_of(archive, "md5")
    if digest not in {layout.md5 for layout in LAYOUTS}:
        raise InputError(
            f"{archive} has the MD5 {digest}, none of those of the published "
            f"{_ARCHIVES}: fetch it again"
        )


def _read_batches(archive: Path) -> tuple[Layout, dict[str, Batch]]:
    """The layout of an archive and its batches, unpacked one after the other."""
    layouts = {
        name: layout
        for layout in LAYOUTS
        for names in layout.files.values()
        for name in names
    }
    batches: dict[str, Batch] = {}
    num_bytes = 0
    with open_archive(archive, "r:gz", name=archive) as files:
        for member in regular_files(files, name=archive):
            num_bytes += member.size
            if num_bytes > _MOST_BYTES:
                raise InputError(
                    f"{archive} unpacks to more than {_MOST_BYTES} bytes: fetch the "
                    "published archive"
                )
            if member.name in layouts:
                with content_of(files, member) as content:
                    batches[member.name] = _read_batch(
                        archive, member.name, content.read(), layouts[member.name]
                    )
    if not batches:
        raise InputError(
            f"{archive} holds no batches of CIFAR: give one of {_ARCHIVES}"
        )
    layout = layouts[next(iter(batches))]
    for names in layout.files.values():
        for name in names:
            if name not in batches:
                raise InputError(f"{archive} lacks {name}: fetch it again")
    return layout, batches


def _read_batch(archive: Path, name: str, content: bytes, layout: Layout) -> Batch:
    try:
        if layout.labels:
            pixels, labels = read_pickle(content, layout.labels)
        else:
            pixels, labels = read_binary(content, layout.label_bytes)
    # A damaged pickle may raise anything; what it cannot do is run.
    except Exception as error:
        raise InputError(
            f"{archive}: {name} cannot be read ({error}): fetch it again"
        ) from error
    if (
        labels.shape != (len(pixels),)
        or not np.isin(labels, range(layout.num_classes)).all()
    ):
        raise InputError(
            f"{archive}: {name} has labels that are not one of {layout.num_classes} "
            "classes for each image: fetch it again"
        )
    return pixels, labels


if __name__ == "__main__":
    command.run(main, parser())
