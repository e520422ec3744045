"""Which subnets to train, and when.

A sampler answers one question at the start of each epoch: which subnets does each step train? Anything with the
method `subnets` below is a sampler; a new one is a small class, also in a notebook.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from rsslib.errors import InputError, check_number, choose
from rsslib.space import Arch, SearchSpace

Step = tuple[Arch, ...]  # the subnets of one optimiser step; their gradients are summed


class Sampler(Protocol):
    def subnets(
        self, space: SearchSpace, rng: np.random.Generator, epoch: int, epochs: int, steps: int
    ) -> list[Step]:
        """The subnets of each of the `steps` steps of epoch `epoch` (from 0) of a stage of `epochs`.

        Returns `steps` tuples, or a single one that holds for the whole epoch. All randomness comes from `rng`.
        """
        ...


def randomness(seed: int, stage: int, epoch: int) -> tuple[np.random.Generator, int]:
    """The sampler's random numbers in an epoch of a run, and a seed for all others; `epoch` counts within `stage`."""
    to_sampler, to_generator = np.random.SeedSequence([seed, stage, epoch]).spawn(2)
    return np.random.default_rng(to_sampler), int(to_generator.generate_state(1)[0])


class SamplerFailed(RuntimeError):
    """A sampler raised an exception, which is the cause of this one."""


def drawn_steps(
    sampler: Sampler, space: SearchSpace, rng: np.random.Generator, epoch: int, epochs: int, steps: int
) -> list[Step]:
    """What the sampler's `subnets` returns, checked: `steps` steps, each of one subnet of the space or more.

    Raises InputError if it is anything else, and SamplerFailed where the sampler raises an exception of its own.
    """
    name = type(sampler).__name__
    try:
        drawn = sampler.subnets(space, rng, epoch, epochs, steps)
    except InputError:
        raise
    except Exception as error:
        raise SamplerFailed(f"the sampler {name} failed: {type(error).__name__}: {error}") from error

    def refused(what: str) -> InputError:
        return InputError(
            f"the sampler {name} gave {what}: expected a list with a tuple of Arch for each of the epoch's {steps} "
            "steps, or a single one that holds for the whole epoch"
        )

    if not isinstance(drawn, list):
        raise refused("nothing" if drawn is None else f"one {type(drawn).__name__}")
    for step in drawn:
        if not isinstance(step, tuple):
            raise refused(f"a list of {type(step).__name__}")
        if not step:
            raise refused("a step without subnets")
        if wrong := [arch for arch in step if not isinstance(arch, Arch)]:
            raise refused(f"a step with a {type(wrong[0]).__name__} in it")
    if len(drawn) not in (1, steps):
        raise refused(f"the subnets of {len(drawn)} steps")
    for arch in {id(arch): arch for step in drawn for arch in step}.values():
        space.validate(arch)
    return drawn * steps if len(drawn) == 1 else drawn


def same_throughout(subnets: list[Step]) -> bool:
    """Whether all steps of an epoch train the same subnets."""
    return all(step == subnets[0] for step in subnets)


@dataclass(frozen=True)
class Uniform:
    """Subnets with every setting drawn independently and uniformly (Shipard et al. 2022, Algorithm 1).

    One draw an epoch is RSS; draws per batch from a part of the space are the stages of progressive shrinking.
    `kernels`, `expands` and `depths` restrict the draw; None means all of the space's settings. `count` subnets are
    drawn for a step and their gradients summed.
    """

    per: Literal["epoch", "batch"] = "epoch"
    count: int = 1
    kernels: tuple[int, ...] | None = None
    expands: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None

    def __post_init__(self):
        choose(self.per, ("epoch", "batch"), "sampling interval")
        check_number(self.count, "count of subnets a step", 1, whole=True)

    def subnets(self, space, rng, epoch, epochs, steps):
        draws = 1 if self.per == "epoch" else steps
        rows = space.sample(draws * self.count, rng, self.kernels, self.expands, self.depths)
        archs = [space.to_arch(row) for row in rows]
        return [tuple(archs[i : i + self.count]) for i in range(0, len(archs), self.count)]


SIZES = ("smallest", "middle", "largest")


@dataclass(frozen=True, repr=False)
class Successive:
    """Named subnets one after the other, each for an equal share of the epochs (section 6.3.2).

    `Successive(("largest",))` trains the largest alone; `Successive(("largest", "smallest"))` is Max then Min. If the
    epochs do not divide evenly, the earlier subnets get one more.
    """

    sizes: tuple[str, ...]

    def __post_init__(self):
        _check_sizes(self.sizes)

    def __repr__(self) -> str:
        return f"Sequence(sizes={self.sizes!r})"  # its first name, by which records of runs know it

    def subnets(self, space, rng, epoch, epochs, steps):
        share, more = divmod(epochs, len(self.sizes))
        ends = np.cumsum([share + (i < more) for i in range(len(self.sizes))])
        return [(getattr(space, self.sizes[int(np.searchsorted(ends, epoch, side="right"))]),)]


@dataclass(frozen=True)
class Alternating:
    """Named subnets in turn, one an epoch (section 6.3.2)."""

    sizes: tuple[str, ...] = ("smallest", "largest")

    def __post_init__(self):
        _check_sizes(self.sizes)

    def subnets(self, space, rng, epoch, epochs, steps):
        return [(getattr(space, self.sizes[epoch % len(self.sizes)]),)]


def _check_sizes(sizes: tuple[str, ...]) -> None:
    if isinstance(sizes, str) or not sizes:
        raise InputError(f"sizes is {sizes!r}: expected at least one of {', '.join(SIZES)}, in a tuple")
    for size in sizes:
        choose(size, SIZES, "subnet")
