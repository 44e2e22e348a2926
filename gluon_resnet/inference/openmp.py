# SPDX-License-Identifier: Apache-2.0
"""The OpenMP that MXNet and oneDNN share: how many threads, and on which CPUs."""

import ctypes
from collections.abc import Callable
from functools import cache

from gluon_resnet import cpu


@cache
def _library() -> ctypes.CDLL:
    """libgomp, which is loaded by now."""
    return ctypes.CDLL("libgomp.so.1")


def address_of(function: str) -> int:
    """Return where a function of libgomp's is, for native code to call."""
    address = ctypes.cast(getattr(_library(), function), ctypes.c_void_p).value
    assert address is not None, "what getattr finds is in memory"
    return address


def max_threads() -> int:
    """Return how many threads the next parallel region of the calling thread has."""
    return max_threads_function()()


def max_threads_function() -> Callable[[], int]:
    """Return what `max_threads` calls: small networks notice a microsecond."""
    return _library().omp_get_max_threads


def set_max_threads(number: int) -> None:
    """Let the regions of the calling thread, not of others, have `number` threads."""
    _library().omp_set_num_threads(number)


def allowed_cpus() -> set[int]:
    """Return the CPUs to compute on; none where they are not known.

    They are the calling thread's; where OMP_PROC_BIND has bound that to a place of its
    own, those of all places.
    """
    openmp = _library()
    if not openmp.omp_get_proc_bind():
        return cpu.allowed_cpus()
    cpus: set[int] = set()
    for place in range(openmp.omp_get_num_places()):
        numbers = (ctypes.c_int * openmp.omp_get_place_num_procs(place))()
        openmp.omp_get_place_proc_ids(place, numbers)
        cpus.update(numbers)
    return cpus
