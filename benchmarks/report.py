# SPDX-License-Identifier: Apache-2.0
"""The tables of what the benchmarks measured, as Markdown, from their JSON.

Results are {"machine": {...}, "cells": [...]}; a cell is one side in one case, with a
value for each round.
"""

import operator
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

Cell = dict[str, Any]

OURS = "this project"


def inference(results: dict) -> str:
    """All tables of inference.py that the results have cells for."""
    tables: dict[str, Callable[[list[Cell]], Iterator[str]]] = {
        "table": speeds,
        "starts": starts,
        "growth": growth,
    }
    lines = [machine(results)]
    for part, table in tables.items():
        cells = by(results["cells"], part=part)
        for precision in unique(cells, "precision"):
            lines += table(by(cells, precision=precision))
    return "\n".join(lines)


def machine(results: dict) -> str:
    """What the numbers hold for: processor, system, versions."""
    return ", ".join(f"{key} {value}" for key, value in results["machine"].items())


def inference_summary(results: dict) -> str:
    """Milliseconds an image in fp32 beside the fastest other's: a row for each net."""
    cells = by(results["cells"], part="table", precision="fp32")
    batches = unique(cells, "batch")
    heads = [f"batch {b}: {what}" for b in batches for what in ("ms", "fastest other")]
    lines = [row("model", *heads), row(*["---"] * (len(heads) + 1))]
    for model in unique(cells, "model"):
        texts = []
        for batch in batches:
            sides = {c["side"]: c for c in by(cells, model=model, batch=batch)}
            best = fastest_other(sides)
            assert best is not None, "a table of one side"
            ratio = statistics.median(ratios(sides[OURS], best))
            middle = statistics.median(best["ms"])
            texts += [
                f"{statistics.median(sides[OURS]['ms']):.3g}",
                f"{middle:.3g} {best['side']} (**{ratio:.2f}**)",
            ]
        lines.append(row(model, *texts))
    return "\n".join(lines)


def training_steps(results: dict) -> str:
    """Milliseconds an image of a training step (training_step.py)."""
    cells = results["cells"]
    columns = unique(cells, "side")
    lines = [
        row("ms an image", *columns, "PyTorch / this project"),
        row(*["---"] * (len(columns) + 2)),
    ]
    for model in unique(cells, "model"):
        for precision in unique(by(cells, model=model), "precision"):
            found = by(cells, model=model, precision=precision)
            sides = {cell["side"]: cell for cell in found}
            texts = [timing(sides[c]) if c in sides else "" for c in columns]
            ratio = ""
            if "PyTorch" in sides:
                ratio = spread(ratios(sides[OURS], sides["PyTorch"]))
            lines.append(row(f"{model}, {precision}", *texts, ratio))
    return "\n".join(lines)


def winograd(results: dict) -> str:
    """Milliseconds of 3x3 convolutions (winograd.py): a row for each layer."""
    cells = results["cells"]
    columns = unique(cells, "side")
    lines = []
    for precision in unique(cells, "precision"):
        lines += [
            f"\n{precision}: ms a layer, median (range) of the rounds\n",
            row("layer", "images", "threads", *columns, "kernel", "times as fast"),
            row(*["---"] * (len(columns) + 5)),
        ]
        for cell in by(cells, precision=precision, side=OURS):
            case = {name: cell[name] for name in ("layer", "images", "threads")}
            found = by(cells, precision=precision, **case)
            (direct,) = (other for other in found if other is not cell)
            lines.append(
                row(
                    *case.values(),
                    *(spread(by(found, side=column)[0]["ms"]) for column in columns),
                    f"`{cell['kernel']}`",
                    spread(ratios(cell, direct)),
                )
            )
    return "\n".join([machine(results), *lines])


def loading(results: dict) -> str:
    """Images a second from files to batches (data_pipeline.py)."""
    cells = results["cells"]
    kinds = unique(cells, "kind")
    heads = [head for kind in kinds for head in (kind, "of bound")]
    lines = [row("images/s", *heads), row(*["---"] * (len(heads) + 1))]
    bound = cells[0]["speeds"]
    for side in unique(cells, "side"):
        texts = []
        for kind in kinds:
            for cell in by(cells, side=side, kind=kind):
                values = cell["speeds"]
                found = map(operator.truediv, values, bound)
                share = cell.get("share") or statistics.median(found)
                middle = statistics.median(values)
                texts += [
                    f"{middle:.0f} ({min(values):.0f}-{max(values):.0f})",
                    f"{share:.0%}",
                ]
        texts += [""] * (len(heads) - len(texts))
        lines.append(row(side, *texts))
    return "\n".join(lines)


def speeds(cells: list[Cell]) -> Iterator[str]:
    """Milliseconds an image, and the errors of the answers."""
    precision, columns = cells[0]["precision"], unique(cells, "side")
    yield f"\n{precision}: ms an image, median (range) of the rounds\n"
    yield row("model", "batch", *columns, "speed / fastest other's")
    yield row(*["---"] * (len(columns) + 3))
    middles = []
    for model in unique(cells, "model"):
        for batch in unique(by(cells, model=model), "batch"):
            sides = {c["side"]: c for c in by(cells, model=model, batch=batch)}
            middle, text = against_others(sides)
            middles += [] if middle is None else [middle]
            yield row(model, batch, *(timing(sides[c]) for c in columns), text)
    ahead = sum(middle >= 1 for middle in middles)
    yield f"\nAt least as fast as the fastest other in {ahead} of {len(middles)}."

    yield "\nlargest error, and least share of predictions equal to plain fp32's\n"
    yield row("side", "error", "predictions")
    yield row("---", "---", "---")
    for side in columns:
        compared = [cell for cell in by(cells, side=side) if "error" in cell]
        if compared:
            error = max(cell["error"] for cell in compared)
            agreement = min(cell["agreement"] for cell in compared)
            yield row(side, f"{error:.1e}", f"{agreement:.0%}")


def fastest_other(sides: dict[str, Cell]) -> Optional[Cell]:
    """The cell of the fastest side beside this project; None where there is none."""
    others = [c for side, c in sides.items() if side != OURS and "failed" not in c]
    return min(others, key=lambda c: statistics.median(c["ms"]), default=None)


def ratios(ours: Cell, best: Cell) -> list[float]:
    """How many times as fast this project is, round by round."""
    kept = ours.get("ratios")  # of a run whose rounds are no longer in their order
    return kept or list(map(operator.truediv, best["ms"], ours["ms"]))


def against_others(sides: dict[str, Cell]) -> tuple[Optional[float], str]:
    """The median and text of our speed over that of the fastest other, by rounds.

    0 where this side failed, None without others.
    """
    best = fastest_other(sides)
    if best is None:
        return None, ""
    if "failed" in sides[OURS]:
        return 0.0, f"**behind** {best['side']}"
    found = ratios(sides[OURS], best)
    middle = statistics.median(found)
    text = f"{middle:.2f} ({min(found):.2f}-{max(found):.2f}) {best['side']}"
    return middle, text if middle >= 1 else f"**behind** {text}"


def starts(cells: list[Cell]) -> Iterator[str]:
    """Seconds to the first answer and memory of fresh processes."""
    precision, model = cells[0]["precision"], cells[0]["model"]
    yield f"\n{precision}, {model}: medians of fresh processes\n"
    yield row(
        "side",
        "s from start to answer",
        "s to load again for batch 16 and answer",
        "peak MB, batch 1",
        "batch 16",
    )
    yield row(*["---"] * 5)
    for side in unique(cells, "side"):
        fresh = by(cells, side=side)
        failed = [cell["failed"] for cell in fresh if "failed" in cell]
        if failed:
            yield row(side, f"failed: {failed[0]}", "", "", "")
            continue
        values = (
            statistics.median(cell[field] for cell in fresh)
            for field in ("start_s", "again_s", "peak_mb", "larger_peak_mb")
        )
        yield row(side, *("{:.2f} {:.2f} {:.0f} {:.0f}".format(*values).split()))


def growth(cells: list[Cell]) -> Iterator[str]:
    """Milliseconds an image by batch and threads."""
    precision, model = cells[0]["precision"], cells[0]["model"]
    columns = [
        (side, threads)
        for threads in unique(cells, "threads")
        for side in unique(cells, "side")
    ]
    yield f"\n{precision}, {model}: ms an image by batch and threads\n"
    names = (f"{side}, threads: {threads}" for side, threads in columns)
    yield row("batch", *names)
    yield row(*["---"] * (len(columns) + 1))
    for batch in unique(cells, "batch"):
        found = {(c["side"], c["threads"]): c for c in by(cells, batch=batch)}
        yield row(batch, *(timing(found[c]) if c in found else "" for c in columns))


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
    return spread(cell["ms"])


def spread(values: list[float]) -> str:
    """Median (least-most)."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def row(*values: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, values))} |"
