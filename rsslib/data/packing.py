"""Decode folders of image files once into a file of any size, which training maps into memory."""

import hashlib
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from rsslib.data.images import is_grey, is_image, read_image, resize_with_torch
from rsslib.data.pixels import fit
from rsslib.errors import InputError, check_number, check_room, one_line
from rsslib.files import folder_of, locked, make_folder, open_regular, sha256, system_errors
from rsslib.progress import progress_bar

IMAGES, ROWS = "images.npy", "rows.npz"  # files of a packed dataset
DECODED, KEYS = "decoded.npy", "keys.npy"  # files of an unfinished one, in the order of the image files
CHUNK = 256  # images between two records of progress
SPLITS = ("train", "test")
LARGEST_FILE = 2**40  # bytes of a dataset
JUNK = (  # beginnings of names that file managers, archives and storage devices leave
    ".",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "__MACOSX",
    "lost+found",
    "System Volume Information",
)


class Rows(NamedTuple):
    """Training or test images: those in `places`, int64 [N], of all images that were read, uint8 [M, H, W, C].

    `y` int64 [N] are labels, and `keys` [N] are hashes of the stored images. Images are copied only when needed.
    """

    all: np.ndarray
    places: np.ndarray
    y: np.ndarray
    keys: np.ndarray

    def part(self, chosen: slice | np.ndarray) -> "Rows":
        return Rows(self.all, *(column[chosen] for column in self[1:]))

    @property
    def x(self) -> np.ndarray:
        """Return the images [N, H, W, C]; a view if they are contiguous, as in a packed file."""
        places = self.places
        if len(places) and (np.diff(places) == 1).all():
            return self.all[places[0] : places[-1] + 1]
        return self.all[places]


Splits = tuple[Rows, Rows, list[str] | None]  # training rows, test rows, names of classes


def all_rows(x: np.ndarray, y: np.ndarray, keys: np.ndarray | None = None) -> Rows:
    return Rows(x, np.arange(len(y)), y, hash_rows(x) if keys is None else keys)


def hash_rows(x: np.ndarray) -> np.ndarray:
    """Hash each row of uint8 [N, ...] to 16 bytes [N]."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    digests = (hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    content = b"".join(digests)
    return np.frombuffer(content, dtype="S16")


# --- folders of images ------------------------------------------------------------------------------------------------


def listed(folder: Path) -> list[Path]:
    """List a folder, without files left by file managers and archives; empty if it does not exist."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in paths if not path.name.startswith(JUNK))


def files_in(folder: Path) -> list[tuple[str, str, Path]]:
    """List (split, class, file) of `folder`/<split>/<class>/*; links are followed."""
    places = [(split, place) for split in SPLITS for place in listed(folder / split)]
    return [(split, place.name, path) for split, place in places for path in listed(place)]


def fingerprint(path: Path) -> tuple:
    """Return the paths, sizes and times of a dataset's files, which change if the files do."""
    files = [path, path / ROWS, *(file for _, _, file in files_in(path))]
    states = [(file, file.stat()) for file in files if file.exists()]
    return tuple((file, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for file, state in states)


def image_files(folder: Path) -> list[tuple[str, str, Path]]:
    """Return the image files among `files_in`; raises InputError if there are no training images."""
    found = files_in(folder)
    files = [file for file in found if is_image(file[2])]
    if len(files) < len(found):
        print(f"{folder}: skipped {len(found) - len(files)} files that are not images", file=sys.stderr)
    if not any(split == "train" for split, _, _ in files):
        raise InputError(f"{folder / 'train'} holds no images: put image files in {folder / 'train'}/<class>/")
    return files


@system_errors()
def pack(folder: str | Path, side: int) -> Path:
    """Decode `folder`/train/<class>/* and test/<class>/* into the dataset `folder`-`side` beside it; returns its path.

    The dataset has two files. `images.npy`, uint8 [N, side, side, C], holds training images first, in their order in
    training. `rows.npz` holds labels, hashes of the original pixels, the number of training images and the names of the
    classes. Without `test`, a fifth of the images, those with the first pixel hashes, is held out for testing. If the
    call is stopped, the same call resumes. While packing, the disk holds the images twice. Raises InputError if files
    cannot be read, there is no room, or the dataset exists.
    """
    folder = folder_of(folder, "folder").absolute()
    target = folder.with_name(f"{folder.name}-{check_number(side, 'side', 32, 1024, whole=True)}")
    if target.exists():
        raise InputError(f"{target} exists: remove it to pack {folder} again")
    return decode(folder, side, target)


def decode(folder: Path, side: int, target: Path, in_memory: bool = False) -> Path:
    """Write the files of `pack` into the folder `target` and return it; of several processes, only one decodes.

    Raises InputError if the images must fit `in_memory` later and do not.
    """
    files = image_files(folder)
    classes = sorted({name for _, name, _ in files})
    grey = all(is_grey(path) for _, _, path in files)
    shape = (len(files), side, side, 1 if grey else 3)
    if in_memory:
        check_fits(len(files), side, shape[-1], folder)
    prefix = f".{folder.name}-{side}."
    half = target.with_name(f"{prefix}{state_of(folder)}.half")
    with locked(target.with_name(f"{prefix}lock"), patience=math.inf):
        if target.exists():
            return target
        for path in target.parent.glob(f"{escape(prefix)}*"):
            if path.is_dir() and path != half:  # from other image files
                shutil.rmtree(path)
        make_folder(half)
        if not (half / DECODED).exists():
            if shutil.disk_usage(half).free < 2 * np.prod(shape):
                raise InputError(f"{target} needs {2 * np.prod(shape) / 2**30:.2g} GiB: free some space on its disk")
            open_memmap(half / KEYS, "w+", "S16", shape[:1])
            open_memmap(half / DECODED, "w+", np.uint8, shape)
        images, keys = (np.load(half / name, mmap_mode="r+") for name in (DECODED, KEYS))
        _read_all([path for _, _, path in files], grey, images, keys, f"decode {folder.name}")
        y = np.array([classes.index(name) for _, name, _ in files])
        later = np.array([split == "test" for split, _, _ in files])
        if not later.any():
            n = len(files) // 5
            later[np.lexsort((y, keys))[:n]] = True
            said = f"{n} of {len(files)} images are held out for testing, as there is no test/"
            print(f"{folder}: {said}", file=sys.stderr)
        counts = [f"{name} {(y[~later] == i).sum()} + {(y[later] == i).sum()}" for i, name in enumerate(classes)]
        print(f"{folder}: images for training + testing: {', '.join(counts)}", file=sys.stderr)
        order = np.lexsort((y, keys, later))
        ordered = open_memmap(half / IMAGES, "w+", images.dtype, shape)
        for start in range(0, len(order), CHUNK):
            part = slice(start, start + CHUNK)
            ordered[part] = images[order[part]]
        ordered.flush()
        columns = {"y": y[order], "keys": keys[order]}
        np.savez(half / ROWS, train=np.sum(~later), classes=np.array(classes), **columns)
        for name in (DECODED, KEYS):
            os.remove(half / name)
        half.rename(target)
    return target


def _read_all(paths: list[Path], grey: bool, images: np.memmap, keys: np.memmap, description: str) -> None:
    """Write the pixels, then the hashes, of all images that have no hash yet."""

    def read(number: int) -> bytes:
        image = read_image(paths[number], grey)[None]
        images[number] = fit(image, images.shape[1], resize_with_torch)[0]
        return hash_rows(image)[0]

    with (
        progress_bar(total=len(paths), unit="image", desc=description) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        try:
            for start in range(0, len(paths), CHUNK):
                numbers = range(len(paths))[start : start + CHUNK]
                if not keys[start]:
                    found = [*pool.map(read, numbers)]
                    images.flush()  # before recording that they are done
                    keys[numbers] = found
                    keys.flush()
                bar.update(len(numbers))
        finally:
            pool.shutdown(cancel_futures=True)


def state_of(folder: Path) -> str:
    return sha256(repr(fingerprint(folder)).encode())[:16]


def is_packed(path: Path) -> bool:
    return os.path.exists(path / IMAGES)


def read_packed(folder: Path) -> Splits:
    """Map the images that `pack` wrote into memory."""
    try:
        x = np.load(folder / IMAGES, mmap_mode="r")
        with open_regular(folder / ROWS, LARGEST_FILE) as file, np.load(file) as rows:
            y, keys, n, classes = (rows[name] for name in ("y", "keys", "train", "classes"))
        bytes_of_squares = x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] == x.shape[2]
        colours = x.shape[-1] in (1, 3)
        kinds = y.dtype == np.int64 and keys.dtype == "S16"
        lengths = y.shape == keys.shape == x.shape[:1]
        if not (bytes_of_squares and colours and kinds and lengths and 0 < n <= len(y)):
            raise ValueError(f"{IMAGES} and {ROWS} do not belong together")
    except Exception as error:  # NumPy and zipfile raise many types on damaged files
        raise InputError(f"{folder} cannot be read ({one_line(error)}): remove it and pack its images again") from None
    rows = all_rows(x, y, keys)
    return rows.part(slice(n)), rows.part(slice(n, None)), classes.tolist()


def read_folder(folder: Path, resolution: int) -> Splits:
    """Read image files into memory. Decoded images are kept in a hidden folder beside theirs until a file changes."""
    folder = folder.absolute()
    with TemporaryDirectory() as scratch:  # a shared folder may be read-only
        place = folder.parent if os.access(folder.parent, os.W_OK) else Path(scratch)
        kept = place / f".{folder.name}-{resolution}.{state_of(folder)}"
        try:
            train, test, classes = read_packed(kept)
        except InputError:  # the kept folder is missing or damaged
            shutil.rmtree(kept, ignore_errors=True)
            train, test, classes = read_packed(decode(folder, resolution, kept, in_memory=True))
        x = np.array(train.all)
    return train._replace(all=x), test._replace(all=x), classes


def check_fits(images: int, resolution: int, channels: int, path: Path, device: Any = None) -> None:
    """Raise InputError unless the images fit into the memory of a device, by default the CPU."""
    from rsslib.device import free_memory  # here, because it imports PyTorch

    what = f"the {images:,} images of {path} at {resolution} pixels"
    needed = images * channels * resolution**2
    check_room(needed, free_memory(device), what, "choose a lower resolution or fewer images")
