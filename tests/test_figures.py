"""rsslib.figures: what is drawn, computed and said, on made-up tables whose answers are known."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D
from PIL import Image

from rsslib import figures, methods, runs
from rsslib.errors import InputError

BUCKETS = (4.0, 8.0, 12.0)
OFFSETS = (-1.0, 0.0, 3.0)  # of three subnets from their bucket's median
METHODS = ("ofa", "rss", "rss-short")  # not the paper's order
MEDIANS = {"ofa": (40.0, 45.0, 50.0), "rss": (50.0, 51.0, 52.0), "rss-short": (47.0, 45.0, 48.0)}
SECONDS = {"ofa": 600.0, "rss": 300.0, "rss-short": 100.0}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.set_style()
        yield


def made_up(datasets=("cifar100",), methods=METHODS, seeds=(0,), medians=MEDIANS, backbone="mobilenet_v3"):
    """A population with these bucket medians, each seed's shifted by its number, and times."""
    population, times = [], []
    for dataset in datasets:
        for method in methods:
            for seed in seeds:
                keys = {"dataset": dataset, "backbone": backbone, "method": method, "seed": seed}
                clock = {"training_seconds": SECONDS.get(method, 500.0) + 10 * seed, "evaluation_seconds": 1.0}
                times.append(keys | clock | {"hardware": "Abacus", "executor": "eager"})
                for bucket, median in zip(BUCKETS, medians.get(method, MEDIANS["ofa"]), strict=True):
                    for i, offset in enumerate(OFFSETS):
                        size = {"bucket": bucket, "subnet": i, "mflops": bucket + offset / 10}
                        population.append(keys | size | {"accuracy": median + offset + seed})
    return pd.DataFrame(population), pd.DataFrame(times)


def panels(figure):
    return [axes for axes in figure.axes if axes.axison]


def medians_drawn(axes):
    """{(method, bucket): height} of the median lines."""
    lines = [line for line in axes.lines if (line.get_gid() or "").startswith("median ")]
    return {tuple(line.get_gid().split()[1:]): line.get_ydata()[0] for line in lines}


def legend_of(figure):
    (legend,) = figure.legends or [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def caption_of(figure):
    (text,) = [text for text in figure.texts if text.get_gid() == "caption"]
    return text.get_text().replace("\n", " ")


def published_marks(figure):
    return [c for axes in figure.axes for c in axes.containers if (c.lines[0].get_gid() or "").startswith("published")]


# --- Figure 3 ---------------------------------------------------------------------------------------------------------


def test_boxes_show_the_medians_of_the_table():
    population, _ = made_up()
    figure = figures.population_boxes(population)
    (axes,) = panels(figure)
    drawn = medians_drawn(axes)
    assert drawn == {(m, f"{b:g}"): v for m in METHODS for b, v in zip(BUCKETS, MEDIANS[m], strict=True)}
    assert axes.get_title() == "CIFAR-100"
    assert axes.get_xlabel() == "Subnet size (MFLOPs)" and axes.get_ylabel() == "Test accuracy (%)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "12"]
    assert legend_of(figure) == ("3 subnets a bucket, 1 seed", ["OFA", "RSS-Short", "RSS"])


def test_boxes_stand_side_by_side_in_the_papers_order():
    population, _ = made_up(methods=["rss", "another", "rss-short", "ofa-released", "ofa"])
    figure = figures.population_boxes(population)
    (axes,) = panels(figure)
    lines = sorted((line.get_xdata().mean(), line.get_gid()) for line in axes.lines if line.get_gid())
    assert [gid.split()[1] for _, gid in lines[:5]] == ["ofa", "ofa-released", "rss-short", "rss", "another"]
    assert [round(x) for x, _ in lines] == [0] * 5 + [1] * 5 + [2] * 5
    assert legend_of(figure)[1] == ["OFA", "OFA (released code)", "RSS-Short", "RSS", "another"]


def test_every_subnet_is_a_point_beside_its_box():
    population, _ = made_up(seeds=(0, 1))
    (axes,) = panels(figures.population_boxes(population))
    heights = np.concatenate([points.get_offsets()[:, 1] for points in axes.collections])
    assert sorted(heights) == sorted(population["accuracy"])


def test_seeds_are_pooled_and_each_one_marked():
    population, _ = made_up(methods=["rss"], seeds=(0, 1, 2))
    figure = figures.population_boxes(population)
    (axes,) = panels(figure)
    assert medians_drawn(axes)[("rss", "4")] == population.query("bucket == 4")["accuracy"].median()
    marks = [line.get_ydata() for line in axes.lines if line.get_marker() == "o"]
    assert [list(mark) for mark in marks] == [[m, m + 1, m + 2] for m in MEDIANS["rss"]]
    assert legend_of(figure) == ("3 subnets a bucket, 3 seeds", ["RSS", "one seed"])
    assert "median of each seed" in caption_of(figure)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_panel_for_each_dataset(n):
    datasets = ["mnist", "fashion_mnist", "cifar10", "mine"][:n]
    population, _ = made_up(datasets)
    figure = figures.population_boxes(population, title="Populations")
    titles = ["MNIST", "Fashion-MNIST", "CIFAR-10", "mine"][:n]
    assert [axes.get_title() for axes in panels(figure)] == titles
    assert all(len(medians_drawn(axes)) == 9 for axes in panels(figure))
    assert legend_of(figure)[1] == ["OFA", "RSS-Short", "RSS"]


def test_another_backbone_is_named():
    population, _ = made_up(backbone="proxylessnas")
    (axes,) = panels(figures.population_boxes(population))
    assert axes.get_title() == "CIFAR-100 (ProxylessNAS)"


def test_published_values_are_drawn_only_if_asked_and_only_where_there_are_any():
    population, _ = made_up(["mnist", "cifar100"], methods=["ofa", "rss"])
    assert published_marks(figures.population_boxes(population)) == []
    figure = figures.population_boxes(population, published=figures.published())
    marks = published_marks(figure)
    heights = {mark.lines[0].get_gid(): mark.lines[0].get_ydata()[0] for mark in marks}
    table = figures.published().query("figure == '1b' and quantity == 'median'")
    told = {f"published {r.method} {r.mflops:g}": r.value for r in table.itertuples() if r.mflops in BUCKETS}
    assert heights == {gid: value for gid, value in told.items() if "rss-short" not in gid}
    assert not published_marks(figures.population_boxes(population.query("dataset == 'mnist'"), published=table))
    assert legend_of(figure)[1] == ["OFA", "RSS", "published"]
    assert "published" in caption_of(figure)
    assert "published" not in caption_of(figures.population_boxes(population))
    other, _ = made_up(backbone="proxylessnas")
    assert not published_marks(figures.population_boxes(other, published=figures.published()))


def test_the_released_code_is_compared_with_the_same_published_values():
    population, _ = made_up(methods=["ofa", "ofa-released"])
    marks = published_marks(figures.population_boxes(population, published=figures.published()))
    heights = {mark.lines[0].get_gid(): mark.lines[0].get_ydata()[0] for mark in marks}
    assert heights["published ofa 4"] == heights["published ofa-released 4"] == 40.8


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
    figure = figures.training_time_bars(times)
    assert [axes.get_title() for axes in panels(figure)] == ["MNIST", "Digits"]
    assert panels(figure)[0].get_ylabel() == f"Training time ({unit})"
    for axes in panels(figure):
        assert bars(axes) == pytest.approx({m: s * factor / size for m, s in SECONDS.items()})
        assert ratios(axes) == ["×6.0", "×2.0"]  # RSS-Short, RSS
    assert "Trained on Abacus (executor: eager)." in caption_of(figure)
    assert "×: times as fast as OFA" in caption_of(figure)


def test_bars_are_means_of_seeds_which_are_points():
    _, times = made_up(seeds=(0, 1, 2))
    figure = figures.training_time_bars(times)
    (axes,) = panels(figure)
    assert bars(axes)["ofa"] == pytest.approx(610 / 60)
    points = [line.get_ydata() for line in axes.lines]
    assert list(points[0]) == pytest.approx([10, 610 / 60, 620 / 60]) and len(points) == 3
    assert legend_of(figure) == ("3 seeds", ["OFA", "RSS-Short", "RSS", "one seed"])


@pytest.mark.parametrize("column", ["hardware", "executor"])
def test_no_ratio_between_runs_of_different_machines(column):
    _, times = made_up(["mnist", "cifar10"])
    times.loc[(times["dataset"] == "cifar10") & (times["method"] == "rss"), column] = "other"
    figure = figures.training_time_bars(times)
    mnist, cifar = panels(figure)
    assert ratios(mnist) == ["×6.0", "×2.0"]
    assert ratios(cifar) == ["×6.0"]
    assert "On CIFAR-10 the runs come from different hardware or executors: no ratio" in caption_of(figure)
    assert "RSS on" in caption_of(figure) and "other" in caption_of(figure)


def test_no_ratio_without_a_baseline():
    _, times = made_up(methods=["rss", "rss-short"])
    figure = figures.training_time_bars(times)
    assert ratios(*panels(figure)) == []
    assert "×" not in caption_of(figure)


def test_without_ofa_its_released_code_is_the_baseline():
    _, times = made_up(methods=["ofa-released", "rss"])
    figure = figures.training_time_bars(times)
    assert ratios(*panels(figure)) == ["×1.7"]
    assert "×: times as fast as OFA (released code)" in caption_of(figure)


@pytest.mark.parametrize("datasets, shown", [(["cifar100", "mine"], "CIFAR-100"), (["mnist", "mine"], "mine")])
def test_figure_1_shows_the_hardest_dataset(datasets, shown):
    population, times = made_up(datasets)
    times.loc[times["dataset"] == shown, "training_seconds"] *= 2
    figure = figures.figure_1(population, times)
    left, right = panels(figure)
    assert left.get_title() == f"(a) Training time, {shown}"
    assert right.get_title() == f"(b) Subnet population, {shown}"
    assert ratios(left) == ["×6.0", "×2.0"]
    assert medians_drawn(right)[("rss", "12")] == 52
    assert left.get_ylabel().startswith("Training time (") and right.get_ylabel() == "Test accuracy (%)"


def test_figure_1_shows_the_dataset_asked_for():
    population, times = made_up(["mnist", "cifar100"])
    assert panels(figures.figure_1(population, times, "mnist"))[0].get_title().endswith("MNIST")
    with pytest.raises(InputError, match="unknown dataset 'mnst'"):
        figures.figure_1(population, times, "mnst")
    with pytest.raises(InputError, match="no rows for cifar100"):
        figures.figure_1(population, times.query("dataset == 'mnist'"))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_medians_spread_and_slope():
    population, _ = made_up(["digits"], medians={"ofa": (10.0, 30.0, 50.0), **MEDIANS, "rss": (50.0, 50.0, 50.0)})
    table = figures.medians(population)
    assert list(table.index) == [("Digits", "OFA"), ("Digits", "RSS-Short"), ("Digits", "RSS")]
    assert list(table.columns) == ["4 MFLOPs", "8 MFLOPs", "12 MFLOPs", "all", "spread", "slope"]
    rss = table.loc[("Digits", "RSS")]
    assert list(rss[:5]) == [50, 50, 50, 50, 4]
    expected = np.polyfit(*population.query("method == 'rss'")[["mflops", "accuracy"]].to_numpy().T, 1)[0]
    assert rss["slope"] == pytest.approx(expected)


def test_spread_is_that_within_a_seed():
    population, _ = made_up(methods=["rss"], seeds=(0, 30))
    assert figures.medians(population)["spread"].tolist() == [6.0]  # 49 to 55, and the same 30 higher


def test_compare_pairs_subnets():
    population, _ = made_up(seeds=(0, 1))
    population = population.sample(frac=1, random_state=0)  # the order of rows is of no consequence
    population = population[~((population["method"] == "ofa") & (population["seed"] == 1))]
    table = figures.compare(population, "rss", "ofa").sort_values("bucket")
    assert table["pairs"].tolist() == [3, 3, 3]  # seed 0 alone
    assert table["difference"].tolist() == table["mean_difference"].tolist() == [10, 6, 2]
    assert table["better"].tolist() == [3, 3, 3]
    assert table["median"].tolist() == [50, 51, 52]
    assert table["baseline_median"].tolist() == [40, 45, 50]


def test_against_published():
    population, times = made_up(["mnist", "cifar100"])
    table = figures.against_published(population, times)
    rss = table[(table["method"] == "RSS") & (table["bucket"] == 4)].iloc[0]
    assert (rss["ours"], rss["published"]) == (50, 51.8)
    assert rss["difference"] == pytest.approx(-1.8)
    speeds = table[table["quantity"] == "speed-up over OFA"].set_index("method")
    assert speeds["published"].to_dict() == {"RSS-Short": 6.1, "RSS": 1.9}
    assert speeds["ours"].to_dict() == pytest.approx({"RSS-Short": 6, "RSS": 2})
    assert set(speeds["dataset"]) == {"MNIST, CIFAR-100"}
    assert len(table) == 3 * len(BUCKETS) + 2


@pytest.mark.parametrize("kind", [{"datasets": ["cifar10"]}, {"backbone": "proxylessnas"}])
def test_nothing_is_published_of_others(kind):
    table = figures.against_published(*made_up(**kind))
    assert table.empty and "ours" in table


# --- words ------------------------------------------------------------------------------------------------------------


def said(profile="paper", **made):
    return figures.findings(*made_up(**made), profile)


def test_findings_state_wins_and_mixed_results():
    text = said()
    assert "### CIFAR-100" in text
    assert "3 subnets in each of 3 buckets (4 to 12 MFLOPs), 1 seed." in text
    assert "**RSS wins over OFA in every bucket.**" in text
    assert "The median of RSS is above OFA's in all 3 buckets, by 2.00 to 10.00 points." in text
    assert "RSS is more accurate in 9 of 9 cases; the mean difference is +6.00 points." in text
    assert "**RSS-Short against OFA is mixed.**" in text
    assert (
        "The median of RSS-Short is above OFA's at 4 MFLOPs, by 7.00 points; below OFA's at 12 MFLOPs, by 2.00 points; "
        "equal to OFA's at 8 MFLOPs."
    ) in text
    assert "RSS-Short is more accurate in 3 of 9 cases; the mean difference is +1.67 points." in text
    assert "Spread from the worst subnet to the best, in points: OFA 14.00, RSS-Short 7.00, RSS 6.00" in text
    assert "smallest for RSS." in text
    assert "RSS is 2.00 times as fast as OFA." in text and "RSS-Short is 6.00 times as fast as OFA." in text
    assert "one seed (0), so nothing can be said" in text
    assert "Across datasets" not in text and "profile" not in text.lower()


def test_findings_state_losses_and_ties():
    text = said(medians={"ofa": (50, 51, 52), "rss": (49, 48, 47), "rss-short": (50, 51, 52)})
    assert "**RSS loses to OFA in every bucket.**" in text
    assert "The median of RSS is below OFA's in all 3 buckets, by 1.00 to 5.00 points." in text
    assert "the mean difference is -3.00 points" in text
    assert "**RSS-Short and OFA are equal in every bucket.**" in text
    assert "The median of RSS-Short is equal to OFA's in all 3 buckets." in text
    assert "RSS-Short is more accurate in 0 of 9 cases; the mean difference is +0.00 points." in text
    assert "wins" not in text


def test_findings_say_when_a_method_is_slower():
    population, times = made_up()
    times.loc[times["method"] == "rss", "training_seconds"] = 750.0
    text = figures.findings(population, times, "paper")
    assert "RSS takes 1.25 times as long as OFA." in text


def test_findings_give_no_ratio_between_machines():
    population, times = made_up()
    times.loc[times["method"] == "rss", "hardware"] = "Quipu"
    text = figures.findings(population, times, "paper")
    assert "No ratio is given for RSS: hardware or executor differ from OFA's." in text
    assert "RSS-Short is 6.00 times as fast" in text and "RSS is 2.00" not in text


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_findings_at_a_small_scale_decide_nothing(profile):
    assert f"Profile `{profile}` is not the paper's scale" in said(profile)
    assert "decides nothing about the paper's claims" in said(profile)


def test_findings_of_rss_alone():
    text = said(methods=["rss"], datasets=["digits"])
    assert "OFA is not among the methods run (RSS): nothing to compare with." in text
    assert "wins" not in text and "times as fast" not in text and "paired" not in text
    assert "Training time on Abacus (executor: eager): RSS 5 min." in text


def test_findings_of_ofa_alone():
    text = said(methods=["ofa"])
    assert "Only OFA was run: nothing to compare with." in text


def test_findings_compare_with_both_versions_of_ofa():
    text = said(methods=["rss", "ofa", "ofa-released"], medians=MEDIANS | {"ofa-released": (39, 44, 49)})
    assert "**OFA (released code) loses to OFA in every bucket.**" in text
    assert "**RSS wins over OFA in every bucket.**" in text
    assert "The median of RSS is above OFA (released code)'s in all 3 buckets, by 3.00 to 11.00 points." in text


def test_findings_say_whether_seeds_agree():
    text = said(methods=["ofa", "rss"], seeds=(0, 1))
    assert "Seeds 0 and 1 are pooled in the medians" in text
    assert (
        "Seed by seed it is +6.00 to +6.00 points; the medians are above in every bucket for each of the 2 seeds."
        in text
    )
    population, times = made_up(methods=["ofa", "rss"], seeds=(0, 1, 2))
    upset = (population["method"] == "rss") & (population["seed"] == 1)
    population.loc[upset, "accuracy"] -= 30
    text = figures.findings(population, times, "paper")
    assert "Seed by seed it is -24.00 to +6.00 points" in text
    assert "above in every bucket (seeds 0 and 2), below in every bucket (seed 1)." in text


def test_findings_leave_out_what_has_no_counterpart():
    population, times = made_up(methods=["ofa", "rss"], seeds=(0, 1))
    some = population[(population["method"] == "rss") | (population["seed"] == 0)]
    assert "Left out: 9 evaluations whose subnet and seed only one of the two has." in figures.findings(
        some, times, "paper"
    )
    none = population[(population["method"] == "rss") == (population["seed"] == 0)]
    assert "RSS and OFA share no subnet and seed: not compared." in figures.findings(none, times, "paper")


def test_findings_of_one_bucket():
    population, times = made_up()
    text = figures.findings(population[population["bucket"] == 4], times, "paper")
    assert "3 subnets in the bucket of 4 MFLOPs, 1 seed." in text
    assert "The median of RSS is above OFA's in the one bucket, by 10.00 points." in text


@pytest.mark.parametrize("harder, word", [(10.0, "grows"), (-10.0, "does not grow")])
def test_findings_across_datasets(harder, word):
    population, times = made_up(["cifar100", "mnist"], methods=["ofa", "rss"])
    population.loc[(population["dataset"] == "cifar100") & (population["method"] == "rss"), "accuracy"] += harder
    text = figures.findings(population, times, "paper").split("### Across datasets")[1]
    gap = f"RSS minus OFA, mean difference in points: MNIST +6.00, CIFAR-100 {6 + harder:+.2f}."
    assert f"{gap} From MNIST to CIFAR-100 the difference {word} at every step." in text
    assert "Mean speed-up over 2 datasets: 2.00." in text


# --- captions, files, mistakes ----------------------------------------------------------------------------------------


def test_caption_names_datasets_scale_seeds_and_hardware():
    _, times = made_up(["digits"])
    planned = runs.plan("smoke", methods=["ofa", "rss"], seeds=[0, 1])
    scale = planned[0].profile.describe("digits")
    assert figures.caption(planned) == f"Profile smoke, seeds 0 and 1. Digits: {scale}."
    assert figures.caption(planned, times).endswith(f"Digits: {scale}. Trained on Abacus (executor: eager).")
    paper = figures.caption(runs.plan("paper", seeds=[3]))
    assert "seed 3." in paper and "MNIST: 10 + 27 epochs" in paper and "CIFAR-10 and CIFAR-100: 180 + 410" in paper
    with pytest.raises(InputError, match="at least one run"):
        figures.caption([])


def test_caption_is_wrapped_inside_the_figure_and_below_the_panels():
    population, times = made_up(["mnist", "cifar100"])
    long = "A caption of many words. " * 40
    for figure in (figures.population_boxes(population, long), figures.figure_1(population, times, caption=long)):
        figure.draw_without_rendering()
        (text,) = [text for text in figure.texts if text.get_gid() == "caption"]
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
        assert box.y1 <= min(axes.get_tightbbox().y0 for axes in panels(figure))
        assert caption_of(figure).startswith(long.strip())


def test_legend_is_inside_the_figure_and_above_the_panels():
    population, _ = made_up(methods=[*METHODS, "ofa-released"], seeds=(0, 1))
    figure = figures.population_boxes(population, published=figures.published())
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert box.y0 >= max(axes.get_tightbbox().y1 for axes in panels(figure))


def test_methods_differ_without_colour():
    mains = ("ofa", "ofa-released", "rss-short", "rss")
    styles = {method: figures.METHOD_STYLES[method] for method in mains}
    assert len({style.hatch for style in styles.values()}) == len({style.label for style in styles.values()}) == 4
    luma = [np.dot([int(s.colour[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114]) for s in styles.values()]
    order = [luma[list(styles).index(m)] for m in ("ofa", "rss", "rss-short")]
    assert np.diff(order).min() > 30


def test_every_method_has_a_label_and_what_is_compared_differs_in_hatch():
    assert set(figures.METHOD_STYLES) == set(methods.METHODS)
    assert len({style.label for style in figures.METHOD_STYLES.values()}) == len(methods.METHODS)
    for base in ("rss", "rss-short"):
        for group in (("", "-per-batch", "-2-per-batch"), ("-smallest", "-middle", "-largest"),
                      ("", "-max-then-min", "-min-then-max", "-alternating"), ("", "-batch-128")):  # fmt: skip
            names = [base + suffix for suffix in group if base + suffix in methods.METHODS]
            assert len({figures.METHOD_STYLES[name].hatch for name in names}) == len(names)


def test_a_figure_of_unfinished_runs_is_a_sentence_and_a_split_makes_panels(tmp_path):
    table, times = made_up(methods=("rss", "ofa"))
    words = figures.population_figure(table, times, [], ["rss-largest"], tmp_path, "figure_6")
    assert "figure_6 is not drawn" in words and "rss-largest" in words
    figure = figures.population_boxes(table, split={"(a) RSS": ["rss"], "(b) OFA": ["ofa"]})
    assert [axes.get_title() for axes in figure.axes] == ["(a) RSS", "(b) OFA"]


def test_variants_are_compared_with_their_unchanged_method():
    table, _ = made_up(methods=("rss", "rss-per-batch", "rss-short-per-batch"))
    words = figures.comparisons(table, ["rss", "rss-short"], "smoke")
    assert "decides nothing" in words
    assert "RSS, 1 per batch" in words and "rss-short was not run" in words


def test_save_writes_both_files_the_same_every_time(tmp_path):
    population, _ = made_up()
    contents = []
    for folder in ("a/b", "c"):
        figure = figures.population_boxes(population)
        paths = figures.save(figure, tmp_path / folder, "figure_3")
        assert paths == [tmp_path / folder / "figure_3.png", tmp_path / folder / "figure_3.pdf"]
        assert sorted(paths) == sorted((tmp_path / folder).iterdir())  # no temporary files are left
        contents.append([path.read_bytes() for path in paths])
        with Image.open(paths[0]) as image:
            assert image.size == tuple(int(200 * inches) for inches in figure.get_size_inches())
    assert contents[0] == contents[1]
    assert contents[0][1].startswith(b"%PDF") and b"CreationDate" not in contents[0][1]


def test_a_failed_save_leaves_no_file(tmp_path):
    figure = figures.population_boxes(made_up()[0])
    figure.axes[0].add_line(Line2D([0], [0], label="x")).draw = None  # cannot be drawn
    with pytest.raises(TypeError):
        figures.save(figure, tmp_path, "figure_3")
    assert list(tmp_path.iterdir()) == []


DRAW = {
    "population_boxes": lambda population, times: figures.population_boxes(population),
    "training_time_bars": lambda population, times: figures.training_time_bars(times),
    "figure_1": figures.figure_1,
    "medians": lambda population, times: figures.medians(population),
    "compare": lambda population, times: figures.compare(population, "rss", "ofa"),
    "against_published": figures.against_published,
    "findings": lambda population, times: figures.findings(population, times, "paper"),
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
        figures.training_time_bars(times)


def test_style_sets_the_sizes_of_text():
    title = figures.population_boxes(made_up()[0]).axes[0].title
    assert title.get_fontsize() == matplotlib.rcParams["axes.titlesize"] == 8.5
    assert title.get_fontname() == "DejaVu Sans"
