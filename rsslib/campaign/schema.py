"""The files of a run: its record and tables, written whole, and read or refused in one sentence.

`run.json` is the record. It holds the SHA-256 of the other files and of itself, so that damage is noticed. A stranger's
may be anything that has the right digests, so that what a run never writes is refused too.
"""

import io
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rsslib import files
from rsslib.errors import InputError, shortened

if TYPE_CHECKING:  # PyTorch takes seconds to import
    import torch

RECORD, HISTORY, POPULATION, ANCHORS = "run.json", "history.csv", "population.csv", "anchors.csv"
EFFECTS, AGREEMENT, FORGETTING = (
    "effects.csv",
    "agreement.csv",
    "forgetting.csv",
)  # of runs that are measured; see rsslib.interference
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
