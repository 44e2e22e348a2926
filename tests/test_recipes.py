# SPDX-License-Identifier: Apache-2.0
"""Recipes against what their sources say, and what can be done with a recipe."""

import json
import re
from collections import Counter
from dataclasses import asdict, fields, replace
from functools import partial

import mxnet as mx
import numpy as np
import pytest

from gluon_resnet.create import create_model
from gluon_resnet.data import augment
from gluon_resnet.data.loader import training_batches
from gluon_resnet.errors import InputError
from gluon_resnet.models.spec_pages import SPEC_PAGES
from gluon_resnet.preprocess import Protocol, preprocess
from gluon_resnet.training.recipe import (
    Recipe,
    class_names,
    described,
    drop_block_at,
    for_batch_size,
    learning_rate,
    mix,
    smoke,
    training_pixels,
    training_transforms,
    with_settings,
)
from gluon_resnet.training.recipes import RECIPES, recipe_named
from gluon_resnet.weights.published import checkpoint, list_weights

FASHION = RECIPES["fashion_mnist"]

# What the sources say, written down apart from the table of recipes: names with the
# published top-1 by depth or variant, the fields that differ from `PLAIN`, the pixels
# (training side; validation side, resize side, library, interpolation), the rates by
# epoch, and what is done to an image.
PLAIN = {
    "num_classes": 1000,
    "data_set": "imagenet",
    "initial_weights": None,
    "repeats": 1,
    "mixup": 0,
    "cutmix": 0,
    "loss": "cross_entropy",
    "label_smoothing": 0,
    "accumulate": 1,
    "lr_scaling": "linear",
    "warmup_epochs": 0,
    "warmup_from": 0,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": True,
    "clip_norm": None,
    "dropout": 0,
    "drop_path": 0,
    "drop_block": 0,
    "last_gamma": False,
    "sync_bn": False,
    "ema": 0,
    "precision": "fp32",
    "seed": 0,
}
OPENMMLAB = {
    "optimizer": "sgd",
    "batch_size": 256,
    "epochs": 100,
    "last_gamma": True,
}
CIFAR = {**OPENMMLAB, "batch_size": 128, "epochs": 200}
TEN_CLASSES = {"num_classes": 10, "data_set": "cifar10"}
CIFAR10 = {**CIFAR, **TEN_CLASSES}
RSB = {
    "optimizer": "lamb",
    "batch_size": 2048,
    "weight_decay": 0.02,
    "decay_norm_and_bias": False,
    "clip_norm": 1,
    "loss": "binary",
    "mixup": 0.1,
    "cutmix": 1,
    "sync_bn": True,
    "last_gamma": True,
    "warmup_epochs": 5,
    "warmup_from": 1e-4,
}
RSB_12 = {**RSB, "repeats": 3, "drop_path": 0.05}
ZOO = {
    "optimizer": "nag",
    "batch_size": 512,
    "epochs": 150,
    "weight_decay": 2e-4,
    "lr_scaling": "none",
}
GLUONCV = {"optimizer": "nag", "batch_size": 1024, "epochs": 120, "warmup_epochs": 5}
TRICKS = {"label_smoothing": 0.1, "decay_norm_and_bias": False, "last_gamma": True}
MIXED = {"precision": "mixed"}
MIXUP = {"epochs": 200, "mixup": 0.2}
RESNEST = {
    **TRICKS,
    "optimizer": "nag",
    "batch_size": 8192,
    "epochs": 270,
    "warmup_epochs": 5,
    "mixup": 0.2,
    "drop_block": 0.1,
}
LARGE = {"batch_size": 2048, "dropout": 0.2}

BY_30 = {0: 0.1, 29.9: 0.1, 30: 0.01, 60: 1e-3, 90: 1e-4, 99.9: 1e-4}
BY_50 = {0: 0.1, 99.9: 0.1, 100: 0.01, 149.9: 0.01, 150: 1e-3}
BY_40 = {0: 0.1, 60: 0.02, 119.9: 0.02, 120: 0.004, 160: 8e-4}
ZOO_BY_30 = {0: 0.01, 30: 1e-3, 60: 1e-4, 90: 1e-5, 149.9: 1e-5}


def cosine_rates(peak, epochs):
    """Of a warm-up of five epochs from zero; the cosine is a half in the middle."""
    return {0: 0, 2.5: peak / 2, 5: peak, (5 + epochs) / 2: peak / 2, epochs: 0}


MMCV, GLUON = (224, 224, 256, "mmcv", "bilinear"), (224, 224, 256, "cv2", "bilinear")
PIL, BICUBIC = (224, 224, 256, "pil", "bilinear"), (224, 224, 256, "pil", "bicubic")
RSB_PIXELS = (224, 224, 236, "pil", "bicubic")
MMCV_32, GLUON_32 = (32, 32, 32, "mmcv", "bilinear"), (32, 32, 32, "cv2", "bilinear")

CROP, FLIP = "random_resized_crop(size={})", "random_flip"
JITTER = (
    "color_jitter(brightness=0.4, contrast=0.4, saturation=0.4)",
    "lighting(std=0.1)",
)
PAD_4 = ("pad_and_crop(pad=4)", FLIP)
PIL_CROP = "random_resized_crop(size={}, library='pil')"
BICUBIC_CROP = "random_resized_crop(size={}, library='pil', interpolation='bicubic')"
RSB_7 = (BICUBIC_CROP, FLIP, "rand_augment(magnitude=7)")
ZOO_IMAGES = ("resize_square(side=480)", CROP, FLIP, *JITTER)
GLUON_IMAGES = (CROP, FLIP, *JITTER)
RESNEST_IMAGES = ("auto_augment", *GLUON_IMAGES)

SOURCES = [
    (
        "resnet{}_v1b.openmmlab_8xb32",
        {18: 69.90, 34: 73.62, 50: 76.55, 101: 77.97, 152: 78.48},
        OPENMMLAB,
        MMCV,
        BY_30,
        (CROP, FLIP),
    ),
    (
        "resnet{}.openmmlab_8xb32",
        {
            **{"50_v1c": 77.01, "101_v1c": 78.30, "152_v1c": 78.76},
            **{"50_v1d": 77.54, "101_v1d": 78.93, "152_v1d": 79.41},
        },
        OPENMMLAB,
        PIL,
        BY_30,
        (PIL_CROP, FLIP),
    ),
    (
        "resnet50_v1b.openmmlab_8xb32-{}",
        {"fp16": 76.30},
        {**OPENMMLAB, **MIXED},
        MMCV,
        BY_30,
        (CROP, FLIP),
    ),
    (
        "resnet50_v1b.openmmlab_8xb256-rsb-{}",
        {"a1-600e": 80.12},
        {
            **RSB_12,
            "epochs": 600,
            "weight_decay": 0.01,
            "label_smoothing": 0.1,
            "mixup": 0.2,
        },
        RSB_PIXELS,
        # Of 595 epochs there is no middle one.
        {0: 5e-7, 2.5: 0.00250025, 5: 5e-3, 5.9: 5e-3},
        RSB_7,
    ),
    (
        "resnet50_v1b.openmmlab_8xb256-rsb-{}",
        {"a2-300e": 79.55},
        {**RSB_12, "epochs": 300},
        RSB_PIXELS,
        {0: 5e-7, 2.5: 0.00250025, 5: 5e-3, 5.9: 5e-3},
        RSB_7,
    ),
    (
        "resnet50_v1b.openmmlab_8xb256-rsb-{}",
        {"a3-100e": 78.30},
        {**RSB, "epochs": 100},
        (160, *RSB_PIXELS[1:]),
        {0: 8e-7, 2.5: 0.0040004, 5: 8e-3, 5.9: 8e-3},
        (BICUBIC_CROP, FLIP, "rand_augment(magnitude=6)"),
    ),
    (
        "cifar_resnet{}.openmmlab_8xb16_cifar10",
        {18: 94.82, 34: 95.34, 50: 95.55, 101: 95.58, 152: 95.76},
        CIFAR10,
        MMCV_32,
        BY_50,
        PAD_4,
    ),
    (
        "cifar_resnet{}.openmmlab_8xb16_cifar100",
        {50: 79.90},
        {**CIFAR, "num_classes": 100, "data_set": "cifar100", "weight_decay": 5e-4},
        MMCV_32,
        BY_40,
        PAD_4,
    ),
    (
        "resnet{}_v1b.openmmlab_8xb8_cub",
        {50: 88.45},
        {
            **OPENMMLAB,
            "optimizer": "nag",
            "num_classes": 200,
            "data_set": "cub200",
            "initial_weights": "resnet50_v1b.openmmlab_3rdparty-mill_in21k",
            "last_gamma": False,
            "batch_size": 64,
            "weight_decay": 5e-4,
            "warmup_epochs": 5,
            "warmup_from": 0.01,
        },
        (448, 448, 600, "mmcv", "bilinear"),
        {0: 1e-4, 2.5: 0.00505, 5: 0.01, 5.9: 0.01},
        ("resize_square(side=600)", "random_crop(size={})", FLIP),
    ),
    (
        "resnet{}.onnx_zoo",
        {
            **{"18_v1": 69.93, "34_v1": 73.73, "50_v1": 74.93, "101_v1": 76.48},
            **{"18_v2": 69.70, "34_v2": 73.36, "50_v2": 75.81, "101_v2": 77.42},
        },
        ZOO,
        GLUON,
        ZOO_BY_30,
        ZOO_IMAGES,
    ),
    (
        "resnet152_{}.onnx_zoo",
        {"v1": 77.11, "v2": 78.20},
        {**ZOO, "batch_size": 256},
        GLUON,
        ZOO_BY_30,
        ZOO_IMAGES,
    ),
    (
        "resnet{}.gluoncv",
        {
            **{"18_v1": 70.93, "34_v1": 74.37, "18_v2": 71.00, "34_v2": 74.40},
            **{"50_v2": 77.11, "18_v1b": 70.94, "34_v1b": 74.65},
        },
        GLUONCV,
        GLUON,
        cosine_rates(0.4, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet{}.gluoncv",
        {"101_v1": 78.34, "101_v2": 78.53},
        {**GLUONCV, **MIXED},
        GLUON,
        cosine_rates(0.4, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet{}.gluoncv",
        {"152_v2": 79.21},
        {**GLUONCV, **MIXED, "epochs": 180},
        GLUON,
        cosine_rates(0.4, 180),
        GLUON_IMAGES,
    ),
    (
        "resnet{}",
        {
            **{"50_v1.gluoncv": 77.36, "50_v1b.gluoncv": 77.67},
            **{"101_v1b.gluoncv": 79.20, "50_v1c.gluoncv": 78.03},
            **{"101_v1c.gluoncv": 79.60, "50_v1d.gluoncv_00319ddc": 78.48},
            "101_v1d.gluoncv_8659a9d6": 79.78,
        },
        {**GLUONCV, **TRICKS, **MIXED},
        GLUON,
        cosine_rates(0.4, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet{}_v1s.gluoncv",
        {50: None, 101: None},
        {**GLUONCV, **TRICKS, **MIXED},
        GLUON,
        cosine_rates(0.4, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet{}_v1s.gluoncv",
        {152: None},
        {**GLUONCV, **TRICKS, "batch_size": 256},
        GLUON,
        cosine_rates(0.1, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet152_{}.gluoncv",
        {"v1": 79.22, "v1b": 79.69, "v1c": 80.01},
        {**GLUONCV, **TRICKS, "batch_size": 256},
        GLUON,
        cosine_rates(0.1, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet152_v1d.gluoncv_{}",
        {"cfe0220d": 80.26},
        {**GLUONCV, **TRICKS, "batch_size": 512},
        GLUON,
        cosine_rates(0.2, 120),
        GLUON_IMAGES,
    ),
    (
        "resnet{}_v1d.gluoncv",
        {50: 79.15, 101: 80.51},
        {**GLUONCV, **TRICKS, **MIXED, **MIXUP},
        GLUON,
        cosine_rates(0.4, 200),
        GLUON_IMAGES,
    ),
    (
        "resnet{}_v1d.gluoncv",
        {152: 80.61},
        {**GLUONCV, **TRICKS, **MIXUP, "batch_size": 256},
        GLUON,
        cosine_rates(0.1, 200),
        GLUON_IMAGES,
    ),
    (
        "cifar_resnet{}.gluoncv",
        {
            **{"20_v1": 92.1, "56_v1": 93.6, "110_v1": 93.0},
            **{"20_v2": 92.1, "56_v2": 93.7, "110_v2": 94.3},
        },
        {**CIFAR10, "optimizer": "nag", "last_gamma": False},
        GLUON_32,
        BY_50,
        PAD_4,
    ),
    (
        "resnest{}d.gluoncv",
        {14: 75.75},
        {**RESNEST, "batch_size": 1024, "drop_block": 0},
        GLUON,
        cosine_rates(0.4, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}d.gluoncv",
        {26: 78.68},
        {**RESNEST, "batch_size": 1024},
        GLUON,
        cosine_rates(0.4, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}d.gluoncv",
        {50: 81.04},
        RESNEST,
        GLUON,
        cosine_rates(3.2, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}e.gluoncv",
        {101: 82.83},
        {**RESNEST, "batch_size": 4096},
        (224, 256, 292, "cv2", "bilinear"),
        cosine_rates(1.6, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}e.gluoncv",
        {200: 83.86},
        {**RESNEST, **LARGE},
        (256, 320, 352, "pil", "bicubic"),
        cosine_rates(0.8, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}e.gluoncv",
        {269: 84.53},
        {**RESNEST, **LARGE},
        (320, 416, 448, "pil", "bicubic"),
        cosine_rates(0.8, 270),
        ("auto_augment", "efficientnet_crop(size={})", FLIP, *JITTER),
    ),
    (
        "resnest{}d.gluon_in1k",
        {14: 75.51},
        {**RESNEST, "batch_size": 1024, "drop_block": 0},
        PIL,
        cosine_rates(0.4, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}d.gluon_in1k",
        {26: 78.48},
        {**RESNEST, "batch_size": 1024},
        PIL,
        cosine_rates(0.4, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}d.in1k",
        {50: 80.96},
        RESNEST,
        PIL,
        cosine_rates(3.2, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest50d_{}.in1k",
        {"1s4x24d": 81.00, "4s2x40d": 81.11},
        RESNEST,
        BICUBIC,
        cosine_rates(3.2, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest50d_{}.authors_gluon",
        {
            **{"1s1x64d": 80.35, "2s1x64d": 80.65, "4s1x64d": 80.90},
            **{"1s2x40d": 80.72, "2s2x40d": 80.84},
        },
        RESNEST,
        GLUON,
        cosine_rates(3.2, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}e.in1k",
        {101: 82.88},
        {**RESNEST, "batch_size": 4096},
        (224, 256, 292, "pil", "bilinear"),
        cosine_rates(1.6, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}e.in1k",
        {200: 83.85},
        {**RESNEST, **LARGE},
        (256, 320, 352, "pil", "bicubic"),
        cosine_rates(0.8, 270),
        RESNEST_IMAGES,
    ),
    (
        "resnest{}e.in1k",
        {269: 84.53},
        {**RESNEST, **LARGE},
        (320, 416, 448, "pil", "bicubic"),
        cosine_rates(0.8, 270),
        ("auto_augment", "efficientnet_crop(size={})", FLIP, *JITTER),
    ),
]
ROWS = {
    name.format(variant): (top1, *facts)
    for name, published, *facts in SOURCES
    for variant, top1 in published.items()
}
# What a test looks at beside the fields of `PLAIN`.
ELSEWHERE = {
    *("model", "protocol", "source", "published_top1", "transforms", "train_size"),
    *("schedule", "learning_rate", "optimizer", "batch_size", "epochs"),
}


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ROWS)
def test_recipe_is_what_its_source_says(name):
    recipe = RECIPES[name]
    top1, differences, pixels, rates, transforms = ROWS[name]
    protocol = recipe.protocol
    assert recipe.model == name.partition(".")[0]
    assert recipe.published_top1 == top1
    assert {f.name for f in fields(Recipe)} == {*PLAIN, *ELSEWHERE}
    for field, value in {**PLAIN, **differences}.items():
        assert getattr(recipe, field) == value, field
    assert pixels == (
        training_pixels(recipe).size,
        protocol.size,
        int(protocol.size / protocol.crop_pct + 1e-2),
        protocol.library,
        protocol.interpolation,
    )
    steps = 100
    for epoch, rate in rates.items():
        step = round(epoch * steps)
        assert learning_rate(recipe, step, steps) == pytest.approx(rate, abs=1e-12)
    assert described(recipe)["transforms"] == [t.format(pixels[0]) for t in transforms]


def test_there_is_no_other_recipe():
    assert set(RECIPES) == {"fashion_mnist", *ROWS}


def page_of(tag):
    """The page, as `SPEC_PAGES` has it, whose row has this tag."""
    data_set = tag.rpartition("_")[2]
    if data_set in ("cifar10", "cifar100", "cub"):
        return f"openmmlab/{data_set}"
    pages = {"openmmlab": "openmmlab/imagenet-1k", "in1k": "timm/resnest"}
    return pages.get(tag.partition("_")[0], pages.get(data_set))


def test_every_trained_row_of_the_spec_pages_has_a_recipe():
    untrained = {"ResNet-50-mill", "Wide-ResNet-50", "Wide-ResNet-101"}
    rows = [(r.page, r.model) for r in SPEC_PAGES if r.name not in untrained]
    ours = [(page_of(name.partition(".")[2]), RECIPES[name].model) for name in RECIPES]
    assert len(rows) == 30
    assert Counter(rows) == Counter(row for row in ours if row[0])


def test_every_published_training_of_these_projects_has_a_recipe():
    converted = {
        "wide_resnet50_2.openmmlab_8xb32",
        "wide_resnet101_2.openmmlab_8xb32",
        "resnet50_v1b.openmmlab_3rdparty-mill_in21k",
    }
    published = {
        name
        for pattern in ("*.openmmlab_*", "*.onnx_zoo", "*.gluoncv", "*.gluoncv_*")
        for name in list_weights(pattern)
    }
    assert published - converted <= set(RECIPES)


def test_rsb_goes_by_epochs_towards_a_rate_of_a_millionth():
    for letter, epochs, peak in (
        ("a1", 600, 5e-3),
        ("a2", 300, 5e-3),
        ("a3", 100, 8e-3),
    ):
        recipe = RECIPES[f"resnet50_v1b.openmmlab_8xb256-rsb-{letter}-{epochs}e"]
        assert recipe.schedule(epochs, epochs, 5) * peak == pytest.approx(1e-6)
        last = recipe.schedule(epochs - 0.01, epochs, 5) * peak
        assert last == pytest.approx(recipe.schedule(epochs - 1, epochs, 5) * peak)


def test_sources_say_which_of_two_statements_is_followed():
    for name, words in {
        "resnet50_v1b.openmmlab_8xb256-rsb-a1-600e": "where the first version",
        "resnet50_v1b.openmmlab_8xb256-rsb-a2-300e": "stochastic depth rises",
        "resnet50_v1b.openmmlab_8xb256-rsb-a3-100e": "where the configuration says 224",
        "resnet50_v1.onnx_zoo": "where the page's text keeps their aspect ratio",
        "resnest14d.gluon_in1k": "no DropBlock",
        "resnest26d.gluon_in1k": "not the page's 8192",
        "resnest50d.in1k": "the page's rate of 0.1 is for 256 images",
        "resnest101e.in1k": "its image size that of the test",
        "resnest269e.gluoncv": "its dropout that of resnest200e and 269e alone",
        "resnet50_v1.gluoncv": "; in fp16",
        "resnet101_v2.onnx_zoo": "Xavier's there",
        "resnet152_v1s.gluoncv": "publishes no training",
        "resnet18_v1b.gluoncv": "--last-gamma did nothing",
        "cifar_resnet20_v1.gluoncv": "is not known",
    }.items():
        assert words in RECIPES[name].source, name


def test_fashion_mnist_is_what_trained_the_bundled_checkpoint():
    assert FASHION == replace(
        FASHION,
        model="cifar_resnet20_v1",
        num_classes=10,
        data_set="fashion_mnist",
        protocol=Protocol(size=28, crop_pct=1, mean=(0.286,) * 3, std=(0.353,) * 3),
        epochs=40,
        batch_size=128,
        learning_rate=0.1,
        warmup_epochs=1,
        warmup_from=0,
        momentum=0.9,
        weight_decay=5e-4,
        decay_norm_and_bias=True,
        label_smoothing=0.1,
        optimizer="nag",
        seed=0,
    )
    assert described(FASHION)["transforms"] == [
        "pad_and_crop(pad=2)",
        "random_flip",
        "random_erasing(probability=0.25, fill=(73, 73, 73), area=(0.02, 0.2))",
    ]


def test_unknown_recipe_names_the_nearest():
    assert error_of(recipe_named, "resnest50d") == (
        "unknown recipe 'resnest50d'; nearest: resnest50d.in1k, resnest50d.gluoncv, "
        "resnest200e.in1k; `python -m gluon_resnet.train --list-recipes` lists all"
    )
    assert "; no name is near; " in error_of(recipe_named, "%")
    assert recipe_named("fashion_mnist") is FASHION


def test_settings_are_read_by_the_type_of_their_field():
    settings = (
        *("epochs=10", "learning_rate=2e-3", "warmup_epochs=0.5", "last_gamma=true"),
        *("data_set=none", "train_size=24", "clip_norm=None", "optimizer=sgd"),
    )
    changed = with_settings(FASHION, settings)
    assert changed == replace(
        FASHION,
        epochs=10,
        learning_rate=2e-3,
        warmup_epochs=0.5,
        last_gamma=True,
        data_set=None,
        train_size=24,
        optimizer="sgd",
    )
    assert with_settings(changed, ["train_size=none"]).train_size is None
    assert with_settings(FASHION, []) == FASHION


def test_batch_size_scales_the_rate_by_the_recipe_s_rule():
    assert for_batch_size(FASHION, 256).learning_rate == 0.2
    assert for_batch_size(RECIPES["resnet50_v1.onnx_zoo"], 64).learning_rate == 0.01
    resnest = RECIPES["resnest50d.in1k"]
    assert for_batch_size(resnest, 256).learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (["batch_size=64"], 0.05),
        (["batch_size=96", "accumulate=3"], 0.075),
        (["learning_rate=0.3", "batch_size=64"], 0.3),
        (["lr_scaling=none", "batch_size=64"], 0.1),
        (["batch_size=128"], 0.1),
    ],
)
def test_set_batch_size_scales_the_rate_unless_that_is_set(settings, rate):
    assert with_settings(FASHION, settings).learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "'epochs' is no setting; write it as key=value"),
        ("epochs=ten", "'epochs=ten' cannot be read; give a whole number"),
        ("epochs=2.5", "'epochs=2.5' cannot be read; give a whole number"),
        ("momentum=", "'momentum=' cannot be read; give a number"),
        ("train_size=x", "'train_size=x' cannot be read; give a whole number or none"),
        ("sync_bn=1", "'sync_bn=1' cannot be read; give true or false"),
        ("epochs=0", "epochs is 0; it must be a whole number of at least 1"),
        ("seed=-1", "seed is -1; it must be a whole number of at least 0"),
        (
            "learning_rate=nan",
            "learning_rate is nan; it must be a finite number above 0",
        ),
        ("mixup=-0.1", "mixup is -0.1; it must be a finite number of at least 0"),
        ("ema=1", "ema is 1.0; it must be at least 0 and less than 1"),
        ("warmup_from=2", "warmup_from is 2.0; it must be from 0 to 1"),
        ("loss=focal", "loss is 'focal'; it must be cross_entropy or binary"),
        ("optimizer=adam", "optimizer is 'adam'; it must be sgd, nag or lamb"),
        ("precision=int8", "precision is 'int8'; it must be fp32, bf16, fp16 or mixed"),
        ("lr_scaling=root", "lr_scaling is 'root'; it must be linear or none"),
        (
            "warmup_epochs=40",
            (
                "warmup_epochs is 40 of 40 epochs; it must be less: set "
                "warmup_epochs=4, too, or raise epochs"
            ),
        ),
        (
            "epochs=1",
            (
                "warmup_epochs is 1 of 1 epochs; it must be less: set "
                "warmup_epochs=0, too, or raise epochs"
            ),
        ),
        (
            "data_set=cifar100",
            (
                "num_classes is 10, and data_set cifar100 has 100 classes: set the one "
                "that is right, or data_set=none"
            ),
        ),
        ("accumulate=3", "accumulate is 3; it must divide the batch size of 128"),
        (
            "drop_block=0.1",
            (
                "drop_block is 0.1 on training images of 28 pixels; it needs 65: "
                "raise train_size or set drop_block to 0"
            ),
        ),
    ],
)
def test_a_bad_setting_is_said_in_one_line(setting, message):
    assert error_of(with_settings, FASHION, [setting]) == message


def test_an_unknown_data_set_is_said():
    message = error_of(with_settings, FASHION, ["data_set=cifar-10"])
    assert re.fullmatch(
        r"data_set is 'cifar-10': data set 'cifar-10' is unknown; use \w+( or \w+)*, a "
        "file of class names, a line each, or none",
        message,
    )


def test_another_number_of_classes_leaves_them_without_names():
    changed = with_settings(FASHION, ["num_classes=5"])
    assert (changed.num_classes, changed.data_set) == (5, None)
    changed = with_settings(FASHION, ["data_set=cifar100", "num_classes=100"])
    assert changed.data_set == "cifar100"
    assert with_settings(FASHION, ["num_classes=10"]) == FASHION
    assert error_of(replace, FASHION, num_classes=5) == (
        "num_classes is 5, and data_set fashion_mnist has 10 classes: set the one that "
        "is right, or data_set=none"
    )


def test_class_names_come_from_the_data_set_or_a_file(tmp_path):
    assert class_names(FASHION)[0] == "T-shirt/top"
    assert class_names(replace(FASHION, data_set=None)) is None
    path = tmp_path / "classes.txt"
    path.write_text("Zebra\nÖlsardine\n", encoding="utf-8")
    settings = [f"data_set={path}", "num_classes=2"]
    assert class_names(with_settings(FASHION, settings)) == ("Zebra", "Ölsardine")
    assert error_of(with_settings, FASHION, settings[:1]) == (
        f"num_classes is 10, and data_set {path} has 2 classes: set the one that is "
        "right, or data_set=none"
    )
    path.write_bytes(b"\xff\n\xfe\n")
    assert error_of(with_settings, FASHION, settings) == (
        f"data_set {path} is no text in UTF-8: give a file of class names, a line each"
    )


def test_an_unknown_model_is_said():
    message = error_of(with_settings, FASHION, ["model=resnet51"])
    assert message.startswith("unknown model 'resnet51'; nearest: ")


def test_unknown_key_names_the_nearest_and_all():
    message = error_of(with_settings, FASHION, ["epoch=3"])
    start = "unknown key 'epoch' in 'epoch=3'; nearest: epochs, warmup_epochs, "
    assert message.startswith(start)
    assert message.partition("there are ")[2].split(", ") == [
        field.name
        for field in fields(Recipe)
        if field.name
        not in ("protocol", "source", "published_top1", "transforms", "schedule")
    ]
    assert error_of(with_settings, FASHION, ["schedule=cosine"]).startswith(
        "unknown key 'schedule' in 'schedule=cosine'; "
    )


def test_a_key_set_twice_is_said():
    assert error_of(with_settings, FASHION, ["epochs=3", "epochs=4"]) == (
        "epochs is set twice, again by 'epochs=4'; set it once"
    )


@pytest.mark.parametrize(("size", "is_alive"), [(64, False), (65, True)])
def test_drop_block_needs_images_of_65_pixels(size, is_alive):
    net = create_model("resnest14d", num_classes=2, drop_block=0.1)
    with mx.autograd.train_mode():
        logits = net(mx.nd.ones((2, 3, size, size))).asnumpy()
    # Maps of 2 x 2 are dropped as a whole and divided by what is left; ReLU hides it.
    assert (np.isfinite(logits).all() and logits.any()) == is_alive


def test_initial_weights_are_of_the_recipe_s_model():
    for recipe in RECIPES.values():
        if recipe.initial_weights:
            assert checkpoint(recipe.initial_weights).model == recipe.model


def test_a_recipe_out_of_range_cannot_be_made():
    assert error_of(replace, FASHION, train_size=24.5) == (
        "train_size is 24.5; it must be a whole number of at least 1"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_is_small_and_leaves_every_branch(name):
    recipe, small = RECIPES[name], smoke(RECIPES[name])
    assert (small.epochs, small.batch_size) == (2, 8)
    assert small.protocol.size <= 72 and training_pixels(small).size <= 72
    assert small.source == f"smoke run of: {recipe.source}"
    assert small.initial_weights is small.published_top1 is None
    assert (small.warmup_epochs > 0) == (recipe.warmup_epochs > 0)
    same = {f.name for f in fields(Recipe)} - {
        *("source", "protocol", "train_size", "published_top1", "initial_weights"),
        *("epochs", "warmup_epochs", "batch_size", "learning_rate"),
    }
    for field in same:
        assert getattr(small, field) == getattr(recipe, field), field


def test_smoke_splits_batches_that_were_split():
    assert smoke(replace(FASHION, accumulate=4)).accumulate == 2


@pytest.mark.parametrize("name", RECIPES)
def test_description_is_json_and_differs_with_the_recipe(name):
    recipe = RECIPES[name]
    description = described(recipe)
    assert json.loads(json.dumps(description)) == description
    assert list(description) == [field.name for field in fields(Recipe)]
    for change in (
        {"seed": 1},
        {"protocol": replace(recipe.protocol, std=(1, 1, 1))},
        {"transforms": lambda size: recipe.transforms(size)[1:]},
        {"schedule": partial(recipe.schedule, at=(1, 2))},
    ):
        other = described(replace(recipe, **change))
        assert [key for key in other if other[key] != description[key]] == list(change)


# One recipe for each treatment of images.
TREATMENTS = {str(described(RECIPES[name])["transforms"]): name for name in RECIPES}


@pytest.mark.parametrize("name", TREATMENTS.values())
def test_smoke_prepares_batches_of_its_size(name):
    recipe = smoke(RECIPES[name])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 28, 36, 3), np.uint8)
    batches = training_batches(
        range(8),
        lambda key: (key, images[key]),
        batch_size=recipe.batch_size,
        protocol=training_pixels(recipe),
        transforms=training_transforms(recipe),
        seed=recipe.seed,
        epoch=0,
        repeats=recipe.repeats,
        workers=0,
    )
    ((pixels, _),) = batches
    size = training_pixels(recipe).size
    assert pixels.shape == (8, 3, size, size) and np.isfinite(pixels).all()


def test_crops_take_the_size_of_training_images():
    recipe = RECIPES["resnest269e.in1k"]
    assert training_pixels(recipe) == replace(recipe.protocol, size=320, crop_pct=1)
    crop = training_transforms(with_settings(recipe, ["train_size=96"]))[1]
    image = np.zeros((30, 40, 3), np.uint8)
    assert crop(image, np.random.default_rng(0)).shape == (96, 96, 3)


def test_images_of_the_training_size_are_normalised_alone():
    pixels = training_pixels(RECIPES["resnet50_v1b.openmmlab_8xb256-rsb-a3-100e"])
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    expected = (image / 255 - pixels.mean) / pixels.std
    np.testing.assert_allclose(
        preprocess(image, **asdict(pixels)), expected.transpose(2, 0, 1), atol=1e-5
    )


def test_transforms_are_augmentations_of_this_project():
    for recipe in RECIPES.values():
        for transform in training_transforms(recipe):
            function = getattr(transform, "func", transform)
            assert getattr(augment, function.__name__) is function


def test_drop_block_rises_linearly_to_its_last_epoch():
    recipe = replace(RECIPES["resnest50d.in1k"], epochs=20)
    rises = [drop_block_at(recipe, epoch) for epoch in (0, 1, 9, 19)]
    assert rises == pytest.approx([0.005, 0.01, 0.05, 0.1])
    assert drop_block_at(FASHION, 39) == 0


IMAGES = np.random.default_rng(0).random((4, 1, 6, 6), np.float32)
TARGETS = np.eye(4, dtype=np.float32)


def test_without_mixup_and_cutmix_a_batch_stays_as_it_is():
    images, targets = mix(FASHION, IMAGES, TARGETS, np.random.default_rng(0))
    assert images is IMAGES and targets is TARGETS


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mix_is_the_one_that_the_recipe_has(kind, monkeypatch):
    calls = []
    monkeypatch.setattr(
        f"gluon_resnet.training.recipe.{kind}",
        lambda *batch, alpha: calls.append(alpha) or batch[:2],
    )
    recipe = replace(FASHION, **{kind: 0.3})
    images, targets = mix(recipe, IMAGES, TARGETS, np.random.default_rng(0))
    assert calls == [0.3] and images is IMAGES and targets is TARGETS


def test_mixup_and_cutmix_take_turns_by_chance():
    recipe = RECIPES["resnet50_v1b.openmmlab_8xb256-rsb-a1-600e"]
    rng = np.random.default_rng(0)
    original = set(IMAGES.ravel().tolist())
    count = 400
    cut = sum(
        set(mix(recipe, IMAGES, TARGETS, rng)[0].ravel().tolist()) <= original
        for _ in range(count)
    )
    # Five times the standard deviation of a fair coin's share.
    assert abs(cut / count - 0.5) < 5 * 0.5 / count**0.5
