"""Figures of what `rsstudy.claims.interference` computes, as pure functions of the tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from pandas import DataFrame

from rsstudy.claims.evidence import Part, table
from rsstudy.claims.interference import (
    SPAN,
    agreement_table,
    effect_table,
    gaps,
    half_way,
)
from rsstudy.figures.populations import (
    ACCURACY,
    INK,
    PAGE,
    SIZE,
    Captioned,
    add_legend,
    draw_forest,
    draw_matrix,
    finish,
    new_figure,
)
from rsstudy.figures.style import LOOKS, METHOD_STYLES, method_styles

MARKERS = "osvD^<>"
DIFFERENCE = "Difference in mean accuracy (points)"
INTERVALS = "Bars: 95 % intervals over seeds; one seed has none."


# --- estimates with intervals -----------------------------------------------------------------------------------------


def _draw_line(axes: Axes, places: Sequence[float], rows: DataFrame, **look) -> None:
    """Draw a line of estimates with their intervals."""
    axes.errorbar(places, rows["estimate"], yerr=rows["high"] - rows["estimate"], **look)


def _draw_over_training(axes: Axes, rows: DataFrame, **look) -> None:
    """Draw estimates at their share of training."""
    rows = rows.sort_values("share")
    percent = 100 * rows["share"]
    _draw_line(axes, percent, rows, **look)
    axes.set(xlabel="Training done (%)", xticks=percent)
    axes.margins(x=0.15)


def _looks(methods: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """The colour, marker and label of each method's line."""
    for (method, style), marker in zip(method_styles(methods).items(), cycle(MARKERS), strict=False):
        yield method, {"color": style.colour, "marker": marker, "label": style.label}


# --- does interference exist ------------------------------------------------------------------------------------------


def figure_alone(alone: DataFrame, about: str = "") -> Captioned:
    """Accuracy of subnets alone against that in the supernet, and the mean gaps, of the table of `standalone`."""
    figure, (cloud, forest) = new_figure(PAGE, 2.9, 1, 2)
    means = alone.groupby(["training", "bucket", "number"], sort=False)[["shared", "alone"]].mean()
    for (training, rows), marker in zip(means.groupby("training", sort=False), cycle(MARKERS), strict=False):
        cloud.plot("shared", "alone", marker, data=rows, label=training)
    cloud.axline((means.min().min(),) * 2, slope=1, **LOOKS.reference)
    cloud.set(xlabel="Accuracy in the supernet (%)", ylabel="Accuracy alone (%)", aspect="equal", adjustable="datalim")
    add_legend(figure, cloud)
    draw_forest(forest, table(gaps(alone)), "Alone minus shared (points)")
    words = "Left: each point is a subnet, a mean over seeds; on the line, sharing costs nothing. Right: mean gaps."
    return finish(figure, about, words, INTERVALS)


def figure_effects(effects: DataFrame, about: str = "") -> Captioned:
    """Who gains and who loses when one subnet is trained: matrices half way through training, and means over it."""
    others = effect_table(effects).query("what == 'others'")
    styles = method_styles(others["method"])
    figure, grid = new_figure(PAGE, 2.6 * len(styles), len(styles), 3)
    half = half_way(effects)
    for (method, style), (*matrices, means) in zip(styles.items(), grid.reshape(-1, 3), strict=True):
        means.axhline(0, **LOOKS.reference)
        means.set_yscale("symlog", linthresh=1e-3)
        for axes, (length, span), colour, marker in zip(matrices, SPAN.items(), ("C2", "C3"), "os", strict=True):
            _draw_matrix(axes, half[(half["method"] == method) & (half["length"] == length)])
            axes.set_title(f"{style.label}: after {span}")
            rows = others[(others["method"] == method) & (others["length"] == length)]
            _draw_over_training(means, rows, color=colour, marker=marker, label=f"after {span}")
        means.set(title=f"{style.label}: mean of others", ylabel="Loss falls by")
        means.yaxis.set_major_formatter("{x:g}")
    add_legend(figure, means)
    words = (
        "Matrices: by how much training one subnet lowers the validation loss of another, at "
        f"{100 * half['share'].max():.0f} % of training, beyond a step of zero gradient; blue helps, red harms. Right: "
        "means over different subnets."
    )
    return finish(figure, about, words, INTERVALS)


def _draw_matrix(axes: Axes, effects: DataFrame) -> None:
    """Draw the effect of each trained subnet (row) on each judged one (column)."""
    matrix = effects.pivot_table("loss_effect", "trained", "judged")
    sizes = effects.groupby("judged")["judged_mflops"].first().map("{:.1f}".format)
    draw_matrix(axes, matrix, "Loss falls by", xticklabels=sizes, yticklabels=sizes)
    axes.set(xlabel="Judged (MFLOPs)", ylabel="Trained (MFLOPs)")


def figure_agreement(agreement: DataFrame, about: str = "") -> Captioned:
    """Agreement of gradients over training, by layer, and by how many settings differ."""
    figure, grid = new_figure(PAGE, 2.6, 1, 3, sharey=True)
    time, layers, apart = grid
    half = half_way(agreement)
    order = ["first", *sorted(filter(str.isdigit, half["part"].unique()), key=int), "last"]
    for method, look in _looks(agreement["method"]):
        own = agreement[(agreement["method"] == method) & (agreement["part"] == "all")]
        _draw_over_training(time, _agreement(own, ["share"]), **look)
        own = half[half["method"] == method]
        by_layer = _agreement(own, ["part"]).set_index("part").reindex(order)
        _draw_line(layers, range(len(order)), by_layer, **look)
        pairs = _agreement(own[own["part"] == "all"], ["a", "b"])
        pairs = pairs.merge(own[["a", "b", "distance"]].drop_duplicates())
        apart.plot("distance", "estimate", look["marker"], data=pairs, color=look["color"])
    for axes in grid:
        axes.axhline(0, **LOOKS.reference)
        axes.axhline(1, linestyle=":", **LOOKS.reference)
    time.set_ylabel("Agreement of gradients")
    layers.set(xlabel="Layer", xticks=range(0, len(order), 3), xticklabels=order[::3])
    apart.set_xlabel("Settings that differ")
    add_legend(figure, time)
    words = (
        "Agreement of two subnets' gradients on the weights that they share: 1 is the same but for noise, 0 nothing in "
        "common; left out where noise hides it. Left: mean over pairs; middle: by layer and right: by pair, both at "
        f"{100 * half['share'].max():.0f} % of training."
    )
    return finish(figure, about, words, INTERVALS)


def _agreement(agreement: DataFrame, keys: Sequence[str]) -> DataFrame:
    return agreement_table(agreement, keys).query("what == 'agreement'")


def figure_contrasts(families: Mapping[str, Sequence[Part]], about: str = "") -> Captioned:
    """Differences in mean accuracy with their intervals, family by family; those without runs are left out."""
    rows = table([part for parts in families.values() for part in parts if part.seeds])
    figure, (axes,) = new_figure(PAGE, 0.24 * len(rows) + 0.8)
    draw_forest(axes, rows, f"{DIFFERENCE}; above 0 the first is better")
    return finish(figure, about, INTERVALS)


# --- which method to use ----------------------------------------------------------------------------------------------


def figure_samplers(
    comparison: DataFrame,
    leads: Sequence[Part] = (),
    about: str = "",
) -> Captioned:
    """Mean and best accuracy of each size with a line for each method, and below them the leads of the best method:
    table and parts as from `comparison` and `leads` of `rsstudy.claims.samplers`."""
    rows = table(leads)
    height = 0.24 * len(rows) + 0.5
    figure = Captioned((PAGE, 3.2 + height), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3.2, height))
    for axes, column in zip(above.subplots(1, 2, sharey=True), ("mean", "best"), strict=True):
        for method, look in _looks(comparison["method"]):
            axes.plot("bucket", column, data=comparison[comparison["method"] == method], **look)
        axes.set(xlabel=SIZE, ylabel=ACCURACY, title=f"{column} of each size".capitalize())
        axes.label_outer()
    add_legend(above, axes)
    if len(rows):
        draw_forest(below.subplots(), rows, DIFFERENCE)
    words = "Above: means over seeds. Below: means of all subnets."
    return finish(figure, about, words, INTERVALS)


BUDGETS = {
    "updates": "Updates, in RSS's",
    "time": "Training time, in RSS's",
}


def figure_budgets(overview: DataFrame, about: str = "") -> Captioned:
    """Mean accuracy over updates and time: a point for each method and learning rate, that of a method's best rate
    filled and with its interval; table as from `rsstudy.claims.samplers.overview`."""
    colours = {style.label: style.colour for style in METHOD_STYLES.values()}
    figure, grid = new_figure(PAGE, 3.2, 1, 2, sharey=True)
    low, high = overview["accuracy"].min(), overview["accuracy"].max()
    for axes, (column, label) in zip(grid, BUDGETS.items(), strict=True):
        for (method, rows), marker in zip(overview.groupby("method", sort=False), cycle(MARKERS), strict=False):
            look = {"color": colours.get(method, INK), "fmt": marker}
            best = rows.loc[[rows["accuracy"].idxmax()]]
            others = rows.drop(index=best.index)
            margin = best["high"] - best["accuracy"]
            axes.errorbar(best[column], best["accuracy"], margin, label=method, **look)
            axes.errorbar(others[column], others["accuracy"], fillstyle="none", **look)
        axes.set(xlabel=label, ylabel=ACCURACY, ylim=(low - 2, high + 5))
        axes.label_outer()
    add_legend(figure, axes)
    words = (
        "All methods run as many subnets on as many images. Filled: the best of the learning rates that were run; "
        "hollow: the others, whose intervals are left out."
    )
    return finish(figure, about, words, INTERVALS)
