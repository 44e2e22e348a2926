# SPDX-License-Identifier: Apache-2.0
"""`create_model`: from a name to a network with fresh or published weights."""

import inspect
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet import models
from gluon_resnet.device import device
from gluon_resnet.errors import InputError
from gluon_resnet.models import ModelSpec, model_spec
from gluon_resnet.models.names import resolve
from gluon_resnet.models.network import Network
from gluon_resnet.models.resnet import Contexts, feature_net, resnet
from gluon_resnet.nearest import nearest
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights.download import fetch
from gluon_resnet.weights.load import WeightsFile, net_of, read_weights
from gluon_resnet.weights.published import (
    checkpoint,
    list_weights,
    names_weights,
    row_of_url,
)
from gluon_resnet.weights.usage import stated_usage

log = logging.getLogger(__name__)

# A text that ends so is a file's path, not a tag.
_SUFFIXES = (
    *(".params", ".safetensors", ".onnx", ".zip", ".json"),
    *(".pth", ".pt", ".bin", ".ckpt", ".tar"),
)

# What other projects call the keywords of `create_model`.
_OTHER_WORDS = {
    "checkpoint_path": "pretrained, with the file's path",
    "classes": "num_classes",
    "device": "ctx",
    "drop_block_rate": "drop_block",
    "drop_path_rate": "drop_path",
    "drop_rate": "dropout",
    "final_drop": "dropout",
    "in_chans": "in_channels",
    "norm_kwargs": "norm_options",
    "zero_init_last": "last_gamma",
    "zero_init_residual": "last_gamma",
}


def create_model(
    name: str,
    *,
    num_classes: Optional[int] = None,
    in_channels: Optional[int] = None,
    ctx: Union[Contexts, str] = None,
    pretrained: Union[bool, str, Path] = False,
    accept_licence: bool = False,
    features_only: bool = False,
    out_indices: Optional[Sequence[int]] = None,
    **options,
) -> Network:
    """Return a model's network, for training, fine-tuning or use.

    It maps float32 images (N, in_channels, H, W), normalised as its `protocol` says
    (`net.preprocess` does it), to logits (N, num_classes).

    name: a model, an alias, or MODEL.TAG (`list_weights`).
    num_classes: classes; default those of the weights that are named, or the model's
    own; 0 for none: the network gives the pooled vector (N, channels).
    in_channels: channels of the images; default those of the weights, or 3.
    ctx: the device or devices of the parameters, or their names; default `mx.cpu()`.
    pretrained: True for the published weights that `name` stands for, or their TAG, or
    the path of a file of your own, in any format that `load_weights` reads, or the URL
    of a published one. A text is a path where there is such a file or where it ends as
    weights do (`mine.params`).
    With another number of classes the classifier starts fresh; with other channels the
    first convolution is adapted as timm does: one channel sums the kernels, others
    repeat them, scaled to the same sum.
    accept_licence: take weights under a non-commercial licence, too.
    features_only: give a list of the maps of the levels `out_indices` instead (0: the
    stem before its max-pool, then the stages; default all), as timm does.
    options: the keywords of `models.resnet.resnet`, all off by default.

    Fresh convolutions start from He et al.'s normal (fan out, arXiv:1502.01852), a
    fresh classifier from N(0, 0.01).
    Raises InputError for an unknown name, an option outside its range, and weights that
    cannot be had or whose card names another model; TypeError for an unknown option.
    """
    _check_options(options)
    if not features_only and out_indices is not None:
        raise InputError(
            "out_indices wants features_only=True, and counts as timm does: 0 is the "
            "stem, 1 the first stage, which is OpenMMLab's 0"
        )
    if features_only and num_classes:
        raise InputError("features_only leaves no classifier; leave num_classes out")
    start = _start(name, pretrained, accept_licence)
    source = None
    if start.file is not None:
        # A backbone is enough where the classifier is not asked for.
        has_classifier = start.file.named(start.spec).has_classifier
        is_backbone = not has_classifier and (features_only or num_classes is not None)
        source, _ = net_of(
            start.spec, start.file, num_classes=0 if is_backbone else None
        )
        if in_channels is None:
            in_channels = source.stem.conv1.weight.shape[1]
    elif names_weights(name):
        log.warning(
            "create_model(%r) gives fresh parameters; with pretrained=True it loads "
            "these weights",
            name,
        )
    options["in_channels"] = 3 if in_channels is None else in_channels
    net: Network
    if features_only:
        net = feature_net(start.spec, out_indices=out_indices, **options)
    else:
        if num_classes is None:
            num_classes = source.fc.weight.shape[0] if source else start.num_classes
        net = resnet(start.spec, num_classes=num_classes, **options)
    net.protocol = start.protocol
    he_normal = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)
    devices = ctx if isinstance(ctx, (list, tuple)) else [ctx]
    net.initialize(he_normal, ctx=[device(each) for each in devices])
    if source is not None:
        _copy_adapted(source, net)
    return net


class _Start(NamedTuple):
    """What a network begins with."""

    spec: ModelSpec
    protocol: Protocol
    num_classes: int
    """Where no file tells it."""
    file: Optional[WeightsFile] = None


def _start(
    name: str, pretrained: Union[bool, str, Path], accept_licence: bool
) -> _Start:
    row = row_of_url(pretrained, name)
    is_text = isinstance(pretrained, str)
    if row is None and is_text and not _is_path(str(pretrained)):
        name = f"{name}.{pretrained}"
    elif row is None and (is_text or isinstance(pretrained, Path)):
        file = read_weights(str(pretrained))
        usage = stated_usage(file, name)
        protocol = usage.card.protocol if usage else checkpoint(name).protocol
        spec = model_spec(name)
        return _Start(spec, protocol, spec.num_classes, file)
    row = row or checkpoint(name)
    spec = model_spec(row.model)
    if pretrained:
        file = read_weights(fetch(row, accept_licence=accept_licence))
        return _Start(spec, row.protocol, row.num_classes, file)
    _, tag = resolve(name)
    return _Start(spec, row.protocol, row.num_classes if tag else spec.num_classes)


def _is_path(text: str) -> bool:
    return text.lower().endswith(_SUFFIXES) or Path(text).is_file()


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the models that `create_model` takes, in the table's order.

    pattern: a part of a name or alias, as in "resnet50", or with wildcards a shell
    pattern of all of it, as in "resnest*"; in any case.
    pretrained: the names MODEL.TAG of the models' published weights instead; `pattern`
    may have a tag then, as in "*.in1k".
    Raises InputError with the nearest names where nothing is found.
    """
    if pretrained and "." in pattern and (found := list_weights(pattern)):
        return found
    found = models.list_models(pattern)
    if pretrained:
        return [name for model in found for name in list_weights(model)]
    return found


def _check_options(options: Iterable[str]) -> None:
    """Raise TypeError for a keyword that `create_model` has not, with the right one."""
    known = {
        name
        for function in (create_model, resnet)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for option in options:
        if option not in known:
            hint = nearest(option, sorted(known))
            if option in _OTHER_WORDS:
                hint = f"here it is {_OTHER_WORDS[option]}"
            raise TypeError(f"create_model has no keyword {option!r}; {hint}")


def _copy_adapted(source: HybridBlock, target: HybridBlock) -> None:
    """Copy all but a classifier of another size; fit what sees the image's channels."""
    targets = target._collect_params_with_prefix()
    for name, parameter in source._collect_params_with_prefix().items():
        if name not in targets:  # a classifier, or stages after the last map
            continue
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
