"""The three experiments of docs/experiments.md: what their methods share and change, and what forgetting measures."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import TINY, toy_data

from rsslib.evaluate import evaluate_population
from rsslib.methods import one_stage
from rsslib.samplers import Uniform, drawn_steps, randomness
from rsslib.space import SearchSpace
from rsslib.trainer import start, train
from rsstudy import forgetting as module
from rsstudy import interference
from rsstudy.catalogue import METHODS, Dosed, build, of_bucket
from rsstudy.forgetting import LAGS, draws_once_per_epoch, forgetting
from rsstudy.interference import Effort

S, PS = 12, 27  # epochs at the scale of the experiments
SPACE = SearchSpace(TINY, classes=4)


def built(name):
    return build(name, S, PS)


def summed_rate(method, steps=100):
    return sum(
        stage.rate(epoch, step, steps)
        for stage in method.stages
        for epoch in range(stage.epochs)
        for step in range(steps)
    )


# --- the bridge from OFA to RSS


def test_ofa_rss_rate_changes_the_learning_rate_alone():
    method, ofa = built("ofa-rss-rate"), built("ofa")
    assert summed_rate(method) == pytest.approx(summed_rate(built("rss")), rel=2e-3)
    stages = tuple(replace(a, learning_rate=b.learning_rate) for a, b in zip(method.stages, ofa.stages, strict=True))
    assert replace(method, name="ofa", stages=stages) == ofa


def test_rss_ofa_rates_draws_uniformly_at_the_rates_of_ofa():
    method, ofa = built("rss-ofa-rates"), built("ofa")
    assert {stage.sampler for stage in method.stages} == {built("rss").stages[0].sampler}
    for a, b in zip(method.stages, ofa.stages, strict=True):
        assert [a.rate(e, 0, 1) for e in range(a.epochs)] == [b.rate(e, 0, 1) for e in range(b.epochs)]
        assert not a.distill and a.sort_channels is None
    assert method.teacher is None and method.fresh_optimizer


def test_ofa_no_distillation_changes_nothing_else():
    method, ofa = built("ofa-no-distillation"), built("ofa")
    stages = tuple(replace(a, distill=b.distill) for a, b in zip(method.stages, ofa.stages, strict=True))
    assert method.teacher is None and replace(method, name="ofa", stages=stages, teacher="stage") == ofa


def test_ofa_one_per_step_draws_from_the_same_choices():
    method, ofa = built("ofa-one-per-step"), built("ofa")
    assert method.subnet_epochs == method.epochs == ofa.epochs
    for a, b in zip(method.stages[1:], ofa.stages[1:], strict=True):
        assert replace(a.sampler, count=b.sampler.count) == b.sampler


# --- dose and placebo


@pytest.mark.parametrize("s, ps", [(S, PS), (9, 5), (180, 410)])
def test_dose_has_the_epochs_of_its_subnet_in_mixed(s, ps):
    alone, mixed = (build(name, s, ps) for name in ("dose-8-1", "mixed-8-1"))
    space = SearchSpace()
    own = of_bucket(space, 8.0, 1)
    sampler, n = mixed.stages[0].sampler, mixed.epochs
    drawn = [drawn_steps(sampler, space, randomness(3, 0, e)[0], e, n, 1)[0] for e in range(n)]
    assert drawn.count((own,)) == alone.epochs
    others = [step for step in drawn if step != (own,)]
    assert len(set(others)) == len(others) == n - alone.epochs


def test_dose_has_the_summed_rate_of_its_subnet_in_mixed():
    alone, mixed = built("dose-4-0"), built("mixed-4-0")
    (stage,) = mixed.stages
    own = [stage.rate(e, step, 100) for e in range(1, stage.epochs, 3) for step in range(100)]
    assert sum(own) == pytest.approx(summed_rate(alone), rel=2e-3)


def test_mixed_draws_as_rss_in_other_epochs():
    space, rng = SearchSpace(), np.random.default_rng
    drawn = Dosed(8.0, 0).subnets(space, rng(5), 3, 39, 10)
    assert drawn == Uniform().subnets(space, rng(5), 3, 39, 10)


# --- RSS after RSS-Short


def test_rss_after_short_continues_at_the_rate_of_rss_with_momentum():
    method, rss = built("rss-after-short"), built("rss")
    first, rest = method.stages
    assert first == replace(built("rss-short").stages[0], name="short")
    assert [rest.rate(e, 0, 1) for e in range(PS)] == [rss.stages[0].rate(S + e, 0, 1) for e in range(PS)]
    assert not method.fresh_optimizer and method.epochs == rss.epochs


# --- forgetting


EFFORT = Effort(idle=3, followed_images=30)


def followed(method, accuracy, monkeypatch):
    """The table of `forgetting` where `accuracy(arch, trained)` says what a subnet is worth after the epochs `trained`
    (the subnets so far, in order), in place of a network's."""
    trained = []

    def train(state, method, data, seed, after_epoch, description, progress):
        for stage_number, stage in enumerate(method.stages):
            for epoch in range(stage.epochs):
                rng = randomness(seed, stage_number, epoch)[0]
                trained.append(drawn_steps(stage.sampler, SPACE, rng, epoch, stage.epochs, 1)[0][0])
                state.history.append({})
                if after_epoch(state):
                    return

    def judge(evaluator, arch):
        return 0.0, accuracy(arch, trained)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(interference, "loss_and_accuracy", judge)
    data = toy_data()
    data = replace(data, x_val=data.x_test, y_val=data.y_test)
    return forgetting(start(SPACE, method, 0), method, data, 0, EFFORT, progress=False), trained


def test_forgetting_follows_each_subnet_at_its_lags(monkeypatch):
    method = one_stage("test", 10, Uniform())
    table, trained = followed(method, lambda arch, trained: 100.0 * (arch in trained), monkeypatch)
    for number, arch in enumerate(trained, 1):
        rows = table[table["trained"] == number]
        expected = [e for e in (number - 1, number, *(number + lag for lag in LAGS)) if 1 <= e <= 10]
        assert sorted(rows["epoch"]) == expected
        assert list(rows.sort_values("epoch")["accuracy"]) == [100.0 * (e >= number) for e in expected]
        assert set(rows["mflops"]) == {SPACE.reference.macs(arch) / 1e6}
    never = table[table["trained"] == 0]
    assert len(never) == 3 * 10 and set(never["accuracy"]) == {0.0}


def test_forgetting_stops_on_request(monkeypatch):
    method = one_stage("test", 5, Uniform())
    data = toy_data()
    table = forgetting(start(SPACE, method, 0), method, data, 0, EFFORT, progress=False, stop=lambda: True)
    assert table is None


def test_forgetting_is_nothing_at_learning_rate_zero():
    method = one_stage("test", 3, Uniform(), batch_size=16)
    method = replace(method, stages=(replace(method.stages[0], learning_rate=0.0),))
    data = toy_data()
    data = replace(data, x_val=data.x_test, y_val=data.y_test)
    table = forgetting(start(SPACE, method, 1), method, data, 1, EFFORT, progress=False)
    assert table["epoch"].max() == 3 and np.isfinite(table["loss"]).all()
    assert (table.groupby(["trained", "number"])["loss"].nunique() == 1).all()


def test_forgetting_agrees_with_evaluation():
    method = one_stage("test", 2, Uniform(), batch_size=16)
    data = toy_data()
    data = replace(data, x_val=data.x_test, y_val=data.y_test)
    effort = replace(EFFORT, followed_images=len(data.x_train))
    table = forgetting(start(SPACE, method, 2), method, data, 2, effort, progress=False)
    state = train(start(SPACE, method, 2), method, data, 2, progress=False)
    rows = table[(table["trained"] > 0) & (table["epoch"] == 2)].sort_values("trained")
    archs = [drawn_steps(Uniform(), SPACE, randomness(2, 0, e)[0], e, 2, 1)[0][0] for e in range(2)]
    found = evaluate_population(state.supernet, [(0.0, arch) for arch in archs], data, progress=False)
    assert list(found["accuracy"]) == list(rows["accuracy"])


def test_forgetting_follows_methods_with_one_draw_per_epoch():
    followed = {name for name in METHODS if draws_once_per_epoch(built(name))}
    assert {"rss", "rss-short"} < followed
    assert not {"ofa", "rss-per-batch", "rss-2-per-batch", "rss-largest", "rss-alternating"} & followed
