"""rsstudy.cli: options are checked before any work, and what ends a command is one sentence."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsslib.errors import InputError
from rsstudy import cli, engine, notebooks
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
        (["--datasets", "digit"], "did you mean 'digits'?"),
        (["--datasets", "digits", "digits"], "datasets holds 'digits' twice"),
        (["--seeds", "0", "1", "0"], "seeds holds 0 twice"),
        (["--seeds", "-1"], "seed is -1"),
        (["--subnets-per-bucket", "0"], "subnets_per_bucket is 0"),
        (["--results", ""], "results is ''"),
        (["--jobs", "0"], "jobs is 0"),
        (["--jobs", "-2"], "jobs is -2"),
        (["--device", "gpu"], "device is 'gpu': expected auto"),
        (["--results", __file__], "is a file: expected a folder"),
        (["--figures", __file__], "is a file: expected a folder"),
        *((["--time-budget", text], f"time budget is {text!r}") for text in ("", "0m", "5", "m", "1.2.3m", "²m")),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(options, said, tmp_path, capsys):
    assert run(["reproduce", *options], tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("rsslib: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", ""], "'' cannot name"),
        (
            ["--subnets-per-bucket", "20000"],
            "subnets_per_bucket is 20000: expected a whole number of at least 1 and at",
        ),
    ],
)
def test_an_option_of_a_run_that_cannot_be_is_one_sentence(options, said, tmp_path, capsys):
    assert cli.main(["run", *options, "--results", str(tmp_path / "results"), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rsslib: ") and error.count("\n") == 1 and said in error


def test_an_unknown_dataset_is_not_listed(tmp_path, capsys):
    assert run(["runs", "--datasets", "cifar-100"], tmp_path) == 2
    assert "did you mean 'cifar100'?" in capsys.readouterr().err
    (tmp_path / "results/smoke/pets").mkdir(parents=True)  # results of images that stayed elsewhere
    assert run(["runs", "--datasets", "pets"], tmp_path) == 0
    assert capsys.readouterr().out.count("smoke/pets/mobilenet_v3/") == 4


def test_the_exit_status_tells_how_a_command_ended(tmp_path, capsys, monkeypatch):
    def complete(runs, settings, finished):
        assert settings.rebuild
        raise RunsFailed({"smoke/a": MemoryError("all of it")})

    monkeypatch.setattr(engine, "complete", complete)
    assert run(["reproduce", "--rebuild"], tmp_path) == 1
    assert capsys.readouterr().err == "rsslib: failed: smoke/a: MemoryError: all of it\n"


def test_a_campaign_that_stopped_before_any_result_has_not_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "complete", lambda runs, settings, finished: None)  # the time budget ran out at once
    assert run(["reproduce", "--time-budget", "1s"], tmp_path) == 0
    said = capsys.readouterr()
    assert "0 of 4 runs are finished; the same command goes on" in said.out and said.err == ""
    assert "02_main_results is left out" in said.out
    assert run(["figures"], tmp_path) == 2
    assert "there is nothing to draw" in capsys.readouterr().err


def test_a_run_prints_its_accuracies_and_where_the_rest_is(tmp_path, capsys):
    small = {"supernet-epochs": 1, "train-images": 64, "test-images": 20, "subnets-per-bucket": 1}
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert cli.main(["run", "--device", "cpu", "--results", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    name = "smoke_supernet-epochs-1_train-images-64_test-images-20_subnets-per-bucket-1"
    folder = tmp_path / name / "digits/mobilenet_v3/rss-short/seed0"
    population = pd.read_csv(folder / "population.csv")
    for row in population.itertuples():
        assert re.search(rf"^ *{row.bucket:g} +{3 * f'{row.accuracy:g} +'}1$", said, re.MULTILINE)
    assert str(folder) in said and "RSS-Short: 1) on 64 training images" in said


def test_a_run_whose_loss_is_not_finite_is_one_sentence(tmp_path, capsys):
    small = ["--supernet-epochs", "1", "--train-images", "200", "--learning-rate-scale", "1e30"]
    assert cli.main(["run", "--device", "cpu", "--results", str(tmp_path), *small]) == 1
    error = capsys.readouterr().err.split("\r")[-1]
    assert re.fullmatch(r"rsslib: failed: smoke_\S+/rss-short/seed0: FloatingPointError: the loss is .*\n", error)


def test_what_a_run_is_refused_for_is_a_mistake_in_the_input(tmp_path, capsys, monkeypatch):
    def complete(runs, settings):
        raise RunsFailed({"smoke/a": InputError("no room")})

    monkeypatch.setattr(engine, "complete", complete)
    assert cli.main(["run", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "rsslib: no room\n"


@pytest.mark.parametrize(("options", "epochs"), [([], "50 + 28"), (["--supernet-epochs", "3"], "3 + 28")])
def test_a_run_on_images_of_ones_own_says_how_many_epochs_it_takes_and_why(
    options, epochs, tmp_path, capsys, monkeypatch
):
    images, labels = np.zeros((200, 28, 28), np.uint8), np.arange(200) % 2
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    asked = []
    monkeypatch.setattr(engine, "complete", lambda runs, settings: asked.extend(runs))
    where = ["--data", str(tmp_path), "--results", str(tmp_path / "results"), "--device", "cpu"]
    assert cli.main(["run", "--dataset", "own", "--method", "rss", "--resolution", "64", *where, *options]) == 0
    said = capsys.readouterr().out
    assert f"own has 160 training images: {epochs} epochs (smoke's 9 + 5 are for 896: times as many" in said
    (run,) = asked
    assert run.method.epochs == sum(map(int, epochs.split(" + "))) and run.resolution == 64


def test_closing_words_without_the_main_backbone_say_where_the_figures_are(tmp_path, capsys):
    done = plan("smoke", methods=["rss"], backbone="proxylessnas")
    options = {"profile": "smoke", "results": str(tmp_path), "figures": str(tmp_path)}
    assert cli.closing_words(done, {"06_proxylessnas": {}}, options, []) == 0
    assert capsys.readouterr().out.startswith("figures: ")


def test_search_and_export_name_a_run_as_it_was_named_to_train(tmp_path):
    words = ["--method", "rss", "--seed", "1", "--supernet-epochs", "3", "--data", str(tmp_path)]
    runs = [cli.run_of(vars(cli.parser().parse_args([command, *words]))) for command in ("run", "search", "export")]
    assert runs[0] == runs[1] == runs[2] and runs[0].name.startswith("smoke_supernet-epochs-3/digits/")


def test_a_mistake_is_answered_before_pytorch_is_imported(tmp_path):
    code = (
        "import sys; from rsstudy.cli import main; assert main(sys.argv[1:]) == 2; "
        "assert not {'torch', 'papermill'} & set(sys.modules)"
    )
    for line in (
        "reproduce --profile smok", "reproduce --time-budget 5", "runs --seeds -1", "figures --datasets digit",
        "run --method rs", "run --device x", "run --supernet-epochs 0",
    ):  # fmt: skip
        arguments = line.split()
        subprocess.run([sys.executable, "-c", code, *arguments, "--results", str(tmp_path)], check=True)


def test_each_notebook_is_executed_once_and_failures_are_returned(tmp_path, capsys, monkeypatch):
    def execute(path, output, values, processes):
        time.sleep(0.2 * (path.stem == "02_main_results"))  # the last notebook waits for all others
        return "a mistake" if path.stem == "08_deploy" else ""

    monkeypatch.setattr(notebooks, "execute_apart", execute)
    names = ["01_protocol", "02_main_results", "08_deploy", "09_claims"]
    parameters = notebooks.notebook_parameters({"profile": "smoke", "results": str(tmp_path)}, names)
    monkeypatch.setattr(notebooks.Execution, "_has_weights", lambda self, name: True)
    with notebooks.Execution(parameters, tmp_path) as execution:
        for run in plan("smoke"):
            execution.finished(run)
        assert execution.rest() == ["08_deploy: a mistake"]
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "smoke" / "notebooks"
    ended = [f"{name} {'failed' if name == '08_deploy' else 'done'}: {folder / name}.ipynb" for name in names]
    assert sorted(line for line in lines if ": " in line and "figure" not in line) == sorted(ended)
    assert lines.count(f"the main figure: {tmp_path / 'smoke' / 'figure_3.png'}") == 1 and lines[-1] == ended[-1]


def test_an_interrupt_ends_the_notebooks_that_are_being_executed(tmp_path):
    parameters = notebooks.notebook_parameters({"profile": "smoke", "results": str(tmp_path)}, ["02_main_results"])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), notebooks.Execution(parameters, tmp_path) as execution:
        execution._start("02_main_results")
        while not execution.processes:
            time.sleep(0.01)
        (process,) = execution.processes
        raise KeyboardInterrupt
    assert process.returncode is not None and time.monotonic() - began < 20


def test_a_notebook_that_fails_says_why_and_is_kept(tmp_path):
    path = Path(__file__).parent.parent / "notebooks" / "02_main_results.ipynb"
    values = notebooks.notebook_parameters({"profile": "nowhere", "results": str(tmp_path)}, [path.stem])[path.stem]
    why = notebooks.execute_apart(path, tmp_path / path.name, values, set())
    assert why.startswith("InputError: unknown profile 'nowhere'")
    assert (tmp_path / path.name).exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert cli.seconds(text) == seconds


@pytest.mark.parametrize("typed, expected", [([], None), (["--no-graphs"], False)])
def test_graphs_can_be_turned_off(typed, expected, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "complete", lambda runs, settings, finished: asked.append(settings.graphs))
    run(["reproduce", *typed], tmp_path)
    assert asked == [expected]
