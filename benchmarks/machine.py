# SPDX-License-Identifier: Apache-2.0
"""What a measurement holds for: processor, system, versions."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

_OURS = ("mxnet", "onednn-cpu-gomp", "llvmlite", "gluoncv")
_PEERS = ("torch", "timm", "onnxruntime", "openvino", "nncf")
# Run by each interpreter: it names the packages that it has.
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for package in sys.argv[1:]:
    try:
        found[package] = version(package)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def machine(peers_python: Optional[Path] = None) -> dict[str, str]:
    """Describe this machine, this interpreter and that of the peers."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": platform.platform(),
        "python": platform.python_version(),
        **dict(_versions(Path(sys.executable), _OURS)),
        **dict(_versions(peers_python, _PEERS)),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions(
    python: Optional[Path], packages: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    if python is not None:
        command = [python, "-c", _VERSIONS, *packages]
        yield from json.loads(subprocess.check_output(command)).items()
