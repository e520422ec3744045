"""The analysis of the three experiments of docs/experiments.md, as it was fixed before their runs.

Everything is computed from tables of finished runs. What was not run gives a missing part.
"""

from functools import partial

import pandas as pd

from rsstudy.catalogue import BRIDGE, DOSED
from rsstudy.claims.evidence import (
    Evidence,
    Part,
    combine,
    over_seeds,
    ratio,
)
from rsstudy.claims.interference import own_subnets
from rsstudy.figures.style import label_of
from rsstudy.forgetting import LAGS

LAST = max(LAGS)

# --- the bridge from OFA to RSS ---------------------------------------------------------------------------------------


def bridge(evidence: Evidence) -> dict[str, list[Part]]:
    """Each new arm minus OFA, RSS minus each new arm (mean accuracy of the population, in points), and the share of RSS
    minus OFA that an arm accounts for."""
    whole = evidence.contrast("RSS minus OFA", {"rss": 1, "ofa": -1})
    found: dict[str, list[Part]] = {"minus OFA": [whole], "RSS minus": [], "share of RSS minus OFA": []}
    for arm in BRIDGE:
        name = label_of(arm)
        found["minus OFA"].append(evidence.contrast(f"{name} minus OFA", {arm: 1, "ofa": -1}))
        found["RSS minus"].append(evidence.contrast(f"RSS minus {name}", {"rss": 1, arm: -1}))
        found["share of RSS minus OFA"].append(ratio(name, whole, partial(_beyond_share, evidence, arm)))
    return found


def _beyond_share(evidence: Evidence, arm: str, r: float) -> Part:
    """How much an arm is above OFA, minus `r` times how much RSS is."""
    return evidence.contrast("", {arm: 1, "rss": -r, "ofa": r - 1})


# --- dose and placebo -------------------------------------------------------------------------------------------------


def dose(population: pd.DataFrame) -> list[Part]:
    """Are epochs on other subnets worth anything to a subnet?

    Of the subnets' mean accuracy, by seed: long alone minus mixed, mixed minus short alone (points), and the
    interference coefficient c, long alone minus mixed over long alone minus short alone: 0 if epochs on others are
    worth as much as own ones, 1 if they are worth nothing, above 1 if they harm.
    """
    own = own_subnets(population)
    wide = own.pivot(index="seed", columns="method", values="accuracy")
    arms = {
        arm: wide.reindex(columns=[f"{arm}-{name}" for name in DOSED]).dropna().mean(axis=1)
        for arm in ("dose", "mixed", "alone")
    }
    short, mixed, long = arms.values()
    labels = ("long alone minus mixed", "mixed minus short alone", "interference coefficient c")
    missing = tuple(f"{arm}-*" for arm, values in arms.items() if values.empty)
    if missing:
        return [Part(label, missing=missing) for label in labels]

    def beyond(r: float) -> Part:
        return combine("", [(1 - r, long), (-1, mixed), (r, short)])

    difference = combine("", [(1, long), (-1, short)])
    return [
        combine(labels[0], [(1, long), (-1, mixed)]),
        combine(labels[1], [(1, mixed), (-1, short)]),
        ratio(labels[2], difference, beyond),
    ]


# --- forgetting -------------------------------------------------------------------------------------------------------


def forgetting(followed: pd.DataFrame) -> list[Part]:
    """What remains of the gain of a subnet's epoch after 0, 1, 2, 4 and 8 epochs on others, in points beyond subnets
    that are never drawn, and the share that remains after 8."""
    idle = followed[followed["trained"] == 0].groupby(["seed", "epoch"])["accuracy"].mean().rename("idle")
    drawn = followed[followed["trained"] > 0].join(idle, on=["seed", "epoch"])
    drawn = drawn.assign(beyond=drawn["accuracy"] - drawn["idle"], lag=drawn["epoch"] - drawn["trained"])
    wide = drawn.pivot(index=["seed", "trained"], columns="lag", values="beyond")
    wide = wide.reindex(columns=[-1, 0, *LAGS]).dropna()
    gains = wide.sub(wide[-1], axis=0).groupby("seed").mean()
    parts = [over_seeds(f"epochs later: {lag}", gains[lag]) for lag in (0, *LAGS)]

    def beyond(r: float) -> Part:
        return over_seeds("", gains[LAST] - r * gains[0])

    return [*parts, ratio(f"share of the gain, {LAST} epochs later", parts[0], beyond)]
