"""What was measured, in tables, beside the figures of `rsstudy.figures.populations`.

The seed is the unit: every number is computed within a seed. A mean over seeds has Student's 95 % interval, a
difference or ratio of two methods Welch's; one seed has no interval (see `rsstudy.claims.evidence`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from rsslib.errors import InputError
from rsstudy.claims.evidence import (
    COLUMNS,
    Evidence,
    Part,
    Statistic,
    at,
    combine,
    mean,
    median,
    slope,
)
from rsstudy.figures.style import (
    BASELINES,
    PUBLISHED_AS,
    label_of,
    method_styles,
    panel_label,
)

PANEL_COLUMNS = ("dataset", "backbone", "method", "seed")
POPULATION_COLUMNS = (*PANEL_COLUMNS, "bucket", "subnet", "mflops", "accuracy")
MACHINE = ["hardware", "executor"]  # columns that tell apart where times do not compare
TIMES_COLUMNS = (*PANEL_COLUMNS, "training_seconds", *MACHINE)
MAIN = ("ofa-released", "rss-short", "ofa", "rss")  # of their variants the longest name that fits is the base

# --- accuracy ---------------------------------------------------------------------------------------------------------


def medians(population: pd.DataFrame) -> pd.DataFrame:
    """Median accuracy (%) of each size and of all subnets; the spread and the slope of accuracy over all subnets.

    One row per dataset, method and quantity: dataset, quantity, then `COLUMNS` of `rsstudy.claims.evidence`. Spread is
    the best subnet's accuracy minus the worst's, in points; slope that of the least-squares line of accuracy on size,
    in points per MFLOPs. Raises InputError for a table without rows or columns that this needs.
    """
    check(population, POPULATION_COLUMNS, "population")
    compared = {style.label: {method: 1} for method, style in method_styles(population["method"]).items()}
    return _compare(population, compared, median, spread=lambda rows: np.ptp(rows["accuracy"]), slope=slope)


def differences(population: pd.DataFrame) -> pd.DataFrame:
    """Difference of the mean accuracies of each method and its baselines, in points, of each size and of all.

    Columns are those of `medians`. The baselines are OFA and its released code, and for a variant the unchanged method;
    pairs that were not both run are left out. Raises InputError as `medians` does.
    """
    check(population, POPULATION_COLUMNS, "population")
    compared = {
        f"{label_of(method)} minus {label_of(base)}": {method: 1, base: -1}
        for method in method_styles(population["method"])
        for base in baselines(method)
    }
    return _compare(population, compared, mean)


def baselines(method: str) -> Sequence[str]:
    """The methods that a method is compared with."""
    if method in BASELINES:
        return BASELINES[: BASELINES.index(method)]
    bases = [base for base in MAIN if method.startswith(f"{base}-")]
    return BASELINES if method in MAIN or not bases else bases[:1]


def _compare(
    population: pd.DataFrame,
    compared: Mapping[str, dict[str, int]],
    statistic: Statistic,
    **others: Statistic,
) -> pd.DataFrame:
    """A statistic of each size and of all subnets, and others, of weighted sums of methods."""
    evidence, rows = Evidence(population, pd.DataFrame(), "paper"), []
    for panel, table in by_panel(population):
        sizes = {f"{size:g} MFLOPs": at(statistic, size) for size in sorted(table["bucket"].unique())}
        quantities = sizes | {"all": statistic} | others
        for (label, terms), (quantity, chosen) in product(compared.items(), quantities.items()):
            part = evidence.contrast(label, terms, chosen, *panel)
            if part.seeds:
                rows.append((panel_label(*panel), quantity, *part.row))
    return pd.DataFrame(rows, columns=["dataset", "quantity", *COLUMNS])


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`medians` or `differences` to look at: a row per method, a column per quantity, as mean ± half the interval."""
    half = (table["high"] - table["estimate"]).map(" ± {:.2f}".format).where(table["high"].notna(), "")
    text = table.assign(text=table["estimate"].map("{:.2f}".format) + half)
    text = text.set_index(["dataset", "what", "seeds", "quantity"])["text"].unstack(sort=False)
    return text.rename_axis(columns=None).fillna("")


def against_published(population: pd.DataFrame) -> pd.DataFrame:
    """Medians of each size on CIFAR-100 with MobileNetV3, ours beside the study's: what (the method), quantity, ours,
    published, difference. No rows if CIFAR-100 is not in `population`."""
    check(population, POPULATION_COLUMNS, "population")
    mine = population.query("dataset == 'cifar100' and backbone == 'mobilenet_v3'")
    boxes = published_boxes(mine, published()).items()
    study = [(label_of(method), f"{size:g} MFLOPs", box[1]) for (method, size), box in boxes]
    theirs = pd.DataFrame(study, columns=["what", "quantity", "published"])
    ours = medians(population).query("dataset == 'CIFAR-100'").rename(columns={"estimate": "ours"})
    table = ours[["what", "quantity", "ours"]].merge(theirs)
    return table.assign(difference=table["ours"] - table["published"])


def findings(population: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Mean differences on all subnets, in points, and speed-ups: dataset, what, estimate, low, high, seeds."""
    speeds = speed_ups(times).dropna(subset="speed_up").rename(columns={"speed_up": "estimate"})
    faster = speeds["method"].map(label_of) + ": times as fast as " + speeds["baseline"].map(label_of)
    datasets = list(map(panel_label, speeds["dataset"], speeds["backbone"]))
    tables = [
        differences(population).query("quantity == 'all'"),
        speeds.assign(what=faster, dataset=datasets),
    ]
    return pd.concat(tables, ignore_index=True)[["dataset", *COLUMNS[:-1]]]


# --- training time ----------------------------------------------------------------------------------------------------


def speed_ups(times: pd.DataFrame) -> pd.DataFrame:
    """Training time of each method and how many times as fast as OFA it is: one row per dataset, backbone and method.

    Columns: dataset, backbone, method, baseline, clock and seconds (see `timed`; mean over seeds), speed_up, its 95 %
    interval low to high, and seeds. The speed-up is the ratio of geometric means over seeds on one machine (see
    `log_seconds`), NaN where there is none. The baseline is OFA's released code where OFA was not run; it has none
    itself. Raises InputError for a table without rows or columns that this needs, or without a time.
    """
    check(times, TIMES_COLUMNS, "times")
    unfinished = times[times["training_seconds"].isna()]
    if len(unfinished):
        dataset, _, method, seed = unfinished[list(PANEL_COLUMNS)].iloc[0]
        raise InputError(
            f"the table times has no training_seconds for {dataset}, {method}, seed {seed}: finish that run first"
        )
    rows = []
    for panel, table in by_panel(timed(times)):
        seconds = table.groupby("method")["seconds"].mean()
        baseline = next((name for name in BASELINES if name in seconds), "")
        for method in method_styles(seconds.index):
            groups = log_seconds(table, baseline, method, *panel) if method != baseline else []
            part = combine("", groups) if groups else Part("")
            speed = np.exp([part.estimate, part.low(), part.high()])
            clock = table["clock"].iloc[0]
            rows.append((*panel, method, baseline, clock, seconds[method], *speed, part.seeds))
    columns = ["dataset", "backbone", "method", "baseline", "clock", "seconds", "speed_up", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def log_seconds(
    times: pd.DataFrame,
    baseline: str,
    method: str,
    dataset: str,
    backbone: str = "mobilenet_v3",
) -> list[tuple[float, pd.Series]]:
    """The logarithms of training times of the baseline, and of the method with weight -1: groups for `combine`.

    Both are of one machine (hardware and executor): the one that trained most seeds of both. Empty if none did.
    """
    if times.empty:
        return []
    rows = timed(times[(times["dataset"] == dataset) & (times["backbone"] == backbone)])
    trained = [
        [np.log(here.loc[here["method"] == name, "seconds"]) for name in (baseline, method)]
        for _, here in rows.groupby(MACHINE, dropna=False)
    ]
    most = max(trained, key=lambda both: min(map(len, both)), default=[()])
    return list(zip((1.0, -1.0), most, strict=True)) if all(map(len, most)) else []


def timed(times: pd.DataFrame) -> pd.DataFrame:
    """`times` with the columns clock and seconds: what compares the training times of a dataset and backbone best.

    That is processor time where all runs have it, since other programs on the machine hardly change it; otherwise
    wall-clock time.
    """
    processor = times.get("training_processor_seconds", pd.Series(math.nan, times.index))
    everywhere = processor.notna().groupby([times["dataset"], times["backbone"]]).transform("all")
    clock = everywhere.map({True: "processor", False: "wall"})
    return times.assign(clock=clock, seconds=processor.where(everywhere, times["training_seconds"]))


# --- the study's values -----------------------------------------------------------------------------------------------


def published() -> pd.DataFrame:
    """The study's values, as read off its figures and text: figure, dataset, backbone, method, quantity, mflops, value,
    source. Accuracies are in percent, bars in hours on an RTX 3080."""
    return pd.read_csv(Path(__file__).with_name("published_values.csv"))


def published_boxes(
    table: pd.DataFrame, published: pd.DataFrame | None
) -> dict[tuple[str, float], tuple[float, float, float]]:
    """{(method, bucket): (q1, median, q3)} of the study, for those in the population `table` of one dataset."""
    if published is None:
        return {}
    keys = ["dataset", "backbone", "method", "bucket"]
    values = published.rename(columns={"mflops": "bucket"}).pivot_table("value", keys, "quantity")
    values = values.reindex(columns=["q1", "median", "q3"]).dropna().reset_index()
    ours = table[keys].drop_duplicates().assign(own=lambda rows: rows["method"])
    found = ours.replace({"method": PUBLISHED_AS}).merge(values, on=keys)
    return {(row.own, row.bucket): (row.q1, row.median, row.q3) for row in found.itertuples()}


# --- tables -----------------------------------------------------------------------------------------------------------


def check(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise InputError if `table` lacks one of `columns` or has no rows."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"the table {what} has no column {' and '.join(missing)}: expected {', '.join(columns)}")
    if table.empty:
        raise InputError(f"the table {what} has no rows: expected the results of at least one run")


def by_panel(table: pd.DataFrame) -> Iterable[tuple[tuple[str, str], pd.DataFrame]]:
    """Datasets (with backbone) in the order of the table's rows."""
    return table.groupby(["dataset", "backbone"], sort=False)
