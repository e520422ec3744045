"""What a run trains, in memory: its dataset, its search space, and its supernet once it is trained."""

from dataclasses import replace

from rsslib.data.dataset import Dataset, cached_dataset
from rsslib.data.readers import DATASETS
from rsslib.device import choose_device
from rsslib.errors import InputError, checked
from rsslib.files import WEIGHTS
from rsslib.space import SearchSpace
from rsslib.supernet import SuperNet, load_tensors
from rsstudy.plan import Run, Settings
from rsstudy.store import REBUILD, configuration, read_record, read_tensors, status_of


def images_of(run: Run, settings: Settings) -> Dataset:
    """The dataset of a run, as much of it as its profile takes, on the settings' device.

    A custom dataset may have fewer images than the profile takes: then all of them.
    """
    profile, size = run.profile, run.resolution
    if run.dataset in DATASETS:
        counts = profile.train_images, profile.test_images
        return cached_dataset(run.dataset, settings.data, settings.device, *counts, size)
    images = cached_dataset(run.dataset, settings.data, settings.device, resolution=size)
    train, test = slice(profile.train_images), slice(profile.test_images)
    return replace(
        images,
        x_train=images.x_train[train],
        y_train=images.y_train[train],
        x_test=images.x_test[test],
        y_test=images.y_test[test],
    )


def space_of(run: Run, images: Dataset) -> SearchSpace:
    """The search space of a run, with the channels and classes of its dataset."""
    return replace(run.space, in_channels=images.channels, classes=images.n_classes)


@checked
def trained_supernet(run: Run, settings: Settings | None = None) -> tuple[SuperNet, Dataset]:
    """The supernet of a finished run in eval mode, with its dataset, on the settings' device.

    Raises InputError if its weights are missing, altered or those of a run of another configuration, and if the dataset
    is not the one it was trained on.
    """
    settings = settings or Settings(device="cpu")
    status_of(run, settings.results, configuration(run))
    return stored_supernet(run, settings)


@checked
def stored_supernet(run: Run, settings: Settings) -> tuple[SuperNet, Dataset]:
    """`trained_supernet` of whatever was trained in the run's folder, for runs that are known by their records."""
    path = run.folder(settings.results) / WEIGHTS
    if not path.exists():
        raise InputError(
            f"{path} does not exist: train {run.name} to its end with `rsslib run` and the same options, since weights "
            "stay on the machine that trained them"
        )
    record = read_record(path.parent)
    settings = replace(settings, device=str(choose_device(settings.device)))
    images = images_of(run, settings)
    if images.checksum != record["config"]["training"]["dataset_sha256"]:
        raise InputError(
            f"the dataset {run.dataset} here is another than the one that {run.name} was trained on: "
            f"restore it in {settings.data}, or {REBUILD}"
        )
    supernet = SuperNet(space_of(run, images), run.method.dropout).to(settings.device)
    load_tensors(supernet.state_dict(), read_tensors(path, record))
    return supernet.eval(), images
