# SPDX-License-Identifier: Apache-2.0
"""The networks of inference.py in PyTorch: timm's, and the two that timm has not."""

import functools
from collections import OrderedDict

import torch
from torch import nn


def torch_net(folder):
    """The network of a model's folder in evaluation mode, with its weights."""
    from safetensors.torch import load_file

    net = NETS[folder.name]()
    weights = load_file(folder / "weights.safetensors")
    renamed = {
        key.replace(".gamma", ".weight").replace(".beta", ".bias"): value
        for key, value in weights.items()
    }
    missing, unexpected = net.load_state_dict(renamed, strict=False)
    if unexpected or not all(key.endswith("num_batches_tracked") for key in missing):
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    return net.eval()


def timm_net(name):
    """Import timm only here, where it is needed: that takes a second."""
    declare_operators()
    import timm
    from timm.layers import SplitAttn

    SplitAttn.forward = split_attention
    return timm.create_model(name)


def split_attention(self, x):
    """timm's with separate splits: up to 40 % faster in all peers, the same values.

    timm stacks the splits and sums over an axis of length `radix`.
    """
    splits = self.act0(self.bn0(self.conv(x))).chunk(self.radix, 1)
    pooled = sum(split.mean((2, 3), keepdim=True) for split in splits)
    logits = self.fc2(self.act1(self.bn1(self.fc1(pooled))))
    weights = self.rsoftmax(logits)[..., None, None].chunk(self.radix, 1)
    return sum(split * weight for split, weight in zip(splits, weights))


@functools.cache
def declare_operators():
    """Declare what torchvision's wheel, built for CUDA, misses beside a CPU's torch."""
    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor boxes, Tensor scores, float iou) -> Tensor",
            )


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        """(N, C, H, W) to the same, or to half the side."""
        return torch.relu(
            self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        )


class PreactivatedResidual(nn.Module):
    """a = preactivation(x); body(a) + (shortcut(a), or x without a shortcut)."""

    def __init__(self, preactivation, body, shortcut):
        super().__init__()
        self.preactivation, self.body = preactivation, body
        self.shortcut = shortcut

    def forward(self, x):
        """(N, C, H, W) to the same, or to half the side."""
        a = self.preactivation(x)
        return self.body(a) + (x if self.shortcut is None else self.shortcut(a))


def chain(**layers):
    """Named layers, one after the other."""
    return nn.Sequential(OrderedDict(layers))


def conv(in_channels, channels, kernel, stride=1):
    """Square convolution without bias that keeps H and W at stride 1."""
    return nn.Conv2d(
        in_channels, channels, kernel, stride, padding=kernel // 2, bias=False
    )


def cifar_resnet20_v1():
    """GluonCV's, whose stem has no ReLU."""

    def block(in_channels, channels, stride):
        body = chain(
            conv1=conv(in_channels, channels, 3, stride),
            bn1=nn.BatchNorm2d(channels),
            relu1=nn.ReLU(),
            conv2=conv(channels, channels, 3),
            bn2=nn.BatchNorm2d(channels),
        )
        shortcut = None
        if in_channels != channels:
            shortcut = chain(
                conv=conv(in_channels, channels, 1, stride), bn=nn.BatchNorm2d(channels)
            )
        return Residual(body, shortcut)

    return chain(
        stem=chain(conv1=conv(3, 16, 3), bn1=nn.BatchNorm2d(16)),
        **stages(block, (3, 3, 3), (16, 16, 32, 64)),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, 10),
    )


def resnet50_v2():
    """MXNet's, which normalises the images, too."""

    def block(in_channels, channels, stride):
        width = channels // 4
        body = chain(
            conv1=conv(in_channels, width, 1),
            bn2=nn.BatchNorm2d(width),
            relu2=nn.ReLU(),
            conv2=conv(width, width, 3, stride),
            bn3=nn.BatchNorm2d(width),
            relu3=nn.ReLU(),
            conv3=conv(width, channels, 1),
        )
        preactivation = chain(bn1=nn.BatchNorm2d(in_channels), relu1=nn.ReLU())
        changes = in_channels != channels
        shortcut = conv(in_channels, channels, 1, stride) if changes else None
        return PreactivatedResidual(preactivation, body, shortcut)

    stem = chain(
        bn0=nn.BatchNorm2d(3),
        conv1=conv(3, 64, 7, 2),
        bn1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(),
        pool=nn.MaxPool2d(3, 2, padding=1),
    )
    return chain(
        stem=stem,
        **stages(block, (3, 4, 6, 3), (64, 256, 512, 1024, 2048)),
        norm=nn.BatchNorm2d(2048),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(2048, 1000),
    )


def stages(block, blocks, channels):
    """stage1, stage2, ...: the first keeps the side, the others halve it."""
    return {
        f"stage{i + 1}": nn.Sequential(
            block(channels[i], channels[i + 1], 2 if i else 1),
            *(block(channels[i + 1], channels[i + 1], 1) for _ in range(count - 1)),
        )
        for i, count in enumerate(blocks)
    }


NETS = {
    "resnet50_v1b": functools.partial(timm_net, "resnet50"),
    "resnet152_v1d": functools.partial(timm_net, "resnet152d"),
    "resnest50d": functools.partial(timm_net, "resnest50d"),
    "resnest101e": functools.partial(timm_net, "resnest101e"),
    "resnet50_v2": resnet50_v2,
    "cifar_resnet20_v1": cifar_resnet20_v1,
}
