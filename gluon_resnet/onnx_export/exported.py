# SPDX-License-Identifier: Apache-2.0
"""The ONNX model of a network, in the form asked for."""

from collections.abc import Sequence
from typing import Optional

import onnx
from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph
from gluon_resnet.inference import split_attention
from gluon_resnet.inference.fold import folded, unfolded
from gluon_resnet.onnx_export.names import OwnNames
from gluon_resnet.onnx_export.outputs import LOGITS, Answers
from gluon_resnet.onnx_export.writer import OPSETS, Dims, onnx_model

BATCH, HEIGHT, WIDTH = "N", "H", "W"
"""What free lengths are called."""


def exported(
    net: HybridBlock,
    *,
    opset: int = OPSETS[-1],
    size: Optional[int] = None,
    keep_norms: bool = False,
    outputs: Sequence[str] = (LOGITS,),
) -> onnx.ModelProto:
    """Return a network as an ONNX model: `data`, images (N, C, H, W), to `outputs`.

    opset: one of `OPSETS`. size: the side of the images; None leaves height and width
    free, as the batch is. keep_norms: BatchNorm as layers of its own, to fine-tune,
    instead of folded into the convolutions. outputs: names of `available_outputs`.
    Raises InputError for an opset, a size or an output that there is not, and for a net
    with an operator that has no form in ONNX.
    """
    answers = Answers(net, outputs)
    graph, arrays = unfolded(answers) if keep_norms else folded(answers)
    split_attention.products_as_broadcasts(graph)
    images, dims = dims_of(graph, net, outputs, size)
    return onnx_model(
        graph,
        arrays,
        opset=opset,
        images=images,
        outputs=dims,
        names=OwnNames(net.spec.name),
    )


def dims_of(
    graph: Graph, net: HybridBlock, outputs: Sequence[str], size: Optional[int]
) -> tuple[Dims, dict[str, Dims]]:
    """Return the dimensions of the images and of each output, by its name.

    graph: of `net`, with these outputs. size: the side of the images; None: free.
    Raises InputError for a size below 1.
    """
    if size is not None and size < 1:
        raise InputError(f"size is {size}; the side of an image is 1 or more pixels")
    channels, side = net.stem.conv1.weight.shape[1], size or net.spec.size
    _, shapes, _ = graph.symbol().infer_shape(data=(1, channels, side, side))
    is_free = size is None
    dims: dict[str, Dims] = {}
    for name, (_, *rest) in zip(outputs, shapes):
        if is_free and len(rest) == 3:
            rest[1:] = f"{name}_{HEIGHT}", f"{name}_{WIDTH}"
        dims[name] = (BATCH, *rest)
    sides = (HEIGHT, WIDTH) if is_free else (side, side)
    return (BATCH, channels, *sides), dims
