# SPDX-License-Identifier: Apache-2.0
"""`load_weights`: any published file into a network of this package."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.weights.formats import read_tensors
from gluon_resnet.weights.layouts import LAYOUTS


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did with a file."""

    path: Path
    layout: str
    """The naming scheme recognised, a function of `weights.layouts`."""
    loaded: int
    """Tensors copied into the network."""
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

    The naming scheme is recognised by content. The mapping must be a bijection: nothing
    missing, nothing left over, all shapes equal. With `strict=False` what fits is
    loaded and the rest reported.
    Raises InputError where the file cannot be read, or with `strict`, where the mapping
    is no bijection: it lists every offending key, and `net` is unchanged.
    """
    path = Path(path)
    tensors = {_bare(key): value for key, value in read_tensors(path).items()}
    tensors = {
        k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")
    }
    parameters = net._collect_params_with_prefix()
    layout, keys = _recognise(net.spec, list(parameters), tensors)
    fitting, missing, wrong_shape = {}, [], []
    for name, parameter in parameters.items():
        key = keys[name]
        if key not in tensors:
            missing.append(key)
        elif tensors[key].shape != parameter.shape:
            wrong_shape.append(f"{key}: {tensors[key].shape}, {parameter.shape}")
        else:
            fitting[name] = tensors[key]
    report = LoadReport(
        path,
        layout,
        len(fitting),
        tuple(missing),
        tuple(sorted(tensors.keys() - set(keys.values()))),
        tuple(wrong_shape),
    )
    if strict:
        _check(net, report)
    for name, value in fitting.items():
        if not np.isfinite(value).all():
            raise InputError(
                f"{path}: {keys[name]} holds NaN or infinity; the file is damaged or its "
                "training had diverged"
            )
    for name, value in fitting.items():
        parameters[name].set_data(mx.nd.array(value, dtype="float32"))
    return report


def _bare(key: str) -> str:
    """Drop what training scripts and exporters put in front of a key."""
    return re.sub(r"^(module\.|arg:|aux:)*(resnetv\d+_)?", "", key)


def _recognise(spec, names, tensors) -> tuple[str, dict[str, str]]:
    """Return the layout that explains most of the file's keys, and its keys."""
    candidates = [
        (layout.__name__, keys) for layout in LAYOUTS if (keys := layout(spec, names))
    ]
    return max(candidates, key=lambda item: len(tensors.keys() & item[1].values()))


def _check(net: HybridBlock, report: LoadReport) -> None:
    faults = {
        "missing": report.missing,
        "unexpected": report.unexpected,
        "wrong shape (file, network)": report.wrong_shape,
    }
    found = [f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys]
    if found:
        raise InputError(
            f"{report.path} does not fit {net.spec.name}, read as {report.layout}: "
            f"{'; '.join(found)}; check the model's name and number of classes"
        )
