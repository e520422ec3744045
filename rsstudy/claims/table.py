"""The paper's claims and our verdicts on them: which runs they rest on, tables, and a figure of all of them.

`statements` has what is claimed, `evidence` what is estimated and how, `verdicts` the rules.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.patches import Patch

from rsslib.files import atomic_path, make_folder, write_csv
from rsstudy import catalogue
from rsstudy.catalogue import METHODS
from rsstudy.claims.evidence import PROXYLESS, Evidence, holm
from rsstudy.claims.statements import CONTROLS, SPEED_UPS, STATEMENTS, TOLERANCE
from rsstudy.claims.verdicts import NOT_RUN, Claim, judge
from rsstudy.figures.populations import PAGE, Captioned, add_legend, draw_forest, finish
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
    return make(main) + on_hardest(make(others)) + on_hardest(make(main, PROXYLESS))


def tables(planned: Sequence[Run], results: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`populations` and `times` of those runs that are finished; both empty if none is."""
    found = finished_of(planned, results)
    return populations(found, results), times(found, results)


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
        for baseline in evidence.baselines if statement.about_ofa else [""]:
            parts = statement.parts(evidence, baseline)
            claims.append(judge(statement, parts, evidence.decides, baseline))
    return claims


COLUMNS = ["number", "role", "text", "where", "figure", "baseline", "verdict", "part", "estimate", "low", "high"]
COLUMNS += ["unit", "seeds", "p (Holm)", "missing"]


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim and baseline: what the paper says and where, our verdict, its weakest part and interval.

    `p (Holm)` is corrected over all claims in the table but secondary ones and controls.
    """
    rows = []
    for claim in claims:
        stated, weakest = claim.statement, claim.weakest
        first = (stated.number, stated.role, stated.text, stated.where, stated.figure, claim.baseline, claim.verdict)
        last = (stated.unit, weakest.seeds, claim.p, ", ".join(claim.missing))
        rows.append((*first, weakest.label, *claim.numbers, *last))
    found = pd.DataFrame(rows, columns=COLUMNS)
    counted = found["role"].isin(["main", "claim"])
    found["p (Holm)"] = holm(found["p (Holm)"].where(counted))
    return found


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
    lines = markdown(shown.columns, shown.round(3).astype(object).fillna("").to_numpy())
    text = f"# Claims\n\n{lines}\n\nNot run: {not_run(claims) or 'none'}.\n"
    with atomic_path(folder / "claims.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown, without a newline at its end."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# --- the figure -------------------------------------------------------------------------------------------------------

COLOURS = {baseline: METHOD_STYLES[baseline].colour for baseline in BASELINES} | {"": "#4d4d4d"}
BAND = "0.87"


def figure_claims(claims: Sequence[Claim], about: str = "") -> Captioned:
    """Verdict, estimate and 95 % interval of the weakest part of every claim that was run, a panel per unit."""
    panels = [*table(claims).dropna(subset="estimate").groupby("unit", sort=False)]
    heights = [len(rows) + 2 for _, rows in panels]
    figure = Captioned((PAGE, 0.6 + 0.17 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).flat if panels else ()
    for axes, (unit, rows) in zip(grid, panels, strict=True):
        rows = rows.assign(what=rows["text"] + ": " + rows["verdict"] + " (" + rows["number"] + ")")
        timed = unit == "times"
        draw_forest(axes, rows, unit, rows["baseline"].map(COLOURS), float(timed))
        if timed:
            speeds = rows["number"].map(SPEED_UPS)
            axes.barh(range(len(rows)), 2 * TOLERANCE * speeds, left=(1 - TOLERANCE) * speeds, color=BAND, zorder=0)
    labels = {name: f"against {label_of(name)}" if name else "no baseline" for name in COLOURS}
    key = [Patch(color=COLOURS[name], label=label) for name, label in labels.items()]
    add_legend(figure, [*key, Patch(color=BAND, label=f"published ± {TOLERANCE:.0%}")])
    words = "Bars: 95 % intervals over seeds; hollow: one seed. Claims hold above 0, those on times above 1."
    return finish(figure, about, words)
