"""What runs need of a machine's memory, how many it has room for, and what their records say of it."""

import platform
from collections.abc import Iterable
from pathlib import Path

import numpy
import torch
import torchvision

from rsslib.campaign.runs import Run
from rsslib.machine import cores, free_memory
from rsslib.methods import Method
from rsslib.operators import kernels
from rsslib.space import RESOLUTION

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
