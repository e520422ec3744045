"""From the parts of a statement to a verdict, by rules that are the same for all.

Most claims are conjunctions: they hold if every one of several parts is above 0. A claim is reproduced if the 95 %
interval of each part is above 0 (an intersection-union test, which needs no correction), and not reproduced if that of
some part is below 0 after correction for the number of parts, of those to come too (Holm's first step). Otherwise it is
not decided: also where runs are missing or have one seed. "Similar" is a conjunction too, of two one-sided tests.
Shown is the weakest part, the one with the least evidence for the claim, with its own interval.

A ratio of training times is reproduced if its interval is within 20 % of the published one, not reproduced if it is
outside, on either side.

Only the paper's scale reproduces. At other scales, and for controls, the verdict is agrees or disagrees, by the same
rule but for training times, of which it says whether the method is faster at all.

Each verdict has an error rate of 5 %. `p` is that of the claim, for corrections over several claims.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from rsstudy.claims.evidence import TAIL, Part
from rsstudy.claims.statements import SPEED_UPS, TOLERANCE, Statement, within

REPRODUCED, REFUTED = "reproduced", "not reproduced"
AGREES, DISAGREES = "agrees", "disagrees"
UNDECIDED, NOT_RUN = "not decided", "not run"


@dataclass(frozen=True)
class Claim:
    """A statement with our verdict on it, against one PS baseline if it is about OFA."""

    statement: Statement
    baseline: str  # method name, or empty
    parts: tuple[Part, ...] = field(repr=False)
    decides: bool  # whether the runs are at the paper's scale
    weakest: Part  # what is shown of it
    verdict: str
    p: float  # two-sided; NaN without an interval

    @property
    def numbers(self) -> tuple[float, ...]:
        """Estimate of the weakest part and its interval, low to high, in the statement's unit."""
        found = (self.weakest.estimate, self.weakest.low(), self.weakest.high())
        return tuple(map(math.exp, found)) if self.statement.unit == "times" else found

    @property
    def missing(self) -> list[str]:
        """The runs that it lacks."""
        return list(dict.fromkeys(name for part in self.parts for name in part.missing))


def judge(statement: Statement, parts: Sequence[Part], decides: bool, baseline: str = "") -> Claim:
    """Apply the rules in the module's text."""
    timed = statement.unit == "times"
    deciding = parts[:1] if timed else parts  # the mean over datasets, without each of them
    there = [part for part in deciding if part.seeds]
    claim = partial(Claim, statement, baseline, tuple(parts), decides)
    if not there:
        begun = any(part.seeds for part in parts)
        return claim(deciding[0], UNDECIDED if begun else NOT_RUN, math.nan)
    weakest = max(there, key=lambda part: (part.one_sided, -part.estimate))
    tested = there
    if timed and decides:
        published = SPEED_UPS[statement.number]
        limits = [math.log(published * (1 + side * TOLERANCE)) for side in (-1, 1)]
        tested = within(weakest, *limits)
    doubt = max(part.one_sided for part in tested)
    holds = doubt if len(there) == len(deciding) else 1
    fails = (1 - doubt) * max(len(deciding), len(tested))
    positive, negative = AGREES, DISAGREES
    if decides and statement.role != "control":
        positive, negative = REPRODUCED, REFUTED
    verdict = positive if holds < TAIL else negative if fails < TAIL else UNDECIDED
    known = any(part.degrees for part in there)
    return claim(weakest, verdict, min(1, 2 * min(holds, fails)) if known else math.nan)
