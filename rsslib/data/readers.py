"""Read and check datasets on disk: built-in ones, .npz files and folders of images. PyTorch is not needed."""

import math
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rsslib.data.images import is_image
from rsslib.data.packing import (
    LARGEST_FILE,
    SPLITS,
    Rows,
    Splits,
    all_rows,
    files_in,
    is_packed,
    read_folder,
    read_packed,
)
from rsslib.errors import InputError, NoImages, check_room, choose, needed, one_line, shortened
from rsslib.files import atomic_path, locked, open_regular, remove_temporary

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
LICENCES = {  # as stated by authors or distributors
    "digits": "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
    "mnist": "CC BY-SA 3.0 (LeCun and Cortes, from images of NIST)",
    "fashion_mnist": "MIT (Zalando SE)",
    "cifar10": "none stated; its author asks to cite Krizhevsky 2009",
    "cifar100": "none stated; its author asks to cite Krizhevsky 2009",
}
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
KEYS = ("x_train", "y_train", "x_test", "y_test")
VALIDATION_IMAGES = 10_000


def in_order(rows: Rows) -> Rows:
    """Order rows by the hash of their pixels, independent of their order on disk; ordered rows are not moved."""
    order = np.lexsort((rows.y, rows.keys))
    return rows if (np.diff(order) == 1).all() else rows.part(order)


def held_out(images: int) -> int:
    """Return how many of `images` training images are held out for validation."""
    return min(VALIDATION_IMAGES, images // 5)


# --- which dataset ----------------------------------------------------------------------------------------------------


def find(name: str, root: str | Path) -> Path | None:
    """Return the file or folder in `root` that holds a dataset, if it exists."""
    file = Path(root, f"{name}.npz")
    folder = Path(root, str(name))
    if os.path.exists(file):  # unlike Path's method it accepts every name
        return file
    is_ours = name not in DATASETS and folder.name == name
    return folder if is_ours and os.path.isdir(folder) else None


def check_name(name: str, root: str | Path = "data") -> None:
    """Raise InputError unless `name` is a built-in dataset, or a dataset in `root` with another name."""
    folder = Path(root, str(name))
    path = find(name, root)
    if name in DATASETS:
        if os.path.isdir(folder) or (path and name == "digits"):
            raise InputError(f"{folder} has the name of a built-in dataset: rename it")
    elif path is None:
        yours = f"or images of yours in {folder}.npz or {folder}/train/<class>/"
        choose(name, [*DATASETS, yours], "dataset")
    elif path != folder and os.path.isdir(folder):
        raise InputError(f"{path} and {folder} have one name: rename one")


def is_there(name: str, root: str | Path) -> bool:
    """Return whether the dataset can be read without a download."""
    return name == "digits" or find(name, root) is not None


def training_images(name: str, root: str | Path) -> int | None:
    """Count the training images of a custom dataset, without those for validation; returns None if that fails.

    Pixels are not read; `read` reports what is wrong with them.
    """
    path = find(name, root)
    n = 0
    if path and is_packed(path):
        n = len(read_packed(path)[0].y)
    elif path and path.is_dir():
        splits = [split for split, _, file in files_in(path) if is_image(file)]
        n = splits.count("train")
        n -= n // 5 * ("test" not in splits)
    elif path:
        with suppress(Exception), opened_npz(path) as arrays:
            n = len(arrays["y_train"])
    return n - held_out(n) if n else None


def read(name: str, root: Path, resolution: int) -> tuple[Rows, Rows, tuple[str, ...], Path]:
    """Read a dataset: training rows and test rows in order, class names, and the path for messages.

    Image files are returned at the resolution, everything else as stored. Raises InputError if there is no such
    dataset, its files cannot be used, or the download fails.
    """
    check_name(name, root)
    path = find(name, root) or Path(root, f"{name}.npz")
    if name == "digits":
        train, test, classes = read_digits()
    elif is_packed(path):
        train, test, classes = read_packed(path)
    elif path.is_dir() and path.name == str(name):
        train, test, classes = read_folder(path, resolution)
    else:
        if not path.exists():
            download(name, path)
        train, test, classes = read_npz(path)
    names = check_labels(train.y, test.y, classes, path)
    return in_order(train), in_order(test), names, path


def check_labels(train: np.ndarray, test: np.ndarray, names: list[str] | None, path: Path) -> tuple[str, ...]:
    """Return the names of the classes; raises InputError unless they differ and match the labels."""
    used = set(train.tolist())
    names = names or [str(label) for label in range(len(used))]
    if len(names) < 2 or len({unicodedata.normalize("NFC", name) for name in names}) < len(names):
        shown = shortened(", ".join(names))
        raise InputError(f"{path} has the classes {shown}: expected at least 2 that differ in more than Unicode form")
    labels = set(range(len(names)))
    if wrong := (used ^ labels) | (set(test.tolist()) - labels):
        which = min(wrong)
        name = f" ({names[which]})" if which in labels else ""
        raise InputError(
            f"{path}: label {which}{name} is out of range or has no training image, expected all of 0 to "
            f"{len(names) - 1}: add images or renumber the labels"
        )
    return tuple(names)


# --- readers ----------------------------------------------------------------------------------------------------------


def read_digits() -> Splits:
    """Read the images that come with scikit-learn; a fifth of them is held out for testing."""
    digits = needed("sklearn.datasets", "study").load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)
    x = x[..., None]
    y = digits.target.astype(np.int64)
    rows = in_order(all_rows(x, y))
    n = len(x) // 5
    return rows.part(slice(n, None)), rows.part(slice(n)), list("0123456789")


@contextmanager
def opened_npz(path: Path) -> Iterator[Any]:
    """Open an .npz file whose arrays fit into memory."""
    import psutil

    with open_regular(path, LARGEST_FILE) as file, np.load(file) as arrays:
        size = sum(member.file_size for member in arrays.zip.infolist())
        free = psutil.virtual_memory().available
        check_room(size, free, f"the arrays in {path}", "store fewer or smaller images")
        yield arrays


def read_npz(path: Path) -> Splits:
    """Read an .npz file; the names of classes are None if it has no names."""
    try:
        with opened_npz(path) as arrays:
            if damaged := arrays.zip.testzip():  # np.load does not check an array whose header asks for too few bytes
                raise ValueError(f"{damaged} is damaged")
            train, test = (check_arrays(arrays, split, path) for split in SPLITS)
            names = arrays["classes"].tolist() if "classes" in arrays else None
        if names:
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types on damaged files
        raise InputError(
            f"{path} cannot be read as an .npz file ({one_line(error)}): expected {', '.join(KEYS)} as numpy.savez "
            "writes them; replace the file, or delete it to download a built-in dataset again"
        ) from None
    if train.all.shape[-1] != test.all.shape[-1]:
        raise InputError(f"{path}: of x_train and x_test one is grey and one RGB: convert one")
    return train, test, names


def check_arrays(arrays: Any, split: str, path: Path) -> Rows:
    """Return the rows of a split; raises InputError unless they are images with labels."""
    x = np.asarray(arrays[f"x_{split}"])
    y = np.asarray(arrays[f"y_{split}"])
    if x.ndim == 3:
        x = x[..., None]
    n = x.shape[:1]
    images = x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] in (1, 3)
    labels = y.dtype.kind in "iu" and y.shape in (n, (*n, 1))
    if not (images and labels and x.size):
        found = [f"{values.dtype} of shape {values.shape}" for values in (x, y)]
        raise InputError(
            f"{path}: x_{split} is {found[0]}, y_{split} {found[1]}: expected uint8 of shape (N, H, W) or (N, H, W, 1 "
            "or 3), and N integers from 0, so convert them"
        )
    y = y.reshape(-1).astype(np.int64)
    return all_rows(x, y)


def download(name: str, path: Path) -> None:
    """Download a dataset with torchvision and write `path`; of several processes, only one downloads."""
    dataset = getattr(needed("torchvision.datasets", "study"), TORCHVISION[name])
    folder = path.parent / "downloads"
    arrays: dict[str, Any] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{name}.lock", patience=math.inf):
            if path.exists():
                return
            remove_temporary(path.parent, path.name)
            for split in SPLITS:
                part = dataset(folder, train=split == "train", download=True)
                arrays[f"x_{split}"] = np.asarray(part.data)
                arrays[f"y_{split}"] = np.asarray(part.targets, dtype=np.uint8)
            arrays["classes"] = np.array([label.split(" - ")[0] for label in part.classes])  # MNIST's are "0 - zero"
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
    except InputError:
        raise
    except Exception as error:  # no network, no space, no permission, a damaged archive
        raise NoImages(
            f"{path} is missing and torchvision's download of {name} failed ({one_line(error)}): put a file with uint8 "
            f"{', '.join(KEYS)} there, or try again with internet access"
        ) from None
