"""rsslib.population: buckets, the subnets drawn for them, and the anchors."""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers import network_of, random_archs, sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslib.backbones import BACKBONES
from rsslib.errors import InputError
from rsslib.population import (
    anchors,
    archs_from_table,
    get_buckets,
    half_bucket,
    sample_bucket,
    sample_population,
)
from rsslib.space import SearchSpace

SPACES = {name: SearchSpace(name) for name in BACKBONES}

by_name = pytest.mark.parametrize("name", SPACES)


@pytest.fixture(scope="module")
def population():
    """Twelve subnets per bucket of each backbone."""
    return {name: sample_population(space, 12) for name, space in SPACES.items()}


@by_name
@given(seed=st.integers(0, 2**32), n=st.integers(1, 3))
@settings(max_examples=2)
def test_a_population_of_any_seed_lies_in_its_buckets(name, seed, n):
    space = SPACES[name]
    drawn = sample_population(space, n, seed=seed)
    assert [bucket for bucket, _ in drawn] == [bucket for bucket in space.backbone.buckets for _ in range(n)]
    assert len({network_of(space, arch) for _, arch in drawn}) == len(drawn)
    for bucket, arch in drawn:
        assert space.validate(arch) is arch and abs(space.macs(arch) / 1e6 - bucket) <= 0.5


@by_name
def test_width_is_locked_in_the_lowest_and_the_highest_bucket_alone(name, population):
    widths = {bucket: set() for bucket in SPACES[name].backbone.buckets}
    for bucket, arch in population[name]:
        widths[bucket] |= set(arch.expand)
    lowest, *middle, highest = widths.values()
    assert lowest == {3} and highest == {6}
    assert all(width == {3, 4, 6} for width in middle)


@by_name
def test_a_larger_population_begins_with_the_smaller_one(name, population):
    smaller = sample_population(SPACES[name], 5)
    for bucket in SPACES[name].backbone.buckets:
        mine, longer = ([arch for b, arch in p if b == bucket] for p in (smaller, population[name]))
        assert mine == longer[:5]


@by_name
def test_a_bucket_does_not_depend_on_other_buckets(name, population):
    assert sample_population(SPACES[name], 12, buckets=(8,)) == [pair for pair in population[name] if pair[0] == 8]


@by_name
def test_overlapping_buckets_draw_different_subnets(name):
    space = SPACES[name]
    networks = {network_of(space, arch) for _, arch in sample_population(space, 12, buckets=(8, 8.1))}
    assert len(networks) == 24


@by_name
def test_a_population_depends_on_its_seed_alone(name, population):
    assert sample_population(SearchSpace(name), 12) == population[name]
    other = [arch for _, arch in sample_population(SPACES[name], 12, seed=1)]
    assert not set(other) & {arch for _, arch in population[name]}


def small_space():
    """A space with every network listed: {network: MACs}."""
    space = SearchSpace(kernels=(3,), expands=(3, 4), depths=(1, 2))
    rows = itertools.product(*[(3,)] * 10, *[(3, 4)] * 10, *[(1, 2)] * 5)
    rows = np.array(list(rows), dtype=np.int8)
    archs = [space.to_arch(row) for row in rows]
    return space, {network_of(space, a): macs for a, macs in zip(archs, space.macs(rows).tolist(), strict=True)}


def test_a_bucket_yields_every_network_in_it_and_no_more():
    space, networks = small_space()
    assert len(networks) == space.cardinality
    inside = {network for network, macs in networks.items() if 4_090_000 <= macs <= 4_110_000}
    assert len(inside) > 50
    draw = partial(sample_bucket, space, 4.1, rng=np.random.default_rng(0), tolerance=0.01, max_draws=500_000)
    assert {network_of(space, space.to_arch(row)) for row in draw(len(inside))} == inside
    with pytest.raises(InputError) as error:
        draw(len(inside) + 1)
    assert f"{len(inside)} different subnets" in sentence(error)


@pytest.mark.parametrize("side", [-1, 1])
def test_bounds_of_a_bucket_are_inclusive(side):
    space, networks = small_space()
    edge = 4_007_920
    centre = edge - side * 1000
    inside = sorted(macs for macs in networks.values() if abs(macs - centre) <= 1000)
    assert edge in inside
    rows = sample_bucket(space, centre / 1e6, len(inside), np.random.default_rng(0), tolerance=1000 / 1e6)
    assert sorted(space.macs(rows)) == inside


@pytest.mark.parametrize(("name", "bucket"), [("mobilenet_v3", 16), ("mobilenet_v3", 3), ("proxylessnas", 14)])
def test_a_bucket_out_of_reach_is_an_input_error(name, bucket):
    with pytest.raises(InputError) as error:
        sample_population(SPACES[name], 1, buckets=(8, bucket))
    assert f"bucket {bucket}" in sentence(error) and "expected a size between" in sentence(error)


@by_name
def test_buckets_at_a_higher_resolution_lie_at_the_same_places_between_the_extremes(name):
    study, larger = SPACES[name], SearchSpace(name, resolution=64)
    assert get_buckets(study) == BACKBONES[name].buckets and half_bucket(study) == 0.5
    (low, high), (study_low, study_high) = (
        (space.macs(space.smallest) / 1e6, space.macs(space.largest) / 1e6) for space in (larger, study)
    )
    for bucket, of_study in zip(get_buckets(larger), get_buckets(study), strict=True):
        place = (of_study - study_low) / (study_high - study_low)
        assert bucket == pytest.approx(low + place * (high - low), abs=0.5 if bucket >= 10 else 0.05)
    assert half_bucket(larger) == pytest.approx(0.5 * (high - low) / (study_high - study_low))


@by_name
def test_anchors_are_the_smallest_middle_and_largest_with_their_sizes(name):
    space = SearchSpace(name, in_channels=1, classes=10)
    sizes = {"mobilenet_v3": [4.050384, 7.198784, 15.313440], "proxylessnas": [3.248, 5.946880, 12.481280]}[name]
    assert anchors(space) == list(zip(sizes, (space.smallest, space.middle, space.largest), strict=True))


@by_name
def test_architectures_are_read_from_a_table(name):
    archs = random_archs(SPACES[name], 5)
    columns = {
        what: ["-".join(map(str, getattr(arch, what))) for arch in archs] for what in ("kernel", "expand", "depth")
    }
    assert archs_from_table(pd.DataFrame(columns)) == archs
