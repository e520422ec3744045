"""Ways to train a supernet at equal numbers of subnet passes, compared in tables."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from rsstudy.claims.evidence import Evidence, Part, combine
from rsstudy.figures.style import label_of
from rsstudy.plan import Run
from rsstudy.summary import log_seconds


def comparison(population: pd.DataFrame) -> pd.DataFrame:
    """A row per method and size: method, bucket, mean and best (percent, means over seeds)."""
    runs = population.groupby(["method", "bucket", "seed"], sort=False)["accuracy"].agg(["mean", "max"])
    means = runs.groupby(["method", "bucket"], sort=False).mean()
    return means.rename(columns={"max": "best"}).reset_index()


def accuracies(population: pd.DataFrame) -> pd.Series:
    """Mean accuracy of each method in percent, the best first."""
    runs = population.groupby(["method", "seed"])["accuracy"].mean()
    return runs.groupby("method").mean().sort_values(ascending=False)


def overview(population: pd.DataFrame, evidence: Evidence, runs: Sequence[Run]) -> pd.DataFrame:
    """A row per method, the most accurate first: method, subnet passes (in epochs), accuracy with its interval over
    seeds, and training time relative to RSS on one machine."""
    passes = {run.method.name: run.method.subnet_epochs for run in runs}
    rows = []
    for name in accuracies(population).index:
        part = evidence.contrast(label_of(name), {name: 1})
        groups = log_seconds(evidence.times, name, "rss", evidence.hardest)
        time = np.exp(combine("", groups).estimate) if groups else np.nan
        rows.append((part.label, passes[name], part.estimate, part.low(), part.high(), part.seeds, time))
    columns = ["method", "subnet passes", "accuracy", "low", "high", "seeds", "time"]
    return pd.DataFrame(rows, columns=columns)


def leads(population: pd.DataFrame, evidence: Evidence) -> list[Part]:
    """How much each method leads each less accurate one, those of the best first: all pairs, one family of tests."""
    pairs = combinations(accuracies(population).index, 2)
    return [evidence.contrast(f"{label_of(a)} minus {label_of(b)}", {a: 1, b: -1}) for a, b in pairs]
