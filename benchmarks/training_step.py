# SPDX-License-Identifier: Apache-2.0
"""A training step side by side: this project, GluonCV's nets, PyTorch.

    python benchmarks/training_step.py [--torch-python PYTHON]

PYTHON is an interpreter with benchmarks/requirements.txt; without it PyTorch is left
out. A step goes from float32 images (N, 3, H, W) and labels in NumPy to the loss, a
number, and updated parameters: forward, backward, SGD with momentum and weight decay.
All sides have the same weights, images and number of threads. Each is a process of its
own. Their first step is compared with this project's in fp32, then they take turns,
round after round. PyTorch's networks are timm's in channels_last memory; its bf16 is
autocast. GluonCV's are hybridized with static memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).parents[1]))

# NumPy lacks a name that MXNet uses; the package adds it when it is imported first.
from gluon_resnet import _before_mxnet  # noqa: F401, I001

import mxnet as mx
import numpy as np

from gluon_resnet import create_model, load_weights, save_weights
from gluon_resnet.weights import layouts

from machine import machine
from report import training_steps

# Pixels and images in a batch.
MODELS = {
    "resnet50_v1b": (224, 16),
    "resnest50d": (224, 16),
    "cifar_resnet20_v1": (32, 128),
}
OURS, TORCH = "this project", "PyTorch"
SIDES = {
    "fp32": {OURS: "ours-fp32", TORCH: "torch-fp32", "GluonCV": "gluoncv"},
    "bf16": {OURS: "ours-bf16", TORCH: "torch-bf16"},
}
# Relative difference to this project in fp32: of the loss and, of all parameters
# together, of what the step changed. bf16 has 8 bits: a gradient of 50 layers in it
# is another one in part, and only its direction is bound.
LOSS_BOUND = {"fp32": 1e-4, "bf16": 0.02}
CHANGE_BOUND = {"fp32": 0.01, "bf16": 0.4}

# Sends a command to a side and returns its answer.
Ask = Callable[..., Any]


def prepare(model: str, folder: Path) -> None:
    """Write the weights in the formats of the sides, images and labels."""
    size, batch_size = MODELS[model]
    mx.random.seed(0)
    net = create_model(model, last_gamma=True)
    parameters = net._collect_params_with_prefix()
    for name, parameter in parameters.items():
        # Branches that change their input by little, as trained ones do: otherwise
        # rounding grows from block to block. The option makes those gammas 0.
        if name.endswith("gamma") and not parameter.data().asnumpy().any():
            parameter.set_data(mx.nd.full(parameter.shape, 0.2))
    for suffix in ("params", "safetensors"):
        save_weights(net, folder / f"weights.{suffix}")
    names = list(parameters)
    keys = layouts.gluoncv_attributes(net.spec, names) or layouts.gluon_features(
        net.spec, names
    )
    values = {keys[name]: parameter.data() for name, parameter in parameters.items()}
    mx.nd.save(str(folder / "gluoncv.params"), values)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (batch_size, 3, size, size)).astype(np.float32)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", rng.integers(0, net.spec.num_classes, batch_size))


@contextmanager
def side_process(
    side: str, folder: Path, threads: int, torch_python: Optional[Path]
) -> Iterator[Ask]:
    """Run a side in a process of its own."""
    is_torch = side.startswith("torch")
    script = f"training_step_{'torch' if is_torch else 'mxnet'}.py"
    command = [torch_python if is_torch else sys.executable, "-W", "ignore"]
    command += [Path(__file__).with_name(script), side, folder, threads]
    log_path = folder / f"{side}.log"
    with (
        log_path.open("w") as log,
        subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        ) as process,
    ):

        def ask(*words: object) -> Any:
            print(*words, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                sys.exit(f"{side} ended:\n{log_path.read_text()}")
            return json.loads(answer)

        yield ask
        process.stdin.close()


def trained_values(model: str, path: Path) -> np.ndarray:
    """All trained parameters of a file, one after the other."""
    net = create_model(model)
    load_weights(net, path)
    parameters = net._collect_params_with_prefix().values()
    trained = [p.data().asnumpy() for p in parameters if p.grad_req != "null"]
    return np.concatenate([values.ravel() for values in trained])


def check(model: str, folder: Path, asks: dict[tuple[str, str], Ask]) -> None:
    """Stop unless all sides do the same first step."""
    before = trained_values(model, folder / "weights.params")
    expected = None
    for (precision, side), ask in asks.items():
        path = folder / f"{precision}-{side.replace(' ', '-')}.safetensors"
        path = path.with_suffix(".params") if side == "GluonCV" else path
        loss = ask("step", path)
        change = trained_values(model, path) - before
        if expected is None:
            expected = loss, change
            print(f"{model}: {side}, {precision}: loss {loss:.6f}", file=sys.stderr)
            continue
        loss_error = abs(loss / expected[0] - 1)
        error = np.linalg.norm(change - expected[1]) / np.linalg.norm(expected[1])
        print(
            f"{model}: {side}, {precision}: loss differs by {loss_error:.1e}, "
            f"the step by {error:.1e}",
            file=sys.stderr,
        )
        # Written so that NaN fails.
        if not (
            loss_error <= LOSS_BOUND[precision] and error <= CHANGE_BOUND[precision]
        ):
            sys.exit(f"{model}: {side} in {precision} does another step")


def measure(
    model: str, precisions: list[str], arguments: argparse.Namespace
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds an image of each side, one value a round."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), model)
        folder.mkdir()
        prepare(model, folder)
        sides = [
            (precision, column, side)
            # The check begins with this project in fp32.
            for precision in dict.fromkeys(["fp32", *precisions])
            for column, side in SIDES[precision].items()
            if precision in precisions or column == OURS
            if arguments.torch_python or column != TORCH
        ]
        start = (folder, arguments.threads, arguments.torch_python)
        asks = {
            (precision, column): stack.enter_context(side_process(side, *start))
            for precision, column, side in sides
        }
        check(model, folder, asks)
        times = {key: [] for key in asks if key[0] in precisions}
        for _ in range(arguments.rounds):
            for key, values in times.items():
                seconds = statistics.median(asks[key]("time", arguments.seconds))
                values.append(1000 * seconds / MODELS[model][1])
    return times


def main(arguments: argparse.Namespace) -> None:
    """Measure, print the table, write the results where asked for."""
    results: dict[str, Any] = {"machine": machine(arguments.torch_python), "cells": []}
    for model in arguments.models:
        times = measure(model, arguments.precisions, arguments)
        results["cells"] += [
            {"model": model, "precision": precision, "side": side, "ms": values}
            for (precision, side), values in times.items()
        ]
    print(training_steps(results))
    if arguments.results:
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--torch-python", type=Path, help="interpreter with PyTorch")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--precisions", nargs="+", choices=SIDES, default=list(SIDES))
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=2.0, help="of a side's turn, at least")
    add("--threads", type=int, default=2)
    add("--results", type=Path, metavar="FILE.json", help="write what was measured")
    main(parser.parse_args())
