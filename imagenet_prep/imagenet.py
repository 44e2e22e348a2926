# SPDX-License-Identifier: Apache-2.0
"""ImageNet (ILSVRC 2012) from its official files to record files.

    python -m imagenet_prep.imagenet --download-dir DIR --target DIR

takes ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz
and writes class folders, train/nXXXXXXXX/*.JPEG and val/nXXXXXXXX/*.JPEG, and of each
split .lst, .rec and .idx. A label is a position among the sorted WordNet IDs, the order
of every published checkpoint. The training images are shuffled, the others sorted.

A killed run is gone on with by the same command: archives that were verified are not
read again, files that were taken out are kept, records are appended. The class folders
may be removed once the records are written.
"""

import argparse
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Optional

import numpy as np

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.image_files import LeftOut
from gluon_resnet.in_order import in_order
from gluon_resnet.postprocess import synsets
from gluon_resnet.progress import progress
from imagenet_prep.archives import (
    begin,
    check_sum,
    content_of,
    extract,
    finish,
    is_finished,
    open_archive,
    regular_files,
)
from imagenet_prep.encoding import Encoding, add_options, encoding_of
from imagenet_prep.folder import class_folders, image_rows, write_folder_records
from imagenet_prep.record_writer import write_listing
from imagenet_prep.working import print_written, working_in

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
CHECKSUMS = {
    TRAIN_ARCHIVE: "43eda4fe35c1705d6606a6a7a633bc965d194284",
    VAL_ARCHIVE: "5f3f73da3395154b60528b2b2a2caf2374f5f178",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
SPLITS = ("train", "val")


@dataclass(frozen=True)
class DataSet:
    """What the official files hold.

    wnids: the WordNet IDs of the classes, sorted. counts: images of each split.
    checksums: MD5 or SHA-1 of each file; one that is missing is not verified.
    """

    wnids: Sequence[str]
    counts: Mapping[str, int]
    checksums: Mapping[str, str]


def ilsvrc2012() -> DataSet:
    """The data set of the paper (Russakovsky et al., arXiv 1409.0575)."""
    wnids = [wnid for wnid, _ in synsets("imagenet")]
    return DataSet(wnids, {"train": 1_281_167, "val": 50_000}, CHECKSUMS)


def find_archive(download_dir: Path, name: str) -> Path:
    """The path of an official file."""
    path = download_dir / name
    if not path.is_file():
        raise InputError(
            f"{path} is not there: register at https://image-net.org, download it, and "
            "give its folder as --download-dir"
        )
    return path


def extract_train(
    archive: Path, folder: Path, dataset: DataSet, workers: Optional[int]
) -> None:
    """Write the images of the archive, a tar of one tar a class, to class folders."""
    with open_archive(archive, name=archive) as outer:
        classes = list(regular_files(outer, name=archive))
    names = sorted(member.name for member in classes)
    if names != [f"{wnid}.tar" for wnid in dataset.wnids]:
        raise InputError(
            f"{archive} does not hold the archives of the {len(dataset.wnids)} classes "
            f"but {len(names)} files: fetch it again"
        )

    def extract_class(member: tarfile.TarInfo) -> int:
        wnid = member.name.partition(".")[0]
        name = f"{archive}, {member.name}"
        (folder / wnid).mkdir(exist_ok=True)
        count = 0
        with open_archive(archive, name=archive) as outer:
            content = content_of(outer, member)
            with content, open_archive(content, name=name) as inner:
                for image in regular_files(inner, name=name):
                    _check_name(image, rf"{wnid}_\d+\.JPEG", name)
                    extract(inner, image, folder / wnid / image.name)
                    count += 1
        return count

    total = dataset.counts["train"]
    with progress("extracting train", total=total) as bar:
        for count in in_order(extract_class, classes, workers=workers):
            bar.update(count)


def extract_val(
    archive: Path, folder: Path, dataset: DataSet, wnids: Sequence[str]
) -> None:
    """Write the images of the archive, a flat tar, to class folders.

    wnids: the class of each image, in the order of their numbers.
    """
    for wnid in dataset.wnids:
        (folder / wnid).mkdir(exist_ok=True)
    with (
        progress("extracting val", total=len(wnids)) as bar,
        open_archive(archive, name=archive) as images,
    ):
        for image in regular_files(images, name=archive):
            match = _check_name(image, r"ILSVRC2012_val_(\d{8})\.JPEG", archive)
            number = int(match[1])
            if not 1 <= number <= len(wnids):
                raise InputError(
                    f"{archive} holds {image.name}, images are numbered from 1 to "
                    f"{len(wnids)}: fetch it again"
                )
            extract(images, image, folder / wnids[number - 1] / image.name)
            bar.update()


def read_devkit(devkit: Path, dataset: DataSet) -> list[str]:
    """The WordNet ID of each validation image, in the order of their numbers.

    The development kit has its class as an ILSVRC2012_ID, and in meta.mat the
    WordNet ID of each of these.
    """
    checksum = dataset.checksums.get(devkit.name)
    if checksum:
        check_sum(devkit, checksum)
    wanted = ("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt")
    root = devkit.name.partition(".")[0]
    contents = {}
    with open_archive(devkit, "r:gz", name=devkit) as kit:
        for member in regular_files(kit, name=devkit):
            if member.name in {f"{root}/{name}" for name in wanted}:
                name = member.name[len(root) + 1 :]
                with content_of(kit, member) as content:
                    contents[name] = content.read()
    for name in wanted:
        if name not in contents:
            raise InputError(f"{devkit} lacks {root}/{name}: fetch it again")

    wnid_of_id = _read_meta(contents[wanted[0]], devkit)
    if sorted(wnid_of_id.values()) != list(dataset.wnids):
        raise InputError(
            f"{devkit} has {len(wnid_of_id)} classes in meta.mat, not the "
            f"{len(dataset.wnids)} of the data set: fetch it again"
        )
    try:
        wnids = [wnid_of_id[int(line)] for line in contents[wanted[1]].split()]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{devkit} has a ground truth that meta.mat does not know ({error}): fetch "
            "it again"
        ) from error
    if len(wnids) != dataset.counts["val"]:
        raise InputError(
            f"{devkit} has the classes of {len(wnids)} validation images, not of "
            f"{dataset.counts['val']}: fetch it again"
        )
    return wnids


def prepare(
    download_dir: Path,
    target: Path,
    *,
    dataset: Optional[DataSet] = None,
    splits: Sequence[str] = SPLITS,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
    workers: Optional[int] = None,
) -> list[Path]:
    """Write class folders and record files into `target`; returns the .rec written.

    What is there already is kept. Raises InputError for files that are missing,
    damaged or hold something else than `dataset`, which is ilsvrc2012() if not given,
    and where `target` holds other images or records made with another `encoding`.
    """
    dataset = dataset or ilsvrc2012()
    written = []
    with working_in(target):
        for split in splits:
            prefix = folder = target / split
            if not is_finished(folder):
                if (target / f"{split}.idx").exists():
                    continue  # The class folders were removed after use.
                _extract(split, download_dir, folder, dataset, workers)
            _check_counts(folder, split, dataset)
            rows = image_rows(folder, dataset.wnids, LeftOut())
            write_listing(prefix, rows, shuffle=split == "train")
            if write_folder_records(folder, prefix, encoding=encoding, workers=workers):
                written.append(target / f"{split}.rec")
    return written


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m imagenet_prep.imagenet",
        description="Turn the official files of ImageNet into record files.",
    )
    add = parser.add_argument
    add("--download-dir", type=Path, required=True, help="folder of the official files")
    add("--target", type=Path, required=True, help="folder for images and records")
    add("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits to prepare")
    add("--skip-checksums", action="store_true", help="do not verify the files")
    add_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the paths of the record files written."""
    dataset = ilsvrc2012()
    if arguments.skip_checksums:
        dataset = DataSet(dataset.wnids, dataset.counts, checksums={})
    written = prepare(
        arguments.download_dir,
        arguments.target,
        dataset=dataset,
        splits=arguments.splits,
        encoding=encoding_of(arguments),
        workers=arguments.workers,
    )
    print_written(written, len(arguments.splits), arguments.target)


def _extract(
    split: str,
    download_dir: Path,
    folder: Path,
    dataset: DataSet,
    workers: Optional[int],
) -> None:
    archive = find_archive(
        download_dir, TRAIN_ARCHIVE if split == "train" else VAL_ARCHIVE
    )
    part = folder.with_name(f".{split}.part")
    if split == "val":
        wnids = read_devkit(find_archive(download_dir, DEVKIT), dataset)
    begin(part, archive, checksum=dataset.checksums.get(archive.name))
    if split == "val":
        extract_val(archive, part, dataset, wnids)
    else:
        extract_train(archive, part, dataset, workers)
    _check_counts(part, split, dataset)
    os.sync()  # From here on the folder's name stands for whole files.
    finish(part, folder)


def _check_counts(folder: Path, split: str, dataset: DataSet) -> None:
    left_out = LeftOut()
    wnids = class_folders(folder, left_out)
    if wnids != list(dataset.wnids):
        raise InputError(
            f"{folder} holds {len(wnids)} class folders, not the {len(dataset.wnids)} "
            "of the data set: remove it and extract the published archive again"
        )
    count = sum(1 for _ in image_rows(folder, wnids, left_out))
    left_out.tell(folder)
    if count != dataset.counts[split]:
        raise InputError(
            f"{folder} holds {count} images, the data set has {dataset.counts[split]}: "
            "remove it and extract the published archive again"
        )


def _check_name(
    member: tarfile.TarInfo, pattern: str, archive: object
) -> "re.Match[str]":
    match = re.fullmatch(pattern, member.name)
    if not match:
        raise InputError(
            f"{archive} holds {member.name!r}, which is no name of its images: fetch "
            "it again"
        )
    return match


def _read_meta(content: bytes, devkit: Path) -> dict[int, str]:
    """WordNet ID of each ILSVRC2012_ID; classes are the synsets without children."""
    from scipy.io import loadmat

    try:
        meta = loadmat(BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        synsets = np.atleast_1d(meta["synsets"])
        return {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if synset["num_children"] == 0
        }
    # SciPy raises many kinds for files that are none of MATLAB's.
    except Exception as error:
        raise InputError(
            f"{devkit} has a meta.mat that cannot be read ({error}): fetch it again"
        ) from error


if __name__ == "__main__":
    command.run(main, parser())
