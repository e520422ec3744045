"""The tables that figures are drawn from, read from the folders of finished runs."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rsslib import files
from rsslib.data.dataset import Dataset
from rsslib.deploy.exporting import Deployable
from rsslib.device import choose_device
from rsslib.errors import InputError
from rsslib.files import WEIGHTS
from rsslib.space import Arch
from rsslib.supernet import SuperNet
from rsstudy.engine import images_of, space_of
from rsstudy.plan import Run, Settings, results_folder
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
    read_tensors,
    status_of,
)


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
    """What `rsstudy.interference.forgetting` measured of those runs where it did, after dataset, backbone, method and
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


def trained_supernet(run: Run, settings: Settings | None = None) -> tuple[SuperNet, Dataset]:
    """The supernet of a finished run in eval mode, with its dataset, on the settings' device.

    Raises InputError if its weights are not there, altered or those of a run of another configuration, and if the
    dataset is not the one it was trained on.
    """
    settings = settings or Settings(device="cpu")
    if (status := status_of(run, settings.results, configuration(run))) in ("missing", "training"):
        how = {"missing": "was not trained", "training": "is not trained to its end"}[status]
        raise InputError(
            f"{run.name} {how} in {settings.results}: train it with `rsslib run` and the same options, or "
            "`rsstudy.engine.complete`"
        )
    supernet, images = stored_supernet(run, settings)
    status_of(run, settings.results, configuration(run, images))  # which compares the images too
    return supernet, images


def stored_supernet(run: Run, settings: Settings) -> tuple[SuperNet, Dataset]:
    """`trained_supernet` of whatever was trained in the run's folder, for runs that are known by their records."""
    path = run.folder(settings.results) / WEIGHTS
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: weights stay on the machine that trained them, so train the run here")
    record = read_record(path.parent)
    settings = replace(settings, device=str(choose_device(settings.device)))
    images = images_of(run, settings)
    if images.checksum != record["config"]["training"]["dataset_sha256"]:
        raise InputError(
            f"the dataset {run.dataset} here is another than the one that {run.name} was trained on: "
            f"restore it in {settings.data}, or {REBUILD}"
        )
    space = space_of(run, images)
    supernet = SuperNet(space, run.method.dropout).to(settings.device)
    supernet.load_state_dict(read_tensors(path, record))
    return supernet.eval(), images


def deployable(
    trained: Run | SuperNet, arch: Arch | None = None, images: Dataset | None = None, settings: Settings | None = None
) -> Deployable:
    """A subnet as a module from uint8 images [N, C, R, R] to logits [N, classes], on the CPU and in eval mode.

    `trained` is a finished run, whose dataset is read with it, or a supernet with the images to recompute statistics
    from. `arch` is by default the space's middle. Raises InputError if the run is not finished or its weights are not
    here, if a supernet comes without images, and for an architecture outside the space.
    """
    if isinstance(trained, Run):
        supernet, own = trained_supernet(trained, settings)
        images = own if images is None else images
    elif not isinstance(trained, SuperNet):
        raise InputError(f"a {type(trained).__name__} cannot be deployed: expected a Run or a SuperNet")
    elif images is None:
        raise InputError("a supernet has no images of its own: give those to recompute batch norm statistics from")
    else:
        supernet = trained
    return Deployable.of(supernet, supernet.space.middle if arch is None else arch, images)
