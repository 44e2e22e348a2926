# SPDX-License-Identifier: Apache-2.0
"""The image file that goes into a record."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import read_image

DEFAULT_QUALITY = 95  # im2rec.py's


@dataclass(frozen=True)
class Encoding:
    """How image files become records: as they are, unless `resize` or `quality` is set.

    resize: pixels; a longer short side is brought to it, the aspect ratio kept and the
        long side rounded down. Smaller images keep their size.
    quality: of the JPEG files that are written, 1 to 100; 95 if only `resize` is set.
    verify: decode also what is kept as it is.

    Raises InputError for values outside these rules.
    """

    resize: Optional[int] = None
    quality: Optional[int] = None
    verify: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise InputError(f"resize {self.resize} is not a positive number of pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise InputError(f"quality {self.quality} is not in 1 to 100")


def encode_file(path: Path, encoding: Encoding) -> bytes:
    """The content of an image file, or what `encoding` makes of it.

    Raises InputError for an empty file and for one that shall be decoded and cannot.
    """
    if encoding.resize or encoding.quality or encoding.verify:
        image = read_image(path)
    if encoding.resize or encoding.quality:
        return _encode_jpeg(path, _shrink(image, encoding.resize), encoding.quality)
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path} is empty: fetch it again or leave it out")
    return content


def encode_png(image: np.ndarray) -> bytes:
    """The PNG file of a grey (H, W) or RGB (H, W, 3) image, uint8."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 9))
    return encoded.tobytes()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `encoding_of` reads, and --workers."""
    add = parser.add_argument
    add("--resize", type=int, help="short side in pixels; never enlarges")
    add("--quality", type=int, help="of new JPEG files, 1 to 100")
    add(
        "--verify", action="store_true", help="decode every image to see that it can be"
    )
    add("--workers", type=int, help="threads; as many as cores if not given")


def encoding_of(arguments: argparse.Namespace) -> Encoding:
    """The Encoding that was asked for."""
    return Encoding(arguments.resize, arguments.quality, arguments.verify)


def _shrink(image: np.ndarray, side: Optional[int]) -> np.ndarray:
    height, width = image.shape[:2]
    short = min(height, width)
    if side is None or short <= side:
        return image
    size = (side * width // short, side * height // short)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _encode_jpeg(path: Path, image: np.ndarray, quality: Optional[int]) -> bytes:
    if max(image.shape) > 65535:
        raise InputError(
            f"{path} becomes an image of {image.shape[1]} x {image.shape[0]} pixels, "
            "JPEG has at most 65535 a side: leave it out"
        )
    options = (cv2.IMWRITE_JPEG_QUALITY, quality or DEFAULT_QUALITY)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, options)[1].tobytes()
