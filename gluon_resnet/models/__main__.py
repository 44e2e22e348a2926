# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.models`: all models and the spec pages' cells, counted."""

import argparse
import json

from tabulate import tabulate

from gluon_resnet import command
from gluon_resnet.models.catalog import CATALOG, list_models
from gluon_resnet.models.complexity import complexity
from gluon_resnet.models.spec_pages import SPEC_PAGES, PageRow


def main(arguments: argparse.Namespace) -> None:
    """Print every model, then every row of the spec pages beside our own count."""
    models = [_model_row(name) for name in list_models(arguments.pattern)]
    names = {row["model"] for row in models}
    pages = [_page_row(row) for row in SPEC_PAGES if row.model in names]
    if arguments.json:
        for row in models + pages:
            print(json.dumps(row))
        return
    for rows in (models, pages):
        shown = [{key: _shown(value) for key, value in row.items()} for row in rows]
        print(tabulate(shown, headers="keys", disable_numparse=True), end="\n\n")


def _shown(value) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


def _model_row(name: str) -> dict:
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
    parser = command.Parser(prog="python -m gluon_resnet.models", description=__doc__)
    parser.add_argument(
        "pattern", nargs="?", default="*", help="shell pattern of names"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    command.run(main, parser)
