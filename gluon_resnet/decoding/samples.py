# SPDX-License-Identifier: Apache-2.0
"""Samples of more than 8 bits: their 8 highest bits.

Pillow takes these of 16-bit RGB and RGBA in PNG and TIFF. It clips grey samples at 255,
rounds those of PPM, and misreads TIFF files that hold 16-bit colours plane by plane.
"""

import re
from typing import Optional

import numpy as np
from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile

from gluon_resnet.errors import InputError

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANES = 258, 262, 284
_WHITE_IS_ZERO, _SEPARATE = 0, 2


def check_planes(image: Image.Image) -> None:
    """Raise InputError for an opened file whose pixels Pillow would misread."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PLANES) == _SEPARATE and max(tags.get(_TIFF_BITS, (1,))) > 8:
        raise InputError(
            "its samples of 16 bits stand plane by plane, which is not read; save it "
            "with 8 bits, or with interleaved colours"
        )


def wide_ppm(image: Image.Image) -> Optional[Image.Image]:
    """Return the RGB of an opened PPM file with samples above 255, None of others."""
    if not isinstance(image, PpmImageFile) or image.mode != "RGB" or not image.tile:
        return None
    decoder, _, offset, arguments = image.tile[0]
    maximum = arguments[-1] if isinstance(arguments, tuple) else 255
    if maximum <= 255:
        return None
    width, height = image.size
    count = 3 * width * height
    image.fp.seek(offset)
    data = image.fp.read()
    if decoder == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", data).split()[:count]
        samples = np.array([*map(int, words)])
    else:
        samples = np.frombuffer(data, ">u2", min(count, len(data) // 2))
    if len(samples) < count or samples.min() < 0 or samples.max() > maximum:
        raise OSError(f"it does not hold {count} samples of 0 to {maximum}")
    # Pillow brings grey ones to 16 bits in the same way.
    wide = np.rint(samples / maximum * 65535).astype(np.uint16)
    return Image.fromarray((wide >> 8).astype(np.uint8).reshape(height, width, 3))


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a decoded image with 8 bits a sample.

    Raises InputError where the range of the samples is not known.
    """
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        (bits,) = tags.get(_TIFF_BITS, (16,))
        samples = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            samples = 255 - samples
        return Image.fromarray(samples)
    if image.mode == "I" and isinstance(image, PpmImageFile):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            f"pixels of type {image.mode!r} have no known range; save it with 8 bits"
        )
    return image
