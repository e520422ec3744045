"""The study's notebooks: what they load, the runs that they need, and their execution without a browser."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from rsslib.errors import InputError, choose
from rsslib.files import WEIGHTS, make_folder, project_folder
from rsstudy.plan import Run, Settings, on_hardest, output_folder, plan

if TYPE_CHECKING:  # pandas and PyTorch take seconds to import, and planning needs neither
    import pandas as pd

FIRST, LAST = "02_main_results", "09_claims"  # the one to see before all others, and the one that looks at all figures


@dataclass(frozen=True)
class Study:
    """What a notebook draws from: finished runs, their populations and times, and the folder for its figures."""

    runs: list[Run]
    population: "pd.DataFrame"
    times: "pd.DataFrame"
    folder: Path
    settings: Settings


def load(
    profile: str,
    datasets: Sequence[str] | str | None = None,
    *,
    train: bool = True,
    hardest: bool = False,
    interference: Sequence[str] = (),
    results: str | Path | None = None,
    figures: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    **planned: Any,
) -> Study:
    """Plan runs, train what is missing if `train`, and read the finished ones of every seed.

    `planned` are further arguments of `plan.plan`. `hardest` takes the last of the datasets alone; `interference` names
    methods whose training is measured (see `rsstudy.measurement`). Raises InputError if nothing is finished.
    """
    from rsstudy.engine import complete
    from rsstudy.measurement import Measurement
    from rsstudy.tables import finished, populations, times, with_all_seeds

    runs = plan(profile, datasets, data=data, **planned)
    runs = on_hardest(runs) if hardest else runs
    folder = output_folder(profile, figures, runs)
    settings = Settings(results, data, device, measure=Measurement(interference) if interference else None)
    if train:
        complete(runs, settings)
    runs = finished(with_all_seeds(runs, results), results)
    return Study(runs, populations(runs, results), times(runs, results), folder, settings)


def notebook_parameters(given: dict, names: list[str] | None = None) -> dict[str, dict]:
    """The parameters of the notebooks of these names, by default all: their own defaults, replaced by `given` ones.

    In the order in which they are wanted. Notebooks that look at the hardest dataset by default take the last of given
    ones. Raises InputError for an unknown name and where there are no notebooks.
    """
    folder = project_folder() / "notebooks"
    paths = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not paths:
        raise InputError(f"there are no notebooks in {folder}: run this in a clone of the project, which has them")
    chosen = [choose(name, paths, "notebook") for name in names or paths]
    chosen.sort(key=lambda name: (name != FIRST, name == LAST))
    defaults = {name: _defaults(paths[name]) for name in chosen}
    last = given | {"datasets": given["datasets"][-1:]} if "datasets" in given else given
    return {
        name: {key: (last if value == "hardest" else given).get(key, value) for key, value in own.items()}
        for name, own in defaults.items()
    }


def _defaults(notebook: Path) -> dict:
    """The parameters of a notebook, as its cell with that tag sets them."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in nodes}


def notebook_runs(values: dict) -> list[Run]:
    """The runs that a notebook with these parameters asks for; none if it names no methods."""
    if "methods" not in values:
        return []
    names = ("profile", "datasets", "methods", "backbone", "seeds", "subnets_per_bucket", "resolution", "data")
    return plan(**{name: values[name] for name in names if name in values})


class Execution:
    """Executes notebooks on stored results, each as soon as its runs are finished, at most one per core.

    A context. `parameters` are those of `notebook_parameters`; executed copies, also of notebooks that failed, go to
    the folder `notebooks` beside the figures, which are below `figures`.
    """

    def __init__(self, parameters: dict[str, dict], figures: str | Path | None = None):
        self.parameters = parameters
        self.runs = {name: notebook_runs(values) for name, values in parameters.items()}
        self.folders = {
            name: output_folder(values["profile"], figures, self.runs[name]) for name, values in parameters.items()
        }
        self.done: list[Run] = []
        self.started: dict[str, Future] = {}
        self.failures: list[str] = []
        self.processes: set[subprocess.Popen] = set()

    def __enter__(self) -> "Execution":
        from rsslib.device import cores  # here, since it imports PyTorch

        self.pool = ThreadPoolExecutor(max(1, min(len(self.parameters), cores())))
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:  # after an interrupt; else all have ended
            process.terminate()
        self.pool.shutdown()

    def finished(self, run: Run) -> None:
        """Call with each finished run; starts the notebooks that waited for it alone."""
        self.done.append(run)
        there = {run.name for run in self.done}
        for name, runs in self.runs.items():
            if run in runs and {run.name for run in runs} <= there and self._has_weights(name):
                self._start(name)

    def rest(self) -> list[str]:
        """Execute the other notebooks on the runs that are there; returns a sentence for each notebook that failed."""
        there = {run.name for run in self.done}
        for name, runs in self.runs.items():
            if name in self.started or name == LAST:
                continue
            if runs and not there & {run.name for run in runs}:
                print(f"{name} is left out: none of its runs is finished")
            elif not self._has_weights(name):
                print(f"{name} is left out: it needs the weights of its runs, which are where they were trained")
            else:
                self._start(name)
        wait(self.started.values())
        if LAST in self.parameters:  # which looks at all figures
            self._start(LAST)
            wait([self.started[LAST]])
        return self.failures

    def _has_weights(self, name: str) -> bool:
        """Whether the weights are there for a notebook that deploys a supernet; others need tables alone."""
        values, runs = self.parameters[name], self.runs[name]
        return "budget" not in values or all((run.folder(values["results"]) / WEIGHTS).exists() for run in runs)

    def _start(self, name: str) -> None:
        if name not in self.started:
            self.started[name] = self.pool.submit(self._execute, name)

    def _execute(self, name: str) -> None:
        """Execute a notebook and print how it ended."""
        output = make_folder(self.folders[name] / "notebooks") / f"{name}.ipynb"
        why = execute_apart(project_folder() / "notebooks" / output.name, output, self.parameters[name], self.processes)
        if why:
            self.failures.append(f"{name}: {why}")
        tqdm.write(f"{name} {'failed' if why else 'done'}: {output}")
        if name == FIRST and not why:
            tqdm.write(f"the main figure: {self.folders[name] / 'figure_3.png'}")


def execute_apart(path: Path, output: Path, values: dict, processes: set[subprocess.Popen]) -> str:
    """`execute` in a process of its own, one of `processes` until it ends; returns why it failed, or nothing."""
    command = [sys.executable, "-m", "rsstudy.notebooks", str(path), str(output), json.dumps(values)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    processes.add(process)
    said = process.communicate()[1].strip().splitlines()
    processes.discard(process)
    return (said or [f"exit status {process.returncode}"])[-1] if process.returncode else ""


def execute(path: Path, output: Path, values: dict) -> None:
    """Execute one notebook with these parameters; the result, also of a failure, is the notebook `output`.

    Folders in the project are written into it relative to the project, so it does not name the machine.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    inside = str(project_folder()) + os.sep
    values = {key: value.removeprefix(inside) if isinstance(value, str) else value for key, value in values.items()}
    quiet = ["--IPKernelApp.log_level=50"]
    try:
        papermill.execute_notebook(
            path, output, values, cwd=project_folder(), progress_bar=False, extra_arguments=quiet
        )
    except PapermillExecutionError as error:
        sys.exit(f"{error.ename}: {' '.join(str(error.evalue).split())}")


if __name__ == "__main__":
    execute(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
