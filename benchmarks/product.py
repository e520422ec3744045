"""From a population to a product: which exports verify, sizes and latencies, predicted latencies.

Parts, by name: exports, sizes, latencies, kit, int8, tuning, warm, small, photographs, reading. What takes long appends
to a table in benchmarks/product/, from which it resumes. `search.py` measures search.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import report
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v3_small

from rsslib import evaluate_population, export, latency_table, load_dataset, search
from rsslib.backbones import BACKBONES
from rsslib.data.augmentation import augment, draw_augmentation, normalise
from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset
from rsslib.deploy.exporting import onnx_model
from rsslib.deploy.finetuning import finetune
from rsslib.deploy.latency import bytes_of, read_kit, undisturbed, untrained, whole_times, write_kit
from rsslib.deploy.predicting import session_of
from rsslib.deploy.quantising import quantise
from rsslib.errors import InputError
from rsslib.files import project_folder
from rsslib.space import SearchSpace
from rsstudy import tables
from rsstudy.cli import main as rsslib
from rsstudy.engine import complete
from rsstudy.plan import PROFILES, Settings, plan
from rsstudy.supernets import trained_supernet

sys.path.insert(0, str(project_folder() / "tests"))
from helpers import random_supernet  # noqa: E402

TABLES = project_folder() / "benchmarks" / "product"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--subnets", type=int, default=50, help="exported of each case (default: %(default)s)")
    parser.add_argument("--work", default="build/product", help="folder for files that are not kept")
    parser.add_argument("--results", help="folder with runs and their weights (default: in the folder of --work)")
    parser.add_argument("--data", help="folder with datasets (default: the project's)")
    parser.add_argument("--python", default=sys.executable, help="interpreter that measures the kit")
    parser.add_argument("--photographs", type=int, default=5000, help="that `reading` reads (default: %(default)s)")
    parser.add_argument("--init", help="folder of the supernet from which `warm` starts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    TABLES.mkdir(exist_ok=True)
    for part in options.parts:
        PARTS[part](options)


def stored(name: str, **case: object) -> pd.DataFrame:
    """A table's rows that are of this case."""
    path = TABLES / f"{name}.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(case))
    return table[(table[list(case)] == pd.Series(case, dtype=object)).all(axis=1)]


def append(name: str, rows: pd.DataFrame) -> None:
    path = TABLES / f"{name}.csv"
    rows.to_csv(path, mode="a", header=not path.exists(), index=False)


# --- exports ----------------------------------------------------------------------------------------------------------


def exports(options: argparse.Namespace) -> None:
    """Random subnets of supernets off their initial values, on real images: is each export verified?"""
    for resolution in (32, 64):
        for name in ("fashion_mnist", "cifar100"):
            images = load_dataset(name, project_folder() / "data", "cpu", 200, 256, resolution)
            for backbone in BACKBONES:
                export_case(backbone, images, options.subnets, Path(options.work))
    table = stored("exports")
    groups = table.groupby(["backbone", "channels", "resolution"])
    rows = [
        dict(zip(("backbone", "channels", "resolution"), case, strict=True)) | {
            "subnets": len(group), "verified": (group["failure"].isna()).sum(),
            "largest difference": group["difference"].max(), "s each": group["processor_seconds"].median(),
        } for case, group in groups
    ]  # fmt: skip
    report("exports", rows, "Difference: from PyTorch's logits on 256 images, relative to the largest of them.")


def export_case(backbone: str, images: Dataset, subnets: int, work: Path) -> None:
    space = SearchSpace(backbone, in_channels=images.channels, classes=images.n_classes, resolution=images.resolution)
    case = {"backbone": backbone, "channels": images.channels, "resolution": images.resolution}
    begun, supernet = len(stored("exports", **case)), random_supernet(space).eval()
    work.mkdir(parents=True, exist_ok=True)
    for number, row in list(enumerate(space.sample(subnets, np.random.default_rng(0))))[begun:]:
        arch, began = space.to_arch(row), time.process_time()
        words = case | {"subnet": number, "mflops": space.macs(arch) / 1e6}
        try:
            card = export(supernet, arch, images, work / "model.onnx")
            words |= {"difference": card["difference"], "checked_images": card["checked_images"], "failure": None}
        except InputError as error:
            words |= {"difference": np.nan, "checked_images": 0, "failure": str(error)}
        append("exports", pd.DataFrame([words | {"processor_seconds": time.process_time() - began}]))


# --- sizes and latencies ----------------------------------------------------------------------------------------------


class Small(nn.Module):
    """torchvision's mobilenet_v3_small behind the normalisation that our exports have inside."""

    def __init__(self, classes: int = 100):
        super().__init__()
        self.network = mobilenet_v3_small(num_classes=classes)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images.float() / 255 - self.mean) / self.std)


def sizes(options: argparse.Namespace) -> None:
    """Three subnets and mobilenet_v3_small as ONNX files: what they take."""
    rows = []
    for resolution in (32, 64, 224):
        space, sessions, found = SearchSpace(resolution=resolution), {}, {}
        for name in ("smallest", "middle", "largest"):
            subnet = untrained(space, getattr(space, name))
            content = bytes_of(subnet)
            sessions[name] = session_of(content)
            found[name] = (subnet.metadata["mflops"], subnet.metadata["parameters"], len(content))
        small = Small().eval()
        example = torch.zeros((2, 3, resolution, resolution), dtype=torch.uint8)
        content = onnx_model(small, example).SerializeToString()
        sessions["mobilenet_v3_small"] = session_of(content)
        parameters = sum(parameter.numel() for parameter in small.parameters())
        found["mobilenet_v3_small"] = (mflops_of(small, example[:1]), parameters, len(content))
        times = undisturbed(sessions, 100)
        for name, (mflops, parameters, size) in found.items():
            words = {"resolution": resolution, "network": name, "MFLOPs": mflops, "parameters (M)": parameters / 1e6}
            rows.append(words | {"MB": size / 1e6, "ms": times[name]})
    pd.DataFrame(rows).to_csv(TABLES / "sizes.csv", index=False)
    report("sizes and latencies in onnxruntime, one thread, one image, 100 classes", rows)


@torch.no_grad()
def mflops_of(module: nn.Module, example: torch.Tensor) -> float:
    """Millions of multiply-accumulates of convolutions and linear layers for one image."""
    with FlopCounterMode(display=False) as counter:  # two operations to one of ours
        module(example)
    return counter.get_total_flops() / 2e6


def latencies(options: argparse.Namespace) -> None:
    """How well a table of layers predicts the latency of 100 subnets that it has not seen."""
    rows = []
    for backbone, resolution in product(BACKBONES, (32, 64)):
        began = time.process_time()
        table = latency_table(SearchSpace(backbone, resolution=resolution))
        words = {"backbone": backbone, "resolution": resolution, "s for the table": time.process_time() - began}
        subnets = table.space.sample(100, np.random.default_rng([0, 1]))
        times, predicted = whole_times(table.space, table.pieces, subnets, 100), table.predict(subnets)
        words["spearman"] = stats.spearmanr(predicted, times).statistic
        words["relative_error"] = np.median(np.abs(predicted - times) / times)
        rows.append(words | {"subnets": len(subnets)})
        pd.DataFrame(rows).to_csv(TABLES / "latencies.csv", index=False)
    report("predicted and measured latencies", rows)


# --- another device ---------------------------------------------------------------------------------------------------


def kit(options: argparse.Namespace) -> None:
    """How well a kit predicts the latency of 50 subnets that it has not seen, both measured by another interpreter."""
    space, folder, unseen = SearchSpace(), Path(options.work, "kit"), Path(options.work, "unseen")
    script = write_kit(space, folder)
    unseen.mkdir(exist_ok=True)
    (unseen / script.name).write_bytes(script.read_bytes())
    rows = space.sample(50, np.random.default_rng([0, 2]))
    for number, arch in enumerate(map(space.to_arch, rows)):
        (unseen / f"{number}.onnx").write_bytes(bytes_of(untrained(space, arch)))
    for place in (folder, unseen):
        subprocess.run([options.python, place / script.name], check=True)
    times = json.loads((unseen / "times.json").read_text())
    measured = np.array([times[str(number)] for number in range(len(rows))])
    predicted = read_kit(space, folder).predict(rows)
    error = np.median(np.abs(predicted - measured) / measured)
    spearman = stats.spearmanr(predicted, measured).statistic
    report("kit", [{"subnets": len(rows), "spearman": spearman, "relative error, median": error}])


# --- after the search -------------------------------------------------------------------------------------------------


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(options.results or Path(options.work, "results"), options.data, device="cpu", progress=False)


def int8(options: argparse.Namespace) -> None:
    """Three subnets of each backbone at 32 and 64 pixels, of RSS at smoke: what eight bits cost, and save."""
    settings, path = settings_of(options), Path(options.work, "model.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    for resolution, backbone in product((32, 64), BACKBONES):
        (run,) = plan("smoke", methods=["rss"], backbone=backbone, resolution=resolution)
        complete([run], settings)
        supernet, images = trained_supernet(run, settings)
        for name in ("smallest", "middle", "largest"):
            case = {"backbone": backbone, "resolution": resolution, "subnet": name}
            if len(stored("int8", **case)):
                continue
            export(supernet, getattr(supernet.space, name), images, path)
            found = quantise(path, images, largest_loss=100)
            for kind in ("float32", "int8"):
                row = found[kind]
                words = {"MB": row["bytes"] / 1e6, "ms": row["latency"].median}
                case |= {f"{kind} {key}": row[key] for key in ("accuracy", "low", "high")}
                case |= {f"{kind} {key}": value for key, value in words.items()}
            append("int8", pd.DataFrame([case | {"agreement": found["agreement"]}]))
    report("int8", pd.read_csv(TABLES / "int8.csv").to_dict("records"))


def tuning(options: argparse.Namespace) -> None:
    """Points that ten epochs alone add to three subnets of RSS at quick, Fashion-MNIST, by seed."""
    settings = settings_of(options)
    for run in plan("quick", ["fashion_mnist"], ["rss"], seeds=range(5)):
        supernet, images = trained_supernet(run, settings)
        for name in ("smallest", "middle", "largest"):
            case, arch = {"subnet": name, "seed": run.seed}, getattr(supernet.space, name)
            if len(stored("tuning", **case)):
                continue
            tuned = finetune(supernet, arch, images, method=run.method, progress=False)
            for what, net in (("before", supernet), ("after", tuned)):
                case[what] = evaluate_population(net, [(0.0, arch)], images, progress=False)["accuracy"].item()
            append("tuning", pd.DataFrame([case]))
    table = pd.read_csv(TABLES / "tuning.csv")
    gains = (table["after"] - table["before"]).groupby(table["subnet"])
    margin = stats.t.ppf(0.975, gains.count() - 1) * gains.sem()
    rows = pd.DataFrame({"seeds": gains.count(), "gain": gains.mean(), "95 % interval, +-": margin})
    report("fine-tuning for 10 epochs", rows.reset_index().to_dict("records"))


def warm(options: argparse.Namespace) -> None:
    """RSS on 2,000 images of Fashion-MNIST, from another supernet's weights and from scratch, for the same epochs."""
    settings = settings_of(options)
    scale = replace(PROFILES["quick"], train_images=2000, epochs_for=None)
    for seed, (name, start) in product(range(3), (("scratch", None), ("warm", options.init))):
        case = {"start": name, "seed": seed}
        if not len(stored("warm", **case)):
            runs = plan(scale, ["fashion_mnist"], ["rss"], seeds=[seed], init=start)
            complete(runs, settings)
            mean = tables.populations(runs, settings.results)["accuracy"].mean()
            append("warm", pd.DataFrame([case | {"mean accuracy": mean}]))
    table = pd.read_csv(TABLES / "warm.csv")
    report("warm start", table.to_dict("records"))


def small(options: argparse.Namespace) -> None:
    """torchvision's mobilenet_v3_small from scratch, beside the subnet that a search chooses, for equal processor time.

    RSS at smoke, digits at 64 pixels in three colours. The search's time counts as training. Of three learning rates,
    each for all of that time, the one counts that is best on the validation images.
    """
    settings = settings_of(options)
    example = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
    limit = mflops_of(Small(10).eval(), example)
    for run in plan("smoke", methods=["rss"], resolution=64, seeds=range(3)):
        if len(stored("small", seed=run.seed)):
            continue
        complete([run], settings)
        supernet, images = trained_supernet(run, settings)
        began = time.process_time()
        front = search(supernet, images, {"mflops": limit}, evaluations=120, folder=options.work, progress=False)
        searched = time.process_time() - began
        seconds = tables.times([run], settings.results)["training_seconds"].item() + searched
        best = front.loc[front["validation_accuracy"].idxmax()]
        found = [from_scratch(images, seconds, rate, run.seed) for rate in (0.02, 0.05, 0.1)]
        case = {"seed": run.seed, "processor seconds": seconds, "of which search": searched, "MFLOPs at most": limit}
        case |= {"subnet": best["test_accuracy"], "subnet's MFLOPs": best["mflops"]}
        append("small", pd.DataFrame([case | max(found, key=lambda row: row["validation"])]))
    report("mobilenet_v3_small from scratch", pd.read_csv(TABLES / "small.csv").to_dict("records"))


def from_scratch(images: Dataset, seconds: float, rate: float, seed: int) -> dict:
    """Train mobilenet_v3_small as a supernet's subnets are, for as many epochs as take these processor seconds."""
    torch.manual_seed(seed)
    network = mobilenet_v3_small(num_classes=images.n_classes).to(memory_format=torch.channels_last)
    if images.channels == 1:
        network.features[0][0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True, weight_decay=3e-5)
    generator, n = torch.Generator().manual_seed(seed), len(images.x_train)

    def train(rates: Callable[[float], float], epochs: int) -> float:
        began = time.process_time()
        network.train()
        for epoch in range(epochs):
            drawn = draw_augmentation(n, generator, images.side)
            order = torch.randperm(n, generator=generator)
            for step, rows in enumerate(order.split(64)[: n // 64]):
                optimizer.param_groups[0]["lr"] = rates((epoch + step * 64 / n) / epochs)
                x = augment(images.read(rows), drawn[:, rows], images.mean, images.std, images.resolution)
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), images.y_train[rows]).backward()
                optimizer.step()
        return time.process_time() - began

    @torch.no_grad()
    def accuracy(x: torch.Tensor, y: torch.Tensor) -> float:
        network.eval()
        found = [network(normalise(part, images.mean, images.std)).argmax(1) for part in x.split(200)]
        return 100 * (torch.cat(found) == y).float().mean().item()

    epochs = max(1, int(seconds / train(lambda progress: 0.0, 1)))
    took = train(lambda progress: rate * 0.5 * (1 + math.cos(math.pi * progress)), epochs)
    words = {"rate": rate, "epochs": epochs, "seconds": took, "validation": accuracy(images.x_val, images.y_val)}
    return words | {"mobilenet_v3_small": accuracy(images.x_test, images.y_test)}


# --- images of one's own ----------------------------------------------------------------------------------------------


def photographs(options: argparse.Namespace) -> None:
    """Photographs that scikit-learn and matplotlib ship, as a folder of a telephone's JPEG files, through all commands.

    Test crops are from the right of each photograph, training crops from the left. They have 0.2 to 12 megapixels and
    four orientations.
    """
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_image

    pictures = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    with get_sample_data("grace_hopper.jpg") as file:
        pictures["person"] = np.asarray(Image.open(file).convert("RGB"))
    data, rng = Path(options.work, "data"), np.random.default_rng(0)
    for name, picture in pictures.items():
        cut = 2 * picture.shape[1] // 3
        for split, n, part in (("train", 60, picture[:, :cut]), ("test", 20, picture[:, cut:])):
            folder = data / "photographs" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                save_photograph(part, folder / f"{i}.jpg", rng)
    where = ["--profile", "quick", "--dataset", "photographs", "--resolution", "64", "--data", str(data)]
    where += ["--results", str(Path(options.work, "results"))]
    front, model = (str(Path(options.work, name)) for name in ("front.csv", "photographs.onnx"))
    test = str(data / "photographs" / "test")
    for command in (
        ["run", *where, "--device", "cpu"],
        ["search", *where, "--mflops", "25", "--evaluations", "60", "--device", "cpu", "--output", front],
        ["export", *where, "--front", front, "--mflops", "25", "--output", model, "--int8"],
        ["evaluate", model, test],
        ["evaluate", model.replace(".onnx", ".int8.onnx"), test],
    ):
        began, worked = time.perf_counter(), time.process_time()
        status = rsslib(command)
        took, spent = time.perf_counter() - began, time.process_time() - worked
        print(f"rsslib {command[0]}: status {status}, {took:.0f} s, {spent:.0f} of the processor\n", flush=True)


def reading(options: argparse.Namespace) -> None:
    """The first and the second read of a folder of photographs of 12 megapixels: a hundred under many names."""
    from sklearn.datasets import load_sample_image

    data, rng = Path(options.work, "many"), np.random.default_rng(0)
    pictures = [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    for name, picture in zip(("china", "flower"), pictures, strict=True):
        folder = data / "many" / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(options.photographs // 2):
            path = folder / f"{i}.jpg"
            if i < 50:
                save_photograph(picture, path, rng, 4000)
            elif not path.exists():
                path.hardlink_to(folder / f"{i % 50}.jpg")
    rows = []
    for what in ("first", "second"):
        began = time.perf_counter()
        images = load_dataset("many", data, "cpu", resolution=64)
        rows.append({"read": what, "photographs": options.photographs, "seconds": time.perf_counter() - began})
    report("reading", rows, f"{len(images.x_train):,} for training; two threads where there are two cores")


def save_photograph(picture: np.ndarray, path: Path, rng: np.random.Generator, width: int | None = None) -> None:
    """Write a random crop of a picture, enlarged, and stored turned as its EXIF orientation says."""
    side = int(rng.integers(70, 140))
    top, left = (int(rng.integers(size - side)) for size in picture.shape[:2])
    width = width or int(rng.uniform(520, 4000))  # of which the height is three quarters
    crop = Image.fromarray(picture[top : top + 3 * side // 4, left : left + side]).resize((width, 3 * width // 4))
    orientation, turns = ((1, 0), (3, 2), (6, 1), (8, 3))[int(rng.integers(4))]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(np.asarray(crop), turns)).save(path, quality=90, exif=exif)


PARTS = {
    "exports": exports, "sizes": sizes, "latencies": latencies, "photographs": photographs,
    "kit": kit, "int8": int8, "tuning": tuning, "warm": warm, "small": small, "reading": reading,
}  # fmt: skip

if __name__ == "__main__":
    main()
