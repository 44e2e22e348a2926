# SPDX-License-Identifier: Apache-2.0
"""`create_model` with published weights: other classes, other channels."""

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon

from gluon_resnet import (
    bundled,
    create,
    create_model,
    inference_model,
    init_model,
    load_weights,
    save_weights,
)
from gluon_resnet.errors import InputError
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights.card import Card, write_card
from gluon_resnet.weights.download import fetch

MODELS = ["resnet18_v1b", "resnet18_v2", "resnest14d", "cifar_resnet20_v1"]


@pytest.fixture(scope="module", params=MODELS)
def published(request, tmp_path_factory):
    """A net with drawn parameters, and a file of them in the place of its download."""
    net = create_model(request.param)
    fill_gluon(net)
    path = tmp_path_factory.mktemp("cache") / "weights.params"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "fetch", lambda row, accept_licence: path)
        yield save_weights(net, path) and net


def pretrained(net, **options):
    return create_model(net.spec.name, pretrained=True, **options)


IMAGES = mx.nd.array(draw_images((2, 3, 32, 32)))


def test_weights_are_the_published_ones(published):
    ours = pretrained(published)
    np.testing.assert_array_equal(ours(IMAGES).asnumpy(), published(IMAGES).asnumpy())


def test_another_number_of_classes_keeps_all_but_the_classifier(published):
    net = pretrained(published, num_classes=7)
    assert net(IMAGES).shape == (2, 7)
    for name, parameter in published._collect_params_with_prefix().items():
        if not name.startswith("fc."):
            other = net._collect_params_with_prefix()[name]
            assert (other.data() == parameter.data()).asnumpy().all()


def test_file_of_ones_own_is_taken_as_published_weights_are(published, tmp_path):
    path = save_weights(published, tmp_path / "mine.params")
    name = published.spec.name
    ours = create_model(name, pretrained=path)
    np.testing.assert_array_equal(ours(IMAGES).asnumpy(), published(IMAGES).asnumpy())
    other = create_model(name, pretrained=path, num_classes=7)
    assert other(IMAGES).shape == (2, 7)
    kernels = [net.stem.conv1.weight.data().asnumpy() for net in (other, published)]
    np.testing.assert_array_equal(*kernels)


def test_file_whose_card_names_another_model_is_refused(tmp_path):
    path = save_weights(create_model("resnet50_v1c"), tmp_path / "mine.params")
    create_model("resnet50_v1d", pretrained=path)  # all names and shapes are the same
    write_card(path, Card("resnet50_v1c", Protocol()))
    with pytest.raises(InputError, match="of resnet50_v1c, not of resnet50_v1d"):
        create_model("resnet50_v1d", pretrained=path)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("model", ["resnet18_v1b", "resnet18_v2", "resnest14d"])
def test_channels_are_those_of_the_file(model, channels, tmp_path, caplog):
    net = create_model(model, in_channels=channels, num_classes=5)
    fill_gluon(net)
    path = save_weights(net, tmp_path / "mine.safetensors")
    images = draw_images((2, channels, 32, 32))
    expected = net(mx.nd.array(images)).asnumpy()
    again = create_model(model, pretrained=path)
    np.testing.assert_array_equal(again(mx.nd.array(images)).asnumpy(), expected)
    # To three channels: the kernels are repeated or cut, scaled to the same sum.
    three = create_model(model, pretrained=path, in_channels=3)
    assert three(IMAGES).shape == (2, 5)

    classifier = init_model(model, path)
    found = classifier(images).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert caplog.messages[-1] == (
        f"{path} takes images of {channels} channels, `preprocess` gives 3: prepare "
        "them yourself"
    )
    with pytest.raises(InputError) as caught:
        inference_model(classifier, np.zeros((40, 40, 3), np.uint8))
    assert str(caught.value) == (
        f"the images have 3 channels, {model} with these weights takes {channels}; "
        "`preprocess` gives 3: prepare them yourself, as they were in training"
    )


def test_text_is_a_path_where_there_is_the_file_or_it_ends_so(
    tmp_path, monkeypatch, published
):
    path = save_weights(published, tmp_path / "mine.params")
    name = published.spec.name
    ours = create_model(name, pretrained=str(path))
    np.testing.assert_array_equal(ours(IMAGES).asnumpy(), published(IMAGES).asnumpy())
    path.rename(tmp_path / "last")
    monkeypatch.chdir(tmp_path)
    ours = create_model(name, pretrained="last")
    np.testing.assert_array_equal(ours(IMAGES).asnumpy(), published(IMAGES).asnumpy())
    with pytest.raises(
        InputError, match=r"^cannot read weights lost\.pth: No such file"
    ):
        create_model(name, pretrained="lost.pth")
    with pytest.raises(InputError, match=rf"^unknown weights '{name}\.a9_in1k'"):
        create_model(name, pretrained="a9_in1k")


def test_backbone_is_enough_where_no_stored_classifier_is_asked_for(tmp_path):
    backbone = create_model("cifar_resnet20_v1", num_classes=0)
    fill_gluon(backbone)
    path = save_weights(backbone, tmp_path / "backbone.params")
    expected = backbone(IMAGES).asnumpy()
    again = create_model("cifar_resnet20_v1", num_classes=0, pretrained=path)
    np.testing.assert_array_equal(again(IMAGES).asnumpy(), expected)
    net = create_model("cifar_resnet20_v1", num_classes=7, pretrained=path)
    np.testing.assert_allclose(
        net.forward_features(IMAGES).asnumpy().mean((2, 3)), expected, rtol=1e-4
    )
    maps = create_model("cifar_resnet20_v1", features_only=True, pretrained=path)
    assert len(maps(IMAGES)) == 4
    for options in ({}, {"num_classes": None}):
        with pytest.raises(InputError, match="has no classifier"):
            create_model("cifar_resnet20_v1", pretrained=path, **options)
    with pytest.raises(InputError, match="has no classifier"):
        init_model("cifar_resnet20_v1", path)
    whole = save_weights(create_model("cifar_resnet20_v1"), tmp_path / "whole.params")
    with pytest.raises(InputError, match=r"unexpected: fc\.weight, fc\.bias; "):
        load_weights(backbone, whole)


def test_bundled_checkpoint_is_published_weights(monkeypatch):
    monkeypatch.setattr(create, "fetch", fetch)
    net = create_model(bundled.NAME, pretrained=True)
    path = create_model(bundled.MODEL, pretrained=bundled.weights())
    tag = create_model(bundled.MODEL, pretrained="fashion_mnist")
    expected = net(IMAGES).asnumpy()
    for other in (path, tag, init_model(bundled.NAME).net):
        np.testing.assert_array_equal(other(IMAGES).asnumpy(), expected)
    assert create_model(bundled.NAME, pretrained=True, num_classes=3)(IMAGES).shape == (
        2,
        3,
    )


def test_name_of_weights_without_pretrained_is_told(caplog):
    net = create_model("resnest14d.gluon_in1k")  # as timm's function, fresh
    assert net.spec.name == "resnest14d"
    assert caplog.messages == [
        (
            "create_model('resnest14d.gluon_in1k') gives fresh parameters; with "
            "pretrained=True it loads these weights"
        )
    ]
    caplog.clear()
    create_model("resnest14d")
    assert not caplog.messages


def test_url_of_a_published_file_is_its_row(monkeypatch):
    asked = []

    def fetch(row, accept_licence):
        asked.append(row.name)
        raise InputError("stop")

    monkeypatch.setattr(create, "fetch", fetch)
    url = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    with pytest.raises(InputError, match=r"^stop$"):
        create_model("resnet50", pretrained=url)
    with pytest.raises(InputError, match="0676ba61, not weights of resnet18: give"):
        create_model("resnet18", pretrained=url)
    assert asked == ["resnet50_v1b.tv_in1k_0676ba61"]


def test_one_channel_answers_as_three_equal_ones(published):
    if published.spec.family == "v2":
        pytest.skip("its input norm has statistics of its own for each channel")
    grey = mx.nd.array(draw_images((2, 1, 32, 32)))
    expected = published(mx.nd.tile(grey, (1, 3, 1, 1))).asnumpy()
    found = pretrained(published, in_channels=1)(grey).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_six_channels_answer_as_the_image_twice(published):
    expected = published(IMAGES).asnumpy()
    twice = mx.nd.concat(IMAGES, IMAGES, dim=1)
    found = pretrained(published, in_channels=6)(twice).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("in_channels", [2, 4, 5])
def test_kernels_are_repeated_and_scaled_as_timms(in_channels):
    kernel = np.arange(2 * 3 * 9, dtype=np.float32).reshape(2, 3, 3, 3)
    adapted = create._adapted_kernel(kernel, in_channels)
    for channel in range(in_channels):
        expected = kernel[:, channel % 3] * (3 / in_channels)
        np.testing.assert_allclose(adapted[:, channel], expected)


def test_norm_of_one_channel_has_the_mean_statistics():
    values = create._adapted_norm(np.float32([1, 2, 6]), 1)
    np.testing.assert_array_equal(values, [3])
    np.testing.assert_array_equal(
        create._adapted_norm(np.float32([1, 2, 6]), 4), [1, 2, 6, 1]
    )


def test_tag_may_stand_in_the_name_or_apart(monkeypatch):
    asked = []

    def fetch(row, accept_licence):
        asked.append(row.name)
        raise InputError("stop")

    monkeypatch.setattr(create, "fetch", fetch)
    for name, tag in (("resnet50.tv_in1k", True), ("resnet50", "tv_in1k")):
        with pytest.raises(InputError, match=r"^stop$"):
            create_model(name, pretrained=tag)
    assert asked == ["resnet50_v1b.tv_in1k"] * 2
