"""A run is a folder: what identifies it, whether it is there, whole and finished."""

import dataclasses
import inspect
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

import numpy
import pandas as pd
from filelock import FileLock, Timeout

from rsslib import files
from rsslib.campaign.runs import Run
from rsslib.data.readers import DATASETS
from rsslib.errors import InputError
from rsslib.files import REBUILD, Refused, read_record
from rsslib.samplers import Sampler
from rsslib.space import RECALIBRATION_IMAGES, RESOLUTION, Arch, SearchSpace

if TYPE_CHECKING:  # PyTorch takes seconds to import, and whoever lists runs has no need of it
    from rsslib.data.dataset import Dataset

POPULATION_SEED = 0
HISTORY, POPULATION, ANCHORS, WEIGHTS = "history.csv", "population.csv", "anchors.csv", "weights.safetensors"
CARD = "card.json"  # of the weights; see rsslib.cards
LOCK = "run.lock"
CODE_VERSION = 1  # raised whenever a configuration would give other numbers than before


@lru_cache(maxsize=4)
def population_of(backbone: str, subnets_per_bucket: int, resolution: int = RESOLUTION) -> list[tuple[float, Arch]]:
    """The subnets on which every run of a backbone is evaluated, with their buckets."""
    return SearchSpace(backbone, resolution=resolution).population(subnets_per_bucket, seed=POPULATION_SEED)


def configuration(run: Run, images: "Dataset | None" = None, precision: str | None = None) -> dict:
    """Everything that decides a run's numbers, the version of the code too, as JSON; equal ones are the same run.

    Without a dataset or a precision, what depends on them is None and matches anything.
    """
    method = dataclasses.asdict(run.method)
    for stage, record in zip(run.method.stages, method["stages"], strict=True):
        record["sampler"] = _words_for(stage.sampler)
    return json.loads(
        json.dumps(
            {
                "training": {
                    "code_version": CODE_VERSION,
                    "profile": run.profile.name,
                    "dataset": run.dataset,
                    "dataset_sha256": images and images.checksum,
                    "train_images": len(images.x_train) if images else _taken(run, run.profile.train_images),
                    "backbone": run.backbone,
                    **({} if run.resolution == RESOLUTION else {"resolution": run.resolution}),
                    "seed": run.seed,
                    "method": method,
                    "precision": precision,
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


def _taken(run: Run, images: int | None) -> int | None:
    """How many images a run takes, if that is known without looking: one's own may be fewer than the profile takes."""
    return images if run.dataset in DATASETS else None


def _words_for(sampler: Sampler) -> str:
    """What decides a sampler's draws: its settings and, if it is not one of this package's, its code."""
    kind = type(sampler)
    shown = repr(sampler) if kind.__repr__ is not object.__repr__ else f"{kind.__name__}({vars(sampler)})"
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:  # whose changes CODE_VERSION tells
        return shown
    methods = inspect.getmembers(kind, inspect.isfunction)  # sorted by name
    code = repr([(name, _compiled(f.__code__)) for name, f in methods if not name.startswith("__")])
    return f"{shown}, code {files.sha256(code.encode())[:16]}"


def _compiled(code: CodeType) -> tuple:
    """What a function does, whichever file it is from; a class that came from another process has no source."""
    constants = [
        _compiled(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]
    return code.co_code, code.co_names, constants


def status_of(run: Run, results: str | Path | None, config: dict, weights: bool = False) -> str:
    """missing, training, trained (to be evaluated) or finished.

    Raises InputError if the folder holds another run, or files that are not as the run wrote them; of weights only if
    `weights`, since they are large and not needed for tables.
    """
    folder = run.folder(results)
    if not (folder / files.RECORD).exists():
        return "missing"
    record = read_record(folder)
    try:
        status, there = record["status"], record["config"]
        differs = difference(there["training"], config["training"])
        evaluation_differs = difference(there["evaluation"], config["evaluation"])
    except (KeyError, TypeError):
        raise Refused(f"{folder / files.RECORD} is not the record of a run: {REBUILD}") from None
    trained = (folder / WEIGHTS).exists()
    if status == "finished" and not trained:  # nothing left to evaluate anew
        differs = differs or evaluation_differs
    if differs:
        raise Refused(
            f"{folder} holds a run of another configuration ({differs}): give another results folder, or {REBUILD}"
        )
    if status == "training" or not (trained or status == "finished"):
        return "training"
    files.read(folder / HISTORY, record)
    if trained and weights:
        files.read(folder / WEIGHTS, record)
    if status == "finished" and not evaluation_differs and (not trained or (folder / POPULATION).exists()):
        files.read(folder / POPULATION, record)
        return "finished"
    return "trained"


def overview(runs: Sequence[Run], results: str | Path | None = None) -> pd.DataFrame:
    """One row a run: run, status, epochs, subnet_epochs (epochs times subnets a step) and estimated_hours of training.

    The status is finished, running (some process is at it), interrupted, missing or other (the folder holds another
    configuration's run, or damaged files). Hours are estimated from the finished runs of the same dataset; NaN if there
    is none.
    """
    rows, rates = [], {}
    for run in runs:
        try:
            status = status_of(run, results, configuration(run))
        except InputError:
            status = "other"
        if status in ("training", "trained"):
            status = "running" if is_locked(run.folder(results)) else "interrupted"
        if status == "finished":
            seconds = read_record(run.folder(results))["training_seconds"]
            rates.setdefault(run.dataset, []).append(seconds / run.method.subnet_epochs)
        rows.append((run, status))
    return pd.DataFrame(
        {
            "run": run.name,
            "status": status,
            "epochs": run.method.epochs,
            "subnet_epochs": run.method.subnet_epochs,
            "estimated_hours": 0.0
            if status == "finished"
            else run.method.subnet_epochs * float(numpy.median(rates.get(run.dataset, [math.nan]))) / 3600,
        }
        for run, status in rows
    )


def is_locked(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def difference(there, here, path: str = "") -> str:
    """The first difference of two JSON values in words; empty if they are equal or `here` is None."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here}}
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = dict(enumerate(zip(there, here, strict=True)))
    else:
        return "" if here is None or there == here else f"{path} is {there!r} there and {here!r} here"
    return next((words for key, pair in pairs.items() if (words := difference(*pair, f"{path}.{key}".strip(".")))), "")
