"""rsstudy.figures.populations: what is drawn, on made-up tables whose answers are known."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_up import BUCKETS, MEDIANS, SECONDS, made_up
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from rsslib.errors import InputError
from rsstudy import summary
from rsstudy.catalogue import INTERVALS, METHODS, OVERRIDES, SAMPLERS
from rsstudy.figures import populations
from rsstudy.figures.style import METHOD_STYLES
from rsstudy.plan import plan


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        populations.set_style()
        yield


def luma(style):
    """Lightness in grey print, 0 to 255."""
    return np.dot([int(style.colour[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114])


def panels(figure):
    return [axes for axes in figure.axes if axes.axison]


def medians_drawn(axes):
    """{(method, bucket): height} of the median lines."""
    lines = [line for line in axes.lines if (line.get_gid() or "").startswith("median ")]
    return {tuple(line.get_gid().split()[1:]): line.get_ydata()[0] for line in lines}


def legend_of(figure):
    (legend,) = figure.legends or [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def published_marks(figure):
    bars = [c for axes in figure.axes for c in axes.containers if isinstance(c, ErrorbarContainer)]
    return [c for c in bars if c.lines[0].get_gid().startswith("published")]


# --- Figure 3 ---------------------------------------------------------------------------------------------------------


def test_boxes_show_the_medians_of_the_table():
    population, _ = made_up()
    figure = populations.population_boxes(population)
    (axes,) = panels(figure)
    drawn = medians_drawn(axes)
    assert drawn == {(m, f"{b:g}"): v for m in MEDIANS for b, v in zip(BUCKETS, MEDIANS[m], strict=True)}
    assert axes.get_title() == "CIFAR-100"
    assert axes.get_xlabel() == "Subnet size (MFLOPs)" and axes.get_ylabel() == "Test accuracy (%)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "12"]
    assert legend_of(figure) == ("3 subnets a bucket, 1 seed", ["OFA", "RSS-Short", "RSS"])


def test_boxes_stand_side_by_side_in_the_papers_order():
    population, _ = made_up(methods=["rss", "another", "rss-short", "ofa-released", "ofa"])
    figure = populations.population_boxes(population)
    (axes,) = panels(figure)
    lines = sorted((line.get_xdata().mean(), line.get_gid()) for line in axes.lines if line.get_gid())
    assert [gid.split()[1] for _, gid in lines[:5]] == ["ofa", "ofa-released", "rss-short", "rss", "another"]
    assert [round(x) for x, _ in lines] == [0] * 5 + [1] * 5 + [2] * 5
    assert legend_of(figure)[1] == ["OFA", "OFA (released code)", "RSS-Short", "RSS", "another"]


def test_every_subnet_is_a_point_beside_its_box():
    population, _ = made_up(seeds=(0, 1))
    (axes,) = panels(populations.population_boxes(population))
    heights = np.concatenate([points.get_offsets()[:, 1] for points in axes.collections])
    assert sorted(heights) == sorted(population["accuracy"])


def test_seeds_are_pooled_and_each_one_marked():
    population, _ = made_up(methods=["rss"], seeds=(0, 1, 2))
    figure = populations.population_boxes(population)
    (axes,) = panels(figure)
    assert medians_drawn(axes)[("rss", "4")] == population.query("bucket == 4")["accuracy"].median()
    marks = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
    assert [list(mark) for mark in marks] == [[m, m + 1, m + 2] for m in MEDIANS["rss"]]
    assert legend_of(figure) == ("3 subnets a bucket, 3 seeds", ["RSS", "one seed"])
    assert "median of each seed" in figure.caption


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_panel_for_each_dataset(n):
    datasets = ["mnist", "fashion_mnist", "cifar10", "mine"][:n]
    population, _ = made_up(datasets)
    figure = populations.population_boxes(population)
    titles = ["MNIST", "Fashion-MNIST", "CIFAR-10", "mine"][:n]
    assert [axes.get_title() for axes in panels(figure)] == titles
    assert all(len(medians_drawn(axes)) == 9 for axes in panels(figure))
    assert legend_of(figure)[1] == ["OFA", "RSS-Short", "RSS"]


def test_another_backbone_is_named():
    population, _ = made_up(backbone="proxylessnas")
    (axes,) = panels(populations.population_boxes(population))
    assert axes.get_title() == "CIFAR-100 (ProxylessNAS)"


def test_published_values_are_drawn_only_if_asked_and_only_where_there_are_any():
    population, _ = made_up(["mnist", "cifar100"], methods=["ofa", "rss"])
    assert published_marks(populations.population_boxes(population)) == []
    figure = populations.population_boxes(population, published=populations.published())
    marks = published_marks(figure)
    heights = {mark.lines[0].get_gid(): mark.lines[0].get_ydata()[0] for mark in marks}
    table = populations.published().query("figure == '1b' and quantity == 'median'")
    told = {f"published {r.method} {r.mflops:g}": r.value for r in table.itertuples() if r.mflops in BUCKETS}
    assert heights == {gid: value for gid, value in told.items() if "rss-short" not in gid}
    assert not published_marks(populations.population_boxes(population.query("dataset == 'mnist'"), published=table))
    assert legend_of(figure)[1] == ["OFA", "RSS", "published"]
    assert "published" in figure.caption
    assert "published" not in populations.population_boxes(population).caption
    other, _ = made_up(backbone="proxylessnas")
    assert not published_marks(populations.population_boxes(other, published=populations.published()))


def test_the_released_code_is_compared_with_the_same_published_values():
    population, _ = made_up(methods=["ofa", "ofa-released"])
    marks = published_marks(populations.population_boxes(population, published=populations.published()))
    heights = {mark.lines[0].get_gid(): mark.lines[0].get_ydata()[0] for mark in marks}
    assert heights["published ofa 4"] == heights["published ofa-released 4"] == 40.8


def many(population, n=5):
    """Each subnet n times, so that there are enough for quartiles."""
    return pd.concat([population.assign(subnet=population["subnet"] + 3 * i) for i in range(n)], ignore_index=True)


def boxes_drawn(axes):
    return [box for drawn in axes.containers for box in getattr(drawn, "boxes", ())]


def test_boxes_hold_the_quartiles_and_carry_colour_and_hatch():
    population = many(made_up()[0])
    (axes,) = panels(populations.population_boxes(population))
    drawn = [(method, bucket) for method in ("ofa", "rss-short", "rss") for bucket in BUCKETS]
    styles = [METHOD_STYLES[method] for method, _ in drawn]
    boxes = boxes_drawn(axes)
    assert [box.get_hatch() or "" for box in boxes] == [style.hatch for style in styles]
    assert [to_hex(box.get_facecolor()) for box in boxes] == [style.colour for style in styles]
    groups = population.groupby(["method", "bucket"])["accuracy"]
    edges = [box.get_path().vertices[:, 1] for box in boxes]
    assert [edge.min() for edge in edges] == pytest.approx([groups.quantile(0.25)[key] for key in drawn])
    assert [edge.max() for edge in edges] == pytest.approx([groups.quantile(0.75)[key] for key in drawn])


@pytest.mark.parametrize(("n", "drawn"), [(4, 0), (5, 9)])
def test_fewer_than_five_subnets_a_seed_get_no_boxes(n, drawn):
    population = many(made_up(seeds=(0, 1, 2))[0])
    population = population[population["subnet"] < n]
    figure = populations.population_boxes(population)
    (axes,) = panels(figure)
    assert len(boxes_drawn(axes)) == drawn and ("Boxes" in figure.caption) == bool(drawn)
    medians = population.groupby(["method", "bucket"])["accuracy"].median()
    assert medians_drawn(axes) == {(method, f"{bucket:g}"): value for (method, bucket), value in medians.items()}
    heights = np.concatenate([points.get_offsets()[:, 1] for points in axes.collections])
    assert sorted(heights) == sorted(population["accuracy"])


@pytest.mark.parametrize("methods", [["rss"], ["ofa", "ofa-released", "rss-short", "rss"]])
def test_published_values_stand_clear_of_boxes_and_points(methods):
    population = many(made_up(methods=methods)[0])
    figure = populations.population_boxes(population, published=populations.published())
    (axes,) = panels(figure)
    places = np.sort([mark.lines[0].get_xdata()[0] for mark in published_marks(figure)])
    edges = [box.get_path().vertices[:, 0] for box in boxes_drawn(axes)]
    assert len(places) == len(edges) == len(methods) * len(BUCKETS)
    for left, right, place in zip(*np.sort([(e.min(), e.max()) for e in edges], 0).T, places, strict=True):
        assert right + 0.1 * (right - left) < place and not any(e.min() < place < e.max() for e in edges)
    points = np.concatenate([dots.get_offsets()[:, 0] for dots in axes.collections if len(dots.get_offsets()) == 15])
    assert len(points) == len(population)
    assert all(any(e.min() <= x <= e.max() for e in edges) for x in points)


def test_what_is_compared_has_the_same_axis_of_accuracy(tmp_path):
    medians = {"rss-smallest": (10, 12, 14), "rss-largest": (80, 85, 95), "rss": (50, 51, 52)}
    table, times = made_up(methods=list(medians), medians=medians)
    planned = plan("quick", datasets=["cifar100"], methods=list(medians))
    drawn = [
        populations.population_figure(table, times, planned, names, tmp_path, name)
        for name, names in (("figure_6", ["rss-smallest", "rss-largest"]), ("figure_7", ["rss"]))
    ]
    (a,), (b,) = map(panels, drawn)
    assert a.get_ylim() == b.get_ylim() and a.get_ylim()[0] < 9 and a.get_ylim()[1] > 98
    split = populations.population_boxes(table, split={"(a)": ["rss-smallest"], "(b)": ["rss-largest"]})
    a, b = panels(split)
    assert a.get_ylim() == b.get_ylim()


def test_a_split_never_pools_datasets():
    table, _ = made_up(datasets=("mnist", "cifar100"), methods=["ofa", "rss"])
    figure = populations.population_boxes(table, split={"(a) RSS": ["rss"], "(b) OFA": ["ofa"]})
    titles = [axes.get_title() for axes in panels(figure)]
    assert titles == ["(a) RSS, MNIST", "(a) RSS, CIFAR-100", "(b) OFA, MNIST", "(b) OFA, CIFAR-100"]


def test_the_baseline_of_a_ratio_is_named_for_each_dataset_that_has_another():
    _, times = made_up(datasets=("mnist", "cifar100"), methods=["ofa", "ofa-released", "rss"])
    times = times[(times["method"] != "ofa") | (times["dataset"] == "mnist")]
    words = populations.training_time_bars(times).caption
    assert "times as fast as OFA (MNIST) and OFA (released code) (CIFAR-100)" in words
    found = summary.speed_ups(times).set_index(["dataset", "method"])["baseline"]
    assert found["cifar100", "rss"] == "ofa-released"


@pytest.mark.parametrize("profile, rate", [("smoke", 0.04), ("paper", 0.01)])
def test_the_legend_is_in_panel_order_and_tells_the_settings_that_were_trained(profile, rate, tmp_path):
    pairs = {"(a)": ["rss-short", "rss-short-lr-0.02"], "(b)": ["ofa", "ofa-lr-0.02"]}
    names = [name for pair in pairs.values() for name in pair]
    table, times = made_up(methods=names)
    planned = plan(profile, datasets=["cifar100"], methods=names)
    figure = populations.population_figure(table, times, planned, names, tmp_path, "figure_S6", split=pairs)
    rates = [f"learning rate {factor * rate:g}" for factor in (1, 2)]
    told = [f"{name}, {rate}" for name in ("RSS-Short", "OFA") for rate in rates]
    assert legend_of(figure)[1][:4] == told
    assert populations.labels_of(planned[:1]) == {"rss-short": "RSS-Short"}
    batches = plan(profile, methods=["ofa", "ofa-batch-128"], datasets=["cifar100"])
    assert list(populations.labels_of(batches).values()) == ["OFA, batch size 64", "OFA, batch size 128"]


def test_every_change_of_a_hyper_parameter_has_its_own_looks():
    styles = METHOD_STYLES
    for base in ("ofa", "ofa-released", "rss-short"):
        changed = [styles[f"{base}-{change}"] for change in OVERRIDES]
        assert len({style.hatch for style in [styles[base], *changed]}) == 4
        assert all(abs(luma(style) - luma(styles[base])) > 40 for style in changed)
    changed = [style for name, style in styles.items() if any(name.endswith(change) for change in OVERRIDES)]
    assert len(changed) == len({style.colour for style in changed}) == 9


# --- Figures 1 and 4 --------------------------------------------------------------------------------------------------


def bars(axes):
    return {bar.get_gid().split()[1]: bar.get_height() for bar in axes.patches}


def ratios(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "factor, unit, size", [(0.1, "s", 1), (1, "min", 60), (100, "h", 3600)], ids=["seconds", "minutes", "hours"]
)
def test_bars_show_times_in_a_fitting_unit_with_speed_ups(factor, unit, size):
    _, times = made_up(["mnist", "digits"])
    times["training_seconds"] *= factor
    figure = populations.training_time_bars(times)
    assert [axes.get_title() for axes in panels(figure)] == ["MNIST", "Digits"]
    assert panels(figure)[0].get_ylabel() == f"Training time ({unit})"
    for axes in panels(figure):
        assert bars(axes) == pytest.approx({m: s * factor / size for m, s in SECONDS.items()})
        assert ratios(axes) == ["×6.0", "×2.0"]  # RSS-Short, RSS
    assert "Trained on Abacus (executor: eager)." in figure.caption
    assert "×: times as fast as OFA" in figure.caption


def test_bars_are_means_of_seeds_which_are_points():
    _, times = made_up(seeds=(0, 1, 2))
    figure = populations.training_time_bars(times)
    (axes,) = panels(figure)
    assert bars(axes)["ofa"] == pytest.approx(610 / 60)
    points = [line.get_ydata() for line in axes.lines]
    assert list(points[0]) == pytest.approx([10, 610 / 60, 620 / 60]) and len(points) == 3
    ofa, rss = np.log([600, 610, 620]), np.log([300, 310, 320])
    low, high = np.exp(stats.ttest_ind(ofa, rss, equal_var=False).confidence_interval(0.95))
    assert ratios(axes)[2:] == [f"×{np.exp(ofa.mean() - rss.mean()):.1f}", f"{low:.2f}–{high:.2f}"]
    assert "95 % interval over the seeds" in figure.caption
    assert legend_of(figure) == ("3 seeds", ["OFA", "RSS-Short", "RSS", "one seed"])


@pytest.mark.parametrize("column", ["hardware", "executor"])
def test_no_ratio_between_runs_of_different_machines(column):
    _, times = made_up(["mnist", "cifar10"])
    times.loc[(times["dataset"] == "cifar10") & (times["method"] == "rss"), column] = "other"
    figure = populations.training_time_bars(times)
    mnist, cifar = panels(figure)
    assert ratios(mnist) == ["×6.0", "×2.0"]
    assert ratios(cifar) == ["×6.0"]
    assert "No ratio is written between runs of different hardware or executors." in figure.caption
    assert "other" in figure.caption


def test_no_ratio_without_a_baseline():
    _, times = made_up(methods=["rss", "rss-short"])
    figure = populations.training_time_bars(times)
    assert ratios(*panels(figure)) == []
    assert "×" not in figure.caption


def test_without_ofa_its_released_code_is_the_baseline():
    _, times = made_up(methods=["ofa-released", "rss"])
    figure = populations.training_time_bars(times)
    assert ratios(*panels(figure)) == ["×1.7"]
    assert "×: times as fast as OFA (released code)" in figure.caption


def test_figure_1_shows_the_dataset_asked_for():
    population, times = made_up(["mnist", "cifar100"])
    times.loc[times["dataset"] == "mnist", "training_seconds"] *= 2
    figure = populations.figure_1(population, times, "mnist")
    left, right = panels(figure)
    assert left.get_title() == "(a) Training time, MNIST" and right.get_title() == "(b) Subnet population, MNIST"
    assert ratios(left) == ["×6.0", "×2.0"] and bars(left)["ofa"] == pytest.approx(20)
    assert medians_drawn(right)[("rss", "12")] == 52
    assert left.get_ylabel() == "Training time (min)" and right.get_ylabel() == "Test accuracy (%)"
    with pytest.raises(InputError, match="no rows"):
        populations.figure_1(population, times, "cifar10")


# --- captions, files, mistakes ----------------------------------------------------------------------------------------


def test_caption_names_datasets_scale_seeds_and_hardware():
    _, times = made_up(["digits"])
    planned = plan("smoke", methods=["rss-short", "rss"], seeds=[0, 1])
    scale = planned[0].profile.describe("digits")
    assert populations.caption(planned) == f"Profile smoke, seeds 0 and 1. Digits: {scale}."
    assert populations.caption(planned, times).endswith(f"Digits: {scale}. Trained on Abacus (executor: eager).")
    paper = populations.caption(plan("paper", seeds=[3]))
    assert "seed 3." in paper and "MNIST: 10 + 27 epochs" in paper and "CIFAR-10 and CIFAR-100: 180 + 410" in paper


def test_caption_says_which_stages_the_schedule_leaves_no_epoch():
    planned = plan("paper", datasets=["mnist", "fashion_mnist"], methods=["ofa", "ofa-released", "rss"])
    assert populations.caption(planned).endswith(
        "No epoch is left at this scale for width 1 of OFA (released code) on MNIST: a comparison there is one of "
        "schedules, too."
    )
    assert "No epoch" not in populations.caption(plan("paper", datasets=["mnist"], methods=["ofa", "rss"]))


def test_captions_are_not_in_the_image_and_are_shown_below_it(monkeypatch):
    population, times = made_up(["mnist", "cifar100"])
    given = "Of made-up runs."
    drawn = [populations.population_boxes(population, given), populations.training_time_bars(times, given)]
    drawn.append(populations.figure_1(population, times, "mnist", given))
    shown = []
    told = []
    monkeypatch.setattr(populations, "display", lambda what, metadata=None: (shown.append(what), told.append(metadata)))
    for figure in drawn:
        assert figure.caption.startswith(f"{given} ") and figure.caption.endswith(".")
        texts = [text.get_text() for text in figure.findobj(Text)]
        assert not any("made-up" in text for text in texts)
        populations.show(figure)
        assert shown[-2] is figure and shown[-1].data == figure.caption
    populations.show("figure_6 is not drawn.")
    assert [type(shown[-1]).__name__, shown[-1].data] == ["Markdown", "figure_6 is not drawn."] and len(shown) == 7
    assert told[-1] is None
    assert told[0]["image/png"]["alt"].startswith("MNIST, CIFAR-100; Test accuracy (%) by Subnet size (MFLOPs)")
    assert "RSS-Short" in told[0]["image/png"]["alt"] and "Training time" in told[2]["image/png"]["alt"]


def test_legend_is_inside_the_figure_and_above_the_panels():
    population, _ = made_up(methods=[*MEDIANS, "ofa-released"], seeds=(0, 1))
    figure = populations.population_boxes(population, published=populations.published())
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert box.y0 >= max(axes.get_tightbbox().y1 for axes in panels(figure))


def test_fronts_are_drawn_over_the_population_and_no_name_is_cut_off():
    fronts = {
        name: pd.DataFrame({"mflops": [5.0, 7.5], "test_accuracy": accuracy})
        for name, accuracy in (("NSGA-II", [81.0, 83.0]), ("random search", [80.0, 82.0]))
    }
    population = pd.DataFrame({"mflops": [4.0, 14.0, 8.0], "accuracy": [79.0, 84.0, 81.0]})
    figure = populations.search_figure(fronts, population, "words")
    (axes,), (legend,) = figure.axes, figure.legends
    assert axes.collections[0].get_offsets().tolist() == population.values.tolist()
    for line, (name, front) in zip(axes.lines, fronts.items(), strict=True):
        assert line.get_label() == name
        assert np.transpose(line.get_data()).tolist() == front.values.tolist()
    figure.canvas.draw()
    box, inside = legend.get_window_extent(), figure.bbox
    assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and not box.overlaps(axes.get_window_extent())


def test_a_wrong_prediction_has_the_label_beside_it():
    images = np.zeros((3, 1, 32, 32), np.uint8)
    figure = populations.predictions_figure(images, ["a", "b", "c"], ["a", "a", "c"])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b (is a)", "c"]


def test_methods_differ_without_colour():
    mains = ("ofa", "ofa-released", "rss-short", "rss")
    styles = {method: METHOD_STYLES[method] for method in mains}
    assert len({style.hatch for style in styles.values()}) == len({style.label for style in styles.values()}) == 4
    order = [luma(styles[method]) for method in ("ofa", "rss", "rss-short")]
    assert np.diff(order).min() > 30


def test_every_method_has_a_label_and_what_is_compared_differs_in_hatch():
    assert set(METHOD_STYLES) == {*METHODS, *SAMPLERS, *INTERVALS}
    assert len({style.label for style in METHOD_STYLES.values()}) == len(METHOD_STYLES)
    for base in ("rss", "rss-short"):
        for group in (("", "-per-batch", "-2-per-batch"), ("-smallest", "-middle", "-largest"),
                      ("", "-max-then-min", "-min-then-max", "-alternating"), ("", "-batch-128")):  # fmt: skip
            names = [base + suffix for suffix in group if base + suffix in METHODS]
            assert len({METHOD_STYLES[name].hatch for name in names}) == len(names)


def test_a_figure_of_unfinished_runs_is_a_sentence_and_a_split_makes_panels(tmp_path):
    table, times = made_up(methods=("rss", "ofa"))
    for names in (["rss-smallest", "rss-largest"], ["rss", "rss-largest"]):  # a figure compares
        words = populations.population_figure(table, times, [], names, tmp_path, "figure_6")
        assert "figure_6 is not drawn" in words and "rss-largest" in words and not list(tmp_path.iterdir())
    names = ["rss", "ofa", "rss-largest"]
    figure = populations.population_figure(table, times, plan("smoke"), names, tmp_path, "figure_6")
    assert figure.caption.endswith("Not drawn, since not finished: RSS, largest only.")
    halves = {"(a)": ["rss", "ofa"], "(b)": ["rss-short", "rss-largest"]}
    figure = populations.population_figure(table, times, plan("smoke"), names, tmp_path, "figure_6", halves)
    assert [axes.get_title() for axes in figure.axes] == ["(a)"]
    figure = populations.population_boxes(table, split={"(a) RSS": ["rss"], "(b) OFA": ["ofa"]})
    assert [axes.get_title() for axes in figure.axes] == ["(a) RSS", "(b) OFA"]


@pytest.mark.parametrize(("profile", "compared"), [("paper", True), ("quick", False)])
def test_every_figure_of_a_studied_method_has_the_studys_values_at_its_scale(profile, compared, tmp_path):
    names = ["rss", "rss-per-batch"]
    table, times = made_up(methods=names)
    planned = plan(profile, datasets=["cifar100"], methods=names)
    marks = published_marks(populations.population_figure(table, times, planned, names, tmp_path, "figure_5"))
    assert len(marks) == (len(BUCKETS) if compared else 0)


def test_published_hours_are_told_under_the_times_if_asked_and_where_there_are_any():
    _, times = made_up(datasets=("mnist", "cifar100"), methods=("rss", "rss-per-batch"))
    (hours,) = populations.published().query("quantity == 'training_hours_rtx3080' and method == 'rss'")["value"]
    figure = populations.training_time_bars(times, published=populations.published())
    assert f"Published, on an RTX 3080, CIFAR-100: RSS {hours:g} h." in figure.caption
    for asked, table in ((None, times), (populations.published(), times.query("dataset == 'mnist'"))):
        assert "Published" not in populations.training_time_bars(table, published=asked).caption


def test_save_writes_both_files_the_same_every_time(tmp_path):
    population, _ = made_up()
    contents = []
    for folder in ("a/b", "c"):
        figure = populations.population_boxes(population, "×: a caption.")
        paths = populations.save_figure(figure, tmp_path / folder, "figure_3")
        assert paths == [tmp_path / folder / "figure_3.png", tmp_path / folder / "figure_3.pdf"]
        assert sorted(paths) == sorted((tmp_path / folder).iterdir())  # no temporary files are left
        contents.append([path.read_bytes() for path in paths])
        with Image.open(paths[0]) as image:
            assert image.size == tuple(int(200 * inches) for inches in figure.get_size_inches())
            assert image.text["Description"] == figure.caption and figure.caption.startswith("×: a caption. ")
    assert contents[0] == contents[1]
    assert contents[0][1].startswith(b"%PDF") and b"CreationDate" not in contents[0][1]
    assert "×: a caption. ".encode("utf-16-be") in contents[0][1] and b"/Subject" in contents[0][1]


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
def test_tables_that_cannot_be_drawn(name):
    population, times = made_up()
    with pytest.raises(InputError, match="the table (population|times) has no rows"):
        DRAW[name](population[:0], times[:0])
    with pytest.raises(InputError, match="has no column method and seed: expected dataset, backbone"):
        DRAW[name](population.drop(columns=["method", "seed"]), times.drop(columns=["method", "seed"]))


def test_a_run_without_its_time():
    _, times = made_up()
    times.loc[1, "training_seconds"] = np.nan
    with pytest.raises(InputError, match="no training_seconds for cifar100, rss, seed 0: finish that run first"):
        populations.training_time_bars(times)


def test_style_sets_the_sizes_of_text():
    title = populations.population_boxes(made_up()[0]).axes[0].title
    assert title.get_fontsize() == matplotlib.rcParams["axes.titlesize"] == 8.5
    assert title.get_fontname() == "DejaVu Sans"
