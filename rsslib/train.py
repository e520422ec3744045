"""The trainer: one loop for every method.

Randomness is derived from (seed, stage, epoch) alone, so an epoch is the same whether or not the run was interrupted
before it, and methods with one seed see the same batches.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.data import Dataset, augment, draw_augmentation
from rsslib.methods import Method, Stage
from rsslib.progress import progress_bar
from rsslib.samplers import Step
from rsslib.space import SearchSpace
from rsslib.supernet import Network, SuperNet, batch_norm_training

MOMENTUM = 0.9
WEIGHT_DECAY = 3e-5


@dataclass
class TrainingState:
    """Everything that training carries from one epoch to the next."""

    supernet: SuperNet
    optimizer: torch.optim.Optimizer
    teacher: Network | None = None
    stage: int = 0  # the next epoch's stage and its number within the stage
    epoch: int = 0
    history: list[dict] = field(default_factory=list)  # one row an epoch, see `train`

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all epochs so far, without evaluation and checkpoints."""
        return sum(row["seconds"] for row in self.history)


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
) -> TrainingState:
    """Train `state` from where it stands to the end of `method`, in place.

    Each epoch adds a row to `state.history`: stage, epoch (over all stages, from 1), learning_rate (at the first
    step), mflops (of the trained subnets, mean), loss (mean over steps and subnets, distillation included), images,
    seconds. Then `after_epoch` is called; if it returns True, or raises, training ends and the state can go on later.

    Raises FloatingPointError at the end of an epoch in which a loss was not finite.
    """
    space, supernet, n = state.supernet.space, state.supernet, len(data.x_train)
    steps = steps_per_epoch(n, method.batch_size)
    parameters, buffers = dict(supernet.named_parameters()), dict(supernet.named_buffers())
    done = len(state.history) * n
    bar = progress_bar(shown=progress, total=method.epochs * n, initial=done, unit="img", unit_scale=True)
    with bar:
        for stage_number in range(state.stage, len(method.stages)):
            stage = method.stages[stage_number]
            if state.epoch == 0:
                enter_stage(state, method, stage, seed)
            for epoch in range(state.epoch, stage.epochs):
                began = time.perf_counter()
                to_sampler, to_generator = np.random.SeedSequence([seed, stage_number, epoch]).spawn(2)
                rng = np.random.default_rng(to_sampler)
                generator = torch.Generator(data.x_train.device)
                generator.manual_seed(int(to_generator.generate_state(1)[0]))
                subnets = stage.sampler.subnets(space, rng, epoch, stage.epochs, steps)
                subnets = subnets * steps if len(subnets) == 1 else subnets
                order = torch.randperm(n, generator=generator, device=generator.device)
                crops = draw_augmentation(n, generator)
                mflops = mean_mflops(space, subnets)
                bar.set_description(f"{description or method.name}: {stage.name} {epoch + 1}/{stage.epochs}")
                losses = torch.zeros(steps, device=generator.device)
                for step in range(steps):
                    rows = order[step * method.batch_size : (step + 1) * method.batch_size]
                    x = augment(data.x_train[rows], crops[rows], data.mean, data.std)
                    for group in state.optimizer.param_groups:
                        group["lr"] = stage.rate(epoch, step, steps)
                    losses[step] = train_step(
                        state, parameters, buffers, x, data.y_train[rows], subnets[step],
                        method.dropout, generator, stage.distill,
                    )  # fmt: skip
                    if generator.device.type == "cpu":  # elsewhere reading the loss would hold up the device
                        bar.set_postfix(subnet=f"{mflops:.1f}M", loss=f"{losses[step]:.2f}", refresh=False)
                    bar.update(len(rows))
                mean_loss = losses.mean().item()
                if not math.isfinite(mean_loss):
                    step = int(losses.isfinite().logical_not().nonzero()[0])
                    raise FloatingPointError(
                        f"the loss is {losses[step]} in stage {stage.name!r}, epoch {epoch + 1}, step {step + 1}, "
                        f"learning rate {stage.rate(epoch, step, steps):.2g}, subnets {subnets[step]}: try a lower "
                        "learning rate; the last checkpoint before it is kept"
                    )
                bar.set_postfix(subnet=f"{mflops:.1f}M", loss=f"{mean_loss:.2f}")
                state.history.append(
                    {
                        "stage": stage.name,
                        "epoch": len(state.history) + 1,
                        "learning_rate": stage.rate(epoch, 0, steps),
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
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                state.teacher = Network(space, space.largest).to(memory_format=torch.channels_last)
        device = supernet.classifier.weight.device
        state.teacher = state.teacher.to(device).requires_grad_(False).train()
    if stage.sort_channels is not None:
        supernet.sort_channels(stage.sort_channels)
    if method.fresh_optimizer:
        state.optimizer = new_optimizer(supernet)


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
    if distill:
        with torch.no_grad():
            soft_labels = state.teacher(x).softmax(1)
    total = torch.zeros((), device=x.device)
    for arch in subnets:
        leaves = {name: part.detach().requires_grad_() for name, part in supernet.subnet(arch, parameters).items()}
        norm = batch_norm_training(supernet.subnet(arch, buffers))
        logits = supernet.run(x, arch, leaves, norm, dropout, generator)
        loss = F.cross_entropy(logits, y)
        if distill:
            loss = loss + F.cross_entropy(logits, soft_labels)
        gradients = {name: full_gradient(parameters[name]) for name in leaves}
        parts = supernet.subnet(arch, gradients)
        torch._foreach_add_(list(parts.values()), torch.autograd.grad(loss, list(leaves.values())))
        total += loss.detach()
    state.optimizer.step()
    return total / len(subnets)


def full_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def mean_mflops(space: SearchSpace, subnets: list[Step]) -> float:
    """Mean size of the subnets of an epoch, in millions of multiply-accumulates as the buckets count them."""
    distinct = [arch for step in (subnets if subnets[0] is not subnets[-1] else subnets[:1]) for arch in step]
    return float(space.reference.macs(space.to_rows(distinct)).mean()) / 1e6
