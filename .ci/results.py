#!/usr/bin/env python3
"""Write the tables of README.md and docs/results.md from the stored results, each between its two markers.

python .ci/results.py            # writes them
python .ci/results.py --check    # exit status 1 if one is not current
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from rsstudy.claims import interference, samplers
from rsstudy.claims.evidence import Evidence
from rsstudy.claims.table import components, decide, not_run, study, table, tables
from rsstudy.claims.verdicts import NOT_RUN, Claim
from rsstudy.figures.style import label_of
from rsstudy.plan import on_hardest, plan
from rsstudy.summary import published, timed
from rsstudy.tables import anchor_tables, interference_tables, with_all_seeds

PROJECT = Path(__file__).resolve().parent.parent
PAGES = (PROJECT / "README.md", PROJECT / "docs" / "results.md")
MAIN = ("1", "2", "4", "5", "6a", "6b", "17")
Rows = Iterable[Iterable[object]]


def markdown(columns: Iterable[str], rows: Rows) -> str:
    lines = [[*columns], ["---"] * len([*columns]), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float) -> str:
    shown = f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.1g}"
    return "" if np.isnan(value) else shown.replace("-", "−")


def interval(row: pd.Series) -> str:
    return "" if np.isnan(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"


def unit(row: pd.Series) -> str:
    return {"times": "times", "points": "points"}.get(row["unit"], row["unit"])


def decided(profile: str) -> list[Claim]:
    population, times = tables(with_all_seeds(study(profile)))
    return decide(population, times, profile)


# --- the tables -------------------------------------------------------------------------------------------------------


def main_claims() -> str:
    """The main claims against OFA: one size of evidence each, then what the paper's scale has."""
    found = table(decided("quick")).query("number in @MAIN and baseline in ['ofa', '']")
    parts = components(decided("paper"))
    rows = []
    for _, row in found.iterrows():
        same = (parts["number"] == row["number"]) & (parts["baseline"] == row["baseline"]) & (parts["seeds"] > 0)
        values = []
        for _, part in parts[same].iterrows():
            what, _, dataset = part["part"].rpartition(" on ")
            if what == row["part"].rpartition(" on ")[0] and row["number"] != "17":
                values.append(f"{dataset}: {number(part['estimate'])}")
        rows.append(
            (
                row["text"],
                f"{number(row['estimate'])} {unit(row)}",
                interval(row),
                row["seeds"],
                row["verdict"],
                "; ".join(values),
            )
        )
    columns = ("claim", "estimate", "95 % interval", "seeds", "verdict", "the paper's scale, one seed")
    return markdown(columns, rows)


def all_claims() -> str:
    claims = decided("quick")
    found = table(claims)
    rows = []
    for _, row in found[found["verdict"] != NOT_RUN].iterrows():
        against = label_of(row["baseline"]) if row["baseline"] else ""
        shown = (number(row["estimate"]), unit(row), interval(row), row["seeds"], row["verdict"])
        rows.append((row["number"], row["text"], against, row["part"], *shown))
    columns = ("number", "claim", "against", "what is shown", "estimate", "unit", "95 % interval", "seeds", "verdict")
    return f"{markdown(columns, rows)}\n\nNot run at this scale: {not_run(claims)}."


def paper_scale() -> str:
    population, times = tables(with_all_seeds(study("paper")))
    hours = timed(times).groupby(["dataset", "method"])["seconds"].mean() / 3600
    clocks = timed(times).groupby(["dataset", "method"])["clock"].first()
    sizes = sorted(population["bucket"].unique())
    rows = []
    for (dataset, method), runs in population.groupby(["dataset", "method"], sort=False):
        medians = runs.groupby("bucket")["accuracy"].median()
        time = f"{hours[dataset, method]:.1f} ({clocks[dataset, method]})"
        shown = (f"{runs['accuracy'].mean():.2f}", *(f"{medians[size]:.1f}" for size in sizes))
        rows.append((dataset, label_of(method), runs["seed"].nunique(), *shown, time))
    columns = ("dataset", "method", "seeds", "mean", *(f"{size:g} MFLOPs" for size in sizes), "training, hours (clock)")
    return markdown(columns, rows)


def against_published() -> str:
    population, _ = tables(with_all_seeds(study("paper")))
    ours = population.query("dataset == 'cifar100' and backbone == 'mobilenet_v3'")
    theirs = published().query("dataset == 'cifar100' and backbone == 'mobilenet_v3' and quantity == 'median'")
    rows = []
    for (method, size), runs in ours.groupby(["method", "bucket"], sort=False):
        value = theirs[(theirs["method"] == method) & (theirs["mflops"] == size)]["value"]
        if len(value):
            mine, read = runs["accuracy"].median(), value.iloc[0]
            rows.append((label_of(method), f"{size:g}", f"{mine:.1f}", f"{read:.1f}", number(mine - read)))
    return markdown(("method", "MFLOPs", "here", "published", "difference"), rows)


def answers() -> str:
    planned = with_all_seeds(on_hardest(plan("quick", methods="interference")))
    population, times = tables(planned)
    supernets = interference.only_supernets(population)
    evidence = Evidence(supernets, times, "quick", [planned[0].dataset])
    finished = [run for run in planned if run.folder().joinpath("population.csv").exists()]
    alone = interference.standalone(population, anchor_tables(finished))
    found = interference.answers(alone, *interference_tables(finished), evidence)
    found = found[found["seeds"] > 0]
    rows = [
        (row["question"], row["what"], number(row["estimate"]), interval(row), row["seeds"])
        for _, row in found.iterrows()
    ]
    return markdown(("question", "what", "estimate", "95 % interval", "seeds"), rows)


def compared_samplers() -> str:
    planned = with_all_seeds(on_hardest(plan("quick", methods="samplers")))
    population, times = tables(planned)
    evidence = Evidence(population, times, "quick", [planned[0].dataset])
    found = samplers.overview(population, evidence, planned)
    rows = [
        (
            row["method"],
            row["subnet passes"],
            number(row["accuracy"]),
            interval(row),
            row["seeds"],
            number(row["time"]),
        )
        for _, row in found.iterrows()
    ]
    columns = ("method", "subnet passes (epochs)", "accuracy (%)", "95 % interval", "seeds", "time, in RSS's")
    return markdown(columns, rows)


TABLES = {
    "main claims": main_claims,
    "all claims": all_claims,
    "the paper's scale": paper_scale,
    "against the published values": against_published,
    "interference": answers,
    "samplers": compared_samplers,
}


def written(text: str) -> str:
    """The page with every table between markers as it is now."""
    for name, make in TABLES.items():
        start, end = f"<!-- table: {name} -->", f"<!-- end of {name} -->"
        if start in text:
            pattern = re.escape(start) + ".*?" + re.escape(end)
            replacement = f"{start}\n{make()}\n{end}"
            text = re.sub(pattern, lambda _, new=replacement: new, text, flags=re.DOTALL)
    return text


def main() -> int:
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            stale.append(page.relative_to(PROJECT))
        if after != before and "--check" not in sys.argv:
            page.write_text(after, encoding="utf-8")
    print(*(f"{'not current' if '--check' in sys.argv else 'written'}: {page}" for page in stale), sep="\n")
    return len(stale) if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
