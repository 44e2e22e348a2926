# SPDX-License-Identifier: Apache-2.0
"""The names that other projects have for networks and for their weights.

`ALIASES` is the one table of them: each stands for MODEL, a row of the catalog, or for
MODEL.TAG, one published checkpoint. A name that a project prints beside an accuracy or
gives to a file means these weights; the name of an architecture means the network, and
its default weights where weights are asked for.

The sources: timm 1.0 (`timm/models/resnet.py`, its configurations and deprecations),
the configurations and the page of mmclassification 1.x, the files of the ONNX Model
Zoo, GluonCV's and the ResNeSt authors' model names.
"""

import fnmatch
from collections.abc import Iterator

from gluon_resnet.errors import InputError

_ALL, _DEEP = (18, 34, 50, 101, 152), (50, 101, 152)

# {} is the depth.
_BY_DEPTH = (
    # timm and torchvision.
    (_ALL, "resnet{}", "resnet{}_v1b"),
    (_ALL, "tv_resnet{}", "resnet{}_v1b.tv_in1k"),
    ((18, 50), "ssl_resnet{}", "resnet{}_v1b.fb_ssl_yfcc100m_ft_in1k"),
    ((18, 50), "swsl_resnet{}", "resnet{}_v1b.fb_swsl_ig1b_ft_in1k"),
    (_ALL, "gluon_resnet{}_v1b", "resnet{}_v1b.gluon_in1k"),
    (_DEEP, "resnet{}c", "resnet{}_v1c"),
    (_DEEP, "gluon_resnet{}_v1c", "resnet{}_v1c.gluon_in1k"),
    (_ALL, "resnet{}d", "resnet{}_v1d"),
    (_DEEP, "gluon_resnet{}_v1d", "resnet{}_v1d.gluon_in1k"),
    (_DEEP, "resnet{}s", "resnet{}_v1s"),
    (_DEEP, "gluon_resnet{}_v1s", "resnet{}_v1s.gluon_in1k"),
    # The ONNX Model Zoo's files: since 2020, and before.
    (_ALL, "resnet{}-v1-7", "resnet{}_v1.onnx_zoo"),
    (_ALL, "resnet{}-v2-7", "resnet{}_v2.onnx_zoo"),
    (_ALL, "resnet{}v1", "resnet{}_v1.onnx_zoo"),
    (_ALL, "resnet{}v2", "resnet{}_v2.onnx_zoo"),
    # OpenMMLab's page and configurations.
    (_ALL, "resnet-{}", "resnet{}_v1b.openmmlab_8xb32"),
    (_ALL, "resnet{}_8xb32_in1k", "resnet{}_v1b.openmmlab_8xb32"),
    (_DEEP, "resnetv1c-{}", "resnet{}_v1c.openmmlab_8xb32"),
    (_DEEP, "resnetv1c{}", "resnet{}_v1c.openmmlab_8xb32"),
    (_DEEP, "resnetv1c{}_8xb32_in1k", "resnet{}_v1c.openmmlab_8xb32"),
    (_DEEP, "resnetv1d-{}", "resnet{}_v1d.openmmlab_8xb32"),
    (_DEEP, "resnetv1d{}", "resnet{}_v1d.openmmlab_8xb32"),
    (_DEEP, "resnetv1d{}_8xb32_in1k", "resnet{}_v1d.openmmlab_8xb32"),
    ((50, 101), "wide-resnet-{}", "wide_resnet{}_2.openmmlab_8xb32"),
    ((50, 101), "wide-resnet{}", "wide_resnet{}_2.openmmlab_8xb32"),
    ((50, 101), "wide-resnet{}_8xb32_in1k", "wide_resnet{}_2.openmmlab_8xb32"),
    ((50, 101), "wide-resnet{}_3rdparty_8xb32_in1k", "wide_resnet{}_2.openmmlab_8xb32"),
    (_ALL, "resnet{}_8xb16_cifar10", "cifar_resnet{}.openmmlab_8xb16_cifar10"),
)
_SINGLE = {
    "resnet50-v1-12": "resnet50_v1.onnx_zoo_opset12",
    "resnet-50 (fp16)": "resnet50_v1b.openmmlab_8xb32-fp16",
    "resnet50_8xb32-fp16_in1k": "resnet50_v1b.openmmlab_8xb32-fp16",
    "resnet-50 (rsb-a1)": "resnet50_v1b.openmmlab_8xb256-rsb-a1-600e",
    "resnet50_8xb256-rsb-a1-600e_in1k": "resnet50_v1b.openmmlab_8xb256-rsb-a1-600e",
    "resnet-50 (rsb-a2)": "resnet50_v1b.openmmlab_8xb256-rsb-a2-300e",
    "resnet50_8xb256-rsb-a2-300e_in1k": "resnet50_v1b.openmmlab_8xb256-rsb-a2-300e",
    "resnet-50 (rsb-a3)": "resnet50_v1b.openmmlab_8xb256-rsb-a3-100e",
    "resnet50_8xb256-rsb-a3-100e_in1k": "resnet50_v1b.openmmlab_8xb256-rsb-a3-100e",
    "resnet50_8xb16_cifar100": "cifar_resnet50.openmmlab_8xb16_cifar100",
    "resnet50_8xb8_cub": "resnet50_v1b.openmmlab_8xb8_cub",
    "resnet-50-mill": "resnet50_v1b.openmmlab_3rdparty-mill_in21k",
    "resnet50_3rdparty-mill_in21k": "resnet50_v1b.openmmlab_3rdparty-mill_in21k",
    # GluonCV and the ResNeSt authors.
    "resnest14": "resnest14d",
    "gluon_resnest14": "resnest14d.gluon_in1k",
    "resnest26": "resnest26d",
    "gluon_resnest26": "resnest26d.gluon_in1k",
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
}
_FAST_RESNESTS = "1s4x24d 4s2x40d 1s1x64d 2s1x64d 4s1x64d 1s2x40d 2s2x40d".split()

_QUANTIZED = (
    "a quantized graph, which no network of this package takes; "
    "`python -m gluon_resnet.quantize` makes int8 of resnet50-v1-12"
)
_UNPUBLISHED = "OpenMMLab published no weights of this configuration; its network is {}"
# What is known and cannot be loaded, by shell pattern.
_REFUSED = {
    "resnet50-v1-12-int8": _QUANTIZED,
    "resnet50-v1-12-qdq": _QUANTIZED,
    "resnet50-caffe2-v1-*": "Caffe2's network, which is none of this package",
    "resnet*_v1*_int8": (
        "GluonCV's quantized graph, which no network of this package takes; "
        "`python -m gluon_resnet.quantize` makes int8 of the name without _int8"
    ),
    "resnet50_v1b_gn": (
        "group-normalised, which no network of this package is; take resnet50_v1b"
    ),
    "resnet*_v1[bd]_0.*": (
        "a pruned network, which is none of this package; take it without the number"
    ),
    "resnet50.bamboo": "it has no classifier and no licence",
    "resnet50_8xb16-mixup_cifar10": _UNPUBLISHED.format("cifar_resnet50"),
    **dict.fromkeys(
        [
            "resnet50_32xb64-warmup*_in1k",
            "resnet50_8xb128_coslr-90e_in21k",
            "resnet50_8xb32-coslr*_in1k",
            "resnet50_8xb32-cutmix_in1k",
            "resnet50_8xb32-fp16-dynamic_in1k",
            "resnet50_8xb32-lbs_in1k",
            "resnet50_8xb32-mixup_in1k",
        ],
        _UNPUBLISHED.format("resnet50_v1b"),
    ),
}


def _aliases() -> Iterator[tuple[str, str]]:
    for depths, alias, target in _BY_DEPTH:
        for depth in depths:
            yield alias.format(depth), target.format(depth)
    yield from _SINGLE.items()
    for variant in _FAST_RESNESTS:
        yield f"resnest50_fast_{variant}", f"resnest50d_{variant}"


ALIASES = dict(_aliases())
"""Alias, in lower case, to MODEL or MODEL.TAG."""


def resolve(name: str) -> tuple[str, str]:
    """Return the model and the tag that a name stands for; no tag is "".

    name: MODEL or MODEL.TAG, MODEL also by an alias; in any case; also as the path of
    one of OpenMMLab's configurations or of the Model Zoo's files, or as the hub's name
    `timm/MODEL.TAG`. A tag in the name goes before the alias's. Whether there are such
    a model and such weights is not looked at.
    Raises InputError for what is known and cannot be loaded, with the reason.
    """
    bare = _bare(name)
    for pattern, reason in _REFUSED.items():
        if fnmatch.fnmatchcase(bare, pattern):
            raise InputError(f"{name} cannot be loaded: {reason}")
    alias, _, given_tag = bare.partition(".")
    model, _, tag = ALIASES.get(alias, alias).partition(".")
    return model, given_tag or tag


def aliases_of(model: str) -> list[str]:
    """Return the aliases of a model and of its weights, in the table's order."""
    return [
        alias for alias, target in ALIASES.items() if target.partition(".")[0] == model
    ]


def _bare(name: str) -> str:
    """Lower case, without a file's folders and suffix or the owner on the hub."""
    bare = name.lower()
    if bare.endswith((".py", ".onnx")):
        return bare.rpartition("/")[2].rpartition(".")[0]
    for prefix in ("hf-hub:", "hf_hub:", "timm/", "onnxmodelzoo/"):
        bare = bare[len(prefix) :] if bare.startswith(prefix) else bare
    return bare
