"""rsslib.progress in a notebook's kernel: what remains in the saved outputs."""

from types import SimpleNamespace

import pytest

from rsslib import progress


class Cell(list):
    """The outputs of a cell, as JupyterLab and papermill keep them."""

    def display(self, data, raw, display_id):
        self.append(data)
        place = len(self) - 1
        return SimpleNamespace(update=lambda new, raw: self.__setitem__(place, new))


@pytest.fixture
def cell(monkeypatch):
    cell = Cell()
    monkeypatch.setattr(progress, "_display", lambda: cell.display)
    return cell


def test_bar_in_a_notebook_is_one_line_that_is_empty_once_closed(cell, capsys):
    seen = []
    for _ in progress.progress_bar(range(4), desc="train", mininterval=0):
        seen.append(cell[0]["text/plain"])
    assert seen[0].startswith("train") and "75%" in seen[-1]
    assert cell == [{"text/plain": ""}] and capsys.readouterr().err == ""


def test_hidden_bar_leaves_no_output(cell):
    with progress.progress_bar(total=3, shown=False) as bar:
        bar.update(2)
    assert cell == []
