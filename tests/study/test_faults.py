"""Runs survive crashes, damage, full disks, interrupts and each other; what others made cannot run code here."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.torch
import small_runs
import torch
from filelock import FileLock
from helpers import TINY, damaged, payloads, sentence, tables
from small_runs import FILES, PROFILE, tiny

from rsslib import checkpoint, files, trainer
from rsslib import steps as single_steps
from rsslib.backbones import BACKBONES
from rsslib.checkpoint import load_checkpoint, save_checkpoint
from rsslib.errors import InputError, Stopped
from rsslib.space import SearchSpace
from rsstudy import job, store
from rsstudy.engine import RunsFailed
from rsstudy.plan import Settings, plan
from rsstudy.store import identity_of, overview, read_record, write_record
from rsstudy.supernets import trained_supernet
from rsstudy.tables import histories, populations, times

complete = partial(small_runs.complete, checkpoint_seconds=0)  # so that there is one after every epoch


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run and its results folder; read only."""
    results = tmp_path_factory.mktemp("results")
    complete(tiny(), results)
    return tiny()[0], results


@pytest.fixture
def folder(done, tmp_path):
    """The finished run's folder in a copy at `tmp_path`, to be damaged."""
    shutil.copytree(done[1], tmp_path, dirs_exist_ok=True)
    return done[0].folder(tmp_path)


def new_state(run):
    return trainer.start(SearchSpace(run.backbone, in_channels=1, classes=10), run.method, run.seed)


def identity(folder):
    """What the checkpoints of the run in the folder are marked with."""
    return identity_of(read_record(folder))


@contextmanager
def interrupted_after(monkeypatch, epochs, error=KeyboardInterrupt):
    """Within the block, training raises `error` in the epoch after this many (of two steps each)."""
    step, made = single_steps.EagerSteps.train_step, 0

    def counting(*arguments):
        nonlocal made
        made += 1
        if made > 2 * epochs + 1:
            raise error
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(single_steps.EagerSteps, "train_step", counting)
        yield


@pytest.fixture
def interrupted(done, tmp_path, monkeypatch):
    """The folder of a run stopped in its fifth epoch, at `tmp_path`."""
    with interrupted_after(monkeypatch, 4), pytest.raises(Stopped, match="the same call resumes"):
        complete([done[0]], tmp_path)
    return done[0].folder(tmp_path)


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start():
    """Starts a function of this module in a process of its own; returns the process and a connection to it.

    It is a fork of one that has imported everything and started no thread.
    """
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent))))  # this file and its helpers
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["test_faults", "sklearn.datasets", "torch._dynamo"])
        started = []

        def begin(function, *arguments):
            ours, theirs = context.Pipe()
            started.append(context.Process(target=function, args=(theirs, *arguments)))
            started[-1].start()
            theirs.close()
            return started[-1], ours

        yield begin
        for process in started:
            process.kill()


def child(connection, results, methods, log=None, **settings):
    """Complete the runs, once the parent has heard that this process is ready; sends what became of it."""
    torch.set_num_threads(1)
    BACKBONES["tiny"] = TINY
    if log is not None:
        really = job.train

        def logged(state, method, data, seed, *arguments):
            with open(log, "a") as file:
                file.write(f"{method.name} {seed} {os.getpid()}\n")
            return really(state, method, data, seed, *arguments)

        job.train = logged
    planned = tiny(*methods, **{key: settings.pop(key) for key in ("seeds",) if key in settings})
    connection.send("ready")
    connection.recv()
    try:
        complete(planned, results, **settings)
        connection.send("done")
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")


def seeds_child(connection, results, log, seeds):
    child(connection, results, ("rss-short",), log, seeds=seeds, rebuild=True)


def one_epoch_child(connection, results, method, seeds):
    """Killed as soon as it has saved a checkpoint."""
    save = job.save_checkpoint

    def saved(*arguments):
        save(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    job.save_checkpoint = saved
    child(connection, results, (method,), seeds=seeds)


def kill_and_go_on(method, kills, start, tmp_path):
    """Kill this many processes at random moments; every run that they get finished equals the uninterrupted one."""
    (run,), random_ = tiny(method), random.Random(0)
    process, connection = start(child, tmp_path / "whole", (method,))
    connection.recv()
    began = time.perf_counter()
    connection.send("go")
    assert connection.recv() == "done"
    whole, expected = time.perf_counter() - began, tables(run.folder(tmp_path / "whole"))
    lives, results = 0, tmp_path / "0"
    while lives < kills or results.exists():
        process, connection = start(child, results, (method,))
        connection.recv()
        connection.send("go")
        if lives < kills:
            time.sleep(random_.uniform(0, 0.6 * whole))
            process.kill()
        process.join()
        lives += 1
        if overview([run], results).status[0] == "finished":
            assert tables(run.folder(results)) == expected and names(run.folder(results)) == FILES
            results = tmp_path / str(lives)
    return lives


@pytest.mark.long
@pytest.mark.parametrize("method", ["rss", "ofa"])
def test_a_run_killed_at_fifty_random_moments_gives_the_same_files(method, start, tmp_path):
    assert kill_and_go_on(method, 50, start, tmp_path) >= 50


@pytest.mark.long
def test_processes_that_race_to_rebuild_set_aside_and_train_every_run_once(start, tmp_path):
    seeds, results = list(range(4)), tmp_path / "results"
    made = tiny("rss-short", seeds=seeds)
    complete(made[:3], results)
    good = {run: tables(run.folder(results)) for run in made[:3]}
    for run, damage in zip(made[:3], (break_record, break_population, older_code), strict=True):
        damage(run.folder(results))
    racers = [start(seeds_child, results, tmp_path / "log", seeds) for _ in range(4)]
    for _, connection in racers:
        connection.recv()
    for _, connection in racers:
        connection.send("go")
    assert [connection.recv() for _, connection in racers] == ["done"] * 4
    trained = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(trained) == seeds
    assert names(made[0].folder(results).parent) == sorted(
        [f"seed{seed}" for seed in seeds] + [f"replaced-seed{seed}-1" for seed in (0, 1, 2)]
    )
    for run in made:
        assert names(run.folder(results)) == FILES
        assert run not in good or tables(run.folder(results)) == good[run]


# --- going on after every epoch


@pytest.mark.long
@pytest.mark.parametrize(("method", "seeds"), [("ofa", [0]), ("rss", [0, 1])])
def test_runs_killed_after_every_epoch_give_the_same_files(method, seeds, start, tmp_path):
    made, lives = tiny(method, seeds=seeds), 0
    complete(made, tmp_path / "whole")
    for _ in range(1 + sum(run.method.epochs for run in made)):
        process, connection = start(one_epoch_child, tmp_path / "killed", method, seeds)
        connection.recv()
        connection.send("go")
        process.join()
        lives += process.exitcode == -signal.SIGKILL
    assert lives == sum(run.method.epochs for run in made)
    for run in made:
        assert tables(run.folder(tmp_path / "killed")) == tables(run.folder(tmp_path / "whole"))
        assert names(run.folder(tmp_path / "killed")) == FILES


FEW_EPOCHS = replace(PROFILE, supernet_epochs=1, subnets_per_bucket=1, train_images=64, test_images=10)


def workers_child(connection, results, seeds):
    os.setsid()
    connection.send(os.getpid())
    complete(plan(FEW_EPOCHS, methods=("rss",), seeds=seeds), results, jobs=2)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [[0, 1], [0, 1, 2]])
def test_two_workers_killed_after_every_epoch_give_the_same_files(seeds, start, tmp_path):
    made, results, seen = plan(FEW_EPOCHS, methods=("rss",), seeds=seeds), tmp_path / "killed", set()
    complete(made, tmp_path / "whole")

    def reached():
        paths = [path for run in made for path in checkpoint.checkpoints(run.folder(results))]
        return {(path.parent.name, path.name[11:17]) for path in paths}

    while overview(made, results).status.tolist() != ["finished"] * len(made):
        process, connection = start(workers_child, results, seeds)
        group = connection.recv()
        while process.is_alive() and reached() <= seen:
            time.sleep(0.01)
        if process.is_alive():
            os.killpg(group, signal.SIGKILL)
        process.join()
        seen |= reached()
    assert len(seen) >= 2 * len(seeds)  # most epochs; some end before this process looks
    for run in made:
        assert tables(run.folder(results)) == tables(run.folder(tmp_path / "whole"))
        assert names(run.folder(results)) == FILES


def hold(connection, lock):
    with FileLock(lock):
        connection.send("held")
        connection.recv()


def test_the_lock_of_a_process_that_died_is_free(start, tmp_path):
    process, connection = start(hold, tmp_path / "run.lock")
    assert connection.recv() == "held" and store.is_locked(tmp_path)
    process.kill()
    process.join()
    assert not store.is_locked(tmp_path)


def test_a_run_that_another_process_is_at_comes_last(tmp_path, monkeypatch):
    first, second = tiny("rss-short", seeds=(0, 1))
    first.folder(tmp_path).mkdir(parents=True)
    lock, order, really = FileLock(first.folder(tmp_path) / "run.lock"), [], job.train

    def logged(state, method, data, seed, *arguments):
        order.append(seed)
        lock.release()
        return really(state, method, data, seed, *arguments)

    monkeypatch.setattr(job, "train", logged)
    lock.acquire()
    complete([first, second], tmp_path)
    assert order == [1, 0]
    assert overview([first, second], tmp_path).status.tolist() == ["finished"] * 2


def test_waiting_for_another_process_ends_with_the_time_budget(tmp_path):
    (run,) = tiny("rss-short")
    run.folder(tmp_path).mkdir(parents=True)
    with FileLock(run.folder(tmp_path) / "run.lock"):
        began = time.monotonic()
        complete([run], tmp_path, time_budget=0.3)
    assert time.monotonic() - began < 5 and not (run.folder(tmp_path) / "run.json").exists()


# --- interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_ctrl_c_stops_a_run_that_can_go_on(done, start, tmp_path):
    run, results = done[0], tmp_path / "results"
    process, connection = start(child, results, ("rss",))
    connection.recv()
    connection.send("go")
    while not checkpoint.checkpoints(run.folder(results)):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    assert connection.recv() == "Stopped: stopped; the same call resumes from the last checkpoints"
    assert overview([run], results).status.tolist() == ["interrupted"]
    assert not list(run.folder(results).glob(".*"))
    complete([run], results)
    assert tables(run.folder(results)) == tables(run.folder(done[1]))


ENDLESS = replace(PROFILE, shrinking_epochs=100_000, train_images=64)  # of a backbone that worker processes know


def two_workers(connection, results, errors):
    os.setsid()  # a terminal of its own, as it were
    os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
    connection.send(os.getpid())
    try:
        complete(plan(ENDLESS, methods=("rss",), seeds=(0, 1)), results, jobs=2)
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")


def both_at_work(results, start, errors):
    process, connection = start(two_workers, results, errors)
    group, folders = connection.recv(), [run.folder(results) for run in plan(ENDLESS, methods=("rss",), seeds=(0, 1))]
    while not all(checkpoint.checkpoints(folder) for folder in folders):
        assert process.is_alive(), errors.read_text()
        time.sleep(0.1)
    return process, connection, group, folders


@pytest.mark.long
def test_ctrl_c_stops_two_workers(start, tmp_path):
    results, errors = tmp_path / "results", tmp_path / "errors"
    process, connection, group, folders = both_at_work(results, start, errors)
    os.killpg(group, signal.SIGINT)  # as a terminal does: to all processes
    assert connection.poll(20) and connection.recv().startswith("Stopped: stopped; the same call resumes")
    process.join(20)
    assert process.exitcode == 0 and errors.read_text() == ""
    for folder in folders:
        assert not store.is_locked(folder)
        assert load_checkpoint(*resumable(folder))


@pytest.mark.long
@pytest.mark.parametrize("to", ["a worker", "all"])
def test_sigterm_stops_two_workers(to, start, tmp_path):
    process, connection, group, _ = both_at_work(tmp_path / "results", start, tmp_path / "errors")
    if to == "all":  # as a scheduler stops
        os.killpg(group, signal.SIGTERM)
        process.join(20)  # in Python itself; the command line makes this Ctrl-C
        assert process.exitcode == -signal.SIGTERM
    else:
        workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[0].terminate()
        assert connection.poll(20) and connection.recv().startswith("Stopped: stopped; the same call resumes")
        process.join(20)
        assert process.exitcode == 0
    assert (tmp_path / "errors").read_text() == ""


def resumable(folder):
    """What `load_checkpoint` needs to go on with the run in the folder."""
    (run,) = (run for run in plan(ENDLESS, methods=("rss",), seeds=(0, 1)) if run.name in str(folder))
    return new_state(run), folder, identity(folder)


@pytest.mark.long
def test_workers_end_with_the_process_that_started_them(start, tmp_path):
    process, _, _, folders = both_at_work(tmp_path / "results", start, tmp_path / "errors")
    process.kill()
    deadline = time.monotonic() + 20
    while any(store.is_locked(folder) for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_stops_in_a_sentence(number, tmp_path):
    arguments = ["--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures"), "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rsslib", "reproduce", "--notebooks", "02_main_results", *arguments],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("results/**/run.json")):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in text
    assert text.rstrip().splitlines()[-1] == "rsslib: stopped; the same command resumes from the last checkpoint"


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_any_damage_to_a_checkpoint_is_noticed(interrupted, done):
    run, (last, before) = done[0], checkpoint.checkpoints(interrupted)
    good, other = last.read_bytes(), before.read_bytes()
    state = new_state(run)
    assert load_checkpoint(state, interrupted, identity(interrupted)) and len(state.history) == 4
    for content in damaged(good):
        last.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{last.name} cannot be used"):
            assert load_checkpoint(state, interrupted, identity(interrupted))
        assert len(state.history) == 3 and not last.exists()
    last.write_bytes(good[:100])
    before.write_bytes(other[:-1])
    with pytest.warns(UserWarning, match=f"({last.name}|{before.name}) cannot be used"):
        assert not load_checkpoint(state, interrupted, identity(interrupted))


def test_checkpoint_that_cannot_be_read_now_is_kept(interrupted, monkeypatch):
    def read(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    before = checkpoint.checkpoints(interrupted)
    monkeypatch.setattr(checkpoint.files, "read_regular", read)
    with pytest.raises(InputError, match="safetensors cannot be used .Permission denied."):
        load_checkpoint(None, interrupted)
    assert checkpoint.checkpoints(interrupted) == before


@pytest.mark.parametrize("broken", [1, 2])
def test_training_goes_on_from_what_is_not_damaged(broken, interrupted, done, tmp_path):
    for path in checkpoint.checkpoints(interrupted)[:broken]:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="cannot be used"):
        complete([done[0]], tmp_path)
    assert tables(interrupted) == tables(done[0].folder(done[1])) and names(interrupted) == FILES


def forge(path, change):
    """The checkpoint with its tensors and position changed, under a name that vouches for it."""
    tensors = safetensors.torch.load(path.read_bytes())
    position = json.loads(bytes(tensors.pop("position").numpy()))
    change(tensors, position)
    tensors["position"] = torch.frombuffer(bytearray(json.dumps(position).encode()), dtype=torch.uint8)
    content = safetensors.torch.save(tensors)
    path.unlink()
    path.with_name(f"{path.name[:18]}{files.sha256(content)[:32]}.safetensors").write_bytes(content)


WEIGHT = "weights.classifier.weight"
FORGED = {
    "another shape": lambda t, p: t.update({WEIGHT: t[WEIGHT][:, :-1].contiguous()}),
    "another type": lambda t, p: t.update({WEIGHT: t[WEIGHT].double()}),
    "a weight less": lambda t, p: t.pop(WEIGHT),
    "no number": lambda t, p: t.update({WEIGHT: t[WEIGHT] / 0}),
    "momentum of another shape": lambda t, p: t.update({"momentum.classifier.weight": torch.zeros(1)}),
    "half a teacher": lambda t, p: t.update({"teacher.classifier.weight": t[WEIGHT] + 1}),
    "an unknown part": lambda t, p: t.update({"optimizer.lr": torch.zeros(1)}),
    "another stage": lambda t, p: p.update(stage=5),
    "a later epoch": lambda t, p: p.update(epoch=50),
    "no history": lambda t, p: p.update(history=None),
    "a history without losses": lambda t, p: p["history"][0].pop("loss"),
    "no position": lambda t, p: p.clear(),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_checkpoint_that_vouches_for_what_does_not_fit_is_damaged(change, interrupted, done):
    identity_, (last, before) = identity(interrupted), checkpoint.checkpoints(interrupted)
    forge(last, change)
    state = new_state(done[0])
    with pytest.warns(UserWarning, match=f"{last.name[:17]}.* cannot be used"):
        assert load_checkpoint(state, interrupted, identity_, done[0].method)
    assert len(state.history) == 3 and checkpoint.checkpoints(interrupted) == [before]


def test_a_checkpoint_of_another_run_is_not_used(interrupted, done, tmp_path):
    (other,) = tiny(seeds=(1,))
    shutil.copytree(interrupted, other.folder(tmp_path))
    (other.folder(tmp_path) / "run.json").unlink()
    with pytest.warns(UserWarning, match="of another run"):
        complete([other], tmp_path)
    complete([other], tmp_path / "alone")
    assert tables(other.folder(tmp_path)) == tables(other.folder(tmp_path / "alone"))


def test_time_before_a_crash_counts(interrupted, done, tmp_path):
    state = new_state(done[0])
    load_checkpoint(state, interrupted, identity(interrupted))
    complete([done[0]], tmp_path)
    history = pd.read_csv(interrupted / "history.csv")
    assert history.seconds.tolist()[:4] == [row["seconds"] for row in state.history]
    assert times([done[0]], tmp_path).training_seconds[0] == pytest.approx(history.seconds.sum())


def test_a_run_that_goes_on_on_another_machine_has_a_hardware_of_its_own(interrupted, done, tmp_path, monkeypatch):
    here = job.environment(torch.device("cpu"), Settings())
    with monkeypatch.context() as patch, interrupted_after(monkeypatch, 1), pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "environment", lambda *arguments: here | {"hardware": "Abacus"})
        complete([done[0]], tmp_path)
    complete([done[0]], tmp_path)
    record = read_record(interrupted)
    assert record["hardware"] == f"{here['hardware']} + Abacus ({done[0].name})"
    assert record["executor"] == f"eager, compiled loops ({done[0].name})"
    assert record["machines"] == [here, here | {"hardware": "Abacus"}]
    assert tables(interrupted) == tables(done[0].folder(done[1]))


# --- damaged results --------------------------------------------------------------------------------------------------


def test_any_damage_to_a_table_is_refused(done, folder, tmp_path):
    for name, read in (("population.csv", populations), ("history.csv", histories)):
        path = folder / name
        good = path.read_bytes()
        for content in damaged(good, 200, 30):
            path.write_bytes(content)
            with pytest.raises(InputError, match="was damaged or altered after the run wrote it") as error:
                read([done[0]], tmp_path)
            assert str(path) in sentence(error)
        with pytest.raises(InputError, match="damaged or altered"):
            complete([done[0]], tmp_path)
        path.write_bytes(good)
    complete([done[0]], tmp_path)


def test_any_damage_to_a_record_is_refused_or_harmless(done, folder, tmp_path):
    run, path = done[0], folder / "run.json"
    good, expected = path.read_bytes(), times([done[0]], tmp_path)
    refused = harmless = 0
    for content in damaged(good, 1000, 30):
        path.write_bytes(content)
        try:
            pd.testing.assert_frame_equal(times([run], tmp_path), expected)
            harmless += 1  # white space, or an escape of the same character
        except InputError:
            refused += 1
            assert overview([run], tmp_path).status.tolist() == ["other"]
    assert refused > 10 * harmless


def test_any_damage_to_weights_is_refused(done, folder, tmp_path):
    path = folder / "weights.safetensors"
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="weights.safetensors was damaged or altered"):
            trained_supernet(done[0], Settings(tmp_path))
    with pytest.raises(InputError, match="weights.safetensors was damaged or altered"):
        complete(tiny(subnets_per_bucket=3), tmp_path)


def test_a_killed_evaluation_of_more_subnets_goes_on(done, folder, tmp_path, monkeypatch):
    made, write = tiny(subnets_per_bucket=3), write_record

    def killed(folder, record):
        if record["status"] == "finished":
            raise KeyboardInterrupt
        write(folder, record)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(job, "write_record", killed)
        complete(made, tmp_path)  # the population is there, but the record does not vouch for it yet
    with pytest.raises(InputError, match="is trained in"):
        populations(made, tmp_path)
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    complete(made, tmp_path)
    assert len(populations(made, tmp_path)) == 9
    complete([done[0]], tmp_path.with_name("copy"))  # or with as many as before
    assert tables(done[0].folder(tmp_path.with_name("copy"))) == tables(done[0].folder(done[1]))


def test_weights_are_not_used_with_another_dataset(tmp_path):
    profile = replace(PROFILE, datasets=("toy",), train_images=None, test_images=None)
    x, y = np.random.default_rng(0).integers(0, 256, (30, 5, 5), dtype=np.uint8), np.arange(30) % 3
    images = {"x_train": x, "y_train": y, "x_test": x[:9], "y_test": y[:9]}
    np.savez(tmp_path / "toy.npz", **images)
    (run,) = tiny("rss-short", profile=profile)
    complete([run], tmp_path / "results", data=tmp_path)
    trained_supernet(run, Settings(tmp_path / "results", tmp_path, device="cpu"))
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other/toy.npz", **images | {"y_test": 0 * y[:9]})
    with pytest.raises(InputError, match="is another than the one that test/toy/tiny/rss-short/seed0 was trained on"):
        trained_supernet(run, Settings(tmp_path / "results", tmp_path / "other", device="cpu"))
    with pytest.raises(InputError, match="dataset_sha256 is"):
        complete([run], tmp_path / "results", data=tmp_path / "other")


# --- what is refused is rebuilt on request ----------------------------------------------------------------------------


def break_record(folder):
    (folder / "run.json").write_text("{")


def break_population(folder):
    (folder / "population.csv").write_text("bucket,accuracy\n1,99\n")


def break_weights(folder):
    (folder / "weights.safetensors").write_bytes(b"")


def older_code(folder):
    record = read_record(folder)
    record["config"]["training"]["code_version"] = 0
    write_record(folder, record)


@pytest.mark.parametrize("change", [break_record, break_population, break_weights, older_code])
def test_what_is_refused_is_set_aside_and_rebuilt_on_request(change, done, folder, tmp_path, capsys):
    change(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
    with pytest.raises(InputError, match="rebuild=True"):
        complete([done[0]], tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"} == before
    complete([done[0]], tmp_path, rebuild=True)
    assert tables(folder) == tables(done[0].folder(done[1])) and names(folder) == FILES
    aside = folder.with_name("replaced-seed0-1")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert str(aside) in capsys.readouterr().out
    complete([done[0]], tmp_path, rebuild=True)  # nothing is refused now
    assert names(folder.parent) == ["replaced-seed0-1", "seed0"]


def test_a_run_that_another_process_holds_is_not_rebuilt(done, folder, tmp_path):
    break_record(folder)
    with FileLock(folder / "run.lock"):
        complete([done[0]], tmp_path, rebuild=True, time_budget=0.3)
    assert names(folder) == FILES and not list(folder.parent.glob("replaced-*"))


# --- faults in training -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_before_it(done, tmp_path, monkeypatch):
    run, step, losses = done[0], single_steps.EagerSteps.train_step, [1.0] * 5 + [float("nan")] * 9
    with monkeypatch.context() as patch, pytest.raises(RunsFailed) as error:
        patch.setattr(single_steps.EagerSteps, "train_step", lambda *a: step(*a) * losses.pop(0))
        complete([run], tmp_path)
    text = sentence(error)
    assert "the loss is nan in stage 'rss', epoch 3, step 2, learning rate 0.0" in text and "subnets (Arch(" in text
    assert [len(e) for e in error.value._render_traceback_()] == [len(f"RunsFailed: {text}")]
    assert checkpoint.checkpoints(run.folder(tmp_path))[0].name.startswith("checkpoint-000002")
    complete([run], tmp_path)
    assert tables(run.folder(tmp_path)) == tables(run.folder(done[1]))


def test_weights_that_are_not_finite_are_never_written(done, tmp_path):
    state = new_state(done[0])
    save_checkpoint(state, tmp_path)
    before = names(tmp_path)
    with torch.no_grad():
        state.supernet.classifier.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="weights.classifier.weight is not finite"):
        save_checkpoint(state, tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_says_what_to_lower(error, done, tmp_path, monkeypatch):
    settings = Settings(tmp_path, device="cpu", jobs=3, progress=False, checkpoint_seconds=0)
    with interrupted_after(monkeypatch, 2, error):
        caught = job.train_and_evaluate(done[0], settings)
    assert isinstance(caught, InputError)
    assert "ran out of memory on cpu: choose fewer jobs at once, a smaller batch size" in str(caught)
    assert len(checkpoint.checkpoints(done[0].folder(tmp_path))) == 2
    assert job.train_and_evaluate(done[0], settings) is True


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "lasts"), [("mkdir", [0, 2]), ("fsync", range(0, 99, 3))])
def test_a_disk_that_is_full_at_any_write_corrupts_nothing(function, lasts, tmp_path, monkeypatch):
    (run,), really, writes = tiny("rss-short"), getattr(os, function), 0
    complete([run], tmp_path / "whole")
    for last in lasts:
        results, writes = tmp_path / str(last), 0

        def full(*arguments, last=last, results=results, **settings):
            nonlocal writes
            writes += 1
            if writes > last:
                raise OSError(errno.ENOSPC, "No space left on device")
            return really(*arguments, **settings)

        folder = run.folder(results)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, function, full)
                complete([run], results)
            break
        except RunsFailed as error:
            (reason,) = error.failures.values()
            assert isinstance(reason, InputError) and str(folder) in str(reason)
            assert "cannot be written (No space left on device)" in str(reason) and "\n" not in str(reason)
        assert not folder.exists() or not list(folder.glob(".*"))
        complete([run], results)
        assert tables(folder) == tables(run.folder(tmp_path / "whole")) and names(folder) == FILES
    assert last > 1 and (function == "mkdir" or last >= writes > 12)


def test_a_disk_that_is_really_full(done, tmp_path, remount):
    remount("size=600k")
    with pytest.raises(RunsFailed, match="No space left on device"):
        complete([done[0]], tmp_path)
    folder = done[0].folder(tmp_path)
    assert overview([done[0]], tmp_path).status.tolist() == ["interrupted"] and not list(folder.glob(".*"))
    remount("size=50m")
    complete([done[0]], tmp_path)
    assert tables(folder) == tables(done[0].folder(done[1]))


def test_what_a_killed_process_left_half_written_is_removed(interrupted, done, tmp_path):
    (interrupted / ".weights.safetensors.x1y2.tmp").write_bytes(b"half")
    complete([done[0]], tmp_path)
    assert names(interrupted) == FILES


# --- hostile files ----------------------------------------------------------------------------------------------------


def test_a_hostile_checkpoint_is_refused(interrupted, done, tmp_path):
    for content in payloads(tmp_path / "ran"):
        for path in checkpoint.checkpoints(interrupted):
            path.unlink()
        (interrupted / f"checkpoint-000004-{files.sha256(content)[:32]}.safetensors").write_bytes(content)
        state = new_state(done[0])
        with pytest.warns(UserWarning, match="cannot be used"):
            assert not load_checkpoint(state, interrupted)
    assert not (tmp_path / "ran").exists()


def test_hostile_weights_are_refused(done, folder, tmp_path):
    for content in payloads(tmp_path / "ran"):
        record = read_record(folder)
        record["sha256"]["weights.safetensors"] = files.write(folder / "weights.safetensors", content)
        write_record(folder, record)
        with pytest.raises(InputError, match="is not a safetensors file"):
            trained_supernet(done[0], Settings(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_the_payload_would_run(tmp_path):
    pickle.loads(next(payloads(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()
