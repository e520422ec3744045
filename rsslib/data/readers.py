"""Datasets on disk: built-in ones, .npz files and folders of images, read and checked; nothing here needs PyTorch."""

import hashlib
import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsslib.data.images import fit, is_grey, is_image, read_image
from rsslib.errors import InputError, NoImages, check_room, choose, needed, one_line, shortened
from rsslib.files import atomic_path, locked, open_regular, remove_temporary, sha256, system_errors
from rsslib.progress import progress_bar

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
LICENCES = {  # as their authors or distributors state them
    "digits": "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
    "mnist": "CC BY-SA 3.0 (LeCun and Cortes, from images of NIST)",
    "fashion_mnist": "MIT (Zalando SE)",
    "cifar10": "none stated; its author asks to cite Krizhevsky 2009",
    "cifar100": "none stated; its author asks to cite Krizhevsky 2009",
}
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
IMAGES, ROWS = "images.npy", "rows.npz"  # of a packed dataset
KEYS = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("train", "test")
VALIDATION_IMAGES = 10_000
LARGEST_FILE = 2**40  # bytes of a dataset
JUNK = (  # how names begin that file managers, archives and storage devices leave
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
    """Training or test images: of all images that were read, uint8 [M, H, W, C], those in `places` int64 [N].

    y int64 [N] are labels, keys [N] the hashes of images as stored. Images are not copied until they are needed.
    """

    all: np.ndarray
    places: np.ndarray
    y: np.ndarray
    keys: np.ndarray

    def part(self, chosen: slice | np.ndarray) -> "Rows":
        return Rows(self.all, *(column[chosen] for column in self[1:]))

    @property
    def x(self) -> np.ndarray:
        """The images [N, H, W, C]: a view where they lie one after another, as in a packed file."""
        first, n = (self.places[0], len(self.places)) if len(self.places) else (0, 0)
        return self.all[first : first + n] if (np.diff(self.places) == 1).all() else self.all[self.places]


def all_rows(x: np.ndarray, y: np.ndarray, keys: np.ndarray | None = None) -> Rows:
    return Rows(x, np.arange(len(y)), y, hash_rows(x) if keys is None else keys)


CACHED = ("x", "y", "keys")
Splits = tuple[Rows, Rows, list[str] | None]  # training rows, test rows, names of classes


def hash_rows(x: np.ndarray) -> np.ndarray:
    """Hash each row of uint8 [N, ...] to 16 bytes [N]."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    digests = (hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    content = b"".join(digests)
    return np.frombuffer(content, dtype="S16")


def in_order(rows: Rows) -> Rows:
    """Order rows by the hash of their pixels, whatever their order on disk; those in order stay where they are."""
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
    """Raise InputError unless `name` is a built-in dataset, or one in `root` that has another name."""
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
    """Whether the dataset can be read without a download."""
    return name == "digits" or find(name, root) is not None


def training_images(name: str, root: str | Path) -> int | None:
    """Count the training images of a dataset of yours, those for validation excluded; None if that fails.

    Pixels are not read, and what is wrong with them is reported by `read`.
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


@system_errors()
def fingerprint(name: str, root: Path) -> tuple:
    """Return what changes when the files of a dataset do: paths, sizes and times; empty if there are none."""
    path = find(name, root)
    files = [path, path / ROWS, *(file for _, _, file in files_in(path))] if path else []
    existing = [file for file in files if file.exists()]
    states = [(file, file.stat()) for file in existing]
    return tuple((file, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for file, state in states)


def read(name: str, root: Path, resolution: int) -> tuple[Rows, Rows, tuple[str, ...], Path]:
    """Read a dataset: training rows and test rows in order, class names, and the path for messages.

    Image files come at the resolution, everything else as stored. Raises InputError if there is no such dataset, its
    files cannot be used, or the download fails.
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
    """Return the names of the classes; raises InputError unless they differ and labels suit them."""
    used = set(train.tolist())
    names = names or [str(label) for label in range(len(used))]
    different = {unicodedata.normalize("NFC", name) for name in names}
    if len(names) < 2 or len(different) < len(names):
        shown = shortened(", ".join(names))
        raise InputError(f"{path} has the classes {shown}: expected at least 2 that differ in more than Unicode form")
    labels = set(range(len(names)))
    wrong = used ^ labels
    wrong |= set(test.tolist()) - labels
    if wrong:
        which = min(wrong)
        name = f" ({names[which]})" if which in labels else ""
        raise InputError(
            f"{path}: label {which}{name} is out of range or has no training image, expected all of 0 to "
            f"{len(names) - 1}: add images or renumber the labels"
        )
    return tuple(names)


# --- readers ----------------------------------------------------------------------------------------------------------


def read_digits() -> Splits:
    """Read the images that come with scikit-learn; a fifth of them are for testing."""
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
    """Read an .npz file; the names of classes are None if it holds none."""
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
    except UnicodeDecodeError:
        raise InputError(f"{path}: classes holds bytes that are not UTF-8: save the names as strings") from None
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


def listed(folder: Path) -> list[Path]:
    """List a folder, without what file managers and archives leave; empty if it does not exist."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in paths if not path.name.startswith(JUNK))


def files_in(folder: Path) -> list[tuple[str, str, Path]]:
    """List `folder`/<split>/<class>/*, each file after its split and its class; links are followed."""
    places = [(split, place) for split in SPLITS for place in listed(folder / split)]
    return [(split, place.name, path) for split, place in places for path in listed(place)]


def is_packed(path: Path) -> bool:
    return os.path.exists(path / IMAGES)


def read_packed(folder: Path) -> Splits:
    """Map the images that `rsslib.data.packing.pack` wrote into memory."""
    try:
        x = np.load(folder / IMAGES, mmap_mode="r")
        with open_regular(folder / ROWS, LARGEST_FILE) as file, np.load(file) as rows:
            y, keys, n, classes = (rows[name] for name in ("y", "keys", "train", "classes"))
        images = x.dtype == np.uint8 and x.ndim == 4 and x.shape[1] == x.shape[2] and x.shape[3] in (1, 3)
        labels = y.dtype == np.int64 and keys.dtype == "S16" and y.shape == keys.shape == x.shape[:1]
        if not (images and labels and 0 < n < len(y)):
            raise ValueError(f"{IMAGES} and {ROWS} do not belong together")
    except Exception as error:  # NumPy and zipfile raise many types on damaged files
        raise InputError(f"{folder} cannot be read ({one_line(error)}): remove it and pack its images again") from None
    rows = all_rows(x, y, keys)
    return rows.part(slice(n)), rows.part(slice(n, None)), classes.tolist()


def image_files(folder: Path) -> tuple[list[tuple[str, str, Path]], list[str], bool]:
    """Return the image files as `files_in` does, the names of the classes, and whether every image is grey."""
    found = files_in(folder)
    files = [file for file in found if is_image(file[2])]
    if len(files) < len(found):
        print(f"{folder}: skipped {len(found) - len(files)} files that are not images", file=sys.stderr)
    if not any(split == "train" for split, _, _ in files):
        raise InputError(f"{folder / 'train'} holds no images: put image files in {folder / 'train'}/<class>/")
    classes = sorted({name for _, name, _ in files})
    return files, classes, all(is_grey(path) for _, _, path in files)


def read_folder(folder: Path, resolution: int) -> Splits:
    """Read image files as `read_images` does, or what it returned before if the files have not changed.

    That is kept beside the folder, in a hidden file whose name depends on the files' names, sizes and times.
    """
    state = repr(fingerprint(folder.name, folder.parent))
    name = f".{folder.name}-{resolution}px-"
    kept = folder.with_name(f"{name}{sha256(state.encode())[:16]}.npz")
    with suppress(Exception):  # it is missing or damaged
        with open_regular(kept, LARGEST_FILE) as file, np.load(file) as arrays:
            train, test = (all_rows(*(arrays[f"{part}_{split}"] for part in CACHED)) for split in SPLITS)
            return train, test, arrays["classes"].tolist()
    train, test, classes = read_images(folder, resolution)
    splits = dict(zip(SPLITS, (train, test), strict=True))
    columns = {f"{part}_{split}": getattr(rows, part) for split, rows in splits.items() for part in CACHED}
    with suppress(InputError):  # a shared folder may be read-only
        with atomic_path(kept) as temporary, open(temporary, "wb") as file:
            np.savez(file, classes=np.array(classes), **columns)
        for old in set(folder.parent.glob(f"{escape(name)}*.npz")) - {kept}:
            old.unlink(missing_ok=True)
    return train, test, classes


def read_images(folder: Path, resolution: int) -> Splits:
    """Read image files from `folder`/train/<class>/ and `folder`/test/<class>/, as grey if every one of them is.

    Without files for testing a fifth of the images is taken, those whose pixels have the first hashes.
    """
    files, classes, grey = image_files(folder)
    splits = [split for split, _, _ in files]
    channels = 1 if grey else 3
    check_fits(len(files), resolution, channels, folder)
    x, keys = np.empty((len(files), resolution, resolution, channels), np.uint8), np.empty(len(files), "S16")

    def read_one(number: int) -> None:
        image = read_image(files[number][2], grey)[None]
        x[number], keys[number] = fit(image, resolution)[0], hash_rows(image)[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # resized at once: the files together may not fit into memory
        try:
            done = pool.map(read_one, range(len(files)))
            for _ in progress_bar(done, desc=f"read {folder.name}", unit="image", total=len(files)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
    y = np.array([classes.index(name) for _, name, _ in files])
    rows = all_rows(x, y, keys)
    training = np.array(splits) == "train"
    train, test = rows.part(training), rows.part(~training)
    if training.all():
        rows = in_order(rows)
        n = len(files) // 5
        train, test = rows.part(slice(n, None)), rows.part(slice(n))
        print(f"{folder}: {n} of {len(files)} images are held out for testing, as there is no test/", file=sys.stderr)
    counts = [f"{name} {(train.y == i).sum()} + {(test.y == i).sum()}" for i, name in enumerate(classes)]
    print(f"{folder}: images for training + testing: {', '.join(counts)}", file=sys.stderr)
    return train, test, classes


def check_fits(images: int, resolution: int, channels: int, path: Path, device: Any = None) -> None:
    """Raise InputError unless the images fit into the memory of a device, by default the CPU."""
    from rsslib.device import free_memory  # here, since it imports PyTorch

    what = f"the {images:,} images of {path} at {resolution} pixels"
    needed = images * channels * resolution**2
    check_room(needed, free_memory(device), what, "choose a lower resolution or fewer images")


def download(name: str, path: Path) -> None:
    """Write `path` from torchvision's download: whole, and once if several processes want it."""
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
