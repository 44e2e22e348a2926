# SPDX-License-Identifier: Apache-2.0
"""The table of models and `create_model`."""

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet import create_model, list_models, list_weights, model_spec
from gluon_resnet.errors import InputError
from gluon_resnet.models import CATALOG
from gluon_resnet.models.names import ALIASES, resolve
from gluon_resnet.models.resnet import resnet
from gluon_resnet.weights import checkpoint

# One name of each family: a table row, an alias of the spec pages, its own name.
OTHER_NAMES = [
    ("resnet50", "resnet50_v1b"),
    ("ResNet-50", "resnet50_v1b"),
    ("resnet50c", "resnet50_v1c"),
    ("resnetv1c101", "resnet101_v1c"),
    ("ResNetV1D-50", "resnet50_v1d"),
    ("resnet18d", "resnet18_v1d"),
    ("resnet50s", "resnet50_v1s"),
    ("resnet50-v1-7", "resnet50_v1"),
    ("resnet152-v2-7", "resnet152_v2"),
    ("Wide-ResNet-50", "wide_resnet50_2"),
    ("resnest50", "resnest50d"),
    ("resnest269", "resnest269e"),
    ("resnest50_fast_4s2x40d", "resnest50d_4s2x40d"),
]


QUANTIZED = (
    "a quantized graph, which no network of this package takes; "
    "`python -m gluon_resnet.quantize` makes int8 of resnet50-v1-12"
)
UNPUBLISHED = "OpenMMLab published no weights of this configuration; its network is"


@pytest.mark.parametrize("alias, name", OTHER_NAMES)
def test_alias_is_the_same_row(alias, name):
    assert model_spec(alias) is CATALOG[name]


def test_design_names_are_listed():
    depths = (18, 34, 50, 101, 152)
    names = {f"resnet{d}_{v}" for d in depths for v in ("v1", "v1b", "v1d", "v2")}
    names |= {f"resnet{d}_v1{v}" for d in depths[2:] for v in "cs"}
    names |= {"wide_resnet50_2", "wide_resnet101_2"}
    names |= {f"cifar_resnet{d}" for d in depths}
    names |= {f"cifar_resnet{d}_{v}" for d in (20, 56, 110) for v in ("v1", "v2")}
    names |= {f"resnest{n}" for n in ("14d", "26d", "50d", "101e", "200e", "269e")}
    variants = "1s4x24d 4s2x40d 1s1x64d 2s1x64d 4s1x64d 1s2x40d 2s2x40d".split()
    names |= {f"resnest50d_{variant}" for variant in variants}
    assert set(list_models()) == names


def test_aliases_name_rows_and_hide_none():
    assert {target.partition(".")[0] for target in ALIASES.values()} <= set(CATALOG)
    assert not set(ALIASES) & set(CATALOG)
    assert all(alias == alias.lower() for alias in ALIASES)


def test_row_lists_its_aliases():
    assert model_spec("cifar_resnet50").aliases == (
        "resnet50_8xb16_cifar10",
        "resnet50_8xb16_cifar100",
    )


@pytest.mark.parametrize(
    ("name", "model", "tag"),
    [
        ("resnest101e.in1k", "resnest101e", "in1k"),
        ("hf-hub:timm/resnest101e.in1k", "resnest101e", "in1k"),
        ("timm/resnet50.a1_in1k", "resnet50_v1b", "a1_in1k"),
        ("ResNetV1D-50.gluoncv", "resnet50_v1d", "gluoncv"),
        ("configs/resnet/resnet50_8xb32_in1k.py", "resnet50_v1b", "openmmlab_8xb32"),
        ("mmcls::resnet/resnet18_8xb32_in1k.py", "resnet18_v1b", "openmmlab_8xb32"),
        (
            "../wrn/wide-resnet50_8xb32_in1k.py",
            "wide_resnet50_2",
            "openmmlab_8xb32",
        ),
        ("model/resnet50-v1-7.onnx", "resnet50_v1", "onnx_zoo"),
        ("onnxmodelzoo/resnet50-v1-12", "resnet50_v1", "onnx_zoo_opset12"),
        ("resnet50", "resnet50_v1b", ""),
    ],
)
def test_name_is_split_into_model_and_tag(name, model, tag):
    assert resolve(name) == (model, tag)
    assert model_spec(name) is CATALOG[model]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "resnet50-v1-12-int8",
            QUANTIZED,
        ),
        (
            "model/resnet50-v1-12-qdq.onnx",
            QUANTIZED,
        ),
        (
            "resnet50-caffe2-v1-9",
            "Caffe2's network, which is none of this package",
        ),
        (
            "resnet50_v1_int8",
            (
                "GluonCV's quantized graph, which no network of this package takes; "
                "`python -m gluon_resnet.quantize` makes int8 of the name without _int8"
            ),
        ),
        (
            "resnet50_v1b_gn",
            "group-normalised, which no network of this package is; take resnet50_v1b",
        ),
        (
            "resnet50_v1d_0.86",
            (
                "a pruned network, which is none of this package; take it without the "
                "number"
            ),
        ),
        ("timm/resnet50.bamboo", "it has no classifier and no licence"),
        (
            "configs/resnet/resnet50_8xb32-coslr_in1k.py",
            f"{UNPUBLISHED} resnet50_v1b",
        ),
        (
            "resnet50_8xb16-mixup_cifar10",
            f"{UNPUBLISHED} cifar_resnet50",
        ),
    ],
)
def test_what_cannot_be_loaded_says_why(name, reason):
    for look_up in (model_spec, checkpoint, create_model, list_weights):
        with pytest.raises(InputError) as caught:
            look_up(name)
        assert str(caught.value) == f"{name} cannot be loaded: {reason}"


def test_pattern_selects_in_table_order():
    assert list_models("cifar_resnet?0_*") == ["cifar_resnet20_v1", "cifar_resnet20_v2"]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("ResNetV1D-50", ["resnet50_v1d"]),
        ("resnet50-v1-12", ["resnet50_v1"]),
        ("wide", ["wide_resnet50_2", "wide_resnet101_2"]),
        (
            "resnet50",
            [
                *(f"resnet50_{v}" for v in ("v1", "v1b", "v1c", "v1d", "v1s", "v2")),
                "wide_resnet50_2",
                "cifar_resnet50",
            ],
        ),
    ],
)
def test_part_of_a_name_or_alias_finds_models(typed, found):
    assert list_models(typed) == found


@pytest.mark.parametrize("typed", ["resnt50", "resnt50*"])
def test_what_finds_no_model_names_the_nearest(typed):
    with pytest.raises(InputError) as caught:
        list_models(typed)
    assert str(caught.value) == (
        f"no model matches {typed!r}; nearest: resnet50, resnet50s, resnet50d; "
        "`python -m gluon_resnet.models` lists all names"
    )


def test_unknown_name_names_the_nearest():
    with pytest.raises(
        InputError,
        match=r"^unknown model 'resnet50_v1e'; nearest: resnet50_v1.*; `python -m "
        r"gluon_resnet\.models` lists all names$",
    ):
        create_model("resnet50_v1e")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"num_classes": -1},
            r"num_classes is -1; it must be at least 0 \(0: no classifier\)",
        ),
        (
            {"frozen_stages": 4},
            (
                r"frozen_stages is 4; it must be from -1 \(none\) to 3 \(all stages of "
                r"cifar_resnet20_v1\)"
            ),
        ),
        ({"in_channels": -1}, "in_channels is -1; it must be at least 1"),
        ({"dropout": 1.0}, r"a drop probability is 1\.0; it must be in \[0, 1\)"),
        (
            {"drop_block": 0.1},
            (
                r"drop_block is 0\.1 for cifar_resnet20_v1; only ResNeSt has "
                "DropBlock; leave it 0 or use drop_path"
            ),
        ),
        (
            {"drop_path": [0.1, 0.2]},
            (
                "drop_path has 2 probabilities; the network has 9 blocks; "
                "give one number or one per block"
            ),
        ),
    ],
)
def test_option_outside_its_range_is_named(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        create_model("cifar_resnet20_v1", **options)


def test_head_and_first_convolution_follow_the_options():
    net = create_model("cifar_resnet20_v1", num_classes=7, in_channels=1)
    assert net(mx.nd.zeros((2, 1, 28, 28))).shape == (2, 7)


def test_two_nets_of_a_model_have_the_same_symbol():
    first, second = (
        resnet(model_spec("cifar_resnet20_v1"))(mx.sym.var("data")).tojson()
        for _ in range(2)
    )
    assert first == second


def test_layer_that_cannot_be_a_norm_is_refused():
    spec = model_spec("cifar_resnet20_v1")
    with pytest.raises(InputError) as caught:
        resnet(spec, norm_layer=nn.GroupNorm)
    assert str(caught.value) == (
        "GroupNorm cannot be made with in_channels and these norm_options; give a norm "
        "layer that takes them, such as BatchNorm, or a function that makes one"
    )
    with pytest.raises(InputError) as caught:
        resnet(spec, norm_layer=nn.LayerNorm)
    assert str(caught.value) == (
        "LayerNorm normalises the last axis, which is the width of the maps; give "
        'norm_options={"axis": 1}'
    )


def test_norm_of_a_function_can_be_frozen():
    def norm(in_channels, **options):
        return nn.BatchNorm(in_channels=in_channels, **options)

    net = resnet(model_spec("cifar_resnet20_v1"), norm_layer=norm, frozen_stages=1)
    frozen = [block.body.bn1._kwargs["use_global_stats"] for block in net.stage1]
    trained = [block.body.bn1._kwargs["use_global_stats"] for block in net.stage2]
    assert frozen == [True] * 3
    assert trained == [False] * 3


def test_input_norm_of_v2_has_no_scale_and_shift():
    for name in ("resnet18_v2", "cifar_resnet20_v2"):
        norm = resnet(model_spec(name)).stem.bn0
        assert norm.gamma.grad_req == norm.beta.grad_req == "null"


def test_options_never_change_parameter_names():
    plain = resnet(model_spec("resnest14d"))._collect_params_with_prefix()
    regularised = resnet(
        model_spec("resnest14d"),
        dropout=0.2,
        drop_block=0.1,
        drop_path=0.1,
        last_gamma=True,
        norm_layer=SyncBatchNorm,
        norm_options={"num_devices": 1},
    )._collect_params_with_prefix()
    assert list(plain) == list(regularised)


@pytest.mark.parametrize("family", sorted({s.family for s in CATALOG.values()}))
def test_last_gamma_starts_every_branch_at_zero(family):
    name = next(s.name for s in CATALOG.values() if s.family == family)
    net = create_model(name, last_gamma=True)
    zeros = [
        key
        for key, parameter in net._collect_params_with_prefix().items()
        if key.endswith("gamma") and not parameter.data().asnumpy().any()
    ]
    assert len(zeros) == sum(net.spec.blocks)


def test_first_weights_are_he_normal_by_fan_out():
    mx.random.seed(0)
    net = create_model("resnet18_v1b")
    weight = net.stage4[1].body.conv2.weight.data().asnumpy()
    np.testing.assert_allclose(weight.std(), (2 / (512 * 9)) ** 0.5, rtol=0.01)
    assert abs(net.fc.weight.data().asnumpy().std() - 0.01) < 1e-4


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("drop_rate", "here it is dropout"),
        ("in_chans", "here it is in_channels"),
        ("zero_init_residual", "here it is last_gamma"),
        ("checkpoint_path", "here it is pretrained, with the file's path"),
        ("drop_pathh", "nearest: drop_path, dropout, drop_block"),
        ("zzz", "no name is near"),
    ],
)
def test_unknown_keyword_gets_the_right_one(option, message):
    with pytest.raises(TypeError) as caught:
        create_model("cifar_resnet20_v1", **{option: 0})
    assert str(caught.value) == f"create_model has no keyword {option!r}; {message}"


def test_name_with_a_tag_makes_that_net_untrained():
    net = create_model("resnest14d.gluon_in1k")
    assert net.spec is CATALOG["resnest14d"]
    assert net.protocol == checkpoint("resnest14d.gluon_in1k").protocol
    # The classes are those of the weights that the name stands for.
    for name, classes in (
        ("configs/resnet/resnet50_8xb8_cub.py", 200),
        ("resnet50_8xb16_cifar100", 100),
        ("resnet18_8xb16_cifar10", 10),
    ):
        assert create_model(name).fc.weight.shape[0] == classes


def test_models_are_listed_with_their_published_weights():
    assert list_models("resnest101", pretrained=True) == [
        "resnest101e.in1k",
        "resnest101e.in1k_22405ba7",
        "resnest101e.gluoncv",
    ]
    assert list_models("resnest*.in1k", pretrained=True)[0] == "resnest50d.in1k"
    assert len(list_models(pretrained=True)) == len(list_weights())


def trained_step(net):
    """Names of what one training step changes."""
    images = mx.nd.random.normal(shape=(4, 3, 32, 32))
    parameters = net._collect_params_with_prefix()
    before = {name: p.data().asnumpy() for name, p in parameters.items()}
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    with mx.autograd.record():
        loss = (net(images) ** 2).sum()
    loss.backward()
    trainer.step(4)
    mx.nd.waitall()
    return {n for n, p in parameters.items() if (p.data().asnumpy() != before[n]).any()}


@pytest.mark.parametrize("model", ["cifar_resnet20_v1", "cifar_resnet20_v2"])
@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_frozen_stages_neither_train_nor_gather_statistics(model, frozen_stages):
    net = create_model(model, frozen_stages=frozen_stages)
    changed = trained_step(net)
    for index, part in enumerate(("stem", "stage1", "stage2", "stage3", "fc")):
        of_part = {name for name in changed if name.startswith(f"{part}.")}
        assert bool(of_part) == (index > frozen_stages)
        if of_part and part.startswith("stage"):
            assert any("running" in name for name in of_part)


def test_frozen_net_answers_as_the_free_one():
    free = create_model("cifar_resnet20_v1")
    frozen = create_model("cifar_resnet20_v1", frozen_stages=3)
    for name, parameter in frozen._collect_params_with_prefix().items():
        parameter.set_data(free._collect_params_with_prefix()[name].data())
    images = mx.nd.random.normal(shape=(2, 3, 32, 32))
    assert (frozen(images) == free(images)).asnumpy().all()
