"""The library alone: what it takes along when it is imported."""

import subprocess
import sys

import pytest

ALONE = """
import sys
import rsslib
for name in rsslib.__all__:
    getattr(rsslib, name)  # public names are lazy
assert "torch" in sys.modules
unwanted = ("matplotlib", "seaborn", "IPython", "ipywidgets", "papermill", "jupyter", "jupyterlab", "jupyter_client",
            "notebook", "pandas.plotting._matplotlib", "ray", "pymoo", "onnx", "onnxruntime")
print(*(name for name in unwanted if name in sys.modules))
"""


def test_all_public_names_come_without_plotting_and_notebooks():
    run = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("name", ["plan", "complete", "Settings"])
def test_a_name_that_moved_names_its_new_home(name):
    with pytest.raises(ImportError, match="rsstudy"):
        exec(f"from rsslib import {name}")
