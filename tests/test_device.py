"""rsslib.device: the choice of a device, how many subnets fit on it, and which errors mean that memory ran out."""

import errno

import pytest
import torch

from rsslib import device as machine
from rsslib.device import choose_device, is_out_of_memory
from rsslib.errors import InputError


@pytest.fixture
def fake_cuda(monkeypatch):
    """One CUDA device is counted, as the driver's library does; the test gives what its kernels do."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return lambda kernel: monkeypatch.setattr(machine, "run_kernel", kernel)


FAULTS = [
    RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    AssertionError("Torch not compiled with CUDA enabled"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["architecture", "driver", "build"])
def test_cuda_device_that_runs_no_kernel_is_not_chosen(fault, fake_cuda, capsys):
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


def test_cuda_device_that_runs_a_kernel_is_chosen(fake_cuda, capsys):
    asked = []
    fake_cuda(asked.append)
    assert choose_device("auto", needed=True) == choose_device("cuda") == torch.device("cuda")
    assert asked == [torch.device("cuda", 0)] * 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("cores", "operators", "gigabytes", "jobs", "expected"),
    [
        (8, 1, 64, 1, 8),
        (8, 1, 64, 3, 2),
        (8, 1, 64, 8, 1),
        (8, 2, 64, 1, 4),
        (8, 1, 2, 2, 2),
        (8, 1, 0.1, 1, 1),
    ],
)
def test_evaluation_threads_share_cores_and_memory(cores, operators, gigabytes, jobs, expected, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "free_memory", lambda device: int(gigabytes * 2**30))
    with machine.use_threads(operators):
        assert machine.evaluation_threads(torch.device("cpu"), jobs) == expected
        assert machine.evaluation_threads(torch.device("cuda"), jobs) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_memory_ran_out(error, expected):
    assert is_out_of_memory(error) == expected
