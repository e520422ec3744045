"""rsstudy.cluster: the engine that hands runs to Ray, on real Ray nodes on this machine."""

import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from helpers import sentence, tables
from small_runs import complete, tiny

from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsstudy import cli
from rsstudy import cluster as placing
from rsstudy.engine import RunsFailed
from rsstudy.machine import run_bytes
from rsstudy.plan import Profile, Settings, plan

PROFILE = Profile("test", ("digits",), subnets_per_bucket=1, train_images=64, test_images=40)


@dataclass(frozen=True)
class Diary(Uniform):
    """Uniform over small subnets, noting each epoch that it is asked for and the process that asks.

    It waits in epoch `hold` until the file `gate` is there, and refuses when `broken`.
    """

    expands: tuple = (3,)
    depths: tuple = (2,)
    path: str = ""
    gate: str = ""
    hold: int = -1
    broken: bool = False

    def subnets(self, space, rng, epoch, epochs, steps):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()} {epoch}\n")
        if self.broken:
            raise RuntimeError("no subnets today")
        while epoch == self.hold and not os.path.exists(self.gate):
            time.sleep(0.05)
        return super().subnets(space, rng, epoch, epochs, steps)

    def entries(self):
        """Processes and epochs, in order."""
        if not Path(self.path).exists():
            return []
        lines = Path(self.path).read_text().split("\n")[:-1]
        return [tuple(map(int, line.split())) for line in lines]


def diary_run(folder, name, epochs, **settings):
    sampler = Diary(path=str(folder / f"{name}.txt"), gate=str(folder / "gate"), **settings)
    (run,) = plan(PROFILE, methods=[one_stage(name, epochs, sampler)])
    return run, sampler


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock" and path.is_file())


@pytest.fixture
def ray(monkeypatch, tmp_path_factory):
    """Ray, told to be quiet and small; nothing of it is left afterwards."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):  # "auto" finds any cluster of this machine
        yield from quiet_ray(monkeypatch)


def quiet_ray(monkeypatch):
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # pytest's folders are too deep for Ray's sockets
    for name, value in {
        "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DISABLE_DASHBOARD_LOG_INFO": "1", "OMP_NUM_THREADS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray")
    # the samplers above travel by value, as those of a notebook do: the nodes cannot import this file
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    shutil.rmtree(folder, ignore_errors=True)


def ray_processes():
    """Ray's processes below this one, or left behind by it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}\0".encode() in path.read_bytes() + b"\0":
                found.append(int(path.parent.name))
        except OSError:
            pass
    return set(found) - {os.getpid()}


# --- real nodes


@pytest.mark.long
def test_runs_survive_the_death_of_a_node(ray, tmp_path):
    from ray.cluster_utils import Cluster

    first, first_diary = diary_run(tmp_path, "first", 5, hold=3)
    second, second_diary = diary_run(tmp_path, "second", 5, hold=3)
    broken, broken_diary = diary_run(tmp_path, "broken", 1, broken=True)
    gate = tmp_path / "gate"
    gate.touch()
    complete([first, second], tmp_path / "local")
    for path in (first_diary.path, second_diary.path, gate):
        Path(path).unlink()
    results = tmp_path / "ray"
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
    lean = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    nodes = Cluster(initialize_head=True, head_node_args={**small, **lean, "_system_config": health})
    try:
        doomed = nodes.add_node(**small)
        ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")

        def kill():  # when both runs, one on each node, are at their fourth epoch
            while not all(len(diary.entries()) == 4 for diary in (first_diary, second_diary)):
                time.sleep(0.05)
            workers = {diary.entries()[-1][0] for diary in (first_diary, second_diary)}
            nodes.remove_node(doomed, allow_graceful=False)
            while workers <= ray_processes():  # the node's worker outlives it for a moment
                time.sleep(0.05)
            gate.touch()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with pytest.raises(RunsFailed) as failed:
            placing.complete_with_ray([broken, first, second], Settings(results, device="cpu", checkpoint_seconds=0))
        killer.join(10)
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert not ray_processes()
    # what failed is named, and not tried again
    assert list(failed.value.failures) == [broken.name]
    assert "no subnets today" in str(failed.value) and len(broken_diary.entries()) == 1
    # one run was lost and went on elsewhere from its last checkpoint, the other never noticed
    kept, lost = sorted((first_diary.entries(), second_diary.entries()), key=len)
    assert [epoch for _, epoch in kept] == [0, 1, 2, 3, 4] and len({process for process, _ in kept}) == 1
    assert [epoch for _, epoch in lost] == [0, 1, 2, 3, 3, 4]
    assert len({process for process, _ in lost[:4]}) == len({process for process, _ in lost[4:]}) == 1
    for run in (first, second):
        assert tables(run.folder(results)) == tables(run.folder(tmp_path / "local"))
    assert names(first.folder(results)) == names(first.folder(tmp_path / "local"))
    assert not list(results.glob(".*"))


@pytest.mark.long
def test_a_node_without_the_results_folder_gets_one_sentence(ray, tmp_path, monkeypatch):
    run, diary = diary_run(tmp_path, "run", 1)
    monkeypatch.setattr(placing.Path, "touch", lambda path: None)  # now no node sees the token
    with pytest.raises(RunsFailed, match="a node does not see .*: mount the folder there") as error:
        placing.complete_with_ray([run], Settings(tmp_path / "ray", device="cpu", progress=False))
    assert list(error.value.failures) == [run.name] and diary.entries() == []
    assert not ray.is_initialized() and not ray_processes()


@pytest.mark.long
@pytest.mark.parametrize("address", ["nowhere", "auto", "127.0.0.1:9"])
def test_an_address_without_a_cluster_gets_one_sentence(address, ray, tmp_path):
    run, _ = diary_run(tmp_path, "none", 1)
    with pytest.raises(InputError, match=f"no Ray cluster can be joined at '{address}'") as error:
        placing.complete_with_ray([run], Settings(tmp_path / "results", device="cpu", progress=False), address)
    sentence(error)
    assert not (tmp_path / "results").exists()


# --- without Ray


@pytest.mark.parametrize("how", [["--engine", "ray"], ["--address", "auto"]])
def test_missing_ray_gets_one_sentence(how, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["reproduce", *how, "--results", str(tmp_path), "--notebooks", "02_main_results"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'rsslib[cluster]'" in error
    assert not list(tmp_path.iterdir())


def test_a_device_of_one_machine_gets_one_sentence(tmp_path):
    with pytest.raises(InputError, match="'cuda:1'") as error:
        placing.complete_with_ray(tiny(), Settings(tmp_path, device="cuda:1"))
    assert sentence(error)


def nodes(*resources):
    """Ray with these nodes, each alive or not, with its resources."""
    alive = [found for there, found in resources if there]
    total = {name: sum(found.get(name, 0) for found in alive) for name in ("CPU", "GPU")}
    return SimpleNamespace(
        nodes=lambda: [{"Alive": there, "Resources": found} for there, found in resources],
        cluster_resources=lambda: {name: value for name, value in total.items() if value},
    )


@pytest.mark.parametrize(
    ("device", "jobs", "found", "expected"),
    [
        ("auto", None, [(True, {"CPU": 8.0})], ("cpu", {"num_cpus": 1})),
        ("auto", 3, [(True, {"CPU": 8.0}), (True, {"CPU": 16.0})], ("cpu", {"num_cpus": 2})),
        ("cpu", 9, [(True, {"CPU": 4.0, "GPU": 1.0})], ("cpu", {"num_cpus": 1})),
        ("auto", 4, [(True, {}), (True, {"CPU": 4.0, "GPU": 2.0})], ("cuda", {"num_gpus": 0.25, "num_cpus": 0})),
        ("auto", 1, [(False, {"CPU": 4.0, "GPU": 2.0}), (True, {"CPU": 2.0})], ("cpu", {"num_cpus": 2})),
        ("auto", None, [(True, {"GPU": 2.0})], ("cuda", {"num_gpus": 1, "num_cpus": 0})),
    ],
)
def test_a_run_gets_its_share_of_a_node(device, jobs, found, expected):
    where, share = placing._share(nodes(*found), Settings(device=device, jobs=jobs), tiny("ofa", "rss"))
    if where == "cpu":  # which Ray grants only where there is room
        assert share.pop("memory") == run_bytes(tiny("ofa")[0], "cpu")
    assert (where, share) == expected


@pytest.mark.parametrize(
    ("device", "profile", "found", "named"),
    [
        ("cuda", PROFILE, [(True, {"CPU": 4.0})], "need a GPU"),
        ("auto", replace(PROFILE, needs_cuda=True), [(True, {"CPU": 4.0})], "need a GPU"),
        ("cpu", PROFILE, [(True, {})], "no node with a CPU"),
    ],
)
def test_a_cluster_that_cannot_run_them_gets_one_sentence(device, profile, found, named):
    with pytest.raises(InputError) as error:
        placing._share(nodes(*found), Settings(device=device), tiny(profile=profile))
    assert named in sentence(error)
