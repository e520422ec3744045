"""rsslib.device.own_stream on a CUDA device that is not there."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsslib import device as machine
from rsslib.device import CAPTURING, own_stream


class Stream:
    def __init__(self, device=None):
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other):
        pass


@pytest.fixture
def current(monkeypatch):
    """The streams that are current, the last one innermost."""
    default = Stream()
    current = [default]

    @contextmanager
    def stream(inner):
        current.append(inner)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return current


def test_a_threads_first_product_and_convolution_never_meet_a_capture(current, monkeypatch):
    seen = []

    def set_up(device):
        seen.append((device, CAPTURING.locked(), len(current)))

    monkeypatch.setattr(machine, "set_up_libraries", set_up)
    device = torch.device("cuda")
    with own_stream(device):
        assert seen == [(device, True, 2)] and not CAPTURING.locked()  # under the lock, in the new stream
        assert not torch._C._is_multithreading_enabled()  # else gradients come from a thread that was not set up
        with own_stream(device):
            assert len(current) == 2 and len(seen) == 1
    assert torch._C._is_multithreading_enabled()


def test_libraries_are_set_up_by_a_product_and_a_convolution():
    with Operators() as seen:
        machine.set_up_libraries(torch.device("cpu"))
    assert {"mm", "convolution"} <= seen.names


class Operators(TorchDispatchMode):
    """Names of the operators that are called, without overload."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
