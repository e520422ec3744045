"""`rsslib` and `python -m rsslib`."""

import signal
import sys

from rsslib.cli import main


def entry() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a cluster's scheduler stops: like Ctrl-C
    sys.exit(main())


if __name__ == "__main__":
    entry()
