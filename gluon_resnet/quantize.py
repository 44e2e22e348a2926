# SPDX-License-Identifier: Apache-2.0
"""`gluon-resnet quantize`: an int8 model from fp32 weights and images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.files import check_writable
from gluon_resnet.model_options import add_model_options, load_model
from gluon_resnet.precision import CALIBRATIONS

if TYPE_CHECKING:
    import mxnet as mx
    from mxnet.gluon import HybridBlock

    from gluon_resnet.classifier import Classifier
    from gluon_resnet.inference.int8 import Int8Model


def quantize(
    model: Classifier,
    rec: Path,
    *,
    images: int = 500,
    calibration: str = "naive",
    exclude: Sequence[str] = (),
) -> Int8Model:
    """Quantize a model to int8, weights by channel and activations by calibration.

    rec: a record file; `images` of it, drawn evenly, are prepared by the model's own
    protocol. Their labels do not matter.
    calibration: a layer's range is what its outputs reach ("naive") or the part of it
    that loses the least information ("entropy": least Kullback-Leibler divergence, S.
    Migacz, "8-bit Inference with TensorRT", GTC 2017).
    exclude: names or patterns (`stem.conv1`, `stage4.*`) of further layers that stay
    fp32; a layer's name is that of its parameters without the last part.
    Raises InputError for a model that is int8 already or has a layer without a kernel,
    for an option out of range, a pattern without a layer, a record that cannot be read,
    and weights or outputs that are not finite.
    """
    # Not at the top: --help must not wait for MXNet.
    from gluon_resnet.inference.calibration import calibrated, calibration_batches
    from gluon_resnet.inference.coverage import obstacle
    from gluon_resnet.inference.int8 import Calibration, Int8Model, packed
    from gluon_resnet.inference.rewrites import inference_graph
    from gluon_resnet.progress import progress

    if calibration not in CALIBRATIONS:
        raise InputError(
            f"calibration {calibration!r} is unknown; use {' or '.join(CALIBRATIONS)}"
        )
    net = model.net
    if isinstance(net, Int8Model):
        raise InputError(
            f"the weights of {model.name} are int8 already; give those that they were "
            "made from"
        )
    _check_finite(net, model.name)
    excluded = _excluded(net, exclude)
    graph, arrays = inference_graph(net)
    reason = obstacle(graph) or _obstacle(net)
    if reason is not None:
        raise InputError(f"{model.name} has no int8, {reason}; use precision fp32")
    batches = calibration_batches(model.protocol, rec, images)
    title = f"calibrating {model.name}"
    # MXNet's passes announce themselves on standard error unless told not to.
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    fused = graph.symbol().get_backend_symbol("MKLDNN_QUANTIZE")
    quantized, arrays = calibrated(
        fused,
        arrays,
        _fp32_nodes(fused, excluded),
        lambda: (batch for batch, _ in progress(title, batches, unit="batches")),
        calibration,
    )
    card = replace(
        model.card, weights=None, metrics={}, parent=model.card.parent or model.name
    )
    made = Calibration(calibration, sum(map(len, batches.positions)), excluded)
    return Int8Model(quantized, packed(quantized, arrays), card, made)


def _obstacle(net: HybridBlock) -> str | None:
    """Say why an int8 file cannot hold a net whose operators it could."""
    channels = net.stem.conv1.weight.shape[1]
    if channels != 3:
        return f"it has in_channels={channels}, and int8 files are for 3"
    return None if "fc" in net._children else "it has no classifier"


def _check_finite(net: HybridBlock, model: str) -> None:
    import numpy as np

    for name, parameter in net._collect_params_with_prefix().items():
        if not np.isfinite(parameter.data().asnumpy()).all():
            raise InputError(
                f"{name} of {model} holds NaN or infinity: it is damaged or its "
                "training diverged; give other weights"
            )


def _excluded(net: HybridBlock, exclude: Sequence[str]) -> dict[str, str]:
    """Return the layers that stay fp32, in the net's order, with their reasons."""
    from gluon_resnet.inference.rewrites import FP32_LAYERS
    from gluon_resnet.models.traced import layer_of, named_parameters

    layers = dict.fromkeys(map(layer_of, named_parameters(net)))
    for pattern in exclude:
        if not any(fnmatch(layer, pattern) for layer in layers):
            raise InputError(
                f"no layer of {net.spec.name} is named {pattern}; its layers are "
                f"named as {', '.join([*layers][:3])}, ..., {[*layers][-1]}"
            )
    reasons = FP32_LAYERS | dict.fromkeys(exclude, "excluded by the user")
    return {
        layer: reason
        for layer in layers
        for pattern, reason in reasons.items()
        if fnmatch(layer, pattern)
    }


def _fp32_nodes(fused: mx.sym.Symbol, excluded: Mapping[str, str]) -> list[str]:
    """Return the names of the operators that do not become int8.

    They have the arrays of `excluded` layers, or are the pooling of an attention.
    """
    from gluon_resnet.graph import Graph
    from gluon_resnet.inference import split_attention
    from gluon_resnet.models.traced import layer_of

    graph = Graph.of(fused)
    fp32 = split_attention.poolings(graph)
    for node in graph.nodes:
        if any(layer_of(value.node.name) in excluded for value in node.inputs):
            fp32.append(node)
    return [node.name for node in fp32]


def parser() -> command.Parser:
    """Return the parser of `quantize`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.quantize",
        description="Make an int8 model from fp32 weights and images.",
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="file to write, by custom NAME.int8")
    add_model_options(parser, model="model to quantize")
    add("--rec", type=Path, required=True, metavar="FILE", help="images: .rec and .idx")
    add("--images", type=int, default=500, metavar="N", help="how many to calibrate on")
    add(
        "--calibration",
        choices=CALIBRATIONS,
        default="naive",
        help="choice of ranges",
    )
    add(
        "--exclude",
        nargs="+",
        default=(),
        metavar="LAYER",
        help="layers to leave fp32, such as stem.conv1 or 'stage4.*'",
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Quantize, write, print the path, and on standard error what stays fp32."""
    check_writable(arguments.out)
    quantized = quantize(
        load_model(arguments),
        arguments.rec,
        images=arguments.images,
        calibration=arguments.calibration,
        exclude=arguments.exclude,
    )
    from gluon_resnet.inference.int8 import save_int8

    print(save_int8(arguments.out, quantized))
    made = quantized.calibration
    print(
        f"{quantized.card.model}, calibrated on {made.images} images ({made.method})",
        file=sys.stderr,
    )
    for layer, reason in made.excluded.items():
        print(f"fp32: {layer} ({reason})", file=sys.stderr)


if __name__ == "__main__":
    command.run(main, parser())
