"""A training step on 64 images, augmentation included: ours against the official package with PIL transforms."""

import statistics

import numpy as np
import torch
from common import CUDA, SPACE, Official, Ours, interleaved, options, report, subnets_of_sizes


def main() -> None:
    chosen = options(__doc__, rounds=15, threads=torch.get_num_threads())
    torch.set_num_threads(chosen.threads)  # of both sides
    rounds = chosen.rounds
    steps = 625 if CUDA else 1  # an epoch is captured as a whole
    ours, official, rows = Ours(steps), Official(), []
    for size, archs in subnets_of_sizes().items():
        medians = []
        for arch in archs:
            functions = {
                "ours": lambda arch=arch: ours.seconds([(arch,)] * steps),
                "official": lambda arch=arch: official.seconds((arch,)),
            }
            medians.append(interleaved(functions, rounds))
        rows.append(row(size, archs, medians))

    ours, rng = Ours(steps, distill=True), np.random.default_rng(1)
    draws = [tuple(SPACE.sample_arch(rng) for _ in range(4)) for _ in range(max(steps, 5))]
    medians = []
    for four in draws[:1] if CUDA else draws:
        functions = {
            "ours": lambda four=four: ours.seconds(draws if CUDA else [four]),
            "official": lambda four=four: official.seconds(four, distill=True),
        }
        medians.append(interleaved(functions, rounds, warm_up=1))
    rows.append(row("4 uniform, distilled", [arch for four in draws for arch in four], medians))
    report(__doc__, rows, f"Medians of {rounds} interleaved rounds, over the subnets. {'CUDA graphs.' if CUDA else ''}")


def row(name: str, archs: list, medians: list[dict[str, float]]) -> dict:
    ours, official = (1e3 * statistics.median(m[which] for m in medians) for which in ("ours", "official"))
    mflops = np.mean([SPACE.macs(arch) for arch in archs]) / 1e6
    times = {"ours ms": ours, "official ms": official, "ours / official": ours / official}
    return {"subnet": name, "MFLOPs": mflops, **times}


if __name__ == "__main__":
    main()
