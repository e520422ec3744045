"""Figures of what `rsstudy.claims.interference` computes, as pure functions of the tables."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from rsslib.samplers import SIZES
from rsstudy.claims.evidence import Part
from rsstudy.claims.interference import (
    EQUAL,
    EXPOSED,
    SPAN,
    agreement_table,
    effect_table,
    gaps,
    half_way,
)
from rsstudy.figures.populations import INK, PAGE, Captioned
from rsstudy.figures.style import method_styles

TRAININGS = {EQUAL: ("#1f5a99", "o"), EXPOSED: ("#f2a93b", "s")}
TRAININGS |= {size: ("#4d2048", mark) for size, mark in zip(SIZES, "vD^", strict=True)}
MARKS = "os^Dv<>"
LENGTHS = {"step": ("#2a9d78", "o"), "epoch": ("#7656a8", "s")}


def figure_alone(alone: pd.DataFrame, caption: str = "") -> Captioned:
    """Accuracy alone against that in the supernet, and the mean gaps with their intervals, of `standalone`'s table."""
    figure = Captioned((PAGE, 2.9), layout="constrained")
    cloud, bars = figure.subplots(1, 2)
    means = alone.groupby(["training", "bucket", "number"], sort=False)[["alone", "shared"]].mean()
    for training, rows in means.groupby("training", sort=False):
        colour, mark = TRAININGS[training]
        cloud.scatter(rows["shared"], rows["alone"], s=12, color=colour, marker=mark, label=training, zorder=2)
    cloud.axline((means.to_numpy().min(),) * 2, slope=1, color="0.4", linewidth=0.8, zorder=1)
    cloud.set(xlabel="Accuracy in the supernet (%)", ylabel="Accuracy alone (%)", aspect="equal", adjustable="datalim")
    cloud.legend(loc="lower right", frameon=True)
    _forest(bars, gaps(alone), "Alone minus shared (points)")
    words = "Left: each point a subnet, a mean over seeds; on the line sharing costs nothing. Right: means."
    figure.caption = f"{caption} {words}{_interval_words(part.seeds for part in gaps(alone))}".strip()
    return figure


def figure_effects(effects: pd.DataFrame, caption: str = "") -> Captioned:
    """Who gains and who loses when one is trained: matrices half way through training, and means over it."""
    methods = list(dict.fromkeys(effects["method"]))
    figure = Captioned((PAGE, 2.6 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), 3, squeeze=False)
    styles = method_styles(methods)
    others = effect_table(effects).query("what == 'others'")
    for row, method in zip(panels, methods, strict=True):
        half = half_way(effects[effects["method"] == method])
        for axes, length in zip(row, SPAN, strict=False):
            matrix = half[half["length"] == length].pivot_table("loss_effect", "trained", "judged")
            sizes = half.groupby("judged")["judged_mflops"].first()
            labels = [f"{size:.0f}" for size in sizes]
            most = float(np.abs(matrix.to_numpy()).max()) or 1.0
            sns.heatmap(
                matrix, ax=axes, cmap="RdBu", vmin=-most, vmax=most, square=True, xticklabels=labels,
                yticklabels=labels, cbar_kws={"shrink": 0.75, "format": "%.1g"},
            )  # fmt: skip
            axes.set(xlabel="judged (MFLOPs)", ylabel="trained (MFLOPs)")
            axes.set_title(f"{styles[method].label}: after {SPAN[length]}")
        _over_training(row[2], others[others["method"] == method], styles[method].label)
    words = "Matrices: how much less the validation loss of one subnet becomes when another is trained, at "
    words += f"{half_way(effects)['share'].max():.0%} of training, less what a gradient of zero does; blue helps, "
    words += "red harms. Right: means over different subnets."
    figure.caption = f"{caption} {words}{_interval_words(others['seeds'])}".strip()
    return figure


def _over_training(axes: Axes, others: pd.DataFrame, label: str) -> None:
    axes.axhline(0, color="0.4", linewidth=0.8)
    for length, rows in others.groupby("length", sort=False):
        colour, mark = LENGTHS[length]
        rows = rows.sort_values("share")
        _line(axes, 100 * rows["share"], rows, colour, mark, SPAN[length])
    axes.set(xlabel="Training done (%)", ylabel="Others' loss falls by")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_title(f"{label}: others")
    axes.legend(loc="best", frameon=True)


def _line(axes: Axes, x: Sequence[float], rows: pd.DataFrame, colour: str, mark: str, label: str) -> None:
    axes.errorbar(x, rows["estimate"], yerr=rows["high"] - rows["estimate"], color=colour, marker=mark, markersize=3.5,
                  capsize=2, linewidth=1, label=label)  # fmt: skip


def _interval_words(seeds: Iterable[int]) -> str:
    """What the bars are, or why there are none."""
    known = {n for n in seeds if n}
    hollow = "; hollow: one seed, no interval" if 1 in known else ""
    return (
        f" Bars: 95 % intervals over seeds{hollow}." if known - {1} else " One seed has no intervals." if known else ""
    )


def figure_agreement(agreement: pd.DataFrame, caption: str = "") -> Captioned:
    """Agreement of gradients over training, by layer, and by how many settings differ."""
    methods = list(dict.fromkeys(agreement["method"]))
    styles = method_styles(methods)
    figure = Captioned((PAGE, 2.5), layout="constrained")
    time, layers, apart = figure.subplots(1, 3, sharey=True)
    half = half_way(agreement)
    half = half[half["a"] != half["b"]]
    order = sorted(set(half["part"]) - {"all"}, key=lambda name: {"first": -1, "last": 10_000}.get(name) or int(name))
    for method, mark in zip(methods, cycle(MARKS), strict=False):
        colour, label = styles[method].colour, styles[method].label
        whole = agreement[agreement["part"] == "all"]
        rows = _agreement(whole[whole["method"] == method], ["share"]).sort_values("share")
        _line(time, 100 * rows["share"], rows, colour, mark, label)
        own = half[half["method"] == method]
        rows = _agreement(own, ["part"]).set_index("part").reindex(order)
        _line(layers, range(len(order)), rows, colour, mark, label)
        pairs = _agreement(own[own["part"] == "all"], ["a", "b"])
        pairs = pairs.merge(own[["a", "b", "distance"]].drop_duplicates())
        apart.scatter(pairs["distance"], pairs["estimate"], s=9, color=colour, marker=mark, label=label)
    for axes in (time, layers, apart):
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    time.set(xlabel="Training done (%)", ylabel="Agreement of gradients")
    layers.set_xlabel("Layer")
    step = max(1, len(order) // 6)
    layers.set_xticks(range(0, len(order), step), order[::step])
    apart.set_xlabel("Settings that differ")
    time.legend(loc="best", frameon=True)
    words = "Agreement of two subnets' gradients on the weights that they share: 1 means the same but for the noise of "
    words += "batches, 0 nothing in common; left out where noise hides it. Left: mean over pairs; middle: by layer and "
    words += f"right: by pair, both at {half['share'].max():.0%} of training."
    figure.caption = f"{caption} {words}{_interval_words(_agreement(agreement, ['method', 'share'])['seeds'])}".strip()
    return figure


def _agreement(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return agreement_table(rows, keys).query("what == 'agreement'")


def figure_contrasts(families: Mapping[str, Sequence[Part]], caption: str = "") -> Captioned:
    """Differences in mean accuracy with their intervals, a panel a family; what was not run is left out."""
    shown = {name: [part for part in parts if part.seeds] for name, parts in families.items()}
    shown = {name: parts for name, parts in shown.items() if parts}
    heights = [len(parts) for parts in shown.values()]
    figure = Captioned((PAGE, 0.5 + 0.24 * sum(heights) + 0.4 * len(heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, parts) in zip(panels, shown.items(), strict=True):
        _forest(axes, parts, "Difference in mean accuracy (points)")
        axes.set_title(name.capitalize())
    figure.caption = f"{caption}{_interval_words(part.seeds for parts in shown.values() for part in parts)}".strip()
    return figure


def _forest(axes: Axes, parts: Sequence[Part], label: str) -> None:
    """One row per part, the first above: estimate and interval, hollow where one seed has none."""
    axes.axvline(0, color="0.4", linewidth=0.8, zorder=1)
    for y, part in enumerate(parts):
        margin = part.high() - part.estimate
        axes.errorbar(part.estimate, y, xerr=margin, marker="o", markersize=3.5, color=INK, capsize=2, linewidth=1,
                      markerfacecolor=INK if part.degrees else "white")  # fmt: skip
    axes.set_yticks(range(len(parts)), [part.label for part in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", linewidth=0.4, color="0.9")
    axes.grid(axis="y", visible=False)


# --- which method to use ----------------------------------------------------------------------------------------------


def figure_samplers(comparison: pd.DataFrame, leads: Sequence[Part] = (), caption: str = "") -> Captioned:
    """Mean and best accuracy of each size, a line a method, and below them the leads of the best method: tables and
    parts as from `comparison` and `leads` of `rsstudy.claims.samplers`."""
    methods = list(dict.fromkeys(comparison["method"]))
    styles, height = method_styles(methods), 0.5 + 0.24 * len(leads)
    figure = Captioned((PAGE, 2.8 + height * bool(leads)), layout="constrained")
    rows, heights = (2, [2.8, height]) if leads else (1, [2.8])
    above, *below = figure.subfigures(rows, 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = above.subplots(1, 2, sharey=True)
    for axes, column in zip(panels, ("mean", "best"), strict=True):
        for method, mark in zip(methods, cycle(MARKS), strict=False):
            own = comparison[comparison["method"] == method].sort_values("bucket")
            axes.plot(own["bucket"], own[column], color=styles[method].colour, marker=mark, markersize=3.5,
                      linewidth=1, label=styles[method].label)  # fmt: skip
        axes.set(xlabel="Subnet size (MFLOPs)", title=f"{column} of each size")
    panels[0].set_ylabel("Test accuracy (%)")
    above.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    for part_of_figure in below:
        _forest(part_of_figure.subplots(), leads, "Difference in mean accuracy (points)")
    words = "Above: means over seeds. Below: means of all subnets." if leads else "Means over seeds."
    figure.caption = f"{caption} {words}{_interval_words(part.seeds for part in leads)}".strip()
    return figure
