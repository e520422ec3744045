"""Which subnets are trained: the distributions and orders that the samplers promise."""

from collections import Counter

import numpy as np
import pytest
from helpers import sentence
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from rsslib import samplers
from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.population import sample_population
from rsslib.samplers import (
    SIZES,
    Alternating,
    Successive,
    Uniform,
    drawn_steps,
    randomness,
)
from rsslib.space import SearchSpace
from rsstudy import catalogue
from rsstudy.catalogue import BEYOND, METHODS, Alone, Repeated, build
from rsstudy.samplers import Compound, FlopsAware, Sandwich, SizeAware, StrictFairness

SPACE = SearchSpace("mobilenet_v3")


def rng():
    return np.random.default_rng(0)


def all_archs(steps):
    return [arch for step in steps for arch in step]


def test_every_choice_is_drawn_uniformly():
    archs = all_archs(Uniform(per="batch").subnets(SPACE, rng(), 0, 1, 6000))
    p_values = []
    for field, choices in (("kernel", (3, 5, 7)), ("expand", (3, 4, 6)), ("depth", (2, 3, 4))):
        for column in zip(*(getattr(arch, field) for arch in archs), strict=True):
            counts = Counter(column)
            assert set(counts) == set(choices)
            p_values.append(chisquare([counts[choice] for choice in choices]).pvalue)
    assert len(p_values) == 45
    assert min(p_values) > 0.001 / 45  # Bonferroni


def test_positions_are_independent():
    archs = all_archs(Uniform(per="batch").subnets(SPACE, rng(), 0, 1, 4000))
    rows = SPACE.to_rows(archs).astype(float)
    correlation = np.corrcoef(rows.T) - np.eye(rows.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(len(rows))


def some_of(*choices):
    return st.none() | st.lists(st.sampled_from(choices), min_size=1, unique=True).map(tuple)


@given(
    per=st.sampled_from(["epoch", "batch"]),
    count=st.integers(1, 5),
    kernels=some_of(3, 5, 7),
    expands=some_of(3, 4, 6),
    depths=some_of(2, 3, 4),
    seed=st.integers(0, 2**64 - 1),
    steps=st.integers(1, 20),
)
def test_any_uniform_sampler_draws_its_count_from_its_set(per, count, kernels, expands, depths, seed, steps):
    sampler = Uniform(per, count, kernels, expands, depths)
    drawn, again = (sampler.subnets(SPACE, np.random.default_rng(seed), 3, 9, steps) for _ in range(2))
    assert drawn == again
    assert [len(step) for step in drawn] == [count] * (steps if per == "batch" else 1)
    for arch in all_archs(drawn):
        assert SPACE.validate(arch) is arch
        assert set(arch.kernel) <= set(kernels or SPACE.kernels)
        assert set(arch.expand) <= set(expands or SPACE.expands)
        assert set(arch.depth) <= set(depths or SPACE.depths)


@given(st.data())
def test_every_epoch_of_every_method_has_its_subnets(data):
    name = data.draw(st.sampled_from(METHODS + BEYOND))
    method = build(name, data.draw(st.integers(1, 200)), data.draw(st.integers(1, 500)))
    stage = data.draw(st.sampled_from([stage for stage in method.stages if stage.epochs]))
    epoch, steps = data.draw(st.integers(0, stage.epochs - 1)), data.draw(st.integers(1, 8))
    seed = data.draw(st.integers(0, 2**32))
    drawn, again = (
        stage.sampler.subnets(SPACE, np.random.default_rng(seed), epoch, stage.epochs, steps) for _ in range(2)
    )
    assert drawn == again and len(drawn) in (1, steps)
    assert {len(step) for step in drawn} == {getattr(stage.sampler, "count", 1)}
    assert all(SPACE.validate(arch) for arch in all_archs(drawn))


@given(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4), epochs=st.integers(1, 40))
def test_named_subnets_follow_or_take_turns(sizes, epochs):
    share, more = divmod(epochs, len(sizes))
    blocks = [size for i, size in enumerate(sizes) for _ in range(share + (i < more))]
    turns = [sizes[epoch % len(sizes)] for epoch in range(epochs)]
    for sampler, expected in ((Successive, blocks), (Alternating, turns)):
        drawn = [sampler(tuple(sizes)).subnets(SPACE, rng(), epoch, epochs, 3) for epoch in range(epochs)]
        assert drawn == [[(getattr(SPACE, size),)] for size in expected]


# Cai et al. 2020, section 3.2, as the study runs it: kernel sizes, expand ratios, depths, subnets per step.
PS_STAGES = {
    "kernel": ({3, 5, 7}, {6}, {4}, 1),
    "depth 1": ({3, 5, 7}, {6}, {3, 4}, 2),
    "depth 2": ({3, 5, 7}, {6}, {2, 3, 4}, 2),
    "width 1": ({3, 5, 7}, {4, 6}, {2, 3, 4}, 4),
    "width 2": ({3, 5, 7}, {3, 4, 6}, {2, 3, 4}, 4),
}


@pytest.mark.parametrize("method", ["ofa", "ofa-released"])
@pytest.mark.parametrize("stage", PS_STAGES)
def test_stages_of_progressive_shrinking_draw_exactly_from_their_sets(method, stage):
    sampler = {s.name: s.sampler for s in build(method, 180, 410).stages}[stage]
    kernels, expands, depths, count = PS_STAGES[stage]
    steps = sampler.subnets(SPACE, rng(), 0, 1, 200)
    assert len(steps) == 200 and all(len(step) == count for step in steps)
    archs = all_archs(steps)
    for position in range(20):
        assert {arch.kernel[position] for arch in archs} == kernels
        assert {arch.expand[position] for arch in archs} == expands
    for position in range(5):
        assert {arch.depth[position] for arch in archs} == depths


# --- samplers beyond the paper's


@given(every=st.integers(1, 30), steps=st.integers(1, 12), epochs=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_a_draw_holds_for_its_batches_across_epochs(every, steps, epochs, seed):
    sampler = Uniform("batch", 2, every=every)
    drawn = [
        step
        for epoch in range(epochs)
        for step in sampler.subnets(SPACE, randomness(seed, 1, epoch)[0], epoch, epochs, steps)
    ]
    blocks = [drawn[i : i + every] for i in range(0, len(drawn), every)]
    assert len(drawn) == epochs * steps and all(len(set(block)) == 1 for block in blocks)
    assert len(set(drawn)) == len(blocks) and {len(step) for step in drawn} == {2}


def test_a_draw_holds_for_its_epochs_and_differs_between_seeds_and_stages():
    def drawn(seed, stage):
        draws = [Uniform(every=3).subnets(SPACE, randomness(seed, stage, e)[0], e, 9, 5) for e in range(9)]
        assert all(len(draw) == 1 for draw in draws)
        return [draw[0] for draw in draws]

    first = drawn(0, 0)
    assert [first[i] == first[i - 1] for i in range(1, 9)] == [True, True, False] * 2 + [True, True]
    assert not set(first) & set(drawn(1, 0)) and not set(first) & set(drawn(0, 1))


def test_draws_per_batch_are_the_rows_of_one_sample():
    rows = SPACE.sample(6, rng())
    expected = [(SPACE.to_arch(row),) for row in rows]
    assert Uniform("batch").subnets(SPACE, rng(), 4, 9, 6) == expected


def test_alone_trains_the_subnet_of_the_evaluated_population():
    population = [arch for _, arch in sample_population(SPACE, 4, [8.0])]
    assert [Alone(8.0, i).subnets(SPACE, rng(), 5, 9, 7) for i in range(4)] == [[(arch,)] for arch in population]


def test_repeated_yields_the_subnets_of_the_other_sampler():
    single = Uniform("batch").subnets(SPACE, rng(), 0, 1, 9)
    repeated = Repeated(Uniform("batch"), 3)
    assert repeated.count == 3 and repeated.subnets(SPACE, rng(), 0, 1, 9) == [step * 3 for step in single]


@given(drawn=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_every_step_of_a_sandwich_has_the_largest_first_and_the_smallest(drawn, seed):
    steps = Sandwich(drawn).subnets(SPACE, np.random.default_rng(seed), 0, 1, 8)
    assert all(step[:2] == (SPACE.largest, SPACE.smallest) and len(step) == 2 + drawn for step in steps)
    assert len({arch for step in steps for arch in step[2:]}) == 8 * drawn


@given(seed=st.integers(0, 2**32))
def test_strict_fairness_gives_every_choice_to_exactly_one_subnet_of_a_step(seed):
    for step in StrictFairness().subnets(SPACE, np.random.default_rng(seed), 0, 1, 4):
        for field, choices in zip(("kernel", "expand", "depth"), SPACE.choices, strict=True):
            for column in zip(*(getattr(arch, field) for arch in step), strict=True):
                assert sorted(column) == sorted(choices)


def test_strict_fairness_draws_uniformly_and_columns_independently():
    rows = SPACE.to_rows([step[0] for step in StrictFairness().subnets(SPACE, rng(), 0, 1, 4000)])
    p_values = [chisquare(np.unique(column, return_counts=True)[1]).pvalue for column in rows.T]
    assert min(p_values) > 0.001 / len(p_values)
    correlation = np.corrcoef(rows.T.astype(float)) - np.eye(rows.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(len(rows))


@pytest.mark.parametrize(
    "space", [SPACE, SearchSpace("proxylessnas"), SearchSpace(depths=(1, 2, 3), expands=(1, 2, 3))]
)
def test_compound_subnets_pair_depth_with_width(space):
    pairs, kernels = dict(zip(space.depths, space.expands, strict=True)), set()
    for (arch,) in Compound().subnets(space, rng(), 0, 1, 300):
        depths = iter(arch.depth)
        for s, stage in enumerate(space.backbone.stages):
            (expand,) = {arch.expand[i] for i, layer in enumerate(space.layers) if layer.stage == s}
            assert not stage.elastic_depth or expand == pairs[next(depths)]
        kernels.add(arch.kernel)
    assert len(kernels) == 300


@pytest.mark.parametrize("backbone", ["mobilenet_v3", "proxylessnas"])
def test_sizes_are_uniform_with_flops_aware_sampling_only(backbone):
    space = SearchSpace(backbone)
    low, high = space.reference.macs(space.smallest), space.reference.macs(space.largest)
    p_values = []
    for sampler in (FlopsAware(), SizeAware(), Uniform("batch")):
        macs = [space.reference.macs(arch) for (arch,) in sampler.subnets(space, rng(), 0, 1, 500)]
        p_values.append(kstest(macs, "uniform", (low, high - low)).pvalue)
    assert min(p_values[:2]) > 0.01 and p_values[2] < 1e-20


@pytest.mark.parametrize("tilt, uniform", [(0, True), (6, False)])
def test_choices_given_the_size_are_uniform_without_a_tilt(tilt, uniform):
    steps = SizeAware(candidates=1, tilt=tilt).subnets(SPACE, rng(), 0, 1, 600)
    counts = np.unique([arch.expand[0] for (arch,) in steps], return_counts=True)[1]
    assert (chisquare(counts).pvalue > 0.01) == uniform  # large tilts take the ends


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(per="step"), "per is 'step': expected epoch or batch"),
        (lambda: Successive(()), "sizes is"),
        (lambda: Uniform(every=0), "every is 0"),
        (lambda: Uniform(kernels=()), r"kernels is \(\): expected at least one"),
        (lambda: Uniform(expands=()), r"expands is \(\)"),
        (lambda: Uniform(depths=()), r"depths is \(\)"),
        (lambda: Repeated(Uniform(), 0), "times is 0"),
        (lambda: StrictFairness(2).subnets(SPACE, rng(), 0, 1, 1), "strict fairness is 2: expected .* are 3, 3, 3"),
        (lambda: Compound().subnets(SearchSpace(depths=(2, 4)), rng(), 0, 1, 1), "pair 2 depths with 3 expand ratios"),
        (lambda: Alternating(("smallest", "huge")), "sizes is .*'huge'.: expected .* smallest or middle or largest"),
    ],
)
def test_invalid_fields_are_an_input_error(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --- custom samplers

ARCH = SPACE.smallest
RETURNED = {
    "nothing": (None, "returned None: expected a list"),
    "a list of Arch": ([ARCH], "returned .Arch"),
    "a tuple": ((ARCH,), "returned .Arch"),
    "rows": (SPACE.to_rows([ARCH]), "returned array"),
    "no steps": ([], "returned ..:"),
    "no subnets": ([()], "returned ....:"),
    "too few": ([(ARCH,)] * 2, "for each of the epoch's 3 steps, or"),
    "too many": ([(ARCH,)] * 4, "for each of the epoch's 3 steps, or"),
}


@pytest.mark.parametrize(("value", "said"), RETURNED.values(), ids=RETURNED)
def test_anything_but_a_list_of_steps_is_an_input_error(value, said):
    class Mine:
        def subnets(self, *arguments):
            return value

    with pytest.raises(InputError, match=said) as error:
        drawn_steps(Mine(), SPACE, rng(), 0, 1, 3)
    assert sentence(error)


def test_a_single_step_holds_for_the_epoch():
    class Mine:
        def subnets(self, *arguments):
            return [(ARCH, SPACE.largest)]

    assert drawn_steps(Mine(), SPACE, rng(), 0, 1, 3) == [(ARCH, SPACE.largest)] * 3


@pytest.mark.parametrize("sampler", [None, object(), Uniform, "rss", lambda *arguments: [(ARCH,)]])
def test_an_object_without_subnets_is_not_a_sampler(sampler):
    with pytest.raises(InputError, match="expected an object with a method subnets") as error:
        one_stage("mine", 1, sampler)
    assert sentence(error)


@given(name=st.sampled_from(METHODS + BEYOND))
def test_the_repr_of_a_sampler_makes_an_equal_one(name):
    for stage in build(name, 3, 9).stages:
        assert eval(repr(stage.sampler), vars(samplers) | vars(catalogue)) == stage.sampler
