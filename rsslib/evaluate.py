"""Evaluating subnets: recompute their batch norm statistics, then count correct answers on test images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import local
from typing import NamedTuple, TypeVar

import pandas as pd
import torch
from torch import Tensor

from rsslib.data.augmentation import Augmentation, augment, draw_augmentation, normalise, parts
from rsslib.data.dataset import Dataset, check_images
from rsslib.device import own_stream
from rsslib.errors import InputError
from rsslib.population import RECALIBRATION_IMAGES
from rsslib.progress import progress_bar
from rsslib.space import RESOLUTION, Arch, SearchSpace
from rsslib.supernet import BN_EPS, Norm, SuperNet, batch_norm_with

RECALIBRATION_BATCH = 200
STUDY_BYTES = 3 * RESOLUTION**2 * 4  # of one of the study's images as floats
IMAGES_AT_ONCE = {"cpu": 200, "cuda": 5000}  # of the study's in a pass, fewer larger ones; a CPU's caches hold no more
MOST_BYTES = 2**30  # of test images kept as floats


def recalibration_images(data: Dataset, n: int = RECALIBRATION_IMAGES) -> Tensor:
    """float32 [n, C, R, R]: training images, a fixed choice, augmented once; fewer if the training set is smaller.

    Whole batches of 200, or a single smaller batch where there are fewer than 200 images. Every device takes the same:
    what is drawn comes from a CPU's generator.
    """
    n = min(n, len(data.x_train))
    n -= n % RECALIBRATION_BATCH if n > RECALIBRATION_BATCH else 0
    generator, device = torch.Generator().manual_seed(0), data.x_train.device
    rows = torch.randperm(len(data.x_train), generator=generator)[:n].to(device)
    drawn = draw_augmentation(n, generator, data.resolution)
    drawn = Augmentation(**{name: tensor.to(device) for name, tensor in vars(drawn).items()})
    images = torch.empty((n, *data.x_train.shape[1:]), device=device, memory_format=torch.channels_last)
    for part in parts(n, data.resolution):
        images[part] = augment(data.x_train[rows[part]], drawn[part], data.mean, data.std)
    return images


def recalibrating(sums: dict[str, Tensor]) -> Norm:
    """Normalise each batch of 200 by its own statistics and add its mean and biased variance to `sums`."""

    def norm(x: Tensor, name: str, weight: Tensor, bias: Tensor) -> Tensor:
        if len(x) <= RECALIBRATION_BATCH:
            mean, unbiased = torch.zeros_like(weight), torch.zeros_like(weight)
            # momentum 1 makes the call return its statistics by writing them to the running ones
            x = torch.nn.functional.batch_norm(x, mean, unbiased, weight, bias, True, 1.0, BN_EPS)
            n = x.numel() // x.shape[1]
            var = unbiased * ((n - 1) / n)
        else:
            batches = x.unflatten(0, (-1, RECALIBRATION_BATCH))
            var, mean = torch.var_mean(batches, (1, 3, 4), correction=0, keepdim=True)
            x = ((batches - mean) * (var + BN_EPS).rsqrt_()).flatten(0, 1)
            x = torch.addcmul(bias[:, None, None], x, weight[:, None, None])
            var, mean = (t.sum(0).flatten() for t in (var, mean))
        for key, value in (("running_mean", mean), ("running_var", var)):
            key = f"{name}.{key}"
            sums[key] = sums[key] + value if key in sums else value
        return x

    return norm


@torch.no_grad()
def recalibrate(supernet: SuperNet, arch: Arch, images: Tensor) -> dict[str, Tensor]:
    """BN statistics of one subnet: for each layer the mean over batches of the batch's mean and biased variance.

    `images` [n, C, R, R] are taken in batches of 200; meanwhile each layer sees input normalised by its own batch
    statistics (Cai et al. 2020, their `set_running_statistics`). Returns {BN name.running_mean / .running_var: [C]} and
    leaves the supernet as it was. One batch goes through in a pass on a CPU, whose caches hold no more, and on a GPU as
    many as take the bytes of the study's 5,000 images, so all of them at 32 pixels, without a change to the numbers.
    """
    weights = supernet.subnet(arch, dict(supernet.named_parameters()))
    sums: dict[str, Tensor] = {}
    for batches in recalibration_parts(images):
        supernet.run(batches, arch, weights, recalibrating(sums))
    return means(sums, images)


def recalibration_parts(images: Tensor) -> tuple[Tensor, ...]:
    """The images in parts of whole batches of 200, as many as suit the device."""
    return images.split(max(1, images_at_once(images) // RECALIBRATION_BATCH) * RECALIBRATION_BATCH)


def means(sums: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Of what was summed over the batches of the images."""
    return {name: value / -(-len(images) // RECALIBRATION_BATCH) for name, value in sums.items()}


class LabelledBatches:
    """Images, normalised, with their labels, in batches that suit the device; may be gone through many times.

    They stay in memory as floats if these take no more than `MOST_BYTES`; else each pass makes them again.
    """

    def __init__(self, x: Tensor, y: Tensor, data: Dataset):
        n = images_at_once(x)
        self.batches, self.data = list(zip(x.split(n), y.split(n), strict=True)), data
        self.kept = list(self._normalised()) if float_bytes(x) <= MOST_BYTES else None

    def _normalised(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((normalise(x, self.data.mean, self.data.std), y) for x, y in self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.kept) if self.kept is not None else self._normalised()


def float_bytes(images: Tensor) -> int:
    return 4 * images.numel()


def images_at_once(images: Tensor) -> int:
    """How many of these images go through a network in a pass: on a GPU 5,000, on a CPU 200, or of larger ones as many
    as take their bytes."""
    most = IMAGES_AT_ONCE["cpu" if images.device.type == "cpu" else "cuda"]
    return max(1, min(most, most * STUDY_BYTES // float_bytes(images[0])))


Blocks = tuple[tuple[int, int, int], ...]  # layer number, kernel size and expand ratio of each


def blocks_of(space: SearchSpace, arch: Arch) -> Blocks:
    return tuple((i, kernel, expand) for i, _, kernel, expand in space.active(arch))


def by_blocks(space: SearchSpace, archs: Sequence[Arch]) -> list[int]:
    """The numbers of `archs` in an order in which those with the same first blocks follow each other."""
    return sorted(range(len(archs)), key=lambda number: blocks_of(space, archs[number]))


class Maps(NamedTuple):
    """What a subnet's first blocks make of images; with no block, the images."""

    blocks: Blocks
    recalibration: Sequence[Tensor]
    labelled: Iterable[tuple[Tensor, Tensor]]


class Evaluator:
    """Runs one subnet after the other on labelled images after recalibration; meanwhile no weight may change.

    The first two blocks, on the largest maps, take a quarter of a subnet's time, and there are few of them: nine of the
    first, 81 of both. What they make of the images is kept for the next subnet, which goes on from there if it begins
    with the same: best in the order of `by_blocks`. The numbers are the same to the last bit.
    """

    def __init__(self, supernet: SuperNet, batches: LabelledBatches, recalibration: Tensor):
        self.supernet, self.recalibration = supernet, recalibration
        self.parameters = dict(supernet.named_parameters())
        self.maps = [Maps((), recalibration_parts(recalibration), batches)]
        self.kept_behind = (1, 2) if batches.kept is not None else ()  # half as large as the images each

    @torch.no_grad()
    def logits_and_labels(self, arch: Arch) -> Iterator[tuple[Tensor, Tensor]]:
        """What the subnet makes of each batch: logits [N, classes], with the labels [N]."""
        blocks = blocks_of(self.supernet.space, arch)
        while self.maps[-1].blocks != blocks[: len(self.maps[-1].blocks)]:
            self.maps.pop()
        for n in self.kept_behind[len(self.maps) - 1 :]:
            maps = self._go_on(arch, blocks, n)
            self.maps.append(maps._replace(labelled=list(maps.labelled)))
        yield from self._go_on(arch, blocks, None).labelled

    def _go_on(self, arch: Arch, blocks: Blocks, until: int | None) -> Maps:
        """From the last maps to those behind the first `until` blocks, or to the logits."""
        done, sums = self.maps[-1], dict[str, Tensor]()
        weights = self.supernet.subnet(arch, self.parameters)
        run = partial(self.supernet.run, arch=arch, weights=weights, after=len(done.blocks), until=until)
        recalibration = [run(x, norm=recalibrating(sums)) for x in done.recalibration]
        norm = batch_norm_with(means(sums, self.recalibration))
        return Maps(blocks[:until], recalibration, ((run(x, norm=norm), y) for x, y in done.labelled))


T = TypeVar("T")


@contextmanager
def in_turn(
    supernet: SuperNet, images: tuple[LabelledBatches, Tensor], archs: Sequence[Arch],
    judge: Callable[[Evaluator, Arch], T], threads: int = 1, numbers: Iterable[int] | None = None,
) -> Iterator[Iterator[tuple[int, T]]]:  # fmt: skip
    """The number of each subnet with what `judge(evaluator, arch)` says of it, in an order that suits evaluators.

    `images` are those of an `Evaluator`, of which each thread has one. What they say is the same for any number of
    threads: a subnet is one thread's. `numbers` are those of the subnets that are to be judged, by default all. What
    is not yet begun when the block ends is left.
    """
    wanted = set(range(len(archs)) if numbers is None else numbers)
    order = [number for number in by_blocks(supernet.space, archs) if number in wanted]
    own = local()

    def begin() -> None:
        torch.get_num_threads()  # a new thread takes PyTorch's for its operators from the others when it asks for it
        own.evaluator = Evaluator(supernet, *images)

    def work(number: int) -> T:
        return judge(own.evaluator, archs[number])

    if threads == 1:  # in this thread, whose stream it may be
        begin()
        yield ((number, work(number)) for number in order)
        return
    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        try:
            yield zip(order, pool.map(work, order), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def correct_answers(evaluator: Evaluator, arch: Arch) -> Tensor:
    """int64 []: how many images the subnet classifies correctly after recalibration."""
    return torch.stack([(logits.argmax(1) == y).sum() for logits, y in evaluator.logits_and_labels(arch)]).sum()


def evaluate_population(
    supernet: SuperNet,
    population: Sequence[tuple[float, Arch]],
    data: Dataset,
    description: str = "evaluate",
    progress: bool = True,
    counts: dict[int, Tensor] | None = None,
    before_each: Callable[[], object] = lambda: None,
    threads: int = 1,
) -> pd.DataFrame:
    """Test accuracy of every subnet of `population`, a list of (bucket in MFLOPs, architecture).

    To choose among subnets, use the images held out from training instead:
    `dataclasses.replace(data, x_test=data.x_val, y_test=data.y_val)`. `before_each` is called before every subnet and
    ends the evaluation by raising. Correct answers (int64 [] on the data's device) are added to `counts`, by the
    subnet's number in the population; those that an evaluation was given it does not count again. `threads` subnets
    are evaluated at once, which changes no number.

    Returns one row a subnet: bucket, subnet (number within its bucket), mflops, kernel, expand, depth (settings
    joined by "-"), accuracy (percent of the test images).
    """
    space = supernet.space
    check_images(space, data)
    if len(data.x_test) == 0:
        raise InputError(f"{data.name} has no test images: expected at least one")
    with own_stream(data.device):
        images = LabelledBatches(data.x_test, data.y_test, data), recalibration_images(data)
        counts, archs = {} if counts is None else counts, [arch for _, arch in population]
        left = [number for number in range(len(archs)) if number not in counts]
        at = {"initial": len(archs) - len(left), "total": len(archs)}
        with in_turn(supernet, images, archs, correct_answers, threads, left) as counted:
            for _ in progress_bar(left, progress, desc=description, unit="subnet", **at):
                before_each()
                number, count = next(counted)
                counts[number] = count
    table = pd.DataFrame({"bucket": [float(bucket) for bucket, _ in population]})
    table["subnet"] = table.groupby("bucket").cumcount()
    rows = space.to_rows(archs)
    table["mflops"] = space.reference.macs(rows) / 1e6
    for setting in ("kernel", "expand", "depth"):
        table[setting] = ["-".join(map(str, getattr(arch, setting))) for arch in archs]
    correct = torch.stack([counts[number] for number in range(len(archs))])
    table["accuracy"] = 100 * correct.cpu().double().numpy() / len(data.x_test)
    return table
