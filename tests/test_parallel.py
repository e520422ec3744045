"""rsslib.parallel: two processes train as one does, stop together, and resume."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import TINY, double_images, random_supernet, sentence, shortened, tables, toy_data
from torch.multiprocessing import spawn

from rsslib import parallel, steps
from rsslib.errors import InputError
from rsslib.evaluate import evaluate_population
from rsslib.methods import one_stage
from rsslib.parallel import ParallelSteps, count_correct, together
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, add_gradients, new_optimizer
from rsslib.trainer import start, train
from rsstudy.catalogue import BUILDERS, build

SPACE = SearchSpace(TINY, classes=4)
STEP, EPOCH = 16, 35  # images of one batch, and of two with a last one of 3, which a second process cannot share
SEVERAL = [name for name in BUILDERS if (method := build(name, 180, 410)).subnet_epochs > method.epochs]
METHODS = {name: shortened(name) for name in SEVERAL}
METHODS["ofa"] = shortened("ofa", 1, 0, 0, 0, 0, 1)  # four subnets, a teacher, sorted channels
SHORT = ("ofa", "rss-2-per-batch-mean", "sandwich", "fair")
GROUPED = {
    "rss": one_stage("rss", 1, Uniform(), batch_size=16, dropout=0.0, groups=2),
    "ofa": replace(METHODS["ofa"], dropout=0.0, groups=2),
    "sandwich": replace(METHODS["sandwich"], dropout=0.0, groups=2),
}
ONE_SUBNET = one_stage("rss", 3, Uniform(), batch_size=16)
POPULATION = [(1.0, SPACE.sample_arch(np.random.default_rng(i))) for i in range(5)]


def trained(method, images, executor):
    """The tensors after a training in float64, which of them had gradients, and the losses."""
    with pytest.MonkeyPatch.context() as patch:
        double_images(patch, (steps, "augment"))
        supernet = start(SPACE, method, 0).supernet.double()
        state = TrainingState(supernet, new_optimizer(supernet))
        train(state, method, toy_data(images), 0, progress=False, executor=executor)
    seen = [name for name, parameter in supernet.named_parameters() if parameter.grad is not None]
    return dict(supernet.state_dict()), seen, [row["loss"] for row in state.history]


def assert_same(theirs, mine, tolerance):
    assert theirs[1] == mine[1] and theirs[2] == pytest.approx(mine[2], rel=1e-6)  # losses are in float32
    for name, tensor in mine[0].items():  # where it is 0 but for rounding, relative to 1
        torch.testing.assert_close(theirs[0][name], tensor, rtol=tolerance, atol=tolerance * 1e-3, msg=name)


class Groups(EagerSteps):
    """In one process, batch norm of two groups; its running statistics are the mean over groups."""

    processes = 2

    def train_step(self, x, y, subnets, share):
        state, method, n = self.state, self.method, len(x)
        state.optimizer.zero_grad(set_to_none=False)
        sizes = [n - n // 2, n // 2] if n >= 4 else [n]
        soft_labels = None
        if self.stage.distill and method.teacher != "largest":
            soft_labels = torch.cat([state.ask_teacher(part) for part in x.split(sizes)])
        total = 0.0
        for i, (arch, (leaves, _)) in enumerate(zip(subnets, self.views.get(subnets), strict=True)):
            running = state.supernet.subnet(arch, dict(state.supernet.named_buffers()))
            logits = state.run(x, arch, leaves, partial(grouped_norm, sizes, running))
            hard, soft = F.cross_entropy(logits, y), 0.0
            if soft_labels is not None:
                soft = -(soft_labels * logits.log_softmax(1)).sum(1).mean()
            if method.teacher == "largest":
                hard, soft_labels = (hard, logits.detach().softmax(1)) if i == 0 else (0.0, soft_labels)
            add_gradients(hard + soft, leaves)
            total += (hard + soft).detach() / len(subnets)
        state.optimizer.step()
        return total


def grouped_norm(sizes, running, x, name, weights):
    outputs, means = [], {f"{name}.running_{what}": 0.0 for what in ("mean", "var")}
    for part in x.split(sizes):
        updated = [running[key].clone() for key in means]
        outputs.append(
            F.batch_norm(part, *updated, weights[f"{name}.weight"], weights[f"{name}.bias"], True, 0.1, 1e-5)
        )
        for key, value in zip(means, updated, strict=True):
            means[key] += value * (len(part) / len(x))
    for key, value in means.items():
        running[key].copy_(value)
    return torch.cat(outputs)


# --- two processes of the library


def on_two_ranks(folder, function, *arguments):
    """What `function` returns in each of two processes that are joined."""
    spawn(_one_rank, (str(folder), function, arguments), 2)
    return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(2)]


def _one_rank(rank, folder, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    Path(folder, str(rank)).write_bytes(pickle.dumps(function(*arguments)))
    dist.destroy_process_group()


def equal_runs(names):
    return {(name, n): trained(METHODS[name], n, ParallelSteps) for name in names for n in (STEP, EPOCH)}


def everything():
    results = equal_runs(SHORT)
    results |= {("groups", name, n): trained(GROUPED[name], n, ParallelSteps) for name in GROUPED for n in (27, EPOCH)}
    with pytest.raises(InputError) as error:
        trained(ONE_SUBNET, STEP, ParallelSteps)
    results["refused"] = sentence(error)

    method, data = METHODS["sandwich"], toy_data(40)
    stop = together(lambda state: dist.get_rank() == 1 and len(state.history) == 1)
    state = train(start(SPACE, method, 0), method, data, 0, stop, progress=False, executor=ParallelSteps)
    results["stopped after"] = len(state.history)

    counts = {1: torch.tensor(7)}
    count_correct(random_supernet(SPACE).eval(), POPULATION, data, counts, progress=False)
    results["counts"] = {number: int(count) for number, count in sorted(counts.items())}
    return results


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("ranks"), everything)


def assert_equal_runs(theirs, names):
    for name in names:
        for n, tolerance in ((STEP, 1e-12), (EPOCH, 1e-8)):
            mine = trained(METHODS[name], n, EagerSteps)
            for rank in theirs:
                assert_same(rank[name, n], mine, tolerance)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_shared_subnets_equal_one_process(name, theirs):
    assert_equal_runs(theirs, [name])


@pytest.mark.long
def test_shared_subnets_equal_one_process_in_every_method(tmp_path):
    names = [name for name in SEVERAL if name not in SHORT]
    assert_equal_runs(on_two_ranks(tmp_path, equal_runs, names), names)


@pytest.mark.long
@pytest.mark.parametrize("n", [27, EPOCH])
@pytest.mark.parametrize("name", GROUPED)
def test_shared_images_equal_one_process_with_batch_norm_of_two_groups(name, n, theirs):
    mine = trained(GROUPED[name], n, Groups)
    for rank in theirs:
        assert_same(rank["groups", name, n], mine, 1e-8)


@pytest.mark.long
def test_one_subnet_per_step_is_refused_with_a_way_to_share_images(theirs):
    for rank in theirs:
        assert "one subnet per step" in rank["refused"] and "--groups 2" in rank["refused"]


def test_groups_are_refused_without_as_many_processes():
    with pytest.raises(InputError) as error:
        trained(GROUPED["rss"], STEP, EagerSteps)
    assert "rss has 2 groups and 1 processes train" in sentence(error)


@pytest.mark.long
def test_all_processes_stop_if_one_asks(theirs):
    assert [rank["stopped after"] for rank in theirs] == [1, 1]


@pytest.mark.long
def test_shared_evaluation_counts_as_one_process(theirs):
    counts = {}
    evaluate_population(random_supernet(SPACE).eval(), POPULATION, toy_data(40), progress=False, counts=counts)
    expected = {number: int(count) for number, count in sorted(counts.items())} | {1: 7}  # which was there
    assert [rank["counts"] for rank in theirs] == [expected, expected]


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.joined("cpu") as joined:
        assert joined == (0, "cpu") and parallel.size() == 1 and not dist.is_initialized()


# --- two processes of the command line


OPTIONS = "--profile smoke --backbone tiny --method sandwich --supernet-epochs 3 --shrinking-epochs 6 --train-images 96"


def begin(results):
    """Two processes of `rsslib run`, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, Path(__file__).with_name("command.py"), "run", *OPTIONS.split()]
    command += ["--subnets-per-bucket", "1", "--device", "cpu", "--results", str(results)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def end(processes):
    """Exit statuses and what was written to stderr."""
    said = [process.communicate(timeout=400)[1] for process in processes]
    return [process.returncode for process in processes], said


def finished(results):
    (folder,) = [path.parent for path in results.rglob("run.json")]
    return (folder / "weights.safetensors").read_bytes(), *tables(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = tmp_path_factory.mktemp("uninterrupted")
    assert end(begin(results))[0] == [0, 0]
    return finished(results)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
def test_signal_to_one_process_ends_both_and_the_run_resumes(rank, number, uninterrupted, tmp_path):
    processes = begin(tmp_path)
    while not [*tmp_path.rglob("checkpoint-000002-*")]:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[rank].send_signal(number)
    statuses, said = end(processes)
    if number == signal.SIGTERM:
        assert statuses == [130, 130] and all("stopped; the same command" in text for text in said)
    else:
        assert statuses[rank] == -signal.SIGKILL and statuses[1 - rank] in (1, 2)
        assert "another process of this training ended" in said[1 - rank] and "Traceback" not in said[1 - rank]
    assert not [*tmp_path.rglob("history.csv")]
    assert end(begin(tmp_path))[0] == [0, 0]
    assert finished(tmp_path) == uninterrupted


@pytest.mark.long
def test_torchrun_starts_the_command(uninterrupted, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [Path(__file__).with_name("command.py"), "run", *OPTIONS.split(), "--subnets-per-bucket", "1"]
    subprocess.run([*launcher, *command, "--device", "cpu", "--results", tmp_path], check=True, timeout=400)
    assert finished(tmp_path) == uninterrupted
