"""Evaluate subnets: recompute their batch norm statistics, then count correct answers on test images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import local
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from rsslib.data.augmentation import augment, draw_augmentation, normalise, parts
from rsslib.data.dataset import Dataset, check_images
from rsslib.device import isolated
from rsslib.errors import Count, InputError, checked
from rsslib.population import RECALIBRATION_IMAGES
from rsslib.progress import progress_bar
from rsslib.space import RESOLUTION, Arch
from rsslib.supernet import BN_EPS, FIRST, REST, Norm, SuperNet, Weights, fold_batch_norm, no_norm

EVALUATOR = 2  # version, kept in records; version 1, not named in records, applied batch norm without folding
RECALIBRATION_BATCH = 200
STUDY_BYTES = 3 * RESOLUTION**2 * 4  # bytes of an image of the study, as floats
IMAGES_AT_ONCE = {"cpu": 200, "cuda": 5000}  # per pass, of the study's size; a CPU's caches hold no more
MOST_BYTES = 2**30  # of images as floats; up to this, their first feature maps, half as large, are kept


def images_at_once(images: Tensor) -> int:
    """Return the images per pass: 5,000 of the study's size on a GPU, 200 on a CPU, fewer if they are larger."""
    most = IMAGES_AT_ONCE["cpu" if images.device.type == "cpu" else "cuda"]
    fitting = most * STUDY_BYTES // (4 * images[0].numel())
    return max(1, min(most, fitting))


# --- recalibration


@checked
def recalibration_images(data: Dataset, n: Count = RECALIBRATION_IMAGES) -> Tensor:
    """Return a fixed choice of training images, augmented once, float32 [n, C, R, R].

    There are fewer if the training set is smaller: whole batches of 200, or one smaller batch if there are fewer than
    200 images. A CPU generator draws them, so they are the same on every device.
    """
    n = min(n, len(data.x_train))
    if n > RECALIBRATION_BATCH:
        n -= n % RECALIBRATION_BATCH
    generator, device = torch.Generator().manual_seed(0), data.device
    rows = torch.randperm(len(data.x_train), generator=generator)[:n].to(device)
    drawn = draw_augmentation(n, generator, data.side).to(device)
    size = (n, data.channels, data.resolution, data.resolution)
    images = torch.empty(size, device=device, memory_format=torch.channels_last)
    for part in parts(n, data.side):
        found = data.read(rows[part])
        images[part] = augment(found, drawn[:, part], data.mean, data.std, data.resolution)
    return images


@checked
@torch.no_grad()
def recalibrate(supernet: SuperNet, arch: Arch, images: Tensor) -> dict[str, Tensor]:
    """Return BN statistics of one subnet: for each layer, the mean over batches of the batch mean and biased variance.

    `images` [n, C, R, R] are taken in batches of 200. Meanwhile, each batch norm normalises with the statistics of the
    batch (`set_running_statistics` of Cai et al. 2020). Returns {BN name.running_mean / .running_var: [C]} and does not
    change the supernet. The number of batches per pass changes only rounding.
    """
    weights = supernet.subnet(arch, dict(supernet.named_parameters()))
    with isolated(images.device):
        return _recalibrated(partial(supernet.run, arch=arch, weights=weights), split_batches(images))[1]


def _recalibrated(run: Callable[..., Tensor], images: Iterable[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return outputs of `run(x, norm=...)` for parts x of the images or feature maps, and the BN statistics."""
    sums: dict[str, Tensor] = {}
    outputs, batches = [], 0
    for x in images:
        outputs.append(run(x, norm=recalibrating(sums)))
        batches += -(-len(x) // RECALIBRATION_BATCH)
    return outputs, {name: value / batches for name, value in sums.items()}


def recalibrating(sums: dict[str, Tensor]) -> Norm:
    """Return batch norm by the statistics of each batch of 200, which adds mean and variance to `sums`."""

    def norm(x: Tensor, name: str, weights: Weights) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if len(x) <= RECALIBRATION_BATCH:
            mean, unbiased = torch.zeros_like(weight), torch.zeros_like(weight)
            # with momentum 1 the batch's statistics replace the running ones
            x = F.batch_norm(x, mean, unbiased, weight, bias, True, 1.0, BN_EPS)
            n = x.numel() // x.shape[1]
            var = unbiased * ((n - 1) / n)
        else:
            batches = x.unflatten(0, (-1, RECALIBRATION_BATCH))
            var, mean = torch.var_mean(batches, (1, 3, 4), correction=0, keepdim=True)
            x = ((batches - mean) * (var + BN_EPS).rsqrt_()).flatten(0, 1)
            x = torch.addcmul(bias[:, None, None], x, weight[:, None, None])
            var, mean = (t.sum(0).flatten() for t in (var, mean))
        for key, value in ((f"{name}.running_mean", mean), (f"{name}.running_var", var)):
            sums[key] = sums[key] + value if key in sums else value
        return x

    return norm


def split_batches(images: Tensor) -> tuple[Tensor, ...]:
    """Split images into parts of whole recalibration batches, in sizes that suit the device."""
    batches = max(1, images_at_once(images) // RECALIBRATION_BATCH)
    return images.split(batches * RECALIBRATION_BATCH)


# --- subnets, one after the other or several at once


class LabelledBatches:
    """Images with labels, in batches that suit the device. Each iteration normalises them."""

    def __init__(self, x: Tensor, y: Tensor, data: Dataset):
        n = images_at_once(x)
        self.batches = list(zip(x.split(n), y.split(n), strict=True))
        self.mean, self.std = data.mean, data.std
        self.maps_fit = 4 * x.numel() <= MOST_BYTES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            yield normalise(x, self.mean, self.std), y


class Evaluator:
    """Run subnets on labelled images after recalibration. Weights must not change meanwhile.

    The first two layers, on the largest feature maps, take a third of a subnet's time and have few choices: 81 in the
    study. Their feature maps are kept for the next subnet with the same first layers. Results are bitwise equal.
    """

    def __init__(self, supernet: SuperNet, batches: LabelledBatches, recalibration: Tensor):
        self.supernet, self.batches, self.recalibration = supernet, batches, recalibration
        self.parameters = dict(supernet.named_parameters())
        self.begun: list | None = None  # first layers whose feature maps are kept
        self.kept: tuple = ([], [])  # their maps of recalibration images, and maps of other images with labels

    @torch.no_grad()
    def logits_and_labels(self, arch: Arch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the subnet's logits [N, classes] and the labels [N] of each batch."""
        weights = self.supernet.subnet(arch, self.parameters)
        run = partial(self.supernet.run, arch=arch, weights=weights)
        first, rest = partial(run, part=FIRST), partial(run, part=REST)
        layers = first_layers(self.supernet, arch)
        if self.begun != layers:
            maps, statistics = _recalibrated(first, split_batches(self.recalibration))
            begin = partial(first, weights=fold_batch_norm(weights, statistics), norm=no_norm)
            labelled = ((begin(x), y) for x, y in self.batches)
            self.begun = layers if self.batches.maps_fit else None
            self.kept = maps, list(labelled) if self.begun else labelled
        maps, labelled = self.kept
        folded = fold_batch_norm(weights, _recalibrated(rest, maps)[1])
        for x, y in labelled:
            yield rest(x, weights=folded, norm=no_norm), y


def first_layers(supernet: SuperNet, arch: Arch) -> list[tuple]:
    return [*supernet.space.active(arch)][FIRST]


@contextmanager
def evaluate_each(
    supernet: SuperNet,
    images: tuple[LabelledBatches, Tensor],
    archs: Sequence[Arch],
    judge: Callable[[Evaluator, Arch], Any],
    threads: int = 1,
) -> Iterator[Iterator[tuple[int, Any]]]:
    """Yield an iterator over (subnet number, `judge(evaluator, arch)`) of `archs`, in an order that reuses kept maps.

    `images` are the labelled batches and the recalibration images for an `Evaluator`; each of the `threads` has its own
    evaluator. Results do not depend on the number of threads. Subnets not begun when the block ends are skipped.
    """
    order = sorted(range(len(archs)), key=lambda number: first_layers(supernet, archs[number]))
    own = local()

    def start() -> None:
        torch.get_num_threads()  # a new thread sets the number of threads of its operators when asked for it
        own.evaluator = Evaluator(supernet, *images)

    def evaluate(number: int) -> tuple[int, Any]:
        return number, judge(own.evaluator, archs[number])

    if threads == 1:  # in this thread, which may have a CUDA stream
        start()
        yield map(evaluate, order)
        return
    with ThreadPoolExecutor(threads, initializer=start) as pool:
        try:
            yield pool.map(evaluate, order)
        finally:
            pool.shutdown(cancel_futures=True)


def correct_answers(evaluator: Evaluator, arch: Arch) -> Tensor:
    """Return how many images the subnet classifies correctly after recalibration, int64 []."""
    batches = evaluator.logits_and_labels(arch)
    return torch.stack([(logits.argmax(1) == y).sum() for logits, y in batches]).sum()


@checked
def evaluate_population(
    supernet: SuperNet,
    population: Sequence[tuple[float, Arch]],
    data: Dataset,
    description: str = "evaluate",
    progress: bool = True,
    counts: dict[int, Tensor] | None = None,
    before_each: Callable[[], object] = lambda: None,
    threads: Count = 1,
) -> pd.DataFrame:
    """Return the test accuracy of every subnet of `population`, a list of (bucket in millions of MACs, architecture).

    To choose among subnets, use the images held out from training:
    `dataclasses.replace(data, x_test=data.x_val, y_test=data.y_val)`. `before_each` is called before every subnet and
    may raise to end the evaluation. Correct answers (int64 [] on the device of the data) are added to `counts`, by the
    number of the subnet in the population; subnets already in it are not evaluated again. `threads` subnets are
    evaluated at once, without changing results.

    Returns one row per subnet: bucket, subnet (number within its bucket), mflops, kernel, expand, depth (choices joined
    by "-"), accuracy (percent of the test images). Raises InputError for an architecture outside the space, and for
    images that do not fit the supernet.
    """
    space = supernet.space
    check_images(space, data)
    if len(data.x_test) == 0:
        raise InputError(f"{data.name} has no test images: expected at least one")
    archs = [arch for _, arch in population]
    rows = space.to_rows(archs)
    counts = {} if counts is None else counts
    left = [number for number in range(len(archs)) if number not in counts]
    bar = progress_bar(left, progress, desc=description, unit="subnet", initial=len(counts), total=len(archs))
    with isolated(data.device):
        images = LabelledBatches(data.x_test, data.y_test, data), recalibration_images(data)
        with evaluate_each(supernet, images, [archs[i] for i in left], correct_answers, threads) as counted:
            for _ in bar:
                before_each()
                number, count = next(counted)
                counts[left[number]] = count
    buckets = [float(bucket) for bucket, _ in population]
    table = pd.DataFrame({"bucket": buckets})
    table["subnet"] = table.groupby("bucket").cumcount()
    table["mflops"] = space.reference.macs(rows) / 1e6
    for name in ("kernel", "expand", "depth"):
        table[name] = ["-".join(map(str, getattr(arch, name))) for arch in archs]
    correct = np.array([counts[number].item() for number in range(len(archs))], dtype=float)
    table["accuracy"] = 100 * correct / len(data.x_test)
    return table
