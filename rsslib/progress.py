"""One look for all progress bars: in a terminal of 80 columns, in a notebook, and where processes share a terminal."""

import math

from tqdm.auto import tqdm

_line: int | None = None  # the terminal line of this process's bars; None lets tqdm choose


def start_worker(lines, lock) -> None:
    """Give this process a line of its own, taken from the queue `lines`, and the lock that guards the terminal."""
    global _line
    _line = 1 + lines.get()  # below the campaign's
    tqdm.set_lock(lock)


def progress_bar(iterable=None, shown: bool = True, **settings) -> tqdm:
    """A bar over `iterable`, or one to be updated by hand; takes tqdm's settings."""
    look = {"bar_format": "{desc} {percentage:3.0f}% {remaining} left{postfix}", "position": _line, "mininterval": 0.5}
    return tqdm(iterable, leave=False, disable=not shown, **look | settings)


def in_words(seconds: float) -> str:
    """A duration to read: 40 s, 12 min, 3.4 h; a dash where it is not known.

    >>> [in_words(x) for x in (5, 600, 12_240, float("nan"))]
    ['5 s', '10 min', '3.4 h', '-']
    """
    if math.isnan(seconds):
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
