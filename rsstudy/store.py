"""A run is a folder: its record and tables, what identifies it, whether it is there, whole and finished."""

import dis
import enum
import functools
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy
import numpy as np
import pandas as pd

from rsslib import files
from rsslib.data.readers import DATASETS
from rsslib.errors import InputError, shortened
from rsslib.files import WEIGHTS
from rsslib.methods import Method
from rsslib.population import RECALIBRATION_IMAGES
from rsslib.progress import in_words
from rsslib.samplers import Sampler
from rsslib.space import RESOLUTION, Arch, SearchSpace
from rsstudy.catalogue import Alone, Dosed, Repeated, of_bucket
from rsstudy.plan import Profile, Run, results_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import, and whoever lists runs has no need of it
    import torch

    from rsslib.data.dataset import Dataset

RECORD, HISTORY, POPULATION, ANCHORS = "run.json", "history.csv", "population.csv", "anchors.csv"
EFFECTS, AGREEMENT, FORGETTING = (
    "effects.csv",
    "agreement.csv",
    "forgetting.csv",
)  # of runs that are measured; see rsstudy.interference
LARGEST_RECORD = 10 * 2**20  # bytes, a thousand times a usual one
REBUILD = "rebuild the run (rebuild=True, or --rebuild on the command line), which sets its files aside"


class Refused(InputError):
    """The folder of a run holds another run, or files that are not as it wrote them."""


# --- what a run writes ------------------------------------------------------------------------------------------------

_TEXT = {"type": "string", "maxLength": 2_000, "pattern": r"^[^\ud800-\udfff]*$"}  # without what cannot be printed
_NAME = {"type": "string", "pattern": r"^[\w-][\w.-]*$", "maxLength": 200}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**63}
_NUMBER = {"type": "number", "minimum": -1e30, "maximum": 1e30}
_SECONDS = {"type": "number", "minimum": 0, "maximum": 1e10}
_STAGE = {"type": "object", "required": ["epochs"], "properties": {"epochs": _COUNT}}
_MACHINE = {"hardware": _TEXT, "executor": _TEXT, "versions": {"type": "object", "additionalProperties": _TEXT}}

_DIGESTS = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}

SCHEMA = {
    "type": "object",
    "required": ["status", "config", "sha256"],
    "properties": {
        "status": {"enum": ["training", "trained", "finished"]},
        "sha256": _DIGESTS | {"required": [RECORD]}, "snapshots": _DIGESTS,
        "config": {
            "type": "object",
            "required": ["training", "evaluation"],
            "properties": {
                "training": {
                    "type": "object",
                    "required": ["dataset", "backbone", "seed", "method", "precision", "dataset_sha256"],
                    "properties": {
                        "profile": _NAME, "dataset": _NAME, "backbone": _NAME, "seed": _COUNT, "train_images": _COUNT,
                        "precision": {"type": ["string", "null"], "maxLength": 20},
                        "dataset_sha256": {"type": ["string", "null"], "maxLength": 64},
                        "method": {
                            "type": "object",
                            "required": ["name", "stages"],
                            "properties": {"name": _NAME, "stages": {"type": "array", "items": _STAGE}},
                        },
                    },
                },
                "evaluation": {
                    "type": "object",
                    "properties": {"test_images": _COUNT, "subnets_per_bucket": _COUNT, "population_seed": _COUNT},
                },
            },
        },
        "training_seconds": _SECONDS, "training_processor_seconds": _SECONDS, "evaluation_seconds": _SECONDS,
        "evaluation_hardware": _TEXT, "started": _TEXT, "finished": _TEXT,
        "threads": _COUNT | {"minimum": 1}, "jobs": _COUNT,
        "machines": {"type": "array", "maxItems": 1_000, "items": {"type": "object", "properties": _MACHINE}},
        "progress": {
            "type": "object",
            "required": ["epoch", "loss", "seconds"],
            "properties": {"epoch": _COUNT, "loss": _NUMBER, "seconds": _SECONDS},
        },
        "evaluated": {  # so far: see `_evaluate` of the engine
            "type": "object",
            "required": ["of", "correct", "seconds"],
            "properties": {
                "of": _TEXT,
                "correct": {"type": "array", "items": {"anyOf": [_COUNT, {"type": "null"}]}},
                "seconds": _SECONDS,
            },
        },
        **_MACHINE,
    },
    "if": {"properties": {"status": {"const": "finished"}}},
    "then": {"required": ["training_seconds", "hardware", "executor"]},
}  # fmt: skip

# Columns that a reader rests on, by file; the numbers among them, with their bounds.
TABLES: dict[str, dict[str, tuple[float, float] | None]] = {
    HISTORY: {"stage": None, "epoch": (1, 1e9), "learning_rate": (0, 1e9), "mflops": (0, 1e9), "loss": (0, 1e30),
              "images": (1, 1e12), "seconds": (0, 1e10)},
    POPULATION: {"bucket": (0, 1e9), "subnet": (0, 1e9), "mflops": (0, 1e9), "kernel": None, "expand": None,
                 "depth": None, "accuracy": (0, 100)},
}  # fmt: skip
TABLES[ANCHORS] = TABLES[POPULATION]
_PAIR: dict[str, tuple[float, float] | None] = {"share": (0, 1), "distance": (0, 1e9)}
TABLES[EFFECTS] = _PAIR | {
    "length": None, "trained": (0, 1e9), "judged": (0, 1e9), "trained_mflops": (0, 1e9), "judged_mflops": (0, 1e9),
    "repeats": (1, 1e9), "loss_effect": (-1e30, 1e30), "accuracy_effect": (-100, 100),
}  # fmt: skip
TABLES[AGREEMENT] = _PAIR | {
    "a": (0, 1e9), "b": (0, 1e9), "part": None, "shared": (0, 1e12), "cross": (-1.01, 1.01), "own_a": (-1.01, 1.01),
    "own_b": (-1.01, 1.01), "a_mflops": (0, 1e9), "b_mflops": (0, 1e9),
}  # fmt: skip
TABLES[FORGETTING] = {
    "trained": (0, 1e9), "number": (0, 1e9), "epoch": (1, 1e9), "mflops": (0, 1e9), "loss": (0, 1e30),
    "accuracy": (0, 100),
}  # fmt: skip


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator  # here, since its import can take more than a second

    return Draft202012Validator(SCHEMA)


# --- writing and reading ----------------------------------------------------------------------------------------------


def write_record(folder: Path, record: dict) -> None:
    """Write run.json; `record["sha256"]` maps names of other files to their SHA-256, and gets that of the record."""
    record = record | {"sha256": {**record.get("sha256", {}), RECORD: _digest(record)}}
    files.write(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def read_record(folder: Path) -> dict:
    """The record of a run; raises Refused if it cannot be read, is not as it was written, or not what a run writes."""
    path = folder / RECORD
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise ValueError(f"it is larger than {LARGEST_RECORD:,} bytes")
        record = json.loads(path.read_bytes(), parse_constant=_no_number)
        wrong = next(_validator().iter_errors(record), None)
        intact = not wrong and record["sha256"][RECORD] == _digest(record)
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({error}): restore it, or {REBUILD}") from None
    if wrong:
        place, reason = shortened(".".join(map(str, wrong.absolute_path)) or "it"), shortened(wrong.message)
        raise Refused(f"{path} is not the record of a run ({place}: {reason}): restore it, or {REBUILD}")
    if not intact:
        raise Refused(f"{path} was altered after the run wrote it: restore it, or {REBUILD}")
    return record


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _digest(record: dict) -> str:
    others = {name: digest for name, digest in record.get("sha256", {}).items() if name != RECORD}
    return files.sha256(json.dumps(record | {"sha256": others}, sort_keys=True).encode())


def read_file(path: Path, record: dict) -> bytes:
    """The bytes of a file that the record lists; raises Refused if they are not those that the run wrote."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}): restore it, or {REBUILD}") from None
    if record["sha256"].get(path.name) != files.sha256(content):
        raise Refused(f"{path} was damaged or altered after the run wrote it: restore it, or {REBUILD}")
    return content


def read_tensors(path: Path, record: dict) -> "dict[str, torch.Tensor]":
    """The tensors of a file that the record lists; raises Refused if it is not as it was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read_file(path, record)
    try:
        return load(content)
    except SafetensorError as error:
        raise Refused(f"{path} is not a safetensors file ({error}): restore it, or {REBUILD}") from None


def read_table(folder: Path, name: str, record: dict) -> pd.DataFrame:
    """A table of a run; raises Refused if it is not as it was written, or not what a run writes."""
    content, problem = read_file(folder / name, record), ""
    try:
        table = pd.read_csv(io.BytesIO(content))
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own are ValueErrors
        raise Refused(f"{folder / name} cannot be read as a table ({error}): restore it, or {REBUILD}") from None
    if table.empty:
        problem = "it has no rows"
    for column, bounds in TABLES[name].items():
        if column not in table:
            problem = problem or f"it has no column {column}"
        elif bounds and not (pd.api.types.is_numeric_dtype(table[column]) and table[column].between(*bounds).all()):
            problem = problem or f"its column {column} is not all numbers from {bounds[0]:g} to {bounds[1]:g}"
    if problem:
        raise Refused(f"{folder / name} is not a table of a run ({problem}): restore it, or {REBUILD}")
    return table


def has_table(folder: Path, name: str) -> bool:
    """Whether a run's record lists the table, and it is there."""
    return name in read_record(folder)["sha256"] and (folder / name).exists()


def is_measured(folder: Path) -> bool:
    return has_table(folder, EFFECTS) and has_table(folder, AGREEMENT)


PACKAGES = ("rsslib", "rsstudy")  # whose own samplers are known by their settings
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented))
MADE_BY_PYTHON = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__doc__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotations__",
    "__annotate_func__",
    "__annotations_cache__",
    "__dataclass_fields__",
    "__dataclass_params__",
}
OF_SLOTS = ("member_descriptor", "getset_descriptor", "_abc_data")


def sampler_identity(sampler: Sampler) -> str:
    """Words that are equal for samplers that draw the same, here and in another process.

    For the package's own samplers their settings; a change of their code is told by `record.CODE_VERSION`. For others
    the settings and a digest of them and of the code. Raises InputError where they hold something whose content cannot
    be told, as an open file: keep its settings instead, or give the sampler a `__getstate__` that does.
    """
    kind = type(sampler)
    if isinstance(sampler, Repeated):  # of any sampler
        return f"Repeated(sampler={sampler_identity(sampler.sampler)}, times={sampler.times!r})"
    if kind.__module__.partition(".")[0] in PACKAGES:
        return repr(sampler)
    digest = hashlib.sha256(repr(_content(sampler, f"the sampler {kind.__name__}", {})).encode()).hexdigest()[:16]
    return f"{kind.__name__}, settings and code {digest}"


def _content(value: Any, what: str, seen: dict[int, int]) -> Any:
    """The value as nested tuples of plain ones."""
    if isinstance(value, enum.Enum):
        return type(value).__qualname__, value.name
    if isinstance(value, PLAIN):
        return type(value).__name__, repr(value)
    if id(value) in seen:
        return "seen", seen[id(value)]
    seen = seen if isinstance(value, type | FunctionType) else dict(seen)  # others may be shared by chance
    seen[id(value)] = len(seen)
    if isinstance(value, ModuleType):
        return "module", value.__name__
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            return "array", [_content(item, what, seen) for item in np.ravel(value).tolist()]
        return "array", value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, tuple | list):
        return type(value).__name__, [_content(item, what, seen) for item in value]
    if isinstance(value, Set):
        return "set", sorted(repr(_content(item, what, seen)) for item in value)
    if isinstance(value, Mapping):
        return "mapping", [(_content(k, what, seen), _content(v, what, seen)) for k, v in value.items()]
    if isinstance(value, FunctionType):
        return _function(value, what, seen)
    if isinstance(value, MethodType):
        return "method", _content(value.__self__, what, seen), _content(value.__func__, what, seen)
    if isinstance(value, functools.partial):
        return "partial", [_content(part, what, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, staticmethod | classmethod):
        return type(value).__name__, _content(value.__func__, what, seen)
    if isinstance(value, property):
        return "property", [_content(part, what, seen) for part in (value.fget, value.fset, value.fdel)]
    if isinstance(value, functools.cached_property):
        return "property", _content(value.func, what, seen)
    if isinstance(value, type):
        return _class(value, what, seen)
    if isinstance(value, BuiltinFunctionType):
        return "built in", value.__module__, value.__qualname__
    if hasattr(value, "__array__"):  # tensors, tables
        return type(value).__name__, _content(np.asarray(value), what, seen)
    return _object(value, what, seen)


def _object(value: Any, what: str, seen: dict[int, int]) -> Any:
    """An object by what it could be made from again: by default its class and its attributes."""
    try:
        made = value.__reduce_ex__(4)
    except TypeError:  # of files, locks and the like
        raise InputError(
            f"{what} holds a {type(value).__name__}, whose content cannot be told, so that runs with it could not be "
            "told apart: keep what it is made from, or give the sampler a __getstate__ that returns its settings"
        ) from None
    parts = [made] if isinstance(made, str) else [list(p) if isinstance(p, Iterator) else p for p in made]
    return "object", [_content(part, what, seen) for part in parts]


def _class(kind: type, what: str, seen: dict[int, int]) -> Any:
    """A class by what it and its bases define; one of an installed package by its name."""
    if _is_installed(kind.__module__):
        return "class", kind.__module__, kind.__qualname__
    own = {name: member for name, member in vars(kind).items() if type(member).__name__ not in OF_SLOTS}
    members = [(name, _content(own[name], what, seen)) for name in sorted(own.keys() - MADE_BY_PYTHON)]
    return "class", kind.__qualname__, members, [_content(base, what, seen) for base in kind.__bases__]


def _function(function: FunctionType, what: str, seen: dict[int, int]) -> Any:
    if _is_installed(function.__module__):
        return "function", function.__module__, function.__qualname__
    codes = list(_codes(function.__code__))
    looked_up = {i.argval for c in codes for i in dis.get_instructions(c) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    used = {name: function.__globals__[name] for name in sorted(looked_up) if name in function.__globals__}
    held = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # one that is empty yet
            held.append(cell.cell_contents)
    parts = [function.__defaults__, function.__kwdefaults__, held, used]
    if reached := _reached([*used.values(), *held], sorted({name for c in codes for name in c.co_names})):
        parts.append(reached)  # where there is none, nothing, as in records from before these counted
    return "function", _code(function.__code__), [_content(part, what, seen) for part in parts]


def _reached(values: list, names: list[str]) -> dict[str, Any]:
    """What code with these names can take from those of the values that are modules of the user's own."""
    reached: dict[str, Any] = {}
    for module in values:  # which grows by the modules in these
        if isinstance(module, ModuleType) and not _is_installed(module.__name__):
            taken = [name for name in names if name in vars(module) and not name.startswith("__")]  # nor its file
            new = {f"{module.__name__}.{name}": vars(module)[name] for name in taken}
            values += [value for key, value in new.items() if key not in reached]
            reached |= new
    return reached


def _code(code: CodeType) -> Any:
    """What a function does, whichever file it is from; a class that came from another process has no source."""
    constants = [
        _code(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is this package's, Python's or an installed one: not the user's own."""
    top = (module or "").partition(".")[0]
    if top in ("", "__main__", "__mp_main__"):
        return False
    if top in PACKAGES or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and "site-packages" in Path(file).parts


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
