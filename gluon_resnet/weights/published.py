# SPDX-License-Identifier: Apache-2.0
"""The table of published checkpoints: what is where, under which licence, how accurate.

The rows are data, `published.json`: families of files that share most of their values,
and evaluation protocols by name ("half": mean and deviation 0.5).
A tag is timm's own for its weights, `onnx_zoo`, `gluoncv` or `mxnet` for those zoos,
`authors` for the ResNeSt authors' files, and `openmmlab_` with the name of the page's
configuration, less architecture and `_in1k`, for OpenMMLab's. A second file of the same
tag, of another format or age, adds the first eight digits of its checksum.
The checkpoint that comes with this package is a row, too.

Left out is what no network of this package takes; `models.names` says why to whom asks
for it by name.
"""

import difflib
import fnmatch
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Optional

from gluon_resnet.errors import InputError
from gluon_resnet.models.catalog import CATALOG, model_spec
from gluon_resnet.models.names import resolve
from gluon_resnet.preprocess import Protocol
from gluon_resnet.weights.card import Card, FileDigest, class_names_of, digest_of

log = logging.getLogger(__name__)

DEFAULT_WEIGHTS = "resnest50d.in1k"
"""The ImageNet weights taken where none are asked for: 81 % top-1 from 110 MB and 5.4 G
multiply-adds, Apache-2.0, on the Hugging Face Hub, and trained in Gluon."""

# timm's own choice (the first of its configurations) where the rule of `checkpoint`
# would choose another training, so that timm's names mean what they mean there.
_TIMMS_CHOICE = ("resnet50_v1d.ra2_in1k", "wide_resnet101_2.tv_in1k")

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
    bundled: str = ""
    """Name in `bundled.FOLDER` of a file that comes with this package."""
    size: Optional[int] = None
    """Bytes, where published."""
    sha256: str = ""
    """All hexadecimal digits or the leading ones, as published; also `sha1`. That of
    a zipped file is the unpacked file's. The hub tells that of its files by itself."""
    sha1: str = ""
    num_classes: int = 1000
    data_set: str = "imagenet"
    """Whose classes it knows, a name that `load_class_names` takes."""
    top1: Optional[float] = None
    """Percent of the validation images, as published; also `top5`."""
    top5: Optional[float] = None
    note: str = ""
    """Misprints and traps."""
    log: str = ""
    """URL of the log of its training."""
    code: str = ""
    """URL of its network's code, as the page links it."""
    training_data: str = ""
    """As the page says; also `training_resources`."""
    training_resources: str = ""
    opset: Optional[int] = None
    """Of an .onnx file, as its page says; also `onnx_version`."""
    onnx_version: str = ""
    sample_data: str = ""
    """URL of an archive of the file with inputs and the outputs to them."""

    def __repr__(self) -> str:
        top1 = "" if self.top1 is None else f"{self.top1:.2f} % top-1, "
        return (
            f"<Checkpoint {self.name}: {top1}{self.num_classes} classes, "
            f"{self.protocol.size} pixels, {self.format}, {self.licence}>"
        )

    @property
    def name(self) -> str:
        """MODEL.TAG, which names the row."""
        return f"{self.model}.{self.tag}"

    @property
    def files(self) -> list[str]:
        """The names of its file: in the cache, here, and where it is published."""
        published = (url.rpartition("/")[2] for url in self.urls)
        return [f"{self.name}.{self.format}", *filter(None, (self.bundled, *published))]

    @property
    def card(self) -> Card:
        """How the weights are used, as a card tells it."""
        metrics = {"top1": self.top1, "top5": self.top5}
        return Card(
            self.model,
            self.protocol,
            classes=class_names_of(self.data_set, self.num_classes),
            data_set=self.data_set,
            weights=FileDigest(self.files[-1], self.sha256) if self.sha256 else None,
            metrics={name: value for name, value in metrics.items() if value},
            licence=self.licence,
        )

    @property
    def checksum(self) -> str:
        """What its download is checked against, in words."""
        for kind, digits in (("SHA-256", self.sha256), ("SHA-1", self.sha1)):
            if digits:
                whole = len(digits) in (40, 64)
                return f"{kind} {digits}" if whole else f"{kind} {digits}..."
        if self.hub:
            return "SHA-256, told by the Hugging Face Hub with the download"
        return "none published: the download is not checked"


def list_weights(pattern: str = "*") -> list[str]:
    """Return the MODEL.TAG names that match a shell pattern, in the table's order.

    A model, or an alias of one, matches all its weights; an alias of one checkpoint, a
    URL or a file name matches that one.
    Raises InputError for weights that are known and cannot be loaded.
    """
    if (row := published_file(pattern)) is not None:
        return [row.name]
    model, tag = resolve(pattern)
    names = (f"{model}.{tag}",) if tag else (model, f"{model}.*")
    return [
        row.name
        for row in _table().values()
        if any(fnmatch.fnmatchcase(row.name, name) for name in names)
    ]


def checkpoint(name: str) -> Checkpoint:
    """Return the row that a name stands for.

    name: MODEL.TAG, or MODEL for its default; MODEL may be an alias, and an alias of
    one checkpoint stands for that one (`models.names`). Also the URL or the file name
    of a row.
    The default is timm's own where timm has the network, else it has, in order of
    weight: a licence for all uses, the data set that the network is made for, a host
    that answers (the Hugging Face Hub before others), the highest published top-1.
    Raises InputError with the nearest names where there is no such row, and with the
    reason for weights that are known and cannot be loaded.
    """
    if (row := published_file(name)) is not None:
        return row
    _, tag = resolve(name)
    model = model_spec(name).name
    rows = {row.tag: row for row in _table().values() if row.model == model}
    if not tag:
        return max(rows.values(), key=_preference)
    try:
        return rows[tag]
    except KeyError:
        nearest = difflib.get_close_matches(tag, rows, n=3, cutoff=0)
        raise InputError(
            f"unknown weights {name!r}; nearest: "
            f"{', '.join(f'{model}.{tag}' for tag in nearest)}; "
            f"`python -m gluon_resnet.weights {model}` lists all of this model"
        ) from None


def published_file(name: str) -> Optional[Checkpoint]:
    """Return the row that a URL of its file, or the file's name, stands for, or None.

    Where two ages of a file have the same name, the name is the newest's.
    """
    files, name = _files(), name.partition("?")[0]
    return files.get(name) or files.get(name.rpartition("/")[2])


def row_of_url(weights: object, name: Optional[str] = None) -> Optional[Checkpoint]:
    """Return the row whose URL `weights` is; None where it is no URL but a path.

    name: the network that it must be of. Raises InputError where it is not, and for a
    URL that is not in the table.
    """
    # A Path makes one slash of two.
    if not (match := re.match(r"(https?):/+(.+)", str(weights))):
        return None
    url = f"{match[1]}://{match[2]}"
    if (row := published_file(url)) is None:
        raise InputError(
            f"{url} is in no table of weights: download it and give the file's path"
        )
    if name is not None and row.model != model_spec(name).name:
        raise InputError(
            f"{url} is {row.name}, not weights of {name}: give a name and a file of "
            "the same network"
        )
    log.info("%s is %s: its pixels and its classes are taken", url, row.name)
    return row


def names_weights(name: str) -> bool:
    """Return whether a name has a tag or is a file's: certain weights are meant.

    Other names, also such of configurations and on pages, are a network's, too.
    """
    has_tag = "." in name and not name.endswith((".py", ".onnx"))
    return has_tag or published_file(name) is not None


def row_of_file(path: Path) -> Optional[tuple[Checkpoint, str]]:
    """Return the row whose file this is, and what tells it; None if none does.

    It is told by the file's name, by its folder in the hub's cache, by the digits of
    the checksum at the end of its name, or by its checksum.
    """
    if (row := published_file(path.name)) is not None:
        return row, "its name"
    # The hub's library keeps its files in such a folder, all under the same name.
    if match := re.search(r"/models--([^/]+)--([^/]+)/snapshots/", path.as_posix()):
        hub = f"{match[1]}/{match[2]}"
        if row := next((r for r in _table().values() if r.hub == hub), None):
            return row, "its folder"
    by_digits = _by_digits()
    digits = re.search(r"-([0-9a-f]{8})$", path.stem)
    if digits and digits[1] in by_digits:
        return by_digits[digits[1]], "the checksum in its name"
    for algorithm in ("sha256", "sha1"):
        digest = digest_of(path, algorithm)
        row = by_digits.get(digest[:8])
        if row and (published := getattr(row, algorithm)):
            if digest.startswith(published):
                return row, f"its {algorithm}"
    return None


def _preference(row: Checkpoint) -> tuple:
    on_hub = bool(row.hub) or any("//huggingface.co/" in url for url in row.urls)
    answers = on_hub or not all(url.startswith(_GONE) for url in row.urls)
    made_for = {1000: "imagenet", 10: "cifar10"}[CATALOG[row.model].num_classes]
    return (
        row.name in _TIMMS_CHOICE,
        "-NC" not in row.licence,
        row.data_set == made_for,
        answers,
        on_hub,
        row.top1 or 0,
    )


@cache
def _table() -> dict[str, Checkpoint]:
    path = Path(__file__).with_name("published.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    protocols = {
        name: Protocol(**data["protocols"][name]) for name in data["protocols"]
    }
    rows = (row for family in data["families"] for row in _rows(family, protocols))
    return {row.name: row for row in rows}


@cache
def _files() -> dict[str, Checkpoint]:
    """Rows by each URL, by the file's name in it, and by a .zip's file."""
    files: dict[str, Checkpoint] = {}
    for row in _table().values():
        for name in (*row.urls, *row.files):
            files.setdefault(name, row)
            files.setdefault(name.replace(".zip", ".params"), row)
        if row.hub:  # All its files have the same name.
            files[
                f"https://huggingface.co/{row.hub}/resolve/main/model.safetensors"
            ] = row
    return files


@cache
def _by_digits() -> dict[str, Checkpoint]:
    """Rows by the first eight digits of their checksums."""
    return {
        digest[:8]: row
        for row in _table().values()
        for digest in (row.sha1, row.sha256)
        if digest
    }


def _rows(family: dict, protocols: dict[str, Protocol]) -> Iterator[Checkpoint]:
    """Expand a family: one checkpoint for each row and each of the row's files.

    The strings are templates that the row's cells fill.
    """
    names = {field.name for field in fields(Checkpoint)}
    for row in family["rows"]:
        cells = {**family["shared"], **dict(zip(family["columns"], row))}
        for file in family["files"]:
            values = {k: _filled(v, cells) for k, v in {**cells, **file}.items()}
            values["urls"] = tuple(values.get("urls", ()))
            values["protocol"] = protocols[values["protocol"]]
            yield Checkpoint(**{k: v for k, v in values.items() if k in names})


def _filled(template, cells: dict):
    if isinstance(template, list):
        return [_filled(item, cells) for item in template]
    return template.format(**cells) if isinstance(template, str) else template
