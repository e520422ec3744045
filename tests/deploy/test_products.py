"""From images in folders, larger than 32 pixels, to a deployed subnet: the whole way, at the smallest scale."""

import copy
import dataclasses
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import TINY, assert_close, sentence
from PIL import Image
from safetensors.torch import load_file as load
from safetensors.torch import save

from rsslib import files, load_supernet
from rsslib.checkpoint import publish, read_card
from rsslib.deploy.exporting import TOLERANCE, deployable, export
from rsslib.deploy.finetuning import finetune
from rsslib.deploy.predicting import open_model
from rsslib.deploy.searching import chosen, search
from rsslib.errors import InputError
from rsslib.population import get_buckets
from rsslib.space import SearchSpace
from rsstudy.cli import main
from rsstudy.engine import complete
from rsstudy.notebooks import Execution, find_notebooks
from rsstudy.plan import PROFILES, Profile, Settings, origin, plan
from rsstudy.store import configuration, overview, write_record
from rsstudy.supernets import trained_supernet
from rsstudy.tables import populations

PROFILE = Profile("test", ("photographs",), subnets_per_bucket=2, supernet_epochs=2, shrinking_epochs=5)
PHOTOGRAPHS = ("china", "flower")  # scikit-learn's, of 427 x 640 pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Colour photographs in folders: crops of two, the test's from the right of the training's."""
    from sklearn.datasets import load_sample_image

    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        photograph = load_sample_image(f"{name}.jpg")
        for split, n, left, right in (("train", 40, 0, 440), ("test", 10, 440, 640)):
            folder = root / "photographs" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                side = int(rng.integers(80, 140))
                top, start = int(rng.integers(427 - side)), int(rng.integers(left, right - side))
                Image.fromarray(photograph[top : top + side, start : start + side]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(data, tiny_backbone, tmp_path_factory):
    """A finished run at 64 pixels and the settings with its folders."""
    settings = Settings(tmp_path_factory.mktemp("results"), data, "cpu", progress=False)
    (run,) = plan(PROFILE, methods=["rss"], backbone="tiny", resolution=64)
    complete([run], settings)
    return run, settings


def test_photographs_are_searched_exported_and_predicted_at_64_pixels(data, trained, tmp_path):
    run, settings = trained
    supernet, images = trained_supernet(run, settings)
    assert images.resolution == supernet.space.resolution == 64 and images.classes == PHOTOGRAPHS
    smallest = supernet.space.macs(supernet.space.smallest) / 1e6
    front = search(supernet, images, {"mflops": 1.5 * smallest}, evaluations=12, progress=False)
    assert (front["mflops"] <= 1.5 * smallest).all()
    words = export(supernet, chosen(front), images, tmp_path / "model.onnx")
    assert words["accuracy"] in front["test_accuracy"].tolist() and words["resolution"] == 64
    files = sorted((data / "photographs" / "test").rglob("*.png"))
    predictions = [open_model(tmp_path / "model.onnx").predict(path) for path in files]
    right = sum(prediction.label == prediction.path.parent.name for prediction in predictions)
    assert abs(100 * right / len(files) - words["accuracy"]) <= 100 / len(files)  # Pillow may round a pixel otherwise
    subnet = deployable(supernet, chosen(front), images)
    logits = open_model(tmp_path / "model.onnx").logits(images.x_test.contiguous().numpy())
    assert_close(torch.from_numpy(logits), subnet.double()(images.x_test), tolerance=TOLERANCE)


def test_command_line_refuses_what_it_cannot_search_export_or_predict(data, trained, tmp_path, capsys, monkeypatch):
    run, settings = trained
    monkeypatch.setitem(PROFILES, "test", PROFILE)
    where = ["--profile", "test", "--dataset", "photographs", "--backbone", "tiny", "--resolution", "64"]
    where += ["--results", str(settings.results), "--data", str(data)]
    model = str(tmp_path / "model.onnx")
    image = next((data / "photographs" / "test" / "china").iterdir())
    assert main(["export", *where, "--output", model]) == 0
    capsys.readouterr()
    tuned = ["finetune", *where, "--epochs", "1", "--rate", "0", "--output", str(tmp_path / "tuned.onnx")]
    assert main(tuned) == 0
    assert capsys.readouterr().out.startswith("+0.00 points in 1 epochs: ")
    for arguments, said in (
        (["search", *where, "--mflops", "0.01"], "no subnet of tiny at 64 pixels has mflops of at most 0.01"),
        (["export", *where, "--resolution", "33", "--output", model], "resolution is 33: expected a multiple of 32"),
        (["export", *where, "--output", str(image / "model.onnx")], "is a file: expected a folder"),
        (["search", *where, "--output", str(tmp_path)], "is a folder, a link, a pipe or a device: expected"),
        (["predict", str(image), model], "is an image: the model comes first"),
        (["predict", model, str(tmp_path / "none.png")], "none.png does not exist"),
        (["predict", model, str(tmp_path)], f"{tmp_path} is a folder"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    for command in ("search", "export"):
        assert main([command, *where, "--output", model]) == 2
        assert "cannot be written: choose another folder" in capsys.readouterr().err


def test_command_line_evaluates_a_model_on_class_folders(data, trained, tmp_path, capsys):
    supernet, images = trained_supernet(*trained)
    export(supernet, supernet.space.middle, images, tmp_path / "model.onnx")
    predict = open_model(tmp_path / "model.onnx").predict
    counts = dict.fromkeys(itertools.product(PHOTOGRAPHS, repeat=2), 0)
    for i, path in enumerate(sorted((data / "photographs" / "test").rglob("*.png"))[:15]):
        label = PHOTOGRAPHS[i % 3 == 0]
        (folder := tmp_path / "mine" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{i}.png")
        counts[label, predict(path).label] += 1
    output = tmp_path / "out" / "table.csv"
    command = ["evaluate", str(tmp_path / "model.onnx"), str(tmp_path / "mine"), "--output", str(output)]
    assert main(command) == 0
    said = capsys.readouterr().out
    right = [counts[name, name] for name in PHOTOGRAPHS]
    for name, n, of in (("all images", sum(right), 15), ("china", right[0], 10), ("flower", right[1], 5)):
        assert re.search(rf"^{name}: {100 * n / of:.1f} % \(.*\) of {of}$", said, re.MULTILINE)
    table = pd.read_csv(output, index_col="label")
    assert {(true, name): table.loc[true, name] for true, name in counts} == counts
    assert Image.open(output.with_suffix(".png")).width > 300
    (tmp_path / "mine" / "chna").mkdir()
    assert main(command) == 2
    assert "unknown class in" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "mine")
    assert main(command) == 2
    assert "holds no images" in capsys.readouterr().err


def test_fine_tuning_trains_the_subnet_alone(trained):
    run, settings = trained
    supernet, images = trained_supernet(run, settings)
    arch, before = supernet.space.smallest, copy.deepcopy(supernet.state_dict())
    method = dataclasses.replace(run.method, augmentation=0.0, dropout=0.0)
    tuned = finetune(supernet, arch, images, 3, 0.02, method, progress=False)
    assert all(x.equal(before[name]) for name, x in supernet.state_dict().items())
    ours, theirs = (dict(net.named_parameters()) for net in (supernet, tuned))
    used = dict(supernet.extract(arch).named_parameters())
    changed = {name for name in ours if not ours[name].equal(theirs[name])}
    assert changed.issuperset(used) and not any(name.startswith("blocks.7.") for name in changed)

    def loss(net):
        with torch.no_grad():
            x = images.x_train.float() / 255 - torch.tensor(images.mean).view(-1, 1, 1)
            logits = net.extract(arch).train()(x / torch.tensor(images.std).view(-1, 1, 1))
        return torch.nn.functional.cross_entropy(logits, images.y_train).item()

    assert loss(tuned) < loss(supernet)


def test_supernet_is_loaded_from_its_folder_alone(trained, tmp_path):
    run, settings = trained
    expected, images = trained_supernet(run, settings)
    for name in ("weights.safetensors", "card.json"):
        shutil.copy(run.folder(settings.results) / name, tmp_path)
    supernet = load_supernet(tmp_path)
    assert not supernet.training and supernet.space.resolution == 64
    for name, tensor in expected.state_dict().items():
        assert torch.equal(supernet.state_dict()[name], tensor), name
    card = read_card(tmp_path)
    assert card["classes"] == list(PHOTOGRAPHS) and (card["dataset"], card["method"]) == ("photographs", "rss")
    assert card["epochs"] == run.method.epochs and "custom dataset" in card["licence_of_the_data"]
    table = populations([run], settings.results)
    for bucket, values in card["test_accuracy_by_mflops"].items():
        assert values["median"] == table.query(f"bucket == {bucket}")["accuracy"].median()
    assert deployable(supernet, images=images).metadata["classes"] == PHOTOGRAPHS


def test_published_supernet_has_the_form_of_the_hub_and_starts_runs(trained, tmp_path):
    run, settings = trained
    folder, target = run.folder(settings.results), tmp_path / "hub"
    assert publish(folder, target) == publish(folder, target) == target
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    _, front, text = (target / "README.md").read_text().split("---\n")
    assert yaml.safe_load(front)["tags"] == ["once-for-all", "supernet", "tiny"]
    assert "`photographs`" in text and "rsslib.load_supernet(folder)" in text
    expected = load_supernet(folder).state_dict()
    for name, tensor in load_supernet(target).state_dict().items():
        assert tensor.equal(expected[name]), name
    assert origin(target) == (str(target / "model.safetensors"), read_card(folder)["weights_sha256"])
    content = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="model.safetensors is not the supernet that its card describes") as error:
        load_supernet(target)
    assert sentence(error)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    with pytest.raises(InputError, match="notes holds other files") as error:
        publish(folder, tmp_path / "notes")
    assert sentence(error) and (tmp_path / "notes/README.md").read_text() == "mine"
    (tmp_path / "notes/config.json").write_text('{"model_type": "other"}')  # of another model
    with pytest.raises(InputError, match="notes holds other files"):
        publish(folder, tmp_path / "notes")
    assert (tmp_path / "notes/README.md").read_text() == "mine"


def test_altered_supernet_is_refused(trained, tmp_path):
    run, settings = trained
    for name in ("weights.safetensors", "card.json"):
        shutil.copy(run.folder(settings.results) / name, tmp_path)
    weights, card = tmp_path / "weights.safetensors", tmp_path / "card.json"
    words, content = card.read_text(), weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    wrong = json.loads(words)
    wrong["space"]["classes"] = 7
    for change, said in (
        (lambda: None, "its checksum differs"),
        (weights.unlink, "No such file"),
        (
            lambda: (weights.write_bytes(content), card.write_text(json.dumps(wrong))),
            "it was altered",
        ),
        (lambda: card.write_text("{}"), "is not the supernet"),
        (card.unlink, "No such file"),
    ):
        change()
        with pytest.raises(InputError) as error:
            load_supernet(tmp_path)
        assert said in sentence(error)


@pytest.mark.parametrize("key", ["classes", "dropout", "method", "test_accuracy_by_mflops", "space"])
def test_card_that_was_edited_is_refused(trained, tmp_path, key):
    run, settings = trained
    for name in ("weights.safetensors", "card.json"):
        shutil.copy(run.folder(settings.results) / name, tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    for value in (0.2, [1], "other", None):
        (tmp_path / "card.json").write_text(json.dumps(card | {key: value}))
        for use in (read_card, load_supernet):
            with pytest.raises(InputError, match="it was altered") as error:
                use(tmp_path)
            assert sentence(error)


STRANGE = {
    "shape": lambda tensors: tensors | {"classifier.bias": torch.zeros(5)},
    "name": lambda tensors: {name.replace("stem", "steam"): tensor for name, tensor in tensors.items()},
    "int8": lambda tensors: tensors | {"stem.conv.weight": tensors["stem.conv.weight"].to(torch.int8)},
    "float64": lambda tensors: tensors | {"stem.conv.weight": tensors["stem.conv.weight"].double()},
    "nan": lambda tensors: tensors | {"stem.conv.weight": tensors["stem.conv.weight"] * math.nan},
    "inf": lambda tensors: tensors | {"classifier.bias": tensors["classifier.bias"] + math.inf},
    "none": lambda tensors: {},
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE.keys())
def test_weights_that_do_not_fit_are_refused_with_any_digest(trained, tmp_path, change):
    run, settings = trained
    results = shutil.copytree(settings.results, tmp_path / "results")
    folder = run.folder(results)
    content = save(change(load(folder / "weights.safetensors")))
    (folder / "weights.safetensors").write_bytes(content)
    record, card = json.loads((folder / "run.json").read_text()), read_card(folder)
    record["sha256"]["weights.safetensors"] = card["weights_sha256"] = files.sha256(content)
    (folder / "card.json").write_text(json.dumps(card))
    write_record(folder, record)
    moved = dataclasses.replace(settings, results=results)
    for use in (lambda: load_supernet(folder), lambda: trained_supernet(run, moved)):
        with pytest.raises(InputError, match="tensor") as error:
            use()
        assert sentence(error)


def test_profile_takes_all_images_if_there_are_fewer_than_it_asks_for(data, trained):
    run, settings = trained
    large = dataclasses.replace(PROFILE, name="large", train_images=6400, test_images=5, supernet_epochs=1)
    (run,) = plan(large, methods=["rss-short"], backbone="tiny", resolution=64)
    complete([run], settings)
    _, images = trained_supernet(run, settings)
    assert (len(images.y_train), len(images.y_test)) == (64, 5)
    elsewhere = dataclasses.replace(settings, data=settings.results)  # without the images
    complete([run], elsewhere)
    assert overview([run], settings.results)["status"].tolist() == ["finished"]


def test_resolution_is_part_of_a_runs_name_unless_it_is_the_studys(trained):
    run, settings = trained
    assert "/tiny-64px/" in run.name and configuration(run)["training"]["resolution"] == 64
    usual = dataclasses.replace(run, resolution=32)
    assert "/tiny/" in usual.name and "resolution" not in configuration(usual)["training"]
    table = populations([run], settings.results)
    assert sorted(set(table["bucket"])) == sorted(get_buckets(SearchSpace(TINY, resolution=64)))


def test_notebook_is_left_out_if_weights_are_missing(trained, tmp_path, capsys, monkeypatch):
    run, settings = trained
    monkeypatch.setitem(PROFILES, "test", PROFILE)
    started = []
    monkeypatch.setattr(Execution, "_start", lambda self, notebook: started.append(notebook.name))
    results = shutil.copytree(settings.results, tmp_path / "results")
    given = {"profile": "test", "datasets": ["photographs"], "resolution": 64, "results": str(results)}
    (notebook,) = find_notebooks(given | {"figures": str(tmp_path / "figures")}, ["08_deploy"])
    notebook = dataclasses.replace(notebook, runs={run.name: run})
    for there in (True, False):
        if not there:
            (run.folder(results) / "weights.safetensors").unlink()
        notebooks = Execution([notebook])
        notebooks.finished(run)
        assert started == ["08_deploy"]
    notebooks.rest()
    assert started == ["08_deploy"]
    assert "08_deploy is left out: the weights of its runs" in capsys.readouterr().out
