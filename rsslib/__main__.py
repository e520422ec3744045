"""`rsslib` and `python -m rsslib`."""

import os
import signal
import sys
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a cluster's scheduler stops with
PATIENCE = 5  # seconds for what a stopped command puts away
STOPPED = "rsslib: stopped; the same command goes on from the last checkpoint\n"
_stopping_since: float | None = None


def entry() -> None:
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        from rsstudy.cli import main  # here, so that it can be stopped too

        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write(STOPPED)
        status = 130
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 128 + signal.SIGPIPE
    for number in SIGNALS:  # what is left to do takes no time
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal raises KeyboardInterrupt; more of them, as of a key that is held, must not stop what is being
    put away. One that comes later ends all at once, which costs nothing that a checkpoint holds."""
    global _stopping_since
    if _stopping_since is not None and time.monotonic() - _stopping_since < PATIENCE:
        return
    if _stopping_since is not None or _is_importing(frame):
        os.write(2, STOPPED.encode())
        os._exit(130)
    _stopping_since = time.monotonic()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: many take an interrupt for a fault of theirs, or lose it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    entry()
