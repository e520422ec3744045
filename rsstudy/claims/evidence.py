"""What claims rest on: statistics of populations, paired by subnet and seed, with their 95 % intervals.

Every method is evaluated on the same subnets, so comparisons are differences within subnet and seed. Their standard
errors are those of seeds crossed with subnets: the variance between seeds and that of a bootstrap over subnets, drawn
within each size bucket, the same for all methods and seeds, one fewer than there are, which leaves the variance of a
mean unbiased (Rao and Wu, 1988); less what both count, the part of the bootstrap that differs between seeds. Drawing
seeds as well would count that part three times (Owen, 2007). An interval is the estimate plus or minus Student's t
times the standard error, with one degree of freedom fewer than there are seeds: the seed is the unit of replication.
With one seed only subnets are drawn, and the interval is silent about other seeds. Test images are not drawn: all
intervals are for these images, which all subnets share.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rsslib.errors import InputError, choose
from rsstudy.figures.style import BASELINES
from rsstudy.plan import PROFILES

MOBILENET, PROXYLESS = "mobilenet_v3", "proxylessnas"
TAIL = 0.025  # error rate on either side of an interval
ENOUGH = 1.0  # points of accuracy that a scale should be able to tell
RESAMPLES = 2_000
TEST_IMAGES = 10_000  # of each of the paper's datasets
EXTREME = 0.05  # the best and the worst subnets are this share of the population
SUBNET = ["bucket", "subnet", "mflops", "kernel", "expand", "depth"]  # columns that tell subnets apart


@dataclass(frozen=True)
class Part:
    """One number that a claim rests on; above 0 if it agrees with the claim."""

    label: str
    estimate: float = math.nan
    error: float = math.nan  # standard error
    degrees: int = 0  # of freedom; 0: there is no interval
    seeds: int = 0
    remaining: float = 0.0  # of the square of the error: what more seeds would leave, that of the subnets
    missing: tuple[str, ...] = ()  # what it needs and is not there

    def low(self, tail: float = TAIL) -> float:
        """Lower confidence limit with error rate `tail`."""
        return self.estimate - self._margin(tail)

    def high(self, tail: float = TAIL) -> float:
        """Upper confidence limit with error rate `tail`."""
        return self.estimate + self._margin(tail)

    def _margin(self, tail: float) -> float:
        return stats.t.isf(tail, self.degrees) * self.error if self.degrees else math.nan


def over_seeds(label: str, values: Iterable[float]) -> Part:
    """The mean of one value a seed with its standard error; what is NaN is left out."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Part(label, missing=("measurements",))
    error = stats.sem(known) if len(known) > 1 else math.nan
    return Part(label, float(known.mean()), float(error), len(known) - 1, len(known))


def table(parts: Sequence[Part]) -> pd.DataFrame:
    """One row a part: label, estimate, low, high, seeds."""
    return pd.DataFrame([(p.label, p.estimate, p.low(), p.high(), p.seeds) for p in parts],
                        columns=["what", "estimate", "low", "high", "seeds"])  # fmt: skip


def sign(part: Part, tail: float = TAIL) -> int:
    """1 or -1 where the interval lies on one side of 0, else 0."""
    return 0 if not part.degrees else int(part.low(tail) > 0) - int(part.high(tail) < 0)


def seeds_needed(part: Part, margin: float = ENOUGH, tail: float = TAIL) -> int | None:
    """How many seeds of this spread would have intervals of no more than `margin` to either side, by default a point;
    None for one seed, or if it were more than 100,000: more seeds do not lessen what varies between subnets."""
    if part.seeds < 2:
        return None
    of_a_seed, numbers = part.seeds * max(0.0, part.error**2 - part.remaining), range(2, 100_001)

    def reach(n: int) -> float:
        return stats.t.isf(tail, n - 1) * math.sqrt(of_a_seed / n + part.remaining)

    # more seeds make it narrower: the first that is narrow enough is found by halving
    place = bisect_left(numbers, True, key=lambda n: reach(n) <= margin)
    return numbers[place] if place < len(numbers) else None


# {method on the hardest dataset, (dataset, method) or, if not MobileNetV3, (dataset, method, backbone): weight}
Terms = Mapping[Any, float]
# A statistic of a population: (accuracy [..., buckets, subnets], MFLOPs of the same shape) -> [...].
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean(accuracy: np.ndarray, mflops: np.ndarray) -> np.ndarray:
    """Mean accuracy of all subnets."""
    return accuracy.mean((-2, -1))


@cache
def mean_of(first: int, end: int) -> Statistic:
    """Mean accuracy of the size buckets from index `first` up to, not including, index `end`."""
    return lambda accuracy, mflops: accuracy[..., first:end, :].mean((-2, -1))


@cache
def difference(one: Statistic, other: Statistic) -> Statistic:
    """The first statistic minus the second, of one population."""
    return lambda accuracy, mflops: one(accuracy, mflops) - other(accuracy, mflops)


def median(accuracy: np.ndarray, mflops: np.ndarray) -> np.ndarray:
    """Median accuracy of all subnets."""
    return np.median(accuracy, (-2, -1))


def best(accuracy: np.ndarray, mflops: np.ndarray) -> np.ndarray:
    """Mean accuracy of the best 5 % of all subnets (a mean, since the bootstrap fails for a single maximum)."""
    flat = accuracy.reshape(*accuracy.shape[:-2], -1)
    count = max(1, round(EXTREME * flat.shape[-1]))
    return np.partition(flat, -count)[..., -count:].mean(-1)


def extent(accuracy: np.ndarray, mflops: np.ndarray) -> np.ndarray:
    """Mean accuracy of the best 5 % of all subnets minus that of the worst 5 %."""
    return best(accuracy, mflops) + best(-accuracy, mflops)


def slope(accuracy: np.ndarray, mflops: np.ndarray) -> np.ndarray:
    """Slope of the least-squares line of accuracy on size, in points per MFLOPs."""
    x = mflops - mflops.mean((-2, -1), keepdims=True)
    return (x * accuracy).sum((-2, -1)) / (x * x).sum((-2, -1))


def log_odds(accuracy: np.ndarray, mflops: np.ndarray) -> np.ndarray:
    """Mean over all subnets of the log odds of a right answer.

    Near 100 % a point is worth more than in the middle, so that an easy dataset's ceiling does not make small what is
    gained there. 0 and 100 % count as half an image of `TEST_IMAGES` right or wrong.
    """
    share = np.clip(accuracy / 100, 0.5 / TEST_IMAGES, 1 - 0.5 / TEST_IMAGES)
    return np.log(share / (1 - share)).mean((-2, -1))


@cache
def loss_away_from(size: float) -> Statistic:
    """Points of accuracy lost per MFLOPs of distance to `size`."""
    return lambda accuracy, mflops: -slope(accuracy, np.abs(mflops - size))


def judged(profile: str, datasets: Sequence[str] | None) -> Sequence[str] | None:
    """The datasets that stand in for the paper's, None for the profile's; the claims are about the paper's own."""
    return None if profile == "paper" else datasets


class Evidence:
    """Results tables, paired by subnet and seed, and the resamples that all claims share.

    `population` and `times` are tables as from `rsstudy.tables`; either may be empty. The claims are about the
    paper's four datasets; `datasets`, by default the profile's, stand in for them, the hardest last.
    Raises InputError for an unknown profile and for runs that were not evaluated on the same subnets.
    """

    def __init__(
        self,
        population: pd.DataFrame,
        times: pd.DataFrame,
        profile: str,
        datasets: Sequence[str] | None = None,
        resamples: int = RESAMPLES,
    ):
        scale = PROFILES[choose(profile, PROFILES, "profile")]
        self.decides, self.times, self.resamples = profile == "paper", times, resamples
        self.datasets = tuple(datasets or scale.datasets)
        self.hardest = self.datasets[-1]  # that of the paper's ablations, or what stands in for it
        methods = {*population.get("method", ()), *times.get("method", ())}
        self.baselines = [b for b in BASELINES if b == "ofa" or any(method.startswith(b) for method in methods)]
        self._accuracy: dict[tuple[str, str, str], dict[int, np.ndarray]] = {}  # by run: {seed: [buckets, subnets]}
        self._mflops: dict[str, np.ndarray] = {}  # by backbone: [buckets, subnets]
        self._drawn: dict[str, np.ndarray] = {}  # by backbone: places in the flattened population, [resamples, ...]
        self._values: dict[tuple, np.ndarray] = {}
        for backbone, rows in population.groupby("backbone") if len(population) else ():
            wide = rows.pivot(index=SUBNET, columns=["dataset", "method", "seed"], values="accuracy")
            sizes = wide.groupby(level="bucket").size()
            if wide.isna().any(axis=None) or sizes.nunique() > 1:
                raise InputError(
                    f"the runs with {backbone} were not all evaluated on the same subnets, as many of each size: "
                    "evaluate them with one subnets_per_bucket"
                )
            mflops = wide.index.get_level_values("mflops").to_numpy(float).reshape(len(sizes), -1)
            self._mflops[backbone] = mflops
            self._drawn[backbone] = _draw(mflops.shape[0], mflops.shape[1], resamples, stream=len(self._drawn))
            for (dataset, method, seed), accuracy in wide.items():
                seeds = self._accuracy.setdefault((dataset, backbone, method), {})
                seeds[seed] = accuracy.to_numpy(float).reshape(len(sizes), -1)

    def contrast(
        self, label: str, terms: Terms, statistic: Statistic = mean, of_seeds: Collection[int] | None = None
    ) -> Part:
        """A statistic summed over `terms`; mean over the seeds that all of them have, of those named if any are.

        Subnets of different backbones are drawn independently.
        """
        full = {(self.hardest, term) if isinstance(term, str) else term: w for term, w in terms.items()}
        runs = {(dataset, *(other or (MOBILENET,)), method): w for (dataset, method, *other), w in full.items()}
        names = {run: f"{run[2]} on {run[0]}" + f" with {run[1]}" * (run[1] != MOBILENET) for run in runs}
        if missing := tuple(names[run] for run in runs if run not in self._accuracy):
            return Part(label, missing=missing)
        common = set.intersection(*(set(self._accuracy[run]) for run in runs))
        seeds = sorted(common if of_seeds is None else common & {*of_seeds})
        if not seeds:
            return Part(label, missing=(f"a seed common to {' and '.join(names.values())}",))
        values = np.array([sum(w * self._resampled(r, seed, statistic) for r, w in runs.items()) for seed in seeds])
        each, drawn, n = values[:, 0], values[:, 1:], len(seeds)
        of_subnets, degrees = drawn.mean(0).var(ddof=1), min(self._mflops[run[1]].shape[1] for run in runs) - 1
        between = 0.0
        if n > 1:
            both = (drawn - each[:, None]).var(0, ddof=1).mean() / n
            between, of_subnets, degrees = each.var(ddof=1) / n, max(0.0, of_subnets - both), n - 1
        # rounded, so that equal numbers differ by nothing
        estimate, error = float(each.mean().round(9)) + 0.0, float(np.sqrt(between + of_subnets).round(9))
        return Part(label, estimate, error, degrees, n, float(of_subnets))

    def lead(
        self, label: str, better: str, worse: str, statistic: Statistic = mean, dataset: str = "",
        backbone: str = MOBILENET,
    ) -> Part:  # fmt: skip
        """By how much a statistic of one method exceeds another's, on the hardest dataset if none is named."""
        dataset = dataset or self.hardest
        return self.contrast(label, {(dataset, better, backbone): 1, (dataset, worse, backbone): -1}, statistic)

    def _resampled(self, run: tuple[str, str, str], seed: int, statistic: Statistic) -> np.ndarray:
        """A statistic of one population, then of every resample of its subnets: [1 + resamples]."""
        if (run, seed, statistic) not in self._values:
            accuracy, mflops, drawn = self._accuracy[run][seed], self._mflops[run[1]], self._drawn[run[1]]
            of_each = statistic(accuracy.take(drawn), mflops.take(drawn))
            self._values[run, seed, statistic] = np.append(statistic(accuracy, mflops), of_each)
        return self._values[run, seed, statistic]


def _draw(buckets: int, n: int, resamples: int, stream: int = 0) -> np.ndarray:
    """Places in a flattened [buckets, n] array: for each resample and bucket, n - 1 of the bucket's."""
    within = np.random.default_rng(1 + stream).integers(n, size=(resamples, buckets, max(1, n - 1)))
    return within + n * np.arange(buckets)[:, None]
