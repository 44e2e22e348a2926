# SPDX-License-Identifier: Apache-2.0
"""Optimisers against torch's SGD and timm's LAMB, over steps of changing rates."""

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet.training.optimizers import OPTIMIZERS, Step, global_norm, square_sum

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("training.json").read_text()
)
REGENERATE = "regenerate with tests/golden/make_training.py"
# Four steps in float32 on values near 1, against float64.
ROUNDING = 2e-6


@pytest.mark.parametrize("name", ["sgd", "nag", "lamb"])
def test_steps_match_torch_and_timm(name):
    optimizer = OPTIMIZERS[name]
    weights = {n: mx.nd.array(values) for n, values in GOLDEN["start"].items()}
    states = {
        n: [mx.nd.zeros_like(weight) for _ in range(optimizer.num_states)]
        for n, weight in weights.items()
    }
    batch_size = 8  # the gradients of a step are sums over the batch
    for count, row in enumerate(GOLDEN["gradients"]):
        gradients = {n: mx.nd.array(row[n]) * batch_size for n in weights}
        rescale = 1 / batch_size
        if name == "lamb":
            rescale /= max(1, rescale * global_norm(gradients.values()))
        step = Step(count + 1, GOLDEN["rates"][count], 0.9, rescale)
        for n, weight in weights.items():
            decay = GOLDEN["decay"] if n == "weight" else 0.0
            optimizer.update(weight, gradients[n], states[n], step, weight_decay=decay)
        for n, weight in weights.items():
            np.testing.assert_allclose(
                weight.asnumpy(),
                GOLDEN[name][count][n],
                atol=ROUNDING,
                rtol=0,
                err_msg=REGENERATE,
            )


def test_golden_gradients_are_clipped_by_lamb():
    for row in GOLDEN["gradients"]:
        assert global_norm(mx.nd.array(values) for values in row.values()) > 2


def test_square_sum_of_millions_is_exact():
    values = np.random.default_rng(0).normal(1, 1, (2000, 1000)).astype(np.float32)
    exact = np.square(values, dtype=np.float64).sum()
    assert square_sum(mx.nd.array(values)).asscalar() == pytest.approx(exact, rel=2e-5)


def test_global_norm_covers_all_arrays():
    arrays = [mx.nd.array([3.0, 0.0]), mx.nd.array([[4.0], [12.0]])]
    assert global_norm(arrays) == 13
