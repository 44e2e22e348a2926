# SPDX-License-Identifier: Apache-2.0
"""Which convolutions are computed by Winograd's algorithm, and how.

The rule knows the layer alone: were it timed, or did it look at the number of images or
threads, the last digits of an answer would depend on them. docs/winograd.md has the
measurements that its constants are from.
"""

import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

from gluon_resnet.inference import onednn, openmp
from gluon_resnet.inference.onednn import DType
from gluon_resnet.inference.winograd.transforms import F2, F4, Tile

if TYPE_CHECKING:
    from gluon_resnet.inference.winograd.kernel import Kernel
    from gluon_resnet.inference.winograd.llvm import Instructions

SWITCH = "GLUON_RESNET_WINOGRAD"
"""The environment variable that, set to 0, leaves all convolutions to oneDNN."""

# Fewer channels leave lanes of AVX-512's registers empty.
_FEWEST_CHANNELS = 16
# To this number, products of float32 are as fast for maps of bfloat16 as its own, whose
# transforms take longer; and they are more exact than the direct kernel.
_FEW_CHANNELS = 64
# To read a weight takes as long as so many multiplications: from a core's cache, and
# from memory, which the weights of larger layers come from in each run of a network.
_READ_FROM_CACHE, _READ_FROM_MEMORY = 3, 8
_CACHE_BYTES = 2**20
_TAPS = 9
# Other releases have another LLVM, with other names for some of the instructions.
_LLVMLITE = "0.43."


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of stride 1 and padding 1 of maps in NHWC, without groups."""

    images: int
    height: int
    width: int
    channels: int
    filters: int
    """The output channels."""
    source: DType
    """Of the inputs: F32 or BF16."""
    destination: DType
    """Of the outputs: F32 or BF16."""
    adds: bool
    """Whether the result is added to what is in the destination."""
    relu: bool


class Method(NamedTuple):
    """How a layer is computed."""

    tile: Tile
    products: DType
    """The type of V and U. Sums are float32."""


def method_here(layer: Layer) -> Optional[Method]:
    """Return what `method_for` says for this processor, None where it has no kernel."""
    instructions = _instructions()
    if isinstance(instructions, str):
        return None
    return method_for(layer, instructions.has_bf16)


def kernel_for(layer: Layer, method: Method) -> "Kernel":
    """Return a kernel for the threads that OpenMP has here.

    method: of `method_here`, for images of this size or of another.
    """
    instructions = _instructions()
    assert not isinstance(instructions, str), "there is no method without them"
    # Needs llvmlite, which is an optional package.
    from gluon_resnet.inference.winograd.kernel import Kernel

    return Kernel(layer, method, instructions, openmp.max_threads())


def method_for(layer: Layer, has_bf16: bool) -> Optional[Method]:
    """Return what takes the least time, None where that is the direct kernel.

    Time is that of the multiplications for one image, and that of reading the weights.

    has_bf16: whether the processor multiplies bfloat16.
    """
    if min(layer.channels, layer.filters) < _FEWEST_CHANNELS:
        return None
    methods = [Method(F4, DType.F32), Method(F2, DType.F32)]
    if layer.source == DType.BF16:
        if onednn.has(onednn.AMX):
            return None  # Its direct products are many times as fast.
        if has_bf16 and max(layer.channels, layer.filters) > _FEW_CHANNELS:
            # F4's transforms would lose four times as much by rounding V and U.
            methods = [Method(F2, DType.BF16)]
    weights = _TAPS * layer.channels * layer.filters * layer.source.nbytes
    reading = _READ_FROM_MEMORY if weights > _CACHE_BYTES else _READ_FROM_CACHE

    def time(method: Optional[Method]) -> int:
        if method is None:
            return _TAPS * (layer.height * layer.width + reading)
        tiles = method.tile.count(layer.height, layer.width)
        return method.tile.points**2 * (tiles + reading)

    return min((None, *methods), key=time)


def described() -> str:
    """Say what computes 3x3 convolutions, and why it is not Winograd's kernels."""
    instructions = _instructions()
    if isinstance(instructions, str):
        return f"oneDNN's direct kernels, because {instructions}"
    return f"Winograd's kernels for {instructions.name} where they are faster"


@cache
def _instructions() -> "Union[Instructions, str]":
    """The processor's, or why there can be no kernels."""
    if os.environ.get(SWITCH, "1") in ("", "0"):
        return f"{SWITCH} is 0"
    try:
        installed = version("llvmlite")
    except PackageNotFoundError:
        return "llvmlite is not installed"
    if not installed.startswith(_LLVMLITE):
        return f"llvmlite {installed} is installed, which is not {_LLVMLITE}x"
    try:
        from gluon_resnet.inference.winograd import llvm
    except (ImportError, OSError) as error:
        return f"llvmlite cannot be loaded ({error})"
    known = {
        onednn.AVX512_BF16: llvm.AVX512_BF16,
        onednn.AVX512: llvm.AVX512,
        onednn.AVX2: llvm.AVX2,
    }
    here = next((known[isa] for isa in known if onednn.has(isa)), None)
    if here is None:
        return f"they need AVX2, and oneDNN uses {onednn.instructions()}"
    try:
        llvm.check_memory(here)
    except RuntimeError:
        return "this system allows no new executable memory"
    return here
