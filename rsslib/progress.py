"""Show progress bars that look the same in a terminal, in a notebook, and when processes share a terminal."""

import io
import math
import sys

from tqdm import tqdm

_line: int | None = None  # the terminal line for this process's bars; None lets tqdm choose


def start_worker(line: int, lock) -> None:
    """Set the terminal line `line` for the bars of this process, and the lock that guards the terminal."""
    global _line
    _line = 1 + line  # below the line of all runs
    tqdm.set_lock(lock)


def has_bars() -> bool:
    """Return whether bars can be shown: in a terminal and in a notebook, but not in a log file."""
    return _display() is not None or sys.stderr.isatty()


def progress_bar(iterable=None, shown: bool = True, **settings) -> tqdm:
    """Return a bar over `iterable`, or one to update by hand, with tqdm's settings; hidden unless `has_bars()`."""
    look = {"bar_format": "{desc} {percentage:3.0f}% {remaining} left{postfix}", "position": _line, "mininterval": 0.5}
    look |= settings | {"leave": False, "disable": not (shown and has_bars())}
    display = _display()
    return _NotebookBar(display, iterable, **look) if display else tqdm(iterable, **look)


def _display():
    """Return IPython's function of that name in a notebook's kernel, otherwise None; never imports IPython."""
    ipython = sys.modules.get("IPython")
    return ipython.display.display if ipython and getattr(ipython.get_ipython(), "kernel", None) else None


class _NotebookBar(tqdm):
    """A bar in a cell's output that is cleared when it closes, so that executed notebooks keep no stale bars."""

    def __init__(self, display, *arguments, **settings):
        self._show, self._line = display, None
        super().__init__(*arguments, file=io.StringIO(), **settings)

    def display(self, msg=None, pos=None):
        data = {"text/plain": str(self) if msg is None else msg}
        if self._line is None:
            self._line = self._show(data, raw=True, display_id=True)
        else:
            self._line.update(data, raw=True)


def in_words(seconds: float) -> str:
    """Return a duration to read, such as 40 s, 12 min or 3.4 h; a dash if it is unknown.

    >>> [in_words(x) for x in (5, 600, 12_240, float("nan"))]
    ['5 s', '10 min', '3.4 h', '-']
    """
    if math.isnan(seconds):
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
