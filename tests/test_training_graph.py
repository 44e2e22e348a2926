# SPDX-License-Identifier: Apache-2.0
"""The graphs that networks train as."""

import json
from collections import Counter

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnet import create_model
from gluon_resnet.models.training_graph import compute_in, fuse_norm_relu


def operators(symbol):
    return Counter(node["op"] for node in json.loads(symbol.tojson())["nodes"])


def outcome(net, symbol, images):
    """Logits and gradients; what the step does to running statistics goes with them."""
    values = {name: p.data().copy() for name, p in net.collect_params().items()}
    block = mx.gluon.SymbolBlock(symbol, mx.sym.var("data", dtype="float32"))
    parameters = block.collect_params()
    for name, parameter in parameters.items():
        parameter.shape = values[name].shape
        parameter.initialize()
        parameter.set_data(values[name])
    block.hybridize(static_alloc=True, static_shape=True)
    with autograd.record():
        logits = block(images)
    logits.backward()
    mx.nd.waitall()
    arrays = {n: p.grad() for n, p in parameters.items() if p.grad_req != "null"}
    arrays |= {n: p.data() for n, p in parameters.items() if p.grad_req == "null"}
    return {name: a.asnumpy() for name, a in {"logits": logits, **arrays}.items()}


@pytest.mark.parametrize(
    "name", ["cifar_resnet20_v1", "cifar_resnet20_v2", "resnet18_v1b", "resnest14d"]
)
def test_fused_graph_does_the_same_bit_for_bit(name):
    mx.random.seed(0)
    net = create_model(name, num_classes=10)
    images = mx.nd.random.normal(shape=(4, 3, 32, 32))
    net(images)
    plain = net(mx.sym.var("data"))
    fused = fuse_norm_relu(plain, net)
    assert operators(fused)["_contrib_BatchNormWithReLU"] > 5
    expected, found = outcome(net, plain, images), outcome(net, fused, images)
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


def test_norm_whose_map_is_not_blocked_keeps_its_relu():
    # 24 channels in each group of the attention; 3 go into the stem.
    net = create_model("resnest50d_1s4x24d")
    fused = fuse_norm_relu(net(mx.sym.var("data")), net)
    norms = {
        node["name"]
        for node in json.loads(fused.tojson())["nodes"]
        if node["op"] == "_contrib_BatchNormWithReLU"
    }
    assert norms
    for layer in (net.stem.bn1, net.stage1[0].body.conv2.bn):
        assert not any(name == f"{layer.name}_fwd" for name in norms)
    assert any(name == f"{net.stem.bn2.name}_fwd" for name in norms)


def test_only_matrix_products_and_what_is_between_are_low():
    net = create_model("resnest14d", dropout=0.1, drop_path=0.1, drop_block=0.1)
    symbol = compute_in(net(mx.sym.var("data")), "bfloat16")
    parameters = {name: np.float32 for name in net.collect_params()}
    internals = symbol.get_internals()
    _, types, _ = internals.infer_type(data=np.float32, **parameters)
    assert all(each == np.float32 for each in symbol.infer_type(data=np.float32)[0])
    by_name = dict(zip(internals.list_outputs(), types))
    low = [
        name
        for name, each in by_name.items()
        if each != np.float32 and not name.endswith("_bfloat16_output")
    ]
    assert any("batchnorm" in name for name in low)
    assert not any("softmax" in name or "dropout" in name for name in low)
