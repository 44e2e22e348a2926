# SPDX-License-Identifier: Apache-2.0
"""Turning an image the way its camera was held.

The number 1 to 8 of EXIF's tag 0x0112 (Exif 2.32, section 4.6.4). It is read here, and
no other tag: Pillow's own reader and `exif_transpose`, which writes the whole block
anew, fail where any tag is damaged.
"""

import re
import struct
from typing import Optional

from PIL import Image

_TAG = 0x0112
# By type of the field: BYTE, SHORT and LONG, and the same with a sign. SHORT is right.
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UPRIGHT = 1


def orientation(image: Image.Image) -> int:
    """Return the number that an image carries, 1 where it carries none.

    It is that of the first directory of its EXIF block, whole numbers of any width
    taken, or else that of XMP. Of a TIFF file Pillow has taken it away on loading, and
    turned the image. The number may be none of 1 to 8.
    """
    exif = image.info.get("exif")
    if exif is None and "Raw profile type exif" in image.info:  # of ImageMagick, in PNG
        lines = image.info["Raw profile type exif"].split("\n")[3:]
        if re.fullmatch("([0-9a-f]{2})*", digits := "".join(lines)):
            exif = bytes.fromhex(digits)
    number = _of_exif(exif) if isinstance(exif, bytes) else None
    if number is None:
        number = _of_xmp(image)
    return UPRIGHT if number is None else number


def turned(image: Image.Image, number: int) -> Image.Image:
    """Return the image upright; with a number beyond 2 to 8 it is as it was."""
    return image.transpose(_TURNS[number]) if number in _TURNS else image


def _of_exif(exif: bytes) -> Optional[int]:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for start in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, start)
            if tag == _TAG and kind in _FORMATS:
                return struct.unpack_from(order + _FORMATS[kind], exif, start + 8)[0]
    except struct.error:  # The block ends within its directory.
        pass
    return None


def _of_xmp(image: Image.Image) -> Optional[int]:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if isinstance(xmp, str):
        xmp = xmp.encode(errors="replace")
    match = re.search(rb"tiff:Orientation(?:=[\"']|>)(\d+)", xmp)
    return int(match[1]) if match else None
