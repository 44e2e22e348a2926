# SPDX-License-Identifier: Apache-2.0
"""Stems: from the image (N, in_channels, H, W) to the first stage's input.

Each is `stem(in_channels, norm) -> Chain`; `norm(in_channels=C)` makes a norm layer.
"""

from collections.abc import Callable

from mxnet.gluon import nn

from gluon_resnet.models.layers import Chain, conv, relu


def max_pool() -> nn.MaxPool2D:
    """3x3, stride 2: the second halving of every ImageNet stem."""
    return nn.MaxPool2D(3, 2, padding=1)


def imagenet_stem(in_channels: int, norm: Callable) -> Chain:
    """7x7 (stride 2) to 64, BN, ReLU, max-pool: (H, W) / 4 (arXiv:1512.03385)."""
    return Chain(
        conv1=conv(in_channels, 64, 7, 2),
        bn1=norm(in_channels=64),
        relu1=relu(),
        pool=max_pool(),
    )


def deep_stem(in_channels: int, norm: Callable, *, width: int = 32) -> Chain:
    """Three 3x3 (width, width, 2 width), each BN, ReLU; then max-pool: (H, W) / 4.

    The "c" tweak of He et al., "Bag of Tricks", arXiv:1812.01187, section 4.
    """
    return Chain(
        conv1=conv(in_channels, width, 3, 2),
        bn1=norm(in_channels=width),
        relu1=relu(),
        conv2=conv(width, width, 3),
        bn2=norm(in_channels=width),
        relu2=relu(),
        conv3=conv(width, 2 * width, 3),
        bn3=norm(in_channels=2 * width),
        relu3=relu(),
        pool=max_pool(),
    )


def input_norm_stem(in_channels: int, norm: Callable) -> Chain:
    """BN without scale and shift on the image, then the ImageNet stem (v2)."""
    return Chain(
        bn0=norm(in_channels=in_channels, scale=False, center=False),
        conv1=conv(in_channels, 64, 7, 2),
        bn1=norm(in_channels=64),
        relu1=relu(),
        pool=max_pool(),
    )


def small_stem(in_channels: int, norm: Callable) -> Chain:
    """3x3 to 64 channels, BN, ReLU at full resolution (OpenMMLab ResNet_CIFAR)."""
    return Chain(conv1=conv(in_channels, 64, 3), bn1=norm(in_channels=64), relu1=relu())


def cifar_v1_stem(in_channels: int, norm: Callable) -> Chain:
    """3x3 to 16 channels, BN, and no ReLU, as GluonCV's published weights want it."""
    return Chain(conv1=conv(in_channels, 16, 3), bn1=norm(in_channels=16))


def cifar_v2_stem(in_channels: int, norm: Callable) -> Chain:
    """BN without scale and shift on the image, then 3x3 to 16 channels."""
    return Chain(
        bn0=norm(in_channels=in_channels, scale=False, center=False),
        conv1=conv(in_channels, 16, 3),
    )
