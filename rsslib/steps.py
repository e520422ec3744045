"""One optimiser step, and what it changes: the state of training, single steps of the supernet's subnets."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.data.augmentation import Augmentation, augment
from rsslib.data.dataset import Dataset
from rsslib.methods import Method, Stage
from rsslib.samplers import Step
from rsslib.space import Arch
from rsslib.supernet import Norm, SuperNet, batch_norm_training

MOMENTUM = 0.9
WEIGHT_DECAY = 3e-5


@dataclass
class TrainingState:
    """Everything that training carries from one epoch to the next."""

    supernet: SuperNet
    optimizer: torch.optim.Optimizer
    teacher: dict[str, Tensor] | None = None  # weights of the space's largest subnet
    bfloat16: bool = False  # networks run under autocast
    stage: int = 0  # the next epoch's stage and its number within the stage
    epoch: int = 0
    history: list[dict] = field(default_factory=list)  # one row an epoch, see `train`

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all epochs so far, without evaluation and checkpoints."""
        return sum(row["seconds"] for row in self.history)

    @property
    def processor_seconds(self) -> float:
        """The same in seconds of the processor; NaN if some epochs were not timed so."""
        return sum(row.get("processor_seconds", math.nan) for row in self.history)


def new_optimizer(supernet: SuperNet) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; BN parameters and biases escape weight decay, kernel matrices do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in supernet.named_parameters():
        parameter.grad = None  # until its first gradient neither momentum nor weight decay reaches a tensor
        (plain if name.endswith(".bias") or ".bn" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=True)
    for parameter in (*decayed, *plain):  # the fused step wants all tensors to have one, also those that join later
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class EagerSteps:
    """The steps of one stage of training, one after the other."""

    def __init__(self, state: TrainingState, method: Method, stage: Stage, data: Dataset, generator: torch.Generator):
        self.state, self.method, self.stage, self.data, self.generator = state, method, stage, data, generator

    def epoch(self, subnets: list[Step], order: Tensor, crops: Augmentation, rates: list[float], bar) -> Tensor:
        """Train one epoch; returns the loss of every step, on the device.

        `subnets` are those of each step, `order` int64 [images] and `crops` the images' augmentation, `rates` the
        learning rate of each step.
        """
        data, losses = self.data, torch.zeros(len(rates), device=order.device)
        views = Views(self.state.supernet)
        for step, rows in enumerate(order.split(self.method.batch_size)[: len(rates)]):
            x = augment(data.x_train[rows], crops[rows], data.mean, data.std)
            set_rate(self.state.optimizer, rates[step])
            losses[step] = train_step(
                self.state, views, x, data.y_train[rows], subnets[step],
                self.method, self.generator, self.stage.distill,
            )  # fmt: skip
            if order.device.type == "cpu":  # elsewhere reading the loss would hold up the device
                bar.set_postfix(loss=f"{losses[step]:.2f}", refresh=False)
            bar.update(len(rows))
        return losses

    def close(self) -> None:
        """Nothing is held from epoch to epoch."""


class Views:
    """What subnets use of a supernet, as views; those of the last step are kept, since most steps have its subnets.

    `gradients` are tensors of full size by the parameters' names: by default the parameters' own, made where there are
    none, with which views are good as long as the parameters keep them, so made anew for every epoch.
    """

    def __init__(self, supernet: SuperNet, gradients: Mapping[str, Tensor] | None = None):
        self.supernet, self.gradients = supernet, gradients
        self.parameters, self.buffers = dict(supernet.named_parameters()), dict(supernet.named_buffers())
        self.last: dict[Arch, tuple[dict[str, Tensor], Norm]] = {}

    def of(self, subnets: Step) -> list[tuple[dict[str, Tensor], Norm]]:
        """For each subnet: the leaves to differentiate by, which are parts of the parameters and whose gradients are of
        `gradients`; and its batch norm, which moves its part of the running statistics."""
        self.last = {arch: self.last.get(arch) or self._of(arch) for arch in subnets}
        return [self.last[arch] for arch in subnets]

    def _of(self, arch: Arch) -> tuple[dict[str, Tensor], Norm]:
        parts = self.supernet.subnet(arch, self.parameters)
        leaves = {name: part.detach().requires_grad_() for name, part in parts.items()}
        gradients = self.gradients or {name: full_gradient(self.parameters[name]) for name in leaves}
        for name, part in self.supernet.subnet(arch, gradients).items():
            leaves[name].grad = part
        return leaves, batch_norm_training(self.supernet.subnet(arch, self.buffers))


def train_step(
    state: TrainingState,
    views: Views,
    x: Tensor,
    y: Tensor,
    subnets: Step,
    method: Method,
    generator: torch.Generator,
    distill: bool,
) -> Tensor:
    """One optimiser step on images x [N, C, R, R] and labels y [N]; returns the subnets' mean loss, detached.

    The subnets' gradients are summed, or averaged if the method says so. Differentiation is with respect to slices:
    each leaf is a subnet's part of a parameter, and its gradient the same part of the parameter's, so nothing of full
    size is made but the optimiser's own pass. That pass reaches every tensor that ever had a gradient, active or not
    (zeros decay like the rest).
    """
    state.optimizer.zero_grad(set_to_none=False)
    in_place = distill and method.teacher == "largest"
    soft_labels = soft_labels_of(state, x) if distill and not in_place else None
    labels: Tensor | None = y
    total = torch.zeros((), device=x.device)
    for arch, (leaves, norm) in zip(subnets, views.of(subnets), strict=True):
        logits = run_subnet(state, x, arch, leaves, norm, method.dropout, generator)
        loss = loss_of(logits, labels, soft_labels)
        total += loss.detach()
        if in_place and labels is not None:  # of the first, which teaches the others
            labels, soft_labels = None, logits.detach().softmax(1)
        add_gradients(loss / len(subnets) if method.gradients == "mean" else loss, leaves)
    state.optimizer.step()
    return total / len(subnets)


def add_gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> None:
    """Add the loss's gradients to those that the leaves have."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    # where it is None, `Pointwise` has added it
    add_all((leaf.grad, g) for leaf, g in zip(leaves.values(), found, strict=True) if g is not None)


def add_all(pairs: Iterable[tuple[Any, Tensor]]) -> None:
    """Add to the first of each two tensors the second: of dense ones in a single kernel of a GPU, others one by one.

    Weights of 1x1 convolutions are the same numbers in the same order whatever the strides of their last two
    dimensions, of size 1; squeezing these lets PyTorch see it.
    """
    dense: list[tuple[Tensor, Tensor]] = []
    others: list[tuple[Tensor, Tensor]] = []
    for total, added in pairs:
        if total.ndim > 1:
            total, added = total.squeeze(), added.squeeze()
        (dense if total.is_contiguous() and added.is_contiguous() else others).append((total, added))
    torch._foreach_add_(*map(list, zip(*dense, strict=True)))
    for total, added in others:
        total.add_(added)


def run_subnet(
    state: TrainingState, x: Tensor, arch: Arch, weights: dict[str, Tensor], norm: Norm, dropout: float,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """Logits [N, classes], from matrix products and convolutions in bfloat16 if the state says so."""
    if not state.bfloat16:
        return state.supernet.run(x, arch, weights, norm, dropout, generator)
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):  # a graph cannot replay a cache
        return state.supernet.run(x, arch, weights, norm, dropout, generator).float()


@torch.no_grad()
def teacher_weights(supernet: SuperNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the largest subnet's `weights`, by name, laid out in memory as the supernet's own."""
    own = supernet.subnet(supernet.space.largest, dict(supernet.named_parameters()))
    return {name: torch.empty_like(part).copy_(weights[name]) for name, part in own.items()}


def soft_labels_of(state: TrainingState, x: Tensor) -> Tensor:
    """The teacher's probabilities [N, classes] for images x, with the batch norm statistics of the batch."""
    largest = state.supernet.space.largest
    assert state.teacher is not None
    return run_subnet(state, x, largest, state.teacher, batch_norm_training(), 0.0, None).softmax(1)


def loss_of(logits: Tensor, labels: Tensor | None, soft_labels: Tensor | None) -> Tensor:
    """Cross-entropy of logits [N, classes] with labels [N], plus that with soft labels [N, classes], where given."""
    first, *others = [F.cross_entropy(logits, target) for target in (labels, soft_labels) if target is not None]
    return first + others[0] if others else first


def full_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
