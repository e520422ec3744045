"""Evaluating subnets, BN recalibration included: ours against set_running_statistics and validation of the package."""

import torch
from common import SPACE, Official, interleaved, options, random_data, report, timed
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics

from rsslib.data.augmentation import normalise
from rsslib.evaluate import RECALIBRATION_BATCH, LabelledBatches, correct_answers, recalibration_images
from rsslib.supernet import SuperNet


def main() -> None:
    chosen = options(__doc__, subnets=20, test_images=2000)
    data = random_data(2000, chosen.test_images)
    supernet, official = SuperNet(SPACE).to(data.device).eval(), Official()
    recalibration, test = recalibration_images(data), LabelledBatches(data.x_test, data.y_test, data)
    contiguous = {"memory_format": torch.contiguous_format}
    theirs = [
        list(zip(x.contiguous(**contiguous).split(RECALIBRATION_BATCH), y.split(RECALIBRATION_BATCH), strict=True))
        for x, y in (
            (recalibration, data.y_train),
            (normalise(data.x_test, data.mean, data.std), data.y_test),
        )
    ]

    @torch.no_grad()
    def official_way(arch):
        official.choose(arch)
        set_running_statistics(official.net, theirs[0])
        official.net.eval()
        return sum((official.net(x).argmax(1) == y).sum() for x, y in theirs[1]).item()

    population = [arch for _, arch in SPACE.population(-(-chosen.subnets // 6))][: chosen.subnets]
    seconds = []
    for i, arch in enumerate(population):
        functions = {
            "ours": lambda arch=arch: timed(lambda: correct_answers(supernet, arch, test, recalibration).item()),
            "official": lambda arch=arch: timed(lambda: official_way(arch)),
        }
        seconds.append(interleaved(functions, 1, warm_up=1 if i == 0 else 0))
    ours, official_sum = (sum(s[which] for s in seconds) for which in ("ours", "official"))
    rows = [
        {
            "subnets": len(population),
            "ours s": ours,
            "official s": official_sum,
            "ours / official": ours / official_sum,
        }
    ]
    report(__doc__, rows, f"2,000 images for recalibration, {chosen.test_images:,} for testing, in turn.")


if __name__ == "__main__":
    main()
