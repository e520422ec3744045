"""Several runs at once: processes that end with the one that started them, and threads for what a GPU does."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import ModuleType

from rsslib.errors import InputError
from rsslib.progress import start_worker


@contextmanager
def worker_processes(number: int, initializer: Callable | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes, each with a line of its own for progress bars; `initializer()` starts them.

    Ctrl-C reaches all processes of a terminal. The workers ignore it, so that none prints a stack; this one ends them
    when the block raises KeyboardInterrupt. What they write survives being killed. The BrokenProcessPool of a worker
    that was ended leaves the block as KeyboardInterrupt if it was told to end, else as InputError.
    """
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()
    for line in range(number):
        lines.put(line)
    setup = (lines, context.RLock(), initializer)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(number, context, _start, setup) as pool:
        with _no_interrupts(), _no_script():
            for _ in range(number):
                pool.submit(os.getpid)
        workers = set(multiprocessing.active_children()) - others
        try:
            yield pool
        except KeyboardInterrupt:
            for process in workers:
                process.terminate()
            raise
        except BrokenProcessPool:
            pool.shutdown(cancel_futures=True)  # before that not all have ended
            if {process.exitcode for process in workers} == {0}:  # it is another pool that broke
                raise
            raise _why_broken(workers) from None
        except Exception:
            pool.shutdown(cancel_futures=True)  # who waits for these no longer wants the rest
            raise


def _why_broken(workers: set[BaseProcess]) -> BaseException:
    """What to raise for a pool of which one was ended, by what and who was ended after it (by SIGTERM)."""
    statuses = {process.exitcode for process in workers} - {0, None, -signal.SIGTERM}
    if not statuses:
        return KeyboardInterrupt()
    if -signal.SIGKILL in statuses:
        return InputError(
            "a worker process was killed, as the system does where memory runs out: choose fewer jobs at once than "
            f"{len(workers)}; the same call goes on from the last checkpoints"
        )
    return InputError(
        f"a worker process ended with exit status {statuses.pop()}, for a reason that it may have told above: give "
        "jobs=1 to see it better; the same call goes on from the last checkpoints"
    )


@contextmanager
def worker_threads(number: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, for work that a GPU does; if the block raises KeyboardInterrupt, `stop` is set for them."""
    with ThreadPoolExecutor(number) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C, not even while they import; this one does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes that are started meanwhile do not execute this one's script, which they have no need of: it would have
    to guard what it does by `if __name__ == "__main__"`."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _start(lines, lock, initializer: Callable | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_worker(lines, lock)
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
