# SPDX-License-Identifier: Apache-2.0
"""What a notebook shows of an object fits a cell."""

import pytest

from gluon_resnet import bundled, create_model, init_model, load_weights
from gluon_resnet.predictions import Accuracy
from gluon_resnet.training.recipes import RECIPES
from gluon_resnet.weights import checkpoint

MOST = 160  # two lines of a terminal


def test_recipe_tells_what_is_trained_and_how_long():
    assert repr(RECIPES["resnet18_v1.onnx_zoo"]) == (
        "<Recipe resnet18_v1: 150 epochs of batches of 512, nag at 0.01, 1000 classes, "
        "224 pixels, fp32>"
    )


def test_checkpoint_tells_its_name_and_accuracy():
    assert repr(checkpoint("resnet18_v1.onnx_zoo")) == (
        "<Checkpoint resnet18_v1.onnx_zoo: 69.93 % top-1, 1000 classes, 224 pixels, "
        "onnx, Apache-2.0>"
    )


def test_load_report_counts_what_does_not_fit():
    net = create_model("cifar_resnet20_v1", num_classes=7)
    report = load_weights(net, bundled.weights(), strict=False)
    assert repr(report) == (
        f"<LoadReport {bundled.weights().name}: {report.loaded} tensors of params, "
        "named as own; 2 wrong shape>"
    )


@pytest.mark.parametrize(
    "value",
    [
        *RECIPES.values(),
        Accuracy(76.543210987654, 93.210987654321, 50000),
        init_model(bundled.NAME),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reprs_are_short(value):
    assert len(repr(value)) <= MOST
