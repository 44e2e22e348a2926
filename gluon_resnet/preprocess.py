# SPDX-License-Identifier: Apache-2.0
"""From an image file to what a net takes: decode, resize, crop, normalise.

A published accuracy holds only for the pixels it was measured with, and the upstream
projects differ in them. ``library`` names whose pixels are wanted:

========  ============  ==============  ============  =======================
library   resize        resize side     crop offset   upstream
========  ============  ==============  ============  =======================
``cv2``   no antialias  rounded up      rounded down  MXNet Gluon, GluonCV
``mmcv``  no antialias  rounded down    to even       OpenMMLab, ``cv2`` backend
``pil``   antialiased   rounded down    to even       timm, torchvision, OpenMMLab
                                                      with its ``pillow`` backend
========  ============  ==============  ============  =======================

Pillow decodes for all three: on JPEG its pixels equal OpenCV's (4.9) bit for bit, CMYK
excepted, where they differ by at most 1 of 255.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Union

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps

from gluon_resnet.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Where Pillow itself refuses (twice its MAX_IMAGE_PIXELS): half a gigabyte of RGB.
MAX_PIXELS = 178_956_970
# Named because Pillow would also try others, such as EPS, which runs Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What the names of such files end in.
IMAGE_SUFFIXES = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

ImageSource = Union[str, Path, bytes, BinaryIO, Image.Image, np.ndarray]

_EXIF_ORIENTATION = 0x0112
_INTERPOLATIONS = {
    "bilinear": (cv2.INTER_LINEAR, Image.Resampling.BILINEAR),
    "bicubic": (cv2.INTER_CUBIC, Image.Resampling.BICUBIC),
}
_CHOICES = {
    "interpolation": tuple(_INTERPOLATIONS),
    "resize": ("short", "warp"),
    "library": ("cv2", "mmcv", "pil"),
}


@dataclass(frozen=True)
class Protocol:
    """How a checkpoint's images are prepared; each field is a keyword of `preprocess`.

    size: side of the square crop, in pixels.
    crop_pct: crop side / resize side, in (0, 1]; the resize side is size / crop_pct,
        rounded as the module's table says (224 / 0.95 is 235, but 236 for "cv2").
    interpolation: "bilinear" or "bicubic".
    resize: "short" takes the short side to the resize side and keeps the aspect ratio
        (the long side is rounded down); "warp" takes both sides there, as the ONNX
        Model Zoo's notebooks and OpenMMLab's CUB-200 recipe do.
    library: "cv2", "mmcv" or "pil"; see the module's docstring.
    mean, std: per RGB channel, of pixels in [0, 1].

    Raises InputError for a value outside these rules.
    """

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    resize: str = "short"
    library: str = "cv2"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"size {self.size!r} is not a positive whole number")
        if not 0 < self.crop_pct <= 1:
            raise InputError(
                f"crop_pct {self.crop_pct!r} is not in (0, 1]; use 1 for no crop"
            )
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise InputError(
                    f"{field} {value!r} is unknown; use {' or '.join(choices)}"
                )
        for field, low in (("mean", -math.inf), ("std", 0)):
            values = tuple(getattr(self, field))
            if len(values) != 3 or not all(low < v < math.inf for v in values):
                raise InputError(
                    f"{field} {values} is not three finite numbers"
                    f"{' above 0' if field == 'std' else ''}, one a channel"
                )
            object.__setattr__(self, field, values)  # A list would have no hash.


def read_image(source: str | Path | bytes | BinaryIO) -> np.ndarray:
    """Read an image as uint8 RGB pixels (H, W, 3), in a new array.

    source: a path, the file's bytes or a binary file, in one of `FORMATS`. An EXIF
    orientation is applied, which timm and torchvision do not do. 16-bit samples keep
    their high byte, alpha is dropped (not composited), CMYK and palettes become RGB,
    an animation gives its first frame: what Pillow's ``convert("RGB")`` does, except
    that it would clip 16-bit grey.

    Raises InputError if source is missing, not such an image, cut short or larger
    than `MAX_PIXELS` (which its header tells: nothing is decoded then).
    """
    return np.array(_open_rgb(source))


def preprocess(
    image: ImageSource,
    size: int = Protocol.size,
    *,
    crop_pct: float = Protocol.crop_pct,
    interpolation: str = Protocol.interpolation,
    resize: str = Protocol.resize,
    library: str = Protocol.library,
    mean: Sequence[float] = Protocol.mean,
    std: Sequence[float] = Protocol.std,
) -> np.ndarray:
    """Prepare one image for a net: float32 (3, size, size), normalised RGB.

    image: what `read_image` takes, a PIL image or uint8 RGB pixels (H, W, 3). The
    keywords are the fields of `Protocol`: ``preprocess(image, **asdict(protocol))``.
    The values are (pixel / 255 - mean) / std in float32, operation by operation as
    in Gluon's and torchvision's ToTensor and Normalize, and equal theirs bit for bit.

    Raises InputError for a bad image or keyword.
    """
    protocol = Protocol(size, crop_pct, interpolation, resize, library, mean, std)
    pixels = resize_image(image, protocol)
    return _crop(pixels, *_centre(pixels, protocol), protocol)


def preprocess_batch(images: Iterable[ImageSource], **fields) -> np.ndarray:
    """Prepare images for a net: float32 (N, 3, size, size).

    images and fields are `preprocess`'s. Raises InputError as it does, or if there
    is no image.
    """
    prepared = [preprocess(image, **fields) for image in images]
    if not prepared:
        raise InputError("there is no image in the batch; give at least one")
    return np.stack(prepared)


def ten_crop(image: ImageSource, **fields) -> np.ndarray:
    """Prepare ten crops of one image: float32 (10, 3, size, size).

    The order is torchvision's TenCrop: top left, top right, bottom left, bottom right,
    centre, and the same five of the mirrored image. (GluonCV puts the centre first.)
    image, fields and errors are `preprocess`'s.
    """
    protocol = Protocol(**fields)
    pixels = resize_image(image, protocol)
    bottom, right = (side - protocol.size for side in pixels.shape[:2])
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return np.stack(
        [
            _crop(view, top, left, protocol)
            for view in (pixels, pixels[:, ::-1])
            for top, left in [*corners, _centre(pixels, protocol)]
        ]
    )


def pixels_of(image: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Return the pixels of a prepared image: float32 RGB (H, W, 3) in [0, 255].

    image: float32 (3, H, W) as `preprocess` gives it by `protocol`.
    """
    std, mean = (
        np.reshape(np.float32(values), (3, 1, 1))
        for values in (protocol.std, protocol.mean)
    )
    return np.clip((image * std + mean) * 255, 0, 255).transpose(1, 2, 0)


def _open_rgb(source: str | Path | bytes | BinaryIO | Image.Image) -> Image.Image:
    """Open, check and decode; every way in which that can fail is an InputError."""
    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else source
    # Importing GluonCV sets it, and the missing half of a file would pass as grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        file = BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            _check_pixel_count(*image.size)
            return _to_rgb(image)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name}: not an image; give one of these formats: {', '.join(FORMATS)}"
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; give the path of an image") from error
    except Image.DecompressionBombError as error:
        reason, _, _ = str(error).partition(",")  # what follows speaks of attacks
        raise InputError(f"{name}: {reason}; scale it down first") from error
    # Beside OSError, broken files make Pillow raise SyntaxError, ValueError, TypeError
    # and struct.error.
    except Exception as error:
        raise InputError(
            f"{name}: cannot be read as an image ({error}); get it again"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"pixels of type {image.mode!r} have no known range; save it with 8 bits"
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns of the direct way to RGB.
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_pixel_count(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{width} x {height} are more than {MAX_PIXELS} pixels; scale it down first"
        )


def resize_image(image: ImageSource, protocol: Protocol) -> np.ndarray:
    """Return uint8 (H, W, 3), whose short side is at least protocol.size."""
    if not isinstance(image, np.ndarray):
        image = _open_rgb(image)
        width, height = image.size
    elif image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        raise InputError(
            f"an array of {image.dtype} {image.shape} is not an image; "
            "give uint8 RGB pixels of shape (H, W, 3)"
        )
    else:
        height, width = image.shape[:2]

    rounded = math.ceil if protocol.library == "cv2" else math.floor
    side = rounded(protocol.size / protocol.crop_pct)
    new_width = new_height = side
    if protocol.resize == "short" and width > height:
        new_width = side * width // height
    elif protocol.resize == "short":
        new_height = side * height // width
    _check_pixel_count(new_width, new_height)

    cv2_flag, pil_filter = _INTERPOLATIONS[protocol.interpolation]
    if protocol.library == "pil":
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        return np.asarray(image.resize((new_width, new_height), pil_filter))
    pixels = np.asarray(image)
    return cv2.resize(pixels, (new_width, new_height), interpolation=cv2_flag)


def _centre(pixels: np.ndarray, protocol: Protocol) -> tuple[int, int]:
    """Return top and left of the centre crop."""
    margins = (side - protocol.size for side in pixels.shape[:2])
    if protocol.library == "cv2":
        return tuple(margin // 2 for margin in margins)
    return tuple(round(margin / 2) for margin in margins)


def _crop(pixels: np.ndarray, top: int, left: int, protocol: Protocol) -> np.ndarray:
    """Cut the square out of (H, W, 3) uint8 and normalise: (3, size, size) float32.

    One fused multiply-add is no faster here (0.07 ms) and up to 174 ulp off.
    """
    square = pixels[top : top + protocol.size, left : left + protocol.size]
    values = square.transpose(2, 0, 1).astype(np.float32, order="C")
    values /= 255
    values -= np.float32(protocol.mean)[:, None, None]
    values /= np.float32(protocol.std)[:, None, None]
    return values
