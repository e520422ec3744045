"""rsstudy.cli: options are checked before any work, and what ends a command is one sentence."""

import re
import subprocess
import sys
import time
from contextlib import closing
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsslib.files import locked
from rsstudy import cli, engine, notebooks
from rsstudy.catalogue import BUILDERS
from rsstudy.engine import RunsFailed
from rsstudy.plan import plan


def run(arguments, folder):
    """The exit status of a command on folders below `folder`."""
    settings = {"--results": folder / "results", "--figures": folder / "figures", "--data": folder / "data"}
    for name, path in settings.items():
        arguments += [] if name in arguments else [name, str(path)]
    return cli.main([*arguments, "--notebooks", "02_main_results"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--profile", "smokey"], "did you mean 'smoke'?"),
        (["--seeds", "-1"], "seeds is [-1]: expected a list"),
        (["--jobs", "0"], "jobs is 0"),
        (["--figures", __file__], "is a file: expected a folder"),
    ],
)
def test_reproduce_refuses_an_option_in_one_sentence(options, said, tmp_path, capsys):
    assert run(["reproduce", *options], tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("rsslib: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())


def test_runs_refuses_an_unknown_dataset(tmp_path, capsys):
    assert run(["runs", "--datasets", "cifar-100"], tmp_path) == 2
    assert "did you mean 'cifar100'?" in capsys.readouterr().err
    (tmp_path / "results/smoke/pets").mkdir(parents=True)  # results of images that stayed elsewhere
    assert run(["runs", "--datasets", "pets"], tmp_path) == 0
    assert capsys.readouterr().out.count("smoke/pets/mobilenet_v3/") == 4


def test_runs_lists_and_deletes_custom_runs(tmp_path, capsys):
    name, committed = "smoke/pets/mobilenet_v3/rss/seed0", "quick/fashion_mnist/mobilenet_v3/rss/seed0"
    folder = tmp_path / "results" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(bytes(2_500_000))
    assert run(["runs"], tmp_path) == 0
    assert f" 2.5  {name}\n" in capsys.readouterr().out
    with locked(folder / "run.lock") as mine:
        assert mine and run(["runs", "--delete", name], tmp_path) == 2
    assert cli.main(["runs", "--delete", committed]) == 2 and folder.exists()
    error = capsys.readouterr().err
    assert "is being trained" in error and f"{committed} is committed" in error
    assert run(["runs", "--delete", name], tmp_path) == 0 and not folder.exists()


def test_lists_name_methods_and_datasets(tmp_path, capsys):
    (tmp_path / "pets" / "train").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    np.savez(tmp_path / "mnist.npz")
    assert cli.main(["methods"]) == cli.main(["datasets", "--data", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", said) for name in BUILDERS)
    assert re.search("^pets +yours", said, re.MULTILINE) and "notes" not in said
    assert re.search("^mnist +here", said, re.MULTILINE) and re.search("^cifar10 +downloaded", said, re.MULTILINE)


def test_reproduce_reports_failed_runs(tmp_path, capsys, monkeypatch):
    def complete(runs, settings, finished):
        assert settings.rebuild
        raise RunsFailed({"smoke/a": MemoryError("all of it")})

    monkeypatch.setattr(engine, "complete", complete)
    assert run(["reproduce", "--rebuild"], tmp_path) == 1
    assert capsys.readouterr().err == "rsslib: failed: smoke/a: MemoryError: all of it\n"


def test_reproduce_without_a_result_has_not_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "complete", lambda runs, settings, finished: None)  # the time budget ran out at once
    assert run(["reproduce", "--time-budget", "1s"], tmp_path) == 0
    said = capsys.readouterr()
    assert "0 of 4 runs are finished" in said.out and said.err == ""
    assert "02_main_results is left out" in said.out
    assert run(["figures"], tmp_path) == 2
    assert "there is nothing to draw" in capsys.readouterr().err


def test_run_prints_accuracies_and_the_folder(tmp_path, capsys):
    small = {"supernet-epochs": 1, "train-images": 64, "test-images": 20, "subnets-per-bucket": 1}
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert cli.main(["run", "--method", "rss-short", "--device", "cpu", "--results", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    name = "smoke_supernet-epochs-1_train-images-64_test-images-20_subnets-per-bucket-1"
    folder = tmp_path / name / "digits/mobilenet_v3/rss-short/seed0"
    population = pd.read_csv(folder / "population.csv")
    for row in population.itertuples():
        assert re.search(rf"^ *{row.bucket:g} +{3 * f'{row.accuracy:g} +'}1$", said, re.MULTILINE)
    assert str(folder) in said and "RSS-Short: 1) on 64 training images" in said


MINE = """
from rsslib.backbones import Backbone, StageSpec
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace

stages = StageSpec(16, 2, "relu"), StageSpec(24, 2, "hardswish", squeeze_excite=True)
SPACE = SearchSpace(Backbone("mine", 8, "relu", 8, "relu", stages, 32, None, "relu"), depths=(1, 2))
METHOD = one_stage("warm", 3, Uniform(), warmup_epochs=1)


def log(state, run):
    print("epoch", len(state.history), run.method.name)
"""


def test_a_file_of_ones_own_has_the_backbone_the_method_and_what_follows_epochs(tmp_path, capsys):
    (mine := tmp_path / "mine.py").write_text(MINE)
    named = {"--backbone": "SPACE", "--method": "METHOD", "--after-epoch": "log"}
    options = [word for option, name in named.items() for word in (option, f"{mine}:{name}")]
    scale = ["--train-images", "80", "--test-images", "20", "--subnets-per-bucket", "1", "--validate-every", "2"]
    where = ["--results", str(tmp_path), "--device", "cpu"]
    assert cli.main(["run", *options, *scale, *where]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("epoch")] == [f"epoch {n} warm" for n in (1, 2, 3)]
    assert "mine_depths-1-2/warm/seed0" in out


@pytest.mark.parametrize("text", ["nowhere.py:SPACE", "rsslib.space:NOTHING", "no.module:SPACE"])
def test_what_cannot_be_imported_is_an_input_error(text, capsys):
    assert cli.main(["run", "--backbone", text]) == 2
    assert f"rsslib: '{text}' cannot be read" in capsys.readouterr().err


def test_run_reports_a_loss_that_is_not_finite(tmp_path, capsys):
    small = ["--supernet-epochs", "1", "--train-images", "200", "--learning-rate-scale", "1e30"]
    assert cli.main(["run", "--device", "cpu", "--results", str(tmp_path), *small]) == 1
    error = capsys.readouterr().err.split("\r")[-1]
    assert re.fullmatch(r"rsslib: failed: smoke_\S+/rss/seed0: FloatingPointError: the loss is .*\n", error)


@pytest.mark.parametrize(("options", "epochs"), [([], "336 + 168"), (["--supernet-epochs", "3"], "3 + 168")])
def test_run_prints_the_epochs_of_a_custom_dataset(options, epochs, tmp_path, capsys, monkeypatch):
    images, labels = np.zeros((200, 28, 28), np.uint8), np.arange(200) % 2
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    asked = []
    monkeypatch.setattr(engine, "complete", lambda runs, settings: asked.extend(runs))
    where = ["--data", str(tmp_path), "--results", str(tmp_path / "results"), "--device", "cpu"]
    assert cli.main(["run", "--dataset", "own", "--method", "rss", "--resolution", "64", *where, *options]) == 0
    assert f"/own/mobilenet_v3-64px/rss/seed0: {epochs} epochs " in capsys.readouterr().out
    (run,) = asked
    assert run.method.epochs == sum(map(int, epochs.split(" + "))) and run.resolution == 64


def test_figures_of_another_backbone_have_no_headline(tmp_path, capsys):
    options = cli.make_parser().parse_args(["figures", "--figures", str(tmp_path), "--results", str(tmp_path)])
    with closing(notebooks.Execution([])) as execution:
        (run,) = plan("smoke", methods=["rss"], backbone="proxylessnas")
        execution.finished(run)
        assert cli.finish(options, execution, []) == 0
    assert capsys.readouterr().out.startswith("figures: ")


def test_search_and_export_name_runs_as_run_does(tmp_path):
    words = ["--seed", "1", "--supernet-epochs", "3", "--data", str(tmp_path)]
    parsed = [cli.make_parser().parse_args([command, *words]) for command in ("run", "search", "export")]
    run, *others = map(cli.make_run, parsed)
    assert others == [run, run] and run.name == "smoke_supernet-epochs-3/digits/mobilenet_v3/rss/seed1"


def test_mistakes_are_reported_before_pytorch_is_imported(tmp_path):
    code = (
        "import sys; from rsstudy.cli import main; assert main(sys.argv[1:]) == 2; "
        "assert not {'torch', 'papermill', 'pandas'} & set(sys.modules)"
    )
    without_driver = [] if find_library("cuda") else ["run --device cuda", "search --device cuda:1"]
    for line in (
        "reproduce --profile smok", "runs --seeds -1", "figures --datasets digit",
        "run --method rs", "run --device x", "run --supernet-epochs 0", *without_driver,
    ):  # fmt: skip
        arguments = line.split()
        subprocess.run([sys.executable, "-c", code, *arguments, "--results", str(tmp_path)], check=True)


def found(folder, *names, profile="smoke"):
    return notebooks.find_notebooks({"profile": profile, "results": str(folder), "figures": str(folder)}, names)


def test_each_notebook_is_executed_once_and_failures_are_returned(tmp_path, capsys, monkeypatch):
    def start(command, **how):
        *_, name, output, values = command
        wait = f"import time; time.sleep({0.2 * (name == '02_main_results')})"
        ended = "exit('a mistake')" if name == "08_deploy" else ""
        return really([sys.executable, "-c", f"{wait}; {ended}"], **how)

    really = notebooks.subprocess.Popen
    monkeypatch.setattr(notebooks.subprocess, "Popen", start)
    monkeypatch.setattr(notebooks.Notebook, "lacks_weights", lambda notebook: False)
    names = ["01_protocol", "02_main_results", "08_deploy", "09_claims"]
    with closing(notebooks.Execution(found(tmp_path, *names))) as execution:
        for run in plan("smoke"):
            execution.finished(run)
        assert execution.rest() == ["08_deploy: a mistake"]
    lines = capsys.readouterr().out.splitlines()
    scales = {"09_claims": "quick"}  # drawn from stored results
    paths = {name: tmp_path / scales.get(name, "smoke") / "notebooks" / f"{name}.ipynb" for name in names}
    ended = [f"{name} {'failed' if name == '08_deploy' else 'done'}: {path}" for name, path in paths.items()]
    assert sorted(lines) == sorted(ended) and lines[-1] == ended[-1]  # the last notebook waits for all others


@pytest.mark.long
def test_an_interrupt_ends_the_notebooks_that_are_executed(tmp_path):
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        closing(notebooks.Execution(found(tmp_path, "02_main_results"))) as execution,
    ):
        for run in execution.waiting[0].runs.values():
            execution.finished(run)
        while not execution.processes:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert execution.processes[0].returncode is not None and time.monotonic() - began < 20


@pytest.mark.long
def test_a_notebook_that_fails_says_why_and_is_kept(tmp_path):
    (notebook,) = found(tmp_path, "01_protocol")
    notebook = replace(notebook, values=notebook.values | {"backbone": "mobilenet_v2"})
    with closing(notebooks.Execution([notebook])) as execution:
        (why,) = execution.rest()
    assert why.startswith("01_protocol: InputError: unknown backbone 'mobilenet_v2'")
    assert (tmp_path / "smoke/notebooks/01_protocol.ipynb").exists()


def test_notebooks_on_the_hardest_dataset_take_the_last_given():
    given = {"profile": "quick", "datasets": ["mnist", "digits"], "seeds": [2]}
    first, ablation, last = notebooks.find_notebooks(given, ["09_claims", "03_subnets_per_update", "02_main_results"])
    assert [first.name, ablation.name, last.name] == ["02_main_results", "03_subnets_per_update", "09_claims"]
    assert {run.dataset for run in first.runs.values()} == {"mnist", "digits"} and not last.runs
    assert {(run.dataset, run.seed) for run in ablation.runs.values()} == {("digits", 2)}


def test_smoke_takes_stored_results_where_it_is_too_small(tmp_path, capsys):
    names = ["02_main_results", "05_hyperparameters", "07_interference"]
    given = {"profile": "smoke", "results": "elsewhere", "seeds": [3], "figures": "there", "train": False}
    first, hyper, stored = notebooks.find_notebooks(given, names)
    assert {run.profile.name for run in [*first.runs.values(), *hyper.runs.values()]} == {"smoke"}
    assert {run.seed for run in first.runs.values()} == {3} and len(hyper.runs) == 3
    assert stored.stored and not first.stored and stored.folder == Path("there/quick")
    assert stored.values["results"] is None and stored.values["profile"] == "quick" and not stored.values["train"]
    elsewhere = replace(stored, values=stored.values | {"results": str(tmp_path)})
    with closing(notebooks.Execution([elsewhere])) as execution:
        assert execution.rest() == [] and "07_interference is left out" in capsys.readouterr().out
    *_, trained = notebooks.find_notebooks({"profile": "paper"}, names)
    assert {run.profile.name for run in trained.runs.values()} == {"paper"}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert cli.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "5", "m", "1.2.3m", "²m"])
def test_time_budget_without_number_or_unit_is_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reproduce", "--time-budget", text])
    assert f"{text!r} is not a number above 0 and a unit, such as 90s" in capsys.readouterr().err


@pytest.mark.parametrize("typed, expected", [([], None), (["--no-graphs"], False)])
def test_graphs_can_be_turned_off(typed, expected, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "complete", lambda runs, settings, finished: asked.append(settings.graphs))
    run(["reproduce", *typed], tmp_path)
    assert asked == [expected]
