# SPDX-License-Identifier: Apache-2.0
"""Arrays as files hold them."""

import math
from collections.abc import Sequence

import numpy as np

# bfloat16, as MXNet represents it in NumPy, which has no such type.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

_LONGEST_NAME = 80


class DamagedError(Exception):
    """A file contradicts its format; the message says where, without its content."""


def shown(name: object) -> str:
    """Return a name out of a file as a message may hold it: short and on one line."""
    text = "".join(
        c if c.isprintable() else "?" for c in str(name)[: _LONGEST_NAME + 1]
    )
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 3]}..."


def view_array(
    view: memoryview, start: int, dtype: np.dtype, shape: Sequence[int]
) -> np.ndarray:
    """View the bytes from `start` as an array; nothing is copied or allocated.

    Raises DamagedError where `shape` is none or the bytes do not suffice.
    """
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise DamagedError("an array has sides that are no whole numbers")
    size = math.prod(shape) * dtype.itemsize
    if start + size > len(view):
        raise DamagedError(f"an array has {size} bytes where {len(view) - start} are")
    if size == 0:  # which NumPy's function takes for a mistake
        return np.empty(shape, dtype)
    return np.frombuffer(view, dtype, math.prod(shape), start).reshape(shape)


def dtype_name(array: np.ndarray) -> str:
    """Return "float16", "bfloat16", "int64", ..."""
    return "bfloat16" if array.dtype == BFLOAT16 else array.dtype.name


def float32(array: np.ndarray) -> np.ndarray:
    """Return the values as float32; what exceeds its range becomes infinite."""
    if array.dtype == BFLOAT16:
        return (array["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
