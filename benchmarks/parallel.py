"""Two processes on two cores against one process on two threads and on one: images per second of training steps.

    python benchmarks/parallel.py --resolution 32 --steps 12

Subnets are shared on OFA's width stage (four subnets per step), images on RSS. Rounds alternate, so that other load on
the machine hits all alike; even so, only ratios within one call mean something, and only on an idle machine.
"""

import os
import socket
import statistics
import time
from dataclasses import replace

import torch
from common import options, random_data, report
from torch.multiprocessing import get_context

from rsslib.device import keep_freed_memory
from rsslib.methods import Method, override
from rsslib.parallel import ParallelSteps, joined
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps
from rsslib.trainer import start, train
from rsstudy.catalogue import build


def methods() -> dict[str, Method]:
    """OFA's second width stage alone, without a teacher, and RSS."""
    ofa = build("ofa-no-distillation", 1, 410)
    stage = replace(ofa.stages[-1], epochs=1, first_epoch=0, schedule_epochs=None)
    return {"subnets, OFA's width stage": replace(ofa, stages=(stage,)), "images, RSS": build("rss-short", 1, 410)}


def work(rank: int, size: int, threads: int, port: int, resolution: int, images: int, orders, results) -> None:
    """Train one epoch of a method whenever one is ordered, and send the seconds; None ends it."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    data = random_data(images, resolution=resolution)
    space = SearchSpace("mobilenet_v3", classes=data.n_classes, resolution=resolution)
    with joined():
        while (method := orders.get()) is not None:
            if size > 1 and method.name.startswith("rss"):
                method = override(method, groups=size)
            state = start(space, method, 0)
            began = time.perf_counter()
            train(state, method, data, 0, progress=False, executor=ParallelSteps if size > 1 else EagerSteps)
            results.put(time.perf_counter() - began)


def main() -> None:
    chosen = options(__doc__, resolution=32, steps=12, rounds=3, batch=64)
    images = chosen.steps * chosen.batch
    context, kinds = get_context("spawn"), {"two processes": (2, 1), "two threads": (1, 2), "one thread": (1, 1)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    orders = {kind: [context.SimpleQueue() for _ in range(size)] for kind, (size, _) in kinds.items()}
    results, processes = context.SimpleQueue(), []
    for kind, (size, threads) in kinds.items():
        for rank in range(size):
            arguments = (rank, size, threads, port, chosen.resolution, images, orders[kind][rank], results)
            processes.append(context.Process(target=work, args=arguments))
            processes[-1].start()

    def seconds(kind: str, method: Method | None) -> float:
        for queue in orders[kind]:
            queue.put(method)
        return max(results.get() for _ in orders[kind]) if method else 0.0

    rows = []
    for what, method in methods().items():
        method = replace(method, batch_size=chosen.batch)
        measured: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(chosen.rounds + 1):
            for kind in kinds:
                measured[kind].append(seconds(kind, method))
        # the first round warms up
        rates = {f"{kind} img/s": images / statistics.median(times[1:]) for kind, times in measured.items()}
        ratio = rates["two processes img/s"] / rates["two threads img/s"]
        rows.append({"shared": what, "pixels": chosen.resolution, **rates, "processes / threads": ratio})
    for kind in kinds:
        seconds(kind, None)
    for process in processes:
        process.join()
    report(__doc__, rows, f"Median of {chosen.rounds} rounds of {chosen.steps} steps of {chosen.batch} images.")


if __name__ == "__main__":
    main()
