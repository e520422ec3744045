"""A subnet as a plain network: ordinary modules with weights of their own, which `SuperNet.extract` returns."""

from torch import Tensor, nn
from torch.nn import functional as F

from rsslib.space import Arch, SearchSpace

# Activations by the names that they have in torch.nn.functional, by which the supernet calls them.
MODULES = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm (optional) and activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: str, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.act = MODULES[act]()


class SqueezeExcite(nn.Module):
    """Channel attention with ReLU and hard-sigmoid (Howard et al. 2019, section 5.3)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        scale = F.relu(self.conv_reduce(scale))
        return x * F.hardsigmoid(self.conv_expand(scale))


class MBConv(nn.Module):
    """Inverted residual block: expand 1x1 (absent where hidden is None), depthwise, squeeze-excite, project 1x1."""

    def __init__(
        self, inputs: int, hidden: int | None, outputs: int, kernel: int, stride: int, act: str,
        squeezed: int | None, residual: bool,
    ):  # fmt: skip
        super().__init__()
        self.residual = residual
        self.conv_pw: nn.Conv2d | None = None
        if hidden:
            self.conv_pw = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(hidden)
            self.act1 = MODULES[act]()
        middle = hidden or inputs
        self.conv_dw = nn.Conv2d(middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.act2 = MODULES[act]()
        self.se = SqueezeExcite(middle, squeezed) if squeezed else None
        self.conv_pwl = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.conv_pw is not None:
            x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.act2(self.bn2(self.conv_dw(x)))
        if self.se is not None:
            x = self.se(x)
        x = self.bn3(self.conv_pwl(x))
        return x + shortcut if self.residual else x


class Network(nn.Module):
    """One architecture as an ordinary network, with PyTorch's default initialisation.

    Maps images [N, in_channels, R, R] to logits [N, classes].
    """

    def __init__(self, space: SearchSpace, arch: Arch, dropout: float = 0.0):
        super().__init__()
        net = space.backbone
        self.stem = ConvNormAct(space.in_channels, net.stem_channels, 3, 2, net.stem_act)
        residual = net.stem_channels == net.first_channels
        self.first = MBConv(net.stem_channels, None, net.first_channels, 3, 1, net.first_act, None, residual)
        self.blocks = nn.ModuleDict({
            str(i): MBConv(
                layer.in_channels, layer.hidden(expand), layer.out_channels, kernel, layer.stride, layer.act,
                layer.squeezed(expand) if layer.squeeze_excite else None, layer.residual,
            )
            for i, layer, kernel, expand in space.active(space.validate(arch))
        })  # fmt: skip
        self.head_expand = ConvNormAct(space.layers[-1].out_channels, net.expand_channels, 1, 1, net.head_act)
        features = net.mix_channels or net.expand_channels
        self.head_mix: ConvNormAct | None = None
        if net.mix_channels:
            self.head_mix = ConvNormAct(net.expand_channels, features, 1, 1, net.head_act, norm=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, space.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of the last block's feature maps."""
        x = self.head_expand(x).mean((2, 3), keepdim=True)
        if self.head_mix is not None:
            x = self.head_mix(x)
        return self.classifier(self.dropout(x.flatten(1)))
