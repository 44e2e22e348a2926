# SPDX-License-Identifier: Apache-2.0
"""Seconds to load a 100 MB file into a net, beside its format's own library reading it.

    python benchmarks/load_time.py [--torch-python PYTHON]

Every measurement is a fresh process, as a user's is, with the file in the page cache;
the two sides take turns. Ours includes the copy into the network and all checks, theirs
only reads. `.pth` needs an interpreter that has torch.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

OURS = """
import sys, time
from gluon_resnet.models import model_spec
from gluon_resnet.models.resnet import empty_resnet
from gluon_resnet.weights import load_weights
net = empty_resnet(model_spec("resnet50_v1b"), num_classes=1000)
import mxnet as mx
mx.nd.waitall()
start = time.perf_counter()
load_weights(net, sys.argv[1])
mx.nd.waitall()
print(time.perf_counter() - start)
print(sum(float(p.data().sum().asscalar()) for p in net.collect_params().values()))
"""
# The sum of all values is printed to show that both sides read the same.
THEIRS = {
    "params": """
import gluon_resnet, mxnet as mx
start = time.perf_counter()
tensors = mx.nd.load(sys.argv[1])
mx.nd.waitall()
seconds = time.perf_counter() - start
total = sum(float(t.sum().asscalar()) for t in tensors.values())
""",
    "safetensors": """
from safetensors.numpy import load_file
start = time.perf_counter()
tensors = load_file(sys.argv[1])
seconds = time.perf_counter() - start
total = sum(float(t.sum()) for t in tensors.values())
""",
    "pth": """
import torch
start = time.perf_counter()
tensors = torch.load(sys.argv[1], weights_only=True)
seconds = time.perf_counter() - start
total = sum(float(t.sum()) for t in tensors.values())
""",
}
TO_PTH = """
import sys, torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
"""


def run(python: str, code: str, *arguments: Path) -> list[float]:
    """Run code in a fresh process; returns the numbers that it prints."""
    command = [python, "-W", "ignore", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in result.stdout.splitlines()]


def main(arguments: argparse.Namespace) -> None:
    """Write the files, measure, print the table."""
    from gluon_resnet import create_model, save_weights

    with tempfile.TemporaryDirectory() as folder:
        net = create_model("resnet50_v1b")
        files = {
            suffix: save_weights(net, Path(folder, f"weights.{suffix}"))
            for suffix in ("params", "safetensors")
        }
        if arguments.torch_python:
            files["pth"] = Path(folder, "weights.pth")
            run(arguments.torch_python, TO_PTH, files["safetensors"], files["pth"])
        rows = [measure(suffix, path, arguments) for suffix, path in files.items()]
    print(tabulate(rows, headers="keys", floatfmt=".3f"))


def measure(suffix: str, path: Path, arguments: argparse.Namespace) -> dict:
    """Alternate between the two sides and summarise."""
    reader = arguments.torch_python if suffix == "pth" else sys.executable
    theirs = f"import sys, time\n{THEIRS[suffix]}\nprint(seconds)\nprint(total)"
    seconds = {"ours": [], "theirs": []}
    for _ in range(arguments.rounds):
        (ours, our_sum), (other, their_sum) = (
            run(sys.executable, OURS, path),
            run(reader, theirs, path),
        )
        assert abs(our_sum - their_sum) < 1e-3 * abs(their_sum), (our_sum, their_sum)
        seconds["ours"].append(ours)
        seconds["theirs"].append(other)
    ours, other = (statistics.median(values) for values in seconds.values())
    return {
        "format": suffix,
        "MB": path.stat().st_size / 1e6,
        "load_weights, s": ours,
        "spread": max(seconds["ours"]) - min(seconds["ours"]),
        "own library, s": other,
        "spread of it": max(seconds["theirs"]) - min(seconds["theirs"]),
        "ratio": ours / other,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="processes of each side")
    parser.add_argument("--torch-python", help="an interpreter with torch")
    main(parser.parse_args())
