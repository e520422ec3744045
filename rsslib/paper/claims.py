"""One verdict for each claim of the paper: an estimate, its 95 % interval and the rule that decides.

What is estimated and how is in `rsslib.evidence`: paired differences, with intervals whose unit of replication is the
seed. Claims 1 to 11 are the paper's main ones, 12a to 16 what else it says of its figures that numbers can decide.

Most claims are conjunctions: they hold if every one of several parts is above 0. They are reproduced if all lower
limits are above 0 (an intersection-union test, which needs no correction) and not reproduced if some upper limit is
below 0 after Bonferroni's correction for the number of parts; else inconclusive. The estimate is the smallest part's,
and its interval goes from the smallest of these lower to the smallest of these upper limits. Where runs are missing the
verdict is not run, unless those there refute the claim; and at any profile but paper the scale decides nothing.

Where the scale decides nothing a claim still has the direction in which the runs point. It agrees if all lower limits
are above 0, points the other way if some corrected upper limit is below 0, and is unclear if the interval spans 0 or
there is none; with one seed the interval is that over subnets. A ratio of training times agrees if its interval is
above 1, whatever the published ratio, and points the other way if it is below; one seed has no such interval, and
there the ratio itself counts.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from rsslib.campaign.record import overview
from rsslib.campaign.runs import MAIN_METHODS, Run, plan
from rsslib.campaign.tables import populations, times
from rsslib.files import atomic_path, make_folder, write_csv
from rsslib.methods import METHODS, OVERRIDES, TABLE_1
from rsslib.paper.evidence import (
    MOBILENET,
    PROXYLESS,
    RESAMPLES,
    TAIL,
    Evidence,
    Part,
    Statistic,
    best,
    difference,
    extent,
    loss_away_from,
    mean,
    mean_of,
    median,
    slope,
)
from rsslib.paper.figures import Captioned
from rsslib.paper.style import BASELINES, METHOD_STYLES, panel_label
from rsslib.paper.summary import timed
from rsslib.space import BACKBONES, SearchSpace

REPRODUCED, REFUTED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_RUN, NO_SCALE = "not run", "scale decides nothing"
AGREES, OTHER_WAY, UNCLEAR = "agrees", "points the other way", "unclear"
ONE_SEED = " (one seed)"
SPEED_UPS, TOLERANCE = {"6a": 1.9, "6b": 6.1}, 0.2  # as published, by claim; relative
# Mean accuracies at 4 and 6, 8 and 10, 12 and 14 MFLOPs, the paper's smaller, medium and larger subnets of MobileNetV3
SMALL, MEDIUM, LARGE = mean_of(0, 2), mean_of(2, 4), mean_of(4, 6)
SEQUENCES = {"min-then-max": 1, "max-then-min": -1}  # and the sign of a slope of accuracy towards the last trained


# --- the runs that the claims rest on ---------------------------------------------------------------------------------


def study(
    profile: str = "smoke",
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    subnets_per_bucket: int | None = None,
) -> list[Run]:
    """Every run of the paper, and those of the released code: the main methods on all datasets, the ablations and
    ProxylessNAS on the hardest. Parameters and errors are those of `plan`."""
    main = (*MAIN_METHODS, "ofa-released")
    planned = plan(profile, datasets, main, MOBILENET, seeds, subnets_per_bucket)
    ablations = [method for method in METHODS if method not in main]
    hardest: Sequence[str] | Literal["hardest"] = datasets[-1:] if datasets else "hardest"
    return (
        planned
        + plan(profile, hardest, ablations, MOBILENET, seeds, subnets_per_bucket)
        + plan(profile, hardest, main, PROXYLESS, seeds, subnets_per_bucket)
    )


def tables(planned: Sequence[Run], results: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`populations` and `times` of those runs that are finished; both empty if none is."""
    status = overview(planned, results)["status"]
    found = [run for run, there in zip(planned, status == "finished", strict=True) if there]
    return (populations(found, results), times(found, results)) if found else (pd.DataFrame(), pd.DataFrame())


# --- the claims: where the paper makes them, and the parts that must be above 0 ---------------------------------------


def _label(name: str) -> str:
    return METHOD_STYLES[name].label


def _leads(evidence: Evidence, *best_first: str, statistic: Statistic = mean, backbone: str = MOBILENET) -> list[Part]:
    """For each adjacent pair of methods, the difference of a statistic on the hardest dataset."""
    hardest = evidence.hardest
    return [
        evidence.contrast(
            f"{_label(a)} minus {_label(b)}", {(hardest, a, backbone): 1, (hardest, b, backbone): -1}, statistic
        )
        for a, b in pairwise(best_first)
    ]


def _own_and_beyond(
    evidence: Evidence, label: str, method: str, other: str, whose: str, statistic: Statistic, sign: int = 1
) -> list[Part]:
    """A statistic of `method` on the hardest dataset, and that minus the one of `other`; both times `sign`."""
    own, theirs = (evidence.hardest, method), (evidence.hardest, other)
    return [
        evidence.contrast(label, {own: sign}, statistic),
        evidence.contrast(f"{label}, beyond {whose}", {own: sign, theirs: -sign}, statistic),
    ]


def above_at_every_size(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2: "Across all datasets, RSS achieves the best performing subnet population".

    Parts: for each dataset and size bucket, RSS's mean accuracy minus OFA's.
    """
    return [
        evidence.contrast(f"{panel_label(d)} at {b} MFLOPs", {(d, "rss"): 1, (d, baseline): -1}, mean_of(i, i + 1))
        for d in evidence.datasets
        for i, b in enumerate(BACKBONES[MOBILENET].buckets)
    ]


def short_above_ofa(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 1, Fig. 1b: "Both proposed variants have better top performing subnets"; section 6.3.

    Parts: on CIFAR-100, RSS-Short minus OFA, of the medians and of the means of each one's best 5 % of subnets.
    """
    terms = {(evidence.hardest, "rss-short"): 1, (evidence.hardest, baseline): -1}
    return [evidence.contrast("median", terms, median), evidence.contrast("best 5 %", terms, best)]


def gap_grows(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2: "The gap between RSS and OFA grows larger as the difficulty of the dataset increases".

    Parts: for each adjacent pair of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, the harder one's mean lead of RSS over
    OFA minus the easier one's, in points.
    """
    parts = []
    for easy, hard in pairwise(dataset for dataset in TABLE_1 if dataset in evidence.datasets):
        terms = {(hard, "rss"): 1, (hard, baseline): -1, (easy, "rss"): -1, (easy, baseline): 1}
        parts.append(evidence.contrast(f"{panel_label(easy)} to {panel_label(hard)}", terms))
    return parts or [Part("steps", missing=("two datasets that the paper ranks by difficulty",))]


def smaller_range(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2: the range from the best to the worst subnet "is significantly smaller for RSS methods".

    Parts: for each dataset, OFA's range minus RSS's and minus RSS-Short's; a range is the mean of the best 5 % of
    subnets minus that of the worst 5 %.
    """
    return [
        evidence.contrast(f"{_label(m)} on {panel_label(d)}", {(d, baseline): 1, (d, m): -1}, extent)
        for d in evidence.datasets
        for m in ("rss", "rss-short")
    ]


def biased_to_large(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2: "OFA shows a significant bias towards larger subnets in all datasets"; section 5.

    Parts: for each dataset OFA's slope of accuracy on size, and by how much it exceeds RSS's, since larger networks are
    somewhat better without any bias.
    """
    return [
        evidence.contrast(f"{words} on {panel_label(d)}", {(d, baseline): 1} | others, slope)
        for d in evidence.datasets
        for words, others in (("OFA's slope", {}), ("OFA's slope minus RSS's", {(d, "rss"): -1}))
    ]


def faster(evidence: Evidence, baseline: str, method: str) -> list[Part]:
    """Abstract, section 6.2, Fig. 4: on average over the datasets RSS is 1.9 times and RSS-Short 6.1 times as fast.

    Part: the logarithm of OFA's training time over the method's, both of one seed, hardware and executor and by the
    same clock, mean over the datasets, then over the seeds, which are the replicates of a t interval.
    """
    if evidence.times.empty:
        logs = pd.DataFrame()
    else:
        clocks = timed(evidence.times[evidence.times["backbone"] == MOBILENET])
        clocks = clocks.set_index(["hardware", "executor", "seed", "dataset"])
        ofa, mine = (clocks.loc[clocks["method"] == name, "seconds"] for name in (baseline, method))
        logs = np.log(ofa / mine).dropna().unstack("dataset")
    missing = tuple(
        f"times of {baseline} and {method} on {dataset} of one seed, hardware and executor"
        for dataset in evidence.datasets
        if dataset not in logs
    )
    there = logs[[dataset for dataset in evidence.datasets if dataset in logs]]
    machines = ", ".join(dict.fromkeys(f"{hardware} ({executor})" for hardware, executor, _ in there.index))
    by_seed = there.groupby("seed").mean().dropna().mean(axis=1) if machines else pd.Series(dtype=float)
    if by_seed.empty and not missing:
        missing = ("a seed of which all datasets have times",)
    error = float(by_seed.sem()) if len(by_seed) > 1 else math.nan
    return [Part(machines, float(by_seed.mean()), error, max(0, len(by_seed) - 1), len(by_seed), missing)]


def in_order(
    evidence: Evidence, baseline: str = "", best_first: Sequence[str] = (), backbone: str = MOBILENET
) -> list[Part]:
    """Sections 6.3.1 (Fig. 5) and 6.3.2 (Fig. 7), supplement 1.1 (Fig. S1) and 3 (Fig. S7), all on CIFAR-100: which
    schemes train better populations than others; the supplement does not repeat Fig. 7's order for RSS-Short.

    Parts: the mean difference of each adjacent pair, the baseline last.
    """
    return _leads(evidence, *best_first, *[baseline] * bool(baseline), backbone=backbone)


def skewed_to_own_size(evidence: Evidence, base: str) -> list[Part]:
    """Section 6.3.2, Fig. 6 for RSS, and supplement 1.2, Fig. S2 for RSS-Short: with a single trained subnet, accuracy
    "is skewed towards the size of the selected subnet".

    Parts: for the smallest, the middle and the largest subnet, the points lost per MFLOPs of distance to its size, and
    that minus the same of the unbiased scheme, since larger networks are somewhat better anyway.
    """
    space, parts = SearchSpace(MOBILENET), []
    for scheme in ("smallest", "middle", "largest"):
        loss = loss_away_from(float(space.reference.macs(getattr(space, scheme))) / 1e6)
        parts += _own_and_beyond(evidence, f"{scheme} only", f"{base}-{scheme}", base, _label(base), loss)
    return parts


def changes_agree(evidence: Evidence, baseline: str) -> list[Part]:
    """Supplement 2, Fig. S4 to S6: batch size, dropout and learning rate move OFA and RSS-Short the same way.

    Parts: for each change the mean effect (changed minus unchanged) on both methods, with both signs turned if the
    clearer of the two is a loss. So both are above 0 if they have one sign, and one is decidedly below if they are
    decidedly of opposite signs.
    """
    parts = []
    for change in OVERRIDES:
        effects = [part for m in (baseline, "rss-short") for part in _leads(evidence, f"{m}-{change}", m)]
        clearer = max((p for p in effects if p.seeds), key=lambda p: abs(p.estimate) / (p.error or 1e-9), default=None)
        lowers = clearer is not None and clearer.estimate < 0
        parts += [replace(p, label=f"{p.label}, turned", estimate=-p.estimate) if lowers else p for p in effects]
    return parts


def skewed_to_last_trained(evidence: Evidence, base: str) -> list[Part]:
    """Section 6.3.2, Fig. 7, and supplement 1.2, Fig. S3: Min then Max and Max then Min "skew their results towards the
    subnet most recently trained".

    Parts: the slope of accuracy on size (for Max then Min, its negative), and that minus the same of the unbiased
    scheme.
    """
    parts = []
    for scheme, sign in SEQUENCES.items():
        method = f"{base}-{scheme}"
        parts += _own_and_beyond(evidence, _label(method), method, base, _label(base), slope, sign)
    return parts


def short_skews_more(evidence: Evidence) -> list[Part]:
    """Supplement 1.2, Fig. S3: the two sequences "show a more significant bias" than in the main ablation.

    Parts: for each sequence, by how much RSS-Short's slope of accuracy on size exceeds RSS's, in the direction of the
    subnet trained last.
    """
    return [
        evidence.contrast(
            _label(f"rss-{scheme}"),
            {(evidence.hardest, f"rss-short-{scheme}"): sign, (evidence.hardest, f"rss-{scheme}"): -sign},
            slope,
        )
        for scheme, sign in SEQUENCES.items()
    ]


def second_subnet_helps(evidence: Evidence) -> list[Part]:
    """Section 6.3.2, Fig. 6 and 7: "both subnet populations benefited from the training of an additional subnet".

    Parts: Max then Min minus smallest only at 12 and 14 MFLOPs; Min then Max minus largest only at 4 and 6 MFLOPs.
    """
    return [
        *_leads(evidence, "rss-max-then-min", "rss-smallest", statistic=LARGE),
        *_leads(evidence, "rss-min-then-max", "rss-largest", statistic=SMALL),
    ]


def medium_sizes_lag(evidence: Evidence) -> list[Part]:
    """Supplement 1.2, Fig. S3: with RSS-Short's Alternating, subnets of 8 and 10 MFLOPs "perform significantly worse
    than smaller and larger subnets", which "is not seen in the main results".

    Parts: for smaller (4 and 6 MFLOPs) and larger (12 and 14), their mean accuracy minus that of 8 and 10, and that
    minus the same of RSS's Alternating.
    """
    parts, methods = [], ("rss-short-alternating", "rss-alternating")
    for words, sizes in (("smaller", SMALL), ("larger", LARGE)):
        parts += _own_and_beyond(evidence, f"{words} minus medium", *methods, "RSS's", difference(sizes, MEDIUM))
    return parts


def changes_lower(evidence: Evidence, baseline: str) -> list[Part]:
    """Supplement 2, Fig. S4 to S6: a larger batch, more dropout and a higher learning rate each reduce the accuracy of
    OFA and of RSS-Short.

    Parts: for each change and both methods, the mean accuracy unchanged minus changed.
    """
    return [
        part for change in OVERRIDES for m in (baseline, "rss-short") for part in _leads(evidence, m, f"{m}-{change}")
    ]


def dropout_harms_ofa_more(evidence: Evidence, baseline: str) -> list[Part]:
    """Supplement 2, Fig. S5: more dropout lowers both "with OFA having a more significant accuracy drop".

    Part: OFA's loss of mean accuracy minus RSS-Short's.
    """
    signs = {baseline: 1, "rss-short": -1}
    terms = {(evidence.hardest, m): sign for m, sign in signs.items()}
    terms |= {(evidence.hardest, f"{m}-dropout-0.3"): -sign for m, sign in signs.items()}
    return [evidence.contrast("loss of OFA minus loss of RSS-Short", terms)]


def below_mobilenet(evidence: Evidence, baseline: str) -> list[Part]:
    """Supplement 3, Fig. S7: with ProxylessNAS there is "a lower overall accuracy for each method than with the
    MobileNetV3 base architecture".

    Parts: for each method, the mean accuracy of MobileNetV3's subnets of 4 to 12 MFLOPs minus that of ProxylessNAS's.
    """
    return [
        evidence.contrast(
            _label(m),
            {(evidence.hardest, m, MOBILENET): 1, (evidence.hardest, m, PROXYLESS): -1},
            mean_of(0, len(BACKBONES[PROXYLESS].buckets)),
        )
        for m in (baseline, "rss-short", "rss")
    ]


@dataclass(frozen=True)
class Statement:
    """A claim of the paper."""

    number: str
    parts: Callable[..., list[Part]] = field(repr=False)  # of the evidence and, if it is about OFA, of a baseline
    text: str
    where: str
    figure: str  # name of our figure's file; several are separated by ", "
    statistic: str  # of which all must be above 0, or the ratio that must be near the published one
    unit: str = "points"
    about_ofa: bool = True


PAIRS = "mean difference of each adjacent pair"
STATEMENTS = (
    Statement("1", above_at_every_size, "RSS is above OFA at every size, on every dataset",
              "Section 6.2, Fig. 3", "figure_3", "mean difference for each dataset and size"),
    Statement("2", short_above_ofa, "RSS-Short is above OFA in median and best subnets",
              "Section 1, Fig. 1b", "figure_1", "difference of the medians, and of the means of the best 5 %"),
    Statement("3", gap_grows, "RSS's lead over OFA grows with the dataset's difficulty",
              "Section 6.2, Fig. 3", "figure_3", "growth of the mean difference from each dataset to the next"),
    Statement("4", smaller_range, "RSS and RSS-Short have a smaller range, best to worst",
              "Section 6.2, Fig. 3", "figure_3", "difference of ranges (best 5 % minus worst 5 %) on each dataset"),
    Statement("5", biased_to_large, "OFA favours large subnets more than RSS does",
              "Sections 5 and 6.2, Fig. 3", "figure_3",
              "slope of accuracy on size, and its excess over RSS's, on each dataset", "points per MFLOPs"),
    Statement("6a", partial(faster, method="rss"), "RSS is 1.9 times as fast as OFA",
              "Abstract, section 6.2, Fig. 4", "figure_4", "ratio of training times, geometric mean", "times"),
    Statement("6b", partial(faster, method="rss-short"), "RSS-Short is 6.1 times as fast as OFA",
              "Abstract, section 6.2, Fig. 4", "figure_4", "ratio of training times, geometric mean", "times"),
    Statement("7a", partial(in_order, best_first=("rss", "rss-per-batch", "rss-2-per-batch")),
              "RSS: one an epoch > one a batch > two a batch", "Section 6.3.1, Fig. 5", "figure_5", PAIRS,
              about_ofa=False),
    Statement("7b", partial(in_order, best_first=("rss-short", "rss-short-per-batch", "rss-short-2-per-batch")),
              "RSS-Short: one an epoch > one a batch > two a batch", "Supplement 1.1, Fig. S1", "figure_S1", PAIRS,
              about_ofa=False),
    Statement("8a", partial(skewed_to_own_size, base="rss"), "RSS: a single trained subnet skews to its size",
              "Section 6.3.2, Fig. 6", "figure_6", "loss per MFLOPs of distance to its size, and excess over RSS's",
              "points per MFLOPs", about_ofa=False),
    Statement("8b", partial(skewed_to_own_size, base="rss-short"),
              "RSS-Short: a single trained subnet skews to its size", "Supplement 1.2, Fig. S2", "figure_S2",
              "loss per MFLOPs of distance to its size, and excess over RSS-Short's", "points per MFLOPs",
              about_ofa=False),
    Statement("9", partial(in_order, best_first=("rss", "rss-alternating", "rss-min-then-max", "rss-max-then-min")),
              "Max then Min < Min then Max < Alternating < RSS", "Section 6.3.2, Fig. 7", "figure_7", PAIRS,
              about_ofa=False),
    Statement("10", changes_agree, "Hyper-parameters move OFA and RSS-Short alike",
              "Supplement 2, Fig. S4 to S6", "figure_S4, figure_S5, figure_S6",
              "mean effect of each change on both, in the direction of the clearer one"),
    Statement("11", partial(in_order, best_first=("rss", "rss-short"), backbone=PROXYLESS),
              "OFA < RSS-Short < RSS on ProxylessNAS too", "Supplement 3, Fig. S7", "figure_S7", PAIRS),
    Statement("12a", partial(skewed_to_last_trained, base="rss"), "RSS: two subnets in turn skew to the last trained",
              "Section 6.3.2, Fig. 7", "figure_7", "slope towards the last trained, and excess over RSS's",
              "points per MFLOPs", about_ofa=False),
    Statement("12b", partial(skewed_to_last_trained, base="rss-short"),
              "RSS-Short: two subnets in turn skew to the last", "Supplement 1.2, Fig. S3", "figure_S3",
              "slope towards the last trained, and excess over RSS-Short's", "points per MFLOPs", about_ofa=False),
    Statement("12c", short_skews_more, "RSS-Short's two sequences skew more than RSS's", "Supplement 1.2, Fig. S3",
              "figure_7, figure_S3", "difference of slopes towards the last trained", "points per MFLOPs",
              about_ofa=False),
    Statement("13", second_subnet_helps, "RSS: a second subnet helps at the sizes near it",
              "Section 6.3.2, Fig. 7", "figure_6, figure_7", "mean difference at the two sizes nearest to the second",
              about_ofa=False),
    Statement("14", medium_sizes_lag, "RSS-Short: Alternating leaves medium sizes behind",
              "Supplement 1.2, Fig. S3", "figure_7, figure_S3",
              "mean of smaller and of larger sizes minus medium, and excess over RSS's", about_ofa=False),
    Statement("15a", changes_lower, "Each change of hyper-parameters lowers both", "Supplement 2, Fig. S4 to S6",
              "figure_S4, figure_S5, figure_S6", "mean loss by each change, of both"),
    Statement("15b", dropout_harms_ofa_more, "Dropout harms OFA more than RSS-Short", "Supplement 2, Fig. S5",
              "figure_S5", "difference of mean losses"),
    Statement("16", below_mobilenet, "ProxylessNAS is below MobileNetV3, by all methods", "Supplement 3, Fig. S7",
              "figure_3, figure_S7", "mean difference of each method at 4 to 12 MFLOPs"),
)  # fmt: skip


# --- from parts to a verdict ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A statement with our verdict on it, against one PS baseline if it is about OFA."""

    statement: Statement
    baseline: str  # method name, or empty
    parts: tuple[Part, ...] = field(repr=False)
    estimate: float
    low: float
    high: float
    verdict: str
    reason: str
    direction: str = ""  # where the scale decides nothing

    @property
    def kind(self) -> str:
        """The verdict without its remark on seeds."""
        return self.verdict.removesuffix(ONE_SEED)


def decide(
    population: pd.DataFrame,
    times: pd.DataFrame,
    profile: str,
    datasets: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> list[Claim]:
    """Every claim with its verdict, in the paper's order; those about OFA once against each PS baseline that was run.

    Parameters and errors are those of `Evidence`. Missing runs give the verdict "not run".
    """
    evidence = Evidence(population, times, profile, datasets, resamples)
    claims = []
    for statement in STATEMENTS:
        for arguments in [(b,) for b in evidence.baselines] if statement.about_ofa else [()]:
            claims.append(_judge(statement, statement.parts(evidence, *arguments), evidence.decides, *arguments))
    return claims


def _judge(statement: Statement, parts: list[Part], decides: bool, baseline: str = "") -> Claim:
    """Apply the rule of the statement, unless missing runs or their scale forbid a verdict."""
    there = [part for part in parts if part.seeds]
    missing = list(dict.fromkeys(name for part in parts for name in part.missing))
    seeds = min((part.seeds for part in there), default=0)
    kind, numbers, reasons = INCONCLUSIVE, (math.nan, math.nan, math.nan), []
    if there:
        kind, numbers, words = (_near if statement.unit == "times" else _all_above_zero)(statement, there)
        reasons = [words, f"{seeds} seeds" if seeds > 1 else "one seed, which says nothing about others"]
    if missing:
        reasons.append(f"missing: {', '.join(missing)}")
    verdict = kind + ONE_SEED * (seeds == 1)
    refuted = kind == REFUTED and statement.unit != "times"  # a mean over fewer datasets refutes nothing
    if missing and not (refuted and decides):
        verdict = NOT_RUN
    elif not decides:
        verdict = NO_SCALE
    direction = _direction(statement, there, kind) if verdict == NO_SCALE else ""
    reason = "; ".join(reasons)
    reason = f"{reason[:1].upper()}{reason[1:]}."
    return Claim(statement, baseline, tuple(parts), *numbers, verdict, reason, direction)


def _direction(statement: Statement, parts: list[Part], kind: str) -> str:
    """In which direction the runs point, by the rule in the module's text."""
    if statement.unit != "times":
        return {REPRODUCED: AGREES, REFUTED: OTHER_WAY}.get(kind, UNCLEAR)
    (part,) = parts
    low, high = (part.low(), part.high()) if part.degrees else (part.estimate,) * 2
    return AGREES if low > 0 else OTHER_WAY if high < 0 else UNCLEAR


Judged = tuple[str, tuple[float, float, float], str]  # verdict; estimate, low and high; why


def _all_above_zero(statement: Statement, parts: list[Part]) -> Judged:
    """The rule for conjunctions, as the module's text states it."""
    least = min(parts, key=lambda part: part.estimate)
    low = float(np.min([part.low() for part in parts]))
    high = float(np.min([part.high(TAIL / len(parts)) for part in parts]))
    kind = REPRODUCED if low > 0 else REFUTED if high < 0 else INCONCLUSIVE
    above = sum(part.estimate > 0 for part in parts)
    words = f"{above} of {len(parts)} above 0, smallest: {least.label}, {least.estimate:+.2f} {statement.unit}"
    return kind, (least.estimate, low, high), words


def _near(statement: Statement, parts: list[Part]) -> Judged:
    """The rule for a published ratio: reproduced if the interval (with one seed, the ratio) is within 20 % of it, not
    reproduced if it is outside, on whichever side."""
    (part,), published = parts, SPEED_UPS[statement.number]
    numbers = math.exp(part.estimate), math.exp(part.low()), math.exp(part.high())
    first, last = numbers[1:] if part.degrees else (numbers[0],) * 2
    least, most = ((1 + sign * TOLERANCE) * published for sign in (-1, 1))
    inside, outside = least <= first and last <= most, last < least or first > most
    words = f"{numbers[0]:.2f} times as fast on {part.label}; {least:.2f} to {most:.2f} counts as the published "
    words += f"{published} (RTX 3080, the authors' pipeline)"
    return REPRODUCED if inside else REFUTED if outside else INCONCLUSIVE, numbers, words


# --- tables and words -------------------------------------------------------------------------------------------------


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim and baseline: what the paper says and where, our estimate, the verdict and why, the figure.

    `direction` is empty unless the scale decides nothing.
    """
    ours = ("baseline", "estimate", "low", "high", "verdict", "direction", "reason")
    theirs = ("number", "text", "where", "statistic", "figure", "unit")
    return pd.DataFrame(
        [{n: getattr(c.statement, n) for n in theirs} | {n: getattr(c, n) for n in ours} for c in claims]
    )


def components(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row for each number that a claim rests on, with its own 95 % interval (those of 6a and 6b are logarithms)."""
    columns = ["claim", "baseline", "part", "estimate", "low", "high", "seeds"]
    parts = [(claim.statement.number, claim.baseline, part) for claim in claims for part in claim.parts]
    rows = [(n, baseline, p.label, p.estimate, p.low(), p.high(), p.seeds) for n, baseline, p in parts]
    return pd.DataFrame(rows, columns=columns)


def markdown(claims: Sequence[Claim], folder: str | Path, prefix: str = "") -> str:
    """The table to read, in Markdown. Figures in `folder` are links; `prefix` leads from the page to the folder."""
    head = ("Claim", "The paper says", "Baseline", "Statistic", "Estimate, 95 % interval", "Verdict", "Why", "Figure")
    rows = [head, (":---",) * len(head)]
    for row in table(claims).itertuples():
        number = "" if math.isnan(row.estimate) else f"{row.estimate:.2f} {row.unit}"
        number += "" if math.isnan(row.low) else f", {row.low:.2f} to {row.high:.2f}"
        there = {name: (Path(folder) / f"{name}.png").exists() for name in row.figure.split(", ")}
        links = [f"[{n}]({prefix}{n}.png)" if drawn else f"{n} (not drawn)" for n, drawn in there.items()]
        text, baseline = f"{row.text} ({row.where})", _label(row.baseline) if row.baseline else ""
        verdict = f"{row.verdict}; {row.direction}" if row.direction else row.verdict
        rows.append((row.number, text, baseline, row.statistic, number, verdict, row.reason, ", ".join(links)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def save_claims(claims: Sequence[Claim], folder: str | Path) -> None:
    """Write claims.csv and claims.md into `folder`, each whole or not at all."""
    folder = make_folder(Path(folder))
    write_csv(folder / "claims.csv", table(claims))
    with atomic_path(folder / "claims.md") as temporary:
        temporary.write_text(f"# Claims\n\n{markdown(claims, folder)}\n{conclusions(claims)}", encoding="utf-8")


# What the paper argues, and the claims that it rests on.
AGAINST_INTERFERENCE = "RSS does nothing against interference, and trains the better population"
SAMPLING_BIAS = "Populations lean toward what was trained most, and less bias is better"
ARGUMENTS = {
    AGAINST_INTERFERENCE: ("1", "11"),
    "More subnets in an update interfere, and lower the accuracy": ("7a", "7b"),
    SAMPLING_BIAS: ("5", "8a", "8b", "9"),
}


def conclusions(claims: Sequence[Claim]) -> str:
    """What the verdicts say about interference and sampling bias, in Markdown, from the verdicts alone."""
    counts = Counter(claim.kind for claim in claims)
    lines = [f"Verdicts: {', '.join(f'{kind} {n}' for kind, n in counts.items())}."]
    if counts[NO_SCALE]:
        directions = Counter(claim.direction for claim in claims if claim.direction)
        lines[0] += f" Directions: {', '.join(f'{direction} {n}' for direction, n in directions.items())}."
        return lines[0] + " These runs are not at the paper's scale: they decide nothing about either explanation.\n"
    lines.append("*Supported*: all claims are reproduced; *contradicted*: one is not reproduced; else *open*.")
    for baseline in dict.fromkeys(claim.baseline for claim in claims if claim.baseline):
        status, bullets = {}, [f"With {_label(baseline)} as the baseline:\n"]
        for argument, numbers in ARGUMENTS.items():
            members = [c for c in claims if c.statement.number in numbers and c.baseline in ("", baseline)]
            kinds = {claim.kind for claim in members}
            status[argument] = "contradicted" if REFUTED in kinds else "supported" if kinds == {REPRODUCED} else "open"
            verdicts = ", ".join(f"{claim.statement.number} {claim.verdict}" for claim in members)
            bullets.append(f"- {argument}: {status[argument]} ({verdicts}).")
        interference, bias = status[AGAINST_INTERFERENCE], status[SAMPLING_BIAS]
        answer = f"not settled: the argument against interference is {interference}, that for sampling bias {bias}"
        if interference == bias == "supported":
            answer = "sampling bias and not interference, as the paper says"
        lines.append("\n".join([*bullets, f"- Which explanation the evidence carries: {answer}."]))
    if any(claim.verdict.endswith(ONE_SEED) for claim in claims):
        lines.append("Verdicts with one seed may change with another: their intervals cover subnets alone.")
    return "\n\n".join(lines) + "\n"


# --- the figure -------------------------------------------------------------------------------------------------------

# Marker and whether it is filled, by verdict, or by direction where the scale decides nothing.
MARKERS = {REPRODUCED: ("o", True), REFUTED: ("X", True), INCONCLUSIVE: ("o", False), NOT_RUN: ("s", False),
           AGREES: ("D", True), OTHER_WAY: ("<", True), UNCLEAR: ("D", False)}  # fmt: skip
COLOURS = {baseline: METHOD_STYLES[baseline].colour for baseline in BASELINES} | {"": "#4d4d4d"}
PANELS = {  # by unit: name and width in inches
    "points": ("points of accuracy", 1.7),
    "points per MFLOPs": ("points per MFLOPs", 1.15),
    "times": ("times as fast as OFA", 1.15),
}
LEFT, RIGHT, TOP, BOTTOM, ROW, GAP = 3.2, 1.4, 0.62, 0.42, 0.19, 0.2  # inches: texts beside the panels, rows, gaps
WIDTH = LEFT + RIGHT + sum(width + GAP for _, width in PANELS.values())


def figure_claims(claims: Sequence[Claim], caption: str = "") -> Captioned:
    """Estimate and 95 % interval of every claim, in the paper's order, beside the claim and the verdict in words.

    Each unit has a column with an axis of its own. Where the scale decides nothing this is said once, above the
    directions. An interval that reaches the edge of its panel goes on beyond it. `caption` begins the caption.
    """
    height, left, columns = TOP + ROW * len(claims) + BOTTOM, LEFT, []
    figure = Captioned((WIDTH, height))
    for unit, (name, width) in PANELS.items():
        place = (left / WIDTH, BOTTOM / height, width / WIDTH, ROW * len(claims) / height)
        columns.append(figure.add_axes(place))
        _draw_column(columns[-1], claims, unit, name)
        left += width + GAP
    _write_rows(columns[0], columns[-1], claims)
    undecided = any(claim.direction for claim in claims)
    top = 1 - (TOP - 0.07) / height
    heading = f"{NO_SCALE};\nthe runs' direction:" if undecided else "verdict"
    figure.text((left - GAP + 0.12) / WIDTH, top, heading, fontsize=7, fontweight="bold", va="bottom", linespacing=1.1)
    figure.text(0.08 / WIDTH, top, "the paper's claim", fontsize=7, fontweight="bold", va="bottom")
    shown = {c.direction or c.kind for c in claims if not math.isnan(c.estimate)}
    handles: list = [
        Line2D([], [], linestyle="", marker=marker, markersize=5, color="0.3", label=kind,
               markerfacecolor="0.3" if filled else "white")
        for kind, (marker, filled) in MARKERS.items() if kind in shown
    ]  # fmt: skip
    baselines = {c.baseline for c in claims}
    names = {baseline: f"against {_label(baseline)}" if baseline else "no baseline" for baseline in baselines}
    handles += [Patch(color=COLOURS[b], label=names[b]) for b in COLOURS if b in baselines]
    figure.legend(handles=handles, loc="upper center", ncols=8, frameon=False, fontsize=6.8, handletextpad=0.4,
                  columnspacing=1.2, handlelength=1.2, borderpad=0.3)  # fmt: skip
    words = "Bars: 95 % intervals, which may go on beyond the edge. Claims about accuracy hold above 0. Shaded: "
    words += f"published ratios of training times ± {100 * TOLERANCE:g} %"
    words += "; the direction of a ratio agrees wherever the method is faster than OFA." if undecided else "."
    figure.caption = f"{caption} {words}".strip()
    return figure


def _write_rows(first: Axes, last: Axes, claims: Sequence[Claim]) -> None:
    """Number and text of each claim to the left of the `first` column, verdict or direction right of the `last`."""
    style: dict[str, Any] = {"va": "center", "fontsize": 7}
    before, after = ({**style, "transform": axes.get_yaxis_transform()} for axes in (first, last))
    widths = [width for _, width in PANELS.values()]
    for y, claim in enumerate(claims):
        words = claim.statement.text
        if _is_first(claims, y):
            first.text((0.08 - LEFT) / widths[0], y, claim.statement.number, **before)
        else:
            words = f"the same against {_label(claim.baseline)}"
        first.text((0.36 - LEFT) / widths[0], y, words, **before)
        last.text(1 + 0.12 / widths[-1], y, claim.direction or claim.verdict, **after)


def _is_first(claims: Sequence[Claim], y: int) -> bool:
    return y == 0 or claims[y - 1].statement.number != claims[y].statement.number


def _draw_column(axes: Axes, claims: Sequence[Claim], unit: str, name: str) -> None:
    """The estimates of one unit, each in the row of its claim among all `claims`."""
    rows = [(y, claim) for y, claim in enumerate(claims) if claim.statement.unit == unit]
    shown = [1, *SPEED_UPS.values()] if unit == "times" else [0]
    shown += [claim.estimate for _, claim in rows if not math.isnan(claim.estimate)]
    if unit == "times":
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(shown) / 1.5, max(shown) * 1.5)
        powers = np.arange(*np.ceil(np.log2(axes.get_xlim())))
        powers = powers[powers % math.ceil(len(powers) / 5) == 0]
        axes.set_xticks(2.0**powers, [f"{2.0**power:g}" for power in powers])
        axes.minorticks_off()
    else:
        widths = [claim.high - claim.low for _, claim in rows if not math.isnan(claim.low)]
        room = max(0.35 * np.ptp(shown), 0.6 * np.median(widths or [0])) or 1.0  # no single wide interval decides
        axes.set_xlim(min(shown) - room, max(shown) + room)
        axes.xaxis.set_major_locator(MaxNLocator(5 if unit == "points" else 4, prune="both"))
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.axvline(1 if unit == "times" else 0, color="0.2", linewidth=0.8, zorder=1)
    for y in range(1, len(claims)):
        if _is_first(claims, y):
            axes.axhline(y - 0.5, color="0.9", linewidth=0.5, zorder=0)
    for y, claim in rows:
        if unit == "times":
            low, high = ((1 + sign * TOLERANCE) * SPEED_UPS[claim.statement.number] for sign in (-1, 1))
            axes.fill_betweenx([y - 0.42, y + 0.42], low, high, color="0.87", linewidth=0, zorder=0)
        if not math.isnan(claim.estimate):
            (marker, filled), colour = MARKERS[claim.direction or claim.kind], COLOURS[claim.baseline]
            error = None if math.isnan(claim.low) else [[claim.estimate - claim.low], [claim.high - claim.estimate]]
            axes.errorbar(claim.estimate, y, xerr=error, marker=marker, color=colour, markersize=5, capsize=2, zorder=3,
                          markerfacecolor=colour if filled else "white", linewidth=1.3)  # fmt: skip
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=7, pad=2)
    axes.grid(axis="x", linewidth=0.4, color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(name, fontsize=7.5, labelpad=2)
