"""From the parts of a statement to a verdict, by rules that are the same for all.

Most claims are conjunctions: they hold if every one of several parts is above 0. They are reproduced if all lower
limits are above 0 (an intersection-union test, which needs no correction) and not reproduced if some upper limit is
below 0 after Bonferroni's correction for the number of parts, of those to come too; else inconclusive. The estimate is
the smallest part's, and its interval goes from the smallest of these lower to the smallest of these upper limits. Where
runs are missing the verdict is not run, unless those there refute the claim; and at any profile but paper the scale
decides nothing.

"Similar" is a conjunction too: a difference is above one stated margin and below another (two one-sided tests, so that
"no difference found" never counts as "no difference"); the parts are what is left to the margins.

Where the scale decides nothing a claim still has the direction in which the runs point. It agrees if all lower limits
are above 0, points the other way if some corrected upper limit is below 0, and is unclear if the interval spans 0 or
there is none; with one seed the interval is that over subnets. A ratio of training times agrees if its interval is
above 1, whatever the published ratio, and points the other way if it is below; one seed has no such interval, and
there the ratio itself counts.

Each part has a verdict of its own too (`alone`), whether or not the others were run.

Secondary statistics are judged alike, and are not counted. Controls are no claims of the paper: at any scale they have
a direction alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rsstudy.claims.evidence import TAIL, Part
from rsstudy.claims.statements import MARGIN, SPEED_UPS, Statement

REPRODUCED, REFUTED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_RUN, NO_SCALE, NO_CLAIM = "not run", "scale decides nothing", "no claim of the paper"
AGREES, OTHER_WAY, UNCLEAR = "agrees", "points the other way", "unclear"
ONE_SEED = " (one seed)"


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
    direction: str = ""  # where the scale decides nothing, and of controls
    decides: bool = False  # whether the runs are of the paper's scale

    @property
    def kind(self) -> str:
        """The verdict without its remark on seeds."""
        return self.verdict.removesuffix(ONE_SEED)


def judge(statement: Statement, parts: Sequence[Part], decides: bool, baseline: str = "") -> Claim:
    """Apply the rule of the statement, unless missing runs or their scale forbid a verdict."""
    deciding = parts[:1] if statement.unit == "times" else parts  # the mean over datasets, without each of them
    there = [part for part in deciding if part.seeds]
    missing = list(dict.fromkeys(name for part in deciding for name in part.missing))
    seeds = min((part.seeds for part in there), default=0)
    kind, numbers, reasons = INCONCLUSIVE, (math.nan, math.nan, math.nan), []
    if there:
        kind, numbers, words = (_near if statement.unit == "times" else all_above_zero)(statement, deciding)
        reasons = [words, f"{seeds} seeds" if seeds > 1 else "one seed, which says nothing about others"]
    if missing:
        reasons.append(f"missing: {', '.join(missing)}")
    verdict = kind + ONE_SEED * (seeds == 1)
    refuted = kind == REFUTED and statement.unit != "times"  # a mean over fewer datasets refutes nothing
    if missing and not (refuted and decides):
        verdict = NOT_RUN
    elif not decides:
        verdict = NO_SCALE
    elif statement.role == "control":
        verdict = NO_CLAIM
    direction = _direction(statement, there, kind) if verdict in (NO_SCALE, NO_CLAIM) else ""
    reason = "; ".join(reasons)
    reason = f"{reason[:1].upper()}{reason[1:]}." + f" {statement.note}." * bool(statement.note)
    return Claim(statement, baseline, tuple(parts), *numbers, verdict, reason, direction, decides)


def alone(claim: Claim, part: Part) -> Claim:
    """The verdict on one of a claim's parts, as if the claim were this part alone: with no correction for others."""
    return judge(claim.statement, [part], claim.decides, claim.baseline)


def _direction(statement: Statement, parts: list[Part], kind: str) -> str:
    """In which direction the runs point, by the rule in the module's text."""
    if statement.unit != "times":
        return {REPRODUCED: AGREES, REFUTED: OTHER_WAY}.get(kind, UNCLEAR)
    (part,) = parts
    low, high = (part.low(), part.high()) if part.degrees else (part.estimate,) * 2
    return AGREES if low > 0 else OTHER_WAY if high < 0 else UNCLEAR


Judged = tuple[str, tuple[float, float, float], str]  # verdict; estimate, low and high; why


def all_above_zero(statement: Statement, parts: Sequence[Part]) -> Judged:
    """The rule for conjunctions, as the module's text states it; at least one part is there."""
    there = [part for part in parts if part.seeds]
    least = min(there, key=lambda part: part.estimate)
    low = float(np.min([part.low() for part in there]))
    high = float(np.min([part.high(TAIL / len(parts)) for part in there]))
    kind = REPRODUCED if low > 0 else REFUTED if high < 0 else INCONCLUSIVE
    above = sum(part.estimate > 0 for part in there)
    words = f"{above} of {len(there)} above 0, smallest: {least.label}, {least.estimate:+.2f} {statement.unit}"
    return kind, (least.estimate, low, high), words


def _near(statement: Statement, parts: Sequence[Part]) -> Judged:
    """The rule for a published ratio: reproduced if the interval (with one seed, the ratio) is within 20 % of it, not
    reproduced if it is outside, on whichever side."""
    (part,), published = parts, SPEED_UPS[statement.number]
    numbers = math.exp(part.estimate), math.exp(part.low()), math.exp(part.high())
    first, last = numbers[1:] if part.degrees else (numbers[0],) * 2
    least, most = ((1 + sign * MARGIN) * published for sign in (-1, 1))
    inside, outside = least <= first and last <= most, last < least or first > most
    words = f"{numbers[0]:.2f} times as fast on {part.label}; {least:.2f} to {most:.2f} counts as the published "
    words += f"{published} (RTX 3080, the authors' pipeline)"
    return REPRODUCED if inside else REFUTED if outside else INCONCLUSIVE, numbers, words
