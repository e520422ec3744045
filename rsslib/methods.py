"""Training methods as data: a method is a list of stages, and one trainer runs them all (Table 1 of the paper)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from rsslib.errors import InputError, check_number, choose
from rsslib.samplers import Alternating, Sampler, Successive, Uniform

LEARNING_RATE = 0.01
BATCH_SIZE = 64
DROPOUT = 0.1

# Table 1: epochs of the supernet (s) and of progressive shrinking (ps). CIFAR's hold for datasets it does not list.
TABLE_1 = {"mnist": (10, 27), "fashion_mnist": (25, 57), "cifar10": (180, 410), "cifar100": (180, 410)}
PS_EPOCHS = (120, 25, 120, 25, 120)  # kernel, depth 1, depth 2, width 1, width 2, on CIFAR


Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Stage:
    """A part of training with one sampler and one learning rate curve.

    The curve is a cosine (or constant) from `learning_rate` to 0 over `schedule_epochs`, of which the stage runs
    `epochs`, starting at epoch `first_epoch`: a stage that begins in mid-curve inherits a lowered rate.
    """

    name: str
    epochs: int
    learning_rate: float
    sampler: Sampler
    schedule: Schedule = "cosine"
    first_epoch: int = 0
    schedule_epochs: int | None = None  # None: the stage's own epochs
    distill: bool = False
    sort_channels: tuple[int, ...] | None = None  # before the stage; expand ratios that no channel may cross

    def __post_init__(self):
        choose(self.schedule, ("cosine", "constant"), "schedule")
        if isinstance(self.sampler, type) or not callable(getattr(self.sampler, "subnets", None)):
            raise InputError(f"the sampler is {self.sampler!r}: expected an object with a method subnets, see Sampler")
        check_number(self.epochs, "epochs", 0, whole=True)
        check_number(self.first_epoch, "first_epoch", 0, whole=True)
        check_number(self.learning_rate, "learning_rate", 0)

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of step `step` (of `steps`) of the stage's epoch `epoch`, both from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        total = (self.schedule_epochs or self.epochs) * steps
        position = (self.first_epoch + epoch) * steps + step
        return 0.5 * self.learning_rate * (1 + math.cos(math.pi * position / total))


@dataclass(frozen=True)
class Method:
    """How a supernet is trained.

    `teacher`: "stage" distils from the network as it stood after the first stage, "random" from an untrained network;
    "largest" is in-place distillation (Yu and Huang 2019): of the subnets of a step the first learns from the labels,
    the others from the first's soft labels alone. `fresh_optimizer`: every stage starts with a new optimiser, as a
    process of its own would. `gradients` of a step's subnets are summed, as in OFA, or averaged.
    """

    name: str
    stages: tuple[Stage, ...]
    batch_size: int = BATCH_SIZE
    dropout: float = DROPOUT
    teacher: Literal["stage", "random", "largest"] | None = None
    fresh_optimizer: bool = True
    gradients: Literal["sum", "mean"] = "sum"

    def __post_init__(self):
        check_number(self.batch_size, "batch_size", 2, whole=True)
        check_number(self.dropout, "dropout", 0)
        if self.dropout >= 1:
            raise InputError(f"dropout is {self.dropout!r}: expected a number from 0 up to, not including, 1")
        if self.stages and self.epochs < 1:  # without stages it only stands for its name
            raise InputError(f"method {self.name!r} has no epoch: expected stages of at least one in all")
        if self.teacher is not None:
            choose(self.teacher, ("stage", "random", "largest"), "teacher")
        elif any(stage.distill for stage in self.stages):
            raise InputError(f"method {self.name!r} distils without a teacher: give it as stage, random or largest")
        if self.teacher == "stage" and self.stages and self.stages[0].distill:
            raise InputError(
                f"method {self.name!r} distils in the first stage, at whose end teacher 'stage' is taken: "
                "give the teacher as random or largest"
            )
        choose(self.gradients, ("sum", "mean"), "gradients")

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    @property
    def subnet_epochs(self) -> int:
        """Epochs counted once for each subnet trained in a step."""
        return self.subnet_epochs_of(self.epochs)

    def stands_at(self, stage: int, epoch: int, history: Sequence[Mapping]) -> bool:
        """Whether training by this method is at epoch `epoch` of stage number `stage`, both from 0, after the epochs of
        `history` (rows as `rsslib.trainer.train` writes them); when all is done, at epoch 0 after the last stage."""
        epochs = [*(stage.epochs for stage in self.stages), 0]
        if stage > len(self.stages) or epoch >= max(1, epochs[stage]):  # a stage may have none
            return False
        epochs[stage:] = [epoch]
        names = [stage.name for stage, n in zip(self.stages, epochs, strict=False) for _ in range(n)]
        return [row["stage"] for row in history] == names

    def subnet_epochs_of(self, epochs: int) -> int:
        """The same of the first so many epochs."""
        total = 0
        for stage in self.stages:
            done = min(epochs, stage.epochs)
            total += done * getattr(stage.sampler, "count", 1)
            epochs -= done
        return total


def largest_remainder(weights: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Share `total` in proportion to `weights` in whole numbers; on a tie the earlier gets the remainder."""
    shares = [weight * total // sum(weights) for weight in weights]
    rest = [weight * total % sum(weights) for weight in weights]
    for i in sorted(range(len(weights)), key=lambda i: -rest[i])[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


# --- the study's methods, each a function from Table 1's epochs (s, ps) ---------------------------------------------


def progressive_shrinking(s: int, ps: int) -> Method:
    """OFA as Cai et al. (2020) train it: the supernet, then kernel, depth and width made elastic in turn."""
    kernel, depth1, depth2, width1, width2 = largest_remainder(PS_EPOCHS, ps)
    low, high = LEARNING_RATE / 32.5, LEARNING_RATE / 10.8
    drawn = partial(Uniform, per="batch")
    stages = (
        Stage("supernet", s, LEARNING_RATE, Successive(("largest",))),
        Stage("kernel", kernel, LEARNING_RATE / 2.7, drawn(expands=(6,), depths=(4,)), distill=True),
        Stage("depth 1", depth1, low, drawn(count=2, expands=(6,), depths=(3, 4)), distill=True),
        Stage("depth 2", depth2, high, drawn(count=2, expands=(6,)), distill=True),
        Stage("width 1", width1, low, drawn(count=4, expands=(4, 6)), distill=True, sort_channels=()),
        Stage("width 2", width2, high, drawn(count=4), distill=True, sort_channels=(4,)),
    )
    return Method("ofa", stages, teacher="stage")


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


def one_stage(name: str, epochs: int, sampler: Sampler, schedule: Schedule = "cosine", **settings) -> Method:
    """A method with a single stage, which RSS and all its ablations are; a new sampler needs no more than this.

    `settings` are those of `Method`; with a teacher, the stage distils.
    """
    distill = settings.get("teacher") is not None
    return Method(name, (Stage(name, epochs, LEARNING_RATE, sampler, schedule, distill=distill),), **settings)


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


_BUILDERS: dict[str, Callable[[int, int], Method]] = {"ofa": progressive_shrinking, "ofa-released": released}
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


def build(name: str, supernet_epochs: int, shrinking_epochs: int) -> Method:
    """The method `name` for `supernet_epochs` (s) and `shrinking_epochs` (ps) as in Table 1; RSS trains s + ps.

    The name is one of `METHODS`, which are the paper's, or of `rsslib.beyond.METHODS`. Raises InputError for an unknown
    name or for epochs that are not at least 1.
    """
    from rsslib import beyond  # which is made of this module's parts

    builders = _BUILDERS | beyond.BUILDERS
    choose(name, tuple(builders), "method")
    check_number(supernet_epochs, "supernet_epochs", 1, whole=True)
    check_number(shrinking_epochs, "shrinking_epochs", 1, whole=True)
    return replace(builders[name](supernet_epochs, shrinking_epochs), name=name)


def override(
    method: Method, batch_size: int | None = None, dropout: float | None = None, learning_rate_scale: float = 1.0
) -> Method:
    """`method` with other hyper-parameters; the learning rate of every stage is scaled alike.

    Raises InputError for a value out of range.
    """
    batch_size = method.batch_size if batch_size is None else batch_size
    dropout = method.dropout if dropout is None else dropout
    if not (learning_rate_scale > 0 and math.isfinite(learning_rate_scale)):
        raise InputError(f"learning_rate_scale is {learning_rate_scale!r}: expected a number above 0")
    stages = tuple(replace(s, learning_rate=s.learning_rate * learning_rate_scale) for s in method.stages)
    return replace(method, batch_size=batch_size, dropout=dropout, stages=stages)


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
