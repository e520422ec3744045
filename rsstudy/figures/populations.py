"""The paper's plots, as pure functions of the tables of `rsstudy.tables`.

Call `set_style` once before drawing. `rsstudy.summary` computes the numbers beside the plots.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path

import matplotlib.style
import numpy as np
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from pandas import DataFrame

from rsslib.files import atomic_path, make_folder
from rsslib.population import get_buckets, half_bucket
from rsslib.space import SearchSpace
from rsstudy import summary
from rsstudy.figures.style import LOOKS, MethodStyle, escape, label_of, listed, method_styles, panel_label
from rsstudy.plan import Run
from rsstudy.summary import by_panel, check, published_boxes, speed_ups

ACCURACY, SIZE = "Test accuracy (%)", "Subnet size (MFLOPs)"
COLUMN, PAGE = 3.6, 7.0  # width in inches of a figure with one panel, and with several
INK, WRONG = "0.15", "#c1121f"
MIN_SUBNETS = 5  # of a size and run; quartiles of fewer say little
Styles = Mapping[str, MethodStyle]
Split = Mapping[str, Sequence[str]]  # methods of each panel, by title
POPULATION_WORDS = (
    "Boxes: quartiles and median, seeds pooled; whiskers: up to 1.5 interquartile ranges; dots: subnets; circles: "
    "medians of single seeds; diamonds: medians and quartiles read off the paper. MFLOPs: millions of "
    "multiply-accumulates."
)
MEDIAN = {"color": "white", "linewidth": 1.3, "path_effects": [withStroke(linewidth=2.3, foreground=INK)]}


class Captioned(Figure):
    """A figure with a caption."""

    caption = ""


def set_style() -> None:
    """Set fonts, sizes and lines of all figures for this process."""
    matplotlib.style.use(Path(__file__).with_name("figures.mplstyle"))


# --- parts of figures -------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Captioned, np.ndarray]:
    """A figure, in inches, and its panels row by row; `options` are those of `Figure.subplots`."""
    figure = Captioned((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def panel_grid(panels: int, most: int, height: float, **options) -> tuple[Captioned, np.ndarray]:
    """A figure of `panels` panels, at most `most` in a row; `height` is a row's."""
    columns = min(panels, most)
    rows = math.ceil(panels / columns)
    width = COLUMN if columns == 1 else PAGE
    figure, grid = new_figure(width, height * rows + 0.6, rows, columns, **options)
    for unused in grid[panels:]:
        unused.set_axis_off()
    return figure, grid[:panels]


def shade_buckets(axes: Axes, space: SearchSpace) -> None:
    """Draw a grey band for each bucket of the space on an x axis in MFLOPs."""
    half = half_bucket(space)
    for bucket in get_buckets(space):
        axes.axvspan(bucket - half, bucket + half, **LOOKS.bucket)


def draw_forest(axes: Axes, rows: DataFrame, label: str, colours: Iterable[str] = repeat(INK), zero: float = 0) -> None:
    """Draw the estimates of a table with their intervals, the first on top; that of one seed is hollow."""
    axes.axvline(zero, **LOOKS.reference)
    for (y, row), colour in zip(enumerate(rows.itertuples()), colours, strict=False):
        margins = [[row.estimate - row.low], [row.high - row.estimate]]
        fill = colour if row.seeds > 1 else "white"
        axes.errorbar(row.estimate, y, xerr=margins, color=colour, markerfacecolor=fill, **LOOKS.estimate)
    axes.set_yticks(range(len(rows)), rows["what"])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=label)
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)


def draw_matrix(axes: Axes, matrix: DataFrame, label: str, most: float = 0, **options) -> None:
    """Draw a matrix of effects, blue above 0 and red below; `options` are those of seaborn's heatmap."""
    most = most or matrix.abs().max(axis=None) or 1.0
    look = {"cmap": "RdBu", "vmin": -most, "vmax": most, **options}
    bar = {"shrink": 0.75, "format": "%.3g", "ticks": [-most, 0, most], "label": label}
    sns.heatmap(matrix, ax=axes, cbar_kws=bar, **look)


def method_key(table: DataFrame, published: DataFrame | None = None) -> list:
    """Legend entries of the methods in a table, of single seeds if it has several, and of published values."""
    key = [
        Patch(facecolor=style.colour, hatch=style.hatch, label=style.label)
        for style in method_styles(table["method"]).values()
    ]
    if table["seed"].nunique() > 1:
        key.append(Line2D([], [], label="one seed", **LOOKS.seed))
    if published_boxes(table, published):
        key.append(Line2D([], [], label="published", **LOOKS.published))
    return key


def add_legend(figure: Figure, key: Sequence[Artist] | Axes) -> None:
    """Add a legend, of the axes if `key` is axes, above the panels, in as few rows as its width allows."""
    if isinstance(key, Axes):
        key, _ = key.get_legend_handles_labels()
    for rows in range(1, len(key) + 1):
        legend = figure.legend(handles=key, loc="outside upper center", ncols=math.ceil(len(key) / rows))
        if legend.get_window_extent().width < figure.bbox.width:
            return
        legend.remove()


def finish(figure: Captioned, about: str, *sentences: str) -> Captioned:
    """Set the caption to `about` and `sentences`; the first line of `about` also stands small below the panels."""
    figure.supxlabel(about.split("\n")[0], **LOOKS.profile)
    figure.caption = " ".join([about, *sentences]).strip()
    return figure


# --- Figures 3, 5 to 7 and S1 to S7: accuracy against size ------------------------------------------------------------


def population_boxes(
    population: DataFrame,
    about: str = "",
    published: DataFrame | None = None,
    split: Split | None = None,
    beside: DataFrame | None = None,
) -> Captioned:
    """Figure 3: test accuracy by subnet size, with a panel for each dataset and a box for each method.

    Several seeds are pooled in a box, and the median of each is marked. Sizes with fewer than five subnets have a
    median without a box. `about` begins the caption, see `caption` and `finish`. `published` (see `summary.published`)
    adds the paper's medians and quartiles, which compare at the paper's scale only. `split` draws a panel for each of
    several lists of methods, by title. `beside` is a population whose range of accuracy the axes hold too, so that
    figures can be compared. Raises InputError for a table without rows or columns that this needs.
    """
    check(population, summary.POPULATION_COLUMNS, "population")
    panels = list(_panels(population, split))
    figure, grid = panel_grid(len(panels), 2, 2.5, sharey=bool(split))
    styles = method_styles(population["method"])
    for axes, (title, rows) in zip(grid, panels, strict=True):
        _draw_population(axes, rows, styles, published)
        axes.set(title=title, xlabel=SIZE)
        if beside is not None:
            shown = beside[beside["dataset"].isin(rows["dataset"])]["accuracy"]
            axes.plot([0, 0], [shown.min(), shown.max()], alpha=0)
    for axes in grid[::2]:
        axes.set_ylabel(ACCURACY)
    add_legend(figure, method_key(population, published))
    return finish(figure, about, POPULATION_WORDS)


def _panels(population: DataFrame, split: Split | None) -> Iterator[tuple[str, DataFrame]]:
    """Title and rows of each panel: a dataset, or one of several lists of methods on a dataset."""
    several = len(list(by_panel(population))) > 1
    for title, methods in (split or {"": population["method"]}).items():
        for names, rows in by_panel(population[population["method"].isin(methods)]):
            label = panel_label(*names)
            yield (f"{title}, {label}" if title and several else title or label), rows


def _draw_population(axes: Axes, table: DataFrame, styles: Styles, published: DataFrame | None) -> None:
    """Draw one panel: for each size and method the subnets, their box, seeds, and published values to the right."""
    buckets = sorted(table["bucket"].unique())
    methods = [method for method in styles if method in set(table["method"])]
    study = published_boxes(table, published)
    slot = 0.8 / len(methods)
    width = slot * (0.55 if study else 0.75)
    rng = np.random.default_rng(0)  # spreads points across a box
    for (method, bucket), rows in table.groupby(["method", "bucket"]):
        style, accuracy, name = styles[method], rows["accuracy"], f"{method} {bucket:g}"
        x = buckets.index(bucket) + slot * (methods.index(method) - (len(methods) - 1) / 2)
        sides = [x - width / 2, x + width / 2]
        seeds = rows.groupby("seed")["accuracy"]
        boxed = seeds.size().min() >= MIN_SUBNETS
        size = min(7, 5000 / len(table)) if boxed else 10
        axes.scatter(rng.uniform(*sides, len(rows)), accuracy, size, style.colour, **LOOKS.subnets)
        if boxed:
            look = {"facecolor": style.colour, "hatch": style.hatch, "gid": f"box {name}"}
            axes.boxplot(accuracy, positions=[x], widths=width, boxprops=look, **LOOKS.box)
        axes.plot(sides, [accuracy.median()] * 2, gid=f"median {name}", zorder=2.5 if boxed else 1, **MEDIAN)
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), seeds.median(), gid=f"seeds {name}", **LOOKS.seed)
        if (method, bucket) in study:
            low, middle, high = study[method, bucket]
            error = [[middle - low], [high - middle]]
            axes.errorbar(x + 0.46 * slot, middle, error, capsize=0, gid=f"published {name}", **LOOKS.published)
    axes.set_xticks(range(len(buckets)), [f"{bucket:g}" for bucket in buckets])
    axes.set_xlim(-0.5, len(buckets) - 0.5)
    for border in range(1, len(buckets)):
        axes.axvline(border - 0.5, **LOOKS.border)


def population_figure(
    population: DataFrame,
    runs: Sequence[Run],
    methods: Sequence[str],
    folder: str | Path,
    name: str,
    split: Split | None = None,
) -> Captioned | str:
    """Draw `population_boxes` of some methods and save it as `name`; a sentence if there is nothing to compare.

    A panel needs two of its methods; the caption names those that are missing. All figures of one population have the
    same range of accuracy. At the paper's scale the published values are drawn too.
    """
    finished = set(population["method"])
    there = {title: finished.intersection(names) for title, names in (split or {"": methods}).items()}
    panels = {title: names for title, names in there.items() if len(names) > 1}
    drawn = set().union(*panels.values())
    if not drawn:
        return f"{name} is not drawn: no two of the methods that it compares ({', '.join(methods)}) are finished."
    runs = [run for run in runs if run.method.name in drawn]
    published = summary.published() if {run.profile.name for run in runs} == {"paper"} else None
    shown = population[population["method"].isin(drawn)]
    figure = population_boxes(shown, caption(runs), published, panels if split else None, population)
    missing = [label_of(method) for method in methods if method not in drawn]
    if missing:
        figure.caption += f" Not drawn, because not finished: {listed(missing)}."
    save_figure(figure, folder, name)
    return figure


# --- Figures 1 and 4: training time -----------------------------------------------------------------------------------


def training_time_bars(times: DataFrame, about: str = "", published: DataFrame | None = None) -> Captioned:
    """Figure 4: training time of each method, with a panel for each dataset and the ratio to OFA above each bar.

    Bars are means over seeds, the seeds are points; the ratio of several seeds has its 95 % interval (see
    `speed_ups`). Runs of different hardware or executors have no ratio. The caption adds the hours in `published`,
    which are of another machine. `about` is as in `population_boxes`. Raises InputError for a table without rows or
    columns that this needs.
    """
    check(times, summary.TIMES_COLUMNS, "times")
    panels = list(by_panel(times))
    figure, grid = panel_grid(len(panels), 4, 2.1)
    styles = method_styles(times["method"])
    for axes, (names, rows) in zip(grid, panels, strict=True):
        _draw_times(axes, rows, styles)
        axes.set_title(panel_label(*names))
    add_legend(figure, method_key(times))
    return finish(figure, about, _time_words(times, published))


def figure_1(
    population: DataFrame,
    times: DataFrame,
    dataset: str,
    about: str = "",
    published: DataFrame | None = None,
) -> Captioned:
    """Figure 1: training time and subnet population of one dataset.

    `about` and `published` are as in `population_boxes`. Raises InputError for a table without rows of the dataset or
    columns that this needs.
    """
    population, times = (table[table["dataset"] == dataset] for table in (population, times))
    check(population, summary.POPULATION_COLUMNS, "population")
    figure, (left, right) = new_figure(PAGE, 2.95, 1, 2, width_ratios=(1, 2.1))
    styles = method_styles(population["method"])
    _draw_times(left, times, styles)
    _draw_population(right, population, styles, published)
    left.set_title(f"(a) Training time, {panel_label(dataset)}")
    right.set(title=f"(b) Subnet population, {panel_label(dataset)}", xlabel=SIZE, ylabel=ACCURACY)
    add_legend(figure, method_key(population, published))
    return finish(figure, about, _time_words(times, published), POPULATION_WORDS)


def _draw_times(axes: Axes, times: DataFrame, styles: Styles) -> None:
    """Draw the bars of one dataset, in a fitting unit."""
    speeds = speed_ups(times)
    times = summary.timed(times)
    longest = speeds["seconds"].max()
    name, unit = ("s", 1) if longest < 120 else ("min", 60) if longest < 7200 else ("h", 3600)
    for x, row in enumerate(speeds.itertuples()):
        style = styles[row.method]
        seeds = times.loc[times["method"] == row.method, "seconds"] / unit
        axes.bar(x, seeds.mean(), color=style.colour, hatch=style.hatch, gid=f"time {row.method}")
        if len(seeds) > 1:
            axes.plot(x + np.linspace(-0.15, 0.15, len(seeds)), seeds, **LOOKS.seed)
        if row.seeds:
            axes.annotate(_ratio(row), (x, seeds.max()), **LOOKS.ratio)
    axes.set(xticks=[], ylabel=f"Training time ({name})")
    axes.margins(y=0.3)


def _ratio(row) -> str:
    """How many times as fast or slow as the baseline a row of `speed_ups` is, with the interval of several seeds."""
    faster = row.speed_up >= 1
    ratio, *ends = (value if faster else 1 / value for value in (row.speed_up, row.low, row.high))
    words = f"{ratio:.1f}×\n{'faster' if faster else 'slower'}"
    return f"{words}\n{min(ends):.3g}–{max(ends):.3g}" if row.seeds > 1 else words


def _time_words(times: DataFrame, published: DataFrame | None) -> str:
    """What the bars are, where the runs were trained, and how long the paper's took."""
    table = speed_ups(times)
    clocks = table["clock"].map({"wall": "wall-clock", "processor": "processor"}).unique()
    places = times["hardware"].astype(str) + " (executor: " + times["executor"].astype(str) + ")"
    words = (
        f"Bars: {listed(clocks)} time of training, means over seeds. Ratios: to OFA, or to its released code where OFA "
        "was not run, with 95 % intervals over several seeds; none between different hardware or executors. Trained on "
        f"{'; '.join(places.unique())}."
    )
    if published is not None:
        hours = published[published["quantity"] == "training_hours_rtx3080"]
        rows = table.merge(hours, on=["dataset", "backbone", "method"]).itertuples()
        told = [f"{label_of(row.method)} on {panel_label(row.dataset)} {row.value:g} h" for row in rows]
        words += f" Published, on an RTX 3080: {', '.join(told)}." if told else ""
    return words


# --- applications -----------------------------------------------------------------------------------------------------


def search_figure(
    fronts: Mapping[str, DataFrame], population: DataFrame, about: str = "", budget: float | None = None
) -> Captioned:
    """Test accuracy against size of the fronts of `rsslib.search`, by name, over a population's subnets.

    Sizes are the column mflops of each table; count those of a population for the same network as the fronts'.
    `budget` is the upper limit of the search, in millions of MACs.
    """
    figure, (axes,) = new_figure(COLUMN, 2.8)
    axes.scatter(population["mflops"], population["accuracy"], 5, "0.75", label="population")
    for name, front in fronts.items():
        axes.plot("mflops", "test_accuracy", "o-", data=front.sort_values("mflops"), label=name)
    if budget is not None:
        axes.axvline(budget, color=INK, linestyle="--", label="budget")
    axes.set(xlabel="Real size (MFLOPs)", ylabel=ACCURACY)
    add_legend(figure, axes)
    return finish(figure, about)


def effects_figure(effects: DataFrame, about: str = "") -> Captioned:
    """What each setting adds to accuracy, by layer and stage: a table of `rsslib.deploy.searching.effects_table`."""
    names = {"kernel": "Kernel size", "expand": "Expand ratio", "depth": "Depth"}
    ratios = [effects.loc[effects["what"] == what, "place"].nunique() for what in names]
    figure, grid = new_figure(PAGE, 1.4, 1, 3, width_ratios=ratios)
    most = effects["effect"].abs().max()
    for axes, (what, title) in zip(grid, names.items(), strict=True):
        table = effects[effects["what"] == what].pivot(index="value", columns="place", values="effect")
        draw_matrix(axes, table, "Points", most, xticklabels=4, cbar=what == "depth")
        axes.set(title=title, xlabel="Stage" if what == "depth" else "Layer", ylabel="")
    return finish(figure, about, "Blue settings add accuracy, red ones cost it, against the mean at the same place.")


def predictions_figure(
    images: np.ndarray, predicted: Sequence[str], labels: Sequence[str], about: str = ""
) -> Captioned:
    """uint8 images [N, C, R, R], five in a row, under the predicted class; a wrong one is red, with the label."""
    rows = math.ceil(len(images) / 5)
    figure, panels = new_figure(PAGE / 1.6, 1.1 * rows + 0.2, rows, 5)
    for axes in panels:
        axes.set_axis_off()
    for axes, image, name, label in zip(panels, images, predicted, labels, strict=False):
        axes.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        words, colour = (name, INK) if name == label else (f"{name} (is {label})", WRONG)
        axes.set_title(words, color=colour)
    return finish(figure, about)


# --- captions and files -----------------------------------------------------------------------------------------------


def caption(runs: Sequence[Run]) -> str:
    """Datasets, profile and seeds of `runs` in one line, then their scale, to begin a figure's caption."""
    datasets = dict.fromkeys(panel_label(run.dataset, run.backbone) for run in runs)
    profiles = dict.fromkeys(run.profile.name for run in runs)
    seeds = sorted({run.seed for run in runs})
    words = f"{listed(datasets)}; profile {listed(profiles)}; {'seeds' if len(seeds) > 1 else 'seed'} {listed(seeds)}"
    methods = {(run.dataset, run.backbone, run.method.name) for run in runs}
    if len(runs) < len(methods) * len(seeds):
        words += ", not all for every method"
    scales = dict.fromkeys(f"{panel_label(run.dataset)}: {run.profile.describe(run.dataset)}." for run in runs)
    lost = dict.fromkeys(
        f"{stage.name} of {label_of(run.method.name)} on {panel_label(run.dataset)}"
        for run in runs
        for stage in run.method.stages
        if not stage.epochs
    )
    if lost:
        scales[f"At this scale no epoch is left for {listed(lost)}, so schedules differ there too."] = None
    return f"{words}\n{' '.join(scales)}"


def alternative(figure: Captioned) -> str:
    """A text alternative to the figure: all words in it."""
    words = (" ".join(text.get_text().split()) for text in figure.findobj(Text))
    return ", ".join(dict.fromkeys(filter(re.compile("[A-Za-z]").search, words)))


def show(figure: Captioned | str | DataFrame, precision: int = 2) -> None:
    """Display in a notebook a figure with its caption below it, a sentence that stands in for it, or a table."""
    if isinstance(figure, DataFrame):
        table = figure.style.hide(axis="index").format(precision=precision, na_rep="", escape="html")
        words = [*figure.select_dtypes(exclude="number")]
        display(table.format_index(escape="html", axis=1).set_properties(words, **{"text-align": "left"}))
        return
    if isinstance(figure, str):
        display(Markdown(escape(figure)))
        return
    display(figure, metadata={"image/png": {"alt": alternative(figure)}})
    display(Markdown(escape(figure.caption.replace("\n", ". ", 1))))


def save_figure(figure: Captioned, folder: str | Path, name: str) -> None:
    """Write <name>.png and <name>.pdf into `folder`, whole or not at all.

    The caption is the PNG's Description and the PDF's Subject. The same figure gives the same bytes.
    """
    folder = make_folder(Path(folder))
    words = figure.caption
    metadata = {"png": {"Description": words}, "pdf": {"Subject": words, "CreationDate": None}}
    for suffix, entries in metadata.items():
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata=entries)
