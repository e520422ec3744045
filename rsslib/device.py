"""Choose and set up the machine: device, precision, memory, threads and CUDA streams."""

import ctypes
import errno
import os
import platform
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch

from rsslib.errors import PRECISIONS, CaptureFailed, InputError, check_device_name, choose

EVALUATOR_BYTES = 3 * 2**27  # for each subnet evaluated at once: feature maps and a pass over 10,000 images
CPU = torch.device("cpu")
HUGE = 3 * 2**28  # bytes of the heap for which huge pages are requested
HUGE_PAGE = 2**21
CAPTURING = threading.Lock()  # held while a CUDA graph is captured: nothing may be set up or freed meanwhile
capture_failed = threading.Event()

# PyTorch cycles through its 32 streams of a device, even those in use, so free streams are reused.
_idle_streams: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


# --- the device -------------------------------------------------------------------------------------------------------


def choose_device(device: str = "auto", needed: bool = False) -> torch.device:
    """Return the device named auto, cpu, cuda or cuda:<number>; auto is CUDA if it works, otherwise the CPU.

    If auto does not take a CUDA device that is present, a line on stderr says why. Raises InputError if a CUDA device
    is named or `needed` and does not work.
    """
    check_device_name(device)
    kind, _, index = device.partition(":")
    fault = None if kind == "cpu" else why_not_cuda(int(index or 0))
    if fault and kind == "cuda":
        raise InputError(f"device {device!r} was asked for, but {fault}: choose auto or cpu")
    if fault and needed:
        raise InputError(
            f"this profile is meant for a CUDA device, but {fault}: choose profile smoke or quick, or device cpu if "
            "weeks of computing are acceptable"
        )
    if kind == "auto":
        if fault and torch.cuda.device_count():
            print(f"computing on the CPU, since {fault}", file=sys.stderr)
        device = "cpu" if fault else "cuda"
    if device == "cpu":
        keep_freed_memory()
    return torch.device(device)


def why_not_cuda(index: int = 0) -> str | None:
    """Return what is wrong with CUDA device `index`, as part of a sentence; None if it works.

    PyTorch may count a device that lacks a matching driver or PyTorch build, so this runs a kernel on it.
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
    return str(error).strip().partition("\n")[0] or type(error).__name__


def set_precision(precision: str) -> None:
    """Set how CUDA multiplies float32: fp32 as in the study, or tf32 with fewer digits. The trainer applies bf16."""
    mode = "tf32" if choose(precision, PRECISIONS, "precision") == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


# --- memory -----------------------------------------------------------------------------------------------------------


def free_memory(device: torch.device | None = None) -> int:
    """Return the bytes that can be allocated, by default on the CPU; on CUDA, this includes PyTorch's cache."""
    if device is None or device.type != "cuda":
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


@cache
def keep_freed_memory() -> None:
    """Make glibc's allocator keep what PyTorch frees, on huge pages, until the process ends.

    By default every large tensor is mapped again, and a CPU step spends a third of its time on page faults. This does
    nothing with other C libraries. Without transparent huge pages, memory is kept, but not on huge pages.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.malloc.restype = ctypes.c_void_p
        block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(HUGE)))  # untouched, so it takes no memory yet
        if block.value:
            start = -(-block.value // HUGE_PAGE) * HUGE_PAGE
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(HUGE - HUGE_PAGE), 14)  # MADV_HUGEPAGE
            libc.free(block)


def release_memory(device: torch.device) -> None:
    """Free PyTorch's cache of a finished run, because other streams cannot use its blocks."""
    if device.type == "cuda":
        with CAPTURING:  # PyTorch refuses this during a capture
            torch.cuda.empty_cache()


def processor_name() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, in the system, PyTorch's allocator, the CUDA driver or one of its libraries."""
    if isinstance(error, RuntimeError):  # PyTorch's own type is one, and has the second of these texts
        texts = ("allocate memory", "out of memory", "alloc_failed")
        return any(text in str(error).lower() for text in texts)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


# --- threads ----------------------------------------------------------------------------------------------------------


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Set PyTorch's thread count on the CPU inside a block or a decorated function."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Return the number of processor cores that this process may use, which a scheduler can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluation_threads(device: torch.device, jobs: int = 1) -> int:
    """Return how many subnets each of `jobs` runs evaluates at once: on a CPU, as many as cores and memory allow."""
    if device.type != "cpu":
        return 1
    most = min(cores() // torch.get_num_threads(), free_memory(device) // EVALUATOR_BYTES)
    return max(1, most // jobs)


def can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


def check_captures() -> None:
    """Raise CaptureFailed if a capture has failed in this process."""
    if capture_failed.is_set():
        raise CaptureFailed(
            "an earlier capture of a CUDA graph failed in this process, which cannot use the device any more: "
            "restart it with --no-graphs, or graphs=False"
        )


@contextmanager
def isolated(device: torch.device = CPU) -> Iterator[None]:
    """Run the block without the caller's autocast, and as `own_stream` does; also a decorator.

    Raises InputError if PyTorch's defaults are not float32 and the CPU, which would change random numbers and results.
    """
    dtype, place = torch.get_default_dtype(), torch.get_default_device().type
    if (dtype, place) != (torch.float32, "cpu"):
        raise InputError(
            f"PyTorch's defaults are {dtype} on {place}: call torch.set_default_dtype(torch.float32) and "
            'torch.set_default_device("cpu")'
        )
    with torch.autocast(device.type, enabled=False), own_stream(device):
        yield


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a separate CUDA stream, so that runs in several threads share the device.

    Gradients are computed in this thread instead of PyTorch's shared one, so that each thread has its own libraries.
    They are set up here, because this must not happen while a graph is captured. Raises CaptureFailed if a capture has
    failed in this process.
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
    """Multiply matrices and convolve once, because a thread's first such call in a stream allocates device memory."""
    x = torch.ones(1, 8, 8, 8, device=device)
    torch.mm(x.view(64, 8), x.view(8, 64))
    torch.nn.functional.conv2d(x, x)
