"""Files that appear whole or not at all, and whose damage is noticed.

`run.json` is the record of a run. It holds the SHA-256 of the tables and weights beside it and of itself. Tensors are
in safetensors, the rest is JSON and CSV; nothing is pickled, so reading someone else's files cannot run code.
"""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rsslib.errors import InputError

if TYPE_CHECKING:  # neither is needed to name files and to check folders
    import pandas as pd
    import torch

RECORD = "run.json"
REBUILD = "rebuild the run (rebuild=True, or --rebuild on the command line), which sets its files aside"


class Refused(InputError):
    """The folder of a run holds another run, or files that are not as it wrote them."""


def project_folder() -> Path:
    """The folder with notebooks, data and figures: that of this package's source, or the current one if installed."""
    source = Path(__file__).resolve().parents[1]
    return source if (source / "notebooks").is_dir() and (source / "pyproject.toml").is_file() else Path.cwd()


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path):
    """Raise InputError where the operating system cannot write `path`: no space, no permission, not a folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room or choose another folder; "
            "what was there is unharmed, and the same call goes on from it"
        ) from error


@contextmanager
def atomic_path(path: Path):
    """A temporary path beside `path` that replaces it, fsynced, if the block succeeds, and vanishes if not.

    Raises InputError if there is no space left or the folder cannot be written.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            _sync(name)
            os.replace(name, path)
            _sync(path.parent)  # or the new name may not survive a power cut
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove what a process that was killed while it wrote `name` has left; only for who holds the lock on it."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def check_writable(folder: str | Path, what: str) -> None:
    """Raise InputError unless `folder` is or can become a folder to write in; makes nothing."""
    if not isinstance(folder, str | Path):
        raise InputError(f"{what} is {folder!r}: expected a folder")
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{what} is {str(folder)!r}, but {there} is a file: expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} is {str(folder)!r}, but {there} cannot be written: choose another folder")


def set_aside(folder: Path) -> Path:
    """Move the files of a run to a new folder `replaced-seed<k>-<n>` beside its own; only for who holds its lock."""
    names = (folder.with_name(f"replaced-{folder.name}-{n}") for n in range(1, 10**6))
    aside = next(path for path in names if not path.exists())
    with writing(aside):
        aside.mkdir()
        # the record last: until it has gone, whoever looks finds the run that was refused
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
            if path.suffix != ".lock":
                path.rename(aside / path.name)
    return aside


# --- tables, weights and the record -----------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> str:
    """Write a file whole; returns its SHA-256."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return sha256(content)


def write_csv(path: Path, table: "pd.DataFrame") -> str:
    return write(path, table.to_csv(index=False, lineterminator="\n").encode())


def write_tensors(path: Path, tensors: "dict[str, torch.Tensor]") -> str:
    return write(path, tensor_bytes(tensors))


def read_tensors(path: Path, record: dict) -> "dict[str, torch.Tensor]":
    """The tensors of a file that the record lists; raises Refused if it is not as it was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read(path, record)
    try:
        return load(content)
    except SafetensorError as error:
        raise Refused(f"{path} is not a safetensors file ({error}): restore it, or {REBUILD}") from None


def write_record(folder: Path, record: dict) -> None:
    """Write run.json; `record["sha256"]` maps names of other files to their SHA-256, and gets that of the record."""
    record = record | {"sha256": {**record.get("sha256", {}), RECORD: _digest(record)}}
    write(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def read_record(folder: Path) -> dict:
    """The record of a run; raises Refused if it cannot be read or is not as it was written."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({error}): restore it, or {REBUILD}") from None
    try:
        intact = record["sha256"][RECORD] == _digest(record)
    except (KeyError, TypeError):
        raise Refused(f"{path} is not the record of a run: restore it, or {REBUILD}") from None
    if not intact:
        raise Refused(f"{path} was altered after the run wrote it: restore it, or {REBUILD}")
    return record


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _digest(record: dict) -> str:
    others = {name: digest for name, digest in record.get("sha256", {}).items() if name != RECORD}
    return sha256(json.dumps(record | {"sha256": others}, sort_keys=True).encode())


def read(path: Path, record: dict) -> bytes:
    """The bytes of a file that the record lists; raises Refused if they are not those that the run wrote."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}): restore it, or {REBUILD}") from None
    if record["sha256"].get(path.name) != sha256(content):
        raise Refused(f"{path} was damaged or altered after the run wrote it: restore it, or {REBUILD}")
    return content


def tensor_bytes(tensors: "dict[str, torch.Tensor]") -> bytes:
    """The content of a safetensors file; raises FloatingPointError if a number is not finite."""
    from safetensors.torch import save

    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite after the last epoch: try a lower learning rate; the last checkpoint is kept"
            )
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
