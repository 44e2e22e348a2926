# SPDX-License-Identifier: Apache-2.0
"""Forms of every net that `create_model` can make, and of nets that have trained."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images, fill_gluon
from mxnet.gluon import HybridBlock, nn
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet import bundled, create_model
from gluon_resnet.classifier import Classifier
from gluon_resnet.cpu import cpu_flags
from gluon_resnet.errors import InputError
from gluon_resnet.inference.coverage import _COVERED
from gluon_resnet.inference.fallback import MXNetForm
from gluon_resnet.inference.form import PlannedForm, inference_form
from gluon_resnet.inference.int8 import load_int8, save_int8
from gluon_resnet.inference.operators import _OPERATORS
from gluon_resnet.inference.rewrites import inference_graph
from gluon_resnet.preprocess import Protocol
from gluon_resnet.quantize import quantize
from gluon_resnet.training.recipe import Recipe
from gluon_resnet.training.step import TrainingStep
from gluon_resnet.weights.card import Card

# Of the largest logit, as in test_inference.py; in bfloat16 more, because the logits
# of few classes are small here.
FP32_TOLERANCE = 3e-6
TOLERANCES = {"fp32": FP32_TOLERANCE, "bf16": 0.02}
NETS = ["cifar_resnet20_v1", "cifar_resnet20_v2", "resnest14d"]


def group_norm(in_channels, scale=True, **options):
    """MXNet's own has a gamma and a beta for each group, and no `in_channels`."""
    return nn.GroupNorm(num_groups=4 if in_channels % 4 == 0 else 1, **options)


class Affine(HybridBlock):
    """A norm of the user's own: x * gamma + beta, no statistics."""

    def __init__(self, in_channels, scale=True, **options):
        super().__init__()
        shape = (1, in_channels, 1, 1)
        self.gamma = self.params.get("gamma", shape=shape, init="ones")
        self.beta = self.params.get("beta", shape=shape, init="zeros")

    def hybrid_forward(self, F, x, gamma, beta):
        return F.broadcast_add(F.broadcast_mul(x, gamma), beta)


def norm_and_tanh(in_channels, **options):
    layer = nn.HybridSequential()
    layer.add(nn.BatchNorm(in_channels=in_channels, **options), nn.Activation("tanh"))
    return layer


def no_norm(in_channels, **options):
    return nn.HybridSequential()


# What a form computes with oneDNN's kernels.
FUSED = {
    "dropout": {"dropout": 0.3},
    "drop_path": {"drop_path": 0.3},
    "last_gamma": {"last_gamma": True},
    "sync_batch_norm": {
        "norm_layer": SyncBatchNorm,
        "norm_options": {"num_devices": 1},
    },
    "no_norm": {"norm_layer": no_norm},
    "global_stats": {"norm_options": {"use_global_stats": True}},
    "momentum": {"norm_options": {"momentum": 0.5}},
    "epsilon": {"norm_options": {"epsilon": 0.1}},
    "no_scale": {"norm_options": {"scale": False}},
    "no_center": {"norm_options": {"center": False}},
    "negative_axis": {"norm_options": {"axis": -3}},
    "one_channel": {"in_channels": 1, "num_classes": 100},
    "no_classifier": {"num_classes": 0, "dropout": 0.3},
    "together": {
        "dropout": 0.2,
        "drop_path": 0.2,
        "last_gamma": True,
        "norm_layer": SyncBatchNorm,
        "norm_options": {"num_devices": 1, "epsilon": 0.01, "momentum": 0.8},
    },
}
# What MXNet's own operators compute, and what the first such layer is.
UNFUSED = {
    "instance_norm": ({"norm_layer": nn.InstanceNorm}, "InstanceNorm"),
    "layer_norm": (
        {"norm_layer": nn.LayerNorm, "norm_options": {"axis": 1}},
        "LayerNorm",
    ),
    "group_norm": ({"norm_layer": group_norm}, "GroupNorm"),
    "batch_norm_relu": (
        {"norm_layer": nn.BatchNormReLU},
        "_contrib_BatchNormWithReLU",
    ),
    "affine": ({"norm_layer": Affine}, "broadcast_mul"),
    "tanh": ({"norm_layer": norm_and_tanh}, "Activation"),
}


def drawn(name, **options):
    """A net with drawn values, but where `last_gamma` starts with zeros."""
    net = create_model(name, **options)
    gammas = net.collect_params(".*gamma").values()
    zeros = [gamma for gamma in gammas if not gamma.data().asnumpy().any()]
    fill_gluon(net)
    for gamma in zeros:
        gamma.set_data(mx.nd.zeros(gamma.shape))
    return net


def images_for(net):
    first = next(iter(net.collect_params(".*weight").values()))
    return mx.nd.array(draw_images((2, first.shape[1], 32, 32)))


def difference(found, expected):
    found, expected = found.asnumpy(), expected.asnumpy()
    return np.abs(found - expected).max() / np.abs(expected).max()


def assert_fused_form_answers(expected, net, images, precision="fp32"):
    form = inference_form(net, precision=precision)
    assert isinstance(form, PlannedForm)
    assert difference(form(images), expected) < TOLERANCES[precision]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", FUSED.values(), ids=FUSED)
def test_fused_form_answers_as_the_net_does(name, options):
    net = drawn(name, **options)
    images = images_for(net)
    assert_fused_form_answers(net(images), net, images)


@pytest.mark.parametrize("name", NETS)
def test_fused_bf16_form_answers_as_the_net_does(name):
    net = drawn(name, **FUSED["together"])
    images = images_for(net)
    assert_fused_form_answers(net(images), net, images, "bf16")


REGULARISED = {"dropout": 0.5, "drop_block": 0.5, "drop_path": [0.5] * 4}


def test_regularisers_leave_no_trace_in_the_inference_graph():
    plain, _ = inference_graph(create_model("resnest14d"))
    regularised, _ = inference_graph(create_model("resnest14d", **REGULARISED))
    assert regularised.symbol().tojson() == plain.symbol().tojson()


def test_fused_form_of_a_regularised_net_answers_as_the_net_does():
    net = drawn("resnest14d", **REGULARISED)
    images = images_for(net)
    assert_fused_form_answers(net(images), net, images)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options, op", UNFUSED.values(), ids=UNFUSED)
def test_layers_without_a_kernel_run_by_mxnets_operators(name, options, op, caplog):
    caplog.set_level(logging.INFO, "gluon_resnet")
    net = drawn(name, **options)
    form = inference_form(net)
    assert isinstance(form, MXNetForm)
    (message,) = caplog.messages
    assert re.fullmatch(
        rf"fp32 by MXNet's own operators: no kernel computes .* \({op}\)", message
    )
    images = images_for(net)
    expected = net(images)
    for _ in range(2):
        assert difference(form(images), expected) < FP32_TOLERANCE
    with mx.autograd.record():  # a form infers, whatever is recorded around it
        assert difference(form(images), expected) < FP32_TOLERANCE


@pytest.mark.parametrize(
    "name, layer",
    [
        ("resnet18_v1b", "stem.bn1 (InstanceNorm)"),
        ("cifar_resnet20_v2", "stem.bn0 (InstanceNorm)"),
    ],
)
def test_other_precisions_refuse_a_layer_without_a_kernel(name, layer):
    net = create_model(name, norm_layer=nn.InstanceNorm)
    with pytest.raises(InputError) as error:
        inference_form(net, precision="bf16")
    assert str(error.value) == (
        f"this net has no bf16, no kernel computes {layer}; use precision fp32"
    )
    with pytest.raises(InputError) as error:
        quantize(classifier(net), bundled.TRAIN_REC, images=8)
    assert str(error.value) == (
        f"{name} has no int8, no kernel computes {layer}; use precision fp32"
    )


@pytest.mark.parametrize("name", NETS)
def test_feature_maps_are_those_of_the_net(name):
    net = drawn(name, features_only=True, **FUSED["together"])
    form, images = inference_form(net), images_for(net)
    for found, expected in zip(form(images), net(images)):
        assert difference(found, expected) < FP32_TOLERANCE
    for none, expected in zip(form(images[:0]), net(images)):
        assert none.shape == (0, *expected.shape[1:])


def test_feature_maps_of_other_precisions_are_refused():
    net = create_model("cifar_resnet20_v1", features_only=True)
    reason = "a plan ends in logits or in the pooled vector; use precision fp32"
    with pytest.raises(InputError) as error:
        inference_form(net, precision="bf16")
    assert str(error.value) == f"this net has no bf16, {reason}"
    with pytest.raises(InputError) as error:
        quantize(classifier(net), bundled.TRAIN_REC, images=8)
    assert str(error.value) == f"cifar_resnet20_v1 has no int8, {reason}"


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"num_classes": 0}, "it has no classifier"),
        (
            {"in_channels": 1},
            "it has in_channels=1, and int8 files are for 3",
        ),
    ],
)
def test_int8_refuses_what_its_file_cannot_hold(options, reason):
    model = classifier(create_model("cifar_resnet20_v1", **options))
    with pytest.raises(InputError) as error:
        quantize(model, bundled.TRAIN_REC, images=8)
    assert str(error.value) == (
        f"cifar_resnet20_v1 has no int8, {reason}; use precision fp32"
    )


def test_form_of_mxnets_operators_refuses_images_that_do_not_fit():
    form = inference_form(create_model("cifar_resnet20_v1", norm_layer=nn.InstanceNorm))
    for shape in ((1, 4, 32, 32), (32, 32)):
        with pytest.raises(InputError) as error:
            form(mx.nd.zeros(shape))
        assert str(error.value) == (
            f"images of shape {shape} do not fit this network; give (N, C, H, W) with "
            "its number of channels and some pixels more"
        )
    for count in (1, 0):
        assert form(mx.nd.empty((count, 3, 32, 32))).shape == (count, 10)


def test_form_of_mxnets_operators_refuses_images_on_another_device():
    form = inference_form(create_model("cifar_resnet20_v1", norm_layer=nn.InstanceNorm))
    with pytest.raises(InputError) as error:
        form(mx.nd.zeros((1, 3, 32, 32), ctx=mx.cpu(1)))
    assert str(error.value) == "images on cpu(1); give images on cpu(0)"


def test_form_of_mxnets_operators_keeps_its_values_when_the_net_is_trained_on():
    net = drawn("cifar_resnet20_v1", norm_layer=nn.InstanceNorm)
    form, images = inference_form(net), images_for(net)
    before = form(images).asnumpy()
    for parameter in net.collect_params().values():
        parameter.set_data(parameter.data() * 2)
    np.testing.assert_array_equal(form(images).asnumpy(), before)


def test_form_of_mxnets_operators_serves_several_threads():
    form = inference_form(drawn("cifar_resnet20_v1", norm_layer=nn.InstanceNorm))
    batches = [mx.nd.array(draw_images((n, 3, 32, 32))) for n in (1, 4, 2)] * 5
    expected = [form(images).asnumpy() for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for logits, wanted in zip(pool.map(form, batches), expected):
            np.testing.assert_array_equal(logits.asnumpy(), wanted)


def classifier(net):
    card = Card(net.spec.name, Protocol(size=32, crop_pct=1))
    return Classifier(net.spec.name, net, card, ("class",) * 10, mx.cpu())


QUANTIZED = {
    "cifar_resnet20_v1": {"dropout": 0.5, "drop_path": 0.5},
    "cifar_resnet20_v2": FUSED["sync_batch_norm"],
    "resnest14d": {**REGULARISED, "num_classes": 10},
}


@pytest.mark.parametrize("name, options", QUANTIZED.items(), ids=QUANTIZED)
def test_int8_model_is_that_of_the_net_without_options(name, options):
    nets = drawn(name, num_classes=10), drawn(name, **options)
    plain, found = (
        quantize(classifier(net), bundled.TRAIN_REC, images=8) for net in nets
    )
    assert found.card == plain.card
    assert_same_int8_model(found, plain, images_for(nets[0]))


def assert_same_int8_model(found, plain, images):
    assert found.arrays.keys() == plain.arrays.keys()
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    found, plain = (model.form()(images).asnumpy() for model in (found, plain))
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(
    "options",
    [
        FUSED["together"],  # SyncBatchNorm of another epsilon and momentum
        {"norm_options": {"use_global_stats": True}},
    ],
    ids=["together", "global_stats"],
)
def test_int8_model_of_a_net_with_options_can_be_loaded(options, tmp_path):
    net = drawn("cifar_resnet20_v2", **options)  # which has a norm that is not folded
    quantized = quantize(classifier(net), bundled.TRAIN_REC, images=8)
    loaded = load_int8(save_int8(tmp_path / "net.int8", quantized))
    assert_same_int8_model(loaded, quantized, images_for(net))


def trained(name, precision, **options):
    """A net after two steps of training."""
    recipe = Recipe(
        model=name,
        protocol=Protocol(),
        source="this test",
        num_classes=10,
        batch_size=4,
        precision=precision,
    )
    net = drawn(name, num_classes=10, **options)
    step = TrainingStep(net, recipe, [mx.cpu()])
    images, targets = draw_images((4, 3, 32, 32)), np.eye(10, dtype=np.float32)[:4]
    for _ in range(2):
        step(images, targets, learning_rate=0.01)
    return net


def copied(net, **options):
    """A net that never trained, with the values of `net`."""
    copy = create_model(net.spec.name, num_classes=10, **options)
    mx.nd.waitall()
    values = net._collect_params_with_prefix()
    for name, parameter in copy._collect_params_with_prefix().items():
        parameter.set_data(values[name].data())
    return copy


needs_avx512 = pytest.mark.skipif(
    "avx512bw" not in cpu_flags(), reason="bf16 needs AVX-512"
)
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_avx512)]
TRAINED = {
    "cifar_resnet20_v1": {"dropout": 0.5, "drop_path": 0.5},
    "cifar_resnet20_v2": FUSED["sync_batch_norm"],
    "resnest14d": REGULARISED,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name, options", TRAINED.items(), ids=TRAINED)
def test_forms_of_a_trained_net_answer_as_its_copy_does(name, options, precision):
    net = trained(name, precision, **options)
    images = images_for(net)
    expected = copied(net)(images)
    for of_form in ("fp32", "bf16"):
        assert_fused_form_answers(expected, net, images, of_form)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mxnets_operators_run_a_trained_net_in_fp32(precision):
    options = {"norm_layer": nn.InstanceNorm, "dropout": 0.5}
    net = trained("cifar_resnet20_v1", precision, **options)
    images = images_for(net)
    expected = copied(net, **options)(images)
    assert difference(inference_form(net)(images), expected) < FP32_TOLERANCE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_int8_model_of_a_trained_net_is_that_of_its_copy(precision, tmp_path):
    net = trained("cifar_resnet20_v1", precision, dropout=0.5)
    found, plain = (
        quantize(classifier(each), bundled.TRAIN_REC, images=8)
        for each in (net, copied(net))
    )
    assert_same_int8_model(found, plain, images_for(net))
    loaded = load_int8(save_int8(tmp_path / "net.int8", found))
    assert_same_int8_model(loaded, found, images_for(net))


def test_kernels_are_known_of_all_operators_that_have_one():
    of_int8 = {"_contrib_dequantize", "_contrib_quantize_v2"}
    assert _OPERATORS.keys() == _COVERED.keys() | of_int8


def test_net_is_turned_into_a_graph_once(monkeypatch):
    calls = []
    tojson = mx.sym.Symbol.tojson
    monkeypatch.setattr(
        mx.sym.Symbol, "tojson", lambda symbol: calls.append(symbol) or tojson(symbol)
    )
    inference_form(create_model("resnest14d"))
    assert len(calls) == 1
