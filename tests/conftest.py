"""What all suites share: one thread, no silent lack of CUDA, the two search spaces."""

import signal

import pytest
import torch
from helpers import TINY
from hypothesis import settings

from rsslib.backbones import BACKBONES
from rsslib.device import set_precision
from rsslib.files import project_folder
from rsslib.space import SearchSpace

collect_ignore_glob = ["cases/[0-9]*"]  # scripts that `test_cases` runs

torch.set_num_threads(1)
set_precision("fp32")
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell that starts tests in the background disables
settings.register_profile("rsslib", deadline=None, derandomize=True, database=None)
settings.load_profile("rsslib")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from the same state of PyTorch's global generator, whichever ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="PyTorch finds no CUDA device here")
    for item in items:
        if item.get_closest_marker("cuda"):  # not `item.keywords`, which has the names of folders too
            item.add_marker(skip)


@pytest.fixture(scope="session", params=list(BACKBONES))
def space(request):
    """The study's space of either backbone, for CIFAR-100."""
    return SearchSpace(request.param)


@pytest.fixture(scope="session")
def mobilenet():
    return SearchSpace("mobilenet_v3")


@pytest.fixture(scope="module")
def tiny_backbone():
    """The tiny backbone by its name, also for what a module prepares once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_results_in_the_project():
    """Runs of the tests belong in folders of theirs."""
    yield
    assert not (project_folder() / "data" / "results" / "test").exists(), "a test left runs in the project's results"
