"""The methods of the study by name.

The paper's (Table 1), the released code's, their variants, and methods beyond the paper.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

import numpy as np

from rsslib.errors import Count, Natural, checked, choose
from rsslib.methods import (
    FIRST_4X_APART,
    LEARNING_RATE,
    PS_EPOCHS,
    Method,
    Schedule,
    Stage,
    override,
    progressive_shrinking,
)
from rsslib.population import sample_population
from rsslib.samplers import Alternating, Sampler, Successive, Uniform
from rsslib.space import Arch, SearchSpace
from rsstudy.samplers import ComplexityAware, Compound, FlopsAware, Sandwich, SizeAware, StrictFairness

# Table 1: epochs of the supernet (s) and of progressive shrinking (ps). CIFAR's hold for datasets it does not list.
TABLE_1 = {"mnist": (10, 27), "fashion_mnist": (25, 57), "cifar10": (180, 410), "cifar100": (180, 410)}

Builder = Callable[[str, int, int], Method]  # makes a method from its name, s and ps


# --- samplers ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def of_bucket(space: SearchSpace, bucket: float, number: int) -> Arch:
    """Return subnet `number` (from 0) of a bucket of the population on which every run is evaluated."""
    return sample_population(space, number + 1, [bucket])[number][1]


@checked
@dataclass(frozen=True)
class Alone:
    """Always the same subnet: number `number` of bucket `bucket` of the evaluated population."""

    bucket: Annotated[float, 0, None]
    number: Natural

    def subnets(self, space, rng, epoch, epochs, steps):
        return [(of_bucket(space, self.bucket, self.number),)]


@checked
@dataclass(frozen=True)
class Dosed(Alone):
    """The subnet of `Alone` in one of every `every` epochs, uniform subnets in the others.

    Its epochs are in the middle of each group of `every`, so that under a cosine schedule their mean learning rate is
    that of all epochs.
    """

    every: Count = 3

    def subnets(self, space, rng, epoch, epochs, steps):
        if epoch % self.every == self.every // 2:
            return super().subnets(space, rng, epoch, epochs, steps)
        return Uniform().subnets(space, rng, epoch, epochs, steps)


@checked
@dataclass(frozen=True)
class Repeated:
    """The subnets of another sampler, `times` times in every step, with gradients summed as for different subnets."""

    sampler: Sampler
    times: Count = 2

    @property
    def count(self) -> int:
        return self.times * getattr(self.sampler, "count", 1)

    def subnets(self, space, rng, epoch, epochs, steps):
        return [step * self.times for step in self.sampler.subnets(space, rng, epoch, epochs, steps)]


# --- builders ---------------------------------------------------------------------------------------------------------


def rss(
    sampler: Sampler,
    schedule: Schedule = "cosine",
    epochs: Callable[[int, int], int] = lambda s, ps: s + ps,
    stage: str = "",
    **settings: Any,
) -> Builder:
    """Return a builder of methods of one stage, as RSS is; `settings` are those of `Method`.

    With a teacher, the stage distils. Records hold the name of the stage, which methods beyond the paper leave empty.
    """

    def build(name: str, s: int, ps: int) -> Method:
        only = Stage(stage, epochs(s, ps), LEARNING_RATE, sampler, schedule, distill="teacher" in settings)
        return Method(name, (only,), **settings)

    return build


def ofa(
    change: Callable[[Method], Iterable[Stage]] = lambda method: method.stages,
    teacher: Literal["stage", "random"] | None = "stage",
    fresh_optimizer: bool = True,
    **settings: Any,
) -> Builder:
    """Return a builder of progressive shrinking with changed stages; `settings` are those of every `Stage`."""

    def build(name: str, s: int, ps: int) -> Method:
        stages = change(progressive_shrinking(s, ps))
        stages = tuple(replace(stage, **settings) for stage in stages)
        return Method(name, stages, teacher=teacher, fresh_optimizer=fresh_optimizer)

    return build


def overridden(base: str, changes: dict[str, Any]) -> Builder:
    """Return a builder of another method with changed hyper-parameters; `changes` are those of `override`."""
    return lambda name, s, ps: replace(override(build(base, s, ps), **changes), name=name)


# --- the paper's methods ----------------------------------------------------------------------------------------------


def released_schedule(method: Method) -> Iterator[Stage]:
    """Count epochs on from the stage before, under a cosine over the running total, as the study's released code does.

    Each stage after kernel skips its first epoch. At epochs other than Table 1's a stage skips the share that one epoch
    is of it on CIFAR, in whole epochs: mostly none.
    """
    s = method.stages[0].epochs
    at_table_1 = (s, method.epochs - s) in TABLE_1.values()
    end = 0
    for i, stage in enumerate(method.stages):
        skipped = 0
        if i >= 2:
            skipped = min(1, stage.epochs) if at_table_1 else round(stage.epochs / PS_EPOCHS[i - 1])
        start, end = end + skipped, end + stage.epochs
        yield replace(stage, epochs=end - start, first_epoch=start, schedule_epochs=end)


# What RSS and RSS-Short train, by the suffix of the method's name: sampler and learning rate schedule.
RSS_VARIANTS: dict[str, tuple[Sampler, Schedule]] = {
    "": (Uniform(), "cosine"),
    "-per-batch": (Uniform(per="batch"), "cosine"),
    "-2-per-batch": (Uniform(per="batch", count=2), "cosine"),
    "-smallest": (Successive(("smallest",)), "cosine"),
    "-middle": (Successive(("middle",)), "cosine"),
    "-largest": (Successive(("largest",)), "cosine"),
    "-max-then-min": (Successive(("largest", "smallest")), "constant"),
    "-min-then-max": (Successive(("smallest", "largest")), "constant"),
    "-alternating": (Alternating(), "constant"),
}

# The hyper-parameter study (supplement, section 2), by the suffix of the method's name.
OVERRIDES: dict[str, dict[str, Any]] = {
    "batch-128": {"batch_size": 128},
    "dropout-0.3": {"dropout": 0.3},
    "lr-0.02": {"learning_rate_scale": 2.0},
}

BUILDERS = {
    "ofa": ofa(),
    "ofa-released": ofa(released_schedule, teacher="random", fresh_optimizer=False, sort_channels=None),
}
BUILDERS |= {f"rss{name}": rss(*variant, stage=f"rss{name}") for name, variant in RSS_VARIANTS.items()}
BUILDERS |= {
    f"rss-short{name}": rss(*variant, lambda s, ps: s, f"rss-short{name}") for name, variant in RSS_VARIANTS.items()
}
BUILDERS |= {
    f"{base}-{change}": overridden(base, changes)
    for base in ("ofa", "ofa-released", "rss-short")
    for change, changes in OVERRIDES.items()
}
METHODS = tuple(BUILDERS)


# --- methods about one subnet -----------------------------------------------------------------------------------------

STUDY = SearchSpace()


@lru_cache(maxsize=256)
def exposure(space: SearchSpace, arch: Arch, blocks: bool = False, draws: int = 20_000) -> float:
    """Return the share of RSS's updates that reach a parameter of a subnet, averaged over its parameters.

    A subnet and a draw share the parameters of the subnet that has the smaller of their settings everywhere. With
    `blocks`, only the elastic layers' parameters count: a third to half of all are head and classifier, which every
    update reaches.
    """
    row, drawn = space.to_rows([arch]), space.sample(draws, np.random.default_rng(0))
    common, whole = np.minimum(row, drawn), row
    if blocks:
        common, whole = (space.total(rows, space.tables[1], 0) for rows in (common, whole))
    else:
        common, whole = map(space.parameters, (common, whole))
    return float((common / whole).mean())


def on_subnet(bucket: float, number: int, share: Callable[[Arch], float] = lambda arch: 1.0) -> Builder:
    """Return a builder of a method that trains one subnet of the evaluated population, for a share of RSS's epochs."""

    def epochs(s: int, ps: int) -> int:
        return max(1, round((s + ps) * share(of_bucket(STUDY, bucket, number))))

    return rss(Alone(bucket, number), epochs=epochs)


SUBNETS = {  # the first of three buckets
    f"{bucket:g}-{number}": (bucket, number)
    for bucket, count in {8.0: 10, 4.0: 3, 14.0: 3}.items()
    for number in range(count)
}
DOSED = ("4-0", "4-1", "4-2", "8-0", "8-1", "14-0", "14-1", "14-2")

# Alone for RSS's epochs, for as many as reach the subnet in RSS, and for as many as reach its elastic layers.
ALONE, EXPOSED, BLOCKS = {}, {}, {}
for name, subnet in SUBNETS.items():
    ALONE[f"alone-{name}"] = on_subnet(*subnet)
    EXPOSED[f"alone-{name}-exposed"] = on_subnet(*subnet, partial(exposure, STUDY))
    if subnet[0] == 8:
        BLOCKS[f"alone-{name}-blocks"] = on_subnet(*subnet, partial(exposure, STUDY, blocks=True))

# A subnet in one of every three epochs of RSS, and alone for as many epochs.
DOSES = {}
for name in DOSED:
    DOSES[f"dose-{name}"] = on_subnet(*SUBNETS[name], lambda arch: 1 / Dosed.every)
    DOSES[f"mixed-{name}"] = rss(Dosed(*SUBNETS[name]))


# --- controls, and experiments (docs/experiments.md) ------------------------------------------------------------------


def one_per_step(method: Method) -> Iterator[Stage]:
    """Train one subnet per step where there are two or four."""
    for stage in method.stages:
        sampler = stage.sampler
        yield replace(stage, sampler=replace(sampler, count=1) if isinstance(sampler, Uniform) else sampler)


def rss_after_short(name: str, s: int, ps: int) -> Method:
    """Continue RSS from RSS-Short's weights and momentum, at the epoch where RSS-Short ends.

    The released code loads a checkpoint if its folder holds one, and the default folder is shared.
    """
    short = Stage("short", s, LEARNING_RATE, Uniform())
    rest = Stage("rest", ps, LEARNING_RATE, Uniform(), first_epoch=s, schedule_epochs=s + ps)
    return Method(name, (short, rest), fresh_optimizer=False)


# RSS with one change, and the changes that `ofa-released` makes one by one. `ofa-optimizer` carries momentum over while
# channels are still sorted: sorting reorders weights but not their momentum, so what one channel had gathered moves
# another.
CONTROLS = {
    "rss-2-per-batch-mean": rss(Uniform(per="batch", count=2), gradients="mean"),
    "rss-same-twice": rss(Repeated(Uniform(per="batch"))),
    "rss-constant": rss(Uniform(), "constant"),
    "rss-alternating-cosine": rss(Alternating()),
    "ofa-teacher": ofa(teacher="random"),
    "ofa-schedule": ofa(released_schedule),
    "ofa-optimizer": ofa(fresh_optimizer=False),
    "ofa-unsorted": ofa(sort_channels=None),
}

# From OFA to RSS. The last has RSS's sampler, in stages of OFA's lengths and learning rates.
BRIDGE = {
    "ofa-rss-rate": ofa(learning_rate=LEARNING_RATE),
    "ofa-no-distillation": ofa(teacher=None, distill=False),
    "ofa-one-per-step": ofa(one_per_step),
    "rss-ofa-rates": ofa(teacher=None, distill=False, sampler=Uniform(), sort_channels=None),
}

# How long RSS keeps a draw; `rss-per-batch` and `rss` keep it for one batch and one epoch.
INTERVALS = {
    "rss-every-10-batches": rss(Uniform(per="batch", every=10)),
    "rss-every-50-batches": rss(Uniform(per="batch", every=50)),
    "rss-every-3-epochs": rss(Uniform(every=3)),
}


# --- other ways to train a supernet, with RSS's number of subnet passes -----------------------------------------------


def equal_passes(sampler: Sampler, **settings: Any) -> Builder:
    """Return a builder of methods that run as many subnets on as many batches as RSS does, in epochs rounded up."""
    count = getattr(sampler, "count", 1)
    return rss(sampler, epochs=lambda s, ps: -(-(s + ps) // count), **settings)


def shorter(method: Method) -> Iterator[Stage]:
    """Shorten all stages alike, to RSS's number of subnet passes. Those of the teacher do not count.

    Every stage keeps an epoch.
    """
    for stage in method.stages:
        yield replace(stage, epochs=max(1, round(stage.epochs * method.epochs / method.subnet_epochs)))


SAMPLERS = {
    "ofa-equal-passes": ofa(shorter),
    "sandwich-rule": equal_passes(Sandwich(), teacher="largest", student_dropout=False),
    "fair": equal_passes(StrictFairness()),
    "compound": equal_passes(Compound()),
    "size-aware": equal_passes(SizeAware()),
}


def delayed_shrinking(name: str, s: int, ps: int) -> Method:
    """Train the largest subnet alone for 145 of every 270 epochs, then follow the sandwich rule (Annavajjala 2024).

    All but the largest start slowly, over 5 of every 270 epochs and at least one (`Stage.share`). There are as many
    subnet passes as in RSS, in epochs rounded up.
    """
    epochs = max(2, -(-(s + ps) * 270 // (145 + Sandwich().count * 125)))
    alone = epochs * 145 // 270
    first = Stage("alone", alone, LEARNING_RATE, Successive(("largest",)), schedule_epochs=epochs)
    rest = Stage(
        "sandwich",
        epochs - alone,
        LEARNING_RATE,
        Sandwich(),
        first_epoch=alone,
        schedule_epochs=epochs,
        distill=True,
        sort_channels=FIRST_4X_APART,
        ramp_epochs=max(1, round(epochs * 5 / 270)),
    )
    return Method(name, (first, rest), teacher="largest", fresh_optimizer=False, student_dropout=False)


# Rivals of 2024 and later, at RSS's number of subnet passes.
RIVALS = {
    "complexity-aware": rss(Uniform(per="batch"), ComplexityAware()),
    "delayed-shrinking": delayed_shrinking,
}

# Kept for stored runs: all subnets of the sandwich with dropout, unlike its authors' code, and binomial choices.
SUPERSEDED = {
    "sandwich": equal_passes(Sandwich(), teacher="largest"),
    "flops-aware": equal_passes(FlopsAware()),
}

# The rate that suits a method depends on its number of subnets per step and on which they are.
RATES = {"third-rate": 1 / 3, "triple-rate": 3.0}
RATED = ("rss", "rss-per-batch", "rss-every-50-batches", *SAMPLERS)
OTHERS = ("ofa-equal-passes", "sandwich", "fair", "compound", "flops-aware")  # with stored runs at one rate


def base_and_rate(name: str) -> tuple[str, float]:
    """Return the name of the method at RSS's learning rate, and the rate relative to it."""
    for suffix, rate in RATES.items():
        if name.endswith(f"-{suffix}"):
            return name.removesuffix(f"-{suffix}"), rate
    return name, 1.0


# --- names ------------------------------------------------------------------------------------------------------------

BUILDERS |= ALONE | EXPOSED | BLOCKS | CONTROLS | BRIDGE | DOSES | INTERVALS | SUPERSEDED | SAMPLERS | RIVALS
BUILDERS["rss-after-short"] = rss_after_short
BUILDERS |= {
    f"{base}-{rate}": overridden(base, {"learning_rate_scale": scale})
    for base in RATED
    for rate, scale in RATES.items()
}
BEYOND = tuple(BUILDERS)[len(METHODS) :]


def methods_of(group: str, small: bool = False) -> tuple[str, ...]:
    """Return the methods that a question needs: "interference", "bridge", "dose" (docs/experiments.md), "samplers",
    "rates" (the samplers at three learning rates each) or "hyperparameters".

    `small` leaves out the hyper-parameters of OFA, and a doubled learning rate. Raises InputError for another group.
    """
    paper = ("rss-smallest", "rss-middle", "rss-largest", "rss-per-batch", "rss-2-per-batch", "rss-alternating")
    bases = ("rss-short", "ofa", "ofa-released")[: 1 if small else 3]
    changes = ("", "-batch-128", "-dropout-0.3", "-lr-0.02")[: 3 if small else 4]
    groups = {
        "interference": (
            "rss",
            "ofa",
            "ofa-released",
            *ALONE,
            *tuple(EXPOSED)[:10],
            *BLOCKS,
            *paper,
            *CONTROLS,
            *INTERVALS,
        ),
        "bridge": ("ofa", "rss", *BRIDGE),
        "dose": (*DOSES, *(f"alone-{name}" for name in DOSED)),
        "samplers": (*RATED[:3], *OTHERS),
        "rates": (*RATED, *RIVALS, *(f"{base}-{rate}" for base in RATED for rate in RATES)),
        "hyperparameters": tuple(f"{base}{change}" for base in bases for change in changes),
    }
    return groups[choose(group, groups, "group of methods")]


@checked
def build(name: str, supernet_epochs: Count, shrinking_epochs: Count) -> Method:
    """Return the method `name` for `supernet_epochs` (s) and `shrinking_epochs` (ps) as in Table 1; RSS trains s + ps.

    The name is one of `METHODS`, which are the paper's, or of `BEYOND`. Raises InputError for an unknown name or for
    epochs below 1.
    """
    choose(name, BUILDERS, "method")
    return BUILDERS[name](name, supernet_epochs, shrinking_epochs)


def table_1() -> list[dict[str, object]]:
    """Return Table 1 of the paper: epochs of each method on each dataset."""
    return [
        {
            "dataset": dataset,
            "OFA (supernet)": s,
            "OFA (progressive shrinking)": ps,
            "RSS-Short": s,
            "RSS": s + ps,
        }
        for dataset, (s, ps) in TABLE_1.items()
    ]
