# SPDX-License-Identifier: Apache-2.0
"""The tables of inference.py, as Markdown, from its results.json.

python benchmarks/inference_report.py FOLDER/results.json
"""

import json
import operator
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Optional

# One side on one model at one batch size, as it stands in results.json.
Cell = dict[str, Any]

OURS = "this project"


def print_report(results: dict) -> None:
    """Print all tables that the results have cells for."""
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    tables: dict[str, Callable[[list[Cell]], None]] = {
        "table": print_speeds,
        "starts": print_starts,
        "growth": print_growth,
    }
    for part, print_table in tables.items():
        cells = by(results["cells"], part=part)
        for precision in dict.fromkeys(cell["precision"] for cell in cells):
            print_table(by(cells, precision=precision))


def print_speeds(cells: list[Cell]) -> None:
    """Milliseconds an image, and the errors of the answers."""
    precision, columns = cells[0]["precision"], unique(cells, "side")
    print(f"\n{precision}: ms an image, median (range) of the rounds\n")
    print_row("model", "batch", *columns, "speed / fastest other's")
    print_row(*["---"] * (len(columns) + 3))
    middles = []
    for model in unique(cells, "model"):
        for batch in unique(by(cells, model=model), "batch"):
            row = {c["side"]: c for c in by(cells, model=model, batch=batch)}
            middle, text = against_others(row)
            middles += [] if middle is None else [middle]
            print_row(model, batch, *(timing(row[c]) for c in columns), text)
    ahead = sum(middle >= 1 for middle in middles)
    print(f"\nAt least as fast as the fastest other in {ahead} of {len(middles)}.")

    print("\nlargest error, and least share of predictions equal to plain fp32's\n")
    print_row("side", "error", "predictions")
    print_row("---", "---", "---")
    for side in columns:
        compared = [cell for cell in by(cells, side=side) if "error" in cell]
        if compared:
            error = max(cell["error"] for cell in compared)
            agreement = min(cell["agreement"] for cell in compared)
            print_row(side, f"{error:.1e}", f"{agreement:.0%}")


def against_others(row: dict[str, Cell]) -> tuple[Optional[float], str]:
    """The median and text of our speed over that of the fastest other, by rounds.

    0 where this side failed, None without others.
    """
    others = [c for side, c in row.items() if side != OURS and "failed" not in c]
    if not others:
        return None, ""
    best = min(others, key=lambda cell: statistics.median(cell["ms"]))
    if "failed" in row[OURS]:
        return 0.0, f"**behind** {best['side']}"
    ratios = list(map(operator.truediv, best["ms"], row[OURS]["ms"]))
    middle = statistics.median(ratios)
    text = f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) {best['side']}"
    return middle, text if middle >= 1 else f"**behind** {text}"


def print_starts(cells: list[Cell]) -> None:
    """Seconds to the first answer and memory of fresh processes."""
    precision, model = cells[0]["precision"], cells[0]["model"]
    print(f"\n{precision}, {model}: medians of fresh processes\n")
    print_row(
        "side",
        "s from start to answer",
        "s to load again for batch 16 and answer",
        "peak MB, batch 1",
        "batch 16",
    )
    print_row(*["---"] * 5)
    for side in unique(cells, "side"):
        fresh = by(cells, side=side)
        failed = [cell["failed"] for cell in fresh if "failed" in cell]
        if failed:
            print_row(side, f"failed: {failed[0]}", "", "", "")
            continue
        values = (
            statistics.median(cell[field] for cell in fresh)
            for field in ("start_s", "again_s", "peak_mb", "larger_peak_mb")
        )
        print_row(side, *("{:.2f} {:.2f} {:.0f} {:.0f}".format(*values).split()))


def print_growth(cells: list[Cell]) -> None:
    """Milliseconds an image by batch and threads."""
    precision, model = cells[0]["precision"], cells[0]["model"]
    columns = [
        (side, threads)
        for threads in unique(cells, "threads")
        for side in unique(cells, "side")
    ]
    print(f"\n{precision}, {model}: ms an image by batch and threads\n")
    names = (f"{side}, threads: {threads}" for side, threads in columns)
    print_row("batch", *names)
    print_row(*["---"] * (len(columns) + 1))
    for batch in unique(cells, "batch"):
        row = {(c["side"], c["threads"]): c for c in by(cells, batch=batch)}
        print_row(batch, *(timing(row[c]) if c in row else "" for c in columns))


def by(cells: Iterable[Cell], **fields: object) -> list[Cell]:
    """The cells that have these values."""
    return [cell for cell in cells if fields.items() <= cell.items()]


def unique(cells: Iterable[Cell], field: str) -> list:
    """The different values of a field, in their order."""
    return list(dict.fromkeys(cell[field] for cell in cells))


def timing(cell: Cell) -> str:
    """Median and range of a cell, or why there is none."""
    if "failed" in cell:
        return f"failed: {cell['failed']}"
    numbers = statistics.median(cell["ms"]), min(cell["ms"]), max(cell["ms"])
    return "{:.3g} ({:.3g}-{:.3g})".format(*numbers)


def print_row(*values: object) -> None:
    """As Markdown."""
    print("|", " | ".join(map(str, values)), "|")


if __name__ == "__main__":
    print_report(json.loads(Path(sys.argv[1]).read_text()))
