"""The runs of a campaign placed by Ray, on this machine's devices or on the nodes of a cluster.

`engine.complete` needs none of this: Ray is an extra, `pip install -e '.[cluster]'`, and imported only when asked for.
"""

import os
import platform
import socket
import tempfile
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rsslib.device import choose_device, first_line
from rsslib.errors import InputError, Stopped, choose, needed
from rsslib.files import make_folder, write
from rsslib.progress import progress_bar
from rsstudy.engine import RunsFailed, complete_run, prepare
from rsstudy.plan import Run, Settings
from rsstudy.store import RECORD, overview
from rsstudy.workers import jobs_that_fit

RETRIES = 5  # how often a run may lose its process or node


def complete_with_ray(
    runs: Sequence[Run],
    settings: Settings,
    address: str | None = None,
    finished: Callable[[Run], None] = lambda run: None,
) -> None:
    """Make every run finished, as `complete` does, where Ray finds room.

    Without `address` Ray starts on this machine, takes all of its devices and ends with the campaign; an address,
    host:port or auto, is that of a cluster which this machine has joined. The settings' device is auto (CUDA if a node
    has it), cpu or cuda; `jobs` runs share each GPU or, on CPUs, each machine. A run whose process or node dies goes on
    elsewhere from its last checkpoint; one that raises an exception is not tried again.

    A node that does not share the results folder with this machine trains in a temporary one, and its files are brought
    back when the run ends: if it dies, so do its checkpoints. Datasets are read on each node or downloaded there.
    """
    if not settings.train:
        return
    choose(settings.device, ("auto", "cpu", "cuda"), "device for Ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its next default, or it warns
    ray = needed("ray", "cluster")
    done, todo, checked = prepare(runs, replace(settings, device="cpu", jobs=1))
    for run in done:
        finished(run)
    if not todo:
        return
    results = Path(settings.results).resolve()
    token = results / f".{uuid.uuid4().hex}"  # a node that sees this file shares the folder
    started = not ray.is_initialized()
    try:
        if started:
            _connect(ray, address)
        device, jobs, share = _share(ray, settings, any(run.profile.needs_cuda for run in todo))
        make_folder(results)
        token.touch()
        there = replace(checked, results=results, data=Path(settings.data).resolve(), device=device, jobs=jobs)
        train = ray.remote(_train).options(max_retries=RETRIES, **share)
        desk = _open_desk(ray)

        def submit(run: Run, files: dict[str, bytes] | None):
            return train.remote(run, files, desk, str(token), replace(there, progress=False))

        failures = _follow(ray, submit, todo, desk, results, settings.progress, finished)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same call goes on from the last checkpoints") from None
    finally:
        token.unlink(missing_ok=True)
        if started:
            ray.shutdown()
    if failures:
        raise RunsFailed(failures) from next(iter(failures.values()))


def _connect(ray, address: str | None) -> None:
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init("local", object_store_memory=100 * 2**20, **quiet)  # which hardly anything passes through
        return
    host, _, port = (os.environ.get("RAY_ADDRESS", address) if address == "auto" else address).rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, **quiet)
    except Exception as error:  # of many types, one for each way of not being there
        raise InputError(
            f"no Ray cluster can be joined at {address!r} ({first_line(error)}): "
            "start its first node with `ray start --head`, and join it from here with `ray start --address`"
        ) from None


def _share(ray, settings: Settings, needs_cuda: bool) -> tuple[str, int, dict[str, float]]:
    """The device, how many runs share it, and the share of a node that one run gets."""
    device, jobs = settings.device, settings.jobs
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes):
        jobs = jobs or 1
        return "cuda", jobs, {"num_gpus": 1 / jobs, "num_cpus": 0}
    if device == "cuda" or (device == "auto" and needs_cuda):
        raise InputError("these runs need a GPU and Ray finds none: start a node that has one, or give device cpu")
    nodes = [(int(node["CPU"]), node.get("memory", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not nodes:
        raise InputError("Ray finds no node with a CPU to give: start one without --num-cpus=0")
    cores = min(cpus for cpus, _ in nodes)
    if jobs is None:  # as many cores a run as leave no node with more runs than its memory holds
        share = max(-(-cpus // jobs_that_fit(memory, cpus)) for cpus, memory in nodes)
        jobs = max(1, cores // share)
    else:
        share = max(1, cores // jobs)
    return "cpu", jobs, {"num_gpus": 0, "num_cpus": share}


def _open_desk(ray):
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    restart = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here, **restart).remote()


class _Desk:
    """Sits beside the process that asked and takes down which runs begin where; one is there again if it was lost."""

    def __init__(self):
        self.log: list[tuple[str, str]] = []

    def begin(self, name: str, node: str) -> None:
        self.log.append((name, node))

    def begun(self, start: int) -> list[tuple[str, str]]:
        return self.log[start:]


def _follow(
    ray, submit: Callable, todo: list[Run], desk, results: Path, progress: bool, finished: Callable[[Run], None]
) -> dict[str, Exception]:
    """Submit the runs and wait for them, tell how each goes, write what they bring back; returns the failures."""
    # None: there are files, to be sent if the node does not see them
    tasks = {submit(run, None if run.folder(results).exists() else {}): run for run in todo}
    failures, running, seen = {}, {}, 0
    with progress_bar(shown=progress, total=len(tasks), unit="run") as bar:
        try:
            while tasks:
                done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=1)
                lines = []
                for name, node in ray.get(desk.begun.remote(seen)):
                    seen += 1
                    if any(name == run.name for run in tasks.values()):
                        lines.append(f"{name}: {'begins again' if name in running else 'begins'} on {node}")
                        running[name] = node
                for task in done:
                    run = tasks.pop(task)
                    try:
                        error, files = ray.get(task)
                        if files is None:
                            tasks[submit(run, _pack(run.folder(results)))] = run
                            continue
                        if files:
                            _unpack(run.folder(results), files)
                    except (ray.exceptions.RayError, InputError) as lost:  # the node, or room to write
                        error = lost
                    running.pop(run.name, None)
                    if error is None:
                        status = overview([run], results).status[0]
                        lines.append(f"{run.name}: {status}")
                        if status == "finished":
                            finished(run)
                    else:
                        failures[run.name] = error
                        lines.append(f"{run.name}: failed, {type(error).__name__}: {error}")
                    bar.update()
                if lines and progress:
                    bar.write("\n".join(lines))
                    bar.set_postfix_str(f"{len(failures)} failed, running: {', '.join(running) or 'none'}")
        finally:
            for task in tasks:  # after an interrupt; what runs write survives being killed
                ray.cancel(task, force=True)
    return failures


def _train(
    run: Run, files: dict[str, bytes] | None, desk, token: str, settings: Settings
) -> tuple[Exception | None, dict[str, bytes] | None]:
    """`complete_run` on a node; returns its exception, and its files if the results folder is not shared.

    `files` is what that folder holds, or None if it is to be asked for where it is needed, by returning None.
    """
    shared = Path(token).exists()
    if not shared and files is None:
        return None, None
    desk.begin.remote(run.name, platform.node())  # not waited for: Ray would give this run's CPU to another meanwhile
    with tempfile.TemporaryDirectory() as temporary:
        if not shared and files is not None:
            _unpack(run.folder(temporary), files)
        error = None
        try:
            choose_device(settings.device)
            complete_run(run, settings if shared else replace(settings, results=temporary))
        except Exception as failure:  # returned, since Ray would wrap what is raised
            error = failure
            error.add_note(traceback.format_exc())
        return error, {} if shared else _pack(run.folder(temporary))


def _pack(folder: Path) -> dict[str, bytes]:
    """The files of a results folder, but for locks and temporary ones."""
    files = [path for path in folder.glob("[!.]*") if path.suffix != ".lock"]
    return {path.name: path.read_bytes() for path in files}


def _unpack(folder: Path, files: dict[str, bytes]) -> None:
    """Make the folder hold these files and no others; the record, which says what is there, is written last."""
    make_folder(folder)
    for name in sorted(files, key=lambda name: name == RECORD):
        write(folder / name, files[name])
    for name in _pack(folder).keys() - files.keys():
        (folder / name).unlink()
