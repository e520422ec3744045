"""Runs placed by Ray, on this machine's devices or on the nodes of a cluster that share the results folder."""

import os
import socket
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsslib.device import choose_device, first_line
from rsslib.errors import InputError, checked, choose, needed
from rsslib.files import make_folder
from rsstudy.engine import finish, prepare
from rsstudy.job import train_and_evaluate
from rsstudy.machine import run_bytes
from rsstudy.plan import Run, Settings
from rsstudy.workers import Results, sendable

RETRIES = 5  # how often a run may lose its process or node


@checked
def complete_with_ray(
    runs: Sequence[Run],
    settings: Settings,
    address: str | None = None,
    finished: Callable[[Run], None] = lambda run: None,
) -> None:
    """Finish every run, as `engine.complete` does, where Ray finds room.

    Without `address`, Ray starts on this machine, takes all of its devices and ends with the call. An address,
    host:port or auto, is that of a cluster which this machine has joined. The settings' device is auto (CUDA if a
    node has it), cpu or cuda; `jobs` runs share each GPU or, on CPUs, each machine. A run whose process or node
    dies resumes on another from its last checkpoint; one that raises an exception is not tried again. Every node
    must see the results folder under the same path; datasets are read, or downloaded, on each node.
    """
    choose(settings.device, ("auto", "cpu", "cuda"), "device for Ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its next default, or it warns
    ray = needed("ray", "cluster")
    done, todo, _ = prepare(runs, replace(settings, device="cpu", jobs=1))
    results, data = Path(settings.results).resolve(), Path(settings.data).resolve()
    there = replace(settings, results=results, data=data, progress=False)

    def attempts(runs: Sequence[Run], wait: bool) -> Results:
        started = not ray.is_initialized()
        try:
            if started:
                _connect(ray, address)
            yield from _on_nodes(ray, runs, there)
        finally:
            if started:
                ray.shutdown()

    finish(done, todo, attempts, settings.progress, finished)


def _on_nodes(ray: Any, runs: Sequence[Run], settings: Settings) -> Results:
    """Attempt the runs as Ray's tasks; yields each with its result."""
    device, share = _share(ray, settings, runs)
    settings = replace(settings, device=device, jobs=settings.jobs or 1)
    token = make_folder(settings.results) / f".{uuid.uuid4().hex}"  # a node that sees this file shares the folder
    task = ray.remote(_on_node).options(max_retries=RETRIES, **share)
    tasks: list[Any] = []
    try:
        token.touch()
        tasks += [task.remote(run, settings, str(token)) for run in runs]
        futures = {started.future(): run for started, run in zip(tasks, runs, strict=True)}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()
    finally:
        token.unlink(missing_ok=True)
        for started in tasks:  # what runs write survives being killed
            ray.cancel(started, force=True)


def _on_node(run: Run, settings: Settings, token: str) -> bool | Exception:
    """Attempt a run on a node; an exception is returned, since Ray would wrap what is raised."""
    if not Path(token).exists():
        return InputError(
            f"a node does not see {settings.results}: mount the folder there under the same path, or give another"
        )
    choose_device(settings.device)
    return sendable(train_and_evaluate(run, settings))


def _connect(ray: Any, address: str | None) -> None:
    """Start Ray on this machine, or join the cluster at `address`; raises InputError if that fails."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init("local", object_store_memory=100 * 2**20, **quiet)  # hardly anything passes through it
            return
        host, _, port = (os.environ.get("RAY_ADDRESS", address) if address == "auto" else address).rpartition(":")
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, **quiet)
    except Exception as error:  # of many types, one for each way of not being there
        why = f"({first_line(error)})"
        if address is None:
            raise InputError(f"Ray does not start here {why}: if TMPDIR is a long path, set RAY_TMPDIR=/tmp") from None
        raise InputError(
            f"no Ray cluster can be joined at {address!r} {why}: "
            "start its first node with `ray start --head`, and join it from here with `ray start --address`"
        ) from None


def _share(ray: Any, settings: Settings, runs: Sequence[Run]) -> tuple[str, dict[str, float]]:
    """Return the device, and what one run takes of a node."""
    there = ray.cluster_resources()
    if settings.device != "cpu" and there.get("GPU", 0) >= 1:
        return "cuda", {"num_gpus": 1 / (settings.jobs or 1), "num_cpus": 0}
    if settings.device == "cuda" or (settings.device == "auto" and any(run.profile.needs_cuda for run in runs)):
        raise InputError("these runs need a GPU and Ray finds none: start a node that has one, or give device cpu")
    if not there.get("CPU", 0):
        raise InputError("Ray finds no node with a CPU to give: start one without --num-cpus=0")
    cores = min(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return "cpu", {
        "num_cpus": max(1, cores // settings.jobs) if settings.jobs else 1,
        "memory": max(run_bytes(run, "cpu") for run in runs),
    }
