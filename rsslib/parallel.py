"""Train one supernet in several processes, started by `torchrun` or another launcher, with `torch.distributed` only.

Each process holds the whole network and draws the same subnets, images and dropout masks. Each trains its part of a
step. Gradients are summed over processes, and all take the same optimizer step. There are two ways to divide a step:

- By subnets: the numbers are those of one process, up to the order of summation.
- By images of the batch, for methods with `groups`: batch norm sees the images of one process at a time.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rsslib.data.dataset import Dataset
from rsslib.errors import InputError, one_line
from rsslib.evaluate import evaluate_population
from rsslib.samplers import Step
from rsslib.space import Arch
from rsslib.steps import EagerSteps, TrainingState
from rsslib.supernet import BN_MOMENTUM, SuperNet

PATIENCE = 1800  # seconds that a process waits for another
_asked_to_stop = False


class ProcessLost(InputError):
    """Another process of a training in several processes ended or did not answer in time."""


@contextmanager
def joined(device: str = "cpu", patience: float = PATIENCE) -> Iterator[tuple[int, str]]:
    """Join the processes that a launcher started; yields the rank and the device of this process.

    A process without a launcher gets 0 and `device`. Launchers such as torchrun set WORLD_SIZE, RANK, LOCAL_RANK,
    MASTER_ADDR and MASTER_PORT. SIGINT and SIGTERM then ask all processes to stop at the end of the current step; a
    second signal has its usual effect.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, device
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)

    def ask(number: Any, frame: object) -> None:
        global _asked_to_stop
        _asked_to_stop = True
        signal.signal(number, before[number])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _answered():
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=patience))
        yield dist.get_rank(), device
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if dist.is_initialized():
            dist.destroy_process_group()


def size() -> int:
    """Return the number of processes; 1 outside of `joined`."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed raises these
        raise ProcessLost(
            f"another process of this training ended or did not answer ({one_line(error)}): "
            "the same command resumes from the last checkpoint"
        ) from None


def share(thing: Any = None) -> Any:
    """Return what rank 0 gives."""
    things = [thing]
    with _answered():
        dist.broadcast_object_list(things)
    return things[0]


def any_asks(stop: object) -> bool:
    """Return whether `stop` is true in any process; raises KeyboardInterrupt in all processes if one got a signal."""
    if size() == 1:
        return bool(stop)
    asked = torch.tensor([bool(stop), _asked_to_stop], dtype=torch.float32)
    with _answered():
        dist.all_reduce(asked)
    if asked[1]:
        raise KeyboardInterrupt
    return bool(asked[0])


def together(after_epoch: Callable[[TrainingState], bool | None]) -> Callable[[TrainingState], bool]:
    """Return an `after_epoch` that stops all processes if one of them asks to stop, or fails."""

    def agreed(state: TrainingState) -> bool:
        stop: bool | None = True
        try:
            stop = after_epoch(state)
        finally:
            stop = any_asks(stop)
        return stop

    return agreed


class ParallelSteps(EagerSteps):
    """The steps of one stage of training, divided among processes. All processes make the same calls.

    Raises InputError at the first epoch if the method has one subnet per step and no groups.
    """

    def __post_init__(self):
        self.processes = size()
        super().__post_init__()
        self.rank, self.by_images = dist.get_rank(), self.method.groups > 1
        named = self.state.supernet.named_buffers()
        self.running = {name: buffer for name, buffer in named if buffer.is_floating_point()}

    def own(self, rows: Tensor) -> Tensor:
        return rows.split(self.parts(len(rows)))[self.rank] if self.by_images else rows

    def parts(self, images: int) -> list[int]:
        """Return how many images of a batch each process trains: at least two, or none."""
        groups = max(1, min(size(), images // 2))
        parts = [images // groups + (i < images % groups) for i in range(groups)]
        return parts + [0] * (size() - groups)

    def epoch(self, subnets: list[Step], *arguments, **others) -> Tensor:
        counts = {len(step) for step in subnets}
        counts |= {getattr(stage.sampler, "count", 1) for stage in self.method.stages}
        if not self.by_images and counts == {1}:
            raise InputError(
                f"{self.method.name} trains one subnet per step, which {size()} processes cannot share: "
                f"share the images of each batch (--groups {size()}, or Method.groups)"
            )
        return super().epoch(subnets, *arguments, **others)

    def turns(self, subnets: Step, total: Tensor) -> Iterator[int]:
        """Yield the number of each subnet that this process trains, then sum the changed values over processes."""
        running, before = [*self.running.values()], [buffer.clone() for buffer in self.running.values()]
        torch._foreach_zero_(running)
        pieces = self.pieces(len(subnets))
        for i, rank, images in pieces:
            if rank == self.rank:
                yield i
            else:
                self.skip_dropout(self.method.dropout_of(student=self.in_place and i > 0), images)
            if self.in_place and i == 0 and not self.by_images:
                self.share_soft_labels()
        # The mean over groups, or the statistics of all subnets one after another, where later ones fade earlier ones.
        later = [subnets[i] for i, rank, _ in pieces if rank > self.rank and not self.by_images]
        torch._foreach_mul_(running, self.kept(later))
        self.sum_up(total)
        torch._foreach_addcmul_(running, before, self.kept(subnets))

    def pieces(self, subnets: int) -> list[tuple[int, int, int]]:
        """Return (subnet, rank, images) of everything that a step runs, in the order of a single process."""
        if self.by_images:
            parts = [(rank, images) for rank, images in enumerate(self.parts(self.whole)) if images]
            return [(i, rank, images) for i in range(subnets) for rank, images in parts]
        each = -(-subnets // size())  # neighbours share a process
        return [(i, i // each, self.whole) for i in range(subnets)]

    def share_soft_labels(self) -> None:
        """Send the soft labels of the step's first subnet, which rank 0 trains, to all processes."""
        if self.soft_labels is None:
            self.soft_labels = self.state.supernet.classifier.weight.new_empty(self.whole, self.data.n_classes)
        with _answered():
            dist.broadcast(self.soft_labels, 0)

    def skip_dropout(self, dropout: float, images: int) -> None:
        """Draw a mask that only another process uses, to keep random numbers in step."""
        if dropout > 0:
            weight = self.state.supernet.classifier.weight
            mask = weight.new_empty(images, weight.shape[1], dtype=torch.bfloat16 if self.state.bfloat16 else None)
            mask.bernoulli_(1 - dropout, generator=self.generator)

    def sum_up(self, total: Tensor) -> None:
        """Sum gradients, running statistics and the loss over all processes, in one all-reduce."""
        parts = [p.grad for p in self.state.supernet.parameters() if p.grad is not None]
        parts += [*self.running.values(), total, total.new_full((1,), float(_asked_to_stop))]
        flat = torch.cat([part.flatten().to(parts[0].dtype) for part in parts])
        if self.by_images:
            flat[:-1] *= self.parts(self.whole)[self.rank] / self.whole
        with _answered():
            dist.all_reduce(flat)
        if flat[-1]:
            raise KeyboardInterrupt
        for part, summed in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(summed.view(part.shape))

    def kept(self, subnets: Sequence[Arch]) -> list[Tensor]:
        """Return how much of each running statistic remains after batch norm in `subnets`."""
        left = {name: torch.ones_like(buffer) for name, buffer in self.running.items()}
        for arch in subnets:
            torch._foreach_mul_([*self.state.supernet.subnet(arch, left).values()], 1 - BN_MOMENTUM)
        return [*left.values()]


class StopAsked(Exception):
    """A process asked to stop an evaluation."""


def count_correct(
    supernet: SuperNet,
    population: Sequence[tuple[float, Arch]],
    data: Dataset,
    counts: dict[int, Tensor],
    stop: Callable[[], bool] = lambda: False,
    **others: Any,
) -> None:
    """Count the images that each subnet not yet in `counts` classifies correctly, divided among processes.

    Adds the counts to `counts`. All processes make the same call; `others` are arguments of `evaluate_population`. If
    `stop()` is true in one process, adds the counts so far and raises StopAsked in all processes.
    """
    left = [number for number in range(len(population)) if number not in counts]
    mine = left[dist.get_rank() :: size()]
    own: dict[int, Tensor] = {}
    asks = [*range(0, len(left), size())]  # as often in all processes

    def before_each() -> None:
        asks.pop()
        if any_asks(stop()):
            raise StopAsked

    stopped: BaseException | None = None
    try:
        subnets = [population[number] for number in mine]
        evaluate_population(supernet, subnets, data, counts=own, before_each=before_each, **others)
        while asks:
            before_each()
    except (StopAsked, KeyboardInterrupt) as error:
        stopped = error
    found: list[Any] = [None] * size()
    with _answered():
        dist.all_gather_object(found, {mine[i]: int(count) for i, count in own.items()})
    for part in found:
        counts |= {number: torch.tensor(count, device=data.device) for number, count in part.items()}
    if stopped:
        raise stopped
