# SPDX-License-Identifier: Apache-2.0
"""The table of published checkpoints: what is where, under which licence, how accurate.

The rows are data, `published.json`: families of files that share most of their values,
and evaluation protocols by name ("half": mean and deviation 0.5).
A tag is timm's own for its weights, `onnx_zoo`, `gluoncv` or `mxnet` for those zoos,
`authors` for the ResNeSt authors' files, and `openmmlab_` with the name of the page's
configuration, less architecture and `_in1k`, for OpenMMLab's. A second file of the same
tag, of another format or age, adds the first eight digits of its checksum.

Left out, because no network of this package takes their weights: the ONNX Model Zoo's
int8 and qdq files (quantized graphs) and its Caffe2 ones, GluonCV's group-normalised,
int8 and pruned nets, and timm's `resnet50.bamboo` (no classifier, no licence).
"""

import difflib
import fnmatch
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Optional

from gluon_resnet.errors import InputError
from gluon_resnet.models.catalog import CATALOG, model_spec
from gluon_resnet.preprocess import Protocol

DEFAULT_WEIGHTS = "resnest50d.in1k"
"""The ImageNet weights taken where none are asked for: 81 % top-1 from 110 MB and 5.4 G
multiply-adds, Apache-2.0, on the Hugging Face Hub, and trained in Gluon."""

_GONE = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/"
"""A host that no longer answers (dmlc/gluon-cv#1778); mirrors may have its files."""


@dataclass(frozen=True)
class Checkpoint:
    """One published file."""

    model: str
    """Its network, a name of `list_models`."""
    tag: str
    format: str
    """"params", "safetensors", "onnx" or "pth"."""
    layout: str
    """How its keys are named, a function of `weights.layouts`."""
    licence: str
    """SPDX identifier."""
    source: str
    """Where these values are published."""
    protocol: Protocol
    """How images are prepared where `top1` and `top5` were measured."""
    urls: tuple[str, ...] = ()
    """Places in order of preference; a .zip holds one .params file of the same stem."""
    hub: str = ""
    """Hugging Face repository whose `model.safetensors` it is."""
    size: Optional[int] = None
    """Bytes, where published."""
    sha256: str = ""
    """All hexadecimal digits or the leading ones, as published; also `sha1`. That of
    a zipped file is the unpacked file's. The hub tells that of its files by itself."""
    sha1: str = ""
    num_classes: int = 1000
    top1: Optional[float] = None
    """Percent of the validation images, as published; also `top5`."""
    top5: Optional[float] = None
    note: str = ""
    """Misprints and traps."""

    @property
    def name(self) -> str:
        """MODEL.TAG, which names the row."""
        return f"{self.model}.{self.tag}"


def list_weights(pattern: str = "*") -> list[str]:
    """Return the MODEL.TAG names that match a shell pattern, in the table's order.

    A pattern also matches by an alias of the model, and by the model alone.
    """
    return [
        row.name
        for row in _table().values()
        if any(
            fnmatch.fnmatchcase(name, pattern.lower())
            for model in (row.model, *CATALOG[row.model].aliases)
            for name in (model, f"{model}.{row.tag}")
        )
    ]


def checkpoint(name: str) -> Checkpoint:
    """Return the row of MODEL.TAG, or of MODEL its default; MODEL may be an alias.

    The default has, in order of weight: a licence for all uses, the model's own number
    of classes, a host that answers (the Hugging Face Hub before others), the highest
    published top-1.
    Raises InputError with the nearest names where there is no such row.
    """
    model, dot, tag = name.partition(".")
    model = model_spec(model).name
    rows = {row.tag: row for row in _table().values() if row.model == model}
    if not dot:
        return max(rows.values(), key=_preference)
    try:
        return rows[tag.lower()]
    except KeyError:
        nearest = difflib.get_close_matches(tag.lower(), rows, n=3, cutoff=0)
        raise InputError(
            f"unknown weights {name!r}; nearest: "
            f"{', '.join(f'{model}.{tag}' for tag in nearest)}; "
            f"`python -m gluon_resnet.weights {model}` lists all of this model"
        ) from None


def _preference(row: Checkpoint) -> tuple:
    on_hub = bool(row.hub) or any("//huggingface.co/" in url for url in row.urls)
    answers = on_hub or not all(url.startswith(_GONE) for url in row.urls)
    own_classes = row.num_classes == CATALOG[row.model].num_classes
    return "-NC" not in row.licence, own_classes, answers, on_hub, row.top1 or 0


@cache
def _table() -> dict[str, Checkpoint]:
    path = Path(__file__).with_name("published.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    protocols = {
        name: Protocol(**data["protocols"][name]) for name in data["protocols"]
    }
    rows = (row for family in data["families"] for row in _rows(family, protocols))
    return {row.name: row for row in rows}


def _rows(family: dict, protocols: dict[str, Protocol]) -> Iterator[Checkpoint]:
    """Expand a family: one checkpoint for each row and each of the row's files.

    A file's strings are templates that the row's cells fill.
    """
    names = {field.name for field in fields(Checkpoint)}
    for row in family["rows"]:
        cells = {**family["shared"], **dict(zip(family["columns"], row))}
        for file in family["files"]:
            values = {**cells, **{key: _filled(file[key], cells) for key in file}}
            values["urls"] = tuple(values.get("urls", ()))
            values["protocol"] = protocols[values["protocol"]]
            yield Checkpoint(**{k: v for k, v in values.items() if k in names})


def _filled(template, cells: dict):
    if isinstance(template, list):
        return [_filled(item, cells) for item in template]
    return template.format(**cells) if isinstance(template, str) else template
