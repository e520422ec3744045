"""How often claim 1 is reproduced with three seeds where it is true: what its statistic was chosen by.

In these made-up worlds RSS leads OFA on all four datasets at every size, in the proportions of the published medians.
The lead is given in standard deviations of a method's mean accuracy between seeds. Known answers come from SciPy's
Welch test: of four independent means for claim 1; for 1s, where seeds move all sizes alike, of the size with the
smallest lead on each dataset, since all its other sizes then lead as clearly.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rsstudy.claims import evidence as e
from rsstudy.claims import statements
from rsstudy.summary import published

SEEDS, WORLDS, LEAD = 3, 100, 4.3
SIZES = [4, 6, 8, 10, 12, 14]
MISSED = 3 * (0.25 / WORLDS) ** 0.5  # how far the share of so many worlds may be off


def leads_by_size() -> np.ndarray:
    """Of the published medians on CIFAR-100, in units of their mean."""
    medians = published().query("quantity == 'median'").pivot(index="mflops", columns="method", values="value")
    leads = (medians["rss"] - medians["ofa"]).to_numpy()
    return leads / leads.mean()


PROPORTIONS = leads_by_size()


def world(rng: np.random.Generator, common: float, of_each_size: float) -> e.Evidence:
    """Seeds move all sizes of a run by one number and each size by one of its own, of these relative deviations."""
    made = e.Evidence(pd.DataFrame(), pd.DataFrame(), "paper")
    scale = np.hypot(common, of_each_size / 6**0.5)  # so that a run's mean has a deviation of 1
    for dataset in made.datasets:
        for method, lead in (("ofa", 0), ("rss", LEAD)):
            moved = (rng.normal(0, common, (SEEDS, 1)) + rng.normal(0, of_each_size, (SEEDS, 6))) / scale
            made.supernets[method, dataset, e.MOBILENET] = [
                pd.DataFrame({"bucket": SIZES, "accuracy": 50 + lead * PROPORTIONS + seed}) for seed in moved
            ]
    return made


def shares(common: float, of_each_size: float) -> np.ndarray:
    """Of worlds in which claim 1 and 1s are reproduced."""
    rng, counts = np.random.default_rng(0), np.zeros(2)
    for _ in range(WORLDS):
        made = world(rng, common, of_each_size)
        for i, statement in enumerate(statements.STATEMENTS[:2]):
            counts[i] += all(part.low() > 0 for part in statement.parts(made, "ofa"))
    return counts / WORLDS


def power(lead: float) -> float:
    """That one part is above 0, of a lead in standard deviations between seeds: SciPy's test on 20,000 pairs."""
    rss, ofa = np.random.default_rng(1).normal(0, 1, (2, 20_000, SEEDS))
    found = stats.ttest_ind(rss + lead, ofa, axis=1, equal_var=False, alternative="greater")
    return (found.pvalue < e.TAIL).mean()


def test_four_means_are_often_clear_and_24_sizes_seldom():
    means, sizes = power(LEAD) ** 4, power(LEAD * PROPORTIONS.min()) ** 4
    assert means > 0.65 and sizes < 0.25
    assert shares(1, 0) == pytest.approx([means, sizes], abs=MISSED)
    of_means, of_sizes = shares(1, 1)  # where seeds move each size by itself too
    assert of_means == pytest.approx(means, abs=MISSED) and of_sizes < sizes + MISSED
