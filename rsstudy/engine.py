"""The engine: train and evaluate runs that are missing, resume what was interrupted.

A run is a folder with a lock and a record. Any number of processes may be given the same list of runs: each takes the
runs that are free, then waits for the rest.
"""

import json
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rsslib import files
from rsslib.checkpoint import (
    checkpoint_bytes,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_card,
)
from rsslib.data.dataset import Dataset, cached_dataset
from rsslib.data.readers import DATASETS, LICENCES, is_there
from rsslib.device import (
    choose_device,
    evaluation_threads,
    free_memory,
    is_out_of_memory,
    release_memory,
    use_threads,
)
from rsslib.errors import CaptureFailed, InputError, NoImages, Stopped, check_room
from rsslib.evaluate import evaluate_population
from rsslib.files import CARD, WEIGHTS
from rsslib.population import anchors
from rsslib.progress import progress_bar
from rsslib.space import SearchSpace
from rsslib.steps import TrainingState
from rsslib.supernet import SuperNet
from rsslib.trainer import start, train
from rsstudy.machine import environment, executor_for, free_jobs, resumed, step_bytes
from rsstudy.plan import Run, Settings
from rsstudy.store import (
    ANCHORS,
    HISTORY,
    LOCK,
    POPULATION,
    REBUILD,
    Refused,
    configuration,
    identity_of,
    population_of,
    read_record,
    read_tensors,
    set_aside,
    status_of,
    write_record,
)
from rsstudy.workers import Results, in_processes, in_threads, one_by_one


class RunsFailed(RuntimeError):
    """Some runs failed while others may have finished; `failures` maps their names to the exceptions."""

    def __init__(self, failures: Mapping[str, BaseException]):
        self.failures = failures
        texts = [f"{name} ({type(error).__name__}: {error})" for name, error in failures.items()]
        super().__init__(f"{len(failures)} of the runs failed: {'; '.join(texts)}")

    def _render_traceback_(self) -> list[str]:  # in a notebook, a stack only for errors that nobody expected
        unexpected = [e for e in self.failures.values() if not isinstance(e, (InputError, FloatingPointError))]
        return [*("".join(traceback.format_exception(error)) for error in unexpected), f"RunsFailed: {self}"]


def complete(
    runs: Sequence[Run], settings: Settings | None = None, finished: Callable[[Run], None] = lambda run: None
) -> None:
    """Finish every run, in this order: read what is there, resume what was begun, train what is missing.

    `finished` is called with each run once it is finished, including those that are at the start. With a time budget,
    `by_worth` orders runs so that what is finished by then is worth most. Finished runs do not need their dataset; if
    one is missing and cannot be downloaded, its runs are named and left out, unless nothing is finished.

    Everything is checked before anything is trained: raises InputError. A folder with a damaged run, or one of another
    configuration, code version or dataset, is refused, or with `settings.rebuild` set aside. A run that fails does not
    stop the others; RunsFailed, at the end, names it. CaptureFailed stops everything, since this process can no longer
    use the device. Ctrl-C stops everything (Stopped); the same call resumes from the last checkpoints.
    """
    settings = settings or Settings()
    deadline = time.time() + (math.inf if settings.time_budget is None else settings.time_budget)
    done, todo, settings = prepare(runs, settings)
    several = in_threads if settings.device.startswith("cuda") else in_processes
    call = one_by_one if settings.jobs == 1 else several

    def attempts(runs: Sequence[Run], wait: bool) -> Results:
        if not (wait and time.time() >= deadline):
            attempt_it = partial(attempt, settings=settings, deadline=deadline, wait=wait)
            yield from call(settings.jobs or 1, attempt_it, runs)

    finish(done, todo, attempts, settings.progress, finished)


def finish(
    done: Sequence[Run],
    todo: Sequence[Run],
    attempts: Callable[[Sequence[Run], bool], Results],
    progress: bool,
    finished: Callable[[Run], None],
) -> None:
    """Attempt the runs `todo` that are free, then wait for those that other processes hold.

    `attempts(runs, wait)` yields every run with the result of `attempt`, in the order in which they end.
    """
    for run in done:
        finished(run)
    if not todo:
        return
    failures: dict[str, Exception] = {}
    words, n = f"{{}} of {len(done) + len(todo)} runs are finished", len(done)
    total = sum(run.method.subnet_epochs for run in todo)
    look = {"desc": words.format(n), "bar_format": "{desc}, {remaining} left", "position": 0, "smoothing": 0}
    try:
        with progress_bar(shown=progress and len(todo) > 1, total=total, **look) as bar:
            for wait in (False, True):
                with closing(attempts(todo, wait)) as results:
                    todo = []
                    for run, result in results:
                        if isinstance(result, CaptureFailed):
                            raise result
                        if isinstance(result, Exception):
                            failures[run.name] = result
                        elif not result:
                            todo.append(run)
                        else:
                            n += 1
                            bar.update(run.method.subnet_epochs)
                            bar.set_description_str(words.format(n))
                            finished(run)
                if not todo:
                    break
    except KeyboardInterrupt:
        raise Stopped("stopped; the same call resumes from the last checkpoints") from None
    if failures:
        raise RunsFailed(failures) from next(iter(failures.values()))


def prepare(runs: Iterable[Run], settings: Settings) -> tuple[list[Run], list[Run], Settings]:
    """Check everything, so that a mistake in the last run costs nothing.

    Returns the finished runs, those to train, and the settings with a device and a number of jobs. Runs whose dataset
    is missing are named and left out, if any run is finished.
    """
    runs = _distinct(runs)
    finished = {run.name for run in runs if _is_finished(run, settings)}
    needs_cuda = any(run.profile.needs_cuda for run in runs if run.name not in finished) and settings.device == "auto"
    device = choose_device(settings.device, needed=needs_cuda)
    settings = replace(settings, device=str(device))
    done: list[Run] = []
    todo: list[Run] = []
    absent: dict[str, NoImages] = {}
    for run in runs:
        population_of(run)
        try:  # a finished run does not need its images, but is compared with those that are here
            needed = run.name not in finished or is_there(run.dataset, settings.data)
            images = images_of(run, settings) if needed else None
        except NoImages as error:
            absent[run.name] = error
            continue
        (done if _is_finished(run, settings, images, strict=True) else todo).append(run)
    if absent and not done:
        raise next(iter(absent.values()))
    for name, why in absent.items():
        print(f"not trained: {name}: {why}")
    for run in todo:
        files.check_writable(run.folder(settings.results), "results")
    jobs = min(settings.jobs or free_jobs(device, todo), len(todo))
    return done, todo, replace(settings, jobs=max(1, jobs))


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """The runs, each once; raises InputError if two different ones would share a folder."""
    by_name: dict[str, Run] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) != run:
            raise InputError(f"two different runs are called {run.name}: give their methods different names")
    return list(by_name.values())


def _is_finished(run: Run, settings: Settings, images: Dataset | None = None, strict: bool = False) -> bool:
    """Whether nothing is left to do for a run.

    `strict` checks weights too, and raises Refused for a folder that holds another run, unless it is to be rebuilt.
    """
    config = configuration(run, images, settings.precision)
    try:
        status = status_of(run, settings.results, config, weights=strict)
    except Refused:
        if strict and not settings.rebuild:
            raise
        return False
    return status == "finished" and not _to_measure(run, settings)


def _to_measure(run: Run, settings: Settings) -> bool:
    return settings.measure is not None and bool(settings.measure.missing(run, run.folder(settings.results)))


def images_of(run: Run, settings: Settings) -> Dataset:
    """The dataset of a run, as much of it as its profile takes, on the settings' device.

    A custom dataset may have fewer images than the profile takes: then all of them.
    """
    profile, size = run.profile, run.resolution
    if run.dataset in DATASETS:
        counts = profile.train_images, profile.test_images
        return cached_dataset(run.dataset, settings.data, settings.device, *counts, size)
    images = cached_dataset(run.dataset, settings.data, settings.device, resolution=size)
    train, test = slice(profile.train_images), slice(profile.test_images)
    return replace(
        images,
        x_train=images.x_train[train],
        y_train=images.y_train[train],
        x_test=images.x_test[test],
        y_test=images.y_test[test],
    )


def space_of(run: Run, images: Dataset) -> SearchSpace:
    """The search space of a run, with the channels and classes of its dataset."""
    return SearchSpace(run.backbone, in_channels=images.channels, classes=images.n_classes, resolution=run.resolution)


def trained_supernet(run: Run, settings: Settings | None = None) -> tuple[SuperNet, Dataset]:
    """The supernet of a finished run in eval mode, with its dataset, on the settings' device.

    Raises InputError if its weights are not there, altered or those of a run of another configuration, and if the
    dataset is not the one it was trained on.
    """
    settings = settings or Settings(device="cpu")
    if (status := status_of(run, settings.results, configuration(run))) in ("missing", "training"):
        how = {"missing": "was not trained", "training": "is not trained to its end"}[status]
        raise InputError(f"{run.name} {how} in {settings.results}: train it with `rsslib run` and the same options")
    supernet, images = stored_supernet(run, settings)
    status_of(run, settings.results, configuration(run, images))  # which compares the images too
    return supernet, images


def stored_supernet(run: Run, settings: Settings) -> tuple[SuperNet, Dataset]:
    """`trained_supernet` of whatever was trained in the run's folder, for runs that are known by their records."""
    path = run.folder(settings.results) / WEIGHTS
    if not path.exists():
        raise InputError(f"{path} does not exist: weights stay on the machine that trained them, so train the run here")
    record = read_record(path.parent)
    settings = replace(settings, device=str(choose_device(settings.device)))
    images = images_of(run, settings)
    if images.checksum != record["config"]["training"]["dataset_sha256"]:
        raise InputError(
            f"the dataset {run.dataset} here is another than the one that {run.name} was trained on: "
            f"restore it in {settings.data}, or {REBUILD}"
        )
    supernet = SuperNet(space_of(run, images), run.method.dropout).to(settings.device)
    supernet.load_state_dict(read_tensors(path, record))
    return supernet.eval(), images


# --- what each worker does --------------------------------------------------------------------------------------------


def attempt(
    run: Run,
    settings: Settings,
    deadline: float = math.inf,
    wait: bool = True,
    stop: threading.Event | None = None,
) -> bool | Exception:
    """Call `train_and_evaluate`; return whether the run is finished, or the exception that was raised."""
    try:
        return train_and_evaluate(run, settings, deadline, wait, stop)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error


def train_and_evaluate(
    run: Run,
    settings: Settings,
    deadline: float = math.inf,
    wait: bool = True,
    stop: threading.Event | None = None,
) -> bool:
    """Finish one run in this process; returns whether it is finished.

    The settings' device is cpu, cuda or cuda:<n>. If another process holds the run, this one waits for it, or without
    `wait` returns False at once. Every epoch's time counts once. Raises InputError if memory or disk space run out.
    """
    is_time = (lambda: time.time() >= deadline) if stop is None else (lambda: stop.is_set() or time.time() >= deadline)
    if is_time():
        return False
    folder = files.make_folder(run.folder(settings.results))
    patience = deadline - time.time() if wait else 0
    with files.locked(folder / LOCK, patience, is_time) as mine, _clear_errors(run, settings):
        return mine and _Job(run, folder, settings, is_time).finish()


@dataclass
class _Job:
    """A run whose lock this process holds."""

    run: Run
    folder: Path
    settings: Settings
    is_time: Callable[[], bool]

    @cached_property
    def images(self) -> Dataset:
        return images_of(self.run, self.settings)

    def finish(self) -> bool:
        """Train, evaluate and measure what is missing; returns False if it was time to stop."""
        run, settings = self.run, self.settings
        files.remove_temporary(self.folder)
        config = configuration(run, self.images, settings.precision)
        try:
            status = status_of(run, settings.results, config, weights=True)
        except Refused:
            if not settings.rebuild:
                raise
            print(f"{run.name} is rebuilt; what was there is in {set_aside(self.folder)}")
            status = "missing"
        if status == "finished" and not _to_measure(run, settings):
            return True
        release_memory(self.images.device)
        self.record: dict[str, Any] = {"started": _now()} if status == "missing" else read_record(self.folder)
        self.record["config"] = config
        self.record.setdefault("threads", settings.threads)  # the number of threads decides the last digits
        with use_threads(self.record["threads"]):
            if status != "finished":
                state = self.new_state()
                if status == "trained":
                    state.supernet.load_state_dict(read_tensors(self.folder / WEIGHTS, self.record))
                elif not self.train(state):
                    return False
                if not self.evaluate(state.supernet):
                    return False
                del state
            return not _to_measure(run, settings) or settings.measure.measure(self)

    def new_state(self) -> TrainingState:
        """The untrained supernet of the run with its optimizer."""
        run, images = self.run, self.images
        return start(space_of(run, images), run.method, run.seed, images.device, self.settings.precision)

    def save(self) -> None:
        write_record(self.folder, self.record)

    def keep_snapshot(self, state: TrainingState) -> None:
        """Write weights, momentum and teacher to a file that the record lists."""
        path, content = self.snapshot(len(state.history)), checkpoint_bytes(state, identity_of(self.record))
        self.record.setdefault("snapshots", {})[path.name] = files.write(path, content)

    def snapshot(self, epoch: int) -> Path:
        return self.folder / f"snapshot-{epoch:06}.safetensors"

    def train(self, state: TrainingState) -> bool:
        """Train from the last checkpoint to the end; returns False if it was time to stop."""
        run, settings, record = self.run, self.settings, self.record
        check_room(
            step_bytes(run.method, run.resolution),
            free_memory(self.images.device),
            f"training steps on {run.method.batch_size} images of {run.resolution} pixels",
            "choose a lower resolution, a smaller batch size or fewer jobs at once",
        )
        machine = environment(self.images.device, settings)
        identity = identity_of(record)
        snapshots = settings.measure.epochs(run) if settings.measure is not None else ()
        if load_checkpoint(state, self.folder, identity, run.method) and "hardware" in record:
            record |= resumed(record, machine, run.name)
        else:  # from the start, or the record of the epochs before the checkpoint was lost
            record |= {"started": _now(), **machine}
            record.pop("machines", None)
        record |= {"status": "training", "jobs": settings.jobs or 1}
        self.save()
        saved = shown = time.monotonic()

        def after_epoch(state: TrainingState) -> bool:
            nonlocal saved, shown
            stop = self.is_time()
            if len(state.history) in snapshots:
                self.keep_snapshot(state)
            if time.monotonic() - shown >= 1:  # for `rsslib runs`
                row = state.history[-1]
                record["progress"] = {"epoch": row["epoch"], "loss": row["loss"], "seconds": state.seconds}
                self.save()
                shown = time.monotonic()
            if stop or time.monotonic() - saved >= settings.checkpoint_seconds:
                save_checkpoint(state, self.folder, identity)
                saved = time.monotonic()
            return stop

        executor = executor_for(settings, self.images.device)
        train(state, run.method, self.images, run.seed, after_epoch, run.label, settings.progress, executor)
        if len(state.history) < run.method.epochs:
            return False
        record.pop("progress", None)
        record["training_seconds"] = state.seconds
        if self.images.device.type == "cpu" and math.isfinite(state.processor_seconds):  # unknown to the first version
            record["training_processor_seconds"] = state.processor_seconds
        record["sha256"] = {
            HISTORY: files.write_csv(self.folder / HISTORY, pd.DataFrame(state.history)),
            WEIGHTS: files.write(self.folder / WEIGHTS, files.tensor_bytes(state.supernet.state_dict())),
        }
        return True

    def evaluate(self, supernet: SuperNet) -> bool:
        """Evaluate the population and the anchors, from where it was interrupted; returns False if it was time to stop.

        The record keeps what was counted so far as "evaluated": correct answers by subnet, null if not yet counted.
        """
        run, record, images = self.run, self.record, self.images
        hardware = environment(images.device, self.settings)["hardware"]
        basis = json.dumps([record["sha256"][WEIGHTS], record["config"]["evaluation"], hardware])
        evaluated = record.get("evaluated", {})
        if evaluated.get("of") != files.sha256(basis.encode()):
            evaluated = {"of": files.sha256(basis.encode()), "correct": [], "seconds": 0.0}
        record |= {"status": "trained", "evaluated": evaluated}
        self.save()  # before the population changes, which the record of a finished run vouches for
        for checkpoint in checkpoints(self.folder):
            checkpoint.unlink()
        began, earlier, saved = time.perf_counter(), evaluated["seconds"], time.monotonic()
        subnets = population_of(run)
        population = [*((bucket, arch) for (bucket, _), arch in subnets.items()), *anchors(supernet.space)]
        counted = {n: count for n, count in enumerate(evaluated["correct"]) if count is not None}
        counts = {n: torch.tensor(count, device=images.device) for n, count in counted.items()}

        def keep() -> None:
            evaluated["correct"] = [int(counts[n]) if n in counts else None for n in range(len(population))]
            evaluated["seconds"] = earlier + time.perf_counter() - began
            self.save()

        def before_each() -> None:
            nonlocal saved
            if self.is_time():
                raise _TimeIsUp
            if time.monotonic() - saved >= self.settings.checkpoint_seconds:
                keep()
                saved = time.monotonic()

        threads = evaluation_threads(images.device, self.settings.jobs or 1)
        description = f"{run.label}: evaluate"
        try:
            both = evaluate_population(
                supernet.eval(), population, images, description, self.settings.progress, counts, before_each, threads
            )
        except (_TimeIsUp, KeyboardInterrupt) as stopped:
            keep()
            if isinstance(stopped, KeyboardInterrupt):
                raise
            return False
        table, beside = both[: len(subnets)].copy(), both[len(subnets) :].copy()
        table["subnet"], beside["subnet"] = [number for _, number in subnets], beside.groupby("bucket").cumcount()
        del record["evaluated"]
        record |= {"status": "finished", "evaluation_seconds": earlier + time.perf_counter() - began}
        record |= {"evaluation_hardware": hardware, "finished": _now()}
        digests = record["sha256"]
        digests[POPULATION] = files.write_csv(self.folder / POPULATION, table)
        digests[ANCHORS] = files.write_csv(self.folder / ANCHORS, beside)
        digests[CARD] = write_card(self.folder, supernet, digests[WEIGHTS], self.card(table))
        self.save()
        return True

    def card(self, population: pd.DataFrame) -> dict:
        """What the card of the supernet says about its training and accuracy."""
        images, training = self.images, self.record["config"]["training"]
        accuracy = population.groupby("bucket")["accuracy"].agg(["median", "min", "max", "size"])
        known = {name: training[name] for name in ("dataset", "dataset_sha256", "profile", "seed", "train_images")}
        return known | {
            "method": self.run.method.name,
            "epochs": self.run.method.epochs,
            "test_images": len(images.x_test),
            "classes": images.classes,
            "mean": images.mean,
            "std": images.std,
            "licence_of_the_data": LICENCES.get(self.run.dataset, "unknown: a custom dataset"),
            "test_accuracy_by_mflops": {f"{bucket:g}": row.to_dict() for bucket, row in accuracy.iterrows()},
            "hardware": self.record["hardware"],
            "finished": self.record["finished"],
        }


class _TimeIsUp(Exception):
    pass


@contextmanager
def _clear_errors(run: Run, settings: Settings) -> Iterator[None]:
    """Free networks and graphs that a traceback would keep alive; make lack of memory and system errors a sentence."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        if not is_out_of_memory(error):
            with files.system_errors():
                raise
        jobs = settings.jobs or 1
        less = f"fewer jobs at once than {jobs}" if jobs > 1 else "a method with a smaller batch size"
        raise InputError(
            f"{run.name} ran out of memory on {settings.device}: choose {less} or another device; "
            "the last checkpoint is kept"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
