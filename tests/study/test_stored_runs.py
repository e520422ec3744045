"""The committed runs: today's code accepts every one of them as finished."""

import json
import subprocess
from pathlib import Path

from rsstudy.catalogue import build
from rsstudy.plan import PROFILES, plan
from rsstudy.store import overview

PROJECT = Path(__file__).parents[2]
RESULTS = PROJECT / "data" / "results"


def committed_records():
    """The committed run.json files, or all where git is not at hand."""
    listed = subprocess.run(
        ["git", "ls-files", "data/results/**/run.json"], cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout.split()
    return [PROJECT / name for name in listed] or sorted(RESULTS.rglob("run.json"))


def test_every_committed_run_is_accepted_as_finished():
    runs = []
    for path in committed_records():
        profile, dataset, backbone, method, seed = path.parent.relative_to(RESULTS).parts
        runs += plan(PROFILES[profile], [dataset], [method], backbone, [int(seed.removeprefix("seed"))])
    assert len(runs) >= 174
    table = overview(runs, RESULTS)
    assert list(table.loc[table["status"] != "finished", "run"]) == []


def test_a_stored_method_is_the_one_that_its_name_builds():
    for path in committed_records():
        training = json.loads(path.read_text())["config"]["training"]
        profile = PROFILES[training["profile"]]
        method = build(training["method"]["name"], *profile.epochs(training["dataset"]))
        stored = [(stage["name"], stage["epochs"]) for stage in training["method"]["stages"]]
        assert [(stage.name, stage.epochs) for stage in method.stages] == stored
