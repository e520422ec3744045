"""Ways to train a supernet at equal numbers of subnet passes, compared in tables."""

import math
from collections.abc import Sequence

import pandas as pd

from rsstudy.claims.evidence import Evidence, Part, over_seeds
from rsstudy.figures.style import label_of, method_styles
from rsstudy.machine import step_bytes
from rsstudy.plan import Run
from rsstudy.summary import MACHINE, timed


def common_seeds(population: pd.DataFrame) -> set[int]:
    """The seeds that all methods have."""
    return set.intersection(*population.groupby("method")["seed"].agg(set))


def on_common_seeds(population: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds that all methods have, or all rows if there is no such seed."""
    common = population[population["seed"].isin(common_seeds(population))]
    return common if len(common) else population


def comparison(population: pd.DataFrame) -> pd.DataFrame:
    """A row for each method and size: method, bucket, mean and best (percent, means over the seeds that all have)."""
    by_seed = (
        on_common_seeds(population).groupby(["method", "bucket", "seed"], sort=False)["accuracy"].agg(["mean", "max"])
    )
    table = by_seed.groupby(["method", "bucket"], sort=False).mean().reset_index()
    return table.rename(columns={"max": "best"})


def overview(population: pd.DataFrame, times: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """A row a method, the most accurate first: subnet passes (in epochs), accuracy (of `accuracies`), best (mean over
    sizes of the best subnet of a size), time (relative to RSS, as far as hardware is one), memory on CUDA (GiB, an
    estimate from sizes of tensors) and seeds."""
    methods = {run.method.name: run.method for run in runs}
    styles, clock = method_styles(population["method"]), took(times)
    sizes, rows = comparison(population), []
    for name, accuracy in accuracies(population).items():
        rows.append(
            {
                "method": styles[name].label,
                "subnet passes": methods[name].subnet_epochs,
                "accuracy": accuracy,
                "best": sizes.loc[sizes["method"] == name, "best"].mean(),
                "time": clock[name] / clock["rss"] if "rss" in clock else math.nan,
                "memory": 2 + step_bytes(methods[name]) / 2**30,
                "seeds": population.loc[population["method"] == name, "seed"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def took(times: pd.DataFrame) -> pd.Series:
    """Mean training time of each method, in seconds; empty unless one hardware and executor trained all."""
    clocks = timed(times)
    alike = clocks.groupby(list(MACHINE), dropna=False).ngroups == 1
    return clocks.groupby("method")["seconds"].mean() if alike else pd.Series(dtype=float)


def accuracies(population: pd.DataFrame) -> pd.Series:
    """Mean accuracy of each method in percent, the best first: over the seeds that all have, if there are any."""
    by_seed = on_common_seeds(population).groupby(["method", "seed"])["accuracy"].mean()
    return by_seed.groupby("method").mean().sort_values(ascending=False)


def leads_of_best(population: pd.DataFrame, evidence: Evidence) -> dict[str, Part]:
    """By how much the best of `accuracies` leads each other method, on the same seeds; the next best first."""
    best, *others = accuracies(population).index
    seeds = on_common_seeds(population)["seed"].unique()
    label = f"{label_of(best)} minus {{}}".format
    return {name: evidence.contrast(label(label_of(name)), {best: 1, name: -1}, of_seeds=seeds) for name in others}


def per_seed(population: pd.DataFrame) -> list[Part]:
    """The mean accuracy of each method, with its interval over seeds."""
    styles = method_styles(population["method"])
    means = population.groupby(["method", "seed"])["accuracy"].mean()
    return [over_seeds(style.label, means[name]) for name, style in styles.items()]
