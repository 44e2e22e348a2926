# SPDX-License-Identifier: Apache-2.0
"""Inference side by side: this project, GluonCV, PyTorch, ONNX Runtime, OpenVINO.

    python benchmarks/inference.py --work FOLDER [--peers-python PYTHON]

PYTHON is an interpreter with benchmarks/requirements.txt; without it only the MXNet
sides run. All sides have the same weights and images, the same number of threads and
are bound to the same cores. Each is a process of its own. What they answer is compared
with MXNet's plain fp32 net first, then they take turns, round after round. A call goes
from normalised float32 images (N, 3, H, W), in an array of the library's own, to logits
in NumPy; casts and changes of layout count. PyTorch's networks are timm's, and ONNX
Runtime and OpenVINO get PyTorch's export of them, with a fixed batch size.

FOLDER keeps the converted models, which take minutes to make, and results.json. What
that file has is not measured again: remove it for a fresh run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

import numpy as np
from machine import machine
from report import OURS, Cell
from report import inference as report

# Columns of the tables, and the names that the side scripts know.
SIDES = {
    "fp32": {
        OURS: "ours-fp32",
        "GluonCV": "gluoncv",
        "PyTorch eager": "torch-eager",
        "PyTorch channels_last": "torch-channels-last",
        "PyTorch compile": "torch-compiled",
        "ONNX Runtime": "onnxruntime",
        "OpenVINO": "openvino",
    },
    "bf16": {
        OURS: "ours-bf16",
        "PyTorch autocast": "torch-autocast",
        "PyTorch bfloat16": "torch-bf16",
        "PyTorch compile": "torch-compiled-bf16",
        "OpenVINO": "openvino-bf16",
    },
    "int8": {
        OURS: "ours-int8",
        "ONNX Runtime": "onnxruntime-int8",
        "OpenVINO": "openvino-int8",
    },
}
MODELS = (
    "resnet50_v1b",
    "resnet50_v2",
    "resnet152_v1d",
    "resnest50d",
    "resnest101e",
    "cifar_resnet20_v1",
)
BATCHES = (1, 16)
# Of the difference to the plain net: root mean square, in units of that of the logits'
# own difference from image to image. Unrelated logits would have 1.4; with random
# weights int8 has much of that.
ERROR_BOUND = {"fp32": 1e-4, "bf16": 0.2, "int8": 0.7}
THREADS = 2
PARTS = ("table", "starts", "growth")
GROWTH_ROUNDS = 3
GROWTH_MODEL, GROWTH_BATCHES = "resnet50_v1b", (1, 2, 4, 8, 16, 32, 64)
# Too slow to be compiled for each batch, or to be of interest.
NOT_IN_GROWTH = ("GluonCV", "PyTorch eager", "PyTorch autocast", "PyTorch compile")
STARTS = 3

# Sends a command to a side and returns its answer.
Ask = Callable[..., Any]


class SideError(RuntimeError):
    """A side ended; the message is the last line that it wrote."""


def is_mxnet(side: str) -> bool:
    """Whether the side runs in this interpreter's environment."""
    return side.startswith(("ours", "gluoncv"))


@contextmanager
def side_process(
    side: str, folder: Path, threads: int, peers_python: Optional[Path]
) -> Iterator[Ask]:
    """Run a side in a process of its own, bound to the first `threads` cores."""
    if is_mxnet(side):
        python, script = sys.executable, "inference_mxnet.py"
    else:
        python, script = peers_python, "inference_peers.py"
    command = [python, Path(__file__).with_name(script), side, folder, str(threads)]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    # One thread a core: unbound, libgomp's two may share one and take twice the time.
    # MXNet and PyTorch have it; ONNX Runtime and OpenVINO see to it themselves.
    openmp = {"OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "true"}
    log_path = folder / f"{side}.log"
    with ExitStack() as stack:
        # On leaving: what a side that is gone has not read.
        stack.enter_context(suppress(BrokenPipeError))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log_path.open("w")),
                text=True,
                env={**os.environ, **openmp},
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        )
        stack.callback(process.kill)

        def ask(*words: object) -> Any:
            try:
                print(*words, file=process.stdin, flush=True)
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                lines = log_path.read_text().split("\n")
                raise SideError(next(filter(None, reversed(lines)), "no message"))
            return json.loads(answer)

        yield ask


def prepare(model: str, work: Path, peers_python: Optional[Path]) -> None:
    """Fill the model's folder with what is missing."""
    folder = work / model
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    if not (folder / "reference.npy").exists():
        run_logged(folder, sys.executable, here / "inference_model.py", folder)
    if not (folder / "weights.int8").exists():
        options = {
            "--model": model,
            "--weights": folder / "weights.params",
            "--rec": folder / "calibration.rec",
        }
        words = [word for option in options.items() for word in option]
        module = ("-m", "gluon_resnet.quantize", folder / "weights.int8")
        run_logged(folder, sys.executable, *module, *words)
    if peers_python:
        run_logged(folder, peers_python, here / "inference_convert.py", folder)


def run_logged(folder: Path, *command: object) -> None:
    """Run in the repository; stop with what it wrote if it fails."""
    log_path = folder / "prepare.log"
    with log_path.open("w") as log:
        words = [str(word) for word in command]
        root = Path(__file__).parents[1]
        result = subprocess.run(words, cwd=root, stdout=log, stderr=log)
    if result.returncode:
        sys.exit(f"{log_path.read_text()}\n{' '.join(words)} failed")


def loaded(ask: Ask, folder: Path, precision: str, batch: int) -> Cell:
    """Load a side for a batch size and compare its logits."""
    answer = ask("load", batch)
    reference = np.load(folder / "reference.npy")
    expected, found = reference[:batch], np.array(answer["logits"])[: len(reference)]
    spread = (reference - reference.mean(axis=0)).std()
    cell = {
        "load_s": answer["seconds"],
        "peak_mb": answer["peak_mb"],
        "error": float(np.sqrt(np.mean((found - expected) ** 2)) / spread),
        "agreement": float(np.mean(found.argmax(axis=1) == expected.argmax(axis=1))),
    }
    # Written so that NaN fails.
    if not cell["error"] <= ERROR_BOUND[precision]:
        cell["failed"] = f"answers otherwise (error {cell['error']:.2g})"
    return cell


def measure(
    columns: dict[str, str],
    folder: Path,
    precision: str,
    batches: Iterable[int],
    threads: int,
    rounds: int,
    arguments: argparse.Namespace,
) -> Iterator[Cell]:
    """Yield cells with milliseconds an image, one for each round.

    columns: the sides by the name of their column.
    """
    with ExitStack() as stack:
        asks = {
            column: stack.enter_context(
                side_process(side, folder, threads, arguments.peers_python)
            )
            for column, side in columns.items()
        }
        for batch in batches:
            cells = {}
            for column, ask in asks.items():
                cell = {"batch": batch, "threads": threads, "side": column, "ms": []}
                try:
                    cell |= loaded(ask, folder, precision, batch)
                except SideError as error:
                    cell["failed"] = str(error)
                cells[column] = cell
            for _ in range(rounds):
                for column, cell in cells.items():
                    if "failed" in cell:
                        continue
                    try:
                        times = asks[column]("time", arguments.seconds)
                    except SideError as error:
                        cell |= {"failed": str(error), "ms": []}
                    else:
                        cell["ms"].append(1000 * statistics.median(times) / batch)
            yield from cells.values()


def measure_starts(
    columns: dict[str, str],
    folder: Path,
    precision: str,
    arguments: argparse.Namespace,
) -> Iterator[Cell]:
    """Yield cells of fresh processes: seconds to the first answers, memory."""
    for _ in range(STARTS):
        for column, side in columns.items():
            cell = {"batch": 1, "threads": THREADS, "side": column}
            started = time.perf_counter()
            try:
                with side_process(side, folder, THREADS, arguments.peers_python) as ask:
                    cell |= loaded(ask, folder, precision, 1)
                    cell["start_s"] = time.perf_counter() - started
                    larger = loaded(ask, folder, precision, BATCHES[-1])
                    cell["again_s"] = larger["load_s"]
                    cell["larger_peak_mb"] = larger["peak_mb"]
            except SideError as error:
                cell["failed"] = str(error)
            yield cell


def groups(
    arguments: argparse.Namespace, done: set[tuple]
) -> Iterator[tuple[str, str, str, Iterator[Cell]]]:
    """Yield part, model, precision and the measurement of what is not done yet.

    done: (part, model, precision, batch, threads) of the cells that there are.
    """
    for part in arguments.parts:
        models = arguments.models
        if part != "table":
            models = [model for model in models if model == GROWTH_MODEL]
        for model in models:
            for precision in arguments.precisions:
                columns = {
                    column: side
                    for column, side in SIDES[precision].items()
                    if (is_mxnet(side) or arguments.peers_python)
                    and not (part == "growth" and column in NOT_IN_GROWTH)
                }
                common = columns, arguments.work / model, precision
                if part == "starts":
                    if (part, model, precision, 1, THREADS) not in done:
                        cells = measure_starts(*common, arguments)
                        yield part, model, precision, cells
                    continue
                is_table = part == "table"
                for threads in (THREADS,) if is_table else (1, THREADS):
                    batches = [
                        batch
                        for batch in (arguments.batches if is_table else GROWTH_BATCHES)
                        if (part, model, precision, batch, threads) not in done
                    ]
                    rounds = arguments.rounds if is_table else GROWTH_ROUNDS
                    if batches:
                        cells = measure(*common, batches, threads, rounds, arguments)
                        yield part, model, precision, cells


def main(arguments: argparse.Namespace) -> None:
    """Prepare, measure, write results.json after each group, print the tables."""
    arguments.work = arguments.work.absolute()
    for model in arguments.models:
        prepare(model, arguments.work, arguments.peers_python)
    path = arguments.work / "results.json"
    results = {"machine": machine(arguments.peers_python), "cells": []}
    if path.exists():
        results = json.loads(path.read_text())
    fields = ("part", "model", "precision", "batch", "threads")
    done = {tuple(cell[field] for field in fields) for cell in results["cells"]}
    for part, model, precision, cells in groups(arguments, done):
        shared = {"part": part, "model": model, "precision": precision}
        started = time.perf_counter()
        results["cells"] += [{**shared, **cell} for cell in cells]
        seconds = time.perf_counter() - started
        print(f"{part}: {model} {precision}, {seconds:.0f} s", file=sys.stderr)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(results, indent=1) + "\n")
        unfinished.replace(path)
    print(report(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="keeps conversions and results.json")
    add("--peers-python", type=Path, help="interpreter with the peers")
    add("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    add("--precisions", nargs="+", choices=SIDES, default=list(SIDES))
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--batches", nargs="+", type=int, default=BATCHES)
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=0.3, help="of a side's turn")
    main(parser.parse_args())
