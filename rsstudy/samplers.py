"""Samplers and a schedule beyond the paper, which the study compares with RSS at equal numbers of subnet passes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from rsslib.errors import Count, InputError, Natural, checked
from rsslib.samplers import Step, to_steps
from rsslib.space import SearchSpace


@checked
@dataclass(frozen=True)
class Sandwich:
    """In every step the largest subnet, the smallest, and `drawn` uniform ones (Yu and Huang 2019; BigNAS, 2020).

    The largest comes first, so that it can teach the others of its step (`Method.teacher` "largest").
    """

    drawn: Natural = 2

    @property
    def count(self) -> int:
        return 2 + self.drawn

    def subnets(self, space, rng, epoch, epochs, steps):
        drawn = to_steps(space, space.sample(steps * self.drawn, rng), steps)
        return [(space.largest, space.smallest, *step) for step in drawn]


@checked
@dataclass(frozen=True)
class StrictFairness:
    """In every step `count` subnets that share out all choices (FairNAS, Chu et al. 2021).

    In each layer every kernel size and expand ratio, and in each stage every depth, is in exactly one of them. Raises
    InputError at the first epoch unless the space has `count` kernel sizes, expand ratios and depths.
    """

    count: Count = 3

    def subnets(self, space, rng, epoch, epochs, steps):
        numbers = [len(choices) for choices in space.choices]
        if set(numbers) != {self.count}:
            raise InputError(
                f"count of strict fairness is {self.count}: expected the number of kernel sizes, expand ratios and "
                f"depths, which must be equal and are {', '.join(map(str, numbers))}"
            )
        values = np.concatenate([np.tile(choices, (width, 1)) for choices, width in space.columns])
        rows = rng.permuted(np.tile(values, (steps, 1, 1)), axis=2)  # [steps, columns, count]
        rows = rows.transpose(0, 2, 1).reshape(steps * self.count, -1)
        return to_steps(space, rows.astype(np.int8), steps)


@dataclass(frozen=True)
class Compound:
    """In every step a subnet whose stages are narrow and shallow or wide and deep (CompOFA, Sahni et al. 2021).

    Depth and expand ratio of a stage are the smallest two, the next two and so on; a stage without elastic depth draws
    one expand ratio for its layers. Kernel sizes are drawn uniformly. Raises InputError at the first epoch unless the
    space has as many depths as expand ratios.
    """

    def subnets(self, space, rng, epoch, epochs, steps):
        depths, expands = np.sort(space.depths), np.sort(space.expands)
        if len(depths) != len(expands):
            numbers = f"{len(depths)} depths with {len(expands)} expand ratios"
            raise InputError(f"compound choices pair {numbers}: expected equal numbers")
        stages, n = space.backbone.stages, space.n_layers
        rows = space.sample(steps, rng)
        levels = rng.integers(len(depths), size=(len(stages), steps))
        elastic = [number for number, stage in enumerate(stages) if stage.elastic_depth]
        rows[:, n : 2 * n] = expands[levels[[layer.stage for layer in space.layers]]].T
        rows[:, 2 * n :] = depths[levels[elastic]].T
        return to_steps(space, rows, steps)


@checked
@dataclass(frozen=True)
class FlopsAware:
    """Superseded by `SizeAware`, whose middle sizes are uniform subnets: here choices of a subnet are binomial.

    Kept for stored runs. For each step a size is drawn, then `candidates` subnets of all sizes, and the one nearest to
    the size is taken: each candidate leans to small or large choices by its own share.
    """

    candidates: Count = 200

    def subnets(self, space, rng, epoch, epochs, steps):
        def draw():
            share = rng.uniform(size=(self.candidates, 1))
            for choices, width in space.columns:
                yield np.sort(choices)[rng.binomial(len(choices) - 1, share, (self.candidates, width))]

        return _of_uniform_sizes(space, rng, steps, draw)


@checked
@dataclass(frozen=True)
class SizeAware:
    """In every step a subnet whose size is uniform between the smallest and the largest.

    (The FLOPs-aware part of AttentiveNAS, Wang et al. 2021; uniform choices make nearly all subnets of middle size.)
    Choices are drawn given the size: choice number l (from 0) has a probability in proportion to exp(t * l), where t
    is 0 for uniform subnets. For each step a size is drawn, then `candidates` subnets, each with its own t, uniform in
    [-`tilt`, `tilt`], and the one nearest to the size is taken.
    """

    candidates: Count = 200
    tilt: Annotated[float, 0, None] = 6.0

    def subnets(self, space, rng, epoch, epochs, steps):
        def draw():
            t = rng.uniform(-self.tilt, self.tilt, (self.candidates, 1))
            for choices, width in space.columns:
                weights = np.exp(t * np.arange(len(choices))).cumsum(axis=1)
                drawn = rng.random((self.candidates, width)) * weights[:, -1:]
                yield np.sort(choices)[(drawn[:, :, None] >= weights[:, None]).sum(axis=2)]

        return _of_uniform_sizes(space, rng, steps, draw)


def _of_uniform_sizes(
    space: SearchSpace, rng: np.random.Generator, steps: int, draw: Callable[[], Iterable[np.ndarray]]
) -> list[Step]:
    """For each step a size, uniform over the space's, and of the candidates that `draw` returns the nearest to it.

    `draw` returns the candidates' choices in the parts of `space.columns`, each [candidates, width].
    """
    low, high = space.reference.macs(space.smallest), space.reference.macs(space.largest)
    nearest = []
    for target in rng.uniform(low, high, steps):
        rows = np.concatenate([*draw()], axis=1).astype(np.int8)
        distance = np.abs(space.reference.macs(rows) - target)
        nearest.append(rows[distance.argmin()])
    return to_steps(space, np.stack(nearest), steps)


@checked
@dataclass(frozen=True)
class ComplexityAware:
    """A cosine to the power of `power` for the smallest subnet, down to 1 / `power` for the largest.

    So learning rates of large subnets decay late (CaLR, Jeon et al. 2025, without their separate momentum).
    """

    power: Annotated[float, 1, None] = 4.0
    by_complexity = True

    def __call__(self, progress: float, complexity: float) -> float:
        exponent = self.power + (1 / self.power - self.power) * complexity
        return (0.5 * (1 + math.cos(math.pi * progress))) ** exponent
