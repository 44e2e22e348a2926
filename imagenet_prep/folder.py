# SPDX-License-Identifier: Apache-2.0
"""A folder of class folders as a record file.

    python -m imagenet_prep.folder --source photos/train --target records

writes records/train.rec, .idx and .lst, and records/classes.txt: the names of the class
folders, sorted; a label is a position in it. Several splits of a data set that go to
one folder must have the same classes. A killed run is gone on with by the same command.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from gluon_resnet import command
from gluon_resnet.errors import InputError
from imagenet_prep.encoding import Encoding, add_options, encode_file, encoding_of
from imagenet_prep.record_writer import (
    UNLISTABLE,
    Row,
    write_listing,
    write_records,
)
from imagenet_prep.working import working_in

IMAGE_SUFFIXES = tuple(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())


def class_folders(source: Path) -> list[str]:
    """The sorted names of the folders in `source`, hidden ones left out."""
    if not source.is_dir():
        raise InputError(f"{source} is not a folder: give one that holds class folders")
    names = sorted(
        path.name
        for path in source.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise InputError(
            f"{source} holds no folder: give one with a folder of images for each class"
        )
    for name in filter(UNLISTABLE.search, names):
        raise InputError(
            f"{source} holds a folder {name!r}: rename it without tabs, line ends and "
            "what is not UTF-8"
        )
    return names


def image_rows(source: Path, classes: Sequence[str]) -> Iterator[Row]:
    """Key, label and name CLASS/FILE of every image, sorted by class and file name.

    Hidden files are left out, and so is, with a line that says so, what is no image by
    its name. Only one folder's names are in memory.
    """
    key = left_out = 0
    for label, name in enumerate(classes):
        # Not Path.iterdir: a million Path objects and calls of stat take a minute.
        with os.scandir(source / name) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in sorted(visible, key=lambda entry: entry.name):
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                yield key, label, f"{name}/{entry.name}"
                key += 1
            else:
                left_out += 1
                example = entry.path
    if left_out:
        print(
            f"{source}: {left_out} entries are no image files and left out, such as "
            f"{example}",
            file=sys.stderr,
        )


def write_classes(target: Path, classes: Sequence[str]) -> None:
    """Write classes.txt, a name a line, into the folder `target`.

    Raises InputError where one with other names is there.
    """
    path = target / "classes.txt"
    content = "".join(f"{name}\n" for name in classes)
    if not path.exists():
        # Not gluon_resnet.files.replacing: its name differs from run to run.
        part = target / ".classes.part.txt"
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    elif path.read_text(encoding="utf-8") != content:
        raise InputError(
            f"{path} lists other classes than the {len(classes)} found: give every "
            "split the same class folders (an empty one will do), or another target"
        )


def write_folder_records(
    source: Path, prefix: Path, *, encoding: Encoding, workers: Optional[int] = None
) -> bool:
    """Write PREFIX.rec and .idx of the files below `source` that PREFIX.lst lists.

    Returns and raises what write_records does.
    """
    return write_records(
        prefix,
        lambda key, name: encode_file(source / name, encoding),
        workers=workers,
    )


def convert(
    source: Path,
    prefix: Path,
    *,
    shuffle: bool = True,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
    workers: Optional[int] = None,
) -> bool:
    """Write PREFIX.lst, .rec and .idx and classes.txt; False if they are there already.

    Raises InputError where `source` has no classes or images, or others than the
    files that are there.
    """
    with working_in(prefix.parent):
        classes = class_folders(source)
        write_classes(prefix.parent, classes)
        write_listing(prefix, image_rows(source, classes), shuffle=shuffle)
        return write_folder_records(source, prefix, encoding=encoding, workers=workers)


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m imagenet_prep.folder",
        description="Turn a folder of class folders into a record file.",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of the class folders")
    add("--target", type=Path, required=True, help="folder for the record file")
    add("--name", help="of the record file, without .rec; the source's if not given")
    add("--no-shuffle", action="store_true", help="keep the order of classes and names")
    add_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the path of the record file."""
    prefix = arguments.target / (arguments.name or arguments.source.resolve().name)
    written = convert(
        arguments.source,
        prefix,
        shuffle=not arguments.no_shuffle,
        encoding=encoding_of(arguments),
        workers=arguments.workers,
    )
    print(f"{prefix}.rec")
    if not written:
        print("it was there already", file=sys.stderr)


if __name__ == "__main__":
    command.run(main, parser())
