"""Samplers choose the subnets that each step trains.

A sampler is any object with the method `subnets` of `Sampler`. A new sampler is a small class, which may be in a
notebook.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from rsslib.errors import Count, InputError, checked, shortened
from rsslib.space import Arch, SearchSpace

Step = tuple[Arch, ...]  # the subnets of one optimizer step; their gradients are summed
Size = Literal["smallest", "middle", "largest"]
SIZES = get_args(Size)


class Sampler(Protocol):
    def subnets(self, space: SearchSpace, rng: np.random.Generator, epoch: int, epochs: int, steps: int) -> list[Step]:
        """Return the subnets of each of the `steps` steps in epoch `epoch` (from 0) of a stage of `epochs` epochs.

        The list has `steps` tuples, or a single tuple for the whole epoch. A sampler is a pure function of these
        arguments: all randomness comes from `rng`, and it keeps no state between calls, so that training can resume.
        If a step has more than one subnet, set an attribute `count` to their number; estimates of time use it.
        """
        ...


def randomness(seed: int, stage: int, epoch: int) -> tuple[np.random.Generator, int]:
    """Return the sampler's generator for one epoch of a run, and a seed for the rest; `epoch` counts within `stage`."""
    to_sampler, to_generator = np.random.SeedSequence([seed, stage, epoch]).spawn(2)
    return np.random.default_rng(to_sampler), int(to_generator.generate_state(1)[0])


def _block_generator(rng: np.random.Generator, block: int) -> np.random.Generator:
    """Return the generator for a block of steps, which may have begun in an earlier epoch than that of `rng`."""
    entropy = rng.bit_generator.seed_seq.entropy  # type: ignore[attr-defined]
    stage = entropy[:-1] if isinstance(entropy, list) else [entropy]  # without the epoch, see `randomness`
    return np.random.default_rng(np.random.SeedSequence([*stage, block], spawn_key=(2,)))


def drawn_steps(
    sampler: Sampler, space: SearchSpace, rng: np.random.Generator, epoch: int, epochs: int, steps: int
) -> list[Step]:
    """Return `sampler.subnets(...)` as a list of exactly `steps` steps.

    Raises InputError unless the sampler returns a list of `steps` tuples, or of one tuple for the whole epoch.
    """
    drawn = sampler.subnets(space, rng, epoch, epochs, steps)
    valid = isinstance(drawn, list) and len(drawn) in (1, steps)
    if not valid or not all(isinstance(step, tuple) and step for step in drawn):
        returned = shortened(" ".join(repr(drawn).split()))
        raise InputError(
            f"the sampler {type(sampler).__name__} returned {returned}: expected a list with a tuple of Arch for each "
            f"of the epoch's {steps} steps, or a single one that holds for the whole epoch"
        )
    return drawn * steps if len(drawn) == 1 else drawn


def same_throughout(subnets: list[Step]) -> bool:
    """Return whether all steps of an epoch train the same subnets."""
    return all(step == subnets[0] for step in subnets)


def to_steps(space: SearchSpace, rows: np.ndarray, steps: int) -> list[Step]:
    """Return rows of a space as `steps` steps with equal numbers of subnets."""
    return [tuple(map(space.to_arch, step)) for step in np.split(rows, steps)]


@checked
@dataclass(frozen=True)
class Uniform:
    """Subnets with every choice drawn independently and uniformly (Shipard et al. 2022, Algorithm 1).

    One draw per epoch is RSS; draws per batch from a part of the space are the stages of progressive shrinking.
    `kernels`, `expands` and `depths` restrict the draw; None means all choices of the space. `count` subnets are drawn
    per step, and their gradients are summed. A draw is used for `every` batches or epochs, counted through the stage,
    so a block of batches may continue in the next epoch.
    """

    per: Literal["epoch", "batch"] = "epoch"
    count: Count = 1
    kernels: tuple[int, ...] | None = None
    expands: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    every: Count = 1

    def __post_init__(self):
        _check_not_empty(self, "kernels", "expands", "depths")

    def subnets(self, space, rng, epoch, epochs, steps):
        if self.every == 1:
            return self._draw(space, rng, 1 if self.per == "epoch" else steps)
        if self.per == "epoch":
            return self._draw(space, _block_generator(rng, epoch // self.every), 1)
        blocks = [(epoch * steps + step) // self.every for step in range(steps)]
        drawn = {block: self._draw(space, _block_generator(rng, block), 1) for block in {*blocks}}
        return [drawn[block][0] for block in blocks]

    def _draw(self, space: SearchSpace, rng: np.random.Generator, steps: int) -> list[Step]:
        rows = space.sample(steps * self.count, rng, self.kernels, self.expands, self.depths)
        return to_steps(space, rows, steps)


@checked
@dataclass(frozen=True)
class Successive:
    """Named subnets one after another, each for an equal share of the epochs (section 6.3.2).

    `Successive(("largest",))` trains the largest alone; `Successive(("largest", "smallest"))` is Max then Min. If the
    epochs do not divide evenly, the earlier subnets get one more.
    """

    sizes: tuple[Size, ...]

    def __post_init__(self):
        _check_not_empty(self, "sizes")

    def subnets(self, space, rng, epoch, epochs, steps):
        share, more = divmod(epochs, len(self.sizes))
        order = [size for i, size in enumerate(self.sizes) for _ in range(share + (i < more))]
        return [(getattr(space, order[epoch]),)]


@checked
@dataclass(frozen=True)
class Alternating:
    """Named subnets that alternate from epoch to epoch (section 6.3.2)."""

    sizes: tuple[Size, ...] = ("smallest", "largest")

    def __post_init__(self):
        _check_not_empty(self, "sizes")

    def subnets(self, space, rng, epoch, epochs, steps):
        return [(getattr(space, self.sizes[epoch % len(self.sizes)]),)]


def _check_not_empty(sampler: Sampler, *names: str) -> None:
    for name in names:
        if getattr(sampler, name) == ():
            raise InputError(f"{name} is (): expected at least one to draw from")
