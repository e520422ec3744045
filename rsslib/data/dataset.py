"""Image datasets held on the device as one uint8 tensor, split into training, validation and test images."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsslib.data.readers import DATASETS, Rows, check_fits, check_unchanged, fingerprint, fit, held_out, read, row_order
from rsslib.device import free_memory
from rsslib.errors import InputError, one_line
from rsslib.files import system_errors
from rsslib.space import RESOLUTION, SearchSpace, check_resolution

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels of one dataset, all on one device.

    `x_train`, `x_val` and `x_test` are uint8 [N, C, R, R] in channels-last memory format, C is 1 or 3;
    `y_train`, `y_val` and `y_test` are int64 [N], from 0 to len(classes) - 1. `mean` and `std` normalise
    the channels of pixels in 0 to 1, None for grey images. `checksum` is a SHA-256 over all rows as stored
    (a hash of each row's pixels, and its label), before `train_images` or `test_images` shorten them; the
    order of rows does not change it.
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

    @property
    def channels(self) -> int:
        return self.x_train.shape[1]

    @property
    def resolution(self) -> int:
        """The side of an image, in pixels."""
        return self.x_train.shape[-1]

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        return self.x_train.device

    def __repr__(self) -> str:
        train, val, test = (f"{len(y):,}" for y in (self.y_train, self.y_val, self.y_test))
        return (
            f"Dataset({self.name!r}: {train} training, {val} validation, {test} test images, "
            f"{self.channels} x {self.resolution} x {self.resolution}, {self.n_classes} classes)"
        )


@system_errors()
def load_dataset(
    name: str,
    root: str | Path = "data",
    device: str | torch.device = "cpu",
    train_images: int | None = None,
    test_images: int | None = None,
    resolution: int = RESOLUTION,
) -> Dataset:
    """Load a dataset at `resolution` x `resolution` pixels and split it into training, validation and test images.

    `resolution` is 32 to 224 in multiples of 32.

    `digits` comes with scikit-learn. mnist, fashion_mnist, cifar10 and cifar100 are read from
    `root/<name>.npz`; where that is missing, torchvision downloads the dataset and the file is written. Any
    other name is a dataset of your own, either a file `root/<name>.npz` (x_train, x_test: uint8 [N, H, W]
    or [N, H, W, 1 or 3]; y_train, y_test: integers from 0 to K - 1; optionally classes: K names) or image
    files `root/<name>/train/<class>/*` and `root/<name>/test/<class>/*`, which are read as grey if every
    one of them is. At 32 pixels grey images of 28 x 28 are zero-padded by 2 on each side; all others are
    resized to the square (bilinear with antialias).

    Rows are ordered by a hash of their pixels. The first 10,000 training rows, at most a fifth, are held
    out for validation (as many as in the released code of Shipard et al. 2022): the same ones for every
    seed and whatever the order of rows on disk. `digits` has no test images of its own; the first fifth of
    it are. `train_images` and `test_images` keep only the first so many training and test images.

    The checksum at first use is kept in `root/<name>.sha256` and compared at every later one.

    Raises InputError if there is no such dataset, its files cannot be used or have changed, the download
    fails, `device` cannot be used, or more images are asked for than there are.
    """
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # which of them depends on PyTorch's build
        raise InputError(
            f"device {device!r} cannot be used ({one_line(error)}): choose 'cpu' or a device of this machine"
        ) from None
    root = Path(root)
    train, test, classes, path = read(name, root, check_resolution(resolution))

    order, test_order = row_order(train), row_order(test)
    hashed = hashlib.sha256()
    for rows, by_hash in ((train, order), (test, test_order)):
        hashed.update(f"{len(by_hash)} rows".encode())
        hashed.update(rows.keys[by_hash].astype(">u8").tobytes() + rows.y[by_hash].astype(">i8").tobytes())
    checksum = hashed.hexdigest()
    if name != "digits":
        check_unchanged(path, checksum, root / f"{name}.sha256")
    n_val = held_out(len(order))
    if n_val == 0:
        raise InputError(f"{path} has {len(order)} training images, expected 5 or more: add images")
    val, order = order[:n_val], order[n_val:]
    lost = {*range(len(classes))} - {*train.y[order].tolist()}
    if lost and name not in DATASETS:
        raise InputError(
            f"{path}: all training images of {classes[min(lost)]!r} are among the {n_val} held out for validation: add "
            "some of it"
        )
    order = order[: _count(train_images, len(order), "train_images", name)]
    test_order = test_order[: _count(test_images, len(test_order), "test_images", name)]
    images = len(val) + len(order) + len(test_order)
    check_fits(images, resolution, train.x.shape[-1], path, free_memory(device))

    def on_device(rows: Rows, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(fit(rows.x[chosen], resolution)).permute(0, 3, 1, 2)  # NHWC memory is channels-last
        return x.to(device), torch.from_numpy(rows.y[chosen]).to(device)

    grey = train.x.shape[-1] == 1
    return Dataset(
        name,
        *on_device(train, order),
        *on_device(train, val),
        *on_device(test, test_order),
        classes=classes,
        mean=None if grey else IMAGENET_MEAN,
        std=None if grey else IMAGENET_STD,
        checksum=checksum,
    )


def check_images(space: SearchSpace, images: Dataset) -> None:
    """Raise InputError unless a supernet of this space takes these images and has their classes."""
    theirs = (images.channels, images.resolution, images.n_classes)
    own = (space.in_channels, space.resolution, space.classes)
    if theirs != own:
        words = ["{} channels, {} pixels a side, {} classes".format(*values) for values in (theirs, own)]
        raise InputError(
            f"the images of {images.name} have {words[0]}, the supernet takes {words[1]}: give the images that it was "
            "made for"
        )


def cached_dataset(
    name: str, root: str | Path, device: str, train_images: int | None = None, test_images: int | None = None,
    resolution: int = RESOLUTION,
) -> Dataset:  # fmt: skip
    """`load_dataset`, or what it gave before if the files are still the same ones."""
    return _loaded(name, str(root), device, train_images, test_images, resolution, fingerprint(name, Path(root)))


@lru_cache(maxsize=4)
def _loaded(
    name: str, root: str, device: str, train_images: int | None, test_images: int | None, resolution: int, files: object
):
    return load_dataset(name, root, device, train_images, test_images, resolution)


def _count(n: int | None, available: int, what: str, name: str) -> int:
    if n is None:
        return available
    if not isinstance(n, Integral) or isinstance(n, bool) or not 0 < n <= available:
        raise InputError(
            f"{what} is {n!r}, expected a whole number up to the {available} that {name} has, or None for all"
        )
    return int(n)
