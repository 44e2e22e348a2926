# SPDX-License-Identifier: Apache-2.0
"""`create_model`: from a name to an initialised network."""

from typing import Union

import mxnet as mx
from mxnet.gluon import HybridBlock

from gluon_resnet.models.catalog import model_spec
from gluon_resnet.models.resnet import resnet


def create_model(
    name: str,
    *,
    ctx: Union[mx.Context, list[mx.Context], None] = None,
    **options,
) -> HybridBlock:
    """Return the network of a model name or alias with fresh weights.

    It maps float32 images (N, in_channels, H, W), normalised as the model's evaluation
    protocol says, to logits (N, num_classes). Convolutions start from He et al.'s
    normal (fan out, arXiv:1502.01852), the classifier from N(0, 0.01).

    ctx: the device or devices of the parameters; default `mx.cpu()`.
    options: num_classes, in_channels and the regularisers of `models.resnet.resnet`.
    Raises InputError for an unknown name or an option outside its range.
    """
    net = resnet(model_spec(name), **options)
    he_normal = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)
    net.initialize(he_normal, ctx=ctx or mx.cpu())
    return net
