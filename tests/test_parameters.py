"""A mistake in a parameter of a notebook is one sentence, before anything is trained or drawn."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsstudy import engine

FOLDER = Path(__file__).parent.parent / "notebooks"
MISTAKES = {  # a value of another type, and one that is empty or no name; `plan` and `Settings` are tested with more
    "profile": [5, ""],
    "backbone": [{}, "mobilenet"],
    "datasets": [5, []],
    "dataset": [5, "imagenet"],
    "methods": [5, []],
    "seeds": ["01", []],
    "seed": [None, -1],
    "subnets_per_bucket": ["3", 0],
    "results": [5, ""], "figures": [5, ""], "data": [5, ""],
    "device": [0, ""],
    "samples": ["5", 10**13],  # of the others, another suite; here all else is done before
    "resolution": ["32", 0],
}  # fmt: skip
CASES = []
for path in sorted(FOLDER.glob("*.ipynb")):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = ["".join(cell["source"]).replace("%matplotlib inline", "") for cell in cells]
    parameters: dict = {}
    exec(code[0], parameters)
    CASES += [pytest.param(path.stem, code, name, id=f"{path.stem}-{name}") for name in MISTAKES if name in parameters]


@pytest.mark.parametrize(("notebook", "code", "name"), CASES)
def test_a_mistake_in_a_parameter_is_a_sentence(notebook, code, name, tmp_path, monkeypatch):
    complete = engine.complete

    def checks(runs, settings):
        complete(runs, dataclasses.replace(settings, time_budget=0, progress=False))

    monkeypatch.setattr(engine, "complete", checks)
    for value in MISTAKES[name]:
        for train in (True, False):
            own: dict = {"__name__": "notebook"}
            exec(code[0], own)
            own |= {"figures": str(tmp_path), name: value} | ({"train": train} if "train" in own else {})
            with pytest.raises(InputError) as error:
                for cell in code[1:]:
                    exec(cell, own)
            said = sentence(error)
            assert "is finished in" not in said or (name, train) in (("device", False), ("data", False)), value
            if "train" not in own:
                break
