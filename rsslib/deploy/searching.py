"""Search for the best subnets of a trained supernet under a budget."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from rsslib import files
from rsslib.data.dataset import Dataset, check_images
from rsslib.deploy.footprint import file_bytes, memory_bytes
from rsslib.deploy.latency import LatencyTable, latency_table
from rsslib.device import evaluation_threads, use_threads
from rsslib.errors import Count, InputError, Natural, check_number, checked, choose, one_line
from rsslib.evaluate import evaluate_population, recalibration_images
from rsslib.population import archs_from_table
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet

MEASURES = ("mflops", "parameters", "file_mb", "memory_mb", "latency_ms")
SETTINGS = ("kernel", "expand", "depth")
FINALISTS = 20
CANDIDATES, DRAWN = 1_000_000, 10_000  # subnets ranked by prediction, and subnets drawn at once
RIDGE = 5.0  # penalty on the effects of choices
FIRST_IMAGES = 1000
SCORES_VERSION = 1  # raised when a code change alters accuracies
KEPT_EVERY = 10  # scores between two writes
LARGEST_FILE = 2**26  # bytes of kept scores

Measure = Callable[[np.ndarray], np.ndarray]  # from rows to sizes


@checked
@use_threads(1)
def search(
    supernet: SuperNet,
    images: Dataset,
    budget: Mapping[str, float] | None = None,
    evaluations: Count = 200,
    seed: Natural = 0,
    first_images: Count = FIRST_IMAGES,
    folder: str | Path | None = None,
    latency: LatencyTable | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the Pareto front of validation error against size, among subnets within `budget`.

    `budget` maps names of sizes to upper limits: mflops (millions of multiply-accumulates), parameters, file_mb and
    memory_mb (the exported file, and its feature maps for one image, in float32 and 10^6 bytes; see
    `rsslib.deploy.footprint`), and latency_ms. The first one is minimised together with the error (without a budget,
    mflops). Sizes are those of the network itself, with the channels, classes and resolution of the space. Milliseconds
    are predicted by `latency`, or by a table that is measured first.

    `evaluations` different subnets within the budget are scored on the first `first_images` validation images, after
    recalibration of their batch norm statistics. All but 20 of them (or a quarter, if that is fewer) are spread evenly
    over the sizes, and `layer_effects` are fitted to their accuracies. The others are the best of a million candidates
    by this prediction, also spread over the sizes. The best 20 subnets or a few more are then scored on all validation
    images, and the front is taken from these scores. The test images are used once, for the front. Equal arguments give
    equal tables. A `folder` keeps scores, so that a search can be stopped and resumed. On a CPU, one thread evaluates
    each subnet, with as many threads as there are cores.

    Returns one row per subnet in order of size: mflops, parameters, file_mb, memory_mb, latency_ms (if there is a
    table), kernel, expand, depth, validation_accuracy and test_accuracy (percent). `attrs` holds evaluations, scored
    (the number of scores that were not in the folder) and seconds. `chosen` selects a subnet from the table.

    Raises InputError for a budget that no subnet meets, for images that do not fit the supernet, and for a folder that
    cannot be written.
    """
    check_images(supernet.space, images)
    limits = check_budget(budget or {})
    began = perf_counter()
    if "latency_ms" in limits and latency is None:
        latency = latency_table(supernet.space, progress=progress)
    measures = measures_of(supernet.space, latency)
    size = measures[next(iter(limits), "mflops")]
    scores = Scores(supernet, images, folder, progress)

    candidates = draw(supernet.space, limits, measures, np.random.default_rng([seed, 1]))
    n, predicted = min(first_images, len(images.y_val)), min(FINALISTS, evaluations // 4)
    rows = next(candidates)
    rows = rows[spread(size(rows), evaluations - predicted)]
    first = scores.accuracy(rows, n)
    others = promising(supernet.space, rows, first, candidates, size)
    others = others[spread(size(others), predicted)]
    rows = np.concatenate([rows, others])
    first = np.append(first, scores.accuracy(others, n))
    rows = rows[finalists(100 - first, size(rows))]
    validation = scores.accuracy(rows, len(images.y_val))
    front = pareto_front(100 - validation, size(rows))
    rows = rows[front]
    tested = scores.evaluate(rows, images, "test")
    columns = {name: measure(rows) for name, measure in measures.items()}
    columns |= tested[[*SETTINGS]]
    columns["validation_accuracy"] = validation[front]
    columns["test_accuracy"] = tested["accuracy"]
    table = pd.DataFrame(columns)
    table.attrs = {
        "evaluations": len(first),
        "scored": scores.made,
        "seconds": perf_counter() - began,
    }
    return table


def check_budget(budget: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a budget; raises InputError unless it maps names of sizes to numbers."""
    for name, limit in budget.items():
        choose(name, MEASURES, "budget")
        check_number(limit, f"budget {name}", 0)
    return budget


@checked
def chosen(front: pd.DataFrame, **budget: float) -> Arch:
    """Return the subnet of a front that is most accurate on validation images within a budget, such as mflops=8.

    Raises InputError if no subnet is within the budget, or the table is not a front.
    """
    numbers = {"validation_accuracy", *check_budget(budget)}
    for name in sorted(numbers.union(SETTINGS) - set(front)):
        raise InputError(f"the front has no column {name}: expected a table as `search` gives it")
    for name in sorted(numbers):
        if not pd.api.types.is_numeric_dtype(front[name]) or not np.isfinite(front[name]).all():
            raise InputError(f"the front's column {name} has more than numbers: expected a table as `search` gives it")
    table = front
    for name, limit in budget.items():
        table = table[table[name] <= limit]
    if len(table) == 0:
        least = {name: f"{front[name].min():g}" for name in budget}
        raise InputError(f"no subnet of the front is within {budget}, the least are {least}: search with that budget")
    best = table["validation_accuracy"].idxmax()
    return archs_from_table(table.loc[[best]])[0]


def read_front(path: str | Path) -> pd.DataFrame:
    """Read a table for `chosen`; raises InputError if it cannot be read."""
    try:
        return pd.read_csv(io.BytesIO(files.read_regular(path, LARGEST_FILE)))
    except (OSError, ValueError) as error:  # pandas raises ValueErrors
        raise InputError(f"{path} is not a table of `search` ({one_line(error)})") from None


def pareto_front(errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the points [n] that no other point dominates, in order of size; of equal points, the first."""
    order = np.lexsort((errors, sizes))
    least = np.minimum.accumulate(errors[order])
    return order[np.diff(least, prepend=np.inf) < 0]


def finalists(errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the points [n] of the best fronts: the front, then the front of the rest, until there are 20."""
    left = np.arange(len(errors))
    best = np.arange(0)
    while len(best) < FINALISTS and len(left):
        front = left[pareto_front(errors[left], sizes[left])]
        left = np.setdiff1d(left, front)
        best = np.append(best, front)
    return np.sort(best)


def measures_of(space: SearchSpace, latency: LatencyTable | None = None) -> dict[str, Measure]:
    """Return measures of size by name: functions of rows that grow with every choice."""
    measures: dict[str, Measure] = {
        "mflops": lambda rows: space.macs(rows) / 1e6,
        "parameters": space.parameters,
        "file_mb": lambda rows: file_bytes(space, rows) / 1e6,
        "memory_mb": lambda rows: memory_bytes(space, rows) / 1e6,
    }
    if latency is not None:
        measures["latency_ms"] = latency.predict
    return measures


def draw(
    space: SearchSpace, budget: Mapping[str, float], measures: Mapping[str, Measure], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield rows of up to 10,000 different subnets of all sizes within a budget, including the smallest subnet.

    Kernel sizes, expand ratios and depths of a subnet each lean towards the smallest or the largest choices, by a
    uniform share. Unused layers have the smallest choices. Raises InputError if the smallest subnet is too large.
    """
    least, most = (space.to_rows([arch]) for arch in (space.smallest, space.largest))
    for name, limit in budget.items():
        smallest = measures[name](least)[0]
        if smallest > limit:
            raise InputError(
                f"no subnet of {space.backbone.name} at {space.resolution} pixels has {name} of at most {limit:g}: "
                f"the smallest has {smallest:g}"
            )
    widths = [width for _, width in space.columns]
    while True:
        rows = space.sample(DRAWN, rng)
        share = rng.uniform(-1, 1, (DRAWN, 3)).repeat(widths, axis=1)
        leaning = rng.random(rows.shape) < np.abs(share)
        rows = np.where(leaning, np.where(share < 0, least, most), rows)
        rows = np.concatenate([least, rows])
        rows = np.where(space.used(rows), rows, least)
        for name, limit in budget.items():
            rows = rows[measures[name](rows) <= limit]
        yield np.unique(rows, axis=0)


def spread(sizes: np.ndarray, n: int) -> np.ndarray:
    """Return up to `n` points [n], spread evenly over the range of sizes; all points if there are no more."""
    order = np.argsort(sizes, kind="stable")
    if len(sizes) <= n:
        return order
    places = np.linspace(sizes.min(), sizes.max(), n)
    return order[np.unique(np.searchsorted(sizes[order], places))]


def layer_effects(space: SearchSpace, rows: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Fit accuracies by ridge regression as sums of effects, one per column of `one_hot`."""
    x = one_hot(space, rows)
    x = x - x.mean(0)
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ accuracies)


def effects_table(space: SearchSpace, population: pd.DataFrame) -> pd.DataFrame:
    """Return the effect of each choice on a population's accuracies, in points relative to the mean of its place.

    One row per choice: what ("kernel", "expand" or "depth"), place (number of the layer or stage), value and effect.
    """
    rows = space.to_rows(archs_from_table(population))
    effects = layer_effects(space, rows, population["accuracy"].to_numpy()).reshape(-1, rows.shape[1])
    values = settings_values(space)
    column, found = 0, []
    for what, (choices, width) in zip(SETTINGS, space.columns, strict=True):
        own = effects[[values.index(choice) for choice in choices], column : column + width]
        column += width
        for (i, place), effect in np.ndenumerate(own - own.mean(0)):
            found.append({"what": what, "place": place, "value": choices[i], "effect": effect})
    return pd.DataFrame(found)


def settings_values(space: SearchSpace) -> list[int]:
    return sorted({*space.kernels, *space.expands, *space.depths})


def one_hot(space: SearchSpace, rows: np.ndarray) -> np.ndarray:
    """Return the choices of subnets as one-hot columns, float64 [n, values * columns], with 0 for unused layers.

    The columns are those of `rows`, repeated for each possible value in ascending order.
    """
    used = space.used(rows)
    values = settings_values(space)
    return np.concatenate([used & (rows == value) for value in values], axis=1).astype(float)


def promising(
    space: SearchSpace, rows: np.ndarray, accuracies: np.ndarray, candidates: Iterator[np.ndarray], size: Measure
) -> np.ndarray:
    """Return the best of a million candidates, by effects fitted to the accuracies of `rows`, excluding `rows`."""
    effects = layer_effects(space, rows, accuracies)
    known = {row.tobytes() for row in rows}
    best = rows[:0]
    for found in islice(candidates, CANDIDATES // DRAWN):
        new = [row.tobytes() not in known for row in found]
        pool = np.unique(np.concatenate([best, found[new]]), axis=0)
        best = pool[finalists(-one_hot(space, pool) @ effects, size(pool))]
    return best


class Scores:
    """Accuracies on validation images, kept in memory and, if there is a folder, in a file there.

    The name of the file depends on everything that determines a score: weights, space, images and labels.
    """

    def __init__(self, supernet: SuperNet, images: Dataset, folder: str | Path | None, progress: bool):
        self.supernet = supernet
        self.images = images
        self.progress = progress
        self.known: dict[str, int] = {}
        self.made = 0
        self.path: Path | None = None
        if folder is not None:
            files.check_writable(folder, "the search's folder")
            self.path = Path(folder, f"scores-{self.identity()[:16]}.json")
            if self.path.exists():
                self.known = read_scores(self.path)

    def identity(self) -> str:
        space = self.supernet.space
        images = self.images
        described = (space.backbone, space.kernels, space.expands, space.depths, SCORES_VERSION)
        hashed = hashlib.sha256(repr(described).encode())
        weights = self.supernet.state_dict().values()
        for tensor in (*weights, recalibration_images(images), images.x_val, images.y_val):
            hashed.update(f"{tensor.dtype} {tensor.shape}".encode())
            hashed.update(tensor.cpu().contiguous().numpy())
        return hashed.hexdigest()

    def accuracy(self, rows: np.ndarray, n: int) -> np.ndarray:
        """Return the accuracy of each row on the first `n` validation images, in percent."""
        images = replace(self.images, x_test=self.images.x_val[:n], y_test=self.images.y_val[:n])
        keys = ["-".join(map(str, row)) + f" on {n}" for row in rows]
        known = {i: self.known[key] for i, key in enumerate(keys) if key in self.known}
        counts = {i: torch.tensor(count, device=images.device) for i, count in known.items()}
        self.made += len(keys) - len(counts)

        def keep(every: int = KEPT_EVERY) -> None:
            if len(counts) % every == 0:
                self.known |= {keys[i]: int(count) for i, count in counts.items()}
                self.write()

        table = self.evaluate(rows, images, "search", counts=counts, before_each=keep)
        keep(1)
        return table["accuracy"].to_numpy()

    def evaluate(self, rows: np.ndarray, images: Dataset, what: str, **more: Any) -> pd.DataFrame:
        more |= {"progress": self.progress, "threads": evaluation_threads(images.device)}
        population = [(0.0, self.supernet.space.to_arch(row)) for row in rows]
        return evaluate_population(self.supernet, population, images, f"{what} {images.name}", **more)

    def write(self) -> None:
        if self.path is not None:
            content = json.dumps(self.known, indent=0).encode()
            files.make_folder(self.path.parent)
            files.write(self.path, f"{files.sha256(content)}\n".encode() + content)


def read_scores(path: Path) -> dict[str, int]:
    try:
        digest, _, content = files.read_regular(path, LARGEST_FILE).partition(b"\n")
        if digest.decode() != files.sha256(content):
            raise ValueError("its checksum differs")
        known = json.loads(content)
        for key, count in known.items():
            check_number(count, key, 0, int(key.rpartition(" ")[2]), whole=True)
        return known
    except (OSError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}): restore it, or remove it to score its candidates again"
        ) from None
