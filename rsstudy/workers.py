"""What runs need of a machine's memory, how many it has room for, and what their records say of it."""

import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import numpy
import torch
import torchvision

from rsslib.device import cores, free_memory
from rsslib.errors import InputError
from rsslib.methods import Method
from rsslib.operators import kernels
from rsslib.progress import start_worker
from rsslib.space import RESOLUTION
from rsslib.steps import EagerSteps
from rsstudy.plan import Run, Settings

GENEROUS = 3 * 2**29  # bytes of a run's process on a CPU


def free_jobs(device: torch.device, runs: Iterable[Run] = ()) -> int:
    """How many of these runs the device has free memory for at once: on CUDA up to 8, on a CPU up to one for each core.

    Single threads do more together than one run on all cores, and are not held up by another program's turns.
    """
    most = cores() if device.type == "cpu" else min(8, cores() // 2)
    each = (memory_of_a_run(device.type, run.method, run.resolution) for run in runs)
    return jobs_that_fit(free_memory(device), most, max(each, default=GENEROUS))


def jobs_that_fit(memory: float, most: int, each: int = GENEROUS) -> int:
    """How many runs that need `each` so many bytes fit into `memory`: at least one, no more than `most`."""
    return max(1, min(most, int(memory) // each))


def step_bytes(method: Method, resolution: int = RESOLUTION) -> int:
    """Bytes that a training step of the largest subnet makes.

    On a CPU 64 images took 347 MB at 32 pixels, 850 at 64 and 1,651 at 96: half of it grows with an image's area. For a
    teacher another 2 MB an image at 32 pixels, from the sizes of its tensors.
    """
    image = 7.5 * 2**20 if any(stage.distill for stage in method.stages) else 5.5 * 2**20
    return int(method.batch_size * image * (1 + resolution**2 / RESOLUTION**2) / 2)


def memory_of_a_run(kind: str, method: Method, resolution: int = RESOLUTION) -> int:
    """Bytes that a run needs, generously: on a CPU of its process, on CUDA of the device.

    On CUDA an estimate from the sizes of tensors, which no device has confirmed. Whatever the method: 0.5 GB for an
    epoch's images, 0.6 to augment them 8,000 at once, 0.3 for networks, libraries and graphs; or, later, 2 to evaluate
    5,000 images at once; and what a step makes. On a CPU the whole is measured at 32 pixels, where a step is a part.
    """
    step = step_bytes(method, resolution)
    return GENEROUS + step - step_bytes(method) if kind == "cpu" else 2 * 2**30 + step


def executor_for(settings: Settings, device: torch.device) -> type:
    """What takes the steps of training: CUDA graphs on CUDA, unless the settings say otherwise."""
    if not settings.graphs_on(device.type):
        return EagerSteps
    from rsslib.cuda.graphs import GraphedSteps

    return GraphedSteps


def environment(device: torch.device, jobs: int = 1, precision: str = "fp32", graphs: bool | None = None) -> dict:
    """Versions, hardware and executor (how steps are run, in which precision, how many runs at once), for run.json."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, threads: {torch.get_num_threads()}"
    on_cuda = "eager" if graphs is False else "CUDA graphs"
    executor = on_cuda if device.type == "cuda" else "eager, compiled loops" if kernels() else "eager"
    executor += f", {precision}" if precision != "fp32" else ""
    # on CPUs, where times are those of the processor, it makes no difference
    executor += f", {jobs} runs at once" if jobs > 1 and device.type == "cuda" else ""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return {"hardware": name, "versions": {**versions, "torchvision": torchvision.__version__}, "executor": executor}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def worker_processes(number: int, initializer: Callable | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes, each with a line of its own for progress bars; `initializer()` starts them.

    Ctrl-C reaches all processes of a terminal. The workers ignore it, so that none prints a stack; this one ends them
    when the block raises KeyboardInterrupt. What they write survives being killed. The BrokenProcessPool of a worker
    that was ended leaves the block as KeyboardInterrupt if it was told to end, else as InputError.
    """
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()
    for line in range(number):
        lines.put(line)
    setup = (lines, context.RLock(), initializer)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(number, context, _start, setup) as pool:
        with _no_interrupts(), _no_script():
            for _ in range(number):
                pool.submit(os.getpid)
        workers = set(multiprocessing.active_children()) - others
        try:
            yield pool
        except KeyboardInterrupt:
            for process in workers:
                process.terminate()
            raise
        except BrokenProcessPool:
            pool.shutdown(cancel_futures=True)  # before that not all have ended
            if {process.exitcode for process in workers} == {0}:  # it is another pool that broke
                raise
            raise _why_broken(workers) from None
        except Exception:
            pool.shutdown(cancel_futures=True)  # who waits for these no longer wants the rest
            raise


def _why_broken(workers: set[BaseProcess]) -> BaseException:
    """What to raise for a pool of which one was ended, by what and who was ended after it (by SIGTERM)."""
    statuses = {process.exitcode for process in workers} - {0, None, -signal.SIGTERM}
    if not statuses:
        return KeyboardInterrupt()
    if -signal.SIGKILL in statuses:
        return InputError(
            "a worker process was killed, as the system does where memory runs out: choose fewer jobs at once than "
            f"{len(workers)}; the same call goes on from the last checkpoints"
        )
    return InputError(
        f"a worker process ended with exit status {statuses.pop()}, for a reason that it may have told above: give "
        "jobs=1 to see it better; the same call goes on from the last checkpoints"
    )


@contextmanager
def worker_threads(number: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, for work that a GPU does; if the block raises KeyboardInterrupt, `stop` is set for them."""
    with ThreadPoolExecutor(number) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C, not even while they import; this one does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes that are started meanwhile do not execute this one's script, which they have no need of: it would have
    to guard what it does by `if __name__ == "__main__"`."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _start(lines, lock, initializer: Callable | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_worker(lines, lock)
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
