"""Does interference exist: what was measured, as numbers with intervals over seeds.

Everything is computed from tables: populations, and those of `rsstudy.tables.interference_tables`. The intervals are
those of `rsstudy.claims.evidence`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd

from rsslib.samplers import SIZES
from rsstudy.catalogue import STUDY, SUBNETS, exposure, of_bucket
from rsstudy.claims.evidence import (
    COLUMNS,
    Evidence,
    Part,
    combine,
    holm,
    over_seeds,
    summarise,
    table,
)
from rsstudy.claims.statements import CONTROLS, INTERVALS, parts_of
from rsstudy.figures.style import label_of

FAVOURED = r"(alone|dose|mixed)-([\d.]+)-(\d+)(-exposed|-blocks)?"  # methods that train one subnet more than others
EQUAL, EXPOSED = "equal epochs", "equal exposure"
TRAININGS = {"": EQUAL, "-exposed": EXPOSED, "-blocks": "equal exposure of blocks"}  # by the ends of methods' names
SPAN = {"step": "a step", "epoch": "an epoch"}
BUCKET = 8.0  # MFLOPs of the subnets that answers are about


def only_supernets(population: pd.DataFrame) -> pd.DataFrame:
    """The populations of supernets, without those of runs that train one subnet more than others."""
    return population[~population["method"].str.fullmatch(FAVOURED)]


# --- subnets alone ----------------------------------------------------------------------------------------------------


def own_subnets(population: pd.DataFrame) -> pd.DataFrame:
    """The rows of the subnet that each run favours, with arm, the first word of the method's name, and training."""
    named = population["method"].str.extract(FAVOURED)
    own = (named[[1, 2]].astype(float).to_numpy() == population[["bucket", "subnet"]]).all(axis=1)
    return population.assign(arm=named[0], training=named[3].fillna("").map(TRAININGS))[own]


def standalone(population: pd.DataFrame, anchors: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of subnets trained alone and in the supernet of RSS.

    Returns a row per subnet and seed of either: training (equal epochs, equal exposure, or smallest, middle or largest:
    of these by equal epochs), bucket (MFLOPs), number, seed, alone and shared (percent; NaN where not trained).
    """
    subnet, keys = ["bucket", "subnet"], ["training", "bucket", "subnet", "seed"]
    own = own_subnets(population).query("arm == 'alone'")
    rank = anchors.groupby(["method", "seed"])["bucket"].rank()
    ends = anchors.assign(training=rank.map(dict(enumerate(SIZES, 1))), subnet=0)
    alone = pd.concat([own, ends[ends["method"] == "rss-" + ends["training"].astype(str)]])
    inside = pd.concat([population, ends]).query("method == 'rss'")[[*subnet, "seed", "accuracy"]]
    shared = alone[["training", *subnet]].drop_duplicates().merge(inside, on=subnet)
    tables = {"alone": alone, "shared": shared}
    sides = {name: rows.set_index(keys)["accuracy"] for name, rows in tables.items()}
    return pd.DataFrame(sides).rename_axis(["training", "bucket", "number", "seed"]).reset_index()


def gaps(alone: pd.DataFrame) -> list[Part]:
    """For each kind of training and size: mean accuracy alone minus in the supernet, of the subnets that every seed
    has; above 0 where sharing costs."""
    parts = []
    for (training, bucket), rows in alone.groupby(["training", "bucket"], sort=False):
        label = f"{bucket:.3g} MFLOPs, {training}"
        wide = rows.pivot(index="number", columns="seed", values=["alone", "shared"])
        means = wide.dropna(axis=1, how="all").dropna().mean().dropna()
        sides = dict(list(means.groupby(level=0)))
        if len(sides) == 2:
            parts.append(combine(label, [(1, sides["alone"]), (-1, sides["shared"])]))
    return parts


def exposures() -> pd.DataFrame:
    """The share of RSS's updates that reach each subnet of 8 MFLOPs, by two measures that bound it.

    Columns: number, parameters, blocks. `parameters` is a mean over all of its parameters, a third to half of which are
    head and classifier, which every update reaches; `blocks` is one over those of its elastic layers.
    """
    rows = []
    for size, number in SUBNETS.values():
        if size == BUCKET:
            arch = of_bucket(STUDY, size, number)
            rows.append((number, exposure(STUDY, arch), exposure(STUDY, arch, blocks=True)))
    return pd.DataFrame(rows, columns=["number", "parameters", "blocks"])


def ranking(alone: pd.DataFrame) -> list[Part]:
    """Does the supernet rank subnets of one size as training them alone does? (Yu et al. 2020)

    Kendall's tau of shared and stand-alone accuracy, and that of two stand-alone seeds, its ceiling; the regret, in
    points, of the subnet that is best with shared weights against the best of all, both trained alone, and that of
    choosing by another stand-alone seed, its floor: of subnets that do not differ the best is the luckiest. Pairs of
    seeds share seeds, so ceiling and floor have no interval.
    """
    rows = alone[(alone["training"] == EQUAL) & (alone["bucket"] == BUCKET)].dropna()
    own, shared = (rows.pivot(index="number", columns="seed", values=side) for side in ("alone", "shared"))
    pairs, parts = list(permutations(own, 2)), []
    for measure, label, limit in (
        (_tau, "Kendall's tau, shared and alone", "Kendall's tau, two seeds alone (ceiling)"),
        (_regret, "regret of choosing by shared weights (points)", "regret of choosing by another seed alone (floor)"),
    ):
        parts.append(over_seeds(label, [measure(own[seed], shared[seed]) for seed in own]))
        between = [measure(own[a], own[b]) for a, b in pairs]
        parts.append(Part(limit, float(np.mean(between)), seeds=len(own.columns)) if pairs else Part(limit))
    return parts


def _tau(own: pd.Series, other: pd.Series) -> float:
    return own.corr(other, method="kendall")


def _regret(own: pd.Series, by: pd.Series) -> float:
    """How much the subnet that is best `by` something misses the best accuracy, in points."""
    return own.max() - own[by.idxmax()]


# --- effects and agreement --------------------------------------------------------------------------------------------


def half_way(measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of the measured share of training that is nearest to half: early enough for steps that matter, late
    enough for subnets that can do something."""
    away = (measured["share"] - 0.5).abs()
    return measured[away == away.min()]


def effect_table(effects: pd.DataFrame, keys: Sequence[str] = ("method", "length", "share")) -> pd.DataFrame:
    """What training one subnet does to the validation loss of the others, and of itself, as of `summarise`.

    What: others and itself (how much less the loss becomes), "others / itself", which does not depend on the learning
    rate (where the interval of itself is above 0), "pairs harmed (%)" of different subnets, and Spearman's "correlation
    with distance" of the effect on others and the number of settings that differ. p (Holm) is over all rows of others.
    """

    def measure(rows: pd.DataFrame) -> pd.Series:
        off = rows[rows["trained"] != rows["judged"]]
        others = off["loss_effect"]
        itself = rows.drop(off.index)["loss_effect"].mean()
        return pd.Series(
            {
                "others": others.mean(),
                "itself": itself,
                "others / itself": others.mean() / itself,
                "pairs harmed (%)": 100 * (others < 0).mean(),
                "correlation with distance": _spearman(others, off["distance"]),
            }
        )

    return _measured(effects, keys, measure, {"others / itself": "itself"}, "others")


def agreement_table(agreement: pd.DataFrame, keys: Sequence[str] = ("method", "share")) -> pd.DataFrame:
    """How far the gradients of different subnets agree, as of `summarise`.

    What: floor (agreement of a subnet with itself, before the noise of batches is taken off), agreement (the mean
    product over the root of the mean floors, so that no pair's floor decides; only where the floors are above 0), and
    Spearman's "correlation with distance" of two subnets' agreement and the number of settings that differ. p (Holm) is
    over all rows of agreement.
    """

    def measure(rows: pd.DataFrame) -> pd.Series:
        cross, a, b = rows[["cross", "own_a", "own_b"]].mean()
        return pd.Series(
            {
                "floor": min(a, b),
                "agreement": cross / np.sqrt(a * b) if min(a, b) > 0 else np.nan,
                "correlation with distance": _spearman(rows["agreement"], rows["distance"]),
            }
        )

    different = agreement[agreement["a"] != agreement["b"]]
    needs = {"agreement": "floor", "correlation with distance": "floor"}
    return _measured(different, keys, measure, needs, "agreement")


def _spearman(values: pd.Series, others: pd.Series) -> float:
    """Spearman's correlation where `values` are known; NaN, without a warning, where one side does not vary."""
    return values.rank().corr(others[values.notna()].rank())


def _measured(
    rows: pd.DataFrame,
    keys: Sequence[str],
    measure: Callable[[pd.DataFrame], pd.Series],
    needs: Mapping[str, str],
    tested: str,
) -> pd.DataFrame:
    """`measure` of each key and seed, summarised over seeds."""
    if rows.empty:
        return pd.DataFrame(columns=[*keys, *COLUMNS[:-1], "p (Holm)"])
    values = rows.groupby([*keys, "seed"], sort=False).apply(measure, include_groups=False)
    found = summarise(values.reset_index(), keys, needs)
    return found.assign(**{"p (Holm)": holm(found.pop("p").where(found["what"] == tested))})


# --- contrasts of populations, and answers ----------------------------------------------------------------------------


def contrasts(evidence: Evidence) -> dict[str, list[Part]]:
    """The differences in mean accuracy of the controls and of sampling intervals, on the hardest dataset."""
    return {
        "controls": [part for statement in CONTROLS for part in statement.parts(evidence)],
        "sampling intervals": [part for row in INTERVALS for part in parts_of(evidence, **row)],
    }


def answers(
    alone: pd.DataFrame,
    effects: pd.DataFrame,
    agreement: pd.DataFrame,
    evidence: Evidence,
) -> pd.DataFrame:
    """The numbers that answer each question: question, what, estimate, low, high, seeds.

    Effects are those of an epoch; they and agreement are half way through training.
    """
    parts = {"alone minus shared (points)": gaps(alone)} | contrasts(evidence)
    rows = [table(found).assign(question=question) for question, found in parts.items()]
    measured = {
        "an epoch on one subnet": effect_table(half_way(effects[effects["length"] == "epoch"])),
        "gradients": agreement_table(half_way(agreement[agreement["part"] == "all"])),
    }
    for question, found in measured.items():
        found = found[found["what"].isin(["others / itself", "pairs harmed (%)", "agreement"])]
        what = found["what"] + ", " + found["method"].map(label_of)
        rows.append(found.assign(question=question, what=what))
    return pd.concat(rows, ignore_index=True)[["question", "what", "estimate", "low", "high", "seeds"]]
