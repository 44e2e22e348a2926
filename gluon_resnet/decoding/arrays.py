# SPDX-License-Identifier: Apache-2.0
"""Pixels that are in memory: arrays of any library, and lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gluon_resnet.errors import InputError

_CHANNELS = (1, 3, 4)
# Types that hold pixels of 8 bits at times. Not 16 bits: a dark image of 16 bits looks
# the same.
_WIDE = ("int32", "int64", "float16", "float32", "float64")
_RULE = (
    "give whole numbers 0 to 255 (uint8) of shape (H, W), (H, W, C) or (C, H, W), "
    "where C is 1 (grey), 3 (RGB) or 4 (RGBA)"
)
_SEVERAL = "; of several images use preprocess_batch"


def is_array_like(image: object) -> bool:
    """Whether an object holds pixels: an array, a tensor, an NDArray, a list."""
    if isinstance(image, memoryview):  # of one axis it is a file
        return image.ndim > 1
    return isinstance(image, (list, tuple)) or any(
        hasattr(image, name) for name in ("asnumpy", "__array__")
    )


def rgb_pixels(image: Any) -> np.ndarray:
    """Return the pixels of one image as uint8 RGB (H, W, 3); a view where that does.

    image: an array or what becomes one (MXNet's NDArray, a tensor, nested lists), of
    uint8, or of whole numbers 0 to 255 in 32 or 64 bits or in floats. Floats of 0 and 1
    alone are refused: they may be black and white. (H, W, 3) is always what it seems.
    Of other shapes the channels are the axis of 1, 3 or 4 at one of the ends. Grey is
    repeated, alpha dropped (not composited).

    Raises InputError, which tells type and shape but no pixels, where values or shape
    are others, and where both ends may be the channels.
    """
    is_list = isinstance(image, (list, tuple))
    pixels = _narrow(_array_of_list(image) if is_list else _array(image))
    is_image = pixels.dtype == np.uint8 and pixels.size and pixels.ndim in (2, 3)
    if is_image and pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif is_image and pixels.shape[2] != 3:
        first, last = (pixels.shape[axis] in _CHANNELS for axis in (0, 2))
        if first and last:
            raise InputError(
                f"an array of {pixels.shape} may be (H, W, C) or (C, H, W); give RGB "
                "(H, W, 3)"
            )
        is_image = first or last
        if first:
            pixels = pixels.transpose(1, 2, 0)
    if not is_image:
        raise InputError(
            f"an array of {pixels.dtype} {pixels.shape} is not an image; {_RULE}"
            f"{_SEVERAL if pixels.ndim == 4 else ''}"
        )
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]


def _narrow(pixels: np.ndarray) -> np.ndarray:
    """Return whole numbers 0 to 255 of a wider type as uint8, others as they are."""
    if pixels.dtype.name not in _WIDE or not pixels.size:
        return pixels
    with np.errstate(invalid="ignore"):
        narrow = pixels.astype(np.uint8)
    is_two_toned = pixels.dtype.kind == "f" and narrow.max() <= 1
    return pixels if is_two_toned or (narrow != pixels).any() else narrow


def _array(image: Any) -> np.ndarray:
    try:
        return image.asnumpy() if hasattr(image, "asnumpy") else np.asarray(image)
    except Exception as error:  # Any of the other library's, as for a tensor on a GPU.
        reason = "".join(str(error).splitlines()[:1])
        raise InputError(
            f"a {type(image).__name__} does not become an array ({reason}); {_RULE}"
        ) from None


def _array_of_list(image: Sequence[Any]) -> np.ndarray:
    try:
        np.array(image, dtype=np.float64)  # Of unequal lengths np.array only warns.
        return np.array(image)
    except (TypeError, ValueError):
        raise InputError(
            f"a {type(image).__name__} of {len(image)} is not an image; {_RULE}"
            f"{_SEVERAL}"
        ) from None
