"""rsslib.methods and the study's catalogue: Table 1's epochs, learning rate curves, ablations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rsslib.errors import InputError
from rsslib.methods import Method, Stage, one_stage, override
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.trainer import complexities
from rsstudy.catalogue import TABLE_1, build, table_1
from rsstudy.samplers import Sandwich

STEPS = 625


@pytest.mark.parametrize(
    ("dataset", "s", "ps", "stages"),
    [
        ("mnist", 10, 27, (8, 2, 8, 1, 8)),
        ("fashion_mnist", 25, 57, (17, 3, 17, 3, 17)),
        ("cifar10", 180, 410, (120, 25, 120, 25, 120)),
        ("cifar100", 180, 410, (120, 25, 120, 25, 120)),
    ],
)
def test_epochs_are_those_of_table_1(dataset, s, ps, stages):
    assert TABLE_1[dataset] == (s, ps)
    ofa = build("ofa", s, ps)
    assert [stage.epochs for stage in ofa.stages] == [s, *stages]
    assert build("rss", s, ps).epochs == s + ps == ofa.epochs
    assert build("rss-short", s, ps).epochs == s
    row = next(row for row in table_1() if row["dataset"] == dataset)
    assert list(row.values()) == [dataset, s, ps, s, s + ps]


def cosine(rate, epochs, first=0, last=None):
    """Rates of steps of epochs first..last-1 of a cosine over `epochs`, by PyTorch's own scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * STEPS)
    rates = []
    for _ in range((last or epochs) * STEPS):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates[first * STEPS :]


def rates(stage):
    return [stage.rate(epoch, step, STEPS) for epoch in range(stage.epochs) for step in range(STEPS)]


def test_ofa_stages_have_a_full_cosine_each():
    base = (0.01, 0.01 / 2.7, 0.01 / 32.5, 0.01 / 10.8, 0.01 / 32.5, 0.01 / 10.8)
    for stage, rate in zip(build("ofa", 10, 27).stages, base, strict=True):
        assert rates(stage) == pytest.approx(cosine(rate, stage.epochs), abs=1e-9)


def test_ofa_released_counts_epochs_over_the_running_total():
    stages = build("ofa-released", 180, 410).stages
    indices = [(s.first_epoch, s.first_epoch + s.epochs - 1) for s in stages]
    assert indices == [(0, 179), (180, 299), (301, 324), (326, 444), (446, 469), (471, 589)]
    base = (0.01, 0.01 / 2.7, 0.01 / 32.5, 0.01 / 10.8, 0.01 / 32.5, 0.01 / 10.8)
    shares = [stage.rate(0, 0, STEPS) / rate for stage, rate in zip(stages, base, strict=True)]
    assert shares == pytest.approx([1, 0.346, 0.0134, 0.166, 0.0064, 0.0971], rel=0.01)
    assert stages[-1].rate(0, 0, STEPS) == pytest.approx(9e-5, rel=0.01)


def test_ofa_released_rates_are_tails_of_pytorchs_cosine():
    for stage in build("ofa-released", 10, 27).stages[1:4]:
        end = stage.first_epoch + stage.epochs
        expected = cosine(stage.learning_rate, stage.schedule_epochs, stage.first_epoch, end)
        assert rates(stage) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("s", "ps", "lost"), [(12, 27, 0), (9, 5, 0), (180, 820, 8), (180, 409, 4)])
def test_ofa_released_loses_cifars_share_at_other_epochs(s, ps, lost):
    assert build("ofa", s, ps).epochs - build("ofa-released", s, ps).epochs == lost


def test_ofa_and_ofa_released_differ_as_documented():
    ofa, released = build("ofa", 180, 410), build("ofa-released", 180, 410)
    assert (ofa.teacher, ofa.fresh_optimizer) == ("stage", True)
    assert (released.teacher, released.fresh_optimizer) == ("random", False)
    assert [s.sort_channels for s in ofa.stages] == [None, None, None, None, (), (4,)]
    assert [s.sort_channels for s in released.stages] == [None] * 6
    for method in (ofa, released):
        assert [s.distill for s in method.stages] == [False, True, True, True, True, True]


def test_rss_has_a_cosine_and_two_subnet_schemes_a_constant_rate():
    (stage,) = build("rss", 180, 410).stages
    assert stage.rate(0, 0, STEPS) == 0.01
    assert stage.rate(295, 0, STEPS) == pytest.approx(0.005)
    assert stage.rate(589, STEPS - 1, STEPS) < 1e-7
    for name in ("rss-max-then-min", "rss-min-then-max", "rss-short-alternating"):
        (stage,) = build(name, 180, 410).stages
        assert {stage.rate(epoch, 0, STEPS) for epoch in range(stage.epochs)} == {0.01}
    schedules = {name: build(name, 180, 410).stages[0].schedule for name in ("rss-constant", "rss-alternating-cosine")}
    assert schedules == {"rss-constant": "constant", "rss-alternating-cosine": "cosine"}
    assert build("rss-2-per-batch-mean", 180, 410).gradients == "mean" != build("rss-same-twice", 180, 410).gradients


def test_overrides_change_one_hyper_parameter():
    for base in ("ofa", "rss-short", "ofa-released"):
        plain = build(base, 180, 410)
        assert (plain.batch_size, plain.dropout) == (64, 0.1)
        assert build(f"{base}-batch-128", 180, 410).batch_size == 128
        assert build(f"{base}-dropout-0.3", 180, 410).dropout == 0.3
        doubled = build(f"{base}-lr-0.02", 180, 410)
        for stage, twice in zip(plain.stages, doubled.stages, strict=True):
            assert twice.rate(0, 0, STEPS) == pytest.approx(2 * stage.rate(0, 0, STEPS))


def test_subnet_epochs_count_every_subnet_of_a_step():
    assert build("rss-2-per-batch", 180, 410).subnet_epochs == 2 * 590
    assert build("ofa", 180, 410).subnet_epochs == 180 + 120 + 2 * 145 + 4 * 145


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build("rss-shrot", 1, 1), "did you mean 'rss-short'"),
        (lambda: build("rss", 0, 5), "supernet_epochs is 0"),
        (lambda: override(build("rss", 1, 1), batch_size=1), "batch_size is 1"),
        (lambda: override(build("rss", 1, 1), dropout=1.0), "dropout is 1.0"),
        (lambda: override(build("rss", 1, 1), learning_rate_scale=0), "learning_rate_scale is 0"),
        (lambda: one_stage("mine", 0, Uniform()), "'mine' has no epoch"),
        (lambda: one_stage("mine", 1, Uniform(), "linear"), "schedule is 'linear': expected cosine or constant"),
        (
            lambda: one_stage("mine", 1, Uniform(), teacher="stag"),
            "teacher is 'stag': expected stage or random",
        ),
        (lambda: one_stage("mine", 1, Uniform(), teacher="stage"), "distils in the first stage, at whose end"),
        (lambda: one_stage("mine", 1, Uniform(), batch_size=16, groups=9), "groups is 9: expected at most 8"),
        (lambda: one_stage("mine", 1, Uniform(), label_smoothing=1.5), "label_smoothing is 1.5"),
        (lambda: Method("mine", (replace(build("rss", 1, 1).stages[0], distill=True),)), "distils without a teacher"),
    ],
)
def test_invalid_fields_are_an_input_error(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_one_stage_distils_with_a_teacher():
    mine, sandwich = one_stage("sandwich", 148, Sandwich(), teacher="largest"), build("sandwich", 180, 410)
    assert mine.stages[0].distill and not one_stage("mine", 1, Sandwich()).stages[0].distill
    assert (mine.teacher, mine.stages[0]) == (sandwich.teacher, replace(sandwich.stages[0], name="sandwich"))


def test_a_rate_warms_up_and_then_follows_its_schedule():
    stage = Stage("mine", 4, 0.1, Uniform(), lambda progress: 1 - progress, warmup_epochs=1)
    rates = [stage.rate(epoch, step, 5) for epoch in range(4) for step in range(5)]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, *np.linspace(0.1, 0, 15, endpoint=False)])
    cosine = replace(stage, schedule="cosine")
    expected = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), 15)
    for step in range(5, 20):
        assert cosine.rate(*divmod(step, 5), 5) == pytest.approx(expected.get_last_lr()[0])
        expected.optimizer.step()
        expected.step()
    constant = replace(stage, schedule="constant")
    assert [constant.rate(0, 0, 5), constant.rate(3, 4, 5)] == pytest.approx([0.02, 0.1])


def test_complexity_aware_rates_decay_early_for_small_subnets_and_late_for_large_ones():
    stage = build("complexity-aware", 1, 3).stages[0]
    space = SearchSpace()
    smallest, largest = (math.log(space.parameters(arch)) for arch in (space.smallest, space.largest))
    steps = [(space.smallest,), (space.largest,), (space.middle, space.largest)]
    low, high, mixed = complexities(space, steps)
    assert (low, high) == (0, 1)
    both = (space.parameters(space.middle) + space.parameters(space.largest)) / 2
    assert mixed == pytest.approx((math.log(both) - smallest) / (largest - smallest))
    cosine = 0.5 * (1 + math.cos(math.pi * 5 / 16))  # step 5 of 16
    for complexity, exponent in {0: 4, 1: 0.25, 0.5: 2.125}.items():
        assert stage.rate(1, 1, 4, complexity) == pytest.approx(0.01 * cosine**exponent)


def test_delayed_shrinking_trains_the_largest_alone_and_then_the_sandwich_on_one_curve():
    # Annavajjala et al. 2024, section 4: shrinking begins after about half of the epochs, at the running rate.
    method = build("delayed-shrinking", 180, 410)
    first, rest = method.stages
    assert first.epochs / method.epochs == pytest.approx(145 / 270, abs=1 / method.epochs)
    assert 590 <= method.subnet_epochs < 590 + 4
    curve = Stage("whole", method.epochs, 0.01, Uniform())
    for epoch in range(method.epochs):
        stage, inside = (first, epoch) if epoch < first.epochs else (rest, epoch - first.epochs)
        assert stage.rate(inside, 7, STEPS) == pytest.approx(curve.rate(epoch, 7, STEPS))
    assert not method.fresh_optimizer and not first.distill and rest.distill
    ((only,),) = first.sampler.subnets(SearchSpace(), np.random.default_rng(0), 0, first.epochs, 1)
    assert only == SearchSpace().largest


def test_the_share_of_later_subnets_lets_their_rate_grow_from_nothing_in_equal_steps():
    stage = Stage("mine", 6, 0.1, Uniform(), first_epoch=6, schedule_epochs=12, ramp_epochs=2)
    rates = [stage.share(epoch, step, 5) * stage.rate(epoch, step, 5) for epoch in range(2) for step in range(5)]
    end = 0.05 * (1 + math.cos(math.pi * 8 / 12))  # the cosine two epochs into the stage
    assert rates == pytest.approx(np.linspace(0, end, 11)[1:])
    assert {stage.share(epoch, step, 5) for epoch in range(2, 6) for step in range(5)} == {1.0}
    assert {replace(stage, ramp_epochs=0).share(epoch, step, 5) for epoch in range(6) for step in range(5)} == {1.0}
