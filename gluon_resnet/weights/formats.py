# SPDX-License-Identifier: Apache-2.0
"""Reading tensors from files, by content and without running anything in them.

Every reader maps the file and returns views of it: nothing is copied before the caller
has seen the shapes, and a size that a file merely claims is never allocated.
"""

import json
import mmap
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.weights import onnx_format, torch_format
from gluon_resnet.weights.arrays import BFLOAT16, view_array

_PARAMS_MAGIC = struct.pack("<QQ", 0x112, 0)
_ARRAY_V1, _ARRAY_V2, _ARRAY_V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_PARAMS_DTYPES = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
    12: BFLOAT16,
}
_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_LARGEST_MEMBER = 2**30  # twice the largest published file, uncompressed


def read_tensors(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the file's format and its tensors by key, read-only, in their own dtypes.

    Formats: "params" (Gluon and exported symbols, also inside a .zip), "safetensors",
    "pth" (torch's zip and legacy files) and "onnx" (initializers). bfloat16 has the
    dtype `BFLOAT16`.
    Raises InputError where the file is missing, of another format or damaged.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # nothing to map
        raise InputError(f"{path} is empty; fetch or convert it again") from None
    except OSError as error:
        raise InputError(
            f"cannot read weights {path}: {error.strerror}; give the path of a file"
        ) from None
    view = memoryview(mapped)
    try:
        if head.startswith(_PARAMS_MAGIC):
            return "params", dict(_read_params(view))
        if head[8:9] == b"{":  # eight bytes of header length, then JSON
            return "safetensors", dict(_read_safetensors(view))
        if head.startswith(torch_format.LEGACY_MAGIC):
            return "pth", torch_format.read_legacy(mapped)
        if head.startswith(b"PK\3\4"):
            return _read_zip(path, view)
        if head.startswith(onnx_format.MAGIC):
            return "onnx", dict(onnx_format.read_initializers(view))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file fails anywhere in the parsers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is damaged: {reason}; fetch or convert it again"
        ) from error
    raise InputError(
        f"{path} begins with {head!r} and is no weights file; .params, .safetensors, "
        ".pth and .onnx are read"
    )


def _read_params(view: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """MXNet's list of arrays (src/ndarray/ndarray.cc): the arrays, then their keys."""
    position = len(_PARAMS_MAGIC)

    def take(layout: str) -> tuple:
        nonlocal position
        values = struct.unpack_from(f"<{layout}", view, position)
        position += struct.calcsize(f"<{layout}")
        return values

    def take_array() -> np.ndarray:
        nonlocal position
        (magic,) = take("I")
        if magic in (_ARRAY_V2, _ARRAY_V3):
            if take("i") != (0,):
                raise InputError("it holds sparse arrays; save them dense")
        elif magic != _ARRAY_V1:  # MXNet before 0.12 has the dimensions in its place
            shape = take(f"{_checked_rank(magic)}I")
        if magic in (_ARRAY_V1, _ARRAY_V2, _ARRAY_V3):
            shape = take(f"{_checked_rank(*take('i'))}q")
        _, _, flag = take("iii")  # device type, device, dtype
        array = view_array(view, position, _PARAMS_DTYPES[flag], shape)
        position += array.nbytes
        return array

    arrays = [take_array() for _ in range(*take("Q"))]
    (key_count,) = take("Q")
    if key_count != len(arrays):
        raise InputError("it holds arrays without names; save them with names")
    for array in arrays:
        (length,) = take("Q")
        key = bytes(view[position : position + length]).decode()
        position += length
        yield key, array
    if position != len(view):
        raise ValueError(f"its arrays and keys end at byte {position} of {len(view)}")


def _checked_rank(rank: int) -> int:
    if not 0 < rank <= 32:
        raise ValueError(f"an array of {rank} dimensions")
    return rank


def _read_safetensors(view: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """A JSON header of dtypes, shapes and offsets, then the tensors back to back.

    Not the format's own library: for NumPy it knows no bfloat16, and it copies.
    """
    (length,) = struct.unpack_from("<Q", view)
    header = json.loads(bytes(view[8 : 8 + length]))
    header.pop("__metadata__", None)
    start = end = 8 + length
    for key, entry in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"]):
        dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        array = view_array(view, end, dtype, entry["shape"])
        if entry["data_offsets"] != [end - start, end - start + array.nbytes]:
            raise ValueError(f"{key} lies where its neighbours or its shape forbid it")
        end += array.nbytes
        yield key, array
    if end != len(view):
        raise ValueError(f"its header describes {end} bytes of {len(view)}")


def _read_zip(path: Path, view: memoryview) -> tuple[str, dict[str, np.ndarray]]:
    """Read what torch writes, or the single .params that GluonCV's hosts wrap."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        wrapped = [name for name in names if name.endswith(".params")]
        if len(pickles) == 1:
            return "pth", torch_format.read_zip(archive, pickles[0], view)
        if len(wrapped) != 1:
            raise InputError(
                f"it holds {', '.join(names[:5])}; a zip with one .params file or one "
                "written by torch.save is read"
            )
        size = archive.getinfo(wrapped[0]).file_size
        if size > _LARGEST_MEMBER:
            raise InputError(
                f"{wrapped[0]} would take {size} bytes; at most {_LARGEST_MEMBER} are "
                "unpacked; unpack it yourself if you trust it"
            )
        with archive.open(wrapped[0]) as member:
            params = memoryview(member.read(size))  # no more, whatever unpacks
    if bytes(params[: len(_PARAMS_MAGIC)]) != _PARAMS_MAGIC:
        raise ValueError(f"{wrapped[0]} is no .params file")
    return "params", dict(_read_params(params))
