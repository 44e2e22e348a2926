# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet.weights`: list, download and verify published checkpoints."""

import argparse
import dataclasses
import json
from typing import Optional

from tabulate import tabulate

from gluon_resnet import command
from gluon_resnet.errors import InputError
from gluon_resnet.weights.published import Checkpoint, checkpoint, list_weights


def main(arguments: argparse.Namespace) -> Optional[int]:
    """List, fetch or verify; return 1 if a layout does not load as published."""
    if arguments.fetch:
        return _fetch(arguments)
    if arguments.verify_layouts:
        return _verify_layouts(arguments)
    rows = [checkpoint(name) for name in list_weights(arguments.pattern)]
    if not rows:
        raise InputError(
            f"no published checkpoint matches {arguments.pattern!r}; "
            "give a model, as in resnet50, or a shell pattern, as in '*.onnx_zoo*'"
        )
    if arguments.json:
        for row in rows:
            print(json.dumps({"name": row.name, **dataclasses.asdict(row)}))
        return None
    table = [_cells(row) for row in rows]
    print(tabulate(table, headers="keys", intfmt=",", floatfmt=".2f"))
    print("\n* what the model's name alone stands for")
    return None


def _cells(row: Checkpoint) -> dict:
    default = checkpoint(row.model) is row
    return {
        "name": f"{row.name}{' *' if default else ''}",
        "format": row.format,
        "bytes": row.size,
        "licence": row.licence,
        "classes": row.num_classes,
        "pixels": row.protocol.size,
        "top-1 %": row.top1,
        "top-5 %": row.top5,
        "note": row.note,
    }


def _fetch(arguments: argparse.Namespace) -> None:
    from gluon_resnet.weights.download import fetch

    for row in [checkpoint(name) for name in arguments.fetch]:
        path = fetch(row, accept_licence=arguments.accept_licence)
        if arguments.json:
            print(json.dumps({"name": row.name, "path": str(path)}), flush=True)
        else:
            print(path, flush=True)


def _verify_layouts(arguments: argparse.Namespace) -> int:
    from gluon_resnet.weights.verify import verify_layouts

    failed = 0
    for proof in verify_layouts(arguments.pattern):
        failed += not proof.passed
        line = json.dumps(dataclasses.asdict(proof)) if arguments.json else str(proof)
        print(line, flush=True)
    return command.FAILED if failed else 0


if __name__ == "__main__":
    parser = command.Parser(prog="python -m gluon_resnet.weights", description=__doc__)
    parser.add_argument(
        "pattern", nargs="?", default="*", help="model or shell pattern of MODEL.TAG"
    )
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
    parser.add_argument(
        "--accept-licence",
        action="store_true",
        help="with --fetch: accept licences that forbid commercial use",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    command.run(main, parser)
