"""What claims rest on: statistics against NumPy, intervals against SciPy and against the truth of made-up worlds."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from rsstudy.claims import evidence as e
from rsstudy.claims.statements import STATEMENTS
from rsstudy.claims.verdicts import judge

ABOVE = STATEMENTS[0]


def verdict(*parts: e.Part) -> str:
    return judge(ABOVE, parts, decides=True).verdict


def difference(a, b) -> e.Part:
    return e.combine("a minus b", [(1, a), (-1, b)])


# --- intervals --------------------------------------------------------------------------------------------------------


def test_one_method_has_students_interval():
    values = [3.0, 5.0, 10.0]
    part = e.over_seeds("x", [*values, math.nan])
    assert (part.low(), part.high()) == pytest.approx(stats.t.interval(0.95, 2, 6, stats.sem(values)))
    assert part.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue) and part.seeds == 3


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (5, 3)])
def test_two_methods_have_welchs_interval(sizes):
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, sizes[0]), rng.normal(0, 4, sizes[1])
    part, known = difference(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = known.confidence_interval(0.95)
    assert (part.low(), part.high()) == pytest.approx((interval.low, interval.high))
    assert (part.p, part.seeds) == (pytest.approx(known.pvalue), min(sizes))
    assert part.one_sided == pytest.approx(stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue)


def test_weights_count_in_sums_of_several_methods():
    rng = np.random.default_rng(1)
    a, b, c = rng.normal(0, 1, (3, 4))
    part = e.combine("x", [(2, a), (-1, b), (-1, c)])
    variances = np.array([4 * a.var(ddof=1), b.var(ddof=1), c.var(ddof=1)]) / 4
    assert part.estimate == pytest.approx(2 * a.mean() - b.mean() - c.mean())
    assert part.error == pytest.approx(math.sqrt(variances.sum()))
    assert part.degrees == pytest.approx(variances.sum() ** 2 / (variances**2 / 3).sum())


def test_equal_numbers_differ_by_nothing_and_a_difference_without_spread_is_decided():
    same = difference([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    assert (same.estimate, same.decided, same.one_sided) == (0, False, 0.5)
    clear = difference([2.0, 2.0], [1.0, 1.0])
    assert (clear.low(), clear.high(), clear.p) == (1, 1, 0)


@pytest.mark.parametrize("values", [([1.0], [0.0]), ([1.0], [0.0, 0.1, 0.2]), ([1.0, 1.1, 1.2], [0.0])])
def test_one_seed_has_a_value_and_nothing_else(values):
    part = difference(*values)
    assert part.seeds == 1 and not part.decided
    assert np.isnan([part.low(), part.high(), part.margin, part.p]).all()


WORLDS = 1_000
MISSED = 3 * (0.05 * 0.95 / WORLDS) ** 0.5


@pytest.mark.parametrize(
    "seeds, sds",
    [((5, 5), (1, 1)), ((5, 3), (1, 1)), ((3, 3), (1, 1)), ((5, 3), (1, 2))],
)
def test_intervals_cover_the_truth(seeds, sds):
    """Over subnets that the methods share, with an effect of each subnet, and seeds of each method."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(WORLDS):
        subnets = rng.normal(0, 2, 30)
        a, b = (
            (subnets + rng.normal(0, sd, (n, 1)) + rng.normal(0, 0.3, (n, 30))).mean(1)
            for n, sd in zip(seeds, sds, strict=True)
        )
        part = difference(a + 1, b)
        covered += part.low() <= 1 <= part.high()
    assert 0.95 - MISSED - 0.015 < covered / WORLDS < 0.99


@pytest.mark.parametrize(("lead", "least", "most"), [(0, 0.02, 0.08), (4.5, 0.8, 1)])
def test_verdicts_of_equal_methods_are_rare_and_of_a_lead_of_three_standard_deviations_frequent(lead, least, most):
    rng, decided = np.random.default_rng(1), 0
    for _ in range(200):
        a, b = (rng.normal(70, 1.5, rng.integers(3, 6)) for _ in range(2))
        decided += verdict(difference(a + lead, b)) != "not decided"
    assert least <= decided / 200 <= most


@pytest.mark.parametrize("seeds", [(1,), (1, 5)])
def test_one_seed_gives_no_verdict_however_large_the_lead(seeds):
    rng = np.random.default_rng(0)
    a = [rng.normal(100, 1.5, 1) for _ in range(200)]
    assert {verdict(difference(x, rng.normal(0, 1.5, rng.choice(seeds)))) for x in a} == {"not decided"}


# --- ratios -----------------------------------------------------------------------------------------------------------


def test_a_ratio_has_fiellers_interval():
    """Of one group of pairs the interval is the set of r at which Student's test of n - r d does not reject."""
    rng = np.random.default_rng(2)
    d = rng.normal(5, 1, 6)
    n = 0.4 * d + rng.normal(0, 0.5, 6)
    part = e.ratio("x", e.over_seeds("", d), lambda r: e.over_seeds("", n - r * d))
    assert part.estimate == pytest.approx(n.mean() / d.mean())
    for limit, inside in ((part.low(), 1e-3), (part.high(), -1e-3)):
        assert stats.ttest_1samp(n - limit * d, 0).pvalue == pytest.approx(0.05, abs=1e-4)
        assert stats.ttest_1samp(n - (limit + inside) * d, 0).pvalue > 0.05
    assert part.low() < part.estimate < part.high()


def test_fiellers_interval_covers_the_ratio():
    rng, covered = np.random.default_rng(5), []
    for _ in range(400):
        a, b, base = rng.normal(4, 1, 5), rng.normal(10, 1, 5), rng.normal(0, 1, 5)
        whole = e.combine("", [(1, b), (-1, base)])
        part = e.ratio("", whole, lambda r: e.combine("", [(1, a), (-r, b), (r - 1, base)]))  # noqa: B023
        covered.append(part.low() <= 0.4 <= part.high())
    assert 0.91 < np.mean(covered) < 0.99


def test_a_ratio_whose_denominator_may_be_0_is_missing():
    part = e.ratio(
        "x",
        e.over_seeds("", [-1.0, 0.5, 1.0]),
        lambda r: e.over_seeds("", [1.0, 2.0]),
    )
    assert not part.seeds and part.missing


# --- families ---------------------------------------------------------------------------------------------------------


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    assert e.holm([0.04, 0.01, math.nan, 0.03, 0.5]) == pytest.approx([0.09, 0.04, math.nan, 0.09, 0.5], nan_ok=True)
    assert e.holm([0.6, 0.9]) == [1, 1] and e.holm([]) == []


@pytest.mark.parametrize("sd", [1.0, 5.0])
def test_seeds_needed_have_about_an_interval_of_a_point(sd):
    z = stats.norm.ppf((np.arange(5) + 0.5) / 5)
    a, b = sd * z / z.std(ddof=1), -sd * z / z.std(ddof=1)
    (row,) = e.comparisons([difference(a, b)]).itertuples()
    n = row[-1]
    width = stats.t.ppf(0.975, 2 * (n - 1)) * sd * math.sqrt(2 / n)
    assert 0.75 < width <= 1.001
    (clear,) = e.comparisons([difference(a + 99, b)]).itertuples()
    assert math.isnan(clear[-1])


def test_means_over_seeds_leave_out_what_rests_on_a_number_that_may_not_be_above_0():
    values = pd.DataFrame({"method": 6 * ["x"], "share": 3 * [0.5] + 3 * [0.9], "seed": 2 * [0, 1, 2]})
    values = values.assign(a=[1.0, 1.1, 1.2, 1.0, 1.1, -0.1], b=2.0)
    found = e.summarise(values, ["method", "share"], {"b": "a"}).set_index(["share", "what"])["estimate"]
    assert found.to_dict() == pytest.approx({(0.5, "a"): 1.1, (0.5, "b"): 2.0, (0.9, "a"): 2 / 3})


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_match_numpy():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(4, 14, 60)), rng.normal(50, 5, 60)
    rows = pd.DataFrame(
        {
            "bucket": np.repeat([4.0, 6, 8, 10, 12, 14], 10),
            "mflops": x,
            "accuracy": y,
        }
    )
    for statistic, expected in {
        e.mean: y.mean(),
        e.median: np.median(y),
        e.at(e.mean, 8): y[20:30].mean(),
        e.at(e.median, 8, 10): np.median(y[20:40]),
        e.difference(e.at(e.mean, 4, 6), e.median): y[:20].mean() - np.median(y),
        e.best: np.sort(y)[-3:].mean(),
        e.extent: np.sort(y)[-3:].mean() - np.sort(y)[:3].mean(),
        e.slope: np.polyfit(x, y, 1)[0],
        e.log_odds: special.logit(y / 100).mean(),
        e.loss_away_from(7.0): -np.polyfit(abs(x - 7), y, 1)[0],
    }.items():
        assert statistic(rows) == pytest.approx(expected)


def test_log_odds_of_all_and_of_none_are_those_of_half_an_image():
    ends = [e.log_odds(pd.DataFrame({"accuracy": [value]})) for value in (100.0, 0.0)]
    assert ends == pytest.approx([special.logit(1 - 0.5 / 10_000), special.logit(0.5 / 10_000)])


def test_a_ratio_whose_numerator_has_one_seed_has_a_value_and_no_interval():
    whole = e.combine("", [(1, [10.0, 11.0, 9.0])])
    found = e.ratio("share", whole, lambda r: e.combine("", [(1, [5.0]), (-r, [10.0, 11.0, 9.0])]))
    assert found.estimate == pytest.approx(0.5) and found.seeds == 1
    assert math.isnan(found.low()) and math.isnan(found.high()) and math.isnan(found.p)
