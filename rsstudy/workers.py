"""Runs at once: how many a machine has room for, and the processes or threads that train them."""

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import torch

from rsslib.device import cores, free_memory, keep_freed_memory
from rsslib.errors import InputError
from rsslib.methods import Method
from rsslib.progress import start_worker
from rsslib.space import RESOLUTION
from rsstudy.plan import Run

GENEROUS = 3 * 2**29  # bytes of a run's process on a CPU


# --- room -------------------------------------------------------------------------------------------------------------


def free_jobs(device: torch.device, runs: Iterable[Run] = ()) -> int:
    """The number of these runs that fit into free memory at once: on CUDA at most 8, on a CPU at most one per core.

    Runs on single threads do more together than one run on all cores.
    """
    most = cores() if device.type == "cpu" else min(8, cores() // 2)
    each = (memory_of_a_run(device.type, run.method, run.resolution) for run in runs)
    return jobs_that_fit(free_memory(device), most, max(each, default=GENEROUS))


def jobs_that_fit(memory: float, most: int, each: int = GENEROUS) -> int:
    """The number of runs of `each` bytes that fit into `memory`: at least one, at most `most`."""
    return max(1, min(most, int(memory) // each))


def step_bytes(method: Method, resolution: int = RESOLUTION) -> int:
    """Bytes that a training step of the largest subnet allocates.

    Measured on a CPU with 64 images: 347 MB at 32 pixels, 850 at 64, 1,651 at 96, so half of it grows with an image's
    area. A teacher adds 2 MB per image at 32 pixels, from the sizes of its tensors.
    """
    image = 7.5 * 2**20 if any(stage.distill for stage in method.stages) else 5.5 * 2**20
    return int(method.batch_size * image * (1 + resolution**2 / RESOLUTION**2) / 2)


def memory_of_a_run(kind: str, method: Method, resolution: int = RESOLUTION) -> int:
    """Bytes that a run needs, a generous estimate: on a CPU of its process, on CUDA of the device.

    On CUDA it comes from the sizes of tensors and no device has confirmed it: 0.5 GB for an epoch's images, 0.6 to
    augment 8,000 at once, 0.3 for networks, libraries and graphs, or later 2 to evaluate 5,000 images at once, plus a
    step. On a CPU the whole was measured at 32 pixels.
    """
    step = step_bytes(method, resolution)
    return GENEROUS + step - step_bytes(method) if kind == "cpu" else 2 * 2**30 + step


# --- workers ----------------------------------------------------------------------------------------------------------

# A worker calls work(report, failed, items, *arguments), which goes through all items and takes those that are free (a
# lock on each says so). It reports (index, error or None); `failed[index]` is set for the other workers.
Work = Callable[..., None]
Event = tuple[int, Exception | None]


def in_threads(number: int, work: Work, items: Sequence, *arguments: Any) -> Generator[Event]:
    """Call `work` in threads that share a GPU; yields what they report.

    `work` gets an event as its last argument, which is set to stop it. If the caller is interrupted, threads are asked
    to stop and awaited.
    """
    events, failed, stop = queue.Queue[Event](), [0] * len(items), threading.Event()
    call = (lambda index, error: events.put((index, error)), failed, items, *arguments, stop)
    threads = [threading.Thread(target=work, args=call) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield from _reported(events, lambda: any(thread.is_alive() for thread in threads))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def in_processes(number: int, work: Work, items: Sequence, *arguments: Any) -> Generator[Event]:
    """Call `work` in new processes, each with a line for progress bars; yields what they report.

    Ctrl-C reaches all processes of a terminal. The workers ignore it, so none prints a stack; this process ends them.
    What they write survives being killed. Raises KeyboardInterrupt if one was told to end, and InputError if one was
    killed, ended otherwise, or cannot be given `items`.
    """
    context = multiprocessing.get_context("spawn")
    events, failed, lock = context.Queue(), context.Array("b", len(items), lock=False), context.RLock()
    call = (events, work, failed, items, arguments)
    workers = [context.Process(target=_begin, args=(line, lock, *call)) for line in range(number)]

    def busy() -> bool:
        if ended := [worker for worker in workers if worker.exitcode]:
            raise _why_broken(ended, number)
        return any(worker.exitcode is None for worker in workers)

    try:
        _start(workers)
        yield from _reported(events, busy)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()


def _start(workers: Sequence[BaseProcess]) -> None:
    try:
        with _no_interrupts(), _no_script():
            for worker in workers:
                worker.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"these runs cannot be sent to other processes ({error}): define their samplers in a module, or give jobs=1"
        ) from None


def _reported(events: Any, busy: Callable[[], bool]) -> Generator[Event]:
    """Yield events until the workers have ended and the queue is empty."""
    while True:
        working = busy()
        with suppress(queue.Empty):
            while True:
                yield events.get(timeout=0.2)
        if not working:
            return


def _begin(line: int, lock: Any, events: Any, work: Work, failed: Any, items: Sequence, arguments: tuple) -> None:
    """The body of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_worker(line, lock)
    keep_freed_memory()
    work(lambda index, error: events.put((index, _sendable(error))), failed, items, *arguments)


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or one with its text if it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _why_broken(ended: Sequence[BaseProcess], number: int) -> BaseException:
    """The exception for workers that were ended."""
    time.sleep(0.1)  # the others of a group that gets a signal end too
    statuses = {worker.exitcode for worker in ended}
    if statuses == {-signal.SIGTERM}:
        return KeyboardInterrupt()
    if -signal.SIGKILL in statuses:
        return InputError(
            "a worker process was killed, as the system does when memory runs out: choose fewer jobs at once than "
            f"{number}; the same call resumes from the last checkpoints"
        )
    return InputError(
        f"a worker process ended with exit status {max(statuses, key=str)}, for a reason that it may have shown above: "
        "give jobs=1 to see it better; the same call resumes from the last checkpoints"
    )


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even while they import; this process does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes started inside do not execute the caller's script, so it needs no `if __name__ == "__main__"`."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
