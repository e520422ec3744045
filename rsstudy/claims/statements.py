"""What the paper claims, and the numbers that each claim rests on.

`statements.toml` lists what the paper says and where, and the parts of each statement: differences and the like, with
intervals from `claims.evidence`, all of which are above 0 if the statement is true. Statements 1 to 6b are the main
ones, of the abstract and the main results; 7a to 21 are what else the paper says of its figures that numbers can
decide. Those whose number ends in s are secondary: another statistic of the same claim. Controls, C1 to C10, are no
claims of the paper: they separate what its contrasts mix (section 6), so that one thing differs.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

from rsstudy.catalogue import TABLE_1
from rsstudy.claims import evidence as e
from rsstudy.claims.evidence import MOBILENET, Evidence, Part, Statistic, combine
from rsstudy.figures.style import label_of, panel_label
from rsstudy.summary import log_seconds, published

SPEED_UPS, TOLERANCE = {"6a": 1.9, "6b": 6.1}, 0.2  # as published, by claim; relative
# "Similar" and "on par" are this near, in points: less than the published medians of RSS itself, the most even
# population, differ between sizes.
ON_PAR = 2.0
CORNERS = {"smallest": 4.050384, "middle": 7.198784, "largest": 15.313440}  # sizes of MobileNetV3's subnets, in MFLOPs
STATISTICS: dict[str, Statistic] = {
    "mean": e.mean,
    "median": e.median,
    "best": e.best,
    "extent": e.extent,
    "slope": e.slope,
} | {f"loss away from {name}": e.loss_away_from(size) for name, size in CORNERS.items()}


@dataclass(frozen=True)
class Statement:
    """A claim of the paper, another statistic of one (secondary), or a control of its contrasts."""

    number: str
    role: str  # main, claim, secondary or control
    text: str
    where: str
    figure: str  # name of our figure's file; several are separated by ", "
    unit: str
    says: str = field(default="", repr=False)  # the paper's words, and what the parts are
    about_ofa: bool = False  # whether the parts are made against a PS baseline
    rows: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # of statements.toml, for `parts_of`

    def parts(self, evidence: Evidence, baseline: str = "") -> list[Part]:
        """The numbers that are above 0 if the statement is true."""
        match self.number:
            case "3":
                return gap_grows(evidence, baseline, e.mean)
            case "3s":
                return gap_grows(evidence, baseline, e.log_odds)
            case "6a":
                return faster(evidence, baseline, "rss")
            case "6b":
                return faster(evidence, baseline, "rss-short")
        found = [part for row in self.rows for part in parts_of(evidence, baseline=baseline, **row)]
        return turned(found) if self.number == "10" else found


# --- the parts that must be above 0 -----------------------------------------------------------------------------------


def parts_of(
    evidence: Evidence,
    terms: Mapping[str, float],
    baseline: str = "",
    label: str = "",
    statistic: str = "mean",
    sizes: str = "",
    backbone: str = MOBILENET,
    within_margin: str = "",
) -> Iterator[Part]:
    """The parts that a row of statements.toml stands for."""
    chosen = STATISTICS[statistic]
    if sizes:
        groups = [e.at(chosen, *map(float, group.split())) for group in sizes.split(" - ")]
        chosen = reduce(e.difference, groups)
    terms = {method.replace("baseline", baseline): weight for method, weight in terms.items()}
    label = label or " minus ".join(map(label_of, terms))
    for dataset in evidence.datasets if "{dataset}" in label else [evidence.hardest]:
        runs = {}
        for method, weight in terms.items():
            method, _, other = method.partition(" with ")
            runs[method, dataset, other or backbone] = weight
        name = panel_label(dataset)
        words = label.format(dataset=name, hardest=name, baseline=label_of(baseline))
        part = evidence.contrast(words, runs, chosen)
        if within_margin == "on par":
            yield from within(part, -ON_PAR, ON_PAR)
        elif within_margin:
            yield from within(part, 0, largest_drop())
        else:
            yield part


def within(part: Part, low: float, high: float) -> list[Part]:
    """Two parts that are above 0 if a number is between `low` and `high`: two one-sided tests, both of which must hold.
    So "no difference found" never counts as "no difference"."""
    label = f"{part.label} ({part.estimate:+.2f})" if part.seeds else part.label
    return [
        replace(part, label=f"{label} above {low:+.3g}", estimate=part.estimate - low),
        replace(part, label=f"{label} below {high:+.3g}", estimate=high - part.estimate),
    ]


def largest_drop() -> float:
    """The most that counts as a reasonable drop from RSS to RSS-Short, in points."""
    medians = published().query(f"quantity == 'median' and dataset == 'cifar100' and backbone == '{MOBILENET}'")
    means = medians.groupby("method")["value"].mean()
    return (1 + TOLERANCE) * float(means["rss"] - means["rss-short"])


def gap_grows(evidence: Evidence, baseline: str, statistic: Statistic) -> list[Part]:
    """For each adjacent pair of datasets, ranked by difficulty, the harder one's lead minus the easier one's."""
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


def faster(evidence: Evidence, baseline: str, method: str) -> list[Part]:
    """The logarithm of OFA's training time minus that of a method's, over all datasets and on each."""
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


def turned(losses: list[Part]) -> list[Part]:
    """Pairs of losses, with both signs turned where the clearer of the two is a gain: both are above 0 if they have one
    sign."""
    parts: list[Part] = []
    for pair in zip(losses[::2], losses[1::2], strict=True):
        chances = [part.one_sided for part in pair]
        gain = min(chances) > 1 - max(chances)
        for part in pair:
            parts.append(replace(part, label=f"{part.label}, turned", estimate=-part.estimate) if gain else part)
    return parts


_TABLE = tomllib.loads(Path(__file__).with_name("statements.toml").read_text(encoding="utf-8"))
_ALL = [Statement(**row) for row in _TABLE["statements"]]
STATEMENTS = [statement for statement in _ALL if statement.role != "control"]
CONTROLS = [statement for statement in _ALL if statement.role == "control"]
INTERVALS = _TABLE["intervals"]  # rows for `parts_of`
