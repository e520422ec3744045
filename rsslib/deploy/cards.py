"""A supernet as a thing to hand on: its weights and a card that says what they are, in one folder."""

import json
from pathlib import Path

import torch

from rsslib import files
from rsslib.errors import InputError, one_line
from rsslib.files import CARD, WEIGHTS
from rsslib.machine import choose_device
from rsslib.space import SearchSpace
from rsslib.supernet import SuperNet

HOW_TO_LOAD = (
    "rsslib.load_supernet(folder) with this file and weights.safetensors in it; then "
    "rsslib.deployable(supernet, arch, images) recomputes a subnet's batch norm statistics from images of yours"
)


def write_card(folder: str | Path, supernet: SuperNet, weights_sha256: str, words: dict) -> str:
    """Write `card.json` beside the weights: `words` and what is needed to load them; returns its SHA-256."""
    space = supernet.space
    card = words | {
        "space": {
            "backbone": space.backbone.name,
            "kernels": space.kernels,
            "expands": space.expands,
            "depths": space.depths,
            "in_channels": space.in_channels,
            "classes": space.classes,
            "resolution": space.resolution,
        },
        "dropout": supernet.dropout.p,
        "weights_sha256": weights_sha256,
        "how_to_load": HOW_TO_LOAD,
    }
    return files.write(Path(folder, CARD), (json.dumps(card, indent=1) + "\n").encode())


def read_card(folder: str | Path) -> dict:
    """What `card.json` says; raises InputError if it is not there or cannot be read."""
    path = Path(folder, CARD)
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a folder with {CARD} and {WEIGHTS}, as finished runs have")
    try:
        card = json.loads(path.read_bytes())
        if not isinstance(card["space"], dict) or not isinstance(card["weights_sha256"], str):
            raise ValueError("space and weights_sha256 are not what a card has")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not the card of a supernet ({error}): restore it") from None
    return card


def load_supernet(folder: str | Path, device: str | torch.device = "cpu") -> SuperNet:
    """The supernet in a folder with `weights.safetensors` and `card.json`, in eval mode; needs nothing else.

    `read_card(folder)` says what it was trained on. Before a subnet is used, its batch norm statistics are recomputed
    from images: `rsslib.deployable(supernet, arch, images)` does so. Raises InputError if a file is not there, was
    altered, or the two do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card, path = read_card(folder), Path(folder, WEIGHTS)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): copy it beside {CARD}") from None
    if files.sha256(content) != card["weights_sha256"]:
        raise InputError(f"{path} is damaged, or not the file that {Path(folder, CARD)} is about: restore both")
    try:
        supernet = SuperNet(SearchSpace(**card["space"]), card["dropout"])
        supernet.load_state_dict(load(content))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{Path(folder, CARD)} does not describe {path.name} ({one_line(error)}): restore both"
        ) from None
    return supernet.to(choose_device(str(device))).eval()
