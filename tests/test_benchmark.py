# SPDX-License-Identifier: Apache-2.0
"""Measuring a model, and what it may not be asked."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gluon_resnet import bundled, create_model, memory
from gluon_resnet.benchmark import kernels
from gluon_resnet.errors import InputError

COMMAND = [sys.executable, "-m", "gluon_resnet.benchmark"]
LOG = """\
dnnl_verbose,info,oneDNN v2.4.4 (commit 5818c40f07bdb6307f9bc64e929836fe036da644)
dnnl_verbose,exec,cpu,reorder,jit:uni,undef,src_f32::blocked:abcd:f0 dst_f32::a,,,1,2.5
dnnl_verbose,exec,cpu,convolution,brgconv,forward,src_bf16::blocked:a dst_bf16::b,,,1,3
dnnl_verbose,exec,cpu,convolution,brgconv,forward,src_bf16::blocked:a dst_bf16::b,,,1,4
dnnl_verbose,exec,cpu,eltwise,jit:avx2,forward,data_f32::blocked:a diff_undef::b,,,1,0.5
"""


def run(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ".", **environment},
    )


def test_json_has_the_numbers_of_the_model_on_one_line():
    options = ("--seconds", 0.1, "--batch-size", 2, "--threads", 1, "--json")
    result = run("cifar_resnet20_v1", *options, "--weights", bundled.weights())
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


def test_weights_are_drawn_where_none_are_given():
    result = run("resnet14", "--seconds", 0.1)
    assert result.returncode == 1
    result = run("cifar_resnet20_v2", "--size", 16, "--seconds", 0.1, "-v")
    assert result.returncode == 0
    assert result.stdout.startswith("cifar_resnet20_v2, fp32, batches of 1, ")
    assert "fp32 on cpu(0): fused oneDNN operators; AMX is " in result.stderr


def test_explained_kernels_are_those_of_one_batch():
    result = run("cifar_resnet20_v1", "--explain", "--precision", "bf16")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["primitive", "kernel", "type", "calls", "ms", "share"]
    convolutions = [row for row in rows if row and row[0] == "convolution"]
    # 19 of the body and two projections, the first of them in fp32.
    assert sum(float(row[3]) for row in convolutions) == 21
    assert {row[2] for row in convolutions} == {"f32", "bf16"}


def test_kernels_are_summed_up_slowest_first():
    rows = [tuple(row.values()) for row in kernels(LOG.splitlines())]
    assert rows == [
        ("convolution", "brgconv", "bf16", 2, 7.0),
        ("reorder", "jit:uni", "f32", 1, 2.5),
        ("eltwise", "jit:avx2", "f32", 1, 0.5),
    ]


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
def test_users_mistake_is_one_line(arguments, message):
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert message in line


def test_ctrl_c_is_one_line():
    process = subprocess.Popen(
        [*COMMAND, "cifar_resnet20_v1", "--seconds", "60", "-v"],
        env={**os.environ, "PYTHONPATH": "."},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "fused" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "python -m gluon_resnet.benchmark: stopped by Ctrl-C\n"


def test_needed_memory_is_that_of_the_maps_alive_together():
    net = create_model("resnet18_v1")
    # The stem's map before and after its norm, 64 x 112 x 112 each, in float32.
    assert memory.bytes_needed(net, 3, 224) == 3 * 2 * 64 * 112 * 112 * 4


@pytest.mark.parametrize("limit, used, free", [("9000", "2000", 7000), ("max", "1", 0)])
def test_free_memory_is_the_containers_where_it_has_less(
    monkeypatch, tmp_path, limit, used, free
):
    (tmp_path / "max").write_text(f"{limit}\n")
    (tmp_path / "current").write_text(f"{used}\n")
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "max"),))
    monkeypatch.setattr(memory, "_USED", (str(tmp_path / "current"),))
    available = memory.available_bytes()
    assert available == free if limit != "max" else available > 10**6


def test_batch_is_tried_where_nothing_is_known_of_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_batch(create_model("cifar_resnet20_v1"), 10**9, 32)


def test_batch_beyond_memory_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**9)
    net = create_model("cifar_resnet20_v1")
    with pytest.raises(InputError) as error:
        memory.check_batch(net, 10**4, 32)
    assert str(error.value) == (
        "a batch of 10000 images of 32x32 needs at least 2.0 GB and 1.0 GB are free; "
        "lower the batch size"
    )
