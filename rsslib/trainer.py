"""The trainer: one loop for every method.

Randomness is derived from (seed, stage, epoch) alone, so an epoch is the same whether or not the run was interrupted
before it, and methods with one seed see the same batches.
"""

import copy
import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import numpy as np
import torch

from rsslib.data.augmentation import draw_augmentation
from rsslib.data.dataset import Dataset, check_images
from rsslib.device import own_stream
from rsslib.errors import InputError
from rsslib.methods import Method, Stage
from rsslib.network import Network
from rsslib.progress import progress_bar
from rsslib.samplers import Sampler, Step, drawn_steps, randomness, same_throughout
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, new_optimizer, teacher_weights
from rsslib.supernet import SuperNet

ONE_AT_A_TIME = threading.Lock()  # for threads that need PyTorch's global random state


def start(space: SearchSpace, method: Method, seed: int, device: str | torch.device = "cpu") -> TrainingState:
    """A new supernet with its optimiser, before the first epoch."""
    with ONE_AT_A_TIME:  # PyTorch's default initialisation, which ours replaces, draws from the global generator
        supernet = SuperNet(space, method.dropout, torch.Generator().manual_seed(seed)).to(device)
    return TrainingState(supernet, new_optimizer(supernet))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The last, smaller batch counts, except for a single image, which batch norm cannot normalise."""
    return images // batch_size + (images % batch_size > 1)


def train(
    state: TrainingState,
    method: Method,
    data: Dataset,
    seed: int,
    after_epoch: Callable[[TrainingState], bool | None] = lambda state: None,
    description: str = "",
    progress: bool = True,
    executor: type = EagerSteps,
) -> TrainingState:
    """Train `state` from where it stands to the end of `method`, in place.

    `executor` takes the steps: one by one, or as CUDA graphs (`rsslib.cuda.GraphedSteps`). Each epoch adds a row to
    `state.history`: stage, epoch (over all stages, from 1), learning_rate (at the first step), mflops (of the trained
    subnets, mean), loss (mean over steps and subnets, distillation included), images, seconds, processor_seconds (see
    `processor_clock`). Then `after_epoch` is called; if it returns True, or raises, training ends and the state can go
    on later.

    Raises FloatingPointError at the end of an epoch in which a loss was not finite, InputError for images that the
    supernet does not take, a state that `method` does not come through and a sampler that does not draw the same
    subnets again, and what `samplers.drawn_steps` raises.
    """
    space, n, device = state.supernet.space, len(data.x_train), data.device
    check_images(space, data)
    if not method.stands_at(state.stage, state.epoch, state.history):
        raise InputError(f"the state was trained for {len(state.history)} epochs of another method than {method.name}")
    steps = steps_per_epoch(n, method.batch_size)
    if steps == 0:
        raise InputError(f"{data.name} has {n} training images: expected at least 2, for batch norm")
    generator = torch.Generator(device)
    total, done = method.epochs * n, len(state.history) * n
    bar = progress_bar(shown=progress, total=total, initial=done, unit="img", unit_scale=True)
    with bar, own_stream(device), ExitStack() as executors:
        for stage_number in range(state.stage, len(method.stages)):
            stage = method.stages[stage_number]
            executors.close()  # that of the stage before
            if state.epoch == 0:
                enter_stage(state, method, stage, seed)
            sampler = sampler_before(state, stage, stage_number, seed, steps)
            steps_taken = executors.enter_context(closing(executor(state, method, stage, data, generator)))
            for epoch in range(state.epoch, stage.epochs):
                began, clock = time.perf_counter(), processor_clock(device)
                worked = clock()
                rng, epoch_seed = randomness(seed, stage_number, epoch)
                generator.manual_seed(epoch_seed)
                subnets = drawn_steps(sampler, space, rng, epoch, stage.epochs, steps)
                order = torch.randperm(n, generator=generator, device=device)
                crops = draw_augmentation(n, generator, data.resolution)
                rates = [stage.rate(epoch, step, steps) for step in range(steps)]
                mflops = mean_mflops(space, subnets)
                place = f"{stage.name} " * (len(method.stages) > 1) + f"{epoch + 1}/{stage.epochs}"
                bar.set_description(f"{description or method.name}: {place}, {mflops:.1f}M")
                losses = steps_taken.epoch(subnets, order, crops, rates, bar)
                mean_loss = losses.mean().item()
                if not math.isfinite(mean_loss):
                    step = int(losses.isfinite().logical_not().nonzero()[0])
                    raise FloatingPointError(
                        f"the loss is {losses[step]} in stage {stage.name!r}, epoch {epoch + 1}, step {step + 1}, "
                        f"learning rate {rates[step]:.2g}, subnets {subnets[step]}: try a lower "
                        "learning rate; the last checkpoint before it is kept"
                    )
                bar.set_postfix(loss=f"{mean_loss:.2f}")
                state.history.append(
                    {
                        "stage": stage.name,
                        "epoch": len(state.history) + 1,
                        "learning_rate": rates[0],
                        "mflops": mflops,
                        "loss": mean_loss,
                        "images": n,
                        "seconds": time.perf_counter() - began,
                        "processor_seconds": clock() - worked,
                    }
                )
                last = epoch + 1 == stage.epochs
                state.stage, state.epoch = (stage_number + 1, 0) if last else (stage_number, epoch + 1)
                if after_epoch(state):
                    return state
    return state


def sampler_before(state: TrainingState, stage: Stage, stage_number: int, seed: int, steps: int) -> Sampler:
    """The stage's sampler, as the epochs that are done have left it: what it keeps is that of a run without a break.

    Raises InputError unless it draws subnets of the same sizes again, for then a run could not be gone on with.
    """
    space = state.supernet.space

    def mflops(sampler: Sampler, epoch: int) -> float:
        rng, _ = randomness(seed, stage_number, epoch)
        return mean_mflops(space, drawn_steps(sampler, space, rng, epoch, stage.epochs, steps))

    sizes = [row["mflops"] for row in state.history[len(state.history) - state.epoch :]]
    if not sizes and stage.epochs:
        sizes = [mflops(copy.deepcopy(stage.sampler), 0)]
    again = copy.deepcopy(stage.sampler)  # which stays as it was for who asks again
    for epoch, size in enumerate(sizes):
        if not math.isclose(mflops(again, epoch), size, rel_tol=1e-6):
            raise InputError(
                f"the sampler {type(again).__name__} drew other subnets when asked again for epoch {epoch + 1} of "
                f"stage {stage.name!r}: all its randomness has to come from rng"
            )
    return again if state.epoch else copy.deepcopy(stage.sampler)


def processor_clock(device: torch.device) -> Callable[[], float]:
    """What to read processor seconds from: this thread's clock if it alone works for a run, else the process's.

    On a CPU, unlike wall-clock time, they hardly grow when other programs take their turns on the machine.
    """
    return time.thread_time if device.type != "cpu" or torch.get_num_threads() == 1 else time.process_time


def enter_stage(state: TrainingState, method: Method, stage: Stage, seed: int) -> None:
    """What happens once before a stage: teacher, channel sorting, optimiser."""
    space, supernet = state.supernet.space, state.supernet
    if stage.distill and state.teacher is None and method.teacher != "largest":
        teacher: Network = supernet
        if method.teacher == "random":  # PyTorch's default initialisation, from a seed of its own
            with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                teacher = Network(space, space.largest)
        state.teacher = teacher_weights(supernet, dict(teacher.named_parameters()))
    if stage.sort_channels is not None:
        supernet.sort_channels(stage.sort_channels)
    if method.fresh_optimizer:
        state.optimizer = new_optimizer(supernet)


def mean_mflops(space: SearchSpace, subnets: list[Step]) -> float:
    """Mean size of the subnets of an epoch, in millions of multiply-accumulates as the buckets count them."""
    distinct = [arch for step in (subnets[:1] if same_throughout(subnets) else subnets) for arch in step]
    return float(np.mean(space.reference.macs(space.to_rows(distinct)))) / 1e6
