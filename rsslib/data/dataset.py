"""Image datasets on the device: uint8 tensors, split into training, validation and test images."""

import hashlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsslib.data.images import resize_with_torch
from rsslib.data.packing import Rows, check_fits, fingerprint
from rsslib.data.pixels import fit
from rsslib.data.readers import find, held_out, read
from rsslib.device import choose_device, free_memory
from rsslib.errors import Count, InputError, check_number, checked
from rsslib.files import folder_of, read_regular, system_errors, write
from rsslib.space import RESOLUTION, SearchSpace, check_resolution

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
READ_AHEAD = 2  # batches of mapped images read in advance
LOADED_AT_ONCE = 2**22  # bytes of images that are resized together; as floats they take four times as much


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels of one dataset, all on one device.

    `x_train`, `x_val` and `x_test` are uint8 [N, C, R, R] in channels-last memory format; C is 1 or 3. If `mapped`,
    images are in a packed file instead of on the device, and training images may have another side than R. `y_train`,
    `y_val` and `y_test` are int64 [N], from 0 to len(classes) - 1. `mean` and `std` normalise the channels of pixels in
    0 to 1; they are None for grey images. `checksum` is a SHA-256 over all stored rows (a hash of each row's pixels,
    and its label), before `train_images` or `test_images` shorten them. It does not depend on the order of rows.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    checksum: str
    mapped: bool = False

    @property
    def channels(self) -> int:
        return self.x_train.shape[1]

    @property
    def resolution(self) -> int:
        """Return the side of the images that a network sees, in pixels."""
        return self.x_test.shape[-1]

    @property
    def side(self) -> int:
        """Return the side of the training images, in pixels; crops are taken from these."""
        return self.x_train.shape[-1]

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        return self.y_train.device

    def read(self, rows: Tensor) -> Tensor:
        """Return the training images in `rows`, on the device."""
        return self.x_train[rows.to(self.x_train.device)].to(self.device)

    def read_ahead(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the training images of each batch of rows; if they are mapped, a thread reads the next two batches."""
        if not self.mapped:
            yield from map(self.read, batches)
            return
        waiting: deque = deque()
        with ThreadPoolExecutor(1) as pool:
            for rows in batches:
                waiting.append(pool.submit(self.x_train.__getitem__, rows.to(self.x_train.device)))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result().to(self.device)
            while waiting:
                yield waiting.popleft().result().to(self.device)

    def __repr__(self) -> str:
        train, val, test = (f"{len(y):,}" for y in (self.y_train, self.y_val, self.y_test))
        return (
            f"Dataset({self.name!r}: {train} training, {val} validation, {test} test images, "
            f"{self.channels} x {self.resolution} x {self.resolution}, {self.n_classes} classes)"
        )


@checked
@system_errors()
def load_dataset(
    name: str,
    root: str | Path = "data",
    device: str | torch.device = "cpu",
    train_images: Count | None = None,
    test_images: Count | None = None,
    resolution: int = RESOLUTION,
) -> Dataset:
    """Load a dataset at `resolution` x `resolution` pixels, split into training, validation and test images.

    `resolution` is 32 to 224 in multiples of 32.

    `digits` comes with scikit-learn. mnist, fashion_mnist, cifar10 and cifar100 are read from `root/<name>.npz`; if it
    is missing, torchvision downloads the dataset and the file is written. Any other name is a dataset of yours: either
    a file `root/<name>.npz` (x_train, x_test: uint8 [N, H, W] or [N, H, W, 1 or 3]; y_train, y_test: integers from 0 to
    K - 1; optionally classes: K names), or image files `root/<name>/train/<class>/*` and `root/<name>/test/<class>/*`.
    Image files are read as grey if all of them are grey. Without `test`, a fifth of them is held out for testing.
    Formats are JPEG, PNG, GIF, BMP, TIFF, WebP and PPM. Photos are turned upright, and transparent pixels become white.
    At 32 pixels, grey images of 28 x 28 are zero-padded by 2 on each side. Of all other images, the largest square in
    the middle is resized (bilinear with antialiasing).

    A folder that `rsslib pack` wrote is mapped into memory instead of read; on a CUDA device it is copied if it fits.
    Its training images keep their side; the others are resized.

    Rows are ordered by a hash of their pixels. The first 10,000 training rows, at most a fifth, are held out for
    validation (as many as in the released code of Shipard et al. 2022). They are the same for every seed and any order
    of rows on disk. `digits` has no test images of its own; a fifth of it is used. `train_images` and `test_images`
    keep only the first n training and test images.

    The checksum at first use is kept in `root/<name>.sha256` and compared at every later use.

    Raises InputError if there is no such dataset, its files cannot be used or have changed, the download fails,
    `device` cannot be used, or more images are requested than exist.
    """
    where = choose_device(str(device))
    root = folder_of(root, "root")
    train, test, classes, path = read(name, root, check_resolution(resolution))
    checksum = sha256_of(train, test)
    if name != "digits":
        check_unchanged(path, checksum, root / f"{name}.sha256")

    side, channels = train.all.shape[-2:]
    packed = isinstance(train.all, np.memmap)
    if packed and side != resolution:  # crops from another side are different images
        checksum = hashlib.sha256(f"{checksum} from {side} pixels".encode()).hexdigest()
    n = held_out(len(train.y))
    if n == 0:
        raise InputError(f"{path} has {len(train.y)} training images, expected 5 or more: add images")
    val, train = train.part(slice(n)), train.part(slice(n, None))
    lost = set(range(len(classes))) - set(train.y.tolist())
    if lost:
        raise InputError(
            f"{path}: all training images of {classes[min(lost)]!r} are among the {n} held out for validation: add "
            "some of it"
        )
    for images, rows, what in ((train_images, train, "train_images"), (test_images, test, "test_images")):
        if images is not None:
            check_number(images, what, 1, len(rows.y), whole=True)
    train, test = train.part(slice(train_images)), test.part(slice(test_images))
    large = len(train.y) * train.all[0].nbytes > free_memory(where) // 2
    mapped = packed and (large or where.type == "cpu")  # whether training images stay in the packed file
    others_mapped = packed and where.type == "cpu" and side == resolution
    loaded = (not mapped) * len(train.y) + (not others_mapped) * (len(val.y) + len(test.y))
    check_fits(loaded, resolution, channels, path, where)

    def on_device(rows: Rows, size: int, mapped: bool) -> tuple[Tensor, Tensor]:
        if mapped:
            with warnings.catch_warnings(action="ignore"):  # a mapped file cannot be written through a tensor
                images = torch.from_numpy(rows.x)
        else:
            images = torch.empty((len(rows.y), size, size, channels), dtype=torch.uint8, device=where)
            n = max(1, LOADED_AT_ONCE // rows.all[0].nbytes)
            for start in range(0, len(rows.y), n):
                part = slice(start, start + n)
                images[part] = torch.from_numpy(fit(rows.part(part).x, size, resize_with_torch))
        return images.permute(0, 3, 1, 2), torch.from_numpy(rows.y).to(where)  # NHWC memory is channels-last

    return Dataset(
        name,
        *on_device(train, side if packed else resolution, mapped),
        *on_device(val, resolution, others_mapped),
        *on_device(test, resolution, others_mapped),
        mapped=mapped,
        classes=classes,
        mean=None if channels == 1 else IMAGENET_MEAN,
        std=None if channels == 1 else IMAGENET_STD,
        checksum=checksum,
    )


def sha256_of(*splits: Rows) -> str:
    hashed = hashlib.sha256()
    for rows in splits:
        hashed.update(f"{len(rows.y)} rows".encode())
        hashed.update(rows.keys.tobytes() + rows.y.astype(">i8").tobytes())
    return hashed.hexdigest()


def check_unchanged(path: Path, checksum: str, record: Path) -> None:
    """Raise InputError if the checksum differs from that in `record`, which is written at first use."""
    try:
        known = read_regular(record, 100)
    except FileNotFoundError:
        with suppress(InputError):  # a shared folder may be read-only
            write(record, f"{checksum}\n".encode())
        return
    if known.strip() != checksum.encode():
        raise InputError(
            f"{path} has changed since its first use, according to {record}: restore it, or delete {record} if the "
            "change is meant, and rebuild the runs that were trained on the old images"
        )


def check_images(space: SearchSpace, images: Dataset) -> None:
    """Raise InputError unless the images and their classes fit a supernet of this space."""
    theirs = (images.channels, images.resolution, images.n_classes)
    own = (space.in_channels, space.resolution, space.classes)
    if theirs != own:
        given, expected = ("{} channels, {} pixels a side, {} classes".format(*values) for values in (theirs, own))
        raise InputError(
            f"the images of {images.name} have {given}, the supernet takes {expected}: give the images it was made for"
        )


@system_errors()
def cached_dataset(name: str, root: str | Path, *arguments: Any, **more: Any) -> Dataset:
    """Return the result of `load_dataset`, or an earlier result if the files have not changed."""
    path = find(name, root)
    return _load(fingerprint(path) if path else (), name, root, *arguments, **more)


@lru_cache(maxsize=4)
def _load(files: tuple, *arguments: Any, **more: Any) -> Dataset:
    return load_dataset(*arguments, **more)
