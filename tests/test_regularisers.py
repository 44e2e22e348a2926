# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth and DropBlock: off in inference, right on average in training."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnet import create_model, set_drop_block
from gluon_resnet.errors import InputError
from gluon_resnet.models.regularisers import DropBlock, stochastic_depth

IMAGES = mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, 32, 32)))


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)


def layer_outputs(layer, x, train):
    with autograd.record(train_mode=train):
        return layer(x).asnumpy()


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("layer", [DropBlock(0.3), stochastic_depth(0.3)])
def test_layer_is_the_identity_outside_training(layer, hybridize):
    x = mx.nd.random.normal(shape=(8, 4, 16, 16))
    if hybridize:
        layer.hybridize()
        layer_outputs(layer, x, train=True)  # what is traced first must not stay
    np.testing.assert_array_equal(layer_outputs(layer, x, train=False), x.asnumpy())
    assert (layer_outputs(layer, x, train=True) != x.asnumpy()).any()


def test_stochastic_depth_drops_whole_samples_and_rescales():
    out = layer_outputs(stochastic_depth(0.25), mx.nd.ones((4000, 2, 3, 3)), train=True)
    values = out.reshape(len(out), -1)
    assert (values == values[:, :1]).all()
    assert set(np.unique(values)) == {0, np.float32(1 / 0.75)}
    assert abs((values[:, 0] == 0).mean() - 0.25) < 0.03


def test_stochastic_depth_passes_gradients_of_kept_samples_only():
    x = mx.nd.ones((64, 2, 3, 3))
    x.attach_grad()
    with autograd.record():
        y = stochastic_depth(0.5)(x)
    y.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), y.asnumpy())


def test_drop_block_shares_one_mask_of_squares_and_keeps_the_mean():
    out = layer_outputs(DropBlock(0.1), mx.nd.ones((3, 500, 20, 20)), train=True)
    assert (out == out[:1]).all()
    assert out.mean() == pytest.approx(1, abs=1e-5)
    dropped = out[0] == 0
    # 1 - (1 - 0.0137) ** 9 = 0.117 of the interior, less at the border.
    assert 0.1 < dropped.mean() < 0.117
    padded = np.pad(dropped, ((0, 0), (2, 2), (2, 2)), constant_values=True)
    squares = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    centres = squares.all(axis=(3, 4))  # each dropped pixel lies in a dropped square
    cover = np.lib.stride_tricks.sliding_window_view(centres, (3, 3), axis=(1, 2))
    assert cover.any(axis=(3, 4))[dropped].all()


@pytest.mark.parametrize("side", [9, 14])
def test_drop_block_rate_follows_the_map_size(side):
    out = layer_outputs(DropBlock(0.1), mx.nd.ones((1, 4000, side, side)), train=True)
    seed_rate = 0.1 / 9 * side**2 / (side - 2) ** 2
    interior = out[0, :, 1:-1, 1:-1] == 0
    assert interior.mean() == pytest.approx(1 - (1 - seed_rate) ** 9, rel=0.03)


def test_resnest_has_three_drop_blocks_in_each_block_of_the_last_two_stages():
    net = create_model("resnest26d", drop_block=0.1)
    found = []
    net.apply(lambda b: found.append(b) if isinstance(b, DropBlock) else None)
    assert len(found) == 3 * (2 + 2)


def test_set_drop_block_reaches_a_hybridized_net():
    net = create_model("resnest14d", drop_block=0.5)
    net.hybridize()
    plain = net(IMAGES).asnumpy()
    assert (layer_outputs(net, IMAGES, train=True) != plain).any()
    set_drop_block(net, 0)
    found = []
    net.apply(lambda b: found.append(b) if isinstance(b, DropBlock) else None)
    assert {block.probability for block in found} == {0}
    for block in found:
        x = mx.nd.ones((1, 64, 8, 8))
        assert (layer_outputs(block, x, train=True) == 1).all()


def test_drop_block_probability_outside_its_range_is_named():
    net = create_model("resnest14d", drop_block=0.1)
    message = r"^DropBlock probability is 1\.5; it must be in \[0, 1\)$"
    with pytest.raises(InputError, match=message):
        set_drop_block(net, 1.5)


def test_drop_path_grows_linearly_over_the_blocks():
    net = create_model("cifar_resnet20_v1", drop_path=0.8)
    rates = [
        block.body.drop_path._rate if hasattr(block.body, "drop_path") else 0
        for stage in (net.stage1, net.stage2, net.stage3)
        for block in stage
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.8, 9))


@pytest.mark.parametrize("model", ["resnet18_v1", "resnet18_v2", "resnest14d"])
def test_drop_path_of_one_block_leaves_its_shortcut(model):
    blocks = sum(create_model(model).spec.blocks)
    net = create_model(model, drop_path=[0.999] * blocks)
    block, x = net.stage1[0], mx.nd.random.normal(shape=(1, 64, 8, 8))
    out = layer_outputs(block, x, train=True)
    if model == "resnet18_v1":
        np.testing.assert_array_equal(out, np.maximum(x.asnumpy(), 0))
    elif model == "resnet18_v2":
        np.testing.assert_array_equal(out, x.asnumpy())
    else:
        with autograd.record():
            shortcut = mx.nd.relu(block.shortcut(x)).asnumpy()
        np.testing.assert_allclose(out, shortcut, atol=1e-6)
