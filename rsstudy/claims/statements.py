"""What the paper claims, and the numbers that each claim rests on.

A `Statement` names where the paper says something and the function that makes its parts: differences and the like, with
intervals from `claims.evidence`, all of which are above 0 if the statement is true. Statements 1 to 6b are the main
ones, of the abstract and the main results; 7a to 21 are what else the paper says of its figures that numbers can
decide. Those whose number ends in s are secondary: another statistic of the same claim. Controls, C1 to C10, are no
claims of the paper: they separate what its contrasts mix.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pandas as pd

from rsslib.population import get_buckets
from rsslib.space import SearchSpace
from rsstudy.catalogue import OVERRIDES, TABLE_1
from rsstudy.claims.evidence import (
    MOBILENET,
    PROXYLESS,
    Evidence,
    Part,
    Statistic,
    at,
    best,
    combine,
    difference,
    extent,
    log_odds,
    loss_away_from,
    mean,
    median,
    slope,
)
from rsstudy.figures.style import label_of, panel_label
from rsstudy.summary import log_seconds, published

SPEED_UPS, TOLERANCE = {"6a": 1.9, "6b": 6.1}, 0.2  # as published, by claim; relative
# "Similar" and "on par" are this near, in points: less than the published medians of RSS itself, the most even
# population, differ between sizes.
ON_PAR = 2.0
SMALL, MEDIUM, LARGE = at(mean, 4, 6), at(mean, 8, 10), at(mean, 12, 14)
SEQUENCES = {"min-then-max": 1, "max-then-min": -1}  # and the sign of a slope of accuracy towards the last trained
SINGLE = ("smallest", "middle", "largest")

# --- the parts that must be above 0 -----------------------------------------------------------------------------------

Parts = list[Part]


def in_order(
    evidence: Evidence, best_first: Sequence[str], statistic: Statistic = mean, backbone: str = MOBILENET
) -> Parts:
    """Sections 6.3.1 (Fig. 5) and 6.3.2 (Fig. 7), supplement 1.1 (Fig. S1), all on CIFAR-100: which schemes train
    better populations than others; the supplement does not repeat Fig. 7's order for RSS-Short.

    Parts: for each adjacent pair of methods, the difference of the mean accuracy, or of another statistic.
    """
    return [
        evidence.contrast(f"{label_of(a)} minus {label_of(b)}", {a: 1, b: -1}, statistic, backbone=backbone)
        for a, b in pairwise(best_first)
    ]


def on_each_dataset(evidence: Evidence, label: str, better: str, worse: str, statistic: Statistic = mean) -> Parts:
    """For each dataset a statistic of one method minus that of another."""
    return [
        evidence.contrast(f"{label} on {panel_label(dataset)}", {better: 1, worse: -1}, statistic, dataset)
        for dataset in evidence.datasets
    ]


def _own_and_beyond(
    evidence: Evidence, label: str, method: str, other: str, statistic: Statistic, sign: int = 1
) -> Parts:
    """A statistic of `method` on the hardest dataset, and that minus the one of `other`; both times `sign`."""
    return [
        evidence.contrast(label, {method: sign}, statistic),
        evidence.contrast(f"{label}, beyond {label_of(other)}'s", {method: sign, other: -sign}, statistic),
    ]


def within(part: Part, low: float, high: float) -> Parts:
    """Two parts that are above 0 if a number is between `low` and `high`: two one-sided tests, both of which must hold.
    So "no difference found" never counts as "no difference"."""
    label = f"{part.label} ({part.estimate:+.2f})" if part.seeds else part.label
    return [
        replace(part, label=f"{label} above {low:+.3g}", estimate=part.estimate - low),
        replace(part, label=f"{label} below {high:+.3g}", estimate=high - part.estimate),
    ]


def above_on_average(evidence: Evidence, baseline: str) -> Parts:
    """Section 6.2: "Across all datasets, RSS achieves the best performing subnet population".

    Parts: for each dataset, RSS's mean accuracy over all sizes minus OFA's. The paper's words are about populations;
    that each size leads too (1s) needs so many clear parts that three seeds seldom suffice where all are true.
    """
    return on_each_dataset(evidence, "mean difference", "rss", baseline)


def above_at_every_size(evidence: Evidence, baseline: str) -> Parts:
    """Section 6.2, Fig. 3: RSS's boxes are above OFA's at each size.

    Parts: for each dataset and size bucket, RSS's mean accuracy minus OFA's.
    """
    parts = []
    for size in get_buckets(SearchSpace(MOBILENET)):
        label = f"mean difference at {size} MFLOPs"
        parts += on_each_dataset(evidence, label, "rss", baseline, at(mean, size))
    return parts


def short_above_ofa(evidence: Evidence, baseline: str) -> Parts:
    """Section 6.3: "both proposed RSS variants outperform OFA"; Fig. 1b: "better top performing subnets" on CIFAR-100.

    Parts: on each dataset, the difference of RSS-Short's median and OFA's; on CIFAR-100 also the difference of the
    means of each one's best 5 % of subnets.
    """
    medians = on_each_dataset(evidence, "difference of medians", "rss-short", baseline, median)
    label = f"difference of the best 5 % on {panel_label(evidence.hardest)}"
    return [*medians, evidence.contrast(label, {"rss-short": 1, baseline: -1}, best)]


def gap_grows(evidence: Evidence, baseline: str, statistic: Statistic = mean) -> Parts:
    """Section 6.2: "The gap between RSS and OFA grows larger as the difficulty of the dataset increases".

    Parts: for each adjacent pair of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, the harder one's lead of RSS over OFA
    minus the easier one's: of mean accuracy, in points (3), or of the mean log odds of a right answer (3s), since near
    100 % there is little room for a lead.
    """
    parts = []
    ranked = [dataset for dataset in TABLE_1 if dataset in evidence.datasets]
    for easy, hard in pairwise(ranked):
        terms = {
            (method, dataset, MOBILENET): sign * side
            for dataset, sign in ((hard, 1), (easy, -1))
            for method, side in (("rss", 1), (baseline, -1))
        }
        label = f"lead on {panel_label(hard)} minus lead on {panel_label(easy)}"
        parts.append(evidence.contrast(label, terms, statistic))
    return parts or [Part("growth", missing=("two datasets that the paper ranks by difficulty",))]


def smaller_range(evidence: Evidence, baseline: str) -> Parts:
    """Section 6.2: the range from the best to the worst subnet "is significantly smaller for RSS methods".

    Parts: for each dataset, OFA's range minus RSS's and minus RSS-Short's; a range is the mean of the best 5 % of
    subnets minus that of the worst 5 %.
    """
    return [
        part
        for method in ("rss", "rss-short")
        for part in on_each_dataset(evidence, f"OFA's range minus {label_of(method)}'s", baseline, method, extent)
    ]


def biased_to_large(evidence: Evidence, baseline: str) -> Parts:
    """Section 6.2: "OFA shows a significant bias towards larger subnets in all datasets"; section 5.

    Parts: for each dataset OFA's slope of accuracy on size, and by how much it exceeds RSS's, since larger networks are
    somewhat better without any bias.
    """
    own = [
        evidence.contrast(f"OFA's slope on {panel_label(dataset)}", {baseline: 1}, slope, dataset)
        for dataset in evidence.datasets
    ]
    return [*own, *on_each_dataset(evidence, "OFA's slope minus RSS's", baseline, "rss", slope)]


def faster(evidence: Evidence, baseline: str, method: str) -> Parts:
    """Abstract, section 6.2, Fig. 4: on average over the datasets RSS is 1.9 times and RSS-Short 6.1 times as fast.

    Parts: the logarithm of OFA's training time minus that of the method's, on one machine for each dataset. The first,
    which decides, is the mean over the datasets; where there are several, each one's own follows.
    """
    n = len(evidence.datasets)
    each, all_groups = [], []
    for dataset in evidence.datasets:
        groups = log_seconds(evidence.times, baseline, method, dataset)
        label, needed = panel_label(dataset), f"times of {baseline} and {method} on {dataset} on one machine"
        each.append(combine(label, groups) if groups else Part(label, missing=(needed,)))
        all_groups += [(weight / n, logs) for weight, logs in groups]
    missing = tuple(name for part in each for name in part.missing)
    whole = Part("all datasets", missing=missing) if missing else combine("all datasets", all_groups)
    return [whole, *each] if n > 1 else each


def order_on_proxyless(evidence: Evidence, baseline: str) -> Parts:
    """Supplement 3 (Fig. S7): with ProxylessNAS, on CIFAR-100, RSS is above RSS-Short, and that above OFA.

    Parts: the mean difference of each adjacent pair.
    """
    return in_order(evidence, ["rss", "rss-short", baseline], backbone=PROXYLESS)


def skewed_to_own_size(evidence: Evidence, base: str) -> Parts:
    """Section 6.3.2, Fig. 6 for RSS, and supplement 1.2, Fig. S2 for RSS-Short: with a single trained subnet, accuracy
    "is skewed towards the size of the selected subnet".

    Parts: for the smallest, the middle and the largest subnet, the points lost per MFLOPs of distance to its size, and
    that minus the same of the unbiased scheme, since larger networks are somewhat better anyway.
    """
    space, parts = SearchSpace(MOBILENET), []
    for scheme in SINGLE:
        size = float(space.reference.macs(getattr(space, scheme))) / 1e6
        label = f"{scheme} only: loss per MFLOPs of distance"
        parts += _own_and_beyond(evidence, label, f"{base}-{scheme}", base, loss_away_from(size))
    return parts


def changes_agree(evidence: Evidence, baseline: str) -> Parts:
    """Supplement 2, Fig. S4 to S6: batch size, dropout and learning rate move OFA and RSS-Short the same way.

    Parts: for each change the mean loss (unchanged minus changed) of both methods, with both signs turned if the
    clearer of the two is a gain. So both are above 0 if they have one sign.
    """
    parts: Parts = []
    for change in OVERRIDES:
        effects = _losses(evidence, baseline, [change])
        if min(part.one_sided for part in effects) > 1 - max(part.one_sided for part in effects):
            effects = [replace(part, label=f"{part.label}, turned", estimate=-part.estimate) for part in effects]
        parts += effects
    return parts


def changes_lower(evidence: Evidence, baseline: str) -> Parts:
    """Supplement 2, Fig. S4 to S6: a larger batch, more dropout and a higher learning rate each reduce the accuracy of
    OFA and of RSS-Short.

    Parts: for each change and both methods, the mean accuracy unchanged minus changed.
    """
    return _losses(evidence, baseline, OVERRIDES)


def _losses(evidence: Evidence, baseline: str, changes: Iterable[str]) -> Parts:
    methods = (baseline, "rss-short")
    return [part for change in changes for m in methods for part in in_order(evidence, [m, f"{m}-{change}"])]


def skewed_to_last_trained(evidence: Evidence, base: str) -> Parts:
    """Section 6.3.2, Fig. 7, and supplement 1.2, Fig. S3: Min then Max and Max then Min "skew their results towards the
    subnet most recently trained".

    Parts: the slope of accuracy on size (for Max then Min, its negative), and that minus the same of the unbiased
    scheme.
    """
    parts = []
    for scheme, sign in SEQUENCES.items():
        method = f"{base}-{scheme}"
        label = f"{label_of(method)}: slope towards the last trained"
        parts += _own_and_beyond(evidence, label, method, base, slope, sign)
    return parts


def short_skews_more(evidence: Evidence) -> Parts:
    """Supplement 1.2, Fig. S3: the two sequences "show a more significant bias" than in the main ablation.

    Parts: for each sequence, by how much RSS-Short's slope of accuracy on size exceeds RSS's, in the direction of the
    subnet trained last.
    """
    return [
        evidence.contrast(
            f"{label_of(f'rss-short-{scheme}')}: slope beyond RSS's",
            {f"rss-short-{scheme}": sign, f"rss-{scheme}": -sign},
            slope,
        )
        for scheme, sign in SEQUENCES.items()
    ]


def second_subnet_helps(evidence: Evidence) -> Parts:
    """Section 6.3.2, Fig. 6 and 7: "both subnet populations benefited from the training of an additional subnet".

    Parts: Max then Min minus smallest only at 12 and 14 MFLOPs; Min then Max minus largest only at 4 and 6 MFLOPs.
    """
    return [
        *in_order(evidence, ["rss-max-then-min", "rss-smallest"], LARGE),
        *in_order(evidence, ["rss-min-then-max", "rss-largest"], SMALL),
    ]


def medium_sizes_lag(evidence: Evidence) -> Parts:
    """Supplement 1.2, Fig. S3: with RSS-Short's Alternating, subnets of 8 and 10 MFLOPs "perform significantly worse
    than smaller and larger subnets", which "is not seen in the main results".

    Parts: for smaller (4 and 6 MFLOPs) and larger (12 and 14), their mean accuracy minus that of 8 and 10, and that
    minus the same of RSS's Alternating.
    """
    methods = ("rss-short-alternating", "rss-alternating")
    return [
        *_own_and_beyond(evidence, "smaller minus medium", *methods, difference(SMALL, MEDIUM)),
        *_own_and_beyond(evidence, "larger minus medium", *methods, difference(LARGE, MEDIUM)),
    ]


def dropout_harms_ofa_more(evidence: Evidence, baseline: str) -> Parts:
    """Supplement 2, Fig. S5: more dropout lowers both "with OFA having a more significant accuracy drop".

    Part: OFA's loss of mean accuracy minus RSS-Short's.
    """
    terms = {baseline: 1, "rss-short": -1, f"{baseline}-dropout-0.3": -1, "rss-short-dropout-0.3": 1}
    return [evidence.contrast("loss of OFA minus loss of RSS-Short", terms)]


def below_mobilenet(evidence: Evidence, baseline: str) -> Parts:
    """Supplement 3, Fig. S7: with ProxylessNAS there is "a lower overall accuracy for each method than with the
    MobileNetV3 base architecture".

    Parts: for each method, the mean accuracy of MobileNetV3's subnets of 4 to 12 MFLOPs minus that of ProxylessNAS's.
    """
    common = at(mean, *get_buckets(SearchSpace(PROXYLESS)))
    return [
        evidence.contrast(label_of(method), {method: 1, (method, evidence.hardest, PROXYLESS): -1}, common)
        for method in (baseline, "rss-short", "rss")
    ]


def reasonable_drop(evidence: Evidence) -> Parts:
    """Abstract: RSS-Short's shorter training comes "with a reasonable drop in performance".

    Parts: on CIFAR-100, RSS's mean accuracy minus RSS-Short's, which is to be above 0 and no larger than what the paper
    calls reasonable: the drop that it shows there (Fig. 1b, mean of the medians), and 20 % more.
    """
    return within(evidence.contrast("drop", {"rss": 1, "rss-short": -1}), 0, largest_drop())


def largest_drop() -> float:
    """The most that counts as a reasonable drop, in points."""
    medians = published().query(f"quantity == 'median' and dataset == 'cifar100' and backbone == '{MOBILENET}'")
    means = medians.groupby("method")["value"].mean()
    return (1 + TOLERANCE) * float(means["rss"] - means["rss-short"])


def second_drop_larger(evidence: Evidence) -> Parts:
    """Section 6.3.1, caption of Fig. 5: "The drop is more significant when more subnets are sampled per-batch".

    Part: on CIFAR-100, what mean accuracy loses from one to two a batch minus what it loses from one an epoch to one a
    batch.
    """
    terms = {"rss": -1, "rss-per-batch": 2, "rss-2-per-batch": -1}
    return [evidence.contrast("second drop minus first", terms)]


def above_single_subnets(evidence: Evidence) -> Parts:
    """Section 6.3.2: "RSS produces a better performing subnet population than the Alternating scheme and the other
    methods", here those of Fig. 6.

    Parts: on CIFAR-100, RSS's mean accuracy minus that of each scheme with a single trained subnet.
    """
    return [part for scheme in SINGLE for part in in_order(evidence, ["rss", f"rss-{scheme}"])]


def medium_sizes_on_par(evidence: Evidence) -> Parts:
    """Section 6.3.2, Fig. 7, of RSS's Alternating: "despite never being trained, the subnets in ranges 8-10 MFLOPs
    perform nearly on par with the larger and smaller subnets".

    Parts: the mean accuracy at 8 and 10 MFLOPs minus that at 4 and 6, and minus that at 12 and 14, each to be within
    2 points of 0.
    """
    method = {"rss-alternating": 1}
    smaller = evidence.contrast("medium minus smaller", method, difference(MEDIUM, SMALL))
    larger = evidence.contrast("medium minus larger", method, difference(MEDIUM, LARGE))
    return [*within(smaller, -ON_PAR, ON_PAR), *within(larger, -ON_PAR, ON_PAR)]


def ends_alike(evidence: Evidence) -> Parts:
    """Supplement 1.2, Fig. S3, of RSS-Short's Alternating: "min and max have similar performance".

    Parts: the mean accuracy at 14 MFLOPs minus that at 4, the sizes in the figure that are nearest to the two trained
    subnets, to be within 2 points of 0.
    """
    ends = difference(at(mean, 14), at(mean, 4))
    return within(evidence.contrast("14 minus 4 MFLOPs", {"rss-short-alternating": 1}, ends), -ON_PAR, ON_PAR)


# --- the statements ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """A claim of the paper, another statistic of one (secondary), or a control of its contrasts."""

    number: str
    role: str  # main, claim, secondary or control
    parts: Callable[..., Parts] = field(repr=False)  # of the evidence and, if it is about OFA, of a baseline
    text: str
    where: str
    figure: str  # name of our figure's file; several are separated by ", "
    unit: str

    @property
    def about_ofa(self) -> bool:
        """Whether the parts are made against a PS baseline."""
        return "baseline" in signature(self.parts).parameters


BATCHES = ("", "-per-batch", "-2-per-batch")
SCHEMES = ("rss", "rss-alternating", "rss-min-then-max", "rss-max-then-min")
PARTS: dict[str, Callable[..., Parts]] = {
    "1": above_on_average,
    "1s": above_at_every_size,
    "2": short_above_ofa,
    "3": gap_grows,
    "3s": partial(gap_grows, statistic=log_odds),
    "4": smaller_range,
    "5": biased_to_large,
    "6a": partial(faster, method="rss"),
    "6b": partial(faster, method="rss-short"),
    "7a": partial(in_order, best_first=[f"rss{suffix}" for suffix in BATCHES]),
    "7b": partial(in_order, best_first=[f"rss-short{suffix}" for suffix in BATCHES]),
    "8a": partial(skewed_to_own_size, base="rss"),
    "8b": partial(skewed_to_own_size, base="rss-short"),
    "9": partial(in_order, best_first=SCHEMES),
    "10": changes_agree,
    "11": order_on_proxyless,
    "12a": partial(skewed_to_last_trained, base="rss"),
    "12b": partial(skewed_to_last_trained, base="rss-short"),
    "12c": short_skews_more,
    "13": second_subnet_helps,
    "14": medium_sizes_lag,
    "15a": changes_lower,
    "15b": dropout_harms_ofa_more,
    "16": below_mobilenet,
    "17": reasonable_drop,
    "18": second_drop_larger,
    "19": above_single_subnets,
    "20": medium_sizes_on_par,
    "21": ends_alike,
}
CONTROLLED = {  # the better method and the worse one, if the paper's contrast stands
    "C1": ("rss-per-batch", "rss-2-per-batch-mean"),
    "C2": ("rss-same-twice", "rss-2-per-batch"),
    "C3": ("rss-per-batch", "rss-same-twice"),
    "C4": ("rss", "rss-alternating-cosine"),
    "C5": ("rss-constant", "rss-alternating"),
    "C6": ("rss", "rss-constant"),
    "C7": ("ofa", "ofa-teacher"),
    "C8": ("ofa", "ofa-schedule"),
    "C9": ("ofa", "ofa-optimizer"),
    "C10": ("ofa", "ofa-unsorted"),
}


def control(evidence: Evidence, text: str, methods: tuple[str, str]) -> Parts:
    """Section 6 mixes several things; here one differs. Part: the mean difference on CIFAR-100."""
    better, worse = methods
    return [evidence.contrast(text.replace(">", "minus"), {better: 1, worse: -1})]


# What the paper says of each, where, the names of our figures, and the unit of the parts.
_ROWS = pd.read_csv(Path(__file__).with_name("statements.csv"), dtype=str).to_dict("records")
STATEMENTS = [Statement(parts=PARTS[row["number"]], **row) for row in _ROWS if row["number"] in PARTS]
CONTROLS = [
    Statement(parts=partial(control, text=row["text"], methods=CONTROLLED[row["number"]]), **row)
    for row in _ROWS
    if row["number"] in CONTROLLED
]
