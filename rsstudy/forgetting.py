"""Follow the validation accuracy of each subnet through the epochs after the epoch that trains it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from rsslib.data.dataset import Dataset
from rsslib.methods import Method
from rsslib.samplers import Uniform, drawn_steps, randomness
from rsslib.steps import TrainingState
from rsslib.trainer import steps_per_epoch, train
from rsstudy.interference import Effort, losses, validation

LAGS = (1, 2, 4, 8)  # epochs after its own epoch at which a subnet is judged again
IDLE_SEED = 2**32  # seed of the subnets that no run draws
COLUMNS = ["trained", "number", "epoch", "mflops", "loss", "accuracy"]


def draws_once_per_epoch(method: Method) -> bool:
    """Return whether each epoch trains one uniform subnet, so that `forgetting` can follow it."""
    samplers = [stage.sampler for stage in method.stages]
    return all(
        isinstance(sampler, Uniform) and (sampler.per, sampler.count, sampler.every) == ("epoch", 1, 1)
        for sampler in samplers
    )


def forgetting(
    state: TrainingState,
    method: Method,
    data: Dataset,
    seed: int,
    effort: Effort,
    threads: int = 1,
    stop: Callable[[], bool] = lambda: False,
    **training: Any,
) -> pd.DataFrame | None:
    """Train a new `state` with a method that draws one subnet per epoch, and follow each subnet's validation accuracy.

    Each subnet is judged before its epoch, right after it, and 1, 2, 4 and 8 epochs later. After every epoch,
    `effort.idle` uniform subnets that are never drawn are judged too. Batch norm is recalibrated each time.

    Returns a row per subnet and time: trained (the epoch, from 1, that trains the subnet; 0 if no epoch does), number
    (of the never drawn subnet), epoch (the last one before judging), mflops, loss and accuracy (percent). Returns None
    if `stop` returned True before the end. `training` holds additional arguments of `rsslib.trainer.train`; `threads`
    is the number of threads that judge subnets.
    """
    space = state.supernet.space
    steps = steps_per_epoch(len(data.x_train), method.batch_size)
    drawn = []
    for number, stage in enumerate(method.stages):
        for epoch in range(stage.epochs):
            rng, _ = randomness(seed, number, epoch)
            subnets = drawn_steps(stage.sampler, space, rng, epoch, stage.epochs, steps)
            drawn.append(subnets[0][0])
    idle = space.sample(effort.idle, np.random.default_rng(IDLE_SEED))
    never = {(0, number): space.to_arch(row) for number, row in enumerate(idle)}
    images = validation(data, effort.followed_images, effort.followed_images)
    rows: list[tuple] = []

    def after_epoch(state: TrainingState) -> bool:
        now = len(state.history)
        times = (now + 1, now, *(now - lag for lag in LAGS))
        followed = {(epoch, 0): drawn[epoch - 1] for epoch in times if 1 <= epoch <= len(drawn)}
        followed |= never
        found = losses(state.supernet, images, [*followed.values()], threads)
        for (subnet, arch), judged in zip(followed.items(), found, strict=True):
            mflops = space.reference.macs(arch) / 1e6
            rows.append((*subnet, now, mflops, *judged))
        return stop()

    train(state, method, data, seed, after_epoch, f"{method.name}: forgetting", **training)
    if len(state.history) < method.epochs:
        return None
    return pd.DataFrame(rows, columns=COLUMNS)
