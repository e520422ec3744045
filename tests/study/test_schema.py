"""rsstudy.store: records and tables of strangers, with valid digests, are read or refused in one sentence."""

import math
import shutil
import time
from dataclasses import replace

import pandas as pd
import pytest
from helpers import sentence
from small_runs import complete, tiny

from rsslib import files
from rsslib.errors import InputError
from rsstudy.plan import Profile
from rsstudy.store import finished_runs, overview, read_record, write_record
from rsstudy.tables import anchor_tables, finished, histories, populations, times

PROFILE = Profile("test", ("digits",), subnets_per_bucket=1, supernet_epochs=1, train_images=32, test_images=20)


def planned():
    return tiny("rss-short", profile=PROFILE)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    complete(planned(), results)
    return results


@pytest.fixture
def results(done, tmp_path):
    return shutil.copytree(done, tmp_path / "results")


def rewrite(results, change, run=None):
    """The record with `change` applied, and digests that fit."""
    folder = (run or planned()[0]).folder(results)
    record = read_record(folder)
    change(record)
    write_record(folder, record)
    return folder


LONG = "x" * 200_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("training_seconds", value) for value in (None, "an hour", -1, 10**400, [], True, math.inf, math.nan)),
        ("hardware", LONG),
        ("hardware", 5),
        ("hardware", "\ud800"),
        ("status", "done"),
        ("status", LONG),
        ("executor", None),
        *(("threads", value) for value in (None, -1, 0, "two")),
        ("versions", {LONG: 1}),
        ("config", []),
        ("machines", "many"),
        ("versions", [1]),
        ("other", 60 * LONG),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_record_that_no_run_writes_is_refused_at_once(key, value, results):
    rewrite(results, lambda record: record.update({key: value}))
    began = time.monotonic()
    for read in (finished, populations, times):
        with pytest.raises(InputError, match="run.json") as error:
            read(planned(), results)
        assert len(sentence(error)) < 1000
    assert overview(planned(), results).status.tolist() == ["other"]
    assert finished_runs(results, "test", "tiny") == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("content", ["", "loss,seconds\n", "loss,seconds\n1,a\n", "epoch\n1\n", "\0"])
def test_overview_ignores_an_unusable_history_of_a_run_in_training(content, results):
    folder = rewrite(results, lambda record: (record.update(status="training"), record.pop("training_seconds")))
    (folder / "live.csv").write_text(content)
    table = overview(planned(), results)
    assert table.status.tolist() == ["interrupted"] and table.epoch.tolist() == [0]


@pytest.mark.parametrize("epochs", [None, "many", [], 10**400], ids=lambda value: str(value)[:20])
def test_stages_of_strangers_have_a_number_of_epochs(epochs, results):
    profile = replace(PROFILE, datasets=("own",), epochs_for=32)  # the images are elsewhere, so any epochs will do
    (own,) = tiny("rss-short", profile=profile, data=results)
    shutil.copytree(planned()[0].folder(results), own.folder(results))
    rewrite(results, lambda record: record["config"]["training"].update(dataset="own"), own)
    assert overview([own], results).status.tolist() == ["finished"]
    rewrite(results, lambda record: record["config"]["training"]["method"]["stages"][0].update(epochs=epochs), own)
    assert overview([own], results).status.tolist() == ["other"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("teacher", LONG, "another configuration")]
    + [("stages", value, "is not the record of a run .*stages") for value in (LONG, None, 3, ["one"], [{}])],
    ids=lambda value: str(value)[:20],
)
def test_a_method_that_no_run_writes_is_refused_in_a_sentence(field, value, said, results):
    rewrite(results, lambda record: record["config"]["training"]["method"].update({field: value}))
    with pytest.raises(InputError, match=said) as error:
        finished(planned(), results)
    assert sentence(error)


@pytest.mark.parametrize("key", ["training_seconds", "hardware", "executor", "status", "config"])
def test_what_a_finished_run_always_says_may_not_be_missing(key, results):
    rewrite(results, lambda record: record.pop(key))
    with pytest.raises(InputError, match=key):
        times(planned(), results)


@pytest.mark.parametrize("name", ["../../../x", "/etc", "..", "", LONG, "a b"])
def test_names_that_lead_out_of_the_results_are_no_names(name, results, tmp_path):
    for what in ("dataset", "method", "backbone"):

        def change(record, what=what):
            training = record["config"]["training"]
            (training["method"] if what == "method" else training).update({"name" if what == "method" else what: name})

        copy = shutil.copytree(results, tmp_path / what)
        rewrite(copy, change)
        assert finished_runs(copy, "test", "tiny") == []


def test_a_record_that_names_another_folder_is_not_offered(results):
    rewrite(results, lambda record: record["config"]["training"].update(seed=7))
    assert finished_runs(results, "test", "tiny") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "No columns"),
        (b"\xff\xfe\x00\x01", "is not a table of a run"),
        (b"bucket,subnet,mflops,kernel,expand,depth,accuracy\n", "no rows"),
        (b"bucket,accuracy\n1,2\n3,4,5,6\n", "Expected 2 fields"),
        (b"bucket,subnet,mflops,kernel,expand,depth,accuracy\n4,0,4,3,3,2,lots\n", "lots"),
        (b"bucket,subnet,mflops,kernel,expand,depth,accuracy\n4,0,4,3,3,2,101\n", "values that no run writes"),
        (b"bucket,subnet,mflops,kernel,expand,depth,accuracy\n4,0,4,3,3,2,nan\n", "values that no run writes"),
        (b"bucket,subnet,mflops,kernel,expand,depth\n4,0,4,3,3,2\n", "accuracy.* not in index"),
    ],
)
def test_a_table_that_no_run_writes_is_refused(content, said, results):
    folder = planned()[0].folder(results)
    (folder / "population.csv").write_bytes(content)
    rewrite(results, lambda record: record["sha256"].update({"population.csv": files.sha256(content)}))
    with pytest.raises(InputError, match=said) as error:
        populations(planned(), results)
    assert "population.csv" in str(error.value) and "rebuild" in str(error.value)
    assert finished_runs(results, "test", "tiny") == []


def test_what_runs_write_is_read(done):
    for read, rows in ((populations, 3), (anchor_tables, 3), (histories, 1)):
        assert isinstance(table := read(planned(), done), pd.DataFrame) and len(table) == rows
