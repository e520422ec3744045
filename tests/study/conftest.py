"""What the suites of campaigns share: the tiny backbone by its name, and a file system of their own."""

import os
import subprocess

import pytest


@pytest.fixture(scope="module", autouse=True)
def by_name(tiny_backbone):
    pass


@pytest.fixture
def remount(tmp_path):
    """Gives the file system that `tmp_path` is such options, as ro or size=1m; skips tests of who may mount none."""
    mount = ["mount", "-t", "tmpfs", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a user who may mount a tmpfs")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(tmp_path)], check=True)
    subprocess.run(["umount", str(tmp_path)], check=True)
