"""What was measured, in tables and sentences, beside the figures of `rsslib.figures`.

The seed is the unit: every number is computed within a seed, and what is given is the mean over the seeds with its 95 %
interval (Student's t), which one seed does not have. Comparisons are paired by subnet and seed.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from rsslib.figures import (
    BASELINES,
    POPULATION_COLUMNS,
    check,
    method_styles,
    panel_label,
    published,
    published_boxes,
    speed_ups,
)

MAIN = ("ofa-released", "rss-short", "ofa", "rss")  # of their variants the longest name that fits is the base


def medians(population: pd.DataFrame) -> pd.DataFrame:
    """Median accuracy (%) of each size and of all subnets; the spread and the slope of accuracy over all subnets.

    One row a dataset, method and quantity: dataset, method (as labels), quantity, seeds, mean, low, high. Spread is the
    best subnet's accuracy minus the worst's, in points; slope that of the least-squares line of accuracy on size, in
    points per MFLOPs. Raises InputError for a table without rows or columns that this needs.
    """
    check(population, POPULATION_COLUMNS, "population")
    order = list(method_styles(population["method"]))
    rows = population.sort_values("method", key=lambda names: names.map(order.index), kind="stable")
    groups = rows.groupby(["dataset", "backbone", "method", "seed"], sort=False)
    table = _by_size(rows, "median")
    table["all"] = groups["accuracy"].median()
    table["spread"] = groups["accuracy"].max() - groups["accuracy"].min()
    table["slope"] = groups[["mflops", "accuracy"]].apply(lambda t: np.cov(t.T)[0, 1] / t["mflops"].var())
    return _over_seeds(table, {method: style.label for method, style in method_styles(order).items()})


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
    table["all"] = rows.groupby(["dataset", "backbone", "method", "seed"], sort=False)["accuracy"].mean()
    return _over_seeds(table)


def baselines_of(method: str) -> Sequence[str]:
    """The methods that a method is compared with."""
    if method in BASELINES:
        return BASELINES[: BASELINES.index(method)]
    bases = [base for base in MAIN if method.startswith(f"{base}-")]
    return BASELINES if method in MAIN or not bases else bases[:1]


def _by_size(population: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """A statistic of the accuracies of each bucket: a row a dataset, backbone, method and seed, a column a bucket."""
    groups = population.groupby(["dataset", "backbone", "method", "seed", "bucket"], sort=False)["accuracy"]
    table = groups.agg(statistic).unstack("bucket", sort=False)
    return table[sorted(table)].rename(columns="{:g} MFLOPs".format)


def _over_seeds(table: pd.DataFrame, labels: dict[str, str] | None = None) -> pd.DataFrame:
    """Mean and 95 % interval over the seeds of each column, one below the other."""
    table.columns.name = "quantity"
    groups = table.stack().dropna().groupby(["dataset", "backbone", "method", "quantity"], sort=False)
    result = groups.agg(["count", "mean", "sem"]).reset_index()
    margin = result.pop("sem") * stats.t.isf(0.025, (result["count"] - 1).clip(lower=1))
    names = [panel_label(*key) for key in zip(result["dataset"], result.pop("backbone"), strict=True)]
    result = result.assign(dataset=names, low=result["mean"] - margin, high=result["mean"] + margin)
    result = result.rename(columns={"count": "seeds"}).replace({"method": labels or {}})
    return result.sort_values("dataset", key=lambda column: column.map(names.index), kind="stable", ignore_index=True)


def readable(table: pd.DataFrame, decimals: int = 2) -> pd.DataFrame:
    """`medians` or `differences` to look at: a row a method, a column a quantity, as mean ± half of the interval."""
    half = (table["high"] - table["mean"]).map(lambda x: "" if math.isnan(x) else f" ± {x:.{decimals}f}")
    text = table.assign(text=table["mean"].map(f"{{:.{decimals}f}}".format) + half)
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
        told = study[study["quantity"] == "speedup_over_ofa"].set_index("method")["value"]
        for method in (method for method in method_styles(speeds["method"]) if method in told):
            here = speeds[speeds["method"] == method]
            names, mean = ", ".join(panel_label(d) for d in here["dataset"]), stats.gmean(here["speed_up"])
            rows.append(("speed-up over OFA", names, styles[method].label, mean, told[method]))
    table = pd.DataFrame(rows, columns=["quantity", "dataset", "method", "ours", "published"])
    return table.assign(difference=table["ours"] - table["published"])


def findings(population: pd.DataFrame, times: pd.DataFrame, profile: str) -> str:
    """The paired differences and speed-ups in sentences, in Markdown. Raises InputError as `medians` does."""
    lines, gaps = [], differences(population)
    if profile != "paper":
        lines.append(
            f"Profile `{profile}` is not the paper's scale: what follows describes these runs and decides nothing about"
            " the paper's claims."
        )
    if population["seed"].nunique() == 1:
        lines.append("There is one seed, so nothing can be said about how much another would change.")
    bullets = [*_gap_sentences(gaps), *_speed_sentences(times)]
    lines.append("\n".join(bullets) or "Nothing that is to be compared was run together.")
    return "\n\n".join(lines) + "\n"


def _gap_sentences(gaps: pd.DataFrame) -> Iterator[str]:
    for (dataset, pair), rows in gaps.groupby(["dataset", "method"], sort=False):
        (whole,), sizes = rows[rows["quantity"] == "all"].itertuples(), rows[rows["quantity"] != "all"]
        words = f"- {dataset}, {pair}: {whole.mean:+.2f} points on the same subnets"
        if whole.seeds > 1:
            words += f" (95 % interval {whole.low:+.2f} to {whole.high:+.2f}, {whole.seeds} seeds)"
        yield f"{words}; above 0 at {(sizes['mean'] > 0).sum()} of {len(sizes)} sizes."


def _speed_sentences(times: pd.DataFrame) -> Iterator[str]:
    speeds = speed_ups(times)
    for row in speeds.dropna(subset="speed_up").itertuples():
        here = set(speeds.loc[speeds["dataset"] == row.dataset, "method"])
        base = next(b for b in BASELINES if b in here)
        styles = method_styles([row.method, base])
        faster = f"{styles[row.method].label} trained {row.speed_up:.2f} times as fast as {styles[base].label}"
        yield f"- {panel_label(row.dataset, row.backbone)}: {faster}."
