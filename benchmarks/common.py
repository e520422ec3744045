"""What the benchmarks share: ours and the official package's way of training, fair timing, one table each."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from rsslib.cuda.graphs import GraphedSteps
from rsslib.data.augmentation import draw_augmentation
from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset
from rsslib.device import choose_device, keep_freed_memory, own_stream, set_precision
from rsslib.methods import BATCH_SIZE
from rsslib.progress import progress_bar
from rsslib.samplers import Step
from rsslib.space import Arch, SearchSpace
from rsslib.steps import MOMENTUM, WEIGHT_DECAY, EagerSteps
from rsslib.trainer import enter_stage, start
from rsstudy.catalogue import build
from rsstudy.engine import environment
from rsstudy.plan import Settings

SPACE = SearchSpace("mobilenet_v3")
DEVICE = choose_device("auto")
CUDA = DEVICE.type == "cuda"
set_precision("fp32")  # for both sides


def random_data(train: int, test: int = 2, device: torch.device = DEVICE) -> Dataset:
    """Images [n, 3, 32, 32] of 100 classes; what they show does not matter for time or memory."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        return x.to(device), torch.randint(0, 100, (n,), generator=generator).to(device)

    classes = tuple(map(str, range(100)))
    return Dataset("random", *split(train), *split(2), *split(test), classes, IMAGENET_MEAN, IMAGENET_STD, "random")


def subnets_of_sizes(draws: int = 5) -> dict[str, list[Arch]]:
    """The subnets that are timed; "uniform" are draws as RSS makes them."""
    rng = np.random.default_rng(0)
    named = {name: [getattr(SPACE, name)] for name in ("smallest", "middle", "largest")}
    return named | {"uniform": [SPACE.sample_arch(rng) for _ in range(draws)]}


class Ours:
    """A stage's executor as the trainer uses it, on epochs of so many steps."""

    def __init__(self, steps: int, distill: bool = False):
        method = build("ofa" if distill else "rss", 1, 410)
        self.stage = method.stages[-1 if distill else 0]
        executor = GraphedSteps if CUDA else EagerSteps
        with own_stream(DEVICE):
            self.data, self.generator = random_data(steps * BATCH_SIZE), torch.Generator(DEVICE).manual_seed(0)
            state = start(SPACE, method, 0, DEVICE)
            enter_stage(state, method, self.stage, 0)
            self.steps, self.executor = steps, executor(state, method, self.stage, self.data, self.generator)

    def seconds(self, subnets: list[Step]) -> float:
        """Seconds a step of an epoch with these subnets, drawing and augmenting included, and capturing on CUDA."""

        def epoch() -> None:
            n = len(self.data.x_train)
            with progress_bar(shown=False) as bar, own_stream(DEVICE):
                order = torch.randperm(n, generator=self.generator, device=DEVICE)
                crops = draw_augmentation(n, self.generator)
                self.executor.epoch(subnets, order, crops, [1e-4] * self.steps, bar).sum().item()

        return timed(epoch) / self.steps


class Official:
    """Cai et al.'s network with the usual pipeline of PIL transforms, in this process, in its own memory format."""

    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=32 / 255, saturation=0.5),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def __init__(self):
        from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3  # of the tests' packages

        self.net = OFAMobileNetV3(
            100, (0.1, 1e-5), 0.1, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
        ).to(DEVICE)
        named = list(self.net.named_parameters())
        plain = [p for name, p in named if "bn" in name or name.endswith("bias")]
        decayed = [p for name, p in named if not ("bn" in name or name.endswith("bias"))]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}]
        self.optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=MOMENTUM, nesterov=True)
        self.images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 32, 32, 3), dtype=np.uint8)
        self.labels = torch.randint(0, 100, (BATCH_SIZE,), device=DEVICE)
        self.choose(SPACE.largest)
        self.teacher = self.net.get_active_subnet().train()

    def choose(self, arch: Arch) -> None:
        self.net.set_active_subnet(list(arch.kernel), list(arch.expand), list(arch.depth))

    def seconds(self, archs: Step, distill: bool = False) -> float:
        """Seconds of one optimiser step, augmentation included; the subnets' gradients are summed."""

        def step() -> None:
            self.net.train()
            x = torch.stack([self.augment(Image.fromarray(image)) for image in self.images]).to(DEVICE)
            self.optimizer.zero_grad(set_to_none=False)
            if distill:
                with torch.no_grad():
                    soft_labels = self.teacher(x).softmax(1)
            for arch in archs:
                self.choose(arch)
                logits = self.net(x)
                loss = F.cross_entropy(logits, self.labels)
                if distill:
                    loss = loss + F.cross_entropy(logits, soft_labels)
                loss.backward()
            self.optimizer.step()

        return timed(step)


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, with the device's work."""
    began = time.perf_counter()
    function()
    if CUDA:
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter() - began


def interleaved(functions: dict[str, Callable[[], float]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median of the seconds that each function returns; a round calls all, so that a disturbance hits all."""
    keep_freed_memory()
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: 1 if i % 2 else -1]:
            seconds[name].append(functions[name]())
    return {name: statistics.median(values) for name, values in seconds.items()}


def options(description: str, **defaults: int) -> argparse.Namespace:
    """Command line of a benchmark: whole numbers with defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="default: %(default)s")
    return parser.parse_args()


def report(title: str, rows: list[dict], note: str = "") -> None:
    """Print one table, with the machine that it was measured on."""
    machine = environment(DEVICE, Settings())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{title}\n{machine['hardware']}; {platform.system()} {platform.machine()}; {versions}\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"\n{note}\n" if note else "", flush=True)
