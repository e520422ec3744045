"""Verdicts on the paper's claims, from made-up tables whose right verdicts are known."""

import json
import math
import os
from functools import partial
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import sentence
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy import stats

from rsslib import files
from rsslib.errors import InputError
from rsstudy import summary
from rsstudy.catalogue import CONTROLS, METHODS, OVERRIDES, TABLE_1, build
from rsstudy.claims import statements
from rsstudy.claims import table as c
from rsstudy.claims.evidence import TAIL, Part
from rsstudy.claims.verdicts import judge
from rsstudy.figures import populations
from rsstudy.store import configuration, write_record

FOLDER = Path(__file__).resolve().parents[2]
DATASETS = list(TABLE_1)
BUCKETS = {"mobilenet_v3": (4, 6, 8, 10, 12, 14), "proxylessnas": (4, 6, 8, 10, 12)}
NOTHING = pd.DataFrame()
decide = partial(c.decide, profile="paper", resamples=300)


# --- a made-up study --------------------------------------------------------------------------------------------------


def truth(dataset: str, method: str, mflops: np.ndarray) -> np.ndarray:
    """Accuracies of a world in which every claim of the paper holds."""
    large = mflops - 9
    rss, lead = 60 + 0.2 * large, 1 + 2 * DATASETS.index(dataset) if dataset in DATASETS else 2
    base = next(b for b in ("ofa-released", "ofa", "rss-short", "rss") if method.startswith(b))
    start = {"rss": rss, "rss-short": rss - 0.5 + 0.03 * large}
    start |= {"ofa": 59 - lead + 0.4 * large, "ofa-released": 58 - lead + 0.5 * large}
    change, short = method.removeprefix(base), base == "rss-short"
    own = {"-smallest": 4.05, "-middle": 7.2, "-largest": 15.3}
    if change in own:
        return 50 - 2 * np.abs(mflops - own[change])
    lower = {"": 0, "-per-batch": 2, "-2-per-batch": 5, "-alternating": 3, "-min-then-max": 6, "-max-then-min": 9}
    skew = {"-min-then-max": 0.5, "-max-then-min": -0.7}.get(change, 0) * (2 if short else 1)
    lag = 3 * (np.abs(large) < 2) * (change == "-alternating" and short)
    even = 0.23 * large * (change == "-alternating" and short)
    dropout = 1 * (change == "-dropout-0.3" and base.startswith("ofa"))
    return start[base] - lower.get(change, 1.5) + skew * large - lag - even - dropout


def population(
    methods=METHODS, datasets=DATASETS, seeds=(0, 1, 2), backbone="mobilenet_v3", n=12, shift=None, noise=0.05, rng=0
) -> pd.DataFrame:
    """A results table: truth, an effect of each subnet and seed, noise, and `shift` (dataset, method, bucket)."""
    rng = np.random.default_rng(rng)
    subnets = pd.DataFrame([(float(b), i) for b in BUCKETS[backbone] for i in range(n)], columns=["bucket", "subnet"])
    subnets["mflops"] = subnets["bucket"] + rng.uniform(-0.5, 0.5, len(subnets))
    for setting in ("kernel", "expand", "depth"):
        subnets[setting] = [f"3-{i}" for i in range(len(subnets))]
    effect = rng.normal(0, 0.5, len(subnets))
    tables = []
    for dataset in datasets:
        for method in methods:
            mean = truth(dataset, method, subnets["mflops"].to_numpy()) + effect - 3 * (backbone == "proxylessnas")
            for seed in seeds:
                accuracy = mean + rng.normal(0, noise) + rng.normal(0, noise, len(subnets))
                if shift:
                    accuracy = accuracy + shift(dataset, method, subnets["bucket"].to_numpy())
                names = {"dataset": dataset, "backbone": backbone, "method": method, "seed": seed}
                tables.append(subnets.assign(accuracy=accuracy, **names))
    return pd.concat(tables, ignore_index=True)


def times(methods=("ofa", "rss", "rss-short"), datasets=DATASETS, seeds=(0, 1, 2), ratios=(1.9, 6.1), **names):
    """Training times with these ratios to OFA's, a little different for each seed."""
    seconds = {"ofa": 1900.0, "ofa-released": 1880.0, "rss": 1900 / ratios[0], "rss-short": 1900 / ratios[1]}
    fixed = {"backbone": "mobilenet_v3", "evaluation_seconds": 60.0, "hardware": "H200", "executor": "graphs"} | names
    rows = [
        {"dataset": d, "method": m, "seed": s, "training_seconds": seconds[m] * (1 + (s + len(m)) % 3 / 100), **fixed}
        for d in datasets for m in methods for s in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


ABLATIONS = [m for m in METHODS if m not in ("ofa", "ofa-released", "rss", "rss-short")]
MAIN = ["ofa", "rss", "rss-short"]


def whole_study(released=False, seeds=(0, 1, 2), shift=None, n=8, noise=0.05) -> pd.DataFrame:
    """Everything the paper ran: main methods on four datasets, ablations on CIFAR-100, ProxylessNAS."""
    main = [*MAIN, "ofa-released"] if released else MAIN
    more = [m for m in ABLATIONS if released or not m.startswith("ofa-released")]
    options = {"seeds": seeds, "shift": shift, "n": n, "noise": noise}
    tables = [population(main, **options), population(more, ["cifar100"], **options)]  # the same subnets: one rng
    tables.append(population(main, ["cifar100"], backbone="proxylessnas", **options))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def study():
    return whole_study()


def verdicts_of(claims) -> set[str]:
    return {claim.verdict for claim in claims}


def one(claims, number, baseline=None) -> c.Claim:
    (claim,) = [k for k in claims if k.statement.number == number and baseline in (None, k.baseline)]
    return claim


NUMBERS = ["1", "1s", "2", "3", "3s", "4", "5", "6a", "6b", "7a", "7b", "8a", "8b", "9", "10", "11"]
NUMBERS += ["12a", "12b", "12c", "13", "14", "15a", "15b", "16", "17", "18", "19", "20", "21"]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_every_claim_is_reproduced_where_all_hold(study):
    claims = decide(study, times())
    assert [claim.statement.number for claim in claims] == NUMBERS
    assert verdicts_of(claims) == {"reproduced"}, [k for k in claims if k.verdict != "reproduced"]
    for claim in claims:
        assert claim.low <= claim.estimate <= claim.high
        assert "; 3 seeds" in claim.reason


def worse(method, points):
    return lambda dataset, m, bucket: -points * (m == method)


LOSSES = {
    "1": worse("rss", 20),
    "1s": lambda d, m, b: -20.0 * ((d == "cifar10") & (m == "rss") & (b == 14)),  # at one size of one dataset
    "2": worse("rss-short", 20),
    "3": lambda d, m, b: 4.0 * DATASETS.index(d) * (m == "ofa"),
    "3s": lambda d, m, b: 4.0 * DATASETS.index(d) * (m == "ofa"),
    "4": lambda d, m, b: 3.0 * (b - 9) * (m in ("rss", "rss-short")),
    "5": lambda d, m, b: -2.0 * (b - 9) * (m == "ofa"),
    "7a": worse("rss", 20),
    "7b": worse("rss-short", 20),
    "8a": lambda d, m, b: -4.0 * (b - 9) * (m == "rss-largest"),
    "8b": lambda d, m, b: 4.0 * (b - 9) * (m == "rss-short-smallest"),
    "9": worse("rss-alternating", 20),
    "10": lambda d, m, b: 4.0 * (m == "rss-short-dropout-0.3"),
    "11": worse("rss-short", 20),
    "12a": lambda d, m, b: 3.0 * (b - 9) * (m == "rss-max-then-min"),
    "12b": lambda d, m, b: -3.0 * (b - 9) * (m == "rss-short-min-then-max"),
    "12c": lambda d, m, b: 3.0 * (b - 9) * (m == "rss-min-then-max"),
    "13": worse("rss-min-then-max", 40),
    "14": lambda d, m, b: -9.0 * np.isin(b, (8, 10)) * (m == "rss-alternating"),
    "15a": lambda d, m, b: 4.0 * (m == "rss-short-lr-0.02"),
    "15b": worse("rss-short-dropout-0.3", 4),
    "17": worse("rss-short", 20),
    "18": worse("rss-per-batch", 20),
    "19": worse("rss", 20),
    "20": lambda d, m, b: -9.0 * np.isin(b, (8, 10)) * (m == "rss-alternating"),
    "21": lambda d, m, b: 1.0 * (b - 9) * (m == "rss-short-alternating"),
}


@pytest.mark.parametrize("number", LOSSES)
def test_a_claim_that_is_false_is_not_reproduced(number):
    claim = one(decide(whole_study(shift=LOSSES[number]), times()), number)
    assert claim.verdict == "not reproduced"
    assert claim.high < 0


def test_proxylessnas_is_held_against_mobilenet_at_common_sizes():
    study = whole_study()
    claim = one(decide(study, times()), "16")
    rows = study[(study["dataset"] == "cifar100") & (study["bucket"] <= 12)]
    means = rows.groupby(["method", "backbone"])["accuracy"].mean().unstack()
    ours = (means["mobilenet_v3"] - means["proxylessnas"])[["ofa", "rss-short", "rss"]]
    assert [part.estimate for part in claim.parts] == pytest.approx(list(ours))
    mobile = study["backbone"] == "mobilenet_v3"
    study.loc[mobile, "accuracy"] -= 20 * (study["bucket"][mobile] <= 12)
    assert one(decide(study, times()), "16").verdict == "not reproduced"
    study.loc[mobile & (study["bucket"] == 14), "accuracy"] += 500  # a size that ProxylessNAS does not have
    assert one(decide(study, times()), "16").verdict == "not reproduced"
    claim = one(decide(study[mobile], times()), "16")
    assert claim.verdict == "not run" and "rss on cifar100 with proxylessnas" in claim.reason


def test_one_false_part_refutes_a_conjunction_and_secondary_ones_decide_nothing():
    claims = decide(whole_study(shift=LOSSES["1s"]), times())
    sizes = one(claims, "1s")
    assert sizes.verdict == "not reproduced" and sizes.statement.role == "secondary"
    assert "CIFAR-10 at 14 MFLOPs" in sizes.reason and "23 of 24" in sizes.reason
    whole = one(claims, "1")
    assert whole.verdict == "reproduced" and len(whole.parts) == 4  # RSS still leads on average


def test_a_lead_that_a_ceiling_makes_small_grows_in_points_alone():
    table = population(MAIN, noise=0.001)
    odds = {"mnist": 3.9, "fashion_mnist": 2.2, "cifar10": 1.5, "cifar100": 0.0}  # of OFA; RSS's are 0.5 more on all
    logits = table["dataset"].map(odds) + 0.5 * (table["method"] == "rss") + 0.001 * table["accuracy"]
    claims = decide(table.assign(accuracy=100 / (1 + np.exp(-logits))), times())
    assert one(claims, "3").verdict == "reproduced"
    assert abs(one(claims, "3s").estimate) < 0.02 and len(one(claims, "3s").parts) == 3


# --- similar: within a margin -----------------------------------------------------------------------------------------

ALIKE = {  # by claim: what moves its difference by b points, and from where, in the world where all claims hold
    "17": (lambda b: worse("rss-short", b), 0.5, (0, statements.largest_drop())),
    "20": (lambda b: lambda d, m, size: b * np.isin(size, (8, 10)) * (m == "rss-alternating"), 0, (-1.2, 1.2)),
    "21": (lambda b: lambda d, m, size: b * (size > 11) * (m == "rss-short-alternating"), 0, (-2, 2)),
}


@pytest.mark.parametrize("number", ALIKE)
def test_similar_means_within_the_margin_on_both_sides(number):
    moved, start, (low, high) = ALIKE[number]
    for value, verdict in {low - 1.5: "not reproduced", low + 0.6: "reproduced", high - 0.6: "reproduced",
                           high + 1.5: "not reproduced"}.items():  # fmt: skip
        methods = ("rss", "rss-short", "rss-alternating", "rss-short-alternating")
        table = population(methods, ["cifar100"], shift=moved(value - start), noise=0.02, n=100)
        assert one(decide(table, times()), number).verdict == verdict, value


@pytest.mark.parametrize("number", ALIKE)
def test_no_difference_found_is_not_similar(number):
    claim = one(decide(whole_study(noise=3.0, seeds=(0, 1)), times()), number)
    assert claim.verdict == "inconclusive" and claim.low < 0 < claim.high


def test_margins_are_what_the_paper_shows():
    told = summary.published()
    rows = told[told["quantity"] == "median"].pivot(index="mflops", columns="method", values="value")
    assert statements.largest_drop() == pytest.approx(1.2 * (rows["rss"] - rows["rss-short"]).mean())
    assert 0 < statements.ON_PAR < rows["rss"].max() - rows["rss"].min()
    s, ps = TABLE_1["cifar100"]
    short, ofa = (build(method, s, ps).epochs for method in ("rss-short", "ofa"))
    for number in ("6b", "17"):
        (statement,) = [k for k in statements.STATEMENTS if k.number == number]
        assert f"is {100 * short / ofa:.0f} % of them" in statement.note


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_tie_is_inconclusive(seeds):
    table = population(["rss"], seeds=seeds)
    same = [table.assign(method=method) for method in (*MAIN, "rss-per-batch", "rss-2-per-batch")]
    claims = decide(pd.concat(same, ignore_index=True), times(seeds=seeds))
    for number in ("1", "1s", "2", "3", "3s", "4", "7a", "18"):
        claim = one(claims, number)
        assert (claim.kind, claim.estimate) == ("inconclusive", 0)


def test_one_seed_is_said_so():
    claims = decide(whole_study(seeds=(0,)), times(seeds=(0,)))
    assert verdicts_of(claims) == {"reproduced (one seed)"}
    assert all("one seed" in claim.reason for claim in claims)
    speed = one(claims, "6a")
    assert math.isnan(speed.low) and math.isnan(speed.high) and speed.estimate == pytest.approx(1.9, rel=0.02)


def test_many_subnets_do_not_stand_in_for_seeds():
    rng = np.random.default_rng(0)
    table = population(MAIN, seeds=(0, 1, 2), n=100)
    offsets = {"ofa": (0, 0, 0), "rss-short": (1.5, -1.0, 0.4), "rss": (0, 0, 0)}
    table["accuracy"] = [50 + offsets[m][s] for m, s in zip(table["method"], table["seed"], strict=True)]
    table["accuracy"] += rng.normal(0, 0.1, len(table))
    assert one(decide(table, times()), "2").verdict == "inconclusive"
    first = table[table["seed"] == 0]
    assert one(decide(first, times()), "2").verdict == "reproduced (one seed)"


def test_only_common_seeds_are_compared(study):
    fewer = study[(study["method"] != "rss-per-batch") | (study["seed"] == 1)]
    claims = decide(fewer, times())
    assert one(claims, "7a").verdict == "reproduced (one seed)" and one(claims, "9").verdict == "reproduced"
    none = fewer[(fewer["method"] != "rss-2-per-batch") | (fewer["seed"] == 2)]
    claim = one(decide(none, times()), "7a")
    assert claim.verdict == "not run" and "seed common to" in claim.reason


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_another_scale_decides_nothing(study, profile):
    claims = decide(study, times(), profile=profile, datasets=DATASETS)
    assert verdicts_of(claims) == {"scale decides nothing"}


def test_missing_runs_are_named_not_raised():
    for empty in (NOTHING, population(MAIN, ["mnist"])[:0]):
        claims = decide(empty, NOTHING)
        assert verdicts_of(claims) == {"not run"} and len(claims) == len(NUMBERS)
        assert all(math.isnan(claim.estimate) for claim in claims)
    assert "rss on mnist" in one(claims, "1").reason and "ofa on cifar100" in one(claims, "1").reason
    assert "rss-short on cifar100 with proxylessnas" in one(claims, "11").reason
    assert "rss-alternating on cifar100" in one(claims, "9").reason
    assert c.figure_claims(claims)


def test_some_datasets_support_but_do_not_decide():
    claims = decide(population(MAIN, ["mnist", "cifar100"]), times(datasets=["cifar100"]))
    for number in ("1", "2", "3", "4", "5", "6a"):
        claim = one(claims, number)
        assert claim.verdict == "not run" and "fashion_mnist" in claim.reason
    assert one(claims, "1").estimate > 0 and one(claims, "6a").estimate == pytest.approx(1.9, rel=0.02)
    assert one(claims, "17").verdict == "reproduced"


def test_every_part_of_a_claim_has_a_verdict_whether_or_not_all_were_run():
    def shift(dataset, method, bucket):
        return 9.0 * (method == "ofa") * (dataset == "fashion_mnist")  # where the truth has RSS 4 points above

    there = ["mnist", "fashion_mnist"]
    clocks = pd.concat([times(datasets=["mnist"], ratios=(1.9, 6.1)), times(datasets=["cifar10"], ratios=(0.8, 6.1))])
    claims = decide(population(MAIN, there, shift=shift), clocks)
    assert one(claims, "6a").verdict == "not run" and one(claims, "6a").estimate == pytest.approx(1.52**0.5, rel=0.02)
    parts = c.components(claims).set_index(["claim", "part"]).loc[["1", "6a"]]
    expected = ["reproduced", "not reproduced", "not run", "not run"]  # of the datasets in the paper's order
    assert list(parts.loc["1", "verdict"]) == expected
    assert parts.loc["1", "estimate"].round().tolist()[:2] == [2, 4 - 9]
    assert list(parts.loc["6a", "verdict"]) == ["not run", "reproduced", "not run", "not reproduced", "not run"]
    ratios = parts.loc["6a", "estimate"].iloc[[1, 3]]
    assert list(ratios.index) == ["MNIST", "CIFAR-10"] and list(ratios) == pytest.approx([1.9, 0.8], rel=0.02)
    single = c.components(decide(population(MAIN, there, seeds=(0,)), times(datasets=there, seeds=(0,))))
    single = single[single["claim"].isin(["1", "6a"]) & single["part"].isin(["MNIST", "Fashion-MNIST"])]
    assert list(single["verdict"]) == 4 * ["reproduced (one seed)"]
    quick = c.components(decide(population(MAIN, there), times(datasets=there), profile="quick", datasets=there))
    assert set(quick.query("claim == '1'")["direction"]) == {"agrees"}
    of_one = c.components(decide(NOTHING, times(datasets=["mnist"]), profile="quick", datasets=["mnist"]))
    assert list(of_one.query("claim == '6a'")["part"]) == ["H200 (graphs)"]  # nothing twice


def test_some_datasets_may_refute():
    claim = one(decide(population(MAIN, ["cifar100"], shift=LOSSES["1"]), times()), "1")
    assert claim.verdict == "not reproduced" and "missing: rss on mnist" in claim.reason


def test_a_refutation_counts_the_datasets_to_come():
    """What one dataset of four refutes, the other three cannot take back by being there."""
    statement = next(s for s in statements.STATEMENTS if s.number == "1")
    first, later = Part("first", -1.0, 0.2, 2, 3), [Part(str(i), 5.0, 0.2, 2, 3) for i in range(3)]
    to_come = [Part(str(i), missing=("rss",)) for i in range(3)]
    assert first.high() < 0 < first.high(TAIL / 4)
    assert judge(statement, [first, *to_come], True).verdict == "not run"
    assert judge(statement, [first, *later], True).verdict == "inconclusive"
    assert judge(statement, [first], True).verdict == "not reproduced"


def test_at_the_papers_scale_claims_are_about_the_papers_datasets_whatever_is_asked():
    made = population(MAIN, ["cifar100"])
    assert one(decide(made, times(), datasets=["cifar100"]), "1").verdict == "not run"
    assert c.study("paper", ["mnist"]) == c.study("paper") and c.controls("paper", ["mnist"]) == c.controls("paper")


@pytest.mark.parametrize("ratios, kinds", [
    ((1.9, 6.1), ("reproduced", "reproduced")),
    ((2.2, 7.0), ("reproduced", "reproduced")),
    ((1.2, 4.0), ("not reproduced", "not reproduced")),
    ((3.0, 9.0), ("not reproduced", "not reproduced")),
    ((0.5, 0.9), ("not reproduced", "not reproduced")),
])  # fmt: skip
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_speed_ups(ratios, kinds, seeds):
    claims = decide(NOTHING, times(seeds=seeds, ratios=ratios))
    for number, ratio, kind in zip(("6a", "6b"), ratios, kinds, strict=True):
        claim = one(claims, number)
        assert claim.kind == kind and claim.estimate == pytest.approx(ratio, rel=0.02)
        assert "RTX 3080" in claim.reason and "H200 (graphs)" in claim.reason


def test_the_speed_up_is_a_geometric_mean_with_a_t_interval():
    table = times(ratios=(2.2, 6.1))
    table.loc[table["method"] == "rss", "training_seconds"] *= 1 + 0.2 * table["seed"]
    claim = one(decide(NOTHING, table), "6a")
    wide = table.pivot(index=["dataset", "seed"], columns="method", values="training_seconds")
    by_seed = np.log(wide["ofa"] / wide["rss"]).groupby("seed").mean()
    interval = np.exp(stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed)))
    assert (claim.low, claim.high) == pytest.approx(tuple(interval))
    assert claim.verdict == "inconclusive"  # the interval crosses the tolerance


@pytest.mark.parametrize("column", ["hardware", "executor"])
def test_times_of_unlike_machines_are_not_compared(column):
    table = times()
    table.loc[table["method"] == "ofa", column] = "another"
    claim = one(decide(NOTHING, table), "6a")
    assert claim.verdict == "not run" and "one seed, hardware and executor" in claim.reason
    assert one(decide(NOTHING, times(["ofa", "rss"])), "6b").reason.startswith("Missing: times of ofa and rss-short on")
    table = times()
    apart = table[(table["dataset"] == "mnist") == (table["seed"] == 0)]
    assert "a seed of which all datasets" in one(decide(NOTHING, apart), "6a").reason


def test_both_baselines_are_judged():
    def shift(dataset, method, bucket):  # above the released code's, below OFA as its authors train it
        return 12.0 * (method == "ofa")

    claims = decide(whole_study(released=True, shift=shift), times([*MAIN, "ofa-released"]))
    assert len(claims) == len(NUMBERS) + 14
    assert one(claims, "1", "ofa").verdict == "not reproduced"
    assert one(claims, "1", "ofa-released").verdict == "reproduced"
    assert list(c.table(claims)["baseline"][:2]) == ["ofa", "ofa-released"]


def test_same_way_takes_either_direction():
    up = {f"{m}-{change}" for m in ("ofa", "rss-short") for change in OVERRIDES}
    assert one(decide(whole_study(shift=lambda d, m, b: 3.0 * (m in up)), times()), "10").verdict == "reproduced"
    none = whole_study(shift=lambda d, m, b: 1.5 * (m == "ofa-lr-0.02"))  # no effect left
    assert one(decide(none, times()), "10").verdict == "inconclusive"


# --- pairing and order ------------------------------------------------------------------------------------------------


def test_pairing_finds_a_small_difference_between_unlike_subnets():
    rng = np.random.default_rng(0)
    base = population(["rss"], DATASETS, seeds=(0,), n=10)
    base["accuracy"] = 60 + rng.normal(0, 8, len(base))
    better = base.assign(accuracy=base["accuracy"] + 0.2 + rng.normal(0, 0.05, len(base)))
    table = pd.concat([base.assign(method="ofa"), better], ignore_index=True)
    assert one(decide(table, NOTHING), "1").verdict == "reproduced (one seed)"
    assert stats.ttest_ind(better["accuracy"], base["accuracy"]).pvalue > 0.5  # unpaired
    shuffled = better.groupby(["dataset", "bucket"])["accuracy"].transform(lambda x: rng.permutation(x.to_numpy()))
    table = pd.concat([base.assign(method="ofa"), better.assign(accuracy=shuffled)], ignore_index=True)
    assert one(decide(table, NOTHING), "1").kind == "inconclusive"


def test_the_order_of_rows_changes_nothing_and_numbers_repeat(study):
    first = c.table(decide(study, times()))
    again = c.table(decide(study.sample(frac=1, random_state=0), times().sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(first, again)


def test_one_subnet_a_bucket_and_one_seed_have_no_interval():
    claim = one(decide(population(MAIN, n=1, seeds=(0,)), times()), "1")
    assert claim.kind == "inconclusive" and math.isnan(claim.low)


def break_subnets(table):
    table.loc[(table["method"] == "rss") & (table["subnet"] == 0), "kernel"] = "7-7"
    return table


@pytest.mark.parametrize("breaking", [
    break_subnets,
    lambda table: table[(table["method"] != "rss") | (table["subnet"] > 0)],
    lambda table: table[(table["bucket"] < 14) | (table["subnet"] > 0)],
])  # fmt: skip
def test_runs_on_other_subnets_are_refused(breaking):
    with pytest.raises(InputError) as error:
        decide(breaking(population(MAIN, ["cifar100"])), times())
    assert "same subnets" in sentence(error)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """Finished main runs on CIFAR-100 at profile paper, two seeds."""
    table = population(MAIN, ["cifar100"], seeds=(0, 1), n=4, noise=0.01)
    for run in c.plan("paper", ["cifar100"], MAIN, seeds=[0, 1], subnets_per_bucket=4):
        folder = run.folder(tmp_path)
        folder.mkdir(parents=True)
        mine = table[(table["method"] == run.method.name) & (table["seed"] == run.seed)]
        mine = mine.drop(columns=["dataset", "backbone", "method", "seed"])
        config = json.loads(json.dumps(configuration(run)).replace('"unknown"', "null"))  # as of a run with images
        config["training"]["train_images"], config["evaluation"]["test_images"] = 50_000, 10_000
        record = {"status": "finished", "config": config, "training_seconds": 100.0}
        record |= {"evaluation_seconds": 1.0, "hardware": "H200", "executor": "graphs"}
        record["sha256"] = {name: files.write_csv(folder / name, mine) for name in ("history.csv", "population.csv")}
        write_record(folder, record)
    return tmp_path


def test_all_runs_of_the_paper_are_planned_once():
    planned = c.study("paper", seeds=[0])
    assert len(planned) == len({run.name for run in planned}) == 45
    assert sum("released" not in run.method.name for run in planned) == 37
    assert {run.dataset for run in c.study("smoke")} == {"digits"}
    assert len(c.study("paper", seeds=[0, 1, 2])) == 3 * 45
    with pytest.raises(InputError) as error:
        c.study("papre")
    assert "did you mean 'paper'" in sentence(error)


def test_finished_runs_are_judged_and_missing_ones_are_not(results):
    population, times = c.tables(c.study("paper", seeds=[0, 1], subnets_per_bucket=4), results)
    assert len(population) == 3 * 2 * 24 and len(times) == 6
    claims = decide(population, times)
    assert one(claims, "17").verdict == "reproduced" and one(claims, "1").verdict == "not run"
    for planned in (c.study("paper", seeds=[0], subnets_per_bucket=7), c.study("smoke")):
        assert all(table.empty for table in c.tables(planned, results))


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_claims():
    def shift(dataset, method, bucket):
        return 12.0 * (method == "ofa") + 5.0 * (method == "ofa-batch-128")

    clocks = times([*MAIN, "ofa-released"], ratios=(2.4, 6.1))
    return decide(whole_study(released=True, shift=shift), clocks)


def test_tables(all_claims, tmp_path):
    (tmp_path / "figure_3.png").touch()
    c.save_claims(all_claims, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.csv", "claims.md", "figure_3.png", "parts.csv"]
    table = pd.read_csv(tmp_path / "claims.csv", dtype={"number": str})
    assert list(table["number"]) == [claim.statement.number for claim in all_claims] and table["where"].notna().all()
    page = (tmp_path / "claims.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == len(all_claims) + 2 and len({line.count("|") for line in lines}) == 1
    assert "[figure_3](figure_3.png)" in lines[2] and "figure_5 (not drawn)" in page
    assert "[figure_3](../figure_3.png)" in c.markdown(all_claims, tmp_path, "../")
    parts = c.components(all_claims)
    assert len(pd.read_csv(tmp_path / "parts.csv")) == len(parts)
    assert len(parts[(parts["claim"] == "1s") & (parts["baseline"] == "ofa")]) == 24


def test_every_claim_has_a_figure_and_a_docstring(all_claims):
    notebooks = "".join(path.read_text() for path in (FOLDER / "notebooks").glob("*.ipynb"))
    for statement in c.STATEMENTS:
        assert all(f'\\"{name}\\"' in notebooks for name in statement.figure.split(", ")), statement.figure
        words = getattr(statement.parts, "func", statement.parts).__doc__
        assert any(place in words for place in ("ection", "upplement", "Abstract")) and "Part" in words
    assert all(len(claim.reason) < 600 for claim in all_claims)


# --- controls ---------------------------------------------------------------------------------------------------------


def with_controls(shift=None, methods=tuple(CONTROLS)):
    """The whole study with controls: each of these is as RSS or OFA, by default, plus `shift` (by method)."""
    study, shift = whole_study(), shift or {}
    own = study[(study["dataset"] == "cifar100") & (study["backbone"] == "mobilenet_v3")]
    rows = []
    for method in methods:
        like = own[own["method"] == ("ofa" if method.startswith("ofa") else "rss")]
        rows.append(like.assign(method=method, accuracy=like["accuracy"] + shift.get(method, -2.0)))
    return pd.concat([study, *rows], ignore_index=True)


def test_controls_that_were_run_stand_beside_the_claims():
    claims = decide(with_controls(), times())
    found = {claim.statement.number: claim for claim in claims if claim.statement.role == "control"}
    assert list(found) == [f"C{i}" for i in range(1, 11)]
    assert {claim.verdict for claim in found.values()} == {"no claim of the paper"}
    # from the made-up world: RSS 0, one a batch -2, two -5, Alternating -3; controls -2
    expected = {"C1": 0, "C2": 3, "C3": 0, "C4": 2, "C5": 1, "C6": 2, "C7": 2, "C8": 2, "C9": 2, "C10": 2}
    assert {number: round(claim.estimate, 0) for number, claim in found.items()} == pytest.approx(expected, abs=0.2)
    assert found["C4"].direction == "agrees"
    some = decide(with_controls(methods=["rss-constant"]), times())
    assert [claim.statement.number for claim in some if claim.statement.role == "control"] == ["C5", "C6"]
    quick = decide(with_controls(), times(), profile="quick", datasets=DATASETS)
    assert verdicts_of(quick) == {"scale decides nothing"} and one(quick, "C4").direction == "agrees"


def test_the_contrasts_are_mixed_as_is_said():
    """The methods differ in what the notes name, and the controls do not."""
    made = {name: build(name, 180, 410) for name in (*METHODS, *CONTROLS)}
    rates = {name: {stage.schedule for stage in method.stages} for name, method in made.items()}
    for base in ("rss", "rss-short"):
        assert made[f"{base}-2-per-batch"].gradients == "sum"
        for single in ("", "-smallest", "-middle", "-largest"):
            assert rates[f"{base}{single}"] == {"cosine"}
        for two in ("-alternating", "-max-then-min", "-min-then-max"):
            assert rates[f"{base}{two}"] == {"constant"}
    assert made["rss-2-per-batch-mean"].gradients == "mean" and made["rss-same-twice"].gradients == "sum"
    assert rates["rss-constant"] == {"constant"} and rates["rss-alternating-cosine"] == {"cosine"}
    contrasted = {name for k in statements.CONTROLS for name in (k.parts.keywords["better"], k.parts.keywords["worse"])}
    assert contrasted >= set(CONTROLS)


@pytest.mark.parametrize("kind, dpi", [("all", 72), ("all", 160), ("wide", 100), ("one seed", 200), ("nothing", 100)])
def test_the_figure_keeps_its_text_apart(all_claims, kind, dpi):
    if kind == "one seed":
        claims = decide(whole_study(seeds=(0,), shift=LOSSES["1"]), times(seeds=(0,), ratios=(0.3, 40)))
    elif kind == "wide":
        claims = decide(whole_study(seeds=(0, 1), noise=2.0), times(seeds=(0, 1)))
    else:
        claims = all_claims if kind == "all" else decide(NOTHING, NOTHING)
    with matplotlib.rc_context():
        populations.set_style()
        figure = c.figure_claims(claims, caption="Made-up tables.")
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).draw()
    page, boxes = figure.bbox, []
    for axes in figure.axes:
        texts = [*axes.get_xticklabels(), *axes.texts, axes.xaxis.label]
        boxes += [text.get_window_extent() for text in texts if text.get_text()]
    texts = [text for text in (*figure.texts, *figure.legends[0].get_texts()) if text.get_text()]
    boxes += [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert not any(box.overlaps(axes.bbox.padded(-2)) for axes in figure.axes), "text over a panel"
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[:i])
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert all(claim.statement.text in written and claim.verdict in written for claim in claims)
    assert figure.caption.startswith("Made-up tables. Bars: 95 % intervals")


@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_the_figure_keeps_the_claims_order(study, profile):
    claims = decide(study, times(), profile=profile, datasets=DATASETS)
    figure = c.figure_claims(claims)
    texts = [text for axes in figure.axes for text in axes.texts]
    heights = {text.get_text(): text.get_position()[1] for text in texts if text.get_text() in NUMBERS}
    assert sorted(heights, key=heights.get) == NUMBERS
    for axes, unit in zip(figure.axes, c.PANELS, strict=True):  # estimates stand in the rows of their claims
        marks = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() in "oXD<"}
        assert marks == {y: claim.estimate for y, claim in enumerate(claims) if claim.statement.unit == unit}
    everything = " ".join(text.get_text() for text in figure.findobj(Text))
    assert everything.count("scale decides nothing") == (profile != "paper")


def test_the_direction_is_told_where_the_scale_decides_nothing(study):
    def directions(table, clocks):
        found = decide(table, clocks, profile="smoke", datasets=DATASETS)
        assert {claim.verdict for claim in found} <= {"scale decides nothing", "not run"}
        return {claim.statement.number: claim.direction for claim in found}

    assert set(directions(study, times()).values()) == {"agrees"}
    assert {claim.direction for claim in decide(study, times())} == {""}  # the paper's scale has verdicts
    lost = whole_study(shift=LOSSES["1"])
    assert directions(lost, times())["1"] == "points the other way"
    tie = pd.concat([population(["rss"]).assign(method=method) for method in MAIN], ignore_index=True)
    found = directions(tie, times())
    assert found["1"] == "unclear" and found["9"] == ""  # equal, and not run
    for seeds in ((0,), (0, 1, 2)):
        fast, slow = (directions(NOTHING, times(seeds=seeds, ratios=ratios)) for ratios in ((3.0, 30.0), (0.5, 0.9)))
        assert fast["6a"] == fast["6b"] == "agrees" and slow["6a"] == slow["6b"] == "points the other way"
    wide = times(ratios=(1.05, 6.1))
    wide.loc[wide["method"] == "rss", "training_seconds"] *= 1 + 0.2 * wide["seed"]
    assert directions(NOTHING, wide)["6a"] == "unclear"


def test_the_direction_stands_beside_the_verdict(study, tmp_path):
    claims = decide(whole_study(shift=LOSSES["1"]), times(), profile="smoke", datasets=DATASETS)
    assert c.table(claims).set_index("number")["direction"]["1"] == "points the other way"
    lines = c.markdown(claims, tmp_path).splitlines()[2:]
    assert "| scale decides nothing; points the other way |" in lines[0]
    assert "| secondary: scale decides nothing; points the other way |" in lines[1]
    assert all(f"{claim.verdict}; {claim.direction} |" in line for claim, line in zip(claims, lines, strict=True))


@pytest.mark.parametrize("profile, cwd", [("paper", "."), ("paper", "notebooks"), ("smoke", ".")])
def test_the_notebook_judges_what_is_there(results, tmp_path, monkeypatch, profile, cwd):
    monkeypatch.chdir(FOLDER / cwd)
    output = tmp_path / "figures" / profile
    output.mkdir(parents=True)
    (output / "figure_1.png").touch()
    given = {"profile": profile, "results": str(results), "figures": str(tmp_path / "figures")}
    given, names = given | {"seeds": [0, 1], "subnets_per_bucket": 4}, {}
    for cell in nbformat.read(FOLDER / "notebooks/09_claims.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source.replace("%matplotlib inline", ""), names)
            names |= given if "parameters" in cell.metadata.get("tags", []) else {}
    assert {path.name for path in output.iterdir()} >= {"claims.csv", "claims.md", "claims.png", "claims.pdf"}
    assert not (results / "smoke").exists(), "the notebook trained something"
    assert one(names["decided"], "17").verdict == ("not run" if profile == "smoke" else "reproduced")
    start = FOLDER / "notebooks" if cwd == "notebooks" else output / "notebooks"  # where the executed copy lies
    assert Path(os.path.normpath(start / f"{names['links']}figure_1.png")) == output / "figure_1.png"
