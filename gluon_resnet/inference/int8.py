# SPDX-License-Identifier: Apache-2.0
"""An int8 model and its file: one archive that needs neither the original nor its code.

A zip, not compressed, with a checksum of each member: `card.json` tells how to use the
model, `symbol.json` is MXNet's graph with the calibrated ranges, `int8.params` has its
arrays. A quantized weight is int8 with a scale for each output channel.
"""

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Union

import mxnet as mx
import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.graph import Graph
from gluon_resnet.inference.form import Forward, PlannedForm
from gluon_resnet.inference.packing import SCALE
from gluon_resnet.models import ModelSpec, model_spec
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights import read_tensors

log = logging.getLogger(__name__)

_CARD, _SYMBOL, _PARAMS = "card.json", "symbol.json", "int8.params"


@dataclass(frozen=True)
class Int8Card:
    """How to use an int8 model, and how it was made."""

    model: str
    """Its network, a name of `list_models`."""
    protocol: Protocol
    """How images are prepared; the calibration's were, too."""
    class_names: Sequence[str]
    """What its logits stand for."""
    calibration: str
    """"naive" or "entropy"."""
    images: int
    """How many it was calibrated on."""
    excluded: Mapping[str, str]
    """Layers that stay fp32, each with the reason."""
    precision: str = "int8"


@dataclass(frozen=True)
class Int8Model:
    """A quantized graph from `data`, images (N, 3, H, W), to logits, and its arrays."""

    symbol: mx.sym.Symbol
    arrays: Mapping[str, np.ndarray]
    """As in the file: see `packed`."""
    card: Int8Card

    @property
    def spec(self) -> ModelSpec:
        """The network's row of the table."""
        return model_spec(self.card.model)

    def form(self) -> Forward:
        """Return the model as a function, as `inference_form` describes it."""
        return PlannedForm(Graph.of(self.symbol), self.arrays, "int8")


def packed(
    symbol: mx.sym.Symbol, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return `arrays` with each weight that `symbol` quantizes as int8 and a scale."""
    stored = dict(arrays)
    for node in Graph.of(symbol).nodes:
        if node.attributes.get("quantized"):
            name = node.input(1).name
            weight = arrays[name]
            largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)))
            scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
            steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
            stored[name] = np.rint(steps).astype(np.int8)
            stored[name + SCALE] = scale
    return stored


def is_int8(path: Union[str, Path]) -> bool:
    """Return whether `path` is a file that `save_int8` wrote, going by its content."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) == {_CARD, _SYMBOL, _PARAMS}


def save_int8(path: Union[str, Path], model: Int8Model) -> Path:
    """Write `model` to `path`, whole or not at all, and return the path.

    Raises InputError where the file cannot be written.
    """
    path = Path(path)
    with replacing(path) as part, TemporaryDirectory(dir=path.parent) as folder:
        params = Path(folder, _PARAMS)
        arrays = {n: mx.nd.array(a, dtype=a.dtype) for n, a in model.arrays.items()}
        mx.nd.save(str(params), arrays)
        with zipfile.ZipFile(part, "w") as archive:
            archive.writestr(_CARD, json.dumps(asdict(model.card), indent=1) + "\n")
            archive.writestr(_SYMBOL, model.symbol.tojson())
            archive.write(params, _PARAMS)
    return path


def load_int8(path: Union[str, Path]) -> Int8Model:
    """Read a file that `save_int8` wrote; nothing in it is unpickled.

    Only whole nets are in the file: there is no `features` or `fc` to look into.
    Raises InputError where the file is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there; give a file that quantize wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            fields = json.loads(archive.read(_CARD))
            symbol = mx.sym.load_json(archive.read(_SYMBOL).decode())
        fields["protocol"] = Protocol(**fields["protocol"])
        fields["class_names"] = tuple(fields["class_names"])
        card = Int8Card(**fields)
        _, arrays = read_tensors(path)
        if _names(symbol) != {name for name in arrays if not name.endswith(SCALE)}:
            raise ValueError("its arrays are not those of its graph")
    except (
        *(InputError, KeyError, TypeError, ValueError, mx.MXNetError),
        *(zipfile.BadZipFile, EOFError, OSError),
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} is no int8 model or a damaged one ({reason[0]}); write it again "
            "with `python -m gluon_resnet.quantize`"
        ) from error
    return Int8Model(symbol, arrays, card)


def _names(symbol: mx.sym.Symbol) -> set[str]:
    return set(symbol.list_inputs()) - {"data"}
