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
from scipy import stats

from rsslib.errors import InputError
from rsstudy import summary
from rsstudy.catalogue import INTERVALS, METHODS, OVERRIDES, SAMPLERS
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


def test_methods_stand_side_by_side_in_the_papers_order():
    population, _ = made_up(methods=["rss", "another", "rss-short", "ofa-released", "ofa"])
    figure = populations.population_boxes(population)
    (axes,) = panels(figure)
    placed = sorted((line.get_xdata().mean(), name) for name, line in with_gid(axes, "median").items())
    order = ["ofa", "ofa-released", "rss-short", "rss", "another"]
    assert [method for _, (method, _) in placed] == order * 3
    assert [round(x) for x, _ in placed] == [0] * 5 + [1] * 5 + [2] * 5
    assert legend_of(figure) == ["OFA", "OFA (released code)", "RSS-Short", "RSS", "another"]


def test_methods_without_a_style_look_the_same_in_every_panel():
    population, times = made_up(["mnist", "cifar10"], methods=["mine", "yours"])
    partly = (population["dataset"] == "mnist") | (population["method"] == "yours")
    first, second = panels(populations.population_boxes(many(population[partly])))
    looks = [with_gid(axes, "box", PathPatch)["yours", "4"].get_facecolor() for axes in (first, second)]
    assert looks[0] == looks[1]


def test_every_subnet_is_a_point_at_its_box():
    population, _ = made_up(seeds=(0, 1))
    (axes,) = panels(populations.population_boxes(population))
    assert sorted(points(axes)[:, 1]) == sorted(population["accuracy"])


def test_seeds_are_pooled_and_the_median_of_each_is_marked():
    population, _ = made_up(
        methods=["rss"],
        seeds=(0, 1, 2),
    )
    figure = populations.population_boxes(population)
    (axes,) = panels(figure)
    assert heights(axes, "median")["rss", "4"] == population.query("bucket == 4")["accuracy"].median()
    marks = [list(line.get_ydata()) for line in with_gid(axes, "seeds").values()]
    assert marks == [[m, m + 1, m + 2] for m in MEDIANS["rss"]]
    assert legend_of(figure) == ["RSS", "one seed"]


@pytest.mark.parametrize("n", [1, 3, 4])
def test_each_dataset_has_a_panel(n):
    population, _ = made_up(["mnist", "fashion_mnist", "cifar10", "mine"][:n])
    figure = populations.population_boxes(population)
    assert [axes.get_title() for axes in panels(figure)] == ["MNIST", "Fashion-MNIST", "CIFAR-10", "mine"][:n]
    assert all(len(heights(axes, "median")) == 9 for axes in panels(figure))


def test_another_backbone_is_named():
    (axes,) = panels(populations.population_boxes(made_up(backbone="proxylessnas")[0]))
    assert axes.get_title() == "CIFAR-100 (ProxylessNAS)"


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


@pytest.mark.parametrize(
    "methods",
    [
        ["rss"],
        ["ofa", "ofa-released", "rss-short", "rss"],
    ],
)
def test_published_values_stand_clear_of_boxes_and_points(methods):
    population = many(made_up(methods=methods)[0])
    (axes,) = panels(populations.population_boxes(population, published=STUDY))
    boxes = [box.get_path().vertices[:, 0] for box in with_gid(axes, "box", PathPatch).values()]
    places = [line.get_xdata()[0] for line in with_gid(axes, "published").values()]
    assert len(places) == len(boxes) == len(methods) * len(BUCKETS)
    taken = [(edges.min(), edges.max()) for edges in boxes]
    assert not any(low - 0.01 < place < high + 0.01 for place in places for low, high in taken)
    dots = points(axes)
    assert len(dots) == len(population)
    assert all(any(low <= x <= high for low, high in taken) for x in dots[:, 0])


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
    split = populations.population_boxes(
        table,
        split={"(a)": ["rss-smallest"], "(b)": ["rss-largest"]},
    )
    a, b = panels(split)
    assert a.get_ylim() == b.get_ylim()


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
    figure = populations.population_figure(
        table,
        plan("smoke"),
        ["rss", "ofa", "rss-largest"],
        tmp_path,
        "figure_6",
    )
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
    assert set(METHOD_STYLES) == {*METHODS, *SAMPLERS, *INTERVALS}
    assert len({style.label for style in METHOD_STYLES.values()}) == len(METHOD_STYLES)


def test_main_methods_differ_in_hatch_and_lightness():
    styles = [METHOD_STYLES[method] for method in ("ofa", "rss", "ofa-released", "rss-short")]
    assert len({style.hatch for style in styles}) == 4
    ofa, rss, _, short = map(luma, styles)
    assert rss - ofa > 30 and short - rss > 30


@pytest.mark.parametrize("base", ["ofa", "ofa-released", "rss-short"])
def test_a_changed_hyper_parameter_differs_in_hatch_and_lightness(base):
    main, changed = METHOD_STYLES[base], [METHOD_STYLES[f"{base}-{change}"] for change in OVERRIDES]
    assert len({style.hatch for style in [main, *changed]}) == 4
    assert all(abs(luma(style) - luma(main)) > 40 for style in changed)


@pytest.mark.parametrize("base", ["rss", "rss-short"])
@pytest.mark.parametrize(
    "suffixes",
    [
        ("", "-per-batch", "-2-per-batch"),
        ("-smallest", "-middle", "-largest"),
        ("", "-max-then-min", "-min-then-max", "-alternating"),
    ],
)
def test_ablations_of_one_figure_differ_in_hatch(base, suffixes):
    assert len({METHOD_STYLES[base + suffix].hatch for suffix in suffixes}) == len(suffixes)


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


def test_a_wrong_prediction_has_the_label_beside_it():
    images = np.zeros((3, 1, 32, 32), np.uint8)
    figure = populations.predictions_figure(
        images,
        ["a", "b", "c"],
        ["a", "a", "c"],
    )
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b (is a)", "c"]


@pytest.mark.parametrize("styled", [True, False])
def test_class_names_are_not_read_as_mathematics(styled, tmp_path):
    with matplotlib.rc_context({"text.parse_math": not styled}):
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
    (first, metadata), (second, _), (third, _) = shown
    assert first is figure and type(second).__name__ == "Markdown" and "Made up." in second.data
    alternative = metadata["image/png"]["alt"]
    for words in ("(a) Training time, MNIST", "Subnet size (MFLOPs)", "RSS-Short"):
        assert words in alternative
    assert markdown2html(third.data).strip() == "<p>figure_6 is not drawn.</p>"


def test_escaped_text_is_shown_as_it_is():
    text = """<script>alert(1)</script> ![x](http://y) **a** _b_ `c` ~~d~~ | & &amp; "e" 'f' \\ [g]"""
    paragraph = markdown2html(escape(text)).strip()
    assert paragraph.count("<") == paragraph.count(">") == 2  # those of the paragraph
    assert html.unescape(paragraph) == f"<p>{text}</p>"
    assert html.unescape(escape(text)) == text and not set("<>&") & set(re.sub("&#[0-9]+;", "", escape(text)))


def test_legend_fits_the_figure_and_stands_above_the_panels():
    population, _ = made_up(
        methods=[*MEDIANS, "ofa-released", "rss-short-lr-0.02"],
        seeds=(0, 1),
    )
    figure = populations.population_boxes(population, published=STUDY)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert box.y0 >= max(axes.get_tightbbox().y1 for axes in panels(figure))


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


def test_style_sets_the_sizes_of_text():
    title = populations.population_boxes(made_up()[0]).axes[0].title
    assert (title.get_fontsize(), title.get_fontname()) == (8.5, "DejaVu Sans")


# --- interference -----------------------------------------------------------------------------------------------------


def intervals(axes) -> list[tuple[float, float]]:
    """Ends of the horizontal intervals, from the top; NaN where there is none."""
    (container,) = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    (segments,) = [bars.get_segments() for bars in container.lines[2]]
    return [tuple(segment[:, 0]) if len(segment) else (math.nan, math.nan) for segment in segments]


def hollow(axes) -> list[float]:
    """Places of hollow points on the x axis."""
    lines = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    return [x for line in lines for x in line.get_xdata()]


def test_an_interval_needs_two_seeds_and_one_seed_is_a_hollow_point():
    parts = [
        Part("of three", 1.0, 0.5, 2, 3),
        Part("of one", 2.0, 0.5, 80, 1),
        Part("of none", missing=("runs",)),
    ]
    (axes,) = interference.figure_contrasts({"controls": parts[:1], "others": parts[1:]}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["of three", "of one"]
    low, high = intervals(axes)[0]
    assert (low, high) == (pytest.approx(parts[0].low()), pytest.approx(parts[0].high()))
    assert np.isnan(intervals(axes)[1]).all() and hollow(axes) == [2.0]
    assert "above 0 the first is better" in axes.get_xlabel()


def test_leads_have_the_intervals_of_their_table():
    methods = ("rss", "fair", "compound")
    rows = pd.DataFrame(
        [(m, b, 50, 60) for m in methods for b in BUCKETS], columns=["method", "bucket", "mean", "best"]
    )
    part = Part("RSS minus Compound", 1.0, 0.5, 4, 5)
    figure = interference.figure_samplers(rows, [part])
    above, below = figure.subfigs
    assert intervals(below.axes[0])[0] == pytest.approx((part.low(), part.high()))
    assert [len(axes.get_lines()) for axes in above.axes] == [3, 3]
    assert len(interference.figure_samplers(rows).axes) == 2


def effects_of(seeds, shares=(0.5, 0.95), sizes=(4.05, 4.37, 15.31)):
    """Effects of a step and of an epoch: 1 on the subnet itself, 0.1 on the others, and the seed in thousandths."""
    columns = ["method", "seed", "length", "share", "trained", "judged", "judged_mflops", "distance", "loss_effect"]
    places = range(len(sizes))
    rows = [
        ("rss", seed, length, share, a, b, sizes[b], abs(a - b), (1.0 if a == b else 0.1) + seed / 1000)
        for seed in seeds for length in ("step", "epoch") for share in shares for a in places for b in places
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).assign(
        trained_mflops=0.0,
        accuracy_effect=0.0,
    )


def test_effects_name_every_size_and_have_ticks_where_the_data_are():
    figure = interference.figure_effects(effects_of((0, 1, 2)))
    step, _, means, bar, _ = figure.axes
    assert [label.get_text() for label in step.get_xticklabels()] == ["4.0", "4.4", "15.3"]
    assert list(means.get_xticks()) == [50, 95] and bar.get_ylabel() == "Loss falls by"
    assert [label.get_text() for label in bar.get_yticklabels()] == ["-1", "0", "1"]
    assert np.array(step.collections[0].get_array()).reshape(3, 3)[0] == pytest.approx([1.001, 0.101, 0.101])


def test_means_of_effects_stay_inside_their_panel():
    for seeds in ((0,), (0, 1, 2)):
        means = interference.figure_effects(effects_of(seeds)).axes[2]
        low, high = means.get_ylim()
        assert low <= 0 and high > 0.11 and bool(hollow(means)) == (len(seeds) == 1)


def test_agreement_by_layer_is_in_the_order_of_the_network():
    layers = ("all", "last", "10", "2", "first")
    rows = [
        ("rss", seed, share, part, 0, 1, 5, 0.5 + seed / 100, 1.0, 1.0, 0.5)
        for seed in (0, 1) for share in (0.5, 0.95) for part in layers
    ]  # fmt: skip
    columns = [
        "method",
        "seed",
        "share",
        "part",
        "a",
        "b",
        "distance",
        "cross",
        "own_a",
        "own_b",
        "agreement",
    ]
    time, by_layer, _ = interference.figure_agreement(pd.DataFrame(rows, columns=columns)).axes
    assert list(time.get_xticks()) == [50, 95]
    assert [label.get_text() for label in by_layer.get_xticklabels()] == ["first", "last"]
    assert len(by_layer.lines[0].get_xdata()) == 4


def test_alone_against_shared_accuracy_is_a_point_for_each_subnet():
    columns = ["training", "bucket", "number", "seed", "alone", "shared", "gap"]
    rows = [("equal epochs", 8.0, n, seed, 80 + n + seed, 75 + n, 5 + seed) for n in (0, 1) for seed in (0, 2)]
    cloud, forest = interference.figure_alone(pd.DataFrame(rows, columns=columns)).axes
    assert np.transpose(cloud.lines[0].get_data()).tolist() == [[75, 81], [76, 82]]
    assert intervals(forest)[0] == pytest.approx(stats.t.interval(0.95, 1, 6, stats.sem([5, 7])))
