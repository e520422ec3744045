"""Results that are committed: whole, of runs that this version still plans, and what they say."""

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rsstudy import tables
from rsstudy.catalogue import methods_of
from rsstudy.claims import interference, samplers
from rsstudy.claims.evidence import Evidence
from rsstudy.figures import interference as drawings
from rsstudy.figures import populations as figures
from rsstudy.plan import plan
from rsstudy.store import finished_of, overview, population_of
from rsstudy.summary import against_published
from rsstudy.tables import anchor_tables, histories, interference_tables, populations

PROJECT = Path(__file__).parents[2]
RESULTS, FIGURES = PROJECT / "data" / "results", PROJECT / "figures"
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
    leads = samplers.leads_of_best(population, evidence)
    return drawings.figure_samplers(samplers.comparison(population), list(leads.values()))


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


@cache
def beside_published():
    """By method, our medians on CIFAR-100 at the paper's scale, the study's, and their differences."""
    table = against_published(populations(ON["cifar100"], RESULTS), tables.times(ON["cifar100"], RESULTS))
    return table.groupby("method")[["ours", "published", "difference"]]


def test_medians_at_the_papers_scale_lie_beside_the_published_ones():
    table = beside_published()
    assert set(table.size()) == {6} and len(table) == len(AT_SCALE["cifar100"]) == 2
    short, long = (table.get_group(label).reset_index(drop=True) for label in ("RSS-Short", "RSS"))
    assert short["difference"].round(2).tolist() == [0.84, -0.22, -0.39, -0.82, -0.7, -0.89]
    assert long["difference"].round(2).tolist() == [-1.52, -1.96, -1.7, -1.83, -1.89, -1.89]
    gains = (long - short).mean()
    assert (gains["ours"], gains["published"]) == pytest.approx((2.2, 3.6), abs=0.05)  # 590 epochs over 180
