# SPDX-License-Identifier: Apache-2.0
"""`load_weights`: any published file into a network of this package."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, Parameter, nn

from gluon_resnet.errors import InputError
from gluon_resnet.models import ModelSpec
from gluon_resnet.models.resnet import Contexts, empty_resnet, resnet
from gluon_resnet.weights import onnx_format, onnx_graph
from gluon_resnet.weights.arrays import dtype_name, float32, shown
from gluon_resnet.weights.formats import Content, read_content
from gluon_resnet.weights.layouts import LAYOUTS
from gluon_resnet.weights.symbol_file import Norms, norms_of

log = logging.getLogger(__name__)

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_SHOWN = 10  # offenders of a kind in an error; a LoadReport has all
# Before a key: what MXNet marks arguments and running statistics with.
_MARK = re.compile(r"^(arg|aux):")
# Parts of keys that wrappers of torch put in: DataParallel, compile, FSDP.
_WRAPPERS = {
    *("module", "_orig_mod"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
}
# GluonCV's export_block puts a layer with such constants in front of the network.
_PREPROCESSING = re.compile(r"defaultpreprocess\d+_init_(mean|scale)$")
# In the prefix of weights that are the average of many steps.
_AVERAGE = re.compile("ema|averag|swa")
# The epsilon of the BN layers of a layout, where it is not that of all others.
_EPSILONS = {"mxnet_gallery": 2e-5}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did with a file."""

    path: Path
    format: str
    """params, safetensors, pth or onnx."""
    layout: str
    """The naming scheme recognised: a function of `weights.layouts`, or "exported", or
    "by place" in the graph of an .onnx file."""
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

    def __repr__(self) -> str:
        counts = [
            f"{len(keys)} {kind.replace('_', ' ')}"
            for kind in ("missing", "unexpected", "wrong_shape")
            if (keys := getattr(self, kind))
        ]
        return (
            f"<LoadReport {self.path.name}: {self.loaded} tensors of {self.format}, "
            f"named as {self.layout}; "
            f"{', '.join(counts) or 'nothing left over or missing'}>"
        )


class NamedWeights(NamedTuple):
    """A file's tensors under the names of our parameters."""

    path: Path
    layout: str
    tensors: Mapping[str, np.ndarray]
    keys: Mapping[str, str]
    """The file's key of each name, or the one that it would have."""
    unexpected: tuple[str, ...] = ()
    epsilons: Mapping[str, float] = {}
    """The epsilon of BN layers by the name of their running variance, where known."""

    @property
    def has_classifier(self) -> bool:
        """Whether it is more than a backbone."""
        return "fc.weight" in self.tensors

    @property
    def num_classes(self) -> int:
        """Classes of the classifier. Raises InputError where there is none."""
        return len(self._tensor("fc.weight", "classifier", 2))

    @property
    def in_channels(self) -> int:
        """Channels of the images. Raises InputError where that cannot be told."""
        return self._tensor("stem.conv1.weight", "first convolution", 4).shape[1]

    def _tensor(self, name: str, what: str, rank: int) -> np.ndarray:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.ndim != rank:
            rest = f", but {_listed(self.unexpected)}" if self.unexpected else ""
            raise InputError(
                f"{self.path} has no {what} ({self.keys[name]}), read as "
                f"{self.layout}{rest}; check the model's name, and give a file of a "
                "whole net with one such layer"
            )
        return tensor


Channels = tuple[float, ...]


@dataclass(frozen=True)
class WeightsFile:
    """A file that has been read; whose weights it holds is not known yet."""

    path: Path
    content: Content
    tensors: Mapping[str, np.ndarray]
    """By key, without what wrappers put in front and without counters."""
    normalisation: Optional[tuple[Channels, Channels]] = None
    """Mean and deviation, of pixels in [0, 1], of a layer before the network."""
    _named: dict[ModelSpec, NamedWeights] = field(default_factory=dict, repr=False)

    @cached_property
    def _norms(self) -> Norms:
        """What is known of BN layers beside their arrays."""
        if self.content.format == "onnx":
            epsilons = onnx_graph.epsilons(self.content.operators)
            return Norms({_short(k): e for k, e in epsilons.items()}, frozenset())
        return norms_of(self.path)

    def named(self, spec: ModelSpec) -> NamedWeights:
        """Return the tensors under the names of the network of `spec`.

        Naming scheme and prefix are those that explain most of the keys. The classifier
        may have any name: it is the one dense layer.
        Raises InputError where the file has none of them, and for an .onnx file whose
        graph is needed to find them and is another network's.
        """
        if spec not in self._named:
            self._named[spec] = self._found(spec)
        return self._named[spec]

    def _found(self, spec: ModelSpec) -> NamedWeights:
        layout, prefix, keys = _recognised(spec, self.tensors.keys())
        keys = {name: prefix + key for name, key in keys.items()}
        if self.tensors.keys() & keys.values():
            keys |= _classifier_keys(keys, prefix, self.tensors)
        lost = [name for name, key in keys.items() if key not in self.tensors]
        if self._has_graph and (lost or self._is_transposed(spec, keys)):
            return self._by_place(spec)
        if len(lost) == len(keys):
            raise InputError(
                f"{self.path} holds no parameter of {spec.name} under any known name; "
                f"its keys are {_listed(sorted(self.tensors))}; check the model's name"
            )
        if lost and self.content.format == "onnx":
            raise InputError(
                f"{self.path} has no graph, by which weights are found where BatchNorm "
                "is folded into the convolutions; export the whole model again"
            )
        rest = self.tensors.keys() - keys.values()
        copies = _copies(self.path, prefix, keys, self.tensors) if rest else set()
        if not lost:
            copies |= _other_parts(self.path, prefix, rest - copies, keys)
        tensors = {n: self.tensors[key] for n, key in keys.items() if n not in lost}
        epsilons = {}
        for name, tensor in tensors.items():
            if name.endswith(".running_var"):
                epsilon = self._norms.epsilons.get(keys[name], _EPSILONS.get(layout))
                if epsilon is not None:
                    epsilons[name] = epsilon
            elif name.endswith(".gamma") and keys[name] in self._norms.fixed_gammas:
                tensors[name] = np.ones_like(float32(tensor))
        if prefix:
            log.info("%s: keys begin with %s", self.path, shown(prefix))
        return NamedWeights(
            self.path, layout, tensors, keys, tuple(sorted(rest - copies)), epsilons
        )

    @property
    def _has_graph(self) -> bool:
        return any(each.type != onnx_format.INPUT for each in self.content.operators)

    def _is_transposed(self, spec: ModelSpec, keys: Mapping[str, str]) -> bool:
        """Return whether the classifier of a graph lies the other way round."""
        return self.tensors[keys["fc.weight"]].shape[-1] != spec.channels[-1]

    def _by_place(self, spec: ModelSpec) -> NamedWeights:
        try:
            found = onnx_graph.by_place(
                skeleton(spec), self.content.operators, self.tensors
            )
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        log.info("%s: weights are found by their place in the graph", self.path)
        return NamedWeights(
            self.path, "by place", found.tensors, found.keys, (), found.epsilons
        )


def read_weights(path: Union[str, Path]) -> WeightsFile:
    """Read a weights file, as `formats.read_content` does; raises as it does."""
    path = Path(path)
    content = read_content(path)
    tensors = _bare(path, content.tensors)
    preprocessing = [key for key in tensors if _PREPROCESSING.search(key)]
    values = [tensors.pop(key).ravel() / 255 for key in sorted(preprocessing)]
    if len(values) != 2:
        return WeightsFile(path, content, tensors)
    log.info("%s: its preprocessing layer is left out", path)
    mean, deviation = (tuple(map(float, value)) for value in values)
    return WeightsFile(path, content, tensors, (mean, deviation))


def load_weights(
    net: HybridBlock, weights: Union[str, Path, WeightsFile], *, strict: bool = True
) -> LoadReport:
    """Copy a file's tensors into `net`, which keeps its device; nothing runs.

    Format and naming scheme are recognised by content. The mapping must be a bijection:
    nothing missing, nothing left over, all shapes equal. With `strict=False` what fits
    is loaded and the rest reported. Of a training checkpoint with averaged weights
    those are taken. Half and double precision becomes float32. Convolutions with folded
    BN layers of an .onnx file get BN layers that change nothing.
    weights: a path, or a file that `read_weights` has read.
    Raises InputError where the file cannot be read, where a tensor is not finite or of
    whole numbers, or with `strict`, where the mapping is no bijection: it lists the
    offending keys. `net` is unchanged then.
    """
    file = weights if isinstance(weights, WeightsFile) else read_weights(weights)
    named = file.named(net.spec)
    parameters = net._collect_params_with_prefix()
    fitting, missing, wrong_shape = {}, [], []
    for name, parameter in parameters.items():
        key, tensor = named.keys[name], named.tensors.get(name)
        if tensor is None:
            missing.append(key)
        elif tensor.shape != parameter.shape:
            wrong_shape.append(f"{shown(key)}: {tensor.shape}, {parameter.shape}")
        else:
            fitting[name] = tensor
    # Such as a classifier, where `net` has none.
    extra = (
        key
        for name, key in named.keys.items()
        if name in named.tensors and name not in parameters
    )
    dtypes = {dtype_name(value) for value in fitting.values()}
    report = LoadReport(
        file.path,
        file.content.format,
        named.layout,
        len(fitting),
        tuple(sorted(dtypes - {"float32"})),
        tuple(missing),
        (*named.unexpected, *extra),
        tuple(wrong_shape),
    )
    _check(net, report, strict)
    values = {n: _value(report.path, named.keys[n], v) for n, v in fitting.items()}
    epsilons = dict(_epsilons(net))
    for name in epsilons.keys() & named.epsilons.keys() & values.keys():
        # variance + epsilon is what counts, and what stays.
        if more := named.epsilons[name] - epsilons[name]:
            values[name] = np.add(values[name], more, dtype=np.float64).astype("f4")
    _absorb_input_scale(report, values, epsilons)
    for name, value in values.items():
        _fill(parameters[name], value)
    return report


def net_of(
    spec: ModelSpec,
    weights: Union[str, Path, WeightsFile],
    *,
    num_classes: Optional[int] = None,
    ctx: Contexts = None,
) -> tuple[HybridBlock, LoadReport]:
    """Return the network of `spec` with a file's weights, classes and channels.

    num_classes: how many there must be, 0 for a backbone; default as many as there are.
    It has no gradients. Raises InputError as `load_weights` does.
    """
    file = weights if isinstance(weights, WeightsFile) else read_weights(weights)
    named = file.named(spec)
    net = empty_resnet(
        spec,
        num_classes=named.num_classes if num_classes is None else num_classes,
        in_channels=named.in_channels,
        ctx=ctx,
    )
    return net, load_weights(net, file)


def classes_of(path: Union[str, Path]) -> int:
    """Return how many classes the classifier in a weights file has.

    Raises InputError where the file cannot be read, or has no dense layer or some.
    """
    file = read_weights(path)
    dense = _dense_layers(file.tensors)
    if file.content.operators:
        dense = onnx_graph.dense_layers(file.content.operators, file.tensors) or dense
    if len(sizes := {len(tensor) for tensor in dense.values()}) == 1:
        return sizes.pop()
    found = (
        f"more than one dense layer ({_listed(list(dense))})"
        if dense
        else ("no dense layer")
    )
    raise InputError(f"{path} has {found}; give a file of a whole net with one")


@lru_cache(maxsize=4)
def skeleton(spec: ModelSpec) -> HybridBlock:
    """Return the network of `spec` without values, for its names and its graph."""
    return resnet(spec)


def _bare(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drop what training scripts and exporters put around the keys, and counters.

    A single whole number is a counter, such as `num_batches_tracked` of torch's BN and
    `n_averaged` of its AveragedModel. Weights under `ema_KEY_WITH_UNDERSCORES` are
    mmcv's copy of those under KEY, which its EMAHook has exchanged for their average.
    """
    buffers = {"ema_" + key.replace(".", "_") for key in tensors}
    bare: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        is_counter = value.size == 1 and value.dtype.kind in "iub"
        if is_counter or key.endswith("num_batches_tracked") or key in buffers:
            continue
        short = _short(key)
        if short in bare:
            raise InputError(
                f"{path} holds {shown(short)} more than once, also as {shown(key)}; "
                "keep one set of weights"
            )
        bare[short] = value
    return bare


def _short(key: str) -> str:
    """Return a key without what wrappers of torch and MXNet's marks put into it."""
    parts = _MARK.sub("", key).split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)


class _Scheme(NamedTuple):
    layout: str
    prefix: str
    keys: Mapping[str, str]


def _recognised(spec: ModelSpec, keys: Iterable[str]) -> _Scheme:
    """Return layout and prefix that explain most of a file's keys.

    Of several sets of weights the one is taken whose prefix tells of an average.
    """
    keys = set(keys)
    best, most = None, (-1, False)
    for layout, names in _layouts(spec).items():
        anchors = [names["stage1.0.body.conv1.weight"], names[_last_anchor(spec)]]
        prefixes = {
            key[: -len(anchor)]
            for anchor in anchors
            for key in keys
            if key.endswith(anchor)
        }
        for prefix in sorted({"", *prefixes}):
            found = sum(prefix + key in keys for key in names.values())
            rank = (found, _AVERAGE.search(prefix) is not None)
            if rank > most:
                best, most = _Scheme(layout, prefix, names), rank
        if most[0] == len(names) == len(keys):
            break  # the others cost time
    assert best is not None  # each network has our own layout
    return best


def _last_anchor(spec: ModelSpec) -> str:
    return f"stage{len(spec.blocks)}.0.body.conv1.weight"


@lru_cache(maxsize=4)
def _layouts(spec: ModelSpec) -> dict[str, dict[str, str]]:
    """Return the keys of each layout that has the network, by our names."""
    parameters = skeleton(spec)._collect_params_with_prefix()
    layouts = {"exported": {name: p.name for name, p in parameters.items()}}
    for layout in LAYOUTS:
        if keys := layout(spec, list(parameters)):
            layouts[layout.__name__] = keys
    return layouts


def _dense_layers(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights of dense layers; convolutions have four axes."""
    return {key: value for key, value in tensors.items() if value.ndim == 2}


def _classifier_keys(
    keys: Mapping[str, str], prefix: str, tensors: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Return the keys of the classifier where it has not the layout's name.

    It is the one dense layer: a new last layer has a number or a name of its own, a
    `Sequential` of dropout and it a position.
    """
    dense = list(_dense_layers(tensors))
    if len(dense) > 1:  # of several sets of weights
        dense = [key for key in dense if prefix and key.startswith(prefix)]
    if keys["fc.weight"] in tensors or len(dense) != 1:
        return {}
    (weight,) = dense
    log.info("the classifier is %s", shown(weight))
    bias = re.sub(r"weight$", "bias", weight)
    return {"fc.weight": weight, "fc.bias": bias}


def _copies(
    path: Path, prefix: str, keys: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> set[str]:
    """Return the keys of other whole sets of these weights, as training keeps them.

    Raises InputError where nothing tells that the set behind `prefix` is to be taken.
    """
    bare = [key[len(prefix) :] for key in keys.values() if key.startswith(prefix)]
    anchor = keys["stem.conv1.weight"][len(prefix) :]
    copies: set[str] = set()
    for key in tensors:
        other = key[: -len(anchor)]
        if key.endswith(anchor) and other != prefix:
            copy = {other + each for each in bare}
            if len(bare) == len(keys) and copy <= tensors.keys():
                if not _AVERAGE.search(prefix):
                    raise InputError(
                        f"{path} holds two sets of weights, whose keys begin with "
                        f"{shown(repr(prefix))} and {shown(repr(other))}; keep one set"
                    )
                log.info("a second set of weights, %s, is left out", shown(other))
                copies |= copy
    return copies


def _other_parts(
    path: Path, prefix: str, rest: set[str], keys: Mapping[str, str]
) -> set[str]:
    """Return those keys of the rest that are of no network: they lack its prefix.

    So the weights of a loss stand beside the network's in what Lightning saves.
    """
    anchor = keys["stem.conv1.weight"][len(prefix) :]
    others = {key for key in rest if prefix and not key.startswith(prefix)}
    if not others or any(key.endswith(anchor) for key in others):
        return set()
    log.warning(
        "%s: left out what is not under %s: %s",
        path,
        shown(prefix),
        _listed(sorted(others)),
    )
    return others


def _check(net: HybridBlock, report: LoadReport, strict: bool) -> None:
    faults = {
        "missing": report.missing,
        "unexpected": report.unexpected,
        "wrong shape (file, network)": report.wrong_shape,
    }
    found = [f"{kind}: {_listed(keys)}" for kind, keys in faults.items() if keys]
    if strict and found:
        raise InputError(
            f"{report.path} does not fit {net.spec.name}, read as {report.layout}: "
            f"{'; '.join(found)}; {_remedy(report)}"
        )


def _remedy(report: LoadReport) -> str:
    """Say what to do, by what is wrong."""
    if part := re.search(r"-(\d+)-of-\d+\.\w+$", report.path.name):
        return (
            f"this is part {int(part[1])} of several: give their index, "
            "NAME.safetensors.index.json"
        )
    if "stage1_unit1_sc_weight" in report.unexpected:
        return (
            "the gallery's ResNet-18 and -34 project the shortcut of stage 1, which no "
            "network of this package does"
        )
    if report.unexpected and not (report.missing or report.wrong_shape):
        return (
            "all that this network needs is there: name a deeper network, or save the "
            "file without the rest"
        )
    if not report.unexpected and [k.rpartition(".")[2] for k in report.missing] == [
        "bias"
    ]:
        return "its classifier has no bias: add one of zeros to the file"
    return "check the model's name, its number of classes and its channels"


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(map(shown, keys[:_SHOWN])) + (
        f" and {more} more" if more > 0 else ""
    )


def _value(path: Path, key: str, stored: np.ndarray) -> np.ndarray:
    dtype = dtype_name(stored)
    if dtype not in _DTYPES:
        raise InputError(
            f"{path}: {shown(key)} holds {dtype}, not {' or '.join(_DTYPES)}"
        )
    value = float32(stored)
    # The sum is finite only if all terms are, and needs no array of answers.
    with np.errstate(all="ignore"):
        is_finite = np.isfinite(value.sum()) or np.isfinite(value).all()
    if not is_finite:
        raise InputError(
            f"{path}: {shown(key)} holds NaN or infinity; the file is damaged or its "
            "training had diverged"
        )
    return value


def _fill(parameter: Parameter, value: np.ndarray) -> None:
    try:
        parameter.set_data(value)  # the only copy of the values
    except mx.MXNetError:
        # A net that has run keeps weights in oneDNN's layout, which takes no bytes.
        parameter.set_data(mx.nd.array(value))


def _epsilons(block: HybridBlock, path: str = "") -> Iterable[tuple[str, float]]:
    """Yield the name of the running variance and the epsilon of each BN layer."""
    for name, child in block._children.items():
        if isinstance(child, nn.BatchNorm):
            yield f"{path}{name}.running_var", child._kwargs["eps"]
        else:
            yield from _epsilons(child, f"{path}{name}.")


def _absorb_input_scale(
    report: LoadReport, values: dict[str, np.ndarray], epsilons: Mapping[str, float]
) -> None:
    """Keep the scale of v2's input BN at 1, with which MXNet computes in any case.

    So do the networks that .params files come from. What reads other formats scales the
    image, as a smaller variance does.
    """
    gamma, running_var = values.get("stem.bn0.gamma"), "stem.bn0.running_var"
    if gamma is None or (gamma == 1).all():
        return
    if report.format != "params":
        if not (gamma > 0).all():
            raise InputError(
                f"{report.path} does not scale its input by positive numbers "
                "(stem.bn0.gamma), as this network has to; save it otherwise"
            )
        epsilon = epsilons[running_var]
        scale = gamma.astype(np.float64) ** 2
        variance = (values[running_var] + epsilon) / scale - epsilon
        values[running_var] = variance.astype(np.float32)
    values["stem.bn0.gamma"] = np.ones_like(gamma)
