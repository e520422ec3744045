"""Plan runs: dataset x backbone x method x seed at the scale of a profile.

This module neither trains nor needs PyTorch.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from rsslib.backbones import BACKBONES, Backbone
from rsslib.data.readers import DATASETS, training_images
from rsslib.errors import (
    PRECISIONS,
    Count,
    InputError,
    Natural,
    check_device_name,
    checked,
    choose,
    shortened,
)
from rsslib.files import (
    check_folder,
    check_writable,
    folder_of,
    project_folder,
    read_regular,
    sha256,
    supernet_files,
    system_errors,
)
from rsslib.methods import LEARNING_RATE, Method, override
from rsslib.space import RESOLUTION, SearchSpace, as_space, check_resolution
from rsstudy.catalogue import BUILDERS, OVERRIDES, TABLE_1, build, methods_of

Folder = str | Path | None  # None takes that of the project
Seconds = Annotated[float, 0, None]
Threads = Annotated[int, 1, os.cpu_count()]
MAIN_METHODS = ("ofa", "rss", "rss-short")
MOST_SUBNETS = 10_000  # per bucket; buckets of rare sizes hardly hold more
LONGEST_NAME = 200  # of a folder, in bytes
MOST_TIMES = 10  # the epochs of a profile, for small custom datasets

# The numbers of a profile that can be changed for a custom run.
OVERRIDABLE = {
    "supernet_epochs": "epochs of RSS-Short and of OFA's supernet",
    "shrinking_epochs": "additional epochs of RSS, and epochs of progressive shrinking",
    "learning_rate_scale": "factor for all learning rates",
    "train_images": "training images",
    "test_images": "test images",
    "subnets_per_bucket": "subnets evaluated per size",
}


@checked
@dataclass(frozen=True)
class Profile:
    """A scale: how much is trained and evaluated. None means all images; for epochs, it means those of Table 1.

    `datasets` are in the order of the paper's figures, with the hardest last. The epochs suit `epochs_for` training
    images, or any number if it is None. Raises InputError for a value out of range.
    """

    name: str
    datasets: tuple[str, ...]
    subnets_per_bucket: Annotated[int, 1, MOST_SUBNETS]
    supernet_epochs: Count | None = None
    shrinking_epochs: Count | None = None
    train_images: Count | None = None
    test_images: Count | None = None
    learning_rate_scale: Annotated[float, 1e-6, None] = 1.0
    needs_cuda: bool = False
    epochs_for: Count | None = None

    def fitted(self, dataset: str, data: Folder = None) -> "Profile":
        """Return the profile with epochs that suit the number of training images of a custom dataset.

        Epochs are multiplied so that training sees as many images, in as many steps, as the profile does with
        `epochs_for` images. The factor is at least 1, because each epoch of RSS trains one subnet, and at most 10.
        `data` is the folder with datasets, by default that of the project. `paper` has Table 1's epochs for CIFAR. If
        the dataset is missing, the profile is returned unchanged, and its epochs do not apply.
        """
        if dataset in DATASETS or not self.epochs_for:
            return self
        images = training_images(dataset, folder_for("data", data))
        if not images:
            return self
        images = min(images, self.train_images or images)
        factor = min(max(self.epochs_for / images, 1), MOST_TIMES)
        s, ps = (round(factor * epochs) for epochs in self.epochs(dataset))
        return replace(self, supernet_epochs=s, shrinking_epochs=ps, train_images=images, epochs_for=None)

    def epochs(self, dataset: str) -> tuple[int, int]:
        """Return the epochs of the supernet and of progressive shrinking on `dataset`."""
        s, ps = TABLE_1.get(dataset, TABLE_1["cifar100"])
        return self.supernet_epochs or s, self.shrinking_epochs or ps

    def describe(self, dataset: str) -> str:
        """Return the scale in words, for captions."""
        s, ps = self.epochs(dataset)
        train, test = (f"{n:,}" if n else "all" for n in (self.train_images, self.test_images))
        rate = LEARNING_RATE * self.learning_rate_scale
        return (
            f"{s} + {ps} epochs (RSS-Short: {s}) on {train} training images, learning rate {rate:g}, "
            f"{self.subnets_per_bucket} subnets per bucket, {test} test images"
        )


PROFILES = {
    "smoke": Profile(
        "smoke",
        ("digits",),
        subnets_per_bucket=3,
        supernet_epochs=60,
        shrinking_epochs=30,
        train_images=896,
        learning_rate_scale=8.0,
        epochs_for=896,
    ),
    "quick": Profile(
        "quick",
        ("fashion_mnist",),
        subnets_per_bucket=15,
        supernet_epochs=12,
        shrinking_epochs=27,
        train_images=6_400,
        test_images=2_000,
        learning_rate_scale=4.0,
        epochs_for=6_400,
    ),
    "paper": Profile(
        "paper",
        ("mnist", "fashion_mnist", "cifar10", "cifar100"),
        subnets_per_bucket=100,
        needs_cuda=True,
    ),
}


def scaled(profile: Profile, **changes: Any) -> Profile:
    """Return the profile with some of `OVERRIDABLE` changed, and a name that lists the changes.

    So runs of another scale have other folders.
    """
    name = profile.name
    for option, value in changes.items():
        if value != getattr(profile, option):
            digits = f"{value:.15g}".replace("+", "")  # as folder names may have them: 2, 0.5, 1000000, 1e-05
            name += f"_{option.replace('_', '-')}-{digits}"
    return replace(profile, **changes, name=name)


@checked
@dataclass(frozen=True)
class Run:
    """One training run and its evaluation."""

    profile: Profile
    dataset: str
    backbone: str
    method: Method
    seed: Natural
    resolution: int = RESOLUTION  # of the images, in pixels
    custom: SearchSpace | None = None  # a space that is not the study's, named `backbone`
    init: tuple[str, str] | None = None  # the file with the initial weights, and their SHA-256; see `origin`

    @property
    def space(self) -> SearchSpace:
        """The search space for 3 channels and 100 classes; `supernets.space_of` gives that of a dataset."""
        return replace(self.custom or SearchSpace(self.backbone), resolution=self.resolution)

    @property
    def name(self) -> str:
        size = "" if self.resolution == RESOLUTION else f"-{self.resolution}px"
        return f"{self.profile.name}/{self.dataset}/{self.backbone}{size}/{self.method.name}/seed{self.seed}"

    @property
    def label(self) -> str:
        """A short description of the run, for progress lines."""
        return f"{self.method.name}, {self.dataset}, {self.backbone}, seed {self.seed}"

    def folder(self, results: Folder = None) -> Path:
        return results_folder(results) / self.name


def folder_for(what: str, folder: Folder = None) -> Path:
    """Return the folder for "data", "results" or "figures"; None takes that of the project."""
    if folder is None:
        return project_folder() / ("data/results" if what == "results" else what)
    return folder_of(folder, what)


def results_folder(results: Folder = None) -> Path:
    """Return the folder for all runs, by default that of the project."""
    return folder_for("results", results)


def check_folder_name(name: object, what: str) -> None:
    """Raise InputError unless `name` can name a folder and leaves a few characters for derived names."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name) or len(name.encode()) > LONGEST_NAME:
        expected = f"letters, digits, - _ and ., at most {LONGEST_NAME} bytes"
        raise InputError(f"{shortened(repr(name))} cannot name {what}: expected {expected}")


@checked
def output_folder(profile: str, figures: Folder = None, runs: Sequence[Run] = ()) -> Path:
    """Return the folder for figures of a profile's runs, below `figures` (by default the folder of the project).

    Its name includes datasets that are not in the profile and methods that are not in the study, so that custom runs
    never replace the study's figures. Raises InputError if the folder cannot be created.
    """
    check_folder_name(profile, "a profile")
    usual = PROFILES[profile].datasets if profile in PROFILES else ()
    custom = [run.dataset for run in runs if run.dataset not in usual]
    custom += [run.method.name for run in runs if run.method.name not in BUILDERS]
    name = "-".join([profile, *dict.fromkeys(custom)])
    check_folder_name(name, "a folder for figures")
    folder = folder_for("figures", figures) / name
    check_writable(folder, "figures")
    return folder


@checked
def plan(
    profile: str | Profile = "smoke",
    datasets: Sequence[str] | Literal["hardest"] | None = None,
    methods: Sequence[str | Method] | str = MAIN_METHODS,
    backbone: str | Backbone | SearchSpace = "mobilenet_v3",
    seeds: Sequence[Natural] = (0,),
    subnets_per_bucket: Count | None = None,
    resolution: int = RESOLUTION,
    data: Folder = None,
    init: Folder = None,
) -> list[Run]:
    """Return the runs for every dataset, method and seed, in that order; trains nothing.

    `datasets` is a list of names, None for all datasets of the profile, or "hardest" for the last one, which the paper
    uses for its ablations. `methods` are names or custom methods, or the name of a group (see `catalogue.methods_of`);
    the profile scales the learning rates of custom methods too. `backbone` is a name, a custom `Backbone`, or a
    `SearchSpace` with other kernel sizes, expand ratios or depths. `subnets_per_bucket` defaults to that of the
    profile. `resolution` is that of the images, 32 to 224 pixels in multiples of 32. `data` is the folder with
    datasets, in which the images of custom datasets are counted (see `Profile.fitted`). `init` gives initial weights:
    the folder of a supernet, or a file of the official package (see `rsslib.checkpoint.warm_start`); the names of the
    methods then include it. Raises InputError for an unknown name or a value out of range.
    """
    start = origin(init) if init is not None else None
    if not isinstance(profile, Profile):
        profile = PROFILES[choose(profile, PROFILES, "profile")]
    if subnets_per_bucket is not None:
        profile = replace(profile, subnets_per_bucket=subnets_per_bucket)
    space = as_space(backbone)
    custom: SearchSpace | None = replace(space.reference, resolution=RESOLUTION)
    if space.name in BACKBONES:
        if custom != SearchSpace(space.name):
            raise InputError(f"backbone {space.name!r} is not the study's of that name: give it another name")
        custom = None
    check_resolution(resolution)
    if datasets is None or datasets == "hardest":
        datasets = profile.datasets[-1:] if datasets else profile.datasets
    if isinstance(methods, str):
        methods = methods_of(methods, small=profile.name.startswith("smoke"))
    datasets, methods, seeds = different(datasets, "datasets"), different(methods, "methods"), different(seeds, "seeds")
    for name in (profile.name, space.name, *datasets, *(getattr(method, "name", method) for method in methods)):
        check_folder_name(name, "a profile, backbone, dataset or method")
    runs = []
    for dataset in datasets:
        scale = profile.fitted(dataset, data)
        for method in methods:
            if isinstance(method, str):
                method = build(method, *scale.epochs(dataset))
            method = override(method, learning_rate_scale=scale.learning_rate_scale)
            if start:
                method = replace(method, name=f"{method.name}-init-{start[1][:8]}")
            runs += [Run(scale, dataset, space.name, method, seed, resolution, custom, start) for seed in seeds]
    return runs


@system_errors()
def origin(init: str | Path) -> tuple[str, str]:
    """Return the file with the weights of a supernet, given that file or its folder, and their SHA-256."""
    path = folder_of(init, "init").absolute()
    path = supernet_files(path)[1] if path.is_dir() else path
    return str(path), sha256(read_regular(path))


def different(values: Sequence, what: str) -> list:
    """Return `values` as a list; raises InputError if it is empty or two values are equal."""
    found = list(values)
    names = [getattr(value, "name", value) for value in found]
    if not found or len({*names}) < len(names):
        raise InputError(f"{what} is {shortened(repr(names))}: expected a list of different entries, at least one")
    return found


def on_hardest(runs: Sequence[Run]) -> list[Run]:
    """Return the runs on the hardest dataset, which is the last."""
    return [run for run in runs if run.dataset == runs[-1].dataset]


def by_worth(runs: Sequence[Run]) -> list[Run]:
    """Sort runs by importance, so that an interrupted campaign has trained the most important runs.

    First seeds come before further seeds. Within a seed, the order is: the main methods on the hardest dataset of each
    profile, the released baseline, the ablations, the other datasets, the other backbone and the hyper-parameters.
    """

    def rank(run: Run) -> tuple:
        name = run.method.name
        return (
            run.seed,
            run.backbone != "mobilenet_v3" or name.endswith(tuple(OVERRIDES)),
            run.dataset != run.profile.datasets[-1],
            name not in MAIN_METHODS,
            name != "ofa-released",
            run.method.subnet_epochs,
        )

    return sorted(runs, key=rank)


@checked
@dataclass(frozen=True)
class Settings:
    """Where results and datasets are, and how runs are trained. Settings do not change the identity of a run.

    Raises InputError for an invalid value.
    """

    results: Any = None  #: folder for all runs: str, Path, or None for that of the project; stored as a Path
    data: Any = None  #: folder with datasets, given in the same way
    device: str = "auto"  #: auto, cpu, cuda or cuda:<n>
    precision: str = "fp32"  #: on CUDA also tf32 for matrix products and convolutions, or bf16 under autocast
    jobs: Count | None = 1  #: runs at once, in threads on CUDA, otherwise in processes; None: as many as fit
    threads: Threads = 1  #: threads per run on a CPU; two help on an idle machine and hurt on a busy one
    time_budget: Seconds | None = None  #: stop cleanly after this time, between epochs or subnets; 0 only checks
    progress: bool = True
    checkpoint_seconds: Seconds = 20.0  #: minimum time between two checkpoints
    rebuild: bool = False  #: set refused runs aside and train them again
    graphs: bool | None = None  #: whether to use CUDA graphs, which are several times as fast; None: yes
    validate_every: Count | None = None  #: epochs between validations of the smallest, middle and largest subnet
    after_epoch: Callable | None = None  #: called after every epoch with the state of training and the run
    measure: Any = None  #: additional measurements of finished runs: `rsstudy.measurement.Measurement`

    def __post_init__(self):
        for what in ("results", "data"):
            folder = folder_for(what, getattr(self, what))
            check_folder(folder, what)
            object.__setattr__(self, what, folder)
        check_device_name(self.device)
        choose(self.precision, PRECISIONS, "precision")
        if self.measure is not None and not callable(getattr(self.measure, "measure", None)):
            raise InputError(f"measure is {self.measure!r}: expected such as rsstudy.measurement.Measurement, or None")
