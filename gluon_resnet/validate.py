# SPDX-License-Identifier: Apache-2.0
"""Top-1 and top-5 of a model on a record file, class by class where asked for."""

from __future__ import annotations

import argparse
import json
import logging
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.model_options import (
    add_model_options,
    add_running_options,
    load_model,
)

if TYPE_CHECKING:
    from gluon_resnet.classifier import Classifier
    from gluon_resnet.weights import Checkpoint

log = logging.getLogger(__name__)


def validate_file(
    model: Classifier,
    rec: str | Path,
    *,
    batch_size: int = 32,
    crops: int = 1,
    per_class_csv: str | Path | None = None,
    confusion_png: str | Path | None = None,
) -> dict:
    """Score a model on a record file, its images prepared by the model's own protocol.

    crops: 1, the centre, or 10 with averaged probabilities (`predict`). Where the
    protocol crops nothing, ten crops of a square image are it and its mirror image,
    five times each; a warning says so.
    per_class_csv, confusion_png: files to write, `per_class` and `draw_confusion`.

    Returns {"model", "top1", "top5", "count", "crops", "precision",
    "images_per_second", "published_top1", "published_top5"}: top-k in percent, the
    speed from file to logits, and what is published of the checkpoint, always for one
    crop of all validation images; None for a file of the user's.
    Raises InputError for a batch_size below 1, a batch that cannot fit into memory,
    other crops, an output that cannot be written (before the work), for a record that
    cannot be read or has a label beyond the model's classes, and for logits that are
    not finite.
    """
    from gluon_resnet.data.loader import validation_batches
    from gluon_resnet.data.records import RecordFile
    from gluon_resnet.files import replacing
    from gluon_resnet.inference.batch_memory import check_batch
    from gluon_resnet.predictions import (
        accuracy,
        confusion_matrix,
        draw_confusion,
        per_class,
        predict,
        write_per_class,
    )
    from gluon_resnet.progress import progress

    if batch_size < 1:
        raise InputError(f"batch-size is {batch_size}; it must be at least 1")
    check_batch(batch_size, model.protocol.size)
    records = RecordFile.open(Path(rec), num_classes=len(model.class_names))
    batches = validation_batches(
        list(records.offsets),
        records.read,
        batch_size=batch_size,
        protocol=model.protocol,
        crops=crops,
    )
    if crops == 10 and model.protocol.crop_pct == 1:
        log.warning(
            "warning: %s is evaluated without a margin to crop: ten crops of a square "
            "image are it and its mirror image, five times each",
            model.name,
        )
    with ExitStack() as stack:
        csv_part, png_part = (
            stack.enter_context(replacing(Path(path))) if path else None
            for path in (per_class_csv, confusion_png)
        )
        started = time.perf_counter()
        bar = progress(Path(rec).name, batches, unit="batches")
        predictions = predict(model.forward, bar, ctx=model.ctx)
        seconds = time.perf_counter() - started
        if csv_part:
            write_per_class(csv_part, per_class(predictions, model.class_names))
        if png_part:
            draw_confusion(png_part, confusion_matrix(predictions), model.class_names)
    row = published_row(model)
    return {
        "model": model.name,
        **asdict(accuracy(predictions)),
        "crops": crops,
        "precision": model.precision,
        "images_per_second": len(predictions.labels) / seconds,
        "published_top1": row and row.top1,
        "published_top5": row and row.top5,
    }


def published_row(model: Classifier) -> Checkpoint | None:
    """Return the row of the table that tells this model's published accuracy.

    None for weights that are not in the table, and where images are prepared otherwise
    than they were for the published values.
    """
    from gluon_resnet.weights import checkpoint, list_weights

    if model.name not in list_weights():
        return None
    row = checkpoint(model.name)
    return row if row.protocol == model.protocol else None


def parser() -> command.Parser:
    """Return the parser of `validate`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.validate",
        description="Measure top-1 and top-5 of a model on a record file.",
    )
    add = parser.add_argument
    add("--rec", type=Path, required=True, metavar="FILE", help=".rec with its .idx")
    add_model_options(parser, model="model to validate")
    add_running_options(parser, batch_size=32)
    add("--crops", type=int, choices=[1, 10], default=1, help="of each image")
    add("--per-class", type=Path, metavar="CSV", help="write a table of the classes")
    add("--confusion", type=Path, metavar="PNG", help="draw label against answer")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Load the model, validate it, print the outcome."""
    outcome = validate_file(
        load_model(arguments),
        arguments.rec,
        batch_size=arguments.batch_size,
        crops=arguments.crops,
        per_class_csv=arguments.per_class,
        confusion_png=arguments.confusion,
    )
    if arguments.json:
        print(json.dumps(outcome))
        return
    print(
        "{model}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {count} images "
        "({precision}, crops: {crops}, {images_per_second:.1f} images/s)".format(
            **outcome
        )
    )
    published = [
        f"top-{k} {outcome[key]:.2f} %"
        for k, key in ((1, "published_top1"), (5, "published_top5"))
        if outcome[key] is not None
    ]
    if published:
        crops = ", with one crop of each" if outcome["crops"] != 1 else ""
        print(f"published: {', '.join(published)} of all validation images{crops}")


if __name__ == "__main__":
    command.run(main, parser())
