"""Evaluating subnets, BN recalibration included: ours against set_running_statistics and validation of the package."""

import torch
from common import SPACE, interleaved, options, random_data, report, timed
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics
from official import Official

from rsslib.data.augmentation import normalise
from rsslib.device import evaluation_threads, use_threads
from rsslib.evaluate import (
    RECALIBRATION_BATCH,
    Evaluator,
    LabelledBatches,
    correct_answers,
    evaluate_each,
    recalibration_images,
)
from rsslib.population import sample_population
from rsslib.supernet import FIRST, SuperNet


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

    # of the study's 600, in the order of an evaluation; the first is to warm up
    archs = [arch for _, arch in sample_population(SPACE, 100)]
    archs.sort(key=lambda arch: [choices[2:] for choices in [*SPACE.active(arch)][FIRST]])
    population = archs[len(archs) // 2 :][: chosen.subnets + 1]
    evaluators = {"ours": Evaluator(supernet, test, recalibration)}
    rounds = []
    for arch in population:
        functions = {
            name: lambda arch=arch, evaluator=evaluator: timed(lambda: correct_answers(evaluator, arch).item())
            for name, evaluator in evaluators.items()
        }
        rounds.append(interleaved(functions | {"official": lambda arch=arch: timed(lambda: official_way(arch))}, 1, 0))
    seconds = {f"{name} s": sum(r[name] for r in rounds[1:]) for name in rounds[0]}
    row = {"subnets": chosen.subnets} | seconds | {"ours / official": seconds["ours s"] / seconds["official s"]}
    report(__doc__, [row], f"2,000 images for recalibration, {chosen.test_images:,} for testing, in turn.")

    def at_once(threads: int) -> None:
        with evaluate_each(supernet, (test, recalibration), archs, correct_answers, threads) as found:
            assert len(list(found)) == len(archs)

    archs = population[1:]
    with use_threads(1):
        threads = evaluation_threads(data.device)
        if threads > 1:
            functions = {f"{n} at once, s": lambda n=n: timed(lambda: at_once(n)) for n in (1, threads)}
            report("The same subnets, several at once, each on one thread", [interleaved(functions, 2, 0)])


if __name__ == "__main__":
    main()
