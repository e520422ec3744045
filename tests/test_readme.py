"""README.md and the guides: examples and commands run as they stand, here at a scale that takes seconds."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsslib.deploy.predicting import open_model
from rsstudy import cli, plan
from rsstudy.engine import complete

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
EXAMPLES = [
    (page, block) for page, text in PAGES.items() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]
TESTED = "docs/faithfulness.md"  # its example needs a file, which tests/test_against_ofa.py writes
COMMANDS = [
    (page, line.split(" # ")[0].strip())
    for page, text in PAGES.items()
    for line in re.findall(r"^(?: {4})?((?:make|(?:\.venv/bin/)?rsslib|\.venv/bin/\w+) .*)$", text, re.MULTILINE)
    + re.findall(r"`((?:make|(?:\.venv/bin/)?rsslib) [^`]*)`", text)
]
RUN = ["README.md", "docs/deploy.md"]  # whose recipes are run, one command after the other
STORED = "papermill notebooks/02_main_results.ipynb {} -p profile quick -p train False"
OTHERS = {  # commands that are not ours: where they are run
    f".venv/bin/{STORED.format('out.ipynb')}": (".ci/run", STORED.format("build/out.ipynb")),
    ".venv/bin/ray start --head --port 6379": ("tests/study/test_ray.py", "cluster_utils import Cluster"),
    ".venv/bin/ray start --address FIRST:6379": ("tests/study/test_ray.py", "cluster_utils import Cluster"),
}
ELSEWHERE = {"--init", "latency-kit", "--latency-kit"}  # need a file from outside, or minutes: tested on their own
FASTER = {"search": ["--evaluations", "12"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    for split, n in {"train": 30, "test": 4}.items():
        for name in ("cat", "dog"):
            images = folder / "data/pets" / split / name
            images.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)).save(images / f"{i}.png")
    return folder


@pytest.fixture
def project(folder, monkeypatch):
    """A project of its own, whose smaller profiles take seconds, as the current folder."""
    small = {
        "test_images": 20,
        "subnets_per_bucket": 1,
        "supernet_epochs": 1,
        "shrinking_epochs": 1,
        "epochs_for": None,
    }
    for name, images in {"smoke": 140, "quick": 64}.items():
        monkeypatch.setitem(plan.PROFILES, name, replace(plan.PROFILES[name], train_images=images, **small))
    monkeypatch.setattr(plan, "project_folder", lambda: folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(("page", "example"), EXAMPLES)
def test_example_runs(page, example, project, tmp_path, monkeypatch, capsys):
    if page == TESTED:
        assert page.partition("/")[2] in (ROOT / "tests/test_against_ofa.py").read_text(encoding="utf-8")
        return
    if "trackio" in example:  # which asks for an older Pillow than the project's lock
        pytest.importorskip("trackio")
    complete(plan.plan("smoke", methods=["rss"]), plan.Settings(progress=False))
    namespace = {"__name__": "readme"}  # a notebook's functions and classes can be looked up too
    if "InferenceSession" in example:
        assert cli.main(["export"]) == 0
        capsys.readouterr()
    for split in ("train", "test"):
        namespace[f"x_{split}"] = (
            np.zeros((20, 40, 40, 3), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
        )
        namespace[f"y_{split}"] = np.arange(20) % 2
    if page == "data/README.md":  # which makes a dataset of the same name
        (tmp_path / "data").mkdir()
        monkeypatch.chdir(tmp_path)
    path = tmp_path / "example.py"  # in which the sampler's source is looked up
    example = example.replace('"mflops": 25})', '"mflops": 25}, evaluations=12)')
    path.write_text(example)
    exec(compile(example, path, "exec"), namespace)
    if "growing" in namespace:
        rates = {run.method.name: run.method.stages[0].learning_rate for run in namespace["study"].runs}
        assert rates["growing"] == rates["rss-short"]
    if "session" in namespace:
        assert capsys.readouterr().out.strip() == open_model("model.onnx").predict("model.png").label
    if "classes" in namespace:
        assert len(namespace["classes"]) == len(namespace["images"].x_test)


def test_every_command_is_valid(capsys):
    """Options of ours are parsed, targets of the Makefile are planned, others are run where it is said."""
    assert len(COMMANDS) >= 40
    for page, command in COMMANDS:
        words = shlex.split(re.sub(r"<\w+>|\$SLURM_ARRAY_TASK_ID", "1", command))
        if words[0] == "make":
            done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {command}: {done.stderr}"
            options = re.search("rsslib (reproduce .*)", done.stdout)
            words = ["rsslib", *shlex.split(options[1])] if options else []
        elif not words[0].endswith("rsslib"):
            file, name = OTHERS[command]
            assert name in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not run {command}"
            words = []
        if len(words) > 1 and words[1] in cli.COMMANDS and len(words) > 2:
            cli.make_parser().parse_args(words[1:])


@pytest.mark.long
@pytest.mark.parametrize("page", RUN)
def test_recipe_runs(page, project, capsys):
    recipe = [shlex.split(command)[1:] for where, command in COMMANDS if where == page and command[:5] == ".venv"]
    recipe = [words for words in recipe if words[0] in cli.COMMANDS and not ELSEWHERE.intersection(words)]
    more = ["finetune", "evaluate"] if page == "docs/deploy.md" else []
    assert [words[0] for words in recipe] == ["run", "search", "export", "predict", *more]
    for words in recipe:
        assert cli.main([*words, *FASTER.get(words[0], [])]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "model.png: " in said and len(list(project.glob("data/results/**/scores-*.json"))) > RUN.index(page)
    for name in ("front.csv", "model.onnx", "model.png"):
        (project / name).unlink()


def test_no_page_is_long():
    assert {page: text.count("\n") for page, text in PAGES.items() if text.count("\n") > 400} == {}


def test_readme_is_short():
    lines = README.splitlines()
    text = re.sub(r"<!--.*?-->|https?://\S+|[|`#*-]", " ", README)
    assert len(lines) <= 100 and max(map(len, lines)) <= 140 and len(text.split()) <= 900


def test_tables_of_results_are_current():
    changed = ["git", "status", "--porcelain", "data/results"]
    if subprocess.run(changed, cwd=ROOT, capture_output=True, text=True).stdout:
        pytest.skip("data/results holds other runs than the committed ones")
    done = subprocess.run([sys.executable, ".ci/results.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
