"""Making runs finished: load what is there, go on with what was interrupted, train and evaluate what is missing."""

import json
import math
import pickle
import pickletools
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rsslib import files
from rsslib.checkpoint import checkpoints, identity_of, load_checkpoint, save_checkpoint, write_card
from rsslib.data.dataset import Dataset, cached_dataset
from rsslib.data.readers import DATASETS, LICENCES, is_there
from rsslib.device import (
    choose_device,
    evaluation_threads,
    first_line,
    free_memory,
    is_out_of_memory,
    keep_freed_memory,
    release_memory,
    set_precision,
    use_threads,
)
from rsslib.errors import InputError, NoImages, Stopped, check_room
from rsslib.evaluate import anchors, evaluate_population
from rsslib.files import CARD, WEIGHTS
from rsslib.progress import progress_bar
from rsslib.space import SearchSpace
from rsslib.steps import TrainingState
from rsslib.supernet import SuperNet
from rsslib.trainer import start, train
from rsstudy.interference import keeper, measure_run, to_measure
from rsstudy.plan import Run, Settings
from rsstudy.store import (
    ANCHORS,
    HISTORY,
    LOCK,
    POPULATION,
    RECORD,
    Refused,
    configuration,
    population_of,
    read_record,
    read_tensors,
    set_aside,
    status_of,
    write_record,
)
from rsstudy.workers import environment, executor_for, free_jobs, step_bytes, worker_processes, worker_threads


def complete(
    runs: Sequence[Run], settings: Settings | None = None, finished: Callable[[Run], None] = lambda run: None
) -> None:
    """Make every run finished, in this order: load what is there, go on with what was begun, train what is missing.

    `finished` is called with each run as soon as it is, those that are at the start too.

    Any number of processes may be asked for the same runs: one trains, the others take the runs that are free and wait
    for the rest at the end (of several machines, see docs/clusters.md). With a time budget, `by_worth` puts the runs in
    an order in which what is finished by then is worth most. Finished runs do not need their dataset; where it is
    missing and cannot be downloaded, a sentence names the other runs, which are left out if any is finished.

    Everything is checked before anything is trained: raises InputError. A folder that holds another configuration,
    code version or dataset's run, or a damaged one, is refused, or with `settings.rebuild` set aside beside its place.
    A run that fails does not stop the others; RunsFailed, at the end, names it. Ctrl-C stops all at once (Stopped); the
    same call goes on from the last checkpoints. If the settings are not to train, nothing is done.
    """
    settings = settings or Settings()
    if not settings.train:
        return
    done, todo, settings = prepare(runs, settings)
    new = {run.name for run in todo if not (run.folder(settings.results) / RECORD).exists()}
    failures: dict[str, Exception] = {}
    began, trained = time.perf_counter(), 0
    for run in done:
        finished(run)
    words = f"{{}} of {len(done) + len(todo)} runs are finished"
    bar = progress_bar(
        shown=settings.progress and len(todo) > 1, total=sum(run.method.subnet_epochs for run in todo), smoothing=0,
        desc=words.format(len(done)), bar_format="{desc}, {remaining} left", position=0,
    )  # fmt: skip
    try:
        with bar, _workers(settings) as pool:
            for wait in (False, True):  # at the end come back to what other processes were at
                todo, before = [], todo
                for run, outcome in _outcomes(pool, before, settings, wait):
                    if isinstance(outcome, BrokenProcessPool):
                        raise outcome  # `worker_processes` says why
                    if isinstance(outcome, Exception):
                        failures[run.name] = outcome
                    elif not outcome:
                        todo.append(run)
                    else:
                        done.append(run)
                        bar.update(run.method.subnet_epochs)
                        bar.set_description_str(words.format(len(done)))
                        finished(run)
                        if run.name in new:
                            training = read_record(run.folder(settings.results))["config"]["training"]
                            trained += run.method.subnet_epochs * training["train_images"]
    except KeyboardInterrupt:
        raise Stopped("stopped; the same call goes on from the last checkpoints") from None
    finally:
        _stop.clear()  # all threads have ended
    if settings.progress and trained and settings.jobs != 1:
        rate = trained / (time.perf_counter() - began)
        print(f"{settings.jobs} runs at once trained on {rate:,.0f} subnet-images a second, evaluation included")
    if failures:
        raise RunsFailed(failures) from next(iter(failures.values()))


def prepare(runs: Iterable[Run], settings: Settings) -> tuple[list[Run], list[Run], Settings]:
    """Check everything, so that a mistake in the last run costs nothing, and set aside what is to be rebuilt.

    Returns the runs that are finished, those that are to be trained, and the settings with a device, a number of jobs
    and a deadline. Runs whose dataset is missing are named and left out, if any is finished.
    """
    budget = math.inf if settings.time_budget is None else settings.time_budget
    settings = replace(settings, deadline=time.time() + budget)
    runs = _different(runs)
    there = {run.name for run in runs if _is_finished(run, settings)}
    needs_cuda = any(run.profile.needs_cuda for run in runs if run.name not in there) and settings.device == "auto"
    where = choose_device(settings.device, needed=needs_cuda)
    settings = replace(settings, device=str(where))
    done: list[Run] = []
    todo: list[Run] = []
    refused = []
    absent: dict[str, NoImages] = {}
    for run in runs:
        population_of(run)
        try:  # what is finished does not need its images, but is compared with those that are here
            needed = run.name not in there or is_there(run.dataset, settings.data)
            images = images_of(run, settings) if needed else None
        except NoImages as error:
            absent[run.name] = error
            continue
        config = configuration(run, images, settings.precision)
        try:
            status = status_of(run, settings.results, config, weights=True)
            (done if status == "finished" and not to_measure(run, settings) else todo).append(run)
        except Refused:
            if not settings.rebuild:
                raise
            todo.append(run)
            refused.append((run, config))
    if absent and not done:
        raise next(iter(absent.values()))
    for name, why in absent.items():
        print(f"not trained: {name}: {why}")
    for run in todo:
        files.check_writable(run.folder(settings.results), "results")
    jobs = min(settings.jobs or free_jobs(where, todo), len(todo))
    if jobs > 1 and where.type == "cpu":
        _check_samplers_travel(todo)
    for run, config in refused:
        _set_aside(run, settings.results, config)
    return done, todo, replace(settings, jobs=max(1, jobs))


def images_of(run: Run, settings: Settings) -> Dataset:
    """The dataset of a run, as much of it as its profile takes, on the settings' device.

    Images of one's own may be fewer than a profile takes: then all of them.
    """
    profile, size = run.profile, run.resolution
    if run.dataset not in DATASETS:
        images = cached_dataset(run.dataset, settings.data, settings.device, resolution=size)
        train, test = slice(profile.train_images), slice(profile.test_images)
        return replace(
            images, x_train=images.x_train[train], y_train=images.y_train[train], x_test=images.x_test[test],
            y_test=images.y_test[test],
        )  # fmt: skip
    return cached_dataset(run.dataset, settings.data, settings.device, profile.train_images, profile.test_images, size)


def space_of(run: Run, images: Dataset) -> SearchSpace:
    """The search space of a run, with the channels and classes of its dataset."""
    return SearchSpace(run.backbone, in_channels=images.channels, classes=images.n_classes, resolution=run.resolution)


def _is_finished(run: Run, settings: Settings) -> bool:
    """Whether nothing is left to do for a run, as far as that is known without its images."""
    try:
        status = status_of(run, settings.results, configuration(run, precision=settings.precision))
    except Refused:
        return False
    return status == "finished" and not to_measure(run, settings)


_stop = threading.Event()  # what runs in threads is to end: training at the next epoch, the rest at once


def _workers(settings: Settings) -> AbstractContextManager[Executor | None]:
    jobs = settings.jobs or 1
    if jobs == 1:
        return nullcontext()
    if settings.device.startswith("cuda"):  # where processes would take turns
        return worker_threads(jobs, _stop)
    return worker_processes(jobs, keep_freed_memory)


def _check_samplers_travel(runs: Iterable[Run]) -> None:
    for sampler in (stage.sampler for run in runs for stage in run.method.stages):
        name = type(sampler).__name__
        try:  # in an old protocol, which names a module and what is in it together
            content = pickle.dumps(sampler, protocol=2)
        except Exception as error:  # of many types
            raise InputError(
                f"the sampler {name} cannot be sent to other processes ({first_line(error)}): give jobs=1"
            ) from None
        named = [str(argument) for code, argument, _ in pickletools.genops(content) if code.name == "GLOBAL"]
        if here := [words.split()[1] for words in named if words.startswith("__main__ ")]:
            raise InputError(
                f"the sampler {name} needs {', '.join(here)} of a notebook or script, which other processes cannot "
                "see: give jobs=1, or define it in a module"
            )


def _different(runs: Iterable[Run]) -> list[Run]:
    """The runs, each once; raises InputError if two different ones would share a folder."""
    by_name: dict[str, Run] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) != run:
            raise InputError(f"two different runs are called {run.name}: give their methods different names")
    return list(by_name.values())


def _set_aside(run: Run, results: str | Path, config: dict) -> None:
    folder, end = run.folder(results), time.monotonic() + 5
    while True:
        with files.locked(folder / LOCK, patience=0.1) as mine:
            try:
                status_of(run, results, config, weights=True)  # another process may have set it aside meanwhile
                return
            except Refused:
                if mine:
                    print(f"{run.name} is rebuilt; what was there is in {set_aside(folder)}")
                    return
        if time.monotonic() > end:
            raise InputError(f"{folder} cannot be rebuilt while another process is at it: try again later")


def _outcomes(
    pool: Executor | None, runs: Sequence[Run], settings: Settings, wait: bool
) -> Iterator[tuple[Run, bool | BaseException]]:
    """What `complete_run` returned or raised for each run, as they end; without a pool in this process."""
    if pool is None:
        for run in runs:
            try:
                yield run, complete_run(run, settings, wait)
            except Exception as error:
                yield run, error
    else:
        futures = {pool.submit(complete_run, run, settings, wait): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()


class RunsFailed(RuntimeError):
    """Some runs failed while others may have finished; `failures` maps their names to the exceptions."""

    def __init__(self, failures: Mapping[str, BaseException]):
        self.failures = failures
        texts = [f"{name} ({type(error).__name__}: {error})" for name, error in failures.items()]
        super().__init__(f"{len(failures)} of the runs failed: {'; '.join(texts)}")

    def _render_traceback_(self) -> list[str]:  # in a notebook a stack only for what nobody expected
        unexpected = [e for e in self.failures.values() if not isinstance(e, (InputError, FloatingPointError))]
        return [*("".join(traceback.format_exception(error)) for error in unexpected), f"RunsFailed: {self}"]


def complete_run(run: Run, settings: Settings, wait: bool = True) -> bool:
    """Make one run finished, in this process; returns whether it is.

    The settings' device is cpu, cuda or cuda:<n>, and their `jobs`, how many runs train at once on this machine, is
    only recorded. If another process is at the run, this one waits for it, or without `wait` returns False at once.

    Every epoch's time counts once: that of epochs before the checkpoint is kept in it, that of epochs lost after it is
    taken again. Raises InputError if memory or disk space run out.
    """
    if _is_time(settings):
        return False
    set_precision(settings.precision)
    folder = files.make_folder(run.folder(settings.results))
    patience = settings.deadline - time.time() if wait else 0
    with files.locked(folder / LOCK, patience, _stop.is_set) as mine, _nothing_kept(run, settings):
        return mine and _complete(run, folder, settings)


def _complete(run: Run, folder: Path, settings: Settings) -> bool:
    """`complete_run`, once the folder is locked."""
    files.remove_temporary(folder)
    images = images_of(run, settings)
    config = configuration(run, images, settings.precision)
    status = status_of(run, settings.results, config, weights=True)
    if status == "finished" and not to_measure(run, settings):
        return True
    release_memory(images.device)
    record: dict[str, Any] = {"started": _now()} if status == "missing" else read_record(folder)
    record["config"] = config
    record.setdefault("threads", settings.threads)  # which decide the last digits
    with use_threads(record["threads"]):
        space = space_of(run, images)

        def new_state() -> TrainingState:
            state = start(space, run.method, run.seed, images.device)
            state.bfloat16 = settings.precision == "bf16"
            return state

        if status != "finished":
            state = new_state()
            if status == "trained":
                state.supernet.load_state_dict(read_tensors(folder / WEIGHTS, record))
            elif not _train(run, folder, record, state, images, settings):
                return False
            if not _evaluate(run, folder, record, state.supernet, images, settings):
                return False
            del state
        return not to_measure(run, settings) or measure_run(
            run, folder, record, new_state, images, settings, lambda: _is_time(settings)
        )


def _is_time(settings: Settings) -> bool:
    """Whether to stop, for an interrupt or because the time is up."""
    return _stop.is_set() or time.time() >= settings.deadline


def _train(run: Run, folder: Path, record: dict, state: TrainingState, images: Dataset, settings: Settings) -> bool:
    """Train from the last checkpoint to the end; returns False if the deadline came first."""
    check_room(
        step_bytes(run.method, run.resolution), free_memory(images.device),
        f"training steps on {run.method.batch_size} images of {run.resolution} pixels",
        "choose a lower resolution, a smaller batch size or fewer jobs at once",
    )  # fmt: skip
    machine = environment(images.device, settings.jobs or 1, settings.precision, settings.graphs)
    identity = identity_of(record)
    keep = keeper(run, folder, record) if run.method.name in settings.interference else None
    if load_checkpoint(state, folder, identity, run.method) and "hardware" in record:
        record |= _machines(record, machine, run)
    else:  # from the start, or the record of what is before the checkpoint was lost
        record |= {"started": _now(), **machine}
        record.pop("machines", None)
    record |= {"status": "training", "jobs": settings.jobs or 1}
    write_record(folder, record)
    saved = shown = time.monotonic()

    def after_epoch(state: TrainingState) -> bool:
        nonlocal saved, shown
        stop = _is_time(settings)
        if keep is not None:
            keep(state)
        if time.monotonic() - shown >= 1:  # for those who look on
            row = state.history[-1]
            record["progress"] = {"epoch": row["epoch"], "loss": row["loss"], "seconds": state.seconds}
            write_record(folder, record)
            shown = time.monotonic()
        if stop or time.monotonic() - saved >= settings.checkpoint_seconds:
            save_checkpoint(state, folder, identity)
            saved = time.monotonic()
        return stop

    executor = executor_for(settings, images.device)
    train(state, run.method, images, run.seed, after_epoch, run.label, settings.progress, executor)
    if len(state.history) < run.method.epochs:
        return False
    record.pop("progress", None)
    record["training_seconds"] = state.seconds
    if images.device.type == "cpu" and math.isfinite(state.processor_seconds):  # not begun by a version without them
        record["training_processor_seconds"] = state.processor_seconds
    record["sha256"] = {
        HISTORY: files.write_csv(folder / HISTORY, pd.DataFrame(state.history)),
        WEIGHTS: files.write(folder / WEIGHTS, files.tensor_bytes(state.supernet.state_dict())),
    }
    return True


def _machines(record: dict, here: dict, run: Run) -> dict:
    """What the record says of hardware and executor once the run has gone on `here`: all that it was trained on.

    If there are several they are marked as this run's own, so that its time is never compared with another's.
    """
    machines = record.get("machines", [{key: record[key] for key in here}])
    if here in machines:
        return {}
    machines = [*machines, here]
    names = {key: " + ".join(dict.fromkeys(machine[key] for machine in machines)) for key in ("hardware", "executor")}
    return {key: f"{name} ({run.name})" for key, name in names.items()} | {"machines": machines}


class _TimeIsUp(Exception):
    pass


def _evaluate(run: Run, folder: Path, record: dict, supernet: SuperNet, images: Dataset, settings: Settings) -> bool:
    """Evaluate the population and the anchors, from where it was interrupted; returns False if it is time to stop.

    What was counted so far is in the record, as "evaluated": correct answers by subnet, null where still to be counted.
    """
    hardware = environment(images.device)["hardware"]
    of = files.sha256(json.dumps([record["sha256"][WEIGHTS], record["config"]["evaluation"], hardware]).encode())
    evaluated = record.get("evaluated", {})
    if evaluated.get("of") != of:
        evaluated = {"of": of, "correct": [], "seconds": 0.0}
    record |= {"status": "trained", "evaluated": evaluated}
    write_record(folder, record)  # before the population changes: the record of a finished run vouches for it
    for checkpoint in checkpoints(folder):
        checkpoint.unlink()
    began, earlier, saved = time.perf_counter(), evaluated["seconds"], time.monotonic()
    subnets = population_of(run)
    population = [*((bucket, arch) for (bucket, _), arch in subnets.items()), *anchors(supernet.space)]
    counts = {
        number: torch.tensor(count, device=images.device)
        for number, count in enumerate(evaluated["correct"])
        if count is not None
    }

    def keep() -> None:
        evaluated["correct"] = [int(counts[n]) if n in counts else None for n in range(len(population))]
        evaluated["seconds"] = earlier + time.perf_counter() - began
        write_record(folder, record)

    def before_each() -> None:
        nonlocal saved
        if _is_time(settings):
            raise _TimeIsUp
        if time.monotonic() - saved >= settings.checkpoint_seconds:
            keep()
            saved = time.monotonic()

    try:
        both = evaluate_population(
            supernet.eval(), population, images, f"{run.label}: evaluate", settings.progress, counts, before_each,
            evaluation_threads(images.device, settings.jobs or 1),
        )  # fmt: skip
    except _TimeIsUp:
        keep()
        return False
    except KeyboardInterrupt:
        keep()
        raise
    table, beside = both[: len(subnets)].copy(), both[len(subnets) :].copy()
    table["subnet"], beside["subnet"] = [number for _, number in subnets], beside.groupby("bucket").cumcount()
    del record["evaluated"]
    record |= {"status": "finished", "evaluation_seconds": earlier + time.perf_counter() - began}
    record |= {"evaluation_hardware": hardware, "finished": _now()}
    record["sha256"][POPULATION] = files.write_csv(folder / POPULATION, table)
    record["sha256"][ANCHORS] = files.write_csv(folder / ANCHORS, beside)
    weights = record["sha256"][WEIGHTS]
    record["sha256"][CARD] = write_card(folder, supernet, weights, words_for_card(run, record, table, images))
    write_record(folder, record)
    return True


def words_for_card(run: Run, record: dict, population: pd.DataFrame, images: Dataset) -> dict:
    """What the card of a run's supernet says of its training and its quality."""
    by_size = population.groupby("bucket")["accuracy"]
    return {
        "dataset": run.dataset,
        "dataset_sha256": images.checksum,
        "licence_of_the_data": LICENCES.get(run.dataset, "not known: these are images of your own"),
        "classes": images.classes,
        "mean": images.mean,
        "std": images.std,
        "method": run.method.name,
        "profile": run.profile.name,
        "seed": run.seed,
        "epochs": run.method.epochs,
        "train_images": len(images.x_train),
        "test_images": len(images.x_test),
        "test_accuracy_by_mflops": {
            f"{bucket:g}": {"median": group.median(), "worst": group.min(), "best": group.max(), "subnets": len(group)}
            for bucket, group in by_size
        },
        "hardware": record["hardware"],
        "finished": record["finished"],
    }


@contextmanager
def _nothing_kept(run: Run, settings: Settings) -> Iterator[None]:
    """Have an error keep none of what its stack held, networks and graphs; say in a sentence if memory ran out, or
    what the operating system refused."""
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
