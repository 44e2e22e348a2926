# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST (Xiao et al., arXiv 1708.07747) as record files.

    python -m imagenet_prep.fashion_mnist --source DIR --target DIR

reads the four IDX files, plain or gzip-compressed, and writes train.rec and val.rec
with their .idx and .lst files. val is the published test split. The key of a record
is the image's position in its IDX file. Records are PNG files of the grey images. A
killed run is gone on with by the same command.
"""

import argparse
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

import numpy as np

from gluon_resnet import command
from gluon_resnet.errors import InputError
from imagenet_prep.encoding import encode_png
from imagenet_prep.record_writer import write_listing, write_records
from imagenet_prep.working import print_written, working_in

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "val": "t10k"}
NUM_CLASSES = 10

# Of the unpacked files: how gzip packed them differs from mirror to mirror.
SHA256 = {
    "train-images-idx3-ubyte": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}


def find_idx(source: Path, name: str) -> Path:
    """The file `name` or `name.gz` in the folder `source`."""
    for path in (source / f"{name}.gz", source / name):
        if path.is_file():
            return path
    raise InputError(
        f"{source} holds neither {name}.gz nor {name}: install the Debian package "
        "dataset-fashion-mnist or fetch the four files of zalandoresearch/fashion-mnist"
    )


def read_idx(path: Path, *, sha256: Optional[str] = None) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, plain or gzip-compressed.

    `sha256` is the expected sum of the unpacked bytes. Raises InputError when the
    file is damaged, is not IDX or differs from that sum.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path} cannot be unpacked ({error}): fetch it again"
            ) from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(
            f"{path} begins with {content[:4].hex() or 'nothing'}, an IDX file of "
            "unsigned bytes with 000008: fetch it again"
        )
    num_axes = content[3]
    header_size = 4 + 4 * num_axes
    if len(content) < header_size:
        raise InputError(f"{path} ends within its header: fetch it again")
    shape = struct.unpack(f">{num_axes}I", content[4:header_size])
    values = np.frombuffer(content[header_size:], dtype=np.uint8)
    if values.size != math.prod(shape):
        raise InputError(
            f"{path} holds {values.size} values, its header announces "
            f"{'x'.join(map(str, shape))}: fetch it again"
        )
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{path} unpacks to SHA-256 {hashlib.sha256(content).hexdigest()}, the "
            f"published file to {sha256}: fetch it again"
        )
    return values.reshape(shape)


def read_split(
    source: Path, split: str, *, sha256: Mapping[str, str] = SHA256
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,), both uint8, of the split train or val."""
    names = [f"{SPLITS[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    paths = [find_idx(source, name) for name in names]
    images, labels = (
        read_idx(path, sha256=sha256.get(name)) for path, name in zip(paths, names)
    )
    if images.ndim != 3 or labels.ndim != 1:
        raise InputError(
            f"{paths[0]} has {images.ndim} axes and {paths[1]} {labels.ndim}; images "
            "need 3 and labels 1: give each file the name it was published under"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{paths[0]} holds {len(images)} images and {paths[1]} {len(labels)} "
            "labels: take both from one source"
        )
    if labels.size and labels.max() >= NUM_CLASSES:
        raise InputError(
            f"{paths[1]} holds the label {labels.max()}, classes are 0 to "
            f"{NUM_CLASSES - 1}: fetch it again"
        )
    return images, labels


def write_split(
    prefix: Path,
    images: np.ndarray,
    labels: np.ndarray,
    keys: Iterable[int],
    *,
    shuffle: bool,
) -> bool:
    """Write PREFIX.lst, .rec and .idx of `images[key]` and `labels[key]` of each key.

    Images are grey (N, H, W) or RGB (N, H, W, 3), uint8. Returns and raises what
    record_writer's write_listing and write_records do.
    """
    rows = ((key, int(labels[key]), f"{prefix.name}/{key:05d}.png") for key in keys)
    write_listing(prefix, rows, shuffle=shuffle)
    return write_records(prefix, lambda key, _: encode_png(images[key]))


def convert(
    source: Path, target: Path, *, sha256: Mapping[str, str] = SHA256
) -> list[Path]:
    """Write the record files of both splits into `target`; returns those written.

    What is there already is kept. Raises InputError for IDX files that are missing,
    damaged or not the published ones (`sha256`, by name), where `target` holds records
    of other images and when it cannot be written.
    """
    splits = {split: read_split(source, split, sha256=sha256) for split in SPLITS}
    written = []
    with working_in(target):
        for split, (images, labels) in splits.items():
            prefix, keys = target / split, range(len(labels))
            if write_split(prefix, images, labels, keys, shuffle=split == "train"):
                written.append(target / f"{split}.rec")
    return written


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m imagenet_prep.fashion_mnist",
        description="Turn the IDX files of Fashion-MNIST into record files.",
    )
    add = parser.add_argument
    add("--source", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files")
    add("--target", type=Path, required=True, help="folder for the record files")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the paths of the record files written."""
    written = convert(arguments.source, arguments.target)
    print_written(written, len(SPLITS), arguments.target)


if __name__ == "__main__":
    command.run(main, parser())
