"""A run's tables of interference: what `rsslib.interference` measures at snapshots of its training."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rsslib import files
from rsslib.campaign.checkpoints import checkpoint_bytes, identity_of, restore
from rsslib.campaign.runs import Run
from rsslib.campaign.schema import AGREEMENT, EFFECTS, FORGETTING, has_table, write_record
from rsslib.campaign.settings import Settings
from rsslib.data.dataset import Dataset
from rsslib.interference import Effort, draws_once_per_epoch, forgetting, measure
from rsslib.machine import evaluation_threads, own_stream
from rsslib.steps import TrainingState
from rsslib.trainer import train

EFFORTS = {  # by profile; others take the whole
    "smoke": Effort(
        (0.5, 0.95), batches=1, gradients=4, images=128, recalibration=128, every=3, idle=2, followed_images=128
    ),
    "quick": Effort((0.5, 0.95), batches=5),
}


def effort_of(run: Run) -> Effort:
    return EFFORTS.get(run.profile.name, Effort())


def to_measure(run: Run, settings: Settings) -> bool:
    """Whether the settings want a finished run measured that is not."""
    return run.method.name in settings.interference and bool(missing_tables(run, run.folder(settings.results)))


def missing_tables(run: Run, folder: Path) -> list[str]:
    """The tables of a finished run's measurements that are still to be made."""
    wanted = [EFFECTS, AGREEMENT, *[FORGETTING] * draws_once_per_epoch(run.method)]
    return [name for name in wanted if not has_table(folder, name)]


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


def measure_run(
    run: Run, folder: Path, record: dict, new_state: Callable[[], TrainingState], images: Dataset, settings: Settings,
    stop: Callable[[], bool],
) -> bool:  # fmt: skip
    """Measure a finished run and add the tables to its record; returns False if `stop` said so first.

    Snapshots that are not there are made by training again, which gives the same numbers.
    """
    to_make, graphs = missing_tables(run, folder), settings.graphs_on(images.device.type)
    threads = evaluation_threads(images.device, settings.jobs or 1)
    if FORGETTING in to_make:
        found = forgetting(
            new_state(), run.method, images, run.seed, effort_of(run), settings.progress, threads, graphs, stop
        )
        if found is None:
            return False
        record["sha256"][FORGETTING] = files.write_csv(folder / FORGETTING, found)
        write_record(folder, record)
    if not {EFFECTS, AGREEMENT} & {*to_make}:
        return True
    effort, identity = effort_of(run), identity_of(record)
    epochs, kept = effort.epochs(run.method), record.get("snapshots", {})
    paths = {epoch: snapshot(folder, epoch) for epoch in epochs}
    missing = [e for e, p in paths.items() if not p.exists() or files.sha256(p.read_bytes()) != kept.get(p.name)]
    if missing:
        keep = keeper(run, folder, record)

        def after_epoch(state: TrainingState) -> bool:
            keep(state)
            return stop() or len(state.history) == max(missing)

        label = f"{run.label}, for snapshots"
        train(new_state(), run.method, images, run.seed, after_epoch, label, settings.progress, graphs)
        write_record(folder, record)
    tables: dict[str, list[pd.DataFrame]] = {EFFECTS: [], AGREEMENT: []}
    for epoch, share in epochs.items():
        if stop():
            return False
        with own_stream(images.device):
            state = new_state()
            restore(state, paths[epoch].read_bytes(), identity)
            tables_here = measure(state, run.method, images, run.seed, effort, settings.progress, threads)
        for parts, table in zip(tables.values(), tables_here, strict=True):
            table.insert(0, "share", share)
            parts.append(table)
    for name, parts in tables.items():
        record["sha256"][name] = files.write_csv(folder / name, pd.concat(parts, ignore_index=True))
    write_record(folder, record)
    return True
