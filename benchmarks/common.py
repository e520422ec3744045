"""What the benchmarks share: a stage's steps as the trainer takes them, fair timing, one table each.

They need what training needs (docs/cuda.md); the official package is in `official.py`.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import torch

from rsslib.cuda.graphs import GraphedSteps
from rsslib.data.augmentation import draw_augmentation
from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset
from rsslib.device import CAPTURING, choose_device, keep_freed_memory, own_stream, processor_name, set_precision
from rsslib.files import project_folder
from rsslib.methods import BATCH_SIZE
from rsslib.samplers import Step
from rsslib.space import Arch, SearchSpace
from rsslib.steps import EagerSteps
from rsslib.trainer import enter_stage, start
from rsstudy.catalogue import build

SPACE = SearchSpace("mobilenet_v3")
DEVICE = choose_device("auto")
CUDA = DEVICE.type == "cuda"
set_precision("fp32")  # for both sides


def random_data(train: int, test: int = 2, device: torch.device = DEVICE, resolution: int = 32) -> Dataset:
    """Images [n, 3, R, R] of 100 classes; what they show does not matter for time or memory."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(0, 256, (n, resolution, resolution, 3), dtype=torch.uint8, generator=generator)
        return x.permute(0, 3, 1, 2).to(device), torch.randint(0, 100, (n,), generator=generator).to(device)

    classes = tuple(map(str, range(100)))
    return Dataset("random", *split(train), *split(2), *split(test), classes, IMAGENET_MEAN, IMAGENET_STD, "random")


def subnets_of_sizes(draws: int = 5) -> dict[str, list[Arch]]:
    """The subnets that are timed; "uniform" are draws as RSS makes them."""
    rng = np.random.default_rng(0)
    named = {name: [getattr(SPACE, name)] for name in ("smallest", "middle", "largest")}
    return named | {"uniform": [SPACE.sample_arch(rng) for _ in range(draws)]}


class Ours:
    """A stage's executor as the trainer uses it, on epochs of `steps` steps."""

    def __init__(
        self,
        steps: int,
        distill: bool = False,
        graphs: bool = CUDA,
        precision: str = "fp32",
        batch: int = BATCH_SIZE,
    ):
        method = replace(build("ofa" if distill else "rss", 1, 410), batch_size=batch)
        self.stage = method.stages[-1 if distill else 0]
        executor = GraphedSteps if graphs else EagerSteps
        with own_stream(DEVICE):
            self.data, self.generator = random_data(steps * batch), torch.Generator(DEVICE).manual_seed(0)
            state = start(SPACE, method, 0, DEVICE, precision)
            enter_stage(state, method, self.stage, 0)
            self.steps, self.executor = steps, executor(state, method, self.stage, self.data, self.generator)

    def draw(self) -> tuple:
        """An epoch's order of images and their augmentation."""
        n = len(self.data.x_train)
        order = torch.randperm(n, generator=self.generator, device=DEVICE)
        return order, draw_augmentation(n, self.generator)

    def seconds(self, subnets: list[Step]) -> float:
        """Seconds a step of an epoch with these subnets, drawing and augmenting included, and capturing on CUDA."""

        def epoch() -> None:
            with own_stream(DEVICE):
                self.executor.epoch(subnets, *self.draw(), [1e-4] * self.steps, [1.0] * self.steps).sum().item()

        return timed(epoch) / self.steps


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, with the device's work."""
    began = time.perf_counter()
    function()
    if CUDA:
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter() - began


def simulated_where_needed() -> AbstractContextManager:
    """On a CPU, the tests' simulator of CUDA graphs, so that what is written for a GPU can be rehearsed."""
    if CUDA:
        return nullcontext()
    sys.path.insert(0, str(project_folder() / "tests" / "cuda"))
    from simulator import simulated_graphs

    return simulated_graphs()


def replayed(function: Callable[[], object], calls: int = 20, rounds: int = 5) -> float:
    """Seconds of one call as part of a CUDA graph, so of its kernels without their launches; median of the rounds.

    Call it in `own_stream`. On a CPU, where only the simulator is tried, it takes few calls.
    """
    calls, rounds = (calls, rounds) if CUDA else (1, 1)
    for _ in range(3 if CUDA else 1):
        function()
    graph = torch.cuda.CUDAGraph()
    with CAPTURING:
        graph.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
        try:
            for _ in range(calls):
                function()
        finally:
            graph.capture_end()
    graph.replay()
    seconds = statistics.median(timed(graph.replay) for _ in range(rounds))
    with CAPTURING:
        graph.reset()
    return seconds / calls


def used_memory() -> float:
    """MB in use: on CUDA of the whole device, by the driver; on a CPU of this process."""
    if CUDA:
        free, total = torch.cuda.mem_get_info(DEVICE)
        return (total - free) / 1e6
    return psutil.Process().memory_info().rss / 1e6


def interleaved(functions: dict[str, Callable[[], float]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median of the seconds that each function returns; a round calls all, so that a disturbance hits all."""
    keep_freed_memory()
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: 1 if i % 2 else -1]:
            seconds[name].append(functions[name]())
    return {name: statistics.median(values) for name, values in seconds.items()}


def options(description: str, **defaults: int) -> argparse.Namespace:
    """Command line of a benchmark: whole numbers with defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="default: %(default)s")
    return parser.parse_args()


def say(row: dict) -> dict:
    """Print a row as soon as it is known, since a time limit may end the process; returns it."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps(rounded), flush=True)
    return row


def hardware() -> str:
    return torch.cuda.get_device_name(DEVICE) if CUDA else f"{processor_name()}, threads: {torch.get_num_threads()}"


def report(title: str, rows: list[dict], note: str = "") -> None:
    """Print one table, with the machine that it was measured on."""
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    print(f"{title}\n{hardware()}; {platform.system()} {platform.machine()}; {versions}\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"\n{note}\n" if note else "", flush=True)
