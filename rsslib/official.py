"""State dicts of the official package, Cai et al.'s `ofa`, from a supernet and into it."""

import re
from collections.abc import Mapping

from torch import Tensor

from rsslib.backbones import Backbone
from rsslib.errors import InputError
from rsslib.supernet import SuperNet


def to_official(supernet: SuperNet) -> dict[str, Tensor]:
    """A state dict with the names of `ofa.imagenet_classification.elastic_nn.networks`; tensors are the supernet's."""
    backbone = supernet.space.backbone
    return {_official_name(name, backbone): tensor for name, tensor in supernet.state_dict().items()}


def load_official(supernet: SuperNet, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of the official package; raises InputError if names or shapes do not match."""
    own, backbone = supernet.state_dict(), supernet.space.backbone
    names = {_official_name(name, backbone): name for name in own}
    state = {_modern(name): tensor for name, tensor in state.items()}
    if missing := sorted(set(names) ^ set(state)):
        raise InputError(
            f"this state dict is not one of an official {backbone.name} supernet: {missing[0]!r} "
            f"is {'missing' if missing[0] in names else 'unexpected'}"
        )
    for official, name in names.items():
        if state[official].shape != own[name].shape:
            raise InputError(
                f"{official!r} has shape {tuple(state[official].shape)}, expected {tuple(own[name].shape)}: "
                "the classes or input channels of the two networks differ"
            )
    supernet.load_state_dict({name: state[official] for official, name in names.items()})


def _official_name(name: str, backbone: Backbone) -> str:
    """The official package's name of one of our parameters or buffers."""
    name = name.replace("head_mix.", "feature_mix_layer.").replace("stem.", "first_conv.")
    name = name.replace("classifier.", "classifier.linear.")
    if block := re.match(r"(first|blocks\.\d+)\.(.*)", name):
        elastic = block[1] != "first"
        index, rest = (int(block[1].split(".")[1]) + 1 if elastic else 0), block[2]
        inner = "conv." if elastic else ""  # official elastic layers wrap each convolution and BN once more
        for ours, theirs in (
            ("conv_pw.", f"inverted_bottleneck.conv.{inner}"),
            ("bn1.", f"inverted_bottleneck.bn.{inner and 'bn.'}"),
            ("conv_dw.", f"depth_conv.conv.{inner}"),
            ("bn2.", f"depth_conv.bn.{inner and 'bn.'}"),
            ("conv_pwl.", f"point_linear.conv.{inner}"),
            ("bn3.", f"point_linear.bn.{inner and 'bn.'}"),
            ("se.conv_reduce.", "depth_conv.se.fc.reduce."),
            ("se.conv_expand.", "depth_conv.se.fc.expand."),
        ):
            if rest.startswith(ours):
                rest = theirs + rest.removeprefix(ours)
                break
        else:
            rest = re.sub(r"kernel_(\d+to\d+)", r"depth_conv.conv.\1_matrix", rest)
        name = f"blocks.{index}.conv.{rest}"
    # ProxylessNAS has one head convolution, before pooling, and the official package names it like the one after
    final = "final_expand_layer." if backbone.mix_channels else "feature_mix_layer."
    return name.replace("head_expand.", final)


def _modern(name: str) -> str:
    return name.replace(".mobile_inverted_conv.", ".conv.")  # released checkpoints keep the block's earlier name
