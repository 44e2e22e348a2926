# SPDX-License-Identifier: Apache-2.0
"""Reading tensors from files, by content and without running anything in them.

Every reader maps the file and returns views of it: nothing is copied before the caller
has seen the shapes, and a size that a file merely claims is never allocated.
"""

import json
import mmap
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.weights import onnx_format, torch_format
from gluon_resnet.weights.arrays import BFLOAT16, DamagedError, shown, view_array

LARGEST_UNPACKED = 2**30
"""Bytes of one .params file in a .zip: twice the largest that is published."""

_PARAMS_MAGIC = struct.pack("<QQ", 0x112, 0)
_ARRAY_V1, _ARRAY_V2, _ARRAY_V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_PARAMS_DTYPES: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
    7: np.dtype("?"),
    12: BFLOAT16,
}
_SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_METADATA = "__metadata__"  # texts by name in the header of a .safetensors file
_LARGEST_INDEX = 2**24  # bytes
# What people have in the place of a weights file, by its first bytes.
_SOMETHING_ELSE = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` brings the file",
    b"<": "a web page or another XML file; download the file itself",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x89HDF": "an HDF5 file of Keras; save the weights as .safetensors",
    b"\x80": "a pickle that torch did not write; save the state_dict() with torch",
}


class Content(NamedTuple):
    """What a weights file holds."""

    format: str
    """"params", "safetensors", "pth" or "onnx"."""
    tensors: dict[str, np.ndarray]
    """By key, read-only, in their own dtypes; bfloat16 has the dtype `BFLOAT16`."""
    metadata: Mapping[str, str] = {}
    """The texts that .safetensors and .onnx have room for."""
    operators: tuple[onnx_format.Operator, ...] = ()
    """The graph of an .onnx file."""


def read_tensors(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the format and the tensors of a weights file, as `Content` has them.

    Raises InputError as `read_content` does.
    """
    content = read_content(path)
    return content.format, content.tensors


def read_content(path: Path) -> Content:
    """Read a weights file, whose format its content tells.

    Formats: .params (Gluon and exported symbols, also inside a .zip), .safetensors,
    also in parts with an index (NAME.safetensors.index.json), torch's .pth (zip and
    legacy) and .onnx (initializers and graph; weights beside it in a file of their own,
    too).
    Raises InputError where the file is missing, of another format or damaged.
    """
    with _mapped(path) as mapped, _one_line_errors(path):
        head = bytes(mapped[:64])
        view = memoryview(mapped)
        if head.startswith(_PARAMS_MAGIC):
            return Content("params", dict(_read_params(view)))
        if head[8:9] == b"{":  # eight bytes of header length, then JSON
            return Content("safetensors", *_read_safetensors(view))
        if head.startswith(torch_format.LEGACY_MAGIC):
            return Content("pth", torch_format.read_legacy(mapped))
        if head.startswith(b"PK\3\4"):
            return _read_zip(path, view)
        if head.startswith(onnx_format.MAGIC):
            model = onnx_format.read_model(view, path.parent)
            return Content("onnx", model.tensors, model.metadata, model.operators)
        if head.startswith(b"{"):
            return _read_index(path, mapped)
        other = next((o for h, o in _SOMETHING_ELSE.items() if head.startswith(h)), "")
        raise InputError(
            f"it is {other}"
            if other
            else "it is no weights file; .params, .safetensors, .pth and .onnx are read"
        )


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts inside a file of a format that has room for them, else none.

    Raises InputError where the file is missing or they are damaged.
    """
    with _mapped(path) as mapped, _one_line_errors(path):
        view = memoryview(mapped)
        if bytes(view[8:9]) == b"{" and bytes(view[:16]) != _PARAMS_MAGIC:
            return _metadata(_safetensors_header(view))
        if bytes(view[:1]) == onnx_format.MAGIC:
            return onnx_format.read_metadata(view)
        return {}


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file; the mapping lives as long as views of it."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # nothing to map
        raise InputError(f"{path} is empty; fetch or convert it again") from None
    except OSError as error:
        raise InputError(
            f"cannot read weights {path}: {error.strerror}; give the path of a file"
        ) from None
    yield mapped


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except DamagedError as error:
        raise InputError(
            f"{path} is damaged: {error}; fetch or convert it again"
        ) from None
    except Exception:  # a damaged file fails anywhere in the parsers
        # Not the error's own words: they may hold what the file does.
        raise InputError(
            f"{path} is damaged: it breaks off or contradicts its format; fetch or "
            "convert it again"
        ) from None


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
        raise DamagedError(f"its arrays and keys end at byte {position} of {len(view)}")


def _checked_rank(rank: int) -> int:
    if not 0 < rank <= 32:
        raise DamagedError(f"an array has {rank} dimensions")
    return rank


def _read_safetensors(
    view: memoryview,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors, which lie back to back behind the header, and the metadata.

    Not the format's own library: for NumPy it knows no bfloat16, and it copies.
    """
    header, start = _safetensors_header(view)
    metadata = _metadata((header, start))
    header.pop(_METADATA, None)
    tensors, end = {}, start
    for key, entry in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"]):
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(
                f"{shown(key)} has the dtype {shown(entry['dtype'])}, which is not "
                "read; save it as F32, F16 or BF16"
            )
        array = view_array(view, end, dtype, entry["shape"])
        if entry["data_offsets"] != [end - start, end - start + array.nbytes]:
            raise DamagedError(
                f"{shown(key)} lies where its neighbours or its shape forbid it"
            )
        end += array.nbytes
        tensors[key] = array
    if end != len(view):
        raise DamagedError(f"its header describes {end} bytes of {len(view)}")
    return tensors, metadata


def _safetensors_header(view: memoryview) -> tuple[dict, int]:
    """Return the JSON of dtypes, shapes and offsets, and where the data begin."""
    (length,) = struct.unpack_from("<Q", view)
    return json.loads(bytes(view[8 : 8 + length])), 8 + length


def _metadata(header: tuple[dict, int]) -> dict[str, str]:
    texts = header[0].get(_METADATA) or {}
    return {str(key): str(text) for key, text in texts.items()}


def _read_index(path: Path, mapped: mmap.mmap) -> Content:
    """Read a file in parts, as large models are published: which key is in which file.

    The parts lie beside the index; no other folder is looked into.
    """
    if len(mapped) > _LARGEST_INDEX:
        raise InputError("it is no weights file: JSON, but too large for an index")
    try:
        parts = dict(json.loads(bytes(mapped))["weight_map"])
        if not parts or not all(isinstance(name, str) for name in parts.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "it is JSON, but no index of weights in parts; give a weights file"
        ) from None
    contents = {}
    for name in sorted(set(parts.values())):
        if re.search(r"[/\\]", name) or name in ("", ".", "..", path.name):
            raise InputError(
                f"it names the part {shown(name)}, which is not in its own folder; "
                "only files beside it are read"
            )
        if not path.with_name(name).is_file():
            raise InputError(
                f"its part {shown(name)} is not beside it; fetch that, too"
            )
        contents[name] = read_content(path.with_name(name))
    lost = sorted(key for key in parts if key not in contents[parts[key]].tensors)
    if lost:
        raise DamagedError(f"{shown(parts[lost[0]])} does not hold {shown(lost[0])}")
    first, *_ = contents.values()
    tensors = {key: contents[part].tensors[key] for key, part in parts.items()}
    return Content(first.format, tensors, first.metadata)


def _read_zip(path: Path, view: memoryview) -> Content:
    """Read what torch writes, or the single .params that GluonCV's hosts wrap."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        wrapped = [name for name in names if name.endswith(".params")]
        if len(pickles) == 1:
            return Content("pth", torch_format.read_zip(archive, pickles[0], view))
        if len(wrapped) != 1:
            raise InputError(
                f"it holds {', '.join(map(shown, names[:5]))}; a zip with one .params "
                "file or one written by torch.save is read"
            )
        size = archive.getinfo(wrapped[0]).file_size
        if size > LARGEST_UNPACKED:
            raise InputError(
                f"{shown(wrapped[0])} would take {size} bytes; at most "
                f"{LARGEST_UNPACKED} are unpacked; unpack it yourself if you trust it"
            )
        with archive.open(wrapped[0]) as member:
            params = memoryview(member.read(size))  # no more, whatever unpacks
    if bytes(params[: len(_PARAMS_MAGIC)]) != _PARAMS_MAGIC:
        raise DamagedError(f"{shown(wrapped[0])} is no .params file")
    return Content("params", dict(_read_params(params)))
