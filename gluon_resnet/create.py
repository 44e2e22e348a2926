# SPDX-License-Identifier: Apache-2.0
"""`create_model`: from a name to a network with fresh or published weights."""

from pathlib import Path
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.models import model_spec
from gluon_resnet.models.resnet import Contexts, empty_resnet, resnet
from gluon_resnet.weights import checkpoint, classes_of, fetch, load_weights
from gluon_resnet.weights.card import card_path, check_model, read_card


def create_model(
    name: str,
    *,
    num_classes: Optional[int] = None,
    in_channels: int = 3,
    ctx: Contexts = None,
    pretrained: Union[bool, str, Path] = False,
    accept_licence: bool = False,
    **regularisers,
) -> HybridBlock:
    """Return a model's network, for training, fine-tuning or use.

    It maps float32 images (N, in_channels, H, W), normalised as the weights' evaluation
    protocol says, to logits (N, num_classes).

    name: a model or an alias; with `pretrained` also MODEL.TAG (`list_weights`).
    num_classes: classes; default those of the weights, or the model's own.
    ctx: the device or devices of the parameters; default `mx.cpu()`.
    pretrained: True for the published weights that `name` stands for, or their TAG, or
    the Path of a file of your own, in any format that `load_weights` reads.
    With another number of classes the classifier starts fresh; with other than three
    channels the first convolution is adapted as timm does: one channel sums the
    kernels, others repeat them, scaled to the same sum.
    accept_licence: take weights under a non-commercial licence, too.
    regularisers: the keywords of `models.resnet.resnet`, all off by default.

    Fresh convolutions start from He et al.'s normal (fan out, arXiv:1502.01852), a
    fresh classifier from N(0, 0.01).
    Raises InputError for an unknown name, an option outside its range, and weights that
    cannot be had or whose card names another model.
    """
    stored_classes = None
    if not pretrained:
        spec, path = model_spec(name), None
    elif isinstance(pretrained, Path):
        spec, path = model_spec(name), pretrained
        stored_classes = classes_of(path)
        card = read_card(path)
        if card is not None:
            check_model(card.model, spec.name, card_path(path))
    else:
        row = checkpoint(name if pretrained is True else f"{name}.{pretrained}")
        spec, path = model_spec(row.model), fetch(row, accept_licence=accept_licence)
        stored_classes = row.num_classes
    num_classes = stored_classes if num_classes is None else num_classes
    net = resnet(spec, num_classes=num_classes, in_channels=in_channels, **regularisers)
    he_normal = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)
    net.initialize(he_normal, ctx=ctx or mx.cpu())
    if path is not None:
        source = empty_resnet(spec, num_classes=stored_classes)
        load_weights(source, path)
        _copy_adapted(source, net)
    return net


def _copy_adapted(source: HybridBlock, target: HybridBlock) -> None:
    """Copy all but a classifier of another size; fit what sees the image's channels."""
    targets = target._collect_params_with_prefix()
    for name, parameter in source._collect_params_with_prefix().items():
        value = parameter.data().asnumpy()
        if name == "stem.conv1.weight":
            value = _adapted_kernel(value, targets[name].shape[1])
        elif name.startswith("stem.bn0."):  # v2's norm of the image itself
            value = _adapted_norm(value, len(targets[name].data()))
        if value.shape == targets[name].shape:
            targets[name].set_data(value)


def _adapted_kernel(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Fit (O, I, k, k) to other channels (timm `models/_manipulate.py`)."""
    count = kernel.shape[1]
    if in_channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    if in_channels == count:
        return kernel
    repeated = np.tile(kernel, (1, -(-in_channels // count), 1, 1))[:, :in_channels]
    return repeated * (count / in_channels)


def _adapted_norm(values: np.ndarray, in_channels: int) -> np.ndarray:
    """Fit statistics per channel: their mean for one channel, else repeated."""
    if in_channels == 1:
        return values.mean(keepdims=True)
    return np.resize(values, in_channels)
