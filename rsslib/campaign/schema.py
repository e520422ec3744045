"""What a run's record and tables look like, so that those of strangers are read or refused in one sentence."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from rsslib import files
from rsslib.errors import shortened
from rsslib.files import REBUILD, Refused

_TEXT = {"type": "string", "maxLength": 2_000, "pattern": r"^[^\ud800-\udfff]*$"}  # without what cannot be printed
_NAME = {"type": "string", "pattern": r"^[\w-][\w.-]*$", "maxLength": 200}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**63}
_NUMBER = {"type": "number", "minimum": -1e30, "maximum": 1e30}
_SECONDS = {"type": "number", "minimum": 0, "maximum": 1e10}
_STAGE = {"type": "object", "required": ["epochs"], "properties": {"epochs": _COUNT}}
_MACHINE = {"hardware": _TEXT, "executor": _TEXT, "versions": {"type": "object", "additionalProperties": _TEXT}}

_DIGESTS = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}

RECORD = {
    "type": "object",
    "required": ["status", "config", "sha256"],
    "properties": {
        "status": {"enum": ["training", "trained", "finished"]},
        "sha256": _DIGESTS, "snapshots": _DIGESTS,
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
        **_MACHINE,
    },
    "if": {"properties": {"status": {"const": "finished"}}},
    "then": {"required": ["training_seconds", "hardware", "executor"]},
}  # fmt: skip

# Columns that a reader rests on, by file; the numbers among them, with their bounds.
TABLES: dict[str, dict[str, tuple[float, float] | None]] = {
    "history.csv": {"stage": None, "epoch": (1, 1e9), "learning_rate": (0, 1e9), "mflops": (0, 1e9), "loss": (0, 1e30),
                    "images": (1, 1e12), "seconds": (0, 1e10)},
    "population.csv": {"bucket": (0, 1e9), "subnet": (0, 1e9), "mflops": (0, 1e9), "kernel": None, "expand": None,
                       "depth": None, "accuracy": (0, 100)},
}  # fmt: skip
TABLES["anchors.csv"] = TABLES["population.csv"]
_PAIR: dict[str, tuple[float, float] | None] = {"share": (0, 1), "distance": (0, 1e9)}
TABLES["effects.csv"] = _PAIR | {
    "length": None, "trained": (0, 1e9), "judged": (0, 1e9), "trained_mflops": (0, 1e9), "judged_mflops": (0, 1e9),
    "repeats": (1, 1e9), "loss_effect": (-1e30, 1e30), "accuracy_effect": (-100, 100),
}  # fmt: skip
TABLES["agreement.csv"] = _PAIR | {
    "a": (0, 1e9), "b": (0, 1e9), "part": None, "shared": (0, 1e12), "cross": (-1.01, 1.01), "own_a": (-1.01, 1.01),
    "own_b": (-1.01, 1.01), "a_mflops": (0, 1e9), "b_mflops": (0, 1e9),
}  # fmt: skip


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator  # here, since its import can take more than a second

    return Draft202012Validator(RECORD)


def read_record(folder: Path) -> dict:
    """The record of a run; raises Refused if it cannot be read, is not as it was written, or not what a run writes."""
    record = files.read_record(folder)
    error = next(iter(_validator().iter_errors(record)), None)
    if error is not None:
        place, reason = shortened(".".join(map(str, error.absolute_path)) or "it"), shortened(error.message)
        raise Refused(f"{folder / files.RECORD} is not the record of a run ({place}: {reason}): {REBUILD}")
    return record


def read_table(folder: Path, name: str, record: dict) -> pd.DataFrame:
    """A table of a run; raises Refused if it is not as it was written, or not what a run writes."""
    content, problem = files.read(folder / name, record), ""
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
