# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.convert`: any published weights into a file of your own."""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from gluon_resnet import command

if TYPE_CHECKING:
    from gluon_resnet.weights.load import LoadReport


def convert(
    source: Union[str, Path],
    destination: Union[str, Path],
    *,
    model: Optional[str] = None,
    num_classes: Optional[int] = None,
) -> tuple[Path, "LoadReport"]:
    """Write the weights in `source` as `destination` and return its path and a report.

    `source` is anything that `load_weights` reads; `destination` ends in .params or
    .safetensors, as `save_weights` writes them. The first eight hexadecimal digits of
    the file's SHA-256 go into its name, NAME-01234567.params: a file that is there
    already has the same bytes and is replaced. The card goes along, or that of the
    published file that `source` is.
    model: the network; need not be given where the card or the table tells it. With
    MODEL.TAG the card says that these are those weights.
    num_classes: how many classes there must be; default as many as there are.
    Raises InputError where `source` does not fit the model, all offenders listed.
    """
    # On first use: they import MXNet, which `--help` can do without.
    from gluon_resnet.models import model_spec
    from gluon_resnet.weights.card import digest_of, write_card
    from gluon_resnet.weights.load import net_of, read_weights
    from gluon_resnet.weights.save import check_suffix, save_weights
    from gluon_resnet.weights.usage import stated_usage

    destination = Path(destination)
    check_suffix(destination)
    file = read_weights(source)
    usage, card = stated_usage(file, model), None
    if usage is not None:
        parent = usage.card.parent or (
            usage.name if usage.name != usage.card.model else file.path.name
        )
        card = replace(usage.card, weights=None, parent=parent)
    spec = model_spec(usage.card.model if usage else str(model))
    net, report = net_of(spec, file, num_classes=num_classes)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        unnamed = save_weights(net, Path(folder, destination.name), card=card)
        digits = digest_of(unnamed)[:8]
        named = destination.with_name(
            f"{destination.stem}-{digits}{destination.suffix}"
        )
        unnamed.replace(named)
    if card is not None and destination.suffix == ".params":
        write_card(named, card)
    return named, report


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
    parser.add_argument(
        "--model",
        metavar="NAME[.TAG]",
        help="whose they are; not needed where the weights tell it",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="how many classes there must be"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Convert, print the path, and on standard error what was read."""
    from gluon_resnet.progress import doing

    with doing(f"converting {arguments.source}"):
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
