"""Folders and files that can be used, or a sentence that says why not; what is written appears whole or not at all.

Tensors are in safetensors, the rest is JSON and CSV; nothing is pickled, so reading someone else's cannot run code.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from rsslib.errors import InputError, shortened

if TYPE_CHECKING:  # neither is needed to name files and to check folders
    import pandas as pd
    import torch

WEIGHTS, CARD = "weights.safetensors", "card.json"


def project_folder() -> Path:
    """The folder with notebooks, data and figures: that of this package's source, or the current one if installed."""
    source = Path(__file__).resolve().parents[1]
    return source if (source / "notebooks").is_dir() and (source / "pyproject.toml").is_file() else Path.cwd()


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise InputError for what the operating system refuses: a file that cannot be read, a folder in place of one.

    Also a decorator, of what a person calls.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"{error.filename or 'a file'} cannot be used ({error.strerror or error}): see what is there and whose it "
            "is, or choose another folder"
        ) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise InputError where the operating system cannot write `path`: no space, no permission, not a folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room or choose another folder; "
            "what was there is unharmed, and the same call goes on from it"
        ) from error


def make_folder(path: Path) -> Path:
    """The folder, made if it is not there; raises InputError where that cannot be."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path, patience: float = 0, stopped: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Whether this process alone has the lock `path`, after so many seconds at most; the end of a process releases it.

    It excludes the processes of one machine; those of others where the file system does so for `flock`. Waiting ends
    when `stopped()`. Raises InputError where the operating system gives no lock.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive its process
    try:
        lock.acquire(timeout=max(0, patience), cancel_check=stopped)
    except Timeout:
        pass
    except OSError as error:
        raise InputError(
            f"{path} cannot be locked ({error.strerror or error}): expected a file of one's own on a file system with "
            "locks; remove what is there, or choose another folder"
        ) from None
    try:
        yield lock.is_locked
    finally:
        lock.release()  # nothing if it is not held


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it, fsynced, if the block succeeds, and vanishes if not.

    Raises InputError if there is no space left or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # as far as the umask allows
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)  # or the new name may not survive a power cut
        except BaseException:
            temporary.unlink(missing_ok=True)
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


def folder_of(value: object, what: str) -> Path:
    """The value as a path; raises InputError if it is no name of a folder."""
    if not isinstance(value, str | Path) or not str(value):
        raise InputError(f"{what} is {value!r}: expected a folder, or None for the project's")
    return Path(value)


def check_folder(folder: str | Path, what: str) -> Path:
    """The folder, or the nearest above it that there is; raises InputError unless it is or can become a folder."""
    folder = folder_of(folder, what)
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name too long, links in a circle, a null byte
        why = getattr(error, "strerror", error)
        raise InputError(
            f"{what} is {shortened(str(folder))!r}, which cannot be used ({why}): choose another folder"
        ) from None
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{what} is {str(folder)!r}, but {there} is a file: expected a folder")
    return there


def check_writable(folder: str | Path, what: str) -> None:
    """Raise InputError unless `folder` is or can become a folder to write in; makes nothing."""
    there = check_folder(folder, what)
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} is {str(folder)!r}, but {there} cannot be written: choose another folder")


def check_output(path: Path, what: str) -> None:
    """Raise InputError unless `path` can be a file, in `what` that is or can become a folder to write in."""
    check_writable(path.parent, what)
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected the name of a file")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> str:
    """Write a file whole; returns its SHA-256."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return sha256(content)


def write_csv(path: Path, table: "pd.DataFrame") -> str:
    return write(path, table.to_csv(index=False, lineterminator="\n").encode())


def tensor_bytes(tensors: "dict[str, torch.Tensor]") -> bytes:
    """The content of a safetensors file; raises FloatingPointError if a number is not finite."""
    from safetensors.torch import save

    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite after the last epoch: try a lower learning rate; the last checkpoint is kept"
            )
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
