"""The library alone: what it takes along when it is imported."""

import subprocess
import sys

ALONE = """
import sys
import rsslib
from rsslib import campaign
for module in (rsslib, campaign):
    for name in module.__all__:
        getattr(module, name)  # public names are lazy
assert "torch" in sys.modules
unwanted = ("matplotlib", "seaborn", "IPython", "ipywidgets", "papermill", "jupyter", "jupyterlab", "jupyter_client",
            "notebook", "pandas.plotting._matplotlib", "ray", "pymoo", "onnx", "onnxruntime")
print(*(name for name in unwanted if name in sys.modules))
"""


def test_all_public_names_come_without_plotting_and_notebooks():
    run = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
