# SPDX-License-Identifier: Apache-2.0
"""SGD, NAG and LAMB: functions that update one parameter in place.

Each takes the parameter, its gradient, its states (arrays of its shape, zero before the
first step) and `Step`, what all parameters of a step share.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import mxnet as mx


class Step(NamedTuple):
    """What a step does to every parameter."""

    number: int
    """Steps up to and with this one."""
    learning_rate: float
    momentum: float
    rescale: float
    """Factor of the gradient: 1 / batch size, clipping and loss scale in one."""


class Optimizer(NamedTuple):
    """A way to update."""

    update: Callable[..., None]
    """(weight, gradient, states, step, *, weight_decay)"""
    num_states: int


def sgd(
    weight: mx.nd.NDArray,
    gradient: mx.nd.NDArray,
    states: Sequence[mx.nd.NDArray],
    step: Step,
    *,
    weight_decay: float,
) -> None:
    """SGD with momentum as in torch: the momentum does not hold the learning rate.

    m = momentum * m + g + wd * w; w = w - lr * m. (MXNet's own adds lr * g to m, which
    differs as soon as the rate changes.)
    """
    (momentum,) = states
    # The kernel adds -lr * (g + wd * w) to the momentum; what it makes of the weight
    # with that is not asked for.
    mx.nd.sgd_mom_update(
        weight,
        gradient,
        momentum,
        lr=-1,
        momentum=step.momentum,
        wd=weight_decay,
        rescale_grad=step.rescale,
    )
    mx.nd.sgd_update(weight, momentum, lr=step.learning_rate, wd=0, out=weight)


def nag(
    weight: mx.nd.NDArray,
    gradient: mx.nd.NDArray,
    states: Sequence[mx.nd.NDArray],
    step: Step,
    *,
    weight_decay: float,
) -> None:
    """Nesterov's momentum as MXNet's "nag": the momentum holds the learning rate.

    m = momentum * m - lr * (g + wd * w); w = w + momentum * m - lr * (g + wd * w). As
    long as the rate is constant that is torch's SGD with nesterov=True, but for one
    thing: the m that is kept has the decay of the weight after the step.
    """
    mx.nd.nag_mom_update(
        weight,
        gradient,
        *states,
        lr=step.learning_rate,
        momentum=step.momentum,
        wd=weight_decay,
        rescale_grad=step.rescale,
        out=weight,
    )


def lamb(
    weight: mx.nd.NDArray,
    gradient: mx.nd.NDArray,
    states: Sequence[mx.nd.NDArray],
    step: Step,
    *,
    weight_decay: float,
) -> None:
    """LAMB (arXiv:1904.00962) as timm's: no trust ratio where the decay is 0.

    betas 0.9 and 0.999, eps 1e-6, bias correction; clipping is the caller's.
    `mx.optimizer.LAMB` gives every parameter a trust ratio, and takes its norms with a
    float32 sum in one go, 7e-4 off for 2 million values.
    """
    update = mx.nd.lamb_update_phase1(
        weight,
        gradient,
        *states,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-6,
        t=step.number,
        wd=weight_decay,
        rescale_grad=step.rescale,
    )
    if weight_decay > 0:
        norms = [square_sum(array).sqrt() for array in (weight, update)]
    else:
        norms = [mx.nd.ones(1, ctx=weight.ctx)] * 2
    mx.nd.lamb_update_phase2(weight, update, *norms, lr=step.learning_rate, out=weight)


OPTIMIZERS = {
    "sgd": Optimizer(sgd, 1),
    "nag": Optimizer(nag, 1),
    "lamb": Optimizer(lamb, 2),
}


def square_sum(array: mx.nd.NDArray) -> mx.nd.NDArray:
    """Sum of squares, (1,); exact to 1e-5, unlike `NDArray.norm`, and much faster."""
    flat = array.reshape(-1)
    return mx.nd.dot(flat, flat)


def global_norm(arrays: Iterable[mx.nd.NDArray]) -> float:
    """Root of the sum of all squares."""
    return mx.nd.concat(*map(square_sum, arrays), dim=0).asnumpy().sum(dtype="d") ** 0.5
