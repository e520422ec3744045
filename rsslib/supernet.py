"""The supernet: one set of weights, shared by every subnet of a search space.

`supernet(x, arch)` runs a subnet; `supernet.extract(arch)` returns it as a plain network. A subnet's weights are slices
of the supernet's (Cai et al. 2020, section 3.2): the first channels for width, the first layers for depth, and for
kernel size the transformed centre of the larger kernel.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.network import Network
from rsslib.operators import centre, depthwise, pointwise, pooled
from rsslib.space import Arch, SearchSpace

Weights = Mapping[str, Tensor]  # a subnet's parts of parameters, by name
Norm = Callable[[Tensor, str, Weights], Tensor]  # batch norm of x by the layer of that name
FIRST_LAYERS = 2  # layers of `run_first`, whose maps evaluation keeps
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class SuperNet(Network):
    """The largest network of a space plus its kernel matrices, able to run as any of its subnets.

    `supernet(x, arch)` maps images [N, in_channels, R, R] to logits [N, classes]. There is no active subnet to set: the
    architecture is an argument, and a call changes nothing but running BN statistics in train mode. Training and
    evaluation call `run`, which takes weights and batch norm as arguments too.

    Weights start as in Cai et al.'s code: convolutions normal with std sqrt(2 / (k * k * out_channels)), the linear
    layer uniform in +-1/sqrt(fan_in), biases zero, kernel matrices the identity.
    """

    def __init__(self, space: SearchSpace, dropout: float = 0.1, generator: torch.Generator | None = None):
        super().__init__(space, space.largest, dropout)
        self.space = space
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 4:
                outputs, _, kernel, _ = parameter.shape
                nn.init.normal_(parameter, 0, (2 / (kernel * kernel * outputs)) ** 0.5, generator)
        bound = self.classifier.in_features**-0.5
        nn.init.uniform_(self.classifier.weight, -bound, bound, generator)
        for block in self.blocks.values():
            for small, large in pairwise(sorted(space.kernels)):
                block.register_parameter(f"kernel_{large}to{small}", nn.Parameter(torch.eye(small * small)))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, arch: Arch) -> Tensor:  # type: ignore[override]
        """Logits [N, classes] of subnet `arch`; raises InputError for an architecture outside the space."""
        weights = self.subnet(arch, dict(self.named_parameters()))
        running = self.subnet(arch, dict(self.named_buffers()))
        norm = batch_norm_training(running) if self.training else batch_norm_with(running)
        return self.run(x, arch, weights, norm, self.dropout.p if self.training else 0.0)

    def subnet(self, arch: Arch, tensors: Weights) -> dict[str, Tensor]:
        """The parts that `arch` uses of full-size `tensors` (parameters, gradients or buffers by name), as views."""
        slices = subnet_slices(self.space, arch)
        return {name: tensors[name][index] for name, index in slices.items() if name in tensors}

    def run(
        self,
        x: Tensor,
        arch: Arch,
        weights: Weights,
        norm: Norm,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits [N, classes] of images [N, in_channels, R, R], from a subnet's sliced `weights` alone."""
        x = self.run_first(x, arch, weights, norm)
        return self.run_rest(x, arch, weights, norm, dropout, generator)

    def run_first(self, x: Tensor, arch: Arch, weights: Weights, norm: Norm) -> Tensor:
        """Feature maps [N, C, r, r] of images after stem, first block and the first two layers, for `run_rest`."""
        x = F.conv2d(x, weights["stem.conv.weight"], stride=2, padding=1)
        x = getattr(F, self.space.backbone.stem_act)(norm(x, "stem.bn", weights))
        layers = islice(self.space.active(arch), FIRST_LAYERS)
        return self._run_blocks(x, [(None, self.space.first, 3, None), *layers], weights, norm)

    def _run_blocks(self, x: Tensor, layers: Iterable, weights: Weights, norm: Norm) -> Tensor:
        for i, layer, kernel, _ in layers:
            block = "first." if i is None else f"blocks.{i}."
            act, shortcut = getattr(F, layer.act), x
            if i is not None:
                x = act(norm(pointwise(x, weights[f"{block}conv_pw.weight"]), f"{block}bn1", weights))
            x = depthwise(x, kernel_weight(weights, block, kernel, self.space.kernels), layer.stride)
            x = act(norm(x, f"{block}bn2", weights))
            if layer.squeeze_excite:
                scale = pooled(x)
                reduce, expand = f"{block}se.conv_reduce.", f"{block}se.conv_expand."
                scale = F.relu(pointwise(scale, weights[f"{reduce}weight"], weights[f"{reduce}bias"]))
                scale = pointwise(scale, weights[f"{expand}weight"], weights[f"{expand}bias"])
                x = x * F.hardsigmoid(scale)
            x = norm(pointwise(x, weights[f"{block}conv_pwl.weight"]), f"{block}bn3", weights)
            x = x + shortcut if layer.residual else x
        return x

    def run_rest(
        self,
        x: Tensor,
        arch: Arch,
        weights: Weights,
        norm: Norm,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits [N, classes] of the feature maps that `run_first` returns."""
        x = self._run_blocks(x, islice(self.space.active(arch), FIRST_LAYERS, None), weights, norm)
        act = getattr(F, self.space.backbone.head_act)
        x = act(norm(pointwise(x, weights["head_expand.conv.weight"]), "head_expand.bn", weights))
        x = pooled(x)
        if self.head_mix is not None:
            x = act(pointwise(x, weights["head_mix.conv.weight"]))
        x = x.flatten(1)
        if dropout > 0:
            keep = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator)
            x = x * keep.div_(1 - dropout)
        return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])

    @torch.no_grad()
    def extract(self, arch: Arch, dropout: float = 0.0) -> Network:
        """`arch` as a plain network with copied weights and running statistics; its output equals `self(x, arch)`.

        The statistics are averages over all subnets trained so far and fit none of them. Load those that
        `rsslib.evaluate.recalibrate` returns before using the network.
        """
        part = self.subnet(arch, dict(self.state_dict()))
        for i, _, kernel, _ in self.space.active(arch):
            part[f"blocks.{i}.conv_dw.weight"] = kernel_weight(part, f"blocks.{i}.", kernel, self.space.kernels)
        network = Network(self.space, arch, dropout).to(part["classifier.weight"])  # its device and dtype
        network.load_state_dict(part, strict=False)  # all but the kernel matrices
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.train(self.training)

    @torch.no_grad()
    def sort_channels(self, boundaries: tuple[int, ...] = ()) -> None:
        """Sort every layer's hidden channels by importance, the most important first, as before PS's width stages.

        Importance is the L1 norm of the projection weights (Cai et al. 2020, section 3.2). With expand ratios as
        `boundaries`, channels are sorted within each section and none crosses: (4,) sorts the first 4x and the rest
        separately. Squeeze-excite's middle channels are sorted by the L1 norm of its expansion weights. The function of
        the largest subnet does not change.
        """
        tensors = self.state_dict()
        for i, layer in enumerate(self.space.layers):
            block: dict[str, Any] = {name: tensors.get(f"blocks.{i}.{name}") for name in DIMENSIONS}
            importance = block["conv_pwl.weight"].abs().sum((0, 2, 3))
            cuts = [0, *(layer.hidden(b) for b in sorted(boundaries)), len(importance)]
            sections = [a + importance[a:b].argsort(descending=True, stable=True) for a, b in pairwise(cuts)]
            _reorder(block, "h", torch.cat(sections))
            if layer.squeeze_excite:
                importance = block["se.conv_expand.weight"].abs().sum((0, 2, 3))
                _reorder(block, "s", importance.argsort(descending=True, stable=True))


# --- a subnet's weights

# What the dimensions of a layer's parameters and buffers hold: hidden channels (h), squeezed channels (s), taps of a
# kernel (t) or anything else (:).
DIMENSIONS = {
    "conv_pw.weight": "h",
    "conv_dw.weight": "h:tt",
    "conv_pwl.weight": ":h",
    "se.conv_reduce.weight": "sh",
    "se.conv_reduce.bias": "s",
    "se.conv_expand.weight": "hs",
    "se.conv_expand.bias": "h",
    **{f"bn{n}.{name}": "h" * (n < 3) for n in (1, 2, 3) for name in STATISTICS},
}


def _reorder(block: dict[str, Any], dimension: str, order: Tensor) -> None:
    """Reorder the hidden or squeezed channels of a layer in all of its tensors."""
    for name, tensor in block.items():
        if tensor is not None and dimension in DIMENSIONS[name]:
            tensor.copy_(tensor.index_select(DIMENSIONS[name].index(dimension), order))


@lru_cache(maxsize=256)
def subnet_slices(space: SearchSpace, arch: Arch) -> dict[str, tuple]:
    """For every parameter and buffer that `arch` uses, by name: the index that takes its part of the supernet's.

    Raises InputError for an architecture outside the space.
    """
    names = ["stem.conv.weight", "first.conv_dw.weight", "first.conv_pwl.weight", "head_expand.conv.weight"]
    names += ["classifier.weight", "classifier.bias"]
    if space.backbone.mix_channels:
        names.append("head_mix.conv.weight")
    norms = ("stem.bn", "first.bn2", "first.bn3", "head_expand.bn")
    names += [f"{norm}.{name}" for norm in norms for name in STATISTICS]
    result: dict[str, tuple] = dict.fromkeys(names, ())
    sizes = sorted(space.kernels, reverse=True)
    for i, layer, kernel, expand in space.active(space.validate(arch)):
        border = (sizes[0] - sizes[1]) // 2 if kernel < sizes[0] else 0  # smaller kernels are made from the centre
        slices = {
            ":": slice(None),
            "h": slice(layer.hidden(expand)),
            "s": slice(layer.squeezed(expand)),
            "t": slice(border, sizes[0] - border),
        }
        for name, dimensions in DIMENSIONS.items():
            if layer.squeeze_excite or not name.startswith("se."):
                result[f"blocks.{i}.{name}"] = tuple(map(slices.get, dimensions))
        for large, small in pairwise(sizes):
            if kernel < large:
                result[f"blocks.{i}.kernel_{large}to{small}"] = ()
    return result


def kernel_weight(weights: Weights, block: str, kernel: int, sizes: Iterable[int]) -> Tensor:
    """Depthwise weights [C, 1, kernel, kernel]: the next larger kernel's centre times a learned matrix, repeatedly.

    `sizes` are the space's kernel sizes. Of the largest kernel, the part that `subnet_slices` takes is enough.
    """
    weight = weights[f"{block}conv_dw.weight"]
    for large, small in pairwise(sorted(sizes, reverse=True)):
        matrix = weights.get(f"{block}kernel_{large}to{small}")  # the first block has none
        if kernel < large and matrix is not None:
            taps = centre(weight, small).flatten(1) @ matrix.T
            weight = taps.view(-1, 1, small, small)
    return weight


# --- batch norm

BN_MOMENTUM, BN_EPS = 0.1, 1e-5


def batch_norm_training(running: Weights | None = None) -> Norm:
    """Batch norm by the batch's statistics; updates the `running` ones in place, if given."""
    return partial(_batch_norm, running or {}, True)


def batch_norm_with(statistics: Weights) -> Norm:
    """Batch norm by given statistics, as in eval mode."""
    return partial(_batch_norm, statistics, False)


def _batch_norm(statistics: Weights, training: bool, x: Tensor, name: str, weights: Weights) -> Tensor:
    mean, var = (statistics.get(f"{name}.running_{what}") for what in ("mean", "var"))
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.batch_norm(x, mean, var, weight, bias, training, BN_MOMENTUM, BN_EPS)
