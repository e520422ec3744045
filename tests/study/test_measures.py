"""Runs that are measured: their tables, their snapshots, and what stays as it was."""

import pytest
import small_runs
from small_runs import tiny

from rsslib.errors import InputError, Stopped
from rsstudy import measurement
from rsstudy.interference import Effort
from rsstudy.measurement import Measurement, get_effort
from rsstudy.store import Refused, read_record
from rsstudy.tables import interference_tables

TABLES = ("effects.csv", "agreement.csv")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    effort = Effort((0.3, 0.9), batches=1, gradients=2, images=20, recalibration=40)
    monkeypatch.setitem(measurement.EFFORTS, "test", effort)


def complete(run, results, *methods):
    small_runs.complete([run], results, measure=Measurement(methods))
    return run.folder(results)


def contents(folder):
    names = ("population.csv", "anchors.csv", *TABLES)
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


@pytest.mark.parametrize("method", ["rss", "ofa"])
def test_a_run_is_measured_while_it_trains_or_later_with_the_same_numbers(method, tmp_path):
    (run,) = tiny(method)
    at_once = complete(run, tmp_path / "at once", method)
    later = complete(run, tmp_path / "later")
    assert not set(TABLES) & set(contents(later))
    before = contents(later)
    assert complete(run, tmp_path / "later", method) == later
    assert contents(later) == contents(at_once) and before.items() <= contents(later).items()
    effects, agreement = interference_tables([run], tmp_path / "later")
    assert sorted(set(effects["share"])) == sorted(set(agreement["share"])) == [0.3, 0.9]
    assert set(effects["method"]) == {method}
    kept = sorted(path.name for path in later.glob("snapshot-*"))
    assert kept == [f"snapshot-{epoch:06}.safetensors" for epoch in sorted(get_effort(run).epochs(run.method))]
    record = read_record(later)
    assert sorted(record["snapshots"]) == kept and set(TABLES) < set(record["sha256"])


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    (run,) = tiny("rss")
    complete(run, tmp_path, "rss")
    monkeypatch.setattr(Measurement, "measure", lambda *arguments: pytest.fail("measured again"))
    for path in run.folder(tmp_path).glob("snapshot-*"):
        path.unlink()
    complete(run, tmp_path, "rss")


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_rebuilt_and_a_lost_one_measured_again(name, tmp_path):
    (run,) = tiny("rss")
    folder = complete(run, tmp_path, "rss")
    before = contents(folder)
    (folder / name).write_text("share\n1\n")
    with pytest.raises(Refused, match=name):
        complete(run, tmp_path, "rss")
    small_runs.complete([run], tmp_path, measure=Measurement(["rss"]), rebuild=True)
    assert contents(folder) == before
    (folder / name).unlink()
    assert all(table.empty for table in interference_tables([run], tmp_path))
    complete(run, tmp_path, "rss")
    assert contents(folder) == before


def test_measuring_that_is_stopped_goes_on_from_the_snapshots(tmp_path, monkeypatch):
    (run,) = tiny("rss")
    folder = complete(run, tmp_path / "whole", "rss")
    measure, calls = measurement.measure, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(measurement, "measure", interrupted)
    with pytest.raises(Stopped):
        complete(run, tmp_path / "stopped", "rss")
    assert complete(run, tmp_path / "stopped", "rss") and len(calls) == 4
    assert contents(run.folder(tmp_path / "stopped")) == contents(folder)


@pytest.mark.parametrize("methods", ["rss", None, 5])
def test_methods_to_measure_are_a_list(methods):
    with pytest.raises(InputError, match="methods is .*: expected a list in which each entry is text"):
        Measurement(methods)
