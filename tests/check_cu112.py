# SPDX-License-Identifier: Apache-2.0
"""Show that requirements-cu112.txt brings every shared library but the driver's.

Run by hand, in an environment made from that file, with or without a GPU:
``python tests/check_cu112.py``. It prints where each library comes from that
libmxnet.so and NVIDIA's wheels link, and exits with 1 when one comes neither from the
environment nor from the base system.
"""

import ast
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

DRIVER = "libcuda.so.1"
# glibc, zlib and GCC's runtime; the last two of these are Debian packages of their own.
BASE_SYSTEM = re.compile(
    r"(linux-vdso|ld-linux-x86-64|libc|libm|libdl|librt|libpthread|libutil|libz"
    r"|libgcc_s|libstdc\+\+|libgomp|libquadmath)\.so"
)


def preloaded_names() -> dict:
    """Return ``{library name: path below nvidia/}`` of what is loaded before MXNet."""
    # Read, not imported: without a driver the import stops, as it should.
    source = Path(__file__).parents[1] / "gluon_resnet" / "_before_mxnet.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "CUDA_LIBRARIES":
            return {Path(path).name: path for path in ast.literal_eval(node.value)}
    raise LookupError(f"{source} assigns no CUDA_LIBRARIES")


def linked_libraries(library: Path) -> dict:
    """Return ``{name: path or None}`` of what ``library`` links, as ldd finds it."""
    listing = subprocess.run(
        ["ldd", library], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    # "NAME => PATH (0x...)", "NAME => not found" or "PATH (0x...)" for the loader.
    pairs = re.findall(r"^\t(\S+)(?: => (/\S+|not found))?", listing, re.MULTILINE)
    return {
        Path(name).name: None if path == "not found" else Path(path or name)
        for name, path in pairs
    }


def main() -> int:
    """Print where each library comes from; return the exit code."""
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    nvidia = site_packages / "nvidia"
    preloaded = preloaded_names()
    libraries = [site_packages / "mxnet" / "libmxnet.so", *nvidia.glob("*/lib/*.so*")]
    origins, missing = {}, {}
    for library in libraries:
        for name, path in linked_libraries(library).items():
            if name in preloaded:
                path = nvidia / preloaded[name]
            if name == DRIVER:
                origins[name] = "NVIDIA's driver"
            elif path and path.exists() and site_packages in path.resolve().parents:
                origins[name] = path.resolve().relative_to(site_packages)
            elif path and BASE_SYSTEM.match(name):
                origins[name] = "base system"
            else:
                missing[name] = library.name
    for name, origin in sorted(origins.items()):
        print(f"{name:28}{origin}")
    for name, library in sorted(missing.items()):
        print(f"{name} is missing; {library} links it", file=sys.stderr)
    print(f"{len(libraries)} files link {len(origins)} libraries that are provided")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
