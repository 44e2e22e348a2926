# SPDX-License-Identifier: Apache-2.0
"""The index of a record file that lost it or never had one.

    python -m imagenet_prep.index FILE.rec

reads FILE.rec to its end and writes FILE.idx beside it, over one that is there. The key
of a record is its identifier, as im2rec and the commands here write it; where two have
the same, keys count from 0.
"""

import argparse
import sys
from array import array
from pathlib import Path

import numpy as np

from gluon_resnet import command
from gluon_resnet.data.records import HEADER, records_in
from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.progress import progress


def write_index(rec: Path) -> Path:
    """Write the .idx of a .rec file; returns its path.

    Raises InputError for a file that is missing, that holds no record or something
    else, and where the .idx cannot be written. The .idx that was there is kept then.
    """
    index = rec.with_suffix(".idx")
    if rec == index or not rec.is_file():
        raise InputError(f"{rec} is no record file: give the path of a .rec")
    identifiers, offsets = array("Q"), array("Q", [0])
    size = rec.stat().st_size
    with progress(f"reading {rec.name}", total=size, unit="B") as bar:
        for offset, content in records_in(rec):
            _, _, identifier, _ = HEADER.unpack_from(content)
            identifiers.append(identifier)
            bar.update(offset - offsets[-1])
            offsets.append(offset)
        bar.update(size - offsets[-1])
    del offsets[0]
    if not offsets:
        raise InputError(f"{rec} is empty: write it again")
    unique = len(np.unique(np.array(identifiers))) == len(identifiers)
    keys = identifiers if unique else range(len(offsets))
    if not unique:
        print(
            f"{rec}: identifiers occur twice; the keys are 0 to {len(offsets) - 1}",
            file=sys.stderr,
        )
    with replacing(index) as part, part.open("w", encoding="utf-8") as lines:
        lines.writelines(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets))
    return index


def main(arguments: argparse.Namespace) -> None:
    """Print the path of the index."""
    print(write_index(arguments.rec))


def parser() -> command.Parser:
    """The command's options."""
    parser = command.Parser(
        prog="python -m imagenet_prep.index",
        description="Write the index of a record file.",
    )
    parser.add_argument("rec", type=Path, metavar="FILE.rec", help="the record file")
    return parser


if __name__ == "__main__":
    command.run(main, parser())
