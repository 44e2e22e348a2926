# SPDX-License-Identifier: Apache-2.0
"""Whole networks with Winograd's kernels and with oneDNN's alone, in turns.

    python benchmarks/winograd_networks.py [--rounds 3]

Each turn is a process of its own (`gluon_resnet.benchmark`), so that the switch,
GLUON_RESNET_WINOGRAD, holds from the start. Before that the logits of both sides are
compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from machine import machine
from report import row, spread

# Model, images in a batch, precision.
CASES = (
    ("resnet18_v1b", 1, "fp32"),
    ("resnet50_v1b", 1, "fp32"),
    ("resnet50_v1b", 16, "fp32"),
    ("cifar_resnet20_v1", 1, "fp32"),
    ("cifar_resnet20_v1", 16, "fp32"),
    ("resnet50_v1b", 1, "bf16"),
)
SWITCH = {"direct": "0", "Winograd": "1"}
# Of the largest logit.
BOUND = {"fp32": 1e-5, "bf16": 0.1}
_LOGITS = """
import json, sys, gluon_resnet, mxnet as mx, numpy as np
name, precision = sys.argv[1:]
mx.random.seed(0)
net = gluon_resnet.create_model(name)
images = np.random.default_rng(0).normal(0, 1, (2, 3, *[net.spec.size] * 2))
form = gluon_resnet.inference_form(net, precision=precision)
print(json.dumps(form(mx.nd.array(images)).asnumpy().tolist()))
"""


def answer(side: str, *command: str) -> str:
    """What a process of a side prints."""
    environment = {**os.environ, "GLUON_RESNET_WINOGRAD": SWITCH[side]}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.check_output([sys.executable, *command], env=environment)


def check(model: str, precision: str) -> None:
    """Stop unless both sides give the same logits."""
    direct, found = (
        np.array(json.loads(answer(side, "-c", _LOGITS, model, precision)))
        for side in SWITCH
    )
    error = np.abs(found - direct).max() / np.abs(direct).max()
    if not error < BOUND[precision]:
        sys.exit(f"{model}, {precision}: the logits differ by {error:.1e}")


def measured(model: str, batch: int, precision: str, side: str) -> float:
    """Milliseconds an image: the median of a process."""
    words = ["-m", "gluon_resnet.benchmark", model, "--batch-size", str(batch)]
    words += ["--precision", precision, "--seconds", "1", "--json"]
    return json.loads(answer(side, *words))["p50_ms"] / batch


def main(rounds: int) -> None:
    """Compare, measure, print."""
    for model, precision in dict.fromkeys((m, p) for m, _, p in CASES):
        check(model, precision)
    print(", ".join(f"{key} {value}" for key, value in machine().items()), end="\n\n")
    print(row("network, batch", *SWITCH, "direct / Winograd"))
    print(row("---", *["--:"] * 3))
    for case in CASES:
        turns = [
            {side: measured(*case, side) for side in SWITCH} for _ in range(rounds)
        ]
        ratio = statistics.median(t["direct"] / t["Winograd"] for t in turns)
        times = [spread([turn[side] for turn in turns]) for side in SWITCH]
        model, batch, precision = case
        print(row(f"{model}, {precision}, {batch}", *times, f"{ratio:.2f}"), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args().rounds)
