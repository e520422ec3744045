"""What the paper claims, and the numbers that each claim rests on.

A `Statement` names where the paper says something and the function that makes its parts: paired differences and the
like, with intervals from `claims.evidence`, all of which are above 0 if the statement is true. Statements 1 to 11
are the paper's main ones, 12a to 21 what else it says of its figures that numbers can decide. Those whose number ends
in s are secondary: another statistic of the same claim, which decides nothing. Controls, C1 to C10, are no claims of
the paper: they part what its contrasts mix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import pandas as pd

from rsslib.backbones import BACKBONES
from rsslib.space import SearchSpace
from rsstudy.catalogue import OVERRIDES, TABLE_1
from rsstudy.claims.evidence import (
    MOBILENET,
    PROXYLESS,
    Evidence,
    Part,
    Statistic,
    best,
    difference,
    extent,
    log_odds,
    loss_away_from,
    mean,
    mean_of,
    median,
    over_seeds,
    slope,
)
from rsstudy.figures.style import label_of, panel_label
from rsstudy.summary import log_ratios, published, timed

SPEED_UPS, MARGIN = {"6a": 1.9, "6b": 6.1}, 0.2  # as published, by claim; relative
# "Similar" and "on par" are this near, in points: less than the published medians of RSS itself, the most even
# population, differ between sizes.
ON_PAR = 2.0
# Mean accuracies at 4 and 6, 8 and 10, 12 and 14 MFLOPs, the paper's smaller, medium and larger subnets of MobileNetV3
SMALL, MEDIUM, LARGE = mean_of(0, 2), mean_of(2, 4), mean_of(4, 6)
SEQUENCES = {"min-then-max": 1, "max-then-min": -1}  # and the sign of a slope of accuracy towards the last trained
SINGLE = ("smallest", "middle", "largest")

# --- the parts that must be above 0 -----------------------------------------------------------------------------------


def _leads(evidence: Evidence, *best_first: str, statistic: Statistic = mean, backbone: str = MOBILENET) -> list[Part]:
    """For each adjacent pair of methods, the difference of a statistic on the hardest dataset."""
    pairs = [(f"{label_of(a)} minus {label_of(b)}", a, b) for a, b in pairwise(best_first)]
    return [evidence.lead(*pair, statistic, backbone=backbone) for pair in pairs]


def _own_and_beyond(
    evidence: Evidence, label: str, method: str, other: str, whose: str, statistic: Statistic, sign: int = 1
) -> list[Part]:
    """A statistic of `method` on the hardest dataset, and that minus the one of `other`; both times `sign`."""
    return [
        evidence.contrast(label, {method: sign}, statistic),
        evidence.contrast(f"{label}, beyond {whose}", {method: sign, other: -sign}, statistic),
    ]


def _within(part: Part, low: float, high: float) -> list[Part]:
    """Two parts that are above 0 if a number is between `low` and `high`: two one-sided tests, where both must hold."""
    words = f"{part.label}, {part.estimate:+.2f}," if part.seeds else part.label
    return [
        replace(part, label=f"{words} above {low:+.3g}", estimate=part.estimate - low),
        replace(part, label=f"{words} below {high:+.3g}", estimate=high - part.estimate),
    ]


def above_on_average(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2: "Across all datasets, RSS achieves the best performing subnet population".

    Parts: for each dataset, RSS's mean accuracy over all sizes minus OFA's. The paper's words are about populations;
    that each size leads too (1s) asks so many parts to be clear that three seeds seldom suffice where all are true.
    """
    return [evidence.lead(panel_label(d), "rss", baseline, dataset=d) for d in evidence.datasets]


def above_at_every_size(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2, Fig. 3: RSS's boxes are above OFA's at each size.

    Parts: for each dataset and size bucket, RSS's mean accuracy minus OFA's.
    """
    return [
        evidence.lead(f"{panel_label(d)} at {b} MFLOPs", "rss", baseline, mean_of(i, i + 1), d)
        for d in evidence.datasets
        for i, b in enumerate(BACKBONES[MOBILENET].buckets)
    ]


def short_above_ofa(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.3: "both proposed RSS variants outperform OFA"; Fig. 1b: "better top performing subnets" on CIFAR-100.

    Parts: on each dataset, RSS-Short's median minus OFA's; on CIFAR-100 also the difference of the means of each one's
    best 5 % of subnets.
    """
    parts = [evidence.lead(f"median on {panel_label(d)}", "rss-short", baseline, median, d) for d in evidence.datasets]
    return [*parts, evidence.lead(f"best 5 % on {panel_label(evidence.hardest)}", "rss-short", baseline, best)]


def gap_grows(evidence: Evidence, baseline: str, statistic: Statistic = mean) -> list[Part]:
    """Section 6.2: "The gap between RSS and OFA grows larger as the difficulty of the dataset increases".

    Parts: for each adjacent pair of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, the harder one's lead of RSS over OFA
    minus the easier one's: of mean accuracy, in points (3), or of the mean log odds of a right answer (3s), since near
    100 % there is little room for a lead.
    """
    parts = []
    for easy, hard in pairwise(dataset for dataset in TABLE_1 if dataset in evidence.datasets):
        terms = {(hard, "rss"): 1, (hard, baseline): -1, (easy, "rss"): -1, (easy, baseline): 1}
        parts.append(evidence.contrast(f"{panel_label(easy)} to {panel_label(hard)}", terms, statistic))
    return parts or [Part("steps", missing=("two datasets that the paper ranks by difficulty",))]


def smaller_range(evidence: Evidence, baseline: str) -> list[Part]:
    """Section 6.2: the range from the best to the worst subnet "is significantly smaller for RSS methods".

    Parts: for each dataset, OFA's range minus RSS's and minus RSS-Short's; a range is the mean of the best 5 % of
    subnets minus that of the worst 5 %.
    """
    return [
        evidence.lead(f"{label_of(m)} on {panel_label(d)}", baseline, m, extent, d)
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
        for words, others in (
            (f"{label_of(baseline)}'s slope", {}),
            (f"{label_of(baseline)}'s slope minus RSS's", {(d, "rss"): -1}),
        )
    ]


def faster(evidence: Evidence, baseline: str, method: str) -> list[Part]:
    """Abstract, section 6.2, Fig. 4: on average over the datasets RSS is 1.9 times and RSS-Short 6.1 times as fast.

    Parts: the logarithm of OFA's training time over the method's, both of one seed, hardware and executor and by the
    same clock, mean over the datasets, then over the seeds, which are the replicates of a t interval. The first, which
    decides, is of all datasets; where there are several, each one's own follows.
    """
    logs = pd.DataFrame()
    if len(evidence.times):
        clocks = timed(evidence.times[evidence.times["backbone"] == MOBILENET])
        logs = log_ratios(clocks, baseline, method).unstack("dataset")
    missing = tuple(
        f"times of {baseline} and {method} on {dataset} of one seed, hardware and executor"
        for dataset in evidence.datasets
        if dataset not in logs
    )
    there = logs[[dataset for dataset in evidence.datasets if dataset in logs]]
    machines = ", ".join(dict.fromkeys(f"{hardware} ({executor})" for hardware, executor, *_ in there.index))
    by_seed = there.groupby("seed").mean().dropna().mean(axis=1) if machines else pd.Series(dtype=float)
    if by_seed.empty and not missing:
        missing = ("a seed of which all datasets have times",)
    parts = [replace(over_seeds(machines, by_seed), missing=missing)]
    for dataset in evidence.datasets if len(evidence.datasets) > 1 else ():
        of_one = logs[dataset].dropna().groupby("seed").mean() if dataset in logs else ()
        parts.append(over_seeds(panel_label(dataset), of_one))
    return parts


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
    for scheme in SINGLE:
        loss = loss_away_from(float(space.reference.macs(getattr(space, scheme))) / 1e6)
        parts += _own_and_beyond(evidence, f"{scheme} only", f"{base}-{scheme}", base, label_of(base), loss)
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
        parts += _own_and_beyond(evidence, label_of(method), method, base, label_of(base), slope, sign)
    return parts


def short_skews_more(evidence: Evidence) -> list[Part]:
    """Supplement 1.2, Fig. S3: the two sequences "show a more significant bias" than in the main ablation.

    Parts: for each sequence, by how much RSS-Short's slope of accuracy on size exceeds RSS's, in the direction of the
    subnet trained last.
    """
    return [
        evidence.contrast(
            f"{label_of(f'rss-short-{scheme}')}, beyond RSS's",
            {f"rss-short-{scheme}": sign, f"rss-{scheme}": -sign},
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
    terms = {baseline: 1, "rss-short": -1, f"{baseline}-dropout-0.3": -1, "rss-short-dropout-0.3": 1}
    return [evidence.contrast("loss of OFA minus loss of RSS-Short", terms)]


def below_mobilenet(evidence: Evidence, baseline: str) -> list[Part]:
    """Supplement 3, Fig. S7: with ProxylessNAS there is "a lower overall accuracy for each method than with the
    MobileNetV3 base architecture".

    Parts: for each method, the mean accuracy of MobileNetV3's subnets of 4 to 12 MFLOPs minus that of ProxylessNAS's.
    """
    return [
        evidence.contrast(
            label_of(m),
            {(evidence.hardest, m, MOBILENET): 1, (evidence.hardest, m, PROXYLESS): -1},
            mean_of(0, len(BACKBONES[PROXYLESS].buckets)),
        )
        for m in (baseline, "rss-short", "rss")
    ]


def reasonable_drop(evidence: Evidence) -> list[Part]:
    """Abstract: RSS-Short's shorter training comes "with a reasonable drop in performance".

    Parts: on CIFAR-100, RSS's mean accuracy minus RSS-Short's, which is to be above 0 and no larger than what the paper
    calls reasonable: the drop that it shows there (Fig. 1b, mean of the medians), and 20 % more.
    """
    return _within(evidence.lead("drop", "rss", "rss-short"), 0, largest_drop())


def largest_drop() -> float:
    """The most that counts as a reasonable drop, in points."""
    told = published()
    medians = told[(told["quantity"] == "median") & (told["dataset"] == "cifar100") & (told["backbone"] == MOBILENET)]
    means = medians.groupby("method")["value"].mean()
    return (1 + MARGIN) * float(means["rss"] - means["rss-short"])


def second_drop_larger(evidence: Evidence) -> list[Part]:
    """Section 6.3.1, caption of Fig. 5: "The drop is more significant when more subnets are sampled per-batch".

    Part: on CIFAR-100, what mean accuracy loses from one to two a batch minus what it loses from one an epoch to one a
    batch.
    """
    terms = {"rss": -1, "rss-per-batch": 2, "rss-2-per-batch": -1}
    return [evidence.contrast("second drop minus first", terms)]


def above_single_subnets(evidence: Evidence) -> list[Part]:
    """Section 6.3.2: "RSS produces a better performing subnet population than the Alternating scheme and the other
    methods", here those of Fig. 6.

    Parts: on CIFAR-100, RSS's mean accuracy minus that of each scheme with a single trained subnet.
    """
    return [part for scheme in SINGLE for part in _leads(evidence, "rss", f"rss-{scheme}")]


def medium_sizes_on_par(evidence: Evidence) -> list[Part]:
    """Section 6.3.2, Fig. 7, of RSS's Alternating: "despite never being trained, the subnets in ranges 8-10 MFLOPs
    perform nearly on par with the larger and smaller subnets".

    Parts: the mean accuracy at 8 and 10 MFLOPs minus that at 4 and 6, and minus that at 12 and 14, each to be within
    2 points of 0.
    """
    return [
        part
        for words, sizes in (("smaller", SMALL), ("larger", LARGE))
        for part in _near_zero(evidence, f"medium minus {words}", "rss-alternating", difference(MEDIUM, sizes))
    ]


def ends_alike(evidence: Evidence) -> list[Part]:
    """Supplement 1.2, Fig. S3, of RSS-Short's Alternating: "min and max have similar performance".

    Parts: the mean accuracy at 14 MFLOPs minus that at 4, the sizes in the figure that are nearest to the two trained
    subnets, to be within 2 points of 0.
    """
    largest, smallest = mean_of(5, 6), mean_of(0, 1)
    return _near_zero(evidence, "14 minus 4 MFLOPs", "rss-short-alternating", difference(largest, smallest))


def _near_zero(evidence: Evidence, label: str, method: str, statistic: Statistic) -> list[Part]:
    return _within(evidence.contrast(label, {method: 1}, statistic), -ON_PAR, ON_PAR)


def control(evidence: Evidence, label: str, better: str, worse: str) -> list[Part]:
    """For what section 6 mixes, a contrast in which one thing differs. Part: the mean difference on CIFAR-100."""
    return [evidence.lead(label, better, worse)]


# --- the statements ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """A claim of the paper, another statistic of one (secondary), or a control of its contrasts."""

    number: str
    parts: Callable[..., list[Part]] = field(repr=False)  # of the evidence and, if it is about OFA, of a baseline
    text: str
    where: str
    figure: str  # name of our figure's file; several are separated by ", "
    statistic: str  # of which all must be above 0, or the ratio that must be near the published one
    unit: str = "points"
    about_ofa: bool = True
    role: Literal["claim", "secondary", "control"] = "claim"  # only claims decide
    note: str = ""  # a sentence to be said with every verdict


PAIRS = "mean difference of each adjacent pair"
EPOCHS = 'What the paper calls "nearly half the epochs" of OFA is {:.0f} % of them on CIFAR (Table 1)'
EPOCHS = EPOCHS.format(100 * TABLE_1["cifar100"][0] / sum(TABLE_1["cifar100"]))
SUMMED = "Gradients of two a batch are summed, so that steps are larger too"
RATES = "Schemes of two subnets have a constant rate, the others a cosine"
STATEMENTS = (
    Statement("1", above_on_average, "RSS is above OFA on every dataset",
              "Section 6.2, Fig. 3", "figure_3", "mean difference on each dataset"),
    Statement("1s", above_at_every_size, "RSS is above OFA at every size, on every dataset",
              "Section 6.2, Fig. 3", "figure_3", "mean difference for each dataset and size", role="secondary"),
    Statement("2", short_above_ofa, "RSS-Short is above OFA in median and best subnets",
              "Section 6.3, Fig. 1b and 3", "figure_1, figure_3",
              "difference of the medians on each dataset, and on the hardest of the means of the best 5 %"),
    Statement("3", gap_grows, "RSS's lead over OFA grows with the dataset's difficulty",
              "Section 6.2, Fig. 3", "figure_3", "growth of the mean difference from each dataset to the next"),
    Statement("3s", partial(gap_grows, statistic=log_odds), "The same lead in log odds, free of ceilings",
              "Section 6.2, Fig. 3", "figure_3", "growth of the mean difference in log odds", "log odds",
              role="secondary"),
    Statement("4", smaller_range, "RSS and RSS-Short have a smaller range, best to worst",
              "Section 6.2, Fig. 3", "figure_3", "difference of ranges (best 5 % minus worst 5 %) on each dataset"),
    Statement("5", biased_to_large, "OFA favours large subnets more than RSS does",
              "Sections 5 and 6.2, Fig. 3", "figure_3",
              "slope of accuracy on size, and its excess over RSS's, on each dataset", "points per MFLOPs"),
    Statement("6a", partial(faster, method="rss"), "RSS is 1.9 times as fast as OFA",
              "Abstract, section 6.2, Fig. 4", "figure_4", "ratio of training times, geometric mean", "times"),
    Statement("6b", partial(faster, method="rss-short"), "RSS-Short is 6.1 times as fast as OFA",
              "Abstract, section 6.2, Fig. 4", "figure_4", "ratio of training times, geometric mean", "times",
              note=EPOCHS),
    Statement("7a", partial(in_order, best_first=("rss", "rss-per-batch", "rss-2-per-batch")),
              "RSS: one an epoch > one a batch > two a batch", "Section 6.3.1, Fig. 5", "figure_5", PAIRS,
              about_ofa=False, note=SUMMED),
    Statement("7b", partial(in_order, best_first=("rss-short", "rss-short-per-batch", "rss-short-2-per-batch")),
              "RSS-Short: one an epoch > one a batch > two a batch", "Supplement 1.1, Fig. S1", "figure_S1", PAIRS,
              about_ofa=False, note=SUMMED),
    Statement("8a", partial(skewed_to_own_size, base="rss"), "RSS: a single trained subnet skews to its size",
              "Section 6.3.2, Fig. 6", "figure_6", "loss per MFLOPs of distance to its size, and excess over RSS's",
              "points per MFLOPs", about_ofa=False),
    Statement("8b", partial(skewed_to_own_size, base="rss-short"),
              "RSS-Short: a single trained subnet skews to its size", "Supplement 1.2, Fig. S2", "figure_S2",
              "loss per MFLOPs of distance to its size, and excess over RSS-Short's", "points per MFLOPs",
              about_ofa=False),
    Statement("9", partial(in_order, best_first=("rss", "rss-alternating", "rss-min-then-max", "rss-max-then-min")),
              "Max then Min < Min then Max < Alternating < RSS", "Section 6.3.2, Fig. 7", "figure_7", PAIRS,
              about_ofa=False, note=RATES),
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
              about_ofa=False, note=RATES),
    Statement("14", medium_sizes_lag, "RSS-Short: Alternating leaves medium sizes behind",
              "Supplement 1.2, Fig. S3", "figure_7, figure_S3",
              "mean of smaller and of larger sizes minus medium, and excess over RSS's", about_ofa=False),
    Statement("15a", changes_lower, "Each change of hyper-parameters lowers both", "Supplement 2, Fig. S4 to S6",
              "figure_S4, figure_S5, figure_S6", "mean loss by each change, of both"),
    Statement("15b", dropout_harms_ofa_more, "Dropout harms OFA more than RSS-Short", "Supplement 2, Fig. S5",
              "figure_S5", "difference of mean losses"),
    Statement("16", below_mobilenet, "ProxylessNAS is below MobileNetV3, by all methods", "Supplement 3, Fig. S7",
              "figure_3, figure_S7", "mean difference of each method at 4 to 12 MFLOPs"),
    Statement("17", reasonable_drop, "RSS-Short's drop from RSS is reasonable", "Abstract, Fig. 1b", "figure_1",
              f"mean difference, between 0 and {largest_drop():.2g} points (the published drop and 20 %)",
              about_ofa=False, note=EPOCHS),
    Statement("18", second_drop_larger, "RSS: the second drop of Fig. 5 is larger", "Section 6.3.1, Fig. 5", "figure_5",
              "difference of the two mean drops", about_ofa=False, note=SUMMED),
    Statement("19", above_single_subnets, "RSS is above every scheme with a single subnet", "Section 6.3.2, Fig. 6",
              "figure_6", "mean difference from each scheme", about_ofa=False),
    Statement("20", medium_sizes_on_par, "RSS: Alternating's medium sizes are on par", "Section 6.3.2, Fig. 7",
              "figure_7", f"medium minus smaller and minus larger sizes, within {ON_PAR:g} points of 0",
              about_ofa=False),
    Statement("21", ends_alike, "RSS-Short: Alternating's min and max are alike", "Supplement 1.2, Fig. S3",
              "figure_S3", f"mean at 14 minus mean at 4 MFLOPs, within {ON_PAR:g} points of 0", about_ofa=False),
)  # fmt: skip

# The better, the worse if the paper's contrast stands, in words, the claim that it parts, its figure.
_CONTROLLED = (
    ("rss-per-batch", "rss-2-per-batch-mean", "Mean gradient: one a batch > two a batch", "Of 7a", "figure_5"),
    ("rss-same-twice", "rss-2-per-batch", "Summed gradients: one subnet twice > two subnets", "Of 7a", "figure_5"),
    ("rss-per-batch", "rss-same-twice", "One a batch > the same subnet twice, summed", "Of 7a", "figure_5"),
    ("rss", "rss-alternating-cosine", "Cosine rate: RSS > Alternating", "Of 9", "figure_7"),
    ("rss-constant", "rss-alternating", "Constant rate: RSS > Alternating", "Of 9", "figure_7"),
    ("rss", "rss-constant", "RSS: cosine rate > constant rate", "Of 9", "figure_7"),
    ("ofa", "ofa-teacher", "OFA > with the released code's teacher", "Of 1", "figure_3"),
    ("ofa", "ofa-schedule", "OFA > with the released code's schedule", "Of 1", "figure_3"),
    ("ofa", "ofa-optimizer", "OFA > with the released code's optimiser", "Of 1", "figure_3"),
    ("ofa", "ofa-unsorted", "OFA > with the released code's unsorted channels", "Of 1", "figure_3"),
)
CONTROLS = tuple(
    Statement(f"C{i}", partial(control, label=text.replace(">", "minus"), better=better, worse=worse), text, where,
              figure, "mean difference", about_ofa=False, role="control")
    for i, (better, worse, text, where, figure) in enumerate(_CONTROLLED, start=1)
)  # fmt: skip
