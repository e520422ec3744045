"""Operators that a training step as CUDA graphs launches, counted without a GPU; most are one kernel, some several.

The step is captured by the simulator that the tests use; views, which launch nothing, are left out.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from common import random_data

from rsslib.cuda.graphs import GraphedSteps
from rsslib.data.augmentation import draw_augmentation
from rsslib.device import own_stream
from rsslib.files import project_folder
from rsslib.samplers import Step
from rsslib.space import Arch, SearchSpace
from rsslib.steps import TrainingState, new_optimizer
from rsslib.trainer import enter_stage, start
from rsstudy.catalogue import build

sys.path.insert(0, str(project_folder() / "tests" / "cuda"))
from simulator import simulated_graphs  # noqa: E402

BATCH = 4  # images; their number changes no operator
CPU = torch.device("cpu")  # also where there is a GPU: the graphs are simulated
KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm"),
    "convolutions": ("convolution", "convolution_backward"),
    "batch norm": ("native_batch_norm", "native_batch_norm_backward", "_native_batch_norm_legit"),
    "activations": ("relu", "threshold_backward", "hardswish", "hardswish_backward", "hardtanh", "hardtanh_backward",
                    "hardsigmoid", "hardsigmoid_backward"),
    "adding gradients": ("add_", "_foreach_add_"),
    "sums, copies, the rest": (),
}  # fmt: skip


def executor(space: SearchSpace, method: str) -> GraphedSteps:
    """That of a method's last stage, before the first step; in float64, for which a CPU has no operators of its own."""
    chosen = build(method, 1, 410)
    state = start(space, chosen, 0)
    state = TrainingState(state.supernet.double(), new_optimizer(state.supernet))
    stage = chosen.stages[-1]
    enter_stage(state, chosen, stage, 0)
    chosen = type(chosen)(chosen.name, chosen.stages, BATCH, chosen.dropout, chosen.teacher)
    return GraphedSteps(state, chosen, stage, random_data(4 * BATCH, device=CPU), torch.Generator())


def operators(space: SearchSpace, method: str, step: Step, same: bool) -> dict[str, Counter[str]]:
    """The operators of each graph that is replayed for a step, by the graph's name."""
    with simulated_graphs() as device, own_stream(CPU):
        steps, n = executor(space, method), 4 * BATCH
        subnets = [step] * 4 if same else [step, *[(space.smallest,) * len(step)] * 3]
        steps.prepare(subnets, same, torch.randperm(n), draw_augmentation(n, steps.generator), [0.0] * 4, [1.0] * 4)
        steps.wake((space.largest, space.smallest))
        for group in steps.state.optimizer.param_groups:
            group["lr"] = steps.rate

        def counted(function: Callable, *arguments) -> Counter[str]:
            steps.capture(function, *arguments).replay()  # what the next one reads
            return device.captured[-1].operators()

        if same:
            return {"step": counted(steps.whole_step, step)}
        return {
            "load": counted(steps.load),
            **{f"subnet {i + 1}": counted(steps.masked, len(step)) for i in range(len(step))},
            "update": counted(steps.update),
        }


def by_kind(counts: Counter[str]) -> dict[str, int]:
    """The operators by kind, and in all."""
    named = {name for names in KINDS.values() for name in names}
    rows = {kind: sum(counts[name] for name in names) for kind, names in KINDS.items()}
    rows["sums, copies, the rest"] = sum(n for name, n in counts.items() if name not in named)
    return rows | {"all": counts.total()}


def steps_of(space: SearchSpace) -> dict[str, tuple[str, Step, bool]]:
    """The steps that are counted: method, subnets, whether all steps have these."""
    rng = np.random.default_rng(0)
    draws: list[Arch] = [space.sample_arch(rng) for _ in range(5)]
    named = {name: ("rss", (getattr(space, name),), True) for name in ("smallest", "middle", "largest")}
    uniform = {f"uniform {i + 1}": ("rss", (arch,), True) for i, arch in enumerate(draws)}
    return named | uniform | {"PS: four, distilled": ("ofa", tuple(draws[:4]), False)}


def table(space: SearchSpace) -> pd.DataFrame:
    """One row for each step, with the operators of all graphs that it replays."""
    rows = []
    for name, (method, step, same) in steps_of(space).items():
        graphs = operators(space, method, step, same)
        mflops = np.mean([space.macs(arch) for arch in step]) / 1e6
        total = sum(graphs.values(), Counter())
        rows.append({"step": name, "MFLOPs": mflops, "replays": len(graphs), **by_kind(total)})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenet_v3", help="default: %(default)s")
    parser.add_argument("--names", action="store_true", help="also the operators of the first uniform step by name")
    options = parser.parse_args()
    space = SearchSpace(options.backbone)
    result = table(space)
    print(f"{__doc__}\n{result.to_string(index=False, float_format='{:.2f}'.format)}")
    mean = result[result["step"].str.startswith("uniform")]["all"].mean()
    print(f"\nuniform, mean of five: {mean:.0f}")
    if options.names:
        for name, count in operators(space, *steps_of(space)["uniform 1"])["step"].most_common():
            print(f"{count:6} {name}")


if __name__ == "__main__":
    main()
