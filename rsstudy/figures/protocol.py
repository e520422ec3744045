"""The protocol in figures and tables: search space, subnets, their sizes, and how each method trains them.

Everything is computed from the library's search spaces, methods and samplers, without training. Call
`rsstudy.figures.populations.set_style` once before drawing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Patch
from pandas import DataFrame, Index

from rsslib import samplers
from rsslib.errors import InputError, check_number
from rsslib.methods import Method
from rsslib.population import get_buckets, half_bucket, sample_population
from rsslib.space import RESOLUTION, Arch, SearchSpace
from rsstudy.catalogue import TABLE_1, build
from rsstudy.figures.populations import (
    PAGE,
    SIZE,
    Captioned,
    add_legend,
    finish,
    new_figure,
    shade_buckets,
)
from rsstudy.figures.style import LOOKS, NAMES, backbone_label, label_of, listed, panel_label, style_of

ACTIVATIONS = NAMES["activations"]
FIXED, ELASTIC, ELASTIC_SE = "0.93", "#dbe9f6", "#f3b65c"  # fills of layers
KERNEL_COLOURS = {3: "#e3eef8", 5: "#a8cbe8", 7: "#5b9bd5"}
WIDTH_COLOURS = ("#f4f8fc", ELASTIC, "#b9d3ec")  # from the largest
DARK, SMALL = "#1f5a99", 6.2
DRAWS = {"any width": "o", "smallest width": "s", "largest width": "^"}  # with their markers
GAP = 0.6  # between the stages of a subnet
ABOVE = {"xycoords": ("data", "axes fraction"), **LOOKS.above}  # a panel
BIN = 0.1  # of the histogram of sizes, in millions of MACs


# --- the whole study in one picture -----------------------------------------------------------------------------------


def overview(space: SearchSpace, dataset: str = "cifar100") -> Captioned:
    """The study at a glance: the supernet, some of its subnets, what each method trains, and what is evaluated.

    `dataset` is the one of Table 1 whose epochs are drawn.
    """
    archs = {
        "smallest": space.smallest,
        "random": space.sample_arch(np.random.default_rng(0)),
        "largest": space.largest,
    }
    methods = ("ofa", "rss", "rss-short")
    figure = Captioned((PAGE, 2.2), layout="constrained")
    rows = [["supernet", *row, "evaluation"] for row in zip(archs, methods, strict=True)]
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    panels = figure.subplot_mosaic(rows, width_ratios=(1, 1, 1.35, 1), subplot_kw=bare)
    _draw_supernet(panels["supernet"], space)
    for name, arch in archs.items():
        axes = panels[name]
        _draw_layers(axes, space, arch)
        axes.set(xlim=(-1, space.n_layers + 3), ylim=(0, 8.5))
        axes.text(-0.5, 7, f"{name}: {space.macs(arch) / 1e6:.1f} MFLOPs", fontsize=SMALL)
    epochs = TABLE_1[dataset]
    for name in methods:
        method, axes = build(name, *epochs), panels[name]
        _draw_sizes(axes, schedule_table(method, space, steps=8), style_of(name).colour)
        axes.set(xlim=(0, sum(epochs)), ylim=(2, 22))
        axes.text(0, 18, f"{label_of(name)}: {method.epochs} epochs", fontsize=SMALL)
    population = [arch for _, arch in sample_population(space, 20, seed=0)]
    sizes = space.macs(space.to_rows(population)) / 1e6
    axes = panels["evaluation"]
    shade_buckets(axes, space)
    axes.plot(sizes, np.arange(len(sizes)) % 20, ".", color=DARK, markersize=1.8, gid="population")
    axes.set_xticks(get_buckets(space))
    count, power = f"{space.cardinality:.0e}".split("e+")
    words = {
        "supernet": f"${count} \\times 10^{{{power}}}$ subnets,\none set of weights",
        "largest": "kernel (shade),\nwidth (height), depth",
        "rss-short": f"epoch on {panel_label(dataset)}:\nsizes of the trained subnets",
        "evaluation": "size (MFLOPs): test accuracy\nof the same subnets",
    }
    for name, label in words.items():
        panels[name].set_xlabel(label, parse_math=name == "supernet")
    for i, name in enumerate(("supernet", "smallest", "ofa", "evaluation")):
        title = ("Supernet", "Subnets", "Methods", "Evaluation")[i]
        panels[name].set_title(f"{i + 1}. {title}", loc="left", fontweight="bold")
    figure.caption = (
        f"1. A supernet of {backbone_label(space.backbone.name)}: a row for each stage; nested: elastic width; "
        "dotted: layers left out at less depth. 2. Subnets share its weights. 3. Progressive shrinking (OFA) trains "
        "from the largest to the smaller ones, RSS one random subnet per epoch. 4. After recalibration of batch norm, "
        "the test accuracy of subnets in buckets of size. MFLOPs: millions of multiply-accumulates."
    )
    return figure


def _draw_supernet(axes: Axes, space: SearchSpace) -> None:
    """Draw a row for each stage, and in each layer its widths inside each other."""
    widths = sorted(space.expands, reverse=True)
    for i, layer in enumerate(space.layers):
        line = ":" if layer.index >= min(space.depths) else "-"
        for width, colour in zip(widths, WIDTH_COLOURS, strict=False):
            look = {"facecolor": colour, "linestyle": line, "gid": f"layer {i}, {width}"}
            axes.barh(-layer.stage, 0.8, 0.13 * width, left=layer.index, **look)


def _draw_layers(axes: Axes, space: SearchSpace, arch: Arch) -> None:
    """Draw a bar for each layer of a subnet: as high as its expand ratio, as wide and dark as its kernel."""
    used, layers, kernels, expands = zip(*space.active(arch), strict=True)
    bars = axes.bar(
        [i + GAP * layer.stage for i, layer in zip(used, layers, strict=True)],
        expands,
        [0.28 + 0.09 * kernel for kernel in kernels],
        color=[KERNEL_COLOURS[kernel] for kernel in kernels],
    )
    for i, bar in zip(used, bars, strict=True):
        bar.set_gid(f"layer {i}")


def _draw_sizes(axes: Axes, table: DataFrame, colour: str = DARK) -> None:
    """Draw the sizes of each epoch's subnets from `schedule_table`: mean, and 5th to 95th percentile."""
    axes.fill_between("epoch", "low", "high", data=table, color=colour, **LOOKS.range)
    axes.plot("epoch", "mean", ".", data=table, color=colour, markersize=1.5)


# --- Figure 2: the architecture --------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A layer in the drawing of the architecture."""

    name: str
    text: str
    fill: str = FIXED
    optional: bool = False
    residual: bool = False


def architecture(space: SearchSpace) -> Captioned:
    """Figure 2: every layer of the search space with channels, strides, feature maps and elastic ranges.

    A row for each stage, read from left to right; dashed layers are left out by subnets of less depth.
    """
    rows = _architecture_rows(space)
    columns = max(len(boxes) for *_, boxes in rows)
    figure = Captioned((1.33 * (columns + 1.27), 0.55 * len(rows) + 0.5))
    axes = figure.add_axes(
        (0, 0, 1, 1),
        xlim=(-1.25, columns + 0.02),
        ylim=(0.2 - len(rows), 0.7),
    )
    axes.set_axis_off()
    for i, (title, details, boxes) in enumerate(rows):
        axes.text(-1.2, 0.05 - i, title, fontsize=7.5, fontweight="bold", va="bottom")
        axes.text(-1.2, 0.02 - i, details, fontsize=SMALL, va="top")
        for column, box in enumerate(boxes):
            _draw_box(axes, box, column, -i)
    elastic = f"kernel {listed(space.kernels, 'or')}, width {listed(space.expands, 'or')}"
    fills = {"same in all subnets": FIXED, elastic: ELASTIC, "the same, with SE": ELASTIC_SE}
    key = [Patch(facecolor=fill, label=name) for name, fill in fills.items()]
    key.append(Patch(facecolor="white", linestyle="--", label="left out at less depth"))
    axes.legend(handles=key, loc="lower center", ncols=4, fontsize=SMALL)
    figure.caption = (
        f"Search space of {backbone_label(space.backbone.name)}, at {RESOLUTION}×{RESOLUTION}. A row is a stage, read "
        "from left to right; a line over a layer is its residual connection. Below a layer's channels: its hidden "
        "channels for each width. A layer expands (1×1), filters depthwise, applies squeeze-excite (SE) with a quarter "
        "of the hidden channels in some stages, and projects (1×1); each convolution has a batch norm."
    )
    return figure


def _architecture_rows(space: SearchSpace) -> list[tuple[str, str, list[Box]]]:
    """Title, details and boxes of each row."""
    net, last = space.backbone, space.layers[-1]
    stem, first, head = (ACTIVATIONS[act] for act in (net.stem_act, net.first_act, net.head_act))
    residual = net.stem_channels == net.first_channels
    features = net.mix_channels or net.expand_channels
    boxes = [
        Box("stem", f"conv 3×3, stride 2\n{space.in_channels} → {net.stem_channels}, {stem}"),
        Box("first", f"depthwise 3×3, 1×1\n{net.stem_channels} → {net.first_channels}, {first}", residual=residual),
    ]
    sizes = f"{RESOLUTION}×{RESOLUTION} → {RESOLUTION // 2}×{RESOLUTION // 2}"
    rows = [("Stem and first block", sizes, boxes)]
    for s, stage in enumerate(net.stages):
        depths = sorted(space.depths) if stage.elastic_depth else [stage.layers]
        layers = {i: layer for i, layer in enumerate(space.layers) if layer.stage == s}
        boxes = []
        for i, layer in layers.items():
            hidden = "/".join(str(layer.hidden(expand)) for expand in sorted(space.expands))
            text = f"{layer.in_channels} → {layer.out_channels}, stride {layer.stride}\n{hidden}"
            fill = ELASTIC_SE if layer.squeeze_excite else ELASTIC
            boxes.append(Box(f"layer {i}", text, fill, layer.index >= depths[0], layer.residual))
        before, after = layers[min(layers)].in_size, layers[max(layers)].out_size
        details = (
            f"{before}×{before} → {after}×{after}, {NAMES['activations'][stage.act]}{', SE' * stage.squeeze_excite}"
        )
        title = f"Stage {s + 1}: {stage.channels} channels"
        rows.append((title, f"{details}\ndepth {listed(depths, 'or')}", boxes))
    boxes = [Box("expand", f"conv 1×1, {head}\n{last.out_channels} → {net.expand_channels}")]
    if net.mix_channels:
        boxes.append(Box("mix", f"pool, 1×1, {head}\n{net.expand_channels} → {net.mix_channels}"))
    pool = "" if net.mix_channels else "pool, "
    boxes.append(Box("linear", f"{pool}dropout, linear\n{features} → {space.classes}"))
    rows.append(("Head", f"{last.out_size}×{last.out_size} → {space.classes} classes", boxes))
    return rows


def _draw_box(axes: Axes, box: Box, column: int, y: float) -> None:
    """Draw a layer, the arrow to it from the one before, and its residual connection."""
    left, right = column + 0.07, column + 0.93
    line = "--" if box.optional else "-"
    shape = FancyBboxPatch((left, y - 0.3), right - left, 0.6, boxstyle="round,pad=0,rounding_size=0.05")
    shape.set(facecolor=box.fill, linestyle=line, gid=box.name)
    axes.add_patch(shape)
    axes.text(column + 0.5, y, box.text, gid=box.name, **LOOKS.layer_text)
    arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0}
    if column:
        axes.annotate("", (left, y), (left - 0.14, y), arrowprops=arrow)
    if box.residual:
        arrow |= {"connectionstyle": "bar,fraction=-0.17", "linestyle": line}
        axes.annotate("", (right + 0.05, y), (left - 0.09, y), arrowprops=arrow, gid=f"{box.name} shortcut")


# --- one subnet -------------------------------------------------------------------------------------------------------


def draw_subnet(space: SearchSpace, arch: Arch, size: tuple[float, float] = (PAGE, 2.3)) -> Captioned:
    """One subnet: a bar for each layer that it uses, as high as its expand ratio, as wide and dark as its kernel.

    The numbers are kernel size (in the bar) and hidden channels (above). `size` is the figure's, in inches. Raises
    InputError for an architecture outside the space.
    """
    space.validate(arch)
    active = list(space.active(arch))
    figure, (axes,) = new_figure(*size)
    _draw_layers(axes, space, arch)
    (bars,) = axes.containers
    axes.bar_label(bars, [kernel for *_, kernel, _ in active], label_type="center", fontweight="bold")
    axes.bar_label(bars, [layer.hidden(expand) for _, layer, _, expand in active], padding=1, fontsize=6)
    places = [i + GAP * layer.stage for i, layer in enumerate(space.layers)]
    crosses = axes.plot(places, [0.2] * len(places), "x", **LOOKS.left_out)
    last = {layer.stage: (i, layer) for i, layer in enumerate(space.layers)}  # of each stage
    ticks = {
        i - layer.index / 2 + GAP * s: f"{layer.out_channels} ch{', SE' * layer.squeeze_excite}\n"
        f"{layer.out_size}×{layer.out_size}"
        for s, (i, layer) in last.items()
    }
    sizes = f"{space.macs(arch) / 1e6:.2f} MFLOPs, {space.parameters(arch) / 1e6:.2f} M parameters"
    axes.set_xticks(list(ticks), ticks.values())
    axes.set(
        title=f"{backbone_label(space.backbone.name)} subnet: {sizes}",
        xlabel="Stage: output channels, squeeze-excite (SE), feature map",
        ylabel="Width (expand ratio)",
        ylim=(0, max(space.expands) + 0.9),
        yticks=sorted(space.expands),
    )
    key = [Patch(facecolor=KERNEL_COLOURS[k], label=f"kernel {k}×{k}") for k in sorted(space.kernels)]
    add_legend(figure, key + crosses)
    return figure


# --- sizes ------------------------------------------------------------------------------------------------------------


def macs_samples(space: SearchSpace, samples: int = 1_000_000, seed: int = 0) -> dict[str, np.ndarray]:
    """MACs, as the buckets count them, of `samples` architectures for each draw: any width, the smallest, the largest.

    Returns int64 [samples] by the name of the draw. Raises InputError unless `samples` is from 1 to 10 million.
    """
    check_number(samples, "samples", 1, 10_000_000, whole=True)
    sizes = {}
    low, high = min(space.expands), max(space.expands)
    for name, widths in zip(DRAWS, (space.expands, [low], [high]), strict=True):
        rng = np.random.default_rng([seed, len(sizes)])
        chunks = [min(50_000, samples - start) for start in range(0, samples, 50_000)]
        sizes[name] = np.concatenate([space.reference.macs(space.sample(n, rng, expands=widths)) for n in chunks])
    return sizes


def bucket_shares(space: SearchSpace, sizes: Mapping[str, np.ndarray]) -> DataFrame:
    """The share of each draw of `macs_samples` that lies in each bucket, bounds included, in percent.

    `drawn with` names the draw from which the study fills the bucket: the width is locked at both ends (section 6.1).
    """
    uniform, narrow, wide = DRAWS
    shares: dict = {
        name: [100 * (abs(macs / 1e6 - bucket) <= half_bucket(space)).mean() for bucket in get_buckets(space)]
        for name, macs in sizes.items()
    }
    shares["drawn with"] = [narrow, *[uniform] * (len(get_buckets(space)) - 2), wide]
    return DataFrame(shares, Index(get_buckets(space), name="bucket"))


def macs_distribution(space: SearchSpace, sizes: Mapping[str, np.ndarray]) -> Captioned:
    """Distribution of subnet sizes under each draw of `macs_samples`, and the share of it that each bucket takes."""
    shares = bucket_shares(space, sizes)
    corners = {name: space.reference.macs(getattr(space, name)) / 1e6 for name in samplers.SIZES}
    bins = np.arange(corners["smallest"], corners["largest"] + BIN, BIN)
    figure, (top, bottom) = new_figure(PAGE, 4.2, 2, 1, sharex=True)
    bottom.set_yscale("log")
    for i, (name, macs) in enumerate(sizes.items()):
        colour, marker = f"C{i}", DRAWS[name]
        weights = np.full(len(macs), 100 / len(macs))
        top.hist(macs / 1e6, bins, weights=weights, edgecolor=colour, **LOOKS.distribution)
        filled = shares[name][shares["drawn with"] == name]
        bottom.plot(shares[name], marker, color=colour, markerfacecolor="none", label=name, gid=f"all {name}")
        bottom.plot(filled, marker, color=colour, gid=f"filled {name}")
        for bucket, share in shares[name][shares[name] > 0].items():
            bottom.annotate(f"   {share:.2g}", (bucket, share), va="center", fontsize=SMALL)
    for axes in (top, bottom):
        shade_buckets(axes, space)
    for name, size in corners.items():
        top.axvline(size, **LOOKS.corner)
        top.annotate(name, (size, 1.02), **ABOVE)
    top.set_ylabel(f"Share in {BIN:g} MFLOPs (%)")
    bottom.set(xticks=get_buckets(space), xlabel=f"{SIZE}; grey: buckets", ylabel="Share in a bucket (%)")
    bottom.yaxis.set_major_formatter("{x:g}")
    add_legend(figure, bottom)
    return finish(
        figure,
        f"{backbone_label(space.backbone.name)}; widths {listed(space.expands)}; {len(macs):,} draws each\n",
        f"Sizes for a colour image of {space.resolution}×{space.resolution} pixels and 100 classes, in millions of "
        f"multiply-accumulates (MFLOPs). Above: share per {BIN:g} MFLOPs; dash-dotted: the smallest, middle and "
        f"largest subnet. Below, on a log scale: share in each bucket, {half_bucket(space):.3g} MFLOPs to either side. "
        "Filled: the draw from which the bucket is filled.",
    )


# --- methods ----------------------------------------------------------------------------------------------------------


def stage_table(method: Method) -> DataFrame:
    """The stages of a method: epochs, learning rate, which subnets, how many per step, distillation, sorting.

    `learning rate` is where the curve starts, `first rate` the rate of the stage's first step: they differ where a
    stage begins in mid-curve.
    """
    trained = f"{method.stages[0].name}, trained"
    teachers = {"stage": trained, "random": "untrained network", "largest": "largest subnet of the step"}
    rows = []
    for stage in method.stages:
        schedule: str = stage.schedule
        if stage.schedule_epochs and stage.epochs:
            last = stage.first_epoch + stage.epochs - 1
            schedule += f", epochs {stage.first_epoch} to {last} of {stage.schedule_epochs}"
        cut = stage.sort_channels
        rows.append(
            {
                "method": method.name,
                "stage": stage.name,
                "epochs": stage.epochs,
                "learning rate": stage.learning_rate,
                "schedule": schedule,
                "first rate": stage.rate(0, 0, 1) if stage.epochs else np.nan,
                "subnets": sampler_words(stage.sampler),
                "drawn each": getattr(stage.sampler, "per", "epoch"),
                "subnets per step": getattr(stage.sampler, "count", 1),
                "distils from": teachers.get(method.teacher, "none") if stage.distill else "none",
                "channels sorted": "no" if cut is None else f"to {listed(cut, 'or')}x and beyond" if cut else "all",
            }
        )
    return DataFrame(rows).set_index(["method", "stage"])


def sampler_words(sampler: samplers.Sampler) -> str:
    """Which subnets a sampler draws, in a few words; its repr if it is not one of the library's."""
    match sampler:
        case samplers.Uniform():
            choices = {"kernel": sampler.kernels, "width": sampler.expands, "depth": sampler.depths}
            given = [f"{name} {listed(values, 'or')}" for name, values in choices.items() if values]
            return ", ".join(["uniform", *given])
        case samplers.Successive():
            return ", then ".join(sampler.sizes)
        case samplers.Alternating():
            return f"{' and '.join(sampler.sizes)} in turn"
    return repr(sampler)


def schedule_table(method: Method, space: SearchSpace, steps: int = 64, seed: int = 0) -> DataFrame:
    """What each epoch of a method trains, one row per epoch, if an epoch had `steps` steps.

    Columns: stage (its number), epoch (over all stages, from 0), learning_rate (at the first step), count (subnets per
    step), each ("epoch" or "step": how often they are drawn), mean, low, high (mean, 5th and 95th percentile of their
    sizes in MFLOPs). Subnets that are drawn once per epoch are those that a run with this seed trains, for any number
    of steps. Raises InputError for fewer than 2 steps.
    """
    check_number(steps, "steps", 2, whole=True)
    rows = []
    for number, stage in enumerate(method.stages):
        for epoch in range(stage.epochs):
            rng, _ = samplers.randomness(seed, number, epoch)
            drawn = stage.sampler.subnets(space, rng, epoch, stage.epochs, steps)
            sizes = space.reference.macs(space.to_rows([arch for step in drawn for arch in step])) / 1e6
            each = "epoch" if len(drawn) == 1 else "step"
            spread = (sizes.mean(), *np.percentile(sizes, (5, 95)))
            rows.append((number, len(rows), stage.rate(epoch, 0, steps), len(drawn[0]), each, *spread))
    columns = ["stage", "epoch", "learning_rate", "count", "each", "mean", "low", "high"]
    return DataFrame(rows, columns=columns)


def schedule(methods: Sequence[Method], space: SearchSpace, steps: int = 64) -> Captioned:
    """Learning rate and sizes of the trained subnets over the epochs, a row for each method; see `schedule_table`.

    Several stages of a method are named and divided.
    """
    if not methods:
        raise InputError("methods is empty: expected at least one method to draw")
    rows = len(methods)
    shared = {"sharex": True, "sharey": "col", "width_ratios": (1.1, 1)}
    figure, grid = new_figure(PAGE, 1.2 * rows + 0.5, rows, 2, **shared)
    for (rates, sizes), method in zip(grid.reshape(-1, 2), methods, strict=True):
        table = schedule_table(method, space, steps)
        several = len(method.stages) > 1
        for (number, count, each), epochs in table.groupby(["stage", "count", "each"]):
            stage = method.stages[number]
            middle = epochs["epoch"].mean()
            rates.plot(
                "epoch", "learning_rate", ".-", data=epochs, color=DARK, markersize=1.5, gid=f"rate {stage.name}"
            )
            sizes.annotate(
                f"{count}/{each}{'' if several else f': {sampler_words(stage.sampler)}'}", (middle, 1), **ABOVE
            )
            if several:
                rates.annotate(stage.name, (middle, 1.02), **ABOVE)
                for axes in (rates, sizes):
                    axes.axvline(epochs["epoch"].max() + 1, **LOOKS.boundary)
        _draw_sizes(sizes, table)
        rates.set_title(label_of(method.name), loc="left", fontweight="bold", pad=12 if several else 4)
        rates.set(yscale="log", ylabel="Learning rate")
        rates.yaxis.set_major_formatter("{x:g}")
        rates.margins(x=0)
        sizes.set_ylabel("Size (MFLOPs)")
    for axes in grid[-2:]:
        axes.set_xlabel("Epoch")
    return finish(
        figure,
        f"{backbone_label(space.backbone.name)}; draws of seed 0\n",
        "Left: learning rate, on a log scale. Right: sizes of the subnets that each epoch trains, as mean and 5th to "
        "95th percentile; above the panels: subnets per step, and whether they are drawn each epoch or each step.",
    )
