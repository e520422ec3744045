"""Which method to use: ways to train a supernet at equal numbers of subnet passes, as a table and a recommendation."""

import math
from collections.abc import Sequence

import pandas as pd

from rsstudy.claims.evidence import ENOUGH, TAIL, Evidence, Part, over_seeds, power, sign, told
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


def recommendation(population: pd.DataFrame, times: pd.DataFrame, evidence: Evidence) -> str:
    """Which method to use, from the numbers: the most accurate on average or, of those that are shown to be less than
    a point below it, the one that trains fastest. With one seed nothing can be told.

    That a method cannot be told from the best is no reason to use it: few seeds tell little. Leads are those of
    `leads_of_best`, their limits Bonferroni's over all pairs of methods, for the best was chosen as the best.
    """
    styles, means = method_styles(population["method"]), accuracies(population)
    best, mean, leads = means.index[0], means.iloc[0], leads_of_best(population, evidence)
    seeds = len(common_seeds(population))
    if seeds < 2:
        return (
            f"{styles[best].label} has the best mean accuracy, {mean:.1f} %; with one common seed nothing "
            "can be recommended."
        )
    tail, clock = TAIL / max(1, math.comb(len(means), 2)), took(times)
    close = [method for method, part in leads.items() if part.high(tail) < ENOUGH]
    below = [method for method, part in leads.items() if method not in close and sign(part, tail) > 0]
    unclear = [method for method in leads if method not in (*close, *below)]

    def labels(methods: Sequence[str]) -> str:
        return "; ".join(styles[method].label for method in methods)  # there are commas in labels

    use = min([best, *close], key=lambda method: clock.get(method, math.inf))
    second = next(iter(leads), None)
    lead = f"; its lead over the next, {styles[second].label}, is {told(leads[second])}" if second else ""
    text = f"**Use {styles[use].label}.** {styles[best].label} has the best mean accuracy, {mean:.1f} %{lead}."
    if close:
        fastest = f"{styles[use].label} trained fastest of them all" if len(clock) else "their times do not compare"
        text += f" Less than {ENOUGH:g} point below it: {labels(close)}; {fastest}."
    if below:
        text += f" Shown to be below it: {labels(below)}."
    if unclear:
        parts = [leads[method] for method in unclear]
        text += f" Not told from it with {seeds} seeds: {labels(unclear)}{power(parts, tail=tail)}."
    return text


def per_seed(population: pd.DataFrame) -> list[Part]:
    """The mean accuracy of each method, with its interval over seeds."""
    styles = method_styles(population["method"])
    means = population.groupby(["method", "seed"])["accuracy"].mean()
    return [over_seeds(style.label, means[name]) for name, style in styles.items()]
