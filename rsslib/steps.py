"""Training steps: the state that they change, one optimizer step, and an epoch of steps."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.data.augmentation import augment
from rsslib.data.dataset import Dataset
from rsslib.errors import InputError
from rsslib.methods import MOMENTUM, WEIGHT_DECAY, Method, Stage
from rsslib.samplers import Step
from rsslib.space import Arch
from rsslib.supernet import Norm, SuperNet, Weights, batch_norm_training


@dataclass
class TrainingState:
    """Everything that training keeps from one epoch to the next."""

    supernet: SuperNet
    optimizer: torch.optim.Optimizer
    teacher: dict[str, Tensor] | None = None  # weights of the space's largest subnet
    bfloat16: bool = False  # whether networks run under autocast
    stage: int = 0  # the stage of the next epoch
    epoch: int = 0  # the number of the next epoch within the stage
    history: list[dict] = field(default_factory=list)  # one row per epoch, see `train`

    @property
    def seconds(self) -> float:
        """Return wall-clock seconds of all epochs so far, without evaluation and checkpoints."""
        return sum(row["seconds"] for row in self.history)

    @property
    def processor_seconds(self) -> float:
        """Return processor seconds of all epochs so far; NaN if any epoch has none recorded."""
        return sum(row.get("processor_seconds", math.nan) for row in self.history)

    def run(self, x: Tensor, *arguments) -> Tensor:
        """Call `SuperNet.run`, with matrix products and convolutions in bfloat16 if the state says so."""
        if not self.bfloat16:
            return self.supernet.run(x, *arguments)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):  # a graph cannot replay a cache
            return self.supernet.run(x, *arguments).float()

    def ask_teacher(self, x: Tensor) -> Tensor:
        """Return the teacher's probabilities [N, classes] for images x, with the batch norm statistics of the batch."""
        assert self.teacher is not None
        largest = self.supernet.space.largest
        return self.run(x, largest, self.teacher, batch_norm_training()).softmax(1)


@torch.no_grad()
def teacher_weights(supernet: SuperNet, weights: Weights) -> dict[str, Tensor]:
    """Return copies of the largest subnet's `weights`, by name, in the memory layout of the supernet's weights."""
    largest = supernet.subnet(supernet.space.largest, dict(supernet.named_parameters()))
    return {name: torch.empty_like(part).copy_(weights[name]) for name, part in largest.items()}


def new_optimizer(
    supernet: SuperNet, momentum: float = MOMENTUM, weight_decay: float = WEIGHT_DECAY
) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum. Weight decay skips BN parameters and biases, but not kernel matrices."""
    groups: list[dict] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, parameter in supernet.named_parameters():
        parameter.grad = None  # a tensor has no momentum and no weight decay until its first gradient
        groups[name.endswith(".bias") or ".bn" in name]["params"].append(parameter)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)
    for parameter in supernet.parameters():  # the fused step needs all tensors to have momentum
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@dataclass(eq=False)
class EagerSteps:
    """Run the steps of one stage of training, one after another."""

    state: TrainingState
    method: Method
    stage: Stage
    data: Dataset
    generator: torch.Generator
    processes = 1

    def __post_init__(self):
        if self.method.groups not in (1, self.processes):
            raise InputError(
                f"{self.method.name} has {self.method.groups} groups and {self.processes} processes train: start as "
                "many processes as groups (torchrun --nproc-per-node), without CUDA graphs"
            )
        self.views = Views(self.state.supernet)
        self.whole = self.method.batch_size  # images in the batch of a step; a process may train a part of them
        self.in_place = self.stage.distill and self.method.teacher == "largest"
        self.soft_labels: Tensor | None = None

    def own(self, rows: Tensor) -> Tensor:
        """Return the rows of a batch that this process trains."""
        return rows

    def epoch(
        self,
        subnets: list[Step],
        order: Tensor,
        crops: Tensor,
        rates: list[float],
        shares: list[float],
        after_step: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """Train one epoch; returns the loss of every step, float32 [steps] on the device.

        `subnets` holds the subnets of each step, `order` is int64 [images], `crops` the augmentation of the images
        [8, images], `rates` the learning rate of each step, and `shares` its `Stage.share`. `after_step` is called with
        the number of images of each step.
        """
        data, losses = self.data, torch.zeros(len(rates), device=order.device)
        self.views = Views(self.state.supernet)
        batches = order.split(self.method.batch_size)[: len(rates)]
        own = [self.own(rows) for rows in batches]
        for step, images in enumerate(data.read_ahead(own)):
            self.whole, rows = len(batches[step]), own[step]
            x = augment(images, crops[:, rows], data.mean, data.std, data.resolution)
            set_rate(self.state.optimizer, rates[step])
            losses[step] = self.train_step(x, data.y_train[rows], subnets[step], shares[step])
            after_step(self.whole)
        return losses

    def train_step(self, x: Tensor, y: Tensor, subnets: Step, share: float = 1.0) -> Tensor:
        """Run one optimizer step on images x [N, C, R, R] and labels y [N]; returns the mean loss of subnets, detached.

        Gradients of the subnets are summed, or averaged if the method says so; `share` multiplies those of all but the
        first subnet. Differentiation is with respect to slices: each leaf is a subnet's part of a parameter, and its
        gradient is the same part of the parameter's gradient. So only the optimizer touches whole parameters. It
        changes every tensor that ever had a gradient, even if inactive: momentum and weight decay apply when the
        gradient is zero too.
        """
        state, method = self.state, self.method
        state.optimizer.zero_grad(set_to_none=False)
        taught = self.stage.distill and not self.in_place and len(x) > 0
        self.soft_labels = state.ask_teacher(x) if taught else None
        total = torch.zeros((), device=x.device)
        views = self.views.get(subnets)
        for i in self.turns(subnets, total):
            student = self.in_place and i > 0
            leaves, norm = views[i]
            logits = state.run(x, subnets[i], leaves, norm, method.dropout_of(student), self.generator)
            loss = cross_entropy(logits, None if student else y, self.soft_labels, method.label_smoothing)
            total += loss.detach()
            if self.in_place and i == 0:  # the first subnet teaches the others
                self.soft_labels = logits.detach().softmax(1)
            if i > 0 and share != 1:
                loss = loss * share
            add_gradients(loss / len(subnets) if method.gradients == "mean" else loss, leaves)
        state.optimizer.step()
        return total / len(subnets)

    def turns(self, subnets: Step, total: Tensor) -> Iterator[int]:
        """Yield the number of each subnet that this process trains. `total` is the sum of their losses."""
        yield from range(len(subnets))

    def close(self) -> None:
        """Do nothing: nothing is held after an epoch."""


def cross_entropy(
    logits: Tensor, labels: Tensor | None, soft_labels: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the sum of cross-entropies of logits [N, classes] with labels [N] and soft labels [N, classes], if given.

    `smoothing` is the label smoothing.
    """
    if labels is None:
        assert soft_labels is not None
        return F.cross_entropy(logits, soft_labels)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss if soft_labels is None else loss + F.cross_entropy(logits, soft_labels)


class Views:
    """The parts of a supernet that subnets use, as views.

    The views of the last step are kept, because most steps repeat its subnets. `gradients` are full-size tensors by
    parameter name. By default they are the gradients of the parameters, which are created if missing; views are then
    valid only while the parameters keep these gradients.
    """

    def __init__(self, supernet: SuperNet, gradients: Mapping[str, Tensor] | None = None):
        self.supernet, self.gradients = supernet, gradients
        self.parameters = dict(supernet.named_parameters())
        self.buffers = dict(supernet.named_buffers())
        self.last: dict[Arch, tuple[dict[str, Tensor], Norm]] = {}

    def get(self, subnets: Step) -> list[tuple[dict[str, Tensor], Norm]]:
        """Return, for each subnet, the leaves to differentiate with, and batch norm that updates running statistics.

        Leaves are parts of the parameters. Their gradients are parts of `gradients`.
        """
        self.last = {arch: self.last.get(arch) or self._make(arch) for arch in subnets}
        return [self.last[arch] for arch in subnets]

    def _make(self, arch: Arch) -> tuple[dict[str, Tensor], Norm]:
        parts = self.supernet.subnet(arch, self.parameters)
        leaves = {name: part.detach().requires_grad_() for name, part in parts.items()}
        gradients = self.gradients or {name: _gradient(self.parameters[name]) for name in leaves}
        for name, part in self.supernet.subnet(arch, gradients).items():
            leaves[name].grad = part
            leaves[name].adds_in_place = True  # type: ignore[attr-defined]
        return leaves, batch_norm_training(self.supernet.subnet(arch, self.buffers))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def add_gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> None:
    """Add the gradients of the loss to the gradients of the leaves."""
    wanted = list(leaves.values())
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    pairs = zip(wanted, found, strict=True)
    add_all((leaf.grad, gradient) for leaf, gradient in pairs if gradient is not None)  # None: `Pointwise` added it


def add_all(pairs: Iterable[tuple[Any, Tensor]]) -> None:
    """Add the second tensor of each pair to the first: contiguous pairs in one GPU kernel, others one by one.

    The last two dimensions of 1x1 convolution weights have size 1, so their strides do not affect the order of numbers.
    Without these dimensions, PyTorch sees that the weights are contiguous.
    """
    dense: list[tuple[Tensor, Tensor]] = []
    for total, added in pairs:
        if total.ndim > 1:
            total, added = total.squeeze(), added.squeeze()
        if total.is_contiguous() and added.is_contiguous():
            dense.append((total, added))
        else:
            total.add_(added)
    torch._foreach_add_(*map(list, zip(*dense, strict=True)))
