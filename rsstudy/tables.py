"""The tables that figures are drawn from, read from the folders of finished runs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rsslib import files
from rsslib.errors import InputError
from rsstudy.plan import Run, results_folder
from rsstudy.store import (
    AGREEMENT,
    ANCHORS,
    EFFECTS,
    FORGETTING,
    HISTORY,
    POPULATION,
    REBUILD,
    TABLES,
    configuration,
    has_table,
    read_record,
    read_table,
    status_of,
)


def with_all_seeds(runs: Sequence[Run], results: str | Path | None = None) -> list[Run]:
    """The runs, each followed by the same run of every other seed that has a folder in `results`."""
    found: dict[Run, None] = {}
    for run in runs:
        found[run] = None
        numbers = [folder.name.removeprefix("seed") for folder in run.folder(results).parent.glob("seed*")]
        seeds = sorted(int(number) for number in numbers if number.isdecimal())
        found |= {replace(run, seed=seed): None for seed in seeds}
    return list(found)


def finished(runs: Sequence[Run], results: str | Path | None = None) -> list[Run]:
    """Those of `runs` that are finished; prints the names of the others, raises InputError if none is.

    Raises InputError too, as the next five do, for a folder of another configuration and for altered files.
    """
    files.check_folder(results_folder(results), "results")
    done = []
    for run in runs:
        if status_of(run, results, configuration(run)) == "finished":
            done.append(run)
        else:
            print(f"left out, not finished: {run.name}")
    if not done:
        where = results_folder(results)
        raise InputError(f"none of the {len(runs)} runs, as {runs[0].name}, is finished in {where}: train them first")
    return done


def populations(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """One row for each run and subnet: dataset, backbone, method, seed, then the columns of `evaluate_population`."""
    return _tables(runs, results, POPULATION)


def anchor_tables(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """The smallest, middle and largest subnet of each run, in the columns of `populations`; the bucket is their size.

    Runs that were evaluated without them are left out; the table is empty if all were.
    """
    return _tables([run for run in runs if has_table(run.folder(results), ANCHORS)], results, ANCHORS)


def interference_tables(runs: Sequence[Run], results: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects and agreement of those runs that were measured, in the columns of `rsstudy.interference.measure` after
    share, dataset, backbone, method and seed; both empty if none was."""
    there = [run for run in runs if all(has_table(run.folder(results), name) for name in (EFFECTS, AGREEMENT))]
    return _tables(there, results, EFFECTS), _tables(there, results, AGREEMENT)


def forgetting_tables(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """What `rsstudy.forgetting.forgetting` measured of those runs where it did, after dataset, backbone, method and
    seed; empty if nothing was measured."""
    return _tables([run for run in runs if has_table(run.folder(results), FORGETTING)], results, FORGETTING)


def histories(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """One row for each run and epoch: dataset, backbone, method, seed, then the columns of `train`'s history."""
    return _tables(runs, results, HISTORY)


def _tables(runs: Sequence[Run], results: str | Path | None, file: str) -> pd.DataFrame:
    tables: list[pd.DataFrame] = []
    made: dict[tuple[str, str], str] = {}
    for run, keys, record in _finished(runs, results):
        for what, words in (("precision", "precision"), ("dataset_sha256", "images")):
            if made.setdefault((run.dataset, what), value := record["config"]["training"][what]) != value:
                raise InputError(
                    f"{run.name} was trained with another {words} than other runs on {run.dataset}, and does not "
                    f"compare with them: leave it out, or {REBUILD}"
                )
        tables.append(read_table(run.folder(results), file, record).assign(**keys))
    first = ["dataset", "backbone", "method", "seed"]
    if not tables:
        return pd.DataFrame(columns=[*first, *TABLES[file]])
    table = pd.concat(tables, ignore_index=True)
    return table[first + [column for column in table.columns if column not in first]]


def times(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """One row a run: dataset, backbone, method, seed, training_seconds, training_processor_seconds (NaN where they were
    not taken), evaluation_seconds, hardware, executor."""
    columns = ("training_seconds", "training_processor_seconds", "evaluation_seconds", "hardware", "executor")
    rows = [
        keys | {column: record.get(column, math.nan) for column in columns}
        for _, keys, record in _finished(runs, results)
    ]
    return pd.DataFrame(rows)


def _finished(runs: Sequence[Run], results: str | Path | None) -> Iterator[tuple[Run, dict, dict]]:
    """Each run with what names it in a table, and its record; raises InputError for one that is not finished."""
    for run in runs:
        if (status := status_of(run, results, configuration(run))) != "finished":
            raise InputError(f"{run.name} is {status} in {results_folder(results)}: train it first")
        keys = {"dataset": run.dataset, "backbone": run.backbone, "method": run.method.name, "seed": run.seed}
        yield run, keys, read_record(run.folder(results))
