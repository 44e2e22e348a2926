# SPDX-License-Identifier: Apache-2.0
"""What Linux says of the processor: its cores and its instructions."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def allowed_cpus() -> set[int]:
    """Return those that the calling thread may use now; none where Linux is not."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()


def cores_of(cpus: Iterable[int], topology: Path = _TOPOLOGY) -> list[list[int]]:
    """Return `cpus` by physical core: Linux counts one of two threads twice."""
    cores: dict[object, list[int]] = {}
    for cpu in sorted(cpus):
        siblings = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            core: object = siblings.read_text()
        except OSError:
            core = cpu
        cores.setdefault(core, []).append(cpu)
    return list(cores.values())


def physical_cores(cpus: Iterable[int], topology: Path = _TOPOLOGY) -> int:
    """Return how many cores `cpus` are."""
    return len(cores_of(cpus, topology))


def places(
    cpus: Iterable[int], count: int, topology: Path = _TOPOLOGY
) -> list[list[int]]:
    """Divide `cpus`, of which there is one at least, among `count` threads.

    Each gets whole cores of its own; threads beyond the cores share them in turn.
    """
    cores = cores_of(cpus, topology)
    groups = [cores[n::count] or [cores[n % len(cores)]] for n in range(count)]
    return [[cpu for core in group for cpu in core] for group in groups]


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return what Linux says that the processor has; nothing where it says nothing."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next(
        (set(line.split()) for line in lines if line.startswith("flags")), set()
    )


def has_vnni() -> bool:
    """Return whether Linux tells of the instructions that int8 owes its speed to."""
    return not cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})
