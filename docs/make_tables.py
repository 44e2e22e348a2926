# SPDX-License-Identifier: Apache-2.0
"""Write the generated tables into the pages: `python docs/make_tables.py`.

A table stands in a Markdown file between `<!-- table: NAME -->` and
`<!-- end of table -->`. tests/test_tables.py compares what stands there.
"""

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import report  # noqa: E402  (of benchmarks/)

from gluon_resnet.models import CATALOG, complexity  # noqa: E402
from gluon_resnet.models.names import ALIASES  # noqa: E402
from gluon_resnet.models.spec_pages import MISPRINTS, SPEC_PAGES  # noqa: E402
from gluon_resnet.training.recipe import training_pixels  # noqa: E402
from gluon_resnet.training.recipes import RECIPES  # noqa: E402
from gluon_resnet.weights import checkpoint, list_weights  # noqa: E402

_TABLE = re.compile(
    r"(?<=<!-- table: )(?P<name>\w+)( -->\n).*?(?=<!-- end of table -->)", re.DOTALL
)


def main() -> None:
    """Fill the tables of all pages, and name the files that changed."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (filled := with_tables(text)) != text:
            path.write_text(filled, encoding="utf-8")
            print(path.relative_to(ROOT))


def pages() -> list[Path]:
    """Return the Markdown files that may have tables."""
    return [
        ROOT / "README.md",
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def with_tables(text: str) -> str:
    """Return a page with its tables made anew."""
    return _TABLE.sub(lambda m: f"{m['name']}{m[2]}{table(m['name'])}\n", text)


@cache
def table(name: str) -> str:
    """Return a table by its name, as Markdown."""
    if name in _REPORTS:
        function, results = _REPORTS[name]
        path = ROOT / "benchmarks" / "results" / f"{results}.json"
        return function(json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(_TABLES[name]())


def models() -> Iterator[str]:
    """Every model: size, cost, and the accuracy of its default weights."""
    yield report.row("model", "M params", "G MACs", "top-1 %", "weights", "pages")
    yield report.row("---", "--:", "--:", "--:", "---", "---")
    for name in CATALOG:
        counted, default = complexity(name), checkpoint(name)
        yield report.row(
            f"`{name}`",
            f"{counted.params / 1e6:.2f}",
            f"{counted.flops / 1e9:.2f}",
            f"{default.top1:.2f}",
            f"`{default.tag}`",
            ", ".join(_pages_of(name)),
        )


def _pages_of(model: str) -> Iterator[str]:
    found = {row.page for row in SPEC_PAGES if row.model == model}
    if any(page.startswith("openmmlab") for page in found):
        yield "OpenMMLab"
    if list_weights(f"{model}.onnx_zoo"):
        yield "Model Zoo"
    if "timm/resnest" in found:
        yield "timm"


def aliases() -> Iterator[str]:
    """Every alias, by what it stands for."""
    by_target: dict[str, list[str]] = {}
    for alias, target in ALIASES.items():
        by_target.setdefault(target, []).append(f"`{alias}`")
    yield report.row("stands for", "names")
    yield report.row("---", "---")
    order = list(CATALOG)
    for target in sorted(by_target, key=lambda t: order.index(t.partition(".")[0])):
        yield report.row(f"`{target}`", ", ".join(by_target[target]))


def misprints() -> Iterator[str]:
    """What the spec pages print, and what is right."""
    yield report.row("page", "where", "printed", "right")
    yield report.row("---", "---", "---", "---")
    for misprint in MISPRINTS:
        yield report.row(
            misprint.page, misprint.place, misprint.printed, misprint.right
        )


def recipes() -> Iterator[str]:
    """Every recipe with what decides most of it."""
    right = ("--:",) * 4
    yield report.row("recipe", "epochs", "batch", "rate", "size", "top-1 %", "source")
    yield report.row("---", *right, "--:", "---")
    sources: dict[str, str] = {}
    for name, recipe in RECIPES.items():
        # A source is told once, then by its letter.
        known = recipe.source in sources
        letter = sources.setdefault(recipe.source, _letters(len(sources)))
        top1 = recipe.published_top1
        yield report.row(
            f"`{name}`",
            str(recipe.epochs),
            str(recipe.batch_size),
            f"{recipe.learning_rate:g}",
            str(training_pixels(recipe).size),
            f"{top1:.2f}" if top1 else "",
            f"{letter}" if known else f"{letter}: {recipe.source}",
        )


def _letters(number: int) -> str:
    return (chr(ord("A") + number // 26 - 1) if number >= 26 else "") + chr(
        ord("A") + number % 26
    )


# What timm's page prints of each ResNeSt beside LR 0.1, dropout 0.2 and DropBlock.
_TIMM_PAGE = {
    "resnest14d.gluon_in1k": (8192, 224),
    "resnest26d.gluon_in1k": (8192, 224),
    "resnest50d.in1k": (8192, 224),
    "resnest50d_1s4x24d.in1k": (8192, 224),
    "resnest50d_4s2x40d.in1k": (8192, 224),
    "resnest101e.in1k": (4096, 256),
    "resnest200e.in1k": (2048, 320),
    "resnest269e.in1k": (2048, 416),
}


def timm_recipes() -> Iterator[str]:
    """What timm's page prints of a training, and what the recipe has."""
    yield report.row("recipe", "LR", "batch", "dropout", "DropBlock", "image size")
    yield report.row("---", *("---",) * 5)

    def cell(printed: object, ours: object) -> str:
        same = str(printed) == str(ours)
        return str(printed) if same else f"{printed}, here {ours}"

    for name, (batch_size, size) in _TIMM_PAGE.items():
        recipe = RECIPES[name]
        yield report.row(
            f"`{name}`",
            cell(0.1, f"{recipe.learning_rate:g}"),
            cell(batch_size, recipe.batch_size),
            cell(0.2, f"{recipe.dropout:g}"),
            cell("yes", "yes" if recipe.drop_block else "no"),
            cell(size, training_pixels(recipe).size),
        )


_TABLES = {
    "models": models,
    "aliases": aliases,
    "misprints": misprints,
    "recipes": recipes,
    "timm_recipes": timm_recipes,
}
_REPORTS = {
    "inference": (report.inference, "inference"),
    "inference_summary": (report.inference_summary, "inference"),
    "training_step": (report.training_steps, "training_step"),
    "data_pipeline": (report.loading, "data_pipeline"),
}

if __name__ == "__main__":
    main()
