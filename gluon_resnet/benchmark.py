# SPDX-License-Identifier: Apache-2.0
"""Measure a model's speed here: `gluon-resnet benchmark MODEL`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.precision import PRECISIONS, needs_quantizing

if TYPE_CHECKING:
    import mxnet as mx

    from gluon_resnet.inference.form import Forward

_WARM_UP = 3
_EXPLAINED = 15  # runs


def benchmark(
    name: str,
    weights: Path | None = None,
    *,
    precision: str | None = None,
    batch_size: int = 1,
    size: int | None = None,
    seconds: float = 5.0,
) -> dict:
    """Measure how fast a model answers batches of one size, one after the other.

    name: a model or an alias; with `weights`, a file, as in `init_model`, else with
    drawn weights, which are as fast.
    size: side of the images in pixels; default the model's own.
    seconds: how long to measure, after three batches that are not counted.

    Returns {"model", "precision", "batch_size", "threads", "images_per_second",
    "p50_ms", "p95_ms", "p99_ms", "load_seconds", "peak_rss_mb"}: latencies of a batch
    from images in memory to logits, the time from the name to the first answer without
    the imports, and the most memory that the process ever had, in 10^6 bytes.
    Raises InputError for an option out of its range, a batch that cannot fit into
    memory, and what `init_model` refuses.
    """
    # Not at the top: --help must not wait for MXNet.
    import numpy as np

    from gluon_resnet.inference import openmp
    from gluon_resnet.models import model_spec

    if seconds <= 0:
        raise InputError(f"seconds is {seconds}; it must be more than 0")
    started = time.perf_counter()
    forward, images, precision = _loaded(name, weights, precision, batch_size, size)
    forward(images).wait_to_read()
    load_seconds = time.perf_counter() - started
    for _ in range(_WARM_UP):
        forward(images).wait_to_read()
    # Nothing but this between two batches, or the figures are those of something else.
    stamps = [time.perf_counter()]
    while stamps[-1] < stamps[0] + seconds:
        forward(images).wait_to_read()
        stamps.append(time.perf_counter())
    times = np.diff(stamps)
    p50, p95, p99 = np.percentile(times, [50, 95, 99]) * 1000
    return {
        "model": model_spec(name).name,
        "precision": precision,
        "batch_size": batch_size,
        "threads": openmp.max_threads(),
        "images_per_second": batch_size * len(times) / times.sum(),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "load_seconds": load_seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def explain(
    name: str,
    weights: Path | None = None,
    *,
    precision: str | None = None,
    batch_size: int = 1,
    size: int | None = None,
) -> list[dict]:
    """Measure which kernels run, the slowest kind first; options as `benchmark` has.

    Returns {"primitive", "kernel", "calls", "ms", "share"} of each kind: calls and
    milliseconds of one run of the plan that most of the images go through, and the
    share of the sum. `PlannedForm.kernels` has them one by one.
    Raises InputError as `benchmark` does, and where MXNet's own operators run.
    """
    from gluon_resnet.inference.form import PlannedForm

    forward, images, _ = _loaded(name, weights, precision, batch_size, size)
    if not isinstance(forward, PlannedForm):
        raise InputError("MXNet's own operators run here, which are not explained")
    kinds = defaultdict(list)
    for kernel in forward.kernels(images, rounds=_EXPLAINED):
        kinds[kernel["primitive"], kernel["kernel"]].append(kernel["ms"])
    total = sum(map(sum, kinds.values()))
    return [
        {
            "primitive": primitive,
            "kernel": kernel,
            "calls": len(times),
            "ms": sum(times),
            "share": sum(times) / total,
        }
        for (primitive, kernel), times in sorted(
            kinds.items(), key=lambda kind: -sum(kind[1])
        )
    ]


def _loaded(
    name: str,
    weights: Path | None,
    precision: str | None,
    batch_size: int,
    size: int | None,
) -> tuple[Forward, mx.nd.NDArray, str]:
    """Return the model as a function, images for it, and its precision."""
    import mxnet as mx
    import numpy as np

    from gluon_resnet.classifier import init_model
    from gluon_resnet.create import create_model
    from gluon_resnet.inference.batch_memory import check_batch
    from gluon_resnet.inference.form import inference_form
    from gluon_resnet.models import model_spec

    spec = model_spec(name)
    size = spec.size if size is None else size
    for option, value in (("batch-size", batch_size), ("size", size)):
        if value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    check_batch(batch_size, size)
    if weights is not None:
        model = init_model(name, weights, precision=precision)
        forward, precision = model.forward, model.precision
    elif precision == "int8":
        raise InputError(needs_quantizing(spec.name))
    else:
        precision = precision or "fp32"
        forward = inference_form(create_model(name), precision=precision)
    shape = (batch_size, 3, size, size)
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    return forward, mx.nd.array(images), precision


def _use_threads(threads: int) -> None:
    """Begin anew with so many threads, unless there are as many already."""
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    if os.environ.get("OMP_NUM_THREADS") != str(threads):
        # The libraries read it once, when they are loaded.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.execv(sys.executable, _command_line())


def _command_line() -> list[str]:
    return [sys.executable, "-m", "gluon_resnet.benchmark", *sys.argv[1:]]


def parser() -> command.Parser:
    """Return the parser of `benchmark`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.benchmark",
        description="Measure a model's speed on this machine.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model of `gluon-resnet models`")
    add("--weights", type=Path, metavar="FILE", help="default: drawn, as fast")
    add("--precision", choices=PRECISIONS, help="default: that of the weights, fp32")
    add("--batch-size", type=int, default=1, help="images that run together")
    add("--size", type=int, metavar="PIXELS", help="default: the model's own")
    add("--threads", type=int, metavar="N", help="cores to use; default: all")
    add("--seconds", type=float, default=5.0, help="how long to measure")
    add("--json", action="store_true", help="print one JSON object")
    add("--explain", action="store_true", help="print which kernels run instead")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measure or explain; print the outcome."""
    from gluon_resnet.progress import doing

    if arguments.threads is not None:
        _use_threads(arguments.threads)
    options = {
        option: getattr(arguments, option)
        for option in ("weights", "precision", "batch_size", "size")
    }
    if arguments.explain:
        with doing(f"measuring the kernels of {arguments.model}"):
            rows = explain(arguments.model, **options)
        _print_kernels(rows, as_json=arguments.json)
        return
    with doing(f"measuring {arguments.model} for {arguments.seconds:g} s"):
        outcome = benchmark(arguments.model, **options, seconds=arguments.seconds)
    if arguments.json:
        print(json.dumps(outcome))
    else:
        print(
            "{model}, {precision}, batches of {batch_size}, {threads} threads: "
            "{images_per_second:.1f} images/s; a batch takes {p50_ms:.2f} ms (95 % "
            "{p95_ms:.2f}, 99 % {p99_ms:.2f}); loaded in {load_seconds:.2f} s, "
            "{peak_rss_mb:.0f} MB at most".format(**outcome)
        )


def _print_kernels(rows: list[dict], *, as_json: bool) -> None:
    from tabulate import tabulate

    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        row["share"] = f"{row['share']:.1%}"
    print(tabulate(rows, headers="keys", floatfmt=".3g"))


if __name__ == "__main__":
    command.run(main, parser())
