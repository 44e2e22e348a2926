# SPDX-License-Identifier: Apache-2.0
"""A folder of class folders as record files.

    python -m imagenet_prep.folder --source photos/train --target records

writes records/train.rec, .idx and .lst, and records/classes.txt: the names of the class
folders, sorted; a label is a position in it. Several splits of a data set that go to
one folder must have the same classes. A killed run is gone on with by the same command.

    python -m imagenet_prep.folder --source photos --target records --split 0.2

draws a fifth of each class for records/val.rec; the rest makes records/train.rec.
"""

import argparse
import logging
import random
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Optional

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.image_files import LeftOut, image_files, is_hidden
from gluon_resnet.preprocess import IMAGE_SUFFIXES
from imagenet_prep.encoding import Encoding, add_options, encode_file, encoding_of
from imagenet_prep.record_writer import Row, write_listing, write_records
from imagenet_prep.working import print_written, working_in

log = logging.getLogger(__name__)

# What the folders of a data set's parts are called, in letters of any case.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def class_folders(source: Path, left_out: LeftOut) -> list[str]:
    """The sorted names of the folders in `source`, hidden ones left out.

    Raises InputError where there are none, where a name would break the line of a list,
    and where `source` seems to hold the parts of a data set, each with class folders.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder: give one that holds class folders")
    names = []
    for path in sorted(source.iterdir()):
        if is_hidden(path.name):
            left_out.add(str(path), "hidden")
        elif path.is_dir():
            names.append(path.name)
        else:
            left_out.add(str(path), "not in a class folder")
    if not names:
        raise InputError(
            f"{source} holds no folder: give one with a folder of images for each class"
        )
    for name in names:
        if "\t" in name or name.splitlines() != [name] or not _is_utf8(name):
            raise InputError(
                f"{source} holds a folder {name!r}: rename it without tabs, line ends "
                "and what is not UTF-8"
            )
        if name.lower() in _PARTS and _holds_only_folders(source / name):
            part = shlex.quote(str(source / name))
            raise InputError(
                f"{source} holds {name}, which holds folders and no images: give "
                f"--source {part} if its folders are the classes"
            )
    return names


def image_rows(
    source: Path, classes: Sequence[str], left_out: LeftOut
) -> Iterator[Row]:
    """Key, label and name CLASS/FILE of every image, sorted by class and file name.

    They are the `image_files` of the class folders, at any depth. Only one folder's
    names are in memory.
    """
    key = 0
    for label, name in enumerate(classes):
        folder = source / name
        for path in image_files(folder, left_out):
            yield key, label, f"{name}{str(path)[len(str(folder)) :]}"
            key += 1


def split_rows(
    rows: Iterable[Row], share: float, seed: int
) -> Iterator[tuple[str, Row]]:
    """Draw a share of each class: yields every row with "train" or "val" before it.

    rows: sorted by label. Of n of a label round(n * share) are drawn for val, at least
    one of two and never all; n, label, share and seed alone decide which.
    """
    for label, group in groupby(rows, key=itemgetter(1)):
        of_class = list(group)
        most = len(of_class) - 1
        count = min(max(round(share * len(of_class)), 1), most)
        drawn = set(random.Random(f"{seed} {label}").sample(range(most + 1), count))
        for index, row in enumerate(of_class):
            yield ("val" if index in drawn else "train"), row


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
        return
    listed = path.read_text(encoding="utf-8").split("\n")[:-1]
    if listed != list(classes):
        odd = sorted(set(listed) ^ set(classes))
        which = f"; {odd[0]} is only in one of the two" if odd else ""
        raise InputError(
            f"{path} lists {len(listed)} classes, others than the {len(classes)} "
            f"found{which}: give every split the same class folders (an empty one will "
            "do), or another target"
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
) -> list[Path]:
    """Write PREFIX.lst, .rec and .idx and classes.txt; returns the .rec if it is new.

    Raises InputError where `source` has no classes or images, or others than the
    files that are there.
    """
    with working_in(prefix.parent):
        classes = _classes(source)
        write_classes(prefix.parent, classes)
        rows = image_rows(source, classes, LeftOut())
        write_listing(prefix, rows, shuffle=shuffle)
        is_new = write_folder_records(
            source, prefix, encoding=encoding, workers=workers
        )
    return [prefix.with_name(f"{prefix.name}.rec")] if is_new else []


def convert_split(
    source: Path,
    target: Path,
    share: float,
    *,
    seed: int = 0,
    shuffle: bool = True,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
    workers: Optional[int] = None,
) -> list[Path]:
    """Write train and val into `target`, as `split_rows` draws them; returns new .rec.

    Raises InputError as `convert` does, for a share that is not between 0 and 1, and
    where no class has two images.
    """
    if not 0 < share < 1:
        raise InputError(
            f"split {share} is not between 0 and 1; 0.2 draws a fifth of each class"
        )
    written = []
    with working_in(target):
        classes = _classes(source, least=2)
        write_classes(target, classes)
        for part in ("train", "val"):
            rows = split_rows(image_rows(source, classes, LeftOut()), share, seed)
            write_listing(
                target / part,
                (row for drawn_for, row in rows if drawn_for == part),
                shuffle=shuffle and part == "train",
            )
        for part in ("train", "val"):
            if write_folder_records(
                source, target / part, encoding=encoding, workers=workers
            ):
                written.append(target / f"{part}.rec")
    return written


def parser() -> command.Parser:
    """The command's options."""
    parser = command.Parser(
        prog="python -m imagenet_prep.folder",
        description="Turn a folder of class folders into record files.",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of the class folders")
    add("--target", type=Path, required=True, help="folder for the record file")
    add("--name", help="of the record file, without .rec; the source's if not given")
    add("--split", type=float, metavar="SHARE", help="of each class for validation")
    add("--seed", type=int, default=0, help="of the draw for --split")
    add("--no-shuffle", action="store_true", help="keep the order of classes and names")
    add_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the paths of the record files written."""
    source, target = arguments.source, arguments.target
    options = {
        "shuffle": not arguments.no_shuffle,
        "encoding": encoding_of(arguments),
        "workers": arguments.workers,
    }
    if arguments.split is None:
        prefix = target / (arguments.name or source.resolve().name)
        print_written(convert(source, prefix, **options), 1, target)
    elif arguments.name is not None:
        raise InputError(
            f"name {arguments.name} is that of one record file; with --split there are "
            "two, train and val: leave one of the options out"
        )
    else:
        options["seed"] = arguments.seed
        written = convert_split(source, target, arguments.split, **options)
        print_written(written, 2, target)


def _classes(source: Path, *, least: int = 1) -> list[str]:
    """The class folders, after telling what is odd about them.

    Raises InputError where no class has `least` images.
    """
    left_out = LeftOut()
    classes = class_folders(source, left_out)
    counts = Counter(label for _, label, _ in image_rows(source, classes, left_out))
    left_out.tell(source)
    if max(counts.values(), default=0) < least:
        wanted = "an image" if least == 1 else "two images"
        raise InputError(
            f"{source} has no class folder with {wanted}: give files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    for few, told in ((0, "no image"), (1, "one image, which is in train")):
        names = [name for label, name in enumerate(classes) if counts[label] == few]
        if names and few < least:
            log.warning(
                *(
                    "%s: %s of %s classes have %s, such as %s",
                    source,
                    f"{len(names):,}",
                ),
                *(f"{len(classes):,}", told, names[0]),
            )
    return classes


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _holds_only_folders(folder: Path) -> bool:
    visible = [path for path in folder.iterdir() if not is_hidden(path.name)]
    return any(path.is_dir() for path in visible) and not any(
        path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file()
        for path in visible
    )


if __name__ == "__main__":
    command.run(main, parser())
