"""Search by fitted effects against random search of as many evaluations.

Parts, by name: stored (committed populations at the paper's scale stand in for the search space) and supernets (RSS at
quick on Fashion-MNIST, seeds 0 to 4, trained first if they are not there; scores are kept, so it resumes).
"""

import argparse
import time
from itertools import product

import numpy as np
import pandas as pd
import torch
from common import report
from scipy import stats

from rsslib.data.dataset import Dataset
from rsslib.deploy.searching import (
    FINALISTS,
    Scores,
    finalists,
    layer_effects,
    measures_of,
    one_hot,
    pareto_front,
    search,
)
from rsslib.files import project_folder
from rsslib.population import archs_from_table
from rsslib.space import SearchSpace
from rsslib.supernet import SuperNet
from rsstudy.engine import complete
from rsstudy.plan import Settings, plan
from rsstudy.supernets import trained_supernet

BUDGETS = (6, 8, 10)  # MFLOPs
TABLE = project_folder() / "benchmarks" / "product" / "searches.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--evaluations", type=int, default=120, help="of each search (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="searches of each supernet (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), help="of supernets (default: 0 to 4)")
    parser.add_argument("--results", help="folder with the runs (default: the project's)")
    parser.add_argument("--data", help="folder with datasets (default: the project's)")
    parser.add_argument("--work", default="build/search", help="folder for scores (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        PARTS[part](options)


def interval(values: np.ndarray) -> str:
    """The mean with Student's 95 % interval."""
    margin = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):.2f} ± {margin:.2f}"


# --- stored populations -----------------------------------------------------------------------------------------------


def stored(options: argparse.Namespace) -> None:
    """Rank correlation on subnets that the fit has not seen, and what each search finds among the stored subnets."""
    ranks, found = [], []
    for path in sorted((project_folder() / "data/results/paper").rglob("population.csv")):
        table = pd.read_csv(path)
        name = "/".join(path.parts[-5:-1:2])
        space = SearchSpace(path.parts[-4])
        rows = space.to_rows(archs_from_table(table))
        accuracy, buckets = table["accuracy"].to_numpy(), table["bucket"].to_numpy()
        for repeat in range(20):
            rng = np.random.default_rng(repeat)
            fitted = stratified(buckets, 100, rng)
            predicted = predict(space, rows, accuracy, fitted)
            for bucket in np.unique(buckets):
                unseen = np.setdiff1d(np.flatnonzero(buckets == bucket), fitted)
                rank = stats.spearmanr(predicted[unseen], accuracy[unseen]).statistic
                ranks.append({"population": name, "bucket": bucket, "spearman": rank})
            for budget in BUDGETS:
                pool = np.flatnonzero(buckets <= budget)
                within = rows[pool], accuracy[pool], buckets[pool]
                row = {"population": name, "budget": budget}
                found.append(row | compare(space, *within, options.evaluations // 2, rng))
    by = pd.DataFrame(ranks).groupby("population")["spearman"]
    means = pd.DataFrame(ranks).groupby(["population", "bucket"])["spearman"].mean().groupby("population")
    table = pd.DataFrame({"mean": by.mean(), "least bucket": means.min(), "best bucket": means.max()})
    report("Spearman within a bucket, fitted to 100 subnets", table.reset_index().to_dict("records"))
    found = pd.DataFrame(found)
    lead = found["fitted"] - found["random"]
    table = found.assign(lead=lead).groupby(["population", "budget"], as_index=False)
    rows = [dict(zip(("population", "budget"), key, strict=True)) | summary(group) for key, group in table]
    report(f"best of {options.evaluations // 2} evaluations among the stored subnets within a budget", rows)


def summary(group: pd.DataFrame) -> dict:
    means = group[["random", "fitted", "random_needs"]].mean().round(2).to_dict()
    return means | {"lead": interval(group["lead"].to_numpy())}


def stratified(buckets: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` numbers of subnets, as many of each bucket as possible."""
    order = rng.permutation(len(buckets))
    ranked = pd.Series(buckets[order]).groupby(buckets[order]).cumcount()
    return order[np.argsort(ranked.to_numpy(), kind="stable")[:n]]


def predict(space: SearchSpace, rows: np.ndarray, accuracy: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    return one_hot(space, rows) @ layer_effects(space, rows[fitted], accuracy[fitted])


def compare(
    space: SearchSpace, rows: np.ndarray, accuracy: np.ndarray, buckets: np.ndarray, n: int, rng: np.random.Generator
) -> dict:
    """The best accuracy among `n` random subnets, and among n - 20 of all sizes and the 20 best by prediction."""
    fitted = stratified(buckets, n - FINALISTS, rng)
    rest = np.setdiff1d(np.arange(len(rows)), fitted)
    best = rest[np.argsort(-predict(space, rows, accuracy, fitted)[rest])[:FINALISTS]]
    reached = accuracy[np.append(fitted, best)].max()
    draws = [rng.permutation(accuracy) for _ in range(200)]
    needs = [np.argmax(draw >= reached) + 1 for draw in draws]
    return {"random": np.mean([draw[:n].max() for draw in draws]), "fitted": reached, "random_needs": np.median(needs)}


# --- supernets --------------------------------------------------------------------------------------------------------


def supernets(options: argparse.Namespace) -> None:
    """Search each seed's supernet within each budget, by both methods, as often as asked for."""
    settings = Settings(options.results, options.data, device="cpu")
    runs = plan("quick", ["fashion_mnist"], ["rss"], seeds=[*options.seeds])
    complete(runs, settings)
    done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["seed", "budget", "repeat", "search"])
    searches = {"fitted": search, "random": random_search}
    for repeat, run in product(range(options.repeats), runs):
        supernet, images = trained_supernet(run, settings)
        for budget, name in product(BUDGETS, searches):
            case = {"seed": run.seed, "budget": budget, "repeat": repeat, "search": name}
            if (done[list(case)] == pd.Series(case)).all(axis=1).any():
                continue
            began, limits = time.process_time(), {"mflops": budget}
            front = searches[name](supernet, images, limits, options.evaluations, repeat, folder=options.work)
            case |= described(front, budget) | {"evaluations": options.evaluations}
            row = pd.DataFrame([case | {"processor_seconds": time.process_time() - began}])
            row.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
    report_searches()


def random_search(
    supernet: SuperNet, images: Dataset, budget: dict, evaluations: int, seed: int, folder: str
) -> pd.DataFrame:
    """As `search`, but all candidates are uniform draws within the budget."""
    space, rng = supernet.space, np.random.default_rng([seed, 2])
    size = measures_of(space)["mflops"]
    rows = np.concatenate([space.sample(100_000, rng) for _ in range(20)])
    rows = rows[size(rows) <= budget["mflops"]][:evaluations]
    scores = Scores(supernet, images, folder, progress=True)
    rows = rows[finalists(100 - scores.accuracy(rows, 1000), size(rows))]
    validation = scores.accuracy(rows, len(images.y_val))
    front = pareto_front(100 - validation, size(rows))
    test = scores.evaluate(rows[front], images, "test")["accuracy"].to_numpy()
    columns = {"mflops": size(rows[front]), "validation_accuracy": validation[front], "test_accuracy": test}
    return pd.DataFrame(columns)


def described(front: pd.DataFrame, budget: float) -> dict:
    """Accuracies of the subnet that validation chooses, and the share of the plane that the front dominates."""
    chosen = front.loc[front["validation_accuracy"].idxmax()]
    sizes = np.append(front["mflops"], budget)
    area = (np.diff(sizes) * front["test_accuracy"].cummax()).sum()
    return {
        "mflops": chosen["mflops"],
        "validation_accuracy": chosen["validation_accuracy"],
        "test_accuracy": chosen["test_accuracy"],
        "hypervolume": area / budget,
    }


def report_searches() -> None:
    """Leads of the fitted search, paired by supernet and averaged over its repeats, with intervals over seeds."""
    table = pd.read_csv(TABLE)
    rows = []
    for budget, group in table.groupby("budget"):
        row = {"budget": budget, "supernets": group["seed"].nunique(), "searches of each": group["repeat"].nunique()}
        for column in ("validation_accuracy", "test_accuracy", "hypervolume"):
            means = group.pivot_table(index="seed", columns="search", values=column)
            row |= {f"{column} {name}": means[name].mean() for name in ("random", "fitted")}
            row[f"{column} lead"] = interval((means["fitted"] - means["random"]).to_numpy())
        rows.append(row)
    report("RSS at quick, Fashion-MNIST: the subnet that validation chooses within a budget", rows)


PARTS = {"stored": stored, "supernets": supernets}

if __name__ == "__main__":
    main()
