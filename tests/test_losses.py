# SPDX-License-Identifier: Apache-2.0
"""Losses and their gradients against torch's."""

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnet.training.losses import LOSSES

GOLDEN = json.loads(
    Path(__file__).with_name("golden").joinpath("training.json").read_text()
)["losses"]
REGENERATE = "regenerate with tests/golden/make_training.py"
# Float32 against float64, losses up to 20.
ROUNDING = 5e-6


@pytest.mark.parametrize("name", ["cross_entropy", "binary"])
def test_losses_and_gradients_match_torch(name):
    logits, targets = (mx.nd.array(GOLDEN[key]) for key in ("logits", "targets"))
    logits.attach_grad()
    with autograd.record():
        losses = LOSSES[name](logits, targets)
    losses.backward()
    for ours, key in ((losses, "losses"), (logits.grad, "gradient")):
        np.testing.assert_allclose(
            ours.asnumpy(), GOLDEN[name][key], atol=ROUNDING, rtol=0, err_msg=REGENERATE
        )


@pytest.mark.parametrize("name", ["cross_entropy", "binary"])
def test_huge_logits_give_finite_losses(name):
    logits, targets = mx.nd.array([[1e4, -1e4]]), mx.nd.array([[0.0, 1.0]])
    expected = 2e4  # for binary: 1e4 of each class
    assert LOSSES[name](logits, targets).asscalar() == pytest.approx(expected)
