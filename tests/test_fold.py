# SPDX-License-Identifier: Apache-2.0
"""BatchNorm folded into convolutions."""

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon

from gluon_resnet import create_model
from gluon_resnet.inference.fold import folded

# Rounding of float32 through tens of layers; a wrong fold differs by whole units.
TOLERANCE = 2e-6


def run(symbol, arrays, images):
    inputs = {name: mx.nd.array(array) for name, array in arrays.items()}
    states = {name: inputs.pop(name) for name in symbol.list_auxiliary_states()}
    executor = symbol.bind(mx.cpu(), {"data": images, **inputs}, aux_states=states)
    return executor.forward()[0].asnumpy()


@pytest.mark.parametrize(
    "name, norms_left",
    [
        ("resnet50_v1", 0),  # convolutions with a bias of their own
        ("resnet18_v1d", 0),
        ("resnet18_v2", 10),  # the image's, one for each block, the last
        ("resnet50_v2", 18),
        ("cifar_resnet20_v1", 0),
        ("cifar_resnet20_v2", 11),
        ("resnest14d", 0),
        ("resnest50d_4s2x40d", 0),
    ],
)
def test_folded_graph_answers_as_the_net_does(name, norms_left, monkeypatch):
    # MXNet's own fusion takes a ReLU along whose convolution is added, too.
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")
    net = create_model(name)
    fill_gluon(net)
    images = mx.nd.array(draw_images((2, 3, 64, 64)))
    expected = net(images).asnumpy()
    graph, arrays = folded(net)
    assert sum(node.op == "BatchNorm" for node in graph.nodes) == norms_left
    logits = run(graph.symbol(), arrays, images)
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


def test_folding_leaves_the_net_as_it_is():
    net = create_model("cifar_resnet20_v1")
    fill_gluon(net)
    before = {k: p.data().asnumpy() for k, p in net.collect_params().items()}
    folded(net)
    for name, parameter in net.collect_params().items():
        assert (parameter.data().asnumpy() == before[name]).all()
