# SPDX-License-Identifier: Apache-2.0
"""`gluon-resnet weights`: list, download and verify published checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gluon_resnet import command
from gluon_resnet.errors import InputError

if TYPE_CHECKING:
    from gluon_resnet.weights.published import Checkpoint


def parser() -> command.Parser:
    """Return the parser of `weights`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.weights",
        description="List, download and verify published checkpoints.",
    )
    add = parser.add_argument
    add("pattern", nargs="?", default="*", help="model or shell pattern of MODEL.TAG")
    add("--wide", action="store_true", help="format, size, classes, pixels and notes")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--fetch",
        nargs="+",
        metavar="NAME",
        help="download MODEL.TAG, or MODEL for its default, and print where it is",
    )
    action.add_argument(
        "--verify-layouts",
        action="store_true",
        help="offline: load a file laid out as each row's and compare the logits",
    )
    add(
        "--accept-licence",
        action="store_true",
        help="with --fetch: accept licences that forbid commercial use",
    )
    add("--json", action="store_true", help="one JSON object a line, with everything")
    return parser


def main(arguments: argparse.Namespace) -> int | None:
    """List, fetch or verify; return 1 if a layout does not load as published."""
    if arguments.verify_layouts:
        return _verify_layouts(arguments)
    if arguments.fetch:
        _fetch(arguments)
        return None
    rows = _rows(arguments.pattern)
    if arguments.json:
        for row in rows:
            print(json.dumps({"name": row.name, **dataclasses.asdict(row)}))
    elif len(rows) == 1:
        _print_whole(rows[0])
    else:
        _print_table(rows, is_wide=arguments.wide)
    return None


def _rows(pattern: str) -> list[Checkpoint]:
    """Return the rows that match; InputError with the nearest names if none does."""
    from gluon_resnet.models.catalog import CATALOG
    from gluon_resnet.nearest import nearest
    from gluon_resnet.weights.published import checkpoint, list_weights

    rows = [checkpoint(name) for name in list_weights(pattern)]
    if not rows:
        raise InputError(
            f"no published checkpoint matches {pattern!r}; "
            f"{nearest(pattern, [*CATALOG, *list_weights()])}; give a model, as in "
            "resnet50, or a shell pattern, as in '*.onnx_zoo*'"
        )
    return rows


def _print_table(rows: Sequence[Checkpoint], *, is_wide: bool) -> None:
    from tabulate import tabulate

    table = [_cells(row, is_wide=is_wide) for row in rows]
    print(tabulate(table, headers="keys", intfmt=",", floatfmt=".2f"))
    print("\ntop-1, top-5: percent, as published")
    print("* what the model's name alone stands for")
    if not all(map(_has_checksum, rows)):
        print("! no checksum is published: nothing tells a damaged download")
    if not is_wide:
        print("--wide or --json shows more columns, a whole NAME all of its row")


def _cells(row: Checkpoint, *, is_wide: bool) -> dict:
    from gluon_resnet.weights.published import checkpoint

    marks = "*" * (checkpoint(row.model) is row) + "!" * (not _has_checksum(row))
    names = {"name": f"{row.name} {marks}".rstrip(), "licence": row.licence}
    accuracy = {"top-1": row.top1, "top-5": row.top5}
    if not is_wide:
        return names | accuracy
    return {
        **names,
        "format": row.format,
        "bytes": row.size,
        "classes": row.num_classes,
        "pixels": row.protocol.size,
        **accuracy,
        "note": row.note,
    }


def _has_checksum(row: Checkpoint) -> bool:
    return bool(row.sha256 or row.sha1 or row.hub)


def _print_whole(row: Checkpoint) -> None:
    """Print all that is known of a checkpoint, a line for each thing."""
    from tabulate import tabulate

    from gluon_resnet.weights.published import checkpoint

    facts = dataclasses.asdict(row)
    for shown_otherwise in ("tag", "sha256", "sha1"):
        del facts[shown_otherwise]
    protocol = facts.pop("protocol")
    facts["checksum"] = row.checksum
    facts["pixels"] = [f"{name} {value}" for name, value in protocol.items()]
    name = row.name
    if checkpoint(row.model) is row:
        name += f", which {row.model} alone stands for"
    lines = [("name", name)]
    for fact, value in facts.items():
        if value not in (None, "", ()):
            values = value if isinstance(value, (tuple, list)) else [value]
            wrapped = [line for one in values for line in _wrapped(str(one))]
            lines += zip([fact.replace("_", " "), *[""] * len(wrapped)], wrapped)
    print(tabulate(lines, tablefmt="plain", disable_numparse=True))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 60, break_long_words=False, break_on_hyphens=False)


def _fetch(arguments: argparse.Namespace) -> None:
    from gluon_resnet.weights.download import fetch
    from gluon_resnet.weights.published import checkpoint

    for row in [checkpoint(name) for name in arguments.fetch]:
        path = fetch(row, accept_licence=arguments.accept_licence)
        if arguments.json:
            print(json.dumps({"name": row.name, "path": str(path)}), flush=True)
        else:
            print(path, flush=True)


def _verify_layouts(arguments: argparse.Namespace) -> int:
    from gluon_resnet.progress import progress, say

    path = Path(__file__).parents[2] / "tests" / "verify_layouts.py"
    if not path.is_file():
        raise InputError(
            f"there is no {path}: layouts are verified in a clone of the repository"
        )
    verify_layouts = runpy.run_path(str(path))["verify_layouts"]
    failed = 0
    total = len(_rows(arguments.pattern))
    with progress("layouts", total=total, unit="layouts") as bar:
        for proof in verify_layouts(arguments.pattern):
            failed += not proof.passed
            as_json = arguments.json
            say(json.dumps(dataclasses.asdict(proof)) if as_json else str(proof))
            bar.update()
    return command.FAILED if failed else 0


if __name__ == "__main__":
    command.run(main, parser())
