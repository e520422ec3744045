"""This machine: its description for records, and how many runs it has room for."""

import platform
from collections.abc import Sequence

import numpy
import torch

from rsslib.device import cores, free_memory, processor_name
from rsslib.methods import Method
from rsslib.operators import compiled_loop
from rsslib.parallel import ParallelSteps, size
from rsslib.space import RESOLUTION
from rsslib.steps import EagerSteps
from rsstudy.plan import Run, Settings


def free_jobs(device: torch.device, runs: Sequence[Run]) -> int:
    """Return how many of these runs fit into free memory at once: at least 1, on CUDA at most 8, on a CPU one per core.

    Runs on single threads do more together than one run on all cores.
    """
    most = cores() if device.type == "cpu" else min(8, cores() // 2)
    each = max(run_bytes(run, device.type) for run in runs)
    return max(1, min(most, free_memory(device) // each))


def run_bytes(run: Run, kind: str) -> int:
    """Return a generous estimate of the bytes that a run needs: on a CPU of its process, on CUDA of the device.

    On CUDA it comes from the sizes of tensors and no device has confirmed it: 0.5 GB for an epoch's images, 0.6 to
    augment 8,000 at once, 0.3 for networks, libraries and graphs, or later 2 to evaluate 5,000 images at once, plus a
    step. On a CPU the whole was measured at 32 pixels.
    """
    fixed = 9 * 2**27 if kind == "cpu" else 2**31
    return fixed + step_bytes(run.method, run.resolution)


def step_bytes(method: Method, resolution: int = RESOLUTION) -> int:
    """Return the bytes that a training step of the largest subnet allocates.

    Measured on a CPU with 64 images: 347 MB at 32 pixels, 850 at 64, 1,651 at 96, so half of it grows with an image's
    area. A teacher adds 2 MB per image at 32 pixels, from the sizes of its tensors.
    """
    megabytes = 7.5 if any(stage.distill for stage in method.stages) else 5.5
    area = resolution**2 / RESOLUTION**2
    return int(method.batch_size * megabytes * 2**20 * (1 + area) / 2)


def executor_for(settings: Settings, device: torch.device) -> type:
    """Return the class that takes training steps: CUDA graphs on CUDA, unless the settings say otherwise."""
    if size() > 1:
        return ParallelSteps
    if device.type != "cuda" or settings.graphs is False:
        return EagerSteps
    from rsslib.cuda.graphs import GraphedSteps

    return GraphedSteps


def environment(device: torch.device, settings: Settings) -> dict:
    """Return versions, hardware and executor (how steps are taken, precision, runs at once), for run.json."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
        executor = ["eager" if settings.graphs is False or size() > 1 else "CUDA graphs"]
    else:
        hardware = f"{processor_name()}, threads: {torch.get_num_threads()}"
        executor = ["eager, compiled loops" if compiled_loop() else "eager"]
    if size() > 1:
        executor.append(f"{size()} processes")
    if settings.precision != "fp32":
        executor.append(settings.precision)
    if device.type == "cuda" and (settings.jobs or 1) > 1:  # on CPUs times are those of the processor
        executor.append(f"{settings.jobs} runs at once")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return {"hardware": hardware, "versions": versions, "executor": ", ".join(executor)}


def resumed(record: dict, here: dict, name: str) -> dict:
    """Return what changes in the record of the run `name` when it resumes in another environment, `here`.

    Hardware and executor then name the run, so that its time is never compared with another's.
    """
    machines = record.get("machines", [{key: record[key] for key in here}])
    if here in machines:
        return {}
    changes: dict = {"machines": [*machines, here]}
    for key in ("hardware", "executor"):
        different = dict.fromkeys(machine[key] for machine in changes["machines"])
        changes[key] = f"{' + '.join(different)} ({name})"
    return changes
