"""Command line: `python -m rsslib reproduce` trains what is missing and runs the notebooks, `figures` only redraws."""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError

from rsslib.errors import InputError, choose
from rsslib.runs import Run, complete, plan

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if something failed, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="python -m rsslib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("reproduce", "train the missing runs of the notebooks, then execute the notebooks and write their figures"),
        ("figures", "execute the notebooks on stored results, without training"),
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
    options = vars(parser.parse_args(arguments))
    train = options.pop("command") == "reproduce"
    try:
        return run_notebooks(options, train)
    except InputError as error:
        print(f"rsslib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rsslib: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def run_notebooks(options: dict, train: bool) -> int:
    """Train all runs that the notebooks need, each once, then execute every notebook; one that fails stops no other."""
    paths = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    chosen = [paths[choose(name, paths, "notebook")] for name in options.pop("notebooks") or paths]
    given = {name: value for name, value in options.items() if value is not None} | {"train": train}
    for folder in ("data", "results", "figures"):  # a notebook may be executed from another folder
        given[folder] = str(Path(given[folder]).resolve())
    parameters = {path: notebook_parameters(path, given) for path in chosen}
    runs: dict[str, Run] = {}
    for values in parameters.values():
        runs |= {run.name: run for run in notebook_runs(values)}
    if train:
        complete(list(runs.values()), given["results"], given["data"], given["device"])
    failed = []
    for path, values in parameters.items():
        output = Path(given["figures"]) / given["profile"] / "notebooks" / path.name
        output.parent.mkdir(parents=True, exist_ok=True)
        print(f"{path.name} -> {output}", flush=True)
        accepted = {name: value for name, value in given.items() if name in values}
        try:
            papermill.execute_notebook(path, output, accepted, cwd=NOTEBOOKS.parent, progress_bar=False)
        except PapermillExecutionError as error:
            failed.append(f"{path.stem}: {error.ename}: {error.evalue}")
    for message in failed:
        print(f"rsslib: failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def notebook_parameters(path: Path, given: dict) -> dict:
    """The values of a notebook's parameter cell, those in `given` in place of its own."""
    known = papermill.inspect_notebook(path)
    defaults = {name: ast.literal_eval(parameter["default"]) for name, parameter in known.items()}
    return defaults | {name: value for name, value in given.items() if name in defaults}


def notebook_runs(values: dict) -> list[Run]:
    """The runs that a notebook with these parameters asks for; none if it names no methods."""
    if "methods" not in values:
        return []
    names = ("profile", "datasets", "methods", "backbone", "seeds", "subnets_per_bucket")
    return plan(**{name: values[name] for name in names if name in values})


if __name__ == "__main__":
    sys.exit(main())
