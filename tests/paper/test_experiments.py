"""The analysis of the three experiments, on made-up runs whose answers are known."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from rsstudy.catalogue import BRIDGE, DOSED
from rsstudy.claims import experiments
from rsstudy.claims.evidence import Evidence
from rsstudy.claims.interference import only_supernets
from rsstudy.figures.style import label_of
from rsstudy.forgetting import LAGS
from rsstudy.tables import forgetting_tables

# --- the bridge -------------------------------------------------------------------------------------------------------


def bridge(methods: dict[str, float], seeds=5, sd=0.5):
    """Of runs whose mean accuracies lie around these."""
    rng = np.random.default_rng(0)
    rows = [
        {"dataset": "fashion_mnist", "backbone": "mobilenet_v3", "method": method, "seed": seed, "bucket": 8.0,
         "subnet": 0, "mflops": 8.0, "accuracy": accuracy + rng.normal(0, sd)}
        for method, accuracy in methods.items() for seed in range(seeds)
    ]  # fmt: skip
    found = experiments.bridge(Evidence(pd.DataFrame(rows), pd.DataFrame(), "quick"))
    return {family: {part.label: part for part in parts} for family, parts in found.items()}


# A world where the schedule is everything: OFA with the rates of RSS is RSS, and the other way round.
SCHEDULE = {
    "ofa": 74,
    "rss": 80,
    "ofa-rss-rate": 80,
    "rss-ofa-rates": 74,
    "ofa-no-distillation": 74,
}


def test_where_the_schedule_is_everything_its_arm_has_the_whole_share_and_the_others_none():
    found = bridge(SCHEDULE)
    shares = found["share of RSS minus OFA"]
    for arm, expected in (
        ("ofa-rss-rate", 1),
        ("rss-ofa-rates", 0),
        ("ofa-no-distillation", 0),
    ):
        share = shares[label_of(arm)]
        assert share.low() < expected < share.high() and share.high() - share.low() < 0.6
    assert (
        found["minus OFA"]["OFA at RSS's rate minus OFA"].low() > 4
        and not found["RSS minus"]["RSS minus OFA at RSS's rate"].decided
    )
    assert found["RSS minus"]["RSS minus RSS at OFA's rates"].low() > 4


def test_an_arm_that_was_not_run_is_missing_and_one_seed_has_no_interval():
    found = bridge(SCHEDULE)
    missing = {label for parts in found.values() for label, part in parts.items() if part.missing}
    assert missing == {
        "OFA, 1 per step minus OFA",
        "RSS minus OFA, 1 per step",
        "OFA, 1 per step",
    }
    assert set(BRIDGE) == {*SCHEDULE, "ofa-one-per-step"} - {"ofa", "rss"}
    alone = bridge(SCHEDULE, seeds=1)
    assert math.isnan(alone["minus OFA"]["RSS minus OFA"].low())
    assert all(part.missing for part in alone["share of RSS minus OFA"].values())


def test_there_are_no_shares_where_rss_may_equal_ofa():
    found = bridge({"ofa": 74, "rss": 74, "ofa-rss-rate": 74})
    assert found["share of RSS minus OFA"]["OFA at RSS's rate"].missing


# --- dose and placebo -------------------------------------------------------------------------------------------------


def doses(short: float, mixed: float, long: float, seeds=4, sd=0.3, subnets=3):
    """A population in which each run's own subnet has about these accuracies, and every other one 10 %."""
    rng, rows = np.random.default_rng(0), []
    for arm, accuracy in (("dose", short), ("mixed", mixed), ("alone", long)):
        for name, seed, bucket, subnet in product(DOSED, range(seeds), (4.0, 8.0, 14.0), range(subnets)):
            size = float(name.split("-")[0])
            own = name == f"{bucket:g}-{subnet}"
            value = accuracy - size / 2 + rng.normal(0, sd) if own else 10.0
            rows.append((f"{arm}-{name}", seed, bucket, subnet, value))
    return pd.DataFrame(rows, columns=["method", "seed", "bucket", "subnet", "accuracy"])


@pytest.mark.parametrize("mixed, c", [(80, 1), (86, 0), (83, 0.5), (77, 1.5)])
def test_the_coefficient_is_1_where_others_are_worth_nothing_and_0_where_they_are_worth_as_much(mixed, c):
    lost, gained, coefficient = experiments.dose(doses(80, mixed, 86))
    assert lost.estimate == pytest.approx(86 - mixed, abs=0.3) and gained.estimate == pytest.approx(mixed - 80, abs=0.3)
    assert lost.seeds == 4 and coefficient.estimate == pytest.approx(c, abs=0.05)
    assert coefficient.low() < coefficient.estimate < coefficient.high() < coefficient.low() + 0.3


def test_the_coefficient_is_missing_where_more_own_epochs_may_gain_nothing():
    *_, coefficient = experiments.dose(doses(80, 80, 80))
    assert coefficient.missing


def test_only_seeds_with_all_subnets_and_only_full_names_count():
    made = doses(80, 82, 86)
    partial = made[(made["method"] != "mixed-8-1") | (made["seed"] > 0)]
    other = made[made["method"] == "alone-8-0"].assign(method="alone-8-0-exposed", accuracy=0.0)
    lost, *_ = experiments.dose(pd.concat([partial, other]))
    assert lost.seeds == 3 and lost.estimate == pytest.approx(4, abs=0.3)
    assert all(part.missing for part in experiments.dose(made[made["method"].str.startswith("alone")]))


def test_populations_of_supernets_are_without_runs_that_favour_a_subnet():
    methods = "rss ofa alone-8-1 alone-8-1-exposed dose-4-0 mixed-14-2 rss-after-short".split()
    kept = only_supernets(pd.DataFrame({"method": methods}))["method"]
    assert list(kept) == ["rss", "ofa", "rss-after-short"]


# --- forgetting -------------------------------------------------------------------------------------------------------

EPOCHS = 39


def followed(remains: dict[int, float], seeds=5, sd=0.3):
    """Runs whose idle subnets gain a point per epoch, and whose trained ones gain 8 points beyond them in their epoch,
    of which a share `remains` at each lag."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for now in range(1, EPOCHS + 1):
            rows += [(seed, 0, now, 40 + now + rng.normal(0, sd)) for _ in range(8)]
            for lag in (-1, 0, *LAGS):
                if 1 <= now - lag <= EPOCHS:
                    share = 0 if lag < 0 else remains[lag]
                    own = 35 + now + 8 * share + 0.1 * (now - lag)  # those of later epochs are better anyway
                    rows.append((seed, now - lag, now, own + rng.normal(0, sd)))
    return pd.DataFrame(rows, columns=["seed", "trained", "epoch", "accuracy"])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_remains_of_a_gain_is_found_and_its_share(share):
    remains = dict.fromkeys(LAGS, share) | {0: 1.0}
    gain, *later, last = experiments.forgetting(followed(remains))
    assert gain.label == "epochs later: 0" and gain.low() < 8 < gain.high() and gain.seeds == 5
    assert [part.estimate for part in later] == pytest.approx([8 * share] * len(LAGS), abs=0.3)
    assert last.low() < share < last.high() and last.high() - last.low() < 0.1


def test_only_subnets_whose_lags_are_all_measured_count():
    made = followed(dict.fromkeys((0, *LAGS), 1.0), sd=0)
    odd = made["trained"].isin([1, *range(EPOCHS - max(LAGS) + 1, EPOCHS + 1)])  # the first, and those too near the end
    made.loc[odd, "accuracy"] += 50 * (made["epoch"] - made["trained"])[odd]
    parts = experiments.forgetting(made)
    assert [part.estimate for part in parts] == pytest.approx([8] * 5 + [1])


def test_nothing_followed_gives_missing_parts():
    assert all(part.missing for part in experiments.forgetting(forgetting_tables([])))
