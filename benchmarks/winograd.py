# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of 3x3 convolutions: oneDNN's direct kernels and Winograd's.

    OMP_PROC_BIND=true python benchmarks/winograd.py [--results FILE.json]

The layers are those of ResNet, ResNeSt and the CIFAR nets, with bias and ReLU. Of each
layer both sides get the same images and weights and must give the same answer. Then
they take turns, round after round; the table gives medians, ranges, and the median of
the rounds' ratios.

In a network large weights come from memory, because those of the other layers have
passed through the cache meanwhile. So each side has 16 copies of them, and each call
takes the next. The weights of a CIFAR net all fit into the cache: one copy.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import gluon_resnet  # noqa: F401, I001  (importing it sets up OpenMP's threads)

import numpy as np

from gluon_resnet.inference import onednn, openmp
from gluon_resnet.inference.onednn import Descriptor, DType, Eltwise, Layout, Memory
from gluon_resnet.inference.packing import Weight, Weights, aligned
from gluon_resnet.inference.winograd.choice import (
    Layer,
    described,
    kernel_for,
    method_here,
)

from machine import machine
from report import OURS, winograd

DIRECT = "oneDNN, direct"
# Height, width, input and output channels.
RESNET = [(56, 56, 64, 64), (28, 28, 128, 128), (14, 14, 256, 256), (7, 7, 512, 512)]
RESNEST = [
    *((112, 112, 32, 32), (112, 112, 32, 64), (56, 56, 32, 64), (56, 56, 64, 128)),
    *((28, 28, 64, 128), (28, 28, 128, 256), (14, 14, 128, 256), (14, 14, 256, 512)),
    (7, 7, 256, 512),
]
CIFAR = [(32, 32, 16, 16), (16, 16, 32, 32), (8, 8, 64, 64)]
COPIES = 16
LEAST_SECONDS = 0.002  # of a side in a round
# Of the largest result: other orders of rounding, but nothing else.
BOUNDS = {DType.F32: 2e-5, DType.BF16: 2e-2}


class Case(NamedTuple):
    """What both sides compute."""

    layer: Layer
    threads: int
    copies: int

    @property
    def name(self) -> str:
        """Such as "64 -> 64, 56 x 56"."""
        layer = self.layer
        return f"{layer.channels} -> {layer.filters}, {layer.height} x {layer.width}"


class Side(NamedTuple):
    """A kernel, once with each copy of its weights."""

    kernel: str
    calls: list[Callable[[], None]]
    result: np.ndarray


def main() -> None:
    """Measure all layers, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cores = openmp.max_threads()
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}))
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--results", type=Path, help="where to write JSON")
    arguments = parser.parse_args()
    print(f"3x3 convolutions by {described()}", file=sys.stderr)
    cells = []
    for case in cases(arguments.threads, arguments.images):
        print(case.name, case.layer.source.name, file=sys.stderr, flush=True)
        cells += measured(case, arguments.rounds)
    # Bound to its place, this thread does not see the others' cores.
    here = machine() | {"cores": str(len(openmp.allowed_cpus()))}
    results = {"machine": here, "cells": cells}
    print(winograd(results))
    if arguments.results:
        arguments.results.write_text(json.dumps(results), encoding="utf-8")


def cases(threads: list[int], images: list[int]) -> Iterator[Case]:
    """All that inference has Winograd's kernels for."""
    types = [DType.F32] + [DType.BF16] * onednn.computes_bf16()
    for dtype, count, number in product(types, threads, images):
        if count > 1 and number > 1:
            continue  # Of several images each core computes its own.
        for sizes in (*RESNET, *RESNEST, *CIFAR):
            layer = Layer(number, *sizes, dtype, dtype, adds=False, relu=True)
            if method_here(layer) is not None:
                yield Case(layer, count, 1 if sizes in CIFAR else COPIES)


def measured(case: Case, rounds: int) -> Iterator[dict]:
    """The cells of a case: one for each side."""
    openmp.set_max_threads(case.threads)
    sides = {DIRECT: side_of(case, direct), OURS: side_of(case, chosen)}
    for side in sides.values():
        side.calls[0]()
    expected, found = (values_of(side.result, case.layer) for side in sides.values())
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error < BOUNDS[case.layer.source]:
        raise SystemExit(f"{case.name}: the answers differ by {error:.1e}")
    repeats = {
        name: 1 + int(LEAST_SECONDS / seconds_of(side, 1))
        for name, side in sides.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds = seconds_of(side, repeats[name])
            times[name].append(1000 * seconds / repeats[name] / len(side.calls))
    for name, side in sides.items():
        yield {
            "layer": case.name,
            "precision": "fp32" if case.layer.source == DType.F32 else "bf16",
            "images": case.layer.images,
            "threads": case.threads,
            "side": name,
            "kernel": side.kernel,
            "error": error,
            "ms": times[name],
        }


def chosen(layer: Layer) -> Any:
    """The kernel that inference takes for a layer."""
    method = method_here(layer)
    assert method is not None, "a layer of `cases`"
    return kernel_for(layer, method)


def seconds_of(side: Side, repeats: int) -> float:
    """The time that all calls take so many times."""
    started = time.perf_counter()
    for _ in range(repeats):
        for call in side.calls:
            call()
    return time.perf_counter() - started


def direct(layer: Layer) -> onednn.Kernel:
    """oneDNN's kernel."""
    source, destination, bias = tensors_of(layer)
    return onednn.convolution(
        *(source, weight_of(layer).descriptor, bias, destination),
        stride=(1, 1),
        padding=(1, 1),
        post_ops=[Eltwise(onednn.RELU)],
    )


def tensors_of(layer: Layer) -> tuple[Descriptor, Descriptor, Descriptor]:
    """Source, destination and bias."""
    pixels = (layer.height, layer.width)
    return (
        Descriptor((layer.images, layer.channels, *pixels), layer.source),
        Descriptor((layer.images, layer.filters, *pixels), layer.destination),
        Descriptor((layer.filters,), DType.F32, Layout.A),
    )


def weight_of(layer: Layer) -> Weight:
    """The weight, named "weight"."""
    return Weight("weight", (layer.filters, layer.channels, 3, 3), layer.source)


def side_of(case: Case, describe: Callable[[Layer], Any]) -> Side:
    """A kernel with drawn tensors, which are the same for both sides."""
    layer, rng = case.layer, np.random.default_rng(0)
    kernel = describe(layer)
    source, result, bias = (aligned(tensor.nbytes) for tensor in tensors_of(layer))
    values = rng.normal(size=source.nbytes // layer.source.nbytes).clip(0)
    bits = values.astype(np.float32).view(np.uint32)
    source[:] = (
        bits if layer.source == DType.F32 else (bits >> 16).astype(np.uint16)
    ).view(np.uint8)
    bias[:] = rng.normal(size=layer.filters).astype(np.float32).view(np.uint8)
    scratchpad = Memory(kernel.scratchpad, aligned(kernel.scratchpad.nbytes))
    memories = dict(
        zip(
            (onednn.SRC, onednn.DST, onednn.BIAS),
            map(Memory, tensors_of(layer), (source, result, bias)),
        )
    )
    weight = weight_of(layer)
    array = rng.normal(0, (9 * layer.channels) ** -0.5, weight.dims).astype(np.float32)
    calls = []
    for _ in range(case.copies):
        packed = Weights({weight.name: array}).packed(weight, kernel.weights)
        calls.append(
            kernel.bind(
                {**memories, onednn.WEIGHTS: packed, onednn.SCRATCHPAD: scratchpad}
            )
        )
    return Side(kernel.name, calls, result)


def values_of(stored: np.ndarray, layer: Layer) -> np.ndarray:
    """Elements of a map as float32."""
    if layer.destination == DType.F32:
        return stored.view(np.float32)
    return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


if __name__ == "__main__":
    main()
