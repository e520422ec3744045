"""Training on a packed dataset, which is mapped from disk, against the same images in memory: images per second.

    python benchmarks/packed.py --side 64

Epochs of RSS alternate, so that other load on the machine hits both alike.
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import options, report
from PIL import Image

from rsslib import SearchSpace, load_dataset, start, train
from rsslib.data.packing import pack
from rsslib.device import keep_freed_memory
from rsstudy.catalogue import build


def write_images(folder: Path, images: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for number, noise in enumerate(rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)):
        place = folder / "train" / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(place / f"{number}.png", compress_level=0)


def main() -> None:
    chosen = options(__doc__, side=64, images=1000, rounds=5)
    keep_freed_memory()
    method, seconds = build("rss-short", 1, 410), {}
    with TemporaryDirectory() as root:
        write_images(Path(root, "noise"), chosen.images, chosen.side)
        names = {"in memory": "noise", "packed": pack(Path(root, "noise"), chosen.side).name}
        data = {kind: load_dataset(name, root, resolution=chosen.side) for kind, name in names.items()}
        space = SearchSpace("mobilenet_v3", classes=10, resolution=chosen.side)
        for number in range(chosen.rounds + 1):
            for kind, images in data.items():
                state = start(space, method, 0)
                began = time.perf_counter()
                train(state, method, images, 0, progress=False)
                if number:  # the first round warms up
                    seconds.setdefault(kind, []).append(time.perf_counter() - began)
        n = len(data["packed"].x_train)
    rates = {f"{kind} img/s": n / statistics.median(times) for kind, times in seconds.items()}
    row = {
        "side": chosen.side,
        "images": n,
        **rates,
        "packed / in memory": rates["packed img/s"] / rates["in memory img/s"],
    }
    report(__doc__, [row], f"Median of {chosen.rounds} epochs.")


if __name__ == "__main__":
    main()
