"""A run's tables of interference: what `rsslib.interference` measures at snapshots of its training."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rsslib import files
from rsslib.campaign.checkpoints import checkpoint_bytes, restore
from rsslib.campaign.record import AGREEMENT, EFFECTS, is_measured
from rsslib.campaign.runs import Run
from rsslib.campaign.settings import Settings
from rsslib.data.dataset import Dataset
from rsslib.files import write_record
from rsslib.interference import EFFORTS, Effort, measure
from rsslib.machine import own_stream
from rsslib.steps import TrainingState
from rsslib.trainer import train


def effort_of(run: Run) -> Effort:
    return EFFORTS.get(run.profile.name, Effort())


def to_measure(run: Run, settings: Settings) -> bool:
    """Whether the settings want a run measured that is not."""
    if run.method.name not in settings.interference:
        return False
    folder = run.folder(settings.results)
    return not (folder / files.RECORD).exists() or not is_measured(folder)


def keeper(run: Run, folder: Path, record: dict) -> Callable[[TrainingState], None]:
    """What keeps a snapshot (weights, momentum and teacher) after the epochs that are measured, and lists it in the
    record. To be called after every epoch."""
    wanted, identity = effort_of(run).epochs(run.method), identity_of(record)

    def keep(state: TrainingState) -> None:
        if len(state.history) in wanted:
            path = snapshot(folder, len(state.history))
            content = checkpoint_bytes(state, identity)
            files.write(path, content)
            record.setdefault("snapshots", {})[path.name] = files.sha256(content)

    return keep


def snapshot(folder: Path, epoch: int) -> Path:
    return folder / f"snapshot-{epoch:06}.safetensors"


def identity_of(record: dict) -> str:
    """The configuration that a checkpoint or snapshot is of."""
    return files.sha256(json.dumps(record["config"]["training"], sort_keys=True).encode())


def measure_run(
    run: Run, folder: Path, record: dict, new_state: Callable[[], TrainingState], images: Dataset, settings: Settings,
    stop: Callable[[], bool],
) -> bool:  # fmt: skip
    """Measure a finished run and add the tables to its record; returns False if `stop` said so first.

    Snapshots that are not there are made by training again, which gives the same numbers.
    """
    effort, identity = effort_of(run), identity_of(record)
    epochs = effort.epochs(run.method)
    missing = [epoch for epoch in epochs if not _is_kept(snapshot(folder, epoch), record)]
    if missing:
        keep = keeper(run, folder, record)

        def after_epoch(state: TrainingState) -> bool:
            keep(state)
            return stop() or len(state.history) == max(missing)

        graphs = settings.graphs_on(images.device.type)
        label = f"{run.label}, for snapshots"
        train(new_state(), run.method, images, run.seed, after_epoch, label, settings.progress, graphs)
        write_record(folder, record)
    tables: dict[str, list[pd.DataFrame]] = {EFFECTS: [], AGREEMENT: []}
    for epoch, share in epochs.items():
        if stop():
            return False
        with own_stream(images.device):
            state = new_state()
            restore(state, snapshot(folder, epoch).read_bytes(), identity)
            found = measure(state, run.method, images, run.seed, effort, settings.progress)
        for parts, table in zip(tables.values(), found, strict=True):
            table.insert(0, "share", share)
            parts.append(table)
    for name, parts in tables.items():
        record["sha256"][name] = files.write_csv(folder / name, pd.concat(parts, ignore_index=True))
    write_record(folder, record)
    return True


def _is_kept(path: Path, record: dict) -> bool:
    return path.exists() and files.sha256(path.read_bytes()) == record.get("snapshots", {}).get(path.name)
