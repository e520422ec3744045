"""The simulator finds what it is for."""

import pytest
import torch
from simulator import CannotCapture, UsedAfterFree, simulated_graphs

from rsslib.device import CAPTURING, own_stream

CPU = torch.device("cpu")


def record(graph, function):
    with CAPTURING:
        graph.capture_begin(pool=0, capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
    return graph


def captured(function):
    with simulated_graphs() as device, own_stream(CPU):
        return record(device.graph(), function)


def test_numbers_are_baked_in():
    x, factor = torch.ones(3), {"f": 2.0}
    graph = captured(lambda: x.mul_(factor["f"]))
    assert x.tolist() == [1, 1, 1]  # capturing changes nothing
    factor["f"] = 5.0
    graph.replay()
    assert x.tolist() == [2, 2, 2]


def test_memory_that_is_gone_is_found():
    x, held = torch.ones(3), [torch.ones(3)]
    graph = captured(lambda: x.add_(held[0]))
    held[0] = torch.zeros(3)
    with pytest.raises(UsedAfterFree):
        graph.replay()


def test_the_memory_of_a_graph_is_not_the_callers():
    kept, x = [], torch.ones(3)
    captured(lambda: kept.append(x + 1)).replay()
    assert kept[0].isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: torch.ones(1).sum().item(),
        lambda: torch.rand(2),
        lambda: torch.ones(2)[torch.ones(2) > 0],
        lambda: torch.ones(3) + torch.tensor([1.0, 2, 3]),
    ],
)
def test_what_waits_for_the_host_cannot_be_captured(wrong):
    with pytest.raises(CannotCapture):
        captured(wrong)


def test_a_capture_that_fails_takes_the_allocator_with_it():
    with simulated_graphs() as device, own_stream(CPU):
        with pytest.raises(CannotCapture, match="previous error"):
            record(device.graph(), lambda: torch.ones(1).item())
        with pytest.raises(AssertionError, match="still in a capture"), CAPTURING:
            device.graph().capture_begin(pool=0, capture_error_mode="thread_local")


def test_the_default_stream_cannot_be_captured():
    with simulated_graphs() as device:
        with pytest.raises(CannotCapture, match="non-default stream"), CAPTURING:
            device.graph().capture_begin(pool=0, capture_error_mode="thread_local")
        with own_stream(CPU):
            record(device.graph(), lambda: None)


def test_a_kernel_whose_first_launch_is_in_a_capture_is_found():
    x = torch.ones(3)
    with simulated_graphs(lazy_loading=True) as device, own_stream(CPU):
        x.add_(0)
        record(device.graph(), lambda: x.add_(1))
        with pytest.raises(CannotCapture) as caught:
            record(device.graph(), lambda: x.mul_(1))
    assert "loaded" in str(caught.value.__context__)
