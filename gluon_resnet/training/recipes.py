# SPDX-License-Identifier: Apache-2.0
"""The table of recipes: bases and what differs from them.

A recipe that made published weights has their name, MODEL.TAG of `list_weights`, and
their evaluation protocol. Left out are rows that their page did not train: OpenMMLab's
wide nets (torchvision's weights) and its ImageNet-21K one (MIIL's).

`source` says where a recipe differs from its page. Two things hold for all. Where a
page trained in fp16, the recipe says "mixed": that, or what the device has. And all but
RSB trained with BatchNorm statistics of each GPU's part of the batch, 8 (CUB) to 256
images: fewer devices have those of more.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gluon_resnet.data.augment import (
    auto_augment,
    color_jitter,
    efficientnet_crop,
    lighting,
    pad_and_crop,
    rand_augment,
    random_crop,
    random_erasing,
    random_flip,
    random_resized_crop,
    resize_square,
)
from gluon_resnet.data.loader import Transform
from gluon_resnet.errors import InputError
from gluon_resnet.nearest import nearest
from gluon_resnet.preprocess import Protocol
from gluon_resnet.training.recipe import Recipe, for_batch_size
from gluon_resnet.training.schedules import cosine, step_decay
from gluon_resnet.weights.published import checkpoint


def _published(base: Recipe, names: list[str], **differences) -> dict[str, Recipe]:
    """A recipe for each MODEL.TAG, whose row of published weights tells the rest."""
    rows = {name: checkpoint(name) for name in names}
    return {
        name: replace(
            base,
            model=row.model,
            protocol=row.protocol,
            num_classes=row.num_classes,
            published_top1=row.top1,
            **differences,
        )
        for name, row in rows.items()
    }


_ALL, _DEEP = (18, 34, 50, 101, 152), (50, 101, 152)
_JITTER = (
    partial(color_jitter, brightness=0.4, contrast=0.4, saturation=0.4),
    partial(lighting, std=0.1),
)


# What is done to the images, as functions of their side in pixels.


def _crop_and_flip(size: int, **options) -> Sequence[Transform]:
    return partial(random_resized_crop, size=size, **options), random_flip


def _pad_and_flip(size: int) -> Sequence[Transform]:
    return partial(pad_and_crop, pad=4), random_flip


def _bird_images(size: int) -> Sequence[Transform]:
    return (
        partial(resize_square, side=600),
        partial(random_crop, size=size),
        random_flip,
    )


def _rsb_images(size: int, *, magnitude: float) -> Sequence[Transform]:
    crop_and_flip = _crop_and_flip(size, library="pil", interpolation="bicubic")
    return *crop_and_flip, partial(rand_augment, magnitude=magnitude)


def _gluoncv_images(size: int) -> Sequence[Transform]:
    return *_crop_and_flip(size), *_JITTER


def _zoo_images(size: int) -> Sequence[Transform]:
    return partial(resize_square, side=480), *_gluoncv_images(size)


def _resnest_images(size: int) -> Sequence[Transform]:
    return auto_augment, *_gluoncv_images(size)


def _large_resnest_images(size: int) -> Sequence[Transform]:
    crop = partial(efficientnet_crop, size=size)
    return auto_augment, crop, random_flip, *_JITTER


def _fashion_images(size: int) -> Sequence[Transform]:
    # The mean colour: round(255 * 0.2860).
    fill = (73, 73, 73)
    erasing = partial(random_erasing, probability=0.25, fill=fill, area=(0.02, 0.2))
    return partial(pad_and_crop, pad=2), random_flip, erasing


_FASHION_MNIST = Recipe(
    model="cifar_resnet20_v1",
    # Mean and deviation of all pixels of the 60,000 training images.
    protocol=Protocol(size=28, crop_pct=1, mean=(0.2860,) * 3, std=(0.3530,) * 3),
    source="this project; what it gave: gluon_resnet/bundled/README.md",
    num_classes=10,
    data_set="fashion_mnist",
    transforms=_fashion_images,
    label_smoothing=0.1,
    epochs=40,
    batch_size=128,
    learning_rate=0.1,
    schedule=cosine,
    warmup_epochs=1,
    optimizer="nag",
    weight_decay=5e-4,
)

_OPENMMLAB = Recipe(
    model="resnet50_v1b",
    protocol=Protocol(library="mmcv"),
    source="OpenMMLab mmcls 1.0.0rc5, configs/resnet/*_8xb32_in1k.py",
    data_set="imagenet",
    transforms=_crop_and_flip,
    epochs=100,
    batch_size=256,
    learning_rate=0.1,
    schedule=partial(step_decay, at=(30, 60, 90)),
    optimizer="sgd",
    weight_decay=1e-4,
    last_gamma=True,  # zero_init_residual, which its ResNet has by default
)

_OPENMMLAB_CIFAR10 = replace(
    _OPENMMLAB,
    source="OpenMMLab mmcls 1.0.0rc5, configs/resnet/*_8xb16_cifar10.py",
    num_classes=10,
    data_set="cifar10",
    transforms=_pad_and_flip,
    epochs=200,
    batch_size=128,
    schedule=partial(step_decay, at=(100, 150)),
)

_OPENMMLAB_CIFAR100 = replace(
    _OPENMMLAB_CIFAR10,
    source="OpenMMLab mmcls 1.0.0rc5, configs/resnet/resnet50_8xb16_cifar100.py",
    num_classes=100,
    data_set="cifar100",
    schedule=partial(step_decay, at=(60, 120, 160), factor=0.2),
    weight_decay=5e-4,
)

_OPENMMLAB_CUB = replace(
    _OPENMMLAB,
    source=(
        "OpenMMLab mmcls 1.0.0rc5, configs/resnet/resnet50_8xb8_cub.py; not reproduced "
        "with another number of GPUs (87.4, mmpretrain#1335)"
    ),
    num_classes=200,
    data_set="cub200",
    initial_weights="resnet50_v1b.openmmlab_3rdparty-mill_in21k",
    transforms=_bird_images,
    batch_size=64,
    learning_rate=0.01,
    schedule=partial(cosine, by_epoch=True),
    warmup_epochs=5,
    warmup_from=0.01,
    optimizer="nag",
    weight_decay=5e-4,
    last_gamma=False,  # left out there, too, where weights are given
)

# "ResNet strikes back", arXiv:2110.00476, table 2. `low` takes the rate to 1e-6.
_RSB_SOURCE = (
    "OpenMMLab mmcls 1.0.0rc5, configs/resnet/resnet50_8xb256-rsb-{}_in1k.py; "
    "bicubic Pillow as there and in arXiv:2110.00476, where the weights of 2021 had "
    "bilinear cv2; {}"
)
_RSB_A2 = replace(
    _OPENMMLAB,
    source=_RSB_SOURCE.format(
        "a2-300e",
        "stochastic depth rises over the blocks as in the paper, where the weights of "
        "2021 had 0.05 in each",
    ),
    transforms=partial(_rsb_images, magnitude=7),
    repeats=3,
    mixup=0.1,
    cutmix=1.0,
    loss="binary",
    epochs=300,
    batch_size=2048,
    learning_rate=5e-3,
    schedule=partial(cosine, low=1e-6 / 5e-3, by_epoch=True),
    warmup_epochs=5,
    warmup_from=1e-4,
    optimizer="lamb",
    weight_decay=0.02,
    decay_norm_and_bias=False,
    clip_norm=1.0,
    drop_path=0.05,
    sync_bn=True,
)
_RSB_A1 = replace(
    _RSB_A2,
    source=_RSB_SOURCE.format(
        "a1-600e",
        "smoothed binary cross entropy as there and in the paper, where the first "
        "version (0.x) had softmax; stochastic depth as in a2",
    ),
    mixup=0.2,
    label_smoothing=0.1,
    epochs=600,
    weight_decay=0.01,
)
_RSB_A3 = replace(
    _RSB_A2,
    source=_RSB_SOURCE.format(
        "a3-100e",
        "trained at 160 pixels as the paper and the published weights, where the "
        "configuration says 224 since its rewriting for 1.x",
    ),
    train_size=160,
    transforms=partial(_rsb_images, magnitude=6),
    repeats=1,
    epochs=100,
    learning_rate=8e-3,
    schedule=partial(cosine, low=1e-6 / 8e-3, by_epoch=True),
    drop_path=0.0,
)

_ONNX_ZOO = Recipe(
    model="resnet50_v1",
    protocol=Protocol(resize="warp"),
    source=(
        "ONNX Model Zoo, train_resnet.ipynb: it warps images, where the page's text "
        "keeps their aspect ratio; its rate is the same for batches of 512 and 256 "
        "(depth 152), so it does not follow the batch size; fresh convolutions are "
        "Xavier's there, He's normal here"
    ),
    data_set="imagenet",
    transforms=_zoo_images,
    epochs=150,
    batch_size=512,
    learning_rate=0.01,
    lr_scaling="none",
    schedule=partial(step_decay, at=(30, 60, 90)),
    optimizer="nag",
    weight_decay=2e-4,
)

_GLUONCV = Recipe(
    model="resnet50_v1",
    protocol=Protocol(),
    source=(
        "GluonCV, the training log of these weights (train_imagenet.py); fresh "
        "convolutions are MSRAPrelu's there, He's normal here"
    ),
    data_set="imagenet",
    transforms=_gluoncv_images,
    epochs=120,
    batch_size=1024,
    learning_rate=0.4,
    schedule=cosine,
    warmup_epochs=5,
    optimizer="nag",
    weight_decay=1e-4,
)
_GLUONCV_MIXED = replace(
    _GLUONCV, source=f"{_GLUONCV.source}; in fp16", precision="mixed"
)
_GLUONCV_BASIC_V1B = replace(
    _GLUONCV,
    source=f"{_GLUONCV.source}; its --last-gamma did nothing to basic blocks",
)
_TRICKS: dict[str, Any] = {
    "label_smoothing": 0.1,
    "decay_norm_and_bias": False,
    "last_gamma": True,
}
_GLUONCV_TRICKS = replace(_GLUONCV, **_TRICKS)
_GLUONCV_TRICKS_MIXED = replace(_GLUONCV_MIXED, **_TRICKS)
_GLUONCV_V1S = {
    "source": (
        "this project: GluonCV, which made v1s for segmentation, publishes no training "
        "of it; that of its v1c"
    )
}
_MIXUP: dict[str, Any] = {"epochs": 200, "mixup": 0.2}

_GLUONCV_CIFAR10 = Recipe(
    model="cifar_resnet20_v1",
    protocol=Protocol(size=32, crop_pct=1),
    source=(
        "GluonCV, train_cifar10.py as its model page runs it; whether the published "
        "file is this training or the one with mixup is not known"
    ),
    num_classes=10,
    data_set="cifar10",
    transforms=_pad_and_flip,
    epochs=200,
    batch_size=128,
    learning_rate=0.1,
    schedule=partial(step_decay, at=(100, 150)),
    optimizer="nag",
    weight_decay=1e-4,
)

_RESNEST = Recipe(
    model="resnest50d",
    protocol=Protocol(),
    source=(
        "ResNeSt's authors, scripts/gluon/train.py, which made the weights; the page's "
        "rate of 0.1 is for 256 images, its SGD Nesterov's, its dropout that of "
        "resnest200e and 269e alone, its image size that of the test; fresh "
        "convolutions are scaled by fan in there, by fan out here"
    ),
    data_set="imagenet",
    transforms=_resnest_images,
    mixup=0.2,
    epochs=270,
    batch_size=8192,
    learning_rate=3.2,
    schedule=cosine,
    warmup_epochs=5,
    optimizer="nag",
    weight_decay=1e-4,
    drop_block=0.1,
    **_TRICKS,
)
_RESNEST_SMALL = replace(
    for_batch_size(_RESNEST, 1024),
    source=f"{_RESNEST.source}; batch of 1024 as in the logs, not the page's 8192",
)
_RESNEST_LARGE = replace(for_batch_size(_RESNEST, 2048), dropout=0.2)
_FAST = ("1s1x64d", "2s1x64d", "4s1x64d", "1s2x40d", "2s2x40d")

RECIPES: dict[str, Recipe] = {
    "fashion_mnist": _FASHION_MNIST,
    **_published(_OPENMMLAB, [f"resnet{n}_v1b.openmmlab_8xb32" for n in _ALL]),
    **_published(
        _OPENMMLAB,
        [f"resnet{n}_{v}.openmmlab_8xb32" for v in ("v1c", "v1d") for n in _DEEP],
        transforms=partial(_crop_and_flip, library="pil"),
    ),
    **_published(
        _OPENMMLAB,
        ["resnet50_v1b.openmmlab_8xb32-fp16"],
        source=(
            "OpenMMLab mmcls 1.0.0rc5, configs/resnet/resnet50_8xb32-fp16_in1k.py; its "
            "loss scale is fixed at 512, here it finds its own size"
        ),
        precision="mixed",
    ),
    **_published(_RSB_A1, ["resnet50_v1b.openmmlab_8xb256-rsb-a1-600e"]),
    **_published(_RSB_A2, ["resnet50_v1b.openmmlab_8xb256-rsb-a2-300e"]),
    **_published(_RSB_A3, ["resnet50_v1b.openmmlab_8xb256-rsb-a3-100e"]),
    **_published(
        _OPENMMLAB_CIFAR10,
        [f"cifar_resnet{n}.openmmlab_8xb16_cifar10" for n in _ALL],
    ),
    **_published(_OPENMMLAB_CIFAR100, ["cifar_resnet50.openmmlab_8xb16_cifar100"]),
    **_published(_OPENMMLAB_CUB, ["resnet50_v1b.openmmlab_8xb8_cub"]),
    **_published(
        _ONNX_ZOO,
        [f"resnet{n}_{v}.onnx_zoo" for v in ("v1", "v2") for n in (18, 34, 50, 101)],
    ),
    **_published(
        for_batch_size(_ONNX_ZOO, 256),
        ["resnet152_v1.onnx_zoo", "resnet152_v2.onnx_zoo"],
    ),
    **_published(
        _GLUONCV,
        [
            *(f"resnet{n}_{v}.gluoncv" for v in ("v1", "v2") for n in (18, 34)),
            "resnet50_v2.gluoncv",
        ],
    ),
    **_published(_GLUONCV_BASIC_V1B, ["resnet18_v1b.gluoncv", "resnet34_v1b.gluoncv"]),
    **_published(_GLUONCV_MIXED, ["resnet101_v1.gluoncv", "resnet101_v2.gluoncv"]),
    **_published(_GLUONCV_MIXED, ["resnet152_v2.gluoncv"], epochs=180),
    **_published(
        _GLUONCV_TRICKS_MIXED,
        [
            "resnet50_v1.gluoncv",
            *(f"resnet{n}_{v}.gluoncv" for v in ("v1b", "v1c") for n in (50, 101)),
            "resnet50_v1d.gluoncv_00319ddc",
            "resnet101_v1d.gluoncv_8659a9d6",
        ],
    ),
    **_published(
        _GLUONCV_TRICKS_MIXED,
        ["resnet50_v1s.gluoncv", "resnet101_v1s.gluoncv"],
        **_GLUONCV_V1S,
    ),
    **_published(
        for_batch_size(_GLUONCV_TRICKS, 256),
        [f"resnet152_{v}.gluoncv" for v in ("v1", "v1b", "v1c")],
    ),
    **_published(
        for_batch_size(_GLUONCV_TRICKS, 256), ["resnet152_v1s.gluoncv"], **_GLUONCV_V1S
    ),
    **_published(
        for_batch_size(_GLUONCV_TRICKS, 512), ["resnet152_v1d.gluoncv_cfe0220d"]
    ),
    **_published(
        _GLUONCV_TRICKS_MIXED,
        ["resnet50_v1d.gluoncv", "resnet101_v1d.gluoncv"],
        **_MIXUP,
    ),
    **_published(
        for_batch_size(_GLUONCV_TRICKS, 256), ["resnet152_v1d.gluoncv"], **_MIXUP
    ),
    **_published(
        _GLUONCV_CIFAR10,
        [f"cifar_resnet{n}_{v}.gluoncv" for v in ("v1", "v2") for n in (20, 56, 110)],
    ),
    **_published(
        _RESNEST_SMALL,
        ["resnest14d.gluon_in1k", "resnest14d.gluoncv"],
        source=f"{_RESNEST_SMALL.source}; no DropBlock as in the code of this size",
        drop_block=0.0,
    ),
    **_published(_RESNEST_SMALL, ["resnest26d.gluon_in1k", "resnest26d.gluoncv"]),
    **_published(
        _RESNEST,
        [
            "resnest50d.in1k",
            "resnest50d.gluoncv",
            "resnest50d_1s4x24d.in1k",
            "resnest50d_4s2x40d.in1k",
            *(f"resnest50d_{variant}.authors_gluon" for variant in _FAST),
        ],
    ),
    **_published(
        for_batch_size(_RESNEST, 4096),
        ["resnest101e.in1k", "resnest101e.gluoncv"],
        train_size=224,
    ),
    **_published(
        _RESNEST_LARGE, ["resnest200e.in1k", "resnest200e.gluoncv"], train_size=256
    ),
    **_published(
        _RESNEST_LARGE,
        ["resnest269e.in1k", "resnest269e.gluoncv"],
        transforms=_large_resnest_images,
        train_size=320,
    ),
}


def recipe_named(name: str) -> Recipe:
    """Return a recipe of `RECIPES`; InputError with the nearest names if unknown."""
    try:
        return RECIPES[name]
    except KeyError:
        raise InputError(
            f"unknown recipe {name!r}; {nearest(name, RECIPES)}; "
            "`python -m gluon_resnet.train --list-recipes` lists all"
        ) from None
