"""The protocol drawn and tabulated: search space, subnets, their sizes, and how each method trains them.

Everything is computed from `rsslib.space`, `rsslib.methods` and `rsslib.samplers`, needs no training, and comes back as
a matplotlib Figure or a table. Call `rsstudy.figures.populations.set_style` once before drawing.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from ptflops import get_model_complexity_info

from rsslib import samplers
from rsslib.errors import InputError, check_number
from rsslib.methods import Method
from rsslib.network import Network
from rsslib.population import get_buckets, half_bucket, sample_population
from rsslib.space import RESOLUTION, Arch, SearchSpace
from rsstudy.catalogue import TABLE_1, build
from rsstudy.figures.populations import INK, PAGE, Captioned, shade_buckets
from rsstudy.figures.style import backbone_label, label_of, listed, style_of

ACTIVATION_LABELS = {"relu": "ReLU", "relu6": "ReLU6", "hardswish": "h-swish"}
FIXED, ELASTIC, ELASTIC_SE = "0.93", "#dbe9f6", "#f3b65c"  # the fill of boxes
KERNEL_COLOURS = {3: "#d3e5f4", 5: "#7db3dc", 7: "#1f5a99"}
DARK, LIGHT, SMALL = "#1f5a99", "#a9c9e6", 6.2
DRAW_STYLES = ((DARK, "-", "o"), ("#c77a00", "--", "s"), ("#2a9d78", ":", "^"))
BIN = 0.1  # of the histogram, in millions of MACs
NOTE = {"textcoords": "offset points", "fontsize": SMALL}
ABOVE = {**NOTE, "xytext": (0, 2), "xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}


# --- the whole study in one picture -----------------------------------------------------------------------------------


def overview(space: SearchSpace, dataset: str = "cifar100") -> Captioned:
    """The study at a glance: the supernet, some of its subnets, what each method trains, and what is evaluated.

    `dataset` is the one of Table 1 whose epochs are drawn. All is computed from the search space and the methods.
    """
    figure = Captioned((PAGE, 2.2), layout="constrained")
    supernet, subnets, trained, evaluated = figure.subplots(1, 4, width_ratios=(1, 1, 1.35, 1))
    rng, depths = np.random.default_rng(0), sorted(space.depths)
    draws = {"smallest": space.smallest, "random": space.sample_arch(rng), "largest": space.largest}
    for i, layer in enumerate(space.layers):
        for width, colour in zip(sorted(space.expands, reverse=True), ("#f4f8fc", ELASTIC, "#b9d3ec"), strict=False):
            optional = layer.index >= depths[0]
            look = {"edgecolor": INK, "linewidth": 0.5, "linestyle": ":" if optional else "-"}
            look |= {"gid": f"layer {i}, {width}"}
            supernet.barh(-layer.stage, 0.8, 0.13 * width, left=layer.index, color=colour, **look)
    for row, arch in enumerate(draws.values()):
        for i, _, kernel, expand in space.active(arch):
            place = i + 0.6 * space.layers[i].stage
            subnets.bar(place, expand, 0.8, -9 * row, color=KERNEL_COLOURS[kernel], edgecolor=INK, linewidth=0.3)
    names = [f"{name}: {space.macs(arch) / 1e6:.1f} MFLOPs" for name, arch in draws.items()]
    for row, name in enumerate(names):
        subnets.text(0, -9 * row + 6.3, name, fontsize=SMALL, va="bottom")
    for row, name in enumerate(("ofa", "rss", "rss-short")):
        table = schedule_table(build(name, *TABLE_1[dataset]), space, steps=8)
        style, (low, high) = style_of(name), (space.macs(space.smallest), space.macs(space.largest))
        floor, scale = -1.5 * row, 1e6 / (high - low)
        sizes = floor + table[["low", "mean", "high"]] * scale - low / (high - low)
        if (table["each"] == "step").any():
            look = {"color": style.colour, "alpha": 0.3, "linewidth": 0}
            trained.fill_between(table["epoch"], sizes["low"], sizes["high"], **look)
        trained.plot(table["epoch"], sizes["mean"], ".", color=style.colour, markersize=1.2, gid=f"trained {name}")
        trained.text(0, floor + 1.07, f"{style.label}: {len(table)} epochs", fontsize=SMALL, va="bottom")
        trained.axhline(floor - 0.08, color="0.6", linewidth=0.5)
    population = space.macs(space.to_rows([arch for _, arch in sample_population(space, 20, seed=0)])) / 1e6
    shade_buckets(evaluated, space, ymax=0.8)
    places = np.tile(np.linspace(0, 1, 20), len(get_buckets(space)))
    evaluated.plot(population, places, ".", color=DARK, markersize=1.8, gid="population")
    evaluated.set(ylim=(-0.05, 1.35), xticks=get_buckets(space), xlabel="MFLOPs")
    words = "accuracy of the same\nsubnets, all methods"
    evaluated.text(get_buckets(space)[0] - half_bucket(space), 1.1, words, fontsize=SMALL, va="bottom")
    count, power = f"{space.cardinality:.0e}".split("e+")
    supernet.set(xlabel=f"${count} \\times 10^{{{power}}}$ subnets,\none set of weights")
    most, stages = max(layer.index for layer in space.layers), len(space.backbone.stages)
    supernet.set(xlim=(-0.2, most + 1), ylim=(-stages + 0.4, 0.6))
    subnets.set(ylim=(-18.5, 9.5), xlabel="kernel (shade),\nwidth (height), depth")
    trained.set(ylim=(-3.2, 1.5), xlabel="epoch: the sizes of the\nsubnets it trains")
    titles = ("Supernet", "Subnets", "Methods", "Evaluation")
    for number, (axes, title) in enumerate(zip(figure.axes, titles, strict=True), 1):
        axes.set_title(f"{number}. {title}", loc="left", fontweight="bold")
        axes.grid(False)
        axes.set_yticks([])
        if axes is not evaluated:
            axes.set_xticks([])
        for side in ("left", "right", "top", *(["bottom"] if axes is not evaluated else [])):
            axes.spines[side].set_visible(False)
    figure.caption = (
        f"1. A supernet of {backbone_label(space.backbone.name)}: a row a stage; nested: "
        "elastic width; dotted: layers left out at less depth. 2. Subnets share its weights. 3. Progressive shrinking "
        "(OFA) trains from the largest to the smaller ones, RSS one random subnet an epoch. 4. After recalibration of "
        "batch norm, the test accuracy of subnets in buckets of size. MFLOPs: millions of multiply-accumulates."
    )
    figure.alternative = f"The study at a glance: {', '.join(titles).lower()}"
    return figure


# --- Figure 2: the architecture --------------------------------------------------------------------------------------


def architecture(space: SearchSpace) -> Captioned:
    """Figure 2: every layer of the search space with channels, strides, feature maps and elastic ranges.

    A row a stage, read from left to right; dashed layers are left out by subnets of less depth.
    """
    net, side, half = space.backbone, RESOLUTION, RESOLUTION // 2
    act = {name: ACTIVATION_LABELS[getattr(net, f"{name}_act")] for name in ("stem", "first", "head")}
    first = {"gid": "first", "shortcut": net.stem_channels == net.first_channels}
    rows = [
        ("Stem and first block", f"{side}×{side} → {half}×{half}", [
            (f"conv 3×3, stride 2\n{space.in_channels} → {net.stem_channels}, {act['stem']}", {"gid": "stem"}),
            (f"depthwise 3×3, 1×1\n{net.stem_channels} → {net.first_channels}, {act['first']}", first),
        ])
    ]  # fmt: skip
    for s, stage in enumerate(net.stages):
        layers = [(i, layer) for i, layer in enumerate(space.layers) if layer.stage == s]
        depths = sorted(space.depths) if stage.elastic_depth else [stage.layers]
        boxes = []
        for i, layer in layers:
            text = f"{layer.in_channels} → {layer.out_channels}, stride {layer.stride}\nhidden "
            text += _few(layer.hidden(expand) for expand in space.expands)
            fill = ELASTIC_SE if layer.squeeze_excite else ELASTIC
            look = {"colour": fill, "optional": layer.index >= depths[0], "shortcut": layer.residual}
            boxes.append((text, {"gid": f"layer {i}", **look}))
        size = dict.fromkeys(f"{size}×{size}" for size in (layers[0][1].in_size, layers[-1][1].out_size))
        words = f"{' → '.join(size)}, {ACTIVATION_LABELS[stage.act]}{', SE' if stage.squeeze_excite else ''}"
        rows.append((f"Stage {s + 1}: {stage.channels} channels", f"{words}\ndepth {listed(depths, 'or')}", boxes))
    last, features = space.layers[-1], net.mix_channels or net.expand_channels
    head = [(f"conv 1×1, {act['head']}\n{last.out_channels} → {net.expand_channels}", {"gid": "expand"})]
    if net.mix_channels:
        head += [(f"pool, 1×1, {act['head']}\n{net.expand_channels} → {net.mix_channels}", {"gid": "mix"})]
    linear = f"{'dropout' if net.mix_channels else 'pool, dropout'}, linear\n{features} → {space.classes}"
    head.append((linear, {"gid": "linear"}))
    rows.append(("Head", f"{last.out_size}×{last.out_size} → {space.classes} classes", head))

    left, pitch, line, bottom = 1.66, 1.33, 0.55, 1.02  # inches, as all coordinates
    width = max(PAGE, left + max(len(boxes) for *_, boxes in rows) * pitch + 0.05)
    height = bottom + len(rows) * line + 0.06
    figure = Captioned((width, height))
    name = backbone_label(net.name)
    figure.caption = (
        f"Search space of {name}, at {side}×{side}. A row is a stage, read from left to right; a line over a "
        "layer is its residual connection. Hidden: channels after the expansion, for each width. Dashed layers are "
        "left out at less depth."
    )
    figure.alternative = f"Layers of {name}, a row a stage, with channels, strides and elastic ranges"
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for row, (name, words, boxes) in enumerate(rows):
        y = height - 0.06 - (row + 0.56) * line
        axes.text(0.08, y + 0.04, name, fontsize=7.5, fontweight="bold", va="bottom")
        axes.text(0.08, y + 0.02, words, fontsize=SMALL, va="top", linespacing=1.15)
        _chain(axes, boxes, left, y, pitch, pitch - 0.22, enter=left - 0.12)
        if row + 1 < len(rows):  # to the next row
            a, b = left + len(boxes) * pitch, left - 0.12
            down = [y, y, y - 0.24, y - 0.24, y - line]
            axes.plot([a - 0.11, a, a, b, b], down, color="0.6", linewidth=0.8, zorder=0.5)
    parts = [
        (f"expand 1×1, BN, act.\nwidth {_few(space.expands)}", {"gid": "part 1", "colour": ELASTIC}),
        (f"depthwise, BN, act.\nkernel {_few(space.kernels)}", {"gid": "part 2", "colour": ELASTIC}),
        ("squeeze-excite (SE)\nhidden / 4, rounded", {"gid": "part 3", "colour": ELASTIC_SE}),
        ("project 1×1, BN\nto output channels", {"gid": "part 4", "colour": ELASTIC}),
    ]
    if not any(layer.squeeze_excite for layer in space.layers):
        del parts[2]
    axes.plot([0.08, width - 0.08], [bottom - 0.02] * 2, color="0.6", linewidth=0.6)
    axes.text(0.08, 0.62, "Inside a layer\nof a stage", fontsize=7.5, fontweight="bold", va="center", linespacing=1.1)
    _chain(axes, parts, left, 0.62, pitch, pitch - 0.14)
    fills = {"same in all subnets": FIXED, "elastic kernel and width": ELASTIC, "the same, with SE": ELASTIC_SE}
    fills = {name: fill for name, fill in fills.items() if fill != ELASTIC_SE or len(parts) == 4}
    handles: list = [Patch(facecolor=fill, edgecolor=INK, label=name) for name, fill in fills.items()]
    handles += [
        Patch(facecolor="white", edgecolor=INK, linestyle="--", label="left out at less depth"),
        Line2D([], [], color=INK, linewidth=0.8, marker="o", markersize=2.5, markevery=[1], label="residual"),
    ]
    axes.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=SMALL + 0.5, columnspacing=1.6)
    return figure


def _chain(
    axes: Axes, boxes: Sequence, left: float, y: float, pitch: float, width: float, enter: float | None = None
) -> None:
    """Boxes of (text, look) from left to right, an arrow between two, and one from `enter` to the first."""
    for i, (text, look) in enumerate(boxes):
        start, gid = left + i * pitch + (pitch - width) / 2, look["gid"]
        edge = {"color": INK, "linestyle": (0, (3, 2)) if look.get("optional") else "-"}
        patch = FancyBboxPatch((start, y - 0.17), width, 0.34, boxstyle="round,pad=0,rounding_size=0.05", gid=gid)
        patch.set(facecolor=look.get("colour", FIXED), edgecolor=INK, linewidth=0.9, linestyle=edge["linestyle"])
        axes.add_patch(patch)
        axes.text(start + width / 2, y, text, ha="center", va="center", fontsize=SMALL, gid=gid)
        before = start - (pitch - width) if i else enter
        if before is not None:
            arrow = {"arrowstyle": "-|>,head_width=0.12,head_length=0.25", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (start, y), (before, y), arrowprops={**arrow, "color": INK, "linewidth": 0.7})
        if look.get("shortcut"):
            a, b, top = start - 0.1, start + width + 0.05, y + 0.24
            axes.plot([a, a, b, b], [y, top, top, y], linewidth=0.8, gid=f"{gid} shortcut", **edge)
            axes.plot(b, y, "o", color=INK, markersize=2.5)


def draw_subnet(space: SearchSpace, arch: Arch, size: tuple[float, float] = (PAGE, 2.3)) -> Figure:
    """One subnet: a box for each layer that it uses, as high as its expand ratio, as wide and dark as its kernel.

    The numbers are kernel size (in the box) and hidden channels (above). `size` is the figure's, in inches. Raises
    InputError for an architecture outside the space.
    """
    space.validate(arch)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    places, skipped = [i + 0.6 * layer.stage for i, layer in enumerate(space.layers)], set(range(space.n_layers))
    for i, layer, kernel, expand in space.active(arch):
        skipped.remove(i)
        look = {"color": KERNEL_COLOURS[kernel], "edgecolor": INK, "linewidth": 0.7, "zorder": 2}
        axes.bar(places[i], expand, 0.28 + 0.09 * kernel, gid=f"layer {i}", **look)
        ink = "white" if kernel == 7 else "black"
        axes.text(places[i], expand / 2, kernel, ha="center", va="center", fontweight="bold", fontsize=7.5, color=ink)
        axes.text(places[i], expand + 0.08, layer.hidden(expand), ha="center", va="bottom", fontsize=6)
    cross = {"linestyle": "", "marker": "x", "color": "0.5", "markersize": 4}
    axes.plot([places[i] for i in skipped], [0.2] * len(skipped), gid="skipped", **cross)
    ticks = []
    for s, stage in enumerate(space.backbone.stages):
        mine = [i for i, layer in enumerate(space.layers) if layer.stage == s]
        size, se = space.layers[mine[-1]].out_size, ", SE" if stage.squeeze_excite else ""
        ticks.append((np.mean([places[i] for i in mine]), f"{stage.channels} ch{se}\n{size}×{size}"))
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.set_yticks(sorted(space.expands))
    axes.set(xlim=(-0.8, places[-1] + 0.8), ylim=(0, max(space.expands) + 0.8))
    axes.set(xlabel="Stage: output channels, squeeze-excite (SE), feature map", ylabel="Width (expand ratio)")
    sizes = f"{space.macs(arch) / 1e6:.2f} MFLOPs, {space.parameters(arch) / 1e6:.2f} M parameters"
    axes.set_title(f"{backbone_label(space.backbone.name)} subnet: {sizes}")
    shades = {f"kernel {k}×{k}": KERNEL_COLOURS[k] for k in sorted(space.kernels)}
    handles: list = [Patch(facecolor=colour, edgecolor=INK, label=name) for name, colour in shades.items()]
    handles.append(Line2D([], [], label="layer left out", **cross))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


# --- sizes ------------------------------------------------------------------------------------------------------------


def macs_samples(space: SearchSpace, samples: int = 1_000_000, seed: int = 0) -> dict[str, np.ndarray]:
    """MACs, as the buckets count them, of `samples` architectures for each draw: any width, the smallest, the largest.

    Returns int64 [samples] by the name of the draw. Raises InputError unless `samples` is from 1 to 10 million.
    """
    check_number(samples, "samples", 1, 10_000_000, whole=True)
    sizes: dict[str, np.ndarray] = {}
    for name, locked in _draws(space).items():
        rng = np.random.default_rng([seed, len(sizes)])
        chunks = [min(50_000, samples - start) for start in range(0, samples, 50_000)]
        sizes[name] = np.concatenate([space.reference.macs(space.sample(n, rng, expands=locked)) for n in chunks])
    return sizes


def _draws(space: SearchSpace) -> dict[str, tuple[int, ...] | None]:
    low, high = min(space.expands), max(space.expands)
    return {"any width": None, f"smallest width, {low}": (low,), f"largest width, {high}": (high,)}


def bucket_shares(space: SearchSpace, sizes: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The share of each draw of `macs_samples` that lies in each bucket, bounds included, in percent.

    `drawn with` names the draw from which the study fills the bucket: the width is locked at both ends (section 6.1).
    """
    (uniform, narrow, wide), half, rows = _draws(space), half_bucket(space), []
    for bucket in get_buckets(space):
        low, high = round((bucket - half) * 1e6), round((bucket + half) * 1e6)
        shares = {name: 100 * float(((low <= macs) & (macs <= high)).mean()) for name, macs in sizes.items()}
        drawn = {min(get_buckets(space)): narrow, max(get_buckets(space)): wide}.get(bucket, uniform)
        rows.append({"bucket": bucket, **shares, "drawn with": drawn})
    return pd.DataFrame(rows).set_index("bucket")


def macs_distribution(space: SearchSpace, sizes: Mapping[str, np.ndarray]) -> Captioned:
    """Distribution of subnet sizes under each draw of `macs_samples`, and the share of it that each bucket takes."""
    shares, draws = bucket_shares(space, sizes), len(next(iter(sizes.values())))
    figure = Captioned((PAGE, 4.2), layout="constrained")
    figure.caption = (
        f"Sizes of {draws:,} draws each, in millions of multiply-accumulates (MFLOPs) for a colour image of "
        f"{space.resolution}×{space.resolution} pixels and 100 classes. Above: the share in each {BIN:g} MFLOPs; "
        "dash-dotted: the smallest, middle and largest subnet. Below, on a log scale: the share in each bucket, "
        f"{half_bucket(space):.3g} MFLOPs to either side. Filled marks: the draw from which the bucket is filled."
    )
    top, bottom = figure.subplots(2, 1, sharex=True)
    marks = {name: space.reference.macs(getattr(space, name)) / 1e6 for name in samplers.SIZES}
    edges = np.arange(np.floor(min(marks.values())), np.ceil(max(marks.values())) + BIN / 2, BIN)
    handles = [Line2D([], [], label="fills the bucket", linestyle="", marker="o", color="0.35", markersize=4.5)]
    for (name, macs), (colour, line, marker) in zip(sizes.items(), DRAW_STYLES, strict=True):
        look = {"marker": marker, "markersize": 4.5, "color": colour}
        handles.insert(-1, Line2D([], [], label=name, linestyle=line, markerfacecolor="none", **look))
        percent = 100 * np.histogram(macs / 1e6, edges)[0] / draws
        top.stairs(percent, edges, color=colour, linestyle=line, linewidth=1.3, label=name)
        for bucket, share in shares[name][shares[name] > 0].items():
            fill = colour if shares.loc[bucket, "drawn with"] == name else "none"
            bottom.plot(bucket, share, markerfacecolor=fill, gid=f"{name} {bucket}", **look)
            bottom.annotate(f"{share:.2g}", (bucket, share), (5, 0), va="center", **NOTE)
    for axes in (top, bottom):
        shade_buckets(axes, space)
    for name, size in marks.items():
        top.axvline(size, color="0.45", linewidth=0.7, linestyle="-.", zorder=1)
        top.annotate(name, (size, 1), **ABOVE)
    left = min(edges[0], get_buckets(space)[0] - half_bucket(space))
    bottom.set(yscale="log", ylim=(30 / draws, 400), xticks=shares.index, xlim=(left - 0.2, edges[-1] + 0.2))
    bottom.set(xlabel="Subnet size (MFLOPs); grey: buckets", ylabel="Share in a bucket (%)")
    top.set(ylim=(0, None), ylabel=f"Share in {BIN:g} MFLOPs (%)")
    figure.legend(handles=handles, title=f"{draws:,} draws of", loc="outside upper center", ncols=4, frameon=False)
    return figure


def macs_against_ptflops(space: SearchSpace, archs: Mapping[str, Arch]) -> pd.DataFrame:
    """Millions of MACs of named architectures by our table and by ptflops (aten backend), which runs the networks.

    The difference is in percent of ours. Raises InputError for an architecture outside the space.
    """
    rows, shape = [], (space.in_channels, RESOLUTION, RESOLUTION)
    for name, arch in archs.items():
        network, ours = Network(space, arch).eval(), space.macs(arch)
        quiet = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
        theirs = get_model_complexity_info(network, shape, backend="aten", **quiet)[0]
        values = {"rsslib (MFLOPs)": ours / 1e6, "ptflops (MFLOPs)": theirs / 1e6}
        percent = {"difference (%)": 100 * (theirs - ours) / ours}
        rows.append({"backbone": space.backbone.name, "subnet": name, **values, **percent})
    return pd.DataFrame(rows).set_index(["backbone", "subnet"])


# --- methods ----------------------------------------------------------------------------------------------------------


def stage_table(method: Method) -> pd.DataFrame:
    """The stages of a method: epochs, learning rate, which subnets, how many a step, distillation, sorting.

    `learning rate` is where the curve starts, `first rate` the rate of the stage's first step: they differ where a
    stage begins in mid-curve.
    """
    teachers = {"stage": f"{method.stages[0].name}, trained", "random": "untrained network", None: "none"}
    rows = []
    for stage in method.stages:
        schedule: str = stage.schedule
        cut = stage.sort_channels
        if stage.schedule_epochs and stage.epochs:
            last = stage.first_epoch + stage.epochs - 1
            schedule += f", epochs {stage.first_epoch} to {last} of {stage.schedule_epochs}"
        first = stage.rate(0, 0, 1) if stage.epochs else np.nan
        row = {"method": method.name, "stage": stage.name, "epochs": stage.epochs}
        row |= {"learning rate": stage.learning_rate, "schedule": schedule, "first rate": first}
        row |= {"subnets": sampler_words(stage.sampler), "drawn each": getattr(stage.sampler, "per", "epoch")}
        row |= {"subnets a step": getattr(stage.sampler, "count", 1)}
        row |= {"distils from": teachers[method.teacher] if stage.distill else "none"}
        row |= {"channels sorted": "no" if cut is None else f"to {listed(cut, 'or')}x and beyond" if cut else "all"}
        rows.append(row)
    return pd.DataFrame(rows).set_index(["method", "stage"])


def sampler_words(sampler: samplers.Sampler) -> str:
    """Which subnets a sampler draws, in a few words; its repr if it is not one of the package's."""
    match sampler:
        case samplers.Uniform():
            parts = {"kernel": sampler.kernels, "width": sampler.expands, "depth": sampler.depths}
            given = [f"{name} {listed(values, 'or')}" for name, values in parts.items() if values]
            return ", ".join(["uniform", *given])
        case samplers.Successive():
            return ", then ".join(sampler.sizes)
        case samplers.Alternating():
            return f"{' and '.join(sampler.sizes)} in turn"
    return repr(sampler)


def schedule_table(method: Method, space: SearchSpace, steps: int = 64, seed: int = 0) -> pd.DataFrame:
    """What each epoch of a method trains, one row an epoch, if an epoch had `steps` steps.

    Columns: stage (its number), epoch (over all stages, from 0), learning_rate (at the first step), count (subnets a
    step), each ("epoch" or "step": how often they are drawn), mean, low, high (mean, 5th and 95th percentile of their
    sizes in MFLOPs). Subnets that are drawn once an epoch are those that a run with this seed trains, whatever the
    steps. Raises InputError for fewer than 2 steps.
    """
    check_number(steps, "steps", 2, whole=True)
    rows = []
    for number, stage in enumerate(method.stages):
        for epoch in range(stage.epochs):
            rng, _ = samplers.randomness(seed, number, epoch)
            drawn = stage.sampler.subnets(space, rng, epoch, stage.epochs, steps)
            sizes = space.reference.macs(space.to_rows([arch for step in drawn for arch in step])) / 1e6
            row = {"stage": number, "epoch": len(rows), "learning_rate": stage.rate(epoch, 0, steps)}
            row |= {"count": len(drawn[0]), "each": "epoch" if len(drawn) == 1 else "step", "mean": sizes.mean()}
            rows.append(row | dict(zip(("low", "high"), np.percentile(sizes, (5, 95)), strict=True)))
    return pd.DataFrame(rows)


def schedule(methods: Sequence[Method], space: SearchSpace, steps: int = 64, seed: int = 0) -> Captioned:
    """Learning rate and sizes of the trained subnets over the epochs, a row a method; see `schedule_table`.

    Where a method has several stages they are named and divided.
    """
    if not methods:
        raise InputError("methods is empty: expected at least one method to draw")
    figure = Captioned((PAGE, 1.2 * len(methods) + 0.5), layout="constrained")
    figure.caption = (
        "Left: learning rate, on a log scale. Right: sizes of the subnets that are trained; above the panels: "
        "subnets a step, and whether they are drawn anew each epoch or each step. The dots are those of a run with "
        f"seed {seed}."
    )
    grid = figure.subplots(len(methods), 2, squeeze=False, sharex=True, width_ratios=(1.1, 1))
    stages = [stage for method in methods for stage in method.stages if stage.epochs]
    lowest, highest = min(stage.rate(0, 0, 1) for stage in stages), max(stage.learning_rate for stage in stages)
    sizes = [space.reference.macs(arch) / 1e6 for arch in (space.smallest, space.largest)]
    for (rates, subnets), method in zip(grid, methods, strict=True):
        several = len(method.stages) > 1
        table = schedule_table(method, space, steps, seed)
        for number, rows in table.groupby("stage"):
            _draw_stage(rates, subnets, method, number, rows)
            for axes in (rates, subnets) if several else ():
                axes.axvline(rows["epoch"].iloc[-1] + 1, color="0.6", linewidth=0.6, gid="boundary")
        label = label_of(method.name)
        rates.set_title(label, loc="left", fontweight="bold", pad=12 if several else 4)
        rates.set(yscale="log", ylim=(lowest / 10, 2 * highest), ylabel="Learning rate")
        subnets.set(ylim=(sizes[0] - 1, sizes[1] + 1), ylabel="Size (MFLOPs)")
    for axes in grid[-1]:
        axes.set(xlabel="Epoch", xlim=(0, max(method.epochs for method in methods)))
    figure.align_ylabels()
    handles = [
        Line2D([], [], linestyle="", marker=".", markersize=3, color=DARK, label="the subnet of an epoch"),
        Line2D([], [], color=DARK, linewidth=1.2, label="mean of the subnets of an epoch"),
        Patch(color=LIGHT, label="5th to 95th percentile"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_stage(rates: Axes, subnets: Axes, method: Method, number: int, rows: pd.DataFrame, points: int = 4) -> None:
    """One stage in both panels of its method; the learning rate at `points` steps of each epoch."""
    stage, start, end = method.stages[number], rows["epoch"].iloc[0], rows["epoch"].iloc[-1] + 1
    curve = [stage.rate(epoch, step, points) for epoch in range(stage.epochs) for step in range(points)]
    rates.plot(start + np.arange(len(curve)) / points, curve, color=DARK, linewidth=1.2, gid=f"rate {stage.name}")
    count, each = rows[["count", "each"]].iloc[0]
    if count == 1 and each == "epoch":
        subnets.plot(rows["epoch"] + 0.5, rows["mean"], ".", color=DARK, markersize=2)
    else:
        edges = [*rows["epoch"], end]
        subnets.stairs(rows["high"], edges, baseline=rows["low"], fill=True, color=LIGHT, linewidth=0)
        subnets.stairs(rows["mean"], edges, baseline=None, color=DARK, linewidth=1.2)
    place, several = {**ABOVE, "xy": ((start + end) / 2, 1), "fontsize": 5.8}, len(method.stages) > 1
    if several:
        rates.annotate(stage.name, **place)
    subnets.annotate(f"{count}/{each}" + ("" if several else f": {sampler_words(stage.sampler)}"), **place)


def _few(values: Iterable[int]) -> str:
    values = sorted(values)
    return ", ".join(map(str, values)) if len(values) < 4 else f"{values[0]} to {values[-1]}"
