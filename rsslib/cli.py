"""The command line: `python -m rsslib runs | reproduce | figures`; `--help` tells what each does."""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from rsslib import cluster, data
from rsslib.errors import InputError, choose
from rsslib.files import check_writable
from rsslib.machine import cores
from rsslib.runs import Run, RunsFailed, by_worth, complete, overview, plan
from rsslib.workers import worker_processes

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if something failed, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="python -m rsslib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("reproduce", "train the missing runs of the notebooks, then execute the notebooks and write their figures"),
        ("figures", "execute the notebooks on stored results, without training"),
        ("runs", "list the runs that the notebooks need: finished, running, interrupted or missing, and their cost"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--profile", default="smoke", help="scale: smoke, quick or paper (default: %(default)s)")
        command.add_argument("--notebooks", nargs="+", metavar="NAME", help="default: all, as 02_main_results")
        command.add_argument("--datasets", nargs="+", metavar="NAME", help="default: the profile's")
        command.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: 0")
        command.add_argument("--subnets-per-bucket", type=int, metavar="N", help="default: the profile's")
        command.add_argument("--data", default="data", help="folder with datasets (default: %(default)s)")
        command.add_argument("--results", default="data/results", help="results folder (default: %(default)s)")
        command.add_argument("--figures", default="figures", help="figures folder (default: %(default)s)")
        if name == "reproduce":
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: %(default)s)")
            command.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16 (default: %(default)s)")
            command.add_argument(
                "--jobs", type=int, metavar="N",
                help="runs at once (default: what a GPU has room for; on a CPU one per core, if memory allows; "
                "with Ray one per GPU, or per core)",
            )  # fmt: skip
            command.add_argument("--time-budget", metavar="25m", help="stop cleanly after this time, as 90s, 25m or 2h")
            command.add_argument("--rebuild", action="store_true", help="set aside what is refused, and train anew")
            command.add_argument("--engine", choices=("local", "ray"), default="local", help="who places the runs")
            command.add_argument("--address", help="a Ray cluster's, as host:port or auto")
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    jobs = options.pop("jobs", None)
    try:
        parameters = notebook_parameters(options)
        runs = {run.name: run for values in parameters.values() for run in notebook_runs(values)}
        for run in runs.values():
            if not Path(options["results"], run.profile.name, run.dataset).exists():
                data.check_name(run.dataset, options["data"])
        if command == "runs":
            print(overview(list(runs.values()), options["results"]).to_string(index=False))
            return 0
        check_writable(options["figures"], "figures")
        failed = train(list(runs.values()), options, jobs) if command == "reproduce" else []
        parameters = with_results(parameters, options["results"])
        if command == "figures" and not parameters:
            raise InputError(
                f"there is nothing to draw in {options['results']}: train with `python -m rsslib reproduce` first"
            )
        failed += execute(parameters, options) if parameters else []
    except InputError as error:
        print(f"rsslib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rsslib: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    for message in failed:
        print(f"rsslib: failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def train(runs: list[Run], options: dict, jobs: int | None) -> list[str]:
    """Train every missing run; returns a sentence for each that failed."""
    try:
        budget = None if options["time_budget"] is None else seconds(options["time_budget"])
        engine = complete
        if options["engine"] == "ray":
            engine = partial(cluster.complete, address=options["address"])
        elif options["address"]:
            raise InputError(f"address {options['address']!r} is a Ray cluster's: give --engine ray too")
        engine(
            by_worth(runs), options["results"], options["data"], options["device"], options["precision"], jobs, budget,
            rebuild=options["rebuild"],
        )  # fmt: skip
    except RunsFailed as error:
        return [f"{name}: {type(why).__name__}: {why}" for name, why in error.failures.items()]
    done = (overview(runs, options["results"])["status"] == "finished").sum()
    print(f"{done} of {len(runs)} runs are finished" + ("" if done == len(runs) else "; the same command goes on"))
    return []


def with_results(parameters: dict[Path, dict], results: str) -> dict[Path, dict]:
    """Those notebooks that need no runs or have a finished one; says which are left out."""
    result = {}
    for path, values in parameters.items():
        runs = notebook_runs(values)
        if not runs or "finished" in set(overview(runs, results)["status"]):
            result[path] = values
        else:
            print(f"{path.name} is left out: none of its runs is finished in {results}")
    return result


def seconds(text: str) -> float:
    """The seconds in a duration such as 90s, 25m or 2h."""
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if unit is None or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) or float(number) == 0:
        raise InputError(f"time budget is {text!r}: expected a number above 0 and a unit, as 90s, 25m or 2h")
    return float(number) * unit


def execute(parameters: dict[Path, dict], options: dict) -> list[str]:
    """Execute every notebook on the stored results, one a core; returns a sentence for each that failed."""
    failed = []
    folder = Path(options["figures"]) / options["profile"] / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    with worker_processes(min(len(parameters), cores())) as pool:
        futures = {pool.submit(execute_notebook, path, folder, values): path for path, values in parameters.items()}
        for future in as_completed(futures):
            path = futures[future]
            if error := future.exception():
                failed.append(f"{path.stem}: {error}")
            print(f"{path.name} {'failed' if error else 'done'}: {folder / path.name}", flush=True)
    return failed


def execute_notebook(path: Path, folder: Path, values: dict) -> None:
    """Execute one notebook with these parameters; the result, also of a failure, is a notebook in `folder`."""
    for name in {"data", "results", "figures"} & set(values):  # the kernel's working folder is the project's
        values[name] = str(Path(values[name]).resolve())
    try:
        papermill.execute_notebook(
            path, folder / path.name, values, cwd=NOTEBOOKS.parent, progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )  # fmt: skip
    except PapermillExecutionError as error:  # which does not survive the way to another process
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None


def notebook_parameters(options: dict) -> dict[Path, dict]:
    """The parameters of every chosen notebook: its own defaults, replaced by the options it knows."""
    paths = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    given = {name: value for name, value in options.items() if value is not None} | {"train": False}
    result = {}
    for name in options["notebooks"] or paths:
        path = paths[choose(name, paths, "notebook")]
        known = papermill.inspect_notebook(path)
        defaults = {name: ast.literal_eval(parameter["default"]) for name, parameter in known.items()}
        result[path] = {name: given.get(name, value) for name, value in defaults.items()}
    return result


def notebook_runs(values: dict) -> list[Run]:
    """The runs that a notebook with these parameters asks for; none if it names no methods."""
    if "methods" not in values:
        return []
    names = ("profile", "datasets", "methods", "backbone", "seeds", "subnets_per_bucket")
    return plan(**{name: values[name] for name in names if name in values})
