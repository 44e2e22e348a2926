# SPDX-License-Identifier: Apache-2.0
"""Images that are decoded once, where all of a record file fit in memory."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image

from gluon_resnet.data.loader import Read
from gluon_resnet.data.records import RecordFile
from gluon_resnet.preprocess import FORMATS

MOST_BYTES = 2**30
"""Of decoded pixels."""


def decoded_once(records: RecordFile, *, most_bytes: int = MOST_BYTES) -> Read:
    """Return `records.read`, keeping what it gives if all images fit in `most_bytes`.

    The arrays that it gives are shared: they are not to be changed.
    """
    if not fits(records, most_bytes):
        return records.read
    kept: dict[int, tuple[int, np.ndarray]] = {}

    def read(key: int) -> tuple[int, np.ndarray]:
        if key not in kept:  # two threads at once read the same
            kept[key] = records.read(key)
        return kept[key]

    return read


def fits(records: RecordFile, most_bytes: int) -> bool:
    """Tell whether the images have at most so many bytes, by what their headers say."""
    total = 0
    for key in records.offsets:
        total += _decoded_bytes(records, key)
        if total > most_bytes:
            return False
    return True


def _decoded_bytes(records: RecordFile, key: int) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            encoded = BytesIO(records.encoded_image(key))
            with Image.open(encoded, formats=FORMATS) as image:
                width, height = image.size
    except Exception:  # Many kinds. What is wrong is told when the image is read.
        return 0
    return 3 * width * height
