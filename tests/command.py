"""The command line with the tiny backbone and a checkpoint every epoch, for tests that start it in processes."""

from dataclasses import replace

from helpers import TINY

from rsslib.__main__ import entry
from rsslib.backbones import BACKBONES
from rsstudy import cli

if __name__ == "__main__":
    make_settings = cli.make_settings
    cli.make_settings = lambda options: replace(make_settings(options), checkpoint_seconds=0)
    BACKBONES["tiny"] = TINY
    entry()
