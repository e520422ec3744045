"""rsslib.data: reading, checking and splitting datasets."""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zlib
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.functional as F
from helpers import EPS, damaged, payloads, sentence
from PIL import EpsImagePlugin, Image
from sklearn.datasets import load_digits

from rsslib.data import packing
from rsslib.data.augmentation import normalise
from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD, cached_dataset, load_dataset
from rsslib.data.images import is_image, read_image
from rsslib.data.pixels import fit
from rsslib.data.readers import DATASETS, training_images
from rsslib.errors import InputError

SPLITS = ("train", "val", "test")


def arrays(n_train=50, n_test=20, shape=(32, 32, 3), k=4, seed=0):
    """Random images whose first pixel value is their label, every class present."""
    rng = np.random.default_rng(seed)
    out = {}
    for split, n in (("train", n_train), ("test", n_test)):
        x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        y = (np.arange(n) % k).astype(np.uint8)
        x.reshape(n, -1)[:, 0] = y
        out |= {f"x_{split}": x, f"y_{split}": y}
    return out


def write(root, name="toy", **data):
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / f"{name}.npz", **data)
    return root


def write_folder(root, data, name="toy", classes="abcd"):
    """The same images as PNG files, one folder a class."""
    for split in ("train", "test"):
        for i, (x, y) in enumerate(zip(data[f"x_{split}"], data[f"y_{split}"], strict=True)):
            path = root / name / split / classes[y] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(path)
    return root / name


def shuffled(data, seed=1):
    rng, out = np.random.default_rng(seed), dict(data)
    for split in ("train", "test"):
        order = rng.permutation(len(data[f"y_{split}"]))
        out |= {key: data[key][order] for key in (f"x_{split}", f"y_{split}")}
    return out


def assert_same(a, b):
    assert a.checksum == b.checksum
    for split in SPLITS:
        assert torch.equal(getattr(a, f"x_{split}"), getattr(b, f"x_{split}"))
        assert torch.equal(getattr(a, f"y_{split}"), getattr(b, f"y_{split}"))


def rows(*images):
    """The images as a sorted list of bytes."""
    return sorted(row.tobytes() for x in images for row in x.permute(0, 2, 3, 1).contiguous().numpy())


# ---- built-in datasets


def test_digits_are_loaded_without_a_file(tmp_path):
    data = load_dataset("digits", root=tmp_path / "nowhere")
    assert [len(getattr(data, f"y_{split}")) for split in SPLITS] == [1151, 287, 359]
    assert (data.channels, data.n_classes, data.device.type) == (1, 10, "cpu")
    assert data.classes == tuple("0123456789") and data.mean is None and data.std is None
    for split in SPLITS:
        x, y = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
        assert x.dtype == torch.uint8 and x.shape[1:] == (1, 32, 32) and x.stride() == (1024, 1, 32, 1)
        assert y.dtype == torch.int64 and len(x) == len(y)
        assert (y.bincount(minlength=10) > 15).all()
    assert data.checksum == "b0579a94f31c8e1d5adc33b16bf7ae5695e4c5eb63eea7b7872ec593c95142eb"
    assert not (tmp_path / "nowhere").exists()
    assert "1,151 training, 287 validation, 359 test" in repr(data) and len(repr(data)) < 120


def test_digits_equal_scikit_learns_resized_to_32():
    data, digits = load_dataset("digits"), load_digits()
    x = torch.from_numpy((digits.images / 16 * 255).round()).float()[:, None]
    x = F.resize(x, [32, 32]).round().byte()
    assert rows(data.x_train, data.x_val, data.x_test) == rows(x)
    labels = {row.numpy().tobytes(): label for row, label in zip(x, digits.target, strict=True)}
    for split in SPLITS:
        for row, label in zip(getattr(data, f"x_{split}"), getattr(data, f"y_{split}"), strict=True):
            assert labels[row.numpy().tobytes()] == label


@pytest.mark.parametrize(
    ("name", "sizes", "checksum"),
    [
        (
            "mnist",
            [50_000, 10_000, 10_000],
            "8a37be21662d86ac16e88192a38ab4fc60922fc99fbf91465cc525f305b94215",
        ),
        (
            "cifar100",
            [40_000, 10_000, 10_000],
            "e8540a4723798b396d639839aa2003f41deb7f01c68f7f83f381743532f58921",
        ),
    ],
)
def test_real_files_have_the_published_split(name, sizes, checksum):
    root = Path(__file__).parents[2] / "data"
    if not (root / f"{name}.npz").exists():
        pytest.skip(f"{name}.npz is not there")
    data = load_dataset(name, root)
    assert [len(getattr(data, f"y_{split}")) for split in SPLITS] == sizes
    assert data.checksum == checksum


class FakeTorchvision:
    """Stands for torchvision's dataset classes; counts its downloads."""

    def __init__(self, data, classes, tensors=False):
        self.data, self.classes, self.tensors, self.calls = data, classes, tensors, 0

    def __call__(self, root, train, download):
        assert download and Path(root).is_dir()
        self.calls += 1
        split = "train" if train else "test"
        x, y = self.data[f"x_{split}"], self.data[f"y_{split}"].tolist()
        if self.tensors:
            x, y = torch.from_numpy(x), torch.tensor(y)
        return SimpleNamespace(data=x, targets=y, classes=self.classes)


@pytest.mark.parametrize(
    ("name", "shape", "labels"),
    [
        ("MNIST", (28, 28), ["0 - zero", "1 - one"]),
        ("FashionMNIST", (28, 28), ["T-shirt/top", "Bag"]),
        ("CIFAR10", (32, 32, 3), ["airplane", "dog"]),
        ("CIFAR100", (32, 32, 3), ["apple", "wolf"]),
    ],
)
def test_missing_file_is_downloaded_once(tmp_path, monkeypatch, name, shape, labels):
    data = arrays(shape=shape, k=2)
    fake = FakeTorchvision(data, labels, tensors=len(shape) == 2)
    monkeypatch.setattr(torchvision.datasets, name, fake)
    ours = {"FashionMNIST": "fashion_mnist"}.get(name, name.lower())
    assert ours in DATASETS
    first = load_dataset(ours, tmp_path / "new")
    again = load_dataset(ours, tmp_path / "new")
    assert fake.calls == 2  # train and test
    assert_same(first, again)
    assert_same(first, load_dataset("toy", write(tmp_path, **data)))
    assert first.classes == tuple(label.split(" - ")[0] for label in labels)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {f"{ours}.npz", f"{ours}.sha256", "downloads"}


def test_failed_download_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading x.gz:\nTried https://a, got:\n<urlopen error>\n" + "and more " * 99)

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    with pytest.raises(InputError) as error:
        load_dataset("mnist", tmp_path)
    text = sentence(error)
    assert str(tmp_path / "mnist.npz") in text and "download of mnist failed (Error downloading x.gz: Tried" in text
    assert "x_train, y_train, x_test, y_test" in text
    assert [p.name for p in tmp_path.iterdir()] == ["downloads"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_interrupted_write_leaves_no_file(tmp_path, monkeypatch, step):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeTorchvision(arrays(), list("abcd")))
    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match="No space left"):
        load_dataset("cifar10", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["downloads"]


# ---- splits, order, checksum


def test_images_keep_their_labels_and_pixels(tmp_path):
    data = arrays()
    loaded = load_dataset("toy", write(tmp_path, **data))
    assert [len(getattr(loaded, f"y_{split}")) for split in SPLITS] == [40, 10, 20]
    for split in SPLITS:
        x, y = getattr(loaded, f"x_{split}"), getattr(loaded, f"y_{split}")
        assert torch.equal(x[:, 0, 0, 0].long(), y)
        assert x.is_contiguous(memory_format=torch.channels_last) and x.stride(1) == 1
    stored = {s: torch.from_numpy(data[f"x_{s}"]).permute(0, 3, 1, 2) for s in ("train", "test")}
    assert rows(loaded.x_train, loaded.x_val) == rows(stored["train"])
    assert rows(loaded.x_test) == rows(stored["test"])
    assert (loaded.mean, loaded.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert loaded.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28), (9, 7)])
def test_order_of_rows_on_disk_does_not_matter(tmp_path, shape):
    data = arrays(shape=shape)
    data["x_train"][7] = data["x_train"][8]  # equal pixels, different labels
    assert data["y_train"][7] != data["y_train"][8]
    a = load_dataset("toy", write(tmp_path / "a", **data))
    for seed in range(3):
        assert_same(a, load_dataset("toy", write(tmp_path / "b", **shuffled(data, seed))))


def test_rows_are_ordered_by_a_hash_and_the_first_are_validation(tmp_path):
    data = arrays(n_train=23)
    loaded = load_dataset("toy", write(tmp_path, **data))
    x = sorted((hashlib.blake2b(row.tobytes(), digest_size=16).digest(), i) for i, row in enumerate(data["x_train"]))
    order = [i for _, i in x]
    expected = torch.from_numpy(data["x_train"][order]).permute(0, 3, 1, 2)
    assert torch.equal(loaded.x_val, expected[:4]) and torch.equal(loaded.x_train, expected[4:])


def test_at_most_10000_images_are_held_out(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50_005, 28, 28), dtype=np.uint8)
    y = np.arange(50_005) % 2
    data = load_dataset("toy", write(tmp_path, x_train=x, y_train=y, x_test=x[:1], y_test=y[:1]), train_images=3)
    assert (len(data.y_train), len(data.y_val), len(data.y_test)) == (3, 10_000, 1)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_checksum_depends_on_every_pixel_and_label(tmp_path, key):
    data = arrays()
    before = load_dataset("toy", write(tmp_path, **data)).checksum
    assert len(before) == 64
    changed = data | {key: data[key].copy()}
    changed[key].reshape(-1)[-1] ^= 1
    assert load_dataset("toy", write(tmp_path / "changed", **changed)).checksum != before


def test_fewer_images_are_the_first_ones(tmp_path):
    write(tmp_path, **arrays())
    whole, part = load_dataset("toy", tmp_path), load_dataset("toy", tmp_path, train_images=7, test_images=np.int64(5))
    assert torch.equal(part.x_train, whole.x_train[:7]) and torch.equal(part.y_train, whole.y_train[:7])
    assert torch.equal(part.x_test, whole.x_test[:5]) and torch.equal(part.y_test, whole.y_test[:5])
    assert torch.equal(part.x_val, whole.x_val)
    assert part.checksum == whole.checksum and part.n_classes == whole.n_classes
    assert_same(whole, load_dataset("toy", tmp_path, train_images=40, test_images=20))


@pytest.mark.parametrize("count", [0, 41])
@pytest.mark.parametrize("what", ["train_images", "test_images"])
def test_impossible_numbers_of_images_are_refused(tmp_path, what, count):
    write(tmp_path, **arrays(n_test=40))
    with pytest.raises(InputError) as error:
        load_dataset("toy", tmp_path, **{what: count})
    text = sentence(error)
    assert f"{what} is {count!r}" in text and "whole number of at least 1" in text
    assert count != 41 or "at most 40" in text


def test_class_that_is_held_out_whole_is_refused(tmp_path):
    data, refused = arrays(n_train=21, k=2), 0
    data["y_train"][:] = np.arange(21) % 2
    data["y_train"][-1], data["y_test"][0] = 2, 2
    for value in range(12):  # of one pixel, which decides the place of the only image of its class
        data["x_train"][-1, 0, 0, 0] = value
        write(tmp_path / str(value), **data, classes=["a", "b", "rare"])
        try:
            loaded = load_dataset("toy", tmp_path / str(value))
            assert loaded.y_train.tolist().count(2) == 1
        except InputError as error:
            refused += 1
            assert "all training images of 'rare' are among the 4 held out for validation" in str(error)
    assert 0 < refused < 12


# ---- sizes


def test_grey_28_by_28_is_zero_padded(tmp_path):
    data = arrays(shape=(28, 28))
    a = load_dataset("toy", write(tmp_path / "a", **data))
    assert a.channels == 1 and a.mean is None and a.std is None
    inside = a.x_test[:, :, 2:30, 2:30]
    assert rows(inside) == rows(torch.from_numpy(data["x_test"])[:, None])
    assert int(a.x_test.long().sum()) == int(inside.long().sum())  # nothing but zeros around
    with_channel = {k: v[..., None] if k.startswith("x") else v[:, None] for k, v in data.items()}  # Keras's labels
    assert_same(a, load_dataset("toy", write(tmp_path / "b", **with_channel)))


@pytest.mark.parametrize("shape", [(64, 48, 3), (28, 28, 3), (20, 33), (8, 8, 1), (300, 400, 3)])
def test_other_sizes_are_resized(tmp_path, shape):
    data = arrays(n_train=8, n_test=8, shape=shape)
    loaded = load_dataset("toy", write(tmp_path, **data))
    x = torch.from_numpy(data["x_test"].reshape(8, *shape[:2], -1)).permute(0, 3, 1, 2).float()
    x = F.center_crop(x, min(shape[:2]))
    assert rows(loaded.x_test) == rows(F.resize(x, [32, 32], antialias=True).round().byte())


# ---- image files


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28), (40, 24, 3), (50, 31)])
def test_folders_and_npz_give_the_same_dataset(tmp_path, shape):
    data = arrays(shape=shape)
    write_folder(tmp_path / "a", data)
    (tmp_path / "a/toy/train/.DS_Store").write_text("")
    (tmp_path / "a/toy/test/b/.hidden").write_text("")
    for junk in ("train/@eaDir", "train/__MACOSX/a", "test/.thumbnails", "train/a/@eaDir"):
        (tmp_path / "a/toy" / junk).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "a/toy" / junk / "0.png")
    (tmp_path / "a/toy/train/README.txt").write_text("between the class folders, not in one")
    a = load_dataset("toy", tmp_path / "a")
    b = load_dataset("toy", write(tmp_path / "b", **data, classes=np.array(list("abcd"))))
    assert_same(a, b)
    assert a.classes == b.classes == tuple("abcd")
    assert (a.channels, a.mean) == (b.channels, b.mean)


def test_images_may_differ_in_size_and_mode(tmp_path):
    rng = np.random.default_rng(0)
    data = arrays(k=2)
    folder = write_folder(tmp_path, data)
    Image.fromarray(rng.integers(0, 256, (100, 70), dtype=np.uint8)).save(folder / "train/a/grey.png")
    Image.fromarray(rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)).save(folder / "train/a/alpha.png")
    Image.fromarray(data["x_train"][0]).convert("P").save(folder / "train/b/palette.gif")
    loaded = load_dataset("toy", tmp_path)
    assert loaded.channels == 3 and len(loaded.y_train) + len(loaded.y_val) == 53


def test_grey_modes_stay_grey(tmp_path):
    data = arrays(shape=(32, 32), k=2)
    folder = write_folder(tmp_path, data)
    deep = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(folder / "test/a/deep.png")
    Image.fromarray(deep > 30000).save(folder / "test/a/bits.png")
    Image.fromarray(data["x_train"][0]).convert("LA").save(folder / "test/b/alpha.png")
    loaded = load_dataset("toy", tmp_path)
    assert loaded.channels == 1
    expected = [
        (deep >> 8).astype(np.uint8),
        (deep > 30000) * np.uint8(255),
        data["x_train"][0],
        *data["x_test"],
    ]
    assert rows(loaded.x_test) == sorted(x.tobytes() for x in expected)


def test_folder_without_test_holds_out_a_fixed_fifth(tmp_path, capsys):
    data = arrays(50, 10)
    for name, order in (("a", data), ("b", shuffled(data))):
        shutil.rmtree(write_folder(tmp_path / name, order) / "test")
    first, second = (load_dataset("toy", tmp_path / root) for root in "ab")
    assert_same(first, second)
    assert len(first.y_test) == 10 and len(first.y_val) == 8 and len(first.y_train) == 32
    assert not set(rows(first.x_test)) & set(rows(first.x_train) + rows(first.x_val))
    assert "toy: 10 of 50 images are held out for testing, as there is no test/" in capsys.readouterr().err
    assert training_images("toy", tmp_path / "a") == 32


def test_images_are_read_again_only_if_a_file_changes(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, arrays(k=2))
    first = load_dataset("toy", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "read_image", lambda *arguments: pytest.fail("read"))
        assert_same(load_dataset("toy", tmp_path), first)
    (kept,) = tmp_path.glob(".toy-32.*/images.npy")
    content = kept.read_bytes()
    kept.write_bytes(content[:-100])
    assert_same(load_dataset("toy", tmp_path), first)  # damaged
    Image.new("RGB", (32, 32)).save(folder / "train/a/0.png")
    with pytest.raises(InputError, match="has changed since its first use"):
        load_dataset("toy", tmp_path)
    assert len([*tmp_path.glob(".toy-32.*/images.npy")]) == 1


def test_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    photo = small.resize((8064, 6048), Image.Resampling.BICUBIC)  # 48 megapixels
    photo.save(tmp_path / "x.jpg", quality=95)
    pixels = read_image(tmp_path / "x.jpg", grey=False)
    assert pixels.shape == (756, 1008, 3)
    exact = fit(np.array(photo)[None], 64)[0].astype(int)
    assert np.abs(fit(pixels[None], 64)[0] - exact).max() <= 4


CAFES = ("caf\u00e9", "cafe\u0301")  # the same name in two Unicode forms


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


BAD_FOLDERS = {
    "no classes": (
        lambda f: [p.rename(f / p.name) for p in (f / "train").iterdir()],
        "toy/train holds no images",
    ),
    "one class": (
        lambda f: [shutil.rmtree(p) for name in "bcd" for p in f.glob(f"*/{name}")],
        "has the classes a: expected at least 2",
    ),
    "empty class": (lambda f: [p.unlink() for p in (f / "train/c").iterdir()], r"label 2 \(c\)"),
    "new class": (lambda f: (f / "test/a").rename(f / "test/e"), r"label 4 \(e\) .* has no training image"),
    "truncated": (lambda f: truncate(f / "train/b/1.png"), "train/b/1.png is not a readable image"),
    "text": (
        lambda f: (f / "train/b/notes.png").write_text("hello"),
        "train/b/notes.png is not a readable image",
    ),
    "large": (
        lambda f: Image.new("1", (7747, 7746)).save(f / "test/b/large.png"),
        "test/b/large.png is not a readable image .it has 7747 x 7746 pixels, expected at most 60,000,000 in all",
    ),
    "folder": (lambda f: (f / "test/b/more").mkdir(), "test/b/more is a folder"),
    "float": (
        lambda f: Image.fromarray(np.ones((9, 9), np.float32)).save(f / "train/a/f.tiff"),
        r"f.tiff is not a readable image \(its grey values have 32 bits",
    ),
    "integers": (
        lambda f: Image.fromarray(np.ones((9, 9), np.int32)).save(f / "train/a/i.tiff"),
        r"i.tiff is not a readable image \(its grey values have 32 bits",
    ),
    "pipe": (lambda f: os.mkfifo(f / "train/a/x.jpg"), "train/a/x.jpg is not a regular file"),
    "HEIC": (
        lambda f: (f / "train/a/IMG_1.HEIC").write_bytes(b"ftypheic"),
        "in the format HEIC, .* convert it to JPEG",
    ),
    "Photoshop": (lambda f: (f / "train/a/x.psd").write_bytes(b"8BPS"), "in the format PSD, .* convert it to JPEG"),
    "Unicode": (
        lambda f: [
            (f / split / "a").rename(f / split / name) for split, name in zip(("train", "test"), CAFES, strict=True)
        ],
        "expected at least 2 that differ in more than Unicode form",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder_is_refused(tmp_path, case):
    damage, expected = BAD_FOLDERS[case]
    damage(write_folder(tmp_path, arrays()))
    with pytest.raises(InputError, match=expected) as error:
        load_dataset("toy", tmp_path)
    assert str(tmp_path) in sentence(error)


def test_image_is_turned_upright_by_its_exif_orientation(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    stored = {1: upright, 2: upright[:, ::-1], 3: np.rot90(upright, 2), 4: upright[::-1], 6: np.rot90(upright)}
    flipped = upright.transpose(1, 0, 2)
    stored |= {5: flipped, 7: np.rot90(flipped, 2), 8: np.rot90(upright, -1), 9: upright}
    for (orientation, pixels), suffix in product(stored.items(), ("png", "webp", "tif")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels.copy()).save(tmp_path / f"x.{suffix}", exif=exif, lossless=True)
        assert np.array_equal(read_image(tmp_path / f"x.{suffix}", grey=False), upright), (orientation, suffix)


def test_transparent_pixels_are_white(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (2, 3, 4), dtype=np.uint8)
    colours[..., 3] = [[0, 255, 0], [255, 0, 255]]
    Image.fromarray(colours).save(tmp_path / "x.png")
    expected = np.where(colours[..., 3:] == 255, colours[..., :3], 255)
    assert np.array_equal(read_image(tmp_path / "x.png", grey=False), expected)
    Image.fromarray(colours[..., 0]).save(tmp_path / "g.png", transparency=int(colours[0, 0, 0]))
    expected = np.where(colours[..., 0] == colours[0, 0, 0], 255, colours[..., 0])
    assert np.array_equal(read_image(tmp_path / "g.png", grey=True)[..., 0], expected)
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(
        tmp_path / "d.png", transparency=257 * int(colours[0, 0, 0])
    )
    assert np.array_equal(read_image(tmp_path / "d.png", grey=True)[..., 0], expected)
    Image.fromarray(colours[..., [0, 3]], "LA").save(tmp_path / "a.tif")
    expected = np.where(colours[..., 3] == 255, colours[..., 0], 255)
    assert np.array_equal(read_image(tmp_path / "a.tif", grey=True)[..., 0], expected)


def test_16_bits_of_a_pgm_file_are_scaled(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 3 1 65535\n" + np.array([0, 0x1234, 0xFFFF], ">u2").tobytes())
    assert read_image(tmp_path / "x.pgm", grey=True).ravel().tolist() == [0, 0x12, 0xFF]


def test_image_that_is_a_postscript_program_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **more: pytest.fail("ran"))
    for suffix in ("png", ""):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
        with pytest.raises(InputError, match="is not a readable image .JPEG, PNG"):
            read_image(path, grey=False)
    assert not is_image(tmp_path / "x.")


@pytest.mark.parametrize("kind", ["ICO", "JPEG2000", "PDF", "SGI", "SPIDER", "TGA", "SVG", "XPM"])
def test_image_of_another_format_is_refused_whatever_its_suffix(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))  # where Pillow's SPIDER claims the suffix it saves
    content = {
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "XPM": b'/* XPM */ char *x[]={"1 1 1 1","a c #0","a"};',
    }
    path = tmp_path / "x.jpg"
    if kind in content:
        path.write_bytes(content[kind])
    else:
        Image.new("F" if kind == "SPIDER" else "RGB", (16, 16)).save(path, kind)
    with pytest.raises(InputError, match="is not a readable image .JPEG, PNG"):
        read_image(path, grey=False)


def test_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path, recwarn, monkeypatch):
    folder = write_folder(tmp_path, arrays())
    row = zlib.compress(b"\0" * (1 + 13_000), 9)
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0)  # 8-bit grey, the pixels of one row of them

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    (folder / "train/a/bomb.png").write_bytes(content)
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: load(self) if self.width < 99 else pytest.fail("decoded"))
    with pytest.raises(InputError, match="train/a/bomb.png .*13000 x 13000 pixels") as error:
        load_dataset("toy", tmp_path)
    assert sentence(error) and not recwarn.list


def test_files_that_programs_leave_in_folders_are_skipped_and_counted(tmp_path, capsys):
    data = arrays()
    expected = load_dataset("toy", write(tmp_path / "b", **data, classes=np.array(list("abcd"))))
    folder = write_folder(tmp_path / "a", data)
    for name in ("Thumbs.db", "desktop.ini", "notes.txt", ".DS_Store", "empty"):
        (folder / "train/b" / name).write_bytes(b"\0\1hello" * (name != "empty"))
    for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".thumbnails"):
        for place in (folder / "train" / name, folder / "train/a" / name):
            place.mkdir()
            Image.new("RGB", (32, 32)).save(place / "x.png")
    os.mkfifo(folder / "train/c/pipe")
    (folder / "test/a/gone").symlink_to(folder / "nowhere")
    (folder / "test/a/0.png").rename(folder / "test/a/without a suffix")  # an image all the same
    assert_same(load_dataset("toy", tmp_path / "a"), expected)
    said = capsys.readouterr()
    counts = f"{folder}: images for training + testing: a 13 + 5, b 13 + 5, c 12 + 5, d 12 + 5\n"
    assert said.out == "" and said.err == f"{folder}: skipped 6 files that are not images\n{counts}"


def test_images_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    write_folder(tmp_path, arrays(80, 20))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(InputError) as error:
        load_dataset("toy", tmp_path, resolution=224)
    assert "the 100 images of" in sentence(error) and "at 224 pixels need 0.014 GiB" in sentence(error)
    write(tmp_path, "zeros", **arrays(shape=(256, 256, 3)))
    with pytest.raises(InputError) as error:
        load_dataset("zeros", tmp_path)
    assert "the arrays in" in sentence(error) and "need 0.013 GiB" in sentence(error)


def test_damaged_datasets_do_not_affect_another(tmp_path):
    write(tmp_path, **arrays())
    for name in ("bad.npz", "bad.sha256", "cifar10.npz", "mnist"):
        (tmp_path / name).write_text("none")
    (tmp_path / "worse/train/a").mkdir(parents=True)
    assert len(load_dataset("toy", tmp_path).y_test) == 20


# ---- bad .npz files


def with_array(key, change):
    return lambda data: data | {key: change(data[key])}


BAD_ARRAYS = {
    "no labels": (lambda d: {k: v for k, v in d.items() if k != "y_test"}, "cannot be read .*y_test"),
    "no training": (lambda d: {k: v for k, v in d.items() if "train" not in k}, "cannot be read .*_train"),
    "float pixels": (with_array("x_train", lambda x: x / 255), "x_train is float64 of shape .* expected uint8"),
    "channels first": (with_array("x_train", lambda x: x.transpose(0, 3, 1, 2)), r"shape \(50, 3, 32, 32\)"),
    "flat": (with_array("x_train", lambda x: x.reshape(50, -1)), r"x_train is uint8 of shape \(50, 3072\)"),
    "no images": (lambda d: d | {"x_test": d["x_test"][:0], "y_test": d["y_test"][:0]}, r"shape \(0, 32, 32, 3\)"),
    "short labels": (with_array("y_train", lambda y: y[:-1]), r"y_train uint8 of shape \(49,\)"),
    "float labels": (with_array("y_train", lambda y: y.astype(float)), "y_train float64 .* integers from 0"),
    "negative": (with_array("y_train", lambda y: y.astype(int) - 1), "label -1 is out of range"),
    "test label": (with_array("y_test", lambda y: y + 1), "label 4 is out of range .* expected all of 0 to 3"),
    "gap": (with_array("y_train", lambda y: y * 2), "label 1 .* has no training image"),
    "one class": (with_array("y_train", lambda y: y * 0), "has the classes 0: expected at least 2"),
    "grey test": (with_array("x_test", lambda x: x[..., 0]), "of x_train and x_test one is grey and one RGB"),
    "few": (lambda d: d | {"x_train": d["x_train"][:4], "y_train": d["y_train"][:4]}, "has 4 training images"),
    "few names": (lambda d: d | {"classes": np.array(list("abc"))}, "label 3 is out of range .* 0 to 2"),
    "many names": (lambda d: d | {"classes": np.array(list("abcde"))}, r"label 4 \(e\) .* has no training image"),
    "pickled": (with_array("y_train", lambda y: y.astype(object)), "cannot be read.*Object arrays"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path, case):
    change, expected = BAD_ARRAYS[case]
    write(tmp_path, **change(arrays()))
    with pytest.raises(InputError, match=expected) as error:
        load_dataset("toy", tmp_path)
    assert str(tmp_path / "toy.npz") in sentence(error)


BAD_FILES = {
    "text": lambda path: path.write_text("not found"),
    "directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["toy", "cifar10"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_file_is_refused(tmp_path, case, name):
    path = write(tmp_path, name, **arrays()) / f"{name}.npz"
    BAD_FILES[case](path)
    with pytest.raises(InputError) as error:
        load_dataset(name, tmp_path)
    assert f"{path} cannot be read as an .npz file (" in sentence(error)


# ---- names and devices


@pytest.mark.parametrize(
    ("name", "close"), [("cifar-100", "cifar100"), ("digit", "digits"), ("MNIST", None), ("", None), (".", None)]
)
def test_unknown_name_is_refused(tmp_path, name, close):
    with pytest.raises(InputError) as error:
        load_dataset(name, tmp_path)
    text = sentence(error)
    assert text.startswith(f"unknown dataset {name!r}") and ", ".join(DATASETS) in text
    assert f"{tmp_path / str(name)}.npz" in text and f"{tmp_path / str(name)}/train/<class>/" in text
    if close:
        assert f"did you mean {close!r}" in text


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_folder_with_the_name_of_a_built_in_dataset_is_refused(tmp_path, name):
    folder = write_folder(tmp_path, arrays(), name)
    for split in ("train", "unpacked"):
        (folder / "train").rename(folder / split)
        with pytest.raises(InputError, match=f"{name} has the name of a built-in dataset") as error:
            load_dataset(name, tmp_path)
        assert sentence(error)
        (folder / split).rename(folder / "train")


def test_file_and_folder_of_one_name_are_refused(tmp_path):
    write(tmp_path, **arrays())
    folder = write_folder(tmp_path, arrays())
    with pytest.raises(InputError, match=f"{folder}.npz and {folder} have one name") as error:
        load_dataset("toy", tmp_path)
    assert sentence(error)


# ---- normalisation


def test_normalise_equals_torchvisions():
    x = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    expected = F.normalize(x.double() / 255, IMAGENET_MEAN, IMAGENET_STD)
    out = normalise(x.contiguous(memory_format=torch.channels_last), IMAGENET_MEAN, IMAGENET_STD)
    assert out.dtype == torch.float32 and out.stride() == (3072, 1, 96, 3)
    # up to 7.3 EPS: of five roundings, three are divided by 0.224
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=8 * EPS)
    grey = normalise(x[:, :1], None, None)
    assert torch.equal(grey, x[:, :1] / 255) and grey.stride() == (1024, 1, 32, 1)


# ---- damage, and files of strangers


@pytest.mark.parametrize("linked", [False, True])
def test_cached_dataset_is_kept_until_a_file_changes(tmp_path, linked):
    folder = write_folder(tmp_path / "disk", arrays())
    if linked:
        for place in folder.glob("*/*"):
            link = tmp_path / place.relative_to(tmp_path / "disk")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place)
    root = tmp_path if linked else tmp_path / "disk"
    before = cached_dataset("toy", root, "cpu", test_images=5)
    assert cached_dataset("toy", root, "cpu", test_images=5) is before and len(before.y_test) == 5
    Image.new("RGB", (32, 32), "red").save(folder / "train/a/new.png")
    with pytest.raises(InputError, match="has changed since its first use"):
        cached_dataset("toy", root, "cpu", test_images=5)


def test_training_images_are_counted_without_those_for_validation(tmp_path):
    write(tmp_path, **arrays())
    write_folder(tmp_path, arrays(n_train=23), "files")
    (tmp_path / "files/train/a/notes.txt").write_text("")
    assert training_images("toy", tmp_path) == 40 and training_images("files", tmp_path) == 19
    assert training_images("digits", tmp_path) is None
    (tmp_path / "bad.npz").write_text("")
    assert training_images("bad", tmp_path) is None


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("first_use", [True, False])
def test_damage_to_a_dataset_is_refused_or_harmless(save_npz, first_use, tmp_path):
    path = tmp_path / "toy.npz"
    save_npz(path, **arrays(30, 9, (5, 5), 3))
    good, expected = path.read_bytes(), load_dataset("toy", tmp_path)
    refused = 0
    for content in damaged(good, 300, 30):
        path.write_bytes(content)
        if first_use:
            (tmp_path / "toy.sha256").unlink(missing_ok=True)
        try:
            data = load_dataset("toy", tmp_path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            for name in ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"):
                assert torch.equal(getattr(data, name), getattr(expected, name))
            assert data.checksum == expected.checksum
    assert refused > 150


def test_header_that_asks_for_fewer_bytes_is_refused(tmp_path):
    np.savez(tmp_path / "toy.npz", **arrays(30, 9, (5, 5), 3))
    content = (tmp_path / "toy.npz").read_bytes()
    for shape in (b"(30, 5, 5)", b"(9, 5, 5)"):
        assert content.count(shape) == 1
        content = content.replace(shape, shape.replace(b"5, 5", b"4, 5"))
    (tmp_path / "toy.npz").write_bytes(content)
    with pytest.raises(InputError, match="x_train.npy is damaged"):
        load_dataset("toy", tmp_path)


def test_changed_dataset_is_refused(tmp_path):
    np.savez(tmp_path / "toy.npz", **arrays(30, 9, (5, 5), 3))
    checksum = load_dataset("toy", tmp_path).checksum
    assert (tmp_path / "toy.sha256").read_text() == f"{checksum}\n"
    changed = arrays(30, 9, (5, 5), 3)
    changed["y_test"][0] = 1
    np.savez(tmp_path / "toy.npz", **changed)
    with pytest.raises(InputError, match="toy.npz has changed since its first use") as error:
        load_dataset("toy", tmp_path)
    assert str(tmp_path / "toy.sha256") in sentence(error)
    (tmp_path / "toy.sha256").unlink()
    assert load_dataset("toy", tmp_path).checksum != checksum


def test_hostile_dataset_is_refused(tmp_path):
    for content in payloads(tmp_path / "ran"):
        (tmp_path / "toy.npz").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as an .npz file"):
            load_dataset("toy", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("side", [64, 192])
def test_loading_takes_no_more_memory_than_source_and_tensors(side, tmp_path):
    write(tmp_path, "many", **arrays(2_400, 600, shape=(side, side, 3)))
    script = f"""
import torch
from pathlib import Path
from rsslib import load_dataset
load_dataset("digits", {str(tmp_path)!r})
Path("/proc/self/clear_refs").write_text("5")
def peak(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1])
before = peak("VmRSS")
load_dataset("many", {str(tmp_path)!r}, resolution=64)
print(1024 * (peak("VmHWM") - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    source, tensors = (3_000 * 3 * size**2 for size in (side, 64))
    assert int(done.stdout) < 1.2 * (source + tensors) + 30e6
