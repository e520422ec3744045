"""What the suites of campaigns share: the tiny backbone, for a test and for what a module prepares once."""

import pytest
from helpers import TINY

from rsslib.space import BACKBONES


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield
