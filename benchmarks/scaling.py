"""How the cost of RSS grows with epochs, training images and evaluated subnets."""

import time

from common import CUDA, DEVICE, SPACE, options, random_data, report

from rsslib.device import keep_freed_memory
from rsslib.evaluate import evaluate_population
from rsslib.population import sample_population
from rsslib.trainer import start, train
from rsstudy.catalogue import build

IMAGES = 40_000 if CUDA else 640


def cost(epochs: int, images: int, subnets: int) -> tuple[float, float]:
    """Seconds of training and of evaluation on 2,000 test images."""
    data, method = random_data(images, 2000), build("rss-short", epochs, 1)
    state = train(start(SPACE, method, 0, DEVICE), method, data, 0, progress=False)
    population = sample_population(SPACE, max(1, subnets // len(SPACE.backbone.buckets)))
    began = time.perf_counter()
    evaluate_population(state.supernet.eval(), population, data, progress=False)
    return state.seconds, time.perf_counter() - began


def main() -> None:
    largest = options(__doc__, factor=4).factor
    keep_freed_memory()
    cost(1, IMAGES, 6)  # warm up
    rows = []
    for what in ("epochs", "images", "subnets"):
        for factor in (1, 2, largest):
            sizes = {"epochs": 2, "images": IMAGES, "subnets": 6}
            sizes[what] *= factor
            training, evaluation = cost(**sizes)
            rows.append(
                {
                    "grows": what, **sizes, "training s": training, "evaluation s": evaluation,
                    "ms a step": 1e3 * training / (sizes["epochs"] * sizes["images"] / 64),
                    "s a subnet": evaluation / sizes["subnets"],
                }
            )  # fmt: skip
    report(__doc__, rows, "Subnets differ from epoch to epoch, and so does their cost.")


if __name__ == "__main__":
    main()
