"""The supernet: one set of weights, shared by every subnet of a search space.

`supernet(x, arch)` runs a subnet; `supernet.extract(arch)` returns it as a plain network. The weights of a subnet are
slices of the supernet's (Cai et al. 2020, section 3.2): the first channels for width, the first layers for depth, and
for kernel size the transformed centre of the larger kernel.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.network import Network
from rsslib.operators import Depthwise, Pointwise, adds_in_place, has_kernels
from rsslib.space import Arch, SearchSpace

# Normalises x; gets the BN layer's name, weight [C] and bias [C]. How statistics are found is the caller's choice.
Norm = Callable[[Tensor, str, Tensor, Tensor], Tensor]


# --- the supernet ---------------------------------------------------------------------------------------------------


class SuperNet(Network):
    """The largest network of a space plus its kernel matrices, able to run as any of its subnets.

    `supernet(x, arch)`: images [N, in_channels, R, R] to logits [N, classes]. There is no active subnet to set: the
    architecture is an argument, and no call leaves a trace except the running BN statistics in train mode.

    Weights start as in Cai et al.'s code: convolutions normal with std sqrt(2 / (k * k * out_channels)), the linear
    layer uniform in +-1/sqrt(fan_in), biases zero, kernel matrices the identity.
    """

    def __init__(self, space: SearchSpace, dropout: float = 0.1, generator: torch.Generator | None = None):
        super().__init__(space, space.largest, dropout)
        self.space = space
        sizes = sorted(space.kernels)
        for block in self.blocks.values():
            for small, large in pairwise(sizes):
                block.register_parameter(f"kernel_{large}to{small}", nn.Parameter(torch.eye(small * small)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, (2 / fan_out) ** 0.5, generator=generator)
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, arch: Arch) -> Tensor:  # type: ignore[override]
        """Logits [N, classes] of subnet `arch`; raises InputError for an architecture outside the space."""
        weights = self.subnet(arch, dict(self.named_parameters()))
        running = self.subnet(arch, dict(self.named_buffers()))
        norm = batch_norm_training(running) if self.training else batch_norm_with(running)
        return self.run(x, arch, weights, norm, self.dropout.p if self.training else 0.0)

    def subnet(self, arch: Arch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts that `arch` uses of full-size `tensors` (parameters, gradients or buffers by name), as views."""
        slices = subnet_slices(self.space, arch)
        return {name: tensors[name][index] for name, index in slices.items() if name in tensors}

    def run(
        self, x: Tensor, arch: Arch, weights: Mapping[str, Tensor], norm: Norm, dropout: float = 0.0,
        generator: torch.Generator | None = None, after: int = 0, until: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits [N, classes] of images [N, in_channels, R, R], from a subnet's sliced `weights` alone.

        Or a part of the way: from the maps [N, C, r, r] behind the first `after` blocks, to those behind `until`.
        """
        net = self.space.backbone

        def normalise(x: Tensor, name: str) -> Tensor:
            return norm(x, name, weights[f"{name}.weight"], weights[f"{name}.bias"])

        if not after:
            act = getattr(F, net.stem_act)
            x = act(normalise(F.conv2d(x, weights["stem.conv.weight"], stride=2, padding=1), "stem.bn"))
            shortcut, act = x, getattr(F, net.first_act)
            x = act(normalise(depthwise(x, weights["first.conv_dw.weight"], 1), "first.bn2"))
            x = normalise(pointwise(x, weights["first.conv_pwl.weight"]), "first.bn3")
            x = x + shortcut if net.stem_channels == net.first_channels else x
        for i, layer, kernel, _ in islice(self.space.active(arch), after, until):
            block, act, shortcut = f"blocks.{i}.", getattr(F, layer.act), x
            x = act(normalise(pointwise(x, weights[f"{block}conv_pw.weight"]), f"{block}bn1"))
            x = depthwise(x, kernel_weight(weights, block, kernel, self.space.kernels), layer.stride)
            x = act(normalise(x, f"{block}bn2"))
            if layer.squeeze_excite:
                scale = pooled(x)
                reduce, expand = f"{block}se.conv_reduce.", f"{block}se.conv_expand."
                scale = F.relu(pointwise(scale, weights[f"{reduce}weight"], weights[f"{reduce}bias"]))
                scale = pointwise(scale, weights[f"{expand}weight"], weights[f"{expand}bias"])
                x = x * F.hardsigmoid(scale)
            x = normalise(pointwise(x, weights[f"{block}conv_pwl.weight"]), f"{block}bn3")
            x = x + shortcut if layer.residual else x
        if until is not None:
            return x
        act = getattr(F, net.head_act)
        x = act(normalise(pointwise(x, weights["head_expand.conv.weight"]), "head_expand.bn"))
        x = pooled(x)
        if net.mix_channels:
            x = act(pointwise(x, weights["head_mix.conv.weight"]))
        x = x.flatten(1)
        if dropout > 0:
            keep = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator)
            x = x * keep.div_(1 - dropout)
        return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])

    @torch.no_grad()
    def extract(self, arch: Arch, dropout: float = 0.0) -> Network:
        """`arch` as a plain network with copied weights and running statistics, equal in output to `self(x, arch)`.

        These statistics are those of all subnets trained so far and fit none: before you use it, load
        `rsslib.evaluate.recalibrate`'s into it.
        """
        tensors = {name: t.detach() for name, t in (*self.named_parameters(), *self.named_buffers())}
        part = self.subnet(arch, tensors)
        for i, _, kernel, _ in self.space.active(arch):
            part[f"blocks.{i}.conv_dw.weight"] = kernel_weight(part, f"blocks.{i}.", kernel, self.space.kernels)
        network = Network(self.space, arch, dropout).to(part["classifier.weight"])  # its device and dtype
        network.load_state_dict({name: t for name, t in part.items() if "kernel_" not in name}, strict=False)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.train(self.training)

    @torch.no_grad()
    def sort_channels(self, boundaries: tuple[int, ...] = ()) -> None:
        """Order every layer's hidden channels by importance, the most important first, as before the PS width stages.

        Importance is the L1 norm of the projection weights (Cai et al. 2020, section 3.2). With expand ratios as
        `boundaries`, channels are sorted within each section and none crosses: (4,) sorts the first 4x and the rest
        apart. Squeeze-excite's middle channels are sorted by the L1 norm of its expansion weights. The function of the
        largest subnet does not change.
        """
        for i, layer in enumerate(self.space.layers):
            block: Any = self.blocks[str(i)]
            importance = block.conv_pwl.weight.abs().sum((0, 2, 3))
            cuts = [0, *(layer.hidden(b) for b in sorted(boundaries)), len(importance)]
            order = torch.cat([a + importance[a:b].argsort(descending=True, stable=True) for a, b in pairwise(cuts)])
            norms = (getattr(bn, s) for bn in (block.bn1, block.bn2) for s in _STATISTICS)
            for tensor in (block.conv_pw.weight, block.conv_dw.weight, *norms):
                tensor.copy_(tensor[order])
            block.conv_pwl.weight.copy_(block.conv_pwl.weight[:, order])
            if block.se is not None:
                reduce, expand = block.se.conv_reduce, block.se.conv_expand
                expand.weight.copy_(expand.weight[order])
                expand.bias.copy_(expand.bias[order])
                reduce.weight.copy_(reduce.weight[:, order])
                middle = expand.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
                expand.weight.copy_(expand.weight[:, middle])
                reduce.weight.copy_(reduce.weight[middle])
                reduce.bias.copy_(reduce.bias[middle])


_STATISTICS = ("weight", "bias", "running_mean", "running_var")


@lru_cache(maxsize=256)
def subnet_slices(space: SearchSpace, arch: Arch) -> dict[str, tuple]:
    """For every parameter and buffer that `arch` uses, by name: the index that takes its part of the supernet's.

    Raises InputError for an architecture outside the space.
    """
    result: dict[str, tuple] = {"stem.conv.weight": (), "first.conv_dw.weight": (), "first.conv_pwl.weight": ()}
    result |= {"head_expand.conv.weight": (), "classifier.weight": (), "classifier.bias": ()}
    if space.backbone.mix_channels:
        result["head_mix.conv.weight"] = ()
    result |= {f"{bn}.{s}": () for bn in ("stem.bn", "first.bn2", "first.bn3", "head_expand.bn") for s in _STATISTICS}
    sizes = sorted(space.kernels, reverse=True)
    for i, layer, kernel, expand in space.active(space.validate(arch)):
        block, hidden = f"blocks.{i}.", slice(layer.hidden(expand))
        result[f"{block}conv_pw.weight"] = (hidden,)
        border = (sizes[0] - sizes[1]) // 2 if kernel < sizes[0] else 0  # smaller ones are made of its centre
        taps = slice(border, sizes[0] - border)
        result[f"{block}conv_dw.weight"] = (hidden, slice(None), taps, taps)
        result |= {f"{block}bn{n}.{s}": (hidden,) for n in (1, 2) for s in _STATISTICS}
        for large, small in pairwise(sizes):
            if kernel < large:
                result[f"{block}kernel_{large}to{small}"] = ()
        if layer.squeeze_excite:
            squeezed = slice(layer.squeezed(expand))
            result |= {
                f"{block}se.conv_reduce.weight": (squeezed, hidden),
                f"{block}se.conv_reduce.bias": (squeezed,),
                f"{block}se.conv_expand.weight": (hidden, squeezed),
                f"{block}se.conv_expand.bias": (hidden,),
            }
        result[f"{block}conv_pwl.weight"] = (slice(None), hidden)
        result |= {f"{block}bn3.{s}": () for s in _STATISTICS}
    return result


def pooled(x: Tensor) -> Tensor:
    """The mean over each map, [N, C, 1, 1]; maps of a single pixel are it already."""
    return x if x.shape[2:] == (1, 1) else x.mean((2, 3), keepdim=True)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution as a matrix product; x [N, C, H, W] in channels-last memory, weight [outputs, C, 1, 1].

    On maps this small a third to a half faster than `F.conv2d` on a CPU, forward and backward. A leaf's gradient, if
    there is one, is added to where it is computed: on a GPU a kernel less.
    """
    if adds_in_place(x, weight):
        return Pointwise.apply(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Depthwise convolution with "same" padding; x [N, C, H, W], weight [C, 1, k, k] with odd k.

    Taps farther from the centre than the map is wide meet only padding, so they are cut off: most layers work on
    maps of 2 x 2 or 1 x 1 pixels, where 9 taps or 1 of a 7 x 7 kernel touch data. Their gradient is zero either way.
    """
    weight = centre(weight, 2 * x.shape[-1] - 1)
    if weight.requires_grad and has_kernels(x) and (weight.shape[-1] > 3 or x.shape[-1] < 8):
        return Depthwise.apply(x, weight, stride)
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def centre(weight: Tensor, size: int) -> Tensor:
    """The central taps [C, 1, size, size] of a kernel [C, 1, k, k], or all if there are fewer; both sizes are odd."""
    excess = (weight.shape[-1] - size) // 2
    return F.pad(weight, [-excess] * 4) if excess > 0 else weight  # half of two slices' kernels in its gradient


def kernel_weight(weights: Mapping[str, Tensor], block: str, kernel: int, sizes: tuple[int, ...]) -> Tensor:
    """Depthwise weights [C, 1, kernel, kernel]: the next larger kernel's centre times a learned matrix, repeatedly.

    `sizes` are the space's kernel sizes. Of the largest kernel the part that `subnet_slices` takes is enough.
    """
    weight = weights[f"{block}conv_dw.weight"]
    for large, small in pairwise(sorted(sizes, reverse=True)):
        if kernel < large:
            taps = centre(weight, small).flatten(1) @ weights[f"{block}kernel_{large}to{small}"].T
            weight = taps.view(-1, 1, small, small)
    return weight


# --- how batch norm finds its statistics ----------------------------------------------------------------------------

BN_MOMENTUM, BN_EPS = 0.1, 1e-5


def batch_norm_training(running: Mapping[str, Tensor] | None = None) -> Norm:
    """Statistics of the batch; `running` ones (a subnet's slices of the buffers), if given, are updated in place."""

    def norm(x: Tensor, name: str, weight: Tensor, bias: Tensor) -> Tensor:
        mean, var = (None if running is None else running[f"{name}.running_{what}"] for what in ("mean", "var"))
        return F.batch_norm(x, mean, var, weight, bias, True, BN_MOMENTUM, BN_EPS)

    return norm


def batch_norm_with(statistics: Mapping[str, Tensor]) -> Norm:
    """Given statistics, as in eval mode."""

    def norm(x: Tensor, name: str, weight: Tensor, bias: Tensor) -> Tensor:
        mean, var = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, BN_EPS)

    return norm
