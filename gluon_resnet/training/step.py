# SPDX-License-Identifier: Apache-2.0
"""`TrainingStep`: forward, backward, update, on one or several devices."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import Block, HybridBlock, nn
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet.errors import InputError
from gluon_resnet.training.ema import update_average
from gluon_resnet.training.losses import LOSSES
from gluon_resnet.training.mixed_precision import compute_in
from gluon_resnet.training.optimizers import OPTIMIZERS, Step, global_norm
from gluon_resnet.training.precision import resolved
from gluon_resnet.training.recipe import Recipe

_sync_keys = itertools.count()
# More than the operators of a pass on all contexts; each takes memory only when used.
_MANY_PIECES = 4096


class _MeanPool(nn.GlobalAvgPool2D):
    """Global pooling whose gradient keeps the next layers on oneDNN's fast path.

    oneDNN 2.4 hands the gradient of its own global pooling on in a layout that its
    fast BatchNorm does not take; in CIFAR nets that costs half of a training step.
    (A subclass, because Gluon refuses to replace a layer by one of another class.)
    """

    def hybrid_forward(self, F, x):
        return F.mean(x, axis=(2, 3), keepdims=True)


class LossScale:
    """Factor that keeps small fp16 gradients from vanishing; it finds its own size.

    Twice as large after 2000 steps without an overflow, half as large after each step
    with one, which is left out. As `torch.amp.GradScaler` (arXiv:1710.03740, 3.2).
    """

    GROWTH_INTERVAL = 2000

    def __init__(self, value: float = 2.0**16):
        self.value = value
        self.clean_steps = 0

    def update(self, *, is_finite: bool) -> None:
        """Take note of a step whose gradient was finite or not.

        Raises InputError when it is not even without scaling.
        """
        self.clean_steps = self.clean_steps + 1 if is_finite else 0
        if not is_finite:
            self.value /= 2
        elif self.clean_steps == self.GROWTH_INTERVAL:
            self.value, self.clean_steps = self.value * 2, 0
        if self.value < 1:
            raise InputError(
                f"the loss scale fell to {self.value} because fp16 gradients overflow "
                "at any scale: lower the learning rate or use precision fp32"
            )


class Answer(NamedTuple):
    """What the network said to a batch, before the update."""

    loss: float
    """The mean, finite or not."""
    logits: np.ndarray
    """float32 (N, classes)."""


class TrainingStep:
    """One optimiser step of a recipe on one or several devices.

    net: initialised on `contexts`, its weights loaded: the average of the parameters
    starts from them. It is hybridized here. Its pooling layer is exchanged for an equal
    one with a faster gradient, and for bf16 or fp16 it casts inside; its parameters
    stay float32.

    `precision` is the recipe's on these devices; InputError where they cannot.
    """

    def __init__(
        self, net: HybridBlock, recipe: Recipe, contexts: Sequence[mx.Context]
    ):
        self.precision = resolved(recipe.precision, contexts)
        self.recipe, self.contexts, self.net = recipe, list(contexts), net
        net.pool = _MeanPool()
        _synchronise_norms(net, self.contexts)
        if self.precision != "fp32":
            _compute_in(net, {"bf16": "bfloat16", "fp16": "float16"}[self.precision])
        net.hybridize(static_alloc=True, static_shape=True)
        self.parameters = net._collect_params_with_prefix()
        self.trained = {
            name: parameter
            for name, parameter in self.parameters.items()
            if parameter.grad_req != "null"
        }
        for parameter in self.trained.values():
            parameter.grad_req = "add" if recipe.accumulate > 1 else "write"
        self.optimizer = OPTIMIZERS[recipe.optimizer]
        self.states = {
            name: [
                [mx.nd.zeros_like(data) for _ in range(self.optimizer.num_states)]
                for data in parameter.list_data()
            ]
            for name, parameter in self.trained.items()
        }
        self.count = 0
        self.loss_scale = LossScale() if self.precision == "fp16" else None
        self.average = {}
        if recipe.ema:
            self.average = {n: v.copy() for n, v in self._values().items()}
        self.kvstore = None
        if len(self.contexts) > 1:
            self.kvstore = mx.kv.create("device")
            for name, parameter in self.trained.items():
                self.kvstore.init(name, parameter.data(self.contexts[0]))

    def __call__(
        self, images: np.ndarray, targets: np.ndarray, *, learning_rate: float
    ) -> Answer:
        """Update the parameters by one batch; returns what it was answered.

        images: float32 (N, 3, H, W); targets: float32 (N, classes).
        Raises InputError where N does not split evenly over devices and passes.
        """
        batch_size, passes = len(images), self.recipe.accumulate
        check_split(batch_size, passes=passes, num_devices=len(self.contexts))
        if passes > 1:
            for parameter in self.trained.values():
                parameter.zero_grad()
        shares = zip(np.split(images, passes), np.split(targets, passes))
        answers = [self._accumulate_gradients(*share) for share in shares]
        self._update(batch_size, learning_rate)
        return Answer(
            sum(answer.loss for answer in answers) / passes,
            np.concatenate([answer.logits for answer in answers]),
        )

    def _accumulate_gradients(self, images: np.ndarray, targets: np.ndarray) -> Answer:
        """Forward and backward on all devices at a time."""
        loss_function = LOSSES[self.recipe.loss]
        count = len(self.contexts)
        inputs, labels = (
            [
                mx.nd.array(share, ctx=context)
                for share, context in zip(np.split(whole, count), self.contexts)
            ]
            for whole in (images, targets)
        )
        # From here on nothing may wait for a device, not even for room for an array:
        # in a synchronised norm the first device waits for all others.
        with autograd.record():
            logits = [self.net(x) for x in inputs]
            losses = [loss_function(each, t) for each, t in zip(logits, labels)]
        scale = self.loss_scale.value if self.loss_scale else 1
        autograd.backward(losses, [scale * mx.nd.ones_like(each) for each in losses])
        return Answer(
            sum(float(each.mean().asscalar()) for each in losses) / count,
            np.concatenate([each.asnumpy() for each in logits]),
        )

    def _update(self, batch_size: int, learning_rate: float) -> None:
        """Sum the gradients over the devices and update all parameters."""
        gradients = {n: p.list_grad() for n, p in self.trained.items()}
        if self.kvstore:
            for priority, (name, each) in enumerate(gradients.items()):
                self.kvstore.pushpull(name, each, priority=-priority)
        rescale = 1 / batch_size
        if self.loss_scale:
            rescale /= self.loss_scale.value
        limit = self.recipe.clip_norm
        if limit or self.loss_scale:
            norm = rescale * global_norm(each[0] for each in gradients.values())
            if self.loss_scale:
                self.loss_scale.update(is_finite=math.isfinite(norm))
                if not math.isfinite(norm):
                    return
            if limit and norm > limit:
                rescale *= limit / norm
        self.count += 1
        step = Step(self.count, learning_rate, self.recipe.momentum, rescale)
        for name, parameter in self.trained.items():
            decay = self._weight_decay(name)
            for arrays in zip(
                parameter.list_data(), gradients[name], self.states[name]
            ):
                self.optimizer.update(*arrays, step, weight_decay=decay)
        if self.average:
            update_average(self.average, self._values(), decay=self.recipe.ema)

    def _weight_decay(self, name: str) -> float:
        is_spared = name.endswith(("gamma", "beta", "bias"))
        if is_spared and not self.recipe.decay_norm_and_bias:
            return 0.0
        return self.recipe.weight_decay

    def evaluated_parameters(self) -> dict[str, mx.nd.NDArray]:
        """What is to be validated and saved, under the names of `save_parameters`.

        The average where the recipe asks for one, else the parameters themselves, with
        running statistics averaged over the devices. To be read before the next step.
        """
        return self.average or self._values()

    def _values(self) -> dict[str, mx.nd.NDArray]:
        # The last backward pass updates running statistics, and MXNet does not make
        # those wait who read them.
        mx.nd.waitall()
        first = self.contexts[0]
        return {
            name: parameter.data(first)
            if name in self.trained
            else sum(each.as_in_context(first) for each in parameter.list_data())
            / len(self.contexts)
            for name, parameter in self.parameters.items()
        }

    def arrays(self) -> dict[str, mx.nd.NDArray]:
        """All that the next steps depend on, the network's parameters excepted.

        They are the arrays in use: to be written before the next step.
        """
        mx.nd.waitall()
        arrays = {"count": mx.nd.array([self.count], dtype="int64")}
        if self.loss_scale:
            scale = (self.loss_scale.value, self.loss_scale.clean_steps)
            arrays["loss_scale"] = mx.nd.array(scale)
        for name, states in self.states.items():
            for index, state in enumerate(states[0]):  # equal on all devices
                arrays[f"optimizer.{index}.{name}"] = state
        for name, mean in self.average.items():
            arrays[f"ema.{name}"] = mean
        if len(self.contexts) > 1:  # each has running statistics of its own
            for name in self.parameters.keys() - self.trained.keys():
                for index, data in enumerate(self.parameters[name].list_data()):
                    arrays[f"statistics.{index}.{name}"] = data
        return arrays

    def restore(self, arrays: Mapping[str, mx.nd.NDArray]) -> None:
        """Go on from where `arrays()` were taken.

        Raises InputError for arrays of another recipe, net or number of devices. The
        precision may be another; the loss scale of fp16 begins anew then.
        """
        own = self.arrays()
        own.pop("loss_scale", None)
        differing = sorted(own.keys() ^ (arrays.keys() - {"loss_scale"}))
        if differing:
            raise InputError(
                f"the training state does not fit: {differing[0]} and "
                f"{len(differing) - 1} other arrays are on one side only; resume with "
                "the recipe, model and number of devices that it was saved with"
            )
        self.count = int(arrays["count"].asscalar())
        if self.loss_scale and "loss_scale" in arrays:
            value, clean_steps = arrays["loss_scale"].asnumpy()
            self.loss_scale.value = float(value)
            self.loss_scale.clean_steps = int(clean_steps)
        for name, target in own.items():
            arrays[name].copyto(target)
        for first, *others in self.states.values():
            for states in others:
                for source, target in zip(first, states):
                    source.copyto(target)
        mx.nd.waitall()


def check_split(batch_size: int, *, passes: int, num_devices: int) -> None:
    """Raise InputError unless a batch splits evenly over devices and passes."""
    parts = num_devices * passes
    if batch_size % parts:
        raise InputError(
            f"a batch of {batch_size} images does not split evenly into {num_devices} "
            f"devices x {passes} passes: choose a batch size that is a multiple of "
            f"{parts}"
        )


def _synchronise_norms(net: HybridBlock, contexts: Sequence[mx.Context]) -> None:
    """Let each synchronised norm share its sums with its own copies, and no others.

    MXNet keeps the sums in a table of the process, by a key that repeats in every net.
    """
    blocks: list[Block] = []
    net.apply(blocks.append)
    layers = [block for block in blocks if isinstance(block, SyncBatchNorm)]
    for layer in layers:
        layer._kwargs.update(ndev=len(contexts), key=f"sync{next(_sync_keys)}")
    # CPU contexts share a few pieces of working memory in turn. A norm that waits for
    # another context holds one, and the other context may be waiting for that.
    num_pieces = int(os.environ.get("MXNET_CPU_TEMP_COPY", 4))
    is_cpu = contexts[0].device_type == "cpu"
    if layers and is_cpu and len(contexts) > 1 and num_pieces < _MANY_PIECES:
        raise InputError(
            f"MXNET_CPU_TEMP_COPY is {num_pieces}: synchronised BatchNorm on several "
            f"CPU contexts would wait for ever; set it to {_MANY_PIECES} before Python "
            "starts"
        )


def _compute_in(net: HybridBlock, dtype: str) -> None:
    """Put casts to `dtype` into the graph of `net` each time that it is traced.

    `amp.init` would do it to every network of the process.
    """
    trace = net._get_graph

    def traced(*images):
        if not net._cached_graph:
            inputs, logits = trace(*images)
            net._cached_graph = inputs, compute_in(logits, dtype)
        return net._cached_graph

    net._get_graph = traced
