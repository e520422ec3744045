"""A training step on 64 images, augmentation included: ours against the official package with PIL transforms."""

import statistics
from collections.abc import Callable

import numpy as np
import torch
from common import CUDA, SPACE, Ours, interleaved, options, report, subnets_of_sizes

from rsslib.samplers import Step

try:
    from official import Official
except ImportError as error:
    print(f"ours alone, since the official package's side cannot be imported ({error})")
    Official = None


def main() -> None:
    chosen = options(__doc__, rounds=15, threads=torch.get_num_threads())
    torch.set_num_threads(chosen.threads)  # of both sides
    rounds = chosen.rounds
    steps = 625 if CUDA else 1  # an epoch is captured as a whole
    ours, official, rows = Ours(steps), Official and Official(), []

    def sides(subnets: list[Step], distill: bool = False) -> dict[str, Callable[[], float]]:
        both = {"ours": lambda: ours.seconds(subnets), "official": lambda: official.seconds(subnets[0], distill)}
        return both if official else {"ours": both["ours"]}

    for size, archs in subnets_of_sizes().items():
        medians = [interleaved(sides([(arch,)] * steps), rounds) for arch in archs]
        rows.append(row(size, archs, medians))

    ours, rng = Ours(steps, distill=True), np.random.default_rng(1)
    draws = [tuple(SPACE.sample_arch(rng) for _ in range(4)) for _ in range(max(steps, 5))]
    epochs = [draws] if CUDA else [[four] for four in draws]
    medians = [interleaved(sides(epoch, distill=True), rounds, warm_up=1) for epoch in epochs]
    rows.append(row("4 uniform, distilled", [arch for four in draws for arch in four], medians))
    report(__doc__, rows, f"Medians of {rounds} interleaved rounds, over the subnets. {'CUDA graphs.' if CUDA else ''}")


def row(name: str, archs: list, medians: list[dict[str, float]]) -> dict:
    result = {"subnet": name, "MFLOPs": np.mean([SPACE.macs(arch) for arch in archs]) / 1e6}
    for side in medians[0]:
        result[f"{side} ms"] = 1e3 * statistics.median(m[side] for m in medians)
    if "official ms" in result:
        result["ours / official"] = result["ours ms"] / result["official ms"]
    return result


if __name__ == "__main__":
    main()
