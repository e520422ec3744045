"""The engine: train and evaluate runs that are missing, resume what was interrupted.

A run is a folder with a lock and a record. Any number of processes may be given the same list of runs: each takes the
runs that are free, then waits for the rest.
"""

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from rsslib import files
from rsslib.data.dataset import Dataset
from rsslib.data.readers import is_there
from rsslib.device import choose_device
from rsslib.errors import CaptureFailed, InputError, NoImages, Stopped, checked
from rsslib.progress import has_bars, in_words, progress_bar
from rsstudy.job import to_measure, train_and_evaluate
from rsstudy.machine import free_jobs
from rsstudy.plan import Run, Settings
from rsstudy.store import Refused, configuration, population_of, status_of
from rsstudy.supernets import images_of
from rsstudy.workers import Results, in_processes, in_threads, one_by_one


class RunsFailed(RuntimeError):
    """Some runs failed while others may have finished; `failures` maps their names to the exceptions."""

    def __init__(self, failures: Mapping[str, BaseException]):
        self.failures = failures
        texts = [f"{name} ({type(error).__name__}: {error})" for name, error in failures.items()]
        super().__init__(f"{len(failures)} of the runs failed: {'; '.join(texts)}")

    def _render_traceback_(self) -> list[str]:  # in a notebook, a stack only for errors that nobody expected
        unexpected = [e for e in self.failures.values() if not isinstance(e, (InputError, FloatingPointError))]
        return [*("".join(traceback.format_exception(error)) for error in unexpected), f"RunsFailed: {self}"]


@checked
def complete(
    runs: Sequence[Run], settings: Settings | None = None, finished: Callable[[Run], None] = lambda run: None
) -> None:
    """Finish every run, in this order: read what is there, resume what was begun, train what is missing.

    `finished` is called with each run once it is finished, including those that are at the start. With a time budget,
    `by_worth` orders runs so that what is finished by then is worth most. Finished runs do not need their dataset; if
    one is missing and cannot be downloaded, its runs are named and left out, unless nothing is finished.

    Everything is checked before anything is trained: raises InputError. A folder with a damaged run, or one of another
    configuration, code version or dataset, is refused, or with `settings.rebuild` set aside. A run that fails does not
    stop the others; RunsFailed, at the end, names it. CaptureFailed stops everything, since this process can no longer
    use the device. Ctrl-C stops everything (Stopped); the same call resumes from the last checkpoints.
    """
    settings = settings or Settings()
    deadline = time.time() + (math.inf if settings.time_budget is None else settings.time_budget)
    done, todo, settings = prepare(runs, settings)
    several = in_threads if settings.device.startswith("cuda") else in_processes
    call = one_by_one if settings.jobs == 1 else several

    def attempts(runs: Sequence[Run], wait: bool) -> Results:
        if not (wait and time.time() >= deadline):
            one = partial(train_and_evaluate, settings=settings, deadline=deadline, wait=wait)
            yield from call(settings.jobs or 1, one, runs)

    finish(done, todo, attempts, settings.progress, finished)


def finish(
    done: Sequence[Run],
    todo: Sequence[Run],
    attempts: Callable[[Sequence[Run], bool], Results],
    progress: bool,
    finished: Callable[[Run], None],
) -> None:
    """Attempt the runs `todo` that are free, then wait for those that other processes hold.

    `attempts(runs, wait)` yields every run with the result of `train_and_evaluate`, in the order in which they end.
    """
    for run in done:
        finished(run)
    failures: dict[str, Exception] = {}
    words, n = f"{{}} of {len(done) + len(todo)} runs are finished", len(done)
    trained, total, began = 0, sum(run.method.subnet_epochs for run in todo), time.monotonic()
    look = {"desc": words.format(n), "bar_format": "{desc}, {remaining} left", "position": 0, "smoothing": 0}
    try:
        with progress_bar(shown=progress and len(todo) > 1, total=total, **look) as bar:
            for wait in (False, True):
                if not todo:
                    break
                with closing(attempts(todo, wait)) as results:
                    todo = []
                    for run, result in results:
                        if isinstance(result, CaptureFailed):
                            raise result
                        if isinstance(result, Exception):
                            failures[run.name] = result
                        elif not result:
                            todo.append(run)
                        else:
                            n += 1
                            trained += run.method.subnet_epochs
                            bar.update(run.method.subnet_epochs)
                            bar.set_description_str(words.format(n))
                            if progress and not has_bars():  # a line for a log
                                left = (time.monotonic() - began) * (total - trained) / trained
                                print(f"{words.format(n)}, {in_words(left)} left: {run.name}", flush=True)
                            finished(run)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same call resumes from the last checkpoints") from None
    if failures:
        raise RunsFailed(failures) from next(iter(failures.values()))


def prepare(runs: Sequence[Run], settings: Settings) -> tuple[list[Run], list[Run], Settings]:
    """Check everything, so that a mistake in the last run costs nothing.

    Returns the finished runs, those to train, and the settings with a device and a number of jobs. Runs whose dataset
    is missing are named and left out, if any run is finished. Raises InputError if two runs would share a folder.
    """
    by_name: dict[str, Run] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) != run:
            raise InputError(f"two different runs are called {run.name}: give their methods different names")
    new = {name for name, run in by_name.items() if not _is_finished(run, settings)}
    needs_cuda = settings.device == "auto" and any(by_name[name].profile.needs_cuda for name in new)
    device = choose_device(settings.device, needed=needs_cuda)
    if device.type == "cpu" and settings.precision != "fp32":
        raise InputError(f"precision {settings.precision} is for CUDA: choose fp32")
    settings = replace(settings, device=str(device))
    done: list[Run] = []
    todo: list[Run] = []
    absent: list[NoImages] = []
    for name, run in by_name.items():
        population_of(run)
        try:  # a finished run does not need its images, but is compared with those that are here
            images = images_of(run, settings) if name in new or is_there(run.dataset, settings.data) else None
        except NoImages as error:
            print(f"not trained: {name}: {error}")
            absent.append(error)
            continue
        (done if _is_finished(run, settings, images, strict=True) else todo).append(run)
    if absent and not done:
        raise absent[0]
    for run in todo:
        files.check_writable(run.folder(settings.results), "results")
    jobs = min(settings.jobs or free_jobs(device, todo), len(todo)) if todo else 1
    return done, todo, replace(settings, jobs=jobs)


def _is_finished(run: Run, settings: Settings, images: Dataset | None = None, strict: bool = False) -> bool:
    """Whether nothing is left to do for a run.

    `strict` checks weights too, and raises Refused for a folder that holds another run, unless it is to be rebuilt.
    """
    config = configuration(run, images, settings.precision)
    try:
        status = status_of(run, settings.results, config, weights=strict)
    except Refused:
        if strict and not settings.rebuild:
            raise
        return False
    return status == "finished" and not to_measure(run, settings)
