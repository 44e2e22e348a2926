# SPDX-License-Identifier: Apache-2.0
"""Measuring a model, and what it may not be asked."""

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gluon_resnet import benchmark, bundled, cpu
from gluon_resnet.errors import InputError
from gluon_resnet.inference import batch_memory

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMAND = [sys.executable, "-m", "gluon_resnet.benchmark"]


def test_json_has_the_numbers_of_the_model_on_one_line():
    options = ("--seconds", 0.1, "--batch-size", 2, "--threads", 1, "--json")
    # For its threads it begins anew: a process of its own.
    arguments = ("cifar_resnet20_v1", *options, "--weights", bundled.weights())
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (result.returncode, result.stderr) == (0, "")
    outcome = json.loads(result.stdout)
    assert list(outcome) == [
        *("model", "precision", "batch_size", "threads", "images_per_second"),
        *("p50_ms", "p95_ms", "p99_ms", "load_seconds", "peak_rss_mb"),
    ]
    assert outcome["model"] == "cifar_resnet20_v1"
    assert (outcome["precision"], outcome["batch_size"]) == ("fp32", 2)
    assert outcome["threads"] == 1
    assert 0 < outcome["p50_ms"] <= outcome["p95_ms"] <= outcome["p99_ms"]
    assert outcome["load_seconds"] > 0
    assert outcome["peak_rss_mb"] > 100


class Clock:
    """A clock that runs while a batch is computed, and counts who looks at it."""

    def __init__(self, seconds):
        self.now, self.looks, self.batches = 0.0, 0, 0
        self.seconds = iter(seconds)

    def perf_counter(self):
        self.looks += 1
        return self.now

    def forward(self, images):
        self.batches += 1
        self.now += next(self.seconds)
        return self

    def wait_to_read(self):
        pass


def test_nothing_but_a_look_at_the_clock_is_between_two_batches(monkeypatch):
    # A batch of 140 us, of which a measurement has many; the first four do not count.
    clock = Clock(itertools.chain([1] * 4, itertools.cycle([1e-4, 1e-4, 2.2e-4])))
    monkeypatch.setattr(benchmark, "time", clock)
    monkeypatch.setattr(benchmark, "_loaded", lambda *_: (clock.forward, None, "fp32"))
    outcome = benchmark.benchmark("resnet18_v1", batch_size=3, seconds=2.8)
    assert clock.batches == pytest.approx(20_004, abs=2)
    assert clock.looks == clock.batches - 4 + 3
    assert outcome["images_per_second"] == pytest.approx(3 / 1.4e-4, rel=1e-4)
    assert outcome["p50_ms"] == pytest.approx(0.1)
    assert outcome["p95_ms"] == pytest.approx(0.22)
    assert outcome["load_seconds"] == 1


def test_a_side_of_the_comparison_is_measured_alike(monkeypatch):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        side = importlib.import_module("inference_side")
    finally:
        sys.path.remove(str(BENCHMARKS))
    clock = Clock(itertools.chain([5e-4], itertools.repeat(1e-4)))
    monkeypatch.setattr(side, "time", clock)
    times = side.call_times(lambda: clock.forward(None), 1)
    assert len(times) == pytest.approx(10**4, abs=2)
    assert clock.looks == 2 + len(times) + 1
    assert times == pytest.approx([1e-4] * len(times))
    # The first counts where it fills the time alone.
    clock.seconds = itertools.repeat(2)
    assert side.call_times(lambda: clock.forward(None), 1) == [2]


def test_weights_are_drawn_where_none_are_given(run_command):
    done = run_command(benchmark, "resnet14", "--seconds", 0.1)
    assert done.code == 1
    options = ("--size", 16, "--seconds", 0.1, "-v")
    done = run_command(benchmark, "cifar_resnet20_v2", *options)
    assert done.code == 0
    assert done.out.startswith("cifar_resnet20_v2, fp32, batches of 1, ")
    assert "fp32: fused kernels of oneDNN, " in done.err


@pytest.mark.parametrize("batch_size", [1, 5])
def test_explained_kernels_are_those_of_one_run(run_command, batch_size):
    options = ("--explain", "--precision", "bf16", "--batch-size", batch_size)
    done = run_command(benchmark, "cifar_resnet20_v1", *options, "--json")
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)
    # 19 of the body and two projections; casts before and after the stem.
    calls = {
        "convolution_forward": 21,
        "pooling_forward": 1,
        "inner_product_forward": 1,
    }
    found = dict.fromkeys((row["primitive"] for row in rows), 0)
    for row in rows:
        found[row["primitive"]] += row["calls"]
    # oneDNN's and, where llvmlite is installed, Winograd's
    found["convolution_forward"] += found.pop("convolution", 0)
    assert found == calls | {"reorder": 2}
    assert [row["ms"] for row in rows] == sorted((r["ms"] for r in rows), reverse=True)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    bf16 = [row for row in rows if row["kernel"].startswith("brgconv:avx512_core_bf16")]
    assert bf16 or "avx512_bf16" not in cpu.cpu_flags()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["resnet5"], "unknown model 'resnet5'; nearest: "),
        (["resnet18_v1", "--batch-size", 0], "batch-size is 0; it must be at least 1"),
        (["resnet18_v1", "--size", 0], "size is 0; it must be at least 1"),
        (["resnet18_v1", "--threads", 0], "threads is 0; it must be at least 1"),
        (["resnet18_v1", "--seconds", 0], "seconds is 0.0; it must be more than 0"),
        (["resnet18_v1", "--precision", "int8"], "precision int8 needs a quantized"),
        (["resnet18_v1", "--batch-size", 10**9], "1000000000 images of 224x224 needs"),
    ],
)
def test_users_mistake_is_one_line(run_command, arguments, message):
    done = run_command(benchmark, *arguments)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert message in line


def test_ctrl_c_is_one_line():
    process = subprocess.Popen(
        [*COMMAND, "cifar_resnet20_v1", "--seconds", "60", "-v"],
        env={**os.environ, "PYTHONPATH": "."},
        stderr=subprocess.PIPE,
        text=True,
    )
    while "fused" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "python -m gluon_resnet.benchmark: stopped by Ctrl-C\n"


def test_needed_memory_is_that_of_the_images():
    assert (
        batch_memory.bytes_needed(3, 224)
        == 2 * 3 * np.zeros((3, 224, 224), "f4").nbytes
    )


@pytest.mark.parametrize("limit, used, free", [("9000", "2000", 7000), ("max", "1", 0)])
def test_free_memory_is_the_containers_where_it_has_less(
    monkeypatch, tmp_path, limit, used, free
):
    (tmp_path / "max").write_text(f"{limit}\n")
    (tmp_path / "current").write_text(f"{used}\n")
    monkeypatch.setattr(batch_memory, "_LIMITS", (str(tmp_path / "max"),))
    monkeypatch.setattr(batch_memory, "_USED", (str(tmp_path / "current"),))
    available = batch_memory.available_bytes()
    assert available == free if limit != "max" else available > 10**6


def test_batch_is_tried_where_nothing_is_known_of_memory(monkeypatch):
    monkeypatch.setattr(batch_memory, "available_bytes", lambda: None)
    batch_memory.check_batch(10**9, 32)


def test_batch_beyond_memory_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(batch_memory, "available_bytes", lambda: 10**9)
    with pytest.raises(InputError) as error:
        batch_memory.check_batch(10**5, 32)
    assert str(error.value) == (
        "a batch of 100000 images of 32x32 needs at least 2.5 GB and 1.0 GB are free; "
        "lower the batch size"
    )
