# SPDX-License-Identifier: Apache-2.0
"""The generated tables of the pages, and the script that writes them."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gluon_resnet.models.spec_pages import MISPRINTS, SPEC_PAGES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables():
    path = ROOT / "docs" / "make_tables.py"
    specification = importlib.util.spec_from_file_location("make_tables", path)
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        specification.loader.exec_module(module)
        yield module


def rows(tables, name):
    """The cells of a table, without its head."""
    _, _, *lines = tables.table(name).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_pages_have_the_tables_that_the_script_makes(tables):
    for path in tables.pages():
        text = path.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, f"{path}: python docs/make_tables.py"


@pytest.mark.slow
def test_each_model_stands_with_its_cost_and_the_accuracy_of_its_default(tables):
    found = {cells[0]: cells[1:] for cells in rows(tables, "models")}
    assert found["`resnet50_v1b`"] == [
        *("25.56", "4.09", "80.38"),
        *("`a1_in1k`", "OpenMMLab"),
    ]
    assert found["`resnest101e`"] == ["48.28", "13.32", "82.88", "`in1k`", "timm"]
    assert found["`resnet18_v2`"][-1] == "Model Zoo"
    assert len(found) == 52


def test_only_what_stands_between_the_marks_changes(tables):
    page = "a\n<!-- table: misprints -->\nold\n<!-- end of table -->\nb\n"
    filled = tables.with_tables(page)
    head, _, tail = filled.partition(tables.table("misprints"))
    assert head == "a\n<!-- table: misprints -->\n"
    assert tail == "\n<!-- end of table -->\nb\n"
    assert tables.with_tables(filled) == filled


def test_misprints_of_rows_are_among_all():
    places = {misprint.place.partition(",")[0] for misprint in MISPRINTS}
    assert {row.name for row in SPEC_PAGES if row.misprint} <= places
    assert "test command" in places
