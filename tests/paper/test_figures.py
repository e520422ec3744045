"""rsstudy.figures.populations and interference: what is drawn, on made-up tables whose answers are known."""

import html
import math
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_up import BUCKETS, MEDIANS, SECONDS, made_up
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.text import Text
from nbconvert.filters import markdown2html
from PIL import Image

from rsslib.errors import InputError
from rsstudy import summary
from rsstudy.catalogue import BRIDGE, INTERVALS, METHODS, OVERRIDES, RIVALS, SAMPLERS, SUPERSEDED
from rsstudy.claims.evidence import Part
from rsstudy.figures import interference, populations
from rsstudy.figures.style import METHOD_STYLES, escape
from rsstudy.plan import plan

STUDY = summary.published()


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        populations.set_style()
        yield


def panels(figure):
    return [axes for axes in figure.axes if axes.axison]


def with_gid(axes, kind: str, artist=Line2D) -> dict[tuple[str, ...], Line2D]:
    """Artists by the words of their gid after `kind`."""
    found = axes.findobj(lambda a: isinstance(a, artist) and (a.get_gid() or "").startswith(f"{kind} "))
    return {tuple(a.get_gid().split()[1:]): a for a in found}


def heights(axes, kind: str) -> dict[tuple[str, ...], float]:
    return {name: line.get_ydata()[0] for name, line in with_gid(axes, kind).items()}


def points(axes) -> np.ndarray:
    return np.concatenate([dots.get_offsets() for dots in axes.collections if isinstance(dots, PathCollection)])


def legend_of(figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def words_in(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def many(population, n=5):
    """Each subnet n times, so that there are enough for quartiles."""
    return pd.concat(
        [population.assign(subnet=population["subnet"] + 3 * i) for i in range(n)],
        ignore_index=True,
    )


# --- Figure 3 ---------------------------------------------------------------------------------------------------------


def test_lines_show_the_medians_of_the_table():
    figure = populations.population_boxes(made_up()[0])
    (axes,) = panels(figure)
    expected = {(m, f"{b:g}"): v for m in MEDIANS for b, v in zip(BUCKETS, MEDIANS[m], strict=True)}
    assert heights(axes, "median") == expected
    assert axes.get_title() == "CIFAR-100"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Subnet size (MFLOPs)", "Test accuracy (%)")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "12"]
    assert legend_of(figure) == ["OFA", "RSS-Short", "RSS"]


def test_methods_without_a_style_look_the_same_in_every_panel():
    population, times = made_up(["mnist", "cifar10"], methods=["mine", "yours"])
    partly = (population["dataset"] == "mnist") | (population["method"] == "yours")
    first, second = panels(populations.population_boxes(many(population[partly])))
    looks = [with_gid(axes, "box", PathPatch)["yours", "4"].get_facecolor() for axes in (first, second)]
    assert looks[0] == looks[1]


def test_published_values_are_drawn_if_asked_where_there_are_any():
    population, _ = made_up(["mnist", "cifar100"], methods=["ofa", "rss"])
    figure = populations.population_boxes(population, published=STUDY)
    mnist, cifar = panels(figure)
    rows = STUDY.query("figure == '1b' and quantity == 'median' and method in ('ofa', 'rss')").itertuples()
    expected = {(row.method, f"{row.mflops:g}"): row.value for row in rows if row.mflops in BUCKETS}
    assert heights(cifar, "published") == expected and heights(mnist, "published") == {}
    assert legend_of(figure) == ["OFA", "RSS", "published"]
    assert legend_of(populations.population_boxes(population)) == ["OFA", "RSS"]
    (other,) = panels(populations.population_boxes(made_up(backbone="proxylessnas")[0], published=STUDY))
    assert other.get_title() == "CIFAR-100 (ProxylessNAS)"
    assert heights(other, "published") == {}


def test_the_released_code_is_compared_with_the_published_ofa():
    population, _ = made_up(methods=["ofa", "ofa-released"])
    (axes,) = panels(populations.population_boxes(population, published=STUDY))
    drawn = heights(axes, "published")
    assert drawn["ofa", "4"] == drawn["ofa-released", "4"] == 40.8


def test_boxes_hold_the_quartiles_in_the_colour_and_hatch_of_the_method():
    population = many(made_up()[0])
    (axes,) = panels(populations.population_boxes(population))
    boxes = with_gid(axes, "box", PathPatch)
    groups = population.groupby(["method", "bucket"])["accuracy"]
    assert len(boxes) == 9
    for (method, bucket), box in boxes.items():
        style, accuracy = METHOD_STYLES[method], groups.get_group((method, float(bucket)))
        assert (box.get_hatch() or "", to_hex(box.get_facecolor())) == (style.hatch, style.colour)
        edges = box.get_path().vertices[:, 1]
        assert [edges.min(), edges.max()] == pytest.approx(list(accuracy.quantile([0.25, 0.75])))


@pytest.mark.parametrize(
    ("n", "drawn"),
    [
        (4, 0),
        (5, 9),
    ],
)
def test_fewer_than_five_subnets_of_a_seed_have_no_box(n, drawn):
    population = many(made_up(seeds=(0, 1, 2))[0])
    population = population[population["subnet"] < n]
    (axes,) = panels(populations.population_boxes(population))
    assert len(with_gid(axes, "box", PathPatch)) == drawn
    medians = population.groupby(["method", "bucket"])["accuracy"].median()
    assert heights(axes, "median") == {(method, f"{bucket:g}"): value for (method, bucket), value in medians.items()}


def test_figures_of_one_population_have_one_range_of_accuracy(tmp_path):
    medians = {
        "rss-smallest": (10, 12, 14),
        "rss-largest": (80, 85, 95),
        "rss": (50, 51, 52),
    }
    table, _ = made_up(methods=[*medians, "ofa"], medians=medians)
    runs = plan("quick", datasets=["cifar100"], methods=list(medians))
    pairs = {"figure_6": ["rss-smallest", "rss-largest"], "figure_7": ["rss", "ofa"]}
    drawn = [populations.population_figure(table, runs, names, tmp_path, name) for name, names in pairs.items()]
    (a,), (b,) = map(panels, drawn)
    assert a.get_ylim() == b.get_ylim() and a.get_ylim()[0] < 9 and a.get_ylim()[1] > 98


def test_a_split_never_pools_datasets():
    table, _ = made_up(["mnist", "cifar100"], methods=["ofa", "rss"])
    split = {"(a) RSS": ["rss"], "(b) OFA": ["ofa"]}
    titles = [axes.get_title() for axes in panels(populations.population_boxes(table, split=split))]
    assert titles == ["(a) RSS, MNIST", "(a) RSS, CIFAR-100", "(b) OFA, MNIST", "(b) OFA, CIFAR-100"]
    one = populations.population_boxes(table[table["dataset"] == "mnist"], split=split)
    assert [axes.get_title() for axes in panels(one)] == ["(a) RSS", "(b) OFA"]


def test_a_figure_without_two_finished_methods_is_a_sentence(tmp_path):
    table, _ = made_up(methods=["rss", "ofa"])
    for names in (["rss-smallest", "rss-largest"], ["rss", "rss-largest"]):
        words = populations.population_figure(table, [], names, tmp_path, "figure_6")
        assert "figure_6 is not drawn" in words and "rss-largest" in words and not list(tmp_path.iterdir())
    figure = populations.population_figure(table, plan("smoke"), ["rss", "ofa", "rss-largest"], tmp_path, "figure_6")
    assert figure.caption.endswith("Not drawn, because not finished: RSS, largest only.")
    assert (tmp_path / "figure_6.png").exists()
    halves = {"(a)": ["rss", "ofa"], "(b)": ["rss-short", "rss-largest"]}
    figure = populations.population_figure(
        table,
        plan("smoke"),
        ["rss", "ofa"],
        tmp_path,
        "figure_6",
        halves,
    )
    assert [axes.get_title() for axes in figure.axes] == ["(a)"]


@pytest.mark.parametrize(
    ("profile", "drawn"),
    [
        ("paper", 3),
        ("quick", 0),
    ],
)
def test_published_values_are_drawn_at_the_papers_scale_only(profile, drawn, tmp_path):
    names = ["rss", "rss-per-batch"]
    runs = plan(profile, datasets=["cifar100"], methods=names)
    figure = populations.population_figure(
        made_up(methods=names)[0],
        runs,
        names,
        tmp_path,
        "figure_5",
    )
    assert len(heights(*panels(figure), "published")) == drawn


# --- looks of methods -------------------------------------------------------------------------------------------------


def luma(style) -> float:
    """Lightness in grey print, 0 to 255."""
    return np.dot(
        [int(style.colour[i : i + 2], 16) for i in (1, 3, 5)],
        [0.299, 0.587, 0.114],
    )


def test_every_method_has_a_label_of_its_own():
    assert set(METHOD_STYLES) == {*METHODS, *SAMPLERS, *SUPERSEDED, *RIVALS, *INTERVALS, *BRIDGE}
    assert len({style.label for style in METHOD_STYLES.values()}) == len(METHOD_STYLES)


TOGETHER = ["ofa rss ofa-released rss-short"]  # in one figure
TOGETHER += [" ".join([base, *(f"{base}-{o}" for o in OVERRIDES)]) for base in ("ofa", "ofa-released", "rss-short")]
TOGETHER += ["rss rss-per-batch rss-2-per-batch", "rss-smallest rss-middle rss-largest"]
TOGETHER += ["rss rss-max-then-min rss-min-then-max rss-alternating"]


@pytest.mark.parametrize("names", TOGETHER)
def test_methods_of_one_figure_differ_in_hatch_and_the_main_ones_in_lightness(names):
    styles = [METHOD_STYLES[name] for name in names.split()]
    assert len({style.hatch for style in styles}) == len(styles)
    if names == TOGETHER[0]:
        ofa, rss, _, short = map(luma, styles)
        assert rss - ofa > 30 and short - rss > 30
    elif names in TOGETHER[1:4]:
        assert all(abs(luma(style) - luma(styles[0])) > 40 for style in styles[1:])


# --- Figures 1 and 4 --------------------------------------------------------------------------------------------------


def bars(axes):
    return {bar.get_gid().split()[1]: bar.get_height() for bar in axes.patches}


def ratios(axes):
    return [text.get_text().split("\n") for text in axes.texts]


@pytest.mark.parametrize(
    ("factor", "unit", "size"),
    [
        (0.1, "s", 1),
        (1, "min", 60),
        (100, "h", 3600),
    ],
)
def test_bars_show_times_in_a_fitting_unit_and_how_much_faster_they_are(factor, unit, size):
    _, times = made_up(["mnist", "digits"])
    times["training_seconds"] *= factor
    figure = populations.training_time_bars(times)
    assert [axes.get_title() for axes in panels(figure)] == ["MNIST", "Digits"]
    for axes in panels(figure):
        assert axes.get_ylabel() == f"Training time ({unit})"
        assert bars(axes) == pytest.approx({m: s * factor / size for m, s in SECONDS.items()})
        assert ratios(axes) == [["6.0×", "faster"], ["2.0×", "faster"]]  # RSS-Short, RSS
    assert "Trained on Abacus (executor: eager)." in figure.caption and "Ratios: to OFA" in figure.caption


def test_a_slower_method_is_called_slower():
    _, times = made_up(methods=["ofa", "rss"], seeds=(0, 1))
    times.loc[times["method"] == "rss", "training_seconds"] = [1200, 1220 * 2]
    (axes,) = panels(populations.training_time_bars(times))
    row = summary.speed_ups(times).set_index("method").loc["rss"]
    interval = f"{1 / row['high']:.3g}–{1 / row['low']:.3g}"
    assert ratios(axes) == [[f"{math.sqrt(2 * 4):.1f}×", "slower", interval]]


def test_bars_are_means_of_seeds_with_the_interval_of_the_ratio():
    _, times = made_up(seeds=(0, 1, 2))
    figure = populations.training_time_bars(times)
    (axes,) = panels(figure)
    assert bars(axes)["ofa"] == pytest.approx(610 / 60)
    dots = [list(line.get_ydata()) for line in axes.lines]
    assert len(dots) == 3
    assert dots[0] == pytest.approx([10, 610 / 60, 620 / 60])
    row = summary.speed_ups(times).set_index("method").loc["rss"]
    assert ratios(axes)[1] == ["2.0×", "faster", f"{row['low']:.3g}–{row['high']:.3g}"]
    assert legend_of(figure) == ["OFA", "RSS-Short", "RSS", "one seed"]


@pytest.mark.parametrize("column", ["hardware", "executor"])
def test_runs_of_different_machines_have_no_ratio(column):
    _, times = made_up(["mnist", "cifar10"])
    times.loc[(times["dataset"] == "cifar10") & (times["method"] == "rss"), column] = "other"
    figure = populations.training_time_bars(times)
    mnist, cifar = panels(figure)
    assert len(ratios(mnist)) == 2 and ratios(cifar) == [["6.0×", "faster"]]
    assert "none between different hardware or executors" in figure.caption and "other" in figure.caption


def test_without_ofa_its_released_code_is_the_baseline():
    _, times = made_up(methods=["ofa-released", "rss"])
    assert ratios(*panels(populations.training_time_bars(times))) == [["1.7×", "faster"]]
    assert summary.speed_ups(times).set_index("method")["baseline"]["rss"] == "ofa-released"
    assert ratios(*panels(populations.training_time_bars(times[times["method"] == "rss"]))) == []


def test_figure_1_shows_the_dataset_asked_for():
    population, times = made_up(["mnist", "cifar100"])
    times.loc[times["dataset"] == "mnist", "training_seconds"] *= 2
    figure = populations.figure_1(population, times, "mnist")
    left, right = panels(figure)
    assert left.get_title() == "(a) Training time, MNIST" and right.get_title() == "(b) Subnet population, MNIST"
    assert len(ratios(left)) == 2 and bars(left)["ofa"] == pytest.approx(20)
    assert heights(right, "median")["rss", "12"] == 52
    with pytest.raises(InputError, match="no rows"):
        populations.figure_1(population, times, "cifar10")


def test_published_hours_are_in_the_caption_if_asked_where_there_are_any():
    _, times = made_up(["mnist", "cifar100"], methods=["rss", "rss-per-batch"])
    (hours,) = STUDY.query("quantity == 'training_hours_rtx3080' and method == 'rss'")["value"]
    caption = populations.training_time_bars(times, published=STUDY).caption
    assert f"Published, on an RTX 3080: RSS on CIFAR-100 {hours:g} h." in caption
    assert "Published" not in populations.training_time_bars(times).caption
    assert "Published" not in populations.training_time_bars(times[times["dataset"] == "mnist"], "", STUDY).caption


# --- applications -----------------------------------------------------------------------------------------------------


def test_fronts_are_sorted_lines_over_the_population_with_the_budget():
    front = pd.DataFrame({"mflops": [7.5, 5.0, 6.0], "test_accuracy": [83.0, 81.0, 80.0]})
    population = pd.DataFrame({"mflops": [4.0, 14.0, 8.0], "accuracy": [79.0, 84.0, 81.0]})
    figure = populations.search_figure(
        {"search": front, "random": front.iloc[:1]},
        population,
        "words",
        8,
    )
    (axes,) = figure.axes
    assert points(axes).tolist() == population.values.tolist()
    search, _, budget = axes.lines
    assert np.transpose(search.get_data()).tolist() == front.sort_values("mflops").values.tolist()
    assert set(budget.get_xdata()) == {8}
    assert legend_of(figure) == ["population", "search", "random", "budget"]


def test_class_names_are_not_read_as_mathematics(tmp_path):
    images = np.zeros((1, 3, 32, 32), np.uint8)
    figure = populations.predictions_figure(images, ["$\\frac{$"], ["$5 and $6"])
    populations.save_figure(figure, tmp_path, "predictions")
    assert figure.axes[0].get_title() == "$\\frac{$ (is $5 and $6)"


def test_names_of_datasets_and_methods_are_not_read_as_mathematics(tmp_path):
    population, _ = made_up(["$x_1$"], methods=["ofa", "$\\frac{$"])
    figure = populations.population_boxes(population, "$\\frac{$\nwords")
    populations.save_figure(figure, tmp_path, "figure")
    assert not any(text.get_parse_math() for text in figure.findobj(Text))


# --- captions, files, mistakes ----------------------------------------------------------------------------------------


def test_caption_begins_with_datasets_profile_and_seeds():
    runs = plan(
        "smoke",
        methods=["rss-short", "rss"],
        seeds=[0, 1],
    )
    scale = runs[0].profile.describe("digits")
    assert populations.caption(runs) == f"Digits; profile smoke; seeds 0 and 1\nDigits: {scale}."
    line = populations.caption(runs[:3]).split("\n")[0]
    assert line == "Digits; profile smoke; seeds 0 and 1, not all for every method"
    paper = populations.caption(plan("paper", seeds=[3]))
    assert paper.startswith(
        "MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100; profile paper; seed 3\nMNIST: 10 + 27 epochs"
    )


def test_caption_says_which_stages_have_no_epoch():
    runs = plan(
        "paper",
        datasets=["mnist", "fashion_mnist"],
        methods=["ofa", "ofa-released", "rss"],
    )
    words = "At this scale no epoch is left for width 1 of OFA (released code) on MNIST, so schedules differ there too."
    assert populations.caption(runs).endswith(words)
    assert "no epoch" not in populations.caption(plan("paper", datasets=["mnist"], methods=["ofa", "rss"]))


def drawn_with(about):
    """A figure of each kind, described by `about`."""
    population, times = made_up(["mnist", "cifar100"])
    rows = pd.DataFrame({"method": ["rss"] * 2, "bucket": [4, 8], "mean": [50, 60], "best": [55, 65]})
    parts = [Part("RSS minus OFA", 1.0, 0.5, 2, 3)]
    budgets = pd.DataFrame(
        {"method": ["RSS", "RSS"], "updates": [1, 1], "subnet passes": [39, 39], "time": [1.0, float("nan")],
         "accuracy": [79, 80], "high": [81, 82]}
    )  # fmt: skip
    front = pd.DataFrame({"mflops": [7.5], "test_accuracy": [83.0]})
    effects = pd.DataFrame({"what": ["kernel", "expand", "depth"], "place": 0, "value": 3, "effect": 0.5})
    return [
        populations.population_boxes(population, about),
        populations.training_time_bars(times, about),
        populations.figure_1(population, times, "mnist", about),
        populations.search_figure({"search": front}, population, about),
        populations.effects_figure(effects, about),
        interference.figure_contrasts({"controls": parts}, about),
        interference.figure_samplers(rows, parts, about),
        interference.figure_budgets(budgets, about),
    ]


def test_the_first_line_of_a_caption_stands_in_the_figure():
    for figure in drawn_with("MNIST; profile quick; seed 0\nThe scale."):
        assert "MNIST; profile quick; seed 0" in words_in(figure)
        assert "The scale." not in words_in(figure)
        assert figure.caption.startswith("MNIST; profile quick; seed 0\nThe scale.")


def test_show_displays_the_figure_with_its_caption_and_alternative(monkeypatch):
    shown = []
    monkeypatch.setattr(
        populations,
        "display",
        lambda what, metadata=None: shown.append((what, metadata)),
    )
    figure = drawn_with("Made up.")[2]
    populations.show(figure)
    populations.show("figure_6 is not drawn.")
    populations.show(pd.DataFrame({"<i>": ["<script>alert(1)</script>"], "value": [1 / 3]}))
    (first, metadata), (second, _), (third, _), (fourth, _) = shown
    assert first is figure and type(second).__name__ == "Markdown" and "Made up." in second.data
    alternative = metadata["image/png"]["alt"]
    for words in ("(a) Training time, MNIST", "Subnet size (MFLOPs)", "RSS-Short"):
        assert words in alternative
    assert markdown2html(third.data).strip() == "<p>figure_6 is not drawn.</p>"
    table = fourth.to_html()
    assert "&lt;script&gt;" in table and "&lt;i&gt;" in table and "0.33" in table
    assert "<script>" not in table and "<i>" not in table


def test_escaped_text_is_shown_as_it_is():
    text = """<script>alert(1)</script> ![x](http://y) **a** _b_ `c` ~~d~~ | & &amp; "e" 'f' \\ [g]"""
    paragraph = markdown2html(escape(text)).strip()
    assert paragraph.count("<") == paragraph.count(">") == 2  # those of the paragraph
    assert html.unescape(paragraph) == f"<p>{text}</p>"
    assert html.unescape(escape(text)) == text and not set("<>&") & set(re.sub("&#[0-9]+;", "", escape(text)))


def test_save_writes_both_files_with_the_same_bytes_every_time(tmp_path):
    contents = []
    for folder in (tmp_path / "a" / "b", tmp_path / "c"):
        figure = populations.population_boxes(made_up()[0], "×: a caption.")
        populations.save_figure(figure, folder, "figure_3")
        paths = sorted(folder.iterdir())
        assert [path.name for path in paths] == ["figure_3.pdf", "figure_3.png"]  # no temporary files are left
        contents.append([path.read_bytes() for path in paths])
        with Image.open(paths[1]) as image:
            assert image.size == tuple(int(200 * inches) for inches in figure.get_size_inches())
            assert image.text["Description"] == figure.caption
    assert contents[0] == contents[1]
    pdf = contents[0][0]
    assert pdf.startswith(b"%PDF") and b"CreationDate" not in pdf and b"/Subject" in pdf
    assert "×: a caption. ".encode("utf-16-be") in pdf


def test_a_failed_save_leaves_no_file(tmp_path):
    figure = populations.population_boxes(made_up()[0])
    figure.axes[0].add_line(Line2D([0], [0], label="x")).draw = None  # cannot be drawn
    with pytest.raises(TypeError):
        populations.save_figure(figure, tmp_path, "figure_3")
    assert list(tmp_path.iterdir()) == []


DRAW = {
    "population_boxes": lambda population, times: populations.population_boxes(population),
    "training_time_bars": lambda population, times: populations.training_time_bars(times),
    "figure_1": lambda population, times: populations.figure_1(population, times, "cifar100"),
    "medians": lambda population, times: summary.medians(population),
    "differences": lambda population, times: summary.differences(population),
}


@pytest.mark.parametrize("name", DRAW)
def test_tables_without_rows_or_columns_are_refused(name):
    population, times = made_up()
    with pytest.raises(InputError, match="the table (population|times) has no rows"):
        DRAW[name](population[:0], times[:0])
    with pytest.raises(InputError, match="has no column method.* seed: expected dataset, backbone"):
        DRAW[name](
            population.drop(columns=["method", "seed"]),
            times.drop(columns=["method", "seed"]),
        )


def test_a_run_without_its_time_is_refused():
    _, times = made_up()
    times.loc[1, "training_seconds"] = np.nan
    with pytest.raises(InputError, match="no training_seconds for cifar100, rss, seed 0: finish that run first"):
        populations.training_time_bars(times)


# --- interference -----------------------------------------------------------------------------------------------------


def intervals(axes) -> list[tuple[float, float]]:
    """Ends of the horizontal intervals, from the top; NaN where there is none."""
    bars = [c.lines[2][0] for c in axes.containers if isinstance(c, ErrorbarContainer)]
    segments = [segment for bar in bars for segment in bar.get_segments()]
    return [tuple(segment[:, 0]) if len(segment) else (math.nan, math.nan) for segment in segments]


def hollow(axes) -> list[float]:
    """Places of hollow points on the x axis."""
    lines = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    return [x for line in lines for x in line.get_xdata()]


def test_an_interval_needs_two_seeds_and_one_seed_is_a_hollow_point():
    parts = [
        Part("of three", 1.0, 0.5, 2, 3),
        Part("of one", 2.0, seeds=1),
        Part("of none", missing=("runs",)),
    ]
    (axes,) = interference.figure_contrasts({"controls": parts[:1], "others": parts[1:]}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["of three", "of one"]
    low, high = intervals(axes)[0]
    assert (low, high) == (pytest.approx(parts[0].low()), pytest.approx(parts[0].high()))
    assert np.isnan(intervals(axes)[1]).all() and hollow(axes) == [2.0]
    assert "above 0 the first is better" in axes.get_xlabel()
