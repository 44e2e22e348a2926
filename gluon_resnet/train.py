# SPDX-License-Identifier: Apache-2.0
"""Training from record files by a recipe, safe against being killed."""

import argparse
import json
import logging
import tempfile
from pathlib import Path

import mxnet as mx

from gluon_resnet import bundled, command
from gluon_resnet.device import device
from gluon_resnet.errors import InputError
from gluon_resnet.training.loop import train
from gluon_resnet.training.recipe import (
    smoke,
    with_settings,
)
from gluon_resnet.training.recipes import RECIPES, recipe_named

SMOKE_IMAGES = 32


def parser() -> command.Parser:
    """Return the parser of `train`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.train",
        description="Train a model from record files.",
        epilog=f"recipes: {', '.join(RECIPES)}",
    )
    add = parser.add_argument
    add("--recipe", required=True, metavar="NAME", help="what to train, and how")
    add("--train-rec", type=Path, metavar="FILE", help=".rec file to train on")
    add("--val-rec", type=Path, metavar="FILE", help=".rec file to validate on")
    add("--out", type=Path, metavar="DIR", help="folder for checkpoints, log, weights")
    add("--resume", action="store_true", help="go on from the newest checkpoint in it")
    add(
        "--set",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="change the recipe; another batch_size scales the learning rate",
    )
    add(
        "--smoke",
        action="store_true",
        help="see in seconds that it runs: a few small images, two epochs; without "
        "other files on the bundled sample",
    )
    add(
        "--ctx",
        type=_devices,
        default="cpu",
        metavar="DEVICES",
        help="devices that share each batch: cpu, gpu(0) or gpu(0),gpu(1)",
    )
    add("--workers", type=int, metavar="N", help="threads that prepare images")
    add(
        "--checkpoint-every",
        type=float,
        default=10,
        metavar="MINUTES",
        help="minutes between checkpoints",
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print the last entry of the log."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    recipe = recipe_named(arguments.recipe)
    if arguments.smoke:
        recipe = smoke(recipe)
        arguments.train_rec = arguments.train_rec or bundled.TRAIN_REC
        arguments.val_rec = arguments.val_rec or bundled.VAL_REC
    elif None in (arguments.train_rec, arguments.val_rec, arguments.out):
        raise InputError(
            "--train-rec, --val-rec and --out are needed: give them all, or --smoke to "
            "try the recipe on the bundled sample"
        )
    with tempfile.TemporaryDirectory() as scratch:
        history = train(
            with_settings(recipe, arguments.set or []),
            arguments.train_rec,
            arguments.val_rec,
            out=arguments.out or Path(scratch),
            resume=arguments.resume,
            contexts=arguments.ctx,
            workers=arguments.workers,
            checkpoint_minutes=arguments.checkpoint_every,
            max_images=SMOKE_IMAGES if arguments.smoke else None,
        )
    print(json.dumps(history[-1]))


def _devices(names: str) -> list[mx.Context]:
    """Parse "cpu", "gpu(0)", "cpu(0),cpu(1)"."""
    devices = [device(name) for name in names.split(",")]
    for each in devices:
        if each.device_type == "gpu" and each.device_id >= mx.context.num_gpus():
            raise argparse.ArgumentTypeError(
                f"{each} is not there: MXNet sees {mx.context.num_gpus()} GPUs"
            )
    return devices


if __name__ == "__main__":
    command.run(main, parser())
