"""The machine that runs train on: device, precision, memory, and what the record says of it."""

import ctypes
import os
import platform
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import psutil
import torch
import torchvision

from rsslib.errors import PRECISIONS, InputError, check_device_name, choose
from rsslib.operators import kernels


def choose_device(device: str = "auto", needed: bool = False) -> torch.device:
    """The device of that name; auto is CUDA where there is one. Raises InputError where CUDA is asked for in vain."""
    check_device_name(device)
    kind, _, index = device.partition(":")
    available = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= available:
        raise InputError(f"device {device!r} was asked for, but PyTorch finds {available} CUDA devices here")
    if needed and not available:
        raise InputError(
            "this profile is meant for a CUDA device and PyTorch finds none here: "
            "choose profile smoke or quick, or give device cpu if weeks of computing are what you want"
        )
    if kind == "auto":
        device = "cuda" if available else "cpu"
    if device == "cpu":
        keep_freed_memory()
    return torch.device(device)


def keep_freed_memory() -> None:
    """Have glibc's allocator keep what PyTorch frees, for the rest of the process; elsewhere this does nothing.

    By default every large tensor is mapped anew, and a CPU step spends a quarter of its time on page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# Bytes, generously: on a CPU a process; on a GPU the images of an epoch and CUDA graphs of all depths.
MEMORY_OF_A_RUN = {"cpu": 3 * 2**29, "cuda": 4 * 2**30}


def set_precision(precision: str) -> None:
    """How CUDA multiplies float32 numbers: fp32 as the study, tf32 with fewer digits. bf16 is left to the trainer."""
    mode = "tf32" if choose(precision, PRECISIONS, "precision") == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


def free_jobs(device: torch.device) -> int:
    """How many runs at once the device has free memory for: on CUDA up to 8, on a CPU up to one for each core.

    Single threads do more together than one run on all cores, and are not held up by another program's turns.
    """
    if device.type == "cpu":
        free, most = psutil.virtual_memory().available, cores()
    else:
        free, most = torch.cuda.mem_get_info(device)[0], min(8, cores() // 2)
    return jobs_that_fit(free, most, device.type)


def jobs_that_fit(memory: float, most: int, kind: str) -> int:
    """How many runs at once so many bytes of a cpu or cuda device hold: at least one, no more than `most`."""
    return max(1, min(most, int(memory) // MEMORY_OF_A_RUN[kind]))


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Have PyTorch compute with so many threads in this block, on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many processor cores this process may use; a scheduler may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: torch.device, jobs: int = 1, precision: str = "fp32") -> dict:
    """Versions, hardware and executor (how steps are run, in which precision, how many runs at once), for run.json."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, threads: {torch.get_num_threads()}"
    executor = "CUDA graphs" if device.type == "cuda" else "eager, compiled loops" if kernels() else "eager"
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


CAPTURING = threading.Lock()  # held while a CUDA graph is captured: one at a time in a process
# PyTorch has 32 streams a device and hands them out in turn, those in use too; so they are used again.
_idle_streams: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, a stream of its own for what is inside, so that runs in several threads share the device."""
    if device.type != "cuda" or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        yield
        return
    outside = torch.cuda.current_stream(device)
    idle = _idle_streams[outside.device]
    try:
        stream = idle.pop()
    except IndexError:
        stream = torch.cuda.Stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)
        idle.append(stream)


def release_memory(device: torch.device) -> None:
    """Give back what a finished run left in PyTorch's cache, whose blocks other streams cannot use."""
    if device.type == "cuda":
        with CAPTURING:  # PyTorch refuses it meanwhile
            torch.cuda.empty_cache()
