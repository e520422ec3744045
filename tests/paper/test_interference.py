"""Measurements of interference and comparisons of methods, from made-up tables with known numbers."""

import math
from itertools import combinations_with_replacement, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rsstudy.claims import interference as questions
from rsstudy.claims import samplers
from rsstudy.claims.evidence import Evidence
from rsstudy.figures import interference as drawings
from rsstudy.plan import plan

SEEDS = (0, 1, 2)
NOISE = {
    0: -0.1,
    1: 0.0,
    2: 0.1,
}  # of a seed; Student's t of two degrees of freedom makes it +-0.248
T = 4.302652729911275
NO_POPULATION = pd.DataFrame(columns=["method", "seed", "bucket", "subnet", "accuracy"])
NO_EFFECTS = pd.DataFrame(columns="method length share seed trained judged loss_effect distance".split())
NO_AGREEMENT = pd.DataFrame(columns=["method", "share", "seed", "part", "a", "b", "cross", "own_a", "own_b"])


def population(methods, seeds=SEEDS, buckets=(4.0, 8.0, 14.0), subnets=10):
    """Accuracy by method: a function of bucket, number and seed."""
    rows = [
        {
            "dataset": "fashion_mnist", "backbone": "mobilenet_v3", "method": method, "seed": seed, "bucket": bucket,
            "subnet": i, "mflops": bucket + i / 100, "accuracy": float(accuracy(bucket, i, seed)),
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


def gap(alone, training):
    (part,) = [part for part in questions.gaps(alone) if part.label == f"8 MFLOPs, {training}"]
    return part


def anchors(methods):
    rows = [
        {
            "method": method,
            "seed": seed,
            "bucket": size,
            "accuracy": accuracy + NOISE[seed],
        }
        for method, values in methods.items()
        for seed in SEEDS
        for size, accuracy in zip((4.05, 7.2, 15.31), values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_gaps_are_welchs_differences_of_seed_means():
    made = alone_in_order()
    made.loc[made["method"] == "rss", "accuracy"] += made["seed"]
    more = population({"rss": lambda bucket, i, seed: 60 + i + seed}, seeds=(3, 4))
    alone = questions.standalone(pd.concat([made, more]), NO_POPULATION)
    assert set(alone["training"]) == {questions.EQUAL, questions.EXPOSED} and set(alone["seed"]) == set(range(5))
    for training, lead in ((questions.EQUAL, 3.0), (questions.EXPOSED, 1.0)):
        part = gap(alone, training)
        own = [60 + 4.5 + lead + NOISE[seed] for seed in SEEDS]
        known = stats.ttest_ind(own, [60 + 4.5 + seed for seed in range(5)], equal_var=False).confidence_interval()
        assert (part.estimate, part.seeds) == (pytest.approx(lead - 2), 3)
        assert (part.low(), part.high()) == pytest.approx((known.low, known.high))
    assert [part.label for part in questions.gaps(alone)] == [
        "8 MFLOPs, equal epochs",
        "8 MFLOPs, equal exposure",
    ]


def test_gaps_are_those_of_subnets_that_every_seed_has():
    made = alone_in_order()
    missing = (made["seed"] == 2) & made["method"].str.startswith("alone") & (made["subnet"] > 5)
    made.loc[made["subnet"] > 5, "accuracy"] += made["method"].str.startswith("alone") * 50  # would widen the interval
    part = gap(questions.standalone(made[~missing], NO_POPULATION), questions.EQUAL)
    assert (part.estimate, part.seeds) == (pytest.approx(3), 3)
    assert part.margin == pytest.approx(T * 0.1 / math.sqrt(3))


def test_one_seed_alone_leaves_a_gap_without_interval():
    made = alone_in_order()
    made = made[(made["method"] == "rss") | (made["seed"] == 0)]
    part = gap(questions.standalone(made, NO_POPULATION), questions.EQUAL)
    assert part.seeds == 1 and part.estimate == pytest.approx(2.9) and math.isnan(part.low())


def test_a_subnet_that_the_supernet_was_not_evaluated_on_is_left_out():
    made = alone_in_order()
    made.loc[made["subnet"] >= 4, "accuracy"] += 50 * made["method"].str.startswith("alone")
    fewer = made[(made["method"] != "rss") | (made["subnet"] < 4)]
    assert gap(questions.standalone(fewer, NO_POPULATION), questions.EQUAL).estimate == pytest.approx(3)


def test_anchors_are_compared_with_single_subnet_training_of_their_size():
    made = {
        "rss": (50, 60, 70),
        "rss-smallest": (55, 1, 2),
        "rss-middle": (3, 61, 4),
        "rss-largest": (5, 6, 68),
    }
    alone = questions.standalone(population({"rss": lambda b, i, s: 60}), anchors(made))
    gaps = {part.label: part.estimate for part in questions.gaps(alone)}
    assert gaps == pytest.approx(
        {
            "4.05 MFLOPs, smallest": 5,
            "7.2 MFLOPs, middle": 1,
            "15.3 MFLOPs, largest": -2,
        }
    )


@pytest.mark.parametrize(("order", "tau", "regret"), [(1, 1, 0), (-1, -1, 9)])
def test_ranking_finds_equal_and_opposite_orders(order, tau, regret):
    shared, ceiling, lost, least = questions.ranking(questions.standalone(alone_in_order(order=order), NO_POPULATION))
    assert shared.estimate == pytest.approx(tau) and ceiling.estimate == pytest.approx(1)
    assert lost.estimate == pytest.approx(regret) and least.estimate == pytest.approx(0)
    for pairs_of_seeds in (ceiling, least):
        assert pairs_of_seeds.seeds == 3 and math.isnan(pairs_of_seeds.low())


def test_among_subnets_that_do_not_differ_shared_weights_choose_as_well_as_another_seed():
    """The best of ten equal ones is the luckiest: any choice misses it by the expected largest of ten."""
    rng, lost, least = np.random.default_rng(0), [], []
    rows = pd.DataFrame(
        [(seed, number) for seed in SEEDS for number in range(10)],
        columns=["seed", "number"],
    )
    rows = rows.assign(training=questions.EQUAL, bucket=8.0)
    for _ in range(200):
        made = rows.assign(alone=rng.normal(size=len(rows)), shared=rng.normal(size=len(rows)))
        *_, shared, floor = questions.ranking(made)
        lost, least = [*lost, shared.estimate], [*least, floor.estimate]
    assert np.mean(lost) == pytest.approx(1.539, abs=0.15) and np.mean(least) == pytest.approx(1.539, abs=0.15)


@pytest.mark.parametrize("number, least", [(0, 0.5), (8, 0.5)])
def test_exposure_has_two_bounds_and_that_of_blocks_is_the_lower(number, least):
    row = questions.exposures().set_index("number").loc[number]
    space, arch = questions.STUDY, questions.of_bucket(questions.STUDY, 8.0, number)
    drawn = space.sample(300, np.random.default_rng(5))
    fixed = space.parameters(space.smallest) - space.total(space.smallest, space.tables[1], 0)
    shared = np.array([space.parameters(space.to_arch(np.minimum(space.to_rows([arch])[0], other))) for other in drawn])
    assert row["parameters"] == pytest.approx((shared / space.parameters(arch)).mean(), abs=0.02)
    assert row["blocks"] == pytest.approx(((shared - fixed) / (space.parameters(arch) - fixed)).mean(), abs=0.02)
    assert least < row["blocks"] < row["parameters"] < 0.9


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


def effects_of(table, **keys):
    found = questions.effect_table(table)
    return found.loc[(found[list(keys)] == pd.Series(keys)).all(axis=1)].set_index("what")


def test_effects_on_others_are_means_over_pairs_and_their_ratio_is_one_per_seed():
    table = effects_table(
        lambda seed, share: -0.2 * share + NOISE[seed] / 100,
        lambda seed, share: 0.5 + NOISE[seed],
    )
    found = effects_of(table, length="step", share=0.95)
    assert found["estimate"]["others"] == pytest.approx(-0.19) and found["high"]["others"] < 0
    ratios = [(-0.19 + NOISE[seed] / 100) / (0.5 + NOISE[seed]) for seed in SEEDS]
    known = stats.ttest_1samp(ratios, 0).confidence_interval()
    assert found["estimate"]["others / itself"] == pytest.approx(np.mean(ratios))
    assert (
        found["low"]["others / itself"],
        found["high"]["others / itself"],
    ) == pytest.approx((known.low, known.high))
    assert found["estimate"]["pairs harmed (%)"] == 100 and "correlation with distance" in found.index


@pytest.mark.parametrize("own", [lambda seed, share: NOISE[seed], lambda seed, share: -1.0])
def test_there_is_no_ratio_to_an_effect_on_itself_that_may_not_be_above_0(own):
    found = questions.effect_table(effects_table(lambda seed, share: NOISE[seed], own))
    assert "others / itself" not in set(found["what"]) and "others" in set(found["what"])


def test_effects_by_size_find_the_subnet_that_is_harmed():
    table = effects_table(lambda seed, share: 0.1 + NOISE[seed] / 10, lambda seed, share: 0.5)
    table.loc[(table["judged"] == 3) & (table["trained"] != 3), "loss_effect"] *= -1
    half = questions.half_way(table[table["length"] == "epoch"])
    assert set(half["share"]) == {0.25}  # of 25 and 95 %, the nearer to half
    found = questions.effect_table(half, ["method", "judged_mflops"]).query("what == 'pairs harmed (%)'")
    assert dict(zip(found["judged_mflops"], found["estimate"], strict=True)) == {
        4: 0,
        5: 0,
        6: 0,
        7: 100,
    }


def test_p_values_of_effects_are_corrected_over_methods_lengths_and_shares():
    table = effects_table(lambda seed, share: 0.1 + NOISE[seed], lambda seed, share: 0.5)
    found = questions.effect_table(table)
    others = found["what"] == "others"
    single = stats.ttest_1samp([0.1 + NOISE[seed] for seed in SEEDS], 0).pvalue
    assert (
        found["p (Holm)"][others].tolist() == [pytest.approx(4 * single)] * 4
        and found["p (Holm)"][~others].isna().all()
    )


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


def agreements(made, keys=("method", "share")):
    found = questions.agreement_table(made[made["part"] == "all"], keys)
    return found[found["what"] == "agreement"]


def test_agreement_is_a_mean_over_different_subnets_and_falls_with_distance():
    made = agreement_of(lambda apart, share: 0.9 - 0.2 * apart)
    assert agreements(made)["estimate"].tolist() == [pytest.approx(0.9 - 0.2 * (3 * 1 + 2 * 2 + 3) / 6)] * 4
    distance = questions.agreement_table(made).query("what == 'correlation with distance'")
    assert distance["estimate"].tolist() == [pytest.approx(-1)] * 4


def test_agreement_is_shown_only_where_gradients_are_more_than_noise():
    """A pair with a floor near 0 changes little; floors below 0, or not above it over seeds, leave nothing to say."""
    known = agreement_of(lambda apart, share: 0.5, ("rss",))
    one = (known["a"] == 0) & (known["b"] == 1)
    nearly = known.assign(
        own_a=known["own_a"].where(~one, 1e-6),
        agreement=known["agreement"].where(~one, 1e3),
    )
    assert agreements(nearly)["estimate"].iloc[0] == pytest.approx(0.5, abs=0.1)
    for floors in ((0.05, 0.05, -0.01), (0.05, 0.0001, 0.0001)):
        floor = known["seed"].map(dict(zip(SEEDS, floors, strict=True)))
        made = known.assign(own_a=floor, own_b=floor)
        assert set(questions.agreement_table(made)["what"]) == {"floor"}
        assert len(drawings.figure_agreement(made).axes) == 3


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


def test_nothing_measured_gives_no_numbers():
    nothing = questions.standalone(NO_POPULATION, NO_POPULATION)
    empty = Evidence(pd.DataFrame(), pd.DataFrame(), "quick", ["fashion_mnist"])
    assert not questions.answers(nothing, NO_EFFECTS, NO_AGREEMENT, empty)["seeds"].any()


# --- which method to use


def times_of(seconds):
    return pd.DataFrame(
        [
            {"dataset": "fashion_mnist", "backbone": "mobilenet_v3", "method": m, "seed": seed, "training_seconds": s,
             "training_processor_seconds": s, "evaluation_seconds": 1.0, "hardware": "Abacus", "executor": "eager"}
            for m, s in seconds.items() for seed in SEEDS
        ]
    )  # fmt: skip


def test_the_overview_has_accuracy_over_seeds_and_time_on_one_machine():
    made = population({"rss": lambda b, i, s: 60 + i + NOISE[s], "fair": lambda b, i, s: 62 + i})
    made = made[(made["method"] == "rss") | (made["seed"] < 2)]
    times = times_of({"rss": 100.0, "fair": 90.0})
    times.loc[times["method"] == "fair", "training_seconds"] = 900.0  # beside another program
    runs = plan("quick", methods=["rss", "fair"])

    def overview(times):
        evidence = Evidence(made, times, "quick", ["fashion_mnist"])
        return samplers.overview(made, evidence, runs).set_index("method")

    found = overview(times)
    assert list(found.index) == ["Strict fairness", "RSS"] and found["seeds"].to_dict() == {
        "Strict fairness": 2,
        "RSS": 3,
    }
    assert found["time"].to_dict() == pytest.approx({"Strict fairness": 0.9, "RSS": 1})
    interval = stats.ttest_1samp([64.5 + NOISE[seed] for seed in SEEDS], 0).confidence_interval()
    assert (found["low"]["RSS"], found["high"]["RSS"]) == pytest.approx((interval.low, interval.high))
    times.loc[times["method"] == "fair", "hardware"] = "Loom"
    assert math.isnan(overview(times)["time"]["Strict fairness"])


def test_a_method_is_compared_at_its_best_rate():
    rates = {"rss": 60, "rss-third-rate": 58, "rss-triple-rate": 63, "fair": 61, "fair-triple-rate": 50}
    made = population({name: lambda b, i, s, mean=mean: mean + i + NOISE[s] for name, mean in rates.items()})
    evidence = Evidence(made, pd.DataFrame(), "quick", ["fashion_mnist"])
    found = samplers.overview(made, evidence, plan("quick", methods=[*rates]))
    assert found[["method", "rate"]].values.tolist() == [
        ["RSS", 3], ["Strict fairness", 1], ["RSS", 1], ["RSS", 1 / 3], ["Strict fairness", 3]
    ]  # fmt: skip
    assert found["updates"].tolist() == pytest.approx([1, 1 / 3, 1, 1, 1 / 3])
    best = samplers.at_best_rates(made)
    assert {*best["method"]} == {"rss-triple-rate", "fair"}
    (lead,) = samplers.leads(best, evidence)
    assert lead.label == "RSS minus Strict fairness" and lead.estimate == pytest.approx(2)


def test_leads_are_all_pairs_those_of_the_best_first_on_all_seeds():
    rss = (80, 80.2, 80, 70.1, 69.9)  # the last three without strict fairness
    made = population(
        {
            "rss": lambda b, i, s: rss[s] + i,
            "compound": lambda b, i, s: 74 + i,
            "fair": lambda b, i, s: 60 + i,
        },
        seeds=range(5),
    )
    made = made[(made["method"] != "fair") | (made["seed"] < 2)]
    leads = samplers.leads(made, Evidence(made, pd.DataFrame(), "quick", ["fashion_mnist"]))
    labels = [
        "RSS minus Compound",
        "RSS minus Strict fairness",
        "Compound minus Strict fairness",
    ]
    assert [part.label for part in leads] == labels and [part.seeds for part in leads] == [5, 2, 2]
    assert leads[0].estimate == pytest.approx(np.mean(rss) - 74)
    drawn = samplers.comparison(made).set_index(["method", "bucket"])["mean"]
    assert drawn["rss"].mean() - drawn["compound"].mean() == pytest.approx(leads[0].estimate)
