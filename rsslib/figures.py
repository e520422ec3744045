"""The paper's plots and the sentences beside them, as pure functions of the results tables.

Every function takes the tables of `rsslib.runs` (`populations`, `times`) and returns a matplotlib Figure, a table or
text; nothing here trains, and nothing is drawn from memory. Call `set_style` once before drawing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from rsslib.errors import InputError, choose
from rsslib.methods import METHODS, TABLE_1
from rsslib.runs import Run, atomic_path


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every figure."""

    label: str
    colour: str
    hatch: str = ""


# In the order of the paper's figures. The colours differ in lightness too and all but the first are hatched, so that
# neither colour blindness nor grey print merges them.
METHOD_STYLES = {
    "ofa": MethodStyle("OFA", "#1f5a99"),
    "ofa-released": MethodStyle("OFA (released code)", "#8cc3ee", "xxxxx"),
    "rss-short": MethodStyle("RSS-Short", "#f2a93b", "....."),
    "rss": MethodStyle("RSS", "#2a9d78", "/////"),
}
# RSS and RSS-Short share the looks of their ablations, as all that are compared share those of their overrides.
VARIANT_STYLES = {
    "per-batch": MethodStyle("1 per batch", "#c7667f", "\\\\\\\\\\"),
    "2-per-batch": MethodStyle("2 per batch", "#5b4636", "+++++"),
    "smallest": MethodStyle("smallest only", "#e7b8c4", "....."),
    "middle": MethodStyle("middle only", "#b0577a", "-----"),
    "largest": MethodStyle("largest only", "#4d2048"),
    "max-then-min": MethodStyle("Max then Min", "#b9a7dd", "|||||"),
    "min-then-max": MethodStyle("Min then Max", "#7656a8", "-----"),
    "alternating": MethodStyle("Alternating", "#33214f"),
    "batch-128": MethodStyle("batch size 128", "#9a9a9a", "|||||"),
    "dropout-0.3": MethodStyle("dropout 0.3", "#9a9a9a", "|||||"),
    "lr-0.02": MethodStyle("learning rate 0.02", "#9a9a9a", "|||||"),
}
METHOD_STYLES |= {
    f"{base}-{suffix}": replace(style, label=f"{METHOD_STYLES[base].label}, {style.label}")
    for base in METHOD_STYLES
    for suffix, style in VARIANT_STYLES.items()
    if f"{base}-{suffix}" in METHODS
}
OTHER_STYLES = (("#c7667f", "\\\\\\\\\\"), ("#8a6fb0", "-----"), ("#9a9a9a", "|||||"), ("#5b4636", "+++++"))
BASELINES = ("ofa", "ofa-released")
PUBLISHED_AS = {"ofa-released": "ofa"}  # the study shows one OFA: both of ours are compared with it

DATASET_LABELS = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "Digits",
}
BACKBONE_LABELS = {"mobilenet_v3": "MobileNetV3", "proxylessnas": "ProxylessNAS"}
ACCURACY, SIZE = "Test accuracy (%)", "Subnet size (MFLOPs)"

COLUMN, PAGE = 3.6, 7.0  # inches: figures of one panel and of several are readable at these widths
INK, CAPTION_SIZE, MARGIN = "0.15", 6.2, 0.05
GROUP_WIDTH, JITTER_SEED = 0.86, 0
SEED_MARK = {"linestyle": "", "marker": "o", "markersize": 2.4, "zorder": 4,
             "markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.5}  # fmt: skip
PUBLISHED_MARK = {"marker": "D", "markersize": 3, "markerfacecolor": "none", "markeredgewidth": 0.8,
                  "color": "#c1121f", "linewidth": 0.8, "zorder": 5,
                  "path_effects": [withStroke(linewidth=1.8, foreground="white")]}  # fmt: skip

PANEL_COLUMNS = ("dataset", "backbone", "method", "seed")
POPULATION_COLUMNS = (*PANEL_COLUMNS, "bucket", "subnet", "mflops", "accuracy")
TIMES_COLUMNS = (*PANEL_COLUMNS, "training_seconds", "hardware", "executor")


def set_style() -> None:
    """Fonts, sizes and lines of all figures, for this process."""
    sizes = {"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7.5}
    sizes |= {"legend.title_fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
    lines = {"axes.linewidth": 0.7, "grid.linewidth": 0.5, "hatch.linewidth": 0.5, "axes.edgecolor": "0.4"}
    lines |= {"xtick.major.size": 0, "ytick.major.size": 0, "axes.grid.axis": "y", "axes.titlepad": 4.0}
    rc = {**sizes, **lines, "figure.dpi": 160, "pdf.fonttype": 42}
    sns.set_theme("paper", "whitegrid", font="DejaVu Sans", rc=rc)  # a font that comes with matplotlib


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """The style of each of `methods`, in drawing order: the paper's order, then others as they come."""
    methods = list(dict.fromkeys(methods))
    others = [method for method in methods if method not in METHOD_STYLES]
    extra = {m: MethodStyle(m, *OTHER_STYLES[i % len(OTHER_STYLES)]) for i, m in enumerate(others)}
    return {m: style for m, style in (METHOD_STYLES | extra).items() if m in methods}


def panel_label(dataset: str, backbone: str = "mobilenet_v3") -> str:
    """A dataset's name as in the paper, with the backbone where it is not the main one."""
    label = DATASET_LABELS.get(dataset, dataset)
    return label if backbone == "mobilenet_v3" else f"{label} ({BACKBONE_LABELS.get(backbone, backbone)})"


# --- Figure 3: accuracy against size ----------------------------------------------------------------------------------


def population_boxes(
    population: pd.DataFrame,
    caption: str = "",
    title: str = "",
    published: pd.DataFrame | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Figure 3: test accuracy by subnet size, a box a method over the subnets as points, a panel a dataset.

    `split` makes a panel of each of several sets of methods instead, by title. Several seeds are pooled in a box, with
    the median of each seed marked. `published` (see the function of that name) adds the study's medians and quartiles
    where it has any: ask for it only at the paper's scale. `caption` goes under the figure, wrapped. Raises InputError
    for a table without rows or columns that this needs.
    """
    check(population, POPULATION_COLUMNS, "population")
    panels = [(panel_label(*names), table) for names, table in _panels(population)]
    if split is not None:
        panels = [(name, population[population["method"].isin(methods)]) for name, methods in split.items()]
        panels = [(name, table) for name, table in panels if len(table)]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = Figure((COLUMN if columns == 1 else PAGE, 2.5 * rows + 0.55), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = method_styles(population["method"])
    compared = False
    for axes, (name, table) in zip(grid, panels, strict=False):
        compared |= _draw_boxes(axes, table, styles, published)
        axes.set_title(name)
    for i, axes in enumerate(grid[: len(panels)]):
        axes.set_xlabel(SIZE if i + columns >= len(panels) else "")
        axes.set_ylabel(ACCURACY if i % columns == 0 else "")
    figure.align_ylabels()
    if title:
        figure.suptitle(title, fontsize=9)
    _legend(figure, grid[len(panels) :], styles, _sample_size(population), _several_seeds(population), compared)
    _add_caption(figure, caption, _box_words(_several_seeds(population), compared))
    return figure


def population_figure(
    population: pd.DataFrame,
    times: pd.DataFrame,
    runs: Sequence[Run],
    methods: Sequence[str],
    folder: str | Path,
    name: str,
    split: Mapping[str, Sequence[str]] | None = None,
) -> Figure | str:
    """`population_boxes` of some of the methods, saved as `name`; a sentence instead if none of their runs is there."""
    shown = population[population["method"].isin(methods)]
    if shown.empty:
        return f"{name} is not drawn: none of its runs ({', '.join(methods)}) is finished."
    chosen = [run for run in runs if run.method.name in methods]
    figure = population_boxes(shown, caption(chosen, times), split=split)
    save(figure, folder, name)
    return figure


def _draw_boxes(
    axes: Axes, table: pd.DataFrame, styles: dict[str, MethodStyle], published: pd.DataFrame | None
) -> bool:
    """Boxes and points of one dataset; returns whether published values were drawn."""
    rng = np.random.default_rng(JITTER_SEED)
    buckets = sorted(table["bucket"].unique())
    here = [method for method in styles if method in set(table["method"])]
    slot = GROUP_WIDTH / len(here)
    study = _published_boxes(table, published)
    several = _several_seeds(table)
    size = 5.0 if len(table) < 1000 else 2.5 if len(table) < 4000 else 1.5
    for (bucket, method), subnets in table.groupby(["bucket", "method"]):
        style = styles[method]
        x = buckets.index(bucket) + (here.index(method) - (len(here) - 1) / 2) * slot
        jitter = rng.uniform(-0.42, 0.42, len(subnets)) * slot
        axes.scatter(x + jitter, subnets["accuracy"], s=size, color=style.colour, alpha=0.75, linewidths=0, zorder=1.5)
        drawn = axes.boxplot(
            subnets["accuracy"], positions=[x], widths=0.74 * slot, manage_ticks=False, showfliers=False,
            patch_artist=True, boxprops={"facecolor": style.colour, "edgecolor": INK, "linewidth": 0.6},
            medianprops={"color": "white", "linewidth": 1.3, "solid_capstyle": "butt"},
            whiskerprops={"color": INK, "linewidth": 0.6}, capprops={"color": INK, "linewidth": 0.6}, zorder=2,
        )  # fmt: skip
        drawn["boxes"][0].set(hatch=style.hatch, hatchcolor="1")
        drawn["medians"][0].set(
            gid=f"median {method} {bucket:g}", path_effects=[withStroke(linewidth=2.3, foreground=INK)]
        )
        if several:
            by_seed = subnets.groupby("seed")["accuracy"].median()
            axes.plot([x] * len(by_seed), by_seed, **SEED_MARK)
        if (method, bucket) in study.index:
            q1, median, q3 = study.loc[(method, bucket), ["q1", "median", "q3"]]
            side = x + 0.44 * slot  # beside the box, so that neither hides the other
            axes.errorbar(
                side, median, [[median - q1], [q3 - median]], gid=f"published {method} {bucket:g}", **PUBLISHED_MARK
            )
    axes.set_xticks(range(len(buckets)), [f"{bucket:g}" for bucket in buckets])
    axes.set_xlim(-0.5, len(buckets) - 0.5)
    for edge in range(1, len(buckets)):
        axes.axvline(edge - 0.5, color="0.9", linewidth=0.5, zorder=0.5)
    return len(study) > 0


def _published_boxes(table: pd.DataFrame, published: pd.DataFrame | None) -> pd.DataFrame:
    """q1, median, q3 of the study, indexed by our method and bucket, for one dataset; no rows if it has none."""
    if published is None:
        return pd.DataFrame()
    check(published, ("dataset", "backbone", "method", "quantity", "mflops", "value"), "published values")
    same = (published["dataset"] == table["dataset"].iloc[0]) & (published["backbone"] == table["backbone"].iloc[0])
    boxes = published[same & published["quantity"].isin(["q1", "median", "q3"])]
    boxes = boxes.pivot(index=["method", "mflops"], columns="quantity", values="value")
    wanted = table[["method", "bucket"]].drop_duplicates().itertuples(index=False)
    pairs = [(m, b) for m, b in wanted if (PUBLISHED_AS.get(m, m), b) in boxes.index]
    found = boxes.loc[[(PUBLISHED_AS.get(m, m), b) for m, b in pairs]]
    return found.set_axis(pd.MultiIndex.from_tuples(pairs, names=["method", "bucket"])) if pairs else pd.DataFrame()


def _legend(
    figure: Figure, free: Sequence[Axes], styles: dict[str, MethodStyle], title: str, seeds: bool, compared: bool
) -> None:
    """The figure's legend: above the panels, or in the place of a panel that the grid has left free."""
    handles: list[Artist] = [
        Patch(facecolor=s.colour, edgecolor=INK, hatch=s.hatch, hatchcolor="1", linewidth=0.6, label=s.label)
        for s in styles.values()
    ]
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
    columns = len(handles)
    if figure.get_figwidth() <= COLUMN:  # as many as fit side by side; four make two rows of two
        fits = 3 if sum(len(str(handle.get_label())) for handle in handles[:3]) < 34 else 2
        columns = min(len(handles), 2 if len(handles) == 4 else fits)
    figure.legend(loc="outside upper center", ncols=columns, **style)


def _box_words(seeds: bool, compared: bool) -> str:
    words = (
        "Boxes: quartiles and median; whiskers: the furthest subnets within 1.5 interquartile ranges; dots: subnets. "
    )
    words += "MFLOPs: millions of multiply-accumulates."
    words += " Circles: the median of each seed; boxes pool the seeds." if seeds else ""
    words += " Diamonds, right of each box: the published median and quartiles, read off the paper." if compared else ""
    return words


# --- Figures 1 and 4: training time -----------------------------------------------------------------------------------


def training_time_bars(times: pd.DataFrame, caption: str = "", title: str = "") -> Figure:
    """Figure 4: training time of each method, a panel a dataset, with the speed-up over OFA written on the bars.

    Bars are means over seeds, the seeds themselves are points. No ratio is written where the two methods' runs are not
    all from the same hardware and executor; the text under the figure then says so. Raises InputError for a table
    without rows or columns that this needs.
    """
    check(times, TIMES_COLUMNS, "times")
    baseline, panels = _baseline(times), list(_panels(times))
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure((COLUMN if columns == 1 else PAGE, 2.1 * rows + 0.45), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    styles, unit = method_styles(times["method"]), _unit(speed_ups(times)["seconds"].max())
    for i, ((dataset, backbone), table) in enumerate(panels):
        _draw_times(grid[i], table, styles, baseline, unit[1])
        grid[i].set_title(panel_label(dataset, backbone))
        grid[i].set_ylabel(f"Training time ({unit[0]})" if i % columns == 0 else "")
    figure.align_ylabels()
    if title:
        figure.suptitle(title, fontsize=9)
    _legend(figure, grid[len(panels) :], styles, _seed_words(times), _several_seeds(times), False)
    _add_caption(figure, caption, _time_words(times, baseline))
    return figure


def hardest(population: pd.DataFrame) -> str:
    """The dataset that Figure 1 shows: cifar100 if it is there, else the last."""
    check(population, POPULATION_COLUMNS, "population")
    datasets = list(population["dataset"].unique())
    return "cifar100" if "cifar100" in datasets else datasets[-1]


def figure_1(
    population: pd.DataFrame,
    times: pd.DataFrame,
    dataset: str | None = None,
    caption: str = "",
    published: pd.DataFrame | None = None,
) -> Figure:
    """Figure 1: training time and subnet population of one dataset, by default the `hardest`.

    `caption` and `published` are as in `population_boxes`. Raises InputError for a table without rows or columns that
    this needs, or if the dataset is not in both.
    """
    check(times, TIMES_COLUMNS, "times")
    dataset = hardest(population) if dataset is None else choose(dataset, population["dataset"].unique(), "dataset")
    backbone = population.loc[population["dataset"] == dataset, "backbone"].iloc[-1]
    population, times = _only(population, dataset, backbone), _only(times, dataset, backbone)
    if times.empty:
        raise InputError(f"the table times has no rows for {dataset}: expected the times of the population's runs")
    baseline, unit = _baseline(times), _unit(speed_ups(times)["seconds"].max())
    figure = Figure((PAGE, 2.95), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.1))
    styles = method_styles([*population["method"], *times["method"]])
    _draw_times(left, times, styles, baseline, unit[1])
    left.set_title(f"(a) Training time, {panel_label(dataset, backbone)}")
    left.set_ylabel(f"Training time ({unit[0]})")
    compared = _draw_boxes(right, population, styles, published)
    right.set_title(f"(b) Subnet population, {panel_label(dataset, backbone)}")
    right.set_xlabel(SIZE)
    right.set_ylabel(ACCURACY)
    seeds = _several_seeds(population)
    _legend(figure, [], styles, _sample_size(population), seeds, compared)
    _add_caption(figure, caption, _time_words(times, baseline), _box_words(seeds, compared))
    return figure


def _draw_times(axes: Axes, times: pd.DataFrame, styles: dict[str, MethodStyle], baseline: str, unit: float) -> None:
    """Bars of one dataset; `unit` in seconds."""
    for x, row in enumerate(speed_ups(times, baseline).itertuples()):
        style, height = styles[row.method], row.seconds / unit
        axes.bar(x, height, 0.74, color=style.colour, edgecolor=INK, linewidth=0.6,
                 hatch=style.hatch, hatchcolor="1", zorder=2, gid=f"time {row.method}")  # fmt: skip
        seeds = times.loc[times["method"] == row.method, "training_seconds"] / unit
        if len(seeds) > 1:
            axes.plot(x + np.linspace(-0.15, 0.15, len(seeds)), seeds, **SEED_MARK)
        if np.isfinite(row.speed_up) and row.method != baseline:
            axes.annotate(f"×{row.speed_up:.1f}", (x, max(height, seeds.max())), (0, 3), textcoords="offset points",
                          ha="center", va="bottom", fontweight="bold")  # fmt: skip
    axes.set_xticks([])
    axes.set_xlim(-0.6, x + 0.6)
    axes.set_ylim(0, 1.18 * times["training_seconds"].max() / unit)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _unit(seconds: float) -> tuple[str, float]:
    return ("s", 1.0) if seconds < 120 else ("min", 60.0) if seconds < 7200 else ("h", 3600.0)


def _time_words(times: pd.DataFrame, baseline: str) -> str:
    """What the bars are, where the runs were trained, and between which of them no ratio is written, and why."""
    table, styles = speed_ups(times, baseline), method_styles(times["method"])
    words = "Bars: wall clock from the first epoch to the last"
    words += ", mean of the seeds (circles). " if _several_seeds(times) else ". "
    if table.loc[table["method"] != baseline, "speed_up"].notna().any():
        words += f"×: times as fast as {styles[baseline].label}. "
    mixed = [label for label, rows in _labelled(table) if len(_machines(rows)) > 1]
    if not mixed:
        return words + f"Trained on {_list(_machines(table))}."
    for label, rows in _labelled(table):
        groups = rows.groupby("machines", sort=False)["method"]
        where = [f"{_list(styles[m].label for m in methods)} on {_list(machines)}" for machines, methods in groups]
        words += f"{label}: {'; '.join(where)}. "
    return words + (
        f"On {_list(mixed)} the runs come from different hardware or executors: "
        "no ratio is written between methods that do not share one."
    )


def _machines(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(machine for machines in table["machines"] for machine in machines))


# --- numbers ----------------------------------------------------------------------------------------------------------


def published() -> pd.DataFrame:
    """The study's values, as read off its figures and text: figure, dataset, backbone, method, quantity, mflops, value,
    source. Accuracies are in percent, bars in hours on an RTX 3080."""
    return pd.read_csv(Path(__file__).with_name("published_values.csv"))


def medians(population: pd.DataFrame) -> pd.DataFrame:
    """Median accuracy (%) by dataset and method, a column a bucket; then all buckets, spread and slope.

    Spread is the best subnet's accuracy minus the worst's, in points, mean over seeds. Slope is that of the least
    squares line of accuracy on size, in points per MFLOPs; NaN if there is one size only.
    """
    check(population, POPULATION_COLUMNS, "population")
    rows = []
    for label, table in _labelled(population):
        for method, style in method_styles(table["method"]).items():
            mine = table[table["method"] == method]
            row = {"dataset": label, "method": style.label}
            row |= {f"{b:g} MFLOPs": a for b, a in mine.groupby("bucket")["accuracy"].median().items()}
            by_seed = mine.groupby("seed")["accuracy"]
            row |= {"all": mine["accuracy"].median(), "spread": (by_seed.max() - by_seed.min()).mean()}
            rows.append(row | {"slope": _slope(mine)})
    table = pd.DataFrame(rows).set_index(["dataset", "method"])
    last = ["all", "spread", "slope"]
    buckets = sorted((c for c in table if c not in last), key=lambda c: float(c.split()[0]))
    return table[[*buckets, *last]]


def _slope(table: pd.DataFrame) -> float:
    if table["mflops"].nunique() < 2:
        return math.nan
    return float(np.polyfit(table["mflops"], table["accuracy"], 1)[0])


def compare(population: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    """`method` against `baseline` on the same subnets and seeds: one row a dataset, backbone and bucket.

    Columns: dataset, backbone, bucket, pairs, median and baseline_median (of the pairs' accuracies), difference (of the
    medians, in points), mean_difference (of the pairs), better (pairs in which `method` is). No rows where the two
    share nothing.
    """
    check(population, POPULATION_COLUMNS, "population")
    keys = ["dataset", "backbone", "bucket", "seed", "subnet", "mflops"]
    mine, theirs = (population.loc[population["method"] == m, [*keys, "accuracy"]] for m in (method, baseline))
    pairs = mine.merge(theirs, on=keys, suffixes=("", "_baseline"))
    pairs["gain"] = (pairs["accuracy"] - pairs["accuracy_baseline"]).round(9)
    groups = pairs.assign(better=pairs["gain"] > 0).groupby(keys[:3], sort=False)
    table = groups.agg(
        pairs=("gain", "size"), median=("accuracy", "median"), baseline_median=("accuracy_baseline", "median"),
        mean_difference=("gain", "mean"), better=("better", "sum"),
    ).reset_index()  # fmt: skip
    table.insert(6, "difference", (table["median"] - table["baseline_median"]).round(9))
    return table


def speed_ups(times: pd.DataFrame, baseline: str = "ofa") -> pd.DataFrame:
    """Training time of each method and how many times as fast as `baseline` it is: one row a dataset, backbone, method.

    Columns: dataset, backbone, method, seconds (mean over seeds), machines (hardware with executor, each once) and
    speed_up, which is NaN if there is no baseline or the two's runs are not all from one hardware and executor.
    """
    check(times, TIMES_COLUMNS, "times")
    unfinished = times[times["training_seconds"].isna()]
    if len(unfinished):
        dataset, _, method, seed = unfinished[list(PANEL_COLUMNS)].iloc[0]
        raise InputError(
            f"the table times has no training_seconds for {dataset}, {method}, seed {seed}: finish that run first"
        )
    rows = []
    for (dataset, backbone), table in _panels(times):
        machine = table["hardware"].astype(str) + " (executor: " + table["executor"].astype(str) + ")"
        groups = {m: table["method"] == m for m in method_styles(table["method"])}
        machines = {m: tuple(machine[mine].unique()) for m, mine in groups.items()}
        seconds = {m: table.loc[mine, "training_seconds"].mean() for m, mine in groups.items()}
        for m in groups:
            comparable = baseline in groups and len({*machines[m], *machines[baseline]}) == 1
            speed_up = seconds[baseline] / seconds[m] if comparable else math.nan
            rows.append((dataset, backbone, m, seconds[m], machines[m], speed_up))
    return pd.DataFrame(rows, columns=["dataset", "backbone", "method", "seconds", "machines", "speed_up"])


def against_published(population: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Ours beside the study's: bucket medians on CIFAR-100 with MobileNetV3, and speed-ups over OFA.

    Columns: quantity, dataset, method, bucket, ours, published, difference. The study's speed-ups are means over its
    datasets, ours over those in `times`. No rows if CIFAR-100 is not in `population`.
    """
    check(population, POPULATION_COLUMNS, "population")
    study, rows = published(), []
    mine = _only(population, "cifar100", "mobilenet_v3")
    if not mine.empty:
        boxes, styles = _published_boxes(mine, study), method_styles(mine["method"])
        ours = mine.groupby(["method", "bucket"])["accuracy"].median()
        for m, b in sorted(boxes.index, key=lambda key: (list(styles).index(key[0]), key[1])):
            study_median = boxes.loc[(m, b), "median"]
            rows.append(("median accuracy (%)", "CIFAR-100", styles[m].label, b, ours[m, b], study_median))
        speeds = speed_ups(times[times["backbone"] == "mobilenet_v3"]).dropna(subset="speed_up")
        told = study[study["quantity"] == "speedup_over_ofa"].set_index("method")["value"]
        for m in (m for m in method_styles(speeds["method"]) if m in told):
            here = speeds[speeds["method"] == m]
            names, mean = ", ".join(panel_label(d) for d in here["dataset"]), here["speed_up"].mean()
            rows.append(("speed-up over OFA", names, METHOD_STYLES[m].label, math.nan, mean, told[m]))
    table = pd.DataFrame(rows, columns=["quantity", "dataset", "method", "bucket", "ours", "published"])
    return table.assign(difference=table["ours"] - table["published"])


# --- words ------------------------------------------------------------------------------------------------------------


def findings(population: pd.DataFrame, times: pd.DataFrame, profile: str) -> str:
    """What was measured, in Markdown, from the numbers alone: who wins in which buckets and by how much, spread, slope
    and speed-ups. `profile` is the name of the scale. Raises InputError as the figures do."""
    check(population, POPULATION_COLUMNS, "population")
    check(times, TIMES_COLUMNS, "times")
    lines = [*_scale_sentences(profile), _seed_sentences(population)]
    for (dataset, backbone), table in _panels(population):
        lines.append(f"### {panel_label(dataset, backbone)}")
        bullets = [_size_sentence(table), *_comparison_sentences(table), *_shape_sentences(table)]
        bullets.append(_time_sentence(_only(times, dataset, backbone)))
        lines.append("\n".join(f"- {bullet}" for bullet in bullets))
    across = _across_datasets(population, times)
    if across:
        lines += ["### Across datasets", "\n".join(f"- {bullet}" for bullet in across)]
    return "\n\n".join(lines) + "\n"


def comparisons(population: pd.DataFrame, baselines: Sequence[str], profile: str) -> str:
    """How every variant compares with its unchanged method on the same subnets, in Markdown, from the numbers alone.

    A variant of the method `rss` is one whose name begins with "rss-", unless a longer one of `baselines` fits too.
    Raises InputError as the figures do.
    """
    check(population, POPULATION_COLUMNS, "population")
    lines = [*_scale_sentences(profile), _seed_sentences(population)]
    styles = method_styles(population["method"])
    for (dataset, backbone), table in _panels(population):
        bullets = []
        for method in (m for m in styles if m in set(table["method"]) and m not in baselines):
            fitting = [base for base in baselines if method.startswith(f"{base}-")]
            base = max(fitting, key=len, default=None)
            if base in set(table["method"]):
                bullets.append(_comparison(table, method, base, styles[method].label, styles[base].label))
            else:
                bullets.append(f"{styles[method].label}: {base or 'its unchanged method'} was not run.")
        lines += [f"### {panel_label(dataset, backbone)}", "\n".join(f"- {bullet}" for bullet in bullets)]
    return "\n\n".join(lines) + "\n"


def _scale_sentences(profile: str) -> list[str]:
    if profile == "paper":
        return []
    return [
        f"**Scale.** Profile `{profile}` is not the paper's scale: what follows describes these runs and decides "
        "nothing about the paper's claims."
    ]


def _seed_sentences(population: pd.DataFrame) -> str:
    seeds, methods = sorted(population["seed"].unique()), set(population["method"])
    paired = len(methods) > 1 and not methods.isdisjoint(BASELINES)
    words = "Comparisons are paired: every method is evaluated on the same subnets. " if paired else ""
    if len(seeds) == 1:
        return f"{words}There is one seed ({seeds[0]}), so nothing can be said about how much another would change."
    return f"{words}Seeds {_list(seeds)} are pooled in the medians; each comparison also says whether they agree."


def _size_sentence(table: pd.DataFrame) -> str:
    buckets = sorted(table["bucket"].unique())
    where = f"each of {len(buckets)} buckets ({buckets[0]:g} to {buckets[-1]:g} MFLOPs)"
    where = where if len(buckets) > 1 else f"the bucket of {buckets[0]:g} MFLOPs"
    return f"{_subnet_words(table)} in {where}, {_seed_words(table)}."


def _comparison_sentences(table: pd.DataFrame) -> Iterator[str]:
    styles = method_styles(table["method"])
    baselines = [m for m in BASELINES if m in styles]
    if not baselines:
        yield f"OFA is not among the methods run ({_list(s.label for s in styles.values())}): nothing to compare with."
    for i, baseline in enumerate(baselines):
        others = [m for m in styles if m not in baselines[: i + 1]]
        if not others and len(baselines) == 1:
            yield f"Only {styles[baseline].label} was run: nothing to compare with."
        for method in others:
            yield _comparison(table, method, baseline, styles[method].label, styles[baseline].label)


def _comparison(table: pd.DataFrame, method: str, baseline: str, label: str, base: str) -> str:
    result = compare(table, method, baseline)
    if result.empty:
        return f"{label} and {base} share no subnet and seed: not compared."
    words = f"**{_verdict(result, label, base)}** {_medians_sentence(result, label, base)} On the same subnet {label} "
    words += f"is more accurate in {result['better'].sum():,} of {result['pairs'].sum():,} cases; "
    words += f"the mean difference is {_mean(result):+.2f} points."
    unpaired = table["method"].isin([method, baseline]).sum() - 2 * result["pairs"].sum()
    words += f" Left out: {unpaired:,} evaluations whose subnet and seed only one of the two has." if unpaired else ""
    by_seed = {seed: compare(rows, method, baseline) for seed, rows in table.groupby("seed")}
    by_seed = {seed: rows for seed, rows in by_seed.items() if len(rows)}
    if len(by_seed) == 1:
        return words
    means = [_mean(rows) for rows in by_seed.values()]
    words += f" Seed by seed it is {min(means):+.2f} to {max(means):+.2f} points; the medians are "
    outcomes: dict[str, list] = {}
    for seed, rows in by_seed.items():
        outcomes.setdefault(_OUTCOMES[_outcome(rows)], []).append(seed)
    if len(outcomes) == 1:
        return words + f"{next(iter(outcomes))} for each of the {len(by_seed)} seeds."
    return words + ", ".join(f"{o} (seed{'s' * (len(s) > 1)} {_list(s)})" for o, s in outcomes.items()) + "."


def _mean(result: pd.DataFrame) -> float:
    """Mean difference of all pairs of `compare`'s rows, to two decimals (and never minus zero)."""
    return round((result["mean_difference"] * result["pairs"]).sum() / result["pairs"].sum(), 2) + 0.0


_OUTCOMES = {
    "wins": "above in every bucket",
    "loses": "below in every bucket",
    "equal": "equal in every bucket",
    "mixed": "mixed",
}


def _outcome(result: pd.DataFrame) -> str:
    signs = set(np.sign(result["difference"]))
    return {1.0: "wins", -1.0: "loses", 0.0: "equal"}[signs.pop()] if len(signs) == 1 else "mixed"


def _verdict(result: pd.DataFrame, label: str, base: str) -> str:
    return {
        "wins": f"{label} wins over {base} in every bucket.",
        "loses": f"{label} loses to {base} in every bucket.",
        "equal": f"{label} and {base} are equal in every bucket.",
        "mixed": f"{label} against {base} is mixed.",
    }[_outcome(result)]


def _medians_sentence(result: pd.DataFrame, label: str, base: str) -> str:
    parts = []
    for sign, word in ((1, "above"), (-1, "below"), (0, "equal to")):
        here = result[np.sign(result["difference"]) == sign]
        if here.empty:
            continue
        low, high = (_points(here["difference"].abs().agg(limit)) for limit in ("min", "max"))
        amount = (f", by {low}" if low == high else f", by {low} to {high}") + " points" if sign else ""
        where = f"at {_list(f'{bucket:g}' for bucket in sorted(here['bucket']))} MFLOPs"
        if len(here) == len(result):
            where = f"in all {len(result)} buckets" if len(result) > 1 else "in the one bucket"
        parts.append(f"{word} {base}'s {where}{amount}")
    return f"The median of {label} is {'; '.join(parts)}."


def _points(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _shape_sentences(table: pd.DataFrame) -> Iterator[str]:
    summary = medians(table).droplevel("dataset")
    spread = ", ".join(f"{label} {value:.2f}" for label, value in summary["spread"].items())
    yield f"Spread from the worst subnet to the best, in points: {spread}" + _smallest(summary["spread"])
    if summary["slope"].notna().all():
        slope = ", ".join(f"{label} {value:+.3f}" for label, value in summary["slope"].items())
        end = _smallest(summary["slope"].abs(), "flattest")
        yield f"Slope of accuracy on size, in points per MFLOPs: {slope}{end}"


def _smallest(values: pd.Series, word: str = "smallest") -> str:
    smallest = values[values.round(6) == values.round(6).min()]
    return f"; {word} for {smallest.index[0]}." if len(values) > 1 and len(smallest) == 1 else "."


def _time_sentence(times: pd.DataFrame) -> str:
    if times.empty:
        return "Training times are not in the table."
    baseline = _baseline(times)
    table, styles = speed_ups(times, baseline), method_styles(times["method"])
    words = f"Training time on {_list(_machines(table))}: "
    words += ", ".join(f"{styles[row.method].label} {_duration(row.seconds)}" for row in table.itertuples()) + "."
    if baseline not in styles:
        return words
    base, missing = styles[baseline].label, []
    for row in table[table["method"] != baseline].itertuples():
        label = styles[row.method].label
        if math.isnan(row.speed_up):
            missing.append(label)
        elif row.speed_up >= 1:
            words += f" {label} is {row.speed_up:.2f} times as fast as {base}."
        else:
            words += f" {label} takes {1 / row.speed_up:.2f} times as long as {base}."
    if missing:
        words += f" No ratio is given for {_list(missing)}: hardware or executor differ from {base}'s."
    return words


def _across_datasets(population: pd.DataFrame, times: pd.DataFrame) -> list[str]:
    """Mean differences and speed-ups where several datasets were run with one backbone; else nothing."""
    bullets = []
    for backbone in population["backbone"].unique():
        here, clocks = (table[table["backbone"] == backbone] for table in (population, times))
        styles = method_styles(here["method"])
        baseline = _baseline(here)
        if here["dataset"].nunique() < 2 or baseline not in styles:
            continue
        speeds = speed_ups(clocks, baseline).dropna(subset="speed_up") if len(clocks) else None
        for method in (m for m in styles if m not in BASELINES):
            result = compare(here, method, baseline)
            mean = {dataset: _mean(rows) for dataset, rows in result.groupby("dataset")}
            if len(mean) < 2:
                continue
            order = [d for d in DATASET_LABELS if d in mean] + [d for d in mean if d not in DATASET_LABELS]
            gaps = ", ".join(f"{panel_label(d, backbone)} {mean[d]:+.2f}" for d in order)
            words = f"{styles[method].label} minus {styles[baseline].label}, mean difference in points: {gaps}."
            study = [d for d in order if d in TABLE_1]  # from the least to the most complex, as the paper ranks them
            if len(study) > 1:
                grows = all(mean[a] < mean[b] for a, b in pairwise(study))
                words += f" From {panel_label(study[0])} to {panel_label(study[-1])} the difference "
                words += "grows at every step." if grows else "does not grow at every step."
            if speeds is not None and len(mine := speeds[speeds["method"] == method]) > 1:
                words += f" Mean speed-up over {len(mine)} datasets: {mine['speed_up'].mean():.2f}."
            bullets.append(words)
    return bullets


def caption(runs: Sequence[Run], times: pd.DataFrame | None = None) -> str:
    """Datasets, scale and seeds of `runs` in words, and with `times` where they were trained; for under a figure."""
    if not runs:
        raise InputError("a caption needs at least one run")
    scales: dict[str, list[str]] = {}
    for run in runs:
        labels = scales.setdefault(run.profile.describe(run.dataset), [])
        label = panel_label(run.dataset, run.backbone)
        labels += [label] if label not in labels else []
    profiles, seeds = dict.fromkeys(run.profile.name for run in runs), sorted({run.seed for run in runs})
    words = [f"Profile {_list(profiles)}, seed{'s' if len(seeds) > 1 else ''} {_list(seeds)}."]
    words += [f"{_list(labels)}: {scale}." for scale, labels in scales.items()]
    if times is not None:
        words.append(f"Trained on {_list(_machines(speed_ups(times)))}.")
    return " ".join(words)


# --- helpers ----------------------------------------------------------------------------------------------------------


def check(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise InputError if `table` lacks one of `columns` or has no rows."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"the table {what} has no column {_list(missing)}: expected {', '.join(columns)}")
    if table.empty:
        raise InputError(f"the table {what} has no rows: expected the results of at least one run")


def _panels(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Datasets (with backbone) in the order of the table's rows."""
    return iter(table.groupby(["dataset", "backbone"], sort=False))


def _labelled(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(panel_label(*key), rows) for key, rows in _panels(table)]


def _only(table: pd.DataFrame, dataset: str, backbone: str) -> pd.DataFrame:
    return table[(table["dataset"] == dataset) & (table["backbone"] == backbone)]


def _baseline(table: pd.DataFrame) -> str:
    return next((m for m in BASELINES if m in set(table["method"])), BASELINES[0])


def _several_seeds(table: pd.DataFrame) -> bool:
    return table["seed"].nunique() > 1


def _list(items: Iterable) -> str:
    items = [str(item) for item in items]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _range(numbers: pd.Series) -> str:
    return f"{numbers.min()}" if numbers.min() == numbers.max() else f"{numbers.min()} to {numbers.max()}"


def _subnet_words(table: pd.DataFrame) -> str:
    counts = table.groupby([*PANEL_COLUMNS, "bucket"]).size()
    return f"{_range(counts)} subnet{'s' if counts.max() > 1 else ''}"


def _seed_words(table: pd.DataFrame) -> str:
    counts = table.groupby(list(PANEL_COLUMNS[:3]))["seed"].nunique()
    return f"{_range(counts)} seed{'s' if counts.max() > 1 else ''}"


def _sample_size(population: pd.DataFrame) -> str:
    return f"{_subnet_words(population)} a bucket, {_seed_words(population)}"


def _duration(seconds: float) -> str:
    unit, size = _unit(seconds)
    return f"{seconds / size:.3g} {unit}"


def _add_caption(figure: Figure, *parts: str) -> None:
    """Make the figure taller and write `parts` under it, wrapped to its width between words."""
    text = figure.text(0, 0, "", fontsize=CAPTION_SIZE, linespacing=1.25, color="0.3", va="bottom", gid="caption")
    width, height = figure.get_size_inches()
    lines = [""]
    for word in " ".join(part for part in parts if part).split():
        text.set_text(f"{lines[-1]} {word}".strip())
        if lines[-1] and text.get_window_extent().width > figure.dpi * (width - 2 * MARGIN):
            lines.append(word)
        else:
            lines[-1] = text.get_text()
    room = len(lines) * 1.25 * CAPTION_SIZE / 72 + 2 * MARGIN
    figure.set_size_inches(width, height + room)
    figure.get_layout_engine().set(rect=(0, room / (height + room), 1, height / (height + room)))
    text.set(text="\n".join(lines), x=MARGIN / width, y=MARGIN / (height + room))


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write <name>.png (200 dpi) and <name>.pdf into `folder` and return their paths.

    The files are written whole or not at all, and carry no date: the same figure gives the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, options in (("png", {"dpi": 200}), ("pdf", {"metadata": {"CreationDate": None}})):
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, **options)
        paths.append(folder / f"{name}.{suffix}")
    return paths
