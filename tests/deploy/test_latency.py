"""rsslib.deploy.latency: what is measured is what would be exported, and the table is a sum over layers."""

import numpy as np
import pytest
import torch
from helpers import TINY, random_archs, sentence

from rsslib.deploy.exporting import onnx_model
from rsslib.deploy.latency import compose, latency, latency_table, untrained
from rsslib.deploy.predicting import session_of
from rsslib.errors import InputError
from rsslib.space import SearchSpace


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(0)
    space = SearchSpace(TINY, kernels=(3, 7), expands=(3,), depths=(1, 2), classes=4)
    return latency_table(space, runs=5, progress=False)


def test_the_table_is_a_sum_over_the_layers_in_use(table):
    space = table.space
    archs = random_archs(space, 20)
    for arch, predicted in zip(archs, table.predict(space.to_rows(archs)), strict=True):
        expected = table.fixed + sum(table.layers[i, kernel, expand] for i, _, kernel, expand in space.active(arch))
        assert predicted == pytest.approx(expected) == pytest.approx(table.predict(arch))


def test_no_larger_setting_costs_less(table):
    space = table.space
    for arch in random_archs(space, 20):
        assert table.predict(space.smallest) <= table.predict(arch) <= table.predict(space.largest)
    assert (np.diff(table.layers, axis=1) >= 0).all() and (np.diff(table.layers, axis=2) >= 0).all()


def test_a_subnet_put_together_from_layers_computes_the_same_nodes_as_one_that_is_exported(table):
    onnx = pytest.importorskip("onnx")
    space = table.space
    for arch in (space.smallest, space.largest):
        whole = onnx_model(untrained(space, arch), torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
        composed = onnx.load_from_string(compose(space, table.pieces, arch))
        kinds = [sorted(node.op_type for node in model.graph.node) for model in (whole, composed)]
        assert kinds[0] == kinds[1]
        logits = session_of(composed.SerializeToString()).run(None, {"0.images": np.zeros((2, 3, 32, 32), np.uint8)})[0]
        assert logits.shape == (2, 4) and np.isfinite(logits).all()


def test_how_well_it_predicts_is_measured_on_other_subnets(table):
    words = table.check(subnets=10, runs=5)
    assert words["subnets"] == 10 and -1 <= words["spearman"] <= 1 and words["relative_error"] >= 0


def test_a_latency_has_a_spread_in_order(table):
    found = latency(untrained(table.space, table.space.middle), runs=20)
    assert 0 < found.low <= found.median <= found.high and found.runs == 20
    with pytest.raises(InputError) as error:
        latency(untrained(table.space, table.space.middle), runs=0)
    assert "runs is 0" in sentence(error)
