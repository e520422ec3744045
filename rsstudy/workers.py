"""Call a function for many items at once: in threads that share a GPU, or in processes."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from rsslib.device import keep_freed_memory
from rsslib.errors import InputError
from rsslib.progress import start_worker

# Each of these calls a function for every item and yields (item, result) as the calls end.
Results = Generator[tuple[Any, Any]]


def one_by_one(number: int, function: Callable, items: Sequence) -> Results:
    """Call `function` here, for one item after the other, whatever the `number`."""
    for item in items:
        yield item, function(item)


def in_threads(number: int, function: Callable, items: Sequence) -> Results:
    """Call `function` in threads, with `stop`, an event that is set to stop them when the generator is closed."""
    stop, pool = threading.Event(), ThreadPoolExecutor(number)
    try:
        yield from _as_completed({pool.submit(function, item, stop=stop): item for item in items})
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def in_processes(number: int, function: Callable, items: Sequence) -> Results:
    """Call `function` in new processes, each with a line for progress bars; closing the generator ends them.

    Ctrl-C reaches all processes of a terminal. These ignore it, so none prints a stack; the caller closes the
    generator. Raises InputError if a process is killed, and if items cannot be sent.
    """
    context, others = multiprocessing.get_context("spawn"), {*multiprocessing.active_children()}
    lines = context.SimpleQueue()
    for line in range(number):
        lines.put(line)
    _check_sendable(items)
    pool = ProcessPoolExecutor(number, context, _begin, (lines, context.RLock()))
    try:
        with _no_interrupts(), _no_script():
            futures = {pool.submit(_sendable, function, item): item for item in items}
        yield from _as_completed(futures)
    except BrokenProcessPool:
        raise InputError(
            "a worker process ended, as happens when memory runs out: choose fewer jobs at once than "
            f"{number}; the same call resumes from the last checkpoints"
        ) from None
    finally:
        for worker in {*multiprocessing.active_children()} - others:
            worker.terminate()
        pool.shutdown(cancel_futures=True)


def _as_completed(futures: dict[Future, Any]) -> Results:
    for future in as_completed(futures):
        yield futures[future], future.result()


def _check_sendable(items: Sequence) -> None:
    try:
        with _no_script():
            pickle.dumps(items)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"these runs cannot be sent to other processes ({error}): define their samplers in a module, or give jobs=1"
        ) from None


def sendable(result: Any) -> Any:
    """Return the result, or an error with its text if it would not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(result))
    except Exception:
        return RuntimeError(f"{type(result).__name__}: {result}")
    return result


def _sendable(function: Callable, item: Any) -> Any:
    return sendable(function(item))


def _begin(lines: Any, lock: Any) -> None:
    """Prepare a new process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_worker(lines.get(), lock)
    keep_freed_memory()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even while they import; this process does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes started inside do not execute the caller's script, so it needs no `if __name__ == "__main__"`."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
