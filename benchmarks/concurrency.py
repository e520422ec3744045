"""Throughput of RSS and of PS's last stage against the number of runs at once: threads on CUDA, processes on a CPU."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import torch
from common import CUDA, DEVICE, SPACE, options, random_data, report

from rsslib.device import keep_freed_memory
from rsslib.trainer import start, train
from rsstudy.catalogue import build

IMAGES = 40_000 if CUDA else 640


def work(name: str, seed: int, threads: int | None, epochs: int, barrier) -> tuple[float, float, int]:
    """Train one run; returns when it began and ended its epochs after the first, and its subnet-images."""
    if threads:
        torch.set_num_threads(threads)
        keep_freed_memory()
    method = build(name, epochs, 410)
    stage = replace(method.stages[-1], epochs=epochs, distill=False)
    method = replace(method, stages=(stage,), teacher=None)
    data, times = random_data(IMAGES), []

    def after_epoch(state):
        if not times and barrier is not None:
            barrier.wait()  # all runs have warmed up
        times.append(time.time())

    train(start(SPACE, method, seed, DEVICE), method, data, seed, after_epoch, progress=False)
    return times[0], times[-1], (epochs - 1) * IMAGES * stage.sampler.count


def main() -> None:
    chosen = options(__doc__, most=8 if CUDA else os.cpu_count() or 1, epochs=4 if CUDA else 3)
    rows = []
    for name in ("rss", "ofa"):
        jobs = 1
        while jobs <= chosen.most:
            rows.append(measure(name, jobs, chosen.epochs))
            jobs *= 2
    report(__doc__, rows, f"Epochs of {IMAGES:,} images, the first not counted; ofa: four subnets a step, no teacher.")


def measure(name: str, jobs: int, epochs: int) -> dict:
    if CUDA:
        import threading

        barrier = threading.Barrier(jobs, timeout=300)
        with ThreadPoolExecutor(jobs) as pool:
            results = list(pool.map(lambda seed: work(name, seed, None, epochs, barrier), range(jobs)))
    else:
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, ProcessPoolExecutor(jobs, context) as pool:
            barrier, threads = manager.Barrier(jobs), max(1, (os.cpu_count() or 1) // jobs)
            futures = [pool.submit(work, name, seed, threads, epochs, barrier) for seed in range(jobs)]
            results = [future.result() for future in futures]
    began, ended, images = zip(*results, strict=True)
    rate = sum(images) / (max(ended) - min(began))
    return {"method": name, "runs at once": jobs, "subnet-images a second": rate}


if __name__ == "__main__":
    main()
