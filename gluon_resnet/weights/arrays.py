# SPDX-License-Identifier: Apache-2.0
"""Arrays as files hold them."""

import math
from collections.abc import Sequence

import numpy as np

# bfloat16, as MXNet represents it in NumPy, which has no such type.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])


def view_array(
    view: memoryview, start: int, dtype: np.dtype, shape: Sequence[int]
) -> np.ndarray:
    """View the bytes from `start` as an array; nothing is copied or allocated.

    Raises ValueError where `shape` is none or the bytes do not suffice.
    """
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
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
