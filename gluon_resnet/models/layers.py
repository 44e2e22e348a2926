# SPDX-License-Identifier: Apache-2.0
"""The layers that every network is made of."""

from typing import Union

import mxnet as mx
from mxnet.gluon import nn

Tensor = Union[mx.nd.NDArray, mx.sym.Symbol]
"""What flows through layers: values, or symbols of them while a net is traced."""


class Chain(nn.HybridSequential):
    """Named layers, applied in the order given.

    The names become part of the parameter names, which are a file format: a layer
    without parameters may be left out (None) without changing any other name.
    """

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            if layer is not None:
                setattr(self, name, layer)


def conv(
    in_channels: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2D:
    """Square convolution that keeps H and W at stride 1."""
    return nn.Conv2D(
        channels,
        kernel,
        stride,
        padding=kernel // 2,
        groups=groups,
        use_bias=bias,
        in_channels=in_channels,
    )


def relu() -> nn.Activation:
    """ReLU as the operator that oneDNN's fusion knows."""
    return nn.Activation("relu")
