"""A training step on 64 images, augmentation included: ours against the official package with PIL transforms."""

import statistics
import sys
from functools import partial

import numpy as np
import torch
from common import DEVICE, SPACE, Official, interleaved, random_images, report, subnets_of_sizes

from rsslib.data import IMAGENET_MEAN, IMAGENET_STD, augment, draw_augmentation
from rsslib.methods import build
from rsslib.supernet import Network
from rsslib.train import start, train_step

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 15


class Ours:
    """The trainer's step with what an epoch prepares for it."""

    def __init__(self):
        self.state = start(SPACE, build("rss", 1, 1), 0, DEVICE)
        self.parameters = dict(self.state.supernet.named_parameters())
        self.buffers = dict(self.state.supernet.named_buffers())
        self.generator = torch.Generator(DEVICE).manual_seed(0)

    def step(self, images, labels, archs, distill=False):
        parameters = draw_augmentation(len(images), self.generator)
        x = augment(images, parameters, IMAGENET_MEAN, IMAGENET_STD)
        for group in self.state.optimizer.param_groups:
            group["lr"] = 1e-4
        loss = train_step(self.state, self.parameters, self.buffers, x, labels, archs, 0.1, self.generator, distill)
        return loss.item()


def main() -> None:
    images, labels = random_images(64)
    on_device = torch.from_numpy(images).permute(0, 3, 1, 2).to(DEVICE), labels.to(DEVICE)
    ours, official = Ours(), Official()
    rows = []
    for size, archs in subnets_of_sizes().items():
        for distill, subnets in ((False, [(arch,) for arch in archs]), (True, [tuple(archs[:4])])):
            if distill and size != "uniform":
                continue  # the four-subnet step of progressive shrinking is timed once, on uniform subnets
            teacher = Network(SPACE, SPACE.largest).to(DEVICE).train() if distill else None
            ours.state.teacher = teacher
            seconds = {"ours": [], "official": []}
            for step in subnets:
                functions = {
                    "ours": partial(ours.step, *on_device, step, distill),
                    "official": partial(official.step, images, labels, step, teacher),
                }
                for name, values in interleaved(functions, ROUNDS).items():
                    seconds[name] += values
            medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
            rows.append(
                {
                    "subnets": "4 uniform, distilled" if distill else size,
                    "MFLOPs": np.mean([SPACE.macs(arch) for arch in archs]) / 1e6,
                    "ours ms": medians["ours"],
                    "official ms": medians["official"],
                    "ours / official": medians["ours"] / medians["official"],
                }
            )
    report(__doc__, rows, f"Medians of {ROUNDS} interleaved rounds.")


if __name__ == "__main__":
    main()
