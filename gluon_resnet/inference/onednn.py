# SPDX-License-Identifier: Apache-2.0
"""oneDNN 3 through its C interface: tensors in memory and kernels that work on them.

MXNet has oneDNN 2.4 inside, whose kernels it runs one operator at a time. The library
of the wheel `onednn-cpu-gomp` is newer and shares MXNet's OpenMP threads. Names follow
its documentation, https://oneapi-src.github.io/oneDNN; lengths are in elements.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from enum import IntEnum
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple, NoReturn, Optional, Union

import numpy as np


class DType(IntEnum):
    """A data type, of oneDNN's dnnl_data_type_t."""

    BF16 = 2
    F32 = 3
    S8 = 5
    U8 = 6

    @property
    def nbytes(self) -> int:
        """The bytes of an element."""
        return {DType.BF16: 2, DType.F32: 4}.get(self, 1)


class Layout(IntEnum):
    """The order of a tensor's dimensions in memory, of oneDNN's dnnl_format_tag_t."""

    ANY = 1
    """As the kernel likes it best."""
    A = 2
    AB = 3
    ABCD = 5
    """NCHW; of weights OIHW."""
    ABCDE = 6
    """Of weights in G groups, GOIHW."""
    ACDB = 22
    """NHWC."""


# Arguments of a kernel.
SRC, SRC_1, DST, WEIGHTS, BIAS = 1, 2, 17, 33, 41
SCRATCHPAD = 80
_SCALES, _POST_OP = 4096, 32768
# Algorithms.
ADD, MULTIPLY, SUBTRACT = 0x1FFF0, 0x1FFF1, 0x1FFF5
RELU, LINEAR, SIGMOID = 0x20, 0x26, 0x29
MAX_POOLING, AVERAGE_WITH_PADDING, AVERAGE_WITHOUT_PADDING = 0x1FF, 0x2FF, 0x3FF
_CONVOLUTION_DIRECT, _SOFTMAX = 1, 0x30000

_INFERENCE = 96
_QUERY_KERNEL_NAME, _QUERY_WEIGHTS, _QUERY_SCRATCHPAD = 8, 131, 136
# As dnnl_cpu_isa_t has them; each has the bits of those before it.
AVX2, AVX512, AVX512_BF16, AMX = 0x7, 0x27, 0xE7, 0xFEF
# The newest first.
_INSTRUCTIONS = {
    0x1FEF: "AVX-512 with AMX and its fp16",
    AMX: "AVX-512 with AMX",
    0x1EF: "AVX-512 with fp16",
    AVX512_BF16: "AVX-512 with bf16",
    0x67: "AVX-512 with VNNI",
    AVX512: "AVX-512",
    0xF: "AVX2 with VNNI",
    AVX2: "AVX2",
    0x0: "SSE4.1",
}
_OUT_OF_MEMORY = 1
_STATUS = {
    _OUT_OF_MEMORY: "out of memory",
    2: "invalid arguments",
    3: "not implemented",
    4: "no more implementations",
    5: "runtime error",
    6: "not required",
}


class _Argument(ctypes.Structure):
    _fields_ = [("index", c_int), ("memory", c_void_p)]


class Eltwise(NamedTuple):
    """A post-op: map each element of the result by a function."""

    algorithm: int
    alpha: float = 0.0

    def append_to(self, chain: "_Object") -> None:
        """Let it follow the post-ops in `chain`."""
        numbers = (self.algorithm, c_float(self.alpha), c_float(0))
        _call("post_ops_append_eltwise", chain.handle, *numbers)


class Sum(NamedTuple):
    """A post-op: add what is in the destination, of `dtype`, times `scale`."""

    scale: float
    dtype: DType

    def append_to(self, chain: "_Object") -> None:
        """Let it follow the post-ops in `chain`."""
        _call("post_ops_append_sum", chain.handle, c_float(self.scale), 0, self.dtype)


class Binary(NamedTuple):
    """A post-op: combine the result with another operand, see `operand_of`."""

    algorithm: int
    other: "Descriptor"

    def append_to(self, chain: "_Object") -> None:
        """Let it follow the post-ops in `chain`."""
        operand = (self.algorithm, self.other.handle)
        _call("post_ops_append_binary", chain.handle, *operand)


PostOp = Union[Eltwise, Sum, Binary]
"""What a kernel does with its result before it stores it."""


def library_path() -> Optional[str]:
    """Return where the wheel's library is, None without the wheel."""
    try:
        found = files("onednn-cpu-gomp") or ()
    except PackageNotFoundError:
        return None
    paths = (Path(path.locate()) for path in found if path.name == "libdnnl.so.3")
    return next((str(path.resolve()) for path in paths if path.exists()), None)


@cache
def is_available() -> bool:
    """Return whether the wheel is installed and this system can load it."""
    try:
        return library_path() is not None and bool(library())
    except OSError:
        return False


@cache
def computes_bf16() -> bool:
    """Return whether the processor has instructions to compute bfloat16 with."""
    pixels, weights = (Descriptor((16, 16, 1, 1), DType.BF16) for _ in range(2))
    try:
        convolution(pixels, weights, None, pixels, stride=(1, 1), padding=(0, 0))
    except RuntimeError:
        return False
    return True


def version() -> str:
    """Return the version of the wheel's library, such as 3.2.0."""
    library().dnnl_version.restype = ctypes.POINTER(c_int)
    return ".".join(map(str, library().dnnl_version()[:3]))


def instructions() -> str:
    """Return the newest instructions that oneDNN uses here, in words."""
    return next(words for isa, words in _INSTRUCTIONS.items() if has(isa))


def has(isa: int) -> bool:
    """Return whether oneDNN uses AVX2, AVX512, ... here."""
    return library().dnnl_get_effective_cpu_isa() & isa == isa


@cache
def library() -> ctypes.CDLL:
    """Load the wheel's library; OSError where this system cannot."""
    loaded = ctypes.CDLL(library_path())
    loaded.dnnl_memory_desc_get_size.restype = c_size_t
    loaded.dnnl_primitive_desc_query_md.restype = c_void_p
    loaded.dnnl_primitive_desc_query_md.argtypes = [c_void_p, c_int, c_int]
    loaded.dnnl_memory_set_data_handle.argtypes = [c_void_p, c_void_p]
    return loaded


def _call(name: str, *arguments: object) -> None:
    """Call a function that returns a status; see `_fail` where it is a failure."""
    if status := getattr(library(), f"dnnl_{name}")(*arguments):
        _fail(status, name)


def _fail(status: int, what: str) -> NoReturn:
    """Raise MemoryError where oneDNN has no memory for `what`, else RuntimeError."""
    words = _STATUS.get(status, f"status {status}")
    error = MemoryError if status == _OUT_OF_MEMORY else RuntimeError
    raise error(f"oneDNN: {what}: {words}")


class _LastCall(partial):
    """A call that is made when the last reference to it goes.

    No line of Python is part of that: between two lines the handler of a signal may
    raise, and what is raised while an object goes is lost, Ctrl-C, too.
    """

    __del__ = partial.__call__


class _Object:
    """Something of oneDNN's that is destroyed with the last reference to it."""

    def __init__(self, kind: str, constructor: str, *arguments: object):
        self.handle = c_void_p()
        _call(constructor, byref(self.handle), *arguments)
        self._destroy = _LastCall(
            getattr(library(), f"dnnl_{kind}_destroy"), self.handle
        )


@cache
def _engine() -> c_void_p:
    """The CPU. For good, as oneDNN's cache of kernels is."""
    engine = c_void_p()
    _call("engine_create", byref(engine), 1, c_size_t(0))
    return engine


@cache
def _stream() -> c_void_p:
    stream = c_void_p()
    _call("stream_create", byref(stream), _engine(), 1)
    return stream


class Descriptor(_Object):
    """Dimensions, data type and layout of a tensor."""

    def __init__(self, dims: Sequence[int], dtype: DType, layout: Layout = Layout.ACDB):
        super().__init__(
            "memory_desc",
            "memory_desc_create_with_tag",
            *(len(dims), _lengths(dims), dtype, layout),
        )

    @classmethod
    def strided(
        cls, dims: Sequence[int], dtype: DType, strides: Sequence[int]
    ) -> "Descriptor":
        """Return the descriptor of a tensor with steps of its own."""
        self = cls.__new__(cls)
        _Object.__init__(
            self,
            "memory_desc",
            "memory_desc_create_with_strides",
            *(len(dims), _lengths(dims), dtype, _lengths(strides)),
        )
        return self

    @classmethod
    def _copy(cls, handle: int) -> "Descriptor":
        self = cls.__new__(cls)
        _Object.__init__(self, "memory_desc", "memory_desc_clone", c_void_p(handle))
        return self

    @property
    def nbytes(self) -> int:
        """The bytes that the tensor takes."""
        return library().dnnl_memory_desc_get_size(self.handle)

    def equals(self, other: object) -> bool:
        """Return whether dimensions, data type and layout are the same."""
        return isinstance(other, Descriptor) and bool(
            library().dnnl_memory_desc_equal(self.handle, other.handle)
        )


class Memory(_Object):
    """A tensor: a descriptor, and where its elements are."""

    def __init__(self, descriptor: Descriptor, array: Optional[np.ndarray] = None):
        """array: the elements, which stay alive; None: see `point_to`.

        Raises ValueError for an array with fewer bytes than the tensor takes.
        """
        if array is not None and array.nbytes < descriptor.nbytes:
            raise ValueError(
                f"{array.nbytes} bytes for a tensor of {descriptor.nbytes} bytes"
            )
        address = array.ctypes.data if array is not None else 0
        super().__init__(
            *("memory", "memory_create"),
            *(descriptor.handle, _engine(), c_void_p(address)),
        )
        self.descriptor = descriptor
        self.address = address
        self._array = array

    def point_to(self, address: int) -> None:
        """Say where the elements are; whoever says so keeps them alive."""
        _call("memory_set_data_handle", self.handle, address)
        self.address = address


class Kernel:
    """What oneDNN can run for a description such as those below; `bind` makes it."""

    def __init__(self, kind: str, *arguments: object, attributes: "_Attributes"):
        self.kind = kind
        self._description = _Object(
            "primitive_desc",
            f"{kind}_primitive_desc_create",
            *(*arguments, attributes.handle),
        )

    @property
    def name(self) -> str:
        """oneDNN's name of the implementation, such as brgconv:avx512_core."""
        name = c_char_p()
        _call(
            "primitive_desc_query",
            *(self._description.handle, _QUERY_KERNEL_NAME, 0, byref(name)),
        )
        return (name.value or b"").decode()

    @property
    def weights(self) -> Descriptor:
        """The layout that the kernel wants its weights in."""
        return self._query(_QUERY_WEIGHTS)

    @property
    def scratchpad(self) -> Descriptor:
        """The memory that the kernel needs while it runs."""
        return self._query(_QUERY_SCRATCHPAD)

    def _query(self, what: int) -> Descriptor:
        handle = library().dnnl_primitive_desc_query_md(
            self._description.handle, what, 0
        )
        return Descriptor._copy(handle)

    def bind(self, arguments: Mapping[int, Memory]) -> "Call":
        """Return the kernel with its tensors, its code generated, ready to run."""
        primitive = _Object("primitive", "primitive_create", self._description.handle)
        return Call(self, primitive, arguments)


class Call:
    """A kernel with its tensors; calling it runs it to its end."""

    def __init__(
        self, kernel: Kernel, primitive: _Object, arguments: Mapping[int, Memory]
    ):
        self.kernel = kernel
        self._kept = (primitive, dict(arguments))
        array = (_Argument * len(arguments))(
            *(_Argument(index, memory.handle) for index, memory in arguments.items())
        )
        # Everything looked up beforehand: small networks notice microseconds.
        self._execute = partial(
            library().dnnl_primitive_execute,
            *(primitive.handle, _stream(), len(array), array),
        )

    def __call__(self) -> None:
        """Run the kernel; raise RuntimeError or MemoryError where it cannot."""
        if status := self._execute():
            _fail(status, self.kernel.name)


class _Attributes(_Object):
    """Post-ops, and which tensors come with a scale: all of it, or one a channel."""

    def __init__(self, post_ops: Sequence[PostOp] = (), scales: Mapping[int, int] = {}):
        super().__init__("primitive_attr", "primitive_attr_create")
        # Scratchpads are the plan's, which shares one among all kernels.
        _call("primitive_attr_set_scratchpad_mode", self.handle, 1)
        for argument, mask in scales.items():
            _call("primitive_attr_set_scales_mask", self.handle, argument, mask)
        chain = _Object("post_ops", "post_ops_create")
        for op in post_ops:
            op.append_to(chain)
        _call("primitive_attr_set_post_ops", self.handle, chain.handle)


def scale_of(argument: int) -> int:
    """The argument that holds the scale of an argument."""
    return _SCALES | argument


def operand_of(post_op: int) -> int:
    """The argument that holds the other operand of a binary post-op."""
    return _POST_OP * (post_op + 1) | SRC_1


def convolution(
    src: Descriptor,
    weights: Descriptor,
    bias: Optional[Descriptor],
    dst: Descriptor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    post_ops: Sequence[PostOp] = (),
    scales: Mapping[int, int] = {},
) -> Kernel:
    """Convolve with weights (O, I, H, W) or, of G groups, (G, O / G, I / G, H, W)."""
    tensors = (src, weights, bias, dst)
    return Kernel(
        "convolution_forward",
        *(_engine(), _INFERENCE, _CONVOLUTION_DIRECT),
        *(tensor and tensor.handle for tensor in tensors),
        *map(_lengths, (stride, (0, 0), padding, padding)),
        attributes=_Attributes(post_ops, scales),
    )


def inner_product(
    src: Descriptor,
    weights: Descriptor,
    bias: Optional[Descriptor],
    dst: Descriptor,
    scales: Mapping[int, int] = {},
) -> Kernel:
    """Multiply (N, I) by weights (O, I) and add a bias (O)."""
    tensors = (src, weights, bias, dst)
    return Kernel(
        "inner_product_forward",
        *(_engine(), _INFERENCE, *(tensor and tensor.handle for tensor in tensors)),
        attributes=_Attributes(scales=scales),
    )


def pooling(
    src: Descriptor,
    dst: Descriptor,
    *,
    algorithm: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: tuple[Sequence[int], Sequence[int]],
) -> Kernel:
    """Pool; padding: (top, left) and (bottom, right)."""
    return Kernel(
        "pooling_forward",
        *(_engine(), _INFERENCE, algorithm, src.handle, dst.handle),
        *map(_lengths, (stride, kernel, (0, 0), *padding)),
        attributes=_Attributes(),
    )


def binary(
    algorithm: int,
    src: Descriptor,
    other: Descriptor,
    dst: Descriptor,
    post_ops: Sequence[PostOp] = (),
    scales: Mapping[int, int] = {},
) -> Kernel:
    """Add or multiply; `other` is repeated along its dimensions of length 1."""
    return Kernel(
        "binary",
        *(_engine(), algorithm, src.handle, other.handle, dst.handle),
        attributes=_Attributes(post_ops, scales),
    )


def eltwise(algorithm: int, src: Descriptor) -> Kernel:
    """Map each element by a function, in place if it is given the same memory."""
    return Kernel(
        "eltwise_forward",
        *(
            _engine(),
            _INFERENCE,
            algorithm,
            src.handle,
            src.handle,
            c_float(0),
            c_float(0),
        ),
        attributes=_Attributes(),
    )


def softmax(src: Descriptor, dst: Descriptor, axis: int) -> Kernel:
    """Divide exponentials by their sum along an axis."""
    return Kernel(
        "softmax_forward",
        *(_engine(), _INFERENCE, _SOFTMAX, src.handle, dst.handle, axis),
        attributes=_Attributes(),
    )


def reorder(src: Descriptor, dst: Descriptor, scales: Mapping[int, int] = {}) -> Kernel:
    """Copy into another layout or data type, rounding to the nearest."""
    return Kernel(
        "reorder",
        *(src.handle, _engine(), dst.handle, _engine()),
        attributes=_Attributes(scales=scales),
    )


def _lengths(values: Sequence[int]) -> ctypes.Array:
    return (c_int64 * len(values))(*values)
