# SPDX-License-Identifier: Apache-2.0
"""The network that a recipe trains, with the parameters that it begins with."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Union

import mxnet as mx
from mxnet.gluon import Block, HybridBlock, nn
from mxnet.gluon.contrib.nn import SyncBatchNorm

from gluon_resnet.create import create_model
from gluon_resnet.errors import InputError
from gluon_resnet.models import model_spec
from gluon_resnet.random_streams import Use, mxnet_seed, stream
from gluon_resnet.training.recipe import Recipe, training_pixels
from gluon_resnet.weights import checkpoint
from gluon_resnet.weights.card import read_card


def training_net(
    recipe: Recipe,
    contexts: Sequence[mx.Context],
    *,
    is_new: bool = True,
    accept_licence: bool = False,
) -> HybridBlock:
    """The recipe's network with the parameters that its training starts from.

    is_new: False leaves `initial_weights` aside, since a checkpoint will replace them.
    accept_licence: take initial weights under a non-commercial licence, too.
    Raises InputError where those cannot be had or are of another model, and where a
    norm would see one value per channel, which it would turn into zero: torch, too,
    refuses "1 value per channel when training".
    """
    options: dict[str, Any] = {}
    if recipe.sync_bn and len(contexts) > 1:
        options["norm_layer"] = SyncBatchNorm
        options["norm_options"] = {"num_devices": len(contexts)}
    name: str = recipe.model
    pretrained: Union[bool, Path] = False
    if is_new and recipe.initial_weights is not None:
        name, pretrained = _published_or_file(recipe.initial_weights, recipe.model)
    mx.random.seed(mxnet_seed(stream(recipe.seed, Use.INITIALISATION)))
    net = create_model(
        name,
        pretrained=pretrained,
        accept_licence=accept_licence,
        num_classes=recipe.num_classes,
        ctx=contexts,
        dropout=recipe.dropout,
        drop_path=recipe.drop_path,
        drop_block=recipe.drop_block,
        last_gamma=recipe.last_gamma,
        **options,
    )
    if net.spec.name != model_spec(recipe.model).name:
        raise InputError(
            f"initial_weights {recipe.initial_weights} are for {net.spec.name}, the "
            f"model is {recipe.model}: give weights of it, or none"
        )
    _check_norms(net, recipe, num_devices=len(contexts))
    return net


def evaluation_net(recipe: Recipe, context: mx.Context) -> HybridBlock:
    """A second network of the recipe's, for validations.

    Inference with MXNet reorders weights in place, some time after the call. Training
    that goes on with these weights rounds now one way, now the other.
    """
    net = create_model(recipe.model, num_classes=recipe.num_classes, ctx=context)
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def copy_parameters(values: Mapping[str, mx.nd.NDArray], target: HybridBlock) -> None:
    """Give `target` values under the names of `save_parameters`."""
    for name, parameter in target._collect_params_with_prefix().items():
        parameter.set_data(values[name])


def _published_or_file(weights: str, model: str) -> tuple[str, Union[bool, Path]]:
    """What `create_model` takes as name and `pretrained` to begin with them."""
    path = Path(weights)
    if path.is_file():
        card = read_card(path)
        return card.model if card else model, path
    try:
        return checkpoint(weights).name, True
    except InputError as error:
        raise InputError(f"initial_weights {weights} is no file, and {error}") from None


def _check_norms(net: HybridBlock, recipe: Recipe, *, num_devices: int) -> None:
    """Raise InputError where a norm of one device and pass sees one value a channel."""
    if recipe.batch_size // (num_devices * recipe.accumulate) > 1:
        return
    size = training_pixels(recipe).size
    outputs = net(mx.sym.var("data")).get_internals()
    _, shapes, _ = outputs.infer_shape(data=(1, 3, size, size))
    shape_of = dict(zip(outputs.list_outputs(), shapes))
    layers: list[Block] = []
    net.apply(layers.append)
    for layer in layers:
        # A synchronised one sees the values of all devices.
        if isinstance(layer, nn.BatchNorm) and not isinstance(layer, SyncBatchNorm):
            _, _, *sides = shape_of[f"{layer.name}_fwd_output"]
            if prod(sides) == 1:
                raise InputError(
                    f"a norm of {recipe.model} sees one value per channel in a pass of "
                    f"one image of {size} pixels, and learns nothing: raise "
                    f"batch_size, which is {recipe.batch_size} in {recipe.accumulate} "
                    f"passes on {num_devices} devices"
                )
