import sys

from rsslib.cli import main

sys.exit(main())
