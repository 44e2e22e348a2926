# SPDX-License-Identifier: Apache-2.0
"""An int8 model and its file: one archive that needs neither the original nor its code.

A zip, not compressed, with a checksum of each member: `card.json` tells how to use the
model, `symbol.json` is MXNet's graph with the calibrated ranges, `int8.params` has its
arrays. A quantized weight is int8 with a scale for each output channel.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Union

import mxnet as mx
import numpy as np

from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.graph import VARIABLE, Graph
from gluon_resnet.inference import onednn
from gluon_resnet.inference.form import Forward, PlannedForm
from gluon_resnet.inference.operators import described
from gluon_resnet.inference.packing import SCALE, Weights
from gluon_resnet.inference.rewrites import inference_graph
from gluon_resnet.inference.steps import steps_of
from gluon_resnet.inference.structure import compute_the_same
from gluon_resnet.models import ModelSpec, model_spec
from gluon_resnet.models.resnet import empty_resnet
from gluon_resnet.models.traced import IMAGES
from gluon_resnet.weights.card import Card, card_from_fields
from gluon_resnet.weights.formats import read_tensors

_CARD, _SYMBOL, _PARAMS = "card.json", "symbol.json", "int8.params"
_LONGEST_TEXT = 2**24
# Of the numbers in a file: float32 can still compute with them.
_LEAST, _LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class Calibration:
    """How an int8 model was made."""

    method: str
    """"naive" or "entropy"."""
    images: int
    """How many it was calibrated on, prepared as its card says."""
    excluded: Mapping[str, str]
    """Layers that stay fp32, each with the reason."""


@dataclass(frozen=True)
class Int8Model:
    """A quantized graph from `data`, images (N, 3, H, W), to logits, and its arrays."""

    symbol: mx.sym.Symbol
    arrays: Mapping[str, np.ndarray]
    """As in the file: see `packed`."""
    card: Card
    calibration: Calibration

    @property
    def spec(self) -> ModelSpec:
        """The network's row of the table."""
        return model_spec(self.card.model)

    @property
    def num_classes(self) -> int:
        """Classes of its classifier."""
        return _num_classes(self.card, self.arrays)

    def form(self) -> Forward:
        """Return the model as a function, as `inference_form` describes it."""
        return PlannedForm(Graph.of(self.symbol), self.arrays, "int8", self.spec.size)


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
            fields = asdict(model.card) | {"calibration": asdict(model.calibration)}
            archive.writestr(_CARD, json.dumps(fields, indent=1) + "\n")
            archive.writestr(_SYMBOL, model.symbol.tojson())
            archive.write(params, _PARAMS)
    return path


def load_int8(path: Union[str, Path]) -> Int8Model:
    """Read a file that `save_int8` wrote; nothing in it is unpickled or believed.

    Its graph must be that of its model's network, its arrays those of the graph, and
    images of the model's size must have a plan, before anything runs.
    Only whole nets are in the file: there is no `features` or `fc` to look into.
    Raises InputError where the file is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there; give a file that quantize wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            fields = json.loads(_text(archive, _CARD))
            calibration = Calibration(**fields.pop("calibration"))
            card = card_from_fields(fields, str(path))
            graph = Graph.from_json(_text(archive, _SYMBOL))
        _, arrays = read_tensors(path)
        _check_arrays(graph, arrays)
        _check_graph(graph, arrays, card)
        return Int8Model(graph.symbol(), arrays, card, calibration)
    except MemoryError:
        raise
    except Exception as error:  # which one, is up to whoever made the file
        is_told = isinstance(error, (InputError, zipfile.BadZipFile, OSError))
        reason = str(error).splitlines()[:1] if is_told else []
        raise InputError(
            f"{path} is no int8 model or a damaged one "
            f"({''.join(reason) or type(error).__name__}); write it again with "
            "`python -m gluon_resnet.quantize`"
        ) from error


def _text(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > _LONGEST_TEXT:
        raise InputError(f"its {name} is longer than {_LONGEST_TEXT} bytes")
    return archive.read(name).decode()


def _num_classes(card: Card, arrays: Mapping[str, np.ndarray]) -> int:
    """Return what the card says, else what the one dense layer has."""
    if card.classes is not None:
        return len(card.classes)
    (weight,) = (array for array in arrays.values() if array.ndim == 2)
    return len(weight)


def _check_arrays(graph: Graph, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise InputError unless `arrays` are what `packed` makes for `graph`."""
    named = {node.name for node in graph.nodes if node.op == VARIABLE} - {IMAGES}
    scaled = {name + SCALE for name in named if arrays[name].dtype == np.int8}
    if set(arrays) != named | scaled:
        raise InputError("its arrays are not those of its graph")
    for name, array in arrays.items():
        if name in scaled:
            channels = arrays[name.removesuffix(SCALE)].shape[:1]
            if array.shape != channels or not (array >= _LEAST).all():
                raise InputError("a scale of its weights is out of range")
        if array.dtype == np.float32:
            if not (np.abs(array) <= _LARGEST).all():
                raise InputError("a number of its arrays is out of range")
        elif name + SCALE not in scaled:
            raise InputError("its arrays are neither float32 nor int8")


def _check_graph(graph: Graph, arrays: Mapping[str, np.ndarray], card: Card) -> None:
    """Raise InputError unless `graph` is that of its network, in sensible ranges."""
    shapes = {name: array.shape for name, array in arrays.items()}
    spec, num_classes = model_spec(card.model), _num_classes(card, arrays)
    if not compute_the_same(graph, shapes, *_network(spec.name, num_classes)):
        raise InputError(
            f"its graph is not that of {spec.name} with {num_classes} classes"
        )
    steps = steps_of(graph)
    for step in steps:
        low, high = step.limits or (0, 1)
        largest = max(-low, high)
        if not (low <= 0 <= high and _LEAST <= largest <= _LARGEST):
            raise InputError(f"the range {low:g} to {high:g} is none of a layer's")
        if step.op == "BatchNorm":
            variance = arrays[step.arrays[-1]] + step.attrs["eps"]
            if not ((variance >= _LEAST) & (variance <= _LARGEST)).all():
                raise InputError("a variance is out of range")
    if onednn.is_available():
        (head,) = graph.end.inputs
        described(steps, head, Weights(arrays), (1, 3, spec.size, spec.size))


@lru_cache(maxsize=8)
def _network(model: str, num_classes: int) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """Return the graph that a model is quantized from, and the shapes of its arrays."""
    net = empty_resnet(model_spec(model), num_classes=num_classes)
    graph, arrays = inference_graph(net)
    return graph, {name: array.shape for name, array in arrays.items()}
