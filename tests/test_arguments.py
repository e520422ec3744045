"""Arguments of the public functions: every wrong one is a sentence, before any work."""

import importlib
import inspect
import math
import signal
import traceback
from dataclasses import replace

import pytest
from helpers import TINY, random_supernet

import rsslib
from rsslib.errors import InputError
from rsslib.evaluate import recalibration_images
from rsslib.network import Network
from rsslib.samplers import Uniform
from rsstudy.plan import Profile, Settings, plan

WRONG = {
    "None": None,
    "empty": "",
    "text": "no such thing",
    "negative": -1,
    "zero": 0,
    "nan": math.nan,
    "inf": math.inf,
    "half": 1.5,
    "list": [],
    "dict": {},
    "object": object(),
    "class": int,
    "huge": 10**400,
    "bool": True,
}
# Kinds that are right for parameters of these names: text for names and paths, zero for seeds.
RIGHT = {
    **dict.fromkeys(("name", "description", "dataset", "backbone", "address"), {"empty", "text"}),
    **dict.fromkeys(("root", "data", "path", "folder", "results", "figures", "profile"), {"empty", "text"}),
    **dict.fromkeys(("seed", "dropout", "time_budget", "first_epoch", "learning_rate"), {"zero", "half"}),
    **dict.fromkeys(("checkpoint_seconds", "mflops", "learning_rate_scale"), {"zero", "half"}),
    **dict.fromkeys(("after_epoch", "before_each", "finished", "executor", "measure"), {"class"}),
    **dict.fromkeys(("kernel", "expand", "depth", "stages", "population", "runs", "buckets"), {"list"}),
    **dict.fromkeys(("datasets", "sort_channels", "interference"), {"list"}),
    **dict.fromkeys(("budget", "counts", "state"), {"dict"}),
    **dict.fromkeys(("momentum", "label_smoothing", "augmentation", "warmup_epochs", "ramp_epochs"), {"zero"}),
    **dict.fromkeys(("weight_decay", "tilt"), {"zero", "half"}),
    "schedule": {"class"},
    "epochs": {"zero"},  # of a stage
    "drawn": {"zero"},
    "jobs": {"None"},
    "resolution": {"negative", "zero"},  # of a run, which `plan` checks
}
STUDY = {
    "rsslib.checkpoint": ["read_card"],
    "rsslib.deploy.predicting": ["open_model"],
    "rsslib.evaluate": ["recalibrate", "recalibration_images"],
    "rsslib.methods": ["Stage", "override"],
    "rsslib.official": ["to_official", "load_official"],
    "rsslib.population": ["sample_population", "archs_from_table"],
    "rsslib.samplers": ["Uniform", "Successive", "Alternating"],
    "rsstudy.catalogue": ["build"],
    "rsstudy.cluster": ["complete_with_ray"],
    "rsstudy.engine": ["complete"],
    "rsstudy.notebooks": ["load"],
    "rsstudy.plan": ["Profile", "Run", "Settings", "output_folder", "plan"],
    "rsstudy.samplers": ["FlopsAware", "SizeAware", "Sandwich", "StrictFairness"],
    "rsstudy.store": ["overview"],
    "rsstudy.supernets": ["trained_supernet"],
    "rsstudy.tables": ["finished", "populations", "times", "with_all_seeds"],
}
FUNCTIONS = [getattr(rsslib, name) for name in rsslib.__all__]
FUNCTIONS += [getattr(importlib.import_module(module), name) for module, names in STUDY.items() for name in names]


@pytest.fixture(scope="module")
def valid(tiny_backbone, tmp_path_factory):
    """A right value for parameters without a default, by name."""
    folder = tmp_path_factory.mktemp("arguments")
    space = rsslib.SearchSpace(TINY, in_channels=1, classes=10)
    supernet = random_supernet(space).eval()
    images = rsslib.load_dataset("digits", folder, train_images=64, test_images=32)
    images = replace(images, x_val=images.x_val[:32], y_val=images.y_val[:32])
    method = rsslib.one_stage("mine", 1, Uniform())
    profile = Profile("test", ("digits",), 1, 1, 5)
    runs = plan(profile, methods=["rss"], backbone="tiny")
    front = rsslib.search(supernet, images, evaluations=2, progress=False)
    return {
        **{"arch": space.middle, "backbone": "tiny", "dataset": "digits", "datasets": ("digits",), "depth": (2,)},
        **{"epochs": 1, "expand": (3,), "folder": folder, "front": front, "images": images, "data": images},
        **{"kernel": (3,), "learning_rate": 0.1, "method": method, "name": "digits", "network": None},
        **{"path": folder / "model.onnx", "population": [(1.0, space.middle)], "profile": profile, "run": runs[0]},
        **{"runs": runs, "sampler": Uniform(), "seed": 0, "settings": Settings(folder, folder, "cpu"), "sizes": ()},
        **{"space": space, "stages": method.stages, "state": None, "subnet": folder, "subnets_per_bucket": 1},
        **{"supernet": supernet, "table": front, "progress": False, "results": folder, "figures": folder},
        **{"supernet_epochs": 1, "shrinking_epochs": 5},
    }


def arguments(function, valid):
    """The right arguments of a function: its defaults, and values by name where it has none."""
    own = dict(valid)
    if "state" in inspect.signature(function).parameters:
        own["state"] = rsslib.start(valid["space"], valid["method"], 0)
    if function is rsslib.Deployable:
        own["network"] = Network(valid["space"], valid["space"].middle)
    if function.__name__ == "recalibrate":
        own["images"] = recalibration_images(valid["images"])
    if function.__module__.startswith("rsstudy"):
        own["data"] = own["results"]
    parameters = inspect.signature(function).parameters.values()
    named = [one.name for one in parameters if one.kind != one.VAR_KEYWORD]
    needed = [one.name for one in parameters if one.default is one.empty and one.name in named]
    return {name: own[name] for name in named if name in needed}, named


def too_long(number, frame):
    raise TimeoutError("this call hangs")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_wrong_argument_is_a_sentence_of_the_function_itself(function, valid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right, named = arguments(function, valid)
    signal.signal(signal.SIGALRM, too_long)
    wrong = []
    for name in named:
        optional = inspect.signature(function).parameters[name].default is None
        for kind, value in WRONG.items():
            flag = name == "graphs" or isinstance(inspect.signature(function).parameters[name].default, bool)
            if kind in RIGHT.get(name, ()) or (kind == "None" and optional) or (kind == "bool" and flag):
                continue
            value = value.copy() if isinstance(value, list | dict) else value
            signal.alarm(60)
            try:
                function(**right | {name: value})
            except (InputError, TypeError, ValueError) as error:
                frames = traceback.extract_tb(error.__traceback__)[1:]
                deepest = frames[-1]
                at_once = deepest.filename.endswith(("errors.py", "files.py")) or len(frames) <= 5
                if not str(error) or not at_once:
                    wrong.append((name, kind, str(error), deepest))
            except Exception as error:
                wrong.append((name, kind, type(error), str(error)))
            else:
                wrong.append((name, kind, "is accepted"))
            finally:
                signal.alarm(0)
    assert not wrong
