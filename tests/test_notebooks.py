"""Committed notebooks are sources: valid, free of output, parameterised, short-celled, tied to no machine."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(work|home|Users|root|tmp|mnt)\b|\bC:\\")
MAX_LINES = 40


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook in notebooks/"


@pytest.mark.filterwarnings("error")  # nbformat only warns of cells without an id
def test_is_valid(notebook):
    assert notebook.nbformat == 4
    nbformat.validate(notebook)


def test_runs_on_the_python3_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_opens_with_text(notebook):
    assert notebook.cells[0].cell_type == "markdown"


def test_has_one_parameters_cell(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.cell_type for cell in tagged] == ["code"]


def test_holds_no_output(notebook):
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.source


def test_code_cells_are_short(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.source


def test_names_no_absolute_path(notebook):
    for text in [str(notebook.metadata), *(f"{cell.source}\n{cell.metadata}" for cell in notebook.cells)]:
        assert not ABSOLUTE_PATH.search(text), text
