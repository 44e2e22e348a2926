# SPDX-License-Identifier: Apache-2.0
"""This project and GluonCV's nets: the MXNet sides of training_step.py."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# NumPy lacks a name that MXNet uses; the package adds it when it is imported first.
from gluon_resnet import _before_mxnet  # noqa: F401, I001

import mxnet as mx
import numpy as np
from gluoncv.model_zoo import get_model
from gluoncv.nn.dropblock import set_drop_prob
from inference_mxnet import gluoncv_name
from mxnet import autograd, gluon
from training_step_side import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    answer_commands,
)

from gluon_resnet import create_model, load_weights, save_weights
from gluon_resnet.preprocess import Protocol
from gluon_resnet.training.recipe import Recipe
from gluon_resnet.training.step import TrainingStep


def ours(folder, images, labels, precision):
    """The step that every training of this project takes."""
    net = create_model(folder.name)
    load_weights(net, folder / "weights.params")
    recipe = Recipe(
        folder.name,
        Protocol(),
        "",
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        precision=precision,
    )
    training_step = TrainingStep(net, recipe, [mx.cpu()])
    targets = np.eye(net.spec.num_classes, dtype=np.float32)[labels]

    def step():
        answer = training_step(images, targets, learning_rate=LEARNING_RATE)
        mx.nd.waitall()
        return answer.loss

    return step, lambda path: save_weights(net, path)


def gluoncv(folder, images, labels):
    """The loop of GluonCV's training scripts."""
    net = get_model(gluoncv_name(folder.name))
    net.load_parameters(str(folder / "gluoncv.params"))
    net.apply(partial(set_drop_prob, 0))  # Its ResNeSts have DropBlock.
    net.hybridize(static_alloc=True, static_shape=True)
    options = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "wd": WEIGHT_DECAY}
    trainer = gluon.Trainer(net.collect_params(), "sgd", options, kvstore=None)
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()

    def step():
        with autograd.record():
            loss = loss_function(net(mx.nd.array(images)), mx.nd.array(labels))
        loss.backward()
        trainer.step(len(images))
        mean = loss.mean().asscalar()
        mx.nd.waitall()
        return float(mean)

    return step, lambda path: net.save_parameters(str(path))


if __name__ == "__main__":
    side, folder = sys.argv[1], Path(sys.argv[2])
    batch = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    if side == "gluoncv":
        answer_commands(*gluoncv(folder, *batch))
    else:
        answer_commands(*ours(folder, *batch, side.removeprefix("ours-")))
