# SPDX-License-Identifier: Apache-2.0
"""Files as torch writes them, without torch: a pickle that describes, and the bytes."""

import pickle
import struct
import zipfile
from itertools import chain
from pathlib import Path
from typing import Union

import numpy as np

_STORAGES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "int64": "Long",
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def write_torch(path: Path, content: dict, *, is_zip: bool) -> None:
    """Write nested dictionaries of arrays, texts and integers, as torch.save does."""
    arrays = {}
    program = b"\x80\x02" + _pickled(content, arrays, is_zip) + b"."
    if is_zip:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/byteorder", "little")
            for key, array in arrays.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
            archive.writestr("archive/version", "3\n")
        return
    system = {"protocol_version": _PROTOCOL, "little_endian": True, "type_sizes": {}}
    with path.open("wb") as file:
        for value in (_MAGIC, _PROTOCOL, system):
            pickle.dump(value, file, protocol=2)
        file.write(program)
        pickle.dump(list(arrays), file, protocol=2)
        for array in arrays.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


Content = Union[dict, tuple, str, int, None, np.ndarray]


def _pickled(value: Content, arrays: dict[str, np.ndarray], is_zip: bool) -> bytes:
    """Return the instructions that make `value`; an array joins `arrays`."""

    def pickled(*values: Content) -> bytes:
        return b"".join(_pickled(each, arrays, is_zip) for each in values)

    if isinstance(value, dict):
        items = pickled(*chain.from_iterable(value.items()))
        return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    if isinstance(value, tuple):
        return b"(" + pickled(*value) + b"t"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if value is None:
        return b"N"
    key = str(len(arrays))
    arrays[key] = value
    storage = f"ctorch\n{_STORAGES[value.dtype.name]}Storage\n".encode()
    strides = tuple(stride // value.itemsize for stride in value.strides)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + pickled("storage")
        + storage
        + pickled(key, "cpu", value.size, *([] if is_zip else [None]))
        + b"tQ"
        + pickled(0, value.shape, strides)
        + b"\x89"
        + pickled({})
        + b"tR"
    )
