"""What is to be trained: runs, which are dataset x backbone x method x seed at the scale of a profile.

Nothing here trains, and nothing needs PyTorch.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rsslib.backbones import BACKBONES
from rsslib.data.readers import DATASETS, training_images
from rsslib.errors import PRECISIONS, InputError, check_device_name, check_number, choose, shortened
from rsslib.files import check_folder, check_writable, folder_of, project_folder, sha256
from rsslib.methods import LEARNING_RATE, Method, override
from rsslib.space import RESOLUTION, check_resolution
from rsstudy.catalogue import BEYOND, METHODS, OVERRIDES, TABLE_1, build, methods_of

MAIN_METHODS = ("ofa", "rss", "rss-short")
MOST_SUBNETS = 10_000  # in a bucket; rarer sizes hold hardly more that can be found
LONGEST_NAME = 200  # bytes of a folder's
MOST_TIMES = 10  # a profile's epochs, for small datasets of one's own


@dataclass(frozen=True)
class Profile:
    """A scale: how much is trained and evaluated. None means all, and for epochs those of Table 1.

    `datasets` are in the order of the paper's figures, the hardest last. The epochs suit `epochs_for` training images;
    None: whatever there are.
    """

    name: str
    datasets: tuple[str, ...]
    subnets_per_bucket: int
    supernet_epochs: int | None = None
    shrinking_epochs: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    learning_rate_scale: float = 1.0
    needs_cuda: bool = False
    epochs_for: int | None = None

    def fitted(self, dataset: str, data: str | Path | None = None) -> "Profile":
        """The profile with epochs that suit the number of a dataset's training images, if that is one of your own.

        Epochs are multiplied so that as many images are seen, in as many steps, as the profile's on `epochs_for`: at
        least by 1, since each epoch of RSS trains one subnet, and at most by 10. `data` is the folder with datasets, by
        default the project's. `paper` has Table 1's epochs for CIFAR. Where the dataset is not there, the profile stays
        as it is, and its epochs mean nothing.
        """
        if dataset in DATASETS or not self.epochs_for:
            return self
        images = training_images(dataset, data or project_folder() / "data")
        if not images:
            return self
        images = min(images, self.train_images or images)
        times = min(max(self.epochs_for / images, 1), MOST_TIMES)
        s, ps = (round(times * epochs) for epochs in self.epochs(dataset))
        train_images = self.train_images and images
        return dataclasses.replace(
            self, supernet_epochs=s, shrinking_epochs=ps, train_images=train_images, epochs_for=None
        )

    def epochs(self, dataset: str) -> tuple[int, int]:
        """Epochs of the supernet and of progressive shrinking on `dataset`."""
        table = TABLE_1.get(dataset, TABLE_1["cifar100"])
        return self.supernet_epochs or table[0], self.shrinking_epochs or table[1]

    def describe(self, dataset: str) -> str:
        """The scale in words, for captions."""
        s, ps = self.epochs(dataset)
        images = f"{self.train_images:,}" if self.train_images else "all"
        test = f"{self.test_images:,}" if self.test_images else "all"
        rate = LEARNING_RATE * self.learning_rate_scale
        return (
            f"{s} + {ps} epochs (RSS-Short: {s}) on {images} training images, learning rate {rate:g}, "
            f"{self.subnets_per_bucket} subnets a bucket, {test} test images"
        )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", ("digits",), subnets_per_bucket=3, supernet_epochs=9, shrinking_epochs=5,
                train_images=896, learning_rate_scale=4.0, epochs_for=896),
        Profile("quick", ("fashion_mnist",), subnets_per_bucket=15, supernet_epochs=12, shrinking_epochs=27,
                train_images=6_400, test_images=2_000, learning_rate_scale=4.0,
                epochs_for=6_400),
        Profile("paper", ("mnist", "fashion_mnist", "cifar10", "cifar100"), subnets_per_bucket=100, needs_cuda=True),
    )
}  # fmt: skip


def epochs_rule(profile: Profile) -> str:
    """The rule of `Profile.fitted` in words."""
    s, ps = profile.epochs("")
    return (
        f"{profile.name}'s {s} + {ps} are for {profile.epochs_for:,}: times as many as it takes to see as many images, "
        f"at least 1 and at most {MOST_TIMES}, unless you give them"
    )


# What of a profile can be changed for a run of one's own.
OVERRIDABLE = {
    "supernet_epochs": "epochs of RSS-Short and of OFA's supernet",
    "shrinking_epochs": "further epochs, of RSS and of progressive shrinking",
    "learning_rate_scale": "factor of all learning rates",
    "train_images": "training images",
    "test_images": "test images",
    "subnets_per_bucket": "subnets evaluated of each size",
}


def scaled(profile: Profile, **changes: Any) -> Profile:
    """The profile with some of `OVERRIDABLE` changed, and a name that says which, so that its runs have their folders.

    Raises InputError for a value out of range.
    """
    for name, value in changes.items():
        if name == "learning_rate_scale":
            check_number(value, name, 1e-6)
        else:
            check_number(value, name, 1, MOST_SUBNETS if name == "subnets_per_bucket" else None, whole=True)
    changes = {name: value for name, value in changes.items() if value != getattr(profile, name)}
    words = [profile.name, *(f"{name.replace('_', '-')}-{_plain(value)}" for name, value in changes.items())]
    return dataclasses.replace(profile, **changes, name="_".join(words))


def _plain(number: float) -> str:
    """A number in digits that no other has, and in characters that folders may have.

    >>> [_plain(number) for number in (2.0, 0.5, 1_000_000, 1e-5)]
    ['2', '0.5', '1000000', '1e-05']
    """
    return f"{number:.15g}".replace("+", "")


@dataclass(frozen=True)
class Run:
    """One training run and its evaluation."""

    profile: Profile
    dataset: str
    backbone: str
    method: Method
    seed: int
    resolution: int = RESOLUTION  # of its images, in pixels

    @property
    def name(self) -> str:
        size = "" if self.resolution == RESOLUTION else f"-{self.resolution}px"
        return f"{self.profile.name}/{self.dataset}/{self.backbone}{size}/{self.method.name}/seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in a few words, for a line of progress."""
        others = [f"seed {self.seed}"] * (self.seed > 0) + [self.backbone] * (self.backbone != "mobilenet_v3")
        return ", ".join([self.method.name, self.dataset, *others])

    def folder(self, results: str | Path | None = None) -> Path:
        return results_folder(results) / self.name


def results_folder(results: str | Path | None = None) -> Path:
    """The folder for all runs: by default the project's, whatever the current one."""
    return project_folder() / "data" / "results" if results is None else folder_of(results, "results")


def check_folder_name(name: object, what: str) -> None:
    """Raise InputError unless `name` can name a folder, with a few characters to spare for what is beside it."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name) or len(name.encode()) > LONGEST_NAME:
        expected = f"letters, digits, - _ and ., at most {LONGEST_NAME} bytes"
        raise InputError(f"{shortened(repr(name))} cannot name {what}: expected {expected}")


def output_folder(profile: str, figures: str | Path | None = None, runs: Sequence[Run] = ()) -> Path:
    """Where the figures of a profile's runs go: below `figures`, by default the project's folder of that name.

    Runs on other datasets than the profile's, and of other methods than the study's, have a folder named after these,
    so that they never replace the study's figures. Raises InputError where there can be no such folder.
    """
    check_folder_name(profile, "a profile")
    scale = PROFILES.get(profile)
    names = dict.fromkeys(run.dataset for run in runs if scale is None or run.dataset not in scale.datasets)
    known = {*METHODS, *BEYOND}
    names |= dict.fromkeys(run.method.name for run in runs if run.method.name not in known)
    name = "-".join([profile, *names])
    if len(name.encode()) > LONGEST_NAME:
        name = f"{profile}-{sha256(name.encode())[:32]}"
    folder = (project_folder() / "figures" if figures is None else folder_of(figures, "figures")) / name
    check_writable(folder, "figures")
    return folder


def plan(
    profile: str | Profile = "smoke",
    datasets: Sequence[str] | Literal["hardest"] | None = None,
    methods: Sequence[str | Method] | str = MAIN_METHODS,
    backbone: str = "mobilenet_v3",
    seeds: Sequence[int] = (0,),
    subnets_per_bucket: int | None = None,
    resolution: int = RESOLUTION,
    data: str | Path | None = None,
) -> list[Run]:
    """The runs for every dataset, method and seed, in that order; nothing is trained.

    `datasets` is a list of names, None for all of the profile's or "hardest" for its last, on which the paper runs its
    ablations. `methods` are names or methods of your own, whose learning rates the profile scales as it does the
    study's, or the name of a group (see `catalogue.methods_of`). None for `subnets_per_bucket` takes the profile's.
    `resolution` is that of the images, 32 to 224 pixels in multiples of 32. `data` is the folder with datasets, of
    which those of your own are looked at for their number of images (see `Profile.fitted`). Raises InputError for an
    unknown name or a value out of range.
    """
    if not isinstance(profile, Profile):
        profile = PROFILES[choose(profile, PROFILES, "profile")]
    if subnets_per_bucket is not None:
        check_number(subnets_per_bucket, "subnets_per_bucket", 1, MOST_SUBNETS, whole=True)
        profile = dataclasses.replace(profile, subnets_per_bucket=subnets_per_bucket)
    choose(backbone, BACKBONES, "backbone")
    check_resolution(resolution)
    if datasets is None or datasets == "hardest":
        datasets = profile.datasets[-1:] if datasets else profile.datasets
    if isinstance(methods, str):
        methods = methods_of(methods, small=profile.name.startswith("smoke"))
    for what, values in (("datasets", datasets), ("methods", methods), ("seeds", seeds)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"{what} is {values!r}: expected a list with at least one entry")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise InputError(f"{what} holds {getattr(twice[0], 'name', twice[0])!r} twice: expected different entries")
    for seed in seeds:
        check_number(seed, "seed", 0, 2**63 - 1, whole=True)
    for name in (profile.name, *datasets, *(getattr(method, "name", method) for method in methods)):
        check_folder_name(name, "a profile, dataset or method")
    runs = []
    for dataset in datasets:
        scale = profile.fitted(dataset, data)
        for method in methods:
            if isinstance(method, str):
                method = build(method, *scale.epochs(dataset))
            method = override(method, learning_rate_scale=scale.learning_rate_scale)
            runs += [Run(scale, dataset, backbone, method, seed, resolution) for seed in seeds]
    return runs


def on_hardest(runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that are on the last of their datasets, the hardest."""
    return [run for run in runs if run.dataset == runs[-1].dataset]


def by_worth(runs: Sequence[Run]) -> list[Run]:
    """The runs in the order in which a campaign that may be cut short should train them.

    First seeds before further ones; then the main methods on each profile's hardest dataset, the released baseline, the
    ablations, the other datasets, and last the other backbone and the hyper-parameters.
    """

    def rank(run: Run) -> tuple:
        main = run.method.name in MAIN_METHODS
        hardest = run.dataset == run.profile.datasets[-1]
        overridden = any(run.method.name.endswith(suffix) for suffix in OVERRIDES)
        if run.backbone != "mobilenet_v3" or overridden:
            step = 4
        elif not hardest:
            step = 3
        else:
            step = 0 if main else 1 if run.method.name == "ofa-released" else 2
        return run.seed, step, run.method.subnet_epochs

    return sorted(runs, key=rank)


@dataclass(frozen=True)
class Settings:
    """Where results and datasets are, and how runs are trained; nothing here changes what a run is.

    Raises InputError, naming the value, if one cannot be used.
    """

    results: Any = None  #: the folder for all runs: str, Path or None for the project's; once made, a Path
    data: Any = None  #: likewise the folder with datasets
    device: str = "auto"  #: or cpu, cuda, cuda:<n>
    precision: str = "fp32"  #: on CUDA also tf32 for products and convolutions, or bf16 for training under autocast
    jobs: int | None = 1  #: runs at once, on CUDA in threads, else in processes; None: what the device has room for
    threads: int = 1  #: of a run on a CPU; a second one helps on an idle machine, on a busy one it slows the steps
    time_budget: float | None = None  #: seconds until it stops, between epochs or subnets, and keeps all; 0 only checks
    progress: bool = True
    checkpoint_seconds: float = 20.0  #: at least, from one checkpoint to the next
    rebuild: bool = False  #: set aside what is refused, and train it anew
    graphs: bool | None = None  #: steps on CUDA as CUDA graphs (None: yes), several times as fast as one by one
    measure: Any = None  #: what else is made of finished runs, such as `rsstudy.measurement.Measurement`

    def __post_init__(self):
        for what, default in (("results", results_folder()), ("data", project_folder() / "data")):
            folder = default if getattr(self, what) is None else getattr(self, what)
            check_folder(folder, what)
            object.__setattr__(self, what, Path(folder))
        check_device_name(self.device)
        choose(self.precision, PRECISIONS, "precision")
        if self.jobs is not None:
            check_number(self.jobs, "jobs", 1, whole=True)
        check_number(self.threads, "threads", 1, os.cpu_count(), whole=True)
        if self.time_budget is not None:
            check_number(self.time_budget, "time_budget", 0)
        check_number(self.checkpoint_seconds, "checkpoint_seconds", 0)
        for what in ("progress", "rebuild"):
            if not isinstance(getattr(self, what), bool):
                raise InputError(f"{what} is {getattr(self, what)!r}: expected True or False")
        if not isinstance(self.graphs, bool | None):
            raise InputError(f"graphs is {self.graphs!r}: expected True, False, or None for True on CUDA")
