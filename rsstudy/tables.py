"""The tables that figures are drawn from, read from the folders of finished runs.

All functions raise InputError for a folder of another configuration and for altered files; but for `finished`, also for
a run that is not finished.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from rsslib import files
from rsslib.errors import InputError, checked
from rsstudy.plan import Folder, Run, results_folder
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

KEYS = ["dataset", "backbone", "method", "seed"]


@checked
def with_all_seeds(runs: Sequence[Run], results: Folder = None) -> list[Run]:
    """Return the runs, each followed by the same run of every other seed that has a folder in `results`."""
    found: dict[Run, None] = {}
    for run in runs:
        found[run] = None
        numbers = [folder.name.removeprefix("seed") for folder in run.folder(results).parent.glob("seed*")]
        seeds = sorted(int(number) for number in numbers if number.isdecimal())
        found |= {replace(run, seed=seed): None for seed in seeds}
    return list(found)


@checked
def finished(runs: Sequence[Run], results: Folder = None) -> list[Run]:
    """Return the finished ones among `runs` and print the names of the others; raises InputError if there is none."""
    where = results_folder(results)
    files.check_folder(where, "results")
    done = []
    for run in runs:
        if status_of(run, results, configuration(run)) == "finished":
            done.append(run)
        else:
            print(f"left out, not finished: {run.name}")
    if not done:
        raise InputError(f"none of the {len(runs)} runs is finished in {where}: train them first")
    return done


def populations(runs: Sequence[Run], results: Folder = None) -> pd.DataFrame:
    """Return a row for each run and subnet: dataset, backbone, method, seed, then what `evaluate_population` gives."""
    return _table(runs, results, POPULATION)


def anchor_tables(runs: Sequence[Run], results: Folder = None) -> pd.DataFrame:
    """Return `populations` of the smallest, middle and largest subnet, whose bucket is their size.

    Leaves out runs that were evaluated without them.
    """
    return _table(runs, results, ANCHORS, [ANCHORS])


def interference_tables(runs: Sequence[Run], results: Folder = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return effects and agreement of the runs that were measured: dataset, backbone, method, seed, then what
    `rsstudy.interference.measure` gives."""
    both = [EFFECTS, AGREEMENT]
    return _table(runs, results, EFFECTS, both), _table(runs, results, AGREEMENT, both)


def forgetting_tables(runs: Sequence[Run], results: Folder = None) -> pd.DataFrame:
    """Return what `rsstudy.forgetting.forgetting` measured, of the runs where it did."""
    return _table(runs, results, FORGETTING, [FORGETTING])


def histories(runs: Sequence[Run], results: Folder = None) -> pd.DataFrame:
    """Return a row for each run and epoch: dataset, backbone, method, seed, then the history that `train` gives."""
    return _table(runs, results, HISTORY)


@checked
def times(runs: Sequence[Run], results: Folder = None) -> pd.DataFrame:
    """Return a row per run: dataset, backbone, method, seed, training_seconds, training_processor_seconds (NaN where
    they were not taken), evaluation_seconds, hardware, executor."""
    columns = ("training_seconds", "training_processor_seconds", "evaluation_seconds", "hardware", "executor")
    rows = []
    for run in runs:
        record = _record(run, results)
        rows.append(_keys(run) | {column: record.get(column, math.nan) for column in columns})
    return pd.DataFrame(rows)


@checked
def _table(runs: Sequence[Run], results: Folder, file: str, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Join a table of the runs, without those that lack one of the `needed` tables."""
    tables: list[pd.DataFrame] = []
    first: dict[tuple[str, str], str] = {}
    for run in runs:
        if not all(has_table(run.folder(results), name) for name in needed):
            continue
        record = _record(run, results)
        training = record["config"]["training"]
        for what, words in {"precision": "precision", "dataset_sha256": "images"}.items():
            if first.setdefault((run.dataset, what), training[what]) != training[what]:
                raise InputError(
                    f"{run.name} was trained with another {words} than other runs on {run.dataset}, and does not "
                    f"compare with them: leave it out, or {REBUILD}"
                )
        tables.append(read_table(run.folder(results), file, record).assign(**_keys(run)))
    if not tables:
        return pd.DataFrame(columns=[*KEYS, *TABLES[file]])
    table = pd.concat(tables, ignore_index=True)
    return table[[*KEYS, *table.columns.drop(KEYS)]]


def _keys(run: Run) -> dict[str, str | int]:
    values = (run.dataset, run.backbone, run.method.name, run.seed)
    return dict(zip(KEYS, values, strict=True))


def _record(run: Run, results: Folder) -> dict:
    """Return the record of a finished run."""
    status = status_of(run, results, configuration(run))
    if status != "finished":
        raise InputError(f"{run.name} is {status} in {results_folder(results)}: train it first")
    return read_record(run.folder(results))
