# SPDX-License-Identifier: Apache-2.0
"""The sample of Fashion-MNIST that comes with the package.

    python -m imagenet_prep.make_sample

writes, from the same IDX files as imagenet_prep.fashion_mnist, the record files of the
first 50 images of each class of both splits, and as PNG files the first test image of
each class. The keys are positions in the IDX files. Every run writes the same bytes.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gluon_resnet import bundled, command
from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.postprocess import load_class_names
from imagenet_prep.encoding import encode_png
from imagenet_prep.fashion_mnist import (
    DEBIAN_FOLDER,
    NUM_CLASSES,
    SHA256,
    read_split,
    write_split,
)
from imagenet_prep.working import working_in

PER_CLASS = 50


def first_of_each_class(labels: np.ndarray, per_class: int) -> list[int]:
    """Positions, ascending, of the first `per_class` images of each class.

    Raises InputError when a class has fewer.
    """
    positions = []
    for label in range(NUM_CLASSES):
        of_class = np.flatnonzero(labels == label)[:per_class].tolist()
        if len(of_class) < per_class:
            raise InputError(
                f"class {label} has {len(of_class)} images, the sample takes "
                f"{per_class} of each class: give the whole data set"
            )
        positions += of_class
    return sorted(positions)


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> list[Path]:
    """Write LABEL-NAME.png of the first image of each class; returns the paths."""
    class_names = load_class_names("fashion_mnist")
    paths = []
    for key in first_of_each_class(labels, 1):
        slug = re.sub("[^a-z-]", "_", class_names[labels[key]].lower())
        paths.append(folder / f"{labels[key]}-{slug}.png")
        with replacing(paths[-1]) as part:
            part.write_bytes(encode_png(images[key]))
    return paths


def make_sample(
    source: Path, target: Path, *, sha256: Mapping[str, str] = SHA256
) -> None:
    """Write the record files and images/ into `target`, over those that are there.

    Raises InputError for IDX files that are missing, damaged or not the published ones
    (`sha256`, by name), and when `target` cannot be written.
    """
    records = {"train": bundled.TRAIN_REC.stem, "val": bundled.VAL_REC.stem}
    splits = {split: read_split(source, split, sha256=sha256) for split in records}
    # Not into `target` at once: what is there already would be kept.
    with (
        working_in(target),
        TemporaryDirectory(dir=target, prefix=".sample.") as folder,
    ):
        for split, (images, labels) in splits.items():
            prefix = Path(folder, records[split])
            keys = first_of_each_class(labels, PER_CLASS)
            write_split(prefix, images, labels, keys, shuffle=False)
            for path in (prefix.with_suffix(".rec"), prefix.with_suffix(".idx")):
                path.replace(target / path.name)
        write_images(target / bundled.IMAGES.name, *splits["val"])


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m imagenet_prep.make_sample",
        description="Write the sample of Fashion-MNIST that comes with the package.",
    )
    add = parser.add_argument
    add("--source", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files")
    add("--target", type=Path, default=bundled.FOLDER, help="folder for the sample")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Make the sample."""
    make_sample(arguments.source, arguments.target)


if __name__ == "__main__":
    command.run(main, parser())
