"""Image files of datasets, read and checked: .npz, folders of images, and what torchvision downloads."""

import hashlib
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from rsslib.errors import InputError, NoImages, check_room, choose, one_line
from rsslib.files import atomic_path, locked, remove_temporary, system_errors, write
from rsslib.space import RESOLUTION

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
LICENCES = {  # as their authors or distributors state them
    "digits": "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
    "mnist": "CC BY-SA 3.0 (LeCun and Cortes, from images of NIST)",
    "fashion_mnist": "MIT (Zalando SE)",
    "cifar10": "none stated; its author asks to cite Krizhevsky 2009",
    "cifar100": "none stated; its author asks to cite Krizhevsky 2009",
}
VALIDATION_IMAGES = 10_000
KEYS = ("x_train", "y_train", "x_test", "y_test")

LARGEST_IMAGE = 25_000_000  # pixels; a small file may unpack to gigabytes

_TORCHVISION = dict(zip(DATASETS[1:], ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"), strict=True))
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


class Rows(NamedTuple):
    """Training or test rows as read: x uint8 [N, H, W, C], y int64 [N] and keys, the `hash_rows` of x."""

    x: np.ndarray
    y: np.ndarray
    keys: np.ndarray


def hash_rows(x: np.ndarray) -> np.ndarray:
    """128 bits for each row of uint8 [N, ...], as uint64 [N, 2]."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def row_order(rows: Rows) -> np.ndarray:
    return np.lexsort((rows.y, rows.keys[:, 1], rows.keys[:, 0]))


def fit(x: np.ndarray, resolution: int = RESOLUTION) -> np.ndarray:
    """uint8 [N, H, W, C] -> [N, R, R, C]: zero-padded to 32 if grey 28 x 28, else resized (bilinear, antialias)."""
    n, height, width, channels = x.shape
    if (height, width) == (resolution, resolution):
        return x
    if (height, width, channels, resolution) == (28, 28, 1, RESOLUTION):
        return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    import torch  # here, because whoever checks names has no need of it

    out = np.empty((n, resolution, resolution, channels), np.uint8)
    for i in range(0, n, 100):  # few at a time: the images may be large
        planes = torch.from_numpy(np.ascontiguousarray(x[i : i + 100].transpose(0, 3, 1, 2))).float()
        planes = torch.nn.functional.interpolate(planes, (resolution, resolution), mode="bilinear", antialias=True)
        out[i : i + 100] = planes.round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return out


def fit_with_pillow(x: np.ndarray, resolution: int) -> np.ndarray:
    """`fit` of one image, uint8 [H, W, C] -> [R, R, C], without PyTorch; equal up to one grey level of rounding."""
    height, width, channels = x.shape
    if (height, width) == (resolution, resolution) or (height, width, channels, resolution) == (28, 28, 1, RESOLUTION):
        return fit(x[None], resolution)[0]
    planes = [
        np.asarray(Image.fromarray(x[..., c].astype(np.float32)).resize((resolution,) * 2, Image.Resampling.BILINEAR))
        for c in range(channels)
    ]
    return np.stack(planes, -1).round().clip(0, 255).astype(np.uint8)


def read(name: str, root: Path, resolution: int = RESOLUTION) -> tuple[Rows, Rows, tuple[str, ...], Path]:
    """Training rows, test rows, class names and the path of the dataset `name` in the folder `root`, all checked.

    Image files come at the resolution, the rest as it is stored.

    Raises InputError if there is no such dataset, its files cannot be used, or the download fails.
    """
    path, classes = root / f"{name}.npz", None
    if name == "digits":
        path = root / name
        train, test, classes = _read_digits()
    else:
        if name in _TORCHVISION and not path.exists():
            _download(name, path)
        if path.exists():
            train, test, classes = _read_npz(path)
        else:
            check_name(name, root)
            path = root / str(name)
            train, test, classes = _read_folder(path, resolution)
    return train, test, _check_classes(train.y, test.y, classes, path), path


def _read_digits() -> tuple[Rows, Rows, tuple[str, ...]]:
    from sklearn.datasets import load_digits  # here, because it takes seconds to import

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    rows = Rows(x, digits.target.astype(np.int64), hash_rows(x))
    order = row_order(rows)
    test, train = np.split(order, [len(order) // 5])
    return Rows(*(a[train] for a in rows)), Rows(*(a[test] for a in rows)), tuple("0123456789")


def _read_npz(path: Path) -> tuple[Rows, Rows, tuple[str, ...] | None]:
    try:
        with zipfile.ZipFile(path) as file:  # np.load tries other formats as well, with misleading errors
            if damaged := file.testzip():  # and checks no array whose header asks for too few bytes
                raise ValueError(f"{damaged} is damaged")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*KEYS, "classes") if key in file}
    except Exception as error:  # zipfile, zlib and NumPy raise many types on damaged files
        raise InputError(
            f"{path} cannot be read as an .npz file ({one_line(error)}): expected {', '.join(KEYS)} as "
            "numpy.savez writes them; replace the file, or delete it to download a built-in dataset again"
        ) from None
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise InputError(f"{path} has no {', no '.join(missing)}: expected {', '.join(KEYS)}, so add what is missing")
    splits = []
    for split in ("train", "test"):
        x = _check_images(arrays[f"x_{split}"], f"x_{split}", path)
        splits.append(Rows(x, _check_labels(arrays[f"y_{split}"], len(x), f"y_{split}", path), hash_rows(x)))
    train, test = splits
    if train.x.shape[-1] != test.x.shape[-1]:
        raise InputError(
            f"{path}: x_train has {train.x.shape[-1]} channels but x_test {test.x.shape[-1]}, expected the "
            "same number: make both grey or both RGB"
        )
    classes = arrays.get("classes")
    if classes is not None and (classes.ndim != 1 or classes.dtype.kind not in "US"):
        raise InputError(
            f"{path}: classes is {classes.dtype} of shape {classes.shape}, expected one string a class: "
            "save a list of names, or leave it out"
        )
    return train, test, None if classes is None else _names(classes, path)


def _names(classes: np.ndarray, path: Path) -> tuple[str, ...]:
    try:
        return tuple(np.char.decode(classes, "utf-8").tolist() if classes.dtype.kind == "S" else classes.tolist())
    except UnicodeDecodeError:
        raise InputError(f"{path}: classes holds bytes that are not UTF-8: save the names as strings") from None


def _check_images(x: np.ndarray, key: str, path: Path) -> np.ndarray:
    if x.dtype != np.uint8:
        raise InputError(f"{path}: {key} is {x.dtype}, expected uint8: save pixels as whole numbers 0 to 255")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise InputError(
            f"{path}: {key} has shape {x.shape}, expected (N, H, W) or (N, H, W, C) with C of 1 or 3: "
            "transpose it so that channels are last"
        )
    if x.size == 0:
        raise InputError(f"{path}: {key} is empty (shape {x.shape}): add images")
    return x


def _check_labels(y: np.ndarray, n: int, key: str, path: Path) -> np.ndarray:
    if y.dtype.kind not in "iu":
        raise InputError(f"{path}: {key} is {y.dtype}, expected integer labels: number the classes from 0")
    if y.shape not in ((n,), (n, 1)):
        raise InputError(f"{path}: {key} has shape {y.shape}, expected ({n},): give one label for each image")
    return y.reshape(n).astype(np.int64)


def _check_classes(
    y_train: np.ndarray, y_test: np.ndarray, classes: tuple[str, ...] | None, path: Path
) -> tuple[str, ...]:
    """The names of classes 0 to K - 1, once all labels are in range and every class has an image."""
    k = int(y_train.max()) + 1 if classes is None else len(classes)
    if k < 2:
        raise InputError(f"{path} has fewer than 2 classes ({k}): classification needs images of at least 2")
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        wrong = y[(y < 0) | (y >= k)]
        if wrong.size:
            raise InputError(f"{path}: {key} holds label {wrong[0]}, expected 0 to {k - 1}: renumber the labels")
    for name in classes or ():
        try:
            name.encode()
        except UnicodeEncodeError:  # of a folder whose name is in another encoding
            raise InputError(f"{path}: the class {name!r} has a name that is not UTF-8: rename it") from None
    present = np.unique(y_train)
    if len(present) < k:
        absent = np.flatnonzero(np.append(present, k) != np.arange(len(present) + 1))[0]
        label = absent if classes is None else f"{absent} ({classes[absent]})"
        raise InputError(
            f"{path}: no training image has label {label}, expected all of 0 to {k - 1}: add images of that "
            "class or renumber the labels"
        )
    return tuple(str(i) for i in range(k)) if classes is None else classes


def check_fits(images: int, resolution: int, channels: int, path: Path, free: int) -> None:
    """Raise InputError unless so many images fit into `free` bytes."""
    needed = images * channels * resolution**2
    advice = "choose a lower resolution or fewer images"
    check_room(needed, free, f"the {images:,} images of {path} at {resolution} pixels", advice)


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_folder(folder: Path, resolution: int) -> tuple[Rows, Rows, tuple[str, ...]]:
    others = []

    def left_out(path: Path) -> bool:
        if none := _is_no_image(path):
            others.append(path)
        return none

    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise InputError(
                f"{folder / split} is missing: expected image files in {folder}/train/<class>/ and "
                f"{folder}/test/<class>/"
            )
    classes = tuple(p.name for p in _listed(folder / "train") if p.is_dir())
    files = {}
    for split in ("train", "test"):
        folders = [p for p in _listed(folder / split) if p.is_dir()]
        extra = [p for p in folders if p.name not in classes]
        if extra:
            raise InputError(
                f"{extra[0]} has no counterpart in {folder / 'train'}, expected one of {', '.join(classes)}: "
                "rename or remove it"
            )
        files[split] = [(path, classes.index(p.name)) for p in folders for path in _listed(p) if not left_out(path)]
        if not files[split]:
            raise InputError(f"{folder / split} holds no images: put image files in {folder / split}/<class>/")

    if others:
        print(f"{folder}: {len(others)} files that are no images are left out, as {others[0]}", file=sys.stderr)

    def mode(path: Path) -> str:
        with _open_image(path) as image:
            return image.mode

    grey = all(mode(path) in _GREY_MODES for paths in files.values() for path, _ in paths)
    channels, splits = 1 if grey else 3, []
    check_fits(sum(map(len, files.values())), resolution, channels, folder, psutil.virtual_memory().available)
    for paths in files.values():
        images, keys = np.empty((len(paths), resolution, resolution, channels), np.uint8), []
        for i, (path, _) in enumerate(paths):  # resized at once: the files together may not fit in memory
            x = read_image(path, grey)[None]
            images[i] = fit(x, resolution)[0]
            keys.append(hash_rows(x))
        labels = np.array([label for _, label in paths], dtype=np.int64)
        splits.append(Rows(images, labels, np.concatenate(keys)))
    train, test = splits
    return train, test, classes


def _is_no_image(path: Path) -> bool:
    """Whether a file is something else, as programs leave in folders: neither named as an image nor readable as one.

    A folder is to be told of, not left out: it may be full of images.
    """
    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if path.is_dir() or kind in Image.OPEN:
        return False
    if not path.is_file():  # to open a pipe would take forever
        return True
    try:
        with Image.open(path):
            return False
    except Exception:  # as below
        return True


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """The image, not decoded yet; raises InputError for one that is damaged or too large, also in the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            opened = Image.open(path)
        with opened as image:
            if image.width * image.height > LARGEST_IMAGE:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"it has {size} pixels, and at most {LARGEST_IMAGE:,} are read: make it smaller")
            yield image
    except Exception as error:  # Pillow raises many types on damaged files
        raise InputError(f"{path} is not a readable image ({one_line(error)}): repair or remove it") from None


def read_image(path: Path, grey: bool) -> np.ndarray:
    """Pixels as uint8 [H, W, 1 or 3]; 16-bit images keep their high byte."""
    with _open_image(path) as image:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        return np.array(image.convert("L" if grey else "RGB")).reshape(image.height, image.width, -1)


def _download(name: str, path: Path) -> None:
    """Write `path` from torchvision's download: all or nothing, and once if several processes want it."""
    try:
        from torchvision import datasets  # here, because it takes seconds to import

        downloads = path.parent / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        with locked(downloads / f"{name}.lock", patience=math.inf):
            if path.exists():
                return
            remove_temporary(path.parent, path.name)
            arrays: dict[str, Any] = {}
            for split in ("train", "test"):
                part = getattr(datasets, _TORCHVISION[name])(downloads, train=split == "train", download=True)
                arrays[f"x_{split}"] = np.asarray(part.data)
                arrays[f"y_{split}"] = np.asarray(part.targets, dtype=np.uint8)
            classes = np.array([label.split(" - ")[0] for label in part.classes])  # MNIST's are "0 - zero"
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays, classes=classes)
    except InputError:
        raise
    except Exception as error:  # no network, no space, no permission, a damaged archive
        raise NoImages(
            f"{path} is missing and torchvision's download of {name} failed ({one_line(error)}): put "
            f"a file with uint8 {', '.join(KEYS)} there, or try again with internet access"
        ) from None


def check_unchanged(path: Path, checksum: str, record: Path) -> None:
    try:
        known = record.read_bytes().strip()
    except FileNotFoundError:
        with suppress(InputError):  # a shared folder may be read-only
            write(record, f"{checksum}\n".encode())
        return
    if known != checksum.encode():
        raise InputError(
            f"{path} is not what it was at its first use, according to {record}: restore it, or delete {record} "
            "if the change is meant, and rebuild the runs that were trained on the old images"
        )


def check_name(name: str, root: str | Path = "data") -> None:
    """Raise InputError unless `name` is a dataset known here or files of that name are in `root`."""
    path, folder = Path(root, f"{name}.npz"), Path(root, str(name))
    if name in DATASETS or os.path.exists(path) or os.path.isdir(folder):  # which raise nothing
        return
    try:
        choose(name, DATASETS, "dataset")
    except InputError as error:
        raise InputError(
            f"{error}, or your own images as {path} (uint8 {', '.join(KEYS)}) or as image files in "
            f"{folder}/train/<class>/ and {folder}/test/<class>/"
        ) from None


@system_errors()
def fingerprint(name: str, root: Path) -> tuple:
    """What changes when a dataset's files do: paths, sizes and times; empty where there are none."""
    file, folder = root / f"{name}.npz", root / str(name)
    paths = [file] if file.exists() else sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path, path.stat()) for path in paths]
    return tuple((str(path), state.st_size, state.st_mtime_ns, state.st_ino) for path, state in states)


def held_out(images: int) -> int:
    """How many of so many training images are held out for validation."""
    return min(VALIDATION_IMAGES, images // 5)


def training_images(name: str, root: str | Path) -> int | None:
    """How many images of a dataset of one's own are left for training, without reading them; None if it cannot be told.

    What is wrong with a dataset is for `read` to say.
    """
    path, folder = Path(root, f"{name}.npz"), Path(root, str(name), "train")
    n = 0
    if path.exists():
        with suppress(Exception), np.load(path, allow_pickle=False) as file:  # which reads the labels alone
            n = len(file["y_train"])
    elif folder.is_dir():
        classes = [path for path in _listed(folder) if path.is_dir()]
        n = sum(not _is_no_image(path) for images in classes for path in _listed(images))
    return n - held_out(n) if n else None


def is_there(name: str, root: str | Path) -> bool:
    """Whether the dataset can be read without a download."""
    return name == "digits" or Path(root, f"{name}.npz").exists() or Path(root, str(name)).is_dir()
