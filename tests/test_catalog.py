# SPDX-License-Identifier: Apache-2.0
"""The table of models and `create_model`."""

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet import create_model, list_models, model_spec
from gluon_resnet.errors import InputError
from gluon_resnet.models import CATALOG
from gluon_resnet.models.resnet import resnet

# One name of each family: a table row, an alias of the spec pages, its own name.
ALIASES = [
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


@pytest.mark.parametrize("alias, name", ALIASES)
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


def test_no_two_rows_share_a_name():
    names = [n for spec in CATALOG.values() for n in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


def test_pattern_selects_in_table_order():
    assert list_models("cifar_resnet?0_*") == ["cifar_resnet20_v1", "cifar_resnet20_v2"]


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
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
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
