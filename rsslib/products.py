"""The commands that take a trained supernet to an application: `rsslib search | export | predict`."""

from pathlib import Path

from rsslib.campaign.runs import Run, plan
from rsslib.campaign.settings import Settings
from rsslib.errors import InputError
from rsslib.files import check_writable
from rsslib.space import RESOLUTION


def add_products(commands) -> None:
    """Add the commands to those of `rsslib.cli`."""
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
        resolution=options["resolution"], data=options["data"],
    )  # fmt: skip
    settings = Settings(options["results"], options["data"], options.get("device", "cpu"))
    output = Path(options["output"])
    check_writable(output.parent, "the output's folder")
    if output.is_dir():
        raise InputError(f"{output} is a folder: expected the name of a file")
    return run, settings


def budget_of(options: dict) -> dict[str, float]:
    names = ("mflops", "parameters", "latency_ms")
    return {name: options[name] for name in names if options[name] is not None}


def search_run(options: dict) -> int:
    run, settings = finished_run(options)
    from rsslib.campaign import trained_supernet
    from rsslib.files import make_folder, write_csv
    from rsslib.searching import search

    supernet, images = trained_supernet(run, settings)
    table = search(
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
