"""Backbones: network families as data (Cai et al. 2020, appendix; Howard et al. 2019; Cai et al. 2019)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rsslib.errors import Count, InputError, checked, one_line

Activation = Literal["relu", "relu6", "hardswish"]  # by their names in torch.nn.functional


@checked
@dataclass(frozen=True)
class StageSpec:
    """A stage of elastic layers; only its first layer has the stride."""

    channels: Count
    stride: Annotated[int, 1, 2]
    act: Activation
    squeeze_excite: bool = False
    layers: Count = 4
    elastic_depth: bool = True


@checked
@dataclass(frozen=True)
class Backbone:
    """A network family with width multiplier 1.0. Raises InputError for an invalid value.

    `buckets` are the sizes of the evaluated population, in millions of MACs at 32 x 32 pixels. None spreads six buckets
    over the sizes of the subnets, in the proportions of MobileNetV3's. Stages may be dictionaries, as in JSON.
    """

    name: str
    stem_channels: Count
    stem_act: Activation
    first_channels: Count
    first_act: Activation
    stages: tuple[StageSpec | dict, ...]
    expand_channels: Count  # 1x1 convolution with BN before global pooling
    mix_channels: Count | None  # 1x1 convolution without BN or bias after global pooling
    head_act: Activation
    buckets: tuple[float, ...] | None = None

    def __post_init__(self):
        stages = tuple(StageSpec(**stage) if isinstance(stage, dict) else stage for stage in self.stages)
        vars(self)["stages"] = stages
        if not any(stage.elastic_depth for stage in stages):
            raise InputError(f"backbone {self.name!r} has no stage with elastic depth: expected at least one")


def backbone_from(fields: dict) -> Backbone:
    """Return the backbone with these fields; raises InputError if they do not describe one."""
    try:
        return Backbone(**fields)
    except TypeError as error:
        raise InputError(f"the fields of the backbone cannot be used ({one_line(error)})") from None


MOBILENET_V3 = Backbone(
    name="mobilenet_v3",
    stem_channels=16,
    stem_act="hardswish",
    first_channels=16,
    first_act="relu",
    stages=(
        StageSpec(24, 2, "relu"),
        StageSpec(40, 2, "relu", squeeze_excite=True),
        StageSpec(80, 2, "hardswish"),
        StageSpec(112, 1, "hardswish", squeeze_excite=True),
        StageSpec(160, 2, "hardswish", squeeze_excite=True),
    ),
    expand_channels=960,
    mix_channels=1280,
    head_act="hardswish",
    buckets=(4, 6, 8, 10, 12, 14),
)

PROXYLESSNAS = Backbone(
    name="proxylessnas",
    stem_channels=32,
    stem_act="relu6",
    first_channels=16,
    first_act="relu6",
    stages=(
        StageSpec(24, 2, "relu6"),
        StageSpec(40, 2, "relu6"),
        StageSpec(80, 2, "relu6"),
        StageSpec(96, 1, "relu6"),
        StageSpec(192, 2, "relu6"),
        StageSpec(320, 1, "relu6", layers=1, elastic_depth=False),
    ),
    expand_channels=1280,
    mix_channels=None,
    head_act="relu6",
    buckets=(4, 6, 8, 10, 12),
)

BACKBONES = {backbone.name: backbone for backbone in (MOBILENET_V3, PROXYLESSNAS)}


def make_divisible(channels: float) -> int:
    """Round to a multiple of 8, never losing more than a tenth (Howard et al. 2019).

    >>> make_divisible(17), make_divisible(18)
    (16, 24)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class LayerSpec:
    """One MBConv layer of the full network."""

    stage: int
    index: int  # within its stage
    in_channels: int
    out_channels: int
    stride: int
    act: str
    squeeze_excite: bool
    in_size: int  # side of its input feature map, in pixels

    @property
    def out_size(self) -> int:
        return -(-self.in_size // self.stride)

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def hidden(self, expand: int) -> int:
        """Channels after expansion."""
        return make_divisible(round(self.in_channels * expand))

    def squeezed(self, expand: int) -> int:
        """Middle channels of squeeze-excite; 0 without it."""
        return make_divisible(self.hidden(expand) // 4) if self.squeeze_excite else 0

    def macs(self, kernel: int, expand: int) -> int:
        """Multiply-accumulates of the layer's convolutions for one image."""
        hidden = self.hidden(expand)
        expansion = self.in_size**2 * self.in_channels * hidden
        rest = self.out_size**2 * hidden * (kernel**2 + self.out_channels)
        return expansion + rest + 2 * hidden * self.squeezed(expand)

    def parameters(self, kernel: int, expand: int) -> int:
        """Weights, biases and BN parameters of the layer once extracted."""
        hidden, squeezed = self.hidden(expand), self.squeezed(expand)
        weights = hidden * (self.in_channels + kernel**2 + self.out_channels + 2 * squeezed)
        biases = hidden + squeezed if squeezed else 0
        return weights + biases + 2 * (2 * hidden + self.out_channels)
