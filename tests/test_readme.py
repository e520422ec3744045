"""README.md: its examples run as they stand, here at a scale that takes seconds."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rsslib import campaign
from rsslib.campaign import runs, settings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_an_example_runs(example, folder, monkeypatch):
    small = {"train_images": 70, "test_images": 20, "subnets_per_bucket": 1, "supernet_epochs": 1}
    monkeypatch.setitem(campaign.PROFILES, "smoke", replace(campaign.PROFILES["smoke"], **small))
    for module in (runs, settings):
        monkeypatch.setattr(module, "project_folder", lambda: folder)
    if "trained_supernet" in example:
        campaign.complete(campaign.plan("smoke", methods=["rss-short"]), campaign.Settings(progress=False))
    # a notebook's functions and classes can be looked up too
    namespace = {"__name__": "readme"}
    exec(compile(example, "README.md", "exec"), namespace)
    if "growing" in namespace:
        rates = {run.method.name: run.method.stages[0].learning_rate for run in namespace["planned"]}
        assert rates["growing"] == rates["rss-short"]


def test_there_are_examples():
    assert len(EXAMPLES) >= 3
