"""rsslib.device.own_stream on a simulated CUDA device."""

import torch
from simulator import simulated_graphs
from torch.utils._python_dispatch import TorchDispatchMode

from rsslib import device as machine
from rsslib.device import CAPTURING, own_stream

CPU = torch.device("cpu")


def test_a_threads_first_product_and_convolution_never_meet_a_capture(monkeypatch):
    seen = []
    with simulated_graphs() as simulated:
        default = simulated.current_stream()

        def set_up(device):
            seen.append((device, CAPTURING.locked(), simulated.current_stream() is default))

        monkeypatch.setattr(machine, "set_up_libraries", set_up)
        with own_stream(CPU):
            stream = simulated.current_stream()
            assert seen == [(CPU, True, False)] and not CAPTURING.locked()  # under the lock, in the new stream
            assert not torch._C._is_multithreading_enabled()  # else gradients come from a thread that was not set up
            with own_stream(CPU):
                assert simulated.current_stream() is stream and len(seen) == 1
        assert simulated.current_stream() is default and torch._C._is_multithreading_enabled()


def test_libraries_are_set_up_by_a_product_and_a_convolution():
    with Operators() as seen:
        machine.set_up_libraries(CPU)
    assert {"mm", "convolution"} <= seen.names


class Operators(TorchDispatchMode):
    """Names of the operators that are called, without overload."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
