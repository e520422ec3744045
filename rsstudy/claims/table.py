"""The paper's claims and our verdicts on them: which runs they rest on, tables, and a figure of all of them.

`statements` has what is claimed, `evidence` what is estimated and how, `verdicts` the rules.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from rsslib.files import atomic_path, make_folder, write_csv
from rsstudy import catalogue
from rsstudy.catalogue import METHODS
from rsstudy.claims.evidence import PROXYLESS, Evidence, holm
from rsstudy.claims.statements import CONTROLS, SPEED_UPS, STATEMENTS, TOLERANCE
from rsstudy.claims.verdicts import NOT_RUN, Claim, judge
from rsstudy.figures.populations import PAGE, Captioned
from rsstudy.figures.style import BASELINES, METHOD_STYLES, label_of
from rsstudy.plan import MAIN_METHODS, Run, on_hardest, plan
from rsstudy.store import finished_of
from rsstudy.tables import populations, times

# --- the runs that the claims rest on ---------------------------------------------------------------------------------


def study(
    profile: str = "smoke",
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    subnets_per_bucket: int | None = None,
) -> list[Run]:
    """Every run of the paper, those of the released code, and the controls.

    The main methods are on all datasets, the rest on the hardest. Parameters and errors are those of `plan`; at the
    paper's scale the datasets are the paper's.
    """
    datasets = None if profile == "paper" else datasets
    make = partial(plan, profile, datasets, seeds=seeds, subnets_per_bucket=subnets_per_bucket)
    main = (*MAIN_METHODS, "ofa-released")
    others = [method for method in (*METHODS, *catalogue.CONTROLS) if method not in main]
    return [
        *make(main),
        *on_hardest(make(others)),
        *on_hardest(make(main, PROXYLESS)),
    ]


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
) -> list[Claim]:
    """Every claim with its verdict, the main ones first, then in the paper's order.

    Claims about OFA are judged against each PS baseline that was run. Parameters and errors are those of `Evidence`.
    """
    evidence = Evidence(population, times, profile, None if profile == "paper" else datasets)
    claims = []
    for statement in sorted((*STATEMENTS, *CONTROLS), key=lambda statement: statement.role != "main"):
        for arguments in [(b,) for b in evidence.baselines] if statement.about_ofa else [()]:
            parts = statement.parts(evidence, *arguments)
            claims.append(judge(statement, parts, evidence.decides, *arguments))
    return claims


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim and baseline: what the paper says and where, our verdict, its weakest part and interval.

    `p (Holm)` is corrected over all claims in the table but secondary ones and controls.
    """
    rows = []
    for claim in claims:
        said, part = claim.statement, claim.weakest
        paper = (said.number, said.role, said.text, said.where, said.figure)
        own = (
            claim.baseline,
            claim.verdict,
            part.label,
            *claim.numbers,
            said.unit,
            part.seeds,
        )
        rows.append((*paper, *own, claim.p, ", ".join(claim.missing)))
    columns = [
        "number",
        "role",
        "text",
        "where",
        "figure",
        "baseline",
        "verdict",
        "part",
    ]
    columns += ["estimate", "low", "high", "unit", "seeds", "p (Holm)", "missing"]
    found = pd.DataFrame(rows, columns=columns)
    counted = found["p (Holm)"].where(found["role"].isin(["main", "claim"]))
    return found.assign(**{"p (Holm)": holm(counted)})


def components(claims: Sequence[Claim]) -> pd.DataFrame:
    """`table` of each number that a claim rests on, those not run too, with the verdict of this part alone."""
    return table([judge(c.statement, [part], c.decides, c.baseline) for c in claims for part in c.parts])


def not_run(claims: Sequence[Claim]) -> str:
    """The numbers of the claims of which nothing was run."""
    return ", ".join(dict.fromkeys(claim.statement.number for claim in claims if claim.verdict == NOT_RUN))


def save_claims(claims: Sequence[Claim], folder: str | Path) -> None:
    """Write claims.csv, parts.csv (`components`) and claims.md into `folder`, each whole or not at all."""
    folder, found = make_folder(Path(folder)), table(claims)
    write_csv(folder / "claims.csv", found)
    write_csv(folder / "parts.csv", components(claims))
    shown = found[found["verdict"] != NOT_RUN].drop(columns=["role", "where", "missing"])
    rows = [
        shown.columns,
        ["---"] * len(shown.columns),
        *shown.round(3).astype(object).fillna("").to_numpy(),
    ]
    lines = "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
    with atomic_path(folder / "claims.md") as temporary:
        temporary.write_text(
            f"# Claims\n\n{lines}\nNot run: {not_run(claims) or 'none'}.\n",
            encoding="utf-8",
        )


# --- the figure -------------------------------------------------------------------------------------------------------

COLOURS = {baseline: METHOD_STYLES[baseline].colour for baseline in BASELINES} | {"": "#4d4d4d"}
BAND = "0.87"


def figure_claims(claims: Sequence[Claim], caption: str = "") -> Captioned:
    """Verdict, estimate and 95 % interval of the weakest part of every claim that was run, a panel per unit."""
    shown: dict[str, list[Claim]] = {}
    for claim in claims:
        if not math.isnan(claim.weakest.estimate):
            shown.setdefault(claim.statement.unit, []).append(claim)
    heights = [len(rows) + 2 for rows in shown.values()]
    figure = Captioned((PAGE, 0.6 + 0.17 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0] if shown else ()
    for axes, (unit, rows) in zip(panels, shown.items(), strict=True):
        for y, claim in enumerate(rows):
            _mark(axes, y, claim)
        axes.axvline(1 if unit == "times" else 0, color="0.2", linewidth=0.8, zorder=1)
        labels = [f"{c.statement.text}: {c.verdict} ({c.statement.number})" for c in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(unit)
    names = {baseline: f"against {label_of(baseline)}" for baseline in BASELINES} | {"": "no baseline"}
    handles = [Patch(color=colour, label=names[baseline]) for baseline, colour in COLOURS.items()]
    handles.append(Patch(color=BAND, label=f"published ± {TOLERANCE:.0%}"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    words = "Bars: 95 % intervals over seeds; hollow: one seed. Claims hold above 0, those on times above 1."
    figure.caption = f"{caption} {words}".strip()
    return figure


def _mark(axes: Axes, y: int, claim: Claim) -> None:
    estimate, low, high = claim.numbers
    colour = COLOURS[claim.baseline]
    fill = colour if claim.weakest.degrees else "white"
    (point, *_) = axes.errorbar(estimate, y, xerr=[[estimate - low], [high - estimate]], fmt="o", color=colour)
    point.set(markersize=4, markerfacecolor=fill)
    if claim.statement.unit == "times":
        published = SPEED_UPS[claim.statement.number]
        axes.barh(
            y,
            2 * TOLERANCE * published,
            left=published * (1 - TOLERANCE),
            color=BAND,
            zorder=0,
        )
