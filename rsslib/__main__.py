import signal
import sys

from rsslib.cli import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a cluster's scheduler stops: like Ctrl-C
sys.exit(main())
