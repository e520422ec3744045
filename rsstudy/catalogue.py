"""The methods of the study by name.

The paper's (Table 1), the released code's, their variants, and methods beyond the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, cast

import numpy as np

from rsslib.errors import check_number, choose
from rsslib.methods import LEARNING_RATE, PS_EPOCHS, Method, Schedule, Stage, one_stage, override, progressive_shrinking
from rsslib.population import sample_population
from rsslib.samplers import Alternating, Sampler, Successive, Uniform
from rsslib.space import Arch, SearchSpace
from rsstudy.samplers import Compound, FlopsAware, Sandwich, StrictFairness


@lru_cache(maxsize=256)
def of_bucket(space: SearchSpace, bucket: float, number: int) -> Arch:
    """Subnet `number` (from 0) of a bucket of the population on which every run is evaluated."""
    return sample_population(space, number + 1, [bucket])[number][1]


@dataclass(frozen=True)
class Alone:
    """One subnet of the evaluated population throughout, which so is trained alone: number `number` of its bucket."""

    bucket: float
    number: int

    def __post_init__(self):
        check_number(self.bucket, "bucket", 0)
        check_number(self.number, "number", 0, whole=True)

    def subnets(self, space, rng, epoch, epochs, steps):
        return [(of_bucket(space, self.bucket, self.number),)]


@dataclass(frozen=True)
class Dosed:
    """One subnet of the evaluated population in one of every `every` epochs, and uniform subnets in the others.

    Its epochs are the middle ones of each group of `every`, so that under a cosine schedule their mean learning rate is
    that of all epochs.
    """

    bucket: float
    number: int
    every: int = 3

    def __post_init__(self):
        check_number(self.bucket, "bucket", 0)
        check_number(self.number, "number", 0, whole=True)
        check_number(self.every, "every", 2, whole=True)

    def subnets(self, space, rng, epoch, epochs, steps):
        if epoch % self.every == self.every // 2:
            return [(of_bucket(space, self.bucket, self.number),)]
        return Uniform().subnets(space, rng, epoch, epochs, steps)


@dataclass(frozen=True)
class Repeated:
    """The subnets of another sampler, `times` times in every step: their gradients are summed as those of different
    subnets are."""

    sampler: Sampler
    times: int = 2

    def __post_init__(self):
        check_number(self.times, "times", 1, whole=True)

    @property
    def count(self) -> int:
        return self.times * getattr(self.sampler, "count", 1)

    def subnets(self, space, rng, epoch, epochs, steps):
        return [step * self.times for step in self.sampler.subnets(space, rng, epoch, epochs, steps)]


# Table 1: epochs of the supernet (s) and of progressive shrinking (ps). CIFAR's hold for datasets it does not list.
TABLE_1 = {"mnist": (10, 27), "fashion_mnist": (25, 57), "cifar10": (180, 410), "cifar100": (180, 410)}


def released(s: int, ps: int) -> Method:
    """OFA as the study's released code runs it.

    The teacher is an untrained network; epochs count on from the stage before under a cosine over the running total,
    each stage after kernel skipping its first epoch; momentum carries over; channels are never sorted. At epochs other
    than Table 1's a stage skips the share that one epoch is of it on CIFAR, in whole epochs: mostly none.
    """
    stages, end = [], 0
    for i, stage in enumerate(progressive_shrinking(s, ps).stages):
        on_cifar = PS_EPOCHS[max(0, i - 1)]
        skipped = min(1, stage.epochs) if (s, ps) in TABLE_1.values() else round(stage.epochs / on_cifar)
        skipped = skipped if i >= 2 else 0
        stages.append(replace(
            stage, epochs=stage.epochs - skipped, first_epoch=end + skipped, schedule_epochs=end + stage.epochs,
            sort_channels=None,
        ))  # fmt: skip
        end += stage.epochs
    return Method("ofa-released", tuple(stages), teacher="random", fresh_optimizer=False)


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


def _random_subnets(s: int, ps: int, name: str) -> Method:
    """RSS, RSS-Short (s epochs instead of s + ps) or one of their variants."""
    base = "rss-short" if name.startswith("rss-short") else "rss"
    sampler, schedule = RSS_VARIANTS[name.removeprefix(base)]
    return one_stage(name, s if base == "rss-short" else s + ps, sampler, schedule)


def _overridden(s: int, ps: int, base: str, change: str) -> Method:
    return override(_BUILDERS[base](s, ps), **OVERRIDES[change])


Builder = Callable[[int, int], Method]
_BUILDERS: dict[str, Builder] = {"ofa": progressive_shrinking, "ofa-released": released}
_BUILDERS |= {
    base + suffix: partial(_random_subnets, name=base + suffix)
    for base in ("rss", "rss-short")
    for suffix in RSS_VARIANTS
}
_BUILDERS |= {
    f"{base}-{change}": partial(_overridden, base=base, change=change)
    for base in ("ofa", "ofa-released", "rss-short")
    for change in OVERRIDES
}
METHODS = tuple(_BUILDERS)


# --- subnets alone ----------------------------------------------------------------------------------------------------

STUDY = SearchSpace()
ALONE = {8.0: 10, 4.0: 3, 14.0: 3}  # by bucket, how many of its subnets, the first


@lru_cache(maxsize=256)
def exposure(space: SearchSpace, arch: Arch, draws: int = 20_000) -> float:
    """The share of RSS's updates that reach a parameter of a subnet, a mean over its parameters.

    What a draw shares with a subnet are the parameters of the subnet that has the smaller of their settings everywhere.
    """
    row, drawn = space.to_rows([arch]), space.sample(draws, np.random.default_rng(0))
    return float((space.parameters(np.minimum(row, drawn)) / space.parameters(row)).mean())


def alone(s: int, ps: int, bucket: float, number: int, exposed: bool = False) -> Method:
    """A subnet of the evaluated population trained alone, for RSS's epochs, or for as many as reach it in RSS."""
    epochs = s + ps
    if exposed:
        epochs = max(1, round(epochs * exposure(STUDY, of_bucket(STUDY, bucket, number))))
    return one_stage("", epochs, Alone(bucket, number))


def alone_names(bucket: float, exposed: bool = False) -> list[str]:
    """The names of the methods that train subnets of a bucket alone."""
    return [f"alone-{bucket:g}-{number}{'-exposed' * exposed}" for number in range(ALONE[bucket])]


# --- controls ---------------------------------------------------------------------------------------------------------


CHANGES = ("teacher", "schedule", "optimizer", "unsorted")


def changed_ofa(s: int, ps: int, change: str) -> Method:
    """`ofa` with one of the changes that `ofa-released` makes.

    "optimizer" carries momentum over while the channels are still sorted before the width stages, which reorders the
    weights and not their momentum: what one channel had gathered then moves another. `ofa-released` sorts nothing.
    """
    method, other = progressive_shrinking(s, ps), released(s, ps)
    if change == "teacher":
        return replace(method, teacher=other.teacher)
    if change == "optimizer":
        return replace(method, fresh_optimizer=other.fresh_optimizer)
    fields = {"unsorted": ("sort_channels",), "schedule": ("epochs", "first_epoch", "schedule_epochs")}[change]
    stages = zip(method.stages, other.stages, strict=True)
    return replace(method, stages=tuple(replace(a, **{f: getattr(b, f) for f in fields}) for a, b in stages))


def rss_with(
    s: int, ps: int, sampler: Sampler, schedule: Schedule = "cosine", gradients: Literal["sum", "mean"] = "sum"
) -> Method:
    """RSS with another sampler, schedule, or way to join gradients."""
    return one_stage("", s + ps, sampler, schedule, gradients=gradients)


CONTROLS: dict[str, Builder] = {
    "rss-2-per-batch-mean": partial(rss_with, sampler=Uniform(per="batch", count=2), gradients="mean"),
    "rss-same-twice": partial(rss_with, sampler=Repeated(Uniform(per="batch"), 2)),
    "rss-constant": partial(rss_with, sampler=Uniform(), schedule="constant"),
    "rss-alternating-cosine": partial(rss_with, sampler=Alternating()),
    **{f"ofa-{change}": partial(changed_ofa, change=change) for change in CHANGES},
}

# --- three experiments (docs/experiments.md) --------------------------------------------------------------------------


def bridge(s: int, ps: int, **changes) -> Method:
    """`ofa` with the same changes to every stage; without distillation it has no teacher."""
    method = progressive_shrinking(s, ps)
    stages = tuple(replace(stage, **changes) for stage in method.stages)
    return replace(method, stages=stages, teacher="stage" if any(stage.distill for stage in stages) else None)


def one_subnet_per_step(s: int, ps: int) -> Method:
    """`ofa` with one subnet per step where it has two or four."""
    method = progressive_shrinking(s, ps)
    first, *others = method.stages
    single = (replace(stage, sampler=replace(cast(Uniform, stage.sampler), count=1)) for stage in others)
    return replace(method, stages=(first, *single))


def rss_with_ofa_rates(s: int, ps: int) -> Method:
    """RSS's sampler in stages of the length and learning rate of `ofa`, each with a new optimizer, as there."""
    return bridge(s, ps, sampler=Uniform(), distill=False, sort_channels=None)


def dose(s: int, ps: int, bucket: float, number: int, mixed: bool) -> Method:
    """A subnet trained in the middle one of every three epochs of RSS, with uniform subnets in the others (`mixed`), or
    alone for as many epochs as it has there."""
    sampler = Dosed(bucket, number)
    if mixed:
        return one_stage("", s + ps, sampler)
    own = sum(epoch % sampler.every == sampler.every // 2 for epoch in range(s + ps))
    return one_stage("", max(1, own), Alone(bucket, number))


def rss_after_short(s: int, ps: int) -> Method:
    """RSS that goes on from RSS-Short's weights and momentum, at the epoch where RSS-Short ends.

    The released code loads a checkpoint if its folder holds one, and the default folder is shared.
    """
    short = Stage("short", s, LEARNING_RATE, Uniform())
    rest = Stage("rest", ps, LEARNING_RATE, Uniform(), first_epoch=s, schedule_epochs=s + ps)
    return Method("", (short, rest), fresh_optimizer=False)


BRIDGE: dict[str, Builder] = {
    "ofa-rss-rate": partial(bridge, learning_rate=LEARNING_RATE),
    "ofa-no-distillation": partial(bridge, distill=False),
    "ofa-one-per-step": one_subnet_per_step,
    "rss-ofa-rates": rss_with_ofa_rates,
}
DOSED = {4.0: 3, 8.0: 2, 14.0: 3}  # by bucket, how many of its subnets, the first
DOSES: dict[str, Builder] = {
    f"{'mixed' if mixed else 'dose'}-{bucket:g}-{number}": partial(dose, bucket=bucket, number=number, mixed=mixed)
    for bucket in DOSED
    for number in range(DOSED[bucket])
    for mixed in (False, True)
}

# How long a draw of RSS holds; `rss-per-batch` and `rss` stand for one batch and one epoch.
INTERVALS: dict[str, Builder] = {
    "rss-every-10-batches": partial(rss_with, sampler=Uniform(per="batch", every=10)),
    "rss-every-50-batches": partial(rss_with, sampler=Uniform(per="batch", every=50)),
    "rss-every-3-epochs": partial(rss_with, sampler=Uniform(every=3)),
}

# --- other ways to train a supernet, with RSS's number of subnet passes -----------------------------------------------


def equal_passes(s: int, ps: int, sampler: Sampler, teacher: Literal["largest"] | None = None) -> Method:
    """A method of one stage that runs as many subnets on as many batches as RSS does, in epochs rounded up."""
    return one_stage("", -(-(s + ps) // getattr(sampler, "count", 1)), sampler, teacher=teacher)


def shorter_ofa(s: int, ps: int) -> Method:
    """Progressive shrinking with RSS's number of subnet passes: all of its stages shortened alike.

    A pass of the teacher does not count. Every stage keeps an epoch.
    """
    method = progressive_shrinking(s, ps)
    share = (s + ps) / method.subnet_epochs

    def shortened(stage: Stage) -> Stage:
        return replace(stage, epochs=max(1, round(stage.epochs * share)))

    return replace(method, stages=tuple(map(shortened, method.stages)))


SAMPLERS: dict[str, Builder] = {
    "ofa-equal-passes": shorter_ofa,
    "sandwich": partial(equal_passes, sampler=Sandwich(), teacher="largest"),
    "fair": partial(equal_passes, sampler=StrictFairness()),
    "compound": partial(equal_passes, sampler=Compound()),
    "flops-aware": partial(equal_passes, sampler=FlopsAware()),
}

# --- names ------------------------------------------------------------------------------------------------------------

BUILDERS: dict[str, Builder] = {
    name: partial(alone, bucket=bucket, number=number, exposed=exposed)
    for bucket in ALONE
    for exposed in (False, True)
    for number, name in enumerate(alone_names(bucket, exposed))
}
BUILDERS |= CONTROLS | BRIDGE | DOSES | INTERVALS | SAMPLERS
BUILDERS["rss-after-short"] = rss_after_short
BEYOND = tuple(BUILDERS)


def methods_of(group: str, small: bool = False) -> tuple[str, ...]:
    """The methods that a question needs: "interference", "bridge" and "dose" (docs/experiments.md), or "samplers" for
    what is compared at equal passes.

    `small` leaves out most subnets alone and what parts `ofa` from `ofa-released`. Raises InputError for another group.
    """
    choose(group, ("interference", "bridge", "dose", "samplers"), "group of methods")
    if group == "bridge":
        return ("ofa", "rss", *BRIDGE)
    if group == "dose":
        return (*DOSES, *(name for bucket, n in DOSED.items() for name in alone_names(bucket)[:n]))
    if group == "samplers":
        return ("rss", "rss-per-batch", *SAMPLERS)
    equal, exposed = [name for bucket in ALONE for name in alone_names(bucket)], alone_names(8.0, exposed=True)
    controls = list(CONTROLS)
    if small:
        equal, exposed = equal[:3], exposed[:1]
        controls = [name for name in controls if not name.startswith("ofa-")]
    paper = ("rss-smallest", "rss-middle", "rss-largest", "rss-per-batch", "rss-2-per-batch", "rss-alternating")
    return ("rss", "ofa", "ofa-released", *equal, *exposed, *paper, *controls, *INTERVALS)


def build(name: str, supernet_epochs: int, shrinking_epochs: int) -> Method:
    """The method `name` for `supernet_epochs` (s) and `shrinking_epochs` (ps) as in Table 1; RSS trains s + ps.

    The name is one of `METHODS`, which are the paper's, or of `BEYOND`. Raises InputError for an unknown
    name or for epochs that are not at least 1.
    """
    builders = _BUILDERS | BUILDERS
    choose(name, tuple(builders), "method")
    check_number(supernet_epochs, "supernet_epochs", 1, whole=True)
    check_number(shrinking_epochs, "shrinking_epochs", 1, whole=True)
    return replace(builders[name](supernet_epochs, shrinking_epochs), name=name)


def table_1() -> list[dict[str, object]]:
    """Table 1 of the paper, computed from the methods: epochs of each method on each dataset."""
    built = {data: [build(name, *TABLE_1[data]) for name in ("ofa", "rss-short", "rss")] for data in TABLE_1}
    return [
        {
            "dataset": dataset, "OFA (supernet)": ofa.stages[0].epochs,
            "OFA (progressive shrinking)": ofa.epochs - ofa.stages[0].epochs,
            "RSS-Short": short.epochs, "RSS": rss.epochs,
        }
        for dataset, (ofa, short, rss) in built.items()
    ]  # fmt: skip
