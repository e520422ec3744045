"""README.md and the tutorial: examples and commands run as they stand, here at a scale that takes seconds."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rsstudy import cli, plan
from rsstudy.engine import complete

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
PAPERMILL, STORED = ".venv/bin/papermill notebooks/02_main_results.ipynb", "-p profile quick -p train False"
# Commands that take too long for here: the file in which they are run, and how it names them.
ELSEWHERE = {
    "make reproduce": (".ci/run", "step make reproduce"),
    "make test": (".ci/run", "step make test"),
    "make lab": ("tests/browser/test_explore_in_browser.py", '"-m", "jupyterlab"'),
    "make site": ("Makefile", "test-browser: site"),
    f"{PAPERMILL} out.ipynb {STORED}": (".ci/run", f"step {PAPERMILL} build/out.ipynb {STORED}"),
}  # fmt: skip
FASTER = {"search": ["--evaluations", "12"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def project(folder, monkeypatch):
    """A project of its own, whose profile `smoke` takes seconds, as the current folder."""
    small = {"train_images": 70, "test_images": 20, "subnets_per_bucket": 1, "supernet_epochs": 1}
    monkeypatch.setitem(plan.PROFILES, "smoke", replace(plan.PROFILES["smoke"], **small))
    monkeypatch.setattr(plan, "project_folder", lambda: folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=["first supernet", "own sampler", "finished run"])
def test_example_runs(example, project):
    if "trained_supernet" in example:
        complete(plan.plan("smoke", methods=["rss"]), plan.Settings(progress=False))
    # a notebook's functions and classes can be looked up too
    namespace = {"__name__": "readme"}
    path = project / "example.py"  # in which the sampler's source is looked up
    path.write_text(example)
    exec(compile(example, path, "exec"), namespace)
    if "growing" in namespace:
        rates = {run.method.name: run.method.stages[0].learning_rate for run in namespace["study"].runs}
        assert rates["growing"] == rates["rss-short"]
    else:
        assert len(namespace["classes"]) == len(namespace["images"].x_test)


def test_every_command_runs(project, capsys):
    assert len(COMMANDS) >= 9 and ELSEWHERE.keys() <= set(COMMANDS)
    for command in COMMANDS:
        if command in ELSEWHERE:
            file, name = ELSEWHERE[command]
            assert name in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not run {command}"
        else:
            program, verb, *arguments = shlex.split(command)
            assert program == ".venv/bin/rsslib", f"{command} is run by no test"
            assert cli.main([verb, *arguments, *FASTER.get(verb, [])]) == 0, capsys.readouterr().err
    assert (project / "front.csv").exists() and "model.png: " in capsys.readouterr().out


def test_readme_is_short():
    lines = README.splitlines()
    text = re.sub(r"<!--.*?-->|https?://\S+|[|`#*-]", " ", README)
    assert len(lines) <= 110 and len(text.split()) <= 1_000


def test_tables_of_results_are_current():
    changed = ["git", "status", "--porcelain", "data/results"]
    if subprocess.run(changed, cwd=ROOT, capture_output=True, text=True).stdout:
        pytest.skip("data/results holds other runs than the committed ones")
    done = subprocess.run([sys.executable, ".ci/results.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
