# SPDX-License-Identifier: Apache-2.0
"""The weights and the graph of an ONNX file, without the onnx package.

An ONNX file is a protocol buffer (ModelProto of onnx.proto).
https://protobuf.dev/programming-guides/encoding
"""

import mmap
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.weights.arrays import BFLOAT16, DamagedError, shown, view_array

INPUT = "Input"
"""The type of operators that stand for what the graph is given: the images."""
MAGIC = b"\x08"  # field 1 of ModelProto, ir_version, as every exporter writes it first

_GRAPH, _METADATA = 7, 14  # of ModelProto
_NODE, _INITIALIZER, _GRAPH_INPUT = 1, 5, 11  # of GraphProto
_VALUE_NAME = 1  # of ValueInfoProto
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of NodeProto
_ATTRIBUTE_NAME, _FLOAT, _INT, _TEXT, _TENSOR, _INTS = 1, 2, 3, 4, 5, 8
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA = 9, 4, 10  # of TensorProto, as the line above
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_EXTERNAL = 1
Field = Union[int, memoryview]

_DTYPES: dict[Field, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    16: BFLOAT16,
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Attribute = Any
"""A number, a text or a tuple of whole numbers."""


class Operator(NamedTuple):
    """A node of the graph."""

    type: str
    """Its name in ONNX, such as "Conv"; in other domains DOMAIN.NAME."""
    attributes: dict[str, Attribute]
    inputs: tuple[str, ...]
    """Names of values; "" where an optional one is not given."""
    outputs: tuple[str, ...]


class Model(NamedTuple):
    """What an ONNX file holds of use here."""

    tensors: dict[str, np.ndarray]
    """Initializers and constants, save those of whole numbers (shapes, axes)."""
    operators: tuple[Operator, ...]
    """The graph, each node after those that it takes values from."""
    metadata: dict[str, str]


def read_model(view: memoryview, folder: Path) -> Model:
    """Read a file; `folder` is its own, where tensors may lie in files beside it.

    Raises InputError for tensors in other folders, which are never opened, and an error
    of any type where the file is damaged.
    """
    reader = _TensorReader(folder)
    tensors: dict[str, np.ndarray] = {}
    operators: list[Operator] = []
    inputs: list[str] = []
    initialized: set[str] = set()
    for field, graph in _fields(view):
        if field != _GRAPH:
            continue
        for graph_field, value in _fields(_bytes(graph)):
            if graph_field == _INITIALIZER:
                name, tensor = reader.read(_bytes(value))
                initialized.add(name)
                tensors |= {name: tensor} if tensor is not None else {}
            elif graph_field == _GRAPH_INPUT:
                inputs.append(_text(dict(_fields(_bytes(value)))[_VALUE_NAME]))
            elif graph_field == _NODE:
                operator, constant = _operator(_bytes(value))
                operators.append(operator)
                if constant is not None:
                    _, tensor = reader.read(constant)
                    tensors |= (
                        {operator.outputs[0]: tensor} if tensor is not None else {}
                    )
    # Early files list their initializers as inputs, too.
    images = [
        Operator(INPUT, {}, (), (name,)) for name in inputs if name not in initialized
    ]
    return Model(tensors, (*images, *operators), read_metadata(view))


def read_metadata(view: memoryview) -> dict[str, str]:
    """Return the texts by name that the file has beside its graph."""
    entries = (_bytes(entry) for field, entry in _fields(view) if field == _METADATA)
    return dict(map(_entry, entries))


def _entry(view: memoryview) -> tuple[str, str]:
    fields = dict(_fields(view))
    key, value = (_text(fields.get(field, memoryview(b""))) for field in (_KEY, _VALUE))
    return key, value


def _operator(view: memoryview) -> tuple[Operator, Optional[memoryview]]:
    """Return a node, and the tensor of a node that is a constant."""
    fields = defaultdict(list)
    for field, content in _fields(view):
        fields[field].append(_bytes(content))
    attributes: dict[str, Attribute] = {}
    constant = None
    for attribute in fields[_ATTRIBUTE]:
        name, value = _attribute(attribute)
        if isinstance(value, memoryview):
            constant = value
        else:
            attributes[name] = value
    op_type = _text(fields[_OP_TYPE][0])
    domain = _text(fields[_DOMAIN][0]) if fields[_DOMAIN] else ""
    operator = Operator(
        op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}",
        attributes,
        tuple(map(_text, fields[_INPUT])),
        tuple(map(_text, fields[_OUTPUT])),
    )
    return operator, constant if op_type == "Constant" else None


def _attribute(view: memoryview) -> tuple[str, Attribute]:
    """Return name and value; a tensor's value is its bytes, that of a graph is ""."""
    name = ""
    value: Attribute = ""
    numbers: list[int] = []
    for field, stored in _fields(view):
        if field == _ATTRIBUTE_NAME:
            name = _text(stored)
        elif field == _FLOAT:
            (value,) = struct.unpack("<f", _bytes(stored))
        elif field == _INT:
            value = _signed(stored)
        elif field == _TEXT:
            value = _text(stored)
        elif field == _TENSOR:
            value = stored
        elif field == _INTS:
            more = [stored] if isinstance(stored, int) else _varints(stored)
            numbers += map(_signed, more)
    return name, tuple(numbers) if numbers else value


class _TensorReader:
    """Reads tensors, inside the file and in files beside it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._mapped: dict[str, memoryview] = {}

    def read(self, view: memoryview) -> tuple[str, Optional[np.ndarray]]:
        """Return name and values; None where they are whole numbers, or empty."""
        shape: list[int] = []
        external: dict[str, str] = {}
        fields: dict[int, Field] = {}
        for field, value in _fields(view):
            if field == _DIMS:
                shape += [value] if isinstance(value, int) else _varints(value)
            elif field == _EXTERNAL_DATA:
                external |= [_entry(_bytes(value))]
            else:
                fields[field] = value
        name = _text(fields.get(_NAME, memoryview(b"")))
        dtype = _DTYPES.get(fields.get(_DATA_TYPE, 0))
        if dtype is None:
            return name, None
        if fields.get(_DATA_LOCATION) == _EXTERNAL:
            return name, self._beside(name, external, dtype, shape)
        data = [
            _bytes(fields[f])
            for f in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA)
            if f in fields
        ]
        if 0 in shape and not data:
            return name, None
        if len(data) != 1:
            raise InputError(
                f"it holds {shown(name)} in a form that is not read; save raw data"
            )
        array = view_array(data[0], 0, dtype, shape)
        if array.nbytes != len(data[0]):
            raise DamagedError(
                f"{shown(name)} has {len(data[0])} bytes for shape {tuple(shape)}"
            )
        return name, array

    def _beside(
        self, name: str, place: dict[str, str], dtype: np.dtype, shape: list[int]
    ) -> np.ndarray:
        location = place.get("location", "")
        if re.search(r"[/\\]", location) or location in ("", ".", ".."):
            raise InputError(
                f"it keeps {shown(name)} in {shown(location)}, which is not in its own "
                "folder and is not opened; save the model with its weights inside"
            )
        if location not in self._mapped:
            self._mapped[location] = _mapped(self._folder / location)
        start = int(place.get("offset") or 0)
        if start < 0:
            raise DamagedError(f"{shown(name)} begins before its file")
        return view_array(self._mapped[location], start, dtype, shape)


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is empty"
        raise InputError(
            f"its weights are in {shown(path.name)} beside it, which cannot be read: "
            f"{reason}; keep both files in one folder"
        ) from None


def _fields(view: memoryview) -> Iterator[tuple[int, Field]]:
    """Yield number and value of each field: an int for a varint, else its bytes."""
    position = 0
    while position < len(view):
        tag, position = _varint(view, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(view, position)
            yield field, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(view, position)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}[wire_type]
        if position + length > len(view):
            raise DamagedError(f"a field of {length} bytes with {len(view)} in all")
        yield field, view[position : position + length]
        position += length


def _signed(number: Field) -> int:
    """Return a number of 64 bits, whose last bit is the sign."""
    if not isinstance(number, int):
        raise DamagedError("bytes stand where a number belongs")
    return number - (1 << 64) if number >> 63 else number


def _bytes(field: Field) -> memoryview:
    if isinstance(field, int):
        raise DamagedError("a number stands where bytes belong")
    return field


def _text(field: Field) -> str:
    return bytes(_bytes(field)).decode()


def _varints(view: memoryview) -> Iterator[int]:
    position = 0
    while position < len(view):
        value, position = _varint(view, position)
        yield value


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Return the number of seven bits a byte at `position`, and where it ends."""
    value = shift = 0
    while True:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise DamagedError("a number of more than ten bytes")
