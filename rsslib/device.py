"""The machine that computes: its device, precision, memory, threads and streams."""

import ctypes
import errno
import os
import platform
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from rsslib.errors import PRECISIONS, CaptureFailed, InputError, check_device_name, choose


def choose_device(device: str = "auto", needed: bool = False) -> torch.device:
    """The device of that name; auto is CUDA where a device works, and says in a line why one that is there does not.

    Raises InputError where CUDA is asked for, or `needed`, in vain.
    """
    check_device_name(device)
    kind, _, index = device.partition(":")
    if kind != "cpu":
        fault = why_not_cuda(int(index or 0))
        if kind == "cuda" and fault:
            raise InputError(f"device {device!r} was asked for, but {fault}")
        if needed and fault:
            raise InputError(
                f"this profile is meant for a CUDA device, but {fault}: "
                "choose profile smoke or quick, or give device cpu if weeks of computing are what you want"
            )
        if kind == "auto":
            device = "cpu" if fault else "cuda"
            if fault and torch.cuda.device_count():
                print(f"computing on the CPU, since {fault}", file=sys.stderr)
    if device == "cpu":
        keep_freed_memory()
    return torch.device(device)


def why_not_cuda(index: int = 0) -> str | None:
    """What is wrong with CUDA device `index`, in part of a sentence; None if it works.

    That a device is counted does not say that the driver starts it, or that PyTorch was built for its architecture; so
    it is given a kernel to run.
    """
    available = torch.cuda.device_count()
    if index >= available:
        return f"PyTorch finds {available} CUDA devices here"
    try:
        run_kernel(torch.device("cuda", index))
    except (RuntimeError, AssertionError) as error:
        return f"the CUDA device {index} runs no kernel ({first_line(error)})"
    return None


def run_kernel(device: torch.device) -> None:
    torch.ones(1, device=device).add_(1).item()


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def keep_freed_memory() -> None:
    """Have glibc's allocator keep what PyTorch frees, for the rest of the process; elsewhere this does nothing.

    By default every large tensor is mapped anew, and a CPU step spends a quarter of its time on page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def set_precision(precision: str) -> None:
    """How CUDA multiplies float32 numbers: fp32 as the study, tf32 with fewer digits. bf16 is left to the trainer."""
    mode = "tf32" if choose(precision, PRECISIONS, "precision") == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


def processor_name() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken: on CUDA also those that PyTorch holds for later."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Have PyTorch compute with so many threads in this block or, as a decorator, function, on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many processor cores this process may use; a scheduler may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


EVALUATOR = 3 * 2**27  # bytes of a subnet that is evaluated beside others: kept maps and a pass, with 10,000 images


def evaluation_threads(device: torch.device, jobs: int = 1) -> int:
    """How many subnets are evaluated at once in one of so many runs: on a CPU what it has of cores and free memory."""
    if device.type != "cpu":
        return 1
    return max(1, min(cores() // torch.get_num_threads(), free_memory(device) // EVALUATOR) // jobs)


def can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


CAPTURING = threading.Lock()  # held while a CUDA graph is captured: one at a time in a process, and nothing set up
capture_failed = threading.Event()
# PyTorch has 32 streams a device and hands them out in turn, those in use too; so they are used again.
_idle_streams: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


def check_captures() -> None:
    """Raise CaptureFailed if a capture has failed in this process."""
    if capture_failed.is_set():
        raise CaptureFailed(
            "an earlier capture of a CUDA graph failed in this process, which cannot use the device any more: "
            "restart it with --no-graphs, or graphs=False"
        )


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, a stream of its own for what is inside, so that runs in several threads share the device.

    Gradients are computed in this thread rather than in the one that PyTorch has for all, so that a thread's libraries
    are its own: they are set up here, which must not happen while a graph is captured. Raises CaptureFailed if a
    capture has failed in this process.
    """
    if not can_capture(device) or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        yield
        return
    check_captures()
    outside = torch.cuda.current_stream(device)
    idle = _idle_streams[outside.device]
    try:
        stream = idle.pop()
    except IndexError:
        stream = torch.cuda.Stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream), torch.autograd.set_multithreading_enabled(False):
            with CAPTURING:
                set_up_libraries(device)
            yield
    finally:
        outside.wait_stream(stream)
        idle.append(stream)


def set_up_libraries(device: torch.device) -> None:
    """A matrix product and a convolution, of which a thread's first, in a stream, allocates memory on the device."""
    x = torch.ones(1, 8, 8, 8, device=device)
    torch.mm(x.view(64, 8), x.view(8, 64))
    torch.nn.functional.conv2d(x, x)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system, PyTorch's allocator, the CUDA driver or one of its libraries says that memory has run out."""
    text = str(error).lower()
    words = ("allocate memory", "out of memory", "alloc_failed")
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def release_memory(device: torch.device) -> None:
    """Give back what a finished run left in PyTorch's cache, whose blocks other streams cannot use."""
    if device.type == "cuda":
        with CAPTURING:  # PyTorch refuses it meanwhile
            torch.cuda.empty_cache()
