# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs as committed, and what is committed came from one such run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TIMEOUT_S = 120
MAX_LINES, MAX_BYTES = 10, 200_000
REFRESH = "jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb"

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebook_runs_offline(path, monkeypatch):
    """As a kernel of the user's finds the package: installed, by README's command."""
    monkeypatch.setenv("GLUON_RESNET_OFFLINE", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()  # a failing cell or assert raises


def test_outputs_come_from_one_run_from_top_to_bottom(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1)), REFRESH
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)


def test_notebook_is_thin_and_portable(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert "parameters" in notebook.cells[1].metadata.get("tags", [])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= MAX_LINES, cell.source
    assert path.stat().st_size < MAX_BYTES
    assert "/home/" not in path.read_text(encoding="utf-8")
