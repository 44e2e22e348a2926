# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the pages run as written and print what stands below them.

`...` there fits anything, as in doctest.
"""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

from gluon_resnet import bundled, classifier, create, create_model, save_weights
from gluon_resnet.training.recipes import RECIPES
from gluon_resnet.weights import checkpoint

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(\n```text\n(?P<printed>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


def blocks(page):
    """(line, code, what it prints) of each block of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        yield line, match["code"], match["printed"] or ""


@pytest.fixture
def drawn_weights(monkeypatch, tmp_path):
    """Files of fresh weights in the place of downloads, and a folder to run in."""
    files = {}

    def fetch(row, accept_licence):
        if row.name not in files:
            net = create_model(row.model, num_classes=row.num_classes)
            files[row.name] = save_weights(net, tmp_path / f"{row.name}.params")
        return files[row.name]

    for module in (classifier, create):
        monkeypatch.setattr(module, "fetch", fetch)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["pages.md", "coming-from.md"])
def test_blocks_of_the_page_print_what_stands_below_them(page, drawn_weights):
    names = {}
    for line, code, printed in blocks(page):
        # As many lines before it as in the page, so that a traceback names its line.
        source = "\n" * (line - 1) + code
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, page, "exec"), names)
        fits = doctest.OutputChecker().check_output
        assert fits(printed, output.getvalue(), doctest.ELLIPSIS), (
            f"{page}, line {line} prints {output.getvalue()}"
        )


def test_readmes_python_runs_as_written(monkeypatch, capsys):
    monkeypatch.chdir(DOCS.parent)
    names = {}
    for _, code, _ in blocks("../README.md"):
        exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("Trouser\n(1, 'Trouser', ")


def mentioned(option):
    """(page, value) of each use of a command's option on the pages."""
    for page in sorted(DOCS.glob("*.md")):
        for value in re.findall(rf"--{option} (\S+?)[`\s]", page.read_text("utf-8")):
            yield page.name, value


def test_commands_of_the_pages_name_recipes_and_models():
    recipes, models = list(mentioned("recipe")), list(mentioned("model"))
    assert len(recipes) > 5 and len(models) > 10
    for page, name in recipes:
        assert name in RECIPES, page
    for page, name in models:
        if name not in ("CONFIG", "NAME", bundled.NAME):
            assert checkpoint(name), page
