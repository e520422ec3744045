"""rsslib.data.packing: packed images are those of the files, and training on them needs little memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, sentence
from PIL import Image

from rsslib.data import packing
from rsslib.data.augmentation import augment, draw_augmentation
from rsslib.data.dataset import load_dataset
from rsslib.data.packing import pack
from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.trainer import start, train

TENSORS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")


def make_photos(folder, train=24, test=6):
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("test", test)):
        for i in range(n):
            path = folder / split / "abc"[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*rng.integers(30, 90, 2), 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the dataset photos, and packed at 32 and at 64 pixels."""
    root = tmp_path_factory.mktemp("data")
    make_photos(root / "photos")
    for side in (32, 64):
        assert pack(root / "photos", side) == root / f"photos-{side}"
    return root


def test_packed_images_are_those_of_the_files_to_the_byte(root):
    files, packed = (load_dataset(name, root, resolution=64) for name in ("photos", "photos-64"))
    assert packed.mapped and not files.mapped and packed.checksum == files.checksum
    for name in TENSORS:
        ours, theirs = (getattr(data, name) for data in (packed, files))
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride(), name
    batches = torch.randperm(len(files.y_train)).split(3)
    both = zip(packed.read_ahead(batches), files.read_ahead(batches), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in both)


def weights_after_training(data):
    space = SearchSpace(TINY, classes=3, resolution=data.resolution)
    method = one_stage("rss", 1, Uniform(), batch_size=4)
    state = train(start(space, method, 0), method, data, 0, progress=False)
    return state.supernet.state_dict()


def test_training_on_packed_images_gives_the_same_weights(root):
    ours, theirs = (weights_after_training(load_dataset(name, root)) for name in ("photos", "photos-32"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_crops_come_from_the_packed_side_and_others_are_resized(root):
    packed, files = load_dataset("photos-64", root, resolution=32), load_dataset("photos", root, resolution=32)
    assert (packed.side, packed.resolution) == (64, 32) and packed.x_test.shape == files.x_test.shape
    assert packed.checksum != files.checksum  # other pixels
    weights_after_training(packed)


def test_crops_are_resized_with_antialias_as_torch_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 3, 96, 96), generator=generator, dtype=torch.uint8)
    p = draw_augmentation(40, generator, 96)
    p[5:7] = 1  # brightness and saturation
    for flip in (False, True):
        p[4] = flip
        out = augment(x, p, None, None, 32)
        for i, (top, left, height, width) in enumerate(p[:4].T.long()):
            crop = x[i : i + 1, :, top : top + height, left : left + width].double() / 255
            expected = F.interpolate(crop, (32, 32), mode="bilinear", antialias=True)[0]
            expected = expected.flip(2) if flip else expected
            torch.testing.assert_close(out[i].double(), expected, rtol=0, atol=1e-5)


def test_stopped_packing_resumes(tmp_path, monkeypatch):
    folder = make_photos(tmp_path / "photos")
    monkeypatch.setattr(packing, "CHUNK", 5)
    bar = packing.progress_bar

    def stopping(**settings):
        shown = bar(**settings)
        shown.update = lambda n: (_ for _ in ()).throw(KeyboardInterrupt)
        return shown

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "progress_bar", stopping)
        pack(folder, 32)
    (half,) = (path for path in tmp_path.glob(".photos-32.*") if path.is_dir())
    assert not (tmp_path / "photos-32").exists()
    images = np.load(half / packing.DECODED, mmap_mode="r+")
    images[0] = 7  # shows that it is not decoded again
    images.flush()
    pack(folder, 32)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"photos", "photos-32"}
    packed = np.load(tmp_path / "photos-32" / "images.npy")
    assert len(packed) == 30 and (packed == 7).all((1, 2, 3)).sum() == 1


@pytest.mark.parametrize("name", ["images.npy", "rows.npz"])
def test_damaged_packed_file_is_refused(name, root, tmp_path):
    (tmp_path / "photos-32").mkdir()
    for path in (root / "photos-32").iterdir():
        content = path.read_bytes()
        (tmp_path / "photos-32" / path.name).write_bytes(content[: len(content) // 2] if path.name == name else content)
    with pytest.raises(InputError) as error:
        load_dataset("photos-32", tmp_path)
    assert "pack its images again" in sentence(error)


@pytest.mark.parametrize(("side", "said"), [(32, "photos-32 exists"), (16, "side is 16"), (32.5, "side is 32.5")])
def test_packing_is_refused_in_a_sentence(side, said, root):
    with pytest.raises(InputError) as error:
        pack(root / "photos", side)
    assert said in sentence(error)


MEMORY = """
import re, sys
from helpers import TINY
import torch
from rsslib.data.dataset import load_dataset
from rsslib.methods import one_stage
from rsslib.samplers import Successive
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps
from rsslib.trainer import start, train

torch.set_num_threads(1)
most = 0
class Watched(EagerSteps):
    def train_step(self, *arguments):
        global most
        with open("/proc/self/status") as status:
            most = max(most, int(re.search(r"RssAnon:\\s+(\\d+)", status.read())[1]))
        return super().train_step(*arguments)

data = load_dataset("big-128", sys.argv[1])
method = one_stage("smallest", 1, Successive(("smallest",)), batch_size=64)
space = SearchSpace(TINY, classes=2)
train(start(space, method, 0), method, data, 0, progress=False, executor=Watched)
print(most * 1024)
"""


@pytest.mark.long
def test_training_on_a_file_three_times_a_limit_stays_below_the_limit(tmp_path):
    limit = 640 * 2**20  # of which half are libraries
    n = 3 * limit // (128 * 128 * 3)
    folder, rng = tmp_path / "big-128", np.random.default_rng(0)
    folder.mkdir()
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, 128, 128, 3))
    for start_row in range(0, n, 1000):
        images[start_row : start_row + 1000] = rng.integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
    images.flush()
    keys = np.array([b"%016d" % i for i in range(n)])
    np.savez(folder / "rows.npz", y=np.arange(n) % 2, keys=keys, train=n - 100, classes=np.array(["a", "b"]))
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit
    print(f"anonymous memory {int(done.stdout) / 2**20:.0f} MiB, file {images.nbytes / 2**20:.0f} MiB")
