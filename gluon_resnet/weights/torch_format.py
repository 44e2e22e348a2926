# SPDX-License-Identifier: Apache-2.0
"""The tensors of torch's files, without torch and without unpickling.

A .pth file is a pickle that describes tensors, and their bytes: as members of a zip
archive or, in the older form that many publish, one after the other (both in
torch/serialization.py). A pickle is a program. It is never run: `_describe` follows the
few instructions that torch writes for tensors in dictionaries, to which the functions
they name are text. A file that names any other function is refused.
"""

import functools
import logging
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import IO, Any, NamedTuple, Optional, Union, cast

import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.weights.arrays import BFLOAT16, DamagedError, shown

log = logging.getLogger(__name__)

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number

_DTYPES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": BFLOAT16,
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
# Dictionaries, with or without a beginning; Lightning saves options in one of its own.
_DICTS = {
    "collections OrderedDict",
    "collections defaultdict",
    "lightning.fabric.utilities.data AttributeDict",
    "lightning_fabric.utilities.data AttributeDict",
    "pytorch_lightning.utilities.parsing AttributeDict",
}
_TENSOR, _PARAMETER = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
# What training scripts save beside the weights. It is skipped.
_BESIDE = {
    "_codecs encode",
    "argparse Namespace",
    "numpy dtype",
    "numpy ndarray",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray _reconstruct",
    "numpy._core.multiarray scalar",
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "torch Size",
    "torch device",
}
# What a defaultdict of a pickle makes its missing values with.
_TYPES = {
    f"{module} {name}"
    for module in ("builtins", "__builtin__")
    for name in ("dict", "list", "int", "float")
}
_KNOWN = {*_DICTS, _TENSOR, _PARAMETER, *_DTYPES, *_BESIDE, *_TYPES}
# Where scripts put the weights: averaged ones first, as timm's loader prefers them.
_WEIGHTS = (
    *("state_dict_ema", "model_ema", "ema"),
    *("state_dict", "model", "model_state_dict", "net", "module"),
)
_SHOWN = 10  # keys in an error


class _Function(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, as `start`


_PUSHES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
_MAKES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def read_zip(
    archive: zipfile.ZipFile, pickle: str, view: memoryview
) -> dict[str, np.ndarray]:
    """Return the weights in the archive; `pickle` is the member that describes them.

    `view` holds the archive's bytes. Raises InputError for a pickle that names a
    function that torch does not, and any error where the file is damaged.
    """
    folder = pickle[: -len("data.pkl")]

    @functools.cache  # many tensors may share a storage, whose checksum takes time
    def member(name: str) -> memoryview:
        return _stored(archive.getinfo(f"{folder}{name}"), view)

    if f"{folder}byteorder" in archive.namelist():
        _check_byte_order(bytes(member("byteorder")) == b"little")
    content, _ = _describe(BytesIO(member("data.pkl")))
    return _weights(content, lambda storage: member(f"data/{storage.key}"))


def read_legacy(file: mmap.mmap) -> dict[str, np.ndarray]:
    """Return the weights of a file in torch's older form. Raises as `read_zip` does."""
    _describe(file)  # the magic number
    _describe(file)  # the protocol's version
    system, _ = _describe(file)
    _check_byte_order(system["little_endian"])
    content, storages = _describe(file)
    keys, _ = _describe(file)
    view, position = memoryview(file), file.tell()
    stored: dict[str, memoryview] = {}
    for key in map(_checked, keys):
        (count,) = struct.unpack_from("<q", view, position)
        end = position + 8 + count * storages[key].dtype.itemsize
        stored[key] = view[position + 8 : end]
        position = end
    return _weights(content, lambda storage: stored[storage.key])


def _stored(member: zipfile.ZipInfo, view: memoryview) -> memoryview:
    """View the bytes of a member of an archive; torch compresses none."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{shown(member.filename)} is compressed; save it with torch")
    start = member.header_offset
    start += 30 + sum(struct.unpack_from("<HH", view, start + 26))  # name, extra field
    stored = view[start : start + member.file_size]
    if zlib.crc32(stored) != member.CRC:
        raise DamagedError(f"the checksum of {shown(member.filename)} is wrong")
    return stored


def _check_byte_order(is_little: bool) -> None:
    if not is_little:
        raise InputError("it was written on a big-endian machine; save it on another")


def _weights(
    content: Any, stored: Callable[[_Storage], memoryview]
) -> dict[str, np.ndarray]:
    """Return the arrays of the dictionary that holds the weights."""
    if not isinstance(content, dict):
        kinds = {list: "a list", tuple: "a tuple", _Tensor: "one tensor"}
        raise InputError(
            f"it holds {kinds.get(type(content), 'something else')} and no dictionary "
            "of tensors; save the network's state_dict()"
        )
    weights = _dictionary_of_tensors(content)
    if weights is None:
        keys = ", ".join(map(shown, list(content)[:_SHOWN])) or "nothing"
        raise InputError(
            f"it holds {keys} and no tensors by name; save the network's state_dict()"
        )
    return {
        key: _array(tensor, np.frombuffer(stored(tensor.storage), tensor.storage.dtype))
        for key, tensor in weights.items()
        if isinstance(key, str) and isinstance(tensor, _Tensor)
    }


def _dictionary_of_tensors(content: dict) -> Optional[dict]:
    """Return the dictionary of tensors by name in `content` or in what it nests."""
    for key in _WEIGHTS:
        if isinstance(content.get(key), dict):
            if weights := _dictionary_of_tensors(content[key]):
                log.info("the weights are those under %r", key)
                return weights
    has_tensors = any(
        isinstance(key, str) and isinstance(tensor, _Tensor)
        for key, tensor in content.items()
    )
    return content if has_tensors else None


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    numbers = (tensor.start, *tensor.shape, *tensor.strides)
    last = tensor.start + sum(
        (side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides)
    )
    if min(numbers) < 0 or last >= storage.size:
        raise DamagedError(f"a tensor reaches beyond its {storage.size} stored values")
    strides = [storage.itemsize * stride for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        storage[tensor.start :], tensor.shape, strides
    )


def _describe(file: Union[IO[bytes], mmap.mmap]) -> tuple[Any, dict[str, _Storage]]:
    """Return what the pickle at the file's position describes, and its storages.

    Dictionaries, lists, tuples, texts and numbers are themselves; what the functions
    named in `_BESIDE` would have made is None.
    """
    stack: list[Any] = []
    outer_stacks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    storages: dict[str, _Storage] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
        instruction = opcode.name
        if instruction in ("TUPLE", "APPENDS", "SETITEMS"):  # of all since the mark
            items, stack = stack, outer_stacks.pop()
        if instruction in _PUSHES:
            stack.append(argument)
        elif instruction in _MAKES:
            stack.append(_MAKES[instruction]())
        elif instruction == "MARK":
            outer_stacks.append(stack)
            stack = []
        elif instruction == "TUPLE":
            stack.append(tuple(items))
        elif instruction in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(instruction[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif instruction == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif instruction == "APPENDS":
            stack[-1].extend(items)
        elif instruction == "SETITEM":
            key, value = stack.pop(-2), stack.pop()
            stack[-1][_checked(key)] = value
        elif instruction == "SETITEMS":
            stack[-1].update(zip(map(_checked, items[::2]), items[1::2]))
        elif instruction in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif instruction == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif instruction in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif instruction == "GLOBAL":
            stack.append(_Function(_known(argument)))
        elif instruction == "STACK_GLOBAL":
            function, module = stack.pop(), stack.pop()
            stack.append(_Function(_known(f"{module} {function}")))
        elif instruction in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack[-1] = _result(stack[-1], arguments)
        elif instruction == "BINPERSID":
            _, function, key, *_ = stack.pop()
            storage = _Storage(_checked(key), _DTYPES[function.name])
            storages[key] = storage
            stack.append(storage)
        elif instruction == "BUILD":  # attributes, such as a state_dict's versions
            stack.pop()
        elif instruction not in ("PROTO", "FRAME", "STOP"):
            called = f" {shown(argument)}" if instruction == "INST" else ""
            raise InputError(
                f"its pickle has the instruction {instruction}{called}, which torch "
                "does not write for weights; nothing of it was run"
            )
    return stack.pop(), storages


def _known(function: str) -> str:
    if function not in _KNOWN:
        raise InputError(
            f"its pickle calls {shown('.'.join(function.split()))}, which torch does "
            "not call for weights; nothing of it was run; if you trust the file, load "
            "it with torch and save the state_dict() alone"
        )
    return function


def _checked(key: Any) -> Any:
    """Return the key of a dictionary unless it is a tuple.

    Hashing tuples that are nested deep enough would crash the interpreter.
    """
    if isinstance(key, tuple):
        raise DamagedError("a dictionary has a key that is a tuple")
    return key


def _result(function: _Function, arguments: tuple) -> Any:
    if function.name in _DICTS:  # with pairs where Python 2 wrote it
        return {
            _checked(key): value
            for pairs in arguments
            if not isinstance(pairs, _Function)  # of a defaultdict
            for key, value in pairs
        }
    if function.name == _TENSOR:
        return _Tensor(*arguments[:4])
    if function.name == _PARAMETER:
        return arguments[0]
    return None
