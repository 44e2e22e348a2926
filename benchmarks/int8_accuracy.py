# SPDX-License-Identifier: Apache-2.0
"""What int8 costs a checkpoint in accuracy: a Markdown row per way of quantizing it.

    python benchmarks/int8_accuracy.py --model cifar_resnet20_v1.fashion_mnist \
        --calibrate fashion_mnist/train.rec --validate fashion_mnist/val.rec
"""

import argparse
from pathlib import Path

import numpy as np

from gluon_resnet.classifier import init_model
from gluon_resnet.loader import validation_batches
from gluon_resnet.quantize import CALIBRATIONS, quantize
from gluon_resnet.records import RecordFile


def logits_and_labels(net, batches):
    """Return float32 (N, C) and int (N,) of all batches."""
    import mxnet as mx

    logits = [net(mx.nd.array(images)).asnumpy() for images, _ in batches]
    return np.concatenate(logits), np.concatenate([labels for _, labels in batches])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="NAME[.TAG]")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--calibrate", type=Path, required=True, metavar="REC")
    parser.add_argument("--validate", type=Path, required=True, metavar="REC")
    parser.add_argument("--images", type=int, default=500, help="for calibration")
    parser.add_argument("--exclude", nargs="+", default=(), metavar="LAYER")
    arguments = parser.parse_args()

    model = init_model(arguments.model, arguments.weights)
    records = RecordFile.open(arguments.validate, num_classes=len(model.class_names))
    batches = list(
        validation_batches(
            list(records.offsets),
            records.read,
            batch_size=100,
            protocol=model.protocol,
        )
    )
    fp32, labels = logits_and_labels(model.net, batches)
    print(
        "| model | calibration | images | fp32 top-1 | int8 top-1 | lost | agreement |"
    )
    print("|---|---|---|---|---|---|---|")
    for calibration in CALIBRATIONS:
        quantized = quantize(
            model,
            arguments.calibrate,
            images=arguments.images,
            calibration=calibration,
            exclude=arguments.exclude,
        )
        int8, _ = logits_and_labels(quantized.block(), batches)
        before, after, same = (
            100 * np.mean(a == b)
            for a, b in (
                (fp32.argmax(1), labels),
                (int8.argmax(1), labels),
                (int8.argmax(1), fp32.argmax(1)),
            )
        )
        print(
            f"| {model.name} | {calibration} | {quantized.card.images} | {before:.2f} "
            f"| {after:.2f} | {before - after:.2f} | {same:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
