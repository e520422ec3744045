"""Depthwise convolutions on 64 images (on a CPU one), every shape of subnets: what PyTorch chooses, and alternatives.

Microseconds of kernels in a CUDA graph, launches not counted: of the forward pass, and of it with both gradients.
"""

import torch
import torch.nn.functional as F
from common import CUDA, DEVICE, SPACE, options, replayed, report, say, simulated_where_needed

from rsslib.device import own_stream


def shapes() -> list[tuple[int, int, int, int]]:
    """Channels, size of the map, kernel and stride, each once: of the widest layers, with kernels cut to the map."""
    found = {(SPACE.backbone.stem_channels, SPACE.layers[0].in_size, 3, 1): None}
    for layer in SPACE.layers:
        for kernel in SPACE.kernels:
            cut = min(kernel, 2 * layer.in_size - 1)
            found[layer.hidden(max(SPACE.expands)), layer.in_size, cut, layer.stride] = None
    return list(found)


IMAGES = 64 if CUDA else 1


def measure(channels: int, size: int, kernel: int, stride: int, layout: torch.memory_format, multiply: bool) -> tuple:
    """Seconds of the forward pass and of forward and backward pass."""
    x = torch.randn(IMAGES, channels, size, size, device=DEVICE).to(memory_format=layout).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, device=DEVICE, requires_grad=True)

    def forward() -> torch.Tensor:
        if multiply:
            return x * weight.view(1, -1, 1, 1)
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=channels)

    gradient = torch.randn_like(forward())
    with torch.no_grad():
        alone = replayed(forward)
    return alone, replayed(lambda: torch.autograd.grad(forward(), (x, weight), gradient))


def main() -> None:
    # In a process of its own, since cuDNN's choice for a shape is kept, whichever way it was made.
    chosen = options(__doc__, most=99 if CUDA else 2, benchmark=0)
    torch.backends.cudnn.benchmark = bool(chosen.benchmark)
    rows, last = [], torch.channels_last
    variants = {"channels-last": (last, False)}
    if not chosen.benchmark:
        variants |= {"NCHW": (torch.contiguous_format, False), "x * w": (last, True)}
    with simulated_where_needed(), own_stream(DEVICE):
        for channels, size, kernel, stride in shapes()[-chosen.most :]:
            row = {"channels": channels, "map": size, "kernel": kernel, "stride": stride}
            for name, (layout, multiply) in variants.items():
                if size == 1 or not multiply:
                    forward, both = measure(channels, size, kernel, stride, layout, multiply)
                    row |= {f"{name}, forward": 1e6 * forward, f"{name}, both": 1e6 * both}
            rows.append(say(row))
    report(__doc__, rows, f"cudnn.benchmark is {'on' if chosen.benchmark else 'off'}.")


if __name__ == "__main__":
    main()
