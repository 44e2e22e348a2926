# SPDX-License-Identifier: Apache-2.0
"""The fastest form of a network for inference on the CPU: plans for oneDNN.

One image, or a few, are computed by all cores together. Of more images each core has
its share for itself: none waits for another, and what it works on fits into its cache.
"""

import atexit
import ctypes
import logging
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, NamedTuple, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet import cpu
from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph
from gluon_resnet.inference import onednn, openmp
from gluon_resnet.inference.coverage import obstacle
from gluon_resnet.inference.fallback import MXNetForm
from gluon_resnet.inference.fold import folded
from gluon_resnet.inference.onednn import DType
from gluon_resnet.inference.operators import described, plan_of
from gluon_resnet.inference.packing import Weights
from gluon_resnet.inference.plan import Plan, PlanError
from gluon_resnet.inference.rewrites import inference_graph
from gluon_resnet.inference.steps import steps_of
from gluon_resnet.inference.winograd import choice
from gluon_resnet.inference.workers import Workers
from gluon_resnet.precision import check_device

log = logging.getLogger(__name__)

Forward = Callable[[mx.nd.NDArray], Any]
"""From images (N, C, H, W) to logits (N, classes), or what else the network gives."""

# Images of 224 x 224 that a core computes at a time; of smaller ones more. Fewer make
# less of the weights that are fetched for them, more are too much for the cache.
_AT_A_TIME = {"fp32": 2, "bf16": 4, "int8": 4}
_SIZE = 224  # of the images of a net that is none of the catalog's
# Memory of plans, for each worker, that a form keeps beside those of its last call.
_KEPT_BYTES = 2**26

# Whoever forks gets it first: a lock of oneDNN's would never be released in the child.
_planning = threading.RLock()
_forms: "weakref.WeakSet[PlannedForm]" = weakref.WeakSet()
_is_forked = False


def check_precision(precision: str, ctx: mx.Context) -> None:
    """Raise InputError unless this machine can run `precision` on `ctx`."""
    check_device(precision, str(ctx))
    if precision == "fp32":
        return
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
    if precision == "int8" and not cpu.has_vnni():
        log.info("no VNNI seen: int8 runs, but without its speed")


def inference_form(net: HybridBlock, *, precision: str = "fp32") -> Forward:
    """Return a function that answers images as `net` does, only faster.

    It takes and gives float32 on `net`'s first device, images (N, C, H, W) of any N, H
    and W; see `PlannedForm` for what a new shape costs, for threads and for forks.
    The answer is logits, the pooled vector or a list of feature maps, as that of `net`.
    The values are copies: `net` may be trained on without changing the form.

    precision: "fp32", equal to `net` but for rounding, or "bf16", whose predictions
    agree with fp32's for at least 999 images of 1,000 (tests/test_inference.py).
    On a GPU, where oneDNN's wheel is missing, for a layer that no kernel computes, and
    for a net of feature maps the form is MXNet's own operators, hybridized; which it
    is, is logged.
    Raises InputError for a precision that this machine or this net cannot run.
    """
    ctx = next(iter(net.collect_params().values())).list_ctx()[0]
    check_precision(precision, ctx)
    if ctx.device_type != "cpu" or not onednn.is_available():
        log.info("fp32 by MXNet's own operators: no kernels of oneDNN for %s", ctx)
        return MXNetForm(*folded(net), ctx)
    with _planning:  # Gluon cannot trace a net in two threads at once.
        graph, arrays = inference_graph(net)
    reason = obstacle(graph)
    if reason is None:
        size = net.spec.size if hasattr(net, "spec") else _SIZE
        return PlannedForm(graph, arrays, precision, size)
    if precision != "fp32":
        raise InputError(f"this net has no {precision}, {reason}; use precision fp32")
    log.info("fp32 by MXNet's own operators: %s", reason)
    return MXNetForm(graph, arrays, ctx)


class PlannedForm:
    """A function from images to logits, and the plans for the shapes it had last.

    The first images of a height and width cost plans: 10 ms to 1 s, as the network is
    small or large; so may another number of them. Plans are kept: those of the last
    call, and of earlier calls as many as fit into 64 MB for each thread. They share the
    weights, where their kernels want them alike.

    Threads may share a form: calls are computed one after the other, each by all cores
    that the thread which made the form was allowed. An exception from the handler of a
    signal, such as Ctrl-C, ends a call when the images that are at work are done.
    A forked process may use the forms of its parent, but makes its own plans. OpenMP
    does not survive a fork, so there one image is computed by one core.
    """

    def __init__(
        self,
        graph: Graph,
        arrays: Mapping[str, np.ndarray],
        precision: str,
        size: int,
    ):
        """graph, arrays: of `inference_graph`, or of an int8 model.

        size: of the images, in pixels, that kernels are chosen for.
        """
        log.info(
            "%s: fused kernels of oneDNN, %s; 3x3 convolutions by %s",
            *(precision, onednn.instructions(), choice.described()),
        )
        self._steps = steps_of(graph)
        self._head = graph.end.inputs[0]
        self._weights = Weights(arrays)
        self._dtype = DType.BF16 if precision == "bf16" else DType.F32
        self._size = size
        self._is_decided = False
        self._pixels_at_a_time = _AT_A_TIME[precision] * 224 * 224
        self._max_threads = openmp.max_threads_function()
        self._places = _places(self._max_threads())
        self._start()
        _forms.add(self)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._plans: dict[_Group, Sequence[Plan]] = {}  # the last that were used last
        # To wake a thread takes as long as small networks do for an image.
        is_alone = len(self._places) == 1 and self._max_threads() == 1
        self._workers = Workers([] if is_alone and not _is_forked else self._places)

    def __call__(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return logits (N, classes), computed when this returns.

        Raises InputError for images of a shape that the network does not take.
        """
        shape, ctx = images.shape, images.context
        if ctx.device_type == "gpu":
            raise InputError(f"images on {ctx}; give images on the CPU, as the form is")
        if images.dtype != np.float32 and shape[0]:
            images = images.astype("float32")
        with self._lock:
            division, plans = self._taken(shape)
            num_classes = plans[division.groups[0]][0].num_classes
            logits = mx.nd.empty((shape[0], num_classes), ctx=ctx)
            try:
                if shape[0]:
                    self._run(division, plans, images, logits, 4 * num_classes)
            finally:
                if not self._workers.are_busy:
                    self._plans.update(plans)
        return logits

    def kernels(self, images: mx.nd.NDArray, rounds: int) -> list[dict]:
        """Measure the kernels that most of `images` go through, in their order.

        Returns {"layer", "primitive", "kernel", "ms"} of each, medians, for the images
        that are computed at a time.
        """
        self(images)
        rows: list[dict] = []
        with self._lock:
            division, plans = self._taken(images.shape)
            plan = plans[division.groups[0]][0]

            def measure() -> None:
                rows.extend(plan.measure(rounds))

            if division.shared:
                self._workers.run([measure], cancel=lambda: None)
            else:
                measure()
            self._plans.update(plans)
        return rows

    def _taken(
        self, shape: tuple[int, ...]
    ) -> "tuple[_Division, dict[_Group, Sequence[Plan]]]":
        """Divide a call, and take its plans from those that are kept, or make them.

        Who takes them gives them back when nobody uses them any more. Should one signal
        after the other have ended a call while workers are busy, nobody gets them.
        """
        threads = None if _is_forked else self._max_threads()
        try:
            division = _divided(
                shape, self._pixels_at_a_time, len(self._workers), threads
            )
            plans = {}
            for group in division.groups:
                plans[group] = self._plans.pop(group, ()) or self._made(group)
            return division, plans
        except PlanError as error:
            raise InputError(
                f"images of shape {shape} do not fit this network ({error}); give "
                "(N, C, H, W) with its number of channels and some pixels more"
            ) from error

    def _made(self, group: "_Group") -> Sequence[Plan]:
        plans: list[Plan] = []
        missing = [group.shape] * (1 if group.threads else len(self._workers))

        def make() -> None:
            while missing:
                plans.append(self._plan(missing.pop()))

        if group.threads:
            make()
        else:
            self._workers.run([make], cancel=missing.clear)
        self._forget()
        return plans

    def _plan(self, shape: tuple[int, ...]) -> Plan:
        network = (self._steps, self._head, self._weights)
        with _planning:
            own = (self._size, self._size)
            if not self._is_decided and shape[2:] != own:
                # See `Weights.methods`: for this size first, whatever is asked for.
                described(*network, (1, shape[1], *own), self._dtype)
            plan = plan_of(*network, shape, self._dtype)
            self._is_decided = True
            return plan

    def _forget(self) -> None:
        """Let those plans go that have not been used for the longest time."""
        sizes = {g: sum(p.nbytes for p in plans) for g, plans in self._plans.items()}
        kept = sum(sizes.values())
        for group, size in sizes.items():
            if kept <= _KEPT_BYTES * len(self._places):
                break
            del self._plans[group]
            kept -= size

    def _run(
        self,
        division: "_Division",
        plans: "dict[_Group, Sequence[Plan]]",
        images: mx.nd.NDArray,
        logits: mx.nd.NDArray,
        row_bytes: int,
    ) -> None:
        """Compute all images. Whoever computes some holds on to what it works on."""
        images_address, logits_address = _address(images), _address(logits)
        image_bytes = division.image_bytes
        if division.shared:
            parts = deque(division.shared)

            def work(worker: int, held: object) -> None:
                while parts:
                    try:
                        group, first = parts.popleft()
                    except IndexError:
                        return  # another worker has the last one
                    plans[group][worker].run(
                        images_address + first * image_bytes,
                        logits_address + first * row_bytes,
                    )

            tasks = [
                partial(work, worker, (images, logits))
                for worker in range(len(self._workers))
            ]
            self._workers.run(tasks, cancel=parts.clear)
        for group, first in division.own:
            plans[group][0].run(
                images_address + first * image_bytes, logits_address + first * row_bytes
            )

    def _end(self) -> None:
        """Wait for a call in another thread; later ones wait for ever."""
        self._lock.acquire()
        self._workers.end()


class _Group(NamedTuple):
    """Which plans a part of the images goes through."""

    shape: tuple[int, ...]
    """Of the part."""
    threads: Optional[int]
    """Of OpenMP's for one plan, which the caller runs. A plan must run with as many as
    it was made with. None: a plan for each worker, all of one thread."""


class _Part(NamedTuple):
    group: _Group
    first: int
    """Its first image."""


class _Division(NamedTuple):
    """How the images of a call are computed."""

    shared: tuple[_Part, ...]
    """By the workers; who is done with one takes the next."""
    own: tuple[_Part, ...]
    """By the caller."""
    groups: tuple[_Group, ...]
    image_bytes: int


@lru_cache(maxsize=256)
def _divided(
    shape: tuple[int, ...], pixels_at_a_time: int, workers: int, threads: Optional[int]
) -> _Division:
    """Divide images (N, C, H, W): the workers' shares are equal, the rest is the own.

    workers: 0 where the caller computes alone.
    threads: of OpenMP's for the own part; None where there may be none.
    """
    if len(shape) != 4 or 0 in shape[1:]:
        raise PlanError("there are no pixels")
    count, *image = shape
    share, rest = divmod(count, workers or 1)
    most = max(1, pixels_at_a_time // math.prod(image[1:]))
    whole, last = divmod(share, most)
    shares = ([most] * whole + [last] * (last > 0)) * (workers or 1)
    shares.sort(reverse=True)  # small ones last, for an even end
    shared, own = (shares, [rest] * (rest > 0)) if workers else ([], shares)
    if threads is None:
        shared, own = shared + [1] * rest, []
    groups = [_Group((n, *image), None) for n in shared]
    groups += [_Group((n, *image), threads) for n in own]
    parts = [*map(_Part, groups, accumulate([0, *shared, *own]))]
    # Of no image the classes are told by the plan for one.
    distinct = dict.fromkeys(groups) or [_Group((1, *image), threads)]
    return _Division(
        shared=tuple(parts[: len(shared)]),
        own=tuple(parts[len(shared) :]),
        groups=tuple(distinct),
        image_bytes=4 * math.prod(image),
    )


def _places(threads: int) -> list[list[int]]:
    """Return the CPUs for each worker: no more workers than CPUs."""
    cpus = openmp.allowed_cpus()
    if not cpus:
        return [[] for _ in range(threads)]
    return cpu.places(cpus, min(threads, len(cpus)))


def _address(array: mx.nd.NDArray) -> int:
    """Where the elements are, once they are computed."""
    array.wait_to_read()
    address = ctypes.c_void_p()
    mx.base.check_call(
        mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(address))
    )
    return address.value or 0


def _restart_forms() -> None:
    """Give the forms in a forked process what has not come along: their threads."""
    global _is_forked
    _is_forked = True
    _planning.release()
    for form in list(_forms):
        form._start()


@atexit.register
def _end_forms() -> None:
    """Wait for calls of daemon threads: they must not outlive oneDNN and MXNet."""
    for form in list(_forms):
        form._end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_planning.acquire,
        after_in_parent=_planning.release,
        after_in_child=_restart_forms,
    )
