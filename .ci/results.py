#!/usr/bin/env python3
"""Write the tables of README.md and docs/results.md from the stored results, each between its two markers.

python .ci/results.py            # writes them
python .ci/results.py --check    # exit status 1 if one is not current
"""

import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from rsstudy.claims import experiments, interference, samplers
from rsstudy.claims.evidence import Evidence
from rsstudy.claims.table import components, decide, markdown, not_run, study, table, tables
from rsstudy.claims.verdicts import NOT_RUN, Claim
from rsstudy.figures.style import label_of, panel_label
from rsstudy.plan import on_hardest, plan
from rsstudy.store import finished_of
from rsstudy.summary import against_published, medians, timed
from rsstudy.tables import anchor_tables, forgetting_tables, interference_tables, with_all_seeds

PROJECT = Path(__file__).resolve().parent.parent
PAGES = (PROJECT / "README.md", PROJECT / "docs" / "results.md")
MAIN = ("1", "2", "4", "5", "6a", "6b", "17")


def number(value: float) -> str:
    shown = f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.1g}"
    return "" if np.isnan(value) else shown.replace("-", "−")


def interval(row: pd.Series) -> str:
    return "" if np.isnan(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"


@cache
def read(profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The populations and times of the claims' runs, of every finished seed."""
    return tables(with_all_seeds(study(profile)))


@cache
def decided(profile: str) -> list[Claim]:
    return decide(*read(profile), profile)


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
                f"{number(row['estimate'])} {row['unit']}",
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
        shown = (number(row["estimate"]), row["unit"], interval(row), row["seeds"], row["verdict"])
        rows.append((row["number"], row["text"], against, row["part"], *shown))
    columns = ("number", "claim", "against", "what is shown", "estimate", "unit", "95 % interval", "seeds", "verdict")
    return f"{markdown(columns, rows)}\n\nNot run at this scale: {not_run(claims)}."


def paper_scale() -> str:
    population, times = read("paper")
    clocks = timed(times).assign(
        dataset=lambda rows: list(map(panel_label, rows["dataset"], rows["backbone"])),
        what=lambda rows: rows["method"].map(label_of),
    )
    clocks = clocks.groupby(["dataset", "what"]).agg(seconds=("seconds", "mean"), clock=("clock", "first"))
    found = medians(population).query("quantity not in ['spread', 'slope']")
    sizes = list(dict.fromkeys(found["quantity"]))
    rows = []
    for run, values in found.groupby(["dataset", "what"], sort=False):
        time = clocks.loc[run]
        shown = [f"{value:.1f}" for value in values["estimate"]]
        rows.append((*run, values["seeds"].iloc[0], *shown, f"{time['seconds'] / 3600:.1f} ({time['clock']})"))
    return markdown(("dataset", "method", "seeds", *sizes, "training, hours (clock)"), rows)


def beside_published() -> str:
    found = against_published(read("paper")[0])
    rows = [
        (row["what"], row["quantity"], f"{row['ours']:.1f}", f"{row['published']:.1f}", number(row["difference"]))
        for _, row in found.iterrows()
    ]
    return markdown(("method", "size", "here", "published", "difference"), rows)


def answers() -> str:
    planned = with_all_seeds(on_hardest(plan("quick", methods="interference")))
    finished = finished_of(planned)
    population, times = tables(finished)
    supernets = interference.only_supernets(population)
    evidence = Evidence(supernets, times, "quick", [planned[0].dataset])
    alone = interference.standalone(population, anchor_tables(finished))
    found = interference.answers(alone, *interference_tables(finished), evidence)
    found = found[found["seeds"] > 0]
    rows = [
        (row["question"], row["what"], number(row["estimate"]), interval(row), row["seeds"])
        for _, row in found.iterrows()
    ]
    return markdown(("question", "what", "estimate", "95 % interval", "seeds"), rows)


def experiment_answers() -> str:
    """What was run of the three experiments of docs/experiments.md."""
    bridge, dose, rss = (
        with_all_seeds(on_hardest(plan("quick", methods=name))) for name in ("bridge", "dose", ["rss"])
    )
    arms = experiments.bridge(Evidence(*tables(bridge), "quick", [bridge[0].dataset]))
    parts = {
        "bridge (points)": arms["RSS minus"],
        "share of RSS minus OFA": arms["share of RSS minus OFA"],
        "dose and placebo": experiments.dose(tables(dose)[0]),
        "forgetting: gain of an own epoch (points)": experiments.forgetting(forgetting_tables(rss)),
    }
    rows = []
    for experiment, found in parts.items():
        for part in found:
            if part.seeds:
                limits = pd.Series({"low": part.low(), "high": part.high()})
                rows.append((experiment, part.label, number(part.estimate), interval(limits), part.seeds))
    return markdown(("experiment", "what", "estimate", "95 % interval", "seeds"), rows)


def compared_samplers() -> str:
    planned = with_all_seeds(on_hardest(plan("quick", methods="rates")))
    population, times = tables(planned)
    evidence = Evidence(population, times, "quick", [planned[0].dataset])
    found = samplers.overview(population, evidence, planned)
    rows = [
        (
            row["method"],
            number(row["rate"]),
            number(row["updates"]),
            row["subnet passes"],
            number(row["accuracy"]),
            interval(row),
            row["seeds"],
            number(row["time"]),
        )
        for _, row in found.iterrows()
    ]
    columns = (
        "method",
        "learning rate, in RSS's",
        "updates, in RSS's",
        "subnet passes (epochs)",
        "accuracy (%)",
        "95 % interval",
        "seeds",
        "time, in RSS's",
    )
    return markdown(columns, rows)


TABLES = {
    "main claims": main_claims,
    "all claims": all_claims,
    "the paper's scale": paper_scale,
    "against the published values": beside_published,
    "interference": answers,
    "experiments": experiment_answers,
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
