"""Store training state on disk, and share a supernet as a folder."""

import io
import json
import math
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from rsslib import files
from rsslib.device import choose_device
from rsslib.errors import InputError, checked, one_line
from rsslib.files import CARD, HUB_CARD, HUB_WEIGHTS, WEIGHTS, supernet_files
from rsslib.methods import Method
from rsslib.official import RELEASED, to_official
from rsslib.space import SearchSpace
from rsslib.steps import TrainingState, teacher_weights
from rsslib.supernet import SuperNet, load_tensors

KEPT = 2  # checkpoints in a folder
STEMS = ("stem.conv.weight", "first_conv.conv.weight")  # our name and that of the official package
LARGEST_CARD = 10 * 2**20  # bytes
HOW_TO_LOAD = (
    "rsslib.load_supernet(folder) with this file and the weights in it; then "
    "rsslib.deployable(supernet, arch, images) recomputes a subnet's batch norm statistics from your images"
)


# --- training state


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, latest first: checkpoint-<epochs done>-<start of SHA-256>.safetensors."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def save_checkpoint(state: TrainingState, folder: Path, run: str = "") -> None:
    """Write weights, momentum, teacher, position and history, and keep the last two checkpoints.

    `run` names the configuration; `load_checkpoint` requires the same name. No random state is stored, because every
    epoch derives its own from seed, stage and epoch. Raises FloatingPointError, before writing anything, if a tensor is
    not finite.
    """
    content = checkpoint_bytes(state, run)
    files.write(folder / f"checkpoint-{len(state.history):06}-{files.sha256(content)[:32]}.safetensors", content)
    for path in checkpoints(folder)[KEPT:]:
        path.unlink()


def checkpoint_bytes(state: TrainingState, run: str = "") -> bytes:
    """Return the content of a checkpoint file, for `restore`."""
    seen = [name for name, parameter in state.supernet.named_parameters() if parameter.grad is not None]
    position = {"run": run, "stage": state.stage, "epoch": state.epoch, "history": state.history}
    tensors = _tensors(state, seen, state.teacher)
    tensors["position"] = torch.frombuffer(bytearray(json.dumps(position).encode()), dtype=torch.uint8)
    return files.tensor_bytes(tensors)


def _tensors(state: TrainingState, seen: Iterable[str], teacher: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return weights, teacher and the momentum of the parameters in `seen`; the others had no gradient yet."""
    parameters = dict(state.supernet.named_parameters())
    momentum = {name: state.optimizer.state[parameters[name]]["momentum_buffer"] for name in seen}
    parts = {
        "weights": state.supernet.state_dict(),
        "momentum": momentum,
        "teacher": teacher or {},
    }
    return {f"{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()}


def load_checkpoint(state: TrainingState, folder: Path, run: str = "", method: Method | None = None) -> bool:
    """Load the latest usable checkpoint into a new `state`; returns whether there was one.

    A checkpoint that is damaged, belongs to another `run`, or does not fit the state and the method (None: any method)
    is removed with a warning, and the previous one is used. Raises InputError for a checkpoint that cannot be read.
    """
    for path in checkpoints(folder):
        with files.system_errors():  # a checkpoint that cannot be read now may be intact
            content = files.read_regular(path)
        try:
            if files.sha256(content)[:32] != path.stem.rpartition("-")[2]:
                raise ValueError("damaged: its checksum differs")
            restore(state, content, run, method)
        except (ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
            path.unlink()
            message = f"checkpoint {path} cannot be used ({error}) and was removed: training resumes from one before it"
            warnings.warn(f"{message}, or starts over", stacklevel=2)
        else:
            return True
    return False


@torch.no_grad()
def restore(state: TrainingState, content: bytes, run: str = "", method: Method | None = None) -> None:
    """Load the content that `checkpoint_bytes` returned for the same `run` into a new `state`.

    Raises ValueError, LookupError or TypeError, before changing anything, if the content belongs to another run or does
    not fit the state and the method.
    """
    found = load(content)
    position = json.loads(bytes(found.pop("position").numpy()))
    stage, epoch, history = position["stage"], position["epoch"], position["history"]
    numbers = [stage, epoch, *(row[key] for row in history for key in ("epoch", "loss", "images", "seconds"))]
    if position["run"] != run or not all(0 <= number < math.inf for number in numbers):
        raise ValueError("of another run, or with an invalid history")
    if method is not None and not method.stands_at(stage, epoch, history):
        raise ValueError("its position does not exist in this method")
    parameters = dict(state.supernet.named_parameters())
    seen = [name for name in parameters if f"momentum.{name}" in found]
    taught = any(name.startswith("teacher.") for name in found)
    teacher = teacher_weights(state.supernet, parameters) if taught else None
    load_tensors(_tensors(state, seen, teacher), found)
    for name in seen:
        parameters[name].grad = torch.zeros_like(parameters[name])
    state.teacher, state.stage, state.epoch, state.history = teacher, stage, epoch, history


# --- a supernet to share


def write_card(folder: str | Path, supernet: SuperNet, weights_sha256: str, words: dict) -> str:
    """Write `card.json` beside the weights, with `words` and what `load_supernet` needs; returns its SHA-256."""
    card = words | {
        "space": supernet.space.record(),
        "dropout": supernet.dropout.p,
        "weights_sha256": weights_sha256,
        "how_to_load": HOW_TO_LOAD,
    }
    card["sha256"] = _digest(card)
    return files.write(Path(folder, CARD), (json.dumps(card, indent=1) + "\n").encode())


def _digest(card: dict) -> str:
    return files.sha256(json.dumps(card, sort_keys=True).encode())


@checked
def read_card(folder: str | Path) -> dict:
    """Return the content of a supernet's card; raises InputError if it is missing, unreadable or altered."""
    path = supernet_files(folder)[0]
    try:
        card = json.loads(files.read_regular(path, LARGEST_CARD))
        if card.pop("sha256", None) not in (None, _digest(card)):  # the first cards have none
            raise ValueError("it was altered")
        return card
    except (OSError, AttributeError, TypeError, ValueError, RecursionError) as error:
        expected = f"expected a folder with {CARD} and {WEIGHTS}, as finished runs have"
        raise InputError(f"{path} cannot be read ({one_line(error)}): {expected}") from None


@checked
def load_supernet(folder: str | Path, device: str | torch.device = "cpu") -> SuperNet:
    """Load a supernet, in eval mode, from the folder of a finished run or one that `publish` wrote.

    A run's folder holds `weights.safetensors` and `card.json`; `read_card(folder)` says what it was trained on. Before
    using a subnet, recompute its batch norm statistics from images, for example with
    `rsslib.deployable(supernet, arch, images)`. Raises InputError if a file is missing or damaged, or if the two files
    do not belong together.
    """
    card, path = read_card(folder), supernet_files(folder)[1]
    try:
        content = files.read_regular(path)
        if files.sha256(content) != card["weights_sha256"]:
            raise ValueError("its checksum differs")
        supernet = SuperNet(SearchSpace(**card["space"]), card["dropout"])
        load_tensors(supernet.state_dict(), load(content))
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        problem = f"{path} is not the supernet that its card describes ({one_line(error)})"
        raise InputError(f"{problem}: copy both again from their source") from None
    return supernet.to(choose_device(str(device))).eval()


@checked
def publish(folder: str | Path, target: str | Path) -> Path:
    """Copy a supernet's folder in the layout of the Hugging Face hub: config.json, model.safetensors and README.md.

    `load_supernet` reads the result, and `warm_start` its weights. Returns `target`. Raises InputError as
    `load_supernet` does, and if the target holds files of another kind.
    """
    supernet, card, sources = load_supernet(folder), read_card(folder), supernet_files(folder)
    target = files.make_folder(Path(target))
    published = (target / HUB_CARD).exists() and "weights_sha256" in read_card(target)
    if any(target.iterdir()) and not published:
        raise InputError(f"{target} holds other files: name a new folder")
    front = {
        "library_name": "rsslib",
        "license": "other",
        "pipeline_tag": "image-classification",
        "tags": ["once-for-all", "supernet", supernet.space.name],
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---", ""]
    title = f"# Supernet `{card.get('method')}`, trained on `{card.get('dataset')}`"
    licence = f"Licence of the data: {card.get('licence_of_the_data')}."
    lines += [title, "", HOW_TO_LOAD, "", licence, "", "    subnets' size (MFLOPs): test accuracy (%)"]
    for size, row in card.get("test_accuracy_by_mflops", {}).items():
        lines.append(f"    {size}: {row['median']:.1f} ({row['min']:.1f} to {row['max']:.1f})")
    files.write(target / "README.md", "\n".join([*lines, ""]).encode())
    for source, name in zip(sources, (HUB_CARD, HUB_WEIGHTS), strict=True):
        files.write(target / name, files.read_regular(source))
    return target


@checked
def warm_start(supernet: SuperNet, path: str | Path, sha256: str | None = None) -> None:
    """Initialise a supernet with the weights of another: our own file, or a state dict of the official package.

    `path` is `weights.safetensors` of a supernet's folder, or a file that `torch.save` wrote. If the numbers of
    channels differ, the stem's weights are summed over the old channels and spread equally over the new ones, so that
    grey images stored in colour give the same features. If the numbers of classes differ, the classifier keeps its
    initial weights.

    Raises InputError, before changing anything, if the file cannot be read, its SHA-256 differs from `sha256`, or it
    holds a supernet of a space that does not fit.
    """
    try:
        content = files.read_regular(path)
        if sha256 not in (None, files.sha256(content)):
            raise ValueError("it has changed since the run was planned")
        is_ours = Path(path).suffix == ".safetensors"
        found: Any = load(content) if is_ours else torch.load(io.BytesIO(content), "cpu", weights_only=True)
        found = {name.replace(*RELEASED): tensor for name, tensor in found.get("state_dict", found).items()}
        own = to_official(supernet) if STEMS[1] in found else supernet.state_dict()
        for name, tensor in own.items():
            if name in found and found[name].shape != tensor.shape:
                if name in STEMS:
                    found[name] = found[name].sum(1, keepdim=True).expand_as(tensor) / tensor.shape[1]
                elif name.startswith("classifier."):
                    found[name] = tensor
        load_tensors(own, {name: found[name] for name in own if name in found})
    except (OSError, AttributeError, TypeError, ValueError, RuntimeError, SafetensorError, pickle.PickleError) as error:
        raise InputError(
            f"{path} does not fit {supernet.space.name} ({one_line(error)}): expected weights of a supernet of this "
            "space, as safetensors or a state dict of the official package"
        ) from None
