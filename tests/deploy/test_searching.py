"""rsslib.deploy.searching: subnets within a budget, the front of a space that can be enumerated, resumed searches."""

import dataclasses
import sys
from itertools import product

import numpy as np
import pytest
from helpers import TINY, random_supernet, sentence, toy_data
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslib.deploy import searching
from rsslib.deploy.latency import LatencyTable
from rsslib.deploy.searching import Candidates, Scores, chosen, hypervolume, measures, non_dominated, search
from rsslib.errors import InputError
from rsslib.evaluate import Evaluator, LabelledBatches, correct_answers, evaluate_population, recalibration_images
from rsslib.space import Arch, SearchSpace

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
    space, batches = supernet.space, LabelledBatches(data.x_val, data.y_val, data)
    evaluator = Evaluator(supernet, batches, recalibration_images(data))
    points = {}
    for depth in product((1, 2), repeat=2):
        for kernel in product((3, 5), repeat=4):
            arch = Arch(kernel, (3,) * 4, depth)
            if space.macs(arch) <= 1e6 * limit:
                points[arch] = space.macs(arch) / 1e6, int(correct_answers(evaluator, arch))
    return {
        (size, right) for size, right in points.values()
        if not any(s <= size and r >= right and (s, r) != (size, right) for s, r in points.values())
    }  # fmt: skip


@pytest.mark.parametrize("limit", [10, 0.36])
def test_the_front_of_a_small_space_is_that_of_brute_force(supernet, data, limit):
    expected = brute_force(supernet, data, limit)
    table = search(supernet, data, {"mflops": limit}, evaluations=60, progress=False)
    assert set(zip(table["mflops"], table["validation_accuracy"].round().astype(int), strict=True)) == expected
    assert 1 < table.attrs["evaluations"] <= SMALL.cardinality == 36


@pytest.mark.parametrize("method", ["nsga2", "random"])
def test_equal_arguments_give_equal_tables_and_the_test_images_are_of_the_front_alone(supernet, data, method):
    tables = [search(supernet, data, None, method, 12, seed=2, first_images=50, progress=False) for _ in range(2)]
    assert tables[0].equals(tables[1])
    assert tables[0].attrs["evaluations"] == 12
    archs = [chosen(tables[0].iloc[[i]]) for i in range(len(tables[0]))]
    tested = evaluate_population(supernet, [(0, arch) for arch in archs], data, progress=False)
    assert tables[0]["test_accuracy"].tolist() == tested["accuracy"].tolist()
    assert tables[0]["mflops"].is_monotonic_increasing and tables[0]["validation_accuracy"].is_monotonic_increasing


@settings(max_examples=10)
@given(st.data(), st.sampled_from(["mobilenet_v3", "proxylessnas"]), st.sampled_from([32, 64]))
def test_no_candidate_is_above_the_budget(draw, backbone, resolution):
    space = SearchSpace(backbone, resolution=resolution)
    layers = np.random.default_rng(0).random((space.n_layers, 8, 7)).cumsum(1).cumsum(2)
    table = LatencyTable(space, layers, 1.0, {})
    sizes = measures(space, table)
    names = draw.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, unique=True))
    ends = [space.to_rows([arch]) for arch in (space.smallest, space.largest)]
    budget = {}
    for name in names:
        low, high = (float(sizes[name](rows)[0]) for rows in ends)
        budget[name] = low + draw.draw(st.floats(0, 1)) * (high - low)
    candidates = Candidates(space, budget, sizes, np.random.default_rng(0))
    rows = np.concatenate([candidates.draw(5), candidates.shrink(space.sample(5, np.random.default_rng(1)))])
    for name, limit in budget.items():
        assert (sizes[name](rows) <= limit).all()
    assert (space.to_rows([space.to_arch(row) for row in rows]) == rows).all()  # all lie in the space
    drawn = candidates.draw(5)
    assert len({candidates.plain(row[None]).tobytes() for row in drawn}) == len(drawn)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_what_is_not_dominated_is_found(points):
    points = np.array(points, float)
    kept = {tuple(p) for p in points[non_dominated(points)]}
    assert kept == {tuple(p) for p in points if not any((q <= p).all() and (q < p).any() for q in points)}
    assert len(non_dominated(points)) == len(kept)


def test_a_search_goes_on_from_what_was_scored(supernet, data, tmp_path, monkeypatch):
    whole = search(supernet, data, evaluations=30, progress=False)
    calls, real = [], searching.correct_answers

    def cut(*arguments):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(searching, "correct_answers", cut)
    with pytest.raises(KeyboardInterrupt):
        search(supernet, data, evaluations=30, folder=tmp_path, progress=False)
    calls[:] = [1] * 100
    again = search(supernet, data, evaluations=30, folder=tmp_path, progress=False)
    assert again.equals(whole)
    assert again.attrs["scored"] == whole.attrs["scored"] - 20  # the first population was kept
    assert search(supernet, data, evaluations=30, folder=tmp_path, progress=False).attrs["scored"] == 0
    other = search(random_supernet(SMALL, seed=1).eval(), data, evaluations=3, folder=tmp_path, progress=False)
    assert other.attrs["scored"] >= 3 and len(list(tmp_path.iterdir())) == 2  # another supernet's scores are its own
    for path in tmp_path.iterdir():
        path.write_text("damaged")
    with pytest.raises(InputError) as error:
        search(supernet, data, evaluations=3, folder=tmp_path, progress=False)
    assert "cannot be read" in sentence(error)


def test_subnets_whose_digits_are_alike_have_scores_of_their_own(data, tmp_path, monkeypatch):
    space, asked = SearchSpace(TINY, kernels=(3,), expands=(1, 11), depths=(2,), classes=4), []
    monkeypatch.setattr(searching, "correct_answers", lambda _, arch: asked.append(arch) or arch.expand[0])
    archs = [Arch((3,) * 4, expand, (2, 2)) for expand in ((1, 11, 1, 1), (11, 1, 1, 1))]

    def correct():
        return Scores(random_supernet(space), data, tmp_path).correct(space.to_rows(archs), 50).tolist()

    assert correct() == correct() == [1, 11] and asked == archs
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("-", ""))  # as before there was a separator
    assert correct() == [1, 11] and asked == 2 * archs


def test_hypervolume_is_the_area_of_the_rectangles():
    table = search_table([(2, 50), (4, 75)])
    assert hypervolume(table, 8) == pytest.approx((0.75 - 0.5) * 0.5 + 0.5 * 0.75)
    assert hypervolume(search_table([(9, 90)]), 8) == 0


def search_table(points):
    import pandas as pd

    return pd.DataFrame(points, columns=["mflops", "test_accuracy"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"budget": {"mflops": 0.1}}, "no subnet of tiny at 32 pixels has mflops of at most 0.1: the smallest has 0.2"),
        ({"budget": {"parameters": 10}}, "parameters of at most 10: the smallest has"),
        ({"budget": {"mflop": 8}}, "did you mean 'mflops'?"),
        *(({"budget": {"mflops": limit}}, f"budget mflops is {limit!r}") for limit in ("8", -1, float("nan"), True)),
        *(({"budget": budget}, f"budget is {budget!r}") for budget in (5, "8", [("mflops", 8)])),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"method": "nsga3"}, "did you mean 'nsga2'?"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(supernet, data, arguments, said):
    with pytest.raises(InputError) as error:
        search(supernet, data, progress=False, **arguments)
    assert said in sentence(error)


def test_a_missing_package_names_the_extra(supernet, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo", None)
    with pytest.raises(InputError) as error:
        search(supernet, data, progress=False)
    assert "pip install -e '.[search]'" in sentence(error)
