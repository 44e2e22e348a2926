# SPDX-License-Identifier: Apache-2.0
"""Proof, without the network, that every published checkpoint would load.

`python -m gluon_resnet.weights --verify-layouts` runs it in a clone of the repository.
For each row a file with the row's keys, shapes, dtypes and layout is made from drawn
values and loaded, and the logits are compared with another implementation's:

- .params: GluonCV's own network writes the file and answers. The checkpoint that comes
  with the package is there itself: GluonCV's network answers with its weights.
- .onnx: MXNet's model_zoo network, written in the Model Zoo's form by this package's
  exporter and under Gluon's own names; ONNX Runtime answers.
- .pth and .safetensors: timm's answers to the same values are kept in the repository,
  and so are digests of its keys, shapes and dtypes. OpenMMLab's keys are made from
  timm's by the table of differences below.
"""

import hashlib
import importlib
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnet.errors import InputError
from gluon_resnet.graph import Graph, Node
from gluon_resnet.models import extract_feat, model_spec
from gluon_resnet.models.resnet import empty_resnet, resnet
from gluon_resnet.weights import layouts
from gluon_resnet.weights.download import fetch
from gluon_resnet.weights.load import load_weights
from gluon_resnet.weights.published import Checkpoint, checkpoint, list_weights

_GOLDEN = Path(__file__).parent / "golden"
# Both sides sum in float32 in orders of their own; a wrong layer is far outside.
_TOLERANCE = 1e-4
_COUNTER = "num_batches_tracked"  # of torch's BN, a whole number
# OpenMMLab's deep stem is a list of modules with a conv and a bn each.
_OPENMMLAB_STEM = {
    "conv1.0.": "stem.0.conv.",
    "conv1.1.": "stem.0.bn.",
    "conv1.3.": "stem.1.conv.",
    "conv1.4.": "stem.1.bn.",
    "conv1.6.": "stem.2.conv.",
    "bn1.": "stem.2.bn.",
}
# Its shortcuts have no pooling, not even an identity, where there is nothing to pool.
_OPENMMLAB_SHORTCUT = {
    "layer1.0.downsample.1.": "layer1.0.downsample.0.",
    "layer1.0.downsample.2.": "layer1.0.downsample.1.",
}


@dataclass(frozen=True)
class Proof:
    """Whether a row's layout was proven to load."""

    name: str
    passed: bool
    how: str
    """The other implementation and the largest difference, or why there is none."""

    def __str__(self) -> str:
        return f"{self.name}: {'proven' if self.passed else 'NOT PROVEN'}: {self.how}"


def verify_layouts(pattern: str = "*") -> Iterator[Proof]:
    """Yield a proof for each published row that matches; equal layouts share one."""
    rows = [checkpoint(name) for name in list_weights(pattern)]
    proofs = {}
    for row in sorted(rows, key=lambda row: (row.model, row.num_classes)):
        is_zipped = any(url.endswith(".zip") for url in row.urls)
        has_file = bool(row.bundled)
        kind = row.model, row.num_classes, row.format, row.layout, is_zipped, has_file
        if kind not in proofs:
            proofs[kind] = _prove(row, is_zipped)
        yield Proof(row.name, *proofs[kind])


def _prove(row: Checkpoint, is_zipped: bool) -> tuple[bool, str]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            if row.bundled:
                who, error = _bundled_against_gluoncv(row, Path(folder))
            elif row.format == "params":
                who, error = _against_gluoncv(row, Path(folder), is_zipped)
            elif row.format == "onnx":
                who, error = _against_onnxruntime(row, Path(folder))
            else:
                who, error = _against_timm(row, Path(folder))
    except InputError as mismatch:
        return False, str(mismatch)
    except ImportError as missing:
        return False, f"{missing}; run `pip install -r requirements-dev.txt`"
    return error <= _TOLERANCE, f"logits within {error:.0e} of {who}'s"


def _loaded(row: Checkpoint, path: Path) -> HybridBlock:
    """Return our network with the file's weights, found laid out as the row says."""
    net = empty_resnet(model_spec(row.model), num_classes=row.num_classes)
    report = load_weights(net, path)
    if (report.format, report.layout) != (row.format, row.layout):
        raise InputError(f"{row.name} was read as {report.format}, {report.layout}")
    return net


def _images(row: Checkpoint) -> np.ndarray:
    # Odd sides: pooling with and without ceil mode differ.
    sides = (32, 32) if row.model.startswith("cifar") else (65, 97)
    return _golden("draw").draw_images((2, 3, *sides))


def _error(found: np.ndarray, answer: np.ndarray) -> float:
    return float(np.abs(found - answer).max() / np.abs(answer).max())


def _against_gluoncv(
    row: Checkpoint, folder: Path, is_zipped: bool
) -> tuple[str, float]:
    import gluoncv

    theirs, path = _gluoncv_net(row.model), folder / "theirs.params"
    images = mx.nd.array(_images(row))
    _draw(theirs, images)
    theirs.save_parameters(str(path))
    if is_zipped:
        with zipfile.ZipFile(folder / "theirs.zip", "w") as archive:
            archive.write(path, path.name)
        path = folder / "theirs.zip"
    found = _loaded(row, path)(images).asnumpy()
    error = _error(found, theirs(images).asnumpy())
    return f"GluonCV {gluoncv.__version__}", error


def _bundled_against_gluoncv(row: Checkpoint, folder: Path) -> tuple[str, float]:
    import gluoncv

    net = _loaded(row, fetch(row))
    parameters = net._collect_params_with_prefix()
    keys = layouts.gluon_features(net.spec, list(parameters))
    values = {keys[name]: parameters[name].data() for name in parameters}
    mx.nd.save(str(folder / "renamed.params"), values)
    theirs, images = _gluoncv_net(row.model), mx.nd.array(_images(row))
    theirs.load_parameters(str(folder / "renamed.params"))
    error = _error(net(images).asnumpy(), theirs(images).asnumpy())
    return f"GluonCV {gluoncv.__version__}", error


def _gluoncv_net(model: str) -> HybridBlock:
    from gluoncv.model_zoo import get_model, resnest

    fast = re.fullmatch(r"resnest50d_(\d)s(\d)x(\d+)d", model)
    if not fast:
        return get_model(re.sub(r"^(resnest\d+)[de]$", r"\1", model))
    radix, cardinality, width = map(int, fast.groups())
    return resnest.ResNeSt(
        resnest.Bottleneck,
        [3, 4, 6, 3],
        radix=radix,
        cardinality=cardinality,
        bottleneck_width=width,
        deep_stem=True,
        avg_down=True,
        avd=True,
        avd_first=True,
        use_splat=True,
    )


def _draw(theirs: HybridBlock, images: mx.nd.NDArray) -> None:
    """Give a Gluon network values that depend on its parameters' names alone."""
    theirs.initialize()
    theirs(images)  # shapes are deferred
    _golden("draw").fill_gluon(theirs)


def _against_onnxruntime(row: Checkpoint, folder: Path) -> tuple[str, float]:
    import onnxruntime
    from mxnet.gluon.model_zoo import vision

    from gluon_resnet.onnx_export.archive import OPSET
    from gluon_resnet.onnx_export.names import ZOO_PREFIXES
    from gluon_resnet.onnx_export.writer import onnx_model

    theirs = vision.get_model(row.model, prefix=ZOO_PREFIXES[row.model])
    images, path = _images(row), folder / "theirs.onnx"
    _draw(theirs, mx.nd.array(images))
    graph = Graph.of(theirs(mx.sym.var("data")))
    parameters = theirs.collect_params().items()
    model = onnx_model(
        graph,
        {name: parameter.data().asnumpy() for name, parameter in parameters},
        opset=OPSET,
        images=("N", 3, *images.shape[2:]),
        outputs={graph.end.input().name: ("N", row.num_classes)},
        names=_GluonNames(),
    )
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; each weight that is an input is a warning
    session = onnxruntime.InferenceSession(str(path), options)
    (answer,) = session.run(None, {"data": images})
    found = _loaded(row, path)(mx.nd.array(images)).asnumpy()
    return f"ONNX Runtime {onnxruntime.__version__}", _error(found, answer)


class _GluonNames:
    """Names as Gluon gives them, which the Model Zoo's files have."""

    def array(self, name: str) -> str:
        return name

    def node(self, node: Node) -> str:
        return node.name


def _against_timm(row: Checkpoint, folder: Path) -> tuple[str, float]:
    tensors = dict(_timm_tensors(row.model))
    for key in ("fc.weight", "fc.bias"):
        shape = (row.num_classes, *tensors[key].shape[1:])
        tensors[key] = _golden("draw").draw_tensor(key, shape)
    weight, bias = tensors["fc.weight"], tensors["fc.bias"]
    content = tensors
    if row.layout == "openmmlab":
        keys = _openmmlab_keys(tensors)
        tensors = {keys[key]: value for key, value in tensors.items()}
        content = {"meta": {"epoch": 100}, "state_dict": tensors}
    if row.format == "safetensors":
        from safetensors.numpy import save_file

        paths = [folder / "theirs.safetensors"]
        save_file(tensors, paths[0], metadata={"format": "pt"})
    else:
        paths = [folder / "zip.pth", folder / "legacy.pth"]
        for path in paths:
            write = _golden("torch_files").write_torch
            write(path, content, is_zip=path.stem == "zip")

    answers, errors = json.loads((_GOLDEN / "timm.json").read_text())[row.model], []
    for path in paths:
        net, images = _loaded(row, path), mx.nd.array(_images(row))
        (pooled,), logits = extract_feat(net, images, ("pooled",)), net(images)
        found = {"pooled": pooled.asnumpy(), "logits": logits.asnumpy()}
        # timm's head may have another number of classes: the last step is NumPy's.
        errors.append(_error(found["logits"], found["pooled"] @ weight.T + bias))
        for layer in ("pooled", "logits"):
            if list(found[layer].shape) == answers[layer]["shape"]:
                samples = np.array(_golden("draw").sample(found[layer]))
                errors.append(_error(samples, np.array(answers[layer]["values"])))
    return "timm", max(errors)


@lru_cache(maxsize=1)
def _timm_tensors(model: str) -> dict[str, np.ndarray]:
    """Return a state_dict of timm's network of a model, drawn.

    The keys are made here, and a digest of timm's own shows that they are the same.
    """
    digests = json.loads((_GOLDEN / "weights.json").read_text())["state_dicts"]
    shapes = state_dict_shapes(model)
    if state_dict_digest(shapes) != digests[model]:
        raise InputError(f"the keys, shapes or dtypes made for {model} are not timm's")
    return {
        key: np.array(0)
        if key.endswith(_COUNTER)
        else _golden("draw").draw_tensor(key, shape)
        for key, shape in shapes.items()
    }


def state_dict_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the state_dict of timm's network of a model, by key."""
    spec = model_spec(model)
    parameters = resnet(spec)._collect_params_with_prefix()
    keys = layouts.torchvision(spec, list(parameters))
    shapes = {keys[name]: parameters[name].shape for name in parameters}
    norms = [k[: -len("running_var")] for k in shapes if k.endswith("running_var")]
    return {**shapes, **{f"{norm}{_COUNTER}": () for norm in norms}}


def state_dict_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return what tests/golden/make_weights.py keeps of a state_dict."""
    lines = sorted(
        f"{key} {shape} {'int64' if key.endswith(_COUNTER) else 'float32'}\n"
        for key, shape in shapes.items()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _openmmlab_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return OpenMMLab's key of each of timm's."""
    differences, renamed = {}, {}
    if "conv1.0.weight" in keys:
        differences |= _OPENMMLAB_STEM
    if "layer1.0.downsample.2.weight" in keys:
        differences |= _OPENMMLAB_SHORTCUT
    for key in keys:
        start = next(filter(key.startswith, differences), "")
        body = differences.get(start, "") + key[len(start) :]
        renamed[key] = f"head.{key}" if key.startswith("fc.") else f"backbone.{body}"
    return renamed


def _golden(name: str) -> ModuleType:
    """Import a module of the values to compare with."""
    if str(_GOLDEN) not in sys.path:
        sys.path.append(str(_GOLDEN))
    return importlib.import_module(name)
