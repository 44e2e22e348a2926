# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.quantize`: an int8 model from fp32 weights and images."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnet import command
from gluon_resnet.classifier import Classifier, init_model
from gluon_resnet.data.loader import permutation, validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.inference.calibration import calibrated
from gluon_resnet.inference.int8 import Int8Card, Int8Model, packed, save_int8
from gluon_resnet.inference.rewrites import inference_graph

CALIBRATIONS = ("naive", "entropy")
# Layers that stay fp32 in any net: a pattern of their names, and why.
FP32_LAYERS = {
    "stem.bn0": "the norm of the image, which int8 pixels would cost accuracy",
    "*.conv2.fc1": "attention of 1x1 maps: nothing to win, and softmax sharpens errors",
    "*.conv2.fc2": "attention of 1x1 maps: nothing to win, and softmax sharpens errors",
}
_BATCH_SIZE = 8  # all layers' outputs are in memory at once


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
    Raises InputError for an option out of range, a pattern without a layer, a record
    that cannot be read, and weights or outputs that are not finite.
    """
    if calibration not in CALIBRATIONS:
        raise InputError(
            f"calibration {calibration!r} is unknown; use {' or '.join(CALIBRATIONS)}"
        )
    _check_finite(model)
    excluded = _excluded(model, exclude)
    batches = _calibration_batches(model, rec, images)
    # MXNet's passes announce themselves on standard error unless told not to.
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    graph, arrays = inference_graph(model.net)
    fused = graph.get_backend_symbol("MKLDNN_QUANTIZE")
    quantized, arrays = calibrated(
        fused,
        {name: mx.nd.array(array) for name, array in arrays.items()},
        _fp32_nodes(fused, model, excluded),
        lambda: (batch for batch, _ in batches),
        calibration,
    )
    card = Int8Card(
        model=model.net.spec.name,
        protocol=model.protocol,
        class_names=model.class_names,
        calibration=calibration,
        images=sum(map(len, batches.positions)),
        excluded=excluded,
    )
    arrays = {name: array.asnumpy() for name, array in arrays.items()}
    return Int8Model(quantized, packed(quantized, arrays), card)


def _check_finite(model: Classifier) -> None:
    for name, parameter in model.net._collect_params_with_prefix().items():
        if not np.isfinite(parameter.data().asnumpy()).all():
            raise InputError(
                f"{name} of {model.name} holds NaN or infinity: it is damaged or its "
                "training diverged; give other weights"
            )


def _layer_of(model: Classifier) -> dict[str, str]:
    """Map the name of each array in the graph to its layer's, `stage1.0.body.conv1`."""
    parameters = model.net._collect_params_with_prefix().items()
    return {parameter.name: name.rpartition(".")[0] for name, parameter in parameters}


def _excluded(model: Classifier, exclude: Sequence[str]) -> dict[str, str]:
    """Return the layers that stay fp32, in the net's order, with their reasons."""
    layers = dict.fromkeys(_layer_of(model).values())
    for pattern in exclude:
        if not any(fnmatch(layer, pattern) for layer in layers):
            raise InputError(
                f"no layer of {model.net.spec.name} is named {pattern}; its layers are "
                f"named as {', '.join([*layers][:3])}, ..., {[*layers][-1]}"
            )
    reasons = FP32_LAYERS | dict.fromkeys(exclude, "excluded by the user")
    return {
        layer: reason
        for layer in layers
        for pattern, reason in reasons.items()
        if fnmatch(layer, pattern)
    }


def _calibration_batches(model: Classifier, rec: Path, images: int):
    if images < 1:
        raise InputError(f"images is {images}; calibration needs at least 1")
    records = RecordFile.open(rec, num_classes=None)
    keys = permutation(list(records.offsets), seed=0, epoch=0)[:images].tolist()
    return validation_batches(
        keys, records.read, batch_size=_BATCH_SIZE, protocol=model.protocol
    )


def _fp32_nodes(
    fused: mx.sym.Symbol, model: Classifier, excluded: Iterable[str]
) -> list[str]:
    """Return the names of the operators that do not become int8.

    They have the arrays of `excluded` layers, or are the pooling of an attention: what
    it averages is turned into fp32 in any case, and an average rounded to the steps of
    the largest value has few of them.
    """
    nodes = json.loads(fused.tojson())["nodes"]
    layer_of = _layer_of(model)
    flattened = [node["inputs"][0][0] for node in nodes if node["op"] == "Flatten"]

    def is_fp32(index: int, node: dict) -> bool:
        if node["op"] == "Pooling":
            is_global = node["attrs"].get("global_pool") == "True"
            return is_global and index not in flattened
        arrays = (nodes[source]["name"] for source, *_ in node["inputs"])
        return any(layer_of.get(a.partition("_radix")[0]) in excluded for a in arrays)

    return [node["name"] for index, node in enumerate(nodes) if is_fp32(index, node)]


def main(arguments: argparse.Namespace) -> None:
    """Quantize, write, print the path, and on standard error what stays fp32."""
    model = init_model(
        arguments.model, arguments.weights, accept_licence=arguments.accept_licence
    )
    quantized = quantize(
        model,
        arguments.rec,
        images=arguments.images,
        calibration=arguments.calibration,
        exclude=arguments.exclude,
    )
    print(save_int8(arguments.out, quantized))
    card = quantized.card
    print(
        f"{card.model}, calibrated on {card.images} images ({card.calibration})",
        file=sys.stderr,
    )
    for layer, reason in card.excluded.items():
        print(f"fp32: {layer} ({reason})", file=sys.stderr)


if __name__ == "__main__":
    parser = command.Parser(prog="python -m gluon_resnet.quantize", description=__doc__)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="file to write, by custom NAME.int8")
    add("--model", required=True, metavar="NAME[.TAG]", help="model to quantize")
    add("--weights", type=Path, metavar="FILE", help="a file of your own for --model")
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
    add(
        "--accept-licence",
        action="store_true",
        help="load weights under a non-commercial licence, too",
    )
    command.run(main, parser)
