# SPDX-License-Identifier: Apache-2.0
"""Classify images: `python -m gluon_resnet.infer IMAGE...`."""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Optional, Union

import mxnet as mx
import numpy as np
from tqdm import tqdm

from gluon_resnet import bundled, command
from gluon_resnet.cam import class_activation, save_overlay
from gluon_resnet.classifier import Classifier, init_model
from gluon_resnet.device import device
from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.inference.batch_memory import check_batch
from gluon_resnet.models import last_map
from gluon_resnet.postprocess import postprocess
from gluon_resnet.precision import PRECISIONS
from gluon_resnet.preprocess import preprocess
from gluon_resnet.weights import DEFAULT_WEIGHTS

IMAGE_SUFFIXES = {
    *(".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
}


def infer(
    model: Classifier,
    images: Iterable[Path],
    *,
    k: int = 5,
    batch_size: int = 1,
    features: Optional[Path] = None,
    cam: Optional[Path] = None,
) -> Iterator[dict]:
    """Classify image files and folders, in order; yields an answer for each image.

    An answer is {"image": path, "model": MODEL.TAG, "predictions": [{"label", "class",
    "score"}, ...], "seconds"}: the k most probable classes, scores in [0, 1], and the
    image's share of its batch's time. What is no readable image, or a folder that
    holds none, answers {"image": path, "error": one line}, and the others go on.

    features: a .npz file to write at the end: `images` (N paths) and `features`, the
    pooled vectors that the classifier sees, float32 (N, C).
    cam: a folder for a picture of each image under the evidence for its first class.
    Both come from `model.net`, layer by layer in fp32.
    Raises InputError where k or batch_size is below 1, where a batch cannot fit into
    memory, an output cannot be written, or `features` or `cam` is asked of a model of
    another precision than fp32.
    """
    for option, value in (("topk", k), ("batch-size", batch_size)):
        if value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    taps = bool(features or cam)
    if taps and model.precision != "fp32":
        raise InputError(
            f"features and cam need precision fp32; the model is {model.precision}"
        )
    check_batch(batch_size, model.protocol.size)
    prepare = _preparer(model)
    names, vectors = [], [np.empty((0, model.net.spec.channels[-1]), np.float32)]
    files = _image_files(images)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        # Now, not at the end: what cannot be written shall fail before the work.
        features_part = stack.enter_context(replacing(features)) if features else None
        while batch := list(itertools.islice(files, batch_size)):
            started = time.perf_counter()
            answers = [{"image": str(path)} for path in batch]
            readable, pixels = [], []
            for answer, prepared in zip(answers, pool.map(prepare, batch)):
                if isinstance(prepared, InputError):
                    answer["error"] = str(prepared)
                else:
                    readable.append(answer)
                    pixels.append(prepared)
            if readable:
                logits, pooled, maps = _run(model, pixels, taps=taps)
                seconds = (time.perf_counter() - started) / len(batch)
                for answer, row in zip(readable, logits):
                    answer |= {**_predictions(model, row, k), "seconds": seconds}
                if features:
                    names += [answer["image"] for answer in readable]
                    vectors.append(pooled)
                if cam:
                    _save_cams(cam, model, readable, pixels, maps)
            yield from answers
        if features:
            np.savez(features_part, images=names, features=np.concatenate(vectors))


def default_model(
    ctx: Optional[mx.Context] = None, *, precision: Optional[str] = None
) -> Classifier:
    """Return the default ImageNet model, or the bundled one where it cannot be had.

    In that case a warning on standard error says why and whose classes are answered.
    """
    try:
        return init_model(DEFAULT_WEIGHTS, ctx=ctx, precision=precision)
    except InputError as error:
        model = init_model(bundled.NAME, ctx=ctx, precision=precision)
        print(
            f"warning: {error}\nwarning: answering with the bundled {model.name}, "
            f"which knows only these classes: {', '.join(model.class_names)}",
            file=sys.stderr,
        )
        return model


def _run(model: Classifier, pixels: list[np.ndarray], *, taps: bool) -> tuple:
    """Return logits (N, classes) and, with `taps`, pooled (N, C) and maps (N, C, H, W).

    Without taps the network runs in its fastest form.
    """
    if not taps:
        return model(np.stack(pixels)).asnumpy(), None, None
    maps = last_map(model.net, model.to_device(np.stack(pixels)))
    pooled = model.net.flatten(model.net.pool(maps))
    return tuple(x.asnumpy() for x in (model.net.fc(pooled), pooled, maps))


def _predictions(model: Classifier, logits: np.ndarray, k: int) -> dict:
    ranked = postprocess(logits, k, class_names=model.class_names)
    keys = ("label", "class", "score")
    return {
        "model": model.name,
        "predictions": [dict(zip(keys, prediction)) for prediction in ranked],
    }


def _save_cams(folder: Path, model: Classifier, answers, pixels, maps) -> None:
    class_weights = model.net.fc.weight.data(model.ctx).asnumpy()
    for answer, image, image_maps in zip(answers, pixels, maps):
        label = answer["predictions"][0]["label"]
        activation = class_activation(image_maps, class_weights[label])
        # The whole path, so that two images of one name do not share a file.
        name = "_".join(Path(answer["image"]).parts).lstrip("/_")
        save_overlay(folder / f"{name}.png", image, activation, model.protocol)


def _image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files and the images below folders, sorted; an empty folder itself."""
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES
        )
        yield from files or [path]


def _preparer(model: Classifier) -> Callable[[Path], Union[np.ndarray, InputError]]:
    """Map a path to float32 (3, H, W), or to its error: the other images go on."""

    def prepare(path: Path) -> Union[np.ndarray, InputError]:
        if path.is_dir():
            return InputError(
                f"{path}: a folder without images; give one that holds files ending in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        try:
            return preprocess(path, **asdict(model.protocol))
        except InputError as error:
            return error

    return prepare


def _print_answer(answer: dict) -> None:
    """Print an answer for a person: the image, then a line for each class."""
    if "error" in answer:
        tqdm.write(answer["error"], file=sys.stderr)
        return
    lines = [f"{answer['image']}  ({answer['model']}, {answer['seconds']:.3f} s)"]
    for prediction in answer["predictions"]:
        lines.append(f"  {prediction['score']:7.2%}  {prediction['class']}")
    tqdm.write("\n".join(lines), file=sys.stdout)


def main(arguments: argparse.Namespace) -> int:
    """Answer every image; 1 where one of them could not be read."""
    if arguments.model is None and arguments.weights is not None:
        raise InputError(
            f"--weights {arguments.weights} without --model; name the network it is of"
        )
    if arguments.model is None:
        model = default_model(arguments.ctx, precision=arguments.precision)
    else:
        model = init_model(
            arguments.model,
            arguments.weights,
            arguments.ctx,
            precision=arguments.precision,
            accept_licence=arguments.accept_licence,
        )
    failed = False
    answers = infer(
        model,
        arguments.images,
        k=arguments.topk,
        batch_size=arguments.batch_size,
        features=arguments.features,
        cam=arguments.cam,
    )
    for answer in tqdm(answers, "images", unit="image", disable=None, leave=False):
        failed |= "error" in answer
        if arguments.json:
            tqdm.write(json.dumps(answer), file=sys.stdout)
        else:
            _print_answer(answer)
    return command.FAILED if failed else 0


if __name__ == "__main__":
    parser = command.Parser(prog="python -m gluon_resnet.infer", description=__doc__)
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="image files and folders")
    add("--model", metavar="NAME[.TAG]", help=f"default: {DEFAULT_WEIGHTS}")
    add("--weights", type=Path, metavar="FILE", help="a file of your own for --model")
    add("--topk", type=int, default=5, help="classes to name for each image")
    add("--json", action="store_true", help="one JSON object a line")
    add("--batch-size", type=int, default=1, help="images that run together")
    add("--precision", choices=PRECISIONS, help="default: that of the weights, fp32")
    add("--ctx", type=device, default="cpu", help="device: cpu or gpu(0)")
    add("--features", type=Path, metavar="OUT.npz", help="write pooled vectors, too")
    add("--cam", type=Path, metavar="DIR", help="draw each answer's evidence, too")
    add(
        "--accept-licence",
        action="store_true",
        help="load weights under a non-commercial licence, too",
    )
    command.run(main, parser)
