"""Runs: dataset x backbone x method x seed at the scale of a profile, each a results folder.

Notebooks ask for runs with `plan` and `complete`; finished ones load at once, missing ones train. The tables that the
figures are drawn from come from `populations`, `histories` and `times`.
"""

import dataclasses
import inspect
import io
import json
import math
import re
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Literal

import numpy
import pandas as pd
import torch
from filelock import FileLock, Timeout

from rsslib import checkpoints, files
from rsslib import data as datasets
from rsslib.errors import InputError, Stopped, check_number, choose
from rsslib.evaluate import RECALIBRATION_IMAGES, anchors, evaluate_population
from rsslib.files import REBUILD, read_record, write_record
from rsslib.machine import (
    PRECISIONS,
    choose_device,
    cores,
    environment,
    free_jobs,
    keep_freed_memory,
    release_memory,
    set_precision,
)
from rsslib.methods import LEARNING_RATE, OVERRIDES, TABLE_1, Method, build, override
from rsslib.samplers import Sampler
from rsslib.space import BACKBONES, SearchSpace
from rsslib.steps import TrainingState
from rsslib.supernet import SuperNet
from rsslib.train import start, train
from rsslib.workers import worker_processes, worker_threads

MAIN_METHODS = ("ofa", "rss", "rss-short")
POPULATION_SEED = 0
HISTORY, POPULATION, ANCHORS, WEIGHTS = "history.csv", "population.csv", "anchors.csv", "weights.safetensors"
LOCK = "run.lock"
MOST_SUBNETS = 10_000  # in a bucket; rarer sizes hold hardly more that can be found
CODE_VERSION = 1  # raised whenever a configuration would give other numbers than before


@dataclass(frozen=True)
class Profile:
    """A scale: how much is trained and evaluated. None means all, and for epochs those of Table 1.

    `datasets` are in the order of the paper's figures, the hardest last.
    """

    name: str
    datasets: tuple[str, ...]
    subnets_per_bucket: int
    supernet_epochs: int | None = None
    shrinking_epochs: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    learning_rate_scale: float = 1.0
    needs_cuda: bool = False

    def epochs(self, dataset: str) -> tuple[int, int]:
        """Epochs of the supernet and of progressive shrinking on `dataset`."""
        table = TABLE_1.get(dataset, TABLE_1["cifar100"])
        return self.supernet_epochs or table[0], self.shrinking_epochs or table[1]

    def describe(self, dataset: str) -> str:
        """The scale in words, for captions."""
        s, ps = self.epochs(dataset)
        images = f"{self.train_images:,}" if self.train_images else "all"
        test = f"{self.test_images:,}" if self.test_images else "all"
        rate = LEARNING_RATE * self.learning_rate_scale
        return (
            f"{s} + {ps} epochs (RSS-Short: {s}) on {images} training images, learning rate {rate:g}, "
            f"{self.subnets_per_bucket} subnets a bucket, {test} test images"
        )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", ("digits",), subnets_per_bucket=3, supernet_epochs=9, shrinking_epochs=5,
                learning_rate_scale=4.0),
        Profile("quick", ("fashion_mnist",), subnets_per_bucket=15, supernet_epochs=12, shrinking_epochs=27,
                train_images=6_400, test_images=2_000, learning_rate_scale=4.0),
        Profile("paper", ("mnist", "fashion_mnist", "cifar10", "cifar100"), subnets_per_bucket=100, needs_cuda=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run and its evaluation."""

    profile: Profile
    dataset: str
    backbone: str
    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.profile.name}/{self.dataset}/{self.backbone}/{self.method.name}/seed{self.seed}"

    def folder(self, results: str | Path) -> Path:
        return Path(results) / self.name


def plan(
    profile: str | Profile = "smoke",
    datasets: Sequence[str] | Literal["hardest"] | None = None,
    methods: Sequence[str | Method] = MAIN_METHODS,
    backbone: str = "mobilenet_v3",
    seeds: Sequence[int] = (0,),
    subnets_per_bucket: int | None = None,
) -> list[Run]:
    """The runs for every dataset, method and seed, in that order; nothing is trained.

    `datasets` is a list of names, None for all of the profile's or "hardest" for its last, on which the paper runs its
    ablations. `methods` are names or methods of your own, whose learning rates the profile scales as it does the
    study's. None for `subnets_per_bucket` takes the profile's. Raises InputError for an unknown name or a value out
    of range.
    """
    if not isinstance(profile, Profile):
        profile = PROFILES[choose(profile, PROFILES, "profile")]
    if subnets_per_bucket is not None:
        check_number(subnets_per_bucket, "subnets_per_bucket", 1, MOST_SUBNETS, whole=True)
        profile = dataclasses.replace(profile, subnets_per_bucket=subnets_per_bucket)
    choose(backbone, BACKBONES, "backbone")
    if datasets is None or datasets == "hardest":
        datasets = profile.datasets[-1:] if datasets else profile.datasets
    for what, values in (("datasets", datasets), ("methods", methods), ("seeds", seeds)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{what} is {values!r}: expected a list with at least one entry")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise InputError(f"{what} holds {getattr(twice[0], 'name', twice[0])!r} twice: expected different entries")
    for seed in seeds:
        check_number(seed, "seed", 0, 2**63 - 1, whole=True)
    for name in (profile.name, *datasets, *(getattr(method, "name", method) for method in methods)):
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):  # it names a folder
            raise InputError(f"{name!r} cannot name a profile, dataset or method: expected letters, digits, - _ and .")
    runs = []
    for dataset in datasets:
        for method in methods:
            if isinstance(method, str):
                method = build(method, *profile.epochs(dataset))
            method = override(method, learning_rate_scale=profile.learning_rate_scale)
            runs += [Run(profile, dataset, backbone, method, seed) for seed in seeds]
    return runs


def complete(
    runs: Sequence[Run],
    results: str | Path = "data/results",
    data: str | Path = "data",
    device: str = "auto",
    precision: str = "fp32",
    jobs: int | None = 1,
    time_budget: float | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 20.0,
    rebuild: bool = False,
) -> None:
    """Make every run finished: load what is there, go on with what was interrupted, train what is missing.

    `results` is the folder for all runs, `data` the one with datasets. `device` is auto, cpu, cuda or cuda:<n>;
    `precision` on CUDA is fp32, tf32 for matrix products, or bf16 for training under autocast. `jobs` runs train at
    once (None: as many as the device has room for): on a CPU each in a process of its own that gets an equal share of
    the cores, on CUDA each in a thread with a stream of its own. After `time_budget` seconds training stops between
    epochs, with a checkpoint to go on from (0 only checks); `by_worth` puts the runs in an order in which what is
    finished by then is worth most. A checkpoint is also written after an epoch if the last one is `checkpoint_seconds`
    old.

    Any number of processes may be asked for the same runs, also from several machines that share the folder: one
    trains, the others take the runs that are free and wait for the rest at the end.

    Everything is checked before anything is trained: raises InputError. A folder that holds another configuration,
    code version or dataset's run, or a damaged one, is refused, or with `rebuild` set aside beside its place. A run
    that fails does not stop the others; RunsFailed, at the end, names it. Ctrl-C stops all at once (Stopped); the same
    call goes on from the last checkpoints.
    """
    if jobs is not None:
        check_number(jobs, "jobs", 1, whole=True)
    check_number(checkpoint_seconds, "checkpoint_seconds", 0)
    if time_budget is not None:
        check_number(time_budget, "time_budget", 0)
    deadline = None if time_budget is None else time.time() + time_budget
    choose(precision, PRECISIONS, "precision")
    files.check_writable(results, "results")
    where = choose_device(device, needed=any(run.profile.needs_cuda for run in runs) and device == "auto")
    todo, refused, new_images = [], [], {}
    for run in _different(runs):  # first look at everything, so that a mistake in the last run costs nothing
        images = _dataset(run.dataset, str(data), str(where), run.profile.train_images, run.profile.test_images)
        _population(run.backbone, run.profile.subnets_per_bucket)
        config = configuration(run, images, precision)
        try:
            if (status := _status(run, results, config, weights=True)) != "finished":
                todo.append(run)
            if status == "missing":
                new_images[run.name] = run.method.subnet_epochs * len(images.x_train)
        except InputError:
            if not rebuild:
                raise
            todo.append(run)
            refused.append((run, config))
    jobs = min(jobs or free_jobs(where), len(todo))
    if jobs > 1 and where.type == "cpu":
        _check_samplers_travel(todo)
    for run, config in refused:
        _set_aside(run, results, config)
    if jobs > 1 and time_budget is None:
        todo.sort(key=lambda run: -run.method.subnet_epochs)  # long ones first, so that no core idles at the end
    arguments = (str(results), str(data), str(where), precision, jobs, deadline, progress, checkpoint_seconds)
    failures, began, trained = {}, time.perf_counter(), 0
    _stop.clear()
    try:
        with _workers(jobs, where) as pool:
            for wait in (False, True):  # at the end come back to what other processes were at
                todo, before = [], todo
                for run, outcome in _outcomes(pool, before, arguments, wait):
                    if isinstance(outcome, BrokenProcessPool):
                        raise InputError(
                            "a worker process was killed, as the system does where memory runs out: choose fewer jobs "
                            f"at once than {jobs}; the same call goes on from the last checkpoints"
                        )
                    if isinstance(outcome, Exception):
                        failures[run.name] = outcome
                    elif not outcome:
                        todo.append(run)
                    else:
                        trained += new_images.get(run.name, 0)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same call goes on from the last checkpoints") from None
    if progress and trained and jobs > 1:
        rate = trained / (time.perf_counter() - began)
        print(f"{jobs} runs at once trained on {rate:,.0f} subnet-images a second, evaluation included")
    if failures:
        raise RunsFailed(failures) from next(iter(failures.values()))


_stop = threading.Event()  # training in threads is to end at the next epoch


def _workers(jobs: int, device: torch.device) -> AbstractContextManager[Executor | None]:
    if jobs <= 1:
        return nullcontext()
    if device.type == "cuda":  # where processes would take turns
        return worker_threads(jobs, _stop)
    return worker_processes(jobs, _start_worker, max(1, cores() // jobs))


def _check_samplers_travel(runs: Iterable[Run]) -> None:
    for kind in (type(stage.sampler) for run in runs for stage in run.method.stages):
        if kind.__module__ == "__main__":
            raise InputError(
                f"the sampler {kind.__name__} is defined in a notebook or script, which other processes cannot see: "
                "give jobs=1, or define it in a module"
            )


def _different(runs: Iterable[Run]) -> list[Run]:
    """The runs, each once; raises InputError if two different ones would share a folder."""
    by_name: dict[str, Run] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) != run:
            raise InputError(f"two different runs are called {run.name}: give their methods different names")
    return list(by_name.values())


def _set_aside(run: Run, results: str | Path, config: dict) -> None:
    folder = run.folder(results)
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                _status(run, results, config, weights=True)  # another process may have set it aside meanwhile
            except InputError:
                print(f"{run.name} is rebuilt; what was there is in {files.set_aside(folder)}")
    except Timeout:
        raise InputError(f"{folder} cannot be rebuilt while another process is at it: try again later") from None


def _outcomes(
    pool: Executor | None, runs: Sequence[Run], arguments: tuple, wait: bool
) -> Iterator[tuple[Run, bool | Exception]]:
    """What `complete_run` returned or raised for each run, as they end; without a pool in this process."""
    if pool is None:
        for run in runs:
            try:
                yield run, complete_run(run, *arguments, wait)
            except Exception as error:
                yield run, error
    else:
        futures = {pool.submit(complete_run, run, *arguments, wait): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()


def by_worth(runs: Sequence[Run]) -> list[Run]:
    """The runs in the order in which a campaign that may be cut short should train them.

    First seeds before further ones; then the main methods on each profile's hardest dataset, the released baseline, the
    ablations, the other datasets, and last the other backbone and the hyper-parameters.
    """

    def rank(run: Run) -> tuple:
        main = run.method.name in MAIN_METHODS
        hardest = run.dataset == run.profile.datasets[-1]
        overridden = any(run.method.name.endswith(suffix) for suffix in OVERRIDES)
        if run.backbone != "mobilenet_v3" or overridden:
            step = 4
        elif not hardest:
            step = 3
        else:
            step = 0 if main else 1 if run.method.name == "ofa-released" else 2
        return run.seed, step, run.method.subnet_epochs

    return sorted(runs, key=rank)


class RunsFailed(RuntimeError):
    """Some runs failed while others may have finished; `failures` maps their names to the exceptions."""

    def __init__(self, failures: dict[str, BaseException]):
        self.failures = failures
        texts = [f"{name} ({type(error).__name__}: {error})" for name, error in failures.items()]
        super().__init__(f"{len(failures)} of the runs failed: {'; '.join(texts)}")

    def _render_traceback_(self) -> list[str]:  # in a notebook a stack only for what nobody expected
        unexpected = [e for e in self.failures.values() if not isinstance(e, (InputError, FloatingPointError))]
        return [*("".join(traceback.format_exception(error)) for error in unexpected), f"RunsFailed: {self}"]


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()


def complete_run(
    run: Run,
    results: str,
    data: str,
    device: str,
    precision: str,
    jobs: int,
    deadline: float | None,
    progress: bool,
    checkpoint_seconds: float,
    wait: bool = True,
) -> bool:
    """Make one run finished, in this process; returns whether it is. Parameters are `complete`'s, all picklable.

    `device` is cpu, cuda or cuda:<n>. `jobs` is how many runs train at once on this machine and is only recorded.
    `deadline` is a time as of `time.time` after which training stops between epochs, with a checkpoint. If another
    process is at the run, this one waits for it, or without `wait` returns False at once.

    A process may be killed at any moment: the next call goes on from the last checkpoint, and on a CPU the numbers are
    those of an uninterrupted run. Every epoch's time counts once: that of epochs before the checkpoint is kept in it,
    that of epochs lost after it is taken again. Raises InputError if memory or disk space run out.
    """
    if deadline is not None and time.time() >= deadline:
        return False
    set_precision(precision)
    folder = run.folder(results)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    patience = 0 if not wait else -1 if deadline is None else max(0, deadline - time.time())  # -1: for ever
    try:
        with FileLock(folder / LOCK, timeout=patience), _out_of_memory(run, device, jobs):  # a crash releases the lock
            files.remove_temporary(folder)
            images = _dataset(run.dataset, data, device, run.profile.train_images, run.profile.test_images)
            config = configuration(run, images, precision)
            status = _status(run, results, config, weights=True)
            if status == "finished":
                return True
            release_memory(images.device)
            machine = environment(images.device, jobs, precision)
            record = {"started": _now(), **machine} if status == "missing" else read_record(folder)
            record["config"] = config
            space = SearchSpace(run.backbone, in_channels=images.channels, classes=images.n_classes)
            state = start(space, run.method, run.seed, images.device)
            state.bfloat16 = precision == "bf16"
            if status == "trained":
                state.supernet.load_state_dict(files.read_tensors(folder / WEIGHTS, record))
            elif not _train(run, folder, record, state, images, machine, deadline, progress, checkpoint_seconds):
                return False
            _evaluate(run, folder, record, state.supernet, images, machine, progress)
            return True
    except Timeout:
        return False


def _train(
    run: Run,
    folder: Path,
    record: dict,
    state: TrainingState,
    images: datasets.Dataset,
    machine: dict,
    deadline: float | None,
    progress: bool,
    checkpoint_seconds: float,
) -> bool:
    """Train from the last checkpoint to the end; returns False if the deadline came first."""
    identity = files.sha256(json.dumps(record["config"]["training"], sort_keys=True).encode())
    if checkpoints.load_checkpoint(state, folder, identity):
        record |= _machines(record, machine, run)
    else:
        record |= {"started": _now(), **machine}
        record.pop("machines", None)
    record["status"] = "training"
    write_record(folder, record)
    saved = time.monotonic()

    def after_epoch(state: TrainingState) -> bool:
        nonlocal saved
        stop = _stop.is_set() or (deadline is not None and time.time() >= deadline)
        if stop or time.monotonic() - saved >= checkpoint_seconds:
            checkpoints.save_checkpoint(state, folder, identity)
            saved = time.monotonic()
        return stop

    train(state, run.method, images, run.seed, after_epoch, run.name, progress)
    if len(state.history) < run.method.epochs:
        return False
    record["training_seconds"] = state.seconds
    if math.isfinite(state.processor_seconds):  # else begun by a version that did not take them
        record["training_processor_seconds"] = state.processor_seconds
    record["sha256"] = {
        HISTORY: files.write_csv(folder / HISTORY, pd.DataFrame(state.history)),
        WEIGHTS: files.write_tensors(folder / WEIGHTS, state.supernet.state_dict()),
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


def _evaluate(
    run: Run, folder: Path, record: dict, supernet: SuperNet, images: datasets.Dataset, machine: dict, progress: bool
) -> None:
    record["status"] = "trained"
    write_record(folder, record)  # before the population changes: the record of a finished run vouches for it
    for checkpoint in checkpoints.checkpoints(folder):
        checkpoint.unlink()
    began = time.perf_counter()
    population = _population(run.backbone, run.profile.subnets_per_bucket)
    table = evaluate_population(supernet.eval(), population, images, f"{run.name}: evaluate", progress)
    beside = evaluate_population(supernet, anchors(supernet.space), images, f"{run.name}: anchors", progress)
    record |= {"status": "finished", "evaluation_seconds": time.perf_counter() - began}
    record |= {"evaluation_hardware": machine["hardware"], "finished": _now()}
    record["sha256"][POPULATION] = files.write_csv(folder / POPULATION, table)
    record["sha256"][ANCHORS] = files.write_csv(folder / ANCHORS, beside)
    write_record(folder, record)


@contextmanager
def _out_of_memory(run: Run, device: str, jobs: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        less = f"fewer jobs at once than {jobs}" if jobs > 1 else "a method with a smaller batch size"
        raise InputError(
            f"{run.name} ran out of memory on {device}: choose {less} or another device; the last checkpoint is kept"
        ) from error


# --- what a run is made of --------------------------------------------------------------------------------------------


def configuration(run: Run, images: datasets.Dataset | None = None, precision: str | None = None) -> dict:
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
                    "train_images": len(images.x_train) if images else run.profile.train_images,
                    "backbone": run.backbone,
                    "seed": run.seed,
                    "method": method,
                    "precision": precision,
                },
                "evaluation": {
                    "test_images": len(images.x_test) if images else run.profile.test_images,
                    "subnets_per_bucket": run.profile.subnets_per_bucket,
                    "population_seed": POPULATION_SEED,
                    "recalibration_images": RECALIBRATION_IMAGES,
                },
            }
        )
    )


def _words_for(sampler: Sampler) -> str:
    """What decides a sampler's draws: its settings and, if it is not one of this package's, its code."""
    kind = type(sampler)
    shown = repr(sampler) if kind.__repr__ is not object.__repr__ else f"{kind.__name__}({vars(sampler)})"
    if kind.__module__ == Sampler.__module__:
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


def _status(run: Run, results: str | Path, config: dict, weights: bool = False) -> str:
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
        differs = _difference(there["training"], config["training"])
        evaluation_differs = _difference(there["evaluation"], config["evaluation"])
    except (KeyError, TypeError):
        raise InputError(f"{folder / files.RECORD} is not the record of a run: {REBUILD}") from None
    trained = (folder / WEIGHTS).exists()
    if status == "finished" and not trained:  # nothing left to evaluate anew
        differs = differs or evaluation_differs
    if differs:
        raise InputError(
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


def overview(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row a run: run, status, epochs, subnet_epochs (epochs times subnets a step) and estimated_hours of training.

    The status is finished, running (some process is at it), interrupted, missing or other (the folder holds another
    configuration's run, or damaged files). Hours are estimated from the finished runs of the same dataset; NaN if there
    is none.
    """
    rows, rates = [], {}
    for run in runs:
        try:
            status = _status(run, results, configuration(run))
        except InputError:
            status = "other"
        if status in ("training", "trained"):
            status = "running" if _locked(run.folder(results)) else "interrupted"
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


def _locked(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _difference(there, here, path: str = "") -> str:
    """The first difference of two JSON values in words; empty if they are equal or `here` is None."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here}}
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = dict(enumerate(zip(there, here, strict=True)))
    else:
        return "" if here is None or there == here else f"{path} is {there!r} there and {here!r} here"
    return next((words for key, pair in pairs.items() if (words := _difference(*pair, f"{path}.{key}".strip(".")))), "")


@lru_cache(maxsize=4)
def _dataset(name: str, root: str, device: str, train_images: int | None, test_images: int | None):
    return datasets.load(name, root, device, train_images, test_images)


@lru_cache(maxsize=4)
def _population(backbone: str, subnets_per_bucket: int):
    return SearchSpace(backbone).population(subnets_per_bucket, seed=POPULATION_SEED)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- tables -----------------------------------------------------------------------------------------------------------


def finished(runs: Sequence[Run], results: str | Path = "data/results") -> list[Run]:
    """Those of `runs` that are finished; prints the names of the others, raises InputError if none is.

    Raises InputError too, as the next three do, for a folder of another configuration and for altered files.
    """
    done = []
    for run in runs:
        if _status(run, results, configuration(run)) == "finished":
            done.append(run)
        else:
            print(f"left out, not finished: {run.name}")
    if not done:
        raise InputError(f"none of the {len(runs)} runs, as {runs[0].name}, is finished in {results}: train them first")
    return done


def populations(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row for each run and subnet: dataset, backbone, method, seed, then the columns of `evaluate_population`."""
    return _tables(runs, results, POPULATION)


def anchor_tables(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """The smallest, middle and largest subnet of each run, in the columns of `populations`; the bucket is their size.

    Runs that were evaluated without them are left out; the table is empty if all were.
    """
    there = [run for run in runs if ANCHORS in read_record(run.folder(results))["sha256"]]
    return _tables(there, results, ANCHORS) if there else pd.DataFrame()


def histories(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row for each run and epoch: dataset, backbone, method, seed, then the columns of `train`'s history."""
    return _tables(runs, results, HISTORY)


def _tables(runs: Sequence[Run], results: str | Path, file: str) -> pd.DataFrame:
    tables, made = [], {}
    for run in runs:
        if (status := _status(run, results, configuration(run))) != "finished":
            raise InputError(f"{run.name} is {status} in {results}: train it first")
        keys = {"dataset": run.dataset, "backbone": run.backbone, "method": run.method.name, "seed": run.seed}
        record = read_record(run.folder(results))
        for what, words in (("precision", "precision"), ("dataset_sha256", "images")):
            if made.setdefault((run.dataset, what), value := record["config"]["training"][what]) != value:
                raise InputError(
                    f"{run.name} was trained with another {words} than other runs on {run.dataset}, and does not "
                    f"compare with them: leave it out, or {REBUILD}"
                )
        content = files.read(run.folder(results) / file, record)
        tables.append(pd.read_csv(io.BytesIO(content)).assign(**keys))
    table = pd.concat(tables, ignore_index=True)
    first = ["dataset", "backbone", "method", "seed"]
    return table[first + [column for column in table.columns if column not in first]]


def times(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row a run: dataset, backbone, method, seed, training_seconds, training_processor_seconds (NaN where they were
    not taken), evaluation_seconds, hardware, executor."""
    rows = []
    for run in runs:
        record = read_record(run.folder(results))
        keys = ("training_seconds", "training_processor_seconds", "evaluation_seconds", "hardware", "executor")
        names = {"dataset": run.dataset, "backbone": run.backbone, "method": run.method.name, "seed": run.seed}
        rows.append(names | {key: record.get(key, math.nan) for key in keys})
    return pd.DataFrame(rows)


def trained_supernet(
    run: Run, results: str | Path = "data/results", data: str | Path = "data", device: str = "cpu"
) -> tuple[SuperNet, datasets.Dataset]:
    """The supernet of a finished run in eval mode, with its dataset; parameters are `complete`'s.

    Raises InputError if its weights are not there or altered, and if the dataset is not the one it was trained on.
    """
    path = run.folder(results) / WEIGHTS
    if not path.exists():
        raise InputError(f"{path} does not exist: weights stay on the machine that trained them, so train the run here")
    record = read_record(path.parent)
    where = str(choose_device(device))
    images = _dataset(run.dataset, str(data), where, run.profile.train_images, run.profile.test_images)
    if images.checksum != record["config"]["training"]["dataset_sha256"]:
        raise InputError(
            f"the dataset {run.dataset} here is another than the one that {run.name} was trained on: "
            f"restore it in {data}, or {REBUILD}"
        )
    space = SearchSpace(run.backbone, in_channels=images.channels, classes=images.n_classes)
    supernet = SuperNet(space, run.method.dropout).to(where)
    supernet.load_state_dict(files.read_tensors(path, record))
    return supernet.eval(), images
