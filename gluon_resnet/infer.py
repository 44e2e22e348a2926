# SPDX-License-Identifier: Apache-2.0
"""Classify images: `gluon-resnet infer IMAGE...`."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gluon_resnet import command
from gluon_resnet.errors import InputError, one_line
from gluon_resnet.model_options import (
    add_model_options,
    add_running_options,
    load_model,
)

if TYPE_CHECKING:
    import mxnet as mx
    import numpy as np
    from mxnet.gluon import HybridBlock

    from gluon_resnet.classifier import Classifier
    from gluon_resnet.device import Device
    from gluon_resnet.image_sources import NamedImage
    from gluon_resnet.preprocess import ImageSource, Protocol

log = logging.getLogger(__name__)


def infer(
    model: Classifier,
    images: ImageSource | Iterable[ImageSource],
    *,
    k: int = 5,
    batch_size: int = 1,
    features: str | Path | None = None,
    cam: str | Path | None = None,
) -> Iterator[dict]:
    """Classify images; yields an answer for each, in order.

    images: one or many of what `preprocess` takes (files, arrays, ...), and folders,
    patterns and URLs as `image_sources.named_images` says.

    An answer is {"image": path, "model": MODEL.TAG, "predictions": [{"label", "class",
    "score"}, ...], "seconds"}: the k most probable classes, scores in [0, 1], and the
    image's share of its batch's time. An unreadable image, or a folder without images,
    answers {"image": path, "error": one line}, and the others go on. Threads read the
    next images while the network works on some.

    features: a .npz file to write at the end: `images` (N paths) and `features`, the
    pooled vectors that the classifier sees, float32 (N, C).
    cam: a folder for a picture of each image under the evidence for its first class;
    the answer has its path as "cam", or an "error" where it cannot be written.
    Both come from `model.net`, layer by layer in fp32.
    Raises InputError, when called, where k or batch_size is below 1, where a batch
    cannot fit into memory, an output cannot be written, or `features` or `cam` is asked
    of a model of another precision than fp32; and later where the disk is full.
    """
    # Here, as in all functions of the commands: --help must not wait for MXNet.
    from gluon_resnet.files import check_writable
    from gluon_resnet.image_sources import named_images
    from gluon_resnet.inference.batch_memory import check_batch

    for option, value in (("topk", k), ("batch-size", batch_size)):
        if value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    if (features or cam) and model.precision != "fp32":
        raise InputError(
            f"features and cam need precision fp32; the model is {model.precision}"
        )
    check_batch(batch_size, model.protocol.size)
    outputs = _Outputs(
        None if features is None else Path(features), None if cam is None else Path(cam)
    )
    if outputs.features:
        check_writable(outputs.features)
    if outputs.cam:
        check_writable(outputs.cam / "any.png")
    return _answers(model, named_images(images), k, batch_size, outputs)


class _Outputs(NamedTuple):
    """Files and folders to write beside the answers."""

    features: Path | None
    cam: Path | None


def _answers(
    model: Classifier,
    images: Sequence[NamedImage],
    k: int,
    batch_size: int,
    outputs: _Outputs,
) -> Iterator[dict]:
    import numpy as np

    from gluon_resnet.files import replacing
    from gluon_resnet.in_order import in_order

    def prepare(image: NamedImage) -> np.ndarray | InputError:
        return _prepared(model, image)

    net: HybridBlock = model.net
    names: list[str] = []
    vectors = [np.empty((0, net.spec.channels[-1]), np.float32)]
    waiting = zip(images, in_order(prepare, images, ahead=batch_size))
    with ExitStack() as stack:
        part = None
        if outputs.features:
            part = stack.enter_context(replacing(outputs.features))
        started = time.perf_counter()
        while batch := list(itertools.islice(waiting, batch_size)):
            answers: list[dict] = [{"image": image.name} for image, _ in batch]
            readable, pixels = [], []
            for answer, (_, prepared) in zip(answers, batch):
                if isinstance(prepared, InputError):
                    answer["error"] = str(prepared)
                else:
                    readable.append(answer)
                    pixels.append(prepared)
            if readable:
                if outputs == _Outputs(None, None):
                    logits = model(np.stack(pixels)).asnumpy()
                else:
                    inputs = model.to_device(np.stack(pixels))
                    logits, pooled, maps = _looked_into(net, inputs)
                seconds = (time.perf_counter() - started) / len(batch)
                for answer, row in zip(readable, logits):
                    answer |= {**_predictions(model, row, k), "seconds": seconds}
                if part:
                    names += [answer["image"] for answer in readable]
                    vectors.append(pooled)
                if outputs.cam:
                    weights = net.fc.weight.data(model.ctx).asnumpy()
                    pictures = zip(readable, pixels, maps)
                    _save_cams(outputs.cam, model.protocol, weights, pictures)
            yield from answers
            started = time.perf_counter()
        if part:
            arrays = {"images": np.array(names), "features": np.concatenate(vectors)}
            _write_arrays(part, arrays)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a .npz file. NumPy's own function leaves it open where the disk is full."""
    import numpy as np

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _prepared(model: Classifier, image: NamedImage) -> np.ndarray | InputError:
    """Return float32 (3, H, W), or the error: the other images go on."""
    from gluon_resnet.preprocess import preprocess

    try:
        return preprocess(image.load(image.name), model.protocol)
    except InputError as error:
        return error


def _looked_into(
    net: HybridBlock, images: mx.nd.NDArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits (N, classes), pooled (N, C) and maps (N, C, H, W)."""
    from gluon_resnet.models import last_map

    maps = last_map(net, images)
    pooled = net.flatten(net.pool(maps))
    return net.fc(pooled).asnumpy(), pooled.asnumpy(), maps.asnumpy()


def _predictions(model: Classifier, logits: np.ndarray, k: int) -> dict:
    from gluon_resnet.postprocess import postprocess

    ranked = postprocess(logits, k, class_names=model.class_names)
    keys = ("label", "class", "score")
    return {
        "model": model.name,
        "predictions": [dict(zip(keys, prediction)) for prediction in ranked],
    }


def _save_cams(
    folder: Path,
    protocol: Protocol,
    class_weights: np.ndarray,
    images: Iterable[tuple[dict, np.ndarray, np.ndarray]],
) -> None:
    """Write a picture of each (answer, image (3, H, W), maps (C, h, w))."""
    from gluon_resnet.cam import class_activation, overlay_path, save_overlay
    from gluon_resnet.files import DiskFull

    for answer, image, maps in images:
        label = answer["predictions"][0]["label"]
        path = overlay_path(folder, answer["image"])
        try:
            activation = class_activation(maps, class_weights[label])
            save_overlay(path, image, activation, protocol)
            answer["cam"] = str(path)
        except DiskFull:  # as for all that follow
            raise
        except InputError as error:
            answer["error"] = str(error)


def default_model(ctx: Device = None, *, precision: str | None = None) -> Classifier:
    """Return the default ImageNet model, or the bundled one where it cannot be had.

    In that case a warning in the log says why and whose classes are answered.
    """
    from gluon_resnet import bundled
    from gluon_resnet.classifier import init_model
    from gluon_resnet.weights import DEFAULT_WEIGHTS

    try:
        return init_model(DEFAULT_WEIGHTS, ctx=ctx, precision=precision)
    except InputError as error:
        model = init_model(bundled.NAME, ctx=ctx, precision=precision)
        log.warning("warning: %s", error)
        log.warning(
            "warning: the bundled %s answers, which knows only these classes: %s",
            model.name,
            ", ".join(model.class_names),
        )
        return model


def _print_answer(answer: dict) -> None:
    """Print an answer for a person: the image, then a line for each class."""
    from gluon_resnet.progress import say

    if "predictions" in answer:
        name = one_line(answer["image"])
        lines = [f"{name}  ({answer['model']}, {answer['seconds']:.3f} s)"]
        for prediction in answer["predictions"]:
            lines.append(f"  {prediction['score']:7.2%}  {prediction['class']}")
        if "cam" in answer:
            lines.append(f"  evidence: {one_line(answer['cam'])}")
        say("\n".join(lines))
    if "error" in answer:
        say(answer["error"], sys.stderr)


def parser() -> command.Parser:
    """Return the parser of `infer`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.infer",
        description="Classify images.",
        epilog="exit code: 0, or 1 where an image could not be read or the default "
        "model could not be had and the bundled one has answered",
    )
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, quoted patterns ('photos/*.jpg'), URLs, - for stdin",
    )
    add_model_options(parser, model="default: the ImageNet model resnest50d.in1k")
    add("--topk", type=int, default=5, help="classes to name for each image")
    add_running_options(parser, batch_size=1)
    add("--features", type=Path, metavar="OUT.npz", help="write pooled vectors, too")
    add("--cam", type=Path, metavar="DIR", help="draw each answer's evidence, too")
    add("--json", action="store_true", help="one JSON object a line")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Answer every image; 1 where one failed or another model than asked answered."""
    model, replaced = _chosen_model(arguments)
    from gluon_resnet.image_sources import named_images
    from gluon_resnet.progress import progress, say

    images = named_images(arguments.images)
    answers = infer(
        model,
        images,
        k=arguments.topk,
        batch_size=arguments.batch_size,
        features=arguments.features,
        cam=arguments.cam,
    )
    started = time.perf_counter()
    failed = 0
    with progress("images", total=len(images)) as bar:
        for answer in answers:
            failed += "error" in answer
            if arguments.json:
                say(json.dumps(answer))
            else:
                _print_answer(answer)
            bar.update()
    speed = len(images) / (time.perf_counter() - started)
    if len(images) > 1:
        say(f"{len(images)} images, {failed} failed, {speed:.3g} a second", sys.stderr)
    if replaced:
        say(f"warning: {replaced}", sys.stderr)
    return command.FAILED if failed or replaced else 0


def _chosen_model(arguments: argparse.Namespace) -> tuple[Classifier, str]:
    """Return the model and, where it is not the one that is meant, a line on that."""
    if arguments.model is not None or arguments.weights is not None:
        return load_model(arguments), ""
    from gluon_resnet.progress import doing

    with doing("loading the default model"):
        from gluon_resnet.weights import DEFAULT_WEIGHTS

        model = default_model(arguments.ctx, precision=arguments.precision)
    if model.name == DEFAULT_WEIGHTS:
        return model, ""
    return model, f"{DEFAULT_WEIGHTS} could not be had; {model.name} has answered"


if __name__ == "__main__":
    command.run(main, parser())
