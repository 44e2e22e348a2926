# SPDX-License-Identifier: Apache-2.0
"""The fastest form of a network for inference on the CPU: plans for oneDNN.

One image, or a few, are computed by all cores together. Of more images each core has
its share for itself: none waits for another, and what it works on fits into its cache.
"""

import ctypes
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet import cpu
from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph
from gluon_resnet.inference import onednn
from gluon_resnet.inference.operators import plan_of
from gluon_resnet.inference.plan import Plan, Weights
from gluon_resnet.inference.rewrites import inference_graph
from gluon_resnet.inference.steps import steps_of
from gluon_resnet.precision import PRECISIONS

log = logging.getLogger(__name__)

Forward = Callable[[mx.nd.NDArray], mx.nd.NDArray]

# Images of 224 x 224 that a core computes at a time; of smaller ones more. Fewer make
# less of the weights that are fetched for them, more are too much for the cache.
_AT_A_TIME = {"fp32": 2, "bf16": 4, "int8": 4}


def check_precision(precision: str, ctx: mx.Context) -> None:
    """Raise InputError unless this machine can run `precision` on `ctx`."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}; use {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return
    if ctx.device_type != "cpu":
        raise InputError(
            f"precision {precision} runs on cpu, not on {ctx}; use cpu or fp32"
        )
    if not onednn.is_available():
        raise InputError(
            f"precision {precision} needs oneDNN: run `pip install -r "
            "requirements.txt`, on Linux x86-64; or use fp32"
        )
    if precision == "bf16" and not onednn.computes_bf16():
        raise InputError(
            "precision bf16 needs a processor with AVX-512, which ONEDNN_MAX_CPU_ISA "
            "may restrict; use fp32"
        )
    if precision == "bf16" and "avx512_bf16" not in cpu.cpu_flags():
        log.info("bf16: the processor has no avx512_bf16, expect less speed than fp32")


def inference_form(net: HybridBlock, *, precision: str = "fp32") -> Forward:
    """Return a function that maps images to logits as `net` does, only faster.

    It takes and gives float32 on `net`'s first device, images (N, C, H, W) of any N, H
    and W; a call with another shape than the one before costs new plans.
    The values are copies: `net` may be trained on without changing the form.

    precision: "fp32", equal to `net` but for rounding, or "bf16", whose predictions
    agree with fp32's for at least 999 images of 1,000 (tests/test_inference.py).
    On a GPU and where oneDNN's wheel is missing the form is `net` itself, hybridized.
    Raises InputError for a precision that this machine cannot run.
    """
    ctx = next(iter(net.collect_params().values())).list_ctx()[0]
    check_precision(precision, ctx)
    if ctx.device_type != "cpu" or not onednn.is_available():
        log.info("%s on %s: MXNet's operators, nothing fused", precision, ctx)
        net.hybridize(static_alloc=True, static_shape=True)
        return net
    graph, arrays = inference_graph(net)
    return PlannedForm(graph, arrays, precision)


class PlannedForm:
    """A function from images to logits, and the plans for the shape it had last."""

    def __init__(self, graph: Graph, arrays: Mapping[str, np.ndarray], precision: str):
        """graph, arrays: of `inference_graph`, or of an int8 model."""
        log.info("%s: fused kernels of oneDNN, %s", precision, onednn.instructions())
        self._steps = steps_of(graph)
        self._weights = Weights(arrays)
        self._dtype = onednn.BF16 if precision == "bf16" else onednn.F32
        self._pixels_at_a_time = _AT_A_TIME[precision] * 224 * 224
        self._cores = openmp().omp_get_max_threads()
        # One to each core, whatever core the thread is bound to that starts them.
        cpus = sorted(cpu.CPUS)
        places = iter([cpus[core :: self._cores] for core in range(self._cores)])
        self._pool = ThreadPoolExecutor(
            self._cores, initializer=lambda: _work_alone(next(places))
        )
        self._shape = None
        self._lock = threading.Lock()

    def __call__(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return logits (N, classes), computed when this returns.

        Raises InputError for images of a shape that the network does not take.
        """
        if images.dtype != np.float32:
            images = images.astype("float32")
        shape = images.shape
        with self._lock:
            if shape != self._shape:
                self._make_plans(shape)
            logits = mx.nd.empty((shape[0], self._num_classes), ctx=images.context)
            self._run(_address(images), _address(logits))
        return logits

    def kernels(self, images: mx.nd.NDArray, rounds: int) -> list[dict]:
        """Measure the kernels that most of `images` go through, in their order.

        Returns {"layer", "primitive", "kernel", "ms"} of each, medians, for the images
        that are computed at a time.
        """
        self(images)
        plan = self._plans[0]
        if not self._share:
            return plan.measure(rounds)
        return self._pool.submit(plan.measure, rounds).result()

    def _make_plans(self, shape: tuple[int, int, int, int]) -> None:
        """Plan for `self._share` images a core, and for the rest to all together."""
        count, *image = shape
        self._shape = None  # Where memory ends, the next call begins anew.
        self._plans = []
        self._share, self._rest = divmod(count, self._cores)
        if self._share:
            most = max(1, self._pixels_at_a_time // math.prod(image[1:]))
            sizes = range(min(most, self._share), 0, -1)
            self._at_a_time = next(n for n in sizes if self._share % n == 0)
            self._plans = [
                self._pool.submit(self._plan, self._at_a_time, image).result()
                for _ in range(self._cores)
            ]
        if self._rest:
            self._plans.append(self._plan(self._rest, image))
        self._num_classes = self._plans[0].num_classes
        self._image_bytes = 4 * math.prod(image)
        self._shape = shape

    def _plan(self, count: int, image: list[int]) -> Plan:
        shape = (count, *image)
        try:
            return plan_of(self._steps, self._weights, shape, self._dtype)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"images of shape {shape} do not fit this network ({error}); give "
                "(N, C, H, W) with its number of channels and some pixels more"
            ) from error

    def _run(self, images: int, logits: int) -> None:
        """Compute from address to address."""

        def run(plan: Plan, first: int) -> None:
            plan.run(
                images + first * self._image_bytes,
                logits + first * self._num_classes * 4,
            )

        shared = self._cores * self._share
        if self._share:
            parts = iter(range(0, shared, self._at_a_time))

            def run_parts(plan: Plan) -> None:
                for first in parts:  # that no other core has taken
                    run(plan, first)

            # To wake a thread takes as long as small networks do for an image.
            map_parts = self._pool.map if self._cores > 1 else map
            list(map_parts(run_parts, self._plans[: self._cores]))
        if self._rest:
            run(self._plans[-1], shared)


def openmp() -> ctypes.CDLL:
    """Return the OpenMP that MXNet and oneDNN share; it is loaded by now."""
    return ctypes.CDLL("libgomp.so.1")


def _work_alone(cpus: list[int]) -> None:
    """Make the calling thread one that stays on `cpus` and asks OpenMP for no other."""
    openmp().omp_set_num_threads(1)
    if cpus:
        os.sched_setaffinity(0, cpus)


def _address(array: mx.nd.NDArray) -> int:
    """Where the elements are, once they are computed."""
    array.wait_to_read()
    address = ctypes.c_void_p()
    mx.base.check_call(
        mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address))
    )
    return address.value
