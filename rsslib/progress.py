"""One look for all progress bars: in a terminal, in a notebook, and where several processes share a terminal."""

from tqdm.auto import tqdm

_line: int | None = None  # the terminal line of this process's bars; None lets tqdm choose


def start_worker(lines, lock) -> None:
    """Give this process a line of its own, taken from the queue `lines`, and the lock that guards the terminal."""
    global _line
    _line = lines.get()
    tqdm.set_lock(lock)


def progress_bar(iterable=None, shown: bool = True, **settings) -> tqdm:
    """A bar over `iterable`, or one to be updated by hand; takes tqdm's settings."""
    return tqdm(
        iterable, mininterval=0.5, dynamic_ncols=True, position=_line, leave=False, disable=not shown, **settings
    )
