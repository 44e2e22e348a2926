# SPDX-License-Identifier: Apache-2.0
"""Whether a batch fits into memory, before it is tried."""

from pathlib import Path
from typing import Optional

from gluon_resnet.errors import InputError

# A limit of the container, as version 2 and 1 of control groups say it.
_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_USED = (
    "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
)


def check_batch(batch_size: int, size: int) -> None:
    """Raise InputError where images (batch_size, 3, size, size) cannot fit.

    A lower bound of what inference needs is held against what Linux has left; where
    neither Linux nor its control group says it, nothing is checked.
    """
    needed = bytes_needed(batch_size, size)
    available = available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"a batch of {batch_size} images of {size}x{size} needs at least "
            f"{needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; lower the "
            "batch size"
        )


def bytes_needed(batch_size: int, size: int) -> int:
    """Return the bytes of prepared images: float32, once in NumPy and once in MXNet.

    What the layers need is that of a few images (form.py) and little beside it.
    """
    return 2 * 4 * batch_size * 3 * size * size


def available_bytes() -> Optional[int]:
    """Return how many bytes this process may still take; None where unknown."""
    free = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    for limit, used in zip(map(_read, _LIMITS), map(_read, _USED)):
        if limit.isdigit() and used.isdigit():
            free.append(max(0, int(limit) - int(used)))
    return min(free, default=None)


def _read(path: str) -> str:
    """Return a file of Linux's, empty where there is none."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
