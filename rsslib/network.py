"""A subnet as a plain network: ordinary modules with their own weights, as `SuperNet.extract` returns it."""

from torch import Tensor, nn
from torch.nn import functional as F

from rsslib.backbones import LayerSpec
from rsslib.space import Arch, SearchSpace

MODULES = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}  # by their names in torch.nn.functional


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
    """Inverted residual block: 1x1 expansion, depthwise convolution, squeeze-excite, 1x1 projection.

    If `expand` is None, there is no expansion (Sandler et al. 2018; Howard et al. 2019).
    """

    def __init__(self, layer: LayerSpec, kernel: int, expand: int | None):
        super().__init__()
        self.residual = layer.residual
        self.conv_pw: nn.Conv2d | None = None
        hidden = layer.in_channels
        if expand:
            hidden = layer.hidden(expand)
            self.conv_pw = nn.Conv2d(layer.in_channels, hidden, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(hidden)
            self.act1 = MODULES[layer.act]()
        self.conv_dw = nn.Conv2d(hidden, hidden, kernel, layer.stride, kernel // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.act2 = MODULES[layer.act]()
        self.se = SqueezeExcite(hidden, layer.squeezed(expand)) if expand and layer.squeeze_excite else None
        self.conv_pwl = nn.Conv2d(hidden, layer.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(layer.out_channels)

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

    Maps images [N, in_channels, R, R] to logits [N, classes]. Raises InputError for an architecture outside the space.
    """

    def __init__(self, space: SearchSpace, arch: Arch, dropout: float = 0.0):
        super().__init__()
        net, last = space.backbone, space.layers[-1]
        self.stem = ConvNormAct(space.in_channels, net.stem_channels, 3, 2, net.stem_act)
        self.first = MBConv(space.first, 3, None)
        self.blocks = nn.ModuleDict()
        for i, layer, kernel, expand in space.active(space.validate(arch)):
            self.blocks[str(i)] = MBConv(layer, kernel, expand)
        self.head_expand = ConvNormAct(last.out_channels, net.expand_channels, 1, 1, net.head_act)
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
        """Return logits [N, classes] of the last block's feature maps."""
        x = self.head_expand(x).mean((2, 3), keepdim=True)
        if self.head_mix is not None:
            x = self.head_mix(x)
        return self.classifier(self.dropout(x.flatten(1)))
