"""The paper's claims and our verdicts on them: which runs they rest on, tables, and a figure of all of them.

`statements` has what is claimed, `evidence` what is estimated and how, `verdicts` the rules.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from rsslib.files import atomic_path, make_folder, write_csv
from rsstudy import catalogue
from rsstudy.catalogue import METHODS
from rsstudy.claims.evidence import MOBILENET, PROXYLESS, RESAMPLES, Evidence, judged
from rsstudy.claims.statements import CONTROLS, MARGIN, SPEED_UPS, STATEMENTS
from rsstudy.claims.verdicts import (
    AGREES,
    INCONCLUSIVE,
    NO_SCALE,
    NOT_RUN,
    OTHER_WAY,
    REFUTED,
    REPRODUCED,
    UNCLEAR,
    Claim,
    alone,
    judge,
)
from rsstudy.figures.populations import Captioned
from rsstudy.figures.style import BASELINES, METHOD_STYLES, label_of
from rsstudy.plan import MAIN_METHODS, Run, on_hardest, plan
from rsstudy.store import finished_of
from rsstudy.tables import populations, times

# --- the runs that the claims rest on ---------------------------------------------------------------------------------


def study(
    profile: str = "smoke", datasets: Sequence[str] | None = None, seeds: Sequence[int] = (0,),
    subnets_per_bucket: int | None = None,
) -> list[Run]:  # fmt: skip
    """Every run of the paper, and those of the released code: the main methods on all datasets, the ablations and
    ProxylessNAS on the hardest. Parameters and errors are those of `plan`."""
    main, rest, datasets = (*MAIN_METHODS, "ofa-released"), (seeds, subnets_per_bucket), judged(profile, datasets)
    ablations = [method for method in METHODS if method not in main]
    return [
        *plan(profile, datasets, main, MOBILENET, *rest),
        *on_hardest(plan(profile, datasets, ablations, MOBILENET, *rest)),
        *on_hardest(plan(profile, datasets, main, PROXYLESS, *rest)),
    ]


def controls(
    profile: str = "smoke", datasets: Sequence[str] | None = None, seeds: Sequence[int] = (0,),
    subnets_per_bucket: int | None = None,
) -> list[Run]:  # fmt: skip
    """The runs that part what the paper's contrasts mix, on the hardest dataset. As for `study`."""
    datasets = judged(profile, datasets)
    return on_hardest(plan(profile, datasets, list(catalogue.CONTROLS), MOBILENET, seeds, subnets_per_bucket))


def tables(planned: Sequence[Run], results: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`populations` and `times` of those runs that are finished; both empty if none is."""
    found = finished_of(planned, results)
    return (populations(found, results), times(found, results)) if found else (pd.DataFrame(), pd.DataFrame())


# --- the verdicts, as tables ------------------------------------------------------------------------------------------


def decide(
    population: pd.DataFrame,
    times: pd.DataFrame,
    profile: str,
    datasets: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> list[Claim]:
    """Every claim with its verdict, in the paper's order; those about OFA once against each PS baseline that was run.

    Parameters and errors are those of `Evidence`. Missing runs give the verdict "not run"; controls follow the claims,
    those that were run.
    """
    evidence = Evidence(population, times, profile, judged(profile, datasets), resamples)
    claims = []
    for statement in (*STATEMENTS, *CONTROLS):
        for arguments in [(b,) for b in evidence.baselines] if statement.about_ofa else [()]:
            parts = statement.parts(evidence, *arguments)
            if statement.role != "control" or all(part.seeds for part in parts):
                claims.append(judge(statement, parts, evidence.decides, *arguments))
    return claims


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim and baseline: what the paper says and where, our estimate, the verdict and why, the figure.

    `role` is claim, secondary or control; `direction` is empty unless the scale decides nothing or for a control.
    """
    ours = ("baseline", "estimate", "low", "high", "verdict", "direction", "reason")
    theirs = ("number", "role", "text", "where", "statistic", "figure", "unit")
    return pd.DataFrame(
        [{n: getattr(c.statement, n) for n in theirs} | {n: getattr(c, n) for n in ours} for c in claims]
    )


def components(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row for each number that a claim rests on: the claim, its baseline, the part, estimate, 95 % interval low to
    high, seeds, and the verdict and direction of this part alone. So a claim about four datasets that has no verdict
    since some were not run has one for each that was.
    """
    rows = []
    for claim in claims:
        for part in claim.parts:
            own = alone(claim, part)
            numbers = (own.estimate, own.low, own.high, part.seeds, own.verdict, own.direction)
            rows.append((claim.statement.number, claim.baseline, part.label, *numbers))
    columns = ["claim", "baseline", "part", "estimate", "low", "high", "seeds", "verdict", "direction"]
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
        text, baseline = f"{row.text} ({row.where})", label_of(row.baseline) if row.baseline else ""
        verdict = f"{row.verdict}; {row.direction}" if row.direction else row.verdict
        verdict = f"{row.role}: {verdict}" if row.role != "claim" else verdict
        rows.append((row.number, text, baseline, row.statistic, number, verdict, row.reason, ", ".join(links)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def save_claims(claims: Sequence[Claim], folder: str | Path) -> None:
    """Write claims.csv, parts.csv (`components`) and claims.md into `folder`, each whole or not at all."""
    folder = make_folder(Path(folder))
    write_csv(folder / "claims.csv", table(claims))
    write_csv(folder / "parts.csv", components(claims))
    with atomic_path(folder / "claims.md") as temporary:
        page = f"# Claims\n\n{markdown(claims, folder)}\nEach number that a claim rests on is in parts.csv.\n"
        temporary.write_text(page, encoding="utf-8")


# --- the figure -------------------------------------------------------------------------------------------------------

# Marker and whether it is filled, by verdict, or by direction where the scale decides nothing.
MARKERS = {REPRODUCED: ("o", True), REFUTED: ("X", True), INCONCLUSIVE: ("o", False), NOT_RUN: ("s", False),
           AGREES: ("D", True), OTHER_WAY: ("<", True), UNCLEAR: ("D", False)}  # fmt: skip
COLOURS = {baseline: METHOD_STYLES[baseline].colour for baseline in BASELINES} | {"": "#4d4d4d"}
PANELS = {  # by unit: name and width in inches
    "points": ("points of accuracy", 1.7),
    "points per MFLOPs": ("points per MFLOPs", 1.15),
    "log odds": ("log odds", 0.8),
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
    undecided = any(claim.kind == NO_SCALE for claim in claims)
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
    names = {baseline: f"against {label_of(baseline)}" if baseline else "no baseline" for baseline in baselines}
    handles += [Patch(color=COLOURS[b], label=names[b]) for b in COLOURS if b in baselines]
    figure.legend(handles=handles, loc="upper center", ncols=8, frameon=False, fontsize=6.8, handletextpad=0.4,
                  columnspacing=1.2, handlelength=1.2, borderpad=0.3)  # fmt: skip
    words = "Bars: 95 % intervals, which may go on beyond the edge. Claims about accuracy hold above 0. Grey: "
    words += "secondary statistics, and controls, which are no claims of the paper; neither decides. Shaded: "
    words += f"published ratios of training times ± {100 * MARGIN:g} %"
    words += "; the direction of a ratio agrees wherever the method is faster than OFA." if undecided else "."
    figure.caption = f"{caption} {words}".strip()
    return figure


def _write_rows(first: Axes, last: Axes, claims: Sequence[Claim]) -> None:
    """Number and text of each claim to the left of the `first` column, verdict or direction right of the `last`."""
    style: dict[str, Any] = {"va": "center", "fontsize": 7}
    before, after = ({**style, "transform": axes.get_yaxis_transform()} for axes in (first, last))
    widths = [width for _, width in PANELS.values()]
    for y, claim in enumerate(claims):
        words, colour = claim.statement.text, "black" if claim.statement.role == "claim" else "0.45"
        if _is_first(claims, y):
            first.text((0.08 - LEFT) / widths[0], y, claim.statement.number, color=colour, **before)
        else:
            words = f"the same against {label_of(claim.baseline)}"
        first.text((0.36 - LEFT) / widths[0], y, words, color=colour, **before)
        last.text(1 + 0.12 / widths[-1], y, claim.direction or claim.verdict, color=colour, **after)


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
        axes.xaxis.set_major_locator(MaxNLocator(int(3.5 * PANELS[unit][1]), prune="both"))
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.axvline(1 if unit == "times" else 0, color="0.2", linewidth=0.8, zorder=1)
    for y in range(1, len(claims)):
        if _is_first(claims, y):
            axes.axhline(y - 0.5, color="0.9", linewidth=0.5, zorder=0)
    for y, claim in rows:
        if unit == "times":
            low, high = ((1 + sign * MARGIN) * SPEED_UPS[claim.statement.number] for sign in (-1, 1))
            axes.fill_betweenx([y - 0.42, y + 0.42], low, high, color="0.87", linewidth=0, zorder=0)
        if not math.isnan(claim.estimate):
            (marker, filled), colour = MARKERS[claim.direction or claim.kind], COLOURS[claim.baseline]
            error = None if math.isnan(claim.low) else [[claim.estimate - claim.low], [claim.high - claim.estimate]]
            size, width = (5, 1.3) if claim.statement.role == "claim" else (3.5, 0.7)
            axes.errorbar(claim.estimate, y, xerr=error, marker=marker, color=colour, markersize=size, capsize=2,
                          zorder=3, markerfacecolor=colour if filled else "white", linewidth=width)  # fmt: skip
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=7, pad=2)
    axes.grid(axis="x", linewidth=0.4, color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(name, fontsize=7.5, labelpad=2)
