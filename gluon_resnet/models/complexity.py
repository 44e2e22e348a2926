# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs of a network, in the conventions of the spec pages.

The counts are read off the network's own graph, so they cannot drift from it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional, Union

from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.graph import VARIABLE, Value
from gluon_resnet.models.catalog import model_spec
from gluon_resnet.models.resnet import resnet
from gluon_resnet.models.traced import IMAGES, traced

Size = Union[int, tuple[int, int]]


@dataclass(frozen=True)
class Complexity:
    """What a network costs for one image."""

    params: int
    """Trainable values: no running statistics, no frozen gamma and beta."""
    flops: int
    """Operations in the convention asked for."""


@dataclass(frozen=True)
class _Operation:
    """One operator of the graph; shapes are those of one image."""

    kind: str
    input_size: int
    output_size: int
    weight_shape: tuple[int, ...]
    has_bias: bool
    is_average: bool
    is_global: bool
    is_last_pool: bool


def complexity(
    name_or_net: Union[str, HybridBlock],
    size: Optional[Size] = None,
    convention: str = "macs",
) -> Complexity:
    """Count the parameters and FLOPs of a model or of a network of this package.

    size: side of the square image or (H, W), in pixels; default the model's own.
    convention, what counts as one operation:

    - "macs": a multiply-add of a convolution or of the classifier.
    - "openmmlab": the column of OpenMMLab's page, as mmcv 1.x counts: multiply-adds and
      biases of convolutions, 2 per BN element, 1 per ReLU element, the input elements
      of each pooling layer; no classifier.
    - "timm-page": the column of timm's ResNeSt page: multiply-adds and biases of
      convolutions, 2 per BN element, the output elements of average pooling, input and
      output elements of the last pooling; no classifier. An int size is the short side
      of the page's photograph, 1546 x 1213 pixels, resized and not cropped: the image
      counted is `size` high and floor(size * 1546 / 1213) wide.

    Raises InputError for an unknown model or convention.
    """
    if convention not in _COSTS:
        raise InputError(
            f"unknown FLOPs convention {convention!r}; choose {', '.join(_COSTS)}"
        )
    net = name_or_net
    if isinstance(net, str):
        net = resnet(model_spec(net))
    size = size or net.spec.size
    if isinstance(size, int):
        width = size * 1546 // 1213 if convention == "timm-page" else size
        size = (size, width)
    cost = _COSTS[convention]
    params = net.collect_params().values()
    return Complexity(
        params=sum(math.prod(p.shape) for p in params if p.grad_req != "null"),
        flops=sum(cost(operation) for operation in _operations(net, size)),
    )


def _operations(net: HybridBlock, size: tuple[int, int]) -> Iterator[_Operation]:
    """Walk the operators of the graph for one image, in execution order."""
    in_channels = next(iter(net.collect_params(".*weight").values())).shape[1]
    graph = traced(net)
    outputs = graph.symbol().get_internals()
    _, shapes, _ = outputs.infer_shape(**{IMAGES: (1, in_channels, *size)})
    shapes = dict(zip(outputs.list_outputs(), shapes))

    def shape(value: Value) -> tuple[int, ...]:
        name = value.node.name
        keys = (name, f"{name}_output", f"{name}_output{value.output}")
        return next(shapes[key] for key in keys if key in shapes)

    operators = [node for node in graph.nodes if node.op != VARIABLE]
    pools = [node for node in operators if node.op == "Pooling"]
    last_pool = pools[-1] if "pool" in net._children else None  # not of feature maps
    for node in operators:
        inputs, attributes = node.inputs, node.attributes
        yield _Operation(
            kind=node.op,
            input_size=math.prod(shape(inputs[0])),
            output_size=math.prod(shape(Value(node))),
            weight_shape=shape(inputs[1]) if len(inputs) > 1 else (),
            has_bias=attributes.get("no_bias") is False,
            is_average=attributes.get("pool_type") == "avg",
            is_global=attributes.get("global_pool", False),
            is_last_pool=node is last_pool,
        )


def _macs(operation: _Operation) -> int:
    if operation.kind == "Convolution":
        return operation.output_size * math.prod(operation.weight_shape[1:])
    if operation.kind == "FullyConnected":
        return math.prod(operation.weight_shape)
    return 0


def _page(operation: _Operation) -> int:
    """What both pages count alike."""
    if operation.kind == "Convolution":
        return _macs(operation) + operation.output_size * operation.has_bias
    if operation.kind == "BatchNorm":
        return 2 * operation.output_size
    return 0


def _openmmlab(operation: _Operation) -> int:
    if operation.kind == "Activation":
        return operation.output_size
    if operation.kind == "Pooling":
        return operation.input_size * _is_module(operation)
    return _page(operation)


def _timm_page(operation: _Operation) -> int:
    if operation.kind == "Pooling" and operation.is_last_pool:
        return operation.input_size + operation.output_size
    if operation.kind == "Pooling" and operation.is_average:
        return operation.output_size * _is_module(operation)
    return _page(operation)


def _is_module(pooling: _Operation) -> bool:
    """Whether the pages' tools, which hook modules, saw this pooling.

    The global pooling inside split attention is a function call there.
    """
    return pooling.is_last_pool or not pooling.is_global


_COSTS = {"macs": _macs, "openmmlab": _openmmlab, "timm-page": _timm_page}
