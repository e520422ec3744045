"""One run: train, evaluate and measure what is missing in its folder."""

import json
import math
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load

from rsslib import files
from rsslib.checkpoint import (
    checkpoint_bytes,
    checkpoints,
    load_checkpoint,
    restore,
    save_checkpoint,
    warm_start,
    write_card,
)
from rsslib.data.dataset import Dataset
from rsslib.data.readers import LICENCES
from rsslib.device import (
    evaluation_threads,
    free_memory,
    is_out_of_memory,
    release_memory,
    use_threads,
)
from rsslib.errors import InputError, check_room
from rsslib.evaluate import EVALUATOR, evaluate_population
from rsslib.files import CARD, WEIGHTS
from rsslib.parallel import ProcessLost, StopAsked, count_correct, share, size, together
from rsslib.population import anchors
from rsslib.samplers import SIZES
from rsslib.space import Arch
from rsslib.steps import TrainingState
from rsslib.supernet import SuperNet, load_tensors
from rsslib.trainer import start, train
from rsstudy.machine import environment, executor_for, resumed, step_bytes
from rsstudy.plan import Run, Settings
from rsstudy.store import (
    ANCHORS,
    HISTORY,
    LIVE,
    LOCK,
    POPULATION,
    Refused,
    configuration,
    identity_of,
    population_of,
    read_record,
    read_tensors,
    set_aside,
    status_of,
    write_record,
)
from rsstudy.supernets import images_of, space_of


def to_measure(run: Run, settings: Settings) -> bool:
    return settings.measure is not None and bool(settings.measure.missing(run, run.folder(settings.results)))


def train_and_evaluate(
    run: Run,
    settings: Settings,
    deadline: float = math.inf,
    wait: bool = True,
    stop: threading.Event | None = None,
) -> bool | Exception:
    """Finish one run in this process; returns whether it is finished, or the exception that was raised.

    The settings' device is cpu, cuda or cuda:<n>. If another process holds the run, this one waits for it, or without
    `wait` returns False at once. Training stops between epochs, evaluation between subnets, at `deadline` (see
    `time.time`) or once `stop` is set. Every epoch's time counts once.
    """

    def is_time() -> bool:
        return time.time() >= deadline or (stop is not None and stop.is_set())

    if is_time():
        return False
    try:
        folder = files.make_folder(run.folder(settings.results))
        patience = deadline - time.time() if wait else 0
        with files.system_errors(), files.locked(folder / LOCK, patience, is_time) as mine:
            return mine and Job(run, folder, settings, is_time).finish()
    except Exception as error:
        problem = error
        if is_out_of_memory(error):
            problem = InputError(
                f"{run.name} ran out of memory on {settings.device}: choose fewer jobs at once, a smaller batch size "
                "or another device; the last checkpoint is kept"
            )
        problem.add_note(traceback.format_exc())
        problem.__cause__ = problem.__context__ = None  # tracebacks would keep networks and graphs alive
        return problem.with_traceback(None)


def lead(work: Callable[[], Any]) -> Any:
    """Do what rank 0 of several processes does, then end the others' `follow`; returns the result of `work`."""
    try:
        return work()
    finally:
        if size() > 1:
            with suppress(ProcessLost):
                share(None)


def follow(settings: Settings) -> None:
    """Take part in the training and evaluation of runs that rank 0 sends, until it ends; writes nothing."""
    while (task := share()) is not None:
        run, threads, tensors, counted = task
        job = Job(run, Path(), settings, lambda: False)
        state = job.new_state()
        with use_threads(threads), suppress(InputError, FloatingPointError, StopAsked):  # rank 0 reports them
            if counted is None:
                restore(state, tensors)
                job.train_epochs(state, lambda state: None)
            else:
                state.supernet.load_state_dict(load(tensors))
                job.count(state.supernet, dict.fromkeys(counted))


@dataclass
class Job:
    """A run whose lock this process holds."""

    run: Run
    folder: Path
    settings: Settings
    is_time: Callable[[], bool]
    record: dict[str, Any] = field(default_factory=dict)
    validated: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SIZES, dtype=float))

    @cached_property
    def images(self) -> Dataset:
        return images_of(self.run, self.settings)

    def finish(self) -> bool:
        """Do what is left of the run; returns False if it was time to stop."""
        status = self.open()
        with use_threads(self.record["threads"]):
            if status != "finished":
                state = self.new_state()
                if status == "trained":
                    load_tensors(state.supernet.state_dict(), read_tensors(self.folder / WEIGHTS, self.record))
                elif not self.train(state):
                    return False
                if not self.evaluate(state.supernet):
                    return False
                del state
            return not to_measure(self.run, self.settings) or self.settings.measure.measure(self)

    def open(self) -> str:
        """Check what is in the folder and read or begin the record; returns the status, as `status_of` does."""
        run, settings = self.run, self.settings
        files.remove_temporary(self.folder)
        config = configuration(run, self.images, settings.precision)
        try:
            status = status_of(run, settings.results, config, weights=True)
        except Refused:
            if not settings.rebuild:
                raise
            print(f"{run.name} is rebuilt; what was there is in {set_aside(self.folder)}")
            status = "missing"
        release_memory(self.images.device)
        self.record = {"started": now()} if status == "missing" else read_record(self.folder)
        self.record["config"] = config
        self.record.setdefault("threads", settings.threads)  # the number of threads decides the last digits
        return status

    def new_state(self) -> TrainingState:
        """The untrained supernet of the run with its optimizer."""
        run, images = self.run, self.images
        return start(space_of(run, images), run.method, run.seed, images.device, self.settings.precision)

    def send(self, tensors: bytes, counted: list[int] | None = None) -> None:
        """Let other processes take part in training, or in evaluating subnets that are not `counted`."""
        share((self.run, self.record["threads"], tensors, counted))

    def train_epochs(self, state: TrainingState, after_epoch: Callable[[TrainingState], bool | None]) -> None:
        run, settings, images = self.run, self.settings, self.images
        executor = executor_for(settings, images.device)
        train(state, run.method, images, run.seed, together(after_epoch), run.label, settings.progress, executor)

    def count(self, supernet: SuperNet, counts: dict[int, Any]) -> None:
        """Evaluate the subnets that are not in `counts`, divided among processes."""
        population = self.population(supernet)
        count_correct(supernet.eval(), population, self.images, counts, self.is_time, **self.evaluation)

    @property
    def evaluation(self) -> dict[str, Any]:
        """Further arguments of `evaluate_population`."""
        threads = evaluation_threads(self.images.device, size() * (self.settings.jobs or 1))
        return {"progress": self.settings.progress, "description": f"{self.run.label}: evaluate", "threads": threads}

    def population(self, supernet: SuperNet) -> list[tuple[float, Arch]]:
        subnets = population_of(self.run)
        return [*((bucket, arch) for (bucket, _), arch in subnets.items()), *anchors(supernet.space)]

    def save(self) -> None:
        write_record(self.folder, self.record)

    def keep_snapshot(self, state: TrainingState) -> None:
        """Write weights, momentum and teacher to a file that the record lists."""
        path, content = self.snapshot(len(state.history)), checkpoint_bytes(state, identity_of(self.record))
        self.record.setdefault("snapshots", {})[path.name] = files.write(path, content)

    def snapshot(self, epoch: int) -> Path:
        return self.folder / f"snapshot-{epoch:06}.safetensors"

    def train(self, state: TrainingState) -> bool:
        """Train from the last checkpoint to the end; returns False if it was time to stop."""
        run, settings, record = self.run, self.settings, self.record
        check_room(
            step_bytes(run.method, run.resolution),
            free_memory(self.images.device),
            f"training steps on {run.method.batch_size} images of {run.resolution} pixels",
            "choose a lower resolution, a smaller batch size or fewer jobs at once",
        )
        machine = environment(self.images.device, settings)
        identity = identity_of(record)
        snapshots = settings.measure.epochs(run) if settings.measure is not None else ()
        if load_checkpoint(state, self.folder, identity, run.method) and "hardware" in record:
            record |= resumed(record, machine, run.name)
        else:  # from the start, or the record of the epochs before the checkpoint was lost
            record |= {"started": now(), **machine}
            record.pop("machines", None)
        if run.init and not state.history:
            warm_start(state.supernet, *run.init)
        record |= {"status": "training", "jobs": settings.jobs or 1}
        self.save()
        with suppress(OSError, ValueError, KeyError):  # there may be no such file
            self.validated = pd.read_csv(self.folder / LIVE).set_index("epoch")[[*SIZES]]
        saved = time.monotonic()

        def after_epoch(state: TrainingState) -> bool:
            nonlocal saved
            self.report(state)
            stop = self.is_time()
            if len(state.history) in snapshots:
                self.keep_snapshot(state)
            if stop or time.monotonic() - saved >= settings.checkpoint_seconds:
                save_checkpoint(state, self.folder, identity)
                saved = time.monotonic()
            return stop

        if size() > 1:
            self.send(checkpoint_bytes(state))
        self.train_epochs(state, after_epoch)
        if len(state.history) < run.method.epochs:
            return False
        record["training_seconds"] = state.seconds
        if self.images.device.type == "cpu":
            record["training_processor_seconds"] = state.processor_seconds
        record["sha256"] = {
            HISTORY: files.write_csv(self.folder / HISTORY, pd.DataFrame(state.history)),
            WEIGHTS: files.write(self.folder / WEIGHTS, files.tensor_bytes(state.supernet.state_dict())),
        }
        return True

    def report(self, state: TrainingState) -> None:
        """Write the history while training, validate if it is time, and call the caller's function."""
        table, every = pd.DataFrame(state.history), self.settings.validate_every
        if every:
            if len(table) % every == 0:
                self.validated.loc[len(table)] = self.validate(state.supernet)
            table = table.join(self.validated, on="epoch")
        table.to_csv(self.folder / LIVE, index=False)
        if self.settings.after_epoch is not None:
            self.settings.after_epoch(state, self.run)

    def validate(self, supernet: SuperNet) -> list[float]:
        """Accuracy of the smallest, the middle and the largest subnet on images held out from training, in percent."""
        held_out = replace(self.images, x_test=self.images.x_val, y_test=self.images.y_val)
        return evaluate_population(supernet, anchors(supernet.space), held_out, progress=False)["accuracy"].tolist()

    def evaluate(self, supernet: SuperNet) -> bool:
        """Evaluate the population and the anchors, from where it was interrupted; returns False if it was time to stop.

        The record keeps what was counted so far as "evaluated": correct answers by subnet, null if not yet counted.
        """
        run, record, images = self.run, self.record, self.images
        hardware = environment(images.device, self.settings)["hardware"]
        basis = json.dumps([record["sha256"][WEIGHTS], record["config"]["evaluation"], hardware, EVALUATOR])
        new = {"of": files.sha256(basis.encode()), "correct": [], "seconds": 0.0}
        evaluated = record.get("evaluated", new)
        if evaluated["of"] != new["of"]:
            evaluated = new
        record |= {"status": "trained", "evaluated": evaluated}
        self.save()  # before the population changes, which the record of a finished run vouches for
        for path in (self.folder / LIVE, *checkpoints(self.folder)):
            path.unlink(missing_ok=True)
        began, earlier, saved = time.perf_counter(), evaluated["seconds"], time.monotonic()
        subnets = population_of(run)
        population = self.population(supernet)
        counted = {n: count for n, count in enumerate(evaluated["correct"]) if count is not None}
        counts = {n: torch.tensor(count, device=images.device) for n, count in counted.items()}

        def keep() -> None:
            evaluated["correct"] = [int(counts[n]) if n in counts else None for n in range(len(population))]
            evaluated["seconds"] = earlier + time.perf_counter() - began
            self.save()

        def before_each() -> None:
            nonlocal saved
            if self.is_time():
                raise StopAsked
            if time.monotonic() - saved >= self.settings.checkpoint_seconds:
                keep()
                saved = time.monotonic()

        try:
            if size() > 1:
                self.send(files.tensor_bytes(supernet.state_dict()), [*counts])
                self.count(supernet, counts)
            both = evaluate_population(
                supernet.eval(), population, images, counts=counts, before_each=before_each, **self.evaluation
            )
        except StopAsked:
            return False
        finally:
            keep()
        table, beside = both[: len(subnets)].assign(subnet=[number for _, number in subnets]), both[len(subnets) :]
        record |= {
            "status": "finished",
            "finished": now(),
            "evaluation_seconds": record.pop("evaluated")["seconds"],
            "evaluation_hardware": hardware,
            "evaluator": EVALUATOR,
        }
        digests = record["sha256"]
        digests[POPULATION] = files.write_csv(self.folder / POPULATION, table)
        digests[ANCHORS] = files.write_csv(self.folder / ANCHORS, beside)
        digests[CARD] = write_card(self.folder, supernet, digests[WEIGHTS], self.card(table))
        self.save()
        return True

    def card(self, population: pd.DataFrame) -> dict:
        """What the card of the supernet says about its training and accuracy."""
        images, training = self.images, self.record["config"]["training"]
        accuracy = population.groupby("bucket")["accuracy"].agg(["median", "min", "max", "size"])
        names = ("dataset", "dataset_sha256", "profile", "seed", "train_images", "init")
        known = {name: training[name] for name in names if name in training}
        return known | {
            "method": self.run.method.name,
            "epochs": self.run.method.epochs,
            "test_images": len(images.x_test),
            "classes": images.classes,
            "mean": images.mean,
            "std": images.std,
            "licence_of_the_data": LICENCES.get(self.run.dataset, "unknown: a custom dataset"),
            "test_accuracy_by_mflops": {f"{bucket:g}": row.to_dict() for bucket, row in accuracy.iterrows()},
            "hardware": self.record["hardware"],
            "finished": self.record["finished"],
        }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
