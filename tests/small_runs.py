"""Runs of a tiny backbone at a scale of milliseconds, and the files that one leaves."""

from rsstudy import engine
from rsstudy.plan import Profile, Settings, plan

PROFILE = Profile(
    "test", ("digits",), subnets_per_bucket=2, supernet_epochs=2, shrinking_epochs=5, train_images=80, test_images=60
)
FILES = ["anchors.csv", "card.json", "history.csv", "population.csv", "run.json", "run.lock", "weights.safetensors"]


def tiny(*methods, profile=PROFILE, **settings):
    """Runs of the tiny backbone, by default of RSS at the test profile."""
    return plan(profile, methods=methods or ("rss",), backbone="tiny", **settings)


def complete(runs, results, **settings):
    """Make the runs finished, on the CPU, unless `settings` say otherwise."""
    engine.complete(runs, Settings(results, **{"device": "cpu", "progress": False} | settings))
