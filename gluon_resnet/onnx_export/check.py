# SPDX-License-Identifier: Apache-2.0
"""Proof that an ONNX file is well formed and answers as it should.

ONNX Runtime runs it with and without its optimisations, which have been wrong before
(microsoft/onnxruntime#24711), on one image, a few and many.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
import onnx
import onnxruntime

from gluon_resnet.errors import InputError

BATCHES = (1, 3, 16)
TOLERANCE = 1e-4
"""Of the largest less the least value: what two orders of float32 sums may differ."""
QUANTIZED_TOLERANCE = 0.05
"""The same between two ways to run int8, which round otherwise at borders of steps."""
TOP = 5
_FREE_SIDES = ((64, 64), (65, 97))  # Odd ones show poolings that round up.
_ELEMENTS = ("tensor(float)", "tensor(uint8)")

Shape = tuple[int, ...]
Reference = Callable[[np.ndarray], Sequence[np.ndarray]]
"""From images to the outputs that a file should give, in its order."""


@dataclass(frozen=True)
class Proof:
    """What was found of a file; differences are parts of an output's range."""

    opset: int
    ir_version: int
    shapes: tuple[Shape, ...]
    """Of the inputs that were run."""
    optimised: float
    """The largest difference that ONNX Runtime's optimisations make."""
    reference: Optional[float] = None
    """The largest difference from the network itself; None: nothing to compare with."""

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        told = (
            f"opset {self.opset}, IR version {self.ir_version}, well formed; images "
            f"{shapes}: ONNX Runtime's optimisations change {self.optimised:.0e} of "
            "the range"
        )
        if self.reference is not None:
            told += f", the network differs by {self.reference:.0e}, same top {TOP}"
        return told


def check(
    path: Path,
    reference: Optional[Reference] = None,
    *,
    name: Optional[Path] = None,
) -> Proof:
    """Prove a file, one made elsewhere, too; messages call it `name`.

    Its structure and shapes are checked; then it runs drawn images, in batches of
    `BATCHES` and in two sizes where these are free, with and without ONNX Runtime's
    optimisations. Each output may differ by `TOLERANCE` of its range from `reference`,
    with the same five largest, and between the two ways to run it, or there, in int8,
    by `QUANTIZED_TOLERANCE`.
    Raises InputError where the file is not well formed, cannot run, or differs.
    """
    file = _File(path, str(name or path))
    model = _well_formed(file)
    optimised = QUANTIZED_TOLERANCE if is_quantized(model) else TOLERANCE
    level = onnxruntime.GraphOptimizationLevel
    fast = _session(file, level.ORT_ENABLE_ALL)
    plain = _session(file, level.ORT_DISABLE_ALL)
    names = [output.name for output in plain.get_outputs()]
    shapes, errors, changes = [], [0.0], [0.0]
    for images in _drawn(file, _only_input(file, plain)):
        shape = "x".join(map(str, images.shape))
        outputs = _run(file, plain, images)
        found = _run(file, fast, images)
        where = f"{file.name}: on images {shape} the output"
        change = _difference(names, outputs, found, optimised, where, "ONNX Runtime")
        changes.append(change)
        if reference is not None:
            expected = reference(images)
            for answer in (outputs, found):
                errors.append(
                    _difference(names, expected, answer, TOLERANCE, where, "the net")
                )
        shapes.append(images.shape)
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    error = max(errors) if reference is not None else None
    return Proof(opset, model.ir_version, tuple(shapes), max(changes), error)


def well_formed(path: Path) -> onnx.ModelProto:
    """Return the model in a file. Raises InputError where `check` finds it damaged."""
    return _well_formed(_File(path, str(path)))


def is_quantized(model: onnx.ModelProto) -> bool:
    """Return whether a model computes with integers."""
    return any(
        "Quantize" in n.op_type or "QLinear" in n.op_type for n in model.graph.node
    )


def runner(model: onnx.ModelProto, output: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model of one input as a function of it, to one of its outputs."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (images,) = session.get_inputs()
    return lambda values: session.run([output], {images.name: values})[0]


class _File(NamedTuple):
    """A file, and what messages call it."""

    path: Path
    name: str


def _well_formed(file: _File) -> onnx.ModelProto:
    try:
        model = onnx.load(str(file.path))
    except Exception as error:  # protobuf's, and the system's
        reason = getattr(error, "strerror", None) or "it is no ONNX file"
        raise InputError(
            f"{file.name} cannot be read ({reason}); give an .onnx file"
        ) from None
    try:
        onnx.checker.check_model(str(file.path), full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # of several modules of onnx
        raise InputError(
            f"{file.name} is not well formed ({_first_line(error)}); export it again"
        ) from None
    return model


def _session(
    file: _File, level: onnxruntime.GraphOptimizationLevel
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4  # Each array that is an input, too, is a warning.
    try:
        return onnxruntime.InferenceSession(
            str(file.path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # Its errors have no class in common.
        raise InputError(
            f"{file.name}: ONNX Runtime {onnxruntime.__version__} cannot load it "
            f"({_first_line(error)})"
        ) from None


def _run(
    file: _File, session: onnxruntime.InferenceSession, images: np.ndarray
) -> list[np.ndarray]:
    try:
        return session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:  # Its errors have no class in common.
        shape = "x".join(map(str, images.shape))
        raise InputError(
            f"{file.name}: ONNX Runtime {onnxruntime.__version__} cannot run images of "
            f"{shape} ({_first_line(error)})"
        ) from None


def _only_input(
    file: _File, session: onnxruntime.InferenceSession
) -> onnxruntime.NodeArg:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _ELEMENTS:
        told = ", ".join(f"{i.name} {i.type}" for i in inputs[:3]) or "none"
        raise InputError(
            f"{file.name} has the inputs {told}; one, float32 or uint8 images, can be "
            "checked"
        )
    return inputs[0]


def _drawn(file: _File, images: onnxruntime.NodeArg) -> Iterator[np.ndarray]:
    """Draw images of each batch and size that an input takes."""
    generator = np.random.default_rng(0)
    for shape in _shapes(file, images.shape):
        if images.type == "tensor(uint8)":
            yield generator.integers(256, size=shape).astype(np.uint8)
        else:
            yield generator.normal(0, 1, shape).astype(np.float32)


def _shapes(file: _File, dims: Sequence[Union[int, str, None]]) -> Iterator[Shape]:
    """Fill in the lengths that are free: not numbers, or not above 0."""
    lengths = [dim if isinstance(dim, int) and dim > 0 else None for dim in dims]
    batches: Sequence[Shape] = [()]
    if len(lengths) == 4:
        batch = lengths.pop(0)
        batches = [(length,) for length in (BATCHES if batch is None else (batch,))]
    free = lengths.count(None)
    if free == 3:
        lengths[0] = 3  # of channels, which come first
    elif free not in (0, 2):
        raise InputError(
            f"{file.name} takes images of {dims}; (N, C, H, W) or (H, W, 3), both "
            "sides free or given, can be checked"
        )
    for height, width in _FREE_SIDES if free else _FREE_SIDES[:1]:
        sides = iter((height, width))
        image = tuple(next(sides) if dim is None else dim for dim in lengths)
        for start in batches:
            yield (*start, *image)


def _difference(
    names: Sequence[str],
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    tolerance: float,
    where: str,
    whose: str,
) -> float:
    """Return the largest difference of two answers, as a part of the expected range.

    Raises InputError where one is more than `tolerance`, or the largest differ.
    """
    largest = 0.0
    for name, output, other in zip(names, expected, found):
        if output.shape != other.shape:
            raise InputError(
                f"{where} {name} is {other.shape}, that of {whose} {output.shape}"
            )
        span = max(float(np.ptp(output)), float(np.finfo(np.float32).tiny))
        difference = float(np.abs(other - output).max()) / span
        if not difference <= tolerance:
            raise InputError(
                f"{where} {name} differs by {difference:.1e} of its range from that of "
                f"{whose}; {tolerance:.0e} is allowed"
            )
        if output.ndim == 2 and not _same_top(output, other, 2 * tolerance * span):
            raise InputError(
                f"{where} {name} has other {TOP} largest than that of {whose}"
            )
        largest = max(largest, difference)
    return largest


def _same_top(expected: np.ndarray, found: np.ndarray, tie: float) -> bool:
    """Whether the same are the largest, in order, save those apart by `tie` at most."""
    best = np.sort(expected)[:, ::-1][:, :TOP]
    order = np.argsort(-found, kind="stable")[:, :TOP]
    return bool((np.abs(np.take_along_axis(expected, order, 1) - best) <= tie).all())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
