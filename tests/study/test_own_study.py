"""A study of one's own: another backbone, space, schedule or optimizer, and following a run while it trains."""

import math
from dataclasses import replace

import pandas as pd
import papermill
import pytest
from helpers import TINY, sentence
from small_runs import PROFILE, complete, tiny

from rsslib.backbones import StageSpec
from rsslib.checkpoint import load_supernet, read_card
from rsslib.errors import InputError
from rsslib.files import WEIGHTS, project_folder
from rsslib.methods import one_stage
from rsslib.samplers import SIZES, Uniform
from rsslib.space import SearchSpace
from rsstudy.engine import RunsFailed
from rsstudy.plan import plan
from rsstudy.store import configuration, finished_runs
from rsstudy.tables import populations

MINE = SearchSpace(replace(TINY, name="mine", buckets=None), kernels=(3, 5, 7, 9), expands=(2, 3, 4), depths=(1, 2))


def stop_after(epochs):
    def after_epoch(state, run):
        if len(state.history) == epochs:
            raise RuntimeError("stopped on purpose")

    return after_epoch


# --- another backbone


def test_runs_of_a_custom_space_are_stopped_resumed_evaluated_and_found(tmp_path):
    (run,) = plan(PROFILE, methods=["rss"], backbone=MINE)
    assert run.name == "test/digits/mine_kernels-3-5-7-9_expands-2-3-4_depths-1-2/rss/seed0"
    complete([run], tmp_path / "whole")
    with pytest.raises(RunsFailed, match="stopped on purpose"):
        complete([run], tmp_path / "parts", checkpoint_seconds=0, after_epoch=stop_after(2))
    complete([run], tmp_path / "parts")
    for name in ("weights.safetensors", "population.csv"):
        whole, parts = (run.folder(tmp_path / which) / name for which in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()
    assert populations([run], tmp_path / "whole")["bucket"].nunique() == 6
    assert load_supernet(run.folder(tmp_path / "whole")).space.reference == MINE
    (found,) = finished_runs(tmp_path / "whole", "test", MINE.name)
    assert found.space == MINE and found.folder(tmp_path) == run.folder(tmp_path)


def test_a_run_starts_from_given_weights_and_resumes_without_them(tmp_path):
    (first,) = tiny("rss")
    complete([first], tmp_path)
    origin = first.folder(tmp_path)
    still = one_stage("still", 2, Uniform(), learning_rate=0)
    (run,) = tiny(still, init=origin)
    digest = read_card(origin)["weights_sha256"]
    assert run.method.name == f"still-init-{digest[:8]}"
    assert configuration(run)["training"]["init"] == digest
    with pytest.raises(RunsFailed, match="stopped on purpose"):
        complete([run], tmp_path, checkpoint_seconds=0, after_epoch=stop_after(2))
    (altered,) = tiny(one_stage("other", 1, Uniform()), init=origin)
    weights = dict(load_supernet(origin).named_parameters())
    (origin / WEIGHTS).write_bytes(b"")
    complete([run], tmp_path)
    assert read_card(run.folder(tmp_path))["init"] == digest
    for name, tensor in load_supernet(run.folder(tmp_path)).named_parameters():
        assert tensor.equal(weights[name])
    with pytest.raises(RunsFailed, match="has changed since the run was planned"):
        complete([altered], tmp_path)
    with pytest.raises(InputError, match="nowhere.*cannot be used") as error:
        tiny(init=tmp_path / "nowhere")
    assert sentence(error)


def test_another_space_of_the_same_name_is_another_configuration():
    wider = replace(MINE, backbone=replace(MINE.backbone, expand_channels=MINE.backbone.expand_channels + 8))
    runs = [plan(PROFILE, methods=["rss"], backbone=space)[0] for space in (MINE, wider)]
    assert runs[0].name == runs[1].name and configuration(runs[0]) != configuration(runs[1])


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        (replace(TINY, stem_channels=TINY.stem_channels + 8), "'tiny' is not the study's"),
        (replace(TINY, name="../mine"), "cannot name a profile, backbone"),
    ],
)
def test_backbones_that_cannot_be_planned_are_an_input_error(backbone, said):
    with pytest.raises(InputError) as error:
        plan(PROFILE, methods=["rss"], backbone=backbone)
    assert said in sentence(error)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"stride": 3}, "stride is 3"),
        ({"layers": 1.5}, "layers is 1.5"),
        ({"act": "gelu"}, "act is 'gelu': expected relu or relu6 or hardswish"),
    ],
)
def test_a_stage_that_cannot_be_built_is_an_input_error(fields, said):
    with pytest.raises(InputError) as error:
        StageSpec(**{"channels": 16, "stride": 2, "act": "relu"} | fields)
    assert said in sentence(error)


# --- another method


def half_way(progress):
    return 1.0 if progress < 0.5 else 0.1


def test_a_schedule_is_identified_by_its_source():
    def record(schedule):
        (run,) = tiny(one_stage("mine", 4, Uniform(), schedule))
        return configuration(run)["training"]["method"]["stages"][0]["schedule"]

    assert record("cosine") == "cosine"
    assert record(half_way) == record(half_way) != record(lambda progress: 1 - progress)
    assert record(half_way).startswith("half_way, code ")
    drop = 0.1
    with pytest.raises(InputError, match="the schedule <lambda> holds values that do not identify it"):
        record(lambda progress: drop)


def test_only_settings_that_are_not_usual_are_added_to_records():
    def record(**fields):
        (run,) = tiny(one_stage("mine", 4, Uniform(), **fields))
        return configuration(run)["training"]["method"]

    changed = {"momentum": 0.8, "weight_decay": 1e-4, "label_smoothing": 0.1, "augmentation": 0.5, "gradients": "mean"}
    usual, found = record(), record(**changed, warmup_epochs=1)
    assert not usual.keys() & changed.keys() and "warmup_epochs" not in usual["stages"][0]
    assert {name: found[name] for name in changed} == changed and found["stages"][0]["warmup_epochs"] == 1


# --- following a run


def test_the_history_grows_as_a_run_trains_with_validations_where_asked_for(tmp_path):
    (run,) = tiny(one_stage("mine", 5, Uniform()))
    live, seen = run.folder(tmp_path) / "live.csv", []

    def after_epoch(state, of):
        seen.append((of.name, pd.read_csv(live)))
        if len(seen) == 3:
            raise RuntimeError("stopped on purpose")

    settings = {"after_epoch": after_epoch, "validate_every": 2, "checkpoint_seconds": 0}
    with pytest.raises(RunsFailed):
        complete([run], tmp_path, **settings)
    complete([run], tmp_path, **settings)
    assert {name for name, _ in seen} == {run.name}
    assert [len(table) for _, table in seen] == [1, 2, 3, 3, 4, 5]
    last = seen[-1][1]
    assert last["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert last[[*SIZES]].notna().all(axis=1).tolist() == [False, True, False, True, False]
    assert last.loc[1, "largest"] == seen[1][1].loc[1, "largest"] <= 100 and math.isnan(last.loc[0, "largest"])
    history = pd.read_csv(run.folder(tmp_path) / "history.csv")
    assert history["loss"].tolist() == last["loss"].tolist() and not live.exists()


def test_validations_change_no_weight(tmp_path):
    (run,) = tiny()
    for every in (None, 1):
        complete([run], tmp_path / str(every), validate_every=every)
    weights = [(run.folder(tmp_path / name) / "weights.safetensors").read_bytes() for name in ("None", "1")]
    assert weights[0] == weights[1]


@pytest.mark.long
def test_the_notebook_goes_from_images_to_a_difference_with_its_interval(tmp_path):
    folders = {name: str(tmp_path / name) for name in ("data", "results", "figures")}
    notebook = project_folder() / "notebooks/examples/own_study.ipynb"
    executed = papermill.execute_notebook(notebook, tmp_path / "out.ipynb", folders, progress_bar=False)
    shown = executed["cells"][-2]["outputs"][0]["data"]["text/html"]
    assert "growing minus uniform" in shown
    assert len(list(tmp_path.glob("results/*/handwritten/*/*/seed*/run.json"))) == 4
    assert len(list(tmp_path.glob("figures/*/own_study.png"))) == 1
