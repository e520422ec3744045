"""Store a run as a folder: its record and tables, its identity and its status.

`run.json` is the record. It holds the SHA-256 of the other files and of itself, so damage is noticed. A record from
someone else may hold anything with valid digests, so values that a run never writes are also refused.
"""

import inspect
import io
import json
import math
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import numpy as np
from msgspec import Meta

from rsslib import files
from rsslib.data.readers import DATASETS
from rsslib.errors import InputError, checked, choose, one_line, shortened
from rsslib.files import WEIGHTS
from rsslib.methods import Method, Schedule, Stage
from rsslib.population import RECALIBRATION_IMAGES, sample_population
from rsslib.progress import in_words
from rsslib.samplers import Successive, Uniform
from rsslib.space import RESOLUTION, Arch, SearchSpace
from rsstudy.catalogue import Alone, Dosed, Repeated, of_bucket
from rsstudy.plan import Profile, Run, results_folder

if TYPE_CHECKING:  # imports that take long
    import pandas as pd
    import torch

    from rsslib.data.dataset import Dataset

RECORD, HISTORY, POPULATION, ANCHORS, LOCK = "run.json", "history.csv", "population.csv", "anchors.csv", "run.lock"
LIVE = "live.csv"  # the history of a run that is training
EFFECTS, AGREEMENT, FORGETTING = "effects.csv", "agreement.csv", "forgetting.csv"  # see rsstudy.measurement
LARGEST_NUMBER = 1e30  # in a table
LARGEST_RECORD = 10 * 2**20  # bytes, a thousand times the usual size
REBUILD = "rebuild the run (rebuild=True, or --rebuild on the command line), which sets its files aside"
POPULATION_SEED = 0
ADDED = {"gradients", "student_dropout", "momentum", "weight_decay", "label_smoothing", "augmentation", "groups"}
ADDED |= {"warmup_epochs", "ramp_epochs"}  # fields of stages
UNKNOWN = "unknown"  # in a configuration without images or precision: matches anything
CODE_VERSION = 1  # raised whenever a configuration would give different numbers
PACKAGES = ("rsslib", "rsstudy")  # packages whose samplers are identified by their settings
GIVE_A_VERSION = "give it an attribute `version` that you change whenever it would draw other subnets"


class Refused(InputError):
    """The folder of a run holds another run, or files that differ from what the run wrote."""


def refused(path: Path, why: str) -> Refused:
    return Refused(f"{path} {why}: restore it, or {REBUILD}")


# --- what a record holds ----------------------------------------------------------------------------------------------

UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
Text = Annotated[str, Meta(max_length=2_000, pattern=f"^[^{UNPRINTABLE}]*$")]
Name = Annotated[str, Meta(max_length=200, pattern=r"^[\w-][\w.-]*$")]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]


class StageRecord(TypedDict):
    epochs: Count


class MethodRecord(TypedDict):
    name: Name
    stages: list[StageRecord]


class TrainingRecord(TypedDict):
    dataset: Name
    backbone: Name
    seed: Count
    method: MethodRecord
    precision: Annotated[str, Meta(max_length=20)] | None
    dataset_sha256: Annotated[str, Meta(max_length=64)] | None
    profile: NotRequired[Name]
    train_images: NotRequired[Count]
    init: NotRequired[Digest]


class EvaluationRecord(TypedDict, total=False):
    test_images: Count
    subnets_per_bucket: Count
    population_seed: Count


class Configuration(TypedDict):
    training: TrainingRecord
    evaluation: EvaluationRecord


class Machine(TypedDict, total=False):
    hardware: Text
    executor: Text
    versions: dict[str, Text]


class Evaluated(TypedDict):
    """What an interrupted evaluation has counted so far."""

    of: Text
    correct: list[Count | None]
    seconds: Seconds


class Always(TypedDict):
    status: Literal["training", "trained", "finished"]
    sha256: dict[str, Digest]
    config: Configuration


class Record(Always, Machine, total=False):
    snapshots: dict[str, Digest]
    training_seconds: Seconds
    training_processor_seconds: Seconds
    evaluation_seconds: Seconds
    evaluation_hardware: Text
    evaluator: Count
    started: Text
    finished: Text
    threads: Annotated[int, Meta(ge=1)]
    jobs: Count
    machines: Annotated[list[Machine], Meta(max_length=1_000)]
    evaluated: Evaluated


class Finished(TypedDict):
    """What the record of a finished run always has."""

    training_seconds: Seconds
    hardware: Text
    executor: Text


# Columns that readers of a table rely on. All except `WORDS` are finite numbers. Accuracy is in percent.
WORDS = {"stage": r"[\w -]*", "length": "step|epoch", "part": r"\w+"}
WORDS |= dict.fromkeys(("kernel", "expand", "depth"), r"\d+(-\d+)*")
_SUBNETS = ("bucket", "subnet", "mflops", "kernel", "expand", "depth", "accuracy")
TABLES = {
    HISTORY: ("stage", "epoch", "learning_rate", "mflops", "loss", "images", "seconds"),
    POPULATION: _SUBNETS,
    ANCHORS: _SUBNETS,
    EFFECTS: tuple(
        "share length trained judged trained_mflops judged_mflops distance repeats loss_effect accuracy_effect".split()
    ),
    AGREEMENT: tuple("share a b part shared cross own_a own_b a_mflops b_mflops distance".split()),
    FORGETTING: ("trained", "number", "epoch", "mflops", "loss", "accuracy"),
}


# --- writing and reading ----------------------------------------------------------------------------------------------


def write_record(folder: Path, record: dict) -> None:
    """Write run.json. `record["sha256"]` maps names of other files to their SHA-256; that of the record is added."""
    record = record | {"sha256": {**record.get("sha256", {}), RECORD: _digest(record)}}
    files.write(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def read_record(folder: Path) -> dict:
    """Return the record of a run; raises Refused if it is unreadable, altered, or holds values that no run writes."""
    path = folder / RECORD
    try:
        record = msgspec.json.decode(files.read_regular(path, LARGEST_RECORD))
        msgspec.convert(record, Record)
        if record["status"] == "finished":
            msgspec.convert(record, Finished)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise refused(path, f"is not the record of a run ({one_line(error)})") from None
    if record["sha256"].get(RECORD) != _digest(record):
        raise refused(path, "was altered after the run wrote it")
    return record


def _digest(record: dict) -> str:
    others = {name: digest for name, digest in record.get("sha256", {}).items() if name != RECORD}
    return files.sha256(json.dumps(record | {"sha256": others}, sort_keys=True).encode())


def read_file(path: Path, record: dict) -> bytes:
    """Return the bytes of a file that the record lists; raises Refused if they differ from what the run wrote."""
    try:
        content = files.read_regular(path)
    except (OSError, ValueError) as error:
        raise refused(path, f"cannot be read ({error})") from None
    if record["sha256"].get(path.name) != files.sha256(content):
        raise refused(path, "was damaged or altered after the run wrote it")
    return content


def read_tensors(path: Path, record: dict) -> "dict[str, torch.Tensor]":
    """Return the tensors of a run's safetensors file; raises Refused as `read_file` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read_file(path, record)
    try:
        return load(content)
    except SafetensorError as error:
        raise refused(path, f"is not a safetensors file ({error})") from None


def read_table(folder: Path, name: str, record: dict) -> "pd.DataFrame":
    """Return the table `name` of a run; raises Refused if it was altered or holds values that no run writes."""
    import pandas as pd

    path = folder / name
    content = read_file(path, record)
    try:
        table = pd.read_csv(io.BytesIO(content))
        numbers = table[list(TABLES[name])].drop(columns=[*WORDS], errors="ignore").astype(float)
    except (ValueError, KeyError) as error:
        raise refused(path, f"is not a table of a run ({one_line(error)})") from None
    usual = (numbers.abs() <= LARGEST_NUMBER).all(axis=None) and (numbers.filter(["accuracy"]) <= 100).all(axis=None)
    for column in WORDS.keys() & {*table}:
        usual &= table[column].astype("string").fillna("").str.fullmatch(WORDS[column]).all()
    if table.empty or not usual:
        raise refused(path, "is not a table of a run (it has no rows, or values that no run writes)")
    return table


def has_table(folder: Path, name: str) -> bool:
    """Return whether the record of a run lists the table and the file exists."""
    return name in read_record(folder)["sha256"] and (folder / name).exists()


# --- what identifies a run --------------------------------------------------------------------------------------------


def population_of(run: Run) -> dict[tuple[float, int], Arch]:
    """Return the subnets on which a run is evaluated, by bucket and number.

    They are the same for every supernet of a backbone. A run that studies one subnet is evaluated on that one.
    """
    samplers = [stage.sampler for stage in run.method.stages]
    if len(samplers) == 1 and isinstance(one := samplers[0], Alone | Dosed):
        return {(one.bucket, one.number): of_bucket(run.space, one.bucket, one.number)}
    return _population(run.space, run.profile.subnets_per_bucket)


@lru_cache(maxsize=4)
def _population(space: SearchSpace, subnets_per_bucket: int) -> dict[tuple[float, int], Arch]:
    drawn = sample_population(space, subnets_per_bucket, seed=POPULATION_SEED)
    return {(bucket, i % subnets_per_bucket): arch for i, (bucket, arch) in enumerate(drawn)}


def sampler_identity(sampler: object) -> str:
    """Return text that is equal for samplers that draw the same subnets, in any process.

    The study's samplers are identified by their settings; `CODE_VERSION` covers their code. Other samplers are
    identified by name, attributes and the source of their methods, or by an attribute `version` instead of the source.
    Raises InputError if this is not enough: if attributes are not plain values, or the source cannot be found.
    """
    kind = type(sampler)
    if kind.__module__.partition(".")[0] in PACKAGES and kind.__repr__ is not object.__repr__:
        return _stored_form(sampler)
    version = getattr(sampler, "version", None)

    def refuse(value: object) -> str:
        if version is not None:
            return type(value).__name__
        raise InputError(
            f"the sampler {kind.__name__} holds a {type(value).__name__}, which does not identify it: keep plain "
            f"values, or {GIVE_A_VERSION}"
        )

    identity = [_attributes(sampler), _source(kind) if version is None else version]
    content = json.dumps(identity, default=refuse, sort_keys=True)
    return f"{kind.__name__}, settings and code {files.sha256(content.encode())[:16]}"


def _attributes(sampler: object) -> dict[str, Any]:
    """Return the attributes of a sampler and of its classes, without methods and double-underscore names."""
    kind = type(sampler)
    names = [name for name in dir(sampler) if not name.startswith(("__", "_abc_")) and name != "version"]
    values = [name for name in names if not callable(getattr(kind, name, None))]
    return {name: getattr(sampler, name) for name in values if hasattr(sampler, name)}


def _source(kind: type) -> list[str]:
    """Return the source of all functions of a class and its bases, independent of their place in a file."""
    sources = []
    for base in kind.__mro__[:-1]:
        for name, member in sorted(vars(base).items()):
            function = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
            if not inspect.isfunction(function) or function.__code__.co_filename == "<string>":  # made by dataclass
                continue
            sources.append(f"{name}: {_source_of(function, kind.__name__)}")
    return sources


def _source_of(function: Callable, name: str) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise InputError(
            f"the source of {name} cannot be found: define it in a file or notebook, or {GIVE_A_VERSION}"
        ) from None


def schedule_identity(schedule: Schedule) -> str:
    """Return the name of a schedule, or for a function, text that is equal for equal source.

    Other callables are identified like samplers. Raises InputError for a function that uses values of an enclosing
    function.
    """
    if isinstance(schedule, str):
        return schedule
    if not inspect.isfunction(schedule):
        return sampler_identity(schedule)
    name = schedule.__name__
    if schedule.__closure__ or schedule.__defaults__:
        raise InputError(
            f"the schedule {name} holds values that do not identify it: make it a small dataclass with __call__"
        )
    return f"{name}, code {files.sha256(_source_of(schedule, name).encode())[:16]}"


def _as_first_recorded(value: Stage | Method) -> dict[str, Any]:
    """Return the fields of a stage or a method. Fields that the first records lack are included only if not default."""
    usual = {field.name: field.default for field in fields(value) if field.name in ADDED}
    return {name: own for name, own in vars(value).items() if name not in usual or own != usual[name]}


def _stored_form(sampler: object) -> str:
    """Return a sampler of the study as records print it, with the names and fields of the first records."""
    if isinstance(sampler, Repeated):  # which may hold any sampler
        return f"Repeated(sampler={sampler_identity(sampler.sampler)}, times={sampler.times!r})"
    if isinstance(sampler, Successive):
        return f"Sequence(sizes={sampler.sizes!r})"
    if isinstance(sampler, Uniform) and sampler.every == 1:
        return repr(sampler).removesuffix(", every=1)") + ")"
    return repr(sampler)


def configuration(run: Run, images: "Dataset | None" = None, precision: str | None = None) -> dict:
    """Return everything that determines the numbers of a run, including the code version, as JSON.

    Runs with equal configurations are the same run. Without a dataset or a precision, values that depend on them are
    `UNKNOWN` and match anything.
    """
    stages = [
        _as_first_recorded(stage)
        | {"sampler": sampler_identity(stage.sampler), "schedule": schedule_identity(stage.schedule)}
        for stage in run.method.stages
    ]
    if run.dataset not in DATASETS and run.profile.epochs_for is not None:
        if images is not None:
            raise InputError(f"{run.name} was planned without its images: give plan the same folder as `data`")
        for stage in stages:  # they depend on the number of images; see `Profile.fitted`
            stage |= dict.fromkeys(("epochs", "first_epoch", "schedule_epochs"), UNKNOWN)
    train, test, checksum = run.profile.train_images or UNKNOWN, run.profile.test_images or UNKNOWN, UNKNOWN
    if run.dataset not in DATASETS:  # a custom dataset may have fewer images
        train = test = UNKNOWN
    if images is not None:
        train, test, checksum = len(images.x_train), len(images.x_test), images.checksum
    training = {
        "code_version": CODE_VERSION,
        "profile": run.profile.name,
        "dataset": run.dataset,
        "dataset_sha256": checksum,
        "train_images": train,
        "backbone": run.backbone,
        "seed": run.seed,
        "method": _as_first_recorded(run.method) | {"stages": stages},
        "precision": precision or UNKNOWN,
    }
    if run.resolution != RESOLUTION:
        training["resolution"] = run.resolution
    if run.custom:
        training["space"] = run.custom.record()
    if run.init:
        training["init"] = run.init[1]
    evaluation = {
        "test_images": test,
        "subnets_per_bucket": run.profile.subnets_per_bucket,
        "population_seed": POPULATION_SEED,
        "recalibration_images": RECALIBRATION_IMAGES,
    }
    return json.loads(json.dumps({"training": training, "evaluation": evaluation}))


def difference(there: dict, here: dict) -> str:
    """Describe the first difference between two JSON values; empty if they are equal or `here` is unknown."""
    old, new = dict(_leaves(there)), dict(_leaves(here))
    for path in {**old, **new}:
        a, b = old.get(path), new.get(path)
        if b not in (UNKNOWN, a):
            return f"{shortened(path)} is {shortened(repr(a))} there and {shortened(repr(b))} here"
    return ""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested dictionaries and lists, each with its path."""
    if value and isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(part, f"{path}.{key}".strip("."))
    else:
        yield path, value


def identity_of(record: dict) -> str:
    """Return the identity of the configuration to which a checkpoint or snapshot belongs."""
    return files.sha256(json.dumps(record["config"]["training"], sort_keys=True).encode())


# --- the status of runs -----------------------------------------------------------------------------------------------


def status_of(run: Run, results: str | Path | None, config: dict, weights: bool = False) -> str:
    """Return the status: missing, training, trained (not evaluated yet) or finished.

    Raises Refused if the folder holds another run or altered files. Weights are checked only if `weights` is true,
    because they are large and tables do not need them.
    """
    folder = run.folder(results)
    if not os.path.exists(folder / RECORD):
        return "missing"
    record = read_record(folder)
    status, there = record["status"], record["config"]
    differs = difference(there["training"], config["training"])
    evaluation_differs = difference(there["evaluation"], config["evaluation"])
    trained = (folder / WEIGHTS).exists()
    if status == "finished" and not trained:  # nothing is left to evaluate again
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
        for name in TABLES.keys() - {HISTORY}:
            if name in record["sha256"] and (name == POPULATION or (folder / name).exists()):
                read_file(folder / name, record)
        return "finished"
    return "trained"


@checked
def overview(runs: Sequence[Run], results: str | Path | None = None) -> "pd.DataFrame":
    """Return one row per run: run, status, epoch, epochs, loss, and seconds_left of training.

    The status is finished, running (a process trains it), interrupted, missing or other (the folder holds a run of
    another configuration, or damaged files). Epoch (the number of finished epochs), loss and seconds left are known
    for runs that have begun. For other runs, the time is estimated from runs on the same dataset. Unknown values are
    NaN.
    """
    import pandas as pd

    files.check_folder(results_folder(results), "results")
    columns = ["run", "status", "epoch", "epochs", "loss", "seconds"]
    table = pd.DataFrame([_overview_row(run, results) for run in runs], columns=columns)
    done = [_subnet_epochs(*pair) for pair in zip([run.method for run in runs], table["epoch"], strict=True)]
    left = [run.method.subnet_epochs for run in runs] - np.array(done)
    rates = (table.pop("seconds") / done).groupby([run.dataset for run in runs]).transform("median")
    table["seconds_left"] = (rates * left).where(left > 0, 0.0)
    return table


def _overview_row(run: Run, results: str | Path | None) -> dict[str, Any]:
    import pandas as pd

    folder, epochs = run.folder(results), run.method.epochs
    row = {"run": run.name, "status": "other", "epoch": 0, "epochs": epochs, "loss": math.nan, "seconds": math.nan}
    try:
        row["status"] = status_of(run, results, configuration(run))
        if row["status"] == "missing":
            return row
        record = read_record(folder)
    except InputError:
        return row
    if row["status"] != "finished":
        row["status"] = "running" if is_locked(folder) else "interrupted"
    row["epochs"] = sum(stage["epochs"] for stage in record["config"]["training"]["method"]["stages"])
    if "training_seconds" in record:
        return row | {"epoch": row["epochs"], "seconds": record["training_seconds"]}
    with suppress(OSError, ValueError, IndexError):  # the file may be missing, or being written
        live = pd.read_csv(io.BytesIO(files.read_regular(folder / LIVE)), usecols=["loss", "seconds"], dtype=float)
        row |= {"epoch": len(live), "loss": live["loss"].iloc[-1], "seconds": live["seconds"].sum()}
    return row


def _subnet_epochs(method: Method, epochs: int) -> int:
    """`method.subnet_epochs` for the first `epochs` epochs only."""
    total = 0
    for stage in method.stages:
        done = min(epochs, stage.epochs)
        total += done * getattr(stage.sampler, "count", 1)
        epochs -= done
    return total


def overview_words(table: "pd.DataFrame") -> str:
    """Return `overview` as text, with a last line that sums up all runs."""
    left, done = table["seconds_left"].sum(skipna=False), (table["status"] == "finished").sum()
    words = "unknown until an epoch is trained" if math.isnan(left) else in_words(left)
    shown = table.assign(seconds_left=table["seconds_left"].map(in_words)).rename(columns={"seconds_left": "left"})
    return (
        f"{shown.to_string(index=False, na_rep='', float_format='{:.2f}'.format)}\n\n"
        f"{done} of {len(table)} runs are finished; training left, one run at a time: {words}"
    )


def finished_of(runs: Sequence[Run], results: str | Path | None = None) -> list[Run]:
    """Return the finished runs among `runs`; `overview` shows the status of the others."""
    found = zip(runs, overview(runs, results)["status"], strict=True)
    return [run for run, status in found if status == "finished"]


def finished_runs(results: str | Path, profile: str, backbone: str, resolution: int = RESOLUTION) -> list[Run]:
    """Return the finished, undamaged runs of a profile, a backbone and a resolution below `results`.

    Runs are found by their records, so custom methods and datasets are included. The stages of their methods are
    empty.
    """
    runs = []
    for path in sorted(Path(results, profile).glob(f"*/{backbone}*/*/seed*/{RECORD}")):
        try:
            record = read_record(path.parent)
            training, evaluation = record["config"]["training"], record["config"]["evaluation"]
            images = {"train_images": training["train_images"], "test_images": evaluation["test_images"]}
            scale = Profile(profile, (training["dataset"],), evaluation["subnets_per_bucket"], **images)
            method = Method(training["method"]["name"], (), dropout=training["method"]["dropout"])
            custom = SearchSpace(**training["space"]) if "space" in training else None
            run = Run(scale, training["dataset"], backbone, method, training["seed"], resolution, custom)
            read_table(path.parent, POPULATION, record)
            here = run.folder(results) == path.parent and training["backbone"] == backbone  # a record may name another
            if record["status"] == "finished" and here:
                runs.append(run)
        except (ValueError, KeyError, TypeError):
            continue  # not the record of a run, or damaged
    return runs


def stored_folders(results: str | Path | None = None) -> dict[str, Path]:
    """Return the folders of all runs below `results`, by the name of the run."""
    root = results_folder(results)
    folders = sorted(path.parent for path in root.glob(f"*/*/*/*/seed*/{RECORD}"))
    return {folder.relative_to(root).as_posix(): folder for folder in folders}


def delete(name: str, folders: Mapping[str, Path]) -> None:
    """Delete the folder of a run; raises InputError if the run is unknown, committed or running."""
    folder = folders[choose(name, folders, "run")]
    with suppress(FileNotFoundError):  # there may be no git
        listed = subprocess.run(["git", "ls-files", "."], cwd=folder, capture_output=True, text=True)
        if listed.stdout:
            raise InputError(f"{name} is committed: expected one of your own runs; `git rm -r` removes it all the same")
    with files.locked(folder / LOCK) as mine:
        if not mine:
            raise InputError(f"{name} is being trained: stop that first")
        shutil.rmtree(folder)


def set_aside(folder: Path) -> Path:
    """Move the files of a run to a new folder `replaced-seed<k>-<n>` beside it; the caller must hold the run's lock."""
    names = (folder.with_name(f"replaced-{folder.name}-{n}") for n in range(1, 10**6))
    aside = next(path for path in names if not path.exists())
    with files.writing(aside):
        aside.mkdir()
        # move the record last: until then, readers find the refused run
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
            if path.suffix != ".lock":
                path.rename(aside / path.name)
    return aside


def is_locked(folder: Path) -> bool:
    """Return whether a process is training or evaluating the run."""
    if not os.path.exists(folder / LOCK):
        return False
    try:
        with files.locked(folder / LOCK) as mine:
            return not mine
    except InputError:  # the folder is read-only
        return False
