# SPDX-License-Identifier: Apache-2.0
"""`gluon-resnet models`: all models and the spec pages' cells, counted."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from gluon_resnet import command

if TYPE_CHECKING:
    from gluon_resnet.models.spec_pages import PageRow


def parser() -> command.Parser:
    """Return the parser of `models`."""
    parser = command.Parser(
        prog="python -m gluon_resnet.models",
        description="List models with their parameters and multiply-adds.",
    )
    add = parser.add_argument
    add("pattern", nargs="?", default="*", help="part of a name, or a shell pattern")
    add(
        "--wide",
        action="store_true",
        help="all digits and names, and the spec pages' cells beside our own count",
    )
    add("--json", action="store_true", help="one JSON object a line, with all of that")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Print every model; with more room, every row of the spec pages, too."""
    from tabulate import tabulate

    from gluon_resnet.models.catalog import list_models
    from gluon_resnet.models.spec_pages import SPEC_PAGES
    from gluon_resnet.progress import progress

    names = list_models(arguments.pattern)
    pages = [row for row in SPEC_PAGES if row.model in names]
    if not (arguments.wide or arguments.json):
        rows = [_short_row(name) for name in progress("models", names, unit="models")]
        print(tabulate(rows, headers="keys", disable_numparse=True, colalign=_RIGHT))
        print("\n--wide: all digits, other names, and what the spec pages print")
        return
    with progress("models", total=len(names) + len(pages), unit="models") as bar:
        tables: list[list[dict]] = [[], []]
        for name in names:
            tables[0].append(_model_row(name))
            bar.update()
        for page in pages:
            tables[1].append(_page_row(page))
            bar.update()
    if arguments.json:
        for row in tables[0] + tables[1]:
            print(json.dumps(row))
        return
    for table in filter(None, tables):
        shown = [{key: _shown(value) for key, value in row.items()} for row in table]
        print(tabulate(shown, headers="keys", disable_numparse=True), end="\n\n")


_RIGHT = ("left", "left", "right", "right", "right", "right")


def _short_row(name: str) -> dict:
    row = _model_row(name)
    return {
        **{key: str(row[key]) for key in ("model", "family", "size", "classes")},
        "parameters": f"{row['params'] / 1e6:.2f} M",
        "multiply-adds": f"{row['macs'] / 1e9:.2f} G",
    }


def _shown(value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


def _model_row(name: str) -> dict:
    from gluon_resnet.models.catalog import CATALOG
    from gluon_resnet.models.complexity import complexity

    spec, counted = CATALOG[name], complexity(name)
    return {
        "model": name,
        "family": spec.family,
        "size": spec.size,
        "classes": spec.num_classes,
        "params": counted.params,
        "macs": counted.flops,
        "aliases": ", ".join(spec.aliases),
    }


def _page_row(row: PageRow) -> dict:
    counted = row.counted()
    return {
        "page": row.page,
        "row": row.name,
        "model": row.model,
        "size": row.size,
        "classes": row.num_classes,
        "params": counted.params,
        "flops": counted.flops,
        "page_params": row.params,
        "page_flops": row.flops,
        "same": row.agrees(counted),
        "misprint": row.misprint,
    }


if __name__ == "__main__":
    command.run(main, parser())
