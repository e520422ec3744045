"""Training state on disk, and a supernet as a folder to hand on."""

import json
import math
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from rsslib import files
from rsslib.device import choose_device
from rsslib.errors import InputError, one_line
from rsslib.files import CARD, WEIGHTS
from rsslib.methods import Method
from rsslib.space import SearchSpace
from rsslib.steps import TrainingState, teacher_weights
from rsslib.supernet import SuperNet

KEPT = 2


def identity_of(record: dict) -> str:
    """The configuration that a checkpoint or snapshot is of."""
    return files.sha256(json.dumps(record["config"]["training"], sort_keys=True).encode())


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last first: checkpoint-<epochs done>-<start of SHA-256>.safetensors."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def save_checkpoint(state: TrainingState, folder: Path, run: str = "") -> None:
    """Write weights, momentum, teacher, position and history (which has the seconds so far); keep the last two.

    `run` names the configuration; who loads the checkpoint gives the same. No random state is needed, since every
    epoch derives its own from seed, stage and epoch. Raises FloatingPointError, before anything is written, if a
    tensor is not finite.
    """
    content = checkpoint_bytes(state, run)
    files.write(folder / f"checkpoint-{len(state.history):06}-{files.sha256(content)[:32]}.safetensors", content)
    for path in checkpoints(folder)[KEPT:]:
        path.unlink()


def checkpoint_bytes(state: TrainingState, run: str = "") -> bytes:
    """What `save_checkpoint` writes, for `restore`."""
    tensors = {f"weights.{name}": t for name, t in state.supernet.state_dict().items()}
    for name, parameter in state.supernet.named_parameters():
        if parameter.grad is not None:  # tensors that never had a gradient have no momentum either
            tensors[f"momentum.{name}"] = state.optimizer.state[parameter]["momentum_buffer"]
    if state.teacher is not None:
        tensors |= {f"teacher.{name}": t for name, t in state.teacher.items()}
    position = {"run": run, "stage": state.stage, "epoch": state.epoch, "history": state.history}
    tensors["position"] = torch.frombuffer(bytearray(json.dumps(position).encode()), dtype=torch.uint8)
    return files.tensor_bytes(tensors)


def load_checkpoint(state: TrainingState, folder: Path, run: str = "", method: Method | None = None) -> bool:
    """Bring a new `state` to where the last checkpoint was written; returns whether there was one to use.

    One that is damaged, of another `run`, or does not fit the state and the method (None: any) is removed with a
    warning that says so, and the one before it used.
    """
    unusable = []
    for path in checkpoints(folder):
        try:
            content = path.read_bytes()
            if files.sha256(content)[:32] != path.stem.rpartition("-")[2]:
                raise ValueError("damaged: its checksum differs")
            restore(state, content, run, method)
        except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
            unusable.append(f"checkpoint {path} cannot be used ({error})")
            path.unlink()
            continue
        if unusable:
            warnings.warn(f"{'; '.join(unusable)}: training goes on from {path.name}", stacklevel=2)
        return True
    if unusable:
        warnings.warn(f"{'; '.join(unusable)}: training starts anew", stacklevel=2)
    return False


def restore(state: TrainingState, content: bytes, run: str = "", method: Method | None = None) -> None:
    """Bring a new `state` to what `checkpoint_bytes` of the same `run` holds.

    Raises ValueError, before anything is changed, if that is another's or does not fit the state and the method.
    """
    tensors = load(content)
    position = json.loads(bytes(tensors.pop("position").numpy()))
    if position["run"] != run:
        raise ValueError("of another run")
    parts = _parts(tensors)
    _check(state, parts, position, method)
    state.supernet.load_state_dict(parts["weights"])
    for name, parameter in state.supernet.named_parameters():
        if name in parts["momentum"]:
            parameter.grad = torch.zeros_like(parameter)
            state.optimizer.state[parameter]["momentum_buffer"].copy_(parts["momentum"][name])
    if parts["teacher"]:
        state.teacher = teacher_weights(state.supernet, parts["teacher"])
    state.stage, state.epoch, state.history = position["stage"], position["epoch"], position["history"]


Parts = dict[str, dict[str, torch.Tensor]]


def _parts(tensors: dict[str, torch.Tensor]) -> Parts:
    parts: Parts = {"weights": {}, "momentum": {}, "teacher": {}}
    for name, tensor in tensors.items():
        part, _, name = name.partition(".")
        parts[part][name] = tensor
    return parts


def _check(state: TrainingState, parts: Parts, position: dict, method: Method | None) -> None:
    """Raise ValueError unless a checkpoint's tensors are those of the state and its position one of the training."""
    supernet = state.supernet
    own = dict(supernet.named_parameters())
    teacher = supernet.subnet(supernet.space.largest, own)
    for part, expected, all_of_them in (
        ("weights", supernet.state_dict(), True), ("momentum", own, False), ("teacher", teacher, bool(parts["teacher"]))
    ):  # fmt: skip
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()}
        differing = [n for n, t in parts[part].items() if shapes.get(n) != (t.shape, t.dtype) or not t.isfinite().all()]
        differing += [name for name in shapes if all_of_them and name not in parts[part]]
        if differing:
            raise ValueError(f"its {part} are not those of this network, as {differing[0]}")
    stage, epoch, history = position["stage"], position["epoch"], position["history"]
    numbers = [stage, epoch, *(row[key] for row in history for key in ("epoch", "loss", "images", "seconds"))]
    if not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
        raise ValueError("its history is none")
    if method is None:
        return
    if not method.stands_at(stage, epoch, history):
        raise ValueError("its position is none of this method")
    taught = any(stage.distill and stage.epochs for stage in method.stages[: stage + (epoch > 0)])
    if taught and method.teacher != "largest" and not parts["teacher"]:
        raise ValueError("its teacher is missing")


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
