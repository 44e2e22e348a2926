# SPDX-License-Identifier: Apache-2.0
"""The initializers of an ONNX file, without the onnx package.

An ONNX file is a protocol buffer (ModelProto of onnx.proto); of all its fields only the
graph's initializers matter here. https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator
from typing import Union

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.weights.arrays import BFLOAT16, view_array

MAGIC = b"\x08"  # field 1 of ModelProto, ir_version, as every exporter writes it first

_GRAPH, _INITIALIZER = 7, 5  # of ModelProto, of GraphProto
_DIMS, _DATA_TYPE, _NAME, _DATA_LOCATION = 1, 2, 8, 14  # of TensorProto
_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA = 9, 4, 10
_EXTERNAL = 1
_DTYPES = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    16: BFLOAT16,
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_initializers(view: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each initializer by name, save those of whole numbers (shapes, axes).

    Raises InputError for tensors in other files, which are never opened, and an error
    of any type where the file is damaged.
    """
    for field, graph in _fields(view):
        if field == _GRAPH:
            for graph_field, tensor in _fields(graph):
                if graph_field == _INITIALIZER:
                    yield from _initializer(tensor)


def _initializer(view: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    shape, fields = [], {}
    for field, value in _fields(view):
        if field == _DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        else:
            fields[field] = value
    name = bytes(fields[_NAME]).decode()
    if fields.get(_DATA_LOCATION) == _EXTERNAL:
        raise InputError(
            f"it keeps {name} in another file, which is not opened; save the model "
            "with its weights inside"
        )
    dtype = _DTYPES.get(fields[_DATA_TYPE])
    if dtype is None:
        return
    stored = [fields[f] for f in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA) if f in fields]
    if len(stored) != 1:
        raise InputError(f"it holds {name} in a form that is not read; save raw data")
    array = view_array(stored[0], 0, dtype, shape)
    if array.nbytes != len(stored[0]):
        raise ValueError(f"{name} has {len(stored[0])} bytes for shape {tuple(shape)}")
    yield name, array


def _fields(view: memoryview) -> Iterator[tuple[int, Union[int, memoryview]]]:
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
            raise ValueError(f"a field of {length} bytes with {len(view)} in all")
        yield field, view[position : position + length]
        position += length


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
            raise ValueError("a number of more than ten bytes")
