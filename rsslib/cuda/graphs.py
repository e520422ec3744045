"""Training steps as CUDA graphs: the same numbers as `rsslib.steps.EagerSteps`, up to rounding, in far fewer launches.

A step of this small network is bound by the launches of its thousand kernels, not by their work. A graph replays all
of them in one launch. Everything that changes between replays (images, learning rate, subnet) is therefore read from
tensors on the device that stay where they are.

- One subnet for the whole epoch: its step is captured as it is, from slices of the weights, once an epoch.
- Another subnet every step: one graph runs the largest subnet, with the layers and channels that the drawn subnet does
  not have masked and its kernels embedded in the largest ones (see `Masks`). Which subnet it is, the graph reads from a
  table of the epoch's draws, so no step needs a capture.

On a CPU nothing can be captured; the same functions then run as they are, which is how the tests check them there.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from rsslib.cuda.masks import Masks
from rsslib.data.augmentation import augment, parts
from rsslib.data.dataset import Dataset
from rsslib.device import (
    CAPTURING,
    can_capture,
    capture_failed,
    check_captures,
    first_line,
    free_memory,
    is_out_of_memory,
    release_memory,
)
from rsslib.errors import CaptureFailed, check_room
from rsslib.samplers import same_throughout
from rsslib.space import Arch
from rsslib.steps import EagerSteps, Views, add_all, add_gradients, cross_entropy, set_rate
from rsslib.supernet import Norm, batch_norm_training, subnet_slices

QUEUED_STEPS = 64  # the host waits for the device so many steps back, so that progress and interrupts are real


class GraphedSteps:
    """The steps of one stage of training, from tensors that stay in place; made anew when a stage begins.

    Its owner closes it, in the stream that it was used in, before the next is made.
    """

    def __init__(self, state, method, stage, data: Dataset, generator: torch.Generator):
        self.state, self.method, self.stage, self.data, self.generator = state, method, stage, data, generator
        self.supernet, self.space, self.device = state.supernet, state.supernet.space, data.device
        device = self.device
        self.parameters = dict(self.supernet.named_parameters())
        self.buffers = dict(self.supernet.named_buffers())
        self.gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.parameters.items()
        }
        self.views = Views(self.supernet, self.gradients)
        self.eager = EagerSteps(state, method, stage, data, generator)
        self.eager.views = self.views
        # No momentum and no weight decay before a tensor's first gradient: until then the optimiser must not see one.
        self.idle = {name for name, p in self.parameters.items() if p.grad is None}
        n, side, channels = len(data.x_train), data.resolution, data.channels
        batch = method.batch_size
        self.full_steps = n // batch
        self.in_place = stage.distill and method.teacher == "largest"
        self.first_differs = self.in_place or stage.ramp_epochs > 0  # a step's first subnet from its others
        real = {"dtype": self.supernet.classifier.weight.dtype, "device": device}
        advice = "choose a lower resolution or fewer jobs at once"
        at_once = len(range(n)[parts(n, side)[0]])
        self.ring = max(1, min(self.full_steps, at_once // batch))  # batches augmented at once
        size = self.ring * batch * side * side * channels * real["dtype"].itemsize
        check_room(size, free_memory(device), "augmented images as floats", advice)
        self.images = torch.empty(self.ring * batch, side, side, channels, **real)
        self.labels = torch.empty(self.ring * batch, dtype=torch.int64, device=device)
        self.batch_images = torch.empty(batch, side, side, channels, **real)
        self.batch_labels = torch.empty(batch, dtype=torch.int64, device=device)
        self.soft_labels = torch.empty(batch, data.n_classes, **real)
        self.rows = torch.arange(batch, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.rates = torch.zeros(self.full_steps + 1, device=device)
        self.shares, self.losses = torch.zeros_like(self.rates), torch.zeros_like(self.rates)
        self.rate, self.share = self.rates[:1].clone(), self.rates[:1].clone()
        self.draws: Tensor = torch.empty(0)
        self.draw = torch.zeros(1, dtype=torch.int64, device=device)
        self.masks = Masks(self.space, self.supernet.classifier.weight)
        self.graphs: dict[object, torch.cuda.CUDAGraph] = {}
        self.warm: set[bool] = set()  # which kinds of epoch `warm_up` has prepared
        self.capturing = can_capture(device)
        if self.capturing:
            self.pool: Any = torch.cuda.graph_pool_handle()
            self.step.add_(0)  # before it is captured, as in `warm_up`
            self.keeper = self.capture(self.step.add_, 0)  # never replayed; a pool must not be without a graph

    def epoch(
        self,
        subnets: list,
        order: Tensor,
        crops,
        rates: list[float],
        shares: list[float],
        after_step: Callable[[int], object] = lambda images: None,
    ) -> Tensor:
        """Train one epoch; returns the loss of every step, on the device.

        `subnets` are those of each step, `order` int64 [images] and `crops` the images' augmentation, `rates` the
        learning rate of each step and `shares` its `Stage.share`. `after_step` is called with numbers of images that
        are done.
        """
        set_rate(self.state.optimizer, self.rate)
        same = same_throughout(subnets)
        self.prepare(subnets, same, order, crops, rates, shares)
        if self.capturing and self.full_steps and same not in self.warm:
            self.warm_up(same)
        batch, waiting = self.method.batch_size, None
        for step in range(self.full_steps):
            if step and step % self.ring == 0:
                self.fill(step)
            self.wake(subnets[step])
            # what the optimiser sees is part of every graph with an update
            if same:
                key = (subnets[0], len(self.idle))
                if key not in self.graphs:
                    self.drop_graphs()
                self.run(key, self.whole_step, subnets[0])
            else:
                self.run("load", self.load)
                for i, _ in enumerate(subnets[step]):
                    first = i == 0 and self.first_differs
                    self.run(("subnet", len(subnets[step]), first), self.masked, len(subnets[step]), first)
                self.run(("update", len(self.idle)), self.update)
            if (step + 1) % QUEUED_STEPS == 0:
                waiting = self.wait(waiting)
                after_step(QUEUED_STEPS * batch)
        if len(rates) > self.full_steps:
            self.smaller_step(subnets[-1], rates[-1], shares[-1])
        after_step(len(order) - self.full_steps // QUEUED_STEPS * QUEUED_STEPS * batch)
        return self.losses[: len(rates)].clone()

    def close(self) -> None:
        """Give back graphs and tensors, also where a traceback keeps this object."""
        if self.capturing:
            with suppress(RuntimeError):  # of a device that has failed, which what comes next will report
                torch.cuda.current_stream(self.device).synchronize()
                self.drop_graphs()
                with CAPTURING:
                    self.keeper.reset()
        device, self.__dict__ = self.device, {}
        with suppress(RuntimeError):
            release_memory(device)

    def prepare(self, subnets: list, same: bool, order: Tensor, crops, rates: list[float], shares: list[float]) -> None:
        """Write what the epoch's steps read; `same`: whether all have the same subnets."""
        self.order, self.crops = order, crops
        in_graphs = order[: self.full_steps * self.method.batch_size]
        self.reader = self.data.read_ahead(in_graphs.split(len(self.images)))
        if self.full_steps:
            self.fill(0)
        for tensor, values in ((self.rates, rates), (self.shares, shares)):
            tensor[: len(values)].copy_(torch.tensor(values))
        for tensor in (self.losses, self.step, self.draw):
            tensor.zero_()
        if not same:
            draws = self.masks.choices([arch for step in subnets for arch in step])
            if self.draws.shape != draws.shape:
                self.drop_graphs()
                self.draws = draws.to(self.device)
            self.draws.copy_(draws)

    def fill(self, step: int) -> None:
        """Augment the batches from `step` on into the ring."""
        start = step * self.method.batch_size
        images = next(self.reader)
        rows = self.order[start : start + len(images)]
        augmented = self.augmented(images, rows)
        self.images[: len(rows)].copy_(augmented.permute(0, 2, 3, 1))
        self.labels[: len(rows)].copy_(self.data.y_train[rows])
        torch.arange(len(self.rows), out=self.rows)

    def augmented(self, images: Tensor, rows: Tensor) -> Tensor:
        data = self.data
        images = augment(images, self.crops[:, rows], data.mean, data.std, data.resolution)
        return images.to(self.images.dtype)

    def smaller_step(self, archs: tuple[Arch, ...], rate: float, share: float) -> None:
        """The epoch's last step, on the images that are left over; a single one, and so not worth a graph."""
        done = self.full_steps * self.method.batch_size
        self.wake(archs)
        self.rate.fill_(rate)
        rows = self.order[done:]
        x = self.augmented(self.data.read(rows), rows)
        self.losses[self.full_steps] = self.eager.train_step(x, self.data.y_train[rows], archs, share)

    def wake(self, archs: tuple[Arch, ...]) -> None:
        """Let the optimiser see the gradients of tensors that are used for the first time."""
        for arch in archs if self.idle else ():
            for name in self.idle & subnet_slices(self.space, arch).keys():
                self.parameters[name].grad = self.gradients[name]
                self.idle.discard(name)

    # --- what is captured

    def whole_step(self, archs: tuple[Arch, ...]) -> None:
        self.load()
        for i, arch in enumerate(archs):
            self.sliced(arch, len(archs), i == 0)
        self.update()

    def load(self) -> None:
        """Take the step's images, labels and learning rate; zero the gradients; ask the teacher."""
        torch.index_select(self.images, 0, self.rows, out=self.batch_images)
        torch.index_select(self.labels, 0, self.rows, out=self.batch_labels)
        torch.index_select(self.rates, 0, self.step, out=self.rate)
        torch.index_select(self.shares, 0, self.step, out=self.share)
        torch._foreach_zero_(list(self.gradients.values()))
        if self.stage.distill and not self.in_place:
            self.soft_labels.copy_(self.state.ask_teacher(self.batch_images.permute(0, 3, 1, 2)))

    def sliced(self, arch: Arch, count: int, first: bool = True) -> None:
        """Add the gradients of one of the step's `count` subnets, computed from slices of the weights."""
        ((leaves, norm),) = self.views.get((arch,))
        add_gradients(self.loss(arch, leaves, norm, count, first), leaves)

    def masked(self, count: int, first: bool = True) -> None:
        """Add the gradients of the next drawn one of the step's `count` subnets, computed with masks."""
        space, masks = self.space, self.masks
        kernels, widths = self.draws.index_select(0, self.draw)[0]
        self.draw.add_(1)
        hidden, squeezed, outputs = masks.channels(widths)
        leaves = {name: parameter.detach() for name, parameter in self.parameters.items()}
        layers = range(space.n_layers)

        # Masked vectors: batch norms and the bias of squeeze-excite's reduction; and the weight of the latter.
        kinds = {"bn1": hidden, "bn2": hidden, "bn3": outputs}
        norms = {f"blocks.{i}.{kind}.": mask[i] for i in layers for kind, mask in kinds.items()}
        vectors = {f"{norm}{name}": mask for norm, mask in norms.items() for name in ("weight", "bias")}
        for i in layers:
            if space.layers[i].squeeze_excite:
                reduce = f"blocks.{i}.se.conv_reduce."
                vectors[f"{reduce}bias"] = squeezed[i]
                leaves[f"{reduce}weight"] = leaves[f"{reduce}weight"] * squeezed[i][:, None, None, None]
        masked = torch._foreach_mul([leaves[name] for name in vectors], list(vectors.values()))
        leaves.update(zip(vectors, masked, strict=True))
        for leaf in leaves.values():
            leaf.requires_grad_()

        matrices = [
            torch.stack([leaves[f"blocks.{i}.kernel_{large}to{small}"] for i in layers])
            for large, small in pairwise(masks.kernels)
        ]
        weights = dict(leaves)
        for i, taps in enumerate(masks.taps(kernels, matrices)):
            largest = leaves[f"blocks.{i}.conv_dw.weight"]
            weights[f"blocks.{i}.conv_dw.weight"] = (largest.flatten(1) @ taps).view(largest.shape)

        running = [self.buffers[f"{norm}running_{name}"] for norm in norms for name in ("mean", "var")]
        kept = torch._foreach_add(running, 0.0)
        norm = batch_norm_training(self.buffers)
        loss = self.loss(space.largest, weights, norm, count, first)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        torch._foreach_lerp_(kept, running, [mask for mask in norms.values() for _ in range(2)])
        torch._foreach_copy_(running, kept)  # a subnet moves the statistics of its own channels alone
        torch._foreach_mul_([gradients[name] for name in vectors], list(vectors.values()))
        add_all((self.gradients[name], gradient) for name, gradient in gradients.items())

    def loss(self, arch: Arch, weights: dict, norm: Norm, count: int, first: bool) -> Tensor:
        """A subnet's loss on the step's images, to be differentiated; adds it to the losses of the epoch."""
        x, labels = self.batch_images.permute(0, 3, 1, 2), None if self.in_place and not first else self.batch_labels
        soft_labels = self.soft_labels if self.stage.distill and not (self.in_place and first) else None
        dropout = self.method.dropout_of(student=labels is None)
        logits = self.state.run(x, arch, weights, norm, dropout, self.generator)
        loss = cross_entropy(logits, labels, soft_labels, self.method.label_smoothing)
        if self.in_place and first:
            self.soft_labels.copy_(logits.detach().softmax(1))
        self.losses.index_add_(0, self.step, loss.detach().view(1).float() / count)
        if self.stage.ramp_epochs and not first:
            loss = loss * self.share
        return loss / count if self.method.gradients == "mean" else loss

    def update(self) -> None:
        self.state.optimizer.step()
        self.rows.add_(len(self.rows))
        self.step.add_(1)

    # --- capturing and replaying

    def run(self, key: object, function: Callable[..., object], *arguments) -> None:
        """Replay `function(*arguments)`, captured when first asked for; on a CPU just run it."""
        if not self.capturing:
            function(*arguments)
            return
        if key not in self.graphs:
            self.graphs[key] = self.capture(function, *arguments)
        self.graphs[key].replay()

    def capture(self, function: Callable[..., object], *arguments) -> torch.cuda.CUDAGraph:
        """Raises CaptureFailed if that fails for another reason than memory."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with CAPTURING:
            check_captures()
            try:
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    function(*arguments)
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                graph.reset()
                if is_out_of_memory(error):
                    raise
                capture_failed.set()
                cause = first_line(error.__context__ or error)  # `capture_end` only says that there is one
                raise CaptureFailed(
                    f"the part {function.__name__!r} of a training step could not be captured as a CUDA graph "
                    f"({cause}): restart with --no-graphs, or graphs=False, to train without"
                ) from error
        return graph

    def drop_graphs(self) -> None:
        """All at once, since they share the stream's workspaces, which the first takes with it."""
        with CAPTURING:
            for graph in self.graphs.values():
                graph.reset()
            self.graphs.clear()

    def warm_up(self, same: bool) -> None:
        """Run every kind of layer and kernel once, of slices if all steps have the `same` subnets, else masked.

        Libraries and workspaces must not be set up for the first time in a capture, nor, with drivers before CUDA 12.3,
        kernels be loaded.
        """
        self.warm.add(same)
        generator = self.generator.get_state()
        statistics = [buffer.clone() for buffer in self.buffers.values()]
        with CAPTURING:
            self.load()
            if same:
                for kernel, expand in product(self.space.kernels, self.space.expands):
                    self.sliced(self.space.uniform(kernel, expand, max(self.space.depths)), 1)
                if self.first_differs:
                    self.sliced(self.space.largest, 1, False)
            else:
                self.masked(1)
                if self.first_differs:
                    self.masked(1, False)
            stand_in = nn.Parameter(torch.zeros_like(self.supernet.classifier.bias))
            stand_in.grad = torch.zeros_like(stand_in)
            self.rows.add_(0)
            momentum = self.method.momentum
            optimizer = torch.optim.SGD(
                [stand_in],
                lr=self.rate,
                momentum=momentum,
                nesterov=momentum > 0,
                fused=True,
            )
            optimizer.step()
        self.generator.set_state(generator)
        torch._foreach_copy_(list(self.buffers.values()), statistics)
        for tensor in (self.losses, self.draw):
            tensor.zero_()

    def wait(self, last: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Wait for the event `last`; returns one that says when the device has done what it was given so far."""
        if not self.capturing:
            return None
        event = torch.cuda.Event(blocking=True)  # else waiting would occupy a core
        event.record()
        if last is not None:
            last.synchronize()
        return event
