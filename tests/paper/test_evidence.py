"""What claims rest on: statistics against NumPy, errors against theory, intervals against the truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from rsstudy.claims import evidence as e
from rsstudy.claims import statements, verdicts

NOTHING = pd.DataFrame()
KEY = ("cifar100", "mobilenet_v3", "rss")


def evidence(values: np.ndarray, resamples: int = 400) -> e.Evidence:
    """Evidence whose RSS on CIFAR-100 has accuracies `values` [seeds, buckets, subnets]."""
    seeds, buckets, n = values.shape
    result = e.Evidence(NOTHING, NOTHING, "paper", resamples=resamples)
    result._accuracy[KEY] = dict(zip(range(seeds), values, strict=True))
    result._mflops["mobilenet_v3"] = np.arange(buckets)[:, None] + np.linspace(0, 0.5, n)
    result._drawn["mobilenet_v3"] = e._draw(buckets, n, resamples)
    return result


def part(values: np.ndarray, statistic=e.mean, resamples: int = 400) -> e.Part:
    return evidence(values, resamples).contrast("", {("cifar100", "rss"): 1}, statistic)


REPEATS, ENOUGH = 400, 0.925  # 95 % less what so many repetitions may miss by


@pytest.mark.parametrize("seeds, sd_seed, sd_subnet", [(2, 1.0, 0.5), (3, 1.0, 1.0), (5, 1.0, 0.3), (5, 0.1, 2.0)])
def test_intervals_cover_the_truth(seeds, sd_seed, sd_subnet):
    rng, shape = np.random.default_rng(3), (seeds, 1, 20)
    parts = [
        part(rng.normal(0, sd_seed, (seeds, 1, 1)) + rng.normal(0, sd_subnet, 20) + rng.normal(0, 0.3, shape))
        for _ in range(REPEATS)
    ]
    assert np.mean([part.low() <= 0 <= part.high() for part in parts]) > ENOUGH


def test_the_interval_of_the_smallest_covers_it():
    rng, covered = np.random.default_rng(4), []
    for _ in range(REPEATS):
        truth = rng.normal(0, 0.05, 6)
        values = truth[:, None] + rng.normal(0, 0.2, (4, 1, 1)) + rng.normal(0, 0.3, (4, 6, 10))
        made = evidence(values, resamples=200)
        parts = [made.contrast("", {("cifar100", "rss"): 1}, e.mean_of(i, i + 1)) for i in range(6)]
        _, (_, low, high), _ = verdicts.all_above_zero(statements.STATEMENTS[0], parts)
        covered.append(low <= truth.min() <= high)
    assert np.mean(covered) > ENOUGH


def test_errors_match_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (1, 1, 400))
    assert part(values, resamples=4000).error == pytest.approx(values.std(ddof=1) / 20, rel=0.05)
    values = np.repeat(rng.normal(0, 1, (6, 1, 1)), 10, axis=2)  # subnets do not differ: what is left is the t interval
    made = part(values, resamples=4000)
    low, high = stats.t.interval(0.95, 5, values[:, 0, 0].mean(), stats.sem(values[:, 0, 0]))
    assert (made.low(), made.high()) == pytest.approx((low, high), rel=0.05)


@pytest.mark.parametrize("sd_seed, sd_subnet, sd_both", [(0, 0, 2), (1, 0, 2), (0, 1, 2), (1, 1, 1), (0.2, 2, 0)])
def test_the_error_over_seeds_is_that_of_crossed_factors(sd_seed, sd_subnet, sd_both):
    """Known variances of seeds, subnets and what is left; what is 0 is at most counted a little, never left out."""
    rng, seeds, n = np.random.default_rng(6), 4, 25
    errors = [
        part(
            rng.normal(0, 1, (seeds, 1, 1)) * sd_seed + rng.normal(0, 1, n) * sd_subnet
            + rng.normal(0, 1, (seeds, 1, n)) * sd_both
        ).error
        for _ in range(200)
    ]  # fmt: skip
    truth = sd_seed**2 / seeds + sd_subnet**2 / n + sd_both**2 / (seeds * n)
    assert 0.93 * truth < np.square(errors).mean() < 1.25 * truth


def test_statistics_match_numpy():
    rng = np.random.default_rng(0)
    values, mflops = rng.normal(50, 5, (2, 6, 10)), np.sort(rng.uniform(4, 14, 60)).reshape(6, 10)
    for statistic, expected in {
        e.mean: np.mean,
        e.mean_of(2, 3): lambda x: x[2].mean(),
        e.mean_of(2, 5): lambda x: x[2:5].mean(),
        e.difference(e.mean_of(0, 2), e.median): lambda x: x[:2].mean() - np.median(x),
        e.median: np.median,
        e.best: lambda x: np.sort(x.ravel())[-3:].mean(),
        e.extent: lambda x: np.sort(x.ravel())[-3:].mean() - np.sort(x.ravel())[:3].mean(),
        e.slope: lambda x: np.polyfit(mflops.ravel(), x.ravel(), 1)[0],
        e.log_odds: lambda x: np.mean(special.logit(x / 100)),
        e.loss_away_from(7.0): lambda x: -np.polyfit(abs(mflops.ravel() - 7), x.ravel(), 1)[0],
    }.items():
        sizes = np.broadcast_to(mflops, values.shape)
        assert statistic(values, sizes) == pytest.approx([expected(x) for x in values])
        assert statistic(values[0], mflops) == pytest.approx(expected(values[0]))


def test_log_odds_of_all_and_of_none_are_those_of_half_an_image():
    ends = e.log_odds(np.array([[[100.0]], [[0.0]]]), np.ones((2, 1, 1)))
    assert ends == pytest.approx([special.logit(1 - 0.5 / 10_000), special.logit(0.5 / 10_000)])
