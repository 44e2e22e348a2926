# SPDX-License-Identifier: Apache-2.0
"""What must happen before ``import mxnet``; ``gluon_resnet`` imports this first.

Importing the module sets OpenMP and MXNet's caches up, which costs nothing. All else
waits for the first ``import mxnet``, whoever asks for it: a process that never does,
such as one that prints help, does not pay for it. That import raises ImportError, with
the remedy in one line, for an installation that MXNet could only answer with a riddle.
"""

import ctypes
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Optional

from gluon_resnet.cpu import allowed_cpus, cpu_flags, physical_cores

# What libmxnet.so of mxnet-cu112 links and NVIDIA's wheels ship, as paths below their
# common folder. Each finds its own siblings through its RUNPATH.
CUDA_LIBRARIES = (
    "cublas/lib/libcublas.so.11",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    "cuda_runtime/lib/libcudart.so.11.0",
    "cudnn/lib/libcudnn.so.8",
    "cufft/lib/libcufft.so.10",
    "curand/lib/libcurand.so.10",
    "cusolver/lib/libcusolver.so.11",
    "nccl/lib/libnccl.so.2",
    "nvtx/lib/libnvToolsExt.so.1",
)


def check_packages() -> None:
    """Raise ImportError unless MXNet and a NumPy that it can use are installed."""
    for package in ("mxnet", "numpy"):
        # A folder left behind by an uninstall has a specification, but no origin.
        if getattr(find_spec(package), "origin", None) is None:
            raise ImportError(
                f"{package} is not installed: run `pip install -r requirements.txt`"
            )
    # Not at the top: a missing NumPy shall get the message above.
    import numpy

    if int(numpy.__version__.split(".")[0]) >= 2:
        raise ImportError(
            f"NumPy {numpy.__version__} is installed, but MXNet needs NumPy 1: "
            "run `pip install -r requirements.txt`"
        )


def add_numpy_names() -> None:
    """Give NumPy back ``numpy.bool``, which MXNet uses and NumPy 1.24 dropped."""
    import numpy

    # Not hasattr: up to NumPy 1.23 asking for the name warns.
    vars(numpy).setdefault("bool", bool)


def load_library(path: str, remedy: str) -> None:
    """Load a shared library for good, or raise ImportError that names the remedy."""
    try:
        ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"MXNet cannot be loaded ({error}): {remedy}") from None


def load_system_libraries() -> None:
    """Check for the libraries that MXNet's wheels for Linux expect of the system."""
    for name in ("libgomp.so.1", "libquadmath.so.0"):
        load_library(
            name,
            "install GCC's runtime libraries, "
            "on Debian `apt-get install libgomp1 libquadmath0`",
        )


def load_cuda_libraries() -> None:
    """Bring NVIDIA's wheels within reach of mxnet-cu112, where that is installed.

    The loader reads LD_LIBRARY_PATH only when the process starts, but it takes a
    library that is loaded already for any later one that asks for the same name.
    A wheel that is not installed is left to the system's own CUDA installation.
    """
    mxnet = find_spec("mxnet")
    assert mxnet is not None and mxnet.origin is not None  # by `check_packages`
    site_packages = Path(mxnet.origin).parents[1]
    if not any(site_packages.glob("mxnet_cu112-*.dist-info")):
        return
    load_library(
        "libcuda.so.1",
        "mxnet-cu112 needs NVIDIA's driver; on a machine without a GPU run `pip "
        "uninstall --yes mxnet-cu112` and `pip install -r requirements.txt`",
    )
    nvidia = find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia else None
    for name in CUDA_LIBRARIES:
        for path in (Path(folder, name) for folder in folders or ()):
            if path.exists():
                load_library(
                    str(path), "run `pip install -r requirements-cu112.txt` again"
                )


def set_up_openmp(environment: MutableMapping[str, str], cores: int) -> None:
    """Have OpenMP use all cores, and hand work over without delay.

    MXNet would take half of the processors that Linux names, as if each core were two.
    And where it has more threads than cores, which MXNet always has, libgomp lets them
    sleep at once after each kernel: to wake them takes longer than many a kernel. What
    the user has set stays.
    """
    environment.setdefault("OMP_NUM_THREADS", str(cores))
    if "OMP_WAIT_POLICY" not in environment:
        environment["OMP_WAIT_POLICY"] = "ACTIVE"
        # Turns of a loop: enough from kernel to kernel. Whoever waits longer,
        # for a thread whose core another process has, must not keep that core busy.
        environment.setdefault("GOMP_SPINCOUNT", "1000")


def bound_caches(environment: MutableMapping[str, str]) -> None:
    """Have MXNet forget kernels of old shapes.

    It keeps each that it ever made: with images of ever new shapes 2 MB more a shape.
    The bound is for each operator. A network has fewer than 50 convolutions that
    differ, so a training forgets none. What the user has set stays.
    """
    environment.setdefault("MXNET_MKLDNN_CACHE_NUM", "256")


AMX_FLAGS = {"amx_tile", "amx_int8", "amx_bf16"}
_ISA = "DNNL_MAX_CPU_ISA"


def switch_on_amx(
    machine: str,
    flags: set[str],
    environment: MutableMapping[str, str],
    ask: Callable[[], bool],
) -> str:
    """Let oneDNN use the tile registers where Linux grants them; say what was done.

    oneDNN 2.4 has int8 and bf16 kernels for AMX, but leaves them off and does not ask.
    Used without the permission they kill the process, so it is asked for even where
    the user's own DNNL_MAX_CPU_ISA, which always stays, is what decides.
    """
    if machine != "x86_64":
        return f"AMX is off: not on {machine}"
    if missing := AMX_FLAGS - flags:
        return f"AMX is off: the processor has no {', '.join(sorted(missing))}"
    if not ask():
        return "AMX is off: Linux does not grant the tile registers"
    if _ISA in environment:
        return f"AMX is left to {_ISA}={environment[_ISA]}"
    environment[_ISA] = "AVX512_CORE_AMX"
    return "AMX is on"


def ask_for_tiles() -> bool:
    """Ask Linux for the AMX tile registers: arch_prctl(ARCH_REQ_XCOMP_PERM, 18)."""
    syscall, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(syscall, request, tile_data) == 0


AMX = "AMX is off: not on Linux"


def prepare() -> None:
    """Check the installation and load what MXNet needs; sets `AMX` to what was done."""
    global AMX
    check_packages()
    add_numpy_names()
    if sys.platform == "linux":
        load_system_libraries()
        load_cuda_libraries()
        AMX = switch_on_amx(os.uname().machine, cpu_flags(), os.environ, ask_for_tiles)


class _Preparer:
    """Finds no module, but hears of each that is to be imported."""

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]] = None,
        target: Optional[ModuleType] = None,
    ) -> None:
        if fullname == "mxnet":
            sys.meta_path.remove(self)  # `prepare` looks for mxnet, too.
            try:
                prepare()
            except ImportError:
                sys.meta_path.insert(0, self)
                raise


bound_caches(os.environ)
if sys.platform == "linux":
    # At once: the library reads its variables when it is loaded, by whomever.
    set_up_openmp(os.environ, physical_cores(allowed_cpus()))
if "mxnet" in sys.modules:
    prepare()
else:
    sys.meta_path.insert(0, _Preparer())
