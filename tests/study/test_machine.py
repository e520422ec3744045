"""rsstudy.machine: a device gets as many runs as fit into its memory."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from rsstudy import machine
from rsstudy.plan import plan


@pytest.mark.parametrize(("free", "cores", "expected"), [(64, 8, 8), (7, 8, 4), (1, 8, 1), (64, 1, 1)])
def test_a_cpu_has_room_for_a_run_a_core_if_memory_allows(free, cores, expected, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * 2**30))
    assert machine.free_jobs(torch.device("cpu"), plan()) == expected


@pytest.mark.parametrize(
    ("gigabytes", "names", "expected"),
    [(7.5, ["rss"], 3), (7.5, ["ofa"], 3), (4.7, ["rss"], 2), (4.7, ["rss", "ofa-batch-128"], 1), (78, ["ofa"], 8)],
)
def test_runs_at_once_on_a_gpu_depend_on_what_their_methods_need(gigabytes, names, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes * 2**30, 80 * 2**30))
    monkeypatch.setattr(machine, "cores", lambda: 16)
    assert machine.free_jobs(torch.device("cuda"), plan("paper", "hardest", names)) == expected
