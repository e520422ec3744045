"""Throughput of RSS and of PS's last stage against the number of runs at once: threads on CUDA, processes on a CPU.

Last come as many runs as before twice more, for what of their memory stays.
"""

import argparse
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import torch
from common import CUDA, DEVICE, SPACE, random_data, report, say, used_memory

from rsslib.device import keep_freed_memory
from rsslib.trainer import start, train
from rsstudy.catalogue import build


def work(
    name: str, seed: int, threads: int | None, images: int, epochs: int, barrier
) -> tuple[float, float, int, float]:
    """Train one run; returns when it began and ended its epochs after the first, its subnet-images and most MB used."""
    if threads:
        torch.set_num_threads(threads)
        keep_freed_memory()
    method = build(name, epochs, 410)
    stage = replace(method.stages[-1], epochs=epochs, distill=False)
    method = replace(method, stages=(stage,), teacher=None)
    data, times, used = random_data(images), [], []

    def after_epoch(state):
        used.append(used_memory())
        if not times and barrier is not None:
            barrier.wait()  # all runs have warmed up
        times.append(time.time())

    train(start(SPACE, method, seed, DEVICE), method, data, seed, after_epoch, progress=False)
    return times[0], times[-1], (epochs - 1) * images * stage.sampler.count, max(used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    at_once = (1, 2, 4, 8) if CUDA else (1, os.cpu_count() or 1)
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=at_once, help="numbers of runs (default: %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", default=("rss", "ofa"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=40_000 if CUDA else 640, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=4 if CUDA else 3, help="default: %(default)s")
    chosen = parser.parse_args()
    again = [max(chosen.at_once)] * 2 if CUDA else []
    rows = []
    for jobs in (*chosen.at_once, *again):
        for name in chosen.methods:
            rows.append(say(measure(name, jobs, chosen.images, chosen.epochs)))
    note = f"Epochs of {chosen.images:,} images, the first not counted; ofa: four subnets a step, no teacher."
    report(__doc__, rows, note)


def measure(name: str, jobs: int, images: int, epochs: int) -> dict:
    if CUDA:
        barrier = threading.Barrier(jobs, timeout=60)
        with ThreadPoolExecutor(jobs) as pool:
            results = list(pool.map(lambda seed: work(name, seed, None, images, epochs, barrier), range(jobs)))
    else:
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, ProcessPoolExecutor(jobs, context) as pool:
            barrier, threads = manager.Barrier(jobs), max(1, (os.cpu_count() or 1) // jobs)
            futures = [pool.submit(work, name, seed, threads, images, epochs, barrier) for seed in range(jobs)]
            results = [future.result() for future in futures]
    began, ended, done, used = zip(*results, strict=True)
    rate = sum(done) / (max(ended) - min(began))
    row = {"method": name, "runs at once": jobs, "subnet-images a second": rate}
    return row | ({"MB, most": max(used), "MB, left": used_memory()} if CUDA else {})


if __name__ == "__main__":
    main()
