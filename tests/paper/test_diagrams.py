"""rsstudy.figures.protocol: tables equal the declarations, figures show every layer and stage."""

import re
from dataclasses import replace
from itertools import accumulate, combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import corners, random_archs, sentence, toy_data
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text
from PIL import Image

from rsslib.errors import InputError
from rsslib.methods import override
from rsslib.population import get_buckets
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.trainer import start, train
from rsstudy.catalogue import METHODS, TABLE_1, build
from rsstudy.figures import protocol
from rsstudy.figures.populations import save_figure, set_style

TINY = TABLE_1["mnist"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def style():
    set_style()


def by_gid(figure, pattern: str, kind=object) -> dict:
    """The figure's artists of a kind whose gid matches, by gid."""
    found = figure.findobj(lambda a: isinstance(a, kind) and re.fullmatch(pattern, a.get_gid() or ""))
    assert len({artist.get_gid() for artist in found}) == len(found)
    return {artist.get_gid(): artist for artist in found}


def texts(figure) -> list[tuple[str, object]]:
    """Every visible text with its place in pixels, without ticks outside the axes' limits."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            off = not axes.axison or not axis.get_visible()
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                outside = not low <= tick.get_loc() <= high
                hidden |= {t for t in (tick.label1, tick.label2) if off or outside}
            if off:
                hidden |= {axis.label, axis.offsetText}
    return [(t.get_text(), t.get_window_extent()) for t in shown if t not in hidden]


def assert_legible(figure) -> None:
    """No text overlaps another or leaves the figure."""
    placed = texts(figure)
    width, height = figure.bbox.size
    for text, box in placed:
        assert 0 <= box.x0 and 0 <= box.y0 and box.x1 <= width and box.y1 <= height, f"cut off: {text}"
    for (a, first), (b, second) in combinations(placed, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        upright = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(across, upright) < 1, f"{a!r} overlaps {b!r}"


# --- the architecture


@pytest.mark.parametrize(
    ("backbone", "channels", "strides", "optional"),
    [
        ("mobilenet_v3", [16, 24, 40, 80, 112, 160], [2, 2, 2, 1, 2], [False, False, True, True] * 5),
        ("proxylessnas", [16, 24, 40, 80, 96, 192, 320], [2, 2, 2, 1, 2, 1], [False, False, True, True] * 5 + [False]),
    ],
)
def test_architecture_has_a_box_for_every_layer(backbone, channels, strides, optional):
    figure = protocol.architecture(SearchSpace(backbone))
    boxes, words = by_gid(figure, r"layer \d+", FancyBboxPatch), by_gid(figure, r"layer \d+", Text)
    expected = []
    for (before, after), stride, depth in zip(pairwise(channels), strides, [4, 4, 4, 4, 4, 1], strict=False):
        expected += [f"{before} → {after}, stride {stride}", *[f"{after} → {after}, stride 1"] * (depth - 1)]
    names = [f"layer {i}" for i in range(len(expected))]
    assert [words[name].get_text().split("\n")[0] for name in names] == expected
    assert [boxes[name].get_linestyle() not in ("-", "solid") for name in names] == optional
    assert len(boxes) == len(words) == len(expected)
    shortcuts = by_gid(figure, r"layer \d+ shortcut")
    assert shortcuts.keys() == {f"layer {i} shortcut" for i in range(20) if i % 4}  # all but a stage's first


def test_architecture_shows_sizes_squeeze_excite_and_fixed_layers(space):
    figure = protocol.architecture(space)
    words = "\n".join(text for text, _ in texts(figure))
    for name, arch in (("smallest", space.smallest), ("largest", space.largest)):
        for _, layer, _, expand in space.active(arch):
            assert str(layer.hidden(expand)) in words, name
    assert words.count("depth 2, 3 or 4") == 5
    assert words.count(", SE") == sum(stage.squeeze_excite for stage in space.backbone.stages)
    assert all(f"{size}×{size}" in words for size in (32, 16, 8, 4, 2, 1))
    fixed = by_gid(figure, "stem|first|expand|mix|linear", FancyBboxPatch)
    assert fixed.keys() - {"mix"} == {"stem", "first", "expand", "linear"}
    assert ("mix" in fixed) == (space.backbone.name == "mobilenet_v3")
    colours = {box.get_facecolor() for box in by_gid(figure, r"layer \d+", FancyBboxPatch).values()}
    assert len(colours) == len({layer.squeeze_excite for layer in space.layers})
    assert "kernel 3, 5 or 7, width 3, 4 or 6" in words


def test_architecture_is_legible_and_its_texts_stay_in_their_boxes(space):
    other = SearchSpace(
        space.backbone,
        kernels=(5,),
        expands=(1, 2, 3, 4, 6),
        depths=(1, 3),
        in_channels=1,
        classes=10,
    )
    for figure in (protocol.architecture(space), protocol.architecture(other)):
        assert_legible(figure)
        boxes, words = (by_gid(figure, "(?!.*shortcut).+", kind) for kind in (FancyBboxPatch, Text))
        assert boxes.keys() == words.keys()
        for name, box in boxes.items():
            outer, inner = box.get_window_extent(), words[name].get_window_extent()
            assert outer.x0 < inner.x0, name
            assert inner.x1 < outer.x1, name
            assert outer.y0 < inner.y0, name
            assert inner.y1 < outer.y1, name


# --- one subnet


def test_draw_subnet_shows_the_active_layers_and_crosses_out_the_others(space):
    for arch in [*corners(space), *random_archs(space, 2)]:
        figure = protocol.draw_subnet(space, arch)
        boxes = by_gid(figure, r"layer \d+", Rectangle)
        active = {f"layer {i}": (kernel, expand) for i, _, kernel, expand in space.active(arch)}
        assert boxes.keys() == active.keys()
        assert all(boxes[name].get_height() == expand for name, (_, expand) in active.items())
        widths = {(kernel, round(boxes[name].get_width(), 6)) for name, (kernel, _) in active.items()}
        colours = {(kernel, boxes[name].get_facecolor()) for name, (kernel, _) in active.items()}
        assert len(widths) == len(colours) == len({kernel for kernel, _ in active.values()})
        (crosses,) = figure.axes[0].lines
        edges = [(box.get_x(), box.get_x() + box.get_width()) for box in boxes.values()]
        covered = [any(left < x < right for left, right in edges) for x in crosses.get_xdata()]
        assert sum(covered) == len(active)
        assert len(covered) == space.n_layers
        assert crosses.get_zorder() < min(box.get_zorder() for box in boxes.values())
        assert f"{space.macs(arch) / 1e6:.2f} MFLOPs" in figure.axes[0].get_title()
    assert_legible(figure)
    assert_legible(protocol.draw_subnet(space, space.largest))


# --- sizes


def test_bucket_shares_equal_a_direct_count(space):
    samples = 3000
    sizes = protocol.macs_samples(space, samples, seed=1)
    shares = protocol.bucket_shares(space, sizes)
    assert tuple(shares.index) == space.backbone.buckets
    for i, (name, locked) in enumerate({"any width": None, "smallest width": (3,), "largest width": (6,)}.items()):
        rows = space.sample(
            samples,
            np.random.default_rng([1, i]),
            expands=locked,
        )
        macs = [space.macs(space.to_arch(row)) for row in rows[:200]]
        assert sizes[name][:200].tolist() == macs and len(sizes[name]) == samples
        for bucket in shares.index:
            inside = sum(abs(size - bucket * 1e6) <= 0.5e6 for size in sizes[name].tolist())
            assert shares.loc[bucket, name] == pytest.approx(100 * inside / samples)
    inner = ["any width"] * (len(shares) - 2)
    assert list(shares["drawn with"]) == ["smallest width", *inner, "largest width"]


def test_bucket_bounds_are_inclusive(mobilenet):
    sizes = {"any width": np.array([3_499_999, 3_500_000, 4_500_000, 4_500_001])}
    assert protocol.bucket_shares(mobilenet, sizes).loc[4, "any width"] == 50


def test_sizes_come_in_chunks_as_they_would_at_once(mobilenet):
    rows = 50_001
    sizes = protocol.macs_samples(mobilenet, rows)["any width"]
    assert len(sizes) == rows and sizes.dtype == np.int64
    assert sizes.mean() / 1e6 == pytest.approx(7.90, abs=0.02)
    assert sizes.std() / 1e6 == pytest.approx(1.03, abs=0.02)


def test_macs_distribution_marks_every_share(space):
    sizes = protocol.macs_samples(space, 20_000)
    figure, shares = protocol.macs_distribution(space, sizes), protocol.bucket_shares(space, sizes)
    for name in sizes:
        (every,) = by_gid(figure, f"all {name}").values()
        (filled,) = by_gid(figure, f"filled {name}").values()
        assert list(every.get_ydata()) == list(shares[name]) and every.get_markerfacecolor() == "none"
        assert list(filled.get_xdata()) == list(shares.index[shares["drawn with"] == name])
    numbers = [text.get_text().strip() for text in figure.axes[1].texts]
    assert sorted(numbers) == sorted(f"{share:.2g}" for name in sizes for share in shares[name] if share)
    assert_legible(figure)


# --- methods


@pytest.mark.parametrize("name", [*METHODS, "sandwich-rule"])
def test_stage_table_equals_the_declaration(name):
    method = build(name, *TABLE_1["cifar100"])
    table = protocol.stage_table(method)
    assert list(table.index) == [(name, stage.name) for stage in method.stages]
    for stage, row in zip(method.stages, table.to_dict("records"), strict=True):
        assert (row["epochs"], row["learning rate"]) == (stage.epochs, stage.learning_rate)
        assert row["first rate"] == pytest.approx(stage.rate(0, 0, 625), rel=1e-9)
        assert row["schedule"].startswith(stage.schedule)
        assert row["subnets per step"] == getattr(stage.sampler, "count", 1)
        assert (row["distils from"] != "none") == stage.distill
        assert (row["channels sorted"] != "no") == (stage.sort_channels is not None)
    assert table["epochs"].sum() == method.epochs


def test_stages_of_progressive_shrinking_in_words():
    table = protocol.stage_table(build("ofa", *TABLE_1["cifar100"])).loc["ofa"]
    assert table["subnets"].to_dict() == {
        "supernet": "largest",
        "kernel": "uniform, width 6, depth 4",
        "depth 1": "uniform, width 6, depth 3 or 4",
        "depth 2": "uniform, width 6",
        "width 1": "uniform, width 4 or 6",
        "width 2": "uniform",
    }
    assert list(table["subnets per step"]) == [1, 1, 2, 2, 4, 4]
    assert list(table["channels sorted"]) == ["no"] * 4 + ["all", "to 4x and beyond"]
    assert list(table["distils from"]) == ["none"] + ["supernet, trained"] * 5


def test_a_custom_sampler_is_shown_by_its_repr():
    class Mine:
        def __repr__(self):
            return "Mine()"

    assert protocol.sampler_words(Mine()) == "Mine()"
    assert protocol.sampler_words(Uniform(kernels=(3,), depths=(2, 3, 4))) == "uniform, kernel 3, depth 2, 3 or 4"


@pytest.mark.parametrize("name", ["rss", "ofa-released"])
def test_schedule_table_holds_the_subnets_that_training_draws(name, mobilenet, monkeypatch):
    monkeypatch.setattr("rsslib.steps.EagerSteps.train_step", lambda *args: torch.zeros(()))
    method = override(build(name, 2, 9), batch_size=4)
    data, seed = toy_data(train=12, channels=3), 3
    history = train(start(SearchSpace(classes=4), method, seed), method, data, seed, progress=False).history
    table = protocol.schedule_table(method, mobilenet, steps=3, seed=seed)
    assert [row["mflops"] for row in history] == pytest.approx(list(table["mean"]))
    assert [row["learning_rate"] for row in history] == list(table["learning_rate"])
    assert [row["stage"] for row in history] == [method.stages[i].name for i in table["stage"]]


@pytest.mark.parametrize("name", ["ofa", "ofa-released", "rss-short", "rss-max-then-min"])
def test_schedule_curves_equal_the_rates_of_the_stages(name, mobilenet):
    method = build(name, *TINY)
    rates = by_gid(
        protocol.schedule([method], mobilenet, steps=2),
        "rate .*",
    )
    begun = [0, *accumulate(stage.epochs for stage in method.stages)]
    assert {f"rate {stage.name}" for stage in method.stages if stage.epochs} == rates.keys()
    for stage, first in zip(method.stages, begun, strict=False):
        if stage.epochs:
            x, y = rates[f"rate {stage.name}"].get_data()
            assert list(y) == pytest.approx([stage.rate(epoch, 0, 100) for epoch in range(stage.epochs)])
            assert list(x) == [first + epoch for epoch in range(stage.epochs)]


def test_schedule_is_legible(mobilenet):
    methods = [build(name, *TINY) for name in ("ofa", "ofa-released", "rss-short", "rss-alternating")]
    figure = protocol.schedule(methods, mobilenet, steps=2)
    titles = [axes.get_title("left") for axes in figure.axes[::2]]
    assert titles[:3] == ["OFA", "OFA (released code)", "RSS-Short"]
    assert len(figure.axes) == 2 * len(methods)
    words = [text for text, _ in texts(figure)]
    assert [words.count(f"{n}/step") for n in (1, 2, 4)] == [2, 4, 3]  # the released code loses a stage of one epoch
    assert "1/epoch: uniform" in words and "1/epoch: smallest and largest in turn" in words
    assert_legible(figure)


# --- input


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (
            lambda space: protocol.draw_subnet(space, replace(space.largest, expand=(6,))),
            "expand is (6,), expected 20 numbers",
        ),
        (lambda space: protocol.macs_samples(space, 0), "samples"),
        (lambda space: protocol.schedule([], space), "methods"),
        (lambda space: protocol.schedule([build("rss", 1, 1)], space, steps=1), "steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, said, mobilenet):
    with pytest.raises(InputError) as error:
        draw(mobilenet)
    assert said in sentence(error)


def test_the_overview_in_the_readme_is_the_one_that_is_drawn(mobilenet, tmp_path):
    set_style()
    figure = protocol.overview(mobilenet)
    assert len(by_gid(figure, r"layer \d+, \d", Rectangle)) == 20 * len(mobilenet.expands)
    assert_legible(figure)
    sizes = by_gid(figure, "population")["population"].get_xdata()
    assert all(min(abs(size - bucket) for bucket in get_buckets(mobilenet)) <= 0.5 for size in sizes)
    save_figure(figure, tmp_path, "overview")
    with Image.open(tmp_path / "overview.png") as drawn, Image.open(ROOT / "figures" / "overview.png") as committed:
        assert drawn.size == committed.size
        gaps = np.abs(np.asarray(drawn.convert("L"), float) - np.asarray(committed.convert("L"), float))
        assert gaps.mean() < 1  # of 255
