# SPDX-License-Identifier: Apache-2.0
"""Counts: the spec pages to every printed digit, and timm's own exact counts."""

import json

import mxnet as mx
import pytest
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet import complexity, create_model, model_spec
from gluon_resnet.errors import InputError
from gluon_resnet.models import __main__ as command
from gluon_resnet.models.spec_pages import SPEC_PAGES
from gluon_resnet.preprocess import Protocol
from gluon_resnet.training.recipe import Recipe
from gluon_resnet.training.step import TrainingStep

# Trainable parameters and multiply-adds of timm 1.0.31 on the meta device, at the
# model's own test size; v1 and v2 by layer arithmetic of mxnet's model_zoo.
EXACT = {
    "resnet18_v1d": (11_708_744, 2_053_713_920),
    "resnet34_v1d": (21_816_904, 3_903_401_984),
    "resnet50_v1b": (25_557_032, 4_089_184_256),
    "resnet50_v1c": (25_576_264, 4_328_824_832),
    "resnet101_v1s": (44_672_936, 9_156_558_848),
    "resnet152_v1d": (60_212_040, 11_753_267_200),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "resnest14d": (10_611_688, 2_749_405_184),
    "resnest101e": (48_275_016, 13_321_472_000),
    "resnest200e": (70_201_544, 35_519_694_848),
    "resnest269e": (110_929_480, 77_348_702_208),
    "resnest50d_4s2x40d": (30_417_592, 4_369_060_736),
}
PARAMETERS = {
    "resnet50_v1": 25_575_912,
    "resnet101_v1": 44_589_800,
    "resnet152_v1": 60_252_648,
    "resnet18_v2": 11_687_848,
    "resnet50_v2": 25_549_480,
    "resnet152_v2": 60_185_256,
}


@pytest.mark.parametrize("row", SPEC_PAGES, ids=lambda row: f"{row.page}/{row.name}")
def test_page_cells_are_reproduced(row):
    assert row.agrees(row.counted()) == (row.name != "ResNet-50-mill")


def test_misprint_of_the_mill_row_has_the_right_value():
    (row,) = (row for row in SPEC_PAGES if row.name == "ResNet-50-mill")
    counted = row.counted()
    assert (counted.params, counted.flops) == (46_499_861, 4_119_876_096)


def test_the_pages_have_all_their_rows():
    openmmlab = [row for row in SPEC_PAGES if row.page.startswith("openmmlab")]
    assert (len(openmmlab), len(SPEC_PAGES)) == (25, 33)


@pytest.mark.parametrize("model", EXACT)
def test_exact_counts(model):
    counted = complexity(model)
    assert (counted.params, counted.flops) == EXACT[model]


@pytest.mark.parametrize("model", PARAMETERS)
def test_frozen_values_are_no_parameters(model):
    assert complexity(model).params == PARAMETERS[model]


def test_net_is_counted_as_it_is():
    net = create_model("resnet18", num_classes=10, in_channels=1)
    removed = 512 * 990 + 990 + 64 * 49 * 2
    assert complexity(net).params == 11_689_512 - removed
    stem = 64 * 49 * 2 * 112 * 112
    assert complexity(net, 224).flops == 1_814_073_344 - 512 * 990 - stem


@pytest.mark.parametrize("convention", ["macs", "openmmlab", "timm-page"])
@pytest.mark.parametrize("model", ["resnest14d", "resnet18_v2", "cifar_resnet20_v1"])
def test_parts_of_a_net_cost_what_they_cost_in_it(model, convention):
    whole, headless, maps = (
        complexity(create_model(model, **options), 64, convention)
        for options in ({}, {"num_classes": 0}, {"features_only": True})
    )
    width, classes = model_spec(model).channels[-1], model_spec(model).num_classes
    assert whole.params - headless.params == (width + 1) * classes
    is_counted = convention == "macs"
    assert whole.flops - headless.flops == width * classes * is_counted
    if convention == "macs":  # after the stages come the pages' norms and pooling
        assert maps.flops == headless.flops
    else:
        assert 0 < headless.flops - maps.flops < 0.001 * headless.flops


def test_size_may_be_height_and_width():
    square, wide = complexity("resnet18", 64), complexity("resnet18", (64, 128))
    classifier = 512 * 1000
    assert wide.flops - classifier == 2 * (square.flops - classifier)


def test_unknown_convention_is_named():
    message = r"^unknown FLOPs convention 'flops'; choose macs, openmmlab, timm-page$"
    with pytest.raises(InputError, match=message):
        complexity("resnet18", convention="flops")


def test_command_prints_models_and_pages_as_json(run_command):
    done = run_command(command, "resnet50_v1b", "--json")
    assert done.code == 0
    model, *pages = map(json.loads, done.out.splitlines())
    assert model["params"] == 25_557_032
    assert {row["model"] for row in pages} == {"resnet50_v1b"}
    assert [row["row"] for row in pages if not row["same"]] == ["ResNet-50-mill"]


@pytest.mark.parametrize("convention", ["macs", "openmmlab", "timm-page"])
def test_what_acts_in_training_alone_costs_nothing(convention):
    plain = create_model("resnest14d")
    regularised = create_model(
        "resnest14d",
        **{"dropout": 0.1, "drop_block": 0.1, "drop_path": 0.1},
        norm_layer=SyncBatchNorm,
        norm_options={"num_devices": 1},
    )
    counted = complexity(regularised, convention=convention)
    assert counted == complexity(plain, convention=convention)


@pytest.mark.parametrize("convention", ["macs", "openmmlab", "timm-page"])
def test_net_that_trains_is_counted_as_before(convention):
    net = create_model("cifar_resnet20_v1")
    before = complexity(net, convention=convention)
    recipe = Recipe(
        model="cifar_resnet20_v1", protocol=Protocol(), source="this test", batch_size=4
    )
    TrainingStep(net, recipe, [mx.cpu()])
    assert complexity(net, convention=convention) == before
