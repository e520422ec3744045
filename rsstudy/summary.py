"""What was measured, in tables, beside the figures of `rsstudy.figures.populations`.

The seed is the unit: every number is computed within a seed, and what is given is the mean over the seeds with its 95 %
interval (Student's t), which one seed does not have. Comparisons are paired by subnet and seed. Intervals are for the
evaluated subnets; those of `rsstudy.claims.evidence` are for all of their sizes, and somewhat wider.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rsslib.errors import InputError
from rsstudy.claims.evidence import TAIL, over_seeds
from rsstudy.figures.style import BASELINES, PUBLISHED_AS, label_of, listed, method_styles, panel_label

PANEL_COLUMNS = ("dataset", "backbone", "method", "seed")
POPULATION_COLUMNS = (*PANEL_COLUMNS, "bucket", "subnet", "mflops", "accuracy")
MACHINE = ("hardware", "executor")  # columns that tell apart where times do not compare
TIMES_COLUMNS = (*PANEL_COLUMNS, "training_seconds", *MACHINE)
PUBLISHED_KEYS = ["dataset", "backbone", "method", "mflops", "quantity"]
MAIN = ("ofa-released", "rss-short", "ofa", "rss")  # of their variants the longest name that fits is the base


def medians(population: pd.DataFrame) -> pd.DataFrame:
    """Median accuracy (%) of each size and of all subnets; the spread and the slope of accuracy over all subnets.

    One row a dataset, method and quantity: dataset, method (as labels), quantity, seeds, mean, low, high. Spread is the
    best subnet's accuracy minus the worst's, in points; slope that of the least-squares line of accuracy on size, in
    points per MFLOPs. Raises InputError for a table without rows or columns that this needs.
    """
    check(population, POPULATION_COLUMNS, "population")
    rows = in_order(population)
    groups = rows.groupby(list(PANEL_COLUMNS), sort=False)
    table = _by_size(rows, "median")
    table["all"] = groups["accuracy"].median()
    table["spread"] = groups["accuracy"].max() - groups["accuracy"].min()
    table["slope"] = groups[["mflops", "accuracy"]].apply(lambda t: np.cov(t.T)[0, 1] / t["mflops"].var())
    return _over_seeds(table, {method: style.label for method, style in method_styles(rows["method"]).items()})


def differences(population: pd.DataFrame) -> pd.DataFrame:
    """Mean difference in points of each method and its baseline on the same subnets, of each size and of all.

    Columns are those of `medians`, with "A minus B" as method. The baselines are OFA and its released code, and for a
    variant the unchanged method; pairs that were not both run are left out. Raises InputError as `medians` does.
    """
    check(population, POPULATION_COLUMNS, "population")
    keys = ["dataset", "backbone", "seed", "bucket", "subnet", "mflops"]
    styles, pairs = method_styles(population["method"]), []
    for method in styles:
        for base in (base for base in baselines_of(method) if base in styles):
            mine, theirs = (population[population["method"] == name] for name in (method, base))
            pair = mine.merge(theirs[[*keys, "accuracy"]], on=keys, suffixes=("", "_base"))
            gain = (pair["accuracy"] - pair["accuracy_base"]).round(9)
            pairs.append(pair.assign(accuracy=gain, method=f"{styles[method].label} minus {styles[base].label}"))
    rows = pd.concat(pairs) if pairs else population[:0]
    table = _by_size(rows, "mean")
    table["all"] = rows.groupby(list(PANEL_COLUMNS), sort=False)["accuracy"].mean()
    return _over_seeds(table)


def baselines_of(method: str) -> Sequence[str]:
    """The methods that a method is compared with."""
    if method in BASELINES:
        return BASELINES[: BASELINES.index(method)]
    bases = [base for base in MAIN if method.startswith(f"{base}-")]
    return BASELINES if method in MAIN or not bases else bases[:1]


def _by_size(population: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """A statistic of the accuracies of each bucket: a row a dataset, backbone, method and seed, a column a bucket."""
    groups = population.groupby([*PANEL_COLUMNS, "bucket"], sort=False)["accuracy"]
    table = groups.agg(statistic).unstack("bucket", sort=False)
    return table[sorted(table)].rename(columns="{:g} MFLOPs".format)


def _over_seeds(table: pd.DataFrame, labels: dict[str, str] | None = None) -> pd.DataFrame:
    """Mean and 95 % interval over the seeds of each column, one below the other."""
    table.columns.name = "quantity"
    groups = table.stack().dropna().groupby(["dataset", "backbone", "method", "quantity"], sort=False)
    result = groups.agg(["count", "mean", "sem"]).reset_index()
    margin = result.pop("sem") * stats.t.isf(TAIL, (result["count"] - 1).clip(lower=1))
    names = [panel_label(*key) for key in zip(result["dataset"], result.pop("backbone"), strict=True)]
    result = result.assign(dataset=names, low=result["mean"] - margin, high=result["mean"] + margin)
    result = result.rename(columns={"count": "seeds"}).replace({"method": labels or {}})
    return result.sort_values("dataset", key=lambda column: column.map(names.index), kind="stable", ignore_index=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`medians` or `differences` to look at: a row a method, a column a quantity, as mean ± half of the interval."""
    half = (table["high"] - table["mean"]).map(lambda x: "" if math.isnan(x) else f" ± {x:.2f}")
    text = table.assign(text=table["mean"].map("{:.2f}".format) + half)
    text = text.set_index(["dataset", "method", "seeds", "quantity"])["text"].unstack(sort=False)
    return text.rename_axis(columns=None).fillna("")


def against_published(population: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Ours beside the study's: bucket medians on CIFAR-100 with MobileNetV3, and speed-ups over OFA.

    Columns: quantity, dataset, method, ours, published, difference. The study's speed-ups are means over its datasets,
    of whatever kind; ours geometric ones over those in `times`. No rows if CIFAR-100 is not in `population`.
    """
    check(population, POPULATION_COLUMNS, "population")
    study, styles, rows = published(), method_styles(population["method"]), []
    mine = population[(population["dataset"] == "cifar100") & (population["backbone"] == "mobilenet_v3")]
    if not mine.empty:
        ours, boxes = medians(mine).set_index(["method", "quantity"])["mean"], published_boxes(mine, study)
        for method, bucket in sorted(boxes, key=lambda key: (list(styles).index(key[0]), key[1])):
            label, size = styles[method].label, f"{bucket:g} MFLOPs"
            rows.append((f"median at {size} (%)", "CIFAR-100", label, ours[label, size], boxes[method, bucket][1]))
        speeds = speed_ups(times[times["backbone"] == "mobilenet_v3"]).dropna(subset="speed_up")
        speeds = speeds[speeds["baseline"] == "ofa"]
        told = study[study["quantity"] == "speedup_over_ofa"].set_index("method")["value"]
        for method in (method for method in method_styles(speeds["method"]) if method in told):
            here = speeds[speeds["method"] == method]
            names, mean = ", ".join(panel_label(d) for d in here["dataset"]), stats.gmean(here["speed_up"])
            rows.append(("speed-up over OFA", names, styles[method].label, mean, told[method]))
    table = pd.DataFrame(rows, columns=["quantity", "dataset", "method", "ours", "published"])
    return table.assign(difference=table["ours"] - table["published"])


def findings(population: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Mean differences on all subnets, in points, and speed-ups: dataset, what, estimate, low, high, seeds."""
    gaps = differences(population)
    gaps = gaps[gaps["quantity"] == "all"].rename(columns={"method": "what", "mean": "estimate"})
    speeds = speed_ups(times).dropna(subset="speed_up").rename(columns={"speed_up": "estimate"})
    speeds["what"] = [
        f"{label_of(row.method)}: times as fast as {label_of(row.baseline)}" for row in speeds.itertuples()
    ]
    speeds["dataset"] = [panel_label(row.dataset, row.backbone) for row in speeds.itertuples()]
    return pd.concat([gaps, speeds])[["dataset", "what", "estimate", "low", "high", "seeds"]].reset_index(drop=True)


def headline(population: pd.DataFrame, times: pd.DataFrame) -> list[str]:
    """Lines of `findings` on OFA, RSS and RSS-Short."""
    main = [table[table["method"].isin(["ofa", "rss", "rss-short"])] for table in (population, times)]
    return findings(*main).to_string(index=False).splitlines() if len(main[0]) else []


# --- training time ----------------------------------------------------------------------------------------------------


def speed_ups(times: pd.DataFrame) -> pd.DataFrame:
    """Training time of each method and how many times as fast as OFA it is: one row a dataset, backbone and method.

    Columns: dataset, backbone, method, baseline, clock and seconds (see `timed`; mean over seeds), speed_up, its 95 %
    interval low to high, and the seeds that it rests on. The speed-up is the geometric mean of the ratios within each
    seed (see `log_ratios`), NaN where there are none, the interval Student's t of their logarithms, which one seed does
    not have. The baseline is OFA's released code where OFA was not run; it has none itself. Raises InputError for a
    table without rows or columns that this needs, or without a time.
    """
    check(times, TIMES_COLUMNS, "times")
    unfinished = times[times["training_seconds"].isna()]
    if len(unfinished):
        dataset, _, method, seed = unfinished[list(PANEL_COLUMNS)].iloc[0]
        raise InputError(
            f"the table times has no training_seconds for {dataset}, {method}, seed {seed}: finish that run first"
        )
    rows = []
    for (dataset, backbone), table in by_panel(timed(times)):
        seconds = table.groupby("method")["seconds"].mean()
        baseline = next((b for b in BASELINES if b in seconds), None)
        for method in method_styles(seconds.index):
            part = over_seeds("", log_ratios(table, baseline, method) if baseline and method != baseline else ())
            row = (dataset, backbone, method, baseline, table["clock"].iloc[0], seconds[method])
            rows.append((*row, *np.exp([part.estimate, part.low(), part.high()]), part.seeds))
    columns = ["dataset", "backbone", "method", "baseline", "clock", "seconds", "speed_up", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def log_ratios(clocks: pd.DataFrame, baseline: str, method: str) -> pd.Series:
    """The logarithm of the baseline's training time over the method's, of a table of `timed`, wherever both were
    trained with one seed on one hardware by one executor: indexed by these, dataset and backbone."""
    seconds = clocks.pivot(index=[*MACHINE, "dataset", "backbone", "seed"], columns="method", values="seconds")
    seconds = seconds.reindex(columns=[baseline, method])
    return np.log(seconds[baseline] / seconds[method]).dropna()


def timed(times: pd.DataFrame) -> pd.DataFrame:
    """`times` with the columns clock and seconds: what compares the training times of a dataset and backbone best.

    That is the time of the processor where all runs were trained on CPUs and have it, since other programs on the
    machine hardly change it; else that of the clock on the wall.
    """
    tables = []
    for _, table in by_panel(times):
        processor = table.get("training_processor_seconds", pd.Series(math.nan, table.index))
        clock, seconds = ("processor", processor) if processor.notna().all() else ("wall", table["training_seconds"])
        tables.append(table.assign(clock=clock, seconds=seconds))
    return pd.concat(tables) if tables else times.assign(clock="", seconds=math.nan)


def time_unit(seconds: float) -> tuple[str, float]:
    """A fitting unit for a time: its name, and its length in seconds."""
    return ("s", 1.0) if seconds < 120 else ("min", 60.0) if seconds < 7200 else ("h", 3600.0)


def trained_on(times: pd.DataFrame) -> str:
    """Where the runs of a table of times were trained, and which methods where if in several places."""
    times = in_order(times)
    machines = times["hardware"].astype(str) + " (executor: " + times["executor"].astype(str) + ")"
    labels = times["method"].map(label_of).groupby(machines, sort=False).unique()
    if len(labels) == 1:
        return f"Trained on {labels.index[0]}."
    return f"Trained on {'; '.join(f'{machine}: {listed(names)}' for machine, names in labels.items())}."


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
    values = {tuple(row[:5]): row[5] for row in published[[*PUBLISHED_KEYS, "value"]].itertuples(index=False)}
    boxes = {}
    for dataset, backbone, method, bucket in table[[*PANEL_COLUMNS[:3], "bucket"]].drop_duplicates().to_numpy():
        told = PUBLISHED_AS.get(method, method)
        box: Any = tuple(values.get((dataset, backbone, told, bucket, name)) for name in ("q1", "median", "q3"))
        if None not in box:
            boxes[method, bucket] = box
    return boxes


# --- tables -----------------------------------------------------------------------------------------------------------


def check(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise InputError if `table` lacks one of `columns` or has no rows."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"the table {what} has no column {listed(missing)}: expected {', '.join(columns)}")
    if table.empty:
        raise InputError(f"the table {what} has no rows: expected the results of at least one run")


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by method, in the order in which methods are shown."""
    order = list(method_styles(table["method"]))
    return table.sort_values("method", key=lambda names: names.map(order.index), kind="stable")


def by_panel(table: pd.DataFrame) -> Iterable[tuple[tuple[str, str], pd.DataFrame]]:
    """Datasets (with backbone) in the order of the table's rows."""
    return table.groupby(["dataset", "backbone"], sort=False)
