"""What training one subnet does to others, measured: effects of steps and epochs, agreement of gradients.

`effects` and `agreement` take any quality and gradient functions; `Trial` gives those of a supernet in training.
"""

import copy
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from rsslib import files
from rsslib.checkpoint import identity_of, restore
from rsslib.data.augmentation import augment, draw_augmentation
from rsslib.data.dataset import Dataset
from rsslib.device import evaluation_threads, own_stream
from rsslib.errors import InputError
from rsslib.evaluate import Evaluator, LabelledBatches, evaluate_each, recalibration_images
from rsslib.methods import Method
from rsslib.population import sample_population
from rsslib.progress import progress_bar
from rsslib.samplers import Uniform, drawn_steps, randomness
from rsslib.space import Arch, SearchSpace
from rsslib.steps import EagerSteps, TrainingState, Views, add_gradients, cross_entropy, set_rate
from rsslib.supernet import batch_norm_training, subnet_slices
from rsslib.trainer import steps_per_epoch, train
from rsstudy.engine import executor_for
from rsstudy.plan import Run
from rsstudy.store import AGREEMENT, EFFECTS, FORGETTING, has_table

Index = Mapping[str, tuple]  # parts of tensors by their names


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    At each of `shares` of a method's epochs: the effect of a step, a mean over `batches`; that of an epoch, once; and
    gradients of as many batches as `gradients` says. Subnets are one in `every` of `subjects`, judged on `images`
    validation images with batch norm statistics of `recalibration` training images.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.95)
    batches: int = 20
    gradients: int = 40
    images: int = 512
    recalibration: int = 400
    every: int = 1
    idle: int = 8  # subnets that are never drawn, beside which `forgetting` follows those that are
    followed_images: int = 2_000  # validation images on which it judges them, and of training for recalibration

    def epochs(self, method: Method) -> dict[int, float]:
        """The epochs after which to measure, and their share of all."""
        return {max(1, round(share * method.epochs)): share for share in self.shares}


# --- the two measurements, for anything that is trained ---------------------------------------------------------------


def effects(subnets: Sequence[Hashable], quality_after: Callable[[Any], np.ndarray]) -> np.ndarray:
    """What training each subnet does to each, float64 [trained, judged, ...]; positive is transfer, negative harm.

    `quality_after(subnet)` trains the subnet from one and the same state, and returns the quality of all afterwards,
    [judged, ...], larger for better; `quality_after(None)` does all the same with a gradient of zero, so that what
    momentum and weight decay do by themselves is taken off.
    """
    nothing = quality_after(None)
    return np.stack([quality_after(subnet) - nothing for subnet in subnets])


def agreement(
    subnets: Sequence[Hashable],
    gradient: Callable[[Any, Any], Mapping[str, Tensor]],
    shared: Callable[[Any, Any], Index],
    batches: Iterable[Any],
    part_of: Callable[[str], str] = lambda name: "all",
) -> pd.DataFrame:
    """How far the gradients of subnets agree on the weights that they share, free of the noise of batches.

    `gradient(subnet, batch)` gives tensors of full size by name, `shared(a, b)` the index of what both subnets have in
    each, `batches` at least two. <A, B> is the mean product of A's gradient of one batch and B's of *another*, over all
    two batches, which is that of their expectations (a U-statistic; Hoeffding, 1948). The agreement of A and B is
    <A, B> over the root of <A, A> <B, B>: 1 where they differ by the batch alone, 0 for directions that have nothing in
    common, below for such that oppose each other.

    Returns a row for each two subnets, also of a subnet with itself, and part (`part_of` a tensor's name; "all" is all
    of them): a, b (their numbers), part, shared (weights); cross, own_a, own_b (<A, B>, <A, A> and <B, B> over the root
    mean squares of the gradients, as cosines are); and agreement, NaN where own_a or own_b is not above 0: there noise
    is all that can be seen. Raises InputError for fewer than two batches.
    """
    regions = {(i, j): shared(a, b) for i, a in enumerate(subnets) for j, b in enumerate(subnets) if i <= j}
    sums: list[dict[str, Tensor]] = [{} for _ in subnets]  # of gradients, over batches
    same: dict[tuple[int, int, str], np.ndarray] = {}  # products of gradients of one batch, summed over batches
    n = 0
    for batch in batches:
        n += 1
        made = [gradient(subnet, batch) for subnet in subnets]
        sums = [{name: g + total.get(name, 0) for name, g in m.items()} for m, total in zip(made, sums, strict=True)]
        for key, products in _products(made, regions, part_of).items():
            same[key] = same.get(key, 0) + products
    if n < 2:
        raise InputError(f"agreement needs at least two batches, got {n}")
    rows = []
    for key, (ab, aa, bb, size) in _products(sums, regions, part_of).items():
        ab_same, aa_same, bb_same, _ = same[key]
        cross = _cosine(ab - ab_same, aa_same, bb_same) / (n - 1)
        own_a = _cosine(aa - aa_same, aa_same, aa_same) / (n - 1)
        own_b = _cosine(bb - bb_same, bb_same, bb_same) / (n - 1)
        value = cross / math.sqrt(own_a * own_b) if own_a > 0 and own_b > 0 else math.nan
        rows.append((*key, int(size), cross, own_a, own_b, value))
    return pd.DataFrame(rows, columns=["a", "b", "part", "shared", "cross", "own_a", "own_b", "agreement"])


def _products(
    gradients: Sequence[Mapping[str, Tensor]], regions: Mapping[tuple[int, int], Index], part_of: Callable[[str], str]
) -> dict[tuple[int, int, str], np.ndarray]:
    """For each two subnets and part: the products A B, A A and B B of their gradients on the shared weights, and how
    many weights these are."""
    found: dict[tuple[int, int, str], np.ndarray] = {}
    for (i, j), region in regions.items():
        for name, index in region.items():
            a, b = (gradients[k][name][index].flatten().double() for k in (i, j))
            products = np.array([*torch.stack([a @ b, a @ a, b @ b]).tolist(), len(a)])
            for part in dict.fromkeys(("all", part_of(name))):  # a set has another order in each process
                found[i, j, part] = found.get((i, j, part), 0) + products
    return found


def _cosine(product: float, square_a: float, square_b: float) -> float:
    return product / math.sqrt(square_a * square_b) if square_a > 0 and square_b > 0 else 0.0


# --- a supernet in training -------------------------------------------------------------------------------------------


def subjects(space: SearchSpace) -> list[Arch]:
    """The subnets that are measured: the smallest, the first of each bucket of the population, and the largest."""
    return [space.smallest, *(arch for _, arch in sample_population(space, 1)), space.largest]


def distance(space: SearchSpace, a: Arch, b: Arch) -> int:
    """How many settings of two subnets differ, those of unused layers left out."""
    rows = space.to_rows([a, b])
    first, second = np.where(space.used(rows), rows, 0)
    return int((first != second).sum())


def shared_weights(space: SearchSpace, a: Arch, b: Arch) -> Index:
    """For each parameter that both subnets use: the index of their common part, which is the smaller one's."""
    own, theirs = subnet_slices(space, a), subnet_slices(space, b)
    smaller = space.to_arch(np.minimum(*space.to_rows([a, b])))
    common = subnet_slices(space, smaller)
    return {name: index for name, index in common.items() if name in own and name in theirs and "running" not in name}


def part_of(name: str) -> str:
    """The layer of a parameter: its number, or what stands before and after the elastic layers."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "blocks" else "first" if first in ("stem", "first") else "last"


class Trial:
    """A supernet as it stands in training, from which steps are tried and taken back.

    `state` is the trial's own and stays as it was after each call.
    """

    def __init__(
        self, state: TrainingState, method: Method, data: Dataset, seed: int, effort: Effort, threads: int = 1
    ):
        self.state, self.method, self.data, self.effort, self.threads = state, method, data, effort, threads
        # the stage that the last epoch was in: its optimiser and teacher are there, those of a next one are not yet
        number = state.stage if state.epoch else max(i for i in range(state.stage) if method.stages[i].epochs)
        self.stage = method.stages[number]
        self.epoch = min(state.epoch or self.stage.epochs, self.stage.epochs - 1)
        self.space = state.supernet.space
        self.generator = torch.Generator(data.device).manual_seed(seed)
        self.recalibration = recalibration_images(data, effort.recalibration)
        self.judged = LabelledBatches(data.x_val[: effort.images], data.y_val[: effort.images], data)
        momentum = (state.optimizer.state[p]["momentum_buffer"] for p in state.supernet.parameters())
        self.own = [*state.supernet.state_dict().values(), *momentum]
        self.kept = [tensor.clone() for tensor in self.own]
        self.untrained: dict[tuple, np.ndarray] = {}
        self.asleep = {name for name, p in state.supernet.named_parameters() if p.grad is None}

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self.own, self.kept)
        for name, parameter in self.state.supernet.named_parameters():
            if name in self.asleep:
                parameter.grad = None

    def quality(self, subnets: Sequence[Arch]) -> np.ndarray:
        """float64 [subnets, 2] on validation images: minus the loss (cross-entropy), and the accuracy in percent."""
        result = np.empty((len(subnets), 2))
        images = self.judged, self.recalibration
        with evaluate_each(self.state.supernet, images, subnets, loss_and_accuracy, self.threads) as judged:
            for number, (loss, accuracy) in judged:
                result[number] = -loss, accuracy
        return result

    def batches(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """`n` training batches, augmented: images [N, C, R, R] and labels [N]."""
        data, result = self.data, []
        for _ in range(n):
            rows = torch.randint(len(data.x_train), (self.method.batch_size,), generator=self.generator,
                                 device=data.device)  # fmt: skip
            crops = draw_augmentation(len(rows), self.generator, data.resolution)
            result.append((augment(data.x_train[rows], crops, data.mean, data.std), data.y_train[rows]))
        return result

    def step_effects(self, subnets: Sequence[Arch], batch: tuple[Tensor, Tensor]) -> np.ndarray:
        """`effects` of one training step on the batch, at the current learning rate: float64 [trained, judged, 2]."""
        rate = self.stage.rate(self.epoch, 0, 1)

        def train_on(subnet: Arch, generator: torch.Generator) -> None:
            set_rate(self.state.optimizer, rate)
            EagerSteps(self.state, self.method, self.stage, self.data, generator).train_step(*batch, (subnet,))

        return self._effects(subnets, [rate], train_on)

    def epoch_effects(self, subnets: Sequence[Arch]) -> np.ndarray:
        """`effects` of one epoch of training on a single subnet, all with the same batches: [trained, judged, 2]."""
        data, n = self.data, len(self.data.x_train)
        steps = steps_per_epoch(n, self.method.batch_size)
        rates = [self.stage.rate(self.epoch, step, steps) for step in range(steps)]

        def train_on(subnet: Arch, generator: torch.Generator) -> None:
            order = torch.randperm(n, generator=generator, device=data.device)
            crops = draw_augmentation(n, generator, data.resolution)
            executor = EagerSteps(self.state, self.method, self.stage, data, generator)
            executor.epoch([(subnet,)] * steps, order, crops, rates)

        return self._effects(subnets, rates, train_on)

    def _effects(
        self, subnets: Sequence[Arch], rates: Sequence[float], train: Callable[[Arch, torch.Generator], None]
    ) -> np.ndarray:
        """`effects` of training that takes steps at these rates, with the same random numbers for all subnets."""
        optimizer, seed = self.state.optimizer, self.generator.initial_seed()
        untrained = tuple(rates), tuple(subnets)  # whatever the batch, the same

        def quality_after(subnet: Arch | None) -> np.ndarray:
            if subnet is None and untrained in self.untrained:
                return self.untrained[untrained]
            if subnet is None:
                optimizer.zero_grad(set_to_none=False)
                for rate in rates:
                    set_rate(optimizer, rate)
                    optimizer.step()
            else:
                train(subnet, torch.Generator(self.data.device).manual_seed(seed))
            quality = self.quality(subnets)
            self.restore()
            if subnet is None:
                self.untrained[untrained] = quality
            return quality

        return effects(subnets, quality_after)

    def gradient(self, arch: Arch, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Gradients of the labels' cross-entropy with respect to a subnet's weights, in tensors of full size that are
        0 elsewhere; batch norm takes the statistics of the batch, nothing is dropped."""
        supernet = self.state.supernet
        full = {name: torch.zeros_like(p) for name, p in supernet.named_parameters()}
        ((leaves, _),) = Views(supernet, full).get((arch,))
        logits = self.state.run(batch[0], arch, leaves, batch_norm_training())
        add_gradients(cross_entropy(logits, batch[1], None), leaves)
        return full


def loss_and_accuracy(evaluator: Evaluator, arch: Arch) -> tuple[float, float]:
    """A subnet's cross-entropy, and its accuracy in percent."""
    logits, labels = (torch.cat(part) for part in zip(*evaluator.logits_and_labels(arch), strict=True))
    right = int((logits.argmax(1) == labels).sum())
    return F.cross_entropy(logits, labels).item(), 100 * right / len(labels)


LAGS = (1, 2, 4, 8)  # epochs after its own at which a subnet is judged again
IDLE_SEED = 2**32  # of the subnets that no run draws


def draws_once_per_epoch(method: Method) -> bool:
    """Whether each epoch trains one uniform subnet, so that `forgetting` can follow it."""
    samplers = [stage.sampler for stage in method.stages]
    return all(isinstance(s, Uniform) and (s.per, s.count, s.every) == ("epoch", 1, 1) for s in samplers)


def forgetting(
    state: TrainingState, method: Method, data: Dataset, seed: int, effort: Effort, progress: bool = True,
    threads: int = 1, executor: type = EagerSteps, stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame | None:  # fmt: skip
    """Train a new `state` by a method that draws one subnet per epoch, and follow each subnet's validation accuracy.

    A subnet is judged before its epoch, right after it, and 1, 2, 4 and 8 epochs later; beside it, after every epoch,
    `effort.idle` uniform subnets that are never drawn. Batch norm is recalibrated each time.

    Returns a row per subnet and time: trained (the epoch, from 1, that trains the subnet; 0 if none does), number (of
    those that none does), epoch (the last one before judging), mflops, loss and accuracy (percent). None if `stop` said
    so first.
    """
    space, steps = state.supernet.space, steps_per_epoch(len(data.x_train), method.batch_size)
    drawn = [
        drawn_steps(stage.sampler, space, randomness(seed, number, epoch)[0], epoch, stage.epochs, steps)[0][0]
        for number, stage in enumerate(method.stages)
        for epoch in range(stage.epochs)
    ]
    idle = [space.to_arch(row) for row in space.sample(effort.idle, np.random.default_rng(IDLE_SEED))]
    n = effort.followed_images
    images = LabelledBatches(data.x_val[:n], data.y_val[:n], data), recalibration_images(data, n)
    rows: list[tuple] = []

    def after_epoch(state: TrainingState) -> bool:
        now = len(state.history)
        followed = [epoch for epoch in (now + 1, now, *(now - lag for lag in LAGS)) if 1 <= epoch <= len(drawn)]
        who = [*((epoch, 0) for epoch in followed), *((0, number) for number in range(len(idle)))]
        archs = [drawn[epoch - 1] if epoch else idle[number] for epoch, number in who]
        with evaluate_each(state.supernet, images, archs, loss_and_accuracy, threads) as judged:
            found = dict(judged)
        rows.extend((*who[i], now, space.reference.macs(arch) / 1e6, *found[i]) for i, arch in enumerate(archs))
        return stop()

    train(state, method, data, seed, after_epoch, f"{method.name}: forgetting", progress, executor)
    if len(state.history) < method.epochs:
        return None
    return pd.DataFrame(rows, columns=["trained", "number", "epoch", "mflops", "loss", "accuracy"])


def measure(
    state: TrainingState, method: Method, data: Dataset, seed: int, effort: Effort, progress: bool = True,
    threads: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """All measurements at one point of training; `state` stays as it is. `threads` subnets are judged at once.

    Returns two tables. Effects, a row for each length (step or epoch), trained and judged subnet (numbers among those
    of `subjects` that were taken): their sizes in MFLOPs, distance, repeats (batches), loss_effect (how much less the
    loss becomes) and accuracy_effect (points), means over batches. Agreement as `agreement`, by layer, with sizes and
    distance.
    """
    space = state.supernet.space
    trial, subnets = Trial(copy.copy(state), method, data, seed, effort, threads), subjects(space)[:: effort.every]
    mflops = [space.reference.macs(arch) / 1e6 for arch in subnets]
    away = np.array([[distance(space, a, b) for b in subnets] for a in subnets])
    steps = [
        trial.step_effects(subnets, batch)
        for batch in progress_bar(trial.batches(effort.batches), progress, desc=f"{method.name}: effects", unit="batch")
    ]
    rows = []
    for length, found in (("step", np.stack(steps)), ("epoch", trial.epoch_effects(subnets)[None])):
        mean = found.mean(0)
        rows += [
            (length, i, j, mflops[i], mflops[j], away[i, j], len(found), *mean[i, j])
            for i in range(len(subnets))
            for j in range(len(subnets))
        ]
    columns = ["length", "trained", "judged", "trained_mflops", "judged_mflops", "distance", "repeats"]
    found = pd.DataFrame(rows, columns=[*columns, "loss_effect", "accuracy_effect"])
    batches = progress_bar(trial.batches(effort.gradients), progress, desc=f"{method.name}: gradients", unit="batch")
    agreed = agreement(subnets, trial.gradient, partial(shared_weights, space), batches, part_of)
    agreed["a_mflops"], agreed["b_mflops"] = ([mflops[i] for i in agreed[side]] for side in ("a", "b"))
    agreed["distance"] = away[agreed["a"], agreed["b"]]
    return found, agreed


EFFORTS = {  # by profile; others take the whole
    "smoke": Effort(
        (0.5, 0.95), batches=1, gradients=4, images=128, recalibration=128, every=3, idle=2, followed_images=128
    ),
    "quick": Effort((0.5, 0.95), batches=5),
}


def get_effort(run: Run) -> Effort:
    return EFFORTS.get(run.profile.name, Effort())


@dataclass(frozen=True)
class Measurement:
    """What the engine measures of the finished runs of some methods: `Settings(measure=Measurement(["rss"]))`."""

    methods: Sequence[str]

    def __post_init__(self):
        if isinstance(self.methods, str) or not isinstance(self.methods, Sequence):
            raise InputError(f"interference is {self.methods!r}: expected a list of names of methods")
        object.__setattr__(self, "methods", tuple(self.methods))

    def epochs(self, run: Run) -> Collection[int]:
        """The epochs of training after which the engine keeps a snapshot."""
        return get_effort(run).epochs(run.method) if run.method.name in self.methods else ()

    def missing(self, run: Run, folder: Path) -> list[str]:
        """The tables of a finished run that are still to be made."""
        wanted = [EFFECTS, AGREEMENT, *[FORGETTING] * draws_once_per_epoch(run.method)]
        return [name for name in wanted if run.method.name in self.methods and not has_table(folder, name)]

    def measure(self, job: Any) -> bool:
        """Add the missing tables to the record of a finished run; returns False if it was time to stop.

        Snapshots that are missing are made by training again, which gives the same numbers. `job` is the engine's.
        """
        missing = self.missing(job.run, job.folder)
        done = FORGETTING not in missing or _add_forgetting(job)
        return done and (not {EFFECTS, AGREEMENT} & {*missing} or self._add_effects(job))

    def _add_effects(self, job: Any) -> bool:
        run, images, settings = job.run, job.images, job.settings
        effort, kept = get_effort(run), job.record.get("snapshots", {})
        epochs = effort.epochs(run.method)
        paths = {epoch: job.snapshot(epoch) for epoch in epochs}
        lost = [e for e, p in paths.items() if not p.exists() or files.sha256(p.read_bytes()) != kept.get(p.name)]
        if lost:

            def after_epoch(state: TrainingState) -> bool:
                if len(state.history) in epochs:
                    job.keep_snapshot(state)
                return job.is_time() or len(state.history) == max(lost)

            label, executor = f"{run.label}, for snapshots", executor_for(settings, images.device)
            train(job.new_state(), run.method, images, run.seed, after_epoch, label, settings.progress, executor)
            job.save()
        tables: dict[str, list[pd.DataFrame]] = {EFFECTS: [], AGREEMENT: []}
        for epoch, share in epochs.items():
            if job.is_time():
                return False
            with own_stream(images.device):
                state = job.new_state()
                restore(state, paths[epoch].read_bytes(), identity_of(job.record))
                threads = evaluation_threads(images.device, settings.jobs or 1)
                found = measure(state, run.method, images, run.seed, effort, settings.progress, threads)
            for parts, table in zip(tables.values(), found, strict=True):
                table.insert(0, "share", share)
                parts.append(table)
        for name, parts in tables.items():
            job.record["sha256"][name] = files.write_csv(job.folder / name, pd.concat(parts, ignore_index=True))
        job.save()
        return True


def _add_forgetting(job: Any) -> bool:
    run, images, settings = job.run, job.images, job.settings
    threads, executor = evaluation_threads(images.device, settings.jobs or 1), executor_for(settings, images.device)
    state, effort = job.new_state(), get_effort(run)
    table = forgetting(state, run.method, images, run.seed, effort, settings.progress, threads, executor, job.is_time)
    if table is None:
        return False
    job.record["sha256"][FORGETTING] = files.write_csv(job.folder / FORGETTING, table)
    job.save()
    return True
