"""Verdicts on the paper's claims, from made-up tables whose right verdicts are known."""

import math
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers import sentence
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rsslib.errors import InputError
from rsstudy import summary
from rsstudy.catalogue import CONTROLS, METHODS, OVERRIDES, TABLE_1
from rsstudy.claims import statements
from rsstudy.claims import table as c
from rsstudy.claims.evidence import Evidence, Part, combine
from rsstudy.claims.verdicts import judge
from rsstudy.figures import populations

FOLDER = Path(__file__).resolve().parents[2]
DATASETS = list(TABLE_1)
BUCKETS = {"mobilenet_v3": (4, 6, 8, 10, 12, 14), "proxylessnas": (4, 6, 8, 10, 12)}
NOTHING = pd.DataFrame()
decide = partial(c.decide, profile="paper")


# --- a made-up study --------------------------------------------------------------------------------------------------


def truth(dataset: str, method: str, mflops: np.ndarray) -> np.ndarray:
    """Accuracies of a world in which every claim of the paper holds."""
    large = mflops - 9
    rss, lead = (
        60 + 0.2 * large,
        1 + 2 * DATASETS.index(dataset) if dataset in DATASETS else 2,
    )
    base = next(b for b in ("ofa-released", "ofa", "rss-short", "rss") if method.startswith(b))
    start = {"rss": rss, "rss-short": rss - 0.5 + 0.03 * large}
    start |= {
        "ofa": 59 - lead + 0.4 * large,
        "ofa-released": 58 - lead + 0.5 * large,
    }
    change, short = method.removeprefix(base), base == "rss-short"
    own = {"-smallest": 4.05, "-middle": 7.2, "-largest": 15.3}
    if change in own:
        return 50 - 2 * np.abs(mflops - own[change])
    lower = {
        "": 0,
        "-per-batch": 2,
        "-2-per-batch": 5,
        "-alternating": 3,
        "-min-then-max": 6,
        "-max-then-min": 9,
    }
    skew = {"-min-then-max": 0.5, "-max-then-min": -0.7}.get(change, 0) * (2 if short else 1)
    lag = 3 * (np.abs(large) < 2) * (change == "-alternating" and short)
    even = 0.23 * large * (change == "-alternating" and short)
    dropout = 1 * (change == "-dropout-0.3" and base.startswith("ofa"))
    return start[base] - lower.get(change, 1.5) + skew * large - lag - even - dropout


def population(
    methods=METHODS,
    datasets=DATASETS,
    seeds=(0, 1, 2),
    backbone="mobilenet_v3",
    n=12,
    shift=None,
    noise=0.05,
    rng=0,
) -> pd.DataFrame:
    """A results table: truth, an effect of each subnet and seed, noise, and `shift` (dataset, method, bucket)."""
    rng = np.random.default_rng(rng)
    subnets = pd.DataFrame(
        [(float(b), i) for b in BUCKETS[backbone] for i in range(n)],
        columns=["bucket", "subnet"],
    )
    subnets["mflops"] = subnets["bucket"] + rng.uniform(-0.5, 0.5, len(subnets))
    subnets[["kernel", "expand", "depth"]] = "3"
    effect = rng.normal(0, 0.5, len(subnets))
    tables = []
    for dataset in datasets:
        for method in methods:
            mean = truth(dataset, method, subnets["mflops"].to_numpy()) + effect - 3 * (backbone == "proxylessnas")
            for seed in seeds:
                accuracy = mean + rng.normal(0, noise) + rng.normal(0, noise, len(subnets))
                if shift:
                    accuracy = accuracy + shift(dataset, method, subnets["bucket"].to_numpy())
                names = {
                    "dataset": dataset,
                    "backbone": backbone,
                    "method": method,
                    "seed": seed,
                }
                tables.append(subnets.assign(accuracy=accuracy, **names))
    return pd.concat(tables, ignore_index=True)


def times(
    methods=("ofa", "rss", "rss-short"),
    datasets=DATASETS,
    seeds=(0, 1, 2),
    ratios=(1.9, 6.1),
    **names,
):
    """Training times with these ratios to OFA's, a little different for each seed."""
    seconds = {
        "ofa": 1900.0,
        "ofa-released": 1880.0,
        "rss": 1900 / ratios[0],
        "rss-short": 1900 / ratios[1],
    }
    fixed = {
        "backbone": "mobilenet_v3",
        "evaluation_seconds": 60.0,
        "hardware": "H200",
        "executor": "graphs",
    } | names
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
    tables = [
        population(main, **options),
        population(more, ["cifar100"], **options),
    ]  # the same subnets: one rng
    tables.append(population(main, ["cifar100"], backbone="proxylessnas", **options))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="module")
def study():
    return whole_study()


def verdicts(claims) -> set[str]:
    """Of the paper's claims."""
    return {claim.verdict for claim in claims if claim.statement.role != "control"}


def one(claims, number, baseline=None) -> c.Claim:
    (claim,) = [k for k in claims if k.statement.number == number and baseline in (None, k.baseline)]
    return claim


def alone(number, population, times) -> c.Claim:
    """The one claim, against OFA."""
    (statement,) = [s for s in (*statements.STATEMENTS, *statements.CONTROLS) if s.number == number]
    parts = statement.parts(Evidence(population, times, "paper"), *["ofa"] * statement.about_ofa)
    return judge(statement, parts, True, "ofa")


NUMBERS = "1 2 3 4 5 6a 6b 1s 3s 7a 7b 8a 8b 9 10 11 12a 12b 12c 13 14 15a 15b 16 17 18 19 20 21".split()
NUMBERS += [f"C{i}" for i in range(1, 11)]
OF_PAPER = [number for number in NUMBERS if not number.startswith("C")]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_every_claim_is_reproduced_where_all_hold(study):
    claims = decide(study, times())
    assert [claim.statement.number for claim in claims] == NUMBERS
    assert verdicts(claims) == {"reproduced"}, [k for k in claims if k.verdict != "reproduced"]
    for claim in claims[: len(OF_PAPER)]:
        estimate, low, high = claim.numbers
        assert low <= estimate <= high and claim.weakest.seeds == 3 and claim.p < 0.05


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
    claim = alone(number, whole_study(shift=LOSSES[number]), times())
    assert claim.verdict == "not reproduced"
    assert claim.weakest.high() < 0


def test_proxylessnas_is_held_against_mobilenet_at_common_sizes():
    study = whole_study()
    claim = alone("16", study, times())
    rows = study[(study["dataset"] == "cifar100") & (study["bucket"] <= 12)]
    means = rows.groupby(["method", "backbone"])["accuracy"].mean().unstack()
    ours = (means["mobilenet_v3"] - means["proxylessnas"])[["ofa", "rss-short", "rss"]]
    assert [part.estimate for part in claim.parts] == pytest.approx(list(ours))
    mobile = study["backbone"] == "mobilenet_v3"
    study.loc[mobile, "accuracy"] -= 20 * (study["bucket"][mobile] <= 12)
    assert alone("16", study, times()).verdict == "not reproduced"
    study.loc[mobile & (study["bucket"] == 14), "accuracy"] += 500  # a size that ProxylessNAS does not have
    assert alone("16", study, times()).verdict == "not reproduced"
    claim = alone("16", study[mobile], times())
    assert claim.verdict == "not run" and "rss on cifar100 with proxylessnas" in claim.missing


def test_one_false_part_refutes_a_conjunction_and_is_shown_with_its_own_interval():
    claims = decide(whole_study(shift=LOSSES["1s"]), times())
    sizes, whole = one(claims, "1s"), one(claims, "1")
    assert sizes.verdict == "not reproduced" and len(sizes.parts) == 24
    assert sizes.weakest.label == "mean difference at 14 MFLOPs on CIFAR-10"
    assert whole.verdict == "reproduced" and len(whole.parts) == 4  # RSS still leads on average


def test_the_weakest_part_is_the_one_with_the_least_evidence():
    """A small clear lead is stronger than a large one that may be none, and that stronger than a clear loss."""
    clear = combine("clear", [(1, [1.0, 1.1, 0.9]), (-1, [0.0, 0.1, 0.2])])
    unclear = combine("unclear", [(1, [1.0, 9.0, 2.0]), (-1, [0.0, 0.1, 0.2])])
    loss = combine("loss", [(1, [-0.5, -0.4, -0.6]), (-1, [0.0, 0.1, 0.2])])
    alone = Part("one seed", 5.0, seeds=1)
    for parts, weakest in (
        ((clear, unclear), unclear),
        ((clear, alone), alone),
        ((unclear, alone, loss), loss),
    ):
        assert judge(statements.STATEMENTS[0], parts, True).weakest == weakest


def test_a_lead_that_a_ceiling_makes_small_grows_in_points_alone():
    table = population(MAIN, noise=0.001)
    odds = {
        "mnist": 3.9,
        "fashion_mnist": 2.2,
        "cifar10": 1.5,
        "cifar100": 0.0,
    }  # of OFA; RSS's are 0.5 more on all
    logits = table["dataset"].map(odds) + 0.5 * (table["method"] == "rss") + 0.001 * table["accuracy"]
    claims = decide(table.assign(accuracy=100 / (1 + np.exp(-logits))), times())
    assert one(claims, "3").verdict == "reproduced"
    assert abs(one(claims, "3s").weakest.estimate) < 0.02 and len(one(claims, "3s").parts) == 3


# --- similar: within a margin -----------------------------------------------------------------------------------------

ALIKE = {  # by claim: what moves its difference by b points, and from where, in the world where all claims hold
    "17": (lambda b: worse("rss-short", b), 0.5, (0, statements.largest_drop())),
    "20": (
        lambda b: lambda d, m, size: b * np.isin(size, (8, 10)) * (m == "rss-alternating"),
        0,
        (-1.2, 1.2),
    ),
    "21": (
        lambda b: lambda d, m, size: b * (size > 11) * (m == "rss-short-alternating"),
        0,
        (-2, 2),
    ),
}


@pytest.mark.parametrize("number", ALIKE)
def test_similar_means_within_the_margin_on_both_sides(number):
    moved, start, (low, high) = ALIKE[number]
    for value, verdict in {low - 1.5: "not reproduced", low + 0.6: "reproduced", high - 0.6: "reproduced",
                           high + 1.5: "not reproduced"}.items():  # fmt: skip
        methods = ("rss", "rss-short", "rss-alternating", "rss-short-alternating")
        table = population(methods, ["cifar100"], shift=moved(value - start), noise=0.02, n=100)
        assert alone(number, table, times()).verdict == verdict, value


@pytest.mark.parametrize("number", ALIKE)
def test_no_difference_found_is_not_similar(number):
    claim = alone(number, whole_study(noise=3.0, seeds=(0, 1)), times())
    assert claim.verdict == "not decided" and claim.weakest.low() < 0 < claim.weakest.high()


def test_margins_are_what_the_paper_shows():
    study = summary.published()
    rows = study[study["quantity"] == "median"].pivot(index="mflops", columns="method", values="value")
    assert statements.largest_drop() == pytest.approx(1.2 * (rows["rss"] - rows["rss-short"]).mean())
    assert 0 < statements.ON_PAR < rows["rss"].max() - rows["rss"].min()


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_tie_is_not_decided(seeds):
    table = population(["rss"], seeds=seeds)
    same = [table.assign(method=method) for method in (*MAIN, "rss-per-batch", "rss-2-per-batch")]
    claims = decide(pd.concat(same, ignore_index=True), times(seeds=seeds))
    for number in ("1", "1s", "2", "3", "3s", "4", "7a", "18"):
        claim = one(claims, number)
        assert (claim.verdict, claim.weakest.estimate) == ("not decided", 0)


@pytest.mark.parametrize("profile", ["paper", "quick"])
@pytest.mark.parametrize("shift", [None, worse("rss", 20)])
def test_one_seed_has_values_and_no_verdict_interval_or_direction(profile, shift):
    table, clocks = with_controls(seeds=(0,), shift=shift), times(seeds=(0,))
    claims = decide(table, clocks, profile=profile, datasets=DATASETS)
    assert {claim.verdict for claim in claims} == {"not decided"}
    for found in (c.table(claims), c.components(claims)):
        assert found["estimate"].notna().all() and set(found["seeds"]) == {1}
        assert found[["low", "high", "p (Holm)"]].isna().all(axis=None)
        assert set(found["verdict"]) == {"not decided"}
    (speed,) = {part.label: part for part in one(claims, "6a").parts}.keys() & {"MNIST"}
    assert np.exp(one(claims, "6a").weakest.estimate) == pytest.approx(1.9, rel=0.02) and speed


def test_many_subnets_do_not_stand_in_for_seeds():
    rng = np.random.default_rng(0)
    table = population(MAIN, seeds=(0, 1, 2), n=100)
    offsets = {"ofa": (0, 0, 0), "rss-short": (1.5, -1.0, 0.4), "rss": (0, 0, 0)}
    table["accuracy"] = [50 + offsets[m][s] for m, s in zip(table["method"], table["seed"], strict=True)]
    table["accuracy"] += rng.normal(0, 0.1, len(table))
    assert alone("2", table, times()).verdict == "not decided"


def test_missing_runs_are_named_not_raised():
    for empty in (NOTHING, population(MAIN, ["mnist"])[:0]):
        claims = decide(empty, NOTHING)
        assert {claim.verdict for claim in claims} == {"not run"} and len(claims) == len(NUMBERS)
        assert all(math.isnan(claim.weakest.estimate) for claim in claims)
    assert {"rss on mnist", "ofa on cifar100"} <= {*one(claims, "1").missing}
    assert "rss-short on cifar100 with proxylessnas" in one(claims, "11").missing
    assert "rss-alternating on cifar100" in one(claims, "9").missing
    assert c.not_run(claims) == ", ".join(NUMBERS)
    assert c.figure_claims(claims)


def test_some_datasets_support_but_do_not_decide():
    claims = decide(population(MAIN, ["mnist", "cifar100"]), times(datasets=["cifar100"]))
    for number in ("1", "2", "4", "5", "6a"):
        claim = one(claims, number)
        assert claim.verdict == "not decided" and any("fashion_mnist" in name for name in claim.missing)
    assert one(claims, "1").weakest.low() > 0 and one(claims, "17").verdict == "reproduced"


def test_every_part_of_a_claim_has_a_verdict_and_those_not_run_have_a_row():
    def shift(dataset, method, bucket):
        return 9.0 * (method == "ofa") * (dataset == "fashion_mnist")  # where the truth has RSS 4 points above

    there = ["mnist", "fashion_mnist"]
    clocks = pd.concat(
        [
            times(datasets=["mnist"], ratios=(1.9, 6.1)),
            times(datasets=["cifar10"], ratios=(0.8, 6.1)),
        ]
    )
    claims = decide(population(MAIN, there, shift=shift), clocks)
    parts = c.components(claims).set_index(["number", "part"]).loc[["1", "6a"]]
    expected = [
        "reproduced",
        "not reproduced",
        "not run",
        "not run",
    ]  # of the datasets in the paper's order
    assert list(parts.loc["1", "verdict"]) == expected
    assert parts.loc["1", "estimate"].round().tolist()[:2] == [2, 4 - 9]
    assert "rss on cifar10" in parts.loc["1", "missing"]["mean difference on CIFAR-10"]
    assert list(parts.loc["6a", "verdict"]) == [
        "not run",
        "reproduced",
        "not run",
        "not reproduced",
        "not run",
    ]
    ratios = parts.loc["6a", "estimate"].iloc[[1, 3]]
    assert list(ratios.index) == ["MNIST", "CIFAR-10"] and list(ratios) == pytest.approx([1.9, 0.8], rel=0.02)
    single = c.components(decide(NOTHING, times(datasets=["mnist"]), profile="quick", datasets=["mnist"]))
    assert list(single.query("number == '6a'")["part"]) == ["MNIST"]  # nothing twice


def test_some_datasets_may_refute():
    claim = alone("1", population(MAIN, ["cifar100"], shift=LOSSES["1"]), times())
    assert claim.verdict == "not reproduced" and "rss on mnist" in claim.missing


def test_a_refutation_counts_the_datasets_to_come():
    """What one dataset of four refutes, the other three cannot take back by being there."""
    loss, later = (
        Part("first", -1.0, 0.2, 2, 3),
        [Part(str(i), 5.0, 0.2, 2, 3) for i in range(3)],
    )
    to_come = [Part(str(i), missing=("rss",)) for i in range(3)]
    assert loss.high() < 0 and 0.025 / 4 < 1 - loss.one_sided
    found = [judge(statements.STATEMENTS[0], [loss, *others], True) for others in (to_come, later, [])]
    assert [claim.verdict for claim in found] == [
        "not decided",
        "not decided",
        "not reproduced",
    ]
    assert found[0].p == pytest.approx(4 * found[2].p) and found[2].p == pytest.approx(loss.p)


@pytest.mark.parametrize("ratios, verdict", [
    ((1.9, 6.1), "reproduced"),
    ((2.2, 7.0), "reproduced"),
    ((1.2, 4.0), "not reproduced"),
    ((3.0, 9.0), "not reproduced"),
    ((0.5, 0.9), "not reproduced"),
])  # fmt: skip
def test_a_speed_up_is_reproduced_within_a_fifth_of_the_published_one(ratios, verdict):
    claims = decide(NOTHING, times(ratios=ratios))
    for number, ratio in zip(("6a", "6b"), ratios, strict=True):
        claim = one(claims, number)
        assert claim.verdict == verdict and claim.numbers[0] == pytest.approx(ratio, rel=0.02)


def test_a_speed_up_whose_interval_crosses_the_tolerance_is_not_decided():
    wide = times(ratios=(2.2, 6.1))
    wide.loc[wide["method"] == "rss", "training_seconds"] *= 1 + 0.5 * wide["seed"]
    assert alone("6a", NOTHING, wide).verdict == "not decided"


@pytest.mark.parametrize("column", ["hardware", "executor"])
def test_times_of_unlike_machines_are_not_compared(column):
    table = times()
    table.loc[table["method"] == "ofa", column] = "another"
    claim = alone("6a", NOTHING, table)
    assert claim.verdict == "not run" and "times of ofa and rss on mnist on one machine" in claim.missing


def test_both_baselines_are_judged():
    def shift(dataset, method, bucket):  # above the released code's, below OFA as its authors train it
        return 12.0 * (method == "ofa")

    claims = decide(whole_study(released=True, shift=shift), times([*MAIN, "ofa-released"]))
    assert len(claims) == len(NUMBERS) + sum(k.about_ofa for k in statements.STATEMENTS) == len(NUMBERS) + 14
    assert one(claims, "1", "ofa").verdict == "not reproduced"
    assert one(claims, "1", "ofa-released").verdict == "reproduced"
    assert list(c.table(claims)["baseline"][:2]) == ["ofa", "ofa-released"]


def test_same_way_takes_either_direction():
    up = {f"{m}-{change}" for m in ("ofa", "rss-short") for change in OVERRIDES}
    assert alone("10", whole_study(shift=lambda d, m, b: 3.0 * (m in up)), times()).verdict == "reproduced"
    none = whole_study(shift=lambda d, m, b: 1.5 * (m == "ofa-lr-0.02"))  # no effect left
    assert alone("10", none, times()).verdict == "not decided"


# --- order and subnets ------------------------------------------------------------------------------------------------


def break_subnets(table):
    table.loc[(table["method"] == "rss") & (table["subnet"] == 0), "mflops"] += 0.01
    return table


@pytest.mark.parametrize("breaking", [
    break_subnets,
    lambda table: table[(table["method"] != "rss") | (table["subnet"] > 0)],
])  # fmt: skip
def test_runs_on_other_subnets_are_refused(breaking):
    with pytest.raises(InputError) as error:
        decide(breaking(population(MAIN, ["cifar100"])), times())
    assert "same subnets" in sentence(error)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_all_runs_of_the_paper_are_planned_once():
    planned = c.study("paper", seeds=[0])
    assert len(planned) == len({run.name for run in planned}) == 45 + len(CONTROLS)
    papers = [run.method.name for run in planned if run.method.name in METHODS]
    assert sum("released" not in name for name in papers) == 37
    assert {run.dataset for run in c.study("smoke")} == {"digits"}
    assert len(c.study("paper", seeds=[0, 1, 2])) == 3 * len(planned)
    with pytest.raises(InputError) as error:
        c.study("papre")
    assert "did you mean 'paper'" in sentence(error)


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_claims():
    def shift(dataset, method, bucket):
        return 12.0 * (method == "ofa") + 5.0 * (method == "ofa-batch-128")

    clocks = times([*MAIN, "ofa-released"], ratios=(2.4, 6.1))
    return decide(whole_study(released=True, shift=shift), clocks)


def test_tables_are_written_with_what_was_not_run_in_a_line(all_claims, tmp_path):
    c.save_claims(all_claims, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == "claims.csv claims.md parts.csv".split()
    table = pd.read_csv(tmp_path / "claims.csv", dtype={"number": str})
    assert list(table["number"]) == [claim.statement.number for claim in all_claims] and table["where"].notna().all()
    page = (tmp_path / "claims.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == (table["verdict"] != "not run").sum() + 2 and len({line.count("|") for line in lines}) == 1
    assert page.endswith(f"Not run: {', '.join(NUMBERS[-10:])}.\n") and "nan" not in page
    parts = c.components(all_claims)
    assert len(pd.read_csv(tmp_path / "parts.csv")) == len(parts)
    assert len(parts[(parts["number"] == "1s") & (parts["baseline"] == "ofa")]) == 24


def test_p_values_are_corrected_over_the_papers_claims(all_claims):
    table = c.table(all_claims)
    counted = table["role"].isin(["main", "claim"])
    own = pd.Series([claim.p for claim in all_claims])
    assert table.loc[~counted, "p (Holm)"].isna().all()
    least = own[counted].idxmin()
    assert table["p (Holm)"][least] == pytest.approx(own[least] * counted.sum())


def test_every_claim_has_a_figure_and_the_papers_words():
    notebooks = "".join(path.read_text() for path in (FOLDER / "notebooks").glob("*.ipynb"))
    for statement in c.STATEMENTS:
        assert all(f'\\"{name}\\"' in notebooks for name in statement.figure.split(", ")), statement.figure
        words = statement.says
        assert any(place in words for place in ("ection", "upplement", "Abstract")) and "Part" in words


# --- controls ---------------------------------------------------------------------------------------------------------


def with_controls(effects=None, methods=tuple(CONTROLS), **options):
    """The whole study with controls: each of these is as RSS or OFA, by default, plus `effects` (by method)."""
    study, effects = whole_study(**options), effects or {}
    own = study[(study["dataset"] == "cifar100") & (study["backbone"] == "mobilenet_v3")]
    rows = []
    for method in methods:
        like = own[own["method"] == ("ofa" if method.startswith("ofa") else "rss")]
        rows.append(like.assign(method=method, accuracy=like["accuracy"] + effects.get(method, -2.0)))
    return pd.concat([study, *rows], ignore_index=True)


def test_controls_agree_or_disagree_at_any_scale():
    for profile in ("paper", "quick"):
        claims = decide(with_controls(), times(), profile=profile, datasets=DATASETS)
        found = {claim.statement.number: claim for claim in claims if claim.statement.role == "control"}
        # from the made-up world: RSS 0, one per batch -2, two -5, Alternating -3; controls -2
        expected = dict(zip(NUMBERS[-10:], (0, 3, 0, 2, 1, 2, 2, 2, 2, 2), strict=True))
        estimates = {number: claim.weakest.estimate for number, claim in found.items()}
        assert estimates == pytest.approx(expected, abs=0.2)
        assert {claim.verdict for number, claim in found.items() if expected[number]} == {"agrees"}
    some = decide(with_controls(methods=["rss-constant"]), times())
    assert c.not_run(some) == "C1, C2, C3, C4, C7, C8, C9, C10"


@pytest.mark.parametrize(
    "kind, dpi",
    [("all", 72), ("all", 160), ("wide", 100), ("one seed", 200), ("nothing", 100)],
)
def test_the_figure_keeps_its_text_apart(all_claims, kind, dpi):
    if kind == "one seed":
        claims = decide(
            whole_study(seeds=(0,), shift=LOSSES["1"]),
            times(seeds=(0,), ratios=(0.3, 40)),
        )
    elif kind == "wide":
        claims = decide(whole_study(seeds=(0, 1), noise=2.0), times(seeds=(0, 1)))
    else:
        claims = all_claims if kind == "all" else decide(NOTHING, NOTHING)
    with matplotlib.rc_context():
        populations.set_style()
        figure = c.figure_claims(claims, "Made-up tables.")
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).draw()
    page, boxes = figure.bbox, []
    for axes in figure.axes:
        low, high = axes.get_xlim()
        drawn = [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
        texts = [*drawn, *axes.get_yticklabels(), axes.xaxis.label]
        boxes += [text.get_window_extent() for text in texts if text.get_text()]
    boxes += [text.get_window_extent() for text in figure.legends[0].get_texts()]
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert not any(box.overlaps(axes.bbox.padded(-2)) for axes in figure.axes), "text over a panel"
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[:i])
    assert figure.caption.startswith("Made-up tables. Bars: 95 % intervals")


def test_the_figure_has_a_panel_per_unit_and_a_row_per_claim_that_was_run(study):
    claims = decide(study, times())
    shown = {}
    for claim in claims[: len(OF_PAPER)]:
        row = f"{claim.statement.text}: {claim.verdict} ({claim.statement.number})"
        shown.setdefault(claim.statement.unit, {})[row] = claim.numbers[0]
    figure = c.figure_claims(claims)
    assert [axes.get_xlabel() for axes in figure.axes] == list(shown)
    for axes, rows in zip(figure.axes, shown.values(), strict=True):
        assert [text.get_text() for text in axes.get_yticklabels()] == list(rows)
        points = [line for line in axes.lines if line.get_marker() == "o"]
        assert [line.get_xdata()[0] for line in points] == list(rows.values())
    alone = c.figure_claims(decide(population(MAIN, seeds=(0,)), NOTHING))
    points = [line for axes in alone.axes for line in axes.lines if line.get_marker() == "o"]
    assert {line.get_markerfacecolor() for line in points} == {"white"}
    assert [axes.get_xlabel() for axes in alone.axes] == [
        "points",
        "points per MFLOPs",
        "log odds",
    ]
