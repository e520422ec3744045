"""The best subnets of a trained supernet under a budget: NSGA-II (Deb et al. 2002), and random search beside it."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from rsslib import files
from rsslib.data.dataset import Dataset, check_images
from rsslib.deploy.latency import LatencyTable, latency_table
from rsslib.device import evaluation_threads, own_stream, use_threads
from rsslib.errors import InputError, check_number, choose, needed, one_line
from rsslib.evaluate import LabelledBatches, correct_answers, evaluate_population, in_turn, recalibration_images
from rsslib.progress import progress_bar
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet

MEASURES = ("mflops", "parameters", "latency_ms")
POPULATION = 20
FIRST_IMAGES = 1000

Measure = Callable[[np.ndarray], np.ndarray]  # rows of a space to a size each


@use_threads(1)
def search(
    supernet: SuperNet,
    images: Dataset,
    budget: Mapping[str, float] | None = None,
    method: str = "nsga2",
    evaluations: int = 200,
    seed: int = 0,
    first_images: int = FIRST_IMAGES,
    folder: str | Path | None = None,
    latency: LatencyTable | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The Pareto front of validation error against size, among subnets that meet every limit of `budget`.

    `budget` maps mflops (millions of multiply-accumulates), parameters and latency_ms to the most that is allowed; the
    first is the size that is minimised beside the error (without a budget, mflops). They are those of the very network,
    with the space's channels, classes and resolution. Milliseconds are predicted by `latency`, or by a table that is
    measured first. `method` is nsga2, or random, which draws its candidates uniformly.

    The rule: each of `evaluations` different candidates gets batch norm statistics of its own and is scored on the
    first `first_images` validation images. Of them all, the 20 best by non-domination, then crowding distance, are
    scored on all validation images, and the front is taken from those scores. The test images are used once, for the
    front that is returned. Equal arguments give equal tables; with a `folder`, candidates that were scored there
    before, also by a search that was stopped, are not scored again. On a CPU each subnet is one thread's, of as
    many as there are cores: within a subnet a second would change last digits, and be slow beside a busy program.

    Returns one row a subnet, in order of size: mflops, parameters, latency_ms (if there is a table), kernel, expand,
    depth, validation_accuracy and test_accuracy (percent); `attrs` has evaluations, seconds and, of these, scored (how
    many candidates were not in the folder). `chosen` takes a subnet from it.

    Raises InputError for a budget that no subnet can meet, images that the supernet does not take, a folder that cannot
    be written, and if the extra [search] is not installed.
    """
    needed("pymoo", "search")
    choose(method, ("nsga2", "random"), "method")
    check_number(evaluations, "evaluations", 1, whole=True)
    check_number(seed, "seed", 0, 2**32 - 1, whole=True)
    check_number(first_images, "first_images", 1, whole=True)
    space, began = supernet.space, perf_counter()
    check_images(space, images)
    for what, labels in (("validation", images.y_val), ("test", images.y_test)):
        if len(labels) == 0:
            raise InputError(f"{images.name} has no {what} images: expected at least one")
    if not isinstance(budget, Mapping | None):
        raise InputError(f"budget is {budget!r}: expected limits by name, as {{'mflops': 8}}, or None")
    budget = dict(budget or {})
    for name, limit in budget.items():
        choose(name, MEASURES, "budget")
        check_number(limit, f"budget {name}", 0)
    if "latency_ms" in budget and latency is None:
        latency = latency_table(space, progress=progress)
    candidates = Candidates(space, budget, measures(space, latency), np.random.default_rng([seed, 1]))
    scores = Scores(supernet, images, folder)
    first_images = min(first_images, len(images.y_val))
    with progress_bar(shown=progress, total=evaluations, desc=f"search {images.name}", unit="subnet") as bar:

        def score(rows: np.ndarray) -> np.ndarray:
            error = 1 - scores.correct(rows, first_images, bar) / first_images
            return np.stack([error, candidates.size(rows)], axis=1)

        find = nsga2 if method == "nsga2" else random_search
        rows, objectives = find(candidates, score, evaluations, seed)
    rows = rows[best(objectives, POPULATION, seed)]
    accuracy = 100 * scores.correct(rows, len(images.y_val)) / len(images.y_val)
    front = non_dominated(np.stack([100 - accuracy, candidates.size(rows)], axis=1))
    rows, accuracy = rows[front], accuracy[front]
    order = np.argsort(candidates.size(rows), kind="stable")
    rows, accuracy = rows[order], accuracy[order]
    tested = evaluate_population(
        supernet, [(0, space.to_arch(row)) for row in rows], images, f"test {images.name}", progress,
        threads=evaluation_threads(images.device),
    )  # fmt: skip
    table = pd.DataFrame({name: measure(rows) for name, measure in candidates.measures.items()})
    table = table.join(tested[["kernel", "expand", "depth"]])
    table["validation_accuracy"], table["test_accuracy"] = accuracy, tested["accuracy"]
    table.attrs = {"evaluations": len(objectives), "scored": scores.made, "seconds": perf_counter() - began}
    return table


def chosen(front: pd.DataFrame, **budget: float) -> Arch:
    """The subnet of a front that is most accurate on the validation images within a budget, such as mflops=8.

    Raises InputError if none is within it.
    """
    if len(front) == 0:
        raise InputError("the front has no rows: expected a table that `search` gave")
    table = front
    for name, limit in budget.items():
        choose(name, [column for column in MEASURES if column in front], "budget")
        table = table[table[name] <= limit]
    if len(table) == 0:
        words = " and ".join(f"{name} {limit:g} (its least is {front[name].min():g})" for name, limit in budget.items())
        raise InputError(f"no subnet of the front is within {words}: search with that budget")
    return archs_of(table.loc[[table["validation_accuracy"].idxmax()]])[0]


def archs_of(table: pd.DataFrame) -> list[Arch]:
    """The architectures in the columns kernel, expand and depth of a front or of a population's table."""
    columns = (table[setting].astype(str).str.split("-") for setting in ("kernel", "expand", "depth"))
    return [Arch(*(tuple(map(int, part)) for part in row)) for row in zip(*columns, strict=True)]


def hypervolume(front: pd.DataFrame, most: float, size: str = "mflops", accuracy: str = "test_accuracy") -> float:
    """The share, 0 to 1, of the rectangle of errors up to 100 % and sizes up to `most` that a front dominates."""
    needed("pymoo", "search")
    from pymoo.indicators.hv import HV

    points = np.stack([1 - front[accuracy] / 100, front[size] / most], axis=1)
    return float(HV(ref_point=np.array([1.0, 1.0]))(points))


# --- which subnets may be tried ---------------------------------------------------------------------------------------


def measures(space: SearchSpace, latency: LatencyTable | None) -> dict[str, Measure]:
    """Sizes by name, of rows."""
    result: dict[str, Measure] = {"mflops": lambda rows: space.macs(rows) / 1e6, "parameters": space.parameters}
    if latency is not None:
        result["latency_ms"] = latency.predict
    return result


class Candidates:
    """The subnets of a space that meet a budget, each in one form: layers that it does not use have the least settings.

    Raises InputError for a budget that not even the smallest subnet meets; every measure grows with every setting.
    """

    def __init__(
        self, space: SearchSpace, budget: Mapping[str, float], measures: Mapping[str, Measure],
        rng: np.random.Generator,
    ):  # fmt: skip
        self.space, self.budget, self.measures, self.rng = space, dict(budget), dict(measures), rng
        self.size = self.measures[next(iter(budget), "mflops")]
        self.settings = [sorted(settings) for settings, width in space.columns for _ in range(width)]
        self.least = space.to_rows([space.smallest])[0]
        for name, limit in self.budget.items():
            smallest = float(self.measures[name](self.least[None])[0])
            if smallest > limit:
                raise InputError(
                    f"no subnet of {space.backbone.name} at {space.resolution} pixels has {name} of at most {limit:g}: "
                    f"the smallest has {smallest:g}"
                )

    def within(self, rows: np.ndarray) -> np.ndarray:
        """bool [n]: which rows meet the budget."""
        inside = np.ones(len(rows), bool)
        for name, limit in self.budget.items():
            inside &= self.measures[name](rows) <= limit
        return inside

    def plain(self, rows: np.ndarray) -> np.ndarray:
        """The same subnets, each in its one form."""
        return np.where(self.space.used(rows), rows, self.least).astype(np.int8)

    def shrink(self, rows: np.ndarray) -> np.ndarray:
        """Rows that meet the budget: those that do not take random steps to smaller settings until they do."""
        rows = self.plain(rows)
        for i in np.flatnonzero(~self.within(rows)):
            while not self.within(rows[i : i + 1])[0]:
                column = self.rng.choice(np.flatnonzero(rows[i] > self.least))
                settings = self.settings[column]
                rows[i, column] = settings[settings.index(rows[i, column]) - 1]
                rows[i : i + 1] = self.plain(rows[i : i + 1])
        return rows

    def draw(self, n: int) -> np.ndarray:
        """`n` different rows within the budget, or as many as are found: uniform draws, by rejection while that finds
        any among 10,000, else shrunk ones."""
        found: dict[bytes, np.ndarray] = {}
        rare = False
        for _ in range(50):
            rows = self.plain(self.space.sample(n if rare else 10_000, self.rng))
            inside = self.shrink(rows) if rare else rows[self.within(rows)]
            for row in inside:
                found.setdefault(row.tobytes(), row)
            if len(found) >= n:
                break
            rare = rare or len(inside) < n / 10
        return np.stack(list(found.values())[:n])


# --- scores -----------------------------------------------------------------------------------------------------------


class Scores:
    """Correct answers on the first validation images, kept in memory and, with a folder, in a file there.

    The file's name tells the supernet's weights and the images, so that no other's scores are taken for these.
    """

    def __init__(self, supernet: SuperNet, images: Dataset, folder: str | Path | None):
        self.supernet, self.images, self.made, self.top = supernet, images, 0, 0
        self.known: dict[tuple[str, int], int] = {}
        self.recalibration, self.path = recalibration_images(images), None
        if folder is not None:
            files.check_writable(folder, "the search's folder")
            weights = files.tensor_bytes(supernet.state_dict())
            identity = files.sha256(weights + f"{images.checksum} {len(images.y_train)} {len(images.y_val)}".encode())
            self.path = Path(folder, f"candidates-{identity[:16]}.csv")
            if self.path.exists():
                self.known = self._read(self.path)

    def _read(self, path: Path) -> dict[tuple[str, int], int]:
        try:
            table = pd.read_csv(io.BytesIO(path.read_bytes()), dtype={"subnet": str})
            rows = zip(table["subnet"], table["images"], table["correct"], strict=True)
            return {(subnet, int(n)): int(correct) for subnet, n, correct in rows}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} cannot be read ({one_line(error)}): restore it, or remove it to score its candidates again"
            ) from None

    def correct(self, rows: np.ndarray, n: int, bar=None) -> np.ndarray:
        """int64 [rows]: how many of the first `n` validation images each subnet classifies correctly."""
        keys = [("-".join(map(str, row)), n) for row in rows]  # a setting may have two digits
        data, space, counts = self.images, self.supernet.space, {}
        new = {key: space.to_arch(row) for key, row in zip(keys, rows, strict=True) if key not in self.known}
        with own_stream(data.device):
            if new:
                images = LabelledBatches(data.x_val[:n], data.y_val[:n], data), self.recalibration
                scored, threads = list(new), evaluation_threads(data.device)
                with in_turn(self.supernet, images, list(new.values()), correct_answers, threads) as counted:
                    for number, count in counted:
                        counts[scored[number]] = count
                        if bar is not None:
                            bar.update()
            self.known |= {key: int(count) for key, count in counts.items()}
        if bar is not None:
            bar.update(len(keys) - len(new))
            self.top = max(self.top, *(self.known[key] for key in keys))
            bar.set_postfix(best=f"{100 * self.top / n:.1f} %")
        self.made += len(counts)
        if counts and self.path is not None:
            files.make_folder(self.path.parent)
            scores = [(*key, correct) for key, correct in self.known.items()]
            files.write_csv(self.path, pd.DataFrame(scores, columns=["subnet", "images", "correct"]))
        return np.array([self.known[key] for key in keys], dtype=np.int64)


# --- the two searches -------------------------------------------------------------------------------------------------


def random_search(
    candidates: Candidates, score: Callable[[np.ndarray], np.ndarray], evaluations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn within the budget and their objectives, float64 [n, 2]."""
    rows = candidates.draw(evaluations)
    return rows, np.concatenate([score(part) for part in np.split(rows, range(POPULATION, len(rows), POPULATION))])


def nsga2(
    candidates: Candidates, score: Callable[[np.ndarray], np.ndarray], evaluations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """All rows that NSGA-II tried, no two alike, and their objectives, float64 [n, 2].

    Uniform crossover; each setting is drawn anew with the probability that changes two a child; a child above the
    budget is shrunk.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.duplicate import ElementwiseDuplicateElimination
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.ux import UniformCrossover

    seen: set[bytes] = set()

    class Redraw(Mutation):
        def _do(self, problem, X, *args, random_state=None, **kwargs):
            drawn = np.stack([random_state.choice(s, len(X)) for s in candidates.settings], axis=1)
            return np.where(random_state.random(X.shape) < 2 / X.shape[1], drawn, X)

    class Shrink(Repair):
        def _do(self, problem, X, **kwargs):
            return candidates.shrink(np.asarray(X, np.int8))

    class Unseen(ElementwiseDuplicateElimination):
        """Drops what was ever tried, not only what is in the population."""

        def __init__(self):
            super().__init__(lambda a, b: bool((a.X == b.X).all()))

        def do(self, pop, *args, **kwargs):
            fresh = np.array([individual.X.astype(np.int8).tobytes() not in seen for individual in pop], dtype=bool)
            return super().do(pop[fresh], *args, **kwargs) if len(pop) else pop

    columns = len(candidates.settings)
    problem = Problem(n_var=columns, n_obj=2, vtype=int, xl=[s[0] for s in candidates.settings],
                      xu=[s[-1] for s in candidates.settings])  # fmt: skip
    first = candidates.draw(min(POPULATION, evaluations))
    algorithm = NSGA2(
        pop_size=POPULATION, sampling=first, crossover=UniformCrossover(), mutation=Redraw(), repair=Shrink(),
        eliminate_duplicates=Unseen(),
    )  # fmt: skip
    algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
    rows: list[np.ndarray] = []
    objectives: list[np.ndarray] = []
    while len(rows) < evaluations:
        children = algorithm.ask()
        if children is None or len(children) == 0:  # nothing is left to try
            break
        children = children[: evaluations - len(rows)]
        tried = children.get("X").astype(np.int8)
        values = score(tried)
        children.set("F", values)
        for child in children:
            child.evaluated.update(("F", "G", "H"))
        seen.update(row.tobytes() for row in tried)
        rows += list(tried)
        objectives += list(values)
        algorithm.tell(infills=children)
    return np.stack(rows), np.stack(objectives)


def non_dominated(objectives: np.ndarray) -> np.ndarray:
    """Indices of the points [n, 2] that no other dominates; of equal ones the first."""
    order = np.lexsort((objectives[:, 0], objectives[:, 1]))
    front, least = [], np.inf
    for i in order:  # from small to large: on the front if no smaller or equal one has as small an error
        if objectives[i, 0] < least:
            least = objectives[i, 0]
            front.append(i)
    return np.sort(np.array(front))


def best(objectives: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Indices of the `n` best points [m, 2] by non-domination, then by crowding distance, as NSGA-II survives."""
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    population = Population.new(F=objectives, index=np.arange(len(objectives)))
    survivors = RankAndCrowding().do(
        Problem(n_obj=2), population, n_survive=min(n, len(objectives)), random_state=np.random.default_rng(seed)
    )
    return np.sort(survivors.get("index").astype(int))
