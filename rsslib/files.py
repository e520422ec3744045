"""Read and write files safely: only regular files are read, and a file is written completely or not at all.

Tensors are stored as safetensors, everything else as JSON and CSV. Nothing is pickled, so reading someone else's files
cannot run code. Errors are one sentence.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock, Timeout

from rsslib.errors import InputError, one_line, shortened

if TYPE_CHECKING:  # checks of files and folders do not need these
    import pandas as pd
    import torch

WEIGHTS, CARD = "weights.safetensors", "card.json"
HUB_WEIGHTS, HUB_CARD = "model.safetensors", "config.json"  # their names in a folder for the Hugging Face hub
LARGEST = 2**32  # bytes of a file that is read at once
LONGEST_NAME = 236  # bytes; a temporary file's name is up to 18 longer, and file systems allow 255


def project_folder() -> Path:
    """Return the folder with notebooks, data and figures: the source folder, or the current folder if installed."""
    source = Path(__file__).resolve().parents[1]
    return source if (source / "pyproject.toml").is_file() else Path.cwd()


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn errors of the operating system, such as an unreadable file, into InputError; also a decorator."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        path, why = shortened(str(error.filename or "a file")), error.strerror or error
        raise InputError(f"{path} cannot be used ({why}): check the path and its permissions") from None


# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: str | Path, at_most: int) -> BinaryIO:
    """Open a regular file of at most `at_most` bytes for reading.

    Raises InputError for a larger file, and for a pipe or a device, because reading it might never end. The caller
    handles errors of the operating system, such as a missing file or a folder.
    """
    found = os.stat(path)
    suitable = stat.S_ISREG(found.st_mode) and found.st_size <= at_most
    if not suitable and not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is not a regular file of at most {at_most:,} bytes: remove it or name another")
    return open(path, "rb")


def read_regular(path: str | Path, at_most: int = LARGEST) -> bytes:
    """Read a regular file of at most `at_most` bytes; raises as `open_regular` does."""
    with open_regular(path, at_most) as file:
        return file.read(at_most)  # kernel files can be longer than their reported size


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise InputError if the operating system cannot write `path`: no space, no permission, not a folder."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"{path} cannot be written ({why}): free some space or choose another folder; existing files are intact, "
            "and the same call resumes from them"
        ) from error


def make_folder(path: Path) -> Path:
    """Create a folder unless it exists, and return it; raises InputError if that fails."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path, patience: float = 0, stopped: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Try for `patience` seconds to lock the file `path`; yields whether this process holds the lock.

    The lock excludes other processes on this machine, and on other machines if the file system supports `flock` between
    them. It ends with its process. Waiting ends early when `stopped()` returns True. Raises InputError if the file
    cannot be locked.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive its process
    try:
        lock.acquire(timeout=max(0, patience), cancel_check=stopped)
    except Timeout:
        pass
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"{path} cannot be locked ({why}): expected a file on a file system with locks, so remove what is there "
            "or choose another folder"
        ) from None
    try:
        yield lock.is_locked
    finally:
        lock.release()  # does nothing if the lock is not held


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block succeeds and is removed if it fails.

    Raises InputError if there is no space left or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)  # otherwise a power cut could undo the rename
        finally:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove files left by a process killed while writing `name`; the caller must hold its lock."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> str:
    """Write a whole file; returns its SHA-256."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return sha256(content)


def write_csv(path: Path, table: "pd.DataFrame") -> str:
    return write(path, table.to_csv(index=False, lineterminator="\n").encode())


def tensor_bytes(tensors: "dict[str, torch.Tensor]") -> bytes:
    """Return the content of a safetensors file; raises FloatingPointError if a number is not finite."""
    from safetensors.torch import save

    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite after the last epoch: try a lower learning rate; the last checkpoint is kept"
            )
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


# --- checks of paths --------------------------------------------------------------------------------------------------


def folder_of(value: object, what: str) -> Path:
    """Return `value` as a path, with ~ for the home folder; raises InputError if it cannot name a folder."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise InputError(f"{what} is {shortened(repr(value))}: expected a folder")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # unknown user
        raise InputError(f"{what} is {str(value)!r}, which cannot be used ({one_line(error)})") from None


@system_errors()
def check_folder(folder: str | Path, what: str) -> Path:
    """Return the folder or its nearest existing parent; raises InputError unless `folder` can be used."""
    folder = folder_of(folder, what)
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(folder)  # raises if the name is too long or links form a circle
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{what} is {str(folder)!r}, but {there} is a file: expected a folder")
    return there


def supernet_files(folder: str | Path) -> tuple[Path, Path]:
    """Return the paths of a supernet's card and weights, in the folder of a run or a folder for the hub."""
    names = (HUB_CARD, HUB_WEIGHTS) if Path(folder, HUB_CARD).exists() else (CARD, WEIGHTS)
    return Path(folder, names[0]), Path(folder, names[1])


def check_writable(folder: str | Path, what: str) -> None:
    """Raise InputError unless `folder` is or can become a writable folder. Creates nothing."""
    there = check_folder(folder, what)
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} is {str(folder)!r}, but {there} cannot be written: choose another folder")


def check_output(path: Path, what: str, suffix: str = "") -> None:
    """Raise InputError unless `path` can be written; `what` names its folder.

    An existing file is replaced only if it is regular, its name ends in `suffix`, and it is not in the folder of a run.
    """
    check_writable(path.parent, what)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is a folder, a link, a pipe or a device: expected the name of a file")
    in_run = any((path.parent / name).exists() for name in (CARD, "run.json"))
    if path.exists() and (in_run or not path.name.endswith(suffix)):
        raise InputError(f"{path} is there and not an earlier output ({suffix}): remove it or choose another name")
    if len(os.fsencode(path.name)) > LONGEST_NAME or "\0" in path.name:
        raise InputError(f"{shortened(repr(path.name))} cannot name a file: expected at most {LONGEST_NAME} bytes")
