"""Predict the footprint of an exported subnet in float32: bytes of its file, and of feature maps for one image."""

from functools import lru_cache
from itertools import product

import numpy as np

from rsslib.backbones import LayerSpec
from rsslib.space import SearchSpace

NODES = 2_200  # bytes of a layer's operators and names in an ONNX file
OTHERS = 2_600  # bytes of operators and names outside the elastic layers


def file_bytes(space: SearchSpace, rows: np.ndarray) -> np.ndarray:
    """Return the size of each subnet's ONNX file, float64 [n], within 0.2 percent.

    Batch norm is folded into a bias per channel, and depthwise taps that meet only padding are cut off.
    """
    return 4 * space.parameters(rows) + space.total(rows, *_file_table(space))


@lru_cache(maxsize=8)
def _file_table(space: SearchSpace) -> tuple[np.ndarray, float]:
    """Return the bytes beyond parameters: of each layer by choice, and of everything else."""
    table = np.zeros(space.tables[1].shape)
    for (i, layer), kernel, expand in product(enumerate(space.layers), space.kernels, space.expands):
        taps = min(kernel, 2 * layer.in_size - 1)
        folded = 2 * layer.hidden(expand) + layer.out_channels
        gone = layer.parameters(kernel, expand) - layer.parameters(taps, expand) + folded
        table[i, kernel, expand] = NODES - 4 * gone
    net = space.backbone
    folded = 2 * net.stem_channels + net.first_channels + net.expand_channels
    return table, OTHERS - 4 * folded


def memory_bytes(space: SearchSpace, rows: np.ndarray) -> np.ndarray:
    """Return the peak bytes of feature maps, float64 [n].

    Operators run one after the other, and none overwrites its input. Weights are not counted.
    """
    table, others = _memory_table(space)
    n = space.n_layers
    maps = table[np.arange(n), rows[:, n : 2 * n]]
    return np.where(space.active_mask(rows), maps, 0).max(1, initial=others)


@lru_cache(maxsize=8)
def _memory_table(space: SearchSpace) -> tuple[np.ndarray, float]:
    table = np.zeros((space.n_layers, max(space.expands) + 1))
    for (i, layer), expand in product(enumerate(space.layers), space.expands):
        table[i, expand] = 4 * _maps(layer, layer.hidden(expand))
    net, last = space.backbone, space.layers[-1]
    pixels = space.in_channels * space.resolution**2
    stem = net.stem_channels * (space.resolution // 2) ** 2
    head = net.expand_channels * last.out_size**2
    others = max(2 * pixels, pixels + stem, _maps(space.first, net.stem_channels), 2 * head)
    return table, 4 * others


def _maps(layer: LayerSpec, hidden: int) -> int:
    """Return the peak of numbers in feature maps over a layer's operators, including those kept for the residual."""
    before, after = layer.in_size**2, layer.out_size**2
    waiting = layer.in_channels * before * layer.residual
    squeezed = hidden * layer.squeeze_excite
    wide = max(2 * hidden * before, 2 * hidden * after + squeezed, (hidden + layer.out_channels) * after)
    return max(waiting + wide, layer.in_channels * before + hidden * before)
