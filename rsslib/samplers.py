"""Which subnets to train, and when.

A sampler answers one question at the start of each epoch: which subnets does each step train? Anything with the
method `subnets` below is a sampler; a new one is a small class, also in a notebook.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from rsslib.errors import InputError, check_number, choose
from rsslib.space import Arch, SearchSpace

Step = tuple[Arch, ...]  # the subnets of one optimiser step; their gradients are summed


class Sampler(Protocol):
    def subnets(self, space: SearchSpace, rng: np.random.Generator, epoch: int, epochs: int, steps: int) -> list[Step]:
        """The subnets of each of the `steps` steps of epoch `epoch` (from 0) of a stage of `epochs`.

        Returns `steps` tuples, or a single one that holds for the whole epoch. All randomness comes from `rng`. What
        the sampler keeps lasts for a stage; where training goes on, the stage's earlier epochs are drawn again.
        """
        ...


def randomness(seed: int, stage: int, epoch: int) -> tuple[np.random.Generator, int]:
    """The sampler's random numbers in an epoch of a run, and a seed for all others; `epoch` counts within `stage`."""
    to_sampler, to_generator = np.random.SeedSequence([seed, stage, epoch]).spawn(2)
    return np.random.default_rng(to_sampler), int(to_generator.generate_state(1)[0])


def _of_block(rng: np.random.Generator, block: int) -> np.random.Generator:
    """Random numbers of a block of steps of a stage, which may begin in an earlier epoch than that of `rng`."""
    entropy = rng.bit_generator.seed_seq.entropy  # type: ignore[attr-defined]
    stage = entropy[:-1] if isinstance(entropy, list) else [entropy]  # without the epoch, see `randomness`
    return np.random.default_rng(np.random.SeedSequence([*stage, block], spawn_key=(2,)))


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
    drawn for a step and their gradients summed. A draw holds for `every` batches or epochs, counted through the stage:
    a block of batches may go on in the next epoch.
    """

    per: Literal["epoch", "batch"] = "epoch"
    count: int = 1
    kernels: tuple[int, ...] | None = None
    expands: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    every: int = field(default=1, repr=False)

    def __post_init__(self):
        choose(self.per, ("epoch", "batch"), "sampling interval")
        check_number(self.count, "count of subnets a step", 1, whole=True)
        check_number(self.every, "every", 1, whole=True)
        for name in ("kernels", "expands", "depths"):
            if (settings := getattr(self, name)) is not None and not len(settings):
                raise InputError(f"{name} is {settings!r}: expected settings to draw, or None for all of the space's")

    def __repr__(self) -> str:
        every = "" if self.every == 1 else f", every={self.every}"  # records of runs know it without
        names = ("per", "count", "kernels", "expands", "depths")
        return f"Uniform({', '.join(f'{name}={getattr(self, name)!r}' for name in names)}{every})"

    def subnets(self, space, rng, epoch, epochs, steps):
        if self.every == 1:
            return self._draw(space, rng, 1 if self.per == "epoch" else steps)
        if self.per == "epoch":
            return self._draw(space, _of_block(rng, epoch // self.every), 1)
        blocks = [(epoch * steps + step) // self.every for step in range(steps)]
        drawn = {block: self._draw(space, _of_block(rng, block), 1)[0] for block in dict.fromkeys(blocks)}
        return [drawn[block] for block in blocks]

    def _draw(self, space: SearchSpace, rng: np.random.Generator, n: int) -> list[Step]:
        rows = space.sample(n * self.count, rng, self.kernels, self.expands, self.depths)
        return _steps(space, rows, self.count)


def _steps(space: SearchSpace, rows: np.ndarray, count: int) -> list[Step]:
    """Rows as subnets, so many a step."""
    archs = [space.to_arch(row) for row in rows]
    return [tuple(archs[i : i + count]) for i in range(0, len(archs), count)]


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


@dataclass(frozen=True)
class Sandwich:
    """Every step the largest subnet, the smallest, and `drawn` uniform ones (Yu and Huang 2019; BigNAS, 2020).

    The largest comes first, so that it can teach the others of its step (`Method.teacher` "largest").
    """

    drawn: int = 2

    def __post_init__(self):
        check_number(self.drawn, "drawn", 0, whole=True)

    @property
    def count(self) -> int:
        return 2 + self.drawn

    def subnets(self, space, rng, epoch, epochs, steps):
        drawn = _steps(space, space.sample(steps * self.drawn, rng), self.drawn) if self.drawn else [()] * steps
        return [(space.largest, space.smallest, *step) for step in drawn]


@dataclass(frozen=True)
class StrictFairness:
    """Every step as many subnets as a layer has settings, which share them out: in each layer every kernel size and
    expand ratio, in each stage every depth, is in exactly one of them (FairNAS, Chu et al. 2021).

    Raises InputError at the first epoch if the space has not `count` of each.
    """

    count: int = 3

    def subnets(self, space, rng, epoch, epochs, steps):
        if any(len(settings) != self.count for settings, _ in space.columns):
            numbers = ", ".join(str(len(settings)) for settings, _ in space.columns)
            raise InputError(
                f"count of strict fairness is {self.count}: expected the number of kernel sizes, expand ratios and "
                f"depths, which must be equal and are {numbers}"
            )
        values = np.concatenate([np.tile(settings, (width, 1)) for settings, width in space.columns])
        rows = rng.permuted(np.tile(values, (steps, 1, 1)), axis=2)  # [steps, columns, count]
        return _steps(space, rows.transpose(0, 2, 1).reshape(steps * self.count, -1).astype(np.int8), self.count)


@dataclass(frozen=True)
class Compound:
    """A subnet every step whose stages are narrow and shallow or wide and deep: depth and expand ratio of a stage are
    the smallest two, the middle two and so on (CompOFA, Sahni et al. 2021). Kernel sizes are drawn uniformly.

    A stage whose depth is not elastic draws one expand ratio for its layers. Raises InputError at the first epoch if
    the space has not as many depths as expand ratios.
    """

    def subnets(self, space, rng, epoch, epochs, steps):
        depths, expands = np.sort(space.depths), np.sort(space.expands)
        if len(depths) != len(expands):
            raise InputError(
                f"compound settings pair {len(depths)} depths with {len(expands)} expand ratios: expected equal numbers"
            )
        rows = space.sample(steps, rng)
        elastic = 0
        for s, stage in enumerate(space.backbone.stages):
            levels = rng.integers(len(depths), size=steps)
            columns = [space.n_layers + i for i, layer in enumerate(space.layers) if layer.stage == s]
            rows[:, columns] = expands[levels][:, None]
            if stage.elastic_depth:
                rows[:, 2 * space.n_layers + elastic] = depths[levels]
                elastic += 1
        return _steps(space, rows, 1)


@dataclass(frozen=True)
class FlopsAware:
    """A subnet every step whose size is uniform between the smallest and the largest (the FLOPs-aware part of
    AttentiveNAS, Wang et al. 2021), where uniform settings make nearly all subnets of middle size.

    For each, a size is drawn, then `candidates` subnets of all sizes, and the one nearest to the size is taken: the
    settings of a candidate lean to small or large ones by a share of its own.
    """

    candidates: int = 200

    def __post_init__(self):
        check_number(self.candidates, "candidates", 1, whole=True)

    def subnets(self, space, rng, epoch, epochs, steps):
        low, high = space.reference.macs(space.smallest), space.reference.macs(space.largest)
        chosen = []
        for target in rng.uniform(low, high, steps):
            share = rng.uniform(size=(self.candidates, 1))
            columns = [
                np.sort(settings)[rng.binomial(len(settings) - 1, share, (self.candidates, width))]
                for settings, width in space.columns
            ]
            rows = np.concatenate(columns, axis=1).astype(np.int8)
            chosen.append(rows[np.abs(space.reference.macs(rows) - target).argmin()])
        return _steps(space, np.stack(chosen), 1)
