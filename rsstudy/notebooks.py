"""The study's notebooks: what they load, the runs they need, and their execution without a browser."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rsslib.errors import InputError, choose
from rsslib.files import WEIGHTS, make_folder, project_folder
from rsstudy.plan import Folder, Run, Settings, on_hardest, output_folder, plan
from rsstudy.store import finished_of

if TYPE_CHECKING:  # pandas and PyTorch take seconds to import, and planning needs neither
    import pandas as pd

FIRST, LAST = "02_main_results", "09_claims"  # the last one looks at all figures
SMALLEST = "smoke"


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
    results: Folder = None,
    figures: Folder = None,
    data: Folder = None,
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
    if hardest:
        runs = on_hardest(runs)
    folder = output_folder(profile, figures, runs)
    settings = Settings(results, data, device, measure=Measurement(interference))
    if train:
        complete(runs, settings)
    runs = finished(with_all_seeds(runs, results), results)
    return Study(runs, populations(runs, results), times(runs, results), folder, settings)


@dataclass(frozen=True)
class Notebook:
    """A notebook with its parameters, the runs that it asks for by name, and the folder for its figures.

    If `stored`, its runs are not to be trained: it draws those that are there.
    """

    name: str
    values: dict[str, Any]
    runs: dict[str, Run]
    folder: Path
    stored: bool = False

    def lacks_weights(self) -> bool:
        """Whether it deploys a supernet whose weights are not here; the other notebooks need tables alone."""
        runs = self.runs.values() if "budget" in self.values else ()
        return not all((run.folder(self.values["results"]) / WEIGHTS).exists() for run in runs)


def find_notebooks(given: dict[str, Any], names: Sequence[str] | None = None) -> list[Notebook]:
    """Return the notebooks of these names, by default all, in the order in which to execute them.

    Their parameters are their own defaults, replaced by `given` ones; notebooks about the hardest dataset take the last
    of given ones. At `smoke`, which is too small for what some ask, those that have another profile by default keep it
    and draw from the stored results. Raises InputError for an unknown name and where there are no
    notebooks.
    """
    folder = project_folder() / "notebooks"
    paths = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not paths:
        raise InputError(f"there are no notebooks in {folder}: run this in a clone of the project, which has them")
    found = []
    for name in names or paths:
        values = _defaults(paths[choose(name, paths, "notebook")])
        hardest = values.get("datasets") == "hardest"
        stored = values["profile"] != SMALLEST == given.get("profile", SMALLEST)
        replaced = {"figures", "device", "train"} if stored else given.keys()
        values |= {key: given[key] for key in values.keys() & given.keys() & replaced}
        if hardest and "datasets" in given:
            values["datasets"] = given["datasets"][-1:]
        planned = {key: values[key] for key in signature(plan).parameters if key in values}
        runs = plan(**planned) if "methods" in values else []
        output = output_folder(values["profile"], given.get("figures"), runs)
        found.append(Notebook(name, values, {run.name: run for run in runs}, output, stored))
    return sorted(found, key=lambda notebook: (notebook.name != FIRST, notebook.name == LAST))


def _defaults(notebook: Path) -> dict[str, Any]:
    """Return the parameters of a notebook, as its cell with that tag sets them."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    values: dict[str, Any] = {}
    exec("".join(cell["source"]), {}, values)
    return values


class Execution:
    """Executes notebooks on stored results, each as soon as its runs are finished, at most one per core.

    `done` are the runs that have been reported as finished, by name. Call `close` at the end.
    """

    def __init__(self, notebooks: Sequence[Notebook]):
        from rsslib.device import cores  # here, since it imports PyTorch

        self.waiting = list(notebooks)
        self.pool = ThreadPoolExecutor(cores())
        self.done: dict[str, Run] = {}
        self.started: list[Future[str]] = []
        self.processes: list[subprocess.Popen] = []

    def finished(self, run: Run) -> None:
        """Start the notebooks that waited for this run alone; call it with each finished run."""
        self.done[run.name] = run
        for notebook in list(self.waiting):
            if notebook.runs and notebook.runs.keys() <= self.done.keys() and not notebook.lacks_weights():
                self._start(notebook)

    def rest(self) -> list[str]:
        """Execute the other notebooks on the runs that are there; returns a sentence for each that failed."""
        for notebook in list(self.waiting):
            if notebook.name == LAST:
                wait(self.started)
            done = {*self.done}
            if notebook.stored:
                done = {run.name for run in finished_of([*notebook.runs.values()], notebook.values["results"])}
            if notebook.runs and not notebook.runs.keys() & done:
                print(f"{notebook.name} is left out: none of its runs is finished")
            elif notebook.lacks_weights():
                print(f"{notebook.name} is left out: the weights of its runs are where they were trained")
            else:
                self._start(notebook)
        return [why for future in self.started if (why := future.result())]

    def close(self) -> None:
        """End the notebooks that are still executed, as after an interrupt."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            process.terminate()
        self.pool.shutdown()

    def _start(self, notebook: Notebook) -> None:
        self.waiting.remove(notebook)
        self.started.append(self.pool.submit(self._execute, notebook))

    def _execute(self, notebook: Notebook) -> str:
        """Execute a notebook in another process and print how it ended; the copy is also there if it failed.

        Returns why it failed, or an empty string.
        """
        output = make_folder(notebook.folder / "notebooks") / f"{notebook.name}.ipynb"
        command = [sys.executable, "-m", "rsstudy.notebooks", notebook.name, str(output), json.dumps(notebook.values)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        _, errors = process.communicate()
        tqdm.write(f"{notebook.name} {'failed' if process.returncode else 'done'}: {output}")
        why = errors.strip().split("\n")[-1] or process.returncode
        return f"{notebook.name}: {why}" if process.returncode else ""


def execute(name: str, output: str, values: dict[str, Any]) -> None:
    """Execute a notebook with these parameters and write the result to `output`.

    Folders in the project are written into it relative to the project, so it does not name the machine.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    project = project_folder()
    inside = f"{project}{os.sep}"
    values = {key: value.removeprefix(inside) if isinstance(value, str) else value for key, value in values.items()}
    path = project / "notebooks" / f"{name}.ipynb"
    try:
        papermill.execute_notebook(path, output, values, cwd=project, progress_bar=False)
    except PapermillExecutionError as error:
        sys.exit(f"{error.ename}: {' '.join(str(error.evalue).split())}")


if __name__ == "__main__":
    execute(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
