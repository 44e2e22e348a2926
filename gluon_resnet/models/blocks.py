# SPDX-License-Identifier: Apache-2.0
"""Residual blocks: `block(in_channels, channels, stride, parts) -> HybridBlock`.

(N, in_channels, H, W) -> (N, channels, H / stride, W / stride). A block is a body, read
top to bottom, and a shortcut: the identity where shapes agree, else a projection.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mxnet.gluon import HybridBlock, nn

from gluon_resnet.models.layers import Chain, conv, relu
from gluon_resnet.models.split_attention import SplitAttention


@dataclass(frozen=True)
class Parts:
    """What a block takes from its network: makers of layers, None for no layer."""

    norm: Callable
    """`norm(in_channels=C)` makes a norm layer."""
    last_norm: Callable
    """The norm that scales the residual branch: gamma 0 with `last_gamma`."""
    drop_block: Callable = lambda: None
    drop_path: Callable = lambda: None


class Residual(HybridBlock):
    """body(x) + shortcut(x), then the activation, if there is one."""

    def __init__(self, body, shortcut=None, activation=None):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def hybrid_forward(self, F, x):
        """Add body and shortcut of (N, C, H, W)."""
        out = self.body(x) + (self.shortcut(x) if self.shortcut else x)
        return self.activation(out) if self.activation else out


class PreactivatedResidual(HybridBlock):
    """a = preactivation(x); body(a) + (shortcut(a), or x itself without a shortcut)."""

    def __init__(self, preactivation, body, shortcut=None):
        super().__init__()
        self.preactivation, self.body, self.shortcut = preactivation, body, shortcut

    def hybrid_forward(self, F, x):
        """Add body and shortcut of (N, C, H, W)."""
        activated = self.preactivation(x)
        return self.body(activated) + (self.shortcut(activated) if self.shortcut else x)


# Shortcuts: from (in_channels, H, W) to (channels, H / stride, W / stride).


def conv_shortcut(in_channels, channels, stride, norm):
    """1x1 convolution with the stride, BN; None where the identity fits."""
    if stride == 1 and in_channels == channels:
        return None
    return Chain(
        conv=conv(in_channels, channels, 1, stride), bn=norm(in_channels=channels)
    )


def pool_shortcut(in_channels, channels, stride, norm):
    """Average pooling with the stride, 1x1 convolution, BN; None for the identity.

    The "d" tweak of arXiv:1812.01187: no activation is skipped by the stride.
    """
    if stride == 1 and in_channels == channels:
        return None
    pool = nn.AvgPool2D(stride, stride, ceil_mode=True, count_include_pad=False)
    return Chain(
        pool=pool if stride > 1 else None,
        conv=conv(in_channels, channels, 1),
        bn=norm(in_channels=channels),
    )


def bare_shortcut(in_channels, channels, stride):
    """1x1 convolution with the stride, nothing else; None for the identity (v2)."""
    if stride == 1 and in_channels == channels:
        return None
    return conv(in_channels, channels, 1, stride)


# Post-activation blocks (arXiv:1512.03385).


def basic(in_channels, channels, stride, parts, *, shortcut=conv_shortcut):
    """3x3 (stride), BN, ReLU, 3x3, BN."""
    body = Chain(
        conv1=conv(in_channels, channels, 3, stride),
        bn1=parts.norm(in_channels=channels),
        relu1=relu(),
        conv2=conv(channels, channels, 3),
        bn2=parts.last_norm(in_channels=channels),
        drop_path=parts.drop_path(),
    )
    return Residual(body, shortcut(in_channels, channels, stride, parts.norm), relu())


def bottleneck_v1(in_channels, channels, stride, parts):
    """1x1 (stride, bias), BN, ReLU, 3x3, BN, ReLU, 1x1 (bias), BN.

    As in MXNet's model_zoo and the ONNX Model Zoo: the stride on the first 1x1, and
    biases on both 1x1, which the BN behind them makes redundant.
    """
    width = channels // 4
    body = Chain(
        conv1=conv(in_channels, width, 1, stride, bias=True),
        bn1=parts.norm(in_channels=width),
        relu1=relu(),
        conv2=conv(width, width, 3),
        bn2=parts.norm(in_channels=width),
        relu2=relu(),
        conv3=conv(width, channels, 1, bias=True),
        bn3=parts.last_norm(in_channels=channels),
        drop_path=parts.drop_path(),
    )
    projection = conv_shortcut(in_channels, channels, stride, parts.norm)
    return Residual(body, projection, relu())


def bottleneck(
    in_channels, channels, stride, parts, *, expansion=4, shortcut=conv_shortcut
):
    """1x1, BN, ReLU, 3x3 (stride), BN, ReLU, 1x1, BN: v1b, as torchvision's.

    The 3x3 is `expansion` times narrower than the output; 2 makes it wide
    (arXiv:1605.07146).
    """
    width = channels // expansion
    body = Chain(
        conv1=conv(in_channels, width, 1),
        bn1=parts.norm(in_channels=width),
        relu1=relu(),
        conv2=conv(width, width, 3, stride),
        bn2=parts.norm(in_channels=width),
        relu2=relu(),
        conv3=conv(width, channels, 1),
        bn3=parts.last_norm(in_channels=channels),
        drop_path=parts.drop_path(),
    )
    return Residual(body, shortcut(in_channels, channels, stride, parts.norm), relu())


def split_attention_bottleneck(
    in_channels,
    channels,
    stride,
    parts,
    *,
    radix=2,
    cardinality=1,
    base_width=64,
    pool_first=False,
):
    """1x1, BN, ReLU, split attention, 3x3 average pooling (stride), 1x1, BN.

    With `pool_first` the pooling comes before the attention (the "fast" ResNeSts).
    DropBlock sits before the first ReLU, after the attention and before the sum.
    """
    width = channels // 4 * base_width // 64 * cardinality
    pool = nn.AvgPool2D(3, stride, padding=1) if stride > 1 else None
    body = Chain(
        conv1=conv(in_channels, width, 1),
        bn1=parts.norm(in_channels=width),
        drop1=parts.drop_block(),
        relu1=relu(),
        pool1=pool if pool_first else None,
        conv2=SplitAttention(width, parts.norm, radix=radix, cardinality=cardinality),
        drop2=parts.drop_block(),
        pool2=None if pool_first else pool,
        conv3=conv(width, channels, 1),
        bn3=parts.last_norm(in_channels=channels),
        drop3=parts.drop_block(),
        drop_path=parts.drop_path(),
    )
    projection = pool_shortcut(in_channels, channels, stride, parts.norm)
    return Residual(body, projection, relu())


# Pre-activation blocks (arXiv:1603.05027).


def basic_v2(in_channels, channels, stride, parts):
    """BN, ReLU, 3x3 (stride), BN, ReLU, 3x3; the shortcut forks after the ReLU."""
    body = Chain(
        conv1=conv(in_channels, channels, 3, stride),
        bn2=parts.last_norm(in_channels=channels),
        relu2=relu(),
        conv2=conv(channels, channels, 3),
        drop_path=parts.drop_path(),
    )
    preactivation = Chain(bn1=parts.norm(in_channels=in_channels), relu1=relu())
    projection = bare_shortcut(in_channels, channels, stride)
    return PreactivatedResidual(preactivation, body, projection)


def bottleneck_v2(in_channels, channels, stride, parts):
    """BN, ReLU, 1x1, BN, ReLU, 3x3 (stride), BN, ReLU, 1x1."""
    width = channels // 4
    body = Chain(
        conv1=conv(in_channels, width, 1),
        bn2=parts.norm(in_channels=width),
        relu2=relu(),
        conv2=conv(width, width, 3, stride),
        bn3=parts.last_norm(in_channels=width),
        relu3=relu(),
        conv3=conv(width, channels, 1),
        drop_path=parts.drop_path(),
    )
    preactivation = Chain(bn1=parts.norm(in_channels=in_channels), relu1=relu())
    projection = bare_shortcut(in_channels, channels, stride)
    return PreactivatedResidual(preactivation, body, projection)


def cifar_basic_v2(in_channels, channels, stride, parts):
    """BN, ReLU, 3x3 (stride), BN, ReLU, 3x3; the shortcut leaves before the first BN.

    GluonCV's CIFAR nets project the raw input, its ImageNet nets the activated one.
    """
    body = Chain(
        bn1=parts.norm(in_channels=in_channels),
        relu1=relu(),
        conv1=conv(in_channels, channels, 3, stride),
        bn2=parts.last_norm(in_channels=channels),
        relu2=relu(),
        conv2=conv(channels, channels, 3),
        drop_path=parts.drop_path(),
    )
    return Residual(body, bare_shortcut(in_channels, channels, stride))
