"""The trainer: one loop for every method.

All randomness derives from (seed, stage, epoch). So an epoch is the same whether or not training was interrupted
before it, and methods with equal seeds see the same batches.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor

from rsslib.data.augmentation import draw_augmentation
from rsslib.data.dataset import Dataset, check_images
from rsslib.device import choose_device, isolated, set_precision
from rsslib.errors import InputError, Natural, checked
from rsslib.methods import Method, Stage
from rsslib.network import Network
from rsslib.progress import progress_bar
from rsslib.samplers import Step, drawn_steps, randomness, same_throughout
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, new_optimizer, teacher_weights
from rsslib.supernet import SuperNet

ONE_AT_A_TIME = threading.Lock()  # for threads that use PyTorch's global random generator


@checked
def start(
    space: SearchSpace,
    method: Method,
    seed: Natural,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> TrainingState:
    """Return a new supernet with its optimizer, before the first epoch.

    This also sets how the process computes on CUDA from now on (see `device.set_precision`). "fp32" is more precise
    than PyTorch's default for convolutions. "tf32" has fewer digits. "bf16" trains only this state under autocast.
    """
    set_precision(precision)
    with recording(), isolated():
        supernet = SuperNet(space, method.dropout, torch.Generator().manual_seed(seed)).to(choose_device(str(device)))
        optimizer = new_optimizer(supernet, method.momentum, method.weight_decay)
    return TrainingState(supernet, optimizer, bfloat16=precision == "bf16")


@contextmanager
def recording() -> Iterator[None]:
    """Record gradients, even if the caller has disabled them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the steps of an epoch; a last batch of one image is skipped, because batch norm cannot normalise it."""
    return images // batch_size + (images % batch_size > 1)


@checked
def train(
    state: TrainingState,
    method: Method,
    data: Dataset,
    seed: Natural,
    after_epoch: Callable[[TrainingState], bool | None] = lambda state: None,
    description: str = "",
    progress: bool = True,
    executor: type = EagerSteps,
) -> TrainingState:
    """Train `state` in place, from its current epoch to the end of `method`, and return it.

    `executor` runs the steps eagerly, or as CUDA graphs (`rsslib.cuda.graphs.GraphedSteps`). Each epoch adds a row to
    `state.history`: stage, epoch (over all stages, from 1), learning_rate (of the first step), mflops (mean of the
    trained subnets), loss (mean over steps and subnets, distillation included), images, seconds, processor_seconds
    (see `processor_clock`). Then `after_epoch` is called. If it returns True or raises, training ends, and the state
    can be trained further later.

    Raises InputError for images that do not fit the supernet, for a state that was trained by another method, and for a
    sampler that returns subnets outside the space. Raises FloatingPointError after an epoch with a loss that is not
    finite.
    """
    space, n, device = state.supernet.space, len(data.x_train), data.device
    check_images(space, data)
    if not method.stands_at(state.stage, state.epoch, state.history):
        raise InputError(f"the state was trained for {len(state.history)} epochs of another method than {method.name}")
    steps = steps_per_epoch(n, method.batch_size)
    if steps == 0:
        raise InputError(f"{data.name} has {n} training images: expected at least 2, for batch norm")
    generator = torch.Generator(device)
    done = {"total": method.epochs * n, "initial": len(state.history) * n}
    bars = progress_bar(shown=progress, unit="img", unit_scale=True, **done)
    with bars as bar, recording(), isolated(device):
        for number in range(state.stage, len(method.stages)):
            stage = method.stages[number]
            if state.epoch == 0:
                enter_stage(state, method, stage, seed)
            with closing(executor(state, method, stage, data, generator)) as stage_steps:
                for epoch in range(state.epoch, stage.epochs):
                    began, clock = time.perf_counter(), processor_clock(device)
                    worked = clock()
                    rng, epoch_seed = randomness(seed, number, epoch)
                    generator.manual_seed(epoch_seed)
                    subnets = drawn_steps(stage.sampler, space, rng, epoch, stage.epochs, steps)
                    order = torch.randperm(n, generator=generator, device=device)
                    crops = draw_augmentation(n, generator, data.side, method.augmentation)
                    sizes = complexities(space, subnets) if stage.by_complexity else [0.0] * steps
                    rates = [stage.rate(epoch, step, steps, size) for step, size in enumerate(sizes)]
                    shares = [stage.share(epoch, step, steps) for step in range(steps)]
                    mflops = mean_mflops(space, subnets)
                    place = f"{stage.name} " * (len(method.stages) > 1) + f"{epoch + 1}/{stage.epochs}"
                    bar.set_description(f"{description or method.name}: {place}, {mflops:.1f}M")
                    losses = stage_steps.epoch(subnets, order, crops, rates, shares, bar.update)
                    row = {
                        "stage": stage.name,
                        "epoch": len(state.history) + 1,
                        "learning_rate": rates[0],
                        "mflops": mflops,
                        "loss": _finite_mean(losses, f"stage {stage.name!r}, epoch {epoch + 1}", rates, subnets),
                        "images": n,
                        "seconds": time.perf_counter() - began,
                        "processor_seconds": clock() - worked,
                    }
                    bar.set_postfix(loss=f"{row['loss']:.2f}")
                    state.history.append(row)
                    last = epoch + 1 == stage.epochs
                    state.stage, state.epoch = (number + 1, 0) if last else (number, epoch + 1)
                    if after_epoch(state):
                        return state
    return state


def _finite_mean(losses: Tensor, place: str, rates: list[float], subnets: list[Step]) -> float:
    mean = losses.mean().item()
    if not math.isfinite(mean):
        step = int(losses.isfinite().logical_not().nonzero()[0])
        raise FloatingPointError(
            f"the loss is {losses[step]} in {place}, step {step + 1}, learning rate {rates[step]:.2g}, "
            f"subnets {subnets[step]}: try a lower learning rate; the last checkpoint before it is kept"
        )
    return mean


def processor_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock for processor seconds: that of the thread if it alone works on a run, otherwise the process's.

    On a CPU, processor seconds hardly grow when other programs run on the machine, unlike wall-clock time.
    """
    return time.thread_time if device.type != "cpu" or torch.get_num_threads() == 1 else time.process_time


def enter_stage(state: TrainingState, method: Method, stage: Stage, seed: int) -> None:
    """Prepare a stage: take the teacher, sort channels, make an optimizer."""
    space, supernet = state.supernet.space, state.supernet
    if stage.distill and state.teacher is None and method.teacher != "largest":
        teacher: Network = supernet
        if method.teacher == "random":  # PyTorch's default initialisation
            with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                teacher = Network(space, space.largest)
        state.teacher = teacher_weights(supernet, dict(teacher.named_parameters()))
    if stage.sort_channels is not None:
        supernet.sort_channels(stage.sort_channels)
    if method.fresh_optimizer:
        state.optimizer = new_optimizer(supernet, method.momentum, method.weight_decay)


def complexities(space: SearchSpace, subnets: list[Step]) -> list[float]:
    """Return the complexity of each step's subnets, from 0 (the smallest subnet) to 1 (the largest).

    It compares mean parameters by their logarithms (Jeon et al. 2025).
    """
    low, high = (math.log(space.parameters(arch)) for arch in (space.smallest, space.largest))
    found = {step: np.mean(space.parameters(space.to_rows(step))) for step in {*subnets}}
    return [(math.log(found[step]) - low) / (high - low) for step in subnets]


def mean_mflops(space: SearchSpace, subnets: list[Step]) -> float:
    """Return the mean size of an epoch's subnets, in millions of MACs as the buckets count them.

    Raises InputError for a subnet outside the space.
    """
    archs = [arch for step in (subnets[:1] if same_throughout(subnets) else subnets) for arch in step]
    return float(np.mean(space.reference.macs(space.to_rows(archs)))) / 1e6
