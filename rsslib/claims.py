"""One verdict for each claim of the paper, from results tables alone: estimate, 95 % interval and the deciding rule.

Every claim is a function of an `Evidence`, the checked and paired results, and says in its docstring where the paper
makes it, what is estimated, with which interval, and what decides. `decide` calls them all.

How an interval is made. All methods are evaluated on the same subnets, and a run is known by its seed, so every
comparison is a difference within subnet and seed. Seeds and subnets are crossed: each seed has every subnet. The
bootstrap is therefore hierarchical with one draw of subnets for all seeds: draw seeds with replacement, then subnets
with replacement within each size bucket, and average over the seeds drawn (as Owen's pigeonhole bootstrap, 2007). It
draws one fewer than there are, of seeds and of a bucket's subnets, which makes the variance of a mean unbiased (Rao and
Wu, 1988). The interval is the estimate plus or minus the bootstrap's standard error times Student's t with one degree
of freedom fewer than there are seeds: the seed is the unit of replication, and with so few of them a bootstrap's
percentiles would be far too narrow. With one seed only subnets are drawn, the interval is silent about other seeds, and
the verdict says so. The test images are taken as they are.

How parts become a verdict. Most claims are conjunctions (at every size, every adjacent pair) and hold if the smallest
of their parts is above 0. The estimate is the smallest part's. Its lower limit is the smallest of the parts' lower
limits, without correction (an intersection-union test); its upper limit is corrected for the number of parts
(Bonferroni), or that of the mean of the parts if lower, each at half the error rate, since the smallest part is at most
the mean. Then

- reproduced: the interval is above 0;
- not reproduced: the interval is below 0;
- inconclusive: it holds 0, or there is none;
- not run: results are missing, and those there do not refute the claim already;
- scale decides nothing: the runs are not at the paper's epochs.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.patches import Patch
from scipy import stats

from rsslib.errors import InputError, choose
from rsslib.methods import METHODS, TABLE_1, build
from rsslib.runs import PROFILES, atomic_path
from rsslib.space import SearchSpace

REPRODUCED, REFUTED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_RUN, NO_SCALE = "not run", "scale decides nothing"
ONE_SEED = " (one seed)"

MOBILENET, PROXYLESS = "mobilenet_v3", "proxylessnas"
BASELINES = {"ofa": "OFA", "ofa-released": "OFA (released code)"}
LABELS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
SCHEMES = ("smallest", "middle", "largest")
CHANGES = {"batch-128": "batch size 128", "dropout-0.3": "dropout 0.3", "lr-0.02": "learning rate 0.02"}
NOTEBOOKS = {
    "figure_1": "02_main_results",
    "figure_3": "02_main_results",
    "figure_4": "02_main_results",
    "figure_5": "03_subnets_per_update",
    "figure_S1": "03_subnets_per_update",
    "figure_6": "04_selection_schemes",
    "figure_7": "04_selection_schemes",
    "figure_S2": "04_selection_schemes",
    "figure_S4": "05_hyperparameters",
    "figure_S5": "05_hyperparameters",
    "figure_S6": "05_hyperparameters",
    "figure_S7": "06_proxylessnas",
}

TAIL = 0.025  # error rate on either side of an interval
EXTREME = 0.05  # the best and the worst subnets are this share of the population
TOLERANCE = 0.2  # of a published speed-up
SPEED_UPS = {"rss": 1.9, "rss-short": 6.1}
EVALUATION_KEYS = ("bucket", "subnet")
POPULATION_COLUMNS = (
    "dataset", "backbone", "method", "seed", "bucket", "subnet", "mflops", "kernel", "expand", "depth", "accuracy",
)  # fmt: skip
TIMES_COLUMNS = (
    "dataset", "backbone", "method", "seed", "training_seconds", "evaluation_seconds", "hardware", "executor",
)  # fmt: skip
TRAIN_IMAGES = {"mnist": 50_000, "fashion_mnist": 50_000, "cifar10": 40_000, "cifar100": 40_000}
TEST_IMAGES = 10_000


# --- what is estimated ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One number that a claim rests on: positive if it agrees with the claim, unless the claim says otherwise."""

    label: str
    estimate: float = math.nan
    error: float = math.nan  # standard error; NaN: there is no interval
    degrees: int = 0  # of freedom
    seeds: int = 0
    missing: tuple[str, ...] = ()  # runs that it needs and that are not there
    replicates: np.ndarray | None = field(default=None, repr=False, compare=False)  # [resamples]

    def low(self, tail: float = TAIL) -> float:
        """Lower confidence limit with error rate `tail`."""
        return self.estimate - self._margin(tail)

    def high(self, tail: float = TAIL) -> float:
        """Upper confidence limit with error rate `tail`."""
        return self.estimate + self._margin(tail)

    def _margin(self, tail: float) -> float:
        return stats.t.isf(tail, self.degrees) * self.error if self.degrees and not math.isnan(self.error) else math.nan

    def parts(self) -> list["Part"]:
        return [self]

    def __neg__(self) -> "Part":
        replicates = None if self.replicates is None else -self.replicates
        return Part(self.label, -self.estimate, self.error, self.degrees, self.seeds, self.missing, replicates)


@dataclass(frozen=True)
class All:
    """The smallest of several quantities: above 0 if all are. Members without results are left out."""

    label: str
    of: tuple

    @property
    def there(self) -> list:
        return [part for part in self.of if not math.isnan(part.estimate)]

    @property
    def estimate(self) -> float:
        return min((part.estimate for part in self.there), default=math.nan)

    def low(self, tail: float = TAIL) -> float:
        """The smallest lower limit: the smallest quantity is below its own limit with probability `tail` at most."""
        return _worst(min, [part.low(tail) for part in self.there])

    def high(self, tail: float = TAIL) -> float:
        """The smallest simultaneous upper limit, or that of the mean, which no smallest quantity exceeds."""
        members = self.there
        if len(members) < 2:
            return members[0].high(tail) if members else math.nan
        if not all(isinstance(part, Part) and part.replicates is not None for part in members):
            return _worst(min, [part.high(tail / len(members)) for part in members])
        limits = [part.high(tail / 2 / len(members)) for part in members]
        return _worst(min, [*limits, _mean(members).high(tail / 2)])

    def parts(self) -> list[Part]:
        return [leaf for part in self.of for leaf in part.parts()]


@dataclass(frozen=True)
class SameSign:
    """Two quantities as one that is above 0 if both are, or if both are below: the larger of both smallest."""

    label: str
    of: tuple[Part, Part]

    @property
    def _ways(self) -> tuple[All, All]:
        return All(self.label, self.of), All(self.label, tuple(-part for part in self.of))

    @property
    def estimate(self) -> float:
        whole = not any(math.isnan(part.estimate) for part in self.of)
        return max(way.estimate for way in self._ways) if whole else math.nan

    def low(self, tail: float = TAIL) -> float:
        return _worst(max, [way.low(tail / 2) for way in self._ways])

    def high(self, tail: float = TAIL) -> float:
        return _worst(max, [way.high(tail) for way in self._ways])

    def parts(self) -> list[Part]:
        return list(self.of)


def _worst(choose_from: Callable, limits: list[float]) -> float:
    """min or max of `limits`; NaN if any is, since a limit that is not known may be anything."""
    return choose_from(limits) if limits and not any(map(math.isnan, limits)) else math.nan


def _mean(parts: Sequence[Part]) -> Part:
    replicates = np.mean([part.replicates for part in parts], axis=0)
    estimate = float(np.mean([part.estimate for part in parts]))
    degrees, seeds = (min(getattr(part, name) for part in parts) for name in ("degrees", "seeds"))
    error = math.nan if any(math.isnan(part.error) for part in parts) else float(replicates.std(ddof=1))
    return Part("mean", estimate, error, degrees, seeds, (), replicates)


@dataclass(frozen=True)
class Subnets:
    """The evaluated subnets of a backbone and how often each resample draws them."""

    mflops: np.ndarray  # [subnets]
    buckets: tuple[float, ...]
    groups: tuple[slice, ...]  # one a bucket
    weights: np.ndarray | None  # [subnets, resamples]; None if a bucket has a single subnet

    @property
    def smallest_group(self) -> int:
        return min(group.stop - group.start for group in self.groups)


# A statistic of one run: (weights [subnets, R], accuracy [seeds, subnets], subnets) -> [values, seeds, R].
Statistic = Callable[[np.ndarray, np.ndarray, Subnets], np.ndarray]


def bucket_means(weights: np.ndarray, accuracy: np.ndarray, subnets: Subnets) -> np.ndarray:
    """Mean accuracy of each size bucket."""
    return np.stack([accuracy[:, g] @ weights[g] / weights[g, 0].sum() for g in subnets.groups])


def population_mean(weights: np.ndarray, accuracy: np.ndarray, subnets: Subnets) -> np.ndarray:
    """Mean over the buckets of their mean accuracy."""
    return bucket_means(weights, accuracy, subnets).mean(0, keepdims=True)


def median(weights: np.ndarray, accuracy: np.ndarray, subnets: Subnets) -> np.ndarray:
    """Median accuracy of the whole population."""
    values = []
    for row in accuracy:
        order = np.argsort(row, kind="stable")
        drawn = _running_sum(weights[order])
        half = drawn[-1] / 2
        lower, upper = (drawn < half).sum(0), (drawn <= half).sum(0)
        values.append((row[order[lower]] + row[order[upper]]) / 2)
    return np.stack(values)[None]


def best(weights: np.ndarray, accuracy: np.ndarray, subnets: Subnets) -> np.ndarray:
    """Mean accuracy of the population's best 5 %."""
    return np.stack([-_lowest(weights, -row) for row in accuracy])[None]


def spread(weights: np.ndarray, accuracy: np.ndarray, subnets: Subnets) -> np.ndarray:
    """Mean accuracy of the population's best 5 % minus that of its worst 5 %."""
    worst = np.stack([_lowest(weights, row) for row in accuracy])
    return best(weights, accuracy, subnets) - worst


def _lowest(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    count = max(1.0, EXTREME * weights[:, 0].sum())
    first = order[: math.ceil(1.5 * count) + 20]  # enough in nearly every resample
    drawn = _running_sum(weights[first])
    if drawn[-1].min() < count:
        first, drawn = order, _running_sum(weights[order])
    drawn = np.minimum(drawn, count, out=drawn)
    return values[first[-1]] - np.diff(values[first]) @ drawn[:-1] / count  # summed by parts


def _running_sum(weights: np.ndarray) -> np.ndarray:
    """Cumulative sum over the first axis, in place: row by row, many times as fast as cumsum on such long rows."""
    for above, row in pairwise(weights):
        row += above
    return weights


def slope(weights: np.ndarray, accuracy: np.ndarray, subnets: Subnets, away_from: float | None = None) -> np.ndarray:
    """Slope of the least-squares line of accuracy on size in MFLOPs, or on the distance to the size `away_from`."""
    x = subnets.mflops if away_from is None else np.abs(subnets.mflops - away_from)
    x, y = x - x.mean(), accuracy - accuracy.mean()
    means = np.vstack([x, x * x, y, x * y]) @ weights / weights[:, 0].sum()
    x_mean, x_square, y_mean, xy_mean = means[0], means[1], means[2 : 2 + len(y)], means[2 + len(y) :]
    return ((xy_mean - x_mean * y_mean) / (x_square - x_mean**2))[None]


class Evidence:
    """Results tables, checked and paired, with the resamples that all claims share.

    `population` and `times` are tables as from `rsslib.runs`; either may be empty. The claims are about the paper's
    four datasets; at another scale `datasets`, by default those in `population`, stand in for them, the hardest last.
    Raises InputError for tables that cannot be used, above all if methods were not evaluated on the same subnets.
    """

    def __init__(
        self,
        population: pd.DataFrame,
        times: pd.DataFrame,
        scale_is_paper: bool,
        datasets: Sequence[str] | None = None,
        resamples: int = 10_000,
        seed: int = 0,
    ):
        if not isinstance(resamples, int) or resamples < 100:
            raise InputError(f"resamples is {resamples!r}: expected a whole number of at least 100")
        _check_table(population, POPULATION_COLUMNS, "population", "accuracy", EVALUATION_KEYS)
        _check_table(times, TIMES_COLUMNS, "times", "training_seconds", ())
        self.times, self.scale_is_paper, self.resamples, self.seed = times, scale_is_paper, resamples, seed
        stand_ins = datasets or _difficulty_order(population.get("dataset", ()))
        self.datasets = tuple(TABLE_1) if scale_is_paper else tuple(stand_ins)
        methods = {*population.get("method", ()), *times.get("method", ())}
        self.baselines = [b for b in BASELINES if b == "ofa" or any(m.startswith(b) for m in methods)]
        self._accuracy: dict[tuple[str, str, str], tuple[list[int], np.ndarray]] = {}
        self._subnets: dict[str, Subnets] = {}
        self._cache: dict[tuple, tuple[np.ndarray, np.ndarray | None]] = {}
        if len(population):
            for backbone, table in population.reset_index(drop=True).groupby("backbone"):
                self._add(backbone, table)

    @property
    def hardest(self) -> str:
        """The dataset of the paper's ablations, or what stands in for it."""
        return "cifar100" if "cifar100" in self.datasets else self.datasets[-1]

    def _add(self, backbone: str, table: pd.DataFrame) -> None:
        _check_same_subnets(backbone, table)
        table = table.sort_values(["seed", *EVALUATION_KEYS], kind="stable")
        for (dataset, method), rows in table.groupby(["dataset", "method"]):
            seeds = sorted(rows["seed"].unique())
            self._accuracy[dataset, backbone, method] = seeds, rows["accuracy"].to_numpy(float).reshape(len(seeds), -1)
        rows = table[table.groupby(list(EVALUATION_KEYS)).cumcount() == 0].sort_values(list(EVALUATION_KEYS))
        edges = [0, *np.cumsum(rows.groupby("bucket").size())]
        groups = tuple(slice(int(a), int(b)) for a, b in pairwise(edges))
        rng, weights = np.random.default_rng(self.seed), None
        if all(group.stop - group.start > 1 for group in groups):
            weights = np.concatenate([_draw(rng, group.stop - group.start, self.resamples) for group in groups])
        buckets = tuple(float(bucket) for bucket in rows["bucket"].unique())
        self._subnets[backbone] = Subnets(rows["mflops"].to_numpy(float), buckets, groups, weights)

    def buckets(self, backbone: str = MOBILENET) -> tuple[float, ...]:
        """Size buckets in MFLOPs; none if nothing was evaluated."""
        return self._subnets[backbone].buckets if backbone in self._subnets else ()

    def contrast(
        self,
        labels: str | Sequence[str],
        terms: Sequence[tuple[float, str, str]],
        statistic: Statistic = population_mean,
        backbone: str = MOBILENET,
    ) -> list[Part]:
        """A weighted sum of one statistic over runs: a part for each of its values.

        `terms` are (weight, dataset, method). Only seeds that all terms have are used, each paired with itself.
        """
        labels = [labels] if isinstance(labels, str) else labels
        keys = [(dataset, backbone, method) for _, dataset, method in terms]
        if missing := [_name(*key) for key in keys if key not in self._accuracy]:
            return [Part(labels[0] if len(labels) == 1 else _name(*keys[0]), missing=tuple(missing))]
        seeds = sorted(set.intersection(*(set(self._accuracy[key][0]) for key in keys)))
        if not seeds:
            return [Part(labels[0], missing=("a seed common to " + " and ".join(_name(*key) for key in keys),))]
        subnets, draws = self._subnets[backbone], self._seed_draws(len(seeds))
        estimate, replicates = 0.0, 0.0
        for (weight, *_), key in zip(terms, keys, strict=True):
            rows = [self._accuracy[key][0].index(seed) for seed in seeds]
            point, boot = self._values(key, statistic)
            estimate = estimate + weight * point[:, rows].mean(1)
            replicates = None if boot is None else replicates + weight * np.einsum("vsr,sr->vr", boot[:, rows], draws)
        if replicates is None:
            errors, replicates = np.full(len(estimate), np.nan), [None] * len(estimate)
        else:
            errors = replicates.std(axis=1, ddof=1).round(9)
        degrees = len(seeds) - 1 if len(seeds) > 1 else subnets.smallest_group - 1
        numbers = zip(labels, estimate.round(9) + 0.0, errors, replicates, strict=True)
        return [Part(label, float(e), float(se), degrees, len(seeds), (), r) for label, e, se, r in numbers]

    def _values(self, key: tuple[str, str, str], statistic: Statistic) -> tuple[np.ndarray, np.ndarray | None]:
        """A statistic of every seed of a run: [values, seeds], and of every resample of subnets, [values, seeds, R]."""
        if (key, statistic) not in self._cache:
            accuracy, subnets = self._accuracy[key][1], self._subnets[key[1]]
            point = statistic(np.ones((accuracy.shape[1], 1)), accuracy, subnets)[..., 0]
            boot = None if subnets.weights is None else statistic(subnets.weights, accuracy, subnets)
            self._cache[key, statistic] = point, boot
        return self._cache[key, statistic]

    def _seed_draws(self, seeds: int) -> np.ndarray:
        """[seeds, resamples]: the share of each seed in each resample."""
        if seeds == 1:
            return np.ones((1, self.resamples))
        return _draw(np.random.default_rng([self.seed, seeds]), seeds, self.resamples) / (seeds - 1)


def _draw(rng: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """[n, resamples]: how often each of n things is in a sample of n - 1 with replacement."""
    cells = rng.integers(n, size=(n - 1, resamples)) * resamples + np.arange(resamples)
    return np.bincount(cells.ravel(), minlength=n * resamples).reshape(n, resamples).astype(float)


def _difficulty_order(datasets: Iterable[str]) -> list[str]:
    """The paper's datasets, easiest first, then others; all of the paper's if none are given."""
    given = list(dict.fromkeys(datasets)) or list(TABLE_1)
    return [d for d in TABLE_1 if d in given] + sorted(d for d in given if d not in TABLE_1)


def _name(dataset: str, backbone: str, method: str) -> str:
    return f"{method} on {dataset}" + (f" with {backbone}" if backbone != MOBILENET else "")


def _check_table(table: pd.DataFrame, columns: Sequence[str], what: str, value: str, more: Sequence[str]) -> None:
    if table.empty:
        return
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"the table {what} has no column {', '.join(missing)}: expected {', '.join(columns)}")
    if not np.isfinite(table[value].to_numpy(float)).all():
        raise InputError(f"the table {what} holds {value} that are no finite numbers: expected one for every row")
    keys = ["dataset", "backbone", "method", "seed", *more]
    if (twice := table.duplicated(keys)).any():
        row = ", ".join(f"{key} {value}" for key, value in table.loc[twice, keys].iloc[0].items())
        raise InputError(f"the table {what} has more than one row for {row}: expected one")


def _check_same_subnets(backbone: str, table: pd.DataFrame) -> None:
    """Raise InputError unless every run of the backbone was evaluated on the same subnets."""
    settings = {"kernel": str, "expand": str, "depth": str}
    subnets = table[[*EVALUATION_KEYS, *settings]].astype(settings).assign(mflops=table["mflops"].round(6))
    identity = pd.util.hash_pandas_object(subnets, index=False).to_numpy()
    (first, rows), *others = table.groupby(["dataset", "method", "seed"]).indices.items()
    expected = np.sort(identity[rows])
    for run, there in others:
        if not np.array_equal(np.sort(identity[there]), expected):
            odd = subnets.iloc[np.concatenate([rows, there])].drop_duplicates(keep=False)
            bucket, subnet = odd.sort_values(list(EVALUATION_KEYS))[list(EVALUATION_KEYS)].iloc[0]
            a, b = (f"{method} on {dataset}, seed {seed}" for dataset, method, seed in (first, run))
            raise InputError(
                f"the runs with {backbone} were not all evaluated on the same subnets: subnet {subnet:g} of bucket "
                f"{bucket:g} is not the same in {a} and in {b}; evaluate all runs with one subnets_per_bucket"
            )


# --- from an estimate to a verdict ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One claim of the paper with our verdict on it, against one PS baseline where it is about one."""

    number: str
    text: str
    where: str
    statistic: str
    figure: str  # name of our figure's file; several are separated by ", "
    estimate: float
    low: float
    high: float
    unit: str
    verdict: str
    reason: str
    baseline: str = ""  # method name; empty if the claim is not about OFA
    parts: tuple[Part, ...] = field(default=(), repr=False, compare=False)

    @property
    def notebook(self) -> str:
        """The notebook that draws the figure."""
        return NOTEBOOKS[self.figure.split(", ")[0]]

    @property
    def kind(self) -> str:
        """The verdict without its remark on seeds."""
        return self.verdict.removesuffix(ONE_SEED)


def _judge(evidence: Evidence, quantity: All | Part, baseline: str = "", **words: str) -> Claim:
    """The claim that `quantity` is above 0."""
    estimate, low, high = quantity.estimate, quantity.low(), quantity.high()
    kind = REPRODUCED if low > 0 else REFUTED if high < 0 else INCONCLUSIVE
    return _claim(
        evidence, quantity, kind, (estimate, low, high), _in_numbers(quantity, words["unit"]), baseline, words
    )


def _claim(
    evidence: Evidence,
    quantity: All | Part,
    kind: str,
    numbers: tuple[float, float, float],
    sentence: str,
    baseline: str,
    words: dict[str, str],
) -> Claim:
    """The claim with its verdict: `kind` where the numbers alone decide, unless runs or their scale forbid it."""
    parts = quantity.parts()
    missing = dict.fromkeys(name for part in parts for name in part.missing)
    seeds = min((part.seeds for part in parts if not math.isnan(part.estimate)), default=0)
    if missing and not (kind == REFUTED and evidence.scale_is_paper):
        verdict = NOT_RUN
    elif not evidence.scale_is_paper:
        verdict = NO_SCALE
    else:
        verdict = kind + (ONE_SEED if seeds == 1 else "")
    reason = [sentence] if seeds else []
    if missing:
        reason.append(f"missing: {', '.join(missing)}")
    if seeds:
        reason.append("one seed, which says nothing about others" if seeds == 1 else f"{seeds} seeds")
    if verdict == NO_SCALE:
        reason.append("not the paper's epochs, so the scale decides nothing")
    text = "; ".join(reason)
    return Claim(
        estimate=numbers[0], low=numbers[1], high=numbers[2], verdict=verdict, reason=text[:1].upper() + text[1:] + ".",
        baseline=baseline, parts=tuple(parts), **words,
    )  # fmt: skip


def _in_numbers(quantity: All | Part, unit: str) -> str:
    members = quantity.there if isinstance(quantity, All) else [quantity]
    if not members:
        return ""
    low, high = quantity.low(), quantity.high()
    interval = "without an interval" if math.isnan(low) else f"[{_signed(low)}, {_signed(high)}]"
    least = min(members, key=lambda part: part.estimate)
    number = f"{_signed(least.estimate)} {unit} {interval}"
    if len(members) == 1:
        return f"{least.label}: {number}"
    above = sum(part.estimate > 0 for part in members)
    return f"{above} of {len(members)} are above 0, the smallest ({least.label}) is {number}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 0.1 else f"{value:+.2f}"


def _label(dataset: str) -> str:
    return LABELS.get(dataset, dataset)


# --- the claims -------------------------------------------------------------------------------------------------------


def above_at_every_size(evidence: Evidence, baseline: str) -> Claim:
    """Claim 1: RSS is above OFA at every size, on every dataset.

    Paper: section 6.2, Fig. 3 ("Across all datasets, RSS achieves the best performing subnet population").
    Estimand: for every dataset and size bucket the mean, over seeds and the bucket's subnets, of RSS's accuracy minus
    OFA's on the same subnet and seed; then the smallest of these.
    Interval: of the smallest mean (see the module's text): pointwise below, simultaneous over all cells above.
    Rule: reproduced if every cell's difference is above 0, not reproduced if the smallest is below 0.
    """
    cells = []
    for dataset in evidence.datasets:
        labels = [f"{_label(dataset)} at {bucket:g} MFLOPs" for bucket in evidence.buckets()]
        cells += evidence.contrast(labels or [dataset], [(1, dataset, "rss"), (-1, dataset, baseline)], bucket_means)
    return _judge(
        evidence, All("cells", tuple(cells)), baseline, number="1", figure="figure_3", unit="points",
        text="RSS is above OFA at every size, on every dataset", where="Section 6.2, Fig. 3",
        statistic="smallest mean paired difference over datasets and size buckets",
    )  # fmt: skip


def short_above_ofa(evidence: Evidence, baseline: str) -> Claim:
    """Claim 2: RSS-Short is above OFA on CIFAR-100, in median and in its best subnets.

    Paper: Fig. 1b and section 1 ("Both proposed variants have better top performing subnets"), sections 6.2 and 6.3.
    Estimand: per seed, median accuracy of the whole population, RSS-Short minus OFA; and the same of the mean accuracy
    of each method's best 5 % of subnets (a mean, since the bootstrap fails for a single maximum); means over seeds.
    Interval: of the smaller of both. Rule: reproduced if both are above 0, not reproduced if the smaller is below 0.
    """
    terms = [(1, evidence.hardest, "rss-short"), (-1, evidence.hardest, baseline)]
    parts = evidence.contrast("median", terms, median) + evidence.contrast("best 5 % of subnets", terms, best)
    return _judge(
        evidence, All("both", tuple(parts)), baseline, number="2", figure="figure_1", unit="points",
        text=f"RSS-Short is above OFA on {_label(evidence.hardest)}, median and best",
        where="Section 1, Fig. 1b",
        statistic="smaller of two differences: of the population's median and of the mean of its best 5 %",
    )  # fmt: skip


def gap_grows(evidence: Evidence, baseline: str) -> Claim:
    """Claim 3: the gap between RSS and OFA grows with the dataset's difficulty.

    Paper: section 6.2, Fig. 3 ("The gap between RSS and OFA grows larger as the difficulty of the dataset increases").
    Estimand: the gap is the mean paired difference over all subnets (buckets weigh alike), in points; for every
    adjacent pair in the order MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, the harder dataset's gap minus the easier's.
    Interval: of the smallest step. Rule: reproduced if every step is above 0, not reproduced if the smallest is below.
    """
    steps = []
    for easy, hard in pairwise(d for d in TABLE_1 if d in evidence.datasets):
        terms = [(1, hard, "rss"), (-1, hard, baseline), (-1, easy, "rss"), (1, easy, baseline)]
        steps += evidence.contrast(f"{_label(easy)} to {_label(hard)}", terms)
    if not steps:
        steps = [Part("steps", missing=("two datasets that the paper ranks by difficulty",))]
    return _judge(
        evidence, All("steps", tuple(steps)), baseline, number="3", figure="figure_3", unit="points",
        text="RSS's lead over OFA grows with the dataset's difficulty", where="Section 6.2, Fig. 3",
        statistic="smallest growth of the mean paired difference between adjacent datasets",
    )  # fmt: skip


def smaller_range(evidence: Evidence, baseline: str) -> Claim:
    """Claim 4: the range from the best to the worst subnet is smaller for the RSS methods.

    Paper: section 6.2, Fig. 3 ("the range of best performing to worst performing subnets is significantly smaller for
    RSS methods"); hence RSS and RSS-Short, on every dataset.
    Estimand: range is the mean accuracy of the best 5 % of all subnets minus that of the worst 5 % (the bootstrap fails
    for a single maximum or minimum); OFA's range minus RSS's, and minus RSS-Short's; means over seeds.
    Interval: of the smallest of these. Rule: reproduced if all are above 0, not reproduced if the smallest is below.
    """
    parts = []
    for dataset in evidence.datasets:
        for method, name in (("rss", "RSS"), ("rss-short", "RSS-Short")):
            terms = [(1, dataset, baseline), (-1, dataset, method)]
            parts += evidence.contrast(f"{name} on {_label(dataset)}", terms, spread)
    return _judge(
        evidence, All("ranges", tuple(parts)), baseline, number="4", figure="figure_3", unit="points",
        text="The range best to worst is smaller for RSS and RSS-Short", where="Section 6.2, Fig. 3",
        statistic="smallest difference of ranges (best 5 % minus worst 5 %), OFA's minus RSS's or RSS-Short's",
    )  # fmt: skip


def biased_to_large(evidence: Evidence, baseline: str) -> Claim:
    """Claim 5: OFA is biased toward large subnets.

    Paper: sections 5 and 6.2, Fig. 3 ("OFA shows a significant bias towards larger subnets in all datasets").
    Estimand: slope of the least-squares line of accuracy on MFLOPs over all subnets, per seed; for every dataset OFA's
    slope, and OFA's minus RSS's, since larger networks are somewhat better without any bias; means over seeds.
    Interval: of the smallest of these. Rule: reproduced if all are above 0, not reproduced if the smallest is below.
    """
    parts = []
    for dataset in evidence.datasets:
        parts += evidence.contrast(f"OFA's on {_label(dataset)}", [(1, dataset, baseline)], slope)
        terms = [(1, dataset, baseline), (-1, dataset, "rss")]
        parts += evidence.contrast(f"OFA's minus RSS's on {_label(dataset)}", terms, slope)
    return _judge(
        evidence, All("slopes", tuple(parts)), baseline, number="5", figure="figure_3", unit="points per MFLOPs",
        text="OFA favours large subnets more than RSS does", where="Sections 5 and 6.2, Fig. 3",
        statistic="smallest of OFA's slope of accuracy on MFLOPs and its excess over RSS's, over datasets",
    )  # fmt: skip


def faster(evidence: Evidence, baseline: str, method: str) -> Claim:
    """Claims 6a and 6b: RSS is 1.9 times and RSS-Short 6.1 times as fast as OFA.

    Paper: abstract, section 6.2, Fig. 4, an average over the datasets, from an RTX 3080 and the authors' own pipeline.
    Estimand: OFA's training seconds over the method's, same dataset, seed, hardware and executor; the geometric mean
    over seeds, then over the datasets. Runs of different hardware or executors are never compared.
    Interval: Student's t on the logarithm, seeds as replicates, with the fewest seeds of a dataset; none with one seed.
    Rule: the published ratio with a tolerance of 20 % either way, which includes the direction: both bounds exceed 1.
    Reproduced if the interval, or with one seed the ratio, is within; not reproduced if it is outside; else
    inconclusive. A ratio that is beyond the tolerance for being faster is not the published one either; the reason
    gives the value.
    """
    logs, seeds, missing, compared = [], [], [], {}
    for dataset in evidence.datasets:
        pairs = _paired_times(evidence.times, dataset, baseline, method)
        if pairs.empty:
            run = {m for m in (baseline, method) if len(_clocks(evidence.times, dataset, m))}
            absent = [_name(dataset, MOBILENET, m) for m in (baseline, method) if m not in run]
            missing += absent or [f"{baseline} and {method} on {dataset} of the same seed, hardware and executor"]
            continue
        logs.append(np.log(pairs["training_seconds_baseline"] / pairs["training_seconds"]).to_numpy())
        seeds.append(len(pairs))
        compared |= {f"{row.hardware} ({row.executor})": None for row in pairs.itertuples()}
    center, error, degrees = math.nan, math.nan, min(seeds, default=1) - 1
    if logs:
        center = float(np.mean([log.mean() for log in logs]))
    if degrees:
        error = math.sqrt(sum(log.var(ddof=1) / len(log) for log in logs)) / len(logs)
    quantity = Part("log ratio", center, error, degrees, min(seeds, default=0), tuple(missing))
    published = SPEED_UPS[method]
    bounds = (1 - TOLERANCE) * published, (1 + TOLERANCE) * published
    ratio, low, high = (math.exp(value) for value in (center, quantity.low(), quantity.high()))
    first, last = (ratio, ratio) if math.isnan(low) else (low, high)
    kind = INCONCLUSIVE
    if bounds[0] <= first and last <= bounds[1]:
        kind = REPRODUCED
    elif (last < bounds[0] or first > bounds[1]) and not missing:  # a mean over fewer datasets refutes nothing
        kind = REFUTED
    sentence = f"{ratio:.2f} times as fast" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]")
    sentence += f", where {bounds[0]:.2f} to {bounds[1]:.2f} counts as the published {published}"
    sentence += f" (RTX 3080, the authors' pipeline); compared on {', '.join(compared)}"
    name = {"rss": "RSS", "rss-short": "RSS-Short"}[method]
    words = {
        "number": {"rss": "6a", "rss-short": "6b"}[method], "figure": "figure_4", "unit": "times",
        "text": f"{name} is {published} times as fast as OFA", "where": "Abstract, section 6.2, Fig. 4",
        "statistic": "ratio of training seconds, geometric mean over seeds and datasets; published value within 20 %",
    }  # fmt: skip
    return _claim(evidence, quantity, kind, (ratio, low, high), sentence, baseline, words)


def _clocks(times: pd.DataFrame, dataset: str, method: str) -> pd.DataFrame:
    if times.empty:
        return pd.DataFrame(columns=list(TIMES_COLUMNS))
    same = (times["dataset"] == dataset) & (times["backbone"] == MOBILENET) & (times["method"] == method)
    return times[same].sort_values("seed")


def _paired_times(times: pd.DataFrame, dataset: str, baseline: str, method: str) -> pd.DataFrame:
    mine, theirs = (_clocks(times, dataset, m) for m in (method, baseline))
    return mine.merge(theirs, on=["seed", "hardware", "executor"], suffixes=("", "_baseline"))


def fewer_subnets_better(evidence: Evidence, base: str) -> Claim:
    """Claims 7a and 7b: one subnet an epoch is above one a batch, which is above two a batch.

    Paper: section 6.3.1, Fig. 5 for RSS; supplement 1.1, Fig. S1 for RSS-Short; CIFAR-100.
    Estimand: mean paired difference over all subnets (buckets weigh alike) of both adjacent pairs.
    Interval: of the smaller. Rule: reproduced if both are above 0, not reproduced if the smaller is below 0.
    """
    order = [(base, "one an epoch"), (f"{base}-per-batch", "one a batch"), (f"{base}-2-per-batch", "two a batch")]
    rss = base == "rss"
    return _judge(
        evidence, _ordered(evidence, order), number="7a" if rss else "7b", unit="points",
        figure="figure_5" if rss else "figure_S1",
        where="Section 6.3.1, Fig. 5" if rss else "Supplement 1.1, Fig. S1",
        text=f"{'RSS' if rss else 'RSS-Short'}: one an epoch > one a batch > two a batch",
        statistic="smaller mean paired difference of adjacent schemes",
    )  # fmt: skip


def _ordered(
    evidence: Evidence, best_first: Sequence[tuple[str, str]], dataset: str | None = None, backbone: str = MOBILENET
) -> All:
    """That each (method, label) is above the next one in the mean over all subnets."""
    dataset, parts = dataset or evidence.hardest, []
    for (better, name), (worse, other) in pairwise(best_first):
        terms = [(1, dataset, better), (-1, dataset, worse)]
        parts += evidence.contrast(f"{name} minus {other}", terms, backbone=backbone)
    return All("adjacent pairs", tuple(parts))


def skewed_to_own_size(evidence: Evidence, base: str) -> Claim:
    """Claims 8a and 8b: training a single subnet skews accuracy toward its own size.

    Paper: section 6.3.2, Fig. 6 for RSS; supplement 1.2, Fig. S2 for RSS-Short; CIFAR-100. Performance "is skewed
    towards the size of the selected subnet" and "drops off as soon as the subnet size deviates" from it.
    Estimand: for the smallest, the middle and the largest subnet trained alone, the points of accuracy lost per MFLOPs
    of distance to its size (the slope of the least-squares line, with the sign changed), and this minus the same of the
    unbiased scheme (RSS or RSS-Short), which takes out that larger networks are better anyway; means over seeds.
    Interval: of the smallest of the six. Rule: reproduced if all are above 0, not reproduced if the smallest is below.
    """
    rss, space, parts = base == "rss", SearchSpace(MOBILENET), []
    for scheme in SCHEMES:
        own = float(space.reference.macs(getattr(space, scheme))) / 1e6
        loss, method = partial(slope, away_from=own), f"{base}-{scheme}"
        parts += evidence.contrast(f"{scheme} only", [(-1, evidence.hardest, method)], loss)
        terms = [(-1, evidence.hardest, method), (1, evidence.hardest, base)]
        parts += evidence.contrast(f"{scheme} only, beyond {'RSS' if rss else 'RSS-Short'}", terms, loss)
    return _judge(
        evidence, All("losses", tuple(parts)), number="8a" if rss else "8b", unit="points per MFLOPs",
        figure="figure_6" if rss else "figure_S2",
        where="Section 6.3.2, Fig. 6" if rss else "Supplement 1.2, Fig. S2",
        text=f"{'RSS' if rss else 'RSS-Short'}: a single trained subnet skews to its size",
        statistic="smallest loss of accuracy per MFLOPs of distance to the trained subnet's size, and beyond RSS's",
    )  # fmt: skip


def less_biased_is_better(evidence: Evidence) -> Claim:
    """Claim 9: Max then Min is below Min then Max, below Alternating, below RSS.

    Paper: section 6.3.2, Fig. 7, CIFAR-100. (The supplement makes no such claim for RSS-Short.)
    Estimand: mean paired difference over all subnets (buckets weigh alike) of the three adjacent pairs.
    Interval: of the smallest. Rule: reproduced if all three are above 0, not reproduced if the smallest is below 0.
    """
    order = [
        ("rss", "RSS"), ("rss-alternating", "Alternating"), ("rss-min-then-max", "Min then Max"),
        ("rss-max-then-min", "Max then Min"),
    ]  # fmt: skip
    return _judge(
        evidence, _ordered(evidence, order), number="9", figure="figure_7", unit="points",
        text="Max then Min < Min then Max < Alternating < RSS", where="Section 6.3.2, Fig. 7",
        statistic="smallest mean paired difference of adjacent schemes",
    )  # fmt: skip


def changes_agree(evidence: Evidence, baseline: str) -> Claim:
    """Claim 10: each change of a hyper-parameter moves OFA and RSS-Short the same way.

    Paper: supplement 2, Fig. S4 to S6, CIFAR-100 (batch size 128, dropout 0.3, learning rate 0.02).
    Estimand: for each change both methods' mean paired difference over all subnets, changed minus unchanged. The
    agreement of a change is the smaller of both effects' sizes, with a minus sign if their directions differ.
    Interval: of the smallest agreement, which takes in both directions (up together or down together).
    Rule: reproduced if both effects of every change are decidedly of one sign, not reproduced if those of some change
    are decidedly of opposite signs.
    """
    pairs = []
    for change, words in CHANGES.items():
        effects = [
            evidence.contrast(
                f"{words}: {name}", [(1, evidence.hardest, f"{m}-{change}"), (-1, evidence.hardest, m)]
            )[0]
            for m, name in ((baseline, BASELINES[baseline]), ("rss-short", "RSS-Short"))
        ]  # fmt: skip
        pairs.append(SameSign(words, tuple(effects)))
    return _judge(
        evidence, All("changes", tuple(pairs)), baseline, number="10", figure="figure_S4, figure_S5, figure_S6",
        text="Hyper-parameters move OFA and RSS-Short alike", where="Supplement 2, Fig. S4 to S6", unit="points",
        statistic="smallest agreement: the smaller of both methods' effects, negative if their signs differ",
    )  # fmt: skip


def order_on_proxylessnas(evidence: Evidence, baseline: str) -> Claim:
    """Claim 11: the order of the methods (OFA below RSS-Short below RSS) holds on ProxylessNAS.

    Paper: supplement 3, Fig. S7, CIFAR-100.
    Estimand: mean paired difference over all subnets (buckets weigh alike) of both adjacent pairs.
    Interval: of the smaller. Rule: reproduced if both are above 0, not reproduced if the smaller is below 0.
    """
    order = [("rss", "RSS"), ("rss-short", "RSS-Short"), (baseline, BASELINES[baseline])]
    return _judge(
        evidence, _ordered(evidence, order, backbone=PROXYLESS), baseline, number="11", figure="figure_S7",
        text="OFA < RSS-Short < RSS on ProxylessNAS too", where="Supplement 3, Fig. S7", unit="points",
        statistic="smaller mean paired difference of adjacent methods",
    )  # fmt: skip


# In the order of the table. The first take the baseline, the others do not depend on it.
AGAINST_BASELINE = (
    above_at_every_size,
    short_above_ofa,
    gap_grows,
    smaller_range,
    biased_to_large,
    partial(faster, method="rss"),
    partial(faster, method="rss-short"),
    changes_agree,
    order_on_proxylessnas,
)
WITHOUT_BASELINE = (
    partial(fewer_subnets_better, base="rss"),
    partial(fewer_subnets_better, base="rss-short"),
    partial(skewed_to_own_size, base="rss"),
    partial(skewed_to_own_size, base="rss-short"),
    less_biased_is_better,
)


def decide(
    population: pd.DataFrame,
    times: pd.DataFrame,
    scale_is_paper: bool,
    datasets: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Claim]:
    """Every claim with its verdict, in the paper's order; those about OFA once against each PS baseline that was run.

    `scale_is_paper`: whether the runs have the paper's epochs; if not, no claim is decided. `datasets` are those that
    the claims are about at another scale (see `Evidence`). Missing runs give the verdict "not run"; raises InputError
    for tables that cannot be used.
    """
    evidence = Evidence(population, times, scale_is_paper, datasets, resamples, seed)
    claims = [claim(evidence, baseline) for claim in AGAINST_BASELINE for baseline in evidence.baselines]
    claims += [claim(evidence) for claim in WITHOUT_BASELINE]
    return sorted(claims, key=lambda claim: (int(claim.number.rstrip("ab")), claim.number))


# --- reading finished runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What `finished` found: tables for `decide`, and remarks on what was left out."""

    population: pd.DataFrame
    times: pd.DataFrame
    scale_is_paper: bool
    datasets: tuple[str, ...] | None
    remarks: tuple[str, ...]


def finished(
    results: str | Path,
    profile: str,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    subnets_per_bucket: int | None = None,
) -> Finished:
    """All finished runs under `results`/`profile`; nothing is trained and nothing has to be there.

    None for `datasets`, `seeds` and `subnets_per_bucket` takes any. A run is at the paper's scale if its record has the
    epochs and rates of Table 1 and all images, whatever its profile is called; if there are such runs, only they are
    used. Raises InputError for a profile that is neither known nor there, and for a file that cannot be read.
    """
    folder = Path(results) / profile
    if not folder.is_dir():
        choose(profile, PROFILES, "profile")
    found, remarks = [], []
    unfinished, other_seeds, other_sizes = 0, set(), 0
    for path in sorted(folder.glob("*/*/*/seed*/run.json")):
        record = _read(path)
        try:
            training, evaluation = record["config"]["training"], record["config"]["evaluation"]
            names = {key: training[key] for key in ("dataset", "backbone", "seed")}
            names["method"] = training["method"]["name"]
            status, count = record["status"], evaluation["subnets_per_bucket"]
        except (KeyError, TypeError):
            raise InputError(f"{path} is not a run's record: move its folder away") from None
        if names["method"] not in METHODS or (datasets and names["dataset"] not in datasets):
            continue
        if status != "finished" or not path.with_name("population.csv").exists():
            unfinished += 1
        elif seeds is not None and names["seed"] not in seeds:
            other_seeds.add(names["seed"])
        elif subnets_per_bucket is not None and count != subnets_per_bucket:
            other_sizes += 1
        else:
            found.append((path, names, record, at_paper_scale(record["config"])))
    at_scale = [run for run in found if run[-1]]
    scale_is_paper = bool(at_scale) or (not found and profile == "paper")
    if at_scale and len(at_scale) < len(found):
        remarks.append(f"Runs left out because they are not at the paper's scale: {len(found) - len(at_scale)}.")
    if unfinished:
        remarks.append(f"Runs left out because they are not finished: {unfinished}.")
    if other_seeds:
        remarks.append(f"Seeds that are there too, but were not asked for: {', '.join(map(str, sorted(other_seeds)))}.")
    if other_sizes:
        remarks.append(f"Runs left out because of another number of subnets a bucket: {other_sizes}.")
    if not scale_is_paper and datasets is None and profile in PROFILES:
        datasets = PROFILES[profile].datasets
    datasets = None if scale_is_paper else tuple(_difficulty_order(datasets)) if datasets else None
    population, times = _tables(at_scale or found)
    return Finished(population, times, scale_is_paper, datasets, tuple(remarks))


def _tables(runs: Sequence[tuple]) -> tuple[pd.DataFrame, pd.DataFrame]:
    populations, rows = [], []
    for path, names, record, _ in runs:
        settings = {"kernel": str, "expand": str, "depth": str}
        populations.append(pd.read_csv(path.with_name("population.csv"), dtype=settings).assign(**names))
        rows.append(names | {key: record.get(key, math.nan) for key in TIMES_COLUMNS[4:]})
    if not runs:
        return pd.DataFrame(columns=list(POPULATION_COLUMNS)), pd.DataFrame(columns=list(TIMES_COLUMNS))
    return pd.concat(populations, ignore_index=True)[list(POPULATION_COLUMNS)], pd.DataFrame(rows)[list(TIMES_COLUMNS)]


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): move its folder away") from None


def at_paper_scale(config: dict) -> bool:
    """Whether a run's configuration has the paper's epochs, learning rates and batch size, and all images."""
    training, method = config["training"], config["training"]["method"]
    dataset, name = training["dataset"], method["name"]
    if dataset not in TABLE_1 or name not in METHODS:
        return False
    expected = build(name, *TABLE_1[dataset])
    stages = [(stage["epochs"], stage["learning_rate"]) for stage in method["stages"]]
    images = training["train_images"], config["evaluation"]["test_images"]
    return (
        stages == [(stage.epochs, stage.learning_rate) for stage in expected.stages]
        and method["batch_size"] == expected.batch_size
        and images == (TRAIN_IMAGES[dataset], TEST_IMAGES)
    )


# --- tables, words and the figure -------------------------------------------------------------------------------------


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim and baseline: the paper's claim, what decides it, our estimate, the verdict, the figure."""
    return pd.DataFrame(
        {
            "claim": [claim.number for claim in claims],
            "text": [claim.text for claim in claims],
            "baseline": [BASELINES.get(claim.baseline, "") for claim in claims],
            "where": [claim.where for claim in claims],
            "statistic": [claim.statistic for claim in claims],
            "estimate": [claim.estimate for claim in claims],
            "low": [claim.low for claim in claims],
            "high": [claim.high for claim in claims],
            "unit": [claim.unit for claim in claims],
            "verdict": [claim.verdict for claim in claims],
            "reason": [claim.reason for claim in claims],
            "figure": [claim.figure for claim in claims],
            "notebook": [claim.notebook for claim in claims],
        }
    )


def components(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row for each number that a claim rests on, with its own (pointwise) 95 % interval.

    Those of claims 6a and 6b are logarithms of ratios.
    """
    columns = ["claim", "baseline", "part", "estimate", "low", "high", "seeds", "missing"]
    rows = [
        (c.number, BASELINES.get(c.baseline, ""), p.label, p.estimate, p.low(), p.high(), p.seeds, ", ".join(p.missing))
        for c in claims
        for p in c.parts
    ]
    return pd.DataFrame(rows, columns=columns)


def _link(figure: str, folder: Path, prefix: str, form: str) -> str:
    """Links to those of the figures that exist in `folder`, the names of the others."""
    names = figure.split(", ")
    return ", ".join(
        form.format(name=n, url=f"{prefix}{n}.png") if (folder / f"{n}.png").exists() else f"{n} (not drawn)"
        for n in names
    )


def shown(claims: Sequence[Claim], folder: str | Path, prefix: str, form: str) -> pd.DataFrame:
    """The table as it is read: numbers rounded, the interval in one column, figures of `folder` linked by `form`."""
    rows = table(claims)
    estimates = ["" if math.isnan(row.estimate) else f"{row.estimate:.2f} {row.unit}" for row in rows.itertuples()]
    intervals = ["" if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}" for row in rows.itertuples()]
    return pd.DataFrame(
        {
            "Claim": rows["claim"],
            "The paper says": rows["text"],
            "Where": rows["where"],
            "Baseline": rows["baseline"],
            "Statistic": rows["statistic"],
            "Estimate": estimates,
            "95 % interval": intervals,
            "Verdict": rows["verdict"],
            "Why": rows["reason"],
            "Figure": [_link(figure, Path(folder), prefix, form) for figure in rows["figure"]],
        }
    )


VERDICT_COLOURS = {REPRODUCED: "#d5ebe3", REFUTED: "#f6d5d5", INCONCLUSIVE: "#fbecc8"}


def styled(claims: Sequence[Claim], folder: str | Path, prefix: str = ""):
    """The table as a pandas Styler whose figures are links; `prefix` leads from the notebook to `folder`."""
    colours = [VERDICT_COLOURS.get(claim.kind, "#ececec") for claim in claims]
    rows = shown(claims, folder, prefix, '<a href="{url}">{name}</a>')
    return (
        rows.style.hide(axis="index")
        .format(escape="html", subset=[column for column in rows if column != "Figure"])
        .apply(lambda column: [f"background-color: {c}; color: black" for c in colours], subset=["Verdict"])
        .set_properties(**{"text-align": "left", "vertical-align": "top", "white-space": "normal"})
        .set_table_styles([{"selector": "th", "props": "text-align: left; white-space: nowrap"}])
    )


def markdown(claims: Sequence[Claim], folder: str | Path, prefix: str = "") -> str:
    """The table in Markdown."""
    rows = shown(claims, folder, prefix, "[{name}]({url})")
    lines = [list(rows.columns), ["---"] * rows.shape[1], *rows.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def save(claims: Sequence[Claim], folder: str | Path) -> list[Path]:
    """Write claims.csv and claims.md into `folder`, whole or not at all, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "claims.csv": table(claims).to_csv(index=False, lineterminator="\n"),
        "claims.md": f"# Claims\n\n{markdown(claims, folder)}\n{conclusions(claims)}",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _status(claims: Sequence[Claim]) -> str:
    """carried if all are reproduced, contradicted if one is not, else open."""
    kinds = [claim.kind for claim in claims]
    if REFUTED in kinds:
        return "contradicted"
    return "carried" if kinds and all(kind == REPRODUCED for kind in kinds) else "open"


# The claims that each explanation rests on, and what may be said once they are judged.
ARGUMENTS = {
    "Interference between subnets trained one at a time": (
        ("1", "11"),
        {
            "carried": "RSS, which does nothing against interference, trains the better population: the evidence is "
            "against interference as what limits it.",
            "contradicted": "RSS, which does nothing against interference, is not above progressive shrinking "
            "throughout: the paper's argument against interference does not stand on this evidence.",
        },
    ),
    "Interference from combined gradients": (
        ("7a", "7b"),
        {
            "carried": "Accuracy falls from one subnet an epoch to one a batch, and again to two a batch, as "
            "interference within an update would have it.",
            "contradicted": "More subnets an update do not lower accuracy throughout: the evidence does not carry it.",
        },
    ),
    "Sampling bias": (
        ("5", "8a", "8b", "9"),
        {
            "carried": "Populations lean toward what was trained most, and less biased schemes are better: the "
            "evidence carries sampling bias.",
            "contradicted": "At least one of its consequences does not show: the evidence does not carry sampling bias "
            "as the paper states it.",
        },
    ),
}


def conclusions(claims: Sequence[Claim]) -> str:
    """What the verdicts say about interference and sampling bias, in Markdown, from the verdicts alone."""
    kinds = [claim.kind for claim in claims]
    counts = {kind: kinds.count(kind) for kind in (REPRODUCED, REFUTED, INCONCLUSIVE, NO_SCALE, NOT_RUN)}
    lines = ["**Verdicts.** " + ", ".join(f"{kind}: {count}" for kind, count in counts.items() if count) + "."]
    if NO_SCALE in kinds:
        lines.append(
            "**Scale.** These runs are not at the paper's epochs. They show how verdicts are made and decide nothing: "
            "neither interference nor sampling bias gains or loses by them."
        )
        return "\n\n".join(lines) + "\n"
    baselines = [b for b in BASELINES if any(claim.baseline == b for claim in claims)]
    statuses: dict[str, list[str]] = {baseline: [] for baseline in baselines}
    for argument, (numbers, words) in ARGUMENTS.items():
        members = [claim for claim in claims if claim.number in numbers]
        for baseline in baselines:
            statuses[baseline].append(_status([m for m in members if m.baseline in ("", baseline)]))
        sentences = {b: words.get(statuses[b][-1], "Undecided by these results.") for b in baselines}
        lines.append(f"**{argument}** ({_listed(members)}). {_for_each(sentences)}")
    answers = {baseline: _answer(*status) for baseline, status in statuses.items()}
    lines.append(f"**Which explanation the evidence carries.** {_for_each(answers)}")
    if words := _baseline_words(claims):
        lines.append(f"**Does the answer survive a PS baseline trained as its authors train it?** {words}")
    if any(claim.verdict.endswith(ONE_SEED) for claim in claims):
        lines.append("**Seeds.** Verdicts with one seed may change with another: their intervals cover subnets alone.")
    return "\n\n".join(lines) + "\n"


def _answer(one_at_a_time: str, gradients: str, bias: str) -> str:
    """What the statuses of the three arguments say together; the second does not decide between the explanations."""
    interference = {"carried": "is not what limits the population", "contradicted": "is not ruled out"}
    sampling = {"carried": "carried", "contradicted": "not carried throughout"}
    answer = f"Interference {interference.get(one_at_a_time, 'is undecided')}; "
    answer += f"sampling bias is {sampling.get(bias, 'undecided')}."
    return answer + (" That is the paper's answer." if one_at_a_time == bias == "carried" else "")


def _for_each(sentences: dict[str, str]) -> str:
    """One sentence if all baselines have the same, else each with its baseline."""
    if len(set(sentences.values())) == 1:
        return next(iter(sentences.values()))
    return " ".join(f"With {BASELINES[baseline]} as the baseline: {text}" for baseline, text in sentences.items())


def _listed(claims: Sequence[Claim]) -> str:
    """The claims' verdicts, as "1 reproduced against OFA; 11 not run"."""
    both = len({claim.baseline for claim in claims if claim.baseline}) > 1
    against = [f" against {BASELINES[c.baseline]}" if both and c.baseline else "" for c in claims]
    return "; ".join(f"{c.number} {c.verdict}{words}" for c, words in zip(claims, against, strict=True))


def _baseline_words(claims: Sequence[Claim]) -> str:
    """How the verdicts differ between the two PS baselines; empty if there is one."""
    kinds: dict[str, dict[str, str]] = {}
    for claim in claims:
        if claim.baseline:
            kinds.setdefault(claim.number, {})[claim.baseline] = claim.kind
    both = {number: (k["ofa"], k["ofa-released"]) for number, k in kinds.items() if len(k) == 2}
    pairs = {number: pair for number, pair in both.items() if NOT_RUN not in pair}
    if not pairs:
        return "Undecided: no claim has results against both baselines." if both else ""
    differ = {number: pair for number, pair in pairs.items() if pair[0] != pair[1]}
    if not differ:
        return f"Yes in that every claim judged against both baselines has one verdict ({', '.join(pairs)})."
    words = "; ".join(f"claim {n} is {a} against OFA and {b} against the released code" for n, (a, b) in differ.items())
    same = [number for number in pairs if number not in differ]
    return f"Not in every claim: {words}." + (f" Same verdict: {', '.join(same)}." if same else "")


MARKERS = {REPRODUCED: ("o", True), REFUTED: ("X", True), INCONCLUSIVE: ("o", False), NO_SCALE: ("D", False),
           NOT_RUN: ("D", False)}  # fmt: skip
COLOURS = {"ofa": "#1f5a99", "ofa-released": "#6aaee6", "": "#4d4d4d"}
PANELS = {
    "points": "points of accuracy (the claim: above 0)",
    "points per MFLOPs": "points of accuracy per MFLOPs (the claim: above 0)",
    "times": "times as fast as OFA (shaded: published value ± 20 %)",
}
WIDTH, ROW, LABEL_WIDTH, VERDICT_WIDTH = 7.8, 0.185, 3.25, 1.5  # inches


def figure_claims(claims: Sequence[Claim], caption: str = "") -> Figure:
    """Estimate and interval of every claim, a panel a unit, with the verdict in words beside it.

    A claim holds to the right of the line at 0, or, for a ratio, in the shaded range. Intervals that leave the panel
    end in an arrow. `caption` goes under the figure.
    """
    if not claims:
        raise InputError("there are no claims to draw: expected those of decide")
    groups = {unit: [claim for claim in claims if claim.unit == unit] for unit in PANELS}
    groups = {unit: members for unit, members in groups.items() if members}
    top, gap, bottom = 0.3, 0.47, 0.4 + (0.15 if caption else 0.0)
    height = top + bottom + ROW * len(claims) + gap * (len(groups) - 1)
    figure = Figure((WIDTH, height))
    y = height - top
    for unit, members in groups.items():
        y -= ROW * len(members)
        width = WIDTH - LABEL_WIDTH - VERDICT_WIDTH
        axes = figure.add_axes((LABEL_WIDTH / WIDTH, y / height, width / WIDTH, ROW * len(members) / height))
        _draw_claims(axes, members, unit)
        _write_rows(axes, members, width)
        y -= gap
    figure.legend(
        handles=_legend_handles(claims), loc="upper center", bbox_to_anchor=(0.5, 1.0), ncols=8, frameon=False,
        fontsize=6.8, handletextpad=0.4, columnspacing=1.2, handlelength=1.2, borderpad=0.5,
    )  # fmt: skip
    if caption:
        figure.text(0.06 / WIDTH, 0.06 / height, caption, fontsize=6.2, color="0.3", va="bottom", gid="caption")
    return figure


def _write_rows(axes: Axes, claims: Sequence[Claim], width: float) -> None:
    """Number, claim and verdict of each row, beside a panel `width` inches wide."""
    style = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7}
    for y, claim in enumerate(claims):
        if y > 0 and claims[y - 1].number == claim.number:
            words = f"the same against {BASELINES[claim.baseline]}"
        else:
            words = claim.text
            axes.text((0.08 - LABEL_WIDTH) / width, y, claim.number, **style)
        axes.text((0.34 - LABEL_WIDTH) / width, y, words, **style)
        axes.text(1 + 0.12 / width, y, claim.verdict, **style)


def _draw_claims(axes: Axes, claims: Sequence[Claim], unit: str) -> None:
    ratio, limits = unit == "times", _limits(claims, unit == "times")
    if ratio:
        axes.set_xscale("log")
        axes.set_xticks(ticks := [t for t in (0.5, 1, 2, 4, 8, 16, 32) if limits[0] <= t <= limits[1]], ticks)
        axes.minorticks_off()
    axes.set_xlim(limits)
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.axvline(1 if ratio else 0, color="0.2", linewidth=0.8, zorder=1)
    for y, claim in enumerate(claims):
        if ratio:
            published = SPEED_UPS["rss" if claim.number == "6a" else "rss-short"]
            left, right = ((1 + sign * TOLERANCE) * published for sign in (-1, 1))
            axes.fill_betweenx([y - 0.42, y + 0.42], left, right, color="0.87", linewidth=0, zorder=0)
        if y > 0 and claims[y - 1].number != claim.number:
            axes.axhline(y - 0.5, color="0.9", linewidth=0.5, zorder=0)
        if not math.isnan(claim.estimate):
            _draw_interval(axes, y, claim, limits)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=7, pad=2)
    axes.grid(axis="x", linewidth=0.4, color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(PANELS[unit], fontsize=7.5, labelpad=2)


def _draw_interval(axes: Axes, y: int, claim: Claim, limits: tuple[float, float]) -> None:
    colour = COLOURS[claim.baseline]
    if not math.isnan(claim.low):
        low, high = max(claim.low, limits[0]), min(claim.high, limits[1])
        axes.plot([low, high], [y, y], color=colour, linewidth=1.3, zorder=2, solid_capstyle="butt")
        for end, inside, arrow in (
            (low, claim.low >= limits[0], CARETLEFT),
            (high, claim.high <= limits[1], CARETRIGHT),
        ):
            mark = "|" if inside else arrow  # an arrow's tip is at the edge of the panel
            axes.plot(end, y, marker=mark, markersize=5, color=colour, zorder=2, clip_on=False)
    marker, filled = MARKERS[claim.kind]
    axes.plot(claim.estimate, y, marker=marker, markersize=4.5 if marker == "D" else 5.5, color=colour, zorder=3,
              markerfacecolor=colour if filled else "white", markeredgecolor="white" if marker == "X" else colour,
              markeredgewidth=0.4 if marker == "X" else 1.0, gid=f"claim {claim.number} {claim.baseline}")  # fmt: skip


def _limits(claims: Sequence[Claim], ratio: bool) -> tuple[float, float]:
    """x limits that show every estimate and, unless it is very wide, its interval."""
    transform, back = (math.log, math.exp) if ratio else (float, float)
    centers = [transform(claim.estimate) for claim in claims if not math.isnan(claim.estimate)]
    centers += [transform(f * v) for v in SPEED_UPS.values() for f in (1 - TOLERANCE, 1 + TOLERANCE)] if ratio else []
    low, high = min([0.0, *centers]), max([0.0, *centers])
    room = 0.6 * (high - low) or 1.0
    ends = [transform(end) for claim in claims if not math.isnan(claim.low) for end in (claim.low, claim.high) if
            end > 0 or not ratio]  # fmt: skip
    first, last = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    margin = 0.06 * ((last - first) or 1.0)
    return back(first - margin), back(last + margin)


def _legend_handles(claims: Sequence[Claim]) -> list[Line2D | Patch]:
    kinds = dict.fromkeys(claim.kind for claim in claims if not math.isnan(claim.estimate))
    handles: list[Line2D | Patch] = []
    for kind in (k for k in MARKERS if k in kinds):
        marker, filled = MARKERS[kind]
        handles.append(Line2D([], [], linestyle="", marker=marker, markersize=5, color="0.3", label=kind,
                              markerfacecolor="0.3" if filled else "white"))  # fmt: skip
    baselines = dict.fromkeys(claim.baseline for claim in claims)
    names = {b: f"against {BASELINES[b]}" if b else "no baseline" for b in baselines}
    return handles + [Patch(color=COLOURS[b], label=names[b]) for b in COLOURS if b in baselines]
