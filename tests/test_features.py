# SPDX-License-Identifier: Apache-2.0
"""Feature maps of the stages."""

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet import create_model, extract_feat, inference_form, init_model
from gluon_resnet.errors import InputError
from gluon_resnet.inference import onednn
from gluon_resnet.models import CATALOG
from gluon_resnet.models.resnet import empty_resnet

BUNDLED = "cifar_resnet20_v1.fashion_mnist"


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
    message = "^resnet18_v2 has no stage 5; choose from 0, 1, 2, 3, 4, 'pooled'$"
    with pytest.raises(InputError, match=message):
        extract_feat(net, mx.nd.ones((1, 3, 32, 32)), [5])


def test_stem_is_level_0_before_its_max_pool(net):
    images = mx.nd.random.normal(shape=(1, 3, 64, 64))
    stem, first = extract_feat(net, images, (0, 1))
    assert stem.shape == (1, 64, 32, 32)
    assert (net.stage1(net.stem.pool(stem)) == first).asnumpy().all()


def test_model_that_is_ready_to_classify_gives_the_vector_first():
    model = init_model(BUNDLED)
    images = np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype("float32")
    outs = extract_feat(model, images)
    assert [out.shape for out in outs] == [(2, 64)]
    (same,) = model.extract_feat(mx.nd.array(images))
    assert (same == outs[0]).asnumpy().all()
    np.testing.assert_allclose(
        model.net.fc(outs[0]).asnumpy(), model(images).asnumpy(), rtol=1e-4
    )
    maps = extract_feat(model, images, (1, 2, 3))
    assert [m.shape[2] for m in maps] == [28, 14, 7]


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (2, 64, 64, 3)])
def test_images_of_another_shape_are_named(net, shape):
    with pytest.raises(InputError) as caught:
        extract_feat(net, np.zeros(shape))
    assert str(caught.value) == (
        f"images of shape {shape} do not fit resnet18_v2; give (N, 3, H, W)"
    )


def test_forward_features_is_what_the_pooling_sees(net):
    images = mx.nd.random.normal(shape=(2, 3, 64, 64))
    maps = net.forward_features(images)
    assert maps.shape == (2, 512, 2, 2)
    assert (net.fc(net.flatten(net.pool(maps))) == net(images)).asnumpy().all()


# The reductions and the channels of timm's features_only, level by level.
@pytest.mark.parametrize(
    ("model", "channels", "reductions"),
    [
        ("resnet18_v1b", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
        ("resnet50_v1d", (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)),
        ("resnest101e", (128, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)),
        ("cifar_resnet18", (64, 64, 128, 256, 512), (1, 1, 2, 4, 8)),
        ("cifar_resnet20_v2", (16, 16, 32, 64), (1, 1, 2, 4)),
    ],
)
def test_levels_of_features_only_are_timms(model, channels, reductions):
    net = create_model(model, features_only=True)
    assert tuple(level.channels for level in net.feature_info) == channels
    assert tuple(level.reduction for level in net.feature_info) == reductions
    maps = net(mx.nd.ones((1, 3, 64, 64)))
    assert [m.shape for m in maps] == [
        (1, channel, 64 // reduction, 64 // reduction)
        for channel, reduction in zip(channels, reductions)
    ]


@pytest.mark.parametrize("family", sorted({spec.family for spec in CATALOG.values()}))
def test_maps_of_features_only_are_those_of_the_stages(family):
    name = next(spec.name for spec in CATALOG.values() if spec.family == family)
    whole = create_model(name)
    levels = create_model(name, features_only=True, out_indices=(0, 2, -1))
    source = whole._collect_params_with_prefix()
    for key, parameter in levels._collect_params_with_prefix().items():
        parameter.set_data(source[key].data())
    images = mx.nd.random.normal(shape=(1, 3, 64, 64))
    last = len(whole.spec.blocks)
    wanted = extract_feat(whole, images, (0, 2, last))
    for hybridized in (False, True):
        levels.hybridize(hybridized)
        for found, expected in zip(levels(images), wanted):
            np.testing.assert_allclose(
                found.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-5
            )


def test_features_only_keeps_no_stage_after_its_last():
    net = create_model("resnet18_v1b", features_only=True, out_indices=(1, 2))
    assert list(net._children) == ["stem", "stage1", "stage2"]
    assert [level.index for level in net.feature_info] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"out_indices": (1,)},
            (
                "out_indices wants features_only=True, and counts as timm does: 0 is "
                "the stem, 1 the first stage, which is OpenMMLab's 0"
            ),
        ),
        (
            {"features_only": True, "out_indices": (1, 4)},
            "out_indices is (1, 4); cifar_resnet20_v1 has the levels 0 (stem) to 3",
        ),
        (
            {"features_only": True, "out_indices": ()},
            "out_indices is (); cifar_resnet20_v1 has the levels 0 (stem) to 3",
        ),
        (
            {"features_only": True, "num_classes": 10},
            "features_only leaves no classifier; leave num_classes out",
        ),
    ],
)
def test_levels_that_cannot_be_had_are_named(options, message):
    with pytest.raises(InputError) as caught:
        create_model("cifar_resnet20_v1", **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("model", ["resnet18_v1b", "resnet18_v2", "resnest14d"])
def test_net_without_classifier_gives_the_pooled_vector(model):
    net = create_model(model, num_classes=0)
    images = mx.nd.random.normal(shape=(3, 3, 64, 64))
    (pooled,) = extract_feat(net, images, ["pooled"])
    assert pooled.shape == (3, net.spec.channels[-1])
    assert (net(images) == pooled).asnumpy().all()
    np.testing.assert_allclose(
        inference_form(net)(images).asnumpy(), pooled.asnumpy(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(not onednn.computes_bf16(), reason="the processor has no AVX-512")
def test_pooled_vector_in_bf16_is_near_that_in_fp32():
    net = create_model("resnet18_v1b", num_classes=0)
    images = mx.nd.random.normal(shape=(3, 3, 64, 64))
    expected = net(images).asnumpy()
    found = inference_form(net, precision="bf16")(images).asnumpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_inference_form_of_feature_maps_gives_them():
    net = create_model("cifar_resnet20_v1", features_only=True)
    images = mx.nd.random.normal(shape=(3, 3, 32, 32))
    expected = net(images)
    for found, level in zip(inference_form(net)(images), expected):
        found, level = found.asnumpy(), level.asnumpy()
        np.testing.assert_allclose(found, level, rtol=1e-4, atol=1e-4)


def test_classifier_may_be_exchanged_and_left_out():
    net = create_model("cifar_resnet20_v1")
    images = mx.nd.random.normal(shape=(2, 3, 32, 32))
    names = list(net._collect_params_with_prefix())
    net.hybridize()
    assert net(images).shape == (2, 10)
    net.reset_classifier(7)
    assert net(images).shape == (2, 7)
    assert list(net._collect_params_with_prefix()) == names
    assert abs(net.fc.weight.data().asnumpy().std() - 0.01) < 0.002
    net.reset_classifier(0)
    assert net(images).shape == (2, 64)
    net.reset_classifier(3)
    assert net(images).shape == (2, 3)
    with pytest.raises(InputError) as caught:
        net.reset_classifier(-1)
    assert str(caught.value) == (
        "num_classes is -1; it must be at least 0 (0: no classifier)"
    )


def test_net_of_feature_maps_has_no_classifier_to_exchange():
    net = create_model("cifar_resnet20_v1", features_only=True)
    with pytest.raises(InputError) as caught:
        net.reset_classifier(10)
    assert str(caught.value) == ("a network made with features_only has no classifier")


def test_net_knows_the_pixels_of_the_weights_that_its_name_stands_for():
    net = create_model("resnest14d")
    assert (net.protocol.size, net.protocol.library) == (224, "pil")
    net = create_model("resnet18_8xb16_cifar10")
    assert (net.protocol.size, net.protocol.library) == (32, "mmcv")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")
    pixels = net.preprocess(image)
    assert pixels.shape == (1, 3, 32, 32)
    assert net(pixels).shape == (1, 10)
    assert net.preprocess([image, image]).shape == (2, 3, 32, 32)
    net.protocol = None
    with pytest.raises(InputError) as caught:
        net.preprocess(image)
    assert str(caught.value) == (
        "this cifar_resnet18 has no protocol: set net.protocol, or make it with "
        "create_model"
    )


def test_net_of_one_channel_does_not_prepare_colours():
    net = create_model("cifar_resnet20_v1", in_channels=1)
    with pytest.raises(InputError) as caught:
        net.preprocess(np.zeros((32, 32, 3), np.uint8))
    assert str(caught.value) == (
        "this cifar_resnet20_v1 takes 1 channels, and images are prepared as RGB: "
        "prepare them yourself, as they are in training"
    )


def test_empty_net_takes_images_of_its_channels():
    net = empty_resnet(CATALOG["cifar_resnet20_v1"], num_classes=4)
    assert net.forward_features(np.zeros((1, 3, 32, 32))).shape == (1, 64, 8, 8)
