# SPDX-License-Identifier: Apache-2.0
"""What Linux says of the processor: its cores and its instructions."""

import os
import sys
from pathlib import Path

CPUS = os.sched_getaffinity(0) if sys.platform == "linux" else set()
"""Those that this process may use. OpenMP may bind a thread to one of them later."""


def physical_cores(
    cpus: set[int], topology: Path = Path("/sys/devices/system/cpu")
) -> int:
    """Return how many cores `cpus` are: Linux counts one of two threads twice."""
    cores = set()
    for cpu in cpus:
        siblings = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(cpu)
    return len(cores)


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return what Linux says that the processor has; nothing where it says nothing."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next(
        (set(line.split()) for line in lines if line.startswith("flags")), set()
    )
