"""Results that are committed: whole, of runs that this version still plans, and what they say."""

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from rsstudy import summary, tables
from rsstudy.catalogue import methods_of
from rsstudy.claims import experiments, interference, samplers
from rsstudy.claims import table as claims
from rsstudy.claims.evidence import Evidence, comparisons
from rsstudy.figures import interference as drawings
from rsstudy.figures import populations as figures
from rsstudy.plan import plan
from rsstudy.store import finished_of, overview, population_of
from rsstudy.summary import differences, findings, medians, speed_ups
from rsstudy.tables import anchor_tables, histories, interference_tables, populations, with_all_seeds

PROJECT = Path(__file__).parents[2]
RESULTS, FIGURES = PROJECT / "data" / "results", PROJECT / "figures"
MAIN = ("ofa", "ofa-released", "rss", "rss-short")
QUICK = plan("quick", methods=MAIN, seeds=[0, 1, 2])
AT_SCALE = {
    "mnist": ["ofa", "ofa-released", "rss", "rss-short"],
    "fashion_mnist": ["ofa", "ofa-released", "rss", "rss-short"],
    "cifar100": ["rss", "rss-short"],
}
ON = {dataset: plan("paper", [dataset], methods) for dataset, methods in AT_SCALE.items()}
PAPER = sum(ON.values(), [])


def test_every_run_is_one_that_is_still_planned_and_is_whole():
    groups = ("interference", "samplers", "rates", "bridge", "dose")
    methods = dict.fromkeys([*(name for group in groups for name in methods_of(group)), "rss-short"])
    planned = [*plan("quick", methods=list(methods), seeds=range(5)), *PAPER]
    committed = [
        "git",
        "-C",
        str(RESULTS),
        "ls-files",
        "*/run.json",
    ]  # a clone may hold its user's own runs
    records = subprocess.run(committed, capture_output=True, text=True, check=True).stdout.split()
    folders = {(RESULTS / record).parent for record in records}
    planned = [run for run in planned if run.folder(RESULTS) in folders]
    assert {run.folder(RESULTS) for run in planned} == folders and {*QUICK} <= {*planned}
    assert set(overview(planned, RESULTS)["status"]) == {"finished"}
    history = histories(planned, RESULTS)
    population = pd.concat([populations([run], RESULTS) for run in planned])
    assert len(population) == sum(len(population_of(run)) for run in planned)
    assert len(history) == sum(run.method.epochs for run in planned)
    assert population["accuracy"].between(0, 100).all()


@cache
def stored(profile, *methods):
    """Populations, times, anchors and measurements of the committed runs of these methods or group, of every seed."""
    planned = plan(profile, methods=methods[0] if len(methods) == 1 else methods)
    runs = finished_of(with_all_seeds(planned, RESULTS), RESULTS)
    measured = interference_tables(runs, RESULTS)
    return (
        populations(runs, RESULTS),
        tables.times(runs, RESULTS),
        anchor_tables(runs, RESULTS),
        *measured,
    )


@cache
def decided(profile):
    return claims.decide(
        *claims.tables(with_all_seeds(claims.study(profile), RESULTS), RESULTS),
        profile,
    )


@cache
def evidence(group):
    population, times, *_ = stored("quick", group)
    return Evidence(interference.only_supernets(population), times, "quick")


def alone():
    population, _, anchors, *_ = stored("quick", "interference")
    return interference.standalone(population, anchors)


def drawn_of_samplers():
    best = samplers.at_best_rates(stored("quick", "rates")[0])
    comparison = samplers.comparison(best)
    leads = samplers.leads(best, evidence("rates"))[: comparison["method"].nunique() - 1]
    return drawings.figure_samplers(comparison, leads, about("rates"))


def drawn_budgets():
    overview = samplers.overview(stored("quick", "rates")[0], evidence("rates"), plan("quick", methods="rates"))
    return drawings.figure_budgets(overview, about("rates"))


def about(*methods):
    """What a figure of the stored runs of these methods or group says of them."""
    planned = plan("quick", methods=methods[0] if len(methods) == 1 else methods)
    return figures.caption(finished_of(with_all_seeds(planned, RESULTS), RESULTS))


DRAWN = {
    "figure_3_quick": lambda: figures.population_boxes(stored("quick", *MAIN)[0], about(*MAIN)),
    "figure_1_paper": lambda: figures.figure_1(
        populations(ON["mnist"], RESULTS), tables.times(ON["mnist"], RESULTS), "mnist", figures.caption(ON["mnist"])
    ),
    "figure_3_paper": lambda: figures.population_boxes(
        populations(PAPER, RESULTS), figures.caption(PAPER), summary.published()
    ),
    "interference_alone_quick": lambda: drawings.figure_alone(alone(), about("interference")),
    "interference_contrasts_quick": lambda: drawings.figure_contrasts(
        interference.contrasts(evidence("interference")), about("interference")
    ),
    "interference_effects_quick": lambda: drawings.figure_effects(
        stored("quick", "interference")[3], about("ofa", "rss")
    ),
    "interference_gradients_quick": lambda: drawings.figure_agreement(
        stored("quick", "interference")[4], about("ofa", "rss")
    ),
    "samplers_quick": drawn_of_samplers,
    "budgets_quick": drawn_budgets,
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_committed_figure_is_what_the_runs_draw(name, tmp_path):
    figures.set_style()
    figures.save_figure(DRAWN[name](), tmp_path, name)
    with (
        Image.open(tmp_path / f"{name}.png") as drawn,
        Image.open(FIGURES / f"{name}.png") as committed,
    ):
        assert drawn.size == committed.size
        gaps = np.abs(np.asarray(drawn.convert("L"), float) - np.asarray(committed.convert("L"), float))
        assert (gaps > 60).mean() < 0.0003  # of 255; the medians of one size moved by a point change more


# --- numbers of the claims --------------------------------------------------------------------------------------------


def test_no_table_has_an_interval_a_verdict_or_a_direction_from_one_seed():
    population, times = claims.tables(with_all_seeds(claims.study("paper"), RESULTS), RESULTS)
    made = [claims.table(decided("paper")), claims.components(decided("paper"))]
    made += [
        claims.components(decided("quick")),
        medians(population),
        differences(population),
    ]
    made += [findings(population, times), speed_ups(times)]
    made += [comparisons(interference.contrasts(evidence("interference"))["controls"])]
    for table in made:
        one = table[table["seeds"] == 1]
        assert one[["low", "high"]].isna().all(axis=None)
        assert one.filter(regex=r"^p$|^p \(Holm\)$|^seeds needed$").isna().all(axis=None)
        assert set(one.get("verdict", ["not decided"])) <= {"not decided"}
    assert all((table["seeds"] == 1).any() for table in made)
    assert {claim.verdict for claim in decided("paper")} == {
        "not decided",
        "not run",
    }


def weakest(number, baseline=""):
    (claim,) = [c for c in decided("quick") if (c.statement.number, c.baseline) == (number, baseline)]
    return claim


def test_contrasts_use_every_stored_seed_of_each_method():
    """Recomputed from the tables of the runs by SciPy."""
    means = stored("quick", *MAIN)[0].groupby(["method", "seed"])["accuracy"].mean()
    assert means.groupby("method").size().to_dict() == {
        "ofa": 5,
        "ofa-released": 3,
        "rss": 5,
        "rss-short": 3,
    }
    for baseline in ("ofa", "ofa-released"):
        known = stats.ttest_ind(means["rss"], means[baseline], equal_var=False).confidence_interval()
        assert weakest("1", baseline).numbers[1:] == pytest.approx((known.low, known.high))
    assert weakest("1", "ofa").numbers == pytest.approx((5.35, 3.04, 7.66), abs=0.005)
    assert weakest("7a").numbers == pytest.approx((-3.52, -4.96, -2.08), abs=0.005)  # two per batch are better
    verdicts = {number: weakest(number).verdict for number in ("7a", "17", "18", "19")}
    assert verdicts == {
        "7a": "disagrees",
        "17": "disagrees",
        "18": "disagrees",
        "19": "agrees",
    }


def test_no_way_to_train_is_shown_to_be_better_than_rss():
    """What docs/results.md says of three learning rates each."""
    population = stored("quick", "rates")[0]
    table = comparisons(samplers.leads(samplers.at_best_rates(population), evidence("rates"))).set_index("what")
    above = table[table.index.str.endswith("minus RSS")]
    assert above["estimate"].to_dict() == {"RSS, every 50 batches minus RSS": pytest.approx(0.90, abs=0.005)}
    assert (above["low"] < 0).all()
    ofa = table.loc["RSS minus OFA, shortened", ["estimate", "low", "high"]].tolist()
    assert ofa == pytest.approx([9.96, 8.05, 11.88], abs=0.005)
    decided = table[table["p (Holm)"] < 0.05]
    assert decided.index.str.endswith("minus OFA, shortened").sum() > 2
    (other,) = decided.index[~decided.index.str.endswith("minus OFA, shortened")]
    assert other == "RSS minus Delayed shrinking"
    assert decided.loc[other, ["estimate", "low", "high"]].tolist() == pytest.approx([7.54, 4.93, 10.14], abs=0.005)
    means = samplers.accuracies(population)
    assert all(means[name] < means[name.removesuffix("-triple-rate")] for name in means.index if "triple" in name)


def test_most_of_an_epoch_is_forgotten():
    runs = with_all_seeds(plan("quick", methods=["rss"]), RESULTS)
    parts = experiments.forgetting(tables.forgetting_tables(runs, RESULTS))
    found = {part.label: (part.estimate, part.low(), part.high()) for part in parts}
    assert found["epochs later: 0"] == pytest.approx((4.64, 3.31, 5.98), abs=0.005)
    assert found["epochs later: 8"] == pytest.approx((1.28, 0.66, 1.90), abs=0.005)
    assert found["share of the gain, 8 epochs later"] == pytest.approx((0.28, 0.19, 0.33), abs=0.005)


def test_effects_on_others_over_effects_on_itself_do_not_depend_on_the_learning_rate():
    effects = stored("quick", "interference")[3]
    half = interference.half_way(effects[effects["length"] == "epoch"])
    found = interference.effect_table(half).set_index(["method", "what"])[["estimate", "low", "high"]]
    assert found.loc["rss", "others / itself"].tolist() == pytest.approx([0.45, 0.27, 0.62], abs=0.005)
    assert found.loc["ofa", "others / itself"].tolist() == pytest.approx([0.16, 0.11, 0.21], abs=0.005)
    by_size = interference.effect_table(half, ["method", "judged_mflops"])
    harmed = by_size[(by_size["method"] == "ofa") & (by_size["what"] == "pairs harmed (%)")]
    harmed = harmed.set_index("judged_mflops")["estimate"]
    assert harmed.iloc[-2:].round().tolist() == [80, 91] and harmed.iloc[:-2].max() < 30  # those already trained
    every = interference.effect_table(effects)
    assert (every["p (Holm)"] < 0.05).sum() == 1  # one of eight: OFA, an epoch, half way
