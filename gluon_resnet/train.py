# SPDX-License-Identifier: Apache-2.0
"""Training from record files by a recipe, safe against being killed."""

import argparse
import glob
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from gluon_resnet import command
from gluon_resnet.errors import InputError

if TYPE_CHECKING:
    import mxnet as mx

    from gluon_resnet.training.recipe import Recipe

SMOKE_IMAGES = 32
RUNS = Path("runs")
# What others call these settings.
SHORT = {
    "--epochs": "epochs",
    "--batch-size": "batch_size",
    "--lr": "learning_rate",
    "--seed": "seed",
}


def parser() -> command.Parser:
    """Return the parser of this command."""
    parser = command.Parser(
        prog="python -m gluon_resnet.train",
        description="Train a model from record files.",
        epilog="--recipe NAME is one of --list-recipes.",
    )
    add = parser.add_argument
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--recipe", metavar="NAME", help="what to train, and how")
    group.add_argument(
        "--list-recipes", action="store_true", help="list the recipes and exit"
    )
    add("--train-rec", type=Path, metavar="FILE", help=".rec file to train on")
    add("--val-rec", type=Path, metavar="FILE", help=".rec file to validate on")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, log and weights; else the next runs/NAME-NUMBER",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in it; without --out, in the last run",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="change the recipe; another batch_size scales the learning rate",
    )
    for option, key in SHORT.items():
        add(
            option,
            dest="set",
            action="append",
            type=f"{key}={{}}".format,
            metavar="VALUE",
            help=f"the same as --set {key}=VALUE",
        )
    add(
        "--smoke",
        action="store_true",
        help="see in seconds that it runs: a few small images, two epochs; without "
        "other files on the bundled sample",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print the recipe as JSON, say what would run, and exit",
    )
    add(
        "--ctx",
        "--device",
        type=_devices,
        default="cpu",
        metavar="DEVICES",
        help="devices that share each batch: cpu, gpu(0) or gpu(0),gpu(1)",
    )
    add("--workers", type=int, metavar="N", help="threads that prepare images")
    add(
        "--on-damaged",
        choices=["stop", "skip"],
        default="stop",
        help="at an image that cannot be read; skip leaves out up to 1 in 100",
    )
    add(
        "--accept-licence",
        action="store_true",
        help="begin from weights under a non-commercial licence, too",
    )
    add(
        "--checkpoint-every",
        type=float,
        default=10,
        metavar="MINUTES",
        help="minutes between checkpoints",
    )
    add("--json", action="store_true", help="print one JSON object an epoch")
    return parser


def main(arguments: argparse.Namespace) -> Optional[int]:
    """Train, and print what came of it."""
    from gluon_resnet import bundled
    from gluon_resnet.training.interrupts import sigterm_as_ctrl_c
    from gluon_resnet.training.loop import train
    from gluon_resnet.training.recipe import smoke, with_settings
    from gluon_resnet.training.recipes import RECIPES, recipe_named
    from gluon_resnet.training.report import end_lines, start_lines
    from gluon_resnet.training.run import set_up

    logging.getLogger("gluon_resnet.training").setLevel(logging.INFO)
    if arguments.list_recipes:
        _list_recipes(RECIPES)
        return None
    recipe = recipe_named(arguments.recipe)
    train_rec, val_rec = arguments.train_rec, arguments.val_rec
    if arguments.smoke:
        recipe = smoke(recipe)
        train_rec, val_rec = train_rec or bundled.TRAIN_REC, val_rec or bundled.VAL_REC
    if not (train_rec and val_rec):
        raise InputError(
            "--train-rec and --val-rec are needed: give both, or --smoke to try the "
            "recipe on the bundled sample"
        )
    recipe = with_settings(recipe, arguments.set or [])
    options: dict[str, Any] = {
        "resume": arguments.resume,
        "contexts": arguments.ctx,
        "workers": arguments.workers,
        "checkpoint_minutes": arguments.checkpoint_every,
        "max_images": SMOKE_IMAGES if arguments.smoke else None,
        "accept_licence": arguments.accept_licence,
        "skip_damaged": arguments.on_damaged == "skip",
    }
    with ExitStack() as stack:
        stack.enter_context(sigterm_as_ctrl_c())
        out = arguments.out
        if out is None and arguments.smoke:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if out is None:
            out = numbered_folder(arguments.recipe, resume=arguments.resume)
        if arguments.dry_run:
            run = set_up(
                recipe, train_rec, val_rec, out=out, with_weights=False, **options
            )
            print("\n".join(start_lines(run)), file=sys.stderr)
            print(json.dumps(run.state.recipe, indent=1))
            return None
        on_epoch = _print_json if arguments.json else None
        history = train(
            recipe, train_rec, val_rec, out=out, on_epoch=on_epoch, **options
        )
        if arguments.smoke and arguments.out is None:
            lines = ["it runs; the weights of a smoke run are not kept"]
        else:
            lines = list(end_lines(recipe, history, out=out, val_rec=val_rec))
    print("\n".join(lines), file=sys.stderr if arguments.json else sys.stdout)
    return None


def numbered_folder(name: str, *, resume: bool) -> Path:
    """Return runs/NAME-NUMBER: the next one that is free, or to resume the last one.

    An empty folder is free. Raises InputError where there is none to resume.
    """
    prefix = f"{name}-"
    found = RUNS.glob(f"{glob.escape(prefix)}*/*")
    endings = {path.parent.name[len(prefix) :] for path in found}
    last = max((int(text) for text in endings if text.isdecimal()), default=0)
    if resume and not last:
        raise InputError(
            f"there is no run {RUNS / prefix}1 to resume: give its --out, or leave "
            "--resume out"
        )
    return RUNS / f"{prefix}{last if resume else last + 1}"


def _print_json(entry: dict) -> None:
    print(json.dumps(entry), flush=True)


def _list_recipes(recipes: "Mapping[str, Recipe]") -> None:
    from tabulate import tabulate

    head = ("recipe", "epochs", "batch", "top-1, %")
    rows = [
        (name, recipe.epochs, recipe.batch_size, recipe.published_top1)
        for name, recipe in recipes.items()
    ]
    print(tabulate(rows, head, tablefmt="plain", floatfmt=".2f"))


def _devices(names: str) -> "Sequence[mx.Context]":
    """Parse "cpu", "gpu(0)", "cpu(0),cpu(1)"; InputError where one is not there."""
    from gluon_resnet.device import device

    return [device(name) for name in names.split(",")]


if __name__ == "__main__":
    command.run(main, parser())
