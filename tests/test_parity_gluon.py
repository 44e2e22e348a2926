# SPDX-License-Identifier: Apache-2.0
"""mxnet's model_zoo and GluonCV give the same values, layer by layer.

The parameters travel through a .params file, as users' do.
"""

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon
from gluoncv import model_zoo as gluoncv_zoo
from mxnet.gluon.model_zoo import vision

from gluon_resnet import create_model, extract_feat, load_weights

# The same operators in the same order give the same bits; split attention adds up its
# splits in an order of its own.
EXACT, SPLIT_ATTENTION = 0, 1e-5
# A hybridized net keeps other memory layouts, for which oneDNN has other kernels.
KERNEL = 1e-5

MODEL_ZOO = [f"resnet{d}_v{v}" for v in (1, 2) for d in (18, 34, 50, 101, 152)]
GLUONCV = [
    *MODEL_ZOO,
    *(f"resnet{depth}_v1b" for depth in (18, 34)),
    *(f"resnet{depth}_v1{variant}" for variant in "bcds" for depth in (50, 101, 152)),
    *(f"cifar_resnet{depth}_v{v}" for v in (1, 2) for depth in (20, 56, 110)),
    *("resnest14", "resnest26", "resnest50", "resnest101", "resnest200", "resnest269"),
]
PAIRS = [(vision.get_model, name) for name in MODEL_ZOO]
PAIRS += [(gluoncv_zoo.get_model, name) for name in GLUONCV]


@pytest.mark.parametrize("get_model, model", PAIRS)
def test_layers_equal_gluons(get_model, model, tmp_path):
    images = mx.nd.array(
        draw_images((2, 3, 33, 49) if "cifar" in model else (2, 3, 65, 97))
    )
    theirs = get_model(model)
    theirs.initialize()
    theirs(images)  # shapes are deferred
    fill_gluon(theirs)
    theirs.save_parameters(str(tmp_path / "theirs.params"))

    ours = create_model(model)
    load_weights(ours, tmp_path / "theirs.params")
    found = [layer.asnumpy() for layer in (*extract_feat(ours, images), ours(images))]
    answers = [layer.asnumpy() for layer in their_layers(theirs, images)]
    bound = SPLIT_ATTENTION if "resnest" in model else EXACT
    assert len(found) == len(answers)
    for our_layer, their_layer in zip(found, answers):
        assert our_layer.shape == their_layer.shape
        error = np.abs(our_layer - their_layer).max()
        assert error <= bound * np.abs(their_layer).max()

    ours.hybridize(static_alloc=True, static_shape=True)
    largest = np.abs(found[-1]).max()
    error = np.abs(ours(images).asnumpy() - found[-1]).max()
    assert error <= KERNEL * largest


def their_layers(net, images):
    """Stage maps, pooled vector and logits of a model_zoo or GluonCV net."""
    if hasattr(net, "features"):
        layers = list(net.features)
        stages = [
            i
            for i, layer in enumerate(layers)
            if len(getattr(layer, "_children", ())) and "stage" in layer.name
        ]
        for i, layer in enumerate(layers):
            images = layer(images)
            if i in stages:
                yield images
        yield images.flatten()
    else:
        images = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            images = layer(images)
            yield images
        images = net.avgpool(images).flatten()
        yield images
    yield (net.output if hasattr(net, "features") else net.fc)(images)
