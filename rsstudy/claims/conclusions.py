"""What verdicts and controls say about interference and sampling bias, in words written from them alone."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rsstudy.claims.verdicts import AGREES, NO_SCALE, ONE_SEED, OTHER_WAY, REFUTED, REPRODUCED, Claim
from rsstudy.figures.style import label_of, listed

# What the paper argues, and the claims that it rests on.
AGAINST_INTERFERENCE = "RSS does nothing against interference, and trains the better population"
SAMPLING_BIAS = "Populations lean toward what was trained most, and less bias is better"
ARGUMENTS = {
    AGAINST_INTERFERENCE: ("1", "11"),
    "More subnets in an update interfere, and lower the accuracy": ("7a", "7b"),
    SAMPLING_BIAS: ("5", "8a", "8b", "9", "19"),
}


@dataclass(frozen=True)
class Confound:
    """Something that differs together with what a contrast of the paper is about."""

    claims: str
    mixed: str
    without: tuple[str, ...]  # controls that agree if the claim holds with this taken away
    alone: tuple[str, ...]  # controls that show what the rest does by itself
    beyond_controls: str  # what they cannot tell


CONFOUNDS = (
    Confound(
        "7a and 7b",
        "the gradients of two subnets a batch are summed, so that steps are larger, whatever else the subnets do",
        ("C1", "C2"),
        ("C3",),
        "the controls are of RSS, not of RSS-Short (7b)",
    ),
    Confound(
        "9 and 13",
        "two subnets in turn are trained at a constant rate, RSS and single subnets with a cosine (which reaches the "
        "comparisons with RSS in 12a and 12b too)",
        ("C4", "C5"),
        ("C6",),
        "no single subnet is trained at a constant rate (13)",
    ),
    Confound(
        "1 to 5 and 11",
        "RSS and OFA differ in sampling, distillation, learning rates, warm start, sorting and summing at once",
        (),
        ("C7", "C8", "C9", "C10"),
        "no control leads from OFA to RSS by one change at a time",
    ),
)


def conclusions(claims: Sequence[Claim], measured: Sequence[str] = ()) -> str:
    """What the verdicts say about interference and sampling bias, what they leave open, and what was measured directly,
    in Markdown. `measured` are sentences on direct measurements of interference, each with its interval."""
    own = [claim for claim in claims if claim.statement.role == "claim"]
    counts = Counter(claim.kind for claim in own)
    lines = [f"Verdicts: {', '.join(f'{kind} {n}' for kind, n in counts.items())}."]
    if counts[NO_SCALE]:
        directions = Counter(claim.direction for claim in own if claim.direction)
        lines[0] += f" Directions: {', '.join(f'{direction} {n}' for direction, n in directions.items())}."
        lines[0] += " These runs are not at the paper's scale: they decide nothing about either explanation."
    else:
        lines += _arguments(own)
    lines.append("### What the paper's contrasts mix")
    found = {claim.statement.number: claim for claim in claims if claim.statement.role == "control"}
    lines.append("\n".join(f"- {_mixed(confound, found)}" for confound in CONFOUNDS))
    lines.append("### Measured directly")
    nothing = "Nothing was measured directly: what is said above infers interference from how methods compare."
    lines.append("\n".join(f"- {sentence}" for sentence in measured) or nothing)
    return "\n\n".join(lines) + "\n"


def _arguments(claims: Sequence[Claim]) -> Iterator[str]:
    """How each argument of the paper fares, against each baseline."""
    yield "*Supported*: all claims are reproduced; *contradicted*: one is not reproduced; else *open*."
    for baseline in dict.fromkeys(claim.baseline for claim in claims if claim.baseline):
        status, bullets = {}, [f"With {label_of(baseline)} as the baseline:\n"]
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
        words = f"- Which explanation the paper's contrasts carry, mixed as they are (below): {answer}."
        yield "\n".join([*bullets, words])
    if any(claim.verdict.endswith(ONE_SEED) for claim in claims):
        yield "Verdicts with one seed may change with another: their intervals cover subnets alone."


def _mixed(confound: Confound, found: Mapping[str, Claim]) -> str:
    """What a contrast mixes, what controls found, and what is open."""
    words = [f"Claims {confound.claims}: {confound.mixed}."]
    for heading, numbers in (("With that taken away", confound.without), ("Also run", confound.alone)):
        if there := [_contrast(found[number]) for number in numbers if number in found]:
            words.append(f"{heading}: {'; '.join(there)}.")
    missing = [number for number in confound.without if number not in found]
    directions = {found[number].direction for number in confound.without if number in found}
    if missing:
        words.append(f"Whether the claims hold without it is open: {listed(missing)} not run.")
    elif directions == {AGREES}:
        words.append("So the contrast does not rest on it in these runs.")
    elif OTHER_WAY in directions:
        words.append("So the contrast does not hold in all of these runs with it taken away.")
    elif directions:
        words.append("Whether the contrast holds without it is open: an interval spans 0.")
    words.append(f"Open in any case: {confound.beyond_controls}.")
    return " ".join(words)


def _contrast(claim: Claim) -> str:
    interval = "" if math.isnan(claim.low) else f" ({claim.low:+.2f} to {claim.high:+.2f})"
    number, text, seeds = claim.statement.number, claim.statement.text, min(part.seeds for part in claim.parts)
    remark = ONE_SEED * (seeds == 1)
    return f"{number}, {text}, by {claim.estimate:+.2f}{interval} points{remark}: {claim.direction}"
