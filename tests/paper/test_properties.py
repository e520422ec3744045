"""What holds for any results tables, whatever runs they hold and whatever these reached."""

import math

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslib.backbones import BACKBONES
from rsstudy.catalogue import CONTROLS, METHODS, TABLE_1
from rsstudy.claims import table as claims
from rsstudy.claims import verdicts
from rsstudy.plan import PROFILES

OPEN = {verdicts.UNDECIDED, verdicts.NOT_RUN}
AT_SCALE, ELSEWHERE = {verdicts.REPRODUCED, verdicts.REFUTED}, {verdicts.AGREES, verdicts.DISAGREES}
KEYS = ["dataset", "backbone", "method", "seed"]
# no equal accuracies, only equal ones, ties, and ends of the scale
WORLDS = {
    "noise": lambda rng, n: rng.uniform(0, 100, n),
    "constant": lambda rng, n: np.full(n, float(rng.integers(0, 101))),
    "ties": lambda rng, n: rng.integers(40, 43, n).astype(float),
    "ends": lambda rng, n: rng.choice([0.0, 100.0], n),
}


@st.composite
def results(draw, most=15):
    """A population and times of any runs, in any order of rows; subnets are the same for all methods."""
    runs = st.tuples(
        st.sampled_from([*TABLE_1, "digits"]),
        st.sampled_from(list(BACKBONES)),
        st.sampled_from(["ofa", "rss", "rss-short", "ofa-released"]) | st.sampled_from([*METHODS, *CONTROLS]),
        st.integers(0, 2),
    )
    chosen = draw(st.lists(runs, min_size=1, max_size=most, unique=True))
    rng, n = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.integers(1, 4))
    world = WORLDS[draw(st.sampled_from(list(WORLDS)))]
    population, times = [], []
    for run in chosen:
        rows = pd.DataFrame([(float(b), i) for b in BACKBONES[run[1]].buckets for i in range(n)])
        rows.columns = ["bucket", "subnet"]
        rows["mflops"] = rows["bucket"] + (rows["subnet"] - n / 2) / 10
        rows["accuracy"] = world(rng, len(rows))
        population.append(rows.assign(**dict(zip(KEYS, run, strict=True))))
        clock = {"training_seconds": rng.uniform(1, 1e5), "evaluation_seconds": 1.0}
        machine = {"hardware": rng.choice(["Abacus", "H200"]), "executor": "eager"}
        times.append(dict(zip(KEYS, run, strict=True)) | clock | machine)
    population = pd.concat(population).sample(frac=1, random_state=int(rng.integers(2**31)))
    return population.reset_index(drop=True), pd.DataFrame(times)


def decide(population, times, profile):
    return claims.decide(population, times, profile, ["digits"])


@given(results(), st.sampled_from(list(PROFILES)))
@settings(max_examples=40)
def test_every_claim_has_a_verdict_and_only_the_papers_scale_reproduces(tables, profile):
    found = decide(*tables, profile)
    for claim in found:
        decides = profile == "paper" and claim.statement.role != "control"
        assert claim.verdict in OPEN | (AT_SCALE if decides else ELSEWHERE)
        estimate, low, high = claim.numbers
        assert math.isnan(low) or low <= estimate <= high
        if claim.verdict in AT_SCALE | ELSEWHERE:
            assert claim.weakest.seeds > 1 and claim.p <= 0.05
        if claim.verdict == verdicts.REPRODUCED and claim.statement.unit != "times":
            assert low > 0 and not claim.missing
    for table in (claims.table(found), claims.components(found)):
        one = table[table["seeds"] == 1]
        assert one[["low", "high"]].isna().all(axis=None) and set(one["verdict"]) <= OPEN
    assert len(claims.table(found)) == len(found)


@given(results(), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_verdicts_do_not_depend_on_the_order_of_rows(tables, random):
    population, times = tables
    shuffled = [table.sample(frac=1, random_state=random.randrange(2**31)) for table in tables]
    expected, again = (claims.table(decide(*both, "paper")) for both in ((population, times), shuffled))
    pd.testing.assert_frame_equal(expected, again)
