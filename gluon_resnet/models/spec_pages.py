# SPDX-License-Identifier: Apache-2.0
"""The params and FLOPs cells of the spec pages, as printed there, and their misprints.

OpenMMLab: `configs/resnet/README.md` of mmclassification 1.x. timm: the ResNeSt page of
its documentation. The ONNX Model Zoo's page prints neither.
"""

from dataclasses import dataclass
from functools import partial

from gluon_resnet.models.catalog import model_spec
from gluon_resnet.models.complexity import Complexity, complexity
from gluon_resnet.models.resnet import resnet


@dataclass(frozen=True)
class PageRow:
    """One row of a page, with its cells as printed."""

    page: str
    name: str
    model: str
    params: float
    flops: float
    convention: str = "openmmlab"
    num_classes: int = 1000
    size: int = 224
    misprint: str = ""
    """What is wrong with the printed cells, and the right values."""

    def counted(self) -> Complexity:
        """Count the row's network in the page's own convention."""
        net = resnet(model_spec(self.model), num_classes=self.num_classes)
        return complexity(net, self.size, self.convention)

    def agrees(self, counted: Complexity) -> bool:
        """Whether `counted`, rounded as the page rounds, is what the page prints."""
        if self.convention == "openmmlab":  # millions and billions, two decimals
            cells = round(counted.params / 1e6, 2), round(counted.flops / 1e9, 2)
        else:  # units, the parameters to the nearest ten thousand
            cells = round(counted.params, -4), counted.flops
        return cells == (self.params, self.flops)


_cifar10 = partial(PageRow, "openmmlab/cifar10", num_classes=10, size=32)
_in1k = partial(PageRow, "openmmlab/imagenet-1k")
_timm = partial(PageRow, "timm/resnest", convention="timm-page")

SPEC_PAGES = (
    PageRow(
        "openmmlab/imagenet-21k",
        "ResNet-50-mill",
        "resnet50_v1b",
        86.74,
        15.14,
        num_classes=11221,
        misprint="cells of Swin-B; right: 46.50 M (11,221 classes) and 4.12 G",
    ),
    _cifar10("ResNet-18", "cifar_resnet18", 11.17, 0.56),
    _cifar10("ResNet-34", "cifar_resnet34", 21.28, 1.16),
    _cifar10("ResNet-50", "cifar_resnet50", 23.52, 1.31),
    _cifar10("ResNet-101", "cifar_resnet101", 42.51, 2.52),
    _cifar10("ResNet-152", "cifar_resnet152", 58.16, 3.74),
    PageRow(
        "openmmlab/cifar100",
        "ResNet-50",
        "cifar_resnet50",
        23.71,
        1.31,
        num_classes=100,
        size=32,
    ),
    _in1k("ResNet-18", "resnet18_v1b", 11.69, 1.82),
    _in1k("ResNet-34", "resnet34_v1b", 21.8, 3.68),
    _in1k("ResNet-50", "resnet50_v1b", 25.56, 4.12),
    _in1k("ResNet-101", "resnet101_v1b", 44.55, 7.85),
    _in1k("ResNet-152", "resnet152_v1b", 60.19, 11.58),
    _in1k("ResNetV1C-50", "resnet50_v1c", 25.58, 4.36),
    _in1k("ResNetV1C-101", "resnet101_v1c", 44.57, 8.09),
    _in1k("ResNetV1C-152", "resnet152_v1c", 60.21, 11.82),
    _in1k("ResNetV1D-50", "resnet50_v1d", 25.58, 4.36),
    _in1k("ResNetV1D-101", "resnet101_v1d", 44.57, 8.09),
    _in1k("ResNetV1D-152", "resnet152_v1d", 60.21, 11.82),
    _in1k("ResNet-50 (fp16)", "resnet50_v1b", 25.56, 4.12),
    _in1k("Wide-ResNet-50", "wide_resnet50_2", 68.88, 11.44),
    _in1k("Wide-ResNet-101", "wide_resnet101_2", 126.89, 22.81),
    _in1k("ResNet-50 (rsb-a1)", "resnet50_v1b", 25.56, 4.12),
    _in1k("ResNet-50 (rsb-a2)", "resnet50_v1b", 25.56, 4.12),
    _in1k("ResNet-50 (rsb-a3)", "resnet50_v1b", 25.56, 4.12),
    PageRow(
        "openmmlab/cub",
        "ResNet-50",
        "resnet50_v1b",
        23.92,
        16.48,
        num_classes=200,
        size=448,
    ),
    _timm("resnest14d", "resnest14d", 10_610_000, 3_548_594_464),
    _timm("resnest26d", "resnest26d", 17_070_000, 4_678_918_720),
    _timm("resnest50d", "resnest50d", 27_480_000, 6_937_106_336),
    _timm("resnest101e", "resnest101e", 48_280_000, 17_423_183_648, size=256),
    _timm(
        "resnest200e",
        "resnest200e",
        70_200_000,
        45_954_387_872,
        size=320,
        misprint="its file is resnest101e's; right: resnest200-75117900.pth",
    ),
    _timm("resnest269e", "resnest269e", 110_930_000, 100_830_307_104, size=416),
    _timm("resnest50d_1s4x24d", "resnest50d_1s4x24d", 25_680_000, 5_686_764_544),
    _timm("resnest50d_4s2x40d", "resnest50d_4s2x40d", 30_420_000, 5_657_064_720),
)


@dataclass(frozen=True)
class Misprint:
    """What a page prints, and what is right."""

    page: str
    place: str
    printed: str
    right: str


MISPRINTS = (
    Misprint(
        "OpenMMLab",
        "ResNet-50-mill, params and FLOPs",
        "86.74 M and 15.14 G, the cells of Swin-B",
        "46.50 M with its 11,221 classes, and 4.12 G",
    ),
    Misprint(
        "OpenMMLab",
        "test command",
        "resnet50_8xb32_in1k.py with resnet50_b16x8_cifar10_20210528-f54bfad9.pth, "
        "weights of ResNet_CIFAR",
        "resnet50_8xb32_in1k_20210831-ea4938fc.pth",
    ),
    Misprint(
        "timm",
        "resnest200e, weights and file size",
        "resnest101-22405ba7.pth and 193782911, those of resnest101e",
        "resnest200-75117900.pth; its size is not published, its tensors have "
        "281,682,072 bytes",
    ),
    Misprint(
        "Model Zoo",
        "preprocess(img_data)",
        "`import numpy`, then np.array",
        "`import numpy as np`",
    ),
    Misprint(
        "Model Zoo",
        "accuracies",
        "of a center crop of images scaled to 256 on the short side",
        "of images warped to 256 x 256, as the notebooks of that time did it",
    ),
)
"""All that were found, those of `SPEC_PAGES` among them."""
