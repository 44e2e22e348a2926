# SPDX-License-Identifier: Apache-2.0
"""A whole network from a row of the catalog."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, nn

from gluon_resnet.errors import InputError
from gluon_resnet.models.blocks import Parts
from gluon_resnet.models.catalog import ModelSpec
from gluon_resnet.models.layers import Chain, relu
from gluon_resnet.models.network import (
    FeatureNet,
    Network,
    check_num_classes,
    classifier,
)
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
    norm_layer: Callable[..., HybridBlock] = nn.BatchNorm,
    norm_options: Optional[Mapping] = None,
    frozen_stages: int = -1,
) -> Network:
    """Stem, stages, pooling and classifier of `spec`, not initialised.

    float32 images (N, in_channels, H, W) -> logits (N, num_classes). The row stays
    readable as `net.spec`. The options are off by default and never change a
    parameter's name:

    - num_classes: classes; default the model's own (1000, or 10 for CIFAR nets); 0 for
      no classifier: the network ends in the pooled vector (N, channels).
    - dropout: probability in [0, 1) before the classifier (0.2 in resnest200e, 269e).
    - drop_block: DropBlock probability in [0, 1), ResNeSt only, three in each block of
      the stages 3 and 4; `set_drop_block` changes it during training.
    - drop_path: stochastic depth: the last block's probability in [0, 1), earlier
      blocks less by the linear rule; or one probability for each block.
    - last_gamma: start each residual branch at zero (arXiv:1706.02677, section 5.1).
    - norm_layer, norm_options: the norm layer, or a function that makes one of
      `in_channels`, and its keywords, e.g. `mxnet.gluon.contrib.nn.SyncBatchNorm` and
      {"num_devices": 4}, or {"momentum": 0.99}, {"use_global_stats": True}.
    - frozen_stages: the stem (0) and the stages up to this one neither train nor gather
      statistics, as OpenMMLab's configurations have it; -1 freezes none.

    Raises InputError for an option outside its range.
    """
    num_classes = spec.num_classes if num_classes is None else num_classes
    check_num_classes(num_classes)
    if in_channels < 1:
        raise InputError(f"in_channels is {in_channels}; it must be at least 1")
    if not -1 <= frozen_stages <= len(spec.blocks):
        raise InputError(
            f"frozen_stages is {frozen_stages}; it must be from -1 (none) to "
            f"{len(spec.blocks)} (all stages of {spec.name})"
        )
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
    is_batch_norm = isinstance(_checked_norm(norm), nn.BatchNorm)
    remaining_drop_paths = iter(drop_paths)

    def norm_at(stage: int) -> partial:
        """The norm of the stem, 0, or of a stage."""
        if stage <= frozen_stages and is_batch_norm:
            return partial(norm, use_global_stats=True)
        return norm  # Others than BatchNorm gather no statistics.

    def stage(index: int, in_channels: int) -> Chain:
        channels, stage_norm = spec.channels[index - 1], norm_at(index)
        last_norm = stage_norm
        if last_gamma:
            last_norm = partial(stage_norm, gamma_initializer="zeros")
        chain = nn.HybridSequential()
        for block_index in range(spec.blocks[index - 1]):
            probability = next(remaining_drop_paths)
            parts = Parts(
                stage_norm,
                last_norm,
                # Only the two last stages drop blocks, as the published nets did.
                partial(_layer_or_none, DropBlock, drop_block if index >= 3 else 0),
                partial(_layer_or_none, stochastic_depth, probability),
            )
            stride = 2 if index > 1 and block_index == 0 else 1
            chain.add(spec.block(in_channels, channels, stride, parts))
            in_channels = channels
        return chain

    # A scope of its own: the names of the symbols do not depend on earlier nets.
    with mx.name.Prefix(f"{spec.name}_"):
        stem = spec.stem(in_channels, norm_at(0))
        inputs = (_out_channels(stem), *spec.channels[:-1])
        stages = {f"stage{i}": stage(i, c) for i, c in enumerate(inputs, 1)}
        is_v2 = spec.preactivated
        net = Network(
            stem=stem,
            **stages,
            norm=norm(in_channels=spec.channels[-1]) if is_v2 else None,
            relu=relu() if is_v2 else None,
            pool=nn.GlobalAvgPool2D(),
            flatten=nn.Flatten(),
            dropout=_layer_or_none(nn.Dropout, dropout),
            fc=classifier(spec, num_classes) if num_classes else None,
        )
    net.spec = spec
    for part in (stem, *stages.values())[: frozen_stages + 1]:
        part.collect_params().setattr("grad_req", "null")
    return net


def feature_net(
    spec: ModelSpec, *, out_indices: Optional[Sequence[int]] = None, **options
) -> FeatureNet:
    """Return `spec`'s stem and stages, not initialised, that answer with their maps.

    out_indices: the levels: 0 for the stem before its max-pool, then the stages;
    default all. A negative one counts from the last. The maps come in the levels'
    order. options: the keywords of `resnet`.
    Raises InputError for a level that the network has not.
    """
    count = len(spec.blocks) + 1
    indices = tuple(range(count)) if out_indices is None else tuple(out_indices)
    if not indices or not all(-count <= index < count for index in indices):
        raise InputError(
            f"out_indices is {indices}; {spec.name} has the levels 0 (stem) to "
            f"{count - 1}"
        )
    net = resnet(spec, num_classes=0, **options)
    return FeatureNet(net, sorted({index % count for index in indices}))


def empty_resnet(
    spec: ModelSpec, *, num_classes: int, in_channels: int = 3, ctx: Contexts = None
) -> Network:
    """Return the network of `spec` with zeros, for `load_weights` to fill.

    Drawing values that are overwritten would take seconds, and gradients, which it
    has not, as much memory as the parameters.
    """
    net = resnet(spec, num_classes=num_classes, in_channels=in_channels)
    net.collect_params().setattr("grad_req", "null")
    net.initialize(mx.init.Zero(), ctx=ctx or mx.cpu())
    return net


def _checked_norm(norm: partial) -> HybridBlock:
    """Return one norm layer. Raises InputError where it cannot stand in a network."""
    try:
        with mx.name.Prefix("trial_"):  # so that it takes no name of a later layer
            layer = norm(in_channels=1)
    except TypeError:
        name = getattr(norm.func, "__name__", "norm_layer")
        raise InputError(
            f"{name} cannot be made with in_channels and these norm_options; give a "
            "norm layer that takes them, such as BatchNorm, or a function that makes "
            "one"
        ) from None
    if isinstance(layer, nn.LayerNorm) and layer._axis != 1:
        raise InputError(
            "LayerNorm normalises the last axis, which is the width of the maps; give "
            'norm_options={"axis": 1}'
        )
    return layer


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
