"""The notebook, executed as it stands except for the length of the training."""

from __future__ import annotations

import base64
import io

import nbclient
import nbformat
import pytest
from conftest import ROOT
from PIL import Image

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def outputs(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    return [output.data[kind] for output in cell.get("outputs", []) if kind in output.get("data", {})]


def test_the_notebook_runs(tiny_settings, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith("RUN =")]
    assert len(settings) == 1
    settings[0].source = f'RUN = "{tmp_path / "run"}"\nOPTIONS = "--config {tiny_settings}"'
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    pictures = [data for cell in notebook.cells for data in outputs(cell, "image/jpeg")]
    assert len(pictures) == 1
    sample, shown = Image.open(ROOT / "media" / "sample.jpg"), Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert shown.width == 3 * sample.width and shown.height > sample.height
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    assert "best segmentation/miou" in printed and f"{sample.width * sample.height:,} points between" in printed
    assert (tmp_path / "run" / "sample.ply").stat().st_size > 16 * sample.width * sample.height


def test_its_kept_outputs_are_whole():
    """What a reader of the page sees: each cell ran, in order, without an error."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if all(cell.execution_count is None for cell in cells):
        pytest.fail("run `make media`: it was committed without its outputs")
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 300_000
