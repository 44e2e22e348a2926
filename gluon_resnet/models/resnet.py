# SPDX-License-Identifier: Apache-2.0
"""A whole network from a row of the catalog."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from gluon_resnet.errors import InputError
from gluon_resnet.models.blocks import Parts
from gluon_resnet.models.catalog import ModelSpec
from gluon_resnet.models.layers import Chain, relu
from gluon_resnet.models.regularisers import DropBlock, stochastic_depth

Contexts = Union[mx.Context, list[mx.Context], None]


def resnet(
    spec: ModelSpec,
    *,
    num_classes: Optional[int] = None,
    in_channels: int = 3,
    dropout: float = 0.0,
    drop_block: float = 0.0,
    drop_path: Union[float, Sequence[float]] = 0.0,
    last_gamma: bool = False,
    norm_layer: type = nn.BatchNorm,
    norm_options: Optional[Mapping] = None,
) -> Chain:
    """Stem, stages, pooling and classifier of `spec`, not initialised.

    float32 images (N, in_channels, H, W) -> logits (N, num_classes). The row stays
    readable as `net.spec`. The regularisers are off by default and never change a
    parameter's name:

    - num_classes: classes; default the model's own (1000, or 10 for CIFAR nets).
    - dropout: probability in [0, 1) before the classifier (0.2 in resnest200e, 269e).
    - drop_block: DropBlock probability in [0, 1), ResNeSt only, three in each block of
      the stages 3 and 4; `set_drop_block` changes it during training.
    - drop_path: stochastic depth: the last block's probability in [0, 1), earlier
      blocks less by the linear rule; or one probability for each block.
    - last_gamma: start each residual branch at zero (arXiv:1706.02677, section 5.1).
    - norm_layer, norm_options: the norm layer and its keywords, e.g.
      `mxnet.gluon.contrib.nn.SyncBatchNorm` and {"num_devices": 4}, or
      {"momentum": 0.99}, {"use_global_stats": True}.

    Raises InputError for an option outside its range.
    """
    num_classes = spec.num_classes if num_classes is None else num_classes
    for option, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    drop_paths = _drop_paths(drop_path, sum(spec.blocks))
    for value in (dropout, drop_block, *drop_paths):
        if not 0 <= value < 1:
            raise InputError(f"a drop probability is {value}; it must be in [0, 1)")
    if drop_block and spec.family != "resnest":
        raise InputError(
            f"drop_block is {drop_block} for {spec.name}; only ResNeSt has DropBlock; "
            "leave it 0 or use drop_path"
        )
    norm = partial(norm_layer, **(norm_options or {}))
    last_norm = partial(norm, gamma_initializer="zeros") if last_gamma else norm
    remaining_drop_paths = iter(drop_paths)

    def stage(index: int, in_channels: int) -> Chain:
        channels = spec.channels[index]
        chain = nn.HybridSequential()
        for block_index in range(spec.blocks[index]):
            probability = next(remaining_drop_paths)
            parts = Parts(
                norm,
                last_norm,
                # Only the two last stages drop blocks, as the published nets did.
                partial(_layer_or_none, DropBlock, drop_block if index >= 2 else 0),
                partial(_layer_or_none, stochastic_depth, probability),
            )
            stride = 2 if index > 0 and block_index == 0 else 1
            chain.add(spec.block(in_channels, channels, stride, parts))
            in_channels = channels
        return chain

    # A scope of its own: the names of the symbols do not depend on earlier nets.
    with mx.name.Prefix(f"{spec.name}_"):
        stem = spec.stem(in_channels, norm)
        stem_channels = _out_channels(stem)
        inputs = (stem_channels, *spec.channels[:-1])
        stages = {f"stage{i + 1}": stage(i, c) for i, c in enumerate(inputs)}
        net = Chain(
            stem=stem,
            **stages,
            norm=norm(in_channels=spec.channels[-1]) if spec.preactivated else None,
            relu=relu() if spec.preactivated else None,
            pool=nn.GlobalAvgPool2D(),
            flatten=nn.Flatten(),
            dropout=_layer_or_none(nn.Dropout, dropout),
            fc=nn.Dense(
                num_classes,
                in_units=spec.channels[-1],
                weight_initializer=mx.init.Normal(0.01),
            ),
        )
    net.spec = spec
    return net


def empty_resnet(spec: ModelSpec, *, num_classes: int, ctx: Contexts = None) -> Chain:
    """Return the network of `spec` with zeros, for `load_weights` to fill.

    Drawing values that are overwritten would take seconds, and gradients, which it
    has not, as much memory as the parameters.
    """
    net = resnet(spec, num_classes=num_classes)
    net.collect_params().setattr("grad_req", "null")
    net.initialize(mx.init.Zero(), ctx=ctx or mx.cpu())
    return net


def _layer_or_none(layer, probability: float):
    return layer(probability) if probability > 0 else None


def _drop_paths(drop_path, num_blocks: int) -> list[float]:
    """One probability per block; a single number is the linear rule's last."""
    if np.ndim(drop_path) == 0:
        return list(np.linspace(0, drop_path, num_blocks))
    if len(drop_path) != num_blocks:
        raise InputError(
            f"drop_path has {len(drop_path)} probabilities; the network has "
            f"{num_blocks} blocks; give one number or one per block"
        )
    return list(drop_path)


def _out_channels(stem: Chain) -> int:
    convs = [layer for layer in stem if isinstance(layer, nn.Conv2D)]
    return convs[-1].weight.shape[0]
