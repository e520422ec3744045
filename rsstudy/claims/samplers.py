"""Ways to train a supernet at equal numbers of subnet passes, compared in tables."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from rsstudy.catalogue import base_and_rate
from rsstudy.claims.evidence import Evidence, Part, combine
from rsstudy.figures.style import label_of
from rsstudy.plan import Run
from rsstudy.summary import log_seconds


def accuracies(population: pd.DataFrame) -> pd.Series:
    """Mean accuracy of each method in percent, the best first."""
    runs = population.groupby(["method", "seed"])["accuracy"].mean()
    return runs.groupby("method").mean().sort_values(ascending=False)


def at_best_rates(population: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method at the learning rate of its highest mean accuracy, of those that were run.

    Rates are chosen on the runs that are compared, which favours methods with several rates a little.
    """
    names = accuracies(population).index.to_series()
    best = names.groupby(names.map(lambda name: base_and_rate(name)[0]), sort=False).first()
    return population[population["method"].isin(best)]


def comparison(population: pd.DataFrame) -> pd.DataFrame:
    """A row per method and size: method, bucket, mean and best (percent, means over seeds)."""
    runs = population.groupby(["method", "bucket", "seed"], sort=False)["accuracy"].agg(["mean", "max"])
    means = runs.groupby(["method", "bucket"], sort=False).mean()
    return means.rename(columns={"max": "best"}).reset_index()


def overview(population: pd.DataFrame, evidence: Evidence, runs: Sequence[Run]) -> pd.DataFrame:
    """A row per method and learning rate, the most accurate first.

    Columns: method, rate (relative to RSS's), updates (of the optimizer, in RSS's), subnet passes (in epochs), accuracy
    with its interval over seeds, and training time relative to RSS on one machine.
    """
    methods = {run.method.name: run.method for run in runs}
    rows = []
    for name in accuracies(population).index:
        base, rate = base_and_rate(name)
        part = evidence.contrast(label_of(base), {name: 1})
        groups = log_seconds(evidence.times, name, "rss", evidence.hardest)
        time = np.exp(combine("", groups).estimate) if groups else np.nan
        updates = methods[name].epochs / methods["rss"].epochs if "rss" in methods else np.nan
        passes = methods[name].subnet_epochs
        rows.append((part.label, rate, updates, passes, part.estimate, part.low(), part.high(), part.seeds, time))
    columns = ["method", "rate", "updates", "subnet passes", "accuracy", "low", "high", "seeds", "time"]
    return pd.DataFrame(rows, columns=columns)


def leads(population: pd.DataFrame, evidence: Evidence) -> list[Part]:
    """How much each method leads each less accurate one, those of the best first: all pairs, one family of tests."""
    pairs = combinations(accuracies(population).index, 2)
    return [
        evidence.contrast(f"{label_of(base_and_rate(a)[0])} minus {label_of(base_and_rate(b)[0])}", {a: 1, b: -1})
        for a, b in pairs
    ]
