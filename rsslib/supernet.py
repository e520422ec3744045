"""The supernet: one set of weights, shared by every subnet of a search space.

`supernet(x, arch)` runs a subnet; `supernet.extract(arch)` returns it as a plain network. A subnet's weights are slices
of the supernet's (Cai et al. 2020, section 3.2): the first channels for width, the first layers for depth, and for
kernel size the transformed centre of the larger kernel.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslib.backbones import LayerSpec
from rsslib.errors import InputError, checked
from rsslib.methods import Dropout
from rsslib.network import Network
from rsslib.operators import centre, depthwise, pointwise, pooled
from rsslib.space import Arch, SearchSpace

Weights = Mapping[str, Tensor]  # a subnet's parts of parameters, by name
Norm = Callable[[Tensor, str, Weights], Tensor]  # batch norm of x by the layer of that name
ALL, FIRST, REST = slice(None), slice(0, 2), slice(2, None)  # parts of a subnet, by its layers
STATISTICS = ("weight", "bias", "running_mean", "running_var")


@checked
class SuperNet(Network):
    """The largest network of a space plus its kernel matrices, able to run as any of its subnets.

    `supernet(x, arch)` maps images [N, in_channels, R, R] to logits [N, classes]. There is no active subnet to set: the
    architecture is an argument, and a call changes only running BN statistics in train mode. Training and evaluation
    call `run`, which also takes weights and batch norm as arguments.

    Weights are initialised as in the code of Cai et al.: convolutions normal with std sqrt(2 / (k * k * out_channels)),
    the linear layer uniform in +-1/sqrt(fan_in), biases zero, kernel matrices the identity.
    """

    def __init__(self, space: SearchSpace, dropout: Dropout = 0.1, generator: torch.Generator | None = None):
        with torch.device("meta"):  # where the default initialisation draws no random numbers
            super().__init__(space, space.largest, dropout)
        self.to_empty(device="cpu")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
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
        """Return logits [N, classes] of subnet `arch`; raises InputError for an architecture outside the space."""
        weights = self.subnet(arch, dict(self.named_parameters()))
        running = self.subnet(arch, dict(self.named_buffers()))
        norm = batch_norm_training(running) if self.training else batch_norm_with(running)
        return self.run(x, arch, weights, norm, self.dropout.p if self.training else 0.0)

    def subnet(self, arch: Arch, tensors: Weights) -> dict[str, Tensor]:
        """Return the parts of full-size `tensors` that `arch` uses, by parameter or buffer name, as views."""
        slices = subnet_slices(self.space, self.space.validate(arch))
        return {name: tensors[name][index] for name, index in slices.items() if name in tensors}

    def run(
        self,
        x: Tensor,
        arch: Arch,
        weights: Weights,
        norm: Norm,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        part: slice = ALL,
    ) -> Tensor:
        """Return logits [N, classes] of images [N, in_channels, R, R], computed with a subnet's sliced `weights`.

        With `part` FIRST, it returns the feature maps [N, C, r, r] of the first two layers; with REST, it starts from
        them.
        """
        net = self.space.backbone
        layers = [*self.space.active(arch)][part]
        blocks = [(f"blocks.{i}.", layer, kernel) for i, layer, kernel, _ in layers]
        if part != REST:
            x = F.conv2d(x, weights["stem.conv.weight"], weights.get("stem.conv.bias"), stride=2, padding=1)
            x = _activate(net.stem_act, norm(x, "stem.bn", weights))
            blocks = [("first.", self.space.first, 3), *blocks]
        for block, layer, kernel in blocks:
            x = self._run_block(x, block, layer, kernel, weights, norm)
        if part == FIRST:
            return x
        x = norm(_pointwise(x, weights, "head_expand.conv"), "head_expand.bn", weights)
        x = pooled(_activate(net.head_act, x))
        if net.mix_channels:
            x = _activate(net.head_act, _pointwise(x, weights, "head_mix.conv"))
        x = x.flatten(1)
        if dropout > 0:
            keep = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator)
            x = x * keep.div_(1 - dropout)
        return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])

    def _run_block(self, x: Tensor, block: str, layer: LayerSpec, kernel: int, weights: Weights, norm: Norm) -> Tensor:
        shortcut = x
        if f"{block}conv_pw.weight" in weights:
            x = _pointwise(x, weights, f"{block}conv_pw")
            x = _activate(layer.act, norm(x, f"{block}bn1", weights))
        taps = kernel_weight(weights, block, kernel, self.space.kernels)
        x = depthwise(x, taps, layer.stride, weights.get(f"{block}conv_dw.bias"))
        x = _activate(layer.act, norm(x, f"{block}bn2", weights))
        if layer.squeeze_excite:
            scale = F.relu(_pointwise(pooled(x), weights, f"{block}se.conv_reduce"))
            x = x * F.hardsigmoid(_pointwise(scale, weights, f"{block}se.conv_expand"))
        x = norm(_pointwise(x, weights, f"{block}conv_pwl"), f"{block}bn3", weights)
        return x + shortcut if layer.residual else x

    @checked
    @torch.no_grad()
    def extract(self, arch: Arch, dropout: Dropout = 0.0) -> Network:
        """Return `arch` as a plain network with copied weights and running statistics.

        Its output equals `self(x, arch)`. The statistics are averages over all subnets trained so far and fit none of
        them. Before using the network, load those that `rsslib.evaluate.recalibrate` returns.
        """
        part = self.subnet(arch, dict(self.state_dict()))
        for i, _, kernel, _ in self.space.active(arch):
            part[f"blocks.{i}.conv_dw.weight"] = kernel_weight(part, f"blocks.{i}.", kernel, self.space.kernels)
        with torch.device("meta"):  # where the default initialisation draws no random numbers
            network = Network(self.space, arch, dropout)
        found = self.state_dict() | part
        network.load_state_dict({name: found[name].clone() for name in network.state_dict()}, assign=True)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.train(self.training)

    @checked
    @torch.no_grad()
    def sort_channels(self, boundaries: tuple[int, ...] = ()) -> None:
        """Sort the hidden channels of every layer by importance, most important first, as before PS's width stages.

        Importance is the L1 norm of the projection weights (Cai et al. 2020, section 3.2). With expand ratios as
        `boundaries`, channels are sorted within sections and never cross: (4,) sorts the first 4x and the rest
        separately. Middle channels of squeeze-excite are sorted by the L1 norm of its expansion weights. The function
        that the largest subnet computes does not change.
        """
        tensors = self.state_dict()
        for i, layer in enumerate(self.space.layers):
            block = {name: tensors[full] for name in DIMENSIONS if (full := f"blocks.{i}.{name}") in tensors}
            _sort(block, "h", "conv_pwl.weight", [layer.hidden(expand) for expand in sorted(boundaries)])
            if layer.squeeze_excite:
                _sort(block, "s", "se.conv_expand.weight", [])


@torch.no_grad()
def load_tensors(own: Weights, found: Weights) -> None:
    """Copy tensors to the tensors of the same names; raises InputError, before copying, if they do not fit.

    Names, shapes and types must be equal, and all numbers finite.
    """
    for name in sorted(own.keys() ^ found.keys()):
        raise InputError(f"the tensor {name!r} is {'missing' if name in own else 'unexpected'}")
    for name, tensor in own.items():
        forms = [f"{one.dtype} of shape {tuple(one.shape)}" for one in (found[name], tensor)]
        if forms[0] != forms[1] or not found[name].isfinite().all():
            raise InputError(f"the tensor {name!r} is {forms[0]}: expected finite numbers, {forms[1]}")
    for name, tensor in own.items():
        tensor.copy_(found[name])


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


def _sort(block: Weights, channels: str, judge: str, boundaries: list[int]) -> None:
    """Sort hidden or squeezed channels in all tensors of a layer by the L1 norm of the weights named `judge`."""
    importance = block[judge].abs().sum((0, 2, 3))
    sections = pairwise([0, *boundaries, len(importance)])
    order = [a + importance[a:b].argsort(descending=True, stable=True) for a, b in sections]
    for name, tensor in block.items():
        if channels in DIMENSIONS[name]:
            dimension = DIMENSIONS[name].index(channels)
            tensor.copy_(tensor.index_select(dimension, torch.cat(order)))


@lru_cache(maxsize=256)
def subnet_slices(space: SearchSpace, arch: Arch) -> dict[str, tuple]:
    """Return the index of the part of every parameter and buffer that `arch` uses, by name.

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


def _activate(name: str, x: Tensor) -> Tensor:
    return getattr(F, name)(x, inplace=not torch.is_grad_enabled())


def _pointwise(x: Tensor, weights: Weights, name: str) -> Tensor:
    return pointwise(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def kernel_weight(weights: Weights, block: str, kernel: int, sizes: Iterable[int]) -> Tensor:
    """Return depthwise weights [C, 1, kernel, kernel]: the centre of the next larger kernel times a learned matrix.

    This is repeated from the largest size down to `kernel`. `sizes` are the kernel sizes of the space. The part of the
    largest kernel that `subnet_slices` selects is enough.
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
CONVOLUTIONS = {"bn": "conv", "bn1": "conv_pw", "bn2": "conv_dw", "bn3": "conv_pwl"}  # before each batch norm


def batch_norm_training(running: Weights | None = None) -> Norm:
    """Return batch norm with the statistics of the batch; it updates `running` statistics in place, if given."""
    return partial(_batch_norm, running or {}, True)


def batch_norm_with(statistics: Weights) -> Norm:
    """Return batch norm with given statistics, as in eval mode."""
    return partial(_batch_norm, statistics, False)


def _batch_norm(statistics: Weights, training: bool, x: Tensor, name: str, weights: Weights) -> Tensor:
    mean, var = (statistics.get(f"{name}.running_{what}") for what in ("mean", "var"))
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.batch_norm(x, mean, var, weight, bias, training, BN_MOMENTUM, BN_EPS)


def fold_batch_norm(weights: Weights, statistics: Weights) -> dict[str, Tensor]:
    """Return `weights` for `no_norm`, with batch norm by `statistics` folded into the convolution before it."""
    folded = dict(weights)
    for name in [name for name in statistics if name.endswith(".running_var")]:
        norm = name.removesuffix(".running_var")
        layer, _, kind = norm.rpartition(".")
        convolution = f"{layer}.{CONVOLUTIONS[kind]}"
        scale = weights[f"{norm}.weight"] * (statistics[name] + BN_EPS).rsqrt()
        folded[f"{convolution}.weight"] = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{convolution}.bias"] = weights[f"{norm}.bias"] - statistics[f"{norm}.running_mean"] * scale
    return folded


def no_norm(x: Tensor, name: str, weights: Weights) -> Tensor:
    return x
