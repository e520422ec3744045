"""Made-up results tables whose medians, differences and speed-ups are known."""

import pandas as pd

BUCKETS = (4.0, 8.0, 12.0)
OFFSETS = (-1.0, 0.0, 3.0)  # of three subnets from their bucket's median
MEDIANS = {"ofa": (40.0, 45.0, 50.0), "rss": (50.0, 51.0, 52.0), "rss-short": (47.0, 45.0, 48.0)}
SECONDS = {"ofa": 600.0, "rss": 300.0, "rss-short": 100.0}


def made_up(datasets=("cifar100",), methods=tuple(MEDIANS), seeds=(0,), medians=MEDIANS, backbone="mobilenet_v3"):
    """A population with these bucket medians, each seed's shifted by its number, and times."""
    population, times = [], []
    for dataset in datasets:
        for method in methods:
            for seed in seeds:
                keys = {"dataset": dataset, "backbone": backbone, "method": method, "seed": seed}
                clock = {"training_seconds": SECONDS.get(method, 500.0) + 10 * seed, "evaluation_seconds": 1.0}
                times.append(keys | clock | {"hardware": "Abacus", "executor": "eager"})
                for bucket, median in zip(BUCKETS, medians.get(method, MEDIANS["ofa"]), strict=True):
                    for i, offset in enumerate(OFFSETS):
                        size = {"bucket": bucket, "subnet": i, "mflops": bucket + offset / 10}
                        population.append(keys | size | {"accuracy": median + offset + seed})
    return pd.DataFrame(population), pd.DataFrame(times)
