"""Results that are committed: whole, of runs that this version still plans, and told of truly in README.md."""

import math
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rsstudy import tables
from rsstudy.catalogue import methods_of
from rsstudy.claims import interference, recommendation
from rsstudy.claims import table as claims
from rsstudy.claims.evidence import TAIL, Evidence, seeds_needed, sign
from rsstudy.figures import interference as drawings
from rsstudy.figures import populations as figures
from rsstudy.figures.style import listed, method_styles, panel_label
from rsstudy.plan import plan
from rsstudy.store import finished_of, overview, population_of
from rsstudy.summary import against_published
from rsstudy.tables import anchor_tables, histories, interference_tables, populations

PROJECT = Path(__file__).parents[2]
RESULTS, FIGURES = PROJECT / "data" / "results", PROJECT / "figures"
README, FAITHFULNESS = (
    " ".join((PROJECT / name).read_text(encoding="utf-8").split()) for name in ("README.md", "docs/faithfulness.md")
)
QUICK = plan("quick", methods=["ofa", "ofa-released", "rss", "rss-short"], seeds=[0, 1, 2])
AT_SCALE = {
    "mnist": ["ofa", "ofa-released", "rss", "rss-short"],
    "fashion_mnist": ["ofa", "ofa-released", "rss", "rss-short"],
    "cifar100": ["rss", "rss-short"],
}
ON = {dataset: plan("paper", [dataset], methods) for dataset, methods in AT_SCALE.items()}
PAPER = sum(ON.values(), [])


def test_every_run_is_one_that_is_still_planned_and_is_whole():
    methods = dict.fromkeys((*methods_of("interference"), *methods_of("samplers"), "rss-short"))
    planned = [*plan("quick", methods=list(methods), seeds=range(5)), *PAPER]
    committed = ["git", "-C", str(RESULTS), "ls-files", "*/run.json"]  # whoever uses this clone has runs of their own
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
def tables_of_samplers():
    """Populations, times and the evidence of both."""
    planned = plan("quick", methods="samplers", seeds=range(5))
    population, times = populations(planned, RESULTS), tables.times(planned, RESULTS)
    return population, times, Evidence(population, times, "quick", [planned[0].dataset])


def drawn_of_samplers():
    population, _, evidence = tables_of_samplers()
    leads = recommendation.leads_of_best(population, evidence)
    return drawings.figure_samplers(recommendation.comparison(population), list(leads.values()))


@cache
def tables_of_controls():
    """Populations and anchors of what the notebook on interference compares."""
    planned = finished_of(plan("quick", methods="interference", seeds=[0, 1, 2]), RESULTS)
    return populations(planned, RESULTS), anchor_tables(planned, RESULTS)


def tables_alone():
    return interference.standalone(*tables_of_controls())


def contrasts():
    evidence = Evidence(interference.of_supernets(tables_of_controls()[0]), pd.DataFrame(), "quick", [QUICK[0].dataset])
    return interference.contrasts(evidence)


def tables_of_measurements(number):
    """The tables of effects (0) or agreement (1)."""
    return interference_tables(plan("quick", methods=["rss", "ofa"], seeds=range(5)), RESULTS)[number]


DRAWN = {
    "figure_3_quick": lambda: figures.population_boxes(populations(QUICK, RESULTS)),
    "figure_1_paper": lambda: figures.figure_1(
        populations(ON["mnist"], RESULTS), tables.times(ON["mnist"], RESULTS), "mnist"
    ),
    "figure_3_paper": lambda: figures.population_boxes(populations(PAPER, RESULTS), published=figures.published()),
    "interference_alone_quick": lambda: drawings.figure_alone(tables_alone()),
    "interference_contrasts_quick": lambda: drawings.figure_contrasts(contrasts()),
    "interference_effects_quick": lambda: drawings.figure_effects(tables_of_measurements(0)),
    "interference_gradients_quick": lambda: drawings.figure_agreement(tables_of_measurements(1)),
    "samplers_quick": drawn_of_samplers,
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_committed_figure_is_what_the_runs_draw(name, tmp_path):
    figures.set_style()
    figures.save_figure(DRAWN[name](), tmp_path, name)
    with Image.open(tmp_path / f"{name}.png") as drawn, Image.open(FIGURES / f"{name}.png") as committed:
        assert drawn.size == committed.size
        gaps = np.abs(np.asarray(drawn.convert("L"), float) - np.asarray(committed.convert("L"), float))
        assert (gaps > 60).mean() < 0.0003  # of 255; the medians of one size moved by a point change more


def test_the_readme_tells_what_the_runs_say_of_each_claim_on_the_main_results():
    study = claims.study("quick", seeds=[0, 1, 2])
    decided = claims.decide(*claims.tables(study, RESULTS), "quick")
    cells_of: dict[str, list[str]] = {}
    for claim in decided:
        statement = claim.statement
        of_main = set(statement.figure.split(", ")) <= {"figure_1", "figure_3", "figure_4"}
        if of_main and statement.role == "claim" and claim.verdict != "not run":
            interval = f"{claim.estimate:.2f} {statement.unit}, {claim.low:.2f} to {claim.high:.2f}"
            cells_of.setdefault(statement.text, []).append(f"{interval}: {claim.direction} |")
    rows = [" ".join([f"| {text} |", *cells, *["|"] * (2 - len(cells))]) for text, cells in cells_of.items()]
    assert len(rows) >= 6 and f"| --- | --- | --- | {' '.join(rows)} Rows are of `quick`" in README
    (drop,) = [claim for claim in decided if claim.statement.number == "17"]
    above, below = drop.parts
    (points, limits), allowed = told(above).split(" ", 1), above.estimate + below.estimate
    assert f"a drop of {points} points {limits} leaves of the {allowed:.2f} that are reasonable" in README


def turned(part):
    return replace(part, estimate=-part.estimate)


def told(part, form=".2f"):
    return f"{part.estimate:{form}} ({part.low():{form}} to {part.high():{form}})"


def test_the_readme_tells_what_subnets_alone_say():
    alone = tables_alone()
    assert len(alone[alone["bucket"] == interference.BUCKET]) == 2 * 10 * 3
    equal, exposed = (interference.gap(alone, training) for training in (interference.EQUAL, interference.EXPOSED))
    epochs = f"for as many epochs by {told(equal).replace(' (', ' points (')}"
    updates = f"for as many updates as reach their weights in it by {told(exposed)}"
    assert f"than in RSS's supernet: {epochs}, {updates}: sharing costs." in README
    assert equal.low() > 0 and exposed.low() > 0
    tau, ceiling, *_ = interference.ranking(alone)
    assert f"a Kendall's tau of {told(tau)}, two seeds alone with one of {told(ceiling)}." in README


def test_the_readme_tells_what_was_measured_of_interference_half_way_through_training():
    measured = plan("quick", methods=["ofa", "rss"], seeds=range(5))
    effects, agreement = interference_tables(measured, RESULTS)
    half, agreed = interference.effect_parts(effects), interference.agreement_parts(agreement)
    after = half[(half["share"] == 0.5) & (half["length"] == "epoch")].set_index("method")["others"]
    lowers = "others' loss by {} in RSS and {} in OFA: it helps on average"
    assert lowers.format(*(told(after[method], ".3f") for method in ("rss", "ofa"))) in README
    assert after["rss"].low() > 0 and after["ofa"].low() > 0
    in_epoch = half[(half["share"] == 0.5) & (half["length"] == "epoch")].set_index("method")["harmed"]
    assert f"and harms {100 * in_epoch['rss']:.0f} % and {100 * in_epoch['ofa']:.0f} % of pairs." in README
    supernet, kernel, *smaller = measured[0].method.stages  # what half way is in
    assert measured[0].method.name == "ofa" and supernet.epochs + kernel.epochs >= sum(s.epochs for s in smaller)
    at_the_end = half[(half["share"] == 0.95) & (half["length"] == "step")].set_index("method")["others"]
    assert sign(at_the_end["ofa"]) == -1 and sign(at_the_end["rss"]) == 0
    assert "at 95 % a step harms others in OFA" in README
    pooled = agreed[agreed["share"] == 0.5].set_index("method")["agreement"]
    assert {part.seeds for part in (*after, *pooled)} == {5} and "over five seeds" in README
    assert f"agree half way by {told(pooled['rss'])} in RSS and {told(pooled['ofa'])} in OFA" in README


def test_the_readme_tells_what_a_second_subnet_and_the_time_that_a_draw_holds_change():
    families = contrasts()
    two, twice, once = families["controls"][:3]
    assert two.label == "Mean gradient: one a batch minus two a batch" and two.high() < 0
    assert f"are better than one by {told(turned(two)).replace(' (', ' points (')}, for twice the passes" in README
    assert twice.label == "Summed gradients: one subnet twice minus two subnets" and twice.high() < 0
    assert once.label == "One a batch minus the same subnet twice, summed" and once.low() > 0
    assert f"than one taken twice by {told(turned(twice))}, and that is worse than once by {told(once)}" in README
    draws = families["sampling intervals"]
    assert len(draws) == 4 and {part.seeds for part in (two, twice, once, *draws)} == {3}
    assert all(part.low() < 0 < part.high() for part in draws)
    differences = listed(map(told, draws))
    assert f"cannot be told from one that holds for an epoch: minus it, {differences} points; " in README
    assert f"points; {max(map(seeds_needed, draws))} seeds would tell to a point" in README


def test_the_readme_tells_which_method_the_runs_recommend():
    population, times, evidence = tables_of_samplers()
    means = recommendation.accuracies(population)
    assert len(means) == 7 and means.index[0] == "rss" and f"best mean, {means.iloc[0]:.1f} % over five seeds" in README
    leads = recommendation.leads_of_best(population, evidence)
    ofa, sandwich = told(leads.pop("ofa-equal-passes")).replace(" (", " points ("), told(leads.pop("sandwich"))
    assert f"OFA shortened is below it by {ofa}, the sandwich by {sandwich}; corrected for all pairs" in README
    assert len(leads) == 4 and {lead.seeds for lead in leads.values()} == {5}
    needed = max(seeds_needed(lead, tail=TAIL / 21) for lead in leads.values())
    assert f"four others are not told ({needed} seeds would tell to a point)" in README
    text = recommendation.recommendation(population, times, evidence)
    assert text.startswith("**Use RSS.**") and "Shown to be below it: OFA, shortened; Sandwich. Not told" in text


@cache
def beside_published():
    """By method, our medians on CIFAR-100 at the paper's scale, the study's, and their differences."""
    table = against_published(populations(ON["cifar100"], RESULTS), tables.times(ON["cifar100"], RESULTS))
    return table.groupby("method")[["ours", "published", "difference"]]


def test_medians_at_the_papers_scale_lie_beside_the_published_ones_where_the_texts_say():
    table = beside_published()
    assert set(table.size()) == {6} and len(table) == len(AT_SCALE["cifar100"]) == 2
    short, long = (table.get_group(label).reset_index(drop=True) for label in ("RSS-Short", "RSS"))
    assert (short["difference"] > 0).tolist() == [True] + 5 * [False] and "above only at 4 MFLOPs" in README
    near, far, gains = short["difference"].abs().max(), -long["difference"], (long - short).mean()
    assert near <= 1.5
    assert (
        f"medians are within {near:.1f} points of the published ones, RSS's {far.min():.1f} to {far.max():.1f} below "
        f"them at every size: what 590 epochs gain over 180 is {gains['ours']:.1f} points in the mean over sizes, "
        f"published {gains['published']:.1f}."
    ) in FAITHFULNESS
    ends = {run.method.name: histories([run], RESULTS)["loss"].iloc[-1] for run in ON["cifar100"]}
    losses = f"a loss of {ends['rss']:.2f} on augmented training images, RSS-Short at {ends['rss-short']:.2f}"
    assert losses in FAITHFULNESS
    times = tables.times(ON["cifar100"], RESULTS).set_index("method")["training_seconds"]
    assert f"RSS-Short on CIFAR-100 trained in {times['rss-short'] / 3600:.1f} hours" in README


@cache
def parts_at_scale():
    """The parts of all claims at the paper's scale, by baseline, number of the claim and label."""
    decided = claims.decide(populations(PAPER, RESULTS), tables.times(PAPER, RESULTS), "paper")
    return {(claim.baseline, claim.statement.number, part.label): part for claim in decided for part in claim.parts}


def beside(part, of):
    """How far below or above `of` the other lies that the part is about, with its interval."""
    assert part.low() * part.high() > 0  # else there is no side to tell
    side = "below" if part.estimate > 0 else "above"
    return told(part if side == "below" else turned(part)).replace(" (", f" {side} {of} (")


def cell(dataset, run):
    """What the README's table tells of a run at the paper's scale."""
    method, name = run.method.name, panel_label(dataset)
    medians = populations([run], RESULTS).groupby("bucket")["accuracy"].median()
    text = f"{medians.min():.1f} to {medians.max():.1f}"
    if dataset == "cifar100":
        gaps = beside_published().get_group(method_styles([method])[method].label)["difference"]
        text += {
            "rss-short": f": within {gaps.abs().max():.1f} points of the published, above only at 4 MFLOPs",
            "rss": f": {-gaps.max():.1f} to {-gaps.min():.1f} points below the published "
            "([account](docs/faithfulness.md))",
        }[method]
    if method.startswith("ofa"):
        labels = {"1": name, "2": f"median on {name}", "6a": name}
        rss, short, faster = (parts_at_scale()[method, number, label] for number, label in labels.items())
        assert rss.seeds == short.seeds == faster.seeds == 1
        text += (
            f": {beside(rss, 'RSS')}, {beside(short, 'RSS-Short')}, {math.exp(faster.estimate):.2f} times RSS's time"
        )
    if method == "ofa-released":
        epochs = {stage.name: stage.epochs for stage in run.method.stages}
        text += f"; {epochs.pop('width 1')} epochs of width 1"
        assert all(epochs.values())
    return text


def test_the_readme_tells_what_every_run_at_the_papers_scale_gave():
    rows = []
    for dataset, planned in ON.items():
        runs = {run.method.name: run for run in planned}
        columns = ("ofa", "ofa-released", "rss-short", "rss")
        cells = [cell(dataset, runs[method]) if method in runs else "not run" for method in columns]
        rows.append(f"| {panel_label(dataset)} | {' | '.join(cells)} |")
    head = "| OFA ([figure](figures/figure_1_paper.png)) | OFA as released | RSS-Short | RSS |"
    assert f"{head} | --- | --- | --- | --- | --- | {' '.join(rows)} ![" in README
