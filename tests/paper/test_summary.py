"""rsstudy.summary: tables and sentences, on made-up tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest
from made_up import BUCKETS, made_up
from scipy import stats

from rsstudy import summary
from rsstudy.catalogue import METHODS
from rsstudy.claims import table as claims


def row(table: pd.DataFrame, what: str, quantity: str = "all") -> pd.Series:
    (found,) = table[(table["what"] == what) & (table["quantity"] == quantity)].itertuples()
    return found


def test_medians_spread_and_slope():
    population, _ = made_up(["digits"], medians={"ofa": (10.0, 30.0, 50.0), "rss": (50.0, 50.0, 50.0)})
    table = summary.medians(population.sample(frac=1, random_state=0))
    assert list(table["quantity"].unique()) == [
        "4 MFLOPs",
        "8 MFLOPs",
        "12 MFLOPs",
        "all",
        "spread",
        "slope",
    ]
    assert list(table["what"].unique()) == ["OFA", "RSS-Short", "RSS"] and set(table["dataset"]) == {"Digits"}
    rss = table[table["what"] == "RSS"]
    assert list(rss["estimate"][:5]) == [50, 50, 50, 50, 4] and rss["low"].isna().all() and set(rss["seeds"]) == {1}
    expected = np.polyfit(*population.query("method == 'rss'")[["mflops", "accuracy"]].to_numpy().T, 1)[0]
    assert row(table, "RSS", "slope").estimate == pytest.approx(expected)


def test_differences_have_welchs_interval_over_all_seeds_of_each_method():
    population, _ = made_up(seeds=(0, 1))
    more, _ = made_up(methods=["rss"], seeds=(2, 7))
    table = summary.differences(pd.concat([population, more]).sample(frac=1, random_state=0))
    interval = stats.ttest_ind([51, 52, 53, 58], [45, 46], equal_var=False).confidence_interval()
    found = row(table, "RSS minus OFA", "8 MFLOPs")
    assert (found.estimate, found.seeds) == (53.5 - 45.5, 2)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    sizes = [row(table, "RSS minus OFA", f"{b:g} MFLOPs").estimate for b in BUCKETS]
    assert sizes == [12, 8, 4] and row(table, "RSS minus OFA").estimate == 8
    one = population[~((population["method"] == "ofa") & (population["seed"] == 1))]
    whole = row(summary.differences(one), "RSS minus OFA")
    assert (whole.estimate, whole.seeds) == (6.5, 1) and np.isnan(whole.low)


@pytest.mark.parametrize("method, expected", [
    ("ofa", ()), ("ofa-released", ("ofa",)), ("rss", ("ofa", "ofa-released")), ("rss-short", ("ofa", "ofa-released")),
    ("rss-per-batch", ("rss",)), ("rss-short-per-batch", ("rss-short",)), ("ofa-lr-0.02", ("ofa",)),
    ("ofa-released-lr-0.02", ("ofa-released",)), ("growing", ("ofa", "ofa-released")),
])  # fmt: skip
def test_what_is_compared_with_what(method, expected):
    assert tuple(summary.baselines(method)) == expected
    assert method in METHODS or method == "growing"


def test_readable_tables():
    population, _ = made_up(["mnist", "cifar100"], methods=["rss", "ofa"], seeds=(0, 1))
    table = summary.readable(summary.medians(population))
    assert list(table.index) == [(d, m, 2) for d in ("MNIST", "CIFAR-100") for m in ("OFA", "RSS")]
    assert table.loc[("MNIST", "RSS", 2), "4 MFLOPs"] == "50.50 ± 6.35"
    one = summary.readable(summary.differences(population[population["seed"] == 0]))
    assert list(one.loc[("CIFAR-100", "RSS minus OFA", 1)]) == [
        "10.00",
        "6.00",
        "2.00",
        "6.00",
    ]


def test_nothing_to_compare():
    population, times = made_up(methods=["rss"])
    assert summary.differences(population).empty and summary.readable(summary.differences(population)).empty
    assert summary.findings(population, times).empty


def test_medians_stand_beside_the_published_ones():
    table = summary.against_published(made_up(["mnist", "cifar100"])[0])
    found = table[(table["what"] == "RSS") & (table["quantity"] == "4 MFLOPs")].iloc[0]
    assert (found["ours"], found["published"]) == (50, 51.8) and found["difference"] == pytest.approx(-1.8)
    assert len(table) == 3 * len(BUCKETS)


def test_findings_are_differences_in_points_and_speed_ups():
    found = summary.findings(*made_up()).set_index("what")
    assert found["estimate"].to_dict() == pytest.approx(
        {
            "RSS-Short minus OFA": 5 / 3,
            "RSS minus OFA": 6,
            "RSS-Short: times as fast as OFA": 6,
            "RSS: times as fast as OFA": 2,
        }
    )
    assert found[["low", "high"]].isna().all(axis=None) and set(found["seeds"]) == {1}


def test_a_speed_up_is_a_ratio_of_geometric_means_with_welchs_interval():
    population, times = made_up(seeds=(0, 1, 5))
    found = summary.speed_ups(times.sample(frac=1, random_state=0)).set_index("method").loc["rss"]
    ofa, rss = np.log([600, 610, 650]), np.log([300, 310, 350])
    interval = np.exp(stats.ttest_ind(ofa, rss, equal_var=False).confidence_interval(0.95))
    assert (found["low"], found["high"]) == pytest.approx(tuple(interval)) and found["seeds"] == 3
    assert found["speed_up"] == pytest.approx(np.exp(ofa.mean() - rss.mean()))
    claim = next(c for c in claims.decide(population[:0], times, "smoke", ["cifar100"]) if c.statement.number == "6a")
    assert claim.numbers[1:] == pytest.approx(tuple(interval))  # by one rule
    one = times[(times["method"] != "rss") | (times["seed"] == 1)]
    found = summary.speed_ups(one).set_index("method").loc["rss"]
    assert (
        found["speed_up"] == pytest.approx(np.exp(ofa.mean()) / 310) and np.isnan(found["low"]) and found["seeds"] == 1
    )


def test_a_speed_up_is_that_of_the_machine_with_most_seeds_of_both():
    _, times = made_up(seeds=(0, 1, 5))
    apart = times.assign(hardware=times["seed"].map({0: "Abacus", 1: "Quipu", 5: "Quipu"}))
    found = summary.speed_ups(apart).set_index("method").loc["rss"]
    assert found["speed_up"] == pytest.approx(stats.gmean([610, 650]) / stats.gmean([310, 350])) and found["seeds"] == 2
    nowhere = times.assign(hardware=times["method"])
    assert np.isnan(summary.speed_ups(nowhere).set_index("method").loc["rss", "speed_up"])
