"""Answers on interference from made-up tables with known numbers."""

import math
from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rsstudy.claims import interference as questions
from rsstudy.claims import samplers
from rsstudy.claims.evidence import TAIL, Evidence, Part, seeds_needed
from rsstudy.figures import interference as drawings
from rsstudy.figures.populations import save_figure

SEEDS = (0, 1, 2)
NOISE = {0: -0.1, 1: 0.0, 2: 0.1}  # of a seed; Student's t of two degrees of freedom makes it +-0.248
T = 4.302652729911275
NO_POPULATION = pd.DataFrame(columns=["method", "seed", "bucket", "subnet", "accuracy"])


def population(methods, seeds=SEEDS, buckets=(4.0, 8.0, 14.0), subnets=10):
    """Accuracy by method: a function of bucket, number and seed."""
    rows = [
        {
            "dataset": "fashion_mnist", "backbone": "mobilenet_v3", "method": method, "seed": seed, "bucket": bucket,
            "subnet": i, "mflops": bucket + i / 100, "kernel": f"k{bucket}", "expand": f"e{i}", "depth": "d",
            "accuracy": float(accuracy(bucket, i, seed)),
        }
        for method, accuracy in methods.items()
        for seed in seeds
        for bucket in buckets
        for i in range(subnets)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def alone_in_order(gap=3.0, exposed=1.0, order=1):
    """RSS, and ten subnets alone that are better by `gap` and `exposed`, ranked as in RSS or the other way."""

    def alone(number, lead):
        return lambda bucket, i, seed: 60 + (order * i if i == number else 0) + lead + NOISE[seed]

    methods = {"rss": lambda bucket, i, seed: 60 + i}
    for number in range(10):
        methods[f"alone-8-{number}"] = alone(number, gap)
        methods[f"alone-8-{number}-exposed"] = alone(number, exposed)
    return population(methods)


def anchors(methods):
    rows = [
        {"method": method, "seed": seed, "bucket": size, "accuracy": accuracy + NOISE[seed]}
        for method, values in methods.items()
        for seed in SEEDS
        for size, accuracy in zip((4.05, 7.2, 15.31), values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_gaps_are_those_of_the_same_subnet_and_seed():
    alone = questions.standalone(alone_in_order(), NO_POPULATION)
    assert len(alone) == 60 and set(alone["training"]) == {questions.EQUAL, questions.EXPOSED}
    for training, expected in ((questions.EQUAL, 3.0), (questions.EXPOSED, 1.0)):
        part = questions.gap(alone, training)
        assert (part.estimate, part.seeds) == (pytest.approx(expected), 3)
        assert part.high() - part.estimate == pytest.approx(T * 0.1 / math.sqrt(3))
    assert [part.label for part in questions.gaps(alone)] == ["8 MFLOPs, equal epochs", "8 MFLOPs, equal exposure"]


def test_gaps_are_those_of_subnets_that_every_seed_has():
    made = alone_in_order()
    missing = (made["seed"] == 2) & made["method"].str.startswith("alone") & (made["subnet"] > 5)
    made.loc[made["subnet"] > 5, "accuracy"] += made["method"].str.startswith("alone") * 50  # would widen the interval
    part = questions.gap(questions.standalone(made[~missing], NO_POPULATION), questions.EQUAL)
    assert (part.estimate, part.seeds) == (pytest.approx(3), 3)
    assert part.high() - part.estimate == pytest.approx(T * 0.1 / math.sqrt(3))


def test_a_subnet_that_the_supernet_was_not_evaluated_on_is_left_out():
    made = alone_in_order()
    fewer = made[(made["method"] != "rss") | (made["subnet"] < 4)]
    assert set(questions.standalone(fewer, NO_POPULATION)["number"]) == {0, 1, 2, 3}
    assert set(questions.of_supernets(made)["method"]) == {"rss"}


def test_anchors_are_compared_with_single_subnet_training_of_their_size():
    made = {"rss": (50, 60, 70), "rss-smallest": (55, 1, 2), "rss-middle": (3, 61, 4), "rss-largest": (5, 6, 68)}
    alone = questions.standalone(population({"rss": lambda b, i, s: 60}), anchors(made))
    gaps = alone.groupby("number")["gap"].mean()
    assert gaps.to_dict() == {0: pytest.approx(5), 1: pytest.approx(1), 2: pytest.approx(-2)}


@pytest.mark.parametrize(("order", "tau", "regret"), [(1, 1, 0), (-1, -1, 9)])
def test_ranking_finds_equal_and_opposite_orders(order, tau, regret):
    shared, ceiling, lost, least = questions.ranking(questions.standalone(alone_in_order(order=order), NO_POPULATION))
    assert shared.estimate == pytest.approx(tau) and ceiling.estimate == pytest.approx(1)
    assert lost.estimate == pytest.approx(regret) and least.estimate == pytest.approx(0)


def test_among_subnets_that_do_not_differ_shared_weights_choose_as_well_as_another_seed():
    """The best of ten equal ones is the luckiest: any choice misses it by the expected largest of ten."""
    rng, lost, least = np.random.default_rng(0), [], []
    rows = pd.DataFrame([(seed, number) for seed in SEEDS for number in range(10)], columns=["seed", "number"])
    rows = rows.assign(training=questions.EQUAL, bucket=8.0)
    for _ in range(200):
        made = rows.assign(alone=rng.normal(size=len(rows)), shared=rng.normal(size=len(rows)))
        *_, shared, floor = questions.ranking(made)
        lost, least = [*lost, shared.estimate], [*least, floor.estimate]
    assert np.mean(lost) == pytest.approx(1.539, abs=0.15) and np.mean(least) == pytest.approx(1.539, abs=0.15)


def test_the_ceilings_interval_is_the_jackknifes():
    three = questions.over_pairs("x", {(0, 1): 0.2, (0, 2): 0.5, (1, 2): 0.8})
    left_out = np.array([0.8, 0.5, 0.2])  # the one pair without the seed
    assert three.estimate == pytest.approx(0.5) and (three.degrees, three.seeds) == (2, 3)
    assert three.error == pytest.approx(math.sqrt(2 / 3 * ((left_out - 0.5) ** 2).sum()))
    two = questions.over_pairs("x", {(0, 1): 0.6})
    assert (two.estimate, two.degrees, two.seeds) == (0.6, 0, 2)
    assert questions.over_pairs("x", {(0, 1): math.nan}).missing


def effects_table(off, own, methods=("rss",)):
    """Effects on the others and on oneself: functions of seed and share."""
    return pd.DataFrame(
        [
            {
                "method": method, "seed": seed, "length": length, "share": share, "trained": a, "judged": b,
                "trained_mflops": 4.0 + a, "judged_mflops": 4.0 + b, "distance": 5 * abs(a - b),
                "loss_effect": (own if a == b else off)(seed, share), "accuracy_effect": 0.0, "repeats": 3,
            }
            for method in methods for seed in SEEDS for length in ("step", "epoch") for share in (0.25, 0.95)
            for a in range(4) for b in range(4)
        ]
    )  # fmt: skip


def test_effects_on_others_have_a_sign_where_their_interval_does():
    table = effects_table(lambda seed, share: -0.2 * share + NOISE[seed] / 100, lambda seed, share: 0.5)
    parts = questions.effect_parts(table)
    row = parts[(parts["length"] == "step") & (parts["share"] == 0.95)].iloc[0]
    assert row["others"].estimate == pytest.approx(-0.19) and questions.sign(row["others"]) == -1
    assert row["ratio"] == pytest.approx(-0.38) and row["harmed"] == 1
    assert math.isnan(row["distance"].estimate)  # all pairs alike
    unclear = effects_table(lambda seed, share: NOISE[seed], lambda seed, share: NOISE[seed])
    assert questions.effect_parts(unclear)["ratio"].isna().all()  # the diagonal's interval holds 0


def test_effects_that_fall_with_distance_are_told_so():
    table = effects_table(lambda seed, share: 0.0, lambda seed, share: 0.5)
    table.loc[table["trained"] != table["judged"], "loss_effect"] = 1 / table["distance"] + table["seed"] / 100
    parts = questions.effect_parts(table)
    assert parts["distance"].map(lambda part: part.estimate).tolist() == [pytest.approx(-1)] * 4


def agreement_of(value, methods=("rss", "ofa"), floor=0.05):
    """Two subnets agree by `value` of how far apart they are and the share of training, with the noise of the seed."""
    rows = []
    for method in methods:
        for seed, share, part in product(SEEDS, (0.25, 0.95), ("all", "first", "0", "1", "last")):
            for a, b in combinations_with_replacement(range(4), 2):
                agreed = 1.0 if a == b else value(b - a, share) + NOISE[seed] / 10
                rows.append(
                    {"method": method, "seed": seed, "share": share, "a": a, "b": b, "part": part,
                     "distance": 10 * (b - a), "cross": agreed * floor, "own_a": floor, "own_b": floor,
                     "agreement": agreed}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_agreement_is_a_mean_over_different_subnets_and_falls_with_distance():
    parts = questions.agreement_parts(agreement_of(lambda apart, share: 0.9 - 0.2 * apart))
    row = parts.iloc[0]
    assert row["agreement"].estimate == pytest.approx(0.9 - 0.2 * (3 * 1 + 2 * 2 + 3) / 6)
    assert row["distance"].estimate == pytest.approx(-1)


def test_agreement_is_told_only_where_gradients_are_more_than_noise():
    """A pair with a floor near 0 changes little; floors below 0, or not above it over seeds, leave nothing to say."""
    known = agreement_of(lambda apart, share: 0.5, ("rss",))
    one = (known["a"] == 0) & (known["b"] == 1)
    nearly = known.assign(own_a=known["own_a"].where(~one, 1e-6), agreement=known["agreement"].where(~one, 1e3))
    assert questions.agreement_parts(nearly)["agreement"].iloc[0].estimate == pytest.approx(0.5, abs=0.1)
    for floors in ((0.05, 0.05, -0.01), (0.05, 0.0001, 0.0001)):
        floor = known["seed"].map(dict(zip(SEEDS, floors, strict=True)))
        made = known.assign(own_a=floor, own_b=floor)
        parts = questions.agreement_parts(made)
        assert not parts["agreement"].iloc[0].seeds and not parts["distance"].iloc[0].seeds
        assert drawings.figure_agreement(made).caption.endswith("of training.")


def known_contrasts():
    base = {"rss": 60, "rss-per-batch": 58, "rss-2-per-batch": 55, "rss-2-per-batch-mean": 58.5, "rss-same-twice": 55.2,
            "rss-every-3-epochs": 61, "rss-constant": 59.5, "ofa": 57, "ofa-teacher": 56}  # fmt: skip
    made = population({m: lambda b, i, s, a=a: a + i + NOISE[s] * (a % 3) for m, a in base.items()})
    return made, Evidence(made, pd.DataFrame(), "quick", ["fashion_mnist"])


def test_controls_are_differences_of_the_methods_that_they_name():
    _, evidence = known_contrasts()
    families = questions.contrasts(evidence)
    known = [part.estimate for part in families["controls"] if not part.missing]
    np.testing.assert_allclose(known, [-0.5, 0.2, 2.8, 0.5, 1.0])
    assert sum(bool(part.missing) for part in families["controls"]) == 5
    first, *_, last = families["sampling intervals"]
    assert (first.estimate, last.estimate) == (pytest.approx(-2), pytest.approx(1))


def test_answers_have_the_numbers_of_each_question():
    _, evidence = known_contrasts()
    alone = questions.standalone(alone_in_order(gap=3.0, exposed=0.05), NO_POPULATION)
    effects = effects_table(lambda seed, share: share + NOISE[seed] / 100, lambda seed, share: 5.0)
    found = questions.answers(alone, effects, agreement_of(lambda apart, share: share / apart, ("ofa",)), evidence)
    assert [round(part.estimate, 6) for part in found["alone minus shared"]] == [3, 0.05]
    (others,) = found["an epoch on one: the others' loss falls by"]
    assert (others.label, others.estimate) == ("RSS", pytest.approx(0.25))  # of 25 and 95 %, the nearer to half
    (agreed,) = found["agreement of gradients"]
    assert (agreed.label, agreed.estimate) == ("OFA", pytest.approx(0.25 * (3 + 2 / 2 + 1 / 3) / 6))
    rows = questions.part_rows(found)
    assert len(rows) == sum(map(len, found.values())) and set(rows["family"]) == set(found)


def test_one_seed_tells_no_interval_from_an_epoch_and_its_figures_claim_none():
    made, _ = known_contrasts()
    evidence = Evidence(made[made["seed"] == 0], pd.DataFrame(), "quick", ["fashion_mnist"])
    effects = effects_table(lambda s, h: 0.1, lambda s, h: 0.5)
    assert "One seed has no intervals." in drawings.figure_effects(effects[effects["seed"] == 0]).caption
    assert "intervals over seeds" in drawings.figure_effects(effects).caption
    assert "intervals over subnets, one seed" in drawings.figure_contrasts(questions.contrasts(evidence)).caption


def test_every_method_is_drawn_however_many_there_are():
    made = population({f"method-{i}": lambda b, i, s: 60 + i for i in range(12)})
    figure = drawings.figure_samplers(samplers.comparison(made))
    assert [len(axes.get_lines()) for axes in figure.axes] == [12, 12]


def test_nothing_measured_gives_no_numbers():
    nothing = questions.standalone(NO_POPULATION, NO_POPULATION)
    empty = Evidence(pd.DataFrame(), pd.DataFrame(), "quick", ["fashion_mnist"])
    found = questions.answers(nothing, pd.DataFrame(), pd.DataFrame(), empty)
    assert not questions.part_rows(found)["seeds"].any()


@pytest.mark.parametrize(("deviation", "seeds"), [(0.1, 2), (1.0, 7), (5.0, 99)])
def test_seeds_needed_are_the_fewest_whose_interval_is_narrow_enough(deviation, seeds):
    from scipy.stats import t

    part = Part("x", 0.0, deviation / math.sqrt(3), 2, 3)
    n = seeds_needed(part)
    assert n == pytest.approx(seeds, abs=0.1 * seeds)

    def width(n):
        return t.ppf(0.975, n - 1) * deviation / math.sqrt(n)

    assert width(n) <= 1 and (n == 2 or width(n - 1) > 1)
    corrected = seeds_needed(part, tail=TAIL / 6)
    assert corrected > n and t.ppf(1 - TAIL / 6, corrected - 1) * deviation / math.sqrt(corrected) <= 1


def test_every_figure_is_drawn_with_a_caption(tmp_path):
    made = {"rss": (50, 60, 70), "rss-smallest": (55, 1, 2), "rss-middle": (3, 61, 4), "rss-largest": (5, 6, 68)}
    alone = questions.standalone(alone_in_order(), anchors(made))
    table, evidence = known_contrasts()
    figures = {
        "alone": drawings.figure_alone(alone),
        "effects": drawings.figure_effects(effects_table(lambda s, h: -h, lambda s, h: 1.0, ("rss", "ofa"))),
        "agreement": drawings.figure_agreement(agreement_of(lambda apart, share: 0.9 - 0.2 * apart)),
        "contrasts": drawings.figure_contrasts(questions.contrasts(evidence)),
        "samplers": drawings.figure_samplers(samplers.comparison(table), [Part("RSS minus x", 1.0, 0.5, 2, 3)]),
    }
    for name, figure in figures.items():
        save_figure(figure, tmp_path, name)
        assert figure.caption and (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ((3, 3), "over seeds."),
        ((1, 1), "over subnets, one seed."),
        ((3, 1), "over seeds; hollow: one seed, over subnets."),
    ],
)
def test_a_figure_of_contrasts_tells_intervals_over_seeds_from_those_of_one_seed(seeds, words):
    parts = [Part(f"of {n}", 1.0, 0.5, 2, n) for n in seeds]
    figure = drawings.figure_contrasts({"controls": parts})
    assert figure.caption == f"Bars: 95 % intervals {words}"
    drawn = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [colour == "white" for colour in drawn] == [n == 1 for n in seeds]


# --- which method to use


def times_of(seconds):
    return pd.DataFrame(
        [
            {"dataset": "fashion_mnist", "backbone": "mobilenet_v3", "method": m, "seed": seed, "training_seconds": s,
             "training_processor_seconds": s, "evaluation_seconds": 1.0, "hardware": "Abacus", "executor": "eager"}
            for m, s in seconds.items() for seed in SEEDS
        ]
    )  # fmt: skip


def test_times_of_one_machine_compare_by_the_clock_that_other_programs_hardly_change():
    times = times_of({"rss": 100.0, "fair": 90.0})
    times.loc[times["method"] == "fair", "training_seconds"] = 900.0  # beside another program
    assert samplers.took(times).to_dict() == {"fair": 90, "rss": 100}
    times.loc[times["method"] == "fair", "hardware"] = "Loom"
    assert samplers.took(times).empty


def test_leads_are_on_the_seeds_that_all_methods_have_as_the_ranking_is():
    rss = (80, 80.2, 70, 70.1, 69.9)  # the last three without strict fairness
    made = population(
        {"rss": lambda b, i, s: rss[s] + i, "compound": lambda b, i, s: 79 + i, "fair": lambda b, i, s: 60 + i},
        seeds=range(5),
    )
    made = made[(made["method"] != "fair") | (made["seed"] < 2)]
    evidence = Evidence(made, pd.DataFrame(), "quick", ["fashion_mnist"])
    leads = samplers.leads_of_best(made, evidence)
    assert list(leads) == ["compound", "fair"] and {part.seeds for part in leads.values()} == {2}
    assert leads["compound"].estimate == pytest.approx(1.1)
    drawn = samplers.comparison(made).set_index(["method", "bucket"])["mean"]
    assert drawn["rss"].mean() - drawn["compound"].mean() == pytest.approx(1.1)
    assert leads["compound"] == evidence.contrast("RSS minus Compound", {"rss": 1, "compound": -1}, of_seeds=[0, 1])


def test_more_seeds_do_not_lessen_what_varies_between_subnets():
    rng = np.random.default_rng(0)
    of_subnet = {b: rng.normal(0, 3, 3) for b in (4.0, 8.0, 14.0)}
    made = population(
        {"rss": lambda b, i, s: 60 + of_subnet[b][i] + (s - 1) / 2, "rss-per-batch": lambda b, i, s: 60}, subnets=3
    )
    part = Evidence(made, pd.DataFrame(), "quick", ["fashion_mnist"]).lead("x", "rss", "rss-per-batch")
    assert part.error**2 == pytest.approx(0.25 / 3 + part.remaining, rel=1e-6) and part.remaining > 0.3
    assert seeds_needed(part) is None  # 1.96 times the root of what remains is more than a point
    assert seeds_needed(part, 3.0) == next(
        n for n in range(2, 99) if stats.t.isf(0.025, n - 1) * math.sqrt(0.25 / n + part.remaining) <= 3
    )
    assert seeds_needed(replace(part, remaining=0.0)) > 3


def test_the_best_is_the_best_on_the_seeds_that_all_have():
    made = population({"rss": lambda b, i, s: 60 - 20 * (s == 2), "fair": lambda b, i, s: 59})
    made = made[(made["method"] == "rss") | (made["seed"] < 2)]
    found = samplers.accuracies(made)
    assert list(found.index) == ["rss", "fair"] and found.iloc[0] == pytest.approx(60)
