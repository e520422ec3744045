"""A training step on 64 images, one by one and as CUDA graphs, in every precision; what captures and memory take.

Milliseconds a step: of an epoch taken one by one, with augmentation; of an epoch that replays its graphs; of what that
prepares, augmentation above all; and of the part that slices and masks do differently, replayed. A capture is one an
epoch where all steps have the same subnet.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import (
    CUDA,
    DEVICE,
    SPACE,
    Ours,
    options,
    report,
    say,
    simulated_where_needed,
    subnets_of_sizes,
    timed,
    used_memory,
)

from rsslib.device import own_stream
from rsslib.errors import PRECISIONS
from rsslib.samplers import Step


def main() -> None:
    few = {"steps": 2, "singly": 1, "draws": 0, "batch": 4}  # to rehearse on a CPU
    chosen = options(__doc__, **({"steps": 200, "singly": 50, "draws": 2, "batch": 64} if CUDA else few))
    rows, before = [], used_memory()
    rng = np.random.default_rng(1)
    draws = [tuple(SPACE.sample_arch(rng) for _ in range(4)) for _ in range(chosen.steps)]
    subnets = [(size, arch) for size, archs in subnets_of_sizes(chosen.draws).items() for arch in archs]
    with simulated_where_needed():
        for precision in PRECISIONS:
            settings = {"precision": precision, "batch": chosen.batch}

            def add(name: str, sides: "Sides", steps: list[Step], part=None, precision=precision, **more) -> None:
                used = {"MB": used_memory() - before, "MB kept": kept_memory()}
                rows.append(say({"precision": precision, "subnet": name} | more | sides.measure(steps, part) | used))

            sides = Sides(chosen.singly, chosen.steps, distill=False, **settings)
            for size, arch in subnets if CUDA else subnets[:1]:
                part = partial(sides.graphed.executor.sliced, arch, 1)
                add(size, sides, [(arch,)] * chosen.steps, part, MFLOPs=SPACE.macs(arch) / 1e6)
            if CUDA or precision == "fp32":
                add("drawn, masked", sides, [step[:1] for step in draws], partial(sides.graphed.executor.masked, 1))
            sides.close()
            if CUDA or precision == "fp32":
                sides = Sides(chosen.singly, chosen.steps, distill=True, **settings)
                add("PS: four, distilled", sides, draws)
                sides.close()
    report(__doc__, rows, "MB: in use by the driver's count, above what the process began with; and kept by PyTorch.")


class Sides:
    """A stage's steps one by one and as graphs."""

    def __init__(self, singly: int, steps: int, **settings):
        self.singly, self.graphed = Ours(singly, graphs=False, **settings), Ours(steps, graphs=True, **settings)

    def close(self) -> None:
        with own_stream(DEVICE):
            self.graphed.executor.close()

    def measure(self, subnets: list[Step], part: Callable[[], object] | None) -> dict:
        """Milliseconds of each kind, for epochs of these steps; `part` is what slices and masks do differently."""
        executor, n, result = self.graphed.executor, self.graphed.steps, {}
        for name, side in (("one by one", self.singly), ("replayed", self.graphed)):
            steps = subnets[: side.steps]
            if CUDA or side is self.graphed:
                side.seconds(steps)  # to warm up, and to capture
            result[name] = 1e3 * side.seconds(steps)
        with own_stream(DEVICE):
            drawn, same = (*self.graphed.draw(), [0.0] * n, [1.0] * n), len(set(subnets)) == 1
            result["prepared"] = 1e3 * timed(lambda: prepare(executor, subnets, same, drawn)) / n
            if same:
                result["a capture"] = 1e3 * captured(executor, partial(executor.whole_step, subnets[0]))[1]
            if part is not None:
                graph, _ = captured(executor, part)
                graph.replay()
                result["the part"] = 1e3 * timed(lambda: [graph.replay() for _ in range(n - 1)]) / (n - 1)
            executor.drop_graphs()  # which share a workspace with those captured here
        return result


def prepare(executor, subnets: list[Step], same: bool, drawn: tuple) -> None:
    """Prepare an epoch, with the images of all its steps."""
    executor.prepare(subnets, same, *drawn)
    for step in range(executor.ring, executor.full_steps, executor.ring):
        executor.fill(step)


def captured(executor, function: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, float]:
    """A graph, and the seconds that capturing it took, median; the others are gone before it is captured."""
    function.__name__ = "part of a step"  # for the sentence if that fails
    graph, seconds = None, []
    for _ in range(3 if CUDA else 1):
        del graph
        began = time.perf_counter()
        graph = executor.capture(function)
        seconds.append(time.perf_counter() - began)
    return graph, statistics.median(seconds)


def kept_memory() -> float:
    return torch.cuda.memory_reserved(DEVICE) / 1e6 if CUDA else 0.0


if __name__ == "__main__":
    main()
