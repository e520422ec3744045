"""Packing: image files decoded once into a file that training maps into memory, however large it is."""

import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from rsslib.data.images import fit, read_image
from rsslib.data.readers import IMAGES, ROWS, fingerprint, hash_rows, image_files
from rsslib.device import cores
from rsslib.errors import InputError, check_number
from rsslib.files import folder_of, locked, make_folder, sha256, system_errors
from rsslib.progress import progress_bar

CHUNK = 256  # images between two notes of what is done
DECODED, KEYS = "decoded.npy", "keys.npy"  # in the order of the files


@system_errors()
def pack(folder: str | Path, side: int, processes: int | None = None, progress: bool = True) -> Path:
    """Decode `folder`/train/<class>/* and test/<class>/* into the dataset `folder`-`side` beside it; returns its path.

    It holds `images.npy`, uint8 [N, side, side, C], training images first, in the order in which training takes them;
    and `rows.npz` with labels, hashes of the original pixels, the number of training images and the names of the
    classes. A call that is stopped resumes. Meanwhile the disk holds the images twice. Raises InputError if files
    cannot be read, there is no room, or the dataset exists.
    """
    folder = folder_of(folder, "folder").absolute()
    target = folder.with_name(f"{folder.name}-{check_number(side, 'side', 32, 1024, whole=True)}")
    if target.exists():
        raise InputError(f"{target} exists: remove it to pack {folder} again")
    files, classes, grey = image_files(folder)
    if not any(split == "test" for split, _, _ in files):
        raise InputError(f"{folder / 'test'} holds no images: put image files in {folder / 'test'}/<class>/")
    shape = (len(files), side, side, 1 if grey else 3)
    state = sha256(repr(fingerprint(folder.name, folder.parent)).encode())[:16]
    half = make_folder(target.with_name(f".{target.name}.{state}"))
    with locked(target.with_name(f".{target.name}.lock")) as mine:
        if not mine:
            raise InputError(f"{target} is being packed by another process: wait for it")
        for path in target.parent.glob(f".{target.name}.*"):
            if path.is_dir() and path != half:  # of other files
                shutil.rmtree(path)
        if not (half / DECODED).exists():
            if shutil.disk_usage(half).free < 2 * np.prod(shape):
                raise InputError(f"{target} needs {2 * np.prod(shape) / 2**30:.2g} GiB: free some space on its disk")
            open_memmap(half / KEYS, "w+", "S16", shape[:1])
            open_memmap(half / DECODED, "w+", np.uint8, shape)
        paths = [path for _, _, path in files]
        starts = range(0, len(paths), CHUNK)
        deaf = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the workers by ending this process
        with (
            progress_bar(shown=progress, total=len(paths), unit="img", desc=f"pack {folder.name}") as bar,
            ProcessPoolExecutor(processes or cores(), get_context("spawn"), *deaf) as pool,
        ):
            decode = partial(_decode, half, grey)
            chunks = [pool.submit(decode, start, paths[start : start + CHUNK]) for start in starts]
            try:
                for chunk in chunks:
                    bar.update(chunk.result())
            finally:
                pool.shutdown(cancel_futures=True)
        _finish(half, files, classes)
        half.rename(target)
    return target


def _decode(half: Path, grey: bool, start: int, paths: list[Path]) -> int:
    """Write the pixels, then the hashes, of a chunk of images that has none yet; returns their number."""
    images, keys = (np.load(half / name, mmap_mode="r+") for name in (DECODED, KEYS))
    if not keys[start]:
        found = []
        for number, path in enumerate(paths, start):
            image = read_image(path, grey)[None]
            images[number] = fit(image, images.shape[1])[0]
            found.append(hash_rows(image))
        images.flush()
        keys[start : start + len(paths)] = np.concatenate(found)
        keys.flush()
    return len(paths)


def _finish(half: Path, files: list[tuple[str, str, Path]], classes: list[str]) -> None:
    """Write the images in order, and what is known of them; remove what lay in the order of the files."""
    images, keys = (np.load(half / name, mmap_mode="r") for name in (DECODED, KEYS))
    y = np.array([classes.index(name) for _, name, _ in files], dtype=np.int64)
    later = np.array([split == "test" for split, _, _ in files])
    order = np.lexsort((y, keys, later))
    ordered = open_memmap(half / IMAGES, "w+", images.dtype, images.shape)
    for start in range(0, len(order), CHUNK):
        part = slice(start, start + CHUNK)
        ordered[part] = images[order[part]]
    ordered.flush()
    np.savez(half / ROWS, y=y[order], keys=keys[order], train=np.sum(~later), classes=np.array(classes))
    for name in (DECODED, KEYS):
        os.remove(half / name)
