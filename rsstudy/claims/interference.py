"""Does interference exist: what was measured, as numbers with intervals over seeds.

An interval is a mean over seeds plus or minus Student's t times its standard error: the seed is the unit of
replication, and of one seed there is none, but for contrasts of populations that over subnets. All is from tables:
populations, and those of `rsstudy.tables.interference_tables`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from rsslib.samplers import SIZES
from rsstudy.claims.evidence import Evidence, Part, over_seeds, sign, table
from rsstudy.claims.statements import CONTROLS
from rsstudy.figures.style import label_of

ALONE = re.compile(r"alone-([\d.]+)-(\d+)(-exposed)?")  # methods that train one subnet
EQUAL, EXPOSED = "equal epochs", "equal exposure"
SPAN = {"step": "a step", "epoch": "an epoch"}
BUCKET = 8.0  # MFLOPs of the subnets that answers are about

# Differences of two methods: label, the first, the second.
INTERVALS = (
    ("a draw every batch minus every epoch", "rss-per-batch", "rss"),
    ("every 10 batches minus every epoch", "rss-every-10-batches", "rss"),
    ("every 50 batches minus every epoch", "rss-every-50-batches", "rss"),
    ("every 3 epochs minus every epoch", "rss-every-3-epochs", "rss"),
)


def of_supernets(population: pd.DataFrame) -> pd.DataFrame:
    """The populations of supernets alone, all on the same subnets: without those of runs that trained one subnet."""
    return population[~population["method"].str.fullmatch(ALONE)]


# --- subnets alone ----------------------------------------------------------------------------------------------------


def standalone(population: pd.DataFrame, anchors: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of subnets trained alone and, from RSS of the same seed, in the supernet.

    Returns a row for each seed and subnet: seed, training (equal epochs, equal exposure, or smallest, middle or
    largest: of these by equal epochs), bucket (MFLOPs), number, alone, shared (percent) and gap (points, above 0 where
    sharing costs).
    """
    named = population["method"].str.extract(ALONE)
    own = population.assign(size=named[0].astype(float), number=named[1].astype(float), exposed=named[2].notna())
    own = own[(own["bucket"] == own["size"]) & (own["subnet"] == own["number"])]
    own = own.assign(training=own["exposed"].map({False: EQUAL, True: EXPOSED})).sort_values(["exposed", "bucket"])
    inside = population[population["method"] == "rss"]  # of fewer subnets a bucket, perhaps
    corners = anchors.sort_values("bucket")
    corners = corners.assign(number=corners.groupby(["method", "seed"]).cumcount())
    corners = corners.assign(training=corners["number"].map(dict(enumerate(SIZES))))
    trained = corners["method"] == "rss-" + corners["training"]
    result = pd.concat(
        [
            own.merge(inside, on=["seed", "bucket", "subnet"], suffixes=("", "_inside")),
            corners[trained].merge(
                corners[corners["method"] == "rss"], on=["seed", "number"], suffixes=("", "_inside")
            ),
        ]
    ).rename(columns={"accuracy": "alone", "accuracy_inside": "shared"})
    result = result[["seed", "training", "bucket", "number", "alone", "shared"]].astype({"number": int})
    return result.assign(gap=result["alone"] - result["shared"]).reset_index(drop=True)


def gaps(alone: pd.DataFrame) -> list[Part]:
    """The mean gap of each kind of training and size."""
    kinds = alone[["training", "bucket"]].drop_duplicates()
    return [gap(alone, *kind) for kind in kinds.itertuples(index=False)]


def gap(alone: pd.DataFrame, training: str, bucket: float = BUCKET) -> Part:
    """The mean gap of the subnets of one size that were trained alone with every seed."""
    rows = alone[(alone["training"] == training) & (alone["bucket"] == bucket)]
    rows = rows[rows.groupby("number")["seed"].transform("nunique") == rows["seed"].nunique()]
    return over_seeds(f"{bucket:.3g} MFLOPs, {training}", rows.groupby("seed")["gap"].mean())


def ranking(alone: pd.DataFrame) -> list[Part]:
    """Does the supernet rank subnets of one size as training them alone does? (Yu et al. 2020)

    Kendall's tau of shared and stand-alone accuracy, and that of two stand-alone seeds, its ceiling; the regret, in
    points, of the subnet that is best with shared weights against the best of all, both trained alone, and that of
    choosing by another stand-alone seed, its floor: of subnets that do not differ the best is the luckiest.
    """
    rows = alone[(alone["training"] == EQUAL) & (alone["bucket"] == BUCKET)]
    by_seed = {seed: t.set_index("number") for seed, t in rows.groupby("seed") if len(t) > 2}
    own = {seed: t["alone"] for seed, t in by_seed.items()}
    pairs = list(combinations(by_seed, 2))
    floors = {(a, b): (_regret(own[a], own[b]) + _regret(own[b], own[a])) / 2 for a, b in pairs}
    return [
        over_seeds("Kendall's tau, shared and alone", [_tau(t["alone"], t["shared"]) for t in by_seed.values()]),
        over_pairs("Kendall's tau, two seeds alone (ceiling)", {(a, b): _tau(own[a], own[b]) for a, b in pairs}),
        over_seeds("regret of choosing by shared weights (points)",
                   [_regret(t["alone"], t["shared"]) for t in by_seed.values()]),
        over_pairs("regret of choosing by another seed alone (floor, points)", floors),
    ]  # fmt: skip


def over_pairs(label: str, pairs: Mapping[tuple[int, int], float]) -> Part:
    """The mean over pairs of seeds, with the error of the jackknife that leaves out one seed at a time, since pairs
    share seeds (Efron and Stein, 1981); two seeds, which make one pair, have none."""
    known = {pair: value for pair, value in pairs.items() if not math.isnan(value)}
    seeds = sorted({seed for pair in known for seed in pair})
    if not known:
        return Part(label, missing=("measurements",))
    without = [[value for pair, value in known.items() if seed not in pair] for seed in seeds]
    estimate, n = float(np.mean(list(known.values()))), len(seeds)
    if not all(without):
        return Part(label, estimate, seeds=n)
    error = math.sqrt((n - 1) * np.var([np.mean(values) for values in without]))
    return Part(label, estimate, error, n - 1, n)


def _regret(accuracy: pd.Series, by: pd.Series) -> float:
    """By how much the subnet that is best `by` something misses the best accuracy, in points; both by number."""
    accuracy, by = accuracy.align(by, join="inner")
    return float(accuracy.max() - accuracy[by.idxmax()])


def _tau(a: pd.Series, b: pd.Series) -> float:
    a, b = a.align(b, join="inner")
    return float(stats.kendalltau(a, b).statistic)


# --- effects and agreement --------------------------------------------------------------------------------------------


def half_way(measured: pd.DataFrame) -> float:
    """The measured share of training that is nearest to half: early enough for steps that matter, late enough for
    subnets that can do something."""
    return min(measured["share"].unique(), key=lambda share: abs(share - 0.5))


def effect_parts(effects: pd.DataFrame, column: str = "loss_effect") -> pd.DataFrame:
    """For each method, length and share: the mean effect on the others and on the trained subnet itself.

    Columns: method, length, share, others (a Part), itself (a Part), ratio (others over itself, NaN where the interval
    of itself does not exclude 0), harmed (share of pairs of different subnets with an effect below 0), distance (a
    Part: Spearman's correlation of the effect on others with the number of settings that differ).
    """
    rows = []
    for (method, length, share), group in effects.groupby(["method", "length", "share"], sort=False):
        off = group[group["trained"] != group["judged"]]
        own = group[group["trained"] == group["judged"]]
        others, itself = (
            over_seeds(f"{what}, after {SPAN[length]}", rows_.groupby("seed")[column].mean())
            for what, rows_ in (("others", off), ("itself", own))
        )
        ratio = others.estimate / itself.estimate if sign(itself) else math.nan
        harmed, distance = float((off[column] < 0).mean()), _with_distance(off, column)
        rows.append((method, length, share, others, itself, ratio, harmed, distance))
    return pd.DataFrame(rows, columns=["method", "length", "share", "others", "itself", "ratio", "harmed", "distance"])


def _with_distance(pairs: pd.DataFrame, column: str) -> Part:
    """Spearman's correlation of a column with the number of settings that differ."""
    by_seed = pairs.dropna(subset=column).groupby("seed")
    found = [stats.spearmanr(t["distance"], t[column]).statistic for _, t in by_seed if t[column].nunique() > 1]
    return over_seeds("correlation with distance", found)


def pooled_agreement(label: str, rows: pd.DataFrame) -> Part:
    """The agreement of different subnets: for each seed the mean product over the root of the mean floors, so that no
    pair's floor of noise decides. Missing unless the floors, too, are above 0 over seeds."""
    by_seed = rows.groupby("seed")[["cross", "own_a", "own_b"]].mean()
    floor = over_seeds(label, by_seed[["own_a", "own_b"]].mean(axis=1))
    if (by_seed[["own_a", "own_b"]] <= 0).any(axis=None) or (floor.degrees and sign(floor) < 1):
        return Part(label, missing=("gradients that are more than the noise of batches",))
    return over_seeds(label, by_seed["cross"] / np.sqrt(by_seed["own_a"] * by_seed["own_b"]))


def agreement_parts(agreement: pd.DataFrame) -> pd.DataFrame:
    """For each method and share, over all layers: method, share, agreement (a Part, of `pooled_agreement`) and distance
    (a Part: Spearman's correlation of two subnets' agreement with the number of settings that differ)."""
    rows = []
    chosen = agreement[(agreement["part"] == "all") & (agreement["a"] != agreement["b"])]
    for (method, share), group in chosen.groupby(["method", "share"], sort=False):
        pooled = pooled_agreement("agreement", group)
        known = group if pooled.seeds else group.head(0)
        rows.append((method, share, pooled, _with_distance(known, "agreement")))
    return pd.DataFrame(rows, columns=["method", "share", "agreement", "distance"])


def effect_table(effects: pd.DataFrame) -> pd.DataFrame:
    """`effect_parts` to read, of loss and accuracy; empty if nothing was measured."""
    tables = []
    for column, what in (("loss_effect", "loss, less by"), ("accuracy_effect", "accuracy, points")):
        for row in effect_parts(effects, column).itertuples() if len(effects) else ():
            found = table([row.others, row.itself, row.distance])
            found = found.assign(ratio=[row.ratio, *[math.nan] * 2], harmed=[row.harmed, *[math.nan] * 2])
            tables.append(found.assign(method=row.method, share=row.share, of=what))
    columns = ["method", "share", "of", "what", "estimate", "low", "high", "seeds", "ratio", "harmed"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def agreement_table(agreement: pd.DataFrame) -> pd.DataFrame:
    """`agreement_parts` to read; empty if nothing was measured."""
    rows = agreement_parts(agreement).itertuples() if len(agreement) else ()
    tables = [table([row.agreement, row.distance]).assign(method=row.method, share=row.share) for row in rows]
    columns = ["method", "share", "what", "estimate", "low", "high", "seeds"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


# --- contrasts of populations -----------------------------------------------------------------------------------------


def contrasts(evidence: Evidence) -> dict[str, list[Part]]:
    """The differences in mean accuracy of the controls and of sampling intervals, on the hardest dataset."""
    return {
        "controls": [part for statement in CONTROLS for part in statement.parts(evidence)],
        "sampling intervals": _interval_parts(evidence),
    }


def _interval_parts(evidence: Evidence) -> list[Part]:
    return [evidence.lead(*contrast) for contrast in INTERVALS]


# --- answers ----------------------------------------------------------------------------------------------------------


def answers(
    alone: pd.DataFrame, effects: pd.DataFrame, agreement: pd.DataFrame, evidence: Evidence
) -> dict[str, list[Part]]:
    """The numbers that answer each question, by question; effects and agreement half way through training."""
    found = {
        "alone minus shared": gaps(alone),
        "ranking": ranking(alone),
        "an epoch on one: the others' loss falls by": [],
        "agreement of gradients": [],
        **contrasts(evidence),
    }
    if len(effects):
        parts = effect_parts(effects)
        chosen = parts[(parts["length"] == "epoch") & (parts["share"] == half_way(parts))]
        found["an epoch on one: the others' loss falls by"] = [
            replace(row.others, label=label_of(row.method)) for row in chosen.itertuples()
        ]
    if len(agreement):
        parts = agreement_parts(agreement)
        chosen = parts[parts["share"] == half_way(parts)]
        found["agreement of gradients"] = [
            replace(row.agreement, label=label_of(row.method)) for row in chosen.itertuples()
        ]
    return found


def part_rows(families: Mapping[str, Sequence[Part]]) -> pd.DataFrame:
    """Parts of several families in one table, to be written as CSV: family, what, estimate, low, high, seeds."""
    tables = {family: table(parts) for family, parts in families.items()}
    return pd.concat(tables, names=["family"]).droplevel(1).reset_index()
