"""What claims rest on: statistics of trained supernets, compared over seeds, with 95 % intervals.

The seed is the unit of replication. A statistic is one number per trained supernet, over the subnets on which all
methods are evaluated. The mean of one method has Student's interval over its seeds. Methods are compared by Welch's
interval over the seeds that each of them has, without pairing by seed: seed means of two methods do not correlate here
(-0.33 to about 0), so pairing only loses degrees of freedom. One seed has no interval. All intervals are for these
subnets and these test images.

P-values are two-sided. Those called "p (Holm)" are corrected over a family of tests, which the table names.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from rsslib.errors import InputError, choose
from rsstudy.figures.style import BASELINES
from rsstudy.plan import PROFILES

MOBILENET, PROXYLESS = "mobilenet_v3", "proxylessnas"
TAIL = 0.025  # error rate on either side of an interval
TEST_IMAGES = 10_000  # of each of the paper's datasets
EXTREME = 0.05  # the best and the worst subnets are this share of the population
SUBNET = ["bucket", "subnet", "mflops"]  # columns that identify a subnet
RUN = ["method", "dataset", "backbone"]
COLUMNS = ["what", "estimate", "low", "high", "seeds", "p"]

# --- numbers over seeds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One number that a claim rests on; above 0 if it agrees with the claim."""

    label: str
    estimate: float = math.nan
    error: float = math.nan  # standard error
    degrees: float = 0  # of freedom; 0: there is no interval
    seeds: int = 0  # the fewest of a method in it; 0: it was not run
    missing: tuple[str, ...] = ()  # the runs that it lacks
    limits: tuple[float, ...] = ()  # of an interval that is not symmetric

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval."""
        return stats.t.isf(TAIL, self.degrees) * self.error if self.degrees else math.nan

    def low(self) -> float:
        """Lower confidence limit."""
        return self.limits[0] if self.limits else self.estimate - self.margin

    def high(self) -> float:
        """Upper confidence limit."""
        return self.limits[1] if self.limits else self.estimate + self.margin

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low() > 0 or self.high() < 0

    @property
    def one_sided(self) -> float:
        """P-value of "not above 0"; one half where there is no interval."""
        if not self.degrees or not self.estimate:
            return 0.5
        t = self.estimate / self.error if self.error else math.copysign(math.inf, self.estimate)
        return float(stats.t.sf(t, self.degrees))

    @property
    def p(self) -> float:
        """P-value of "equal to 0"; NaN where there is no interval."""
        return 2 * min(self.one_sided, 1 - self.one_sided) if self.degrees else math.nan

    @property
    def row(self) -> tuple:
        """The number in a table with the columns `COLUMNS`."""
        return (self.label, self.estimate, self.low(), self.high(), self.seeds, self.p)


def combine(label: str, groups: Iterable[tuple[float, Iterable[float]]]) -> Part:
    """The weighted sum of the means of independent groups of seeds, with Welch's error and degrees of freedom.

    Each group is a weight and one value per seed. A group of one seed leaves the sum without an interval.
    """
    terms = [weight * np.array([*values]) for weight, values in groups]
    n = np.array([len(term) for term in terms])
    estimate = round(float(sum(term.mean() for term in terms)), 9) + 0.0  # so that equal numbers differ by exactly 0
    if min(n) < 2:
        return Part(label, estimate, seeds=1)
    variances = np.array([term.var(ddof=1) for term in terms]) / n
    error = round(math.sqrt(variances.sum()), 9)
    degrees = variances.sum() ** 2 / (variances**2 / (n - 1)).sum() if error else min(n) - 1
    return Part(label, estimate, error, degrees, min(n))


def over_seeds(label: str, values: Iterable[float]) -> Part:
    """The mean of one value per seed with Student's interval; NaN is left out."""
    known = [value for value in values if not math.isnan(value)]
    return combine(label, [(1, known)]) if known else Part(label, missing=("measurements",))


def ratio(label: str, denominator: Part, difference: Callable[[float], Part]) -> Part:
    """A ratio with Fieller's interval: every r at which the numerator minus r times the denominator, `difference(r)`,
    may be 0. Missing unless the interval of the denominator excludes 0."""
    numerator = difference(0)
    if not numerator.seeds or not denominator.decided:
        missing = numerator.missing or ("a denominator whose interval excludes 0",)
        return Part(label, missing=missing)
    estimate = numerator.estimate / denominator.estimate
    if numerator.seeds == 1:
        return Part(label, estimate, seeds=1)

    def excess(r: float) -> float:
        part = difference(r)
        return abs(part.estimate) - part.margin

    limits = []
    for step in (-1e-6, 1e-6):
        while excess(estimate + step) < 0:
            step *= 2
        limits.append(optimize.brentq(excess, estimate, estimate + step))
    return Part(label, estimate, seeds=numerator.seeds, limits=tuple(limits))


def holm(p_values: Iterable[float]) -> list[float]:
    """P-values corrected for a family of tests (Holm, 1979); NaN is no test, and stays."""
    p = pd.Series(list(p_values), dtype=float)
    ordered = p.dropna().sort_values()
    corrected = ordered * np.arange(len(ordered), 0, -1)
    return corrected.cummax().clip(upper=1).reindex(p.index).tolist()


def table(parts: Iterable[Part]) -> pd.DataFrame:
    """One row per part: what, estimate, low, high, seeds, p."""
    return pd.DataFrame([part.row for part in parts], columns=COLUMNS)


def comparisons(parts: Sequence[Part]) -> pd.DataFrame:
    """`table` of differences in points, with p corrected over these parts, and "seeds needed" where the interval holds
    0: about how many seeds of each method, with this spread, have an interval of ± 1 point."""
    needed = [math.nan if part.decided else np.ceil(part.seeds * part.margin**2) for part in parts]
    found = table(parts)
    found["p (Holm)"] = holm(found.pop("p"))
    found["seeds needed"] = needed
    return found


def summarise(values: pd.DataFrame, keys: Sequence[str], needs: Mapping[str, str]) -> pd.DataFrame:
    """Means over seeds with their intervals, of a table with a row per key and seed: a row per key and other column.

    Columns: those of `keys`, then `COLUMNS`. A column that `needs` another is left out unless that one is above 0 for
    every seed, and its interval is.
    """
    rows: list[tuple] = []
    for key, group in values.groupby([*keys], sort=False):
        parts = {name: over_seeds(name, group[name]) for name in group if name not in (*keys, "seed")}
        for name, needed in needs.items():
            if (group[needed] <= 0).any() or parts[needed].low() <= 0:
                del parts[name]
        rows += [(*key, *part.row) for part in parts.values()]
    return pd.DataFrame(rows, columns=[*keys, *COLUMNS])


# --- statistics of a supernet -----------------------------------------------------------------------------------------

# From the rows of its subnets: bucket, mflops and accuracy.
Statistic = Callable[[pd.DataFrame], float]


def mean(rows: pd.DataFrame) -> float:
    """Mean accuracy of all subnets."""
    return rows["accuracy"].mean()


def median(rows: pd.DataFrame) -> float:
    """Median accuracy of all subnets."""
    return rows["accuracy"].median()


def at(statistic: Statistic, *buckets: float) -> Statistic:
    """A statistic of the subnets of these sizes."""
    return lambda rows: statistic(rows[rows["bucket"].isin(buckets)])


def difference(one: Statistic, other: Statistic) -> Statistic:
    """The first statistic minus the second."""
    return lambda rows: one(rows) - other(rows)


def best(rows: pd.DataFrame) -> float:
    """Mean accuracy of the best 5 % of all subnets."""
    return rows["accuracy"].nlargest(max(1, round(EXTREME * len(rows)))).mean()


def extent(rows: pd.DataFrame) -> float:
    """Mean accuracy of the best 5 % of all subnets minus that of the worst 5 %."""
    return best(rows) + best(rows.assign(accuracy=-rows["accuracy"]))


def slope(rows: pd.DataFrame) -> float:
    """Slope of the least-squares line of accuracy on size, in points per MFLOPs."""
    x = rows["mflops"] - rows["mflops"].mean()
    return (x * rows["accuracy"]).sum() / (x * x).sum()


def loss_away_from(size: float) -> Statistic:
    """Points of accuracy lost per MFLOPs of distance to `size`."""
    return lambda rows: -slope(rows.assign(mflops=abs(rows["mflops"] - size)))


def log_odds(rows: pd.DataFrame) -> float:
    """Mean over all subnets of the log odds of a right answer.

    Near 100 % a point is worth more than in the middle, so that the ceiling of an easy dataset does not make a gain
    there look small. 0 and 100 % count as half an image of `TEST_IMAGES` right or wrong.
    """
    least = 0.5 / TEST_IMAGES
    share = (rows["accuracy"] / 100).clip(least, 1 - least)
    return np.log(share / (1 - share)).mean()


# --- all runs ---------------------------------------------------------------------------------------------------------


class Evidence:
    """Statistics of every run in results tables.

    `population` and `times` are tables as from `rsstudy.tables`; either may be empty. The claims are about the
    paper's four datasets; `datasets`, by default the profile's, stand in for them, the hardest last.
    Raises InputError for an unknown profile and for runs that were not evaluated on the same subnets.
    """

    def __init__(
        self,
        population: pd.DataFrame,
        times: pd.DataFrame,
        profile: str,
        datasets: Sequence[str] | None = None,
    ):
        scale = PROFILES[choose(profile, PROFILES, "profile")]
        self.decides = profile == "paper"
        self.times = times
        self.datasets = tuple(datasets or scale.datasets)
        self.hardest = self.datasets[-1]  # that of the paper's ablations, or what stands in for it
        methods = {*population.get("method", ()), *times.get("method", ())}
        self.baselines = [name for name in BASELINES if name == "ofa" or name in methods]
        self.supernets: dict[tuple, list[pd.DataFrame]] = {}  # one table per seed, by run
        for backbone, rows in population.groupby("backbone") if len(population) else ():
            supernets = [*rows.sort_values(SUBNET).groupby([*RUN, "seed"])]
            if (rows.groupby(SUBNET).size() != len(supernets)).any():
                raise InputError(
                    f"the runs with {backbone} were not all evaluated on the same subnets: "
                    "evaluate them with one subnets_per_bucket"
                )
            for (*run, _), subnets in supernets:
                self.supernets.setdefault(tuple(run), []).append(subnets)

    def contrast(
        self,
        label: str,
        terms: Mapping[Any, float],
        statistic: Statistic = mean,
        dataset: str = "",
        backbone: str = MOBILENET,
    ) -> Part:
        """A weighted sum of a statistic of several runs.

        `terms` are weights by method, on `dataset` (by default the hardest) and `backbone`, or by (method, dataset,
        backbone).
        """
        where = (dataset or self.hardest, backbone)
        groups, missing = [], []
        for term, weight in terms.items():
            run = (term, *where) if isinstance(term, str) else term
            if run in self.supernets:
                groups.append((weight, map(statistic, self.supernets[run])))
            else:
                missing.append(" on ".join(run[:2]) + f" with {run[2]}" * (run[2] != MOBILENET))
        return Part(label, missing=tuple(missing)) if missing else combine(label, groups)
