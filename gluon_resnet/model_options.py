# SPDX-License-Identifier: Apache-2.0
"""What the commands ask of a model alike: their options, and the model these name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gluon_resnet.device import device_name
from gluon_resnet.errors import InputError
from gluon_resnet.precision import PRECISIONS

if TYPE_CHECKING:
    from gluon_resnet.classifier import Classifier


def add_model_options(parser: argparse.ArgumentParser, *, model: str) -> None:
    """Add --model, whose help is `model`, --weights and --accept-licence."""
    add = parser.add_argument
    add("--model", metavar="NAME[.TAG]", help=model)
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a file of your own; --model may be left out where it tells its network",
    )
    add(
        "--accept-licence",
        action="store_true",
        help="load weights under a non-commercial licence, too",
    )


def add_running_options(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """Add --precision, --ctx and --batch-size."""
    add = parser.add_argument
    add("--precision", choices=PRECISIONS, help="default: that of the weights, fp32")
    add(
        "--ctx",
        "--device",
        type=device_name,
        default="cpu",
        metavar="DEVICE",
        help="cpu or gpu(0)",
    )
    add("--batch-size", type=int, default=batch_size, help="images that run together")


def load_model(arguments: argparse.Namespace) -> Classifier:
    """Return the model that the options name.

    Raises InputError as `init_model` does, and where they name none.
    """
    from gluon_resnet.progress import doing

    if arguments.model is None and arguments.weights is None:
        raise InputError(
            "no model is named: give --model NAME (`gluon-resnet models` lists them), "
            "or --weights FILE that tells its network"
        )
    with doing(f"loading {arguments.model or arguments.weights}"):
        from gluon_resnet.classifier import init_model

        return init_model(
            arguments.model,
            arguments.weights,
            getattr(arguments, "ctx", None),
            precision=getattr(arguments, "precision", None),
            accept_licence=arguments.accept_licence,
        )
