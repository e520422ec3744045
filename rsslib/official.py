"""Convert state dicts between a supernet and the official package `ofa` of Cai et al."""

import re
from collections.abc import Mapping

from torch import Tensor

from rsslib.backbones import Backbone
from rsslib.errors import checked
from rsslib.supernet import SuperNet, load_tensors

RELEASED = (".mobile_inverted_conv.", ".conv.")  # a block's name in released checkpoints, and its current name
NAMES = {  # parts of our names, and of the official names
    "first.": "blocks.0.conv.",
    "stem.": "first_conv.",
    "conv_pw.": "inverted_bottleneck.conv.conv.",
    "bn1.": "inverted_bottleneck.bn.bn.",
    "conv_dw.": "depth_conv.conv.conv.",
    "bn2.": "depth_conv.bn.bn.",
    "conv_pwl.": "point_linear.conv.conv.",
    "bn3.": "point_linear.bn.bn.",
    "se.conv_reduce.": "depth_conv.se.fc.reduce.",
    "se.conv_expand.": "depth_conv.se.fc.expand.",
    "head_mix.": "feature_mix_layer.",
    "classifier.": "classifier.linear.",
}


@checked
def to_official(supernet: SuperNet) -> dict[str, Tensor]:
    """Return a state dict with the names of `ofa.imagenet_classification.elastic_nn.networks` and the same tensors."""
    backbone = supernet.space.backbone
    return {_official_name(name, backbone): tensor for name, tensor in supernet.state_dict().items()}


@checked
def load_official(supernet: SuperNet, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of the official package; raises InputError if its tensors do not fit."""
    state = {name.replace(*RELEASED): tensor for name, tensor in state.items()}
    load_tensors(to_official(supernet), state)


def _official_name(name: str, backbone: Backbone) -> str:
    name = re.sub(r"^blocks\.(\d+)\.", lambda block: f"blocks.{int(block[1]) + 1}.conv.", name)
    name = re.sub(r"kernel_(\d+to\d+)", r"depth_conv.conv.\1_matrix", name)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    if name.startswith("blocks.0."):  # only elastic layers wrap each convolution and BN once more
        name = name.replace("conv.conv.", "conv.").replace("bn.bn.", "bn.")
    # ProxylessNAS has one head convolution, before pooling; the official package names it like the one after
    return name.replace("head_expand.", "final_expand_layer." if backbone.mix_channels else "feature_mix_layer.")
