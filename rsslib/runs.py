"""Runs: dataset x backbone x method x seed at the scale of a profile, each a results folder.

Notebooks ask for runs with `plan` and `complete`; finished ones load at once, missing ones train. The tables that the
figures are drawn from come from `populations`, `histories` and `times`.
"""

import ctypes
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy
import pandas as pd
import torch
import torchvision
from filelock import FileLock, Timeout
from safetensors.torch import load_file, safe_open, save_file

from rsslib import data as datasets
from rsslib.errors import InputError, choose
from rsslib.evaluate import RECALIBRATION_IMAGES, evaluate_population
from rsslib.methods import LEARNING_RATE, OVERRIDES, TABLE_1, Method, build, override
from rsslib.progress import start_worker
from rsslib.space import BACKBONES, SearchSpace
from rsslib.supernet import Network, SuperNet
from rsslib.train import TrainingState, start, train

MAIN_METHODS = ("ofa", "rss", "rss-short")
POPULATION_SEED = 0


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
            f"{s} + {ps} epochs on {images} training images, learning rate {rate:g}, "
            f"{self.subnets_per_bucket} subnets a bucket, {test} test images"
        )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", ("digits",), subnets_per_bucket=4, supernet_epochs=5, shrinking_epochs=11,
                learning_rate_scale=8.0),
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
    ablations. None for `subnets_per_bucket` takes the profile's. Raises InputError for an unknown name or a value out
    of range.
    """
    if isinstance(profile, str):
        profile = PROFILES[choose(profile, PROFILES, "profile")]
    if subnets_per_bucket is not None:
        if not isinstance(subnets_per_bucket, int) or subnets_per_bucket < 1:
            raise InputError(f"subnets_per_bucket is {subnets_per_bucket!r}: expected a whole number of at least 1")
        profile = dataclasses.replace(profile, subnets_per_bucket=subnets_per_bucket)
    choose(backbone, BACKBONES, "backbone")
    if datasets is None or datasets == "hardest":
        datasets = profile.datasets[-1:] if datasets else profile.datasets
    for what, values in (("datasets", datasets), ("methods", methods), ("seeds", seeds)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{what} is {values!r}: expected a list with at least one entry")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError(f"seed is {seed!r}: expected a whole number of at least 0")
    runs = []
    for dataset in datasets:
        for method in methods:
            if isinstance(method, str):
                method = override(
                    build(method, *profile.epochs(dataset)), learning_rate_scale=profile.learning_rate_scale
                )
            runs += [Run(profile, dataset, backbone, method, seed) for seed in seeds]
    return runs


def complete(
    runs: Sequence[Run],
    results: str | Path = "data/results",
    data: str | Path = "data",
    device: str = "auto",
    precision: str = "fp32",
    jobs: int = 1,
    time_budget: float | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 20.0,
) -> None:
    """Make every run finished: load what is there, go on with what was interrupted, train what is missing.

    `results` is the folder for all runs, `data` the one with datasets. `device` is auto, cpu, cuda or cuda:<n>;
    `precision` of matrix products on CUDA is fp32 or tf32. `jobs` runs train at once, each in a process of its own that
    gets an equal share of the processor's cores. After `time_budget` seconds training stops between epochs, with
    a checkpoint to go on from; `by_worth` puts the runs in an order in which what is finished by then is worth most.
    A checkpoint is also written after an epoch if the last one is `checkpoint_seconds` old.

    Everything is checked before anything is trained: raises InputError. A run that fails does not stop the others;
    RunsFailed, at the end, names it.
    """
    deadline = None if time_budget is None else time.time() + time_budget
    if not isinstance(jobs, int) or jobs < 1:
        raise InputError(f"jobs is {jobs!r}: expected a whole number of at least 1")
    choose(precision, PRECISIONS, "precision")
    where = choose_device(device, needed=any(run.profile.needs_cuda for run in runs) and device == "auto")
    todo = []
    for run in runs:  # first look at everything, so that a mistake in the last run costs nothing
        images = _dataset(run.dataset, str(data), str(where), run.profile.train_images, run.profile.test_images)
        _population(run.backbone, run.profile.subnets_per_bucket)
        if _status(run, results, configuration(run, images, precision)) != "finished":
            todo.append(run)
    jobs = min(jobs, len(todo))
    arguments = (str(results), str(data), str(where), precision, jobs, deadline, progress, checkpoint_seconds)
    failures = {}
    if jobs <= 1:
        for run in todo:
            try:
                complete_run(run, *arguments)
            except Exception as error:
                failures[run.name] = error
    else:
        if time_budget is None:
            todo.sort(key=lambda run: -run.method.subnet_epochs)  # long ones first, so that no core idles at the end
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // jobs)
        lines = context.Queue()  # each worker's line for its progress bar
        for line in range(jobs):
            lines.put(line)
        with ProcessPoolExecutor(jobs, context, _start_worker, (threads, lines, context.RLock())) as pool:
            futures = {pool.submit(complete_run, run, *arguments): run for run in todo}
            try:
                for future in as_completed(futures):
                    if error := future.exception():
                        failures[futures[future].name] = error
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if failures:
        raise RunsFailed(failures) from next(iter(failures.values()))


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


def _start_worker(threads: int, lines, lock) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    start_worker(lines, lock)


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
) -> None:
    """Make one run finished, in this process; the parameters are those of `complete`, all of them picklable.

    `device` is cpu, cuda or cuda:<n>. `jobs` is how many runs train at once on this machine and is only recorded.
    `deadline` is a time as of `time.time` at whose end training stops between epochs, with a checkpoint; the run is
    then not finished and no error is raised.
    """
    if deadline is not None and time.time() >= deadline:
        return
    set_precision(precision)
    images = _dataset(run.dataset, data, device, run.profile.train_images, run.profile.test_images)
    config = configuration(run, images, precision)
    folder = run.folder(results)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "run.lock"):  # another process may be at it: wait, then find it finished
        status = _status(run, results, config)
        if status == "finished":
            return
        record = {"status": "training", "config": config, "started": _now(), **environment(images.device, jobs)}
        if status == "missing":
            write_json(folder / "run.json", record)
        else:
            record["started"] = _read_json(folder / "run.json")["started"]
        space = SearchSpace(run.backbone, in_channels=images.channels, classes=images.n_classes)
        checkpoint, weights = folder / "checkpoint.safetensors", folder / "weights.safetensors"
        state = start(space, run.method, run.seed, images.device)
        if status == "trained":
            state.supernet.load_state_dict(load_file(weights))
            record |= {"training_seconds": _read_json(folder / "run.json")["training_seconds"]}
        else:
            if checkpoint.exists():
                load_checkpoint(state, checkpoint)
            saved = time.monotonic()

            def after_epoch(state: TrainingState) -> bool:
                nonlocal saved
                stop = deadline is not None and time.time() >= deadline
                if stop or time.monotonic() - saved >= checkpoint_seconds:
                    save_checkpoint(state, checkpoint)
                    saved = time.monotonic()
                return stop

            train(state, run.method, images, run.seed, after_epoch, run.name, progress)
            if len(state.history) < run.method.epochs:
                return
            write_csv(folder / "history.csv", pd.DataFrame(state.history))
            write_tensors(weights, state.supernet.state_dict())
            record |= {"status": "trained", "training_seconds": state.seconds}
            write_json(folder / "run.json", record)
            checkpoint.unlink(missing_ok=True)
        began = time.perf_counter()
        population = _population(run.backbone, run.profile.subnets_per_bucket)
        table = evaluate_population(state.supernet.eval(), population, images, f"{run.name}: evaluate", progress)
        write_csv(folder / "population.csv", table)
        record |= {"status": "finished", "evaluation_seconds": time.perf_counter() - began, "finished": _now()}
        write_json(folder / "run.json", record)


# --- what a run is made of --------------------------------------------------------------------------------------------


def configuration(run: Run, images: datasets.Dataset | None = None, precision: str | None = None) -> dict:
    """Everything that decides a run's numbers, as JSON; two runs with equal ones are the same run.

    Without a dataset or a precision, what depends on them is None and matches anything.
    """
    method = dataclasses.asdict(run.method)
    for stage, record in zip(run.method.stages, method["stages"], strict=True):
        record["sampler"] = repr(stage.sampler)
    return json.loads(
        json.dumps(
            {
                "training": {
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


def _status(run: Run, results: str | Path, config: dict) -> str:
    """missing, training, trained (to be evaluated) or finished; raises InputError if the folder holds another run."""
    folder = run.folder(results)
    if not (folder / "run.json").exists():
        return "missing"
    record = _read_json(folder / "run.json")
    try:
        status, there = record["status"], record["config"]
        differs = _difference(there["training"], config["training"])
        evaluation_differs = _difference(there["evaluation"], config["evaluation"])
    except (KeyError, TypeError):
        raise InputError(f"{folder / 'run.json'} is not a run's record: move the folder away to train anew") from None
    trained = (folder / "weights.safetensors").exists()
    if status == "finished" and not trained:  # nothing left to evaluate anew
        differs = differs or evaluation_differs
    if differs:
        raise InputError(
            f"{folder} holds a run of another configuration ({differs}): "
            "give another results folder, or move this one away to train anew"
        )
    if status == "finished" and not evaluation_differs and (folder / "population.csv").exists():
        return "finished"
    return "trained" if status != "training" and trained else "training"


def overview(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row a run: run, status, epochs, subnet_epochs (epochs times subnets a step) and estimated_hours of training.

    The status is finished, running (some process is at it), interrupted, missing or other (the folder holds another
    configuration's run). Hours are estimated from the finished runs of the same dataset, where there are any.
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
            seconds = _read_json(run.folder(results) / "run.json")["training_seconds"]
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
        with FileLock(folder / "run.lock", timeout=0):
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


def choose_device(device: str = "auto", needed: bool = False) -> torch.device:
    """The device of that name; auto is CUDA where there is one. Raises InputError where CUDA is asked for in vain."""
    kind, _, index = device.partition(":")
    choose(kind, ("auto", "cpu", "cuda"), "device")
    if device != kind and not (kind == "cuda" and index.isdigit()):
        raise InputError(f"device is {device!r}: expected auto, cpu, cuda or cuda:<number>")
    available = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= available:
        raise InputError(f"device {device!r} was asked for, but PyTorch finds {available} CUDA devices here")
    if needed and not available:
        raise InputError(
            "this profile is meant for a CUDA device and PyTorch finds none here: "
            "choose profile smoke or quick, or give device cpu if weeks of computing are what you want"
        )
    if kind == "auto":
        device = "cuda" if available else "cpu"
    if device == "cpu":
        keep_freed_memory()
    return torch.device(device)


def keep_freed_memory() -> None:
    """Have glibc's allocator keep what PyTorch frees, for the rest of the process; elsewhere this does nothing.

    By default every large tensor is mapped anew, and a CPU step spends a quarter of its time on page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


PRECISIONS = {"fp32": "ieee", "tf32": "tf32"}


def set_precision(precision: str) -> None:
    """fp32 (as the study) or tf32 for matrix products and convolutions on CUDA."""
    mode = PRECISIONS[choose(precision, PRECISIONS, "precision")]
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode


def environment(device: torch.device, jobs: int = 1) -> dict:
    """Versions, hardware and executor (how steps are run, and how many runs at once), for run.json."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, threads: {torch.get_num_threads()}"
    executor = "eager" if jobs <= 1 else f"eager, {jobs} runs at once"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return {"hardware": name, "versions": {**versions, "torchvision": torchvision.__version__}, "executor": executor}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- tables -----------------------------------------------------------------------------------------------------------


def finished(runs: Sequence[Run], results: str | Path = "data/results") -> list[Run]:
    """Those of `runs` that are finished; prints the names of the others, raises InputError if none is."""
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
    return _tables(runs, results, "population.csv")


def histories(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row for each run and epoch: dataset, backbone, method, seed, then the columns of `train`'s history."""
    return _tables(runs, results, "history.csv")


def _tables(runs: Sequence[Run], results: str | Path, file: str) -> pd.DataFrame:
    tables = []
    for run in runs:
        path = run.folder(results) / file
        if (status := _status(run, results, configuration(run))) != "finished":
            raise InputError(f"{run.name} is {status} in {results}: train it first")
        keys = {"dataset": run.dataset, "backbone": run.backbone, "method": run.method.name, "seed": run.seed}
        tables.append(pd.read_csv(path).assign(**keys))
    table = pd.concat(tables, ignore_index=True)
    first = ["dataset", "backbone", "method", "seed"]
    return table[first + [column for column in table.columns if column not in first]]


def times(runs: Sequence[Run], results: str | Path = "data/results") -> pd.DataFrame:
    """One row a run: dataset, backbone, method, seed, training_seconds, evaluation_seconds, hardware, executor."""
    rows = []
    for run in runs:
        record = _read_json(run.folder(results) / "run.json")
        keys = ("training_seconds", "evaluation_seconds", "hardware", "executor")
        names = {"dataset": run.dataset, "backbone": run.backbone, "method": run.method.name, "seed": run.seed}
        rows.append(names | {key: record.get(key, math.nan) for key in keys})
    return pd.DataFrame(rows)


def trained_supernet(
    run: Run, results: str | Path = "data/results", data: str | Path = "data", device: str = "cpu"
) -> tuple[SuperNet, datasets.Dataset]:
    """The supernet of a finished run in eval mode, with its dataset; raises InputError if its weights are not there."""
    path = run.folder(results) / "weights.safetensors"
    if not path.exists():
        raise InputError(f"{path} does not exist: weights stay on the machine that trained them, so train the run here")
    images = _dataset(run.dataset, str(data), device, run.profile.train_images, run.profile.test_images)
    space = SearchSpace(run.backbone, in_channels=images.channels, classes=images.n_classes)
    supernet = SuperNet(space, run.method.dropout).to(device)
    supernet.load_state_dict(load_file(path))
    return supernet.eval(), images


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Path):
    """A temporary path beside `path` that replaces it, fsynced, if the block succeeds, and vanishes if not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_json(path: Path, record: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): move its folder away to train anew") from None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    with atomic_path(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Weights, momentum, teacher, position and history in one safetensors file."""
    tensors = {f"weights.{name}": t for name, t in state.supernet.state_dict().items()}
    for name, parameter in state.supernet.named_parameters():
        if parameter.grad is not None:  # tensors that never had a gradient have no momentum either
            tensors[f"momentum.{name}"] = state.optimizer.state[parameter]["momentum_buffer"]
    if state.teacher is not None:
        tensors |= {f"teacher.{name}": t for name, t in state.teacher.state_dict().items()}
    position = {"stage": state.stage, "epoch": state.epoch, "history": state.history}
    write_tensors(path, tensors, {"state": json.dumps(position)})


def load_checkpoint(state: TrainingState, path: Path) -> None:
    """Bring a new `state` to where the checkpoint was written."""
    device = state.supernet.classifier.weight.device
    with safe_open(path, "pt") as file:
        position = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "momentum": {}, "teacher": {}}
    for name, tensor in tensors.items():
        part, _, name = name.partition(".")
        parts[part][name] = tensor
    state.supernet.load_state_dict(parts["weights"])
    for name, parameter in state.supernet.named_parameters():
        if name in parts["momentum"]:
            parameter.grad = torch.zeros_like(parameter)
            state.optimizer.state[parameter]["momentum_buffer"].copy_(parts["momentum"][name])
    if parts["teacher"]:
        space = state.supernet.space
        state.teacher = Network(space, space.largest).to(device, memory_format=torch.channels_last)
        state.teacher.load_state_dict(parts["teacher"])
        state.teacher.requires_grad_(False).train()
    state.stage, state.epoch, state.history = position["stage"], position["epoch"], position["history"]
