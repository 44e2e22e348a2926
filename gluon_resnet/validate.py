# SPDX-License-Identifier: Apache-2.0
"""Top-1 and top-5 of a model on a record file."""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock
from tqdm import tqdm

from gluon_resnet import command
from gluon_resnet.classifier import Classifier, init_model
from gluon_resnet.errors import InputError
from gluon_resnet.loader import Batch, validation_batches
from gluon_resnet.records import RecordFile


@dataclass(frozen=True)
class Accuracy:
    """Shares, in percent, of images whose label is the first or in the first five."""

    top1: float
    top5: float
    count: int


def validate(
    net: HybridBlock, batches: Iterable[Batch], *, ctx: Optional[mx.Context] = None
) -> Accuracy:
    """Score every image of `batches`, (images (N, 3, H, W), labels (N,)), once.

    Among equal logits the lower class comes first. Raises InputError when there is no
    image or a logit is not finite.
    """
    top1 = top5 = count = 0
    for images, labels in batches:
        logits = net(mx.nd.array(images, ctx=ctx or mx.cpu())).asnumpy()
        if not np.isfinite(logits).all():
            raise InputError(
                "the network answers with logits that are not finite: its weights are "
                "damaged or its training diverged"
            )
        hits = np.argsort(-logits, axis=1, kind="stable") == labels[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits[:, :5].sum())
        count += len(labels)
    if count == 0:
        raise InputError("there is no image to validate on: give a filled record file")
    return Accuracy(100 * top1 / count, 100 * top5 / count, count)


def validate_file(model: Classifier, rec: Path, *, batch_size: int = 32) -> dict:
    """Score a model on a record file, its images prepared by the model's own protocol.

    Returns {"model", "top1", "top5", "count", "crops", "precision",
    "images_per_second"}: top-k in percent, the speed from file to logits.
    Raises InputError for a batch_size below 1, for a record that cannot be read or has
    a label beyond the model's classes, and for logits that are not finite.
    """
    if batch_size < 1:
        raise InputError(f"batch-size is {batch_size}; it must be at least 1")
    records = RecordFile.open(rec, num_classes=len(model.class_names))
    batches = validation_batches(
        list(records.offsets),
        records.read,
        batch_size=batch_size,
        protocol=model.protocol,
    )
    started = time.perf_counter()
    bar = tqdm(batches, rec.name, unit="batch", disable=None)
    accuracy = validate(model.net, bar, ctx=model.ctx)
    return {
        "model": model.name,
        **asdict(accuracy),
        "crops": 1,
        "precision": "fp32",
        "images_per_second": accuracy.count / (time.perf_counter() - started),
    }


def main(arguments: argparse.Namespace) -> None:
    """Load the model, validate it, print the outcome."""
    model = init_model(
        arguments.model, arguments.weights, accept_licence=arguments.accept_licence
    )
    outcome = validate_file(model, arguments.rec, batch_size=arguments.batch_size)
    if arguments.json:
        print(json.dumps(outcome))
    else:
        print(
            "{model}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {count} images "
            "({precision}, {crops} crop, {images_per_second:.1f} images/s)".format(
                **outcome
            )
        )


if __name__ == "__main__":
    parser = command.Parser(prog="python -m gluon_resnet.validate", description=__doc__)
    add = parser.add_argument
    add("--rec", type=Path, required=True, metavar="FILE", help=".rec with its .idx")
    add("--model", required=True, metavar="NAME[.TAG]", help="model to validate")
    add("--weights", type=Path, metavar="FILE", help="a file of your own for --model")
    add("--batch-size", type=int, default=32, help="images that run together")
    add("--json", action="store_true", help="print one JSON object")
    add(
        "--accept-licence",
        action="store_true",
        help="load weights under a non-commercial licence, too",
    )
    command.run(main, parser)
