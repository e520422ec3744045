"""Measure what training one subnet does to others: effects of steps and epochs, agreement of gradients.

`effects` and `agreement` take any functions that train and differentiate. `Trial` supplies them for a supernet.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations_with_replacement, repeat
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rsslib.data.augmentation import augment, draw_augmentation
from rsslib.data.dataset import Dataset
from rsslib.errors import InputError
from rsslib.evaluate import Evaluator, LabelledBatches, evaluate_each, recalibration_images
from rsslib.methods import Method
from rsslib.population import sample_population
from rsslib.progress import progress_bar
from rsslib.space import Arch, SearchSpace
from rsslib.steps import EagerSteps, TrainingState, Views, add_gradients, cross_entropy, set_rate
from rsslib.supernet import SuperNet, batch_norm_training, subnet_slices
from rsslib.trainer import steps_per_epoch

Batch = tuple[Tensor, Tensor]  # images [N, C, R, R], augmented, and labels [N]
Index = Mapping[str, tuple]  # slices of tensors, by name


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    At each of `shares` of a method's epochs, three things are measured: the effect of a step, as a mean over `batches`;
    the effect of an epoch, once; and the gradients of `gradients` batches. The subnets are every `every`-th one of
    `subjects`. They are judged on `images` validation images, with batch norm recalibrated on `recalibration` training
    images.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.95)
    batches: int = 20
    gradients: int = 40
    images: int = 512
    recalibration: int = 400
    every: int = 1
    idle: int = 8  # subnets that are never drawn, for comparison in `forgetting`
    followed_images: int = 2_000  # validation images for judging in `forgetting`, and training images to recalibrate

    def epochs(self, method: Method) -> dict[int, float]:
        """Return the epochs after which to measure, with their share of all epochs."""
        return {max(1, round(share * method.epochs)): share for share in self.shares}


# --- the two measurements, for anything that is trained ---------------------------------------------------------------


def effects(
    trained: Iterable[Any],
    quality_after: Callable[[Any], np.ndarray],
) -> np.ndarray:
    """Return the effect of each training on the quality of all subnets, float64 [trained, judged, ...].

    Values below 0 are harm. `quality_after(training)` trains from one fixed state and returns the quality of all
    subnets, [judged, ...]; larger is better. `quality_after(None)` trains with a gradient of zero. Its result is
    subtracted, to remove the effect of momentum and weight decay alone.
    """
    nothing = quality_after(None)
    return np.stack([quality_after(training) - nothing for training in trained])


def agreement(
    subnets: Sequence[Any],
    gradient: Callable[[Any, Any], Mapping[str, Tensor]],
    shared: Callable[[Any, Any], Index],
    batches: Iterable[Any],
    part_of: Callable[[str], str] = lambda name: "all",
) -> pd.DataFrame:
    """Return how far the gradients of subnets agree on the weights that they share, without the noise of batches.

    `gradient(subnet, batch)` returns tensors of full size by name. `shared(a, b)` returns the index of the common part
    of each tensor. <A, B> is the mean product of A's gradient on one batch and B's gradient on *another* batch, over
    all pairs of batches. It estimates the product of their expectations (a U-statistic; Hoeffding, 1948). The agreement
    of A and B is <A, B> divided by the root of <A, A> <B, B>. It is 1 if the gradients differ only by noise, 0 if they
    have nothing in common, and below 0 if they conflict.

    Returns a row per pair of subnets (including a subnet with itself) and part. A part is `part_of` a tensor's name;
    "all" covers all tensors. Columns: a, b (numbers of the subnets), part, shared (number of weights); cross, own_a,
    own_b (<A, B>, <A, A> and <B, B>, normalised like cosines by the root mean squares of the gradients); and
    agreement. Agreement is NaN if own_a or own_b is not above 0, because noise hides it then. Raises InputError for
    fewer than two batches.
    """
    regions = {}
    for (i, a), (j, b) in combinations_with_replacement(enumerate(subnets), 2):
        regions[i, j] = shared(a, b)
    sums: list[dict[str, Any]] = [defaultdict(float) for _ in subnets]  # of gradients over batches
    same = []  # products of gradients of the same batch
    for batch in batches:
        gradients = [gradient(subnet, batch) for subnet in subnets]
        same.append(_products(gradients, regions, part_of))
        for total, own in zip(sums, gradients, strict=True):
            for name, tensor in own.items():
                total[name] = total[name] + tensor
    if len(same) < 2:
        raise InputError(f"agreement needs at least two batches, got {len(same)}")
    whole = _products(sums, regions, part_of)
    squares = sum(same)
    others = whole - squares  # products of two different batches
    roots = squares.assign(cross=np.sqrt(squares["own_a"] * squares["own_b"]))
    cosines = (others / roots).where(roots > 0, 0.0) / (len(same) - 1)
    table = cosines.assign(shared=whole["shared"].astype(int)).reset_index()
    own = table[["own_a", "own_b"]]
    known = own.where(own > 0).prod(axis=1, skipna=False)
    return table.assign(agreement=table["cross"] / np.sqrt(known))


def _products(
    gradients: Sequence[Mapping[str, Tensor]],
    regions: Mapping[tuple[int, int], Index],
    part_of: Callable[[str], str],
) -> pd.DataFrame:
    """Return the number of shared weights, and A B, A A and B B on them, for each pair of subnets and part."""
    found: dict[tuple, Any] = defaultdict(float)
    for pair, region in regions.items():
        for name, index in region.items():
            tensors = (gradients[number][name][index] for number in pair)
            a, b = (tensor.flatten().double() for tensor in tensors)
            products = torch.stack([a @ b, a @ a, b @ b])
            row = np.array([len(a), *products.tolist()])
            for part in dict.fromkeys(("all", part_of(name))):
                found[*pair, part] += row
    index = pd.MultiIndex.from_tuples(found, names=["a", "b", "part"])
    return pd.DataFrame([*found.values()], index, ["shared", "cross", "own_a", "own_b"])


# --- a supernet in training -------------------------------------------------------------------------------------------


def subjects(space: SearchSpace) -> list[Arch]:
    """Return the subnets to measure: the smallest, the first of each bucket of the population, and the largest."""
    return [space.smallest, *(arch for _, arch in sample_population(space, 1)), space.largest]


def distance(space: SearchSpace, a: Arch, b: Arch) -> int:
    """Return the number of choices in which two subnets differ, ignoring unused layers."""
    rows = space.to_rows([a, b])
    first, second = np.where(space.used(rows), rows, 0)
    return int((first != second).sum())


def shared_weights(space: SearchSpace, a: Arch, b: Arch) -> Index:
    """Return the index of the common part of each parameter that both subnets use."""
    smaller = space.to_arch(np.minimum(*space.to_rows([a, b])))
    used_by_a, used_by_b, common = (subnet_slices(space, arch) for arch in (a, b, smaller))
    return {
        name: index
        for name, index in common.items()
        if name in used_by_a and name in used_by_b and "running" not in name
    }


def part_of(name: str) -> str:
    """Return the layer of a parameter: its number, or "first" or "last" before or after the elastic layers."""
    first, *rest = name.split(".")
    if first == "blocks":
        return rest[0]
    return "first" if first in ("stem", "first") else "last"


Images = tuple[LabelledBatches, Tensor]  # images to judge on, and images for recalibration


def validation(data: Dataset, n: int, recalibration: int) -> Images:
    judged = LabelledBatches(data.x_val[:n], data.y_val[:n], data)
    return judged, recalibration_images(data, recalibration)


def losses(
    supernet: SuperNet,
    images: Images,
    archs: Sequence[Arch],
    threads: int,
) -> list[tuple[float, float]]:
    """Return the loss (cross-entropy) and the accuracy in percent of each subnet."""
    with evaluate_each(supernet, images, archs, loss_and_accuracy, threads) as judged:
        return [found for _, found in sorted(judged)]


@dataclass
class Trial:
    """A supernet at one point of training. Training continues on copies, so `state` does not change."""

    state: TrainingState
    method: Method
    data: Dataset
    seed: int
    effort: Effort
    threads: int = 1  # threads that judge subnets

    def __post_init__(self):
        state, effort = self.state, self.effort
        # the stage of the last epoch, because the optimizer and teacher of the next stage do not exist yet
        begun = state.stage + (state.epoch > 0)
        trained = [stage for stage in self.method.stages[:begun] if stage.epochs]
        self.stage = trained[-1]
        last = self.stage.epochs - 1
        self.epoch = min(state.epoch, last) if state.epoch else last
        self.generator = Generator(self.data.device).manual_seed(self.seed)
        self.images = validation(self.data, effort.images, effort.recalibration)

    def copied(self) -> TrainingState:
        """Return a copy of the state. Weight decay and momentum reach the same tensors: those with a gradient."""
        state = replace(self.state, teacher=None)
        state = replace(copy.deepcopy(state), teacher=self.state.teacher)
        parameters = dict(self.state.supernet.named_parameters())
        for name, parameter in state.supernet.named_parameters():
            if parameters[name].grad is not None:
                parameter.grad = torch.zeros_like(parameter)
        return state

    def batches(self, n: int) -> list[Batch]:
        """Return `n` random training batches."""
        data, generator, found = self.data, self.generator, []
        size = self.method.batch_size
        for _ in range(n):
            rows = torch.randint(
                len(data.x_train),
                (size,),
                generator=generator,
                device=data.device,
            )
            crops = draw_augmentation(size, generator, data.side, self.method.augmentation)
            found.append(self._augmented(rows, crops))
        return found

    def _augmented(self, rows: Tensor, crops: Tensor) -> Batch:
        data = self.data
        images = augment(data.read(rows), crops, data.mean, data.std, data.resolution)
        return images, data.y_train[rows]

    def step_effects(self, subnets: Sequence[Arch], batches: Iterable[Batch]) -> np.ndarray:
        """Return the `effects` of a step on each batch at the current rate, float64 [batch, trained, judged, 2].

        A subnet has two qualities: its negative loss, and its accuracy in percent.
        """
        n = len(subnets)
        rate = self.stage.rate(self.epoch, 0, 1)
        trained = (
            (subnet, lambda _, batch=batch: [batch])  # a step draws nothing
            for batch in batches
            for subnet in subnets
        )
        return self._effects(subnets, trained, [rate]).reshape(-1, n, n, 2)

    def epoch_effects(self, subnets: Sequence[Arch]) -> np.ndarray:
        """Return the `effects` of an epoch on each single subnet, with equal batches, float64 [trained, judged, 2]."""
        steps = steps_per_epoch(len(self.data.x_train), self.method.batch_size)
        rates = [self.stage.rate(self.epoch, step, steps) for step in range(steps)]
        trained = [(subnet, self._epoch) for subnet in subnets]
        return self._effects(subnets, trained, rates)

    def _epoch(self, generator: Generator) -> Iterator[Batch]:
        data, n = self.data, len(self.data.x_train)
        order = torch.randperm(n, generator=generator, device=data.device)
        crops = draw_augmentation(n, generator, data.side, self.method.augmentation)
        for rows in order.split(self.method.batch_size):
            yield self._augmented(rows, crops[:, rows])

    def _effects(
        self,
        subnets: Sequence[Arch],
        trained: Iterable[tuple[Arch, Callable[[Generator], Iterable[Batch]]]],
        rates: Sequence[float],
    ) -> np.ndarray:
        """Return the `effects` on `subnets` of training one at these rates, with the same random numbers each time."""
        nothing: Any = None, lambda _: repeat(None)

        def quality_after(training: Any) -> np.ndarray:
            state = self.copied()
            generator = Generator(self.data.device).manual_seed(self.seed)
            steps = EagerSteps(state, self.method, self.stage, self.data, generator)
            subnet, batches = nothing if training is None else training
            for rate, batch in zip(rates, batches(generator), strict=False):
                set_rate(state.optimizer, rate)
                if batch is None:
                    state.optimizer.step()
                else:
                    x, y = batch
                    steps.train_step(x, y, (subnet,))
            found = losses(state.supernet, self.images, subnets, self.threads)
            return np.array(found) * (-1, 1)

        return effects(trained, quality_after)

    def gradient(self, arch: Arch, batch: Batch) -> dict[str, Tensor]:
        """Return gradients of the cross-entropy with respect to a subnet's weights, in full-size tensors, 0 elsewhere.

        Batch norm uses the statistics of the batch. There is no dropout.
        """
        supernet = self.state.supernet
        x, y = batch
        full = {name: torch.zeros_like(p) for name, p in supernet.named_parameters()}
        ((leaves, _),) = Views(supernet, full).get((arch,))
        logits = self.state.run(x, arch, leaves, batch_norm_training())
        add_gradients(cross_entropy(logits, y), leaves)
        return full


def loss_and_accuracy(evaluator: Evaluator, arch: Arch) -> tuple[float, float]:
    """Return the cross-entropy of a subnet and its accuracy in percent."""
    batches = zip(*evaluator.logits_and_labels(arch), strict=True)
    logits, labels = map(torch.cat, batches)
    right = int((logits.argmax(1) == labels).sum())
    loss = F.cross_entropy(logits, labels)
    return loss.item(), 100 * right / len(labels)


def measure(trial: Trial, progress: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure all effects and agreements at one point of training; returns two tables.

    The first table holds effects, with a row per length (step or epoch), trained and judged subnet (their numbers
    among the measured subnets). Columns: sizes in MFLOPs, distance, repeats (number of batches), loss_effect (how much
    lower the loss becomes) and accuracy_effect (points), both means over batches. The second table is that of
    `agreement` by layer, with sizes and distance.
    """
    space = trial.state.supernet.space
    effort, name = trial.effort, trial.method.name
    subnets = subjects(space)[:: effort.every]
    mflops = np.array([space.reference.macs(arch) / 1e6 for arch in subnets])
    away = np.array([[distance(space, a, b) for b in subnets] for a in subnets])
    shown = partial(progress_bar, shown=progress, unit="batch")
    batches = shown(trial.batches(effort.batches), desc=f"{name}: effects")
    found = {
        "step": trial.step_effects(subnets, batches),
        "epoch": trial.epoch_effects(subnets)[None],
    }
    i, j = np.indices(away.shape).reshape(2, -1)
    tables = []
    for length, values in found.items():
        loss, accuracy = values.mean(0)[i, j].T
        columns = {
            "length": length,
            "trained": i,
            "judged": j,
            "trained_mflops": mflops[i],
            "judged_mflops": mflops[j],
            "distance": away[i, j],
            "repeats": len(values),
            "loss_effect": loss,
            "accuracy_effect": accuracy,
        }
        tables.append(pd.DataFrame(columns))
    batches = shown(trial.batches(effort.gradients), desc=f"{name}: gradients")
    agreed = agreement(subnets, trial.gradient, partial(shared_weights, space), batches, part_of)
    agreed["a_mflops"], agreed["b_mflops"] = mflops[agreed["a"]], mflops[agreed["b"]]
    agreed["distance"] = away[agreed["a"], agreed["b"]]
    return pd.concat(tables, ignore_index=True), agreed
