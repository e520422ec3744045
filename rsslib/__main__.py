"""Entry point of `rsslib` and `python -m rsslib`: run the command line of the study, and exit cleanly."""

import io
import os
import signal
import sys
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and the signal of a cluster's scheduler
PATIENCE = 5  # seconds that a stopped command has to clean up
STOPPED = "rsslib: stopped; the same command resumes from the last checkpoint\n"
_stopping_since: float | None = None


def entry() -> None:
    """Run the command line and exit with its status: 130 if stopped, 2 if a package is missing."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed stream is None
            stream.reconfigure(errors="backslashreplace")
    try:
        from rsstudy.cli import main  # here, so that imports can be stopped

        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except ModuleNotFoundError as error:
        sys.stderr.write(f"rsslib: {error.name} is not installed: pip install 'rsslib[study]'\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write(STOPPED)
        status = 130
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 128 + signal.SIGPIPE
    for number in SIGNALS:  # what remains takes no time
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt at the first signal, ignore signals during clean-up, and exit at once at a later one.

    A held key sends many signals, which must not interrupt the clean-up. Exiting at once loses nothing that a
    checkpoint holds.
    """
    global _stopping_since
    now = time.monotonic()
    if _stopping_since is not None and now - _stopping_since < PATIENCE:
        return
    if _stopping_since is not None or _is_importing(frame):
        os.write(2, STOPPED.encode())
        os._exit(130)
    _stopping_since = now
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported. Many modules mistake an interrupt for their own error, or lose it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    entry()
