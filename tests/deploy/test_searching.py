"""rsslib.deploy.searching: subnets within a budget, the front of a space that can be enumerated, kept scores."""

import dataclasses
import hashlib
import json
import math
import os
from itertools import islice, product

import numpy as np
import pandas as pd
import pytest
from helpers import TINY, damaged, random_supernet, sentence, toy_data
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslib import evaluate
from rsslib.deploy.latency import LatencyTable
from rsslib.deploy.searching import (
    Scores,
    chosen,
    draw,
    effects_table,
    layer_effects,
    measures_of,
    one_hot,
    pareto_front,
    promising,
    read_front,
    search,
    spread,
)
from rsslib.errors import InputError
from rsslib.evaluate import evaluate_population
from rsslib.population import archs_from_table
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet

SMALL = SearchSpace(TINY, kernels=(3, 5), expands=(3,), depths=(1, 2), classes=4)  # of 36 different subnets


@pytest.fixture(scope="module")
def data():
    images = toy_data(60, 100)
    validation = toy_data(100, 2, seed=1)
    return dataclasses.replace(images, x_val=validation.x_train, y_val=validation.y_train)


@pytest.fixture(scope="module")
def supernet():
    return random_supernet(SMALL).eval()


def brute_force(supernet, data, limit):
    """The front over all subnets up to `limit` MFLOPs by comparing every pair: {(size, correct answers)}."""
    space = supernet.space
    archs = [
        Arch(kernel, (3,) * 4, depth) for depth in product((1, 2), repeat=2) for kernel in product((3, 5), repeat=4)
    ]
    archs = [arch for arch in archs if space.macs(arch) <= 1e6 * limit]
    validation = dataclasses.replace(data, x_test=data.x_val, y_test=data.y_val)
    table = evaluate_population(supernet, [(0, arch) for arch in archs], validation, progress=False)
    points = {(space.macs(arch) / 1e6, round(right)) for arch, right in zip(archs, table["accuracy"], strict=True)}
    return {
        (size, right)
        for size, right in points
        if not any(s <= size and r >= right and (s, r) != (size, right) for s, r in points)
    }


@pytest.mark.parametrize("limit", [10, 0.36])
def test_front_of_a_small_space_equals_brute_force(supernet, data, limit):
    expected = brute_force(supernet, data, limit)
    table = search(supernet, data, {"mflops": limit}, evaluations=60, progress=False)
    assert set(zip(table["mflops"], table["validation_accuracy"].round().astype(int), strict=True)) == expected
    assert 1 < table.attrs["evaluations"] <= SMALL.cardinality == 36


def test_equal_arguments_give_equal_tables_tested_on_the_test_images(supernet, data):
    tables = [search(supernet, data, None, 12, seed=2, first_images=50, progress=False) for _ in range(2)]
    assert tables[0].equals(tables[1])
    assert tables[0].attrs["evaluations"] == 12
    tested = evaluate_population(supernet, [(0, arch) for arch in archs_from_table(tables[0])], data, progress=False)
    assert tables[0]["test_accuracy"].tolist() == tested["accuracy"].tolist()
    assert tables[0]["mflops"].is_monotonic_increasing and tables[0]["validation_accuracy"].is_monotonic_increasing


@settings(max_examples=10)
@given(st.data(), st.sampled_from(["mobilenet_v3", "proxylessnas"]), st.sampled_from([32, 64]))
def test_candidates_differ_and_meet_the_budget(data, backbone, resolution):
    space = SearchSpace(backbone, resolution=resolution)
    layers = np.random.default_rng(0).random((space.n_layers, 8, 7)).cumsum(1).cumsum(2)
    sizes = measures_of(space, LatencyTable(space, layers, 1.0, {}))
    names = data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, unique=True))
    ends = [space.to_rows([arch]) for arch in (space.smallest, space.largest)]
    budget = {}
    for name in names:
        low, high = (float(sizes[name](rows)[0]) for rows in ends)
        budget[name] = low + data.draw(st.floats(0, 1)) * (high - low)
    rows = next(draw(space, budget, sizes, np.random.default_rng(0)))
    for name, limit in budget.items():
        assert (sizes[name](rows) <= limit).all()
    assert (space.to_rows([space.to_arch(row) for row in rows]) == rows).all()  # all lie in the space
    used = space.used(rows)
    assert len({row[mask].tobytes() for row, mask in zip(rows, used, strict=True)}) == len(rows) > 0  # all differ


def test_effects_of_settings_are_those_that_made_the_accuracies():
    space = SearchSpace()
    size, rng = measures_of(space)["mflops"], np.random.default_rng(0)
    fitted, unseen = islice(draw(space, {}, measures_of(space), rng), 2)
    truth = rng.normal(size=one_hot(space, fitted[:1]).shape[1])
    fitted = fitted[spread(size(fitted), 100)]
    accuracies = one_hot(space, fitted) @ truth + rng.normal(size=100)
    predicted = one_hot(space, unseen) @ layer_effects(space, fitted, accuracies)
    assert np.corrcoef(predicted, one_hot(space, unseen) @ truth)[0, 1] > 0.8


def test_effects_table_names_the_settings_that_help():
    space = SearchSpace()
    archs = [space.to_arch(row) for row in space.sample(300, np.random.default_rng(0))]
    population = pd.DataFrame({name: ["-".join(map(str, getattr(a, name))) for a in archs] for name in vars(archs[0])})
    helps = [2.0 * (arch.kernel[4] == 7) - 1.0 * (arch.depth[1] == 2) for arch in archs]
    table = effects_table(space, population.assign(accuracy=helps))
    best, worst = table.loc[table["effect"].idxmax()], table.loc[table["effect"].idxmin()]
    assert best.tolist()[:3] == ["kernel", 4, 7] and worst.tolist()[:3] != best.tolist()[:3]
    assert table.set_index(["what", "place", "value"])["effect"]["depth", 1, 2] < -0.3
    assert len(table) == 3 * (2 * space.n_layers + space.n_stages)


def test_promising_subnets_are_better_than_those_that_were_fitted():
    space = SearchSpace()
    sizes, rng = measures_of(space), np.random.default_rng(0)
    candidates = draw(space, {"mflops": 8}, sizes, rng)
    truth = rng.normal(size=one_hot(space, next(candidates)[:1]).shape[1])
    rows = next(candidates)
    rows = rows[spread(sizes["mflops"](rows), 100)]
    best = promising(space, rows, one_hot(space, rows) @ truth, islice(candidates, 5), sizes["mflops"])
    assert (one_hot(space, best) @ truth).max() > (one_hot(space, rows) @ truth).max() + 1
    assert not {row.tobytes() for row in best} & {row.tobytes() for row in rows}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_pareto_front_has_the_points_that_no_other_dominates(points):
    points = np.array(points, float)
    front = points[pareto_front(*points.T)]
    kept = {tuple(p) for p in front}
    assert kept == {tuple(p) for p in points if not any((q <= p).all() and (q < p).any() for q in points)}
    assert len(front) == len(kept) and (np.diff(front[:, 1]) > 0).all()


def test_stopped_search_resumes_from_its_scores(supernet, data, tmp_path, monkeypatch):
    whole = search(supernet, data, evaluations=30, progress=False)
    calls, real = [], evaluate.correct_answers

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "correct_answers", stop)
        search(supernet, data, evaluations=30, folder=tmp_path, progress=False)
    again = search(supernet, data, evaluations=30, folder=tmp_path, progress=False)
    assert again.equals(whole)
    assert again.attrs["scored"] == whole.attrs["scored"] - 10  # those of the last file
    assert search(supernet, data, evaluations=30, folder=tmp_path, progress=False).attrs["scored"] == 0


OTHERS = {
    "weights": lambda net, data: (random_supernet(SMALL, seed=1).eval(), data),
    "labels": lambda net, data: (net, dataclasses.replace(data, y_val=data.y_val.flip(0))),
    "validation images": lambda net, data: (net, dataclasses.replace(data, x_val=255 - data.x_val)),
    "training images": lambda net, data: (net, dataclasses.replace(data, x_train=255 - data.x_train)),
    "space": lambda net, data: (with_activation(net), data),
}


def with_activation(supernet):
    backbone = dataclasses.replace(TINY, head_act="relu")
    other = SuperNet(SearchSpace(backbone, kernels=(3, 5), expands=(3,), depths=(1, 2), classes=4))
    other.load_state_dict(supernet.state_dict())
    return other.eval()


@pytest.mark.parametrize("what", OTHERS)
def test_scores_of_something_else_are_not_used(supernet, data, tmp_path, what):
    search(supernet, data, evaluations=3, folder=tmp_path, progress=False)
    other = OTHERS[what](supernet, data)
    kept = search(*other, evaluations=3, folder=tmp_path, progress=False)
    assert kept.attrs["scored"] == 3 and len(list(tmp_path.iterdir())) == 2
    assert kept.equals(search(*other, evaluations=3, progress=False))


def test_damaged_scores_are_refused(supernet, data, tmp_path):
    search(supernet, data, evaluations=3, folder=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    for content in damaged(path.read_bytes(), 40, 10):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read") as error:
            search(supernet, data, evaluations=3, folder=tmp_path, progress=False)
        assert sentence(error)


@pytest.mark.parametrize("count", [101, -5, 7.9, None])
def test_impossible_scores_are_refused_whatever_their_checksum(supernet, data, tmp_path, count):
    search(supernet, data, evaluations=3, folder=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    known = json.loads(path.read_bytes().partition(b"\n")[2])
    known[next(key for key in known if key.endswith("on 100"))] = count
    content = json.dumps(known).encode()
    path.write_bytes(f"{hashlib.sha256(content).hexdigest()}\n".encode() + content)
    with pytest.raises(InputError, match="cannot be read") as error:
        search(supernet, data, evaluations=3, folder=tmp_path, progress=False)
    assert sentence(error)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "3;3;3;3"},
        {"kernel": "a-b"},
        {"expand": ""},
        {"depth": "<script>"},
        {"depth": "2-" * 10**5},
        {"expand": "999-3-3-3"},
        {"depth": 2.5},
        {"validation_accuracy": "high"},
        {"validation_accuracy": math.nan},
        {"mflops": "0,3"},
    ],
)
def test_front_with_odd_cells_is_refused(change, tmp_path):
    row = {"mflops": 0.3, "kernel": "3-3-3-3", "expand": "3-3-3-3", "depth": "2-2", "validation_accuracy": 50.0}
    pd.DataFrame([row | change]).to_csv(tmp_path / "front.csv", index=False)
    with pytest.raises(InputError) as error:
        chosen(read_front(tmp_path / "front.csv"), mflops=1)
    assert len(sentence(error)) < 600


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/front.csv", "s3://bucket/front.csv", "absent.csv", "pipe", "."])
def test_front_is_a_file_and_never_fetched(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(InputError) as error:
        read_front(place)
    assert place in sentence(error)


def test_subnets_whose_digits_are_alike_have_separate_scores(data):
    space = SearchSpace(TINY, kernels=(3,), expands=(1, 11), depths=(2,), classes=4)
    rows = space.to_rows([Arch((3,) * 4, expand, (2, 2)) for expand in ((1, 11, 1, 1), (11, 1, 1, 1))])
    scores = Scores(random_supernet(space).eval(), data, None, progress=False)
    scores.accuracy(rows, 50)
    assert scores.made == len(scores.known) == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"budget": {"mflops": 0.1}}, "no subnet of tiny at 32 pixels has mflops of at most 0.1: the smallest has 0.2"),
        ({"budget": {"mflop": 8}}, "did you mean 'mflops'?"),
    ],
)
def test_impossible_search_is_refused(supernet, data, arguments, said):
    with pytest.raises(InputError) as error:
        search(supernet, data, progress=False, **arguments)
    assert said in sentence(error)


def test_chosen_is_the_most_accurate_within_a_budget(supernet, data):
    front = search(supernet, data, evaluations=30, progress=False)
    archs = archs_from_table(front)
    assert chosen(front) == archs[-1] and chosen(front, mflops=front["mflops"][0]) == archs[0]
    for table, budget, said in (
        (front, {"mflops": 0.1}, "no subnet of the front is within {'mflops': 0.1}, the least are {'mflops': '0.2"),
        (front.iloc[:0], {}, "no subnet of the front is within {}"),
        (front, {"latency_ms": 1}, "the front has no column latency_ms"),
        (front[["mflops"]], {}, "the front has no column depth"),
        (front, {"mflop": 1}, "did you mean 'mflops'?"),
    ):
        with pytest.raises(InputError) as error:
            chosen(table, **budget)
        assert said in sentence(error)
