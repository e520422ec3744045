"""Several runs at once: processes that end with the one that started them, and threads for what a GPU does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from rsslib.progress import start_worker


@contextmanager
def worker_processes(number: int, initializer: Callable | None = None, *arguments) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes, each with a line of its own for progress bars; `initializer(*arguments)` starts them.

    Ctrl-C reaches all processes of a terminal. The workers ignore it, so that none prints a stack; this one ends them
    when the block raises KeyboardInterrupt. What they write survives being killed.
    """
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()
    for line in range(number):
        lines.put(line)
    setup = (lines, context.RLock(), initializer, arguments)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(number, context, _start, setup) as pool:
        try:
            with _ignoring_interrupts():  # which the processes inherit, so also while they import
                for _ in range(number):
                    pool.submit(os.getpid)
            yield pool
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


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
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python leaves signals to that one
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(lines, lock, initializer: Callable | None, arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_worker(lines, lock)
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
