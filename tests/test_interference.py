"""rsstudy.interference: effects and agreement with known answers, and a supernet's against extracted networks."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, double_measurements, random_archs, random_supernet, toy_data

from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.steps import TrainingState, new_optimizer
from rsslib.supernet import subnet_slices
from rsslib.trainer import start, train
from rsstudy.catalogue import build
from rsstudy.interference import (
    Effort,
    Trial,
    agreement,
    distance,
    effects,
    losses,
    measure,
    part_of,
    shared_weights,
    subjects,
)

SPACE = SearchSpace(TINY, classes=4)
EFFORT = Effort((0.5,), batches=3, gradients=4, images=16, recalibration=16)
METHOD = one_stage("test", 2, Uniform("batch"), batch_size=8, dropout=0.0)


# --- made-up models with known answers


class Weights:
    """A vector trained by SGD with momentum on quadratic losses, one a subnet: 1/2 |part of w - target|^2."""

    def __init__(self, parts, targets):
        self.parts, self.targets = parts, targets
        self.start, self.velocity = torch.arange(1, 5).double(), torch.tensor([0.5, -0.5, 0.5, -0.5]).double()

    def gradient(self, subnet, batch=None):
        full = torch.zeros_like(self.start)
        part = self.parts[subnet]
        full[part] = self.start[part] - self.targets[subnet] + (0 if batch is None else batch)
        return {"w": full}

    def quality_after(self, subnet):
        gradient = torch.zeros_like(self.start) if subnet is None else self.gradient(subnet)["w"]
        w = self.start - 0.1 * (gradient + 0.9 * self.velocity)
        aims = zip(self.parts, self.targets, strict=True)
        return -np.array([0.5 * (w[part] - target).square().sum().item() for part, target in aims])

    def shared(self, a, b):
        both = sorted(set(self.parts[a]) & set(self.parts[b]))
        return {"w": (both,)} if both else {}


def test_a_step_does_nothing_to_a_subnet_that_shares_nothing():
    model = Weights([[0, 1], [2, 3]], [torch.zeros(2), torch.zeros(2)])
    found = effects([0, 1], model.quality_after)
    assert found[0, 1] == found[1, 0] == 0  # although momentum moves both
    assert found[0, 0] > 0 and found[1, 1] > 0


def test_a_step_helps_who_has_the_same_aim_and_harms_who_has_the_opposite():
    model = Weights([[0, 1]] * 3, [torch.zeros(2), torch.zeros(2), torch.tensor([5.0, 5.0])])
    found = effects([0, 1, 2], model.quality_after)
    np.testing.assert_allclose(found[0, 0], found[0, 1])
    assert found[0, 2] < 0 and found[2, 0] < 0


def noise(seed):
    return 0.3 * torch.randn(2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [((0.0, 0.0), 1), ((0.0, -1.0), None), ((1.0 - 5, 1.0 + 5), -1)],
)
def test_agreement_is_that_of_the_directions_whatever_the_noise(targets, expected):
    """Gradients of start - target plus the noise of the batch, which both subnets have."""
    model = Weights([[0, 1]] * 2, [torch.tensor([t, t + 1]) for t in targets])
    table = agreement([0, 1], model.gradient, model.shared, map(noise, range(1000))).set_index(["a", "b"])
    directions = [model.start[:2] - target for target in model.targets]
    cosine = F.cosine_similarity(*directions, dim=0).item()
    assert expected is None or cosine == pytest.approx(expected)
    assert table.loc[(0, 1), "agreement"] == pytest.approx(cosine, abs=0.02)
    assert abs(table.loc[(0, 1), "cross"]) < abs(cosine)  # noise lowers what is not corrected
    assert table.loc[(0, 0), "agreement"] == pytest.approx(1) == table.loc[(1, 1), "agreement"]
    assert set(table["shared"]) == {2}


def test_agreement_is_unknown_where_gradients_are_noise_alone():
    model = Weights([[0, 1]] * 2, [torch.tensor([1.0, 2.0])] * 2)
    batches = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]
    assert agreement([0, 1], model.gradient, model.shared, batches)["agreement"].isna().all()
    with pytest.raises(InputError, match="two batches, got 1"):
        agreement([0, 1], model.gradient, model.shared, batches[:1])


def test_agreement_has_no_bias_and_little_spread_where_noise_is_most_of_a_gradient():
    """Directions with a cosine of 0.3 under noise that leaves a subnet's gradients of two batches a cosine of 0.03; the
    numbers of a quick run, 40 batches. The mean over independent trials is within four standard errors of the truth."""
    truth = torch.tensor([[1.0, 0.0], [0.3, math.sqrt(1 - 0.3**2)]])
    size, generator = 2_000, torch.Generator().manual_seed(0)
    spread = math.sqrt((1 / 0.03 - 1) / size)

    def gradient(subnet, batch):
        full = spread * batch[subnet].clone()
        full[:2] += truth[subnet]
        return {"w": full}

    found = []
    for _ in range(30):
        batches = [torch.randn(2, size, generator=generator) for _ in range(40)]
        table = agreement([0, 1], gradient, lambda a, b: {"w": (slice(None),)}, batches)
        row = table.set_index(["a", "b"]).loc[(0, 1)]
        found.append(row["agreement"])
        assert row["own_a"] == pytest.approx(0.03, abs=0.02)
    assert np.mean(found) == pytest.approx(0.3, abs=4 * np.std(found) / math.sqrt(len(found)))
    assert np.std(found) < 0.12


def test_agreement_is_the_mean_over_all_two_batches():
    """Against the definition written out: every batch of A with every other one of B."""
    model = Weights([[0, 1, 2], [1, 2, 3]], [torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])])
    batches = [noise(seed).repeat(2)[:3] for seed in range(5)]
    row = agreement([0, 1], model.gradient, model.shared, batches).set_index(["a", "b"]).loc[(0, 1)]
    a, b = ([model.gradient(k, batch)["w"][1:3].numpy() for batch in batches] for k in (0, 1))

    def others(p, q):
        return np.mean([x @ y for i, x in enumerate(p) for j, y in enumerate(q) if i != j])

    assert row["agreement"] == pytest.approx(others(a, b) / math.sqrt(others(a, a) * others(b, b)))
    squares = [np.mean([x @ x for x in p]) for p in (a, b)]
    assert row["cross"] == pytest.approx(others(a, b) / math.sqrt(squares[0] * squares[1]))


# --- a supernet


@pytest.fixture
def trial():
    supernet = random_supernet(SPACE, dtype=torch.float64)
    state = TrainingState(supernet, new_optimizer(supernet), epoch=1)
    data = toy_data(32)
    return Trial(state, METHOD, data, 0, EFFORT)


@pytest.fixture(autouse=True)
def double(monkeypatch):
    double_measurements(monkeypatch)


def test_gradients_are_those_of_extracted_networks(trial):
    x, y = trial.batches(1)[0]
    for arch in (SPACE.smallest, SPACE.largest, *random_archs(SPACE, 3)):
        gradient, network = trial.gradient(arch, (x, y)), copy.deepcopy(trial.state.supernet).train().extract(arch)
        F.cross_entropy(network(x), y).backward()
        slices = subnet_slices(SPACE, arch)
        for name, parameter in network.named_parameters():
            if "conv_dw" in name and name.startswith("blocks"):
                continue  # made by kernel matrices there
            torch.testing.assert_close(gradient[name][slices[name]], parameter.grad, atol=1e-9, rtol=1e-7, msg=name)
        for name, full in gradient.items():  # and nothing elsewhere
            part = full[slices[name]] if name in slices else full[:0]
            assert full.abs().sum() == pytest.approx(part.abs().sum().item()), name


def test_shared_weights_are_where_two_subnets_both_have_gradients(trial):
    supernet = trial.state.supernet
    for seed in range(5):
        a, b = random_archs(SPACE, 2, seed)
        expected = {}
        for arch in (a, b):
            counts = {name: torch.zeros_like(p) for name, p in supernet.named_parameters()}
            for part in supernet.subnet(arch, counts).values():
                part += 1
            expected = {name: expected.get(name, 1) * count for name, count in counts.items()}
        region = {name: torch.zeros_like(p) for name, p in supernet.named_parameters()}
        for name, index in shared_weights(SPACE, a, b).items():
            region[name][index] = 1
        for name, mask in region.items():
            assert torch.equal(mask, expected[name]), name


def test_the_agreement_of_a_subnet_with_itself_is_one_in_every_layer(trial):
    shared = partial(shared_weights, SPACE)
    table = agreement([SPACE.middle], trial.gradient, shared, trial.batches(4), part_of)
    known = table["agreement"].dropna()
    assert len(known) and known.to_numpy() == pytest.approx(1)
    layers = set(map(str, range(SPACE.n_layers))) - {"3", "7"}  # which the middle subnet does not have
    assert set(table["part"]) == {"all", "first", "last"} | layers
    assert list(table["part"][:3]) == ["all", "first", "last"]  # in every process


def test_distance_counts_the_settings_that_differ():
    a = SPACE.uniform(3, 3, 2)
    assert distance(SPACE, a, a) == 0
    assert distance(SPACE, a, SPACE.uniform(5, 3, 2)) == 4  # two of four layers in each of two stages
    # kernel and width of the two layers more, in both stages, and the two depths
    assert distance(SPACE, a, SPACE.uniform(3, 3, 4)) == 2 * (2 + 2) + 2


def everything(state):
    momentum = (s["momentum_buffer"] for s in state.optimizer.state.values())
    return [t.clone() for t in (*state.supernet.state_dict().values(), *momentum)]


def with_gradients(state):
    return {name for name, parameter in state.supernet.named_parameters() if parameter.grad is not None}


def test_what_is_tried_leaves_no_trace_and_can_be_tried_again(trial):
    before, grads = everything(trial.state), with_gradients(trial.state)
    subnets = [SPACE.smallest, SPACE.middle, SPACE.middle]
    batch = trial.batches(1)[0]
    (first,), (again,) = (trial.step_effects(subnets, [batch]) for _ in range(2))
    epoch = trial.epoch_effects(subnets)
    np.testing.assert_array_equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(trial.state), strict=True))
    assert grads == with_gradients(trial.state)
    for found in (first, epoch):
        np.testing.assert_array_equal(found[1], found[2])  # the same subnet twice is trained and judged alike
        np.testing.assert_array_equal(found[:, 1], found[:, 2])
        assert np.abs(found).max() > 0


def loss(trial, arch):
    return losses(trial.state.supernet, trial.images, [arch], 1)[0][0]


def test_a_step_moves_a_subnet_as_plain_sgd_moves_the_extracted_network(trial):
    """The effect on itself, from a network of its own: no momentum yet, so that a step of zero changes nothing but by
    decay, which is off for the comparison."""
    for group in trial.state.optimizer.param_groups:
        group["weight_decay"] = 0.0
    arch, (x, y) = SPACE.largest, trial.batches(1)[0]
    found = trial.step_effects([arch], [(x, y)]).item(0)
    before = loss(trial, arch)
    rate = trial.stage.rate(trial.epoch, 0, 1)
    gradients = trial.gradient(arch, (x, y))
    with torch.no_grad():
        for gradient, parameter in zip(gradients.values(), trial.state.supernet.parameters(), strict=True):
            parameter -= rate * 1.9 * gradient  # Nesterov's first step
    assert found == pytest.approx(before - loss(trial, arch), rel=1e-6)


@pytest.mark.parametrize("name, epochs", [("rss", 1), ("ofa", 3), ("ofa-released", 4), ("sandwich", 1)])
def test_every_kind_of_training_can_be_measured(name, epochs, monkeypatch):
    monkeypatch.undo()
    method, data = build(name, 2, 5), toy_data(32)
    state = start(SPACE, method, 0)
    train(state, method, data, 0, lambda state: len(state.history) == epochs, progress=False)
    before = everything(state)
    found, agreed = measure(Trial(state, method, data, 0, EFFORT), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(state), strict=True))
    n = len(subjects(SPACE))
    assert len(found) == 2 * n * n and set(found["length"]) == {"step", "epoch"}
    assert len(agreed[agreed["part"] == "all"]) == n * (n + 1) / 2
    assert found["loss_effect"].notna().all() and (found["distance"] == 0).sum() == 2 * n
    own = agreed[(agreed["a"] == agreed["b"]) & agreed["agreement"].notna()]
    assert own["agreement"].to_numpy() == pytest.approx(1)


def test_snapshots_are_taken_at_shares_of_the_epochs():
    assert Effort((0.25, 0.95)).epochs(build("rss", 12, 27)) == {10: 0.25, 37: 0.95}
    assert Effort((0.001,)).epochs(build("rss", 1, 1)) == {1: 0.001}
    assert math.isclose(sum(Effort().shares), 2.45)
