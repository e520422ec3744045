"""The paper's plots, as pure functions of the results tables.

Every function takes the tables of `rsstudy.tables` (`populations`, `times`); nothing here trains, and nothing
is drawn from memory. Call `set_style` once before drawing. `rsstudy.summary` has the numbers beside the plots.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from rsslib.files import atomic_path, make_folder
from rsslib.population import get_buckets, half_bucket
from rsslib.space import SearchSpace
from rsstudy.catalogue import OVERRIDES
from rsstudy.figures.style import MethodStyle, label_of, listed, method_styles, panel_label
from rsstudy.plan import Run
from rsstudy.summary import (
    MACHINE,
    PANEL_COLUMNS,
    POPULATION_COLUMNS,
    TIMES_COLUMNS,
    by_panel,
    check,
    published,
    published_boxes,
    speed_ups,
    time_unit,
    timed,
    trained_on,
)

ACCURACY, SIZE = "Test accuracy (%)", "Subnet size (MFLOPs)"

COLUMN, PAGE = 3.6, 7.0  # inches: figures of one panel and of several are readable at these widths
INK, GROUP_WIDTH = "0.15", 0.8  # the width of a bucket's boxes is seaborn's for points
FEWEST = 5  # subnets a bucket, method and seed of which quartiles are drawn
SEED_MARK = {"linestyle": "", "marker": "o", "markersize": 2.4, "zorder": 4,
             "markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.5}  # fmt: skip
PUBLISHED_MARK = {"marker": "D", "markersize": 3, "markerfacecolor": "white", "markeredgewidth": 0.8,
                  "color": "#c1121f", "linewidth": 0.8, "zorder": 5}  # fmt: skip


class Captioned(Figure):
    """A figure with what is to be written below it, which `show` and `save_figure` take from here.

    `alternative` is what stands in for the image where it cannot be seen, by default what its axes and legend say.
    """

    caption = ""
    alternative = ""


def set_style() -> None:
    """Fonts, sizes and lines of all figures, for this process."""
    sizes = {"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7.5}
    sizes |= {"legend.title_fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
    lines = {"axes.linewidth": 0.7, "grid.linewidth": 0.5, "hatch.linewidth": 0.5, "axes.edgecolor": "0.4"}
    lines |= {"xtick.major.size": 0, "ytick.major.size": 0, "axes.grid.axis": "y", "axes.titlepad": 4.0}
    rc = {**sizes, **lines, "figure.dpi": 160, "pdf.fonttype": 42}
    sns.set_theme("paper", "whitegrid", font="DejaVu Sans", rc=rc)  # a font that comes with matplotlib


def shade_buckets(axes: Axes, space: SearchSpace, ymax: float = 1) -> None:
    """Grey bands where the space's buckets lie on an x axis in MFLOPs, up to `ymax` of the axes' height."""
    for bucket in get_buckets(space):
        low, high = bucket - half_bucket(space), bucket + half_bucket(space)
        axes.axvspan(low, high, ymax=ymax, color="0.92", linewidth=0, zorder=0)


# --- Figures 3, 5 to 7 and S1 to S7: accuracy against size ------------------------------------------------------------


def population_boxes(
    population: pd.DataFrame,
    caption: str = "",
    published: pd.DataFrame | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
    labels: Mapping[str, str] | None = None,
    beside: pd.DataFrame | None = None,
) -> Captioned:
    """Figure 3: test accuracy by subnet size, a box a method over the subnets as points, a panel a dataset.

    `split` makes a panel of each of several sets of methods instead, by title, on one axis of accuracy. Several seeds
    are pooled in a box, with the median of each seed marked. Where a size has fewer than five subnets a method and
    seed, medians stand in for the boxes. `published` (see the function of that name) adds the study's medians and
    quartiles where it has any: ask for it only at the paper's scale. `labels` are names of methods for the legend.
    `beside` is a population with which this one is to be compared by eye: the axes take its range too. `caption` is
    what the figure's caption begins with. Raises InputError for a table without rows or columns that this needs.
    """
    check(population, POPULATION_COLUMNS, "population")
    panels = {panel_label(*names): table for names, table in by_panel(population)}
    if split is not None:
        panels = {
            title if len(panels) == 1 else f"{title}, {label}": rows
            for title, methods in split.items()
            for label, table in panels.items()
            if len(rows := table[table["method"].isin(methods)])
        }
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = Captioned((COLUMN if columns == 1 else PAGE, 2.5 * rows + 0.55), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=split is not None).ravel()
    styles, boxes = method_styles(population["method"], labels), _boxes(population)
    if split is not None:  # the legend in the order of the panels
        styles = {method: styles[method] for methods in split.values() for method in methods if method in styles}
    compared = any(published_boxes(table, published) for table in panels.values())
    for i, (axes, (title, table)) in enumerate(zip(grid, panels.items(), strict=False)):
        _draw_population(axes, table, styles, published, boxes, compared)
        if beside is not None:
            _take_range(axes, beside.merge(table[["dataset", "backbone"]].drop_duplicates()), published)
        axes.set(title=title, xlabel=SIZE if i + columns >= len(panels) else "")
        axes.set_ylabel(ACCURACY if i % columns == 0 else "")
    figure.align_ylabels()
    seeds = _several_seeds(population)
    rows_of_legend = max(map(len, split.values())) if split else None
    _legend(figure, grid[len(panels) :], styles, _sample_size(population), seeds, compared, boxes, rows_of_legend)
    figure.caption = f"{caption} {_population_words(seeds, compared, boxes)}".strip()
    return figure


def population_figure(
    population: pd.DataFrame,
    times: pd.DataFrame,
    runs: Sequence[Run],
    methods: Sequence[str],
    folder: str | Path,
    name: str,
    split: Mapping[str, Sequence[str]] | None = None,
) -> Captioned | str:
    """`population_boxes` of some of the methods, saved as `name`; a sentence instead if there is nothing to compare.

    A panel needs finished runs of two of its methods; the caption names those that are missing. All figures of one
    population share the range of accuracy, so that they can be compared. Settings in which the runs differ are told in
    the legend. At the paper's scale the study's values are drawn in where it has any.
    """
    panels = {}
    for title, names in (split or {"": methods}).items():
        finished = [method for method in names if method in set(population["method"])]
        if len(finished) >= min(2, len(names)):
            panels[title] = finished
    drawn = {method for names in panels.values() for method in names}
    if not drawn:
        return f"{name} is not drawn: of what it compares ({', '.join(methods)}), no two runs are finished."
    chosen = [run for run in runs if run.method.name in drawn]
    at_scale = all(run.profile.name == "paper" for run in chosen)
    shown, where = (table[table["method"].isin(drawn)] for table in (population, times))
    figure = population_boxes(
        shown, caption(chosen, where), published() if at_scale else None, panels if split else None,
        labels_of(chosen), population,
    )  # fmt: skip
    missing = method_styles(method for method in methods if method not in drawn)
    if missing:
        figure.caption += f" Not drawn, since not finished: {listed(style.label for style in missing.values())}."
    save_figure(figure, folder, name)
    return figure


def labels_of(runs: Sequence[Run]) -> dict[str, str]:
    """The methods' names for a legend, with the batch size, dropout or learning rate that was trained if they differ.

    The learning rate is that of the first stage.
    """
    methods = {run.method.name: run.method for run in runs}
    settings = pd.DataFrame(
        {name: (m.batch_size, m.dropout, m.stages[0].learning_rate if m.stages else math.nan)
         for name, m in methods.items()},
        ["batch size", "dropout", "learning rate"],
    )  # fmt: skip
    told = settings[settings.nunique(axis=1) > 1]
    labels = {}
    for name, style in method_styles(methods).items():
        base = next((name.removesuffix(f"-{change}") for change in OVERRIDES if name.endswith(f"-{change}")), name)
        label = label_of(base) if len(told) else style.label
        labels[name] = ", ".join([label, *(f"{setting} {value:g}" for setting, value in told[name].items())])
    return labels


def _boxes(population: pd.DataFrame) -> bool:
    """Whether all sizes of all runs have enough subnets for quartiles."""
    return population.groupby([*PANEL_COLUMNS, "bucket"]).size().min() >= FEWEST


def _draw_population(
    axes: Axes,
    table: pd.DataFrame,
    styles: dict[str, MethodStyle],
    published: pd.DataFrame | None,
    boxes: bool,
    compared: bool,
) -> None:
    """Boxes (or only medians) and points of one panel; `compared` leaves a gap right of each for published values."""
    buckets = sorted(table["bucket"].unique())
    here = [method for method in styles if method in set(table["method"])]
    slot, size = GROUP_WIDTH / len(here), 2.6 if len(table) < 1000 else 1.8 if len(table) < 4000 else 1.4
    gap = 0.45 if compared else 0.25
    spread = {"data": table, "x": "bucket", "y": "accuracy", "order": buckets, "hue": "method", "hue_order": here}
    spread |= {"palette": {method: styles[method].colour for method in here}, "orient": "v", "legend": False}
    look = {"size": size, "alpha": 0.75, "zorder": 1.5} if boxes else {"size": 3.2, "linewidth": 0.4, "zorder": 3}
    sns.stripplot(**spread, dodge=True, jitter=False, edgecolor=INK, ax=axes, **look)
    rng = np.random.default_rng(0)  # seaborn's own jitter is another every time
    for points in axes.collections:
        offsets = np.array(points.get_offsets())
        places = rng.uniform(-0.5, 0.5, len(offsets)) if boxes else np.linspace(-0.3, 0.3, len(offsets) + 2)[1:-1]
        offsets[:, 0] += places * slot * (1 - gap)
        points.set_offsets(offsets)
    median = {"color": "white", "linewidth": 1.3} if boxes else {"color": INK, "linewidth": 1.2}
    sns.boxplot(
        **spread, dodge=True, width=GROUP_WIDTH, gap=gap, saturation=1, linewidth=0.6, linecolor=INK, showfliers=False,
        showbox=boxes, showcaps=boxes, whiskerprops={"visible": boxes}, medianprops=median, ax=axes, zorder=2,
    )  # fmt: skip
    study = published_boxes(table, published)
    drawn_boxes: list[Any] = list(axes.containers)
    for method, drawn in zip(here, drawn_boxes, strict=True):
        style = styles[method]
        for box in drawn.boxes:
            box.set(hatch=style.hatch, hatchcolor="1")
        for line in drawn.medians:
            x = line.get_xdata().mean()
            bucket = buckets[round(x)]
            line.set(gid=f"median {method} {bucket:g}")
            line.set_path_effects([withStroke(linewidth=2.3, foreground=INK)] if boxes else [])
            if _several_seeds(table):
                subnets = table[(table["method"] == method) & (table["bucket"] == bucket)]
                by_seed = subnets.groupby("seed")["accuracy"].median()
                axes.plot([x] * len(by_seed), by_seed, **SEED_MARK)
            if (method, bucket) in study:
                q1, middle, q3 = study[method, bucket]
                name = f"published {method} {bucket:g}"
                axes.errorbar(x + 0.46 * slot, middle, [[middle - q1], [q3 - middle]], gid=name, **PUBLISHED_MARK)
    axes.set_xticks(range(len(buckets)), [f"{bucket:g}" for bucket in buckets])
    axes.set_xlim(-0.5, len(buckets) - 0.5)
    for border in range(1, len(buckets)):
        axes.axvline(border - 0.5, color="0.9", linewidth=0.5, zorder=0.5)


def _take_range(axes: Axes, population: pd.DataFrame, published: pd.DataFrame | None) -> None:
    """Let the axis of accuracy hold all of `population` and its published values, with some room."""
    study = [value for box in published_boxes(population, published).values() for value in box]
    low, high = min([population["accuracy"].min(), *study]), max([population["accuracy"].max(), *study])
    room = 0.04 * (high - low) or 1.0
    axes.set_ylim(low - room, high + room)


def _population_words(seeds: bool, compared: bool, boxes: bool) -> str:
    words = "Lines: medians; dots: subnets."
    if boxes:
        words = "Boxes: quartiles and median; whiskers: the furthest subnets within 1.5 interquartile ranges; dots: "
        words += "subnets."
    words += " MFLOPs: millions of multiply-accumulates."
    words += f" Circles: the median of each seed; {'boxes' if boxes else 'lines'} pool the seeds." if seeds else ""
    words += " Diamonds, to the right: the published median and quartiles, read off the paper." if compared else ""
    return words


# --- Figures 1 and 4: training time -----------------------------------------------------------------------------------


def training_time_bars(times: pd.DataFrame, caption: str = "", published: pd.DataFrame | None = None) -> Captioned:
    """Figure 4: training time of each method, a panel a dataset, with the speed-up over OFA written on the bars.

    Bars are means over seeds, the seeds themselves are points; a speed-up over several seeds has its 95 % interval (see
    `speed_ups`). No ratio is written where the two methods' runs are not all from the same hardware and executor; the
    caption then says so. It also gives the hours in `published`, which are of another machine. Raises InputError for a
    table without rows or columns that this needs.
    """
    speeds, panels = speed_ups(times), list(by_panel(times))
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Captioned((COLUMN if columns == 1 else PAGE, 2.1 * rows + 0.45), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    styles, unit = method_styles(times["method"]), time_unit(speeds["seconds"].max())
    for i, (names, table) in enumerate(panels):
        _draw_times(grid[i], table, styles, unit[1])
        grid[i].set(title=panel_label(*names), ylabel=f"Training time ({unit[0]})" if i % columns == 0 else "")
    figure.align_ylabels()
    _legend(figure, grid[len(panels) :], styles, _seed_words(times), _several_seeds(times))
    figure.caption = f"{caption} {_time_words(times, published)}".strip()
    return figure


def figure_1(
    population: pd.DataFrame,
    times: pd.DataFrame,
    dataset: str,
    caption: str = "",
    published: pd.DataFrame | None = None,
) -> Captioned:
    """Figure 1: training time and subnet population of one dataset.

    `caption` and `published` are as in `population_boxes`. Raises InputError for a table without rows of the dataset or
    columns that this needs.
    """
    check(population, POPULATION_COLUMNS, "population")
    check(times, TIMES_COLUMNS, "times")
    population, times = (table[table["dataset"] == dataset] for table in (population, times))
    unit = time_unit(speed_ups(times)["seconds"].max())
    check(population, POPULATION_COLUMNS, "population")
    figure = Captioned((PAGE, 2.95), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.1))
    styles, seeds = method_styles([*population["method"], *times["method"]]), _several_seeds(population)
    _draw_times(left, times, styles, unit[1])
    compared, boxes = len(published_boxes(population, published)) > 0, _boxes(population)
    _draw_population(right, population, styles, published, boxes, compared)
    left.set(title=f"(a) Training time, {panel_label(dataset)}", ylabel=f"Training time ({unit[0]})")
    right.set(title=f"(b) Subnet population, {panel_label(dataset)}", xlabel=SIZE, ylabel=ACCURACY)
    _legend(figure, [], styles, _sample_size(population), seeds, compared)
    words = [caption, _time_words(times, published), _population_words(seeds, compared, boxes)]
    figure.caption = " ".join(words).strip()
    return figure


def search_figure(fronts: Mapping[str, pd.DataFrame], population: pd.DataFrame, caption: str = "") -> Captioned:
    """Test accuracy against size of the fronts of `rsslib.search`, by name, over a population's subnets.

    Sizes are the column mflops of each table; count those of a population for the same network as the fronts'.
    """
    figure = Captioned((COLUMN, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.scatter(population["mflops"], population["accuracy"], s=5, color="0.75", label="population", zorder=1)
    for (name, front), colour, mark in zip(fronts.items(), ("#2a9d78", "#1f5a99", "#f2a93b"), "osD", strict=False):
        axes.plot(
            front["mflops"], front["test_accuracy"], color=colour, marker=mark, markersize=3, linewidth=0.9,
            label=name, zorder=2,
        )  # fmt: skip
    axes.set(xlabel=SIZE, ylabel=ACCURACY)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, columnspacing=1.2, handletextpad=0.4)
    figure.caption = caption
    return figure


def predictions_figure(images: np.ndarray, predicted: Sequence[str], labels: Sequence[str]) -> Figure:
    """uint8 images [N, C, R, R] in rows of five, each under what was predicted; the label too where it is another."""
    figure = Figure((PAGE / 1.6, 1.1 * -(-len(images) // 5)), layout="constrained")
    panels = np.ravel(figure.subplots(-(-len(images) // 5), 5))
    for axes in panels:
        axes.set_axis_off()
    for axes, image, name, label in zip(panels, images, predicted, labels, strict=False):
        axes.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        right = name == label
        axes.set_title(name if right else f"{name} (is {label})", color=INK if right else "#c1121f")
    return figure


def _draw_times(axes: Axes, times: pd.DataFrame, styles: dict[str, MethodStyle], unit: float) -> None:
    """Bars of one dataset; `unit` in seconds."""
    times = timed(times)
    for x, row in enumerate(speed_ups(times).itertuples()):
        style, height = styles[row.method], row.seconds / unit
        axes.bar(x, height, 0.74, color=style.colour, edgecolor=INK, linewidth=0.6,
                 hatch=style.hatch, hatchcolor="1", zorder=2, gid=f"time {row.method}")  # fmt: skip
        seeds = times.loc[times["method"] == row.method, "seconds"] / unit
        if len(seeds) > 1:
            axes.plot(x + np.linspace(-0.15, 0.15, len(seeds)), seeds, **SEED_MARK)
        if np.isfinite(row.speed_up):
            above = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
            top, several = (x, max(height, seeds.max())), row.seeds > 1
            axes.annotate(f"×{row.speed_up:.1f}", top, (0, 9 if several else 3), fontweight="bold", **above)
            if several:
                digits = 2 if row.high < 10 else 1
                axes.annotate(f"{row.low:.{digits}f}–{row.high:.{digits}f}", top, (0, 3), fontsize=5.6, **above)
    axes.set_xticks([])
    axes.set_xlim(-0.6, x + 0.6)
    axes.set_ylim(0, 1.18 * times["seconds"].max() / unit)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _time_words(times: pd.DataFrame, published: pd.DataFrame | None = None) -> str:
    """What the bars are, where the runs were trained, and how long the study's took."""
    table = speed_ups(times)
    clocks = {"wall": "wall clock", "processor": "time of the processor, which other programs hardly change,"}
    words = f"Bars: {listed(clocks[clock] for clock in table['clock'].unique())} from the first epoch to the last"
    words += ", mean of the seeds (circles). " if _several_seeds(times) else ". "
    compared = table.dropna(subset="speed_up")
    if len(compared):
        bases = {panel_label(row.dataset, row.backbone): label_of(row.baseline) for row in compared.itertuples()}
        one = next(iter(bases.values())) if len(set(bases.values())) == 1 else ""
        words += f"×: times as fast as {one or listed(f'{base} ({panel})' for panel, base in bases.items())}"
        words += ", below it the 95 % interval over the seeds. " if (table["seeds"] > 1).any() else ". "
    if any(len(rows[list(MACHINE)].drop_duplicates()) > 1 for _, rows in by_panel(times)):
        words += "No ratio is written between runs of different hardware or executors. "
    words += trained_on(times)
    if published is not None:
        hours = published[published["quantity"] == "training_hours_rtx3080"]
        told = table.merge(hours, on=["dataset", "backbone", "method"])
        here = {panel_label(row.dataset, row.backbone): None for row in told.itertuples()}
        times_told = (f"{label_of(row.method)} {row.value:g} h" for row in told.itertuples())
        words += f" Published, on an RTX 3080, {listed(here)}: {', '.join(times_told)}." if here else ""
    return words


# --- captions, legends, files -----------------------------------------------------------------------------------------


def caption(runs: Sequence[Run], times: pd.DataFrame | None = None) -> str:
    """Datasets, scale and seeds of `runs` in words, and with `times` where they were trained; a caption."""
    scales: dict[str, dict[str, None]] = {}
    for run in runs:
        scales.setdefault(run.profile.describe(run.dataset), {})[panel_label(run.dataset, run.backbone)] = None
    profiles, seeds = dict.fromkeys(run.profile.name for run in runs), sorted({run.seed for run in runs})
    words = [f"Profile {listed(profiles)}, seed{'s' if len(seeds) > 1 else ''} {listed(seeds)}."]
    words += [f"{listed(labels)}: {scale}." for scale, labels in scales.items()]
    words += _stages_without_epochs(runs)
    return " ".join(words + ([] if times is None else [trained_on(times)]))


def _stages_without_epochs(runs: Sequence[Run]) -> list[str]:
    """A sentence for each set of stages of progressive shrinking that the schedule leaves no epoch, and whose."""
    whose: dict[tuple[str, ...], dict[str, None]] = {}
    for run in runs:
        if stages := tuple(stage.name for stage in run.method.stages if stage.epochs == 0):
            label = f"{label_of(run.method.name)} on {panel_label(run.dataset, run.backbone)}"
            whose.setdefault(stages, {})[label] = None
    return [
        f"No epoch is left at this scale for {listed(stages)} of {listed(labels)}: a comparison there is one of "
        "schedules, too."
        for stages, labels in whose.items()
    ]


def _legend(
    figure: Figure,
    free: Sequence[Axes],
    styles: dict[str, MethodStyle],
    title: str,
    seeds: bool,
    compared: bool = False,
    boxes: bool = True,
    rows: int | None = None,
) -> None:
    """The figure's legend: above the panels, or in the place of a panel that the grid has left free.

    Methods are points where there are no `boxes`; `rows` are how many entries stand below each other.
    """
    dot = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgecolor": INK, "markeredgewidth": 0.5}
    handles: list[Artist] = [
        Patch(facecolor=s.colour, edgecolor=INK, hatch=s.hatch, hatchcolor="1", linewidth=0.6, label=s.label)
        if boxes else Line2D([], [], label=s.label, markerfacecolor=s.colour, **dot)
        for s in styles.values()
    ]  # fmt: skip
    if seeds:
        handles.append(Line2D([], [], label="one seed", **SEED_MARK))
    if compared:
        handles.append(Line2D([], [], label="published", **PUBLISHED_MARK))
    style = {"handles": handles, "title": title, "frameon": False, "borderpad": 0.1}
    style |= {"handlelength": 1.6, "handletextpad": 0.5, "columnspacing": 1.2}
    for axes in free:
        axes.set_axis_off()
    if len(free):
        free[0].legend(loc="center", **style)
        return
    columns = math.ceil(len(handles) / (rows or 1))
    if figure.get_figwidth() <= COLUMN:  # as many as fit side by side; four make two rows of two
        fits = 3 if sum(len(str(handle.get_label())) for handle in handles[:3]) < 34 else 2
        columns = min(len(handles), 2 if len(handles) == 4 else fits)
    figure.legend(loc="outside upper center", ncols=columns, **style)


def _several_seeds(table: pd.DataFrame) -> bool:
    return table["seed"].nunique() > 1


def _range(numbers: pd.Series) -> str:
    return f"{numbers.min()}" if numbers.min() == numbers.max() else f"{numbers.min()} to {numbers.max()}"


def _seed_words(table: pd.DataFrame) -> str:
    counts = table.groupby(list(PANEL_COLUMNS[:3]))["seed"].nunique()
    return f"{_range(counts)} seed{'s' if counts.max() > 1 else ''}"


def _sample_size(population: pd.DataFrame) -> str:
    counts = population.groupby([*PANEL_COLUMNS, "bucket"]).size()
    return f"{_range(counts)} subnet{'s' if counts.max() > 1 else ''} a bucket, {_seed_words(population)}"


def alternative(figure: Figure) -> str:
    """What the figure shows in a sentence, for whoever cannot see it: its panels, axes and legend."""
    if isinstance(figure, Captioned) and figure.alternative:
        return figure.alternative
    panels = [axes for axes in figure.axes if axes.axison]
    quantities = (f"{axes.get_ylabel()} by {axes.get_xlabel()}".removesuffix(" by ") for axes in panels)
    titles = (axes.get_title() or axes.get_title(loc="left") for axes in panels)
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in panels))]
    entries = (text.get_text() for legend in legends for text in legend.get_texts())
    parts = (", ".join(dict.fromkeys(filter(None, words))) for words in (titles, quantities, entries))
    return "; ".join(filter(None, parts)) or "figure"


def show(figure: Figure | str) -> None:
    """In a notebook: the figure with its caption below it, or the sentence that stands in for it."""
    if isinstance(figure, Figure):
        display(figure, metadata={"image/png": {"alt": alternative(figure)}})
    display(Markdown(figure if isinstance(figure, str) else getattr(figure, "caption", "")))


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write <name>.png (200 dpi) and <name>.pdf into `folder` and return their paths.

    The caption of a `Captioned` is the PDF's Subject and the PNG's Description. The files are written whole or not at
    all, and carry no date: the same figure gives the same bytes.
    """
    caption = figure.caption if isinstance(figure, Captioned) else ""
    png, pdf = ({"Description": caption}, {"Subject": caption}) if caption else ({}, {})
    files = {"png": {"dpi": 200, "metadata": png}, "pdf": {"metadata": pdf | {"CreationDate": None}}}
    folder = make_folder(Path(folder))
    paths = []
    for suffix, options in files.items():
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, **options)
        paths.append(folder / f"{name}.{suffix}")
    return paths
