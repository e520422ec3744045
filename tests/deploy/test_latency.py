"""rsslib.deploy.latency: the measured model is the exported one, and a table predicts made-up times."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY, random_archs, sentence

from rsslib.deploy import latency as module
from rsslib.deploy import measure
from rsslib.deploy.exporting import onnx_model
from rsslib.deploy.latency import compose, latency, latency_table, measured, undisturbed, untrained
from rsslib.deploy.predicting import session_of
from rsslib.errors import InputError
from rsslib.space import SearchSpace

SPACE = SearchSpace(TINY, kernels=(3, 7), expands=(3, 6), depths=(1, 2), classes=4)
CALL, FIXED, SHARE, FETCH = 0.5, 2.0, 0.8, 1e-4  # of a call, of all but the layers, of a layer's time, of a weight


def alone(layer, kernel, expand):
    """The made-up milliseconds of a layer; of the third one, the larger kernel takes less."""
    return 0.01 * layer.in_size * expand * (kernel if layer.index + 2 * layer.stage != 2 else 10 / kernel)


def layer_times():
    """What a table should hold, except that a larger choice may cost less: {(layer, kernel, expand): ms}."""
    return {
        (i, kernel, expand): SHARE * alone(layer, kernel, expand) + FETCH * layer.parameters(kernel, expand)
        for (i, layer), kernel, expand in product(enumerate(SPACE.layers), SPACE.kernels, SPACE.expands)
    }


def piece_times():
    return {
        module.layer_key(layer, kernel, expand): CALL + alone(layer, kernel, expand)
        for layer, kernel, expand in product(SPACE.layers, SPACE.kernels, SPACE.expands)
    }


def whole(space, pieces, rows, runs):
    times = layer_times()
    archs = [space.to_arch(row) for row in rows]
    return np.array([FIXED + sum(times[i, k, e] for i, _, k, e in space.active(arch)) for arch in archs])


@pytest.fixture(scope="module")
def table():
    """A table of made-up times, whose pieces are those of the network."""
    times = piece_times()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "undisturbed", lambda sessions, runs: {key: times.get(key, CALL) for key in sessions})
        patch.setattr(module, "whole_times", whole)
        return latency_table(SPACE, progress=False)


def test_table_has_the_times_of_layers_in_whole_subnets(table):
    assert table.fixed == pytest.approx(FIXED)
    for (i, kernel, expand), expected in layer_times().items():
        if i != 2:
            assert table.layers[i, kernel, expand] == pytest.approx(expected)


def test_larger_choice_that_took_less_has_the_smaller_ones_time(table):
    times = layer_times()
    for expand in SPACE.expands:
        assert times[2, 7, expand] < times[2, 3, expand]
        assert table.layers[2, 7, expand] == table.layers[2, 3, expand] == pytest.approx(times[2, 3, expand])


def test_kit_measures_a_device_without_pytorch_and_gives_its_table(table, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "exported_pieces", lambda space, progress: table.pieces)
    script = module.write_kit(SPACE, tmp_path)
    code = (
        f"import runpy, sys; runpy.run_path({str(script)!r}, {{}}, '__main__'); "
        "assert not {'torch', 'rsslib', 'onnx', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    times = json.loads((tmp_path / "times.json").read_text())
    assert times.keys() == {path.stem for path in tmp_path.glob("*.onnx")} and min(times.values()) > 0
    assert module.read_kit(SPACE, tmp_path).predict(SPACE.largest) > 0
    subnets = whole(SPACE, {}, module.calibration_rows(SPACE), 1).tolist()
    name = partial(module.model_name, SPACE)
    made_up = {name("piece", i): piece_times().get(key, CALL) for i, key in enumerate(table.pieces)}
    made_up |= {name("whole", i): ms for i, ms in enumerate(subnets)}
    assert made_up.keys() == times.keys()
    (tmp_path / "times.json").write_text(json.dumps(made_up))
    assert np.allclose(module.read_kit(SPACE, tmp_path).layers, table.layers)
    with pytest.raises(InputError, match="has no times for tiny"):
        module.read_kit(replace(SPACE, resolution=64), tmp_path)
    for wrong in (made_up | {name("whole", 0): -1}, made_up | {"piece-99": 1.0}, {}, []):
        (tmp_path / "times.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="has no times for tiny") as error:
            module.read_kit(SPACE, tmp_path)
        assert sentence(error)


def test_predictions_are_sums_over_active_layers(table):
    archs = random_archs(SPACE, 20)
    for arch, predicted in zip(archs, table.predict(SPACE.to_rows(archs)), strict=True):
        expected = table.fixed + sum(table.layers[i, kernel, expand] for i, _, kernel, expand in SPACE.active(arch))
        assert predicted == pytest.approx(expected) == pytest.approx(table.predict(arch))


def test_subnet_composed_of_layers_has_the_nodes_of_an_exported_one(table):
    onnx = pytest.importorskip("onnx")
    for arch in (SPACE.smallest, SPACE.largest):
        exported = onnx_model(untrained(SPACE, arch), torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
        composed = onnx.load_from_string(compose(SPACE, table.pieces, arch))
        kinds = [sorted(node.op_type for node in model.graph.node) for model in (exported, composed)]
        assert kinds[0] == kinds[1]
        logits = session_of(composed.SerializeToString()).run(None, {"0.images": np.zeros((2, 3, 32, 32), np.uint8)})[0]
        assert logits.shape == (2, 4) and np.isfinite(logits).all()


class Session:
    """A model of one uint8 image that takes these milliseconds, one run after the other."""

    def __init__(self, milliseconds):
        self.milliseconds, self.now = iter(milliseconds), 0.0

    def get_inputs(self):
        return [SimpleNamespace(name="images", shape=["N", 3, 8, 8], type="tensor(uint8)")]

    def run(self, outputs, feed, how):
        assert feed["images"].shape == (1, 3, 8, 8) and feed["images"].dtype == np.uint8
        self.now += next(self.milliseconds) / 1000


def test_latency_is_the_median_with_quartiles_after_warming_up(monkeypatch):
    session = Session([100] * measure.WARM_UP + [5, 1, 3, 2, 4])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: session.now))
    found = measured(session, 5)
    assert (found.median, found.low, found.high, found.runs) == (*map(pytest.approx, (3, 2, 4)), 5)
    assert str(found) == "3.00 ms (quartiles 2.00 to 4.00, 5 runs)"


def test_undisturbed_takes_the_least_median(monkeypatch):
    medians = {"a": iter([5, 4, 9, 9, 9]), "b": iter([9, 9, 9, 7, 8])}
    monkeypatch.setattr(module, "measured", lambda session, runs: SimpleNamespace(median=next(session)))
    assert undisturbed(medians, 1) == {"a": 4, "b": 7}


def test_measured_model_takes_images_as_an_exported_file_does(monkeypatch):
    subnet = untrained(SPACE, SPACE.middle)
    monkeypatch.setattr(module, "measured", lambda session, runs: (session.get_inputs()[0], runs))
    place, runs = latency(subnet, runs=7)
    assert (place.name, place.type, place.shape[1:], runs) == ("images", "tensor(uint8)", [3, 32, 32], 7)
    with pytest.raises(InputError) as error:
        latency(subnet, runs=0)
    assert "runs is 0" in sentence(error)
