"""rsslib.space: sizes, counts and draws of both search spaces."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import any_arch, corners, network_of, random_archs, sentence
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ptflops import get_model_complexity_info
from scipy import stats
from scipy.signal import fftconvolve
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models._utils import _make_divisible

from rsslib.backbones import BACKBONES, make_divisible
from rsslib.errors import InputError
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet

SPACES = {name: SearchSpace(name) for name in BACKBONES}

by_name = pytest.mark.parametrize("name", SPACES)


# --- sizes


def test_make_divisible_equals_torchvision():
    for channels in (*range(1, 2000), 72 / 4 + 0.5, 0.25 * 72):
        assert make_divisible(channels) == _make_divisible(channels, 8)


@pytest.mark.parametrize(
    ("name", "whole", "largest"), [("mobilenet_v3", 6_525_980, 6_511_860), ("proxylessnas", 3_965_262, 3_950_436)]
)
def test_parameters_of_the_supernet_and_of_the_largest_subnet(name, whole, largest):
    space = SPACES[name]
    supernet = SuperNet(space)
    assert sum(p.numel() for p in supernet.parameters()) == whole
    assert sum(p.numel() for n, p in supernet.named_parameters() if "kernel_" in n) == whole - largest
    assert space.parameters(space.largest) == largest


@pytest.mark.parametrize(
    ("name", "macs"),
    [("mobilenet_v3", [4_050_384, 7_198_784, 15_313_440]), ("proxylessnas", [3_248_000, 5_946_880, 12_481_280])],
)
def test_multiply_accumulates_of_smallest_middle_and_largest(name, macs):
    space = SPACES[name]
    assert [space.macs(arch) for arch in corners(space)] == macs
    assert space.macs(space.to_rows(corners(space))).tolist() == macs


@by_name
@pytest.mark.parametrize("in_channels, classes, resolution", [(3, 100, 32), (1, 10, 32), (3, 100, 96)])
def test_sizes_are_those_of_the_extracted_networks(name, in_channels, classes, resolution):
    space = SearchSpace(name, in_channels=in_channels, classes=classes, resolution=resolution)
    supernet = SuperNet(space).eval()
    for arch in [*corners(space), *random_archs(space, 5)]:
        network = supernet.extract(arch)
        assert space.parameters(arch) == sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():  # exact; counts two operations per MAC
            network(torch.zeros(1, in_channels, resolution, resolution))
        assert 2 * space.macs(arch) == counter.get_total_flops()


def test_macs_agree_with_ptflops(space):
    supernet = SuperNet(space).eval()
    for arch in [*corners(space), *random_archs(space, 3, seed=1)]:
        macs, parameters = get_model_complexity_info(
            supernet.extract(arch), (3, 32, 32), backend="aten",
            as_strings=False, print_per_layer_stat=False, verbose=False,
        )  # fmt: skip
        assert macs == pytest.approx(space.macs(arch), rel=1e-3)
        assert parameters == space.parameters(arch)


def test_reference_sizes_count_three_channels_and_a_hundred_classes():
    grey, colour = SearchSpace(in_channels=1, classes=10), SearchSpace()
    arch = random_archs(grey, 1)[0]
    assert grey.macs(arch) < colour.macs(arch)
    assert grey.reference.macs(arch) == colour.macs(arch)


@by_name
@given(st.data())
def test_rows_give_the_sizes_of_their_architectures(name, data):
    space = SPACES[name]
    archs = data.draw(st.lists(any_arch(space), max_size=4))
    rows = space.to_rows(archs)
    assert space.macs(rows).tolist() == [space.macs(arch) for arch in archs]
    assert space.parameters(rows).tolist() == [space.parameters(arch) for arch in archs]
    assert space.active_mask(rows).sum(axis=1).tolist() == [len(network_of(space, arch)) for arch in archs]


@by_name
@given(st.data())
def test_a_larger_choice_costs_more_exactly_where_it_is_used(name, data):
    space = SPACES[name]
    arch = data.draw(any_arch(space))
    what = data.draw(st.sampled_from(["kernel", "expand", "depth"]))
    values = list(getattr(arch, what))
    i = data.draw(st.integers(0, len(values) - 1))
    larger = [value for value in getattr(space, f"{what}s") if value > values[i]]
    assume(larger)
    values[i] = data.draw(st.sampled_from(larger))
    grown = replace(arch, **{what: tuple(values)})
    used = what == "depth" or i in {layer for layer, *_ in space.active(arch)}
    for size in (space.macs, space.parameters):
        assert size(grown) > size(arch) if used else size(grown) == size(arch)
        assert size(space.smallest) <= size(arch) <= size(space.largest)


# --- spaces and architectures as values


def test_equal_spaces_are_one_key_of_a_cache():
    calls = []
    cached = cache(lambda space: calls.append(space))
    for space in (SearchSpace(), SearchSpace(BACKBONES["mobilenet_v3"], kernels=[3, 5, 7]), SPACES["mobilenet_v3"]):
        space.macs(space.smallest)
        cached(space)
    assert len(calls) == 1
    assert len({SearchSpace(), SearchSpace(resolution=64), SearchSpace(classes=10), SPACES["proxylessnas"]}) == 4


@by_name
@given(st.data())
def test_rows_convert_back_to_the_same_architectures(name, data):
    space = SPACES[name]
    arch = data.draw(any_arch(space))
    (row,) = space.to_rows([arch])
    back = space.to_arch(row)
    assert back == arch and hash(back) == hash(arch)
    assert row.tolist() == [*arch.kernel, *arch.expand, *arch.depth]
    assert all(type(value) is int for value in (*back.kernel, *back.expand, *back.depth))


def test_active_layers_are_the_first_of_each_stage():
    space = SPACES["proxylessnas"]
    arch = replace(space.smallest, depth=(2, 3, 4, 2, 3))
    assert [i for i, *_ in space.active(arch)] == [0, 1, 4, 5, 6, 8, 9, 10, 11, 12, 13, 16, 17, 18, 20]


@by_name
@given(st.data())
def test_a_value_outside_the_space_is_an_input_error(name, data):
    space = SPACES[name]
    arch = data.draw(any_arch(space))
    what = data.draw(st.sampled_from(["kernel", "expand", "depth"]))
    inside = {"kernel": space.kernels, "expand": space.expands, "depth": space.depths}[what]
    values = list(getattr(arch, what))
    i = data.draw(st.integers(0, len(values) - 1))
    values[i] = data.draw(st.integers(-2, 100).filter(lambda value: value not in inside))
    outside = replace(arch, **{what: tuple(values)})
    for use in (space.validate, space.macs, space.parameters, lambda arch: space.to_rows([space.largest, arch])):
        with pytest.raises(InputError) as error:
            use(outside)
        assert f"{what} is (" in sentence(error) and f"out of {list(inside)}" in sentence(error)


@by_name
@given(st.data())
def test_a_wrong_number_of_values_is_an_input_error(name, data):
    space = SPACES[name]
    arch = data.draw(any_arch(space))
    what = data.draw(st.sampled_from(["kernel", "expand", "depth"]))
    values = getattr(arch, what)
    length = data.draw(st.integers(0, 30).filter(lambda n: n != len(values)))
    with pytest.raises(InputError) as error:
        space.validate(replace(arch, **{what: (values * 6)[:length]}))
    assert f"{what} is (" in sentence(error) and f"expected {len(values)} numbers out of" in sentence(error)


@pytest.mark.parametrize("kind", [list, np.array])
def test_lists_and_arrays_of_choices_make_the_same_architecture(kind):
    middle = SPACES["mobilenet_v3"].middle
    arch = Arch(kind(middle.kernel), tuple(np.int8(e) for e in middle.expand), kind(middle.depth))
    assert arch == middle and hash(arch) == hash(middle) and type(arch.expand[0]) is int


@pytest.mark.parametrize("kind", [float, bool])
def test_choices_of_another_type_than_int_are_an_input_error(kind):
    space = SPACES["mobilenet_v3"]
    middle = space.middle
    with pytest.raises(InputError) as error:
        Arch(middle.kernel, tuple(kind(e) for e in middle.expand), middle.depth)
    assert "expand is (" in sentence(error) and "in which each entry is a whole number" in sentence(error)


def test_an_architecture_of_the_other_backbone_is_an_input_error():
    with pytest.raises(InputError, match="expected 21 numbers out of .* for proxylessnas"):
        SPACES["proxylessnas"].validate(SPACES["mobilenet_v3"].largest)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kernels": (3, 11)}, "kernels is (3, 11)"),
        ({"kernels": ()}, "kernels is ()"),
        ({"expands": (3, 3)}, "expands is (3, 3)"),
        ({"expands": (0,)}, "expands is (0,)"),
        ({"depths": (2, 5)}, "depths is (2, 5)"),
        *(({"resolution": wrong}, f"resolution is {wrong!r}: expected") for wrong in (33, 0, 256)),
    ],
)
def test_invalid_fields_are_an_input_error(settings, named):
    with pytest.raises(InputError) as error:
        SearchSpace(**settings)
    assert named in sentence(error)


# --- how many


@pytest.mark.parametrize(("name", "number"), [("mobilenet_v3", 7371**5), ("proxylessnas", 7371**5 * 9)])
def test_cardinality(name, number):
    assert 9**2 + 9**3 + 9**4 == 7371
    assert SPACES[name].cardinality == number


@by_name
def test_cardinality_counts_networks_not_tuples(name):
    space = SearchSpace(name, kernels=(5,), expands=(3, 4), depths=(1, 2))
    stage = {expands[:depth] for expands in itertools.product((3, 4), repeat=2) for depth in (1, 2)}
    assert len(stage) == 6
    assert space.cardinality == len(stage) ** 5 * {"mobilenet_v3": 1, "proxylessnas": 2}[name]


# --- uniform draws


@by_name
@given(
    st.sets(st.sampled_from((3, 5, 7)), min_size=1),
    st.sets(st.sampled_from((3, 4, 6)), min_size=1),
    st.sets(st.sampled_from((2, 3, 4)), min_size=1),
)
@settings(max_examples=30)
def test_restricted_draws_take_exactly_the_given_values(name, kernels, expands, depths):
    space = SPACES[name]
    rows = space.sample(200, np.random.default_rng(0), tuple(kernels), tuple(expands), tuple(depths))
    n = space.n_layers
    assert rows.shape == (200, 2 * n + 5) and rows.dtype == np.int8
    for part, allowed in ((rows[:, :n], kernels), (rows[:, n : 2 * n], expands), (rows[:, 2 * n :], depths)):
        assert all(set(column) == allowed for column in part.T.tolist())


@by_name
def test_sample_arch_is_the_first_row_of_sample(name):
    space = SPACES[name]
    arch = space.sample_arch(np.random.default_rng(3), expands=(4,))
    assert arch == space.to_arch(space.sample(1, np.random.default_rng(3), expands=(4,))[0])
    assert set(arch.expand) == {4}


# --- the sizes of uniform draws


@cache
def distribution(name, expands=None):
    """Exact distribution of a uniform draw's MACs: (all multiples of the layers' common divisor, probabilities).

    Layers are independent, so it is a convolution over layers and, within a stage, a mixture over depths.
    """
    space = SPACES[name]
    options = [[layer.macs(k, e) for k in space.kernels for e in expands or space.expands] for layer in space.layers]
    unit = int(np.gcd.reduce([macs for option in options for macs in option]))

    def density(values):
        return np.bincount(np.array(values) // unit) / len(values)

    total = np.ones(1)
    for stage, spec in enumerate(space.backbone.stages):
        layers = [density(o) for o, layer in zip(options, space.layers, strict=True) if layer.stage == stage]
        mixture = np.zeros(sum(len(layer) for layer in layers))
        depths = space.depths if spec.elastic_depth else (1,)
        sums = np.ones(1)
        for depth, layer in enumerate(layers, start=1):
            sums = fftconvolve(sums, layer)
            if depth in depths:
                mixture[: len(sums)] += sums / len(depths)
        total = fftconvolve(total, mixture)
    fixed = space.macs(space.uniform(7, max(expands or space.expands), 4)) - sum(map(max, options))
    return fixed + unit * np.arange(len(total)), total.clip(min=0)


def share(name, bucket, expands=None):
    macs, density = distribution(name, expands)
    return density[(macs >= (bucket - 0.5) * 1e6) & (macs <= (bucket + 0.5) * 1e6)].sum()


def test_uniform_draws_have_the_published_mean_and_spread():
    macs, density = distribution("mobilenet_v3")
    assert density.sum() == pytest.approx(1)
    mean = (macs * density).sum()
    assert mean / 1e6 == pytest.approx(7.90, abs=0.005)
    assert np.sqrt(((macs - mean) ** 2 * density).sum()) / 1e6 == pytest.approx(1.03, abs=0.005)


@pytest.mark.parametrize(
    ("name", "bucket", "expands", "expected"),
    [
        ("mobilenet_v3", 12, None, 3.23e-4),
        ("mobilenet_v3", 4, None, 5.10e-6),
        ("mobilenet_v3", 14, None, 7.30e-9),
        ("mobilenet_v3", 4, (3,), 8.16e-3),
        ("mobilenet_v3", 14, (6,), 9.52e-3),
        ("proxylessnas", 10, None, 9.00e-5),
        ("proxylessnas", 12, (6,), 3.27e-4),
    ],
)
def test_shares_of_the_rare_buckets(name, bucket, expands, expected):
    assert share(name, bucket, expands) == pytest.approx(expected, rel=2e-3)


@by_name
@pytest.mark.parametrize("expands", [None, (3,), (6,)])
def test_draws_fall_into_buckets_at_the_exact_rate(name, expands):
    n, space = 150_000, SPACES[name]
    macs = space.macs(space.sample(n, np.random.default_rng(1), expands=expands))
    for bucket in space.backbone.buckets:
        inside = int(((macs >= (bucket - 0.5) * 1e6) & (macs <= (bucket + 0.5) * 1e6)).sum())
        assert stats.binomtest(inside, n, min(share(name, bucket, expands), 1.0)).pvalue > 1e-4
