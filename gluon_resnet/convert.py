# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.convert`: any published weights into a file of your own."""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from gluon_resnet import command

if TYPE_CHECKING:
    from gluon_resnet.weights.load import LoadReport


def convert(
    source: Union[str, Path],
    destination: Union[str, Path],
    *,
    model: str,
    num_classes: Optional[int] = None,
) -> tuple[Path, "LoadReport"]:
    """Write the weights in `source` as `destination` and return its path and a report.

    `source` is anything that `load_weights` reads; `destination` ends in .params or
    .safetensors, as `save_weights` writes them. The first eight hexadecimal digits of
    the file's SHA-256 go into its name, NAME-01234567.params: a file that is there
    already has the same bytes and is replaced.
    Raises InputError where `source` does not fit the model, all offenders listed.
    """
    # On first use: they import MXNet, which `--help` can do without.
    from gluon_resnet.models import model_spec
    from gluon_resnet.models.resnet import empty_resnet
    from gluon_resnet.weights.load import load_weights
    from gluon_resnet.weights.save import check_suffix, save_weights

    destination = Path(destination)
    check_suffix(destination)
    spec = model_spec(model)
    net = empty_resnet(spec, num_classes=num_classes or spec.num_classes)
    report = load_weights(net, source)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        unnamed = save_weights(net, Path(folder, destination.name))
        digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()
        named = f"{destination.stem}-{digest[:8]}{destination.suffix}"
        return unnamed.replace(destination.with_name(named)), report


def parser() -> command.Parser:
    """Return the parser of `convert`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.convert",
        description="Write any published weights into a file of your own.",
    )
    parser.add_argument(
        "source", metavar="SRC", help=".params, .safetensors, .pth or .onnx file"
    )
    parser.add_argument(
        "destination",
        metavar="DST",
        help="NAME.params or NAME.safetensors; eight digits of its SHA-256 join NAME",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="whose they are")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="classes, if not the model's own"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Convert, print the path, and on standard error what was read."""
    path, report = convert(
        arguments.source,
        arguments.destination,
        model=arguments.model,
        num_classes=arguments.num_classes,
    )
    print(path)
    was = f", from {' and '.join(report.converted)}" if report.converted else ""
    print(
        f"{report.loaded} tensors of {report.path} ({report.format}, named as "
        f"{report.layout}) as float32{was}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    command.run(main, parser())
