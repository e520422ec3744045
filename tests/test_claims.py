"""Verdicts on the paper's claims, from made-up tables whose right verdicts are known."""

import json
import math
import os
import shutil
from functools import partial
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import sentence
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from rsslib import claims as c
from rsslib import figures
from rsslib.errors import InputError
from rsslib.methods import METHODS, TABLE_1
from rsslib.runs import Run, configuration, plan

FOLDER = Path(__file__).resolve().parent.parent
DATASETS = list(TABLE_1)
BUCKETS = {"mobilenet_v3": (4, 6, 8, 10, 12, 14), "proxylessnas": (4, 6, 8, 10, 12)}
decide = partial(c.decide, resamples=500)


# --- a made-up study --------------------------------------------------------------------------------------------------


def truth(dataset: str, method: str, mflops: np.ndarray) -> np.ndarray:
    """Accuracies of a world in which every claim of the paper holds."""
    large = mflops - 9
    rss, lead = 60 + 0.2 * large, 1 + 2 * DATASETS.index(dataset) if dataset in DATASETS else 2
    base = next(b for b in ("ofa-released", "ofa", "rss-short", "rss") if method.startswith(b))
    start = {"rss": rss, "rss-short": rss - 0.5 + 0.03 * large}
    start |= {"ofa": 59 - lead + 0.4 * large, "ofa-released": 58 - lead + 0.5 * large}
    change = method.removeprefix(base)
    own = {"-smallest": 4.05, "-middle": 7.2, "-largest": 15.3}
    if change in own:
        return 50 - 2 * np.abs(mflops - own[change])
    lower = {"": 0, "-per-batch": 2, "-2-per-batch": 4, "-alternating": 3, "-min-then-max": 6, "-max-then-min": 9}
    return start[base] - lower.get(change, 1.5)


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
            mean = truth(dataset, method, subnets["mflops"].to_numpy()) + effect
            for seed in seeds:
                accuracy = mean + rng.normal(0, noise) + rng.normal(0, noise, len(subnets))
                if shift:
                    accuracy = accuracy + shift(dataset, method, subnets["bucket"].to_numpy())
                names = {"dataset": dataset, "backbone": backbone, "method": method, "seed": seed}
                tables.append(subnets.assign(accuracy=accuracy, **names))
    return pd.concat(tables, ignore_index=True)[list(c.POPULATION_COLUMNS)]


def times(methods=("ofa", "rss", "rss-short"), datasets=DATASETS, seeds=(0, 1, 2), ratios=(1.9, 6.1), **names):
    """Training times with these ratios to OFA's, a little different for each seed."""
    seconds = {"ofa": 1900.0, "ofa-released": 1880.0, "rss": 1900 / ratios[0], "rss-short": 1900 / ratios[1]}
    fixed = {"backbone": "mobilenet_v3", "evaluation_seconds": 60.0, "hardware": "H200", "executor": "graphs"} | names
    rows = [
        {"dataset": d, "method": m, "seed": s, "training_seconds": seconds[m] * (1 + (s + len(m)) % 3 / 100), **fixed}
        for d in datasets for m in methods for s in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)[list(c.TIMES_COLUMNS)]


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


def verdicts(claims, baseline=None) -> dict[str, str]:
    return {claim.number: claim.verdict for claim in claims if baseline is None or claim.baseline in ("", baseline)}


def one(claims, number, baseline=None) -> c.Claim:
    (claim,) = [k for k in claims if k.number == number and baseline in (None, k.baseline)]
    return claim


NUMBERS = ["1", "2", "3", "4", "5", "6a", "6b", "7a", "7b", "8a", "8b", "9", "10", "11"]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_every_claim_is_reproduced_where_all_hold(study):
    claims = decide(study, times(), True)
    assert [claim.number for claim in claims] == NUMBERS
    assert set(verdicts(claims).values()) == {"reproduced"}, [k for k in claims if k.verdict != "reproduced"]
    for claim in claims:
        assert claim.low <= claim.estimate <= claim.high
        assert claim.reason.endswith("3 seeds.")


def worse(method, points):
    return lambda dataset, m, bucket: -points * (m == method)


LOSSES = {
    "1": worse("rss", 20),
    "2": worse("rss-short", 20),
    "3": lambda d, m, b: 4.0 * DATASETS.index(d) * (m == "ofa"),
    "4": lambda d, m, b: 3.0 * (b - 9) * (m in ("rss", "rss-short")),
    "5": lambda d, m, b: -2.0 * (b - 9) * (m == "ofa"),
    "7a": worse("rss", 20),
    "7b": worse("rss-short", 20),
    "8a": lambda d, m, b: -4.0 * (b - 9) * (m == "rss-largest"),
    "8b": lambda d, m, b: 4.0 * (b - 9) * (m == "rss-short-smallest"),
    "9": worse("rss-alternating", 20),
    "10": lambda d, m, b: 4.0 * (m == "rss-short-dropout-0.3"),
    "11": worse("rss-short", 20),
}


@pytest.mark.parametrize("number", LOSSES)
def test_a_claim_that_is_false_is_not_reproduced(number):
    claim = one(decide(whole_study(shift=LOSSES[number]), times(), True), number)
    assert claim.verdict == "not reproduced"
    assert claim.high < 0


def test_one_false_part_refutes_a_conjunction():
    def shift(dataset, method, bucket):  # RSS loses at one size of one dataset
        return -20.0 * ((dataset == "cifar10") & (method == "rss") & (bucket == 14))

    claim = one(decide(population(MAIN, shift=shift), times(), True), "1")
    assert claim.verdict == "not reproduced"
    assert "CIFAR-10 at 14 MFLOPs" in claim.reason and "23 of 24" in claim.reason


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_tie_is_inconclusive(seeds):
    table = population(["rss"], seeds=seeds)
    same = [table.assign(method=method) for method in (*MAIN, "rss-per-batch", "rss-2-per-batch")]
    claims = decide(pd.concat(same, ignore_index=True), times(seeds=seeds), True)
    for number in ("1", "2", "3", "4", "7a"):
        claim = one(claims, number)
        assert (claim.kind, claim.estimate) == ("inconclusive", 0)


def test_chance_is_inconclusive():
    rng = np.random.default_rng(1)
    table = population(MAIN, ["cifar100"], seeds=range(5))
    noise = rng.normal(0, 0.5, (3, 5))  # seeds differ, methods do not
    table["accuracy"] = 50 + rng.normal(0, 1, len(table)) + [
        noise[MAIN.index(m), s] for m, s in zip(table["method"], table["seed"], strict=True)
    ]  # fmt: skip
    assert one(decide(table, times(), True), "2").verdict == "inconclusive"


def test_one_seed_is_said_so():
    claims = decide(whole_study(seeds=(0,)), times(seeds=(0,)), True)
    assert set(verdicts(claims).values()) == {"reproduced (one seed)"}
    assert all("one seed" in claim.reason for claim in claims)
    speed = one(claims, "6a")
    assert math.isnan(speed.low) and math.isnan(speed.high) and speed.estimate == pytest.approx(1.9, rel=0.02)


def test_only_common_seeds_are_compared(study):
    fewer = study[(study["method"] != "rss-per-batch") | (study["seed"] == 1)]
    claims = decide(fewer, times(), True)
    assert one(claims, "7a").verdict == "reproduced (one seed)" and one(claims, "9").verdict == "reproduced"
    none = study[(study["method"] != "rss-per-batch") | (study["seed"] == 1)]
    none = none[(none["method"] != "rss-2-per-batch") | (none["seed"] == 2)]
    claim = one(decide(none, times(), True), "7a")
    assert claim.verdict == "not run" and "seed common to" in claim.reason


def test_another_scale_decides_nothing(study):
    claims = decide(study, times(), False)
    assert set(verdicts(claims).values()) == {"scale decides nothing"}
    assert all("scale decides nothing" in claim.reason for claim in claims)
    words = c.conclusions(claims)
    assert "reproduced" not in words + " ".join(c.table(claims)["verdict"]) and "decide nothing" in words


def test_missing_runs_are_named_not_raised():
    nothing = pd.DataFrame()
    for empty in (nothing, pd.DataFrame(columns=list(c.POPULATION_COLUMNS))):
        claims = decide(empty, nothing, True)
        assert set(verdicts(claims).values()) == {"not run"} and len(claims) == len(NUMBERS)
        assert all(math.isnan(claim.estimate) for claim in claims)
    assert "rss on mnist" in one(claims, "1").reason and "ofa on cifar100" in one(claims, "1").reason
    assert "rss-short on cifar100 with proxylessnas" in one(claims, "11").reason
    assert "rss-alternating on cifar100" in one(claims, "9").reason
    assert c.figure_claims(claims) and "Undecided" in c.conclusions(claims)


def test_some_datasets_support_but_do_not_decide():
    claims = decide(population(MAIN, ["mnist", "cifar100"]), times(datasets=["cifar100"]), True)
    for number in ("1", "3", "4", "5", "6a"):
        claim = one(claims, number)
        assert claim.verdict == "not run" and "fashion_mnist" in claim.reason
    assert one(claims, "1").estimate > 0 and one(claims, "6a").estimate == pytest.approx(1.9, rel=0.02)
    assert one(claims, "2").verdict == "reproduced"


def test_some_datasets_may_refute():
    claims = decide(population(MAIN, ["cifar100"], shift=LOSSES["1"]), times(), True)
    claim = one(claims, "1")
    assert claim.verdict == "not reproduced" and "missing: rss on mnist" in claim.reason


@pytest.mark.parametrize("ratios, kinds", [
    ((1.9, 6.1), ("reproduced", "reproduced")),
    ((2.2, 7.0), ("reproduced", "reproduced")),
    ((1.2, 4.0), ("not reproduced", "not reproduced")),
    ((3.0, 9.0), ("not reproduced", "not reproduced")),
    ((0.5, 0.9), ("not reproduced", "not reproduced")),
])  # fmt: skip
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_speed_ups(ratios, kinds, seeds):
    claims = decide(pd.DataFrame(), times(seeds=seeds, ratios=ratios), True)
    for number, ratio, kind in zip(("6a", "6b"), ratios, kinds, strict=True):
        claim = one(claims, number)
        assert claim.kind == kind and claim.estimate == pytest.approx(ratio, rel=0.02)
        assert "RTX 3080" in claim.reason and "H200 (graphs)" in claim.reason


def test_a_speed_up_whose_interval_crosses_the_tolerance_is_inconclusive():
    table = times(ratios=(2.2, 6.1), seeds=range(3))
    table.loc[table["method"] == "rss", "training_seconds"] *= 1 + 0.2 * table["seed"]
    assert one(decide(pd.DataFrame(), table, True), "6a").verdict == "inconclusive"


@pytest.mark.parametrize("column", ["hardware", "executor"])
def test_times_of_unlike_machines_are_not_compared(column):
    table = times()
    table.loc[table["method"] == "ofa", column] = "another"
    claims = decide(pd.DataFrame(), table, True)
    assert one(claims, "6a").verdict == "not run" and "same seed, hardware and executor" in one(claims, "6a").reason
    missing = decide(pd.DataFrame(), times(["ofa", "rss"]), True)
    assert one(missing, "6b").reason.startswith("Missing: rss-short on mnist, rss-short on fashion_mnist")


def test_both_baselines_are_judged():
    def shift(dataset, method, bucket):  # above the released code's, below OFA as its authors train it
        return 12.0 * (method == "ofa")

    claims = decide(whole_study(released=True, shift=shift), times([*MAIN, "ofa-released"]), True)
    assert len(claims) == len(NUMBERS) + 9
    assert one(claims, "1", "ofa").verdict == "not reproduced"
    assert one(claims, "1", "ofa-released").verdict == "reproduced"
    words = c.conclusions(claims)
    assert "claim 1 is not reproduced against OFA and reproduced against the released code" in words
    assert "With OFA as the baseline: Interference is not ruled out" in words
    assert "With OFA (released code) as the baseline: Interference is not what limits the population" in words
    assert list(c.table(claims)["baseline"][:2]) == ["OFA", "OFA (released code)"]


def test_same_way_takes_either_direction():
    up = {f"{m}-{change}" for m in ("ofa", "rss-short") for change in c.CHANGES}
    claims = decide(whole_study(shift=lambda d, m, b: 3.0 * (m in up)), times(), True)
    assert one(claims, "10").verdict == "reproduced"
    none = decide(whole_study(shift=lambda d, m, b: 1.5 * (m == "ofa-lr-0.02")), times(), True)
    assert one(none, "10").verdict == "inconclusive"


# --- the statistics ---------------------------------------------------------------------------------------------------


def one_run(values: np.ndarray, groups: int = 1, resamples: int = 800) -> c.Evidence:
    """Evidence whose RSS on CIFAR-100 has accuracies `values` [seeds, subnets], by bucket."""
    seeds, n = values.shape
    bucket = np.repeat(np.arange(groups), n // groups)
    subnets = {"bucket": bucket, "subnet": np.arange(n), "mflops": bucket + 1e-3 * np.arange(n)}
    names = {"dataset": "cifar100", "backbone": "mobilenet_v3", "method": "rss", "kernel": "3", "expand": 3, "depth": 2}
    rows = [pd.DataFrame({**names, **subnets, "seed": seed, "accuracy": values[seed]}) for seed in range(seeds)]
    return c.Evidence(pd.concat(rows), pd.DataFrame(), True, resamples=resamples)


def simulate(evidence: c.Evidence, draws, statistic):
    """The parts of RSS's `statistic` for each of `draws`, tables of accuracies like the one in `evidence`."""
    key = ("cifar100", "mobilenet_v3", "rss")
    buckets = [str(b) for b in evidence.buckets()] if statistic is c.bucket_means else ["mean"]
    for values in draws:
        evidence._accuracy[key] = evidence._accuracy[key][0], values
        evidence._cache.clear()
        yield evidence.contrast(buckets, [(1.0, "cifar100", "rss")], statistic)


REPEATS, ENOUGH = 400, 0.925  # 95 % less what so many repetitions may miss by


@pytest.mark.parametrize("seeds, sd_seed, sd_subnet", [(2, 1.0, 0.5), (3, 1.0, 1.0), (5, 1.0, 0.3), (5, 0.1, 2.0)])
def test_intervals_cover_the_truth(seeds, sd_seed, sd_subnet):
    rng, shape = np.random.default_rng(3), (seeds, 20)
    draws = (
        rng.normal(0, sd_seed, (seeds, 1)) + rng.normal(0, sd_subnet, 20) + rng.normal(0, 0.3, shape)
        for _ in range(REPEATS)
    )
    parts = [part for (part,) in simulate(one_run(np.zeros(shape), resamples=400), draws, c.population_mean)]
    assert np.mean([part.low() <= 0 <= part.high() for part in parts]) > ENOUGH
    if seeds < 5:  # what the t interval is for
        percentiles = [np.quantile(part.replicates, (0.025, 0.975)) for part in parts]
        assert np.mean([low <= 0 <= high for low, high in percentiles]) < ENOUGH


def test_the_interval_of_the_smallest_covers_it():
    rng = np.random.default_rng(4)
    means = rng.normal(0, 0.05, (REPEATS, 6))
    draws = (np.repeat(m, 10) + rng.normal(0, 0.2, (4, 1)) + rng.normal(0, 0.3, (4, 60)) for m in means)
    parts = simulate(one_run(np.zeros((4, 60)), groups=6, resamples=400), draws, c.bucket_means)
    smallest = [c.All("", tuple(members)) for members in parts]
    covered = [s.low() <= m.min() <= s.high() for s, m in zip(smallest, means, strict=True)]
    assert np.mean(covered) > ENOUGH


def test_errors_match_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (1, 400))
    (part,) = one_run(values, resamples=4000).contrast("mean", [(1.0, "cifar100", "rss")])
    assert part.error == pytest.approx(values.std(ddof=1) / 20, rel=0.05)
    values = np.repeat(rng.normal(0, 1, (6, 1)), 10, axis=1)  # subnets do not differ: what is left is the t interval
    (part,) = one_run(values, resamples=4000).contrast("mean", [(1.0, "cifar100", "rss")])
    low, high = stats.t.interval(0.95, 5, values[:, 0].mean(), stats.sem(values[:, 0]))
    assert (part.low(), part.high()) == pytest.approx((low, high), rel=0.05)


def test_statistics_match_numpy():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 5, (2, 60))
    subnets = one_run(values)._subnets["mobilenet_v3"]
    ordered, ones = np.sort(values, axis=1), np.ones((60, 1))
    assert c.median(ones, values, subnets).ravel() == pytest.approx(np.median(values, axis=1))
    assert c.best(ones, values, subnets).ravel() == pytest.approx(ordered[:, -3:].mean(1))
    assert c.spread(ones, values, subnets).ravel() == pytest.approx(ordered[:, -3:].mean(1) - ordered[:, :3].mean(1))
    lines = [np.polyfit(subnets.mflops, row, 1)[0] for row in values]
    assert c.slope(ones, values, subnets).ravel() == pytest.approx(lines)
    weights = c._draw(rng, 60, 4)
    for i in range(4):  # a resample is the sample with each subnet repeated
        drawn = np.repeat(values[0], weights[:, i].astype(int))
        assert c.median(weights, values, subnets)[0, 0, i] == pytest.approx(np.median(drawn))
        x = np.repeat(subnets.mflops, weights[:, i].astype(int))
        assert c.slope(weights, values, subnets)[0, 0, i] == pytest.approx(np.polyfit(x, drawn, 1)[0])


def test_pairing_finds_a_small_difference_between_unlike_subnets():
    rng = np.random.default_rng(0)
    base = population(["rss"], DATASETS, seeds=(0,), n=10)
    base["accuracy"] = 60 + rng.normal(0, 8, len(base))
    better = base.assign(accuracy=base["accuracy"] + 0.2 + rng.normal(0, 0.05, len(base)))
    table = pd.concat([base.assign(method="ofa"), better], ignore_index=True)
    assert one(decide(table, pd.DataFrame(), True), "1").verdict == "reproduced (one seed)"
    unpaired = stats.ttest_ind(better["accuracy"], base["accuracy"])
    assert unpaired.pvalue > 0.5
    shuffled = better.assign(accuracy=better.groupby(["dataset", "bucket"])["accuracy"].transform(
        lambda values: rng.permutation(values.to_numpy())
    ))  # fmt: skip
    table = pd.concat([base.assign(method="ofa"), shuffled], ignore_index=True)
    assert one(decide(table, pd.DataFrame(), True), "1").kind == "inconclusive"


def test_many_subnets_do_not_stand_in_for_seeds():
    rng = np.random.default_rng(0)
    table = population(MAIN, ["cifar100"], seeds=(0, 1, 2), n=100)
    offsets = {"ofa": (0, 0, 0), "rss-short": (1.5, -1.0, 0.4), "rss": (0, 0, 0)}
    table["accuracy"] = [50 + offsets[m][s] for m, s in zip(table["method"], table["seed"], strict=True)]
    table["accuracy"] += rng.normal(0, 0.1, len(table))
    assert one(decide(table, times(), True), "2").verdict == "inconclusive"
    first = table[table["seed"] == 0]
    assert one(decide(first, times(), True), "2").verdict == "reproduced (one seed)"


def test_the_order_of_rows_changes_nothing(study):
    shuffled = study.sample(frac=1, random_state=0)
    clocks = times()
    pd.testing.assert_frame_equal(
        c.table(decide(study, clocks, True)), c.table(decide(shuffled, clocks.sample(frac=1, random_state=0), True))
    )


def test_the_same_tables_give_the_same_numbers(study):
    first, again = (c.table(decide(study, times(), True)) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = c.table(decide(study, times(), True, seed=1))
    assert other["low"].to_numpy() == pytest.approx(first["low"].to_numpy(), abs=0.2)


def test_one_subnet_a_bucket_has_no_interval():
    claim = one(decide(population(MAIN, n=1), times(), True), "1")
    assert claim.verdict == "inconclusive" and "without an interval" in claim.reason


# --- input ------------------------------------------------------------------------------------------------------------


def break_subnets(table):
    table.loc[(table["method"] == "rss") & (table["subnet"] == 0), "kernel"] = "7-7"
    return table


BROKEN = {
    "another subnet": (break_subnets, "same subnets"),
    "a subnet less": (lambda t: t[(t["method"] != "rss") | (t["subnet"] > 0)], "same subnets"),
    "a row twice": (lambda t: pd.concat([t, t.iloc[:1]]), "more than one row"),
    "no accuracy": (lambda t: t.drop(columns="accuracy"), "no column accuracy"),
    "not a number": (lambda t: t.assign(accuracy=math.nan), "no finite numbers"),
}


@pytest.mark.parametrize("breaking, words", BROKEN.values(), ids=BROKEN)
def test_tables_that_cannot_be_used(breaking, words):
    with pytest.raises(InputError) as error:
        decide(breaking(population(MAIN, ["cifar100"])), times(), True)
    assert words in sentence(error)


def test_too_few_resamples():
    with pytest.raises(InputError) as error:
        c.decide(pd.DataFrame(), pd.DataFrame(), True, resamples=1)
    assert "at least 100" in sentence(error)


# --- finished runs ----------------------------------------------------------------------------------------------------


class Images:
    """As much of a dataset as a run's configuration records."""

    checksum = "made up"

    def __init__(self, train: int, test: int):
        self.x_train, self.x_test = range(train), range(test)


def write_run(results: Path, run: Run, table: pd.DataFrame, status="finished", images=(40_000, 10_000)) -> None:
    folder = run.folder(results)
    folder.mkdir(parents=True)
    record = {"status": status, "config": configuration(run, Images(*images), "fp32")}
    record |= {"training_seconds": 100.0, "evaluation_seconds": 1.0, "hardware": "H200", "executor": "graphs"}
    (folder / "run.json").write_text(json.dumps(record))
    mine = table[(table["method"] == run.method.name) & (table["seed"] == run.seed)]
    mine.drop(columns=["dataset", "backbone", "method", "seed"]).to_csv(folder / "population.csv", index=False)


@pytest.fixture
def results(tmp_path):
    """Finished main runs on CIFAR-100 at the paper's scale, two seeds."""
    table = population(MAIN, ["cifar100"], seeds=(0, 1), n=4, noise=0.01)
    for run in plan("paper", ["cifar100"], MAIN, seeds=[0, 1], subnets_per_bucket=4):
        write_run(tmp_path, run, table)
    return tmp_path


def test_finished_runs_are_found(results):
    found = c.finished(results, "paper")
    assert found.scale_is_paper and found.datasets is None and found.remarks == ()
    assert len(found.population) == 3 * 2 * 24 and len(found.times) == 6
    claims = decide(found.population, found.times, found.scale_is_paper, found.datasets)
    assert one(claims, "2").verdict == "reproduced" and one(claims, "1").verdict == "not run"


def test_what_is_left_out_is_said(results):
    table = population(["rss-per-batch"], ["cifar100"], seeds=(0,), n=4)
    write_run(results, plan("paper", ["cifar100"], ["rss-per-batch"])[0], table, status="training")
    found = c.finished(results, "paper", seeds=[0])
    assert set(found.population["seed"]) == {0} and "rss-per-batch" not in set(found.population["method"])
    assert any("not finished: 1" in r for r in found.remarks) and any("not asked for: 1" in r for r in found.remarks)
    assert c.finished(results, "paper", subnets_per_bucket=7).population.empty
    assert c.finished(results, "paper", datasets=["mnist"]).population.empty


@pytest.mark.parametrize("difference", ["epochs", "images", "rate"])
def test_the_scale_is_read_from_the_record_not_from_the_name(results, difference):
    for path in results.glob("**/run.json"):
        record = json.loads(path.read_text())
        stage = record["config"]["training"]["method"]["stages"][-1]
        if difference == "images":
            record["config"]["training"]["train_images"] = 6400
        else:
            stage["epochs" if difference == "epochs" else "learning_rate"] *= 2
        path.write_text(json.dumps(record))
        break
    found = c.finished(results, "paper")
    assert found.scale_is_paper and len(found.times) == 5 and "not at the paper's scale: 1" in found.remarks[0]
    shutil.rmtree(results / "paper/cifar100/mobilenet_v3")
    for run in plan("smoke", ["cifar100"], MAIN, subnets_per_bucket=4):
        write_run(results, run, population(MAIN, ["cifar100"], n=4))
    assert not c.finished(results, "smoke").scale_is_paper


def test_an_unknown_profile(tmp_path):
    with pytest.raises(InputError) as error:
        c.finished(tmp_path, "papre")
    assert "did you mean 'paper'" in sentence(error)
    assert c.finished(tmp_path, "smoke").datasets == ("digits",)
    assert c.finished(tmp_path, "paper").scale_is_paper  # no runs: what is missing are the paper's


def test_a_record_that_is_none(results):
    path = next(results.glob("**/run.json"))
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            c.finished(results, "paper")
        assert str(path) in sentence(error)


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_claims():
    def shift(dataset, method, bucket):
        return 12.0 * (method == "ofa") + 5.0 * (method == "ofa-batch-128")

    clocks = times([*MAIN, "ofa-released"], ratios=(2.4, 6.1))
    return decide(whole_study(released=True, shift=shift), clocks, True)


def test_tables(all_claims, tmp_path):
    (tmp_path / "figure_3.png").touch()
    csv, markdown = c.save(all_claims, tmp_path)
    table = pd.read_csv(csv, dtype={"claim": str})
    assert list(table["claim"]) == [claim.number for claim in all_claims] and table["where"].notna().all()
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == len(all_claims) + 2 and len({line.count("|") for line in lines}) == 1
    assert "[figure_3](figure_3.png)" in lines[2] and "figure_5 (not drawn)" in markdown.read_text()
    html = c.styled(all_claims, tmp_path, "../").to_html()
    assert '<a href="../figure_3.png">figure_3</a>' in html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.csv", "claims.md", "figure_3.png"]
    parts = c.components(all_claims)
    assert len(parts[(parts["claim"] == "1") & (parts["baseline"] == "OFA")]) == 24


def test_every_claim_has_a_figure_and_words(all_claims):
    for claim in all_claims:
        assert claim.notebook and all(name in c.NOTEBOOKS for name in claim.figure.split(", "))
        assert claim.text and claim.where and claim.statistic and len(claim.reason) < 600
    for function in (*c.AGAINST_BASELINE, *c.WITHOUT_BASELINE):
        words = getattr(function, "func", function).__doc__
        assert all(word in words for word in ("Paper:", "Estimand:", "Interval:", "Rule:"))


def test_conclusions_follow_from_the_verdicts(study):
    words = c.conclusions(decide(study, times(), True))
    assert "That is the paper's answer." in words and "survive" not in words
    biased = c.conclusions(decide(whole_study(shift=LOSSES["9"]), times(), True))
    assert "sampling bias is not carried throughout" in biased
    open_ = c.conclusions(decide(pd.DataFrame(), pd.DataFrame(), True))
    assert "Interference is undecided; sampling bias is undecided." in open_


@pytest.mark.parametrize("kind, dpi", [("all", 72), ("all", 160), ("wide", 100), ("one seed", 200), ("nothing", 100)])
def test_the_figure_keeps_its_text_apart(all_claims, kind, dpi):
    if kind == "one seed":
        claims = decide(whole_study(seeds=(0,), shift=LOSSES["1"]), times(seeds=(0,), ratios=(0.3, 40)), True)
    elif kind == "wide":
        claims = decide(whole_study(seeds=(0, 1), noise=2.0), times(seeds=(0, 1)), True)
    else:
        claims = all_claims if kind == "all" else decide(pd.DataFrame(), pd.DataFrame(), True)
    with matplotlib.rc_context():
        figures.set_style()
        figure = c.figure_claims(claims, caption="Made-up tables.")
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).draw()
    page, boxes = figure.bbox, []
    for axes in figure.axes:
        texts = [*axes.get_xticklabels(), *axes.texts, axes.xaxis.label]
        boxes += [(axes, text.get_window_extent()) for text in texts if text.get_text()]
    boxes += [(None, text.get_window_extent()) for text in (*figure.texts, *figure.legends[0].get_texts())]
    for i, (_, box) in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        for axes in figure.axes:
            assert not box.overlaps(axes.bbox.padded(-2)), "text over the panel"
        for _, other in boxes[:i]:
            assert not box.padded(-1).overlaps(other.padded(-1))
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert all(claim.text in written and written.count(claim.verdict) for claim in claims)


def test_no_claims_no_figure():
    with pytest.raises(InputError):
        c.figure_claims([])


# --- the notebook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile, cwd", [("paper", "."), ("paper", "notebooks"), ("smoke", ".")])
def test_the_notebook_judges_what_is_there(results, tmp_path, monkeypatch, profile, cwd):
    monkeypatch.chdir(FOLDER / cwd)
    output = tmp_path / "figures" / profile
    output.mkdir(parents=True)
    (output / "figure_1.png").touch()
    given = {"profile": profile, "results": str(results), "seeds": None, "figures": str(tmp_path / "figures")}
    names = {}
    for cell in nbformat.read(FOLDER / "notebooks/09_claims.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source.replace("%matplotlib inline", ""), names)
            names |= given if "parameters" in cell.metadata.get("tags", []) else {}
    assert {path.name for path in output.iterdir()} >= {"claims.csv", "claims.md", "claims.png", "claims.pdf"}
    assert not (results / "smoke").exists(), "the notebook trained something"
    claims = names["decided"]
    assert one(claims, "2").verdict == ("not run" if profile == "smoke" else "reproduced")
    start = FOLDER / "notebooks" if cwd == "notebooks" else output / "notebooks"  # where the executed copy lies
    assert Path(os.path.normpath(start / f"{names['links']}figure_1.png")) == output / "figure_1.png"


def test_figures_are_those_of_the_notebooks():
    for figure, notebook in c.NOTEBOOKS.items():
        assert f'"{figure}"' in "".join(
            cell.source for cell in nbformat.read(FOLDER / f"notebooks/{notebook}.ipynb", as_version=4).cells
        )
