"""Training methods as data: a method is a list of stages, and one trainer runs them all."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from rsslib.errors import Count, InputError, Natural, checked
from rsslib.samplers import Sampler, Successive, Uniform

LEARNING_RATE = 0.01
BATCH_SIZE = 64
DROPOUT = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 3e-5
PS_EPOCHS = (120, 25, 120, 25, 120)  # kernel, depth 1, depth 2, width 1, width 2, on CIFAR

Schedule = Literal["cosine", "constant"] | Callable[..., float]
Share = Annotated[float, 0, 1]
Dropout = Annotated[float, 0, 0.99]

# How channels are sorted before a stage: expand ratios that no channel may cross; None: no sorting.
ALL_TOGETHER: tuple[int, ...] = ()
FIRST_4X_APART: tuple[int, ...] = (4,)


@checked
@dataclass(frozen=True)
class Stage:
    """A part of training with one sampler and one learning rate curve.

    The curve is a cosine from `learning_rate` to 0 over `schedule_epochs`, a constant, or `learning_rate` times a
    function of progress from 0 to 1. If the function has an attribute `by_complexity`, it also gets the complexity of
    the step's subnets: 0 for the smallest, 1 for the largest, by the logarithm of parameters. With `warmup_epochs`, the
    rate first grows from 0 in equal steps, and the curve covers the remaining epochs. The stage runs `epochs` of these,
    starting at epoch `first_epoch`, so a stage that begins in mid-curve inherits a lower rate. With `distill`, the
    method's teacher adds to the loss. `ramp_epochs` phases in all subnets of a step but the first slowly (see
    `share`). Raises InputError for an invalid value.
    """

    name: str
    epochs: Natural
    learning_rate: Annotated[float, 0, None]
    sampler: Sampler
    schedule: Schedule = "cosine"
    first_epoch: Natural = 0
    schedule_epochs: Count | None = None  # None: the stage's own epochs
    distill: bool = False
    sort_channels: tuple[int, ...] | None = None
    warmup_epochs: Natural = 0
    ramp_epochs: Natural = 0

    def __post_init__(self):
        if self.warmup_epochs > max(0, self.schedule_epochs or self.epochs):
            raise InputError(f"warmup_epochs is {self.warmup_epochs}: expected at most the stage's epochs")
        if isinstance(self.sampler, type) or not callable(getattr(self.sampler, "subnets", None)):
            raise InputError(f"the sampler is {self.sampler!r}: expected an object with a method subnets, see Sampler")

    @property
    def by_complexity(self) -> bool:
        """Return whether learning rates depend on the complexity of a step's subnets."""
        return getattr(self.schedule, "by_complexity", False)

    def rate(self, epoch: int, step: int, steps: int, complexity: float = 0.0) -> float:
        """Return the learning rate of step `step` (of `steps`) of the stage's epoch `epoch`; both count from 0."""
        warmup = self.warmup_epochs * steps
        total = (self.schedule_epochs or self.epochs) * steps - warmup
        position = (self.first_epoch + epoch) * steps + step - warmup
        if position < 0:
            return self.learning_rate * (warmup + position + 1) / warmup
        if callable(self.schedule):
            known = (complexity,) if self.by_complexity else ()
            return self.learning_rate * self.schedule(position / total, *known)
        if self.schedule == "constant":
            return self.learning_rate
        return 0.5 * self.learning_rate * (1 + math.cos(math.pi * position / total))

    def share(self, epoch: int, step: int, steps: int) -> float:
        """Return the factor for the gradients of all but the first subnet of step `step` (of `steps`) of epoch `epoch`.

        It is 1 except in the first `ramp_epochs`. There, the learning rate times the factor grows from 0, in equal
        steps, to the learning rate at their end (Annavajjala et al. 2024).
        """
        done, ramp = epoch * steps + step + 1, self.ramp_epochs * steps
        now = self.rate(epoch, step, steps)
        if done > ramp or now == 0:
            return 1.0
        return done / ramp * self.rate(self.ramp_epochs, 0, 1) / now


@checked
@dataclass(frozen=True)
class Method:
    """How a supernet is trained.

    `teacher`: "stage" distils from the network after the first stage, and "random" from an untrained network. "largest"
    is in-place distillation (Yu and Huang 2019): the first subnet of a step learns from the labels, and the others only
    from the soft labels of the first. With `fresh_optimizer`, every stage starts with a new optimizer, as in its own
    process. `gradients` of a step's subnets are summed, as in OFA, or averaged. Without `student_dropout`, the other
    subnets of in-place distillation have no dropout (Yu et al. 2020). `groups` divides the images of a batch among
    processes, which normalise them separately (see `rsslib.parallel`). Raises InputError for an invalid value.
    """

    name: str
    stages: tuple[Stage, ...]
    batch_size: Annotated[int, 2, None] = BATCH_SIZE
    dropout: Dropout = DROPOUT
    teacher: Literal["stage", "random", "largest"] | None = None
    fresh_optimizer: bool = True
    gradients: Literal["sum", "mean"] = "sum"
    student_dropout: bool = True
    momentum: Annotated[float, 0, 0.999] = MOMENTUM
    weight_decay: Annotated[float, 0, None] = WEIGHT_DECAY
    label_smoothing: Share = 0.0
    augmentation: Share = 1.0
    groups: Count = 1

    def __post_init__(self):
        if self.groups > self.batch_size // 2:
            raise InputError(f"groups is {self.groups}: expected at most {self.batch_size // 2}, of 2 images each")
        if self.stages and self.epochs < 1:  # records of other methods are read without stages
            raise InputError(f"method {self.name!r} has no epoch: expected stages of at least one in all")
        distilled = [stage.distill for stage in self.stages]
        if any(distilled) and self.teacher is None:
            raise InputError(f"method {self.name!r} distils without a teacher: give it as stage, random or largest")
        if any(distilled[:1]) and self.teacher == "stage":
            raise InputError(
                f"method {self.name!r} distils in the first stage, at whose end teacher 'stage' is taken: "
                "give the teacher as random or largest"
            )

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def dropout_of(self, student: bool) -> float:
        """Return the dropout of a subnet, which may be a student in in-place distillation."""
        return 0.0 if student and not self.student_dropout else self.dropout

    @property
    def subnet_epochs(self) -> int:
        """Return the number of epochs, each counted once per subnet of a step."""
        return sum(stage.epochs * getattr(stage.sampler, "count", 1) for stage in self.stages)

    def stands_at(self, stage: int, epoch: int, history: Sequence[Mapping]) -> bool:
        """Return whether epoch `epoch` of stage number `stage` (both from 0) comes next after the epochs in `history`.

        `history` holds rows as `rsslib.trainer.train` writes them. After all epochs, epoch 0 of one stage beyond the
        last comes next.
        """
        names = [s.name for s in self.stages for _ in range(s.epochs)]
        done = sum(s.epochs for s in self.stages[:stage]) + epoch
        inside = epoch == 0 or any(epoch < s.epochs for s in self.stages[stage : stage + 1])
        return inside and [row["stage"] for row in history] == names[:done]


def largest_remainder(weights: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Divide `total` in proportion to `weights` in whole numbers; on a tie, the earlier entry gets the remainder.

    >>> largest_remainder((120, 25, 120, 25, 120), 27)
    (8, 2, 8, 1, 8)
    """
    shares = [weight * total // sum(weights) for weight in weights]
    left = [weight * total % sum(weights) for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: left[i], reverse=True)
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def progressive_shrinking(s: int, ps: int) -> Method:
    """Return OFA as Cai et al. (2020) train it: the supernet for `s` epochs, then elastic kernel, depth and width.

    The five stages of progressive shrinking divide `ps` epochs in the proportions of Table 1.
    """
    kernel, depth1, depth2, width1, width2 = largest_remainder(PS_EPOCHS, ps)
    low, high = LEARNING_RATE / 32.5, LEARNING_RATE / 10.8
    drawn = partial(Uniform, per="batch")
    shrink = partial(Stage, distill=True)
    stages = (
        Stage("supernet", s, LEARNING_RATE, Successive(("largest",))),
        shrink("kernel", kernel, LEARNING_RATE / 2.7, drawn(expands=(6,), depths=(4,))),
        shrink("depth 1", depth1, low, drawn(count=2, expands=(6,), depths=(3, 4))),
        shrink("depth 2", depth2, high, drawn(count=2, expands=(6,))),
        shrink("width 1", width1, low, drawn(count=4, expands=(4, 6)), sort_channels=ALL_TOGETHER),
        shrink("width 2", width2, high, drawn(count=4), sort_channels=FIRST_4X_APART),
    )
    return Method("ofa", stages, teacher="stage")


@checked
def one_stage(
    name: str,
    epochs: Natural,
    sampler: Sampler,
    schedule: Schedule = "cosine",
    learning_rate: float = LEARNING_RATE,
    warmup_epochs: int = 0,
    **fields,
) -> Method:
    """Return a method with a single stage, such as RSS and its ablations. A new sampler needs only this.

    `schedule` and `warmup_epochs` are those of `Stage`, `fields` those of `Method`. With a teacher, the stage distils.
    """
    distill = fields.get("teacher") is not None
    stage = Stage(name, epochs, learning_rate, sampler, schedule, distill=distill, warmup_epochs=warmup_epochs)
    return Method(name, (stage,), **fields)


@checked
def override(method: Method, learning_rate_scale: Annotated[float, 1e-6, None] = 1.0, **fields) -> Method:
    """Return `method` with other fields, such as batch_size or dropout, and every learning rate scaled by one factor.

    Raises InputError for a value out of range.
    """
    stages = tuple(replace(s, learning_rate=s.learning_rate * learning_rate_scale) for s in method.stages)
    return replace(method, stages=stages, **fields)
