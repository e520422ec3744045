"""A run is a folder: what identifies it, whether it is there, whole and finished."""

import json
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas as pd

from rsslib import files
from rsslib.campaign.identity import sampler_identity
from rsslib.campaign.runs import Profile, Run, results_folder
from rsslib.campaign.schema import (
    HISTORY,
    POPULATION,
    REBUILD,
    RECORD,
    TABLES,
    Refused,
    read_file,
    read_record,
    read_table,
)
from rsslib.data.readers import DATASETS
from rsslib.errors import InputError, shortened
from rsslib.files import WEIGHTS
from rsslib.methods import Method
from rsslib.progress import in_words
from rsslib.samplers import Alone, Dosed, of_bucket
from rsslib.space import RECALIBRATION_IMAGES, RESOLUTION, Arch, SearchSpace

if TYPE_CHECKING:  # PyTorch takes seconds to import, and whoever lists runs has no need of it
    from rsslib.data.dataset import Dataset

POPULATION_SEED = 0
LOCK = "run.lock"
UNKNOWN = "unknown"  # of a configuration without images or precision: matches anything
CODE_VERSION = 1  # raised whenever a configuration would give other numbers than before


def population_of(run: Run) -> dict[tuple[float, int], Arch]:
    """The subnets that a run is evaluated on, by bucket and number: the same of every supernet of a backbone; where one
    is trained alone or in a dose, that one."""
    samplers = [stage.sampler for stage in run.method.stages]
    space = SearchSpace(run.backbone, resolution=run.resolution)
    if len(samplers) == 1 and isinstance(alone := samplers[0], Alone | Dosed):
        return {(alone.bucket, alone.number): of_bucket(space, alone.bucket, alone.number)}
    return _population(space, run.profile.subnets_per_bucket)


@lru_cache(maxsize=4)
def _population(space: SearchSpace, subnets_per_bucket: int) -> dict[tuple[float, int], Arch]:
    drawn = space.population(subnets_per_bucket, seed=POPULATION_SEED)
    return {(bucket, i % subnets_per_bucket): arch for i, (bucket, arch) in enumerate(drawn)}


def configuration(run: Run, images: "Dataset | None" = None, precision: str | None = None) -> dict:
    """Everything that decides a run's numbers, the version of the code too, as JSON; equal ones are the same run.

    Without a dataset or a precision, what depends on them is `UNKNOWN` and matches anything.
    """
    stages = [vars(stage) | {"sampler": sampler_identity(stage.sampler)} for stage in run.method.stages]
    if run.dataset not in DATASETS and run.profile.epochs_for is not None:
        if images is not None:
            raise InputError(f"{run.name} was planned without its images: give plan the same folder as `data`")
        for stage in stages:  # they would suit images of one's own that are not here; see `Profile.fitted`
            stage |= dict.fromkeys(("epochs", "first_epoch", "schedule_epochs"), UNKNOWN)
    method = {**vars(run.method), "stages": stages}
    if run.method.gradients == "sum":  # records from before there was a choice do not have it
        del method["gradients"]
    return json.loads(
        json.dumps(
            {
                "training": {
                    "code_version": CODE_VERSION,
                    "profile": run.profile.name,
                    "dataset": run.dataset,
                    "dataset_sha256": images.checksum if images else UNKNOWN,
                    "train_images": len(images.x_train) if images else _taken(run, run.profile.train_images),
                    "backbone": run.backbone,
                    **({} if run.resolution == RESOLUTION else {"resolution": run.resolution}),
                    "seed": run.seed,
                    "method": method,
                    "precision": precision or UNKNOWN,
                },
                "evaluation": {
                    "test_images": len(images.x_test) if images else _taken(run, run.profile.test_images),
                    "subnets_per_bucket": run.profile.subnets_per_bucket,
                    "population_seed": POPULATION_SEED,
                    "recalibration_images": RECALIBRATION_IMAGES,
                },
            }
        )
    )


def _taken(run: Run, images: int | None) -> int | str | None:
    """How many images a run takes, if that is known without looking: one's own may be fewer than the profile takes."""
    return UNKNOWN if images is None or run.dataset not in DATASETS else images


def status_of(run: Run, results: str | Path | None, config: dict, weights: bool = False) -> str:
    """missing, training, trained (to be evaluated) or finished.

    Raises Refused if the folder holds another run, or files that are not as the run wrote them; of weights only if
    `weights`, since they are large and not needed for tables.
    """
    folder = run.folder(results)
    if not os.path.exists(folder / RECORD):  # which raises nothing
        return "missing"
    record = read_record(folder)
    status, there = record["status"], record["config"]
    differs = difference(there["training"], config["training"])
    evaluation_differs = difference(there["evaluation"], config["evaluation"])
    trained = (folder / WEIGHTS).exists()
    if status == "finished" and not trained:  # nothing left to evaluate anew
        differs = differs or evaluation_differs
    if differs:
        raise Refused(
            f"{folder} holds a run of another configuration ({differs}): give another results folder, or {REBUILD}"
        )
    if status == "training" or not (trained or status == "finished"):
        return "training"
    read_file(folder / HISTORY, record)
    if trained and weights:
        read_file(folder / WEIGHTS, record)
    if status == "finished" and not evaluation_differs and (not trained or (folder / POPULATION).exists()):
        for name in TABLES:
            if name in record["sha256"] and (name == POPULATION or (folder / name).exists()):
                read_file(folder / name, record)
        return "finished"
    return "trained"


def overview(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """One row a run: run, status, epoch, epochs, loss, and seconds_left of training.

    The status is finished, running (some process is at it), interrupted, missing or other (the folder holds another
    configuration's run, or damaged files). Epoch (how many are done), loss and seconds left are those of runs that have
    begun; what has not is estimated from finished and running ones of the same dataset. NaN where nothing is known.
    """
    files.check_folder(results_folder(results), "results")
    rows: list[dict[str, Any]] = []
    rates: dict[str, list[float]] = {}  # by dataset, seconds of an epoch for each subnet of a step
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "status": "other", "epoch": 0, "epochs": run.method.epochs}
        row["loss"] = math.nan
        rows.append(row)
        try:
            row["status"] = status_of(run, results, configuration(run))
            if row["status"] == "missing":
                continue
            record = read_record(run.folder(results))
        except InputError:
            continue
        if row["status"] in ("training", "trained"):
            row["status"] = "running" if is_locked(run.folder(results)) else "interrupted"
        trained = "training_seconds" in record
        row["epochs"] = sum(stage["epochs"] for stage in record["config"]["training"]["method"]["stages"])
        progress = record.get("progress", {})
        row["epoch"] = row["epochs"] if trained else progress.get("epoch", 0)
        row["loss"] = progress.get("loss", math.nan)
        seconds = record["training_seconds"] if trained else progress.get("seconds", 0)
        if row["epoch"]:
            rates.setdefault(run.dataset, []).append(seconds / run.method.subnet_epochs_of(row["epoch"]))
    for run, row in zip(runs, rows, strict=True):
        left = run.method.subnet_epochs - run.method.subnet_epochs_of(row["epoch"])
        row["seconds_left"] = left * float(numpy.median(rates.get(run.dataset, [math.nan]))) if left else 0.0
    return pd.DataFrame(rows, columns=["run", "status", "epoch", "epochs", "loss", "seconds_left"])


def finished_of(runs: Sequence[Run], results: str | Path | None = None) -> list[Run]:
    """Those of `runs` that are finished; what is in the way of others is for `overview` to say."""
    status = overview(runs, results)["status"]
    return [run for run, there in zip(runs, status == "finished", strict=True) if there]


def finished_runs(results: str | Path, profile: str, backbone: str, resolution: int = RESOLUTION) -> list[Run]:
    """The finished and undamaged runs of a profile, a backbone and a resolution below `results`.

    They are found by their records, so that runs of your own count too. The stages of their methods are left empty.
    """
    runs = []
    for path in sorted(Path(results, profile).glob(f"*/{backbone}*/*/seed*/{RECORD}")):
        try:
            record = read_record(path.parent)
            training, evaluation = record["config"]["training"], record["config"]["evaluation"]
            images = {"train_images": training["train_images"], "test_images": evaluation["test_images"]}
            scale = Profile(profile, (training["dataset"],), evaluation["subnets_per_bucket"], **images)
            method = Method(training["method"]["name"], (), dropout=training["method"]["dropout"])
            run = Run(scale, training["dataset"], backbone, method, training["seed"], resolution)
            read_table(path.parent, POPULATION, record)  # raises if it is not as the run wrote it
            if record["status"] == "finished" and run.folder(results) == path.parent:  # not one that leads elsewhere
                runs.append(run)
        except (ValueError, KeyError):
            continue  # not the record of a run, or damaged
    return runs


def overview_words(table: pd.DataFrame) -> str:
    """`overview` to read, with a last line for all runs."""
    shown = table[["run", "status"]].assign(
        epochs=[f"{row.epoch}/{row.epochs}" for row in table.itertuples()],
        loss=["" if math.isnan(loss) else f"{loss:.2f}" for loss in table["loss"]],
        left=["" if row.status == "finished" else in_words(row.seconds_left) for row in table.itertuples()],
    )
    done, unknown = (table["status"] == "finished").sum(), table["seconds_left"].isna().any()
    left = "unknown until an epoch is trained" if unknown else in_words(table["seconds_left"].sum())
    words = f"{done} of {len(table)} runs are finished; training left, one run at a time: {left}"
    return f"{shown.to_string(index=False)}\n\n{words}"


def set_aside(folder: Path) -> Path:
    """Move the files of a run to a new folder `replaced-seed<k>-<n>` beside its own; only for who holds its lock."""
    names = (folder.with_name(f"replaced-{folder.name}-{n}") for n in range(1, 10**6))
    aside = next(path for path in names if not path.exists())
    with files.writing(aside):
        aside.mkdir()
        # the record last: until it has gone, whoever looks finds the run that was refused
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
            if path.suffix != ".lock":
                path.rename(aside / path.name)
    return aside


def is_locked(folder: Path) -> bool:
    """Whether some process is at the run."""
    if not os.path.exists(folder / LOCK):
        return False
    try:
        with files.locked(folder / LOCK) as mine:
            return not mine
    except InputError:  # in a folder that may only be read
        return False


def difference(there, here, path: str = "") -> str:
    """The first difference of two JSON values in words; empty if they are equal or `here` is unknown."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here}}
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = dict(enumerate(zip(there, here, strict=True)))
    else:
        if here in (UNKNOWN, there):
            return ""
        return f"{shortened(path)} is {shortened(repr(there))} there and {shortened(repr(here))} here"
    return next((words for key, pair in pairs.items() if (words := difference(*pair, f"{path}.{key}".strip(".")))), "")
