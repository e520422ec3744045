"""Faults that were reported once, each as a script that exits with 0 if all is right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsslib import SearchSpace, SuperNet, export, load_dataset

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parent.parent
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.name[0].isdigit())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported subnet with random weights."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    images = load_dataset("digits", train_images=200)
    supernet = SuperNet(SearchSpace(in_channels=images.channels, classes=images.n_classes)).eval()
    export(supernet, supernet.space.smallest, images, path)
    return str(path)


@pytest.mark.long  # each imports PyTorch
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_case_exits_with_0(script, model, tmp_path):
    where = {"PYTHONPATH": str(PROJECT), "PROJECT": str(PROJECT), "PY": sys.executable, "MODEL": model}
    command = [sys.executable if script.suffix == ".py" else "bash", str(script), model]
    done = subprocess.run(
        command,
        env=os.environ | where,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
