"""A mistake in a parameter of a notebook is one sentence, before anything is trained or drawn."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import sentence

from rsslib import campaign
from rsslib.campaign import Settings, engine
from rsslib.deploy.searching import search
from rsslib.errors import InputError

FOLDER = Path(__file__).parent.parent / "notebooks"
FOLDERS = [5, [], True, "", "x" * 300, __file__, "a\0b"]
MISTAKES = {
    "profile": [5, None, "../x", ["smoke"], "", True, {}],
    "backbone": [5, None, "mobilenet", ["mobilenet_v3"], "", {}],
    "datasets": [5, "digits", [], [5], [None], ["../x"], {"digits": 1}, ["digits", "digits"], True, ""],
    "dataset": [5, None, "imagenet", [], ""],
    "methods": [5, "rss", [], [5], [None], ["../rss"], {"rss": 1}, [["rss"]], None],
    "seeds": [5, [], [-1], ["0"], [0.5], None, [True], [2**70], {0: 1}, "01", [None]],
    "seed": [-1, "0", 0.5, None, [], True, 2**200],
    "subnets_per_bucket": [0, -1, "3", 2.5, [], True, 10**9, float("nan")],
    "results": FOLDERS, "figures": FOLDERS, "data": FOLDERS,
    "device": [0, None, True, [], "gpu", "cuda:²", ""],
    "samples": ["5", 10**13],  # of the others, another suite; here all else is done before
    "resolution": [33, "32", None, [], 0, 32.0, True],
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
    def checks(runs, settings):
        engine.complete(runs, dataclasses.replace(settings, time_budget=0, progress=False))

    monkeypatch.setattr(campaign, "complete", checks, raising=False)
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


@pytest.mark.parametrize("budget", [5, "8", [("mflops", 8)], {"mflops": -1}, {"flops": 3}, {"mflops": "8"},
                                    {"mflops": float("nan")}, {"mflops": True}])  # fmt: skip
def test_a_budget_that_is_none(budget):
    from helpers import random_supernet, toy_data

    from rsslib.space import SearchSpace

    images = toy_data(channels=1, classes=10)
    with pytest.raises(InputError, match="budget"):
        search(random_supernet(SearchSpace(in_channels=1, classes=10)), images, budget, evaluations=1)


@pytest.mark.parametrize(
    "settings",
    [{"threads": True}, {"threads": 0}, {"jobs": 1.5}, {"rebuild": 1}, {"progress": None}, {"graphs": 1},
     {"time_budget": -1}, {"time_budget": "5m"}, {"checkpoint_seconds": None}, {"precision": 16},
     {"train": "False"}, {"train": 0}],
)  # fmt: skip
def test_settings_that_are_none(settings):
    with pytest.raises(InputError, match=next(iter(settings))) as error:
        Settings(**settings)
    assert sentence(error)
