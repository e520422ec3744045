"""The command line: `rsslib runs | reproduce | figures | search | export | predict`; `--help` tells what each does.

What is typed is checked before PyTorch and papermill are imported, which takes seconds.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

from rsslib.campaign.runs import Run, by_worth, plan
from rsslib.campaign.settings import Settings
from rsslib.data.readers import check_name
from rsslib.errors import InputError, choose
from rsslib.files import check_writable, project_folder
from rsslib.space import RESOLUTION


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if something failed, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="rsslib", description=__doc__)
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
        command.add_argument("--data", metavar="FOLDER", help="with datasets (default: the project's data)")
        command.add_argument("--results", metavar="FOLDER", help="with runs (default: the project's data/results)")
        command.add_argument("--figures", metavar="FOLDER", help="for figures (default: the project's figures)")
        if name == "reproduce":
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: %(default)s)")
            command.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16 (default: %(default)s)")
            command.add_argument(
                "--jobs", type=int, metavar="N",
                help="runs at once (default: what a GPU has room for; on a CPU one per core, if memory allows; "
                "with Ray one per GPU, or per core)",
            )  # fmt: skip
            command.add_argument("--threads", type=int, default=1, metavar="N", help="of a run on a CPU (default: 1)")
            command.add_argument("--time-budget", metavar="25m", help="stop cleanly after this time, as 90s, 25m or 2h")
            command.add_argument("--rebuild", action="store_true", help="set aside what is refused, and train anew")
            command.add_argument("--engine", choices=("local", "ray"), default="local", help="who places the runs")
            command.add_argument("--address", help="a Ray cluster's, as host:port or auto")
    add_products(commands)
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        return options.pop("work")(options) if "work" in options else run_command(command, options)
    except InputError as error:
        print(f"rsslib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rsslib: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def add_products(commands) -> None:
    """The commands that take a supernet to an application: search, export, predict."""
    for name, work, text in (
        ("search", search_run, "the best subnets of a finished run under a budget, as a table and a CSV file"),
        ("export", export_run, "write a subnet of a finished run as an ONNX file, verified on real images"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--profile", default="smoke", help="of the run (default: %(default)s)")
        command.add_argument("--dataset", metavar="NAME", help="of the run (default: the profile's last)")
        command.add_argument("--method", default="rss", help="of the run (default: %(default)s)")
        command.add_argument("--backbone", default="mobilenet_v3", help="of the run (default: %(default)s)")
        command.add_argument("--resolution", type=int, default=RESOLUTION, help="of the run (default: %(default)s)")
        command.add_argument("--seed", type=int, default=0, help="of the run, and of a search (default: %(default)s)")
        command.add_argument("--data", metavar="FOLDER", help="with datasets (default: the project's data)")
        command.add_argument("--results", metavar="FOLDER", help="with runs (default: the project's data/results)")
        command.add_argument("--mflops", type=float, help="at most so many million multiply-accumulates")
        command.add_argument("--parameters", type=float, help="at most so many")
        command.add_argument("--latency-ms", type=float, help="at most so long for an image on one thread")
        if name == "search":
            command.add_argument("--evaluations", type=int, default=200, help="subnets to try (default: %(default)s)")
            command.add_argument("--candidates", metavar="FOLDER", help="for scores, to go on with a stopped search")
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: %(default)s)")
            command.add_argument("--output", default="front.csv", metavar="FILE", help="(default: %(default)s)")
        else:
            command.add_argument("--front", metavar="FILE", help="a search's table, whose most accurate subnet within "
                                 "the budget is exported (default: the middle subnet)")  # fmt: skip
            command.add_argument("--output", default="model.onnx", metavar="FILE", help="(default: %(default)s)")
        command.set_defaults(work=work)
    text = "name the class of image files with an exported model; needs onnxruntime, not PyTorch"
    command = commands.add_parser("predict", help=text, description=text)
    command.add_argument("model", help="a file that `rsslib export` wrote")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image files of any size")
    command.set_defaults(work=predict_images)


def finished_run(options: dict) -> tuple[Run, Settings]:
    """The run that the options name and the settings to load it with; says if it has yet to be trained."""
    datasets = [options["dataset"]] if options["dataset"] else "hardest"
    (run,) = plan(
        options["profile"], datasets, [options["method"]], options["backbone"], [options["seed"]],
        resolution=options["resolution"],
    )  # fmt: skip
    settings = Settings(options["results"], options["data"], options.get("device", "cpu"))
    check_writable(Path(options["output"]).parent, "the output's folder")
    return run, settings


def budget_of(options: dict) -> dict[str, float]:
    names = ("mflops", "parameters", "latency_ms")
    return {name: options[name] for name in names if options[name] is not None}


def search_run(options: dict) -> int:
    run, settings = finished_run(options)
    from rsslib.campaign import trained_supernet
    from rsslib.files import write_csv
    from rsslib.searching import search

    supernet, images = trained_supernet(run, settings)
    table = search(
        supernet, images, budget_of(options), evaluations=options["evaluations"], seed=options["seed"],
        folder=options["candidates"],
    )  # fmt: skip
    path = Path(options["output"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, table)
    print(table.drop(columns=["kernel", "expand", "depth"]).round(2).to_string(index=False))
    print(f"{table.attrs['evaluations']} subnets of {run.name} tried in {table.attrs['seconds']:.0f} s: {path}")
    return 0


def export_run(options: dict) -> int:
    run, settings = finished_run(options)
    import pandas as pd

    from rsslib.campaign import trained_supernet
    from rsslib.exporting import export
    from rsslib.searching import chosen

    arch = None
    if options["front"]:
        try:
            arch = chosen(pd.read_csv(options["front"]), **budget_of(options))
        except (OSError, KeyError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise InputError(f"{options['front']} is not a table that `rsslib search` wrote ({error})") from None
    elif budget_of(options):
        raise InputError("a budget chooses from the table of a search: give it as --front, made by `rsslib search`")
    supernet, images = trained_supernet(run, settings)
    words = export(supernet, arch or supernet.space.middle, images, options["output"])
    print(
        f"{options['output']}: {words['mflops']:.2f} MFLOPs, {words['parameters']:,} parameters, "
        f"{words['accuracy']:.2f} % of {words['test_images']:,} test images; verified on {words['checked_images']} "
        f"images, largest difference {words['difference']:.0e} of the largest logit"
    )
    return 0


def predict_images(options: dict) -> int:
    from rsslib.predicting import predict

    for prediction in predict(options["model"], options["images"]):
        print(f"{prediction.path}: {prediction.label} ({100 * prediction.probability:.1f} %)")
    return 0


def run_command(command: str, options: dict) -> int:
    """Do what was asked for; returns the exit status 0, or 1 if something failed."""
    for folder in ("data", "results", "figures"):
        options[folder] = str(options[folder] or project_folder() / ("data/results" if folder == "results" else folder))
    parameters = notebook_parameters(options)
    runs = {run.name: run for values in parameters.values() for run in notebook_runs(values)}
    for run in runs.values():
        if not Path(options["results"], run.profile.name, run.dataset).exists():
            check_name(run.dataset, options["data"])
    settings = settings_of(options)
    check_writable(options["results"], "results")
    if command == "runs":
        from rsslib.campaign.record import overview

        print(overview(list(runs.values()), options["results"]).to_string(index=False))
        return 0
    check_writable(options["figures"], "figures")
    failed = train_runs(list(runs.values()), settings, options) if command == "reproduce" else []
    parameters = with_results(parameters, options["results"])
    if command == "figures" and not parameters:
        raise InputError(f"there is nothing to draw in {options['results']}: train with `rsslib reproduce` first")
    failed += execute(parameters, options) if parameters else []
    for message in failed:
        print(f"rsslib: failed: {message}", file=sys.stderr)
    return 1 if failed else 0


def settings_of(options: dict) -> Settings:
    """The settings that were typed, checked."""
    names = ("results", "data", "device", "precision", "jobs", "threads", "rebuild")
    budget = options.get("time_budget")
    if options.get("address") and options["engine"] != "ray":
        raise InputError(f"address {options['address']!r} is a Ray cluster's: give --engine ray too")
    given = {name: options[name] for name in names if name in options}
    return Settings(**given, time_budget=None if budget is None else seconds(budget))


def train_runs(runs: list[Run], settings: Settings, options: dict) -> list[str]:
    """Train every missing run; returns a sentence for each that failed."""
    from rsslib.campaign import RunsFailed, complete, overview

    try:
        if options["engine"] == "ray":
            from rsslib.campaign.ray import complete_with_ray

            complete_with_ray(by_worth(runs), settings, options["address"])
        else:
            complete(by_worth(runs), settings)
    except RunsFailed as error:
        return [f"{name}: {type(why).__name__}: {why}" for name, why in error.failures.items()]
    done = (overview(runs, settings.results)["status"] == "finished").sum()
    print(f"{done} of {len(runs)} runs are finished" + ("" if done == len(runs) else "; the same command goes on"))
    return []


def with_results(parameters: dict[Path, dict], results: str) -> dict[Path, dict]:
    """Those notebooks that need no runs or have a finished one; says which are left out."""
    from rsslib.campaign.record import WEIGHTS, overview

    result = {}
    for path, values in parameters.items():
        runs = notebook_runs(values)
        weights = [run.folder(results) / WEIGHTS for run in runs]
        if "budget" in values and not any(path.exists() for path in weights):  # it goes on with a supernet
            print(f"{path.name} is left out: the weights of its runs are not in {results}: train them here")
        elif not runs or "finished" in set(overview(runs, results)["status"]):
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
    from rsslib.campaign.workers import worker_processes
    from rsslib.machine import cores

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
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            path, folder / path.name, values, cwd=project_folder(), progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )  # fmt: skip
    except PapermillExecutionError as error:  # which does not survive the way to another process
        raise RuntimeError(f"{error.ename}: {error.evalue}") from None


def notebook_parameters(options: dict) -> dict[Path, dict]:
    """The parameters of every chosen notebook: its own defaults, replaced by the options it knows."""
    notebooks = project_folder() / "notebooks"
    paths = {path.stem: path for path in sorted(notebooks.glob("*.ipynb"))}
    if not paths:
        raise InputError(f"there are no notebooks in {notebooks}: run this in a clone of the project, which has them")
    given = {name: value for name, value in options.items() if value is not None} | {"train": False}
    for name in ("data", "results", "figures"):  # the kernel's working folder is another
        given[name] = str(Path(given[name]).resolve())
    result = {}
    for name in options["notebooks"] or paths:
        path = paths[choose(name, paths, "notebook")]
        result[path] = {name: given.get(name, value) for name, value in defaults_of(path).items()}
    return result


def defaults_of(notebook: Path) -> dict:
    """The parameters of a notebook, as its cell with that tag sets them."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


def notebook_runs(values: dict) -> list[Run]:
    """The runs that a notebook with these parameters asks for; none if it names no methods."""
    if "methods" not in values:
        return []
    names = ("profile", "datasets", "methods", "backbone", "seeds", "subnets_per_bucket")
    return plan(**{name: values[name] for name in names if name in values})
