"""The study's notebooks: their parameters, the runs that they need, and their execution without a browser."""

import ast
import json
import os
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from rsslib.errors import InputError, choose
from rsslib.files import WEIGHTS, make_folder, project_folder
from rsstudy.plan import Run, output_folder, plan
from rsstudy.workers import worker_processes

FIRST, LAST = "02_main_results", "09_claims"  # the one to see before all others, and the one that looks at all figures


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


class Execution(ExitStack):
    """Executes notebooks on stored results, each as soon as the runs that it needs are finished, one a core at most.

    A context. `parameters` are those of `notebook_parameters`; executed copies, also of what failed, go to the folder
    `notebooks` beside the figures, which are below `figures`.
    """

    def __init__(self, parameters: dict[str, dict], figures: str | Path | None = None):
        super().__init__()
        self.parameters, self.figures = parameters, figures
        self.runs = {name: notebook_runs(values) for name, values in parameters.items()}
        self.missing = {name: {run.name for run in runs} for name, runs in self.runs.items()}
        self.done: list[Run] = []
        self.under_way: dict[str, Future] = {}
        self.failures: list[str] = []
        for name in parameters:  # can it be?
            self._folder(name)
        self._pool: ProcessPoolExecutor | None = None

    def finished(self, run: Run) -> None:
        """To be told of each finished run; starts the notebooks that have waited for it alone."""
        self.done.append(run)
        for name, missing in self.missing.items():
            if run.name in missing:
                missing.discard(run.name)
                if not missing and self._weights(name):
                    self._start(name)

    def rest(self) -> list[str]:
        """Execute what is left, on the runs that are there; returns a sentence for each notebook that failed."""
        there = {run.name for run in self.done}
        for name, runs in self.runs.items():
            if name in self.under_way or name == LAST:
                continue
            if runs and not there & {run.name for run in runs}:
                print(f"{name} is left out: none of its runs is finished")
            elif not self._weights(name):
                print(f"{name} is left out: it needs the weights of its runs, which are where they were trained")
            else:
                self._start(name)
        wait(self.under_way.values())
        if LAST in self.parameters:
            self._start(LAST)
            wait([self.under_way[LAST]])
        self.close()  # after which all callbacks have been called
        return self.failures

    def _weights(self, name: str) -> bool:
        """Whether the weights are there for a notebook that takes a supernet further; others need tables alone."""
        values, runs = self.parameters[name], self.runs[name]
        return "budget" not in values or all((run.folder(values["results"]) / WEIGHTS).exists() for run in runs)

    def _start(self, name: str) -> None:
        from rsslib.device import cores  # here, since it imports PyTorch

        if self._pool is None:
            self._pool = self.enter_context(worker_processes(min(len(self.parameters), cores())))
        path, folder = project_folder() / "notebooks" / f"{name}.ipynb", make_folder(self._folder(name) / "notebooks")
        future = self._pool.submit(_execute, path, folder / path.name, self.parameters[name])
        self.under_way[name] = Future()  # done once it was told: who waits for a future does not wait for its callbacks
        future.add_done_callback(partial(self._ended, name))

    def _folder(self, name: str) -> Path:
        return output_folder(self.parameters[name]["profile"], self.figures, self.runs[name])

    def _ended(self, name: str, future: Future) -> None:
        try:
            self._tell(name, future)
        finally:
            self.under_way[name].set_result(None)

    def _tell(self, name: str, future: Future) -> None:
        """Say of a notebook that has ended how it did."""
        if future.cancelled():
            return
        error, folder = future.exception(), self._folder(name)
        if error:
            self.failures.append(f"{name}: {error}")
        tqdm.write(f"{name} {'failed' if error else 'done'}: {folder / 'notebooks' / name}.ipynb")
        if name == FIRST and not error:
            tqdm.write(f"the main figure: {folder / 'figure_3.png'}")


def _execute(path: Path, output: Path, values: dict) -> None:
    """Execute one notebook with these parameters; the result, also of a failure, is the notebook `output`.

    Folders in the project are written into it relative to that, so that it tells of no machine.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    inside = str(project_folder()) + os.sep
    values = {key: value.removeprefix(inside) if isinstance(value, str) else value for key, value in values.items()}
    try:
        papermill.execute_notebook(
            path, output, values, cwd=project_folder(), progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )  # fmt: skip
    except PapermillExecutionError as error:  # which does not survive the way to another process
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None
