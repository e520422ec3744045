"""rsslib.deploy.quantising: int8 files are as accurate as asked for, or not written."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from helpers import TINY, random_archs, random_supernet, sentence, toy_data
from scipy import stats

from rsslib.deploy.exporting import export
from rsslib.deploy.predicting import accuracy_interval, open_model
from rsslib.deploy.quantising import quantise
from rsslib.errors import InputError
from rsslib.space import SearchSpace


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file, and images whose validation labels are what the file predicts."""
    supernet = random_supernet(SearchSpace(TINY, classes=4)).eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    images = dataclasses.replace(toy_data(300, 60), x_val=toy_data(200, 2, seed=1).x_train)
    export(supernet, random_archs(supernet.space, 1, seed=3)[0], images, path)
    labels = open_model(path).logits(images.x_val.contiguous().numpy()).argmax(1)
    return path, dataclasses.replace(images, y_val=torch.from_numpy(labels))


def weights_of(content):
    """Element types of the convolutions' weights, the number of groups beside them."""
    graph = onnx.load_from_string(content).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    groups = [{a.name: a.i for a in node.attribute}.get("group", 1) for node in convolutions]
    return {
        (group > 1, types[sources.get(node.input[1], node.input[1])])
        for group, node in zip(groups, convolutions, strict=True)
    }


def test_int8_file_predicts_what_it_says(exported):
    path, images = exported
    found = quantise(path, images, largest_loss=100)
    content = found["path"].read_bytes()
    assert weights_of(content) == {(True, onnx.TensorProto.INT8), (False, onnx.TensorProto.INT8)}
    assert found["int8"]["bytes"] == len(content)
    test = images.x_test.contiguous().numpy()
    before, after = (open_model(file).logits(test).argmax(1) for file in (path, found["path"]))
    assert found["agreement"] == pytest.approx(100 * np.mean(before == after)) and found["agreement"] > 60
    accuracy = pytest.approx(100 * np.mean(after == images.y_test.numpy()))
    assert found["int8"]["accuracy"] == open_model(found["path"]).metadata["accuracy"] == accuracy
    assert open_model(found["path"]).metadata["classes"] == list(images.classes)


def test_int8_that_costs_more_than_allowed_is_refused(exported, tmp_path):
    path, images = exported
    copy = tmp_path / "model.onnx"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="points of accuracy on 200 validation images, allowed is 0") as error:
        quantise(copy, images, largest_loss=0)
    assert sentence(error) and list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("right, n", [(0, 5), (3, 7), (900, 1000), (4, 4)])
def test_accuracy_interval_is_wilsons(right, n):
    found = accuracy_interval(np.arange(n) < right)
    low, high = stats.binomtest(right, n).proportion_ci(method="wilson")
    expected = [100 * right / n, 100 * low, 100 * high]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4, abs=1e-9)
