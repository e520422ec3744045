"""Evaluating 20 subnets with BN recalibration: ours against set_running_statistics and validation of the package."""

import statistics
import sys

import torch
from common import DEVICE, SPACE, Official, interleaved, random_images, report
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics

from rsslib.data import IMAGENET_MEAN, IMAGENET_STD, normalise
from rsslib.evaluate import RECALIBRATION_BATCH, correct_answers
from rsslib.supernet import SuperNet

SUBNETS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
IMAGES = 2000


def main() -> None:
    images, labels = random_images(IMAGES)
    x = normalise(torch.from_numpy(images).permute(0, 3, 1, 2).to(DEVICE), IMAGENET_MEAN, IMAGENET_STD)
    y = labels.to(DEVICE)
    supernet, official = SuperNet(SPACE).to(DEVICE).eval(), Official()
    population = [arch for _, arch in SPACE.population(-(-SUBNETS // 6))][:SUBNETS]
    contiguous = x.contiguous(memory_format=torch.contiguous_format)
    batches = list(zip(contiguous.split(RECALIBRATION_BATCH), y.split(RECALIBRATION_BATCH), strict=True))
    test = list(zip(x.split(200), y.split(200), strict=True))

    @torch.no_grad()
    def theirs(arch):
        official.choose(arch)
        official.net.eval()
        set_running_statistics(official.net, batches)
        official.net.eval()
        return sum((official.net(a).argmax(1) == b).sum() for a, b in batches).item()

    seconds = {"ours": [], "official": []}
    for i, arch in enumerate(population):
        functions = {
            "ours": lambda arch=arch: correct_answers(supernet, arch, test, x).item(),
            "official": lambda arch=arch: theirs(arch),
        }
        for name, values in interleaved(functions, 1, warm_up=1 if i == 0 else 0).items():
            seconds[name] += values
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    row = {
        "subnets": len(population),
        "ours s": sum(seconds["ours"]),
        "official s": sum(seconds["official"]),
        "ours / official, median": medians["ours"] / medians["official"],
    }
    report(__doc__, [row], f"{IMAGES:,} images for recalibration and as many for testing.")


if __name__ == "__main__":
    main()
