"""Image datasets held on the device as one uint8 tensor, and augmentation as batched tensor code."""

import hashlib
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from rsslib.errors import InputError, choose
from rsslib.files import atomic_path, remove_temporary, write

SIZE = 32
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VALIDATION_IMAGES = 10_000
KEYS = ("x_train", "y_train", "x_test", "y_test")

_TORCHVISION = dict(zip(DATASETS[1:], ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"), strict=True))
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_GREY_WEIGHTS = {1: (1.0,), 3: (0.2989, 0.587, 0.114)}  # torchvision's; of one channel, the channel itself


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels of one dataset, all on one device.

    `x_train`, `x_val` and `x_test` are uint8 [N, C, 32, 32] in channels-last memory format, C is 1 or 3;
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
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        return self.x_train.device

    def __repr__(self) -> str:
        train, val, test = (f"{len(y):,}" for y in (self.y_train, self.y_val, self.y_test))
        return (
            f"Dataset({self.name!r}: {train} training, {val} validation, {test} test images, "
            f"{self.channels} x {SIZE} x {SIZE}, {self.n_classes} classes)"
        )


def load(
    name: str,
    root: str | Path = "data",
    device: str | torch.device = "cpu",
    train_images: int | None = None,
    test_images: int | None = None,
) -> Dataset:
    """Load a dataset at 32 x 32 pixels and split it into training, validation and test images.

    `digits` comes with scikit-learn. mnist, fashion_mnist, cifar10 and cifar100 are read from
    `root/<name>.npz`; where that is missing, torchvision downloads the dataset and the file is written. Any
    other name is a dataset of your own, either a file `root/<name>.npz` (x_train, x_test: uint8 [N, H, W]
    or [N, H, W, 1 or 3]; y_train, y_test: integers from 0 to K - 1; optionally classes: K names) or image
    files `root/<name>/train/<class>/*` and `root/<name>/test/<class>/*`, which are read as grey if every
    one of them is. Grey images of 28 x 28 are zero-padded by 2 on each side; other sizes are resized to the
    square (bilinear with antialias).

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
            f"device {device!r} cannot be used ({_reason(error)}): choose 'cpu' or a device of this machine"
        ) from None
    root = Path(root)
    path = folder = root / str(name)
    if name == "digits":
        train, test, classes = _read_digits()
    else:
        path = root / f"{name}.npz"
        if name in _TORCHVISION and not path.exists():
            _download(name, path)
        if path.exists():
            train, test, classes = _read_npz(path)
        else:
            check_name(name, root)
            path = folder
            train, test, classes = _read_folder(folder)
    classes = _check_classes(train.y, test.y, classes, path)

    order, test_order = _order(train), _order(test)
    checksum = hashlib.sha256()
    for rows, by_hash in ((train, order), (test, test_order)):
        checksum.update(f"{len(by_hash)} rows".encode())
        checksum.update(rows.keys[by_hash].astype(">u8").tobytes() + rows.y[by_hash].astype(">i8").tobytes())
    checksum = checksum.hexdigest()
    if name != "digits":
        _check_unchanged(path, checksum, root / f"{name}.sha256")
    n_val = min(VALIDATION_IMAGES, len(order) // 5)
    if n_val == 0:
        raise InputError(f"{path} has {len(order)} training images, expected 5 or more: add images")
    val, order = order[:n_val], order[n_val:]
    order = order[: _count(train_images, len(order), "train_images", name)]
    test_order = test_order[: _count(test_images, len(test_order), "test_images", name)]

    def on_device(rows: _Rows, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(_fit(rows.x[chosen])).permute(0, 3, 1, 2)  # NHWC memory is channels-last
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


def normalise(images: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """Scale uint8 images [N, C, 32, 32] to 0..1 and, unless `mean` is None, to (x - mean) / std.

    Returns float32 of the same shape in channels-last memory format: all that is done to validation and
    test images. Raises InputError if the images are not uint8.
    """
    return _standardise(_unit_range(images), mean, std)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Augmentation parameters of n images, tensors of length n on one device.

    `top`, `left`, `height` and `width` (int64, pixels) are the crop; `flip` (bool) mirrors left and right;
    `brightness` and `saturation` (float32) are factors, applied in this order where `brightness_first`
    (bool) and in the other elsewhere. Indexing with `rows` (a slice or an int64 tensor) gives the
    parameters of those images.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    brightness: Tensor
    saturation: Tensor
    brightness_first: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Augmentation":
        return Augmentation(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_augmentation(n: int, generator: torch.Generator) -> Augmentation:
    """Draw the augmentation of n images, on the generator's device.

    The crop's share of the area is uniform in 0.08 to 1 and the ratio of its width to its height
    log-uniform in 3/4 to 4/3, both sides rounded to pixels; the first of ten draws that fits is placed
    uniformly, and where none fits the whole image is taken (torchvision's RandomResizedCrop). Half of the
    images are flipped. The brightness factor is uniform in 1 - 32/255 to 1 + 32/255 and the saturation
    factor in 0.5 to 1.5, in either order with equal probability. (Released code of Cai et al. 2020 and
    Shipard et al. 2022.) The same seed gives other numbers on another kind of device.
    """
    u_area, u_ratio = torch.rand((2, 10, n), generator=generator, device=generator.device)
    area = SIZE * SIZE * (0.08 + 0.92 * u_area)
    ratio = torch.exp(math.log(4 / 3) * (2 * u_ratio - 1))
    width, height = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (width <= SIZE) & (height <= SIZE)  # the smallest crop drawn, 8 pixels, is never empty
    first = fits.int().argmax(0, keepdim=True)  # of equal values, argmax takes the first
    height, width = (torch.where(fits.any(0), s.gather(0, first)[0], SIZE).long() for s in (height, width))

    u = torch.rand((6, n), generator=generator, device=generator.device)
    return Augmentation(
        top=(u[0] * (SIZE - height + 1)).long(),
        left=(u[1] * (SIZE - width + 1)).long(),
        height=height,
        width=width,
        flip=u[2] < 0.5,
        brightness=1 + 32 / 255 * (2 * u[3] - 1),
        saturation=0.5 + u[4],
        brightness_first=u[5] < 0.5,
    )


def augment(
    images: Tensor, parameters: Augmentation, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Tensor:
    """Crop, flip, jitter and normalise a batch, each image by its own parameters, without a loop over images.

    `images` are uint8 [n, C, 32, 32] and `parameters` those of n images on the same device; returns float32
    [n, C, 32, 32] in channels-last memory format, as `normalise` does. Pixels are clipped to 0..1 after
    brightness and after saturation, which leaves grey images as they are. Nothing here synchronises or has
    a shape that depends on data, so a CUDA graph can capture it. Raises InputError if the images are not
    uint8.
    """
    x = _unit_range(images)
    n, channels = x.shape[:2]
    p = parameters

    # Crop, resize and flip are linear and separable: out = rows @ image @ columns^T for each channel.
    rows = _interpolation(p.top, p.height, torch.zeros_like(p.flip))
    columns = _interpolation(p.left, p.width, p.flip)
    x = (x.flatten(1, 2) @ columns.mT).view(x.shape)
    x = rows[:, None] @ x

    # Brightness and saturation are both f * x + g * grey(x), that is, one matrix that mixes the channels.
    brightness, saturation = (p.brightness, torch.zeros_like(p.brightness)), (p.saturation, 1 - p.saturation)
    eye = torch.eye(channels, device=x.device)
    grey = _channels(_GREY_WEIGHTS[channels], x.device)
    x = x.flatten(2)
    for jitters in ((brightness, saturation), (saturation, brightness)):
        f, g = (torch.where(p.brightness_first, *pair)[:, None, None] for pair in zip(*jitters, strict=True))
        x = ((f * eye + g * grey) @ x).clamp_(0, 1)
    return _standardise(x.view(n, channels, SIZE, SIZE), mean, std)


def _interpolation(start: Tensor, length: Tensor, flip: Tensor) -> Tensor:
    """Matrices [n, 32, 32] that stretch `length` pixels from `start` to 32 pixels, mirrored where `flip`.

    A crop is never larger than the output, so that antialiased bilinear interpolation is the plain one.
    """
    pixel = torch.arange(SIZE, device=start.device)
    centre = pixel + 0.5
    centre = torch.where(flip[:, None], SIZE - centre, centre)
    last = (length - 1)[:, None]
    source = (centre * (length / SIZE)[:, None] - 0.5).clamp_(min=0).minimum(last) + start[:, None]
    return (1 - (pixel - source[:, :, None]).abs_()).clamp_(min=0)


def _unit_range(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 in 0..1, one plane a channel."""
    if images.dtype != torch.uint8:
        raise InputError(f"images are {images.dtype}, expected torch.uint8: pass those of a Dataset")
    return images.contiguous().to(torch.float32).div_(255)  # faster than rearranging floats


def _standardise(x: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """(x - mean) / std in place, unless `mean` is None; then to channels-last."""
    if mean is not None:
        x = x.sub_(_channels(mean, x.device)[:, None, None]).div_(_channels(std, x.device)[:, None, None])
    # x.contiguous() would keep the strides of a single channel, by which convolutions choose channels-first
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # torch.tensor would copy from the host, which a CUDA graph cannot capture
    return torch.cat([torch.full((1,), value, device=device) for value in values])


class _Rows(NamedTuple):
    """Training or test rows as read: x uint8 [N, H, W, C], y int64 [N] and keys, the `_hash` of x."""

    x: np.ndarray
    y: np.ndarray
    keys: np.ndarray


def _hash(x: np.ndarray) -> np.ndarray:
    """128 bits for each row of uint8 [N, ...], as uint64 [N, 2]."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    digests = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _order(rows: _Rows) -> np.ndarray:
    return np.lexsort((rows.y, rows.keys[:, 1], rows.keys[:, 0]))


def _count(n: int | None, available: int, what: str, name: str) -> int:
    if n is None:
        return available
    if not isinstance(n, Integral) or isinstance(n, bool) or not 0 < n <= available:
        raise InputError(
            f"{what} is {n!r}, expected a whole number up to the {available} that {name} has, or None for all, as the "
            "profiles smoke and paper say"
        )
    return int(n)


def _fit(x: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] -> [N, 32, 32, C]: zero-padded if grey 28 x 28, else resized."""
    n, height, width, channels = x.shape
    if (height, width) == (SIZE, SIZE):
        return x
    if (height, width, channels) == (28, 28, 1):
        return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    out = np.empty((n, SIZE, SIZE, channels), np.uint8)
    for i in range(0, n, 100):  # few at a time: the images may be large
        planes = torch.from_numpy(np.ascontiguousarray(x[i : i + 100].transpose(0, 3, 1, 2))).float()
        planes = torch.nn.functional.interpolate(planes, (SIZE, SIZE), mode="bilinear", antialias=True)
        out[i : i + 100] = planes.round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return out


def _read_digits() -> tuple[_Rows, _Rows, tuple[str, ...]]:
    from sklearn.datasets import load_digits  # here, because it takes seconds to import

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    rows = _Rows(x, digits.target.astype(np.int64), _hash(x))
    order = _order(rows)
    test, train = np.split(order, [len(order) // 5])
    return _Rows(*(a[train] for a in rows)), _Rows(*(a[test] for a in rows)), tuple("0123456789")


def _read_npz(path: Path) -> tuple[_Rows, _Rows, tuple[str, ...] | None]:
    try:
        with zipfile.ZipFile(path) as file:  # np.load tries other formats as well, with misleading errors
            if damaged := file.testzip():  # and checks no array whose header asks for too few bytes
                raise ValueError(f"{damaged} is damaged")
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*KEYS, "classes") if key in file}
    except Exception as error:  # zipfile, zlib and NumPy raise many types on damaged files
        raise InputError(
            f"{path} cannot be read as an .npz file ({_reason(error)}): expected {', '.join(KEYS)} as "
            "numpy.savez writes them; replace the file, or delete it to download a built-in dataset again"
        ) from None
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise InputError(
            f"{path} has no {', no '.join(missing)}: expected {', '.join(KEYS)}, so add what is missing"
        )
    splits = []
    for split in ("train", "test"):
        x = _check_images(arrays[f"x_{split}"], f"x_{split}", path)
        splits.append(_Rows(x, _check_labels(arrays[f"y_{split}"], len(x), f"y_{split}", path), _hash(x)))
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
    return train, test, None if classes is None else tuple(classes.astype(str).tolist())


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
            raise InputError(
                f"{path}: {key} holds label {wrong[0]}, expected 0 to {k - 1}: renumber the labels"
            )
    present = np.unique(y_train)
    if len(present) < k:
        absent = np.flatnonzero(np.append(present, k) != np.arange(len(present) + 1))[0]
        label = absent if classes is None else f"{absent} ({classes[absent]})"
        raise InputError(
            f"{path}: no training image has label {label}, expected all of 0 to {k - 1}: add images of that "
            "class or renumber the labels"
        )
    return tuple(str(i) for i in range(k)) if classes is None else classes


def _read_folder(folder: Path) -> tuple[_Rows, _Rows, tuple[str, ...]]:
    def listed(path: Path) -> list[Path]:
        return sorted(p for p in path.iterdir() if not p.name.startswith("."))

    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise InputError(
                f"{folder / split} is missing: expected image files in {folder}/train/<class>/ and "
                f"{folder}/test/<class>/"
            )
    classes = tuple(p.name for p in listed(folder / "train") if p.is_dir())
    files = {}
    for split in ("train", "test"):
        folders = [p for p in listed(folder / split) if p.is_dir()]
        extra = [p for p in folders if p.name not in classes]
        if extra:
            raise InputError(
                f"{extra[0]} has no counterpart in {folder / 'train'}, expected one of {', '.join(classes)}: "
                "rename or remove it"
            )
        files[split] = [(path, classes.index(p.name)) for p in folders for path in listed(p)]
        if not files[split]:
            raise InputError(
                f"{folder / split} holds no images: put image files in {folder / split}/<class>/"
            )

    def mode(path: Path) -> str:
        with _open_image(path) as image:
            return image.mode

    grey = all(mode(path) in _GREY_MODES for paths in files.values() for path, _ in paths)
    splits = []
    for paths in files.values():
        images, keys = [], []
        for path, _ in paths:  # resized at once: the files together may not fit in memory
            x = _read_image(path, grey)[None]
            images.append(_fit(x))
            keys.append(_hash(x))
        labels = np.array([label for _, label in paths], dtype=np.int64)
        splits.append(_Rows(np.concatenate(images), labels, np.concatenate(keys)))
    return *splits, classes


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises many types on damaged files
        raise InputError(f"{path} is not a readable image ({_reason(error)}): repair or remove it") from None


def _read_image(path: Path, grey: bool) -> np.ndarray:
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
        with FileLock(downloads / f"{name}.lock"):
            if path.exists():
                return
            remove_temporary(path.parent, path.name)
            arrays = {}
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
        raise InputError(
            f"{path} is missing and torchvision's download of {name} failed ({_reason(error)}): put "
            f"a file with uint8 {', '.join(KEYS)} there, or try again with internet access"
        ) from None


def _check_unchanged(path: Path, checksum: str, record: Path) -> None:
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
    if name in DATASETS or path.exists() or folder.is_dir():
        return
    try:
        choose(name, DATASETS, "dataset")
    except InputError as error:
        raise InputError(
            f"{error}, or your own images as {path} (uint8 {', '.join(KEYS)}) or as image files in "
            f"{folder}/train/<class>/ and {folder}/test/<class>/"
        ) from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
