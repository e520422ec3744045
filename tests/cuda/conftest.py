"""What suites of CUDA graphs share."""

import pytest
from helpers import double_images

from rsslib import steps
from rsslib.cuda import graphs
from rsslib.methods import Stage


@pytest.fixture
def double(monkeypatch):
    """float64, at learning rates that change every step and that float32, in which a graph keeps them, holds."""
    double_images(monkeypatch, (steps, "augment"), (graphs, "augment"))
    monkeypatch.setattr(Stage, "rate", lambda stage, epoch, step, steps, complexity: 2.0 ** -(6 + (step + epoch) % 3))
    shares = {False: lambda step: 1.0, True: lambda step: 2.0 ** -(step % 3)}
    monkeypatch.setattr(Stage, "share", lambda stage, epoch, step, steps: shares[stage.ramp_epochs > 0](step))
