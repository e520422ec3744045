"""Measure finished runs of some methods: interference, from snapshots of their training, and forgetting."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rsslib import files
from rsslib.checkpoint import restore
from rsslib.device import isolated
from rsslib.errors import checked
from rsslib.steps import TrainingState
from rsstudy.forgetting import draws_once_per_epoch, forgetting
from rsstudy.interference import Effort, Trial, measure
from rsstudy.machine import executor_for
from rsstudy.plan import Run
from rsstudy.store import AGREEMENT, EFFECTS, FORGETTING, has_table, identity_of

EFFORTS = {  # by profile; other profiles take the default
    "smoke": Effort(
        (0.5, 0.95),
        batches=1,
        gradients=4,
        images=128,
        recalibration=128,
        every=3,
        idle=2,
        followed_images=128,
    ),
    "quick": Effort((0.5, 0.95), batches=5),
}


def get_effort(run: Run) -> Effort:
    return EFFORTS.get(run.profile.name, Effort())


@checked
@dataclass(frozen=True)
class Measurement:
    """Measure finished runs of these methods in the engine: `Settings(measure=Measurement(["rss"]))`."""

    methods: Sequence[str]

    def epochs(self, run: Run) -> Collection[int]:
        """Return the epochs of training after which the engine keeps a snapshot."""
        return get_effort(run).epochs(run.method) if run.method.name in self.methods else ()

    def missing(self, run: Run, folder: Path) -> list[str]:
        """Return the names of the tables that a finished run still lacks."""
        wanted = [EFFECTS, AGREEMENT, *[FORGETTING] * draws_once_per_epoch(run.method)]
        return [name for name in wanted if run.method.name in self.methods and not has_table(folder, name)]

    def measure(self, job: Any) -> bool:
        """Add the missing tables to the record of a finished run; returns False if it was time to stop.

        If snapshots are missing, the run trains again, with the same numbers, to make them. `job` is the engine's job.
        """
        missing = self.missing(job.run, job.folder)
        for make, names in {_forgetting: [FORGETTING], _effects: [EFFECTS, AGREEMENT]}.items():
            if set(names).isdisjoint(missing):
                continue
            tables = make(job, get_effort(job.run))
            if tables is None:
                return False
            for name, table in zip(names, tables, strict=True):
                job.record["sha256"][name] = files.write_csv(job.folder / name, table)
            job.save()
        return True


def _forgetting(job: Any, effort: Effort) -> list[pd.DataFrame] | None:
    run, images = job.run, job.images
    how = {"progress": job.settings.progress, "executor": executor_for(job.settings, images.device)}
    threads = job.evaluation["threads"]
    table = forgetting(job.new_state(), run.method, images, run.seed, effort, threads, job.is_time, **how)
    return None if table is None else [table]


def _effects(job: Any, effort: Effort) -> list[pd.DataFrame] | None:
    run, images, found = job.run, job.images, []
    epochs = effort.epochs(run.method)
    _restore_snapshots(job, epochs)
    for epoch, share in epochs.items():
        if job.is_time():
            return None
        with isolated(images.device):
            state = job.new_state()
            restore(state, files.read_regular(job.snapshot(epoch)), identity_of(job.record))
            trial = Trial(state, run.method, images, run.seed, effort, job.evaluation["threads"])
            tables = measure(trial, job.settings.progress)
        for table in tables:
            table.insert(0, "share", share)
        found.append(tables)
    return [pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True)]


def _restore_snapshots(job: Any, epochs: Collection[int]) -> None:
    """Make all snapshots again if any is missing or altered."""
    kept, paths = job.record.get("snapshots", {}), [job.snapshot(epoch) for epoch in epochs]
    if all(path.exists() and files.sha256(files.read_regular(path)) == kept.get(path.name) for path in paths):
        return

    def after_epoch(state: TrainingState) -> bool:
        if len(state.history) in epochs:
            job.keep_snapshot(state)
        return job.is_time() or len(state.history) == max(epochs)

    job.train_epochs(job.new_state(), after_epoch)
    job.save()
