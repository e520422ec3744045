"""The command line: `rsslib run | runs | reproduce | figures | search | export | predict`; `--help` tells each.

Options are checked before PyTorch and papermill are imported, which takes seconds: what needs them is imported where it
is used.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rsslib
from rsslib.data.readers import check_name, training_images
from rsslib.errors import InputError, choose, one_line
from rsslib.files import (
    check_folder,
    check_output,
    check_writable,
    make_folder,
    project_folder,
    system_errors,
    write_csv,
)
from rsslib.progress import in_words
from rsslib.space import RESOLUTION
from rsstudy.notebooks import LAST, Execution, notebook_parameters, notebook_runs
from rsstudy.plan import OVERRIDABLE, PROFILES, Run, Settings, by_worth, epochs_rule, output_folder, plan, scaled
from rsstudy.store import finished_of, overview, overview_words

if TYPE_CHECKING:
    from rsslib.data.dataset import Dataset
    from rsslib.supernet import SuperNet
    from rsstudy.engine import RunsFailed

FOLDERS = ("data", "results", "figures")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if something failed, 2 for a mistake in the input."""
    options = vars(parser().parse_args(arguments))
    try:
        for folder in options.keys() & set(FOLDERS):
            if options[folder] is None:
                options[folder] = str(project_folder() / {"results": "data/results"}.get(folder, folder))
            (check_writable if folder == "figures" else check_folder)(options[folder], folder)
        with system_errors():
            return options.pop("work")(options)
    except InputError as error:
        print(f"rsslib: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    result = argparse.ArgumentParser(prog="rsslib", description=__doc__)
    commands = result.add_subparsers(required=True)
    for name, (work, text) in {
        "run": (run_one, "train and evaluate one method on one dataset, and print what came of it"),
        "runs": (list_runs, "list the runs that the notebooks need: which are finished, and what time is left"),
        "reproduce": (reproduce, "train the notebooks' missing runs, execute the notebooks and write their figures"),
        "figures": (figures, "execute the notebooks on stored results, without training"),
        "search": (search_run, "the best subnets of a finished run under a budget, as a table and a CSV file"),
        "export": (export_run, "write a subnet of a finished run as an ONNX file, verified on real images"),
        "predict": (predict_images, "name the class of image files with an exported model; needs onnxruntime, not "
                    "PyTorch"),
    }.items():  # fmt: skip
        command = commands.add_parser(name, help=text, description=text)
        if name in ("run", "search", "export"):
            add_run(command, "rss-short" if name == "run" else "rss")
        elif name != "predict":
            add_study(command)
        if name in ("run", "reproduce"):
            add_training(command)
        if name == "reproduce":
            command.add_argument(
                "--jobs", type=int, metavar="N",
                help="runs at once (default: what a GPU has room for; on a CPU one per core, if memory allows; "
                "with Ray one per GPU, or per core)",
            )  # fmt: skip
            command.add_argument("--engine", choices=("local", "ray"), default="local", help="who places the runs")
            command.add_argument("--address", help="a Ray cluster's, as host:port or auto")
        if name in ("search", "export"):
            for option, most in (
                ("mflops", "at most so many million multiply-accumulates"), ("parameters", "at most so many"),
                ("latency-ms", "at most so long for an image on one thread"),
            ):  # fmt: skip
                command.add_argument(f"--{option}", type=float, metavar="N", help=most)
        if name == "search":
            command.add_argument("--evaluations", type=int, default=200, help="subnets to try (default: %(default)s)")
            command.add_argument("--candidates", metavar="FOLDER", help="for scores, to go on with a stopped search")
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: %(default)s)")
            command.add_argument("--output", default="front.csv", metavar="FILE", help="(default: %(default)s)")
        if name == "export":
            command.add_argument("--front", metavar="FILE", help="a search's table, whose most accurate subnet within "
                                 "the budget is exported (default: the middle subnet)")  # fmt: skip
            command.add_argument("--output", default="model.onnx", metavar="FILE", help="(default: %(default)s)")
            command.set_defaults(device="cpu")
        if name == "predict":
            command.add_argument("model", help="a file that `rsslib export` wrote")
            command.add_argument("images", nargs="+", metavar="IMAGE", help="image files of up to 25 million pixels")
        command.set_defaults(work=work)
    return result


def add_run(command: argparse.ArgumentParser, method: str) -> None:
    """What names one run, by default of this method; `run_of` reads it."""
    command.add_argument("--profile", default="smoke", help="scale: smoke, quick or paper (default: %(default)s)")
    command.add_argument("--dataset", metavar="NAME", help="default: the profile's hardest")
    command.add_argument("--method", default=method, metavar="NAME", help="default: %(default)s")
    command.add_argument("--backbone", default="mobilenet_v3", help="or proxylessnas (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    words = "of the images, in pixels: 32 to 224 in steps of 32 (default: %(default)s)"
    command.add_argument("--resolution", type=int, default=RESOLUTION, metavar="N", help=words)
    for option, what in OVERRIDABLE.items():
        kind = float if option == "learning_rate_scale" else int
        words = f"{what} (default: the profile's)"
        command.add_argument(f"--{option.replace('_', '-')}", type=kind, metavar="N", help=words)
    add_folders(command)


def add_study(command: argparse.ArgumentParser) -> None:
    """What names the runs of notebooks; `parameters_of` reads it."""
    command.add_argument("--profile", default="smoke", help="scale: smoke, quick or paper (default: %(default)s)")
    command.add_argument("--notebooks", nargs="+", metavar="NAME", help="default: all, as 02_main_results")
    command.add_argument("--datasets", nargs="+", metavar="NAME",
                         help="the hardest last, which is all that some look at (default: the profile's)")  # fmt: skip
    command.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: 0")
    command.add_argument("--subnets-per-bucket", type=int, metavar="N", help="default: the profile's")
    add_folders(command)
    command.add_argument("--figures", metavar="FOLDER", help="for figures (default: the project's figures)")


def add_folders(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", metavar="FOLDER", help="with datasets (default: the project's data)")
    command.add_argument("--results", metavar="FOLDER", help="with runs (default: the project's data/results)")


def add_training(command: argparse.ArgumentParser) -> None:
    """How runs are trained; `settings_of` reads it."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: %(default)s)")
    command.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16 (default: %(default)s)")
    command.add_argument("--threads", type=int, default=1, metavar="N", help="of a run on a CPU (default: 1)")
    command.add_argument("--time-budget", metavar="25m", help="stop cleanly after this time, as 90s, 25m or 2h")
    command.add_argument("--rebuild", action="store_true", help="set aside what is refused, and train anew")
    command.add_argument(
        "--no-graphs", dest="graphs", action="store_false", default=None,
        help="take the steps on CUDA one by one, should capturing them as graphs fail",
    )  # fmt: skip


def settings_of(options: dict) -> Settings:
    """The settings that were typed, checked."""
    names = ("results", "data", "device", "precision", "jobs", "threads", "rebuild", "graphs")
    budget = options.get("time_budget")
    if options.get("address") and options["engine"] != "ray":
        raise InputError(f"address {options['address']!r} is a Ray cluster's: give --engine ray too")
    given = {name: options[name] for name in names if name in options}
    return Settings(**given, time_budget=None if budget is None else seconds(budget))


def seconds(text: str) -> float:
    """The seconds in a duration such as 90s, 25m or 2h."""
    number, unit = text[:-1], {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if unit is None or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) or float(number) == 0:
        raise InputError(f"time budget is {text!r}: expected a number above 0 and a unit, as 90s, 25m or 2h")
    return float(number) * unit


# --- one run ----------------------------------------------------------------------------------------------------------


def run_of(options: dict) -> Run:
    """The run that was named, at the scale of its profile with what was changed of it."""
    known = PROFILES[choose(options["profile"], PROFILES, "profile")]
    changed = {name: options[name] for name in OVERRIDABLE if options[name] is not None}
    dataset = known.datasets[-1] if options["dataset"] is None else options["dataset"]
    (run,) = plan(
        scaled(known.fitted(dataset, options["data"]), **changed), [dataset], [options["method"]], options["backbone"],
        [options["seed"]], resolution=options["resolution"], data=options["data"],
    )  # fmt: skip
    return run


def run_one(options: dict) -> int:
    """Train and evaluate one run, print its population's accuracies and where the rest is."""
    run = run_of(options)
    profile, dataset, known = run.profile, run.dataset, PROFILES[options["profile"]]
    check_name(dataset, options["data"])
    settings = settings_of(options)
    if known.fitted(dataset, options["data"]) != known:
        (s, ps), own = profile.epochs(dataset), training_images(dataset, options["data"])
        print(f"{dataset} has {own:,} training images: {s} + {ps} epochs ({epochs_rule(known)})")

    from rsstudy.engine import RunsFailed, complete
    from rsstudy.tables import populations, times

    try:
        complete([run], settings)
    except RunsFailed as error:
        (why,) = error.failures.values()
        if isinstance(why, InputError):
            raise why from None
        return closing_words([], {}, options, reasons(error))
    folder = run.folder(settings.results)
    if overview([run], settings.results)["status"].item() != "finished":
        print(f"{run.name} is not finished yet: the same command goes on")
        return 0
    accuracy = populations([run], settings.results).groupby("bucket")["accuracy"]
    table = accuracy.agg(["median", "min", "max", "count"]).reset_index()
    table.columns = ["MFLOPs", "median accuracy (%)", "worst", "best", "subnets"]
    print(f"\n{run.label} at profile {profile.name}: {profile.describe(dataset)}\n")
    print(table.to_string(index=False, float_format="{:.4g}".format), end="\n\n")
    took = times([run], settings.results)["training_seconds"].item()
    print(f"trained in {in_words(took)}; weights, tables and the record are in {folder}")
    return 0


# --- the study --------------------------------------------------------------------------------------------------------


def list_runs(options: dict) -> int:
    """Print what is there of the runs that the notebooks need."""
    runs = runs_of(parameters_of(options), options)
    print(overview_words(overview(runs, options["results"])))
    return 0


def reproduce(options: dict) -> int:
    """Train the runs of the notebooks that are missing, in the notebooks' order, and execute each notebook as soon as
    its runs are there; returns 1 if something failed."""
    parameters, settings = parameters_of(options), settings_of(options)
    runs = runs_of(parameters, options)

    from rsstudy.engine import RunsFailed, complete
    from rsstudy.measurement import Measurement

    measured = {method for values in parameters.values() for method in values.get("interference", ())}
    settings = replace(settings, measure=Measurement(tuple(sorted(measured))) if measured else None)
    failed = []
    with Execution(parameters, options["figures"]) as notebooks:
        try:
            if options["engine"] == "ray":
                from rsstudy.cluster import complete_with_ray

                complete_with_ray(runs, settings, options["address"], notebooks.finished)
            else:
                complete(runs, settings, notebooks.finished)
        except RunsFailed as error:
            failed = reasons(error)
        print(f"{len(notebooks.done)} of {len(runs)} runs are finished", end="")
        print("" if len(notebooks.done) == len(runs) else "; the same command goes on")
        failed += notebooks.rest()
    return closing_words(notebooks.done, parameters, options, failed)


def figures(options: dict) -> int:
    """Execute the notebooks on the runs that are there; returns 1 if something failed."""
    parameters = parameters_of(options)
    runs = runs_of(parameters, options)
    with Execution(parameters, options["figures"]) as notebooks:
        for run in finished_of(runs, options["results"]):
            notebooks.finished(run)
        if runs and not notebooks.done:
            raise InputError(f"there is nothing to draw in {options['results']}: train with `rsslib reproduce` first")
        failed = notebooks.rest()
    return closing_words(notebooks.done, parameters, options, failed)


def reasons(error: "RunsFailed") -> list[str]:
    return [f"{name}: {type(why).__name__}: {why}" for name, why in error.failures.items()]


def closing_words(done: list[Run], parameters: dict[str, dict], options: dict, failed: list[str]) -> int:
    """Say what failed, where the figures are, what they show in three numbers, and what to do next; the exit status."""
    for message in failed:
        print(f"rsslib: failed: {message}", file=sys.stderr)
    if not done:
        return 1 if failed else 0

    from rsstudy.summary import headline
    from rsstudy.tables import populations, times

    main = [run for run in done if run.backbone == "mobilenet_v3"]
    main = [run for run in main if run.dataset == main[0].dataset]
    tables = (read(main, options["results"]) for read in (populations, times))
    for line in headline(*tables) if main else ():
        print(line)
    folder = output_folder(options["profile"], options["figures"], done)
    print(f"figures: {folder}; verdicts: {folder / 'claims.md'}" if LAST in parameters else f"figures: {folder}")
    larger = {"smoke": "quick", "quick": "paper"}.get(options["profile"])
    print(f"next: `make lab` to explore them{f', `make reproduce PROFILE={larger}` for more' if larger else ''}")
    return 1 if failed else 0


def parameters_of(options: dict) -> dict[str, dict]:
    """The parameters of the notebooks that were asked for."""
    given = {name: value for name, value in options.items() if value is not None} | {"train": False}
    for name in FOLDERS:  # the kernel's working folder is another
        given[name] = str(Path(given[name]).resolve())
    return notebook_parameters(given, options["notebooks"])


def runs_of(parameters: dict[str, dict], options: dict) -> list[Run]:
    """The runs that the notebooks need, each once, in the notebooks' order; with a time budget in that of worth."""
    runs = {run.name: run for values in parameters.values() for run in notebook_runs(values)}
    for run in runs.values():
        if not Path(options["results"], run.profile.name, run.dataset).exists():
            check_name(run.dataset, options["data"])
    return by_worth(list(runs.values())) if options.get("time_budget") else list(runs.values())


# --- to an application ------------------------------------------------------------------------------------------------


def trained_of(options: dict) -> "tuple[Run, SuperNet, Dataset]":
    """The run that was named, which must be finished, with its supernet and images."""
    from rsstudy.engine import trained_supernet

    run, settings, output = run_of(options), settings_of(options), Path(options["output"])
    check_output(output, "the output's folder")
    return run, *trained_supernet(run, settings)


def budget_of(options: dict) -> dict[str, float]:
    names = ("mflops", "parameters", "latency_ms")
    return {name: options[name] for name in names if options[name] is not None}


def search_run(options: dict) -> int:
    """Print a search's front and write it as a table."""
    run, supernet, images = trained_of(options)
    table = rsslib.search(
        supernet, images, budget_of(options), evaluations=options["evaluations"], seed=options["seed"],
        folder=options["candidates"],
    )  # fmt: skip
    path = Path(options["output"])
    make_folder(path.parent)
    write_csv(path, table)
    print(table.drop(columns=["kernel", "expand", "depth"]).round(2).to_string(index=False))
    print(f"{table.attrs['evaluations']} subnets of {run.name} tried in {table.attrs['seconds']:.0f} s: {path}")
    return 0


def export_run(options: dict) -> int:
    """Write a subnet as an ONNX file, and print what it is."""
    import pandas as pd

    arch = None
    if options["front"]:
        try:
            arch = rsslib.chosen(pd.read_csv(options["front"]), **budget_of(options))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:  # those of pandas are ValueErrors
            raise InputError(
                f"{options['front']} is not a table that `rsslib search` wrote ({one_line(error)})"
            ) from None
    elif budget_of(options):
        raise InputError("a budget chooses from the table of a search: give it as --front, made by `rsslib search`")
    _, supernet, images = trained_of(options)
    words = rsslib.export(supernet, arch or supernet.space.middle, images, options["output"])
    print(
        f"{options['output']}: {words['mflops']:.2f} MFLOPs, {words['parameters']:,} parameters, "
        f"{words['accuracy']:.2f} % of {words['test_images']:,} test images; verified on {words['checked_images']} "
        f"images, largest difference {words['difference']:.0e} of the largest logit"
    )
    return 0


def predict_images(options: dict) -> int:
    """Print the class of every image, and what is wrong with those that are none."""
    from rsslib.deploy.predicting import open_model

    model, status = open_model(options["model"]), 0
    for path in options["images"]:
        try:
            prediction = model.predict(path)
            print(f"{prediction.path}: {prediction.label} ({100 * prediction.probability:.1f} %)", flush=True)
        except InputError as error:
            print(f"rsslib: {error}", file=sys.stderr)
            status = 2
    return status
