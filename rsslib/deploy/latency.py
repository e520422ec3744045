"""How long a subnet takes: measured in onnxruntime, or predicted from a table of its layers."""

import importlib
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsslib.deploy.exporting import Deployable, card_of, onnx_model
from rsslib.deploy.predicting import open_model, session_of
from rsslib.errors import check_number, needed
from rsslib.network import Network
from rsslib.progress import progress_bar
from rsslib.space import Arch, SearchSpace

WARM_UP = 10  # runs that are not counted
CALIBRATION = 30  # subnets to which a table is fitted


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image on one thread: the median of `runs` runs and their quartiles."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ms (quartiles {self.low:.2f} to {self.high:.2f}, {self.runs} runs)"


def latency(subnet: Deployable | str | Path, runs: int = 200) -> Latency:
    """Time of a deployable subnet or of an exported file in onnxruntime: one thread, one image at a time, warm.

    Raises InputError if the extra [export] is not installed or the file is not an exported model.
    """
    check_number(runs, "runs", 1, whole=True)
    session = session_of(bytes_of(subnet)) if isinstance(subnet, Deployable) else open_model(subnet).session
    return measured(session, runs)


def bytes_of(subnet: Deployable) -> bytes:
    side = subnet.card.resolution
    return onnx_model(subnet, torch.zeros((2, subnet.card.channels, side, side), dtype=torch.uint8)).SerializeToString()


def measured(session, runs: int) -> Latency:
    """The time of a session for a single input of noise."""
    (place,) = session.get_inputs()
    noise = np.random.default_rng(0).random((1, *place.shape[1:]))
    feed = {place.name: (255 * noise).astype(np.uint8) if place.type == "tensor(uint8)" else noise.astype(np.float32)}
    seconds = []
    for _ in range(WARM_UP + runs):
        began = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - began)
    low, median, high = 1000 * np.percentile(seconds[WARM_UP:], [25, 50, 75])
    return Latency(float(median), float(low), float(high), runs)


# --- a table of layers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds of every layer's settings, whose sum predicts those of a subnet.

    `layers` [layers, kernel size + 1, expand ratio + 1] is indexed by the settings themselves; `fixed` is everything
    else. A larger setting never costs less: where it was measured so, that was noise, and it has the smaller one's.
    `pieces` are the layers as ONNX models, of which `check` makes whole subnets.
    """

    space: SearchSpace
    layers: np.ndarray
    fixed: float
    pieces: dict

    def predict(self, archs: Arch | np.ndarray) -> Any:
        """Milliseconds of a subnet, or float64 [n] of rows."""
        return self.space.total(archs, self.layers, self.fixed)

    def check(self, subnets: int = 100, runs: int = 100, seed: int = 0) -> dict:
        """How well the table predicts `subnets` that it has not seen, drawn uniformly and measured whole.

        Returns spearman (rank correlation), relative_error (median of the distance from what is measured, over it) and
        subnets.
        """
        from scipy.stats import spearmanr

        rows = self.space.sample(subnets, np.random.default_rng([seed, 1]))
        times, told = whole_times(self.space, self.pieces, rows, runs), self.predict(rows)
        return {
            "spearman": float(spearmanr(told, times).statistic),
            "relative_error": float(np.median(np.abs(told - times) / times)),
            "subnets": subnets,
        }


def compose(space: SearchSpace, pieces: dict, arch: Arch) -> bytes:
    """The ONNX model of a subnet, put together from its layers': what exporting it whole gives but for weights."""
    onnx = needed("onnx", "export")
    importlib.import_module("onnx.compose")
    keys = [layer_key(layer, kernel, expand) for _, layer, kernel, expand in space.active(arch)]
    whole: Any = None
    for i, key in enumerate(["start", *keys, "end"]):
        piece = onnx.compose.add_prefix(pieces[key], f"{i}.")
        links = [] if whole is None else [(whole.graph.output[0].name, f"{i}.images")]
        whole = piece if whole is None else onnx.compose.merge_models(whole, piece, links)
    return whole.SerializeToString()


def whole_times(space: SearchSpace, pieces: dict, rows: np.ndarray, runs: int) -> np.ndarray:
    """Milliseconds of whole subnets, float64 [n], as `undisturbed` has them."""
    times: list[float] = []
    for part in np.split(rows, range(20, len(rows), 20)):  # few at a time: each holds its weights
        sessions = {i: session_of(compose(space, pieces, space.to_arch(row))) for i, row in enumerate(part)}
        times += undisturbed(sessions, runs).values()
    return np.array(times)


def undisturbed(sessions: dict, runs: int) -> dict:
    """For each session the least of five rounds' medians in milliseconds: what other programs add is left out."""
    rounds = [{key: measured(session, runs).median for key, session in sessions.items()} for _ in range(5)]
    return {key: min(turn[key] for turn in rounds) for key in sessions}


def latency_table(space: SearchSpace, runs: int = 100, progress: bool = True) -> LatencyTable:
    """Measure every layer of a space at every setting, in onnxruntime as `latency` does; takes a minute or three.

    Layers of equal shape are measured once, with random weights, which do not change the time. Alone, a layer's weights
    stay in the processor's caches, in a whole subnet they do not: so the table holds share * (time alone) + fetch *
    (number of weights), with the two factors and a constant fitted to 33 whole subnets (non-negative least squares of
    relative errors). Raises InputError if the extra [export] is not installed.
    """
    from scipy.optimize import nnls

    check_number(runs, "runs", 1, whole=True)
    modules: dict[object, tuple[nn.Module, tuple]] = {}
    for kernel, expand in product(space.kernels, space.expands):
        subnet = untrained(space, space.uniform(kernel, expand, max(space.depths)))
        for i, layer in enumerate(space.layers):
            shape = (layer.in_channels, layer.in_size, layer.in_size)
            modules.setdefault(layer_key(layer, kernel, expand), (subnet.network.blocks[str(i)], shape))
    last = space.layers[-1]
    modules["start"] = Start(subnet), (space.in_channels, space.resolution, space.resolution)
    modules["end"] = End(subnet), (last.out_channels, last.out_size, last.out_size)
    modules["nothing"] = nn.ReLU(), (8, 1, 1)
    pieces = {}
    for key, (module, shape) in progress_bar(modules.items(), progress, desc="latency table", unit="layer"):
        example = torch.zeros((2, *shape), dtype=torch.uint8 if key == "start" else torch.float32)
        pieces[key] = onnx_model(module, example)
    times = undisturbed({key: session_of(piece.SerializeToString()) for key, piece in pieces.items()}, runs)
    call = times["nothing"]  # what a call costs whatever is in it
    _, weights = space.tables
    alone = np.zeros(weights.shape)
    for (i, layer), kernel, expand in product(enumerate(space.layers), space.kernels, space.expands):
        alone[i, kernel, expand] = times[layer_key(layer, kernel, expand)] - call
    rows = np.concatenate([space.sample(CALIBRATION, np.random.default_rng([0, 0])), space.to_rows(
        [space.smallest, space.middle, space.largest])])  # fmt: skip
    sums = [np.ones(len(rows)), space.total(rows, alone, 0.0), space.total(rows, weights, 0.0)]
    whole = whole_times(space, pieces, rows, runs)
    fixed, share, fetch = nnls(np.stack(sums, axis=1) / whole[:, None], np.ones(len(rows)))[0]  # relative errors
    layers = share * alone + fetch * weights
    layers = np.maximum.accumulate(np.maximum.accumulate(layers.clip(0), axis=1), axis=2)
    return LatencyTable(space, layers, float(fixed), pieces)


def layer_key(layer, kernel: int, expand: int) -> tuple:
    """Equal for layers that compute with the same shapes."""
    return replace(layer, stage=0, index=0), min(kernel, 2 * layer.in_size - 1), expand


class Start(nn.Module):
    """What comes before the elastic layers, from uint8 images on."""

    def __init__(self, subnet: Deployable):
        super().__init__()
        self.subnet = subnet

    def forward(self, images: Tensor) -> Tensor:
        return self.subnet.network.first(self.subnet.network.stem(self.subnet.normalise(images)))


class End(nn.Module):
    """What comes after the elastic layers."""

    def __init__(self, subnet: Deployable):
        super().__init__()
        self.network = subnet.network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.head(images)


def untrained(space: SearchSpace, arch: Arch) -> Deployable:
    """A subnet with PyTorch's initial weights."""
    card = card_of(space, arch, "", tuple(map(str, range(space.classes))))
    return Deployable(Network(space, arch), space, card)
