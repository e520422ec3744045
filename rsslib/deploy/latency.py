"""Measure the latency of a subnet in onnxruntime, or predict it from a table of its layers."""

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsslib.backbones import LayerSpec
from rsslib.data import pixels
from rsslib.deploy import measure, predict
from rsslib.deploy.exporting import Deployable, onnx_model
from rsslib.deploy.measure import ROUNDS, milliseconds
from rsslib.deploy.predicting import interruptible, open_model, session_of
from rsslib.errors import Count, InputError, check_number, checked, needed, one_line
from rsslib.files import make_folder, read_regular, sha256, write
from rsslib.network import Network
from rsslib.progress import progress_bar
from rsslib.space import Arch, SearchSpace

SCRIPTS = (measure, predict, pixels)  # copied to a kit, where they import each other without a package
REQUIREMENTS = "numpy\nonnxruntime\npillow\n"
LARGEST_TIMES = 2**20  # bytes
CALIBRATION = 30  # subnets for fitting a table, besides the smallest, the middle and the largest


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image on one thread: the median of `runs` runs and their quartiles."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ms (quartiles {self.low:.2f} to {self.high:.2f}, {self.runs} runs)"


@checked
def latency(subnet: Deployable | str | Path, runs: Count = 200) -> Latency:
    """Measure a deployable subnet or an exported file in onnxruntime: one thread, one image at a time, warm.

    Raises InputError if the extra [export] is not installed or the file is not an exported model.
    """
    session = session_of(bytes_of(subnet)) if isinstance(subnet, Deployable) else open_model(subnet).session
    return measured(session, runs)


def bytes_of(subnet: Deployable) -> bytes:
    """Return a subnet as the content of an ONNX file, without verification."""
    side = subnet.metadata["resolution"]
    example = torch.zeros(2, subnet.metadata["channels"], side, side)
    model = onnx_model(subnet, example.to(torch.uint8))
    return model.SerializeToString()


def measured(session: Any, runs: int) -> Latency:
    """Measure a session on one image of noise."""
    times = interruptible(partial(milliseconds, session, runs))
    low, median, high = np.percentile(times, [25, 50, 75]).tolist()
    return Latency(median, low, high, runs)


def undisturbed(sessions: dict, runs: int) -> dict:
    """Return each session's lowest median of five rounds in milliseconds, to exclude the effect of other programs."""
    rounds = [{key: measured(session, runs).median for key, session in sessions.items()} for _ in range(ROUNDS)]
    return {key: min(medians[key] for medians in rounds) for key in sessions}


# --- a table of layers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds of every choice for every layer; their sum predicts the milliseconds of a subnet.

    `layers` [layers, kernel size + 1, expand ratio + 1] is indexed by the choices; `fixed` is everything else. A larger
    choice never costs less: if it was measured as faster, that was noise, and it gets the value of the smaller choice.
    `pieces` are the layers as ONNX models; `whole_times` composes whole subnets from them.
    """

    space: SearchSpace
    layers: np.ndarray
    fixed: float
    pieces: dict

    def predict(self, archs: Arch | np.ndarray) -> Any:
        """Return the milliseconds of a subnet, or float64 [n] of rows."""
        return self.space.total(archs, self.layers, self.fixed)


@checked
def latency_table(space: SearchSpace, runs: Count = 100, progress: bool = True) -> LatencyTable:
    """Measure every layer of a space with every choice in onnxruntime, as `latency` does; takes one to three minutes.

    Layers of equal shape are measured once, with random weights; weights do not change the time. A layer that runs
    alone keeps its weights in the processor's caches, unlike a layer in a whole subnet. So the table holds
    share * (time alone) + fetch * (number of weights). The two factors and a constant are fitted to 33 whole subnets
    (non-negative least squares of relative errors). Raises InputError if the extras [search] and [export] are not
    installed.
    """
    pieces = exported_pieces(space, progress)
    sessions = {key: session_of(piece.SerializeToString()) for key, piece in pieces.items()}
    times = undisturbed(sessions, runs)
    whole = whole_times(space, pieces, calibration_rows(space), runs)
    return fitted_table(space, times, whole, pieces)


def exported_pieces(space: SearchSpace, progress: bool = True) -> dict:
    """Return the parts of subnets as ONNX models, by key."""
    bar = progress_bar(modules(space).items(), progress, desc="latency table", unit="layer")
    return {key: onnx_model(module, example) for key, (module, example) in bar}


def calibration_rows(space: SearchSpace) -> np.ndarray:
    """Return the whole subnets for fitting a table."""
    corners = space.to_rows([space.smallest, space.middle, space.largest])
    rng = np.random.default_rng([0, 0])
    return np.concatenate([space.sample(CALIBRATION, rng), corners])


def fitted_table(space: SearchSpace, times: dict, whole: np.ndarray, pieces: dict) -> LatencyTable:
    """Fit a table to the milliseconds of pieces, by key, and of the first `calibration_rows`."""
    optimize = needed("scipy.optimize", "search")
    _, weights = space.tables
    alone = np.zeros(weights.shape)
    for (i, layer), kernel, expand in product(enumerate(space.layers), space.kernels, space.expands):
        alone[i, kernel, expand] = times[layer_key(layer, kernel, expand)] - times["nothing"]
    rows = calibration_rows(space)
    ones = np.ones(len(rows))
    terms = np.stack([ones, space.total(rows, alone, 0.0), space.total(rows, weights, 0.0)])
    relative = terms / whole
    (fixed, share, fetch), _ = optimize.nnls(relative.T, ones)
    layers = (share * alone + fetch * weights).clip(0)
    for axis in (1, 2):
        layers = np.maximum.accumulate(layers, axis)
    return LatencyTable(space, layers, float(fixed), pieces)


# --- another device ---------------------------------------------------------------------------------------------------


@checked
def write_kit(space: SearchSpace, folder: str | Path, progress: bool = True) -> Path:
    """Write layers and whole subnets as ONNX files, with `measure.py` to measure them on a device; returns its path.

    The script writes `times.json` for `read_kit`. The subnets take some 15 MB each. `predict.py` beside it predicts the
    class of images with any exported file, as `rsslib predict` does. Both need only the packages in `requirements.txt`.
    """
    folder = make_folder(Path(folder))
    pieces = exported_pieces(space, progress)
    for number, piece in enumerate(pieces.values()):
        write(folder / f"{model_name(space, 'piece', number)}.onnx", piece.SerializeToString())
    for number, arch in enumerate(map(space.to_arch, calibration_rows(space))):
        write(folder / f"{model_name(space, 'whole', number)}.onnx", compose(space, pieces, arch))
    write_scripts(folder)
    return folder / "measure.py"


def write_scripts(folder: Path) -> None:
    """Write the scripts that run on a device without this package, and `requirements.txt`."""
    write(folder / "requirements.txt", REQUIREMENTS.encode())
    for script in SCRIPTS:
        path = Path(str(script.__file__))
        write(folder / path.name, re.sub(rb"rsslib\.(data|deploy)\.", b"", path.read_bytes()))


def model_name(space: SearchSpace, what: str, number: int) -> str:
    """Return the name of a model in a kit, which identifies the space."""
    digest = sha256(json.dumps(space.record()).encode())
    return f"{what}-{number}-{digest[:8]}"


@checked
def read_kit(space: SearchSpace, folder: str | Path) -> LatencyTable:
    """Return the table of a device from a kit's folder; raises InputError if its `times.json` does not fit."""
    path = Path(folder, "times.json")
    keys = list(modules(space))
    try:
        found = json.loads(read_regular(path, LARGEST_TIMES))
        pieces, whole = (
            [check_number(found.pop(model_name(space, what, i)), "a time", 1e-6) for i in range(n)]
            for what, n in (("piece", len(keys)), ("whole", CALIBRATION + 3))
        )
        if found:
            raise ValueError(f"it has times of other models, such as {min(found)}")
    except (OSError, AttributeError, TypeError, LookupError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} has no times for {space.name} ({one_line(error)}): write a kit for it with `rsslib latency-kit`, "
            "run its measure.py on the device and copy times.json back"
        ) from None
    return fitted_table(space, dict(zip(keys, pieces, strict=True)), np.array(whole), {})


def modules(space: SearchSpace) -> dict[object, tuple[nn.Module, Tensor]]:
    """Return the parts of subnets by key, each with an example: layers, start, end, and an empty part."""
    result: dict[object, tuple[nn.Module, Tensor]] = {}

    def example(channels: int, size: int) -> Tensor:
        return torch.zeros(2, channels, size, size)

    for kernel, expand in product(space.kernels, space.expands):
        subnet = untrained(space, space.uniform(kernel, expand, max(space.depths)))
        network: Any = subnet.network
        for i, layer in enumerate(space.layers):
            maps = example(layer.in_channels, layer.in_size)
            result[layer_key(layer, kernel, expand)] = network.blocks[str(i)], maps
    start = nn.Sequential(subnet.normalise, network.stem, network.first)
    result["start"] = start, example(space.in_channels, space.resolution).to(torch.uint8)
    network.stem = network.first = nn.Identity()
    network.blocks = nn.ModuleDict()  # leaves only the head
    last = space.layers[-1]
    result["end"] = network, example(last.out_channels, last.out_size)
    result["nothing"] = nn.ReLU(), example(8, 1)
    return result


def layer_key(layer: LayerSpec, kernel: int, expand: int) -> tuple:
    """Return a key that is equal for layers with the same shapes."""
    shape = replace(layer, stage=0, index=0)
    kernel = min(kernel, 2 * layer.in_size - 1)
    return shape, kernel, expand


def untrained(space: SearchSpace, arch: Arch) -> Deployable:
    """Return a subnet with PyTorch's initial weights."""
    return Deployable(Network(space, arch), space, arch)


def compose(space: SearchSpace, pieces: dict, arch: Arch) -> bytes:
    """Compose the ONNX model of a subnet from its layers; only the weights differ from those of an export."""
    tools = needed("onnx.compose", "export")
    keys = [layer_key(layer, kernel, expand) for _, layer, kernel, expand in space.active(arch)]
    whole: Any = tools.add_prefix(pieces["start"], "0.")
    for i, key in enumerate([*keys, "end"], start=1):
        piece = tools.add_prefix(pieces[key], f"{i}.")
        (output,) = whole.graph.output
        link = (output.name, f"{i}.images")
        whole = tools.merge_models(whole, piece, [link])
    return whole.SerializeToString()


def whole_times(space: SearchSpace, pieces: dict, rows: np.ndarray, runs: int) -> np.ndarray:
    """Return the milliseconds of whole subnets, float64 [n], as `undisturbed` measures them."""
    times: list[float] = []
    for part in np.split(rows, range(20, len(rows), 20)):  # few at a time: each holds its weights
        models = [compose(space, pieces, space.to_arch(row)) for row in part]
        sessions = dict(enumerate(map(session_of, models)))
        times += undisturbed(sessions, runs).values()
    return np.array(times)
