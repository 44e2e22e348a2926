# SPDX-License-Identifier: Apache-2.0
"""Feature maps of the stages."""

import mxnet as mx
import pytest

from gluon_resnet import create_model, extract_feat
from gluon_resnet.errors import InputError


@pytest.fixture(scope="module")
def net():
    return create_model("resnet18_v2")


def test_stages_halve_the_resolution(net):
    shapes = [
        feature.shape for feature in extract_feat(net, mx.nd.ones((2, 3, 64, 96)))
    ]
    assert shapes == [
        (2, 64, 16, 24),
        (2, 128, 8, 12),
        (2, 256, 4, 6),
        (2, 512, 2, 3),
        (2, 512),
    ]


def test_pooled_vector_is_what_the_classifier_sees(net):
    images = mx.nd.random.normal(shape=(2, 3, 64, 64))
    (pooled,) = extract_feat(net, images, stages=["pooled"])
    assert (net.fc(pooled) == net(images)).asnumpy().all()


def test_order_is_the_one_asked_for(net):
    pooled, first = extract_feat(net, mx.nd.ones((1, 3, 64, 64)), ("pooled", 1))
    assert (pooled.shape, first.shape) == ((1, 512), (1, 64, 16, 16))


def test_unknown_stage_is_named(net):
    message = "^resnet18_v2 has no stage 5; choose from 1, 2, 3, 4, 'pooled'$"
    with pytest.raises(InputError, match=message):
        extract_feat(net, mx.nd.ones((1, 3, 32, 32)), [5])
