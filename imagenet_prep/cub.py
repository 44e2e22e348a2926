# SPDX-License-Identifier: Apache-2.0
"""CUB-200-2011 (Wah et al., Caltech CNS-TR-2011-001) as record files.

    python -m imagenet_prep.cub --archive CUB_200_2011.tgz --target DIR

extracts the images into CUB_200_2011/ and writes train.rec (5,994 images, shuffled) and
val.rec (5,794), the published split, with their .idx and .lst, and classes.txt. The key
of a record is the published number of the image, the label that of its class less one.
A killed run is gone on with by the same command.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.progress import progress
from imagenet_prep.archives import (
    begin,
    extract,
    finish,
    is_finished,
    open_archive,
    regular_files,
)
from imagenet_prep.encoding import Encoding, add_options, encoding_of
from imagenet_prep.folder import write_classes, write_folder_records
from imagenet_prep.record_writer import Row, write_listing
from imagenet_prep.working import print_written, working_in

NAME = "CUB_200_2011"
MD5 = "97eceeb196236b17998738112f37df78"
COUNTS = {"train": 5994, "val": 5794}
TABLES = (
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "classes.txt",
)
_IMAGE = r"[^/.][^/]*/[^/.][^/]*\.jpg"


def extract_archive(archive: Path, folder: Path, total: int) -> None:
    """Write the images and the tables that say what they are to `folder`."""
    pattern = f"{NAME}/({'|'.join(map(re.escape, TABLES))}|images/{_IMAGE})"
    with (
        progress("extracting", total=total) as bar,
        open_archive(archive, "r:gz", name=archive) as files,
    ):
        for member in regular_files(files, name=archive):
            match = re.fullmatch(pattern, member.name)
            if match:
                path = folder / match[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                extract(files, member, path)
                bar.update(match[1] not in TABLES)
    for name in TABLES:
        if not (folder / name).is_file():
            raise InputError(f"{archive} lacks {NAME}/{name}: fetch it again")


def read_table(path: Path) -> dict[int, str]:
    """The lines `NUMBER VALUE` of a table."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"(\d+) (\S.*)", line)
        if not match or int(match[1]) in table:
            raise InputError(
                f"{path} line {number} is {line!r}, not a new number and a value: "
                "extract the published archive again"
            )
        table[int(match[1])] = match[2]
    return table


def read_splits(folder: Path) -> tuple[list[str], dict[str, list[Row]]]:
    """Names of the classes, and the rows of each split: key, label, CLASS/FILE."""
    images, labels, in_train, classes = (read_table(folder / name) for name in TABLES)
    label_of_class = {str(key): label for label, key in enumerate(sorted(classes))}
    rows: dict[str, list[Row]] = {"train": [], "val": []}
    for number, name in sorted(images.items()):
        label = label_of_class.get(labels.get(number, ""))
        split = {"1": "train", "0": "val"}.get(in_train.get(number, ""))
        if label is None or split is None or not re.fullmatch(_IMAGE, name):
            raise InputError(
                f"{folder}: image {number} {name!r} has no name, class or split that "
                "the tables allow: extract the published archive again"
            )
        rows[split].append((number, label, name))
    return [name for _, name in sorted(classes.items())], rows


def prepare(
    archive: Path,
    target: Path,
    *,
    counts: Mapping[str, int] = COUNTS,
    checksum: Optional[str] = MD5,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
    workers: Optional[int] = None,
) -> list[Path]:
    """Write images and record files into `target`; returns the .rec written.

    What is there already is kept. `counts` are the images of each split; `checksum`,
    the archive's MD5, is not verified if None. Raises InputError for an archive that is
    missing, damaged or holds something else, and where `target` holds records made
    with another `encoding`.
    """
    written = []
    with working_in(target):
        folder = target / NAME
        if not is_finished(folder):
            if not archive.is_file():
                raise InputError(
                    f"{archive} is not there: download {NAME}.tgz from "
                    "https://data.caltech.edu/records/65de6-vp158"
                )
            part = target / f".{NAME}.part"
            begin(part, archive, checksum=checksum)
            extract_archive(archive, part, sum(counts.values()))
            _check_counts(part, counts)
            finish(part, folder)
        classes, rows = read_splits(folder)
        write_classes(target, classes)
        for split in counts:
            prefix = target / split
            write_listing(prefix, rows[split], shuffle=split == "train")
            if write_folder_records(
                folder / "images", prefix, encoding=encoding, workers=workers
            ):
                written.append(target / f"{split}.rec")
    return written


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m imagenet_prep.cub",
        description="Turn CUB-200-2011 into record files.",
    )
    add = parser.add_argument
    add("--archive", type=Path, required=True, help="the file CUB_200_2011.tgz")
    add("--target", type=Path, required=True, help="folder for images and records")
    add_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the paths of the record files written."""
    written = prepare(
        arguments.archive,
        arguments.target,
        encoding=encoding_of(arguments),
        workers=arguments.workers,
    )
    print_written(written, len(COUNTS), arguments.target)


def _check_counts(folder: Path, counts: Mapping[str, int]) -> None:
    """Raise InputError unless each split has its images, and each of them is there."""
    _, rows = read_splits(folder)
    found = {split: len(rows[split]) for split in rows}
    if found != dict(counts):
        raise InputError(
            f"{folder} lists {found['train']} and {found['val']} images, the data set "
            f"has {counts['train']} and {counts['val']}: fetch the archive again"
        )
    for split in rows:
        for _, _, name in rows[split]:
            if not (folder / "images" / name).is_file():
                raise InputError(
                    f"{folder} lacks images/{name}: fetch the archive again"
                )


if __name__ == "__main__":
    command.run(main, parser())
