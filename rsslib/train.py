"""The trainer: one loop for every method.

Randomness is derived from (seed, stage, epoch) alone, so an epoch is the same whether or not the run was interrupted
before it, and methods with one seed see the same batches.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.data import Augmentation, Dataset, augment, draw_augmentation
from rsslib.methods import Method, Stage
from rsslib.progress import progress_bar
from rsslib.samplers import Step
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import Network, Norm, SuperNet, batch_norm_training

ONE_AT_A_TIME = threading.Lock()  # for threads that need PyTorch's global random state
MOMENTUM = 0.9
WEIGHT_DECAY = 3e-5


@dataclass
class TrainingState:
    """Everything that training carries from one epoch to the next."""

    supernet: SuperNet
    optimizer: torch.optim.Optimizer
    teacher: Network | None = None
    bfloat16: bool = False  # networks run under autocast
    stage: int = 0  # the next epoch's stage and its number within the stage
    epoch: int = 0
    history: list[dict] = field(default_factory=list)  # one row an epoch, see `train`

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all epochs so far, without evaluation and checkpoints."""
        return sum(row["seconds"] for row in self.history)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, a stream of its own for what is inside, so that runs in several threads share the device."""
    if device.type != "cuda" or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        yield
        return
    stream, outside = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


def start(space: SearchSpace, method: Method, seed: int, device: str | torch.device = "cpu") -> TrainingState:
    """A new supernet with its optimiser, before the first epoch."""
    supernet = SuperNet(space, method.dropout, torch.Generator().manual_seed(seed)).to(device)
    return TrainingState(supernet, new_optimizer(supernet))


def new_optimizer(supernet: SuperNet) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; BN parameters and biases escape weight decay, kernel matrices do not."""
    decayed, plain = [], []
    for name, parameter in supernet.named_parameters():
        parameter.grad = None  # until its first gradient neither momentum nor weight decay reaches a tensor
        (plain if name.endswith(".bias") or ".bn" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=True)
    for parameter in (*decayed, *plain):  # the fused step wants all tensors to have one, also those that join later
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The last, smaller batch counts, except for a single image, which batch norm cannot normalise."""
    return images // batch_size + (images % batch_size > 1)


def train(
    state: TrainingState,
    method: Method,
    data: Dataset,
    seed: int,
    after_epoch: Callable[[TrainingState], bool | None] = lambda state: None,
    description: str = "",
    progress: bool = True,
    graphs: bool | None = None,
) -> TrainingState:
    """Train `state` from where it stands to the end of `method`, in place.

    `graphs`: take the steps as CUDA graphs (see `rsslib.graphs`); None does so on CUDA. Each epoch adds a row to
    `state.history`: stage, epoch (over all stages, from 1), learning_rate (at the first step), mflops (of the trained
    subnets, mean), loss (mean over steps and subnets, distillation included), images, seconds. Then `after_epoch` is
    called; if it returns True, or raises, training ends and the state can go on later.

    Raises FloatingPointError at the end of an epoch in which a loss was not finite.
    """
    from rsslib.graphs import GraphedSteps  # here, because graphs build on this module

    space, n, device = state.supernet.space, len(data.x_train), data.device
    steps = steps_per_epoch(n, method.batch_size)
    graphs = device.type == "cuda" if graphs is None else graphs
    generator = torch.Generator(device)
    total, done = method.epochs * n, len(state.history) * n
    bar = progress_bar(shown=progress, total=total, initial=done, unit="img", unit_scale=True)
    with bar, own_stream(device):
        for stage_number in range(state.stage, len(method.stages)):
            stage = method.stages[stage_number]
            if state.epoch == 0:
                enter_stage(state, method, stage, seed)
            executor = (GraphedSteps if graphs else EagerSteps)(state, method, stage, data, generator)
            for epoch in range(state.epoch, stage.epochs):
                began = time.perf_counter()
                to_sampler, to_generator = np.random.SeedSequence([seed, stage_number, epoch]).spawn(2)
                generator.manual_seed(int(to_generator.generate_state(1)[0]))
                subnets = stage.sampler.subnets(space, np.random.default_rng(to_sampler), epoch, stage.epochs, steps)
                subnets = subnets * steps if len(subnets) == 1 else subnets
                order = torch.randperm(n, generator=generator, device=device)
                crops = draw_augmentation(n, generator)
                rates = [stage.rate(epoch, step, steps) for step in range(steps)]
                mflops = mean_mflops(space, subnets)
                place = f"{stage.name} {epoch + 1}/{stage.epochs}, subnet {mflops:.1f}M"
                bar.set_description(f"{description or method.name}: {place}")
                losses = executor.epoch(subnets, order, crops, rates, bar)
                mean_loss = losses.mean().item()
                if not math.isfinite(mean_loss):
                    step = int(losses.isfinite().logical_not().nonzero()[0])
                    raise FloatingPointError(
                        f"the loss is {losses[step]} in stage {stage.name!r}, epoch {epoch + 1}, step {step + 1}, "
                        f"learning rate {rates[step]:.2g}, subnets {subnets[step]}: try a lower "
                        "learning rate; the last checkpoint before it is kept"
                    )
                bar.set_postfix(loss=f"{mean_loss:.2f}")
                state.history.append(
                    {
                        "stage": stage.name,
                        "epoch": len(state.history) + 1,
                        "learning_rate": rates[0],
                        "mflops": mflops,
                        "loss": mean_loss,
                        "images": n,
                        "seconds": time.perf_counter() - began,
                    }
                )
                last = epoch + 1 == stage.epochs
                state.stage, state.epoch = (stage_number + 1, 0) if last else (stage_number, epoch + 1)
                if after_epoch(state):
                    return state
    return state


def enter_stage(state: TrainingState, method: Method, stage: Stage, seed: int) -> None:
    """What happens once before a stage: teacher, channel sorting, optimiser."""
    space, supernet = state.supernet.space, state.supernet
    if stage.distill and state.teacher is None:
        if method.teacher == "stage":
            state.teacher = supernet.extract(space.largest)
        else:  # PyTorch's default initialisation, from a seed of its own
            with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                state.teacher = Network(space, space.largest).to(memory_format=torch.channels_last)
        state.teacher = state.teacher.to(supernet.classifier.weight).requires_grad_(False).train()
    if stage.sort_channels is not None:
        supernet.sort_channels(stage.sort_channels)
    if method.fresh_optimizer:
        state.optimizer = new_optimizer(supernet)


class EagerSteps:
    """The steps of one stage of training, one after the other."""

    def __init__(self, state: TrainingState, method: Method, stage: Stage, data: Dataset, generator: torch.Generator):
        self.state, self.method, self.stage, self.data, self.generator = state, method, stage, data, generator
        self.parameters = dict(state.supernet.named_parameters())
        self.buffers = dict(state.supernet.named_buffers())

    def epoch(self, subnets: list[Step], order: Tensor, crops: Augmentation, rates: list[float], bar) -> Tensor:
        """Train one epoch; returns the loss of every step, on the device.

        `subnets` are those of each step, `order` int64 [images] and `crops` the images' augmentation, `rates` the
        learning rate of each step.
        """
        data, losses = self.data, torch.zeros(len(rates), device=order.device)
        for step, rows in enumerate(order.split(self.method.batch_size)[: len(rates)]):
            x = augment(data.x_train[rows], crops[rows], data.mean, data.std)
            for group in self.state.optimizer.param_groups:
                group["lr"] = rates[step]
            losses[step] = train_step(
                self.state, self.parameters, self.buffers, x, data.y_train[rows], subnets[step],
                self.method.dropout, self.generator, self.stage.distill,
            )  # fmt: skip
            if order.device.type == "cpu":  # elsewhere reading the loss would hold up the device
                bar.set_postfix(loss=f"{losses[step]:.2f}", refresh=False)
            bar.update(len(rows))
        return losses


def train_step(
    state: TrainingState,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    subnets: Step,
    dropout: float,
    generator: torch.Generator,
    distill: bool,
) -> Tensor:
    """One optimiser step on images x [N, C, 32, 32] and labels y [N]; returns the subnets' mean loss, detached.

    The subnets' gradients are summed. Differentiation is with respect to slices: each leaf is a subnet's part of a
    parameter, and its gradient is the same part of the parameter's, so nothing of full size is made but the optimiser's
    own pass. That pass reaches every tensor that ever had a gradient, active or not (zeros decay like the rest).
    """
    supernet = state.supernet
    state.optimizer.zero_grad(set_to_none=False)
    soft_labels = None
    if distill:
        with torch.no_grad():
            soft_labels = state.teacher(x).softmax(1)
    total = torch.zeros((), device=x.device)
    for arch in subnets:
        leaves = {name: part.detach().requires_grad_() for name, part in supernet.subnet(arch, parameters).items()}
        norm = batch_norm_training(supernet.subnet(arch, buffers))
        logits = run_subnet(state, x, arch, leaves, norm, dropout, generator)
        loss = loss_of(logits, y, soft_labels)
        gradients = {name: full_gradient(parameters[name]) for name in leaves}
        parts = supernet.subnet(arch, gradients)
        torch._foreach_add_(list(parts.values()), torch.autograd.grad(loss, list(leaves.values())))
        total += loss.detach()
    state.optimizer.step()
    return total / len(subnets)


def run_subnet(
    state: TrainingState, x: Tensor, arch: Arch, weights: dict[str, Tensor], norm: Norm, dropout: float,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Logits [N, classes], from matrix products and convolutions in bfloat16 if the state says so."""
    if not state.bfloat16:
        return state.supernet.run(x, arch, weights, norm, dropout, generator)
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):  # a graph cannot replay a cache
        return state.supernet.run(x, arch, weights, norm, dropout, generator).float()


def loss_of(logits: Tensor, y: Tensor, soft_labels: Tensor | None) -> Tensor:
    """Cross-entropy of logits [N, classes] with labels y [N], plus that with a teacher's soft labels [N, classes]."""
    loss = F.cross_entropy(logits, y)
    return loss if soft_labels is None else loss + F.cross_entropy(logits, soft_labels)


def full_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def mean_mflops(space: SearchSpace, subnets: list[Step]) -> float:
    """Mean size of the subnets of an epoch, in millions of multiply-accumulates as the buckets count them."""
    distinct = [arch for step in (subnets if subnets[0] is not subnets[-1] else subnets[:1]) for arch in step]
    return float(space.reference.macs(space.to_rows(distinct)).mean()) / 1e6
