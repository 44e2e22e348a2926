# SPDX-License-Identifier: Apache-2.0
"""`gluon-resnet export`: a network as an ONNX file, proven before it gets its name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.files import check_writable, replacing
from gluon_resnet.model_options import load_model
from gluon_resnet.precision import CALIBRATIONS

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from mxnet.gluon import HybridBlock

    from gluon_resnet.classifier import Classifier
    from gluon_resnet.onnx_export.check import Reference

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
    opset: int | None = None,
    size: int | None = None,
    keep_norms: bool = False,
    outputs: Sequence[str] = ("logits",),
    in_graph: bool = False,
    rec: Path | None = None,
    images: int = 500,
    calibration: str = "naive",
) -> list[str]:
    """Write a model as an ONNX file with a card and labels beside it.

    weights: the file that the model was loaded from, which the card names.
    opset, size, keep_norms, outputs: as `onnx_export.exported` has them; opset None is
    the newest.
    in_graph: take the uint8 pixels (H, W, 3) of one image and prepare them inside, as
    the model's protocol says (`onnx_export.pixels`).
    rec: a record file of images, which make it int8; `images` and `calibration` are as
    `quantize` has them.
    The file gets its name once `onnx_export.check` has proven it against the network;
    one of the name is replaced. Returns lines on what was found. Raises InputError for
    an option out of range, for an int8 model, where the file cannot be written and
    where it is not proven.
    """
    _need_onnx()
    from gluon_resnet.onnx_export.check import check as prove
    from gluon_resnet.onnx_export.exported import exported
    from gluon_resnet.onnx_export.writer import OPSETS

    net, opset = _net(model), OPSETS[-1] if opset is None else opset
    form: dict[str, Any] = {"opset": opset, "size": size, "outputs": tuple(outputs)}
    told: dict[str, Any] = {"keep_norms": keep_norms, "pixels": in_graph}
    reference: Reference | None = None
    if rec is None:
        written = exported(net, **form, keep_norms=keep_norms)
        reference, lines = _reference(model, outputs), []
    elif keep_norms:
        raise InputError("int8 has no norms to keep; leave out --keep-norms")
    else:
        made = _int8(model, rec, images, calibration, form)
        written, lines = made.model, made.lines
        # What was measured, was measured of the float weights.
        model = replace(model, card=replace(model.card, metrics={}))
        told["int8"] = made.told
    if in_graph:
        written, line, reference = _with_pixels(model, written, reference, opset)
        lines.append(line)
    _describe(model, weights, written, form | told)
    with _named(model, weights, destination, written) as part:
        proof = prove(part, reference, name=destination)
    return [f"{model.name}: {proof}", *lines]


def export_zoo_archive(model: Classifier, weights: Path, folder: Path) -> list[Path]:
    """Write a network's file and archive as the ONNX Model Zoo has them.

    NAME.onnx with card, and NAME.tar.gz with its digests, into `folder`; returns the
    archive's path and those of the digests. Proof and errors are `export`'s.
    """
    _need_onnx()
    from gluon_resnet.onnx_export.archive import (
        OPSET,
        write_archive,
        zoo_model,
        zoo_name,
    )
    from gluon_resnet.onnx_export.check import check as prove

    net = _net(model)
    name = zoo_name(net.spec.name)
    path = folder / f"{name}.onnx"
    written = zoo_model(net)
    _describe(model, weights, written, {"opset": OPSET, "keep_norms": True})
    with _named(model, weights, path, written) as part:
        prove(part, _reference(model, ["logits"]), name=path)
    return write_archive(net, path, folder / f"{name}.tar.gz")


def check(
    path: Path,
    model: str | None = None,
    weights: Path | None = None,
    *,
    accept_licence: bool = False,
) -> list[str]:
    """Prove an ONNX file, whoever made it, and return lines on what was found.

    model, weights: what its answers are compared with, as `init_model` takes them.
    Without both it is compared with the published weights that it was made from, if it
    tells which and they are on this machine. Raises InputError where the file is not
    proven, and where it is int8, which is not as near to a network.
    """
    _need_onnx()
    from onnx import TensorProto

    from gluon_resnet.onnx_export.check import check as prove
    from gluon_resnet.onnx_export.check import is_quantized, well_formed
    from gluon_resnet.onnx_export.metadata import published_source

    file = well_formed(path)
    name = model
    if model is None and weights is None:
        name = None if is_quantized(file) else published_source(file)
        if name is None:
            return [str(prove(path)), "there is nothing to compare its answers with"]
    elif is_quantized(file):
        raise InputError(
            f"{path} is quantized and answers about as its network only; leave out "
            "--model and --weights, and measure its accuracy"
        )
    loaded = load_model(_options(name, weights, accept_licence))
    reference = _reference(loaded, _outputs(path, file, _net(loaded)))
    if file.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8:
        (opset,) = (entry.version for entry in file.opset_import if not entry.domain)
        reference = _of_pixels(reference, _preparation(loaded, opset))
    return [str(prove(path, reference)), f"compared with {loaded.name}"]


def _outputs(path: Path, file: onnx.ModelProto, net: HybridBlock) -> list[str]:
    """Return which outputs of a network those of a file are."""
    from gluon_resnet.onnx_export.outputs import LOGITS, available_outputs

    names = [output.name for output in file.graph.output]
    if set(names) <= set(available_outputs(net)):
        return names
    if len(names) == 1:  # as others call it
        return [LOGITS]
    raise InputError(
        f"{path} has the outputs {', '.join(names)}; what can be compared is one of "
        f"logits, or those of {', '.join(available_outputs(net))}"
    )


class _Int8(NamedTuple):
    model: onnx.ModelProto
    lines: list[str]
    told: dict[str, Any]
    """For the file's metadata."""


def _int8(
    model: Classifier, rec: Path, images: int, calibration: str, form: dict[str, Any]
) -> _Int8:
    from gluon_resnet.inference.calibration import calibration_batches
    from gluon_resnet.onnx_export.int8 import agreement, exported_int8
    from gluon_resnet.progress import progress

    batches = calibration_batches(model.protocol, rec, images)
    title = f"calibrating {model.name}"
    written, floats = exported_int8(
        _net(model),
        lambda: (batch for batch, _ in progress(title, batches, unit="batches")),
        calibration=calibration,
        **form,
    )
    same, count = agreement(_net(model), written, (batch for batch, _ in batches))
    lines = [
        f"int8: the same class as float on {same} of {count} images of {rec}",
        *(f"float: {name} ({reason})" for name, reason in floats.items()),
    ]
    told = {"calibration": calibration, "images": count, "float": floats}
    return _Int8(written, lines, told)


def _with_pixels(
    model: Classifier,
    written: onnx.ModelProto,
    reference: Reference | None,
    opset: int,
) -> tuple[onnx.ModelProto, str, Reference | None]:
    """Return a model that prepares its images, how well, and what it should answer.

    That is what the network answers to the pixels of the graph, not of `preprocess`.
    """
    from gluon_resnet.onnx_export.pixels import check_pixels, distance, with_pixels

    protocol = model.protocol
    check_pixels(opset, _net(model).stem.conv1.weight.shape[1])
    prepare = _preparation(model, opset)
    largest, mean = distance(prepare, protocol)
    line = (
        f"pixels in the graph ({protocol.library}, {protocol.interpolation}, "
        f"{protocol.resize}): at most {largest:.0f} of 255 from preprocess, on average "
        f"{mean:.4f}"
    )
    composed = None if reference is None else _of_pixels(reference, prepare)
    return with_pixels(written, protocol), line, composed


def _preparation(model: Classifier, opset: int) -> Callable[[np.ndarray], np.ndarray]:
    from gluon_resnet.models.traced import IMAGES
    from gluon_resnet.onnx_export.check import runner
    from gluon_resnet.onnx_export.pixels import pixels_alone

    return runner(pixels_alone(model.protocol, opset), IMAGES)


def _of_pixels(
    reference: Reference, prepare: Callable[[np.ndarray], np.ndarray]
) -> Reference:
    return lambda image: reference(prepare(image))


def _describe(
    model: Classifier, weights: Path, written: onnx.ModelProto, form: dict[str, Any]
) -> None:
    from gluon_resnet.onnx_export.metadata import describe

    describe(written, model.card, weights, {**form, **_accuracy(model)})


@contextmanager
def _named(
    model: Classifier, weights: Path, destination: Path, written: onnx.ModelProto
) -> Iterator[Path]:
    """Write a file that gets its name, card and labels if the block succeeds."""
    from gluon_resnet.onnx_export.metadata import check_labels, write_beside

    check_labels(destination, model.card)
    with replacing(destination) as part:
        part.write_bytes(written.SerializeToString(deterministic=True))
        yield part
        write_beside(destination, model.card, weights, written=part)


def _net(model: Classifier) -> HybridBlock:
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
        default="logits",
        metavar="NAME,...",
        help="logits, probabilities, features, stage1 to stage4, cam",
    )
    add(
        "--pixels",
        choices=("outside", "in-graph"),
        default="outside",
        help="in-graph: take uint8 pixels and prepare them in the file",
    )
    add("--precision", choices=("fp32", "int8"), default="fp32", help="of the file")
    add("--rec", type=Path, metavar="FILE", help="int8: images, .rec and .idx")
    add("--images", type=int, default=500, metavar="N", help="how many to calibrate on")
    add("--calibration", choices=CALIBRATIONS, default="naive", help="choice of ranges")
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
        lines = check(
            arguments.check,
            arguments.model,
            arguments.weights,
            accept_licence=arguments.accept_licence,
        )
        for line in lines:
            print(line)
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
    if (arguments.precision == "int8") != (arguments.rec is not None):
        raise InputError(
            "--precision int8 needs --rec, images to calibrate on, and --rec is for "
            "int8 alone; give both or none"
        )
    check_writable(destination)
    _need_onnx()
    model = load_model(_options(name, arguments.weights, arguments.accept_licence))
    lines = export(
        model,
        _weights(model, arguments.weights, arguments.accept_licence),
        destination,
        opset=arguments.opset,
        size=arguments.size,
        keep_norms=arguments.keep_norms,
        outputs=arguments.outputs,
        in_graph=arguments.pixels == "in-graph",
        rec=arguments.rec,
        images=arguments.images,
        calibration=arguments.calibration,
    )
    print(destination)
    for line in lines:
        print(line, file=sys.stderr)


def _export_archives(arguments: argparse.Namespace) -> None:
    if not arguments.words:
        raise InputError("--zoo-archive needs a folder to write into; name it last")
    *names, folder = arguments.words
    for option in ("opset", "size", "keep_norms", "rec"):
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
        model = load_model(_options(name, arguments.weights, arguments.accept_licence))
        weights = _weights(model, arguments.weights, arguments.accept_licence)
        for path in export_zoo_archive(model, weights, Path(folder)):
            print(path, flush=True)


def _options(
    name: str | None, weights: Path | None, accept_licence: bool
) -> argparse.Namespace:
    """Return the options by which `load_model` loads a model."""
    return argparse.Namespace(
        model=name, weights=weights, accept_licence=accept_licence
    )


def _weights(model: Classifier, given: Path | None, accept_licence: bool) -> Path:
    """Return the file that a model was loaded from."""
    from gluon_resnet.weights import checkpoint, fetch

    if given is not None and given.is_file():
        return given
    return fetch(checkpoint(model.name), accept_licence=accept_licence)


if __name__ == "__main__":
    command.run(main, parser())
