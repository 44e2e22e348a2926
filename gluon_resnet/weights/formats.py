# SPDX-License-Identifier: Apache-2.0
"""Reading tensors from files, by content and without running anything in them."""

import struct
from collections.abc import Callable
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnet.errors import InputError

_PARAMS_MAGIC = struct.pack("<Q", 0x112)  # kMXAPINDArrayListMagic, src/c_api


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the file's tensors as float32 arrays by key.

    Formats: .params (Gluon and exported symbols) and .safetensors.
    Raises InputError where the file is missing, of another format or damaged.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(
            f"cannot read weights {path}: {error.strerror}; give the path of a file"
        ) from None
    read = _reader(head)
    if read is None:
        raise InputError(
            f"{path} is no weights file; .params and .safetensors are read"
        )
    try:
        return read(path)
    except InputError:
        raise
    except Exception as error:  # each format's library has errors of its own
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path} is damaged: {reason}; fetch or convert it again"
        ) from error


def _reader(head: bytes) -> Callable[[Path], dict[str, np.ndarray]]:
    if head.startswith(_PARAMS_MAGIC):
        return _read_params
    if head[8:9] == b"{":  # eight bytes of header length, then JSON
        return _read_safetensors
    return None


def _read_params(path: Path) -> dict[str, np.ndarray]:
    arrays = mx.nd.load(str(path))
    if not isinstance(arrays, dict):
        raise InputError(f"{path} holds arrays without names; save them with names")
    return {key: value.astype("float32").asnumpy() for key, value in arrays.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {key: value.astype(np.float32) for key, value in load_file(path).items()}
