# SPDX-License-Identifier: Apache-2.0
"""Images per second from a record file to float32 batches, beside other loaders.

    python benchmarks/data_pipeline.py [--torch-python PYTHON]

PYTHON is an interpreter with benchmarks/requirements.txt; without it the PyTorch
DataLoader is left out. All sides get the same 500 x 375 JPEGs of quality 95 and about
83 kB, made of crops of a photo with noise, and as many workers as there are cores. They
take turns, round after round; a table gives the medians.

The evaluation is a resize to 256 and a centre crop of 224; the training augmentation
RandomResizedCrop, flip, colour jitter and PCA lighting (which torchvision lacks). The
bound is cv2.imdecode alone, on all cores. Before that: the pixels of all sides are
compared, and the memory of ten epochs of this loader is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).parents[1]))

# NumPy lacks a name that MXNet uses; the package adds it when it is imported first.
from gluon_resnet import _before_mxnet  # noqa: F401, I001

import cv2
import matplotlib
import mxnet as mx
import numpy as np
from mxnet.gluon.data import DataLoader
from mxnet.gluon.data.vision import ImageRecordDataset, transforms
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack

from gluon_resnet.data.augment import (
    color_jitter,
    lighting,
    random_flip,
    random_resized_crop,
)
from gluon_resnet.data.loader import training_batches, validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.preprocess import Protocol, preprocess, read_image

from machine import machine
from report import OURS, loading

KINDS = ("evaluation", "training")
CORES = len(os.sched_getaffinity(0))
BATCH_SIZE = 64
PROTOCOL = Protocol()
TRANSFORMS = (
    partial(random_resized_crop, size=224),
    random_flip,
    partial(color_jitter, brightness=0.4, contrast=0.4, saturation=0.4),
    partial(lighting, std=0.1),
)
# Of 255. MXNet's own copies of OpenCV and libjpeg round a few values differently.
PIXEL_BOUND = {"ImageRecordIter": 4, "GluonCV DataLoader": 4, "PyTorch DataLoader": 0}
# Between means and standard deviations of the augmented images of two sides, of 255.
# Jitter alone moves the mean of 256 images by 2; MXNet's flawed saturation adds to it.
AUGMENTED_BOUND = 10
MEMORY_BOUND_MB = 20
BOUND = "bound: cv2.imdecode"

# Goes once over all images and gives batches of them that are ready to be used.
Side = Callable[[], Iterator]


def make_images(count: int) -> list[bytes]:
    """JPEGs of about 83 kB: crops of a photo, with as much noise as that takes."""
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    photo = cv2.imread(str(path))
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        width = int(rng.integers(300, 501))
        height = width * 3 // 4
        top = rng.integers(photo.shape[0] - height + 1)
        left = rng.integers(photo.shape[1] - width + 1)
        part = photo[top : top + height, left : left + width]
        part = cv2.resize(part, (500, 375), interpolation=cv2.INTER_CUBIC)
        noise = rng.normal(0, 1, part.shape)
        low, high = 0.0, 30.0
        while high - low > 0.2:
            middle = (low + high) / 2
            noisy = np.clip(part + middle * noise, 0, 255).astype(np.uint8)
            quality = (cv2.IMWRITE_JPEG_QUALITY, 95)
            encoded = cv2.imencode(".jpg", noisy, quality)[1].tobytes()
            low, high = (low, middle) if len(encoded) > 83_000 else (middle, high)
        images.append(encoded)
    return images


def write_images(folder: Path, images: list[bytes]) -> Path:
    """Write a record file, and a file of each image for those who want files."""
    path = folder / "images.rec"
    writer = MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key, image in enumerate(images):
        (folder / f"{key:05d}.jpg").write_bytes(image)
        writer.write_idx(key, pack(IRHeader(0, key, key, 0), image))
    writer.close()
    return path


def this_loader(path: Path, count: int, kind: str) -> Side:
    """The loader of this project."""
    records = RecordFile.open(path, num_classes=count)
    keys = list(records.offsets)
    options = {"batch_size": BATCH_SIZE, "protocol": PROTOCOL, "workers": CORES}
    if kind == "evaluation":
        batches = validation_batches(keys, records.read, **options)
    else:
        options |= {"transforms": TRANSFORMS, "seed": 0, "epoch": 0}
        options["protocol"] = replace(PROTOCOL, crop_pct=1)
        batches = training_batches(keys, records.read, **options)
    return lambda: (images for images, _ in batches)


def record_iter(path: Path, kind: str) -> Side:
    """MXNet's C++ loader; it decodes with at most half of the cores."""
    options = {
        "evaluation": {"resize": 256},
        "training": {
            "random_resized_crop": True,
            "min_random_area": 0.08,
            "max_random_area": 1.0,
            "min_aspect_ratio": 3 / 4,
            "max_aspect_ratio": 4 / 3,
            "rand_mirror": True,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.4,
            "pca_noise": 0.1,
            "shuffle": True,
        },
    }
    mean, std = (255 * np.array(values) for values in (PROTOCOL.mean, PROTOCOL.std))
    batches = mx.io.ImageRecordIter(
        path_imgrec=str(path),
        path_imgidx=str(path.with_suffix(".idx")),
        data_shape=(3, 224, 224),
        batch_size=BATCH_SIZE,
        preprocess_threads=CORES,
        **dict(zip(("mean_r", "mean_g", "mean_b"), mean)),
        **dict(zip(("std_r", "std_g", "std_b"), std)),
        **options[kind],
    )

    def once() -> Iterator:
        batches.reset()  # At once, or it would go on decoding while it is others' turn.
        for batch in batches:
            batch.data[0].wait_to_read()
            yield batch.data[0]

    return once


def gluon_loader(path: Path, kind: str) -> Side:
    """What GluonCV's train_imagenet.py does without --use-rec, on a record file."""
    steps = {
        "evaluation": (
            transforms.Resize(256, keep_ratio=True),
            transforms.CenterCrop(224),
        ),
        "training": (
            transforms.RandomResizedCrop(224),
            transforms.RandomFlipLeftRight(),
            transforms.RandomColorJitter(0.4, 0.4, 0.4),
            transforms.RandomLighting(0.1),
        ),
    }
    transform = transforms.Compose(
        [
            *steps[kind],
            transforms.ToTensor(),
            transforms.Normalize(PROTOCOL.mean, PROTOCOL.std),
        ]
    )
    batches = DataLoader(
        ImageRecordDataset(str(path)).transform_first(transform),
        batch_size=BATCH_SIZE,
        shuffle=kind == "training",
        last_batch="keep",
        num_workers=CORES,
    )

    def once() -> Iterator:
        for images, _ in batches:
            images.wait_to_read()
            yield images

    return once


def decoding(images: list[bytes]) -> Side:
    """The bound: all images decoded by OpenCV on all cores, and nothing else."""

    def decode(first: int) -> None:
        for image in images[first::CORES]:
            cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)

    def once() -> Iterator:
        with ThreadPoolExecutor(CORES) as pool:
            yield from pool.map(decode, range(CORES))

    return once


@contextmanager
def torch_loader(python: Path, folder: Path) -> Iterator[Callable[[str], Side]]:
    """torch_loader.py in a process of its own; gives a side for each kind."""
    script = Path(__file__).with_name("torch_loader.py")
    command = [python, "-W", "ignore", script, folder, BATCH_SIZE, CORES]
    with subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout.readline() != "ready\n":
            sys.exit(f"{python} cannot run {script.name}; see the error above")

        def side(kind: str) -> Side:
            def once() -> Iterator:
                print(kind, file=process.stdin, flush=True)
                yield process.stdout.readline()

            return once

        yield side
        process.stdin.close()


def pixels(side: Side) -> np.ndarray:
    """All images of a side, (N, 3, 224, 224), of [0, 255]."""
    batches = (
        batch.asnumpy() if isinstance(batch, mx.nd.NDArray) else batch
        for batch in side()
    )
    return unnormalised(np.concatenate(list(batches)))


def unnormalised(images: np.ndarray) -> np.ndarray:
    """Images of [0, 255]."""
    mean, std = (np.float32(v)[:, None, None] for v in (PROTOCOL.mean, PROTOCOL.std))
    return 255 * (images * std + mean)


def check_pixels(name: str, theirs: np.ndarray, ours: np.ndarray) -> None:
    """Stop unless the evaluation pixels are the same within the bound."""
    worst = np.abs(theirs - ours).max()
    print(f"{name}: evaluation pixels differ by at most {worst:.2f} of 255")
    if worst > PIXEL_BOUND[name] + 1e-3:
        sys.exit(f"{name} prepares other pixels")


def check_augmentation(name: str, theirs: np.ndarray, ours: np.ndarray) -> None:
    """Stop unless augmented images are alike in mean and spread."""
    mean, spread = theirs.mean() - ours.mean(), theirs.std() - ours.std()
    print(
        f"{name}: augmented mean {mean:+.2f}, standard deviation {spread:+.2f} of 255"
    )
    if max(abs(mean), abs(spread)) > AUGMENTED_BOUND:
        sys.exit(f"{name} augments otherwise")


def check_memory(kind: str, side: Side) -> None:
    """Ten epochs; stop when memory grows after the second."""
    used = []
    for _ in range(10):
        deque(side(), maxlen=0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    print(f"{kind}: MB resident after each of ten epochs:", *map(round, used))
    if max(used[2:]) > used[1] + MEMORY_BOUND_MB:
        sys.exit(f"{kind}: memory grows by more than {MEMORY_BOUND_MB} MB")


def measure(
    sides: dict[str, dict[str, Side]], count: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Images per second of each side and kind; the sides take turns."""
    speeds = {name: {kind: [] for kind in kinds} for name, kinds in sides.items()}
    for turn in range(-1, rounds):  # The first one warms up.
        for kind in KINDS:
            for name, kinds in sides.items():
                if kind in kinds:
                    started = time.perf_counter()
                    deque(kinds[kind](), maxlen=0)
                    if turn >= 0:
                        speed = count / (time.perf_counter() - started)
                        speeds[name][kind].append(speed)
    return speeds


def main(
    count: int, rounds: int, torch_python: Optional[Path], path: Optional[Path]
) -> None:
    """Make the images, check all sides, measure them, print and write the results."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = make_images(count)
        print(f"{count} images, {sum(map(len, images)) / count / 1000:.1f} kB each")
        records = write_images(folder, images)

        ours = {kind: this_loader(records, count, kind) for kind in KINDS}
        for kind, side in ours.items():
            check_memory(kind, side)
        peers = {
            "ImageRecordIter": {kind: record_iter(records, kind) for kind in KINDS},
            "GluonCV DataLoader": {kind: gluon_loader(records, kind) for kind in KINDS},
        }
        for name, sides in peers.items():
            for check, kind in zip((check_pixels, check_augmentation), KINDS):
                check(name, pixels(sides[kind]), pixels(ours[kind]))
        if torch_python:
            side = stack.enter_context(torch_loader(torch_python, folder))
            name = "PyTorch DataLoader"
            peers[name] = {kind: side(kind) for kind in KINDS}
            expected = [preprocess(read_image(i), library="pil") for i in images]
            theirs = np.load(folder / "evaluation.npy")
            check_pixels(name, unnormalised(theirs), unnormalised(np.stack(expected)))

        bound = {BOUND: {"evaluation": decoding(images)}}
        speeds = measure({**bound, OURS: ours, **peers}, count, rounds)
    results = {
        "machine": machine(torch_python),
        "cells": [
            {"side": side, "kind": kind, "speeds": values}
            for side, kinds in speeds.items()
            for kind, values in kinds.items()
        ],
    }
    print(loading(results))
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=512, help=f"a multiple of {BATCH_SIZE}"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", type=Path, help="interpreter with PyTorch")
    parser.add_argument("--results", type=Path, help="write what was measured as JSON")
    arguments = parser.parse_args()
    if arguments.images < BATCH_SIZE or arguments.images % BATCH_SIZE:
        parser.error(f"--images {arguments.images} is not a multiple of {BATCH_SIZE}")
    main(arguments.images, arguments.rounds, arguments.torch_python, arguments.results)
