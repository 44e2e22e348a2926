# SPDX-License-Identifier: Apache-2.0
"""How other projects name the parameters of these networks.

A layout is `keys(spec, names) -> {our name: their key}`, or None where that project has
no such network; all keys of a file may stand behind one prefix. `names` are the
parameter names of a network of this package in their order; they are its own file
format: `stem.conv1.weight`, `stage1.0.body.bn1.gamma`, `stage2.0.shortcut.conv.weight`,
`fc.bias`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Optional, Union

from gluon_resnet.models import ModelSpec

Keys = Optional[dict[str, str]]
Rule = tuple[str, Union[str, Callable[[re.Match], str]]]

_ATTRIBUTE_FAMILIES = {"v1b", "v1c", "v1d", "v1s", "wide", "cifar", "resnest"}
_DEEP_STEM_FAMILIES = {"v1c", "v1d", "v1s", "resnest"}
_POOL_FAMILIES = {"v1d", "resnest"}
_OPENMMLAB_FAMILIES = {"v1b", "v1c", "v1d", "wide", "cifar", "resnest"}
_SEQUENTIAL_FAMILIES = {"v1", "v2", "cifar_v1", "cifar_v2"}

_TORCH_BATCH_NORM = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.conv2\.bn\.", ".conv2.bn0."),
)


def own(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name as this package's `net.save_parameters` does."""
    return {name: name for name in names}


def torchvision(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name as torchvision, timm and the authors' PyTorch ResNeSt do."""
    if spec.family not in _ATTRIBUTE_FAMILIES:
        return None
    return _renamed(names, (*_attributes(spec), *_TORCH_BATCH_NORM))


def openmmlab(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name as mmclassification and mmpretrain do: a backbone and a head."""
    if spec.family not in _OPENMMLAB_FAMILIES:
        return None
    stem = (
        (r"^stem\.(conv|bn)(\d)", lambda m: f"backbone.stem.{int(m[2]) - 1}.{m[1]}"),
    )
    rules = _attributes(
        spec,
        prefix="backbone.",
        stem=stem if spec.family in _DEEP_STEM_FAMILIES else None,
        pool_in_stage1=False,
    )
    return _renamed(names, (*rules, (r"^fc\.", "head.fc."), *_TORCH_BATCH_NORM))


def gluoncv_attributes(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name as GluonCV's v1b, v1c, v1d, v1s and ResNeSt .params files do."""
    if spec.family not in _ATTRIBUTE_FAMILIES - {"cifar"}:
        return None
    return _renamed(names, _attributes(spec))


def gluon_features(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name by position, as .params files of mxnet's and GluonCV's v1, v2, CIFAR do."""
    if spec.family not in _SEQUENTIAL_FAMILIES:
        return None
    is_v2 = spec.family in {"v2", "cifar_v2"}
    stem = ("bn0", "conv1", "bn1") if is_v2 else ("conv1", "bn1")
    if spec.family == "cifar_v2":
        stem = stem[:2]
    # ReLU and max-pooling of the ImageNet stem have a position, too.
    first_stage = len(stem) + (2 if spec.size == 224 else 0)
    last = first_stage + len(spec.blocks)
    rules: list[Rule] = [
        (
            r"^stage(\d)\.",
            lambda m: f"features.{first_stage + int(m[1]) - 1}.",
        ),
        (r"^stem\.(\w+)\.", lambda m: f"features.{stem.index(m[1])}."),
        (r"^norm\.", f"features.{last}."),
        (r"^fc\.", "output."),
    ]
    if is_v2:
        rules += [(r"\.(body|preactivation)\.", "."), (r"\.shortcut\.", ".downsample.")]
    else:
        rules += [
            # Conv, BN and ReLU of a body take three positions.
            (r"\.body\.conv(\d)\.", lambda m: f".body.{3 * int(m[1]) - 3}."),
            (r"\.body\.bn(\d)\.", lambda m: f".body.{3 * int(m[1]) - 2}."),
            (r"\.shortcut\.conv\.", ".downsample.0."),
            (r"\.shortcut\.bn\.", ".downsample.1."),
        ]
    return _renamed(names, rules)


def gluon_symbol(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name by creation order, as exported Gluon nets and the ONNX Model Zoo do.

    `conv0_weight`, `stage1_batchnorm2_gamma`, ...: behind a prefix of the network's own
    (`resnetv17_`, `resnest0_`), which tells how many networks the process had made.
    """
    if spec.family in _SEQUENTIAL_FAMILIES:
        scopes = {"body": "stage", "shortcut": "stage", "preactivation": "stage"}
    elif spec.family == "cifar":
        return None
    else:
        scopes = {"body": "layers", "shortcut": "down"}
    counts: Counter[tuple[str, str]] = Counter()
    layers: dict[str, str] = {}
    keys: dict[str, str] = {}
    for name in names:
        layer, _, parameter = name.rpartition(".")
        if layer not in layers:
            stage = re.match(r"stage(\d)\.\d+\.(\w+)", layer)
            scope = f"{scopes[stage[2]]}{stage[1]}_" if stage else ""
            kind = _symbol_kind(layer)
            layers[layer] = f"{scope}{kind}{counts[scope, kind]}"
            counts[scope, kind] += 1
        keys[name] = f"{layers[layer]}_{parameter}"
    return keys


def mxnet_gallery(spec: ModelSpec, names: Sequence[str]) -> Keys:
    """Name as MXNet's model gallery does: `stage1_unit1_conv1_weight`.

    Its ResNets (symbols/resnet.py of MXNet's image-classification example) are v2.
    """
    if spec.family != "v2":
        return None
    rules = (
        (r"^stem\.bn0\.", "bn_data_"),
        (r"^stem\.conv1\.", "conv0_"),
        (r"^stem\.bn1\.", "bn0_"),
        (r"^norm\.", "bn1_"),
        (r"^fc\.", "fc1_"),
        (
            r"^stage(\d)\.(\d+)\.(?:(?:body|preactivation)\.)?(\w+)\.",
            lambda m: f"stage{m[1]}_unit{int(m[2]) + 1}_{m[3]}_",
        ),
        (r"_shortcut_", "_sc_"),
        (r"_running_", "_moving_"),
    )
    return _renamed(names, rules)


LAYOUTS = (
    own,
    torchvision,
    openmmlab,
    gluoncv_attributes,
    gluon_features,
    gluon_symbol,
    mxnet_gallery,
)


def _symbol_kind(layer: str) -> str:
    if layer == "fc":
        return "dense"
    is_norm = re.search(r"(^norm|bn\d?)$", layer)
    return "batchnorm" if is_norm else "conv"


def _attributes(
    spec: ModelSpec,
    *,
    prefix: str = "",
    stem: Optional[Iterable[Rule]] = None,
    pool_in_stage1: bool = True,
) -> tuple[Rule, ...]:
    """Rules for nets whose layers are attributes: conv1, bn1, layer1 to 4, fc.

    With average-pool shortcuts the pooling takes position 0 of `downsample`; in
    stage 1, which has no pooling, most projects put an identity there.
    """
    if stem is None and spec.family in _DEEP_STEM_FAMILIES:
        stem = (
            (r"^stem\.conv(\d)", lambda m: f"{prefix}conv1.{3 * int(m[1]) - 3}"),
            (r"^stem\.bn([12])", lambda m: f"{prefix}conv1.{3 * int(m[1]) - 2}"),
            (r"^stem\.bn3", f"{prefix}bn1"),
        )
    elif stem is None:
        stem = ((r"^stem\.", prefix),)

    def downsample(match: re.Match) -> str:
        has_pool = spec.family in _POOL_FAMILIES
        pools = has_pool and (pool_in_stage1 or match[1] != "1")
        return f"{prefix}layer{match[1]}.0.downsample.{pools + (match[2] == 'bn')}."

    return (
        *stem,
        (r"^stage(\d)\.0\.shortcut\.(conv|bn)\.", downsample),
        (r"^stage(\d)\.(\d+)\.body\.", rf"{prefix}layer\1.\2."),
    )


def _renamed(names: Sequence[str], rules: Iterable[Rule]) -> dict[str, str]:
    keys = {}
    for name in names:
        key = name
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        keys[name] = key
    return keys
