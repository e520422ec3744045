"""Rates of the device: bytes copied and floating-point operations a second, and what a launch costs."""

import torch
from common import CUDA, DEVICE, options, replayed, report, say, simulated_where_needed, timed

from rsslib.device import own_stream, set_precision


def main() -> None:
    chosen = options(__doc__, megabytes=1024 if CUDA else 4, size=8192 if CUDA else 64, kernels=1000 if CUDA else 10)
    rows = []

    def measured(what: str, value: float, unit: str) -> None:
        rows.append(say({"what": what, "value": value, "unit": unit}))

    with simulated_where_needed(), own_stream(DEVICE):
        source = torch.randn(chosen.megabytes * 2**18, device=DEVICE)
        target = torch.empty_like(source)
        seconds = replayed(lambda: target.copy_(source), calls=4)
        measured("copy, read and written", 2e-9 * source.nbytes / seconds, "GB/s")
        types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
        for name, dtype in types.items():
            precision = "tf32" if name == "tf32" else "fp32"
            set_precision(precision)
            a, b, c = (torch.randn(chosen.size, chosen.size, device=DEVICE, dtype=dtype) for _ in range(3))
            seconds = replayed(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), calls=2)
            measured(
                f"matrix product of {chosen.size} x {chosen.size}, {name}", 2e-12 * chosen.size**3 / seconds, "TFLOP/s"
            )
        set_precision("fp32")

        small = torch.zeros(64, device=DEVICE)
        measured("a small kernel, replayed", 1e6 * replayed(lambda: small.add_(1), calls=chosen.kernels), "us")
        few = range(chosen.kernels)
        for _ in range(2):  # of which the first is to warm up
            seconds = timed(lambda: [small.add_(1) for _ in few])
        measured("a small kernel, launched by Python", 1e6 * seconds / chosen.kernels, "us")
    report(__doc__, rows)


if __name__ == "__main__":
    main()
