# SPDX-License-Identifier: Apache-2.0
"""`gluon-resnet export`: a network as an ONNX file, proven before it gets its name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.files import check_writable, replacing
from gluon_resnet.model_options import load_model

if TYPE_CHECKING:
    import onnx

    from gluon_resnet.classifier import Classifier
    from gluon_resnet.onnx_export.check import Proof, Reference

_INSTALL = "install what writes and runs ONNX: `pip install -r requirements-export.txt`"
_USAGE = """\
%(prog)s NAME[.TAG] DST.onnx [options]
       %(prog)s --check FILE.onnx [--model NAME[.TAG]] [--weights FILE]
       %(prog)s --zoo-archive [NAME[.TAG] ...] FOLDER"""


def export(
    model: Classifier,
    weights: Path,
    destination: Path,
    *,
    opset: Optional[int] = None,
    size: Optional[int] = None,
    keep_norms: bool = False,
    outputs: Sequence[str] = ("logits",),
) -> Proof:
    """Write a model as an ONNX file with a card and labels beside it.

    weights: the file that the model was loaded from, which the card names.
    The other options are those of `onnx_export.exported`; opset None is the newest.
    The file gets its name once `onnx_export.check` has proven it against the network;
    one of the name is replaced. Raises InputError for an option out of range, for an
    int8 model, where the file cannot be written and where it is not proven.
    """
    _need_onnx()
    from gluon_resnet.onnx_export.exported import exported
    from gluon_resnet.onnx_export.writer import OPSETS

    form = {
        "opset": OPSETS[-1] if opset is None else opset,
        "size": size,
        "keep_norms": keep_norms,
        "outputs": tuple(outputs),
    }
    written = exported(_net(model), **form)
    return _write(model, weights, destination, written, form)


def export_zoo_archive(model: Classifier, weights: Path, folder: Path) -> list[Path]:
    """Write a network's file and archive as the ONNX Model Zoo has them.

    NAME.onnx with card, and NAME.tar.gz with its digests, into `folder`; returns the
    archive's path and those of the digests. Proof and errors are `export`'s.
    """
    _need_onnx()
    from gluon_resnet.onnx_export.archive import write_archive, zoo_model, zoo_name

    net = _net(model)
    name = zoo_name(net.spec.name)
    path = folder / f"{name}.onnx"
    _write(model, weights, path, zoo_model(net), {"opset": 7, "keep_norms": True})
    return write_archive(net, path, folder / f"{name}.tar.gz")


def check(
    path: Path,
    model: Optional[str] = None,
    weights: Optional[Path] = None,
    *,
    accept_licence: bool = False,
) -> Proof:
    """Prove an ONNX file, whoever made it.

    model, weights: what its answers are compared with, as `init_model` takes them.
    Without a model they are compared with nothing but each other. Raises InputError
    where the file is not proven.
    """
    _need_onnx()
    from gluon_resnet.onnx_export.check import check as prove

    if model is None and weights is None:
        return prove(path)
    loaded = load_model(_named(model, weights, accept_licence))
    return prove(path, _reference(loaded, ["logits"]))


def _write(
    model: Classifier,
    weights: Path,
    destination: Path,
    written: onnx.ModelProto,
    form: dict[str, Any],
) -> Proof:
    from gluon_resnet.onnx_export.check import check as prove
    from gluon_resnet.onnx_export.metadata import check_labels, describe, write_beside

    check_labels(destination, model.card)
    describe(written, model.card, weights, {**form, **_accuracy(model)})
    with replacing(destination) as part:
        part.write_bytes(written.SerializeToString(deterministic=True))
        reference = _reference(model, form.get("outputs", ("logits",)))
        proof = prove(part, reference, name=destination)
        write_beside(destination, model.card, weights, written=part)
    return proof


def _net(model: Classifier) -> Any:
    from gluon_resnet.inference.int8 import Int8Model

    if isinstance(model.net, Int8Model):
        raise InputError(
            f"the weights of {model.name} are int8 for MXNet; give those that they "
            "were made from, and --precision int8 where the file shall be int8"
        )
    return model.net


def _reference(model: Classifier, outputs: Sequence[str]) -> Reference:
    """Return the network itself, layer by layer, as a function."""
    import mxnet as mx

    from gluon_resnet.onnx_export.outputs import Answers

    answers = Answers(_net(model), outputs)
    return lambda images: [a.asnumpy() for a in answers(mx.nd.array(images))]


def _accuracy(model: Classifier) -> dict[str, Any]:
    """Return the accuracy that the card tells, and who measured it."""
    from gluon_resnet.weights.published import checkpoint, list_weights

    if not model.card.metrics:
        return {}
    told = {**model.card.metrics, "data_set": model.card.data_set}
    if model.name in list_weights():
        told["measured_by"] = checkpoint(model.name).source
    return {"accuracy": told}


def _need_onnx() -> None:
    from importlib.util import find_spec

    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise InputError(f"{package} is not installed; {_INSTALL}")


def parser() -> command.Parser:
    """Return the parser of `export`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.export",
        usage=_USAGE,
        description="Write a network as an ONNX file, proven before it gets its name.",
    )
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="NAME[.TAG] DST",
        help="model to export, and the file to write: NAME.onnx",
    )
    add("--model", metavar="NAME[.TAG]", help="with --check: what to compare with")
    add("--weights", type=Path, metavar="FILE", help="a file of your own for the model")
    add(
        "--accept-licence",
        action="store_true",
        help="load weights under a non-commercial licence, too",
    )
    add("--opset", type=int, metavar="N", help="7 to 21; default: 21")
    add("--size", type=int, metavar="N", help="side of the images; default: any")
    add("--keep-norms", action="store_true", help="do not fold BatchNorm")
    add(
        "--outputs",
        type=lambda text: text.split(","),
        default=["logits"],
        metavar="NAME,...",
        help="logits, probabilities, features, stage1 to stage4, cam",
    )
    add(
        "--check", type=Path, metavar="FILE", help="prove a file instead of writing one"
    )
    add(
        "--zoo-archive",
        action="store_true",
        help="write the ONNX Model Zoo's form and its archive; without a name all ten",
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Write or check; print the paths, and on standard error what was proven."""
    if arguments.check is not None:
        if arguments.words:
            raise InputError(
                f"--check takes one file, and {arguments.words[0]} is one more; give "
                "a network to compare with as --model"
            )
        print(check(arguments.check, arguments.model, arguments.weights))
    elif arguments.model is not None:
        raise InputError(
            f"--model {arguments.model} goes with --check; name the model to export "
            "before the file to write"
        )
    elif arguments.zoo_archive:
        _export_archives(arguments)
    else:
        _export_one(arguments)


def _export_one(arguments: argparse.Namespace) -> None:
    if len(arguments.words) != 2:
        raise InputError(
            f"export takes a model and the file to write, not {len(arguments.words)} "
            "words; as in `export resnet50_v1 resnet50.onnx`"
        )
    name, destination = arguments.words[0], Path(arguments.words[1])
    if destination.suffix != ".onnx":
        raise InputError(f"cannot write {destination}; end the name in .onnx")
    check_writable(destination)
    _need_onnx()
    model = load_model(_named(name, arguments.weights, arguments.accept_licence))
    proof = export(
        model,
        _weights(model, arguments.weights, arguments.accept_licence),
        destination,
        opset=arguments.opset,
        size=arguments.size,
        keep_norms=arguments.keep_norms,
        outputs=arguments.outputs,
    )
    print(destination)
    print(f"{model.name}: {proof}", file=sys.stderr)


def _export_archives(arguments: argparse.Namespace) -> None:
    if not arguments.words:
        raise InputError("--zoo-archive needs a folder to write into; name it last")
    *names, folder = arguments.words
    for option in ("opset", "size", "keep_norms"):
        if getattr(arguments, option):
            raise InputError(
                f"--zoo-archive writes the Model Zoo's form; leave out "
                f"--{option.replace('_', '-')}"
            )
    if arguments.weights is not None and len(names) != 1:
        raise InputError(
            f"--weights {arguments.weights} is one file; name the one network of it"
        )
    _need_onnx()
    from gluon_resnet.onnx_export.names import ZOO_PREFIXES

    for name in names or [f"{model}.onnx_zoo" for model in ZOO_PREFIXES]:
        model = load_model(_named(name, arguments.weights, arguments.accept_licence))
        weights = _weights(model, arguments.weights, arguments.accept_licence)
        for path in export_zoo_archive(model, weights, Path(folder)):
            print(path, flush=True)


def _named(
    name: Optional[str], weights: Optional[Path], accept_licence: bool
) -> argparse.Namespace:
    """Return the options by which `load_model` loads a model."""
    return argparse.Namespace(
        model=name, weights=weights, accept_licence=accept_licence
    )


def _weights(model: Classifier, given: Optional[Path], accept_licence: bool) -> Path:
    """Return the file that a model was loaded from."""
    from gluon_resnet.weights import checkpoint, fetch

    if given is not None and given.is_file():
        return given
    return fetch(checkpoint(model.name), accept_licence=accept_licence)


if __name__ == "__main__":
    command.run(main, parser())
