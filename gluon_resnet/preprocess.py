# SPDX-License-Identifier: Apache-2.0
"""From an image file to what a net takes: decode, resize, crop, normalise.

A published accuracy holds only for the pixels it was measured with, and the upstream
projects differ in them. ``library`` names whose pixels are wanted:

============  ============  ============  ==========  ============  ==================
library       resize        resize side   long side   crop offset   upstream
============  ============  ============  ==========  ============  ==================
``cv2``       no antialias  up            down        down          MXNet Gluon,
                                                                    GluonCV
``mmcv``      no antialias  down          down        to even       OpenMMLab, ``cv2``
                                                                    backend
``pil``       antialiased   down          down        to even       timm, torchvision,
                                                                    OpenMMLab's
                                                                    ``pillow`` backend
``onnx_zoo``  antialiased   to even       to even     down          the ONNX Model
                                                                    Zoo's later script
============  ============  ============  ==========  ============  ==================

The last three columns but one tell how a length that is not whole is rounded. (The ONNX
Model Zoo's notebooks use ``cv2`` with resize="warp"; its ``imagenet_preprocess.py``,
of 2020, is ``onnx_zoo`` and keeps the aspect ratio.)

Pillow decodes for all: on JPEG its pixels equal OpenCV's (4.9) bit for bit, CMYK
excepted, where they differ by at most 1 of 255.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Union

import cv2
import numpy as np
from PIL import Image, ImageFile

from gluon_resnet.decoding.arrays import is_array_like, rgb_pixels
from gluon_resnet.decoding.jpeg import decode_whole
from gluon_resnet.decoding.orientation import orientation, turned
from gluon_resnet.decoding.samples import check_planes, eight_bits, wide_ppm
from gluon_resnet.errors import InputError

log = logging.getLogger(__name__)

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

EncodedImage = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]
ImageSource = Union[EncodedImage, Image.Image, Any]  # Any: what becomes an array
_INTERPOLATIONS = {
    "bilinear": (cv2.INTER_LINEAR, Image.Resampling.BILINEAR),
    "bicubic": (cv2.INTER_CUBIC, Image.Resampling.BICUBIC),
}
_CHOICES = {
    "interpolation": tuple(_INTERPOLATIONS),
    "resize": ("short", "warp"),
    "library": ("cv2", "mmcv", "onnx_zoo", "pil"),
}


@dataclass(frozen=True)
class Protocol:
    """How a checkpoint's images are prepared; each field is a keyword of `preprocess`.

    size: side of the square crop, in pixels.
    crop_pct: crop side / resize side, in (0, 1]; the resize side is size / crop_pct,
        rounded as the module's table says (224 / 0.95 is 235, but 236 for "cv2").
    interpolation: "bilinear" or "bicubic".
    resize: "short" takes the short side to the resize side and keeps the aspect ratio;
        "warp" takes both sides there, as the ONNX Model Zoo's notebooks and OpenMMLab's
        CUB-200 recipe do.
    library: "cv2", "mmcv", "onnx_zoo" or "pil"; see the module's docstring.
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


def read_image(source: EncodedImage) -> np.ndarray:
    """Read an image as uint8 RGB pixels (H, W, 3), in a new array.

    source: a path, the file's bytes or a binary file, in one of `FORMATS`.

    - It is turned as its EXIF orientation tells, whatever else is damaged there, which
      timm and torchvision do not do. A number that is none of 1 to 8 turns nothing.
    - Samples of more than 8 bits keep their 8 highest, in every format and of every
      colour; those of a PPM file are brought to 16 bits first.
    - Alpha is dropped (not composited), CMYK and palettes become RGB, an animation
      gives its first frame: what Pillow's ``convert("RGB")`` does.
    - A JPEG file that lacks only its end marker is read. One that lacks pixels, too, is
      refused. (Where an end marker stands behind the missing pixels, libjpeg makes them
      grey.)

    Raises InputError if source is missing, not such an image, cut short or larger
    than `MAX_PIXELS` (which its header tells: nothing is decoded then).
    """
    return np.array(_rgb_image(source))


def image_size(source: EncodedImage) -> tuple[int, int]:
    """Return width and height as a file's header tells them, before it is turned.

    source and errors are `read_image`'s, but pixels are not looked at.
    """
    with _opened(source) as image:
        return image.size


def preprocess(
    image: ImageSource, protocol: Protocol | int | None = None, **fields: Any
) -> np.ndarray:
    """Prepare one image for a net: float32 (3, size, size), normalised RGB.

    image: what `read_image` takes, a PIL image or pixels in memory, 0 to 255: RGB
    (H, W, 3), grey (H, W), or one, three or four channels first or last, in an array of
    any library, MXNet's NDArray included (`decoding.arrays.rgb_pixels`).
    protocol: a `Protocol`, or its size, or none for its defaults.
    fields: those of `Protocol` by name; they replace the protocol's.

    The values are (pixel / 255 - mean) / std in float32, operation by operation as
    in Gluon's and torchvision's ToTensor and Normalize, and equal theirs bit for bit.

    Raises InputError for a bad image or field.
    """
    protocol = _protocol(protocol, fields)
    pixels = resize_image(image, protocol)
    return _crop(pixels, *_centre(pixels, protocol), protocol)


def preprocess_batch(
    images: Iterable[ImageSource],
    protocol: Protocol | int | None = None,
    **fields: Any,
) -> np.ndarray:
    """Prepare images for a net: float32 (N, 3, size, size).

    images, protocol and fields are `preprocess`'s. Raises InputError as it does, or if
    there is no image.
    """
    protocol = _protocol(protocol, fields)
    prepared = [preprocess(image, protocol) for image in images]
    if not prepared:
        raise InputError("there is no image in the batch; give at least one")
    return np.stack(prepared)


def ten_crop(
    image: ImageSource, protocol: Protocol | int | None = None, **fields: Any
) -> np.ndarray:
    """Prepare ten crops of one image: float32 (10, 3, size, size).

    The order is torchvision's TenCrop: top left, top right, bottom left, bottom right,
    centre, and the same five of the mirrored image. (GluonCV puts the centre first.)
    Arguments and errors are `preprocess`'s.
    """
    protocol = _protocol(protocol, fields)
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
        np.asarray(values, np.float32)[:, None, None]
        for values in (protocol.std, protocol.mean)
    )
    return np.clip((image * std + mean) * 255, 0, 255).transpose(1, 2, 0)


def _protocol(given: Protocol | int | None, fields: dict[str, Any]) -> Protocol:
    known = Protocol.__dataclass_fields__
    for field in fields:
        if field not in known:
            raise InputError(
                f"{field} is no field of a protocol; its fields are {', '.join(known)}"
            )
    if isinstance(given, Protocol):
        return replace(given, **fields)
    if given is not None and "size" in fields:
        raise InputError(
            f"size is given twice, as {given} and as {fields['size']}; give it once"
        )
    return Protocol(**fields) if given is None else Protocol(given, **fields)


def _rgb_image(source: EncodedImage | Image.Image) -> Image.Image:
    """Decode into 8-bit RGB, upright."""
    with _opened(source) as image:
        check_planes(image)
        image = wide_ppm(image) or _decoded(image)
        number = orientation(image)
        if number not in range(1, 9):
            log.info(
                "%s: its orientation %s is none of 1 to 8; it is not turned",
                *(_name(source), number),
            )
        image = eight_bits(turned(image, number))
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # Pillow warns of the direct way to RGB.
        return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _opened(source: EncodedImage | Image.Image) -> Iterator[Image.Image]:
    """Open and check; what fails here or while it is open is an InputError."""
    name = _name(source)
    # Importing GluonCV sets it, and the missing half of a file would pass as grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with _file(source) as file, Image.open(file, formats=FORMATS) as image:
            _check_pixel_count(*image.size)
            yield image
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
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"{name}: {error.strerror}; give an image file that may be read"
            ) from error
        raise InputError(
            f"{name}: cannot be read as an image ({error}); get it again"
        ) from error


def _name(source: EncodedImage | Image.Image) -> str:
    """What to call an image in a message."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(memoryview(source).cast('B'))} bytes"
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    return str(name or f"a {type(source).__name__}")


def _file(source: EncodedImage) -> AbstractContextManager[BinaryIO]:
    """Return a file to read, which is closed if it was opened here."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).open("rb")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesIO(source)
    if not hasattr(source, "read"):
        raise InputError(
            "not an image; give a path, the bytes of a file, a file, a PIL image or "
            "pixels in an array"
        )
    return nullcontext(source)


def _decoded(image: Image.Image) -> Image.Image:
    file = getattr(image, "fp", None)
    try:
        image.load()
    except Exception:
        if image.format not in ("JPEG", "MPO") or file is None or file.closed:
            raise
        file.seek(0)
        return decode_whole(file.read())
    return image


def _check_pixel_count(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{width} x {height} are more than {MAX_PIXELS} pixels; scale it down first"
        )


def resize_image(image: ImageSource, protocol: Protocol) -> np.ndarray:
    """Return uint8 (H, W, 3), whose short side is at least protocol.size."""
    decoded: Image.Image | np.ndarray
    if is_array_like(image) and not isinstance(image, Image.Image):
        decoded = rgb_pixels(image)
        height, width = decoded.shape[:2]
    else:
        decoded = _rgb_image(image)
        width, height = decoded.size
    new_width, new_height = _resized(width, height, protocol)
    _check_pixel_count(new_width, new_height)

    cv2_flag, pil_filter = _INTERPOLATIONS[protocol.interpolation]
    if protocol.library in ("pil", "onnx_zoo"):
        if isinstance(decoded, np.ndarray):
            decoded = Image.fromarray(decoded)
        return np.asarray(decoded.resize((new_width, new_height), pil_filter))
    pixels = np.asarray(decoded)
    return cv2.resize(pixels, (new_width, new_height), interpolation=cv2_flag)


def resize_side(protocol: Protocol) -> int:
    """Return the length that the short side, or both, get before the crop."""
    exact_side = protocol.size / protocol.crop_pct
    if protocol.library == "onnx_zoo":
        return round(exact_side)
    return (math.ceil if protocol.library == "cv2" else math.floor)(exact_side)


def _resized(width: int, height: int, protocol: Protocol) -> tuple[int, int]:
    """Return width and height before the crop."""
    side, (short, long) = resize_side(protocol), sorted((width, height))
    if protocol.library == "onnx_zoo":
        long_side = round(side / short * long)  # the script's product, rounded twice
    else:
        long_side = side * long // short
    if protocol.resize == "warp":
        return side, side
    return (long_side, side) if width > height else (side, long_side)


def _centre(pixels: np.ndarray, protocol: Protocol) -> tuple[int, int]:
    """Return top and left of the centre crop."""
    height, width = pixels.shape[:2]
    size = protocol.size
    if protocol.library == "cv2":
        return (height - size) // 2, (width - size) // 2
    if protocol.library == "onnx_zoo":
        return height // 2 - size // 2, width // 2 - size // 2
    return round((height - size) / 2), round((width - size) / 2)


def _crop(pixels: np.ndarray, top: int, left: int, protocol: Protocol) -> np.ndarray:
    """Cut the square out of (H, W, 3) uint8 and normalise: (3, size, size) float32.

    One fused multiply-add is no faster here (0.07 ms) and up to 174 ulp off.
    """
    square = pixels[top : top + protocol.size, left : left + protocol.size]
    values = square.transpose(2, 0, 1).astype(np.float32, order="C")
    values /= 255
    values -= np.array(protocol.mean, np.float32)[:, None, None]
    values /= np.array(protocol.std, np.float32)[:, None, None]
    return values
