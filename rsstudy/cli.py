"""Train, compare and use once-for-all networks.

examples:
  rsslib reproduce                              train the study at its smallest scale and draw its figures
  rsslib run --dataset pets --resolution 64     train and evaluate one method on your images
  rsslib search --mflops 8                      write the best subnets of `rsslib run` up to 8 MFLOPs to front.csv
  rsslib export --front front.csv               write the most accurate of these subnets as model.onnx
  rsslib finetune --front front.csv             train that subnet alone for more epochs, then export it
  rsslib predict model.onnx image.png           predict the class of an image
  rsslib evaluate model.onnx data/pets/test     measure the accuracy on images in class folders

`rsslib COMMAND --help` lists the options of a command. `rsslib methods` and `rsslib datasets` list the choices.
"""

import importlib
import re
import runpy
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from ctypes import CDLL
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rsslib
from rsslib.data.readers import DATASETS, LICENCES, check_name, is_there
from rsslib.errors import InputError, choose, one_line, printable, shortened
from rsslib.files import atomic_path, check_output, make_folder, system_errors, write_csv
from rsslib.methods import LEARNING_RATE, override
from rsslib.progress import in_words
from rsslib.space import RESOLUTION
from rsstudy.catalogue import BEYOND, METHODS
from rsstudy.notebooks import SMALLEST, Execution, Notebook, find_notebooks
from rsstudy.plan import (
    MAIN_METHODS,
    OVERRIDABLE,
    PROFILES,
    Run,
    Settings,
    by_worth,
    folder_for,
    on_hardest,
    output_folder,
    plan,
    results_folder,
    scaled,
)
from rsstudy.store import delete, finished_of, overview, overview_words, stored_folders

WATCH_SECONDS = 5  # between two listings of `rsslib runs --watch`

# PyTorch and papermill take seconds to import, so commands import what needs them after checking their options.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 for success, 1 if something failed, 2 for invalid input."""
    options = make_parser().parse_args(arguments)
    try:
        with system_errors():
            return options.command(options)
    except InputError as error:
        print(f"rsslib: {error}", file=sys.stderr)
        return 2


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("rsslib", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"rsslib {version('rsslib')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (command, options) in COMMANDS.items():
        text = command.__doc__
        subparser = subparsers.add_parser(name, help=text, description=text)
        for flag, arguments in options.items():
            subparser.add_argument(flag, **arguments)
        subparser.set_defaults(command=command)
    return parser


def given(options: Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the options with these names that the user gave or that have a default."""
    values = vars(options)
    return {name: values[name] for name in names if values.get(name) is not None}


def make_settings(options: Namespace) -> Settings:
    """Return the settings that the user gave, after checking them."""
    values = given(options, [field.name for field in fields(Settings)])
    if "after_epoch" in values:
        values["after_epoch"] = imported(values["after_epoch"])
    settings = Settings(**values)
    if settings.device.startswith("cuda"):
        try:  # PyTorch would take seconds to find out
            CDLL("libcuda.so.1")
        except OSError:
            raise InputError(f"device {settings.device!r} needs NVIDIA's driver: choose auto or cpu") from None
    return settings


# --- one run ----------------------------------------------------------------------------------------------------------


def make_run(options: Namespace) -> Run:
    """Return the run that the options name, at the scale of its profile with changes."""
    profile = PROFILES[choose(options.profile, PROFILES, "profile")]
    dataset = profile.datasets[-1] if options.dataset is None else options.dataset
    (run,) = plan(
        scaled(profile.fitted(dataset, options.data), **given(options, OVERRIDABLE)),
        [dataset],
        [imported(options.method)],
        imported(options.backbone),
        [options.seed],
        resolution=options.resolution,
        data=options.data,
        init=options.init,
    )
    if options.groups == 1:
        return run
    method = override(run.method, groups=options.groups, name=f"{run.method.name}-groups-{options.groups}")
    return replace(run, method=method)


def run_one(options: Namespace) -> int:
    """Train and evaluate one method on one dataset, and print its accuracies."""
    run, settings = make_run(options), make_settings(options)
    check_name(run.dataset, settings.data)

    from rsslib.parallel import joined
    from rsstudy.engine import complete
    from rsstudy.job import follow, lead
    from rsstudy.tables import populations, times

    with joined(settings.device) as (rank, device):
        settings = replace(settings, device=device)
        if rank > 0:
            follow(replace(settings, progress=False))
            return 0
        print(f"{run.name}: {run.profile.describe(run.dataset)}")
        failed = lead(lambda: failures(complete, [run], settings))
    if failed:
        return report(failed)
    if not finished_of([run], settings.results):
        print("not finished yet: the same command resumes it")
        return 0
    subnets = populations([run], settings.results).groupby("bucket")["accuracy"]
    table = subnets.agg(["median", "min", "max", "count"]).reset_index()
    words = table.to_string(index=False, float_format="{:.4g}".format)
    print(f"\ntest accuracy (%) of subnets by reference size (MFLOPs):\n{words}\n")
    took = times([run], settings.results)["training_seconds"].item()
    print(f"trained in {in_words(took)}; weights, tables and the record are in {run.folder(settings.results)}")
    print("next: `rsslib search --mflops 8`, with the same options")
    return 0


def failures(complete: Callable, *arguments: Any) -> list[str]:
    """Complete runs; returns a sentence for each run that failed."""
    from rsstudy.engine import RunsFailed

    try:
        complete(*arguments)
    except RunsFailed as error:
        return [f"{name}: {type(why).__name__}: {why}" for name, why in error.failures.items()]
    return []


def report(failed: list[str]) -> int:
    """Print the failures; returns the exit status."""
    for message in failed:
        print(f"rsslib: failed: {message}", file=sys.stderr)
    return 1 if failed else 0


# --- the study --------------------------------------------------------------------------------------------------------


def find_runs(options: Namespace) -> tuple[list[Notebook], list[Run]]:
    """Return the notebooks that the options name, and the runs that they need, in the order of the notebooks."""
    values = given(options, vars(options)) | {"train": False}
    notebooks = find_notebooks(values, options.notebooks)
    runs = {name: run for notebook in notebooks if not notebook.stored for name, run in notebook.runs.items()}
    for run in runs.values():
        if not (results_folder(options.results) / run.profile.name / run.dataset).exists():
            check_name(run.dataset, folder_for("data", options.data))
    return notebooks, list(runs.values())


def list_runs(options: Namespace) -> int:
    """List the notebooks' runs and the training time left, then all stored runs with their disk use; or delete one."""
    folders = stored_folders(options.results)
    if options.delete:
        delete(options.delete, folders)
        print(f"deleted {options.delete}")
        return 0
    _, runs = find_runs(options)
    while True:
        table = overview(runs, options.results)
        print(overview_words(table))
        if not options.watch or (table["status"] == "finished").all():
            break
        time.sleep(WATCH_SECONDS)
        print()
    print(f"\nMB in {results_folder(options.results)} (`rsslib runs --delete NAME` deletes a run):")
    for name, folder in folders.items():
        if name.startswith(options.profile):
            size = sum(path.stat().st_size for path in folder.iterdir())
            print(f"{size / 1e6:6.1f}  {name}")
    return 0


def list_methods(options: Namespace) -> int:
    """List the names of methods."""
    print("the paper's and its code's:", *METHODS, sep="\n  ")
    print("beyond the paper (docs/experiments.md):", *BEYOND, sep="\n  ")
    return 0


def list_datasets(options: Namespace) -> int:
    """List the built-in datasets, with their licences, and yours in the data folder."""
    folder = folder_for("data", options.data)
    for name in DATASETS:
        state = "here" if is_there(name, folder) else "downloaded at its first use"
        print(f"{name:14} {state}; licence: {LICENCES[name]}")
    found = [path.stem for path in folder.glob("*.npz")] + [path.parent.name for path in folder.glob("*/train")]
    for name in sorted({*found} - {*DATASETS}):
        print(f"{name:14} yours")
    return 0


SHOWN = """If training worked, OFA, RSS and RSS-Short have medians above 75 % here. One seed and 359 test images
cannot rank them. The stored results of quick show more: their figures
are in the folder quick beside these."""


def reproduce(options: Namespace) -> int:
    """Train the notebooks' missing runs, execute the notebooks and write their figures."""
    notebooks, runs = find_runs(options)
    settings = make_settings(options)
    if settings.time_budget:
        runs = by_worth(runs)
    print(f"{len(runs)} runs for {len(notebooks)} notebooks")
    if options.profile == SMALLEST and not options.notebooks:
        print("about 15 minutes on two idle cores, a first figure in about 4", flush=True)

    from rsstudy import cluster, engine
    from rsstudy.measurement import Measurement

    trained = [notebook for notebook in notebooks if not notebook.stored]
    measured = {method for notebook in trained for method in notebook.values.get("interference", ())}
    settings = replace(settings, jobs=options.jobs, measure=Measurement(tuple(measured)))
    with closing(Execution(notebooks)) as execution:
        if options.engine == "ray" or options.address:
            failed = failures(cluster.complete_with_ray, runs, settings, options.address, execution.finished)
        else:
            failed = failures(engine.complete, runs, settings, execution.finished)
        print(f"{len(execution.done)} of {len(runs)} runs are finished; the same command trains what is missing")
        failed += execution.rest()
    return finish(options, execution, failed)


def figures(options: Namespace) -> int:
    """Execute the notebooks on stored results, without training."""
    notebooks, runs = find_runs(options)
    with closing(Execution(notebooks)) as execution:
        for run in finished_of(runs, options.results):
            execution.finished(run)
        if runs and not execution.done:
            results = results_folder(options.results)
            raise InputError(f"there is nothing to draw in {results}: train with `rsslib reproduce` first")
        failed = execution.rest()
    return finish(options, execution, failed)


def finish(options: Namespace, execution: Execution, failed: list[str]) -> int:
    """Print the failures, the accuracies of the main methods, where the figures are, and what to do next."""
    from rsstudy.tables import populations

    done = list(execution.done.values())
    names = (*MAIN_METHODS, "ofa-released")
    main = [run for run in done if run.backbone == "mobilenet_v3" and run.method.name in names]
    if main:
        accuracy = populations(on_hardest(main), options.results).groupby("method", sort=False)["accuracy"]
        print("median test accuracy (%) of subnets:", accuracy.median().round(1).to_dict())
        print(SHOWN * (options.profile == SMALLEST))
    if done:
        print(f"figures: {output_folder(options.profile, options.figures, done)}")
        print("next: `make lab` to explore them; with PROFILE=quick or paper, `make reproduce` trains more")
    return report(failed)


# --- applications -----------------------------------------------------------------------------------------------------


def load_trained(options: Namespace, suffix: str) -> tuple[Run, Any, Any]:
    """Return the run that the options name, with its supernet and images; the run must be finished.

    `suffix` is the required suffix of the output file.
    """
    run, settings = make_run(options), make_settings(options)
    check_output(Path(options.output), "the output's folder", suffix)

    from rsstudy.supernets import trained_supernet

    return run, *trained_supernet(run, settings)


def search_run(options: Namespace) -> int:
    """Search for the best subnets of a finished run under a budget, print them as a table and write it as CSV."""
    run, supernet, images = load_trained(options, ".csv")

    from rsslib.deploy.latency import read_kit

    table = rsslib.search(
        supernet,
        images,
        given(options, LIMITS),
        evaluations=options.evaluations,
        seed=options.seed,
        folder=options.candidates or run.folder(options.results),
        latency=options.latency_kit and read_kit(supernet.space, options.latency_kit),
    )
    path = Path(options.output)
    make_folder(path.parent)
    write_csv(path, table)
    print(table.drop(columns=["kernel", "expand", "depth"]).round(2).to_string(index=False))
    print("mflops is the real size: that of the network as it is exported")
    print(f"{table.attrs['evaluations']} subnets tried in {table.attrs['seconds']:.0f} s: {path}")
    print(f"next: `rsslib export --front {path}`, with the same options")
    return 0


def write_latency_kit(options: Namespace) -> int:
    """Write a folder that measures latencies (for `rsslib search --latency-ms`) and predicts on another device."""
    run, settings = make_run(options), make_settings(options)

    from rsslib.deploy.latency import write_kit
    from rsstudy.supernets import images_of, space_of

    script = write_kit(space_of(run, images_of(run, settings)), options.folder)
    print(f"run {script} on the device, with onnxruntime and NumPy, and copy times.json back beside it")
    print(f"next: `rsslib search --latency-kit {options.folder} --latency-ms ...`, with the same options")
    return 0


def publish_run(options: Namespace) -> int:
    """Write the supernet of a finished run as a folder for the Hugging Face hub."""
    run = make_run(options)

    from rsslib.checkpoint import publish

    target = publish(run.folder(options.results), options.folder)
    print(f"{target} has the weights, says what they were trained on and how to load them")
    print(f"next: `hf upload NAME {target}`, or `rsslib run --init {target}`")
    return 0


def load_chosen(options: Namespace) -> tuple[Run, Any, Any, Any]:
    """Return the values of `load_trained`, and the subnet that a front and a budget choose, or the middle subnet."""
    from rsslib.deploy.searching import read_front

    arch, budget = None, given(options, LIMITS)
    if options.front:
        arch = rsslib.chosen(read_front(options.front), **budget)
    elif budget:
        raise InputError("a budget chooses from the table of a search: give it as --front, made by `rsslib search`")
    run, supernet, images = load_trained(options, ".onnx")
    return run, supernet, images, arch or supernet.space.middle


def export_run(options: Namespace) -> int:
    """Write a subnet of a finished run as an ONNX file, verified on real images."""
    _, supernet, images, arch = load_chosen(options)
    return export_subnet(options, supernet, images, arch)


def finetune_run(options: Namespace) -> int:
    """Train only one subnet of a finished run for more epochs, then export it as `rsslib export` does."""
    run, supernet, images, arch = load_chosen(options)

    from rsslib.deploy.finetuning import finetune

    tuned = finetune(supernet, arch, images, options.epochs, options.rate, run.method)
    populations = [rsslib.evaluate_population(net, [(0.0, arch)], images, progress=False) for net in (supernet, tuned)]
    before, after = (table["accuracy"].item() for table in populations)
    print(f"{after - before:+.2f} points in {options.epochs} epochs: {before:.2f} to {after:.2f} % of test images")
    return export_subnet(options, tuned, images, arch)


def export_subnet(options: Namespace, supernet: Any, images: Any, arch: Any) -> int:
    """Export a subnet, optionally also as int8, and print the results."""
    card = rsslib.export(supernet, arch, images, options.output)
    print(
        f"{options.output}: {card['mflops']:.2f} MFLOPs (real size), {card['parameters']:,} parameters, "
        f"{card['accuracy']:.2f} % of {card['test_images']:,} test images; verified on {card['checked_images']} "
        f"images, largest difference {card['difference']:.0e} of the largest logit"
    )
    if options.int8:
        print_quantised(options.output, images)
    example = save_image(images, Path(options.output).with_suffix(".png"))
    print(f"next: `rsslib predict {options.output} {example}`, a test image")
    return 0


def print_quantised(path: str, images: Any) -> None:
    """Quantise an exported file and print the results of both files side by side."""
    from pandas import DataFrame

    from rsslib.deploy.quantising import quantise

    found = quantise(path, images)
    print(f"{found['path']}: the same prediction for {found['agreement']:.2f} % of test images")
    both = DataFrame({name: found[name] for name in ("float32", "int8")})
    print(both.rename({"accuracy": "accuracy (%)"}).to_string(float_format="{:.2f}".format))


def save_image(images: Any, path: Path) -> Path:
    """Write the first test image, for trying predictions, unless the file exists; returns its path."""
    from torchvision.io import write_png

    if not path.exists():
        with atomic_path(path) as temporary:
            write_png(images.x_test[0].cpu().contiguous(), str(temporary))
    return path


def predict_images(options: Namespace) -> int:
    """Predict the class of image files with an exported model; needs onnxruntime but not PyTorch."""
    from rsslib.deploy.predicting import open_model

    model, status = open_model(options.model), 0
    for path in options.images:
        try:
            prediction = model.predict(path)
            words = printable(f"{prediction.path}: {shortened(prediction.label)}")
            print(f"{words} ({100 * prediction.probability:.1f} %)", flush=True)
        except InputError as error:
            print(f"rsslib: {error}", file=sys.stderr)
            status = 2
    return status


def evaluate_model(options: Namespace) -> int:
    """Measure the accuracy of an exported model on images in class folders, and write the confusion matrix."""
    from pandas import crosstab

    from rsslib.deploy.predicting import accuracy_interval, open_model, predict_folder

    path = Path(options.output)
    check_output(path, "the output's folder", ".csv")
    figure = path.with_suffix(".png")
    model = open_model(options.model)
    table = predict_folder(model, options.folder)
    classes = model.metadata["classes"]
    table["right"] = table["label"] == table["predicted"]
    for name, rows in [("all images", table), *table.groupby("label")]:
        words = "{accuracy:.1f} % ({low:.1f} to {high:.1f})".format(**accuracy_interval(rows["right"].to_numpy()))
        print(printable(f"{shortened(name)}: {words} of {len(rows):,}"))
    counts = crosstab(table["label"], table["predicted"]).reindex(index=classes, columns=classes, fill_value=0)
    make_folder(path.parent)
    write_csv(path, counts.reset_index())
    draw_confusion(counts, figure)
    print(f"confusion matrix, one row per true class: {path} and {figure}")
    return 0


def draw_confusion(counts: Any, path: Path) -> None:
    """Draw a confusion matrix with a row per true class, shaded by the share of its images."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    names = [shortened(name, 20) for name in counts.columns]
    side = max(3, 0.25 * len(names))
    figure = Figure((side + 2, side + 1), layout="constrained")
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    with rc_context({"text.parse_math": False}), atomic_path(path) as temporary:
        matrix = ConfusionMatrixDisplay(shares, display_labels=names)
        look = {"include_values": False, "cmap": "Blues", "im_kw": {"vmin": 0, "vmax": 1}}
        matrix.plot(ax=figure.subplots(), xticks_rotation="vertical", **look)
        figure.savefig(temporary, format="png")


def pack_images(options: Namespace) -> int:
    """Decode a folder of image files once, into a dataset that is mapped into memory."""
    from rsslib.data.packing import pack

    path = pack(options.folder, options.side)
    print(f"{path}\nnext: `rsslib run --data {path.parent} --dataset {path.name} --resolution ...`")
    return 0


# --- options ----------------------------------------------------------------------------------------------------------


def option(text: str, default: Any = None, kind: Callable | None = None, **others: Any) -> dict[str, Any]:
    """Return arguments of `add_argument`; `kind` converts the text, by default to the type of the default value."""
    if default is not None:
        text += " (default: %(default)s)"
        kind = kind or type(default)
    return {"help": text, "default": default, "type": kind or str, **others}


def seconds(text: str) -> float:
    """Return the seconds in a duration such as 90s, 25m or 2h."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text)
    duration = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not duration:
        raise ArgumentTypeError(f"{text!r} is not a number above 0 and a unit, such as 90s, 25m or 2h")
    return duration


def imported(text: str) -> Any:
    """Return the object that FILE.py:NAME or MODULE:NAME names; text without a colon is a name that `plan` knows."""
    where, colon, name = text.rpartition(":")
    if not colon:
        return text
    try:
        found = runpy.run_path(where) if where.endswith(".py") else vars(importlib.import_module(where))
        return found[name]
    except Exception as error:  # of the file too
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{text!r} cannot be read ({why}): expected FILE.py:NAME or MODULE:NAME") from None


def absolute(folder: str) -> str:
    """Return the absolute path of a folder, for notebooks that are executed in another folder."""
    try:
        return str(Path(folder).expanduser().resolve()) if folder else folder
    except (OSError, RuntimeError) as error:
        raise ArgumentTypeError(f"{folder!r} cannot be used ({error})") from None


LIMITS = ("mflops", "parameters", "file_mb", "memory_mb", "latency_ms")
COMMON = {
    "--profile": option("scale: smoke, quick or paper", "smoke"),
    "--data": option("folder with datasets (default: data of the project)", kind=absolute),
    "--results": option("folder with runs (default: data/results of the project)", kind=absolute),
}
RUN = {
    "--dataset": option("built-in dataset, or one in the data folder (default: the hardest of the profile)"),
    "--method": option("name from `rsslib methods`, or your own as FILE.py:NAME or MODULE:NAME", "rss"),
    "--backbone": option("mobilenet_v3, proxylessnas, or your own as FILE.py:NAME or MODULE:NAME", "mobilenet_v3"),
    "--seed": option("seed of the run", 0),
    "--groups": option("processes that divide the images of a batch, not the subnets of a step (docs/scale.md)", 1),
    "--resolution": option("size of the images in pixels: 32 to 224 in steps of 32", RESOLUTION),
    "--init": option("initial weights: folder of a supernet, or file of the official package"),
}
for name, text in OVERRIDABLE.items():
    kind = float if name == "learning_rate_scale" else int
    RUN[f"--{name.replace('_', '-')}"] = option(f"{text} (default: set by the profile)", kind=kind)
STUDY = {
    "--notebooks": option("notebooks, such as 02_main_results (default: all)", nargs="+"),
    "--datasets": option("the hardest last, which some notebooks use alone (default: set by the profile)", nargs="+"),
    "--seeds": option("seeds, one run for each (default: 0)", kind=int, nargs="+"),
    "--subnets-per-bucket": option("subnets evaluated of each size (default: set by the profile)", kind=int),
    "--figures": option("folder for figures (default: figures of the project)", kind=absolute),
}
TRAINING = {
    "--device": option("auto, cpu, cuda or cuda:<n>", "auto"),
    "--precision": option("fp32; on CUDA also tf32 or bf16", "fp32"),
    "--threads": option("threads per run on a CPU", 1),
    "--time-budget": option("stop cleanly after this time, such as 90s, 25m or 2h", kind=seconds),
    "--validate-every": option("epochs between validations of three subnets, written to live.csv of the run", kind=int),
    "--after-epoch": option("function called with (state, run) after every epoch, as FILE.py:NAME or MODULE:NAME"),
    "--rebuild": {"action": "store_true", "help": "set refused runs aside and train them again"},
    "--no-graphs": {
        "dest": "graphs",
        "action": "store_const",
        "const": False,
        "help": "train on CUDA without CUDA graphs, if they cannot be captured",
    },
}
PLACES = {
    "--jobs": option("runs at once (default: as many as fit; with Ray one per GPU, or one per core)", kind=int),
    "--engine": option("engine that places the runs: local or ray", "local", choices=("local", "ray")),
    "--address": option("join this Ray cluster: host:port or auto"),
}
BUDGET = {
    "--mflops": option("upper limit of the real size, in millions of multiply-accumulates", kind=float),
    "--parameters": option("upper limit on the number of parameters", kind=float),
    "--file-mb": option("upper limit of the size of the exported float32 file, in millions of bytes", kind=float),
    "--memory-mb": option("upper limit of the memory of feature maps for one image, in millions of bytes", kind=float),
    "--latency-ms": option("upper limit of the latency for one image on one thread, in milliseconds", kind=float),
}
SEARCH = {
    "--evaluations": option("number of subnets to evaluate", 200),
    "--latency-kit": option("kit folder with the times of another device (default: this device is measured)"),
    "--candidates": option("folder for scores, so that a stopped search resumes (default: folder of the run)"),
    "--device": TRAINING["--device"],
    "--output": option("output file", "front.csv"),
}
EXPORT = {
    "--int8": {"action": "store_true", "help": "also write <name>.int8.onnx, with 8-bit weights and activations"},
    "--front": option("table of a search, for its most accurate subnet within the budget (default: middle subnet)"),
    "--device": option("auto, cpu, cuda or cuda:<n>", "cpu"),
    "--output": option("output file", "model.onnx"),
}
FINETUNE = {
    "--epochs": option("epochs to train the subnet alone", 10),
    "--rate": option("initial learning rate, which a cosine lowers to 0", LEARNING_RATE),
}
PREDICT = {
    "model": option("file that `rsslib export` wrote"),
    "images": option("image files of up to 60 million pixels", nargs="+"),
}
EVALUATE = {
    "model": PREDICT["model"],
    "folder": option("folder with image files in <class>/"),
    "--output": option("file for the confusion matrix; its figure is written beside it", "confusion.csv"),
}
RUNS = {
    "--delete": option("name of a run to delete; committed and running runs are refused"),
    "--watch": {"action": "store_true", "help": "list again every few seconds until all runs are finished"},
}

PACK = {
    "folder": option("folder with train/<class>/ and test/<class>/"),
    "--side": option("size of the packed images in pixels; crops are taken from them", 160),
}

COMMANDS = {
    "run": (run_one, COMMON | RUN | TRAINING),
    "runs": (list_runs, COMMON | STUDY | RUNS),
    "methods": (list_methods, {}),
    "datasets": (list_datasets, {"--data": COMMON["--data"]}),
    "reproduce": (reproduce, COMMON | STUDY | TRAINING | PLACES),
    "figures": (figures, COMMON | STUDY),
    "pack": (pack_images, PACK),
    "search": (search_run, COMMON | RUN | BUDGET | SEARCH),
    "export": (export_run, COMMON | RUN | BUDGET | EXPORT),
    "publish": (publish_run, {"folder": option("folder to write")} | COMMON | RUN),
    "latency-kit": (write_latency_kit, {"folder": option("folder to write")} | COMMON | RUN),
    "finetune": (finetune_run, COMMON | RUN | BUDGET | EXPORT | FINETUNE),
    "predict": (predict_images, PREDICT),
    "evaluate": (evaluate_model, EVALUATE),
}
