"""rsslib.device: a device that works is chosen."""

import pytest
import torch

from rsslib import device as machine
from rsslib.device import choose_device
from rsslib.errors import InputError


@pytest.fixture
def fake_cuda(monkeypatch):
    """One CUDA device is counted, as the driver's library does it; what its kernels do, the test says."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return lambda kernel: monkeypatch.setattr(machine, "run_kernel", kernel)


FAULTS = [
    RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    AssertionError("Torch not compiled with CUDA enabled"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["architecture", "driver", "build"])
def test_a_cuda_device_that_runs_no_kernel_is_not_chosen(fault, fake_cuda, capsys):
    def failing(device):
        raise fault

    fake_cuda(failing)
    assert choose_device("auto") == torch.device("cpu")
    said, reason = capsys.readouterr().err, str(fault).splitlines()[0]
    assert said == f"computing on the CPU, since the CUDA device 0 runs no kernel ({reason})\n"
    for arguments in (("cuda",), ("cuda:0",), ("auto", True)):
        with pytest.raises(InputError) as caught:
            choose_device(*arguments)
        assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_cuda_device_that_runs_a_kernel_is_chosen(fake_cuda, capsys):
    asked = []
    fake_cuda(asked.append)
    assert choose_device("auto", needed=True) == choose_device("cuda") == torch.device("cuda")
    assert asked == [torch.device("cuda", 0)] * 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("cores", "operators", "gigabytes", "jobs", "expected"),
    [(8, 1, 64, 1, 8), (8, 1, 64, 3, 2), (8, 1, 64, 8, 1), (8, 1, 64, 20, 1), (8, 2, 64, 1, 4), (8, 1, 2, 1, 5),
     (8, 1, 2, 2, 2), (8, 1, 0.1, 1, 1), (2, 8, 64, 1, 1)],
)  # fmt: skip
def test_subnets_are_evaluated_by_the_cores_that_a_run_has(cores, operators, gigabytes, jobs, expected, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "free_memory", lambda device: int(gigabytes * 2**30))
    with machine.use_threads(operators):
        assert machine.evaluation_threads(torch.device("cpu"), jobs) == expected
        assert machine.evaluation_threads(torch.device("cuda"), jobs) == 1
