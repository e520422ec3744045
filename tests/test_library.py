"""The library alone: what importing it takes along, and that it works without the extras."""

import ast
import subprocess
import sys
from pathlib import Path

import rsslib

STUDY = (
    "torchvision scipy sklearn matplotlib seaborn IPython ipywidgets papermill jupyterlab nbdime ptflops jsonschema "
    "ray onnx onnxscript onnxruntime rsstudy"
).split()

CORE_ALONE = f"""
import sys
for name in {STUDY}:
    sys.modules[name] = None  # as if it were not installed
import rsslib
assert "torch" not in sys.modules and "pandas" not in sys.modules
for name in rsslib.__all__:
    getattr(rsslib, name)
import numpy as np
from pathlib import Path
x, y = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 3
np.savez(Path(sys.argv[1], "toy.npz"), x_train=x, y_train=y, x_test=x, y_test=y)
data = rsslib.load_dataset("toy", sys.argv[1])
space = rsslib.SearchSpace(in_channels=1, classes=3)
supernet = rsslib.SuperNet(space).eval()
front = rsslib.search(supernet, data, evaluations=2, progress=False)
print(len(front))
for function, argument in ((rsslib.load_dataset, "digits"), (rsslib.latency_table, space)):
    try:
        function(argument)
    except ValueError as error:
        print(error)
"""


def test_library_works_without_the_extras_and_names_them(tmp_path):
    command = [sys.executable, "-c", CORE_ALONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, *sentences = done.stdout.splitlines()
    assert int(found) >= 1
    assert sentences == [
        "sklearn is not installed: pip install 'rsslib[study]'",
        "onnx is not installed: pip install 'rsslib[export]'",
    ]


def test_public_names_come_from_the_modules_that_type_checkers_see():
    tree = ast.parse(Path(rsslib.__file__).with_suffix(".pyi").read_text())
    seen = [(f"rsslib.{statement.module}", alias.name) for statement in tree.body for alias in statement.names]
    assert sorted(name for _, name in seen) == rsslib.__all__ and len(seen) > 15
    for module, name in seen:
        assert getattr(rsslib, name) is getattr(sys.modules[module], name)


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(rsslib, "nothing") and "search" in dir(rsslib)
