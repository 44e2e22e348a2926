# SPDX-License-Identifier: Apache-2.0
"""What int8 costs a checkpoint in accuracy: a Markdown row per way of quantizing it.

    python benchmarks/int8_accuracy.py --model cifar_resnet20_v1.fashion_mnist \
        --calibrate fashion_mnist/train.rec --validate fashion_mnist/val.rec
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gluon_resnet.classifier import init_model
from gluon_resnet.data.loader import validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.precision import CALIBRATIONS
from gluon_resnet.predictions import accuracy, predict
from gluon_resnet.quantize import quantize


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
    fp32 = predict(model.forward, batches)
    before = accuracy(fp32).top1
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
        int8 = predict(quantized.form(), batches)
        after = accuracy(int8).top1
        same = 100 * np.mean(int8.ranked[:, 0] == fp32.ranked[:, 0])
        print(
            f"| {model.name} | {calibration} | {quantized.calibration.images} "
            f"| {before:.2f} | {after:.2f} | {before - after:.2f} | {same:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
