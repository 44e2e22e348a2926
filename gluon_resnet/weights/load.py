# SPDX-License-Identifier: Apache-2.0
"""`load_weights`: any published file into a network of this package."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, Parameter

from gluon_resnet.errors import InputError
from gluon_resnet.weights.arrays import dtype_name, float32
from gluon_resnet.weights.formats import read_tensors
from gluon_resnet.weights.layouts import LAYOUTS, bare_symbol

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.|arg:|aux:)*")
_CLASSIFIER = re.compile(r"(^|[._])(fc|output|dense0)[._]weight$")
_SHOWN = 10  # offenders of a kind in an error; a LoadReport has all


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did with a file."""

    path: Path
    format: str
    """params, safetensors, pth or onnx."""
    layout: str
    """The naming scheme recognised: a function of `weights.layouts`, or "exported"."""
    loaded: int
    """Tensors copied into the network."""
    converted: tuple[str, ...] = ()
    """Dtypes of the file that became float32, such as float16."""
    missing: tuple[str, ...] = ()
    """Keys the network wants and the file has not."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that the network has no place for."""
    wrong_shape: tuple[str, ...] = ()
    """`key: shape in the file, shape in the network` of each that differs."""


def load_weights(
    net: HybridBlock, path: Union[str, Path], *, strict: bool = True
) -> LoadReport:
    """Copy a file's tensors into `net`, which keeps its device; nothing runs.

    Format and naming scheme are recognised by content. The mapping must be a bijection:
    nothing missing, nothing left over, all shapes equal. With `strict=False` what fits
    is loaded and the rest reported. Of a training checkpoint with averaged weights
    those are taken. Half and double precision becomes float32.
    Raises InputError where the file cannot be read, where a tensor is not finite or of
    whole numbers, or with `strict`, where the mapping is no bijection: it lists the
    offending keys. `net` is unchanged then.
    """
    path = Path(path)
    file_format, tensors = read_tensors(path)
    tensors = _bare(path, tensors)
    parameters = net._collect_params_with_prefix()
    layout, keys = _recognise(net, tensors)
    fitting, missing, wrong_shape = {}, [], []
    for name, parameter in parameters.items():
        key = keys[name]
        if key not in tensors:
            missing.append(key)
        elif tensors[key].shape != parameter.shape:
            wrong_shape.append(f"{key}: {tensors[key].shape}, {parameter.shape}")
        else:
            fitting[name] = tensors[key]
    dtypes = {dtype_name(value) for value in fitting.values()}
    report = LoadReport(
        path,
        file_format,
        layout,
        len(fitting),
        tuple(sorted(dtypes - {"float32"})),
        tuple(missing),
        tuple(sorted(tensors.keys() - set(keys.values()))),
        tuple(wrong_shape),
    )
    _check(net, report, strict)
    values = {n: _value(path, keys[n], value) for n, value in fitting.items()}
    _check_input_norm(report, values)
    for name, value in values.items():
        _fill(parameters[name], value)
    return report


def classes_of(path: Path) -> int:
    """Return how many classes the classifier in a weights file has.

    Raises InputError where the file cannot be read or has no classifier.
    """
    _, tensors = read_tensors(path)
    for key, value in tensors.items():
        if _CLASSIFIER.search(key):
            return len(value)
    raise InputError(
        f"{path} has no classifier (fc, output or dense0); give a file of a whole net"
    )


def _bare(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drop what training scripts and exporters put in front of the keys, and counters.

    `num_batches_tracked` is torch's count of training steps in a BN layer.
    """
    bare = {}
    for key, value in tensors.items():
        short = bare_symbol(_PREFIXES.sub("", key))
        if short in bare:
            raise InputError(
                f"{path} holds {short} more than once, also as {key}; keep one set of "
                "weights"
            )
        if not short.endswith("num_batches_tracked"):
            bare[short] = value
    return bare


def _recognise(
    net: HybridBlock, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, str]]:
    """Return the layout that explains most of the file's keys, and its keys."""
    parameters = net._collect_params_with_prefix()
    exported = {n: bare_symbol(p.name) for n, p in parameters.items()}
    candidates = [("exported", exported)]
    for layout in LAYOUTS:
        if keys := layout(net.spec, list(parameters)):
            candidates.append((layout.__name__, keys))
            if tensors.keys() == set(keys.values()):
                break  # the others cost time
    return max(candidates, key=lambda item: len(tensors.keys() & item[1].values()))


def _check(net: HybridBlock, report: LoadReport, strict: bool) -> None:
    if not report.loaded and not report.wrong_shape:
        raise InputError(
            f"{report.path} holds no parameter of {net.spec.name} under any known "
            f"name; its keys are {_listed(report.unexpected)}; check the model's name"
        )
    faults = {
        "missing": report.missing,
        "unexpected": report.unexpected,
        "wrong shape (file, network)": report.wrong_shape,
    }
    found = [f"{kind}: {_listed(keys)}" for kind, keys in faults.items() if keys]
    if strict and found:
        raise InputError(
            f"{report.path} does not fit {net.spec.name}, read as {report.layout}: "
            f"{'; '.join(found)}; check the model's name and number of classes"
        )


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _value(path: Path, key: str, stored: np.ndarray) -> np.ndarray:
    dtype = dtype_name(stored)
    if dtype not in _DTYPES:
        raise InputError(f"{path}: {key} holds {dtype}, not {' or '.join(_DTYPES)}")
    value = float32(stored)
    # The sum is finite only if all terms are, and needs no array of answers.
    with np.errstate(all="ignore"):
        is_finite = np.isfinite(value.sum()) or np.isfinite(value).all()
    if not is_finite:
        raise InputError(
            f"{path}: {key} holds NaN or infinity; the file is damaged or its training "
            "had diverged"
        )
    return value


def _fill(parameter: Parameter, value: np.ndarray) -> None:
    try:
        parameter.set_data(value)  # the only copy of the values
    except mx.MXNetError:
        # A net that has run keeps weights in oneDNN's layout, which takes no bytes.
        parameter.set_data(mx.nd.array(value))


def _check_input_norm(report: LoadReport, values: dict[str, np.ndarray]) -> None:
    """Keep the scale of v2's input BN at 1, with which MXNet computes in any case.

    So do the networks that .params files come from, but not what reads other formats.
    """
    gamma = values.get("stem.bn0.gamma")
    if gamma is not None and (gamma != 1).any():
        if report.format != "params":
            raise InputError(
                f"{report.path} scales its input by {gamma}; this network has no such "
                "scale; multiply it into the image preprocessing"
            )
        values["stem.bn0.gamma"] = np.ones_like(gamma)
