"""Batch norm in training on 64 images, in channels-last memory, on every map that the network has, against float64.

Largest errors of its output and of its statistics, relative to the largest element: alone, then of all maps in eight
streams at once for as long as `--seconds` says. Microseconds of forward and backward pass as PyTorch chooses them,
which is cuDNN, and without cuDNN.
"""

import time

import torch
import torch.nn.functional as F
from common import CUDA, DEVICE, SPACE, options, replayed, report, say, simulated_where_needed

from rsslib.device import CAPTURING, own_stream
from rsslib.supernet import BN_EPS, BN_MOMENTUM


class Layer:
    """One batch norm on random images, and what float64 makes of them."""

    def __init__(self, channels: int, size: int, images: int):
        made = torch.randn(images, channels, size, size, device=DEVICE)
        shift, spread = torch.randn(channels, 1, 1, device=DEVICE), torch.rand(channels, 1, 1, device=DEVICE) * 3 + 0.1
        self.x = ((made + shift) * spread).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = (torch.randn(channels, device=DEVICE) for _ in range(2))
        self.y, self.mean, self.var = torch.empty_like(self.x), torch.zeros_like(self.bias), torch.ones_like(self.bias)
        var, mean = torch.var_mean(self.x.double(), (0, 2, 3), correction=0)
        wide = (1, -1, 1, 1)
        scaled = (self.x - mean.view(wide)) * (var + BN_EPS).rsqrt().view(wide)
        n = self.x.numel() / channels
        self.expected = {
            "output": scaled * self.weight.view(wide) + self.bias.view(wide),
            "mean": BN_MOMENTUM * mean,
            "variance": 1 - BN_MOMENTUM + BN_MOMENTUM * var * n / (n - 1),
        }

    def run(self) -> None:
        self.mean.zero_()
        self.var.fill_(1)
        norm = F.batch_norm(self.x, self.mean, self.var, self.weight, self.bias, True, BN_MOMENTUM, BN_EPS)
        self.y.copy_(norm)

    def errors(self) -> dict[str, float]:
        found = {"output": self.y, "mean": self.mean, "variance": self.var}
        return {
            name: ((found[name] - exact).abs().max() / exact.abs().max()).item()
            for name, exact in self.expected.items()
        }

    def seconds(self, cudnn: bool) -> float:
        x, weight, bias = (t.detach().requires_grad_() for t in (self.x, self.weight, self.bias))

        def both() -> None:
            y = F.batch_norm(x, self.mean, self.var, weight, bias, True, BN_MOMENTUM, BN_EPS)
            torch.autograd.grad(y, (x, weight, bias), self.y)

        torch.backends.cudnn.enabled = cudnn  # `cudnn.flags` raises once a precision is set as `set_precision` does
        try:
            return replayed(both)
        finally:
            torch.backends.cudnn.enabled = True


def maps() -> list[tuple[int, int]]:
    """Channels and size of the largest subnet's maps that are normalised, each once."""
    backbone, first = SPACE.backbone, SPACE.layers[0].in_size
    found = [(backbone.stem_channels, first), (backbone.first_channels, first)]
    for layer in SPACE.layers:
        hidden = layer.hidden(max(SPACE.expands))
        found += [(hidden, layer.in_size), (hidden, layer.out_size), (layer.out_channels, layer.out_size)]
    return list(dict.fromkeys([*found, (backbone.expand_channels, SPACE.layers[-1].out_size)]))


def main() -> None:
    few = {"seconds": 1, "streams": 2, "images": 2, "most": 2}  # to rehearse on a CPU
    chosen = options(__doc__, **({"seconds": 20, "streams": 8, "images": 64, "most": 99} if CUDA else few))
    shapes, rows = maps()[-chosen.most :], []
    with simulated_where_needed():
        with own_stream(DEVICE):
            for channels, size in shapes:
                layer = Layer(channels, size, chosen.images)
                layer.run()
                row = {"channels": channels, "map": size} | layer.errors()
                rows.append(say(row | {"us": 1e6 * layer.seconds(True), "us, no cuDNN": 1e6 * layer.seconds(False)}))
        report(__doc__, rows)
        report("The largest errors of all streams at once", [together(shapes, chosen)])


def together(shapes: list[tuple[int, int]], chosen) -> dict:
    """The largest errors while graphs of all maps are replayed in several streams."""
    replays, worst = 0, {}
    streams = [torch.cuda.Stream(DEVICE) for _ in range(chosen.streams)]
    layers = [[Layer(*shape, chosen.images) for shape in shapes] for _ in streams]
    graphs = []
    for stream, own in zip(streams, layers, strict=True):
        with torch.cuda.stream(stream), CAPTURING:
            stream.wait_stream(torch.cuda.default_stream(DEVICE))
            for layer in own:
                layer.run()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
            for layer in own:
                layer.run()
            graph.capture_end()
            graphs.append(graph)
    end = time.monotonic() + chosen.seconds
    while time.monotonic() < end or not replays:
        for _ in range(50 if CUDA else 1):
            for stream, graph in zip(streams, graphs, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
            replays += 1
        for stream in streams:
            stream.synchronize()
        for layer in (layer for own in layers for layer in own):
            worst = {name: max(error, worst.get(name, 0.0)) for name, error in layer.errors().items()}
    return {"streams": chosen.streams, "replays": replays} | worst


if __name__ == "__main__":
    main()
