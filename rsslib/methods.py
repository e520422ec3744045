"""Training methods as data: a method is a list of stages, and one trainer runs them all (Table 1 of the paper)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from rsslib.errors import InputError, check_number, choose
from rsslib.samplers import Sampler, Successive, Uniform

LEARNING_RATE = 0.01
BATCH_SIZE = 64
DROPOUT = 0.1
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


def one_stage(name: str, epochs: int, sampler: Sampler, schedule: Schedule = "cosine", **settings) -> Method:
    """A method with a single stage, which RSS and all its ablations are; a new sampler needs no more than this.

    `settings` are those of `Method`; with a teacher, the stage distils.
    """
    distill = settings.get("teacher") is not None
    return Method(name, (Stage(name, epochs, LEARNING_RATE, sampler, schedule, distill=distill),), **settings)


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
