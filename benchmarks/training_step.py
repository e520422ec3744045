"""A training step on 64 images, augmentation included: ours, the official package, and one subnet trained alone."""

import math
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import CUDA, SPACE, Ours, interleaved, options, report, subnets_of_sizes

from rsslib.samplers import Step

try:
    from official import Official, plain
except ImportError as error:
    print(f"ours alone, since the official package's side cannot be imported ({error})")
    Official = None


def main() -> None:
    chosen = options(__doc__, rounds=15, threads=torch.get_num_threads())
    torch.set_num_threads(chosen.threads)  # of all sides
    rounds = chosen.rounds
    steps = 625 if CUDA else 1  # an epoch is captured as a whole
    others = {}
    if Official:
        others = {
            "official": Official(),
            "official, channels last": Official(torch.channels_last),
            "the same, our images": Official(torch.channels_last, pil=False),
        }
    rows, ours = [], Ours(steps)

    def sides(subnets: list[Step], distill: bool = False) -> dict[str, Callable[[], float]]:
        peers = dict(others)
        if Official and not distill:
            peers["one subnet alone, our images"] = plain(*subnets[0])
        functions = {name: partial(peer.seconds, subnets[0], distill) for name, peer in peers.items()}
        return {"ours": lambda: ours.seconds(subnets), **functions}

    def time_sides(size: str, steps_of: list[list[Step]], distill: bool = False) -> None:
        medians = [interleaved(sides(subnets, distill), rounds, 1) for subnets in steps_of]
        sizes = [SPACE.macs(arch) / 1e6 for subnets in steps_of for step in subnets for arch in step]
        ms = {name: 1e3 * statistics.median(m[name] for m in medians) for name in medians[0]}
        row = {"subnet": size, "MFLOPs": np.mean(sizes), "ours, ms": ms.pop("ours")}
        for name, value in (ms or {"none": math.nan}).items():
            rows.append(row | {"peer": name, "its ms": value, "ours / peer": row["ours, ms"] / value})

    for size, archs in subnets_of_sizes().items():
        time_sides(size, [[(arch,)] * steps for arch in archs])

    ours, rng = Ours(steps, distill=True), np.random.default_rng(1)
    draws = [tuple(SPACE.sample_arch(rng) for _ in range(4)) for _ in range(max(steps, 5))]
    time_sides("4 uniform, distilled", [draws] if CUDA else [[four] for four in draws], distill=True)
    report(__doc__, rows, f"Medians of {rounds} interleaved rounds, over the subnets. {'CUDA graphs.' if CUDA else ''}")


if __name__ == "__main__":
    main()
