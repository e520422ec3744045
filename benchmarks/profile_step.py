"""Where the time of a training step on 64 images goes: operators on a CPU, kernels on CUDA."""

import pandas as pd
import torch
from common import CUDA, SPACE, Ours, options, report, subnets_of_sizes
from torch.profiler import ProfilerActivity, profile


def main() -> None:
    chosen = options(__doc__, steps=20, top=12)
    arch = subnets_of_sizes()["uniform"][0]
    ours = Ours(chosen.steps)
    subnets = [(arch,)] * chosen.steps
    for _ in range(2):
        ours.seconds(subnets)
    wall = 1e3 * ours.seconds(subnets)
    with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as profiler:
        ours.seconds(subnets)
    rows = [
        {
            "operator": event.key[:60],
            "calls a step": event.count / chosen.steps,
            "ms a step": (event.self_device_time_total if CUDA else event.self_cpu_time_total) / 1e3 / chosen.steps,
        }
        for event in profiler.key_averages()
    ]
    table = pd.DataFrame(rows).sort_values("ms a step", ascending=False)
    busy, calls = table["ms a step"].sum(), table["calls a step"].sum()
    table["share"] = table["ms a step"] / busy
    mflops = SPACE.macs(arch) / 1e6
    note = (
        f"A uniform subnet of {mflops:.1f} MFLOPs; {wall:.2f} ms a step, of which {busy:.2f} ms are in {calls:.0f} "
        f"{'kernels' if CUDA else 'operators'} when profiled."
    )
    report(__doc__, table.head(chosen.top).to_dict("records"), note)
    if CUDA:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
