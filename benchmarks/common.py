"""What the benchmarks share: the official package's way of training and evaluating, fair timing, one table each."""

import platform
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from rsslib.data import IMAGENET_MEAN, IMAGENET_STD
from rsslib.runs import choose_device, environment, keep_freed_memory
from rsslib.space import Arch, SearchSpace
from rsslib.train import MOMENTUM, WEIGHT_DECAY

SPACE = SearchSpace("mobilenet_v3")
DEVICE = choose_device("auto")


def random_images(n: int) -> tuple[np.ndarray, torch.Tensor]:
    """uint8 images [n, 32, 32, 3] and labels [n] of 100 classes; timing does not depend on what they show."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), torch.from_numpy(rng.integers(0, 100, n))


def subnets_of_sizes() -> dict[str, list[Arch]]:
    """The subnets that steps are timed on; "uniform" are five of RSS's draws."""
    rng = np.random.default_rng(0)
    named = {name: [getattr(SPACE, name)] for name in ("smallest", "middle", "largest")}
    return named | {"uniform": [SPACE.sample_arch(rng) for _ in range(5)]}


class Official:
    """Cai et al.'s network and the usual pipeline of PIL transforms, in this process and memory format by default."""

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
        self.net = OFAMobileNetV3(
            100, (0.1, 1e-5), 0.1, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
        ).to(DEVICE)
        named = list(self.net.named_parameters())
        plain = [p for name, p in named if "bn" in name or name.endswith("bias")]
        decayed = [p for name, p in named if not ("bn" in name or name.endswith("bias"))]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}]
        self.optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=MOMENTUM, nesterov=True)

    def choose(self, arch: Arch) -> None:
        self.net.set_active_subnet(list(arch.kernel), list(arch.expand), list(arch.depth))

    def batch(self, images: np.ndarray) -> torch.Tensor:
        return torch.stack([self.augment(Image.fromarray(image)) for image in images]).to(DEVICE)

    def step(self, images: np.ndarray, labels: torch.Tensor, archs: tuple[Arch, ...], teacher=None) -> float:
        """One optimiser step, augmentation included; the subnets' gradients are summed."""
        self.net.train()
        x, y = self.batch(images), labels.to(DEVICE)
        self.optimizer.zero_grad(set_to_none=False)
        if teacher is not None:
            with torch.no_grad():
                soft_labels = teacher(x).softmax(1)
        for arch in archs:
            self.choose(arch)
            logits = self.net(x)
            loss = F.cross_entropy(logits, y)
            if teacher is not None:
                loss = loss + F.cross_entropy(logits, soft_labels)
            loss.backward()
        self.optimizer.step()
        return loss.item()


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, with the device's work."""
    began = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter() - began


def interleaved(functions: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each function in each round; a round calls all of them, so that what disturbs one disturbs all."""
    keep_freed_memory()
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    for i in range(rounds):
        names = list(functions) if i % 2 else list(functions)[::-1]
        for name in names:
            seconds[name].append(timed(functions[name]))
    return seconds


def report(title: str, rows: list[dict], note: str = "") -> None:
    """Print one table, with the machine that it was measured on."""
    machine = environment(DEVICE)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{title}\n{machine['hardware']}; {platform.platform(terse=True)}; {versions}")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    print(f"{note}\n" if note else "")
