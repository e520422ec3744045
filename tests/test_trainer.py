"""rsslib.trainer and rsslib.steps: what a step, a stage and a run do to the weights."""

import copy
import itertools
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import EPS, TINY, random_archs, random_supernet, shortened, toy_data

from rsslib import steps as step_module
from rsslib import trainer as training
from rsslib.checkpoint import load_checkpoint, save_checkpoint
from rsslib.deploy.exporting import deployable
from rsslib.device import set_precision
from rsslib.errors import InputError
from rsslib.evaluate import evaluate_population
from rsslib.methods import Method, Stage, one_stage
from rsslib.network import Network
from rsslib.samplers import Successive, Uniform
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, new_optimizer
from rsslib.supernet import SuperNet, batch_norm_training
from rsslib.trainer import start, steps_per_epoch, train
from rsstudy.catalogue import build

SPACE = SearchSpace(TINY, classes=4)
PLAIN = one_stage("plain", 1, Uniform(), dropout=0.0)


def run(method, data=None, seed=0, space=SPACE, **settings):
    data = toy_data() if data is None else data
    return train(start(space, method, seed), method, data, seed, progress=False, **settings)


TIMELESS = {"seconds": 0, "processor_seconds": 0}


def weights(state):
    return {name: tensor.clone() for name, tensor in state.supernet.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def spy(monkeypatch):
    """A list that gets (state, subnets, dropout, x, y, learning rates) at the start of every step."""
    calls, train_step = [], EagerSteps.train_step

    def step(steps, x, y, subnets, share=1.0):
        rates = [group["lr"] for group in steps.state.optimizer.param_groups]
        calls.append((steps.state, subnets, steps.method.dropout, x, y, rates))
        return train_step(steps, x, y, subnets, share)

    monkeypatch.setattr(EagerSteps, "train_step", step)
    return calls


# --- one step


def single_steps(state, method=PLAIN, distill=False):
    stage = replace(method.stages[0], distill=distill)
    return EagerSteps(state, method, stage, None, torch.Generator().manual_seed(0))


USUAL = {"momentum": 0.9, "weight_decay": 3e-5, "label_smoothing": 0.0}


def plain_sgd(supernet, steps, teacher, momentum, weight_decay, label_smoothing):
    """Training as on PyTorch 1.x: autograd through full-size weights, gradients that are zeroed and stay."""
    supernet.train()
    parameters = list(supernet.parameters())
    vectors = [p for p in parameters if p.ndim == 1]  # biases and batch norm
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    nesterov = momentum > 0
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, foreach=False, fused=False)
    losses = []
    for x, y, archs, rate in steps:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=False)
        for arch in archs:
            logits = supernet(x, arch)
            loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
            if teacher is not None:
                with torch.no_grad():
                    soft_labels = teacher(x).softmax(1)
                loss = loss - (soft_labels * logits.log_softmax(1)).sum(1).mean()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return losses


@pytest.mark.parametrize(
    ("count", "distill", "settings"),
    [
        (1, False, USUAL),
        (2, False, USUAL),
        (1, True, USUAL),
        (2, True, USUAL | {"label_smoothing": 0.1}),
        (1, False, {"momentum": 0.0, "weight_decay": 0.01, "label_smoothing": 0.2}),
    ],
)
def test_steps_equal_plain_sgd_with_zero_gradients_for_idle_weights(count, distill, settings):
    supernet = random_supernet(SPACE, dtype=torch.float64)
    plain, teacher = copy.deepcopy(supernet), None
    if distill:
        other = random_supernet(SPACE, dtype=torch.float64, seed=1)
        teacher = other.extract(SPACE.largest).train().requires_grad_(False)
    given = dict(teacher.named_parameters()) if distill else None
    method = replace(PLAIN, **settings)
    state = TrainingState(supernet, new_optimizer(supernet, method.momentum, method.weight_decay), given)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    steps = [
        (
            torch.randn((8, 3, 32, 32), generator=generator, dtype=torch.float64),
            torch.randint(4, (8,), generator=generator),
            tuple(SPACE.sample_arch(rng, depths=(2, 3)) for _ in range(count)),
            rate,
        )
        for rate in (0.3, 0.2, 0.1)
    ]
    before = weights(state)
    losses, ours = [], single_steps(state, method, distill)
    for x, y, archs, rate in steps:
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        losses.append(ours.train_step(x, y, archs).item())
    expected = plain_sgd(plain, steps, teacher, **settings)
    # a step sums its losses in float32
    np.testing.assert_allclose(losses, np.reshape(expected, (-1, count)).mean(1), rtol=4 * EPS)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(supernet.state_dict()[name], tensor, atol=1e-11, rtol=0, msg=name)
    idle = [name for name in before if name.startswith(("blocks.3.", "blocks.7."))]
    assert all(torch.equal(before[name], supernet.state_dict()[name]) for name in idle)


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss():
    losses = []
    for precision in ("fp32", "bf16"):
        state = start(SPACE, shortened("rss"), 0, precision=precision)
        train(state, shortened("rss"), toy_data(), 0, progress=False)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in state.supernet.parameters())
        losses.append(state.history[0]["loss"])
    assert losses[1] != losses[0]
    # each of some 40 layers rounds by up to half an eps; errors of random signs add up to about sqrt(40) / 2 of it
    assert losses[1] == pytest.approx(losses[0], rel=4 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("precision, mode", [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_start_sets_the_precision_of_products_and_convolutions(precision, mode):
    multiplied, convolved = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    try:
        multiplied.fp32_precision, convolved.fp32_precision = "ieee", "tf32"  # PyTorch's own
        start(SPACE, PLAIN, 0, precision=precision)
        assert (multiplied.fp32_precision, convolved.fp32_precision) == (mode, mode)
    finally:
        set_precision("fp32")


# --- weights that no subnet uses


def test_kernel_matrices_stay_the_identity_while_the_largest_trains():
    state = run(one_stage("largest", 2, Successive(("largest",)), batch_size=16))
    matrices = {name: p for name, p in state.supernet.named_parameters() if "kernel_" in name}
    assert len(matrices) == 16
    for name, parameter in matrices.items():
        assert torch.equal(parameter, torch.eye(len(parameter))), name


@pytest.mark.parametrize("fresh", [True, False])
def test_idle_weights_move_in_the_next_stage_only_if_its_optimizer_is_not_fresh(fresh):
    """By momentum where a tensor is partly idle, by decay where the stage does not use it at all."""
    stages = tuple(Stage(size, 1, 0.1, Successive((size,)), "constant") for size in ("largest", "smallest"))
    seen, hidden = [], SPACE.layers[0].hidden(3)
    run(Method("two", stages, batch_size=16, fresh_optimizer=fresh), after_epoch=lambda s: seen.append(weights(s)))
    before, after = seen
    assert torch.equal(*(state["blocks.0.bn1.weight"][hidden:] for state in (before, after))) == fresh
    assert torch.equal(*(state["blocks.3.conv_pw.weight"] for state in (before, after))) == fresh


# --- batches


def numbered(n):
    """n images, each filled with its number."""
    data = toy_data(n)
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 32, 32)
    return replace(data, x_train=x.contiguous(memory_format=torch.channels_last), y_train=torch.arange(n) % 4)


@pytest.mark.parametrize(
    ("n", "sizes"), [(32, [16, 16]), (34, [16, 16, 2]), (33, [16, 16]), (47, [16, 16, 15]), (10, [10])]
)
def test_the_last_partial_batch_is_kept_and_a_single_image_dropped(n, sizes, spy):
    run(one_stage("rss", 1, Uniform(), batch_size=16), numbered(n))
    assert [len(x) for _, _, _, x, _, _ in spy] == sizes
    assert steps_per_epoch(n, 16) == len(sizes)


def test_an_epoch_shows_every_image_once_with_its_label_in_a_new_order(monkeypatch):
    seen = []

    def augment(images, *parameters):
        seen.append(images[:, 0, 0, 0].tolist())
        return torch.rand(len(images), 3, 32, 32)

    labels = []

    def step(steps, x, y, *others):
        labels.append(y.tolist())
        return torch.zeros(())

    monkeypatch.setattr(step_module, "augment", augment)
    monkeypatch.setattr(EagerSteps, "train_step", step)
    run(one_stage("rss", 2, Uniform(), batch_size=16), numbered(40))
    epochs = [list(itertools.chain(*seen[i : i + 3])) for i in (0, 3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [[i % 4 for i in batch] for batch in seen] == labels


def test_methods_of_one_seed_see_the_same_batches(spy):
    for sampler in (Successive(("largest",)), Uniform(per="batch")):
        run(one_stage("any", 1, sampler, batch_size=16), seed=3)
    assert len(spy) == 6
    for (_, _, _, x, y, _), (_, _, _, other_x, other_y, _) in zip(spy[:3], spy[3:], strict=True):
        assert torch.equal(x, other_x) and torch.equal(y, other_y)


def test_augmentation_is_drawn_again_each_epoch(spy):
    data = numbered(16)
    data.x_train.copy_(torch.randint(256, data.x_train.shape, dtype=torch.uint8))
    run(one_stage("rss", 2, Uniform(), batch_size=16), data)
    first, second = (torch.stack([x[y == label].mean((0, 2, 3)) for label in range(4)]) for *_, x, y, _ in spy)
    assert (first - second).abs().max() > 1e-3


# --- subnets, rates, history


@dataclass(frozen=True)
class Widening:
    """A custom sampler: e3 in the first epoch, e6 afterwards, with two subnets in every second step."""

    def subnets(self, space, rng, epoch, epochs, steps):
        arch = space.uniform(3, 6 if epoch else 3, 2)
        return [(arch,) if step % 2 else (arch, space.middle) for step in range(steps)]


def test_a_custom_sampler_decides_the_subnets_of_every_step(spy):
    run(one_stage("mine", 2, Widening(), batch_size=16))
    small, large, middle = SPACE.uniform(3, 3, 2), SPACE.uniform(3, 6, 2), SPACE.middle
    first, second = [(small, middle), (small,), (small, middle)], [(large, middle), (large,), (large, middle)]
    assert [subnets for _, subnets, *_ in spy] == first + second


def test_a_sampler_is_asked_once_per_epoch_with_its_own_randomness():
    seen = []

    class Spying:
        def subnets(self, space, rng, epoch, epochs, steps):
            seen.append((epoch, epochs, steps, rng.random()))
            return [(space.smallest,)]

    method = Method("two", tuple(Stage(name, 2, 0.01, Spying()) for name in "ab"), batch_size=16)
    run(method, seed=1)
    run(method, seed=1)
    assert seen[:4] == seen[4:]
    assert [call[:3] for call in seen[:4]] == [(0, 2, 3), (1, 2, 3)] * 2
    assert len({number for *_, number in seen}) == 4


def test_a_subnet_outside_the_space_is_an_input_error():
    class Outside:
        def __init__(self, arch):
            self.arch = arch

        def subnets(self, space, rng, epoch, epochs, steps):
            return [(self.arch,)]

    wrong = {
        "depth is": replace(SPACE.smallest, depth=(2,)),
        "kernel is .9, 9": replace(SPACE.smallest, kernel=(9,) * 8),
        "expected an Arch": SPACE.to_rows([SPACE.smallest])[0],
    }
    for message, arch in wrong.items():
        with pytest.raises(InputError, match=message):
            run(one_stage("outside", 1, Outside(arch), batch_size=16))


def test_a_stage_without_epochs_asks_its_sampler_for_nothing():
    class Dividing:
        def subnets(self, space, rng, epoch, epochs, steps):
            return [(space.uniform(3, 3, space.depths[epoch // epochs]),)]

    method = Method("two", (Stage("none", 0, 0.01, Dividing()), Stage("one", 1, 0.01, Dividing())), batch_size=16)
    assert [row["stage"] for row in run(method).history] == ["one"]


def test_a_state_of_another_method_is_refused():
    state = run(one_stage("long", 3, Uniform(), batch_size=16))
    before = weights(state)
    for other in (one_stage("short", 2, Uniform(), batch_size=16), shortened("ofa", *[1] * 6)):
        with pytest.raises(InputError, match="the state was trained for 3 epochs of another method than"):
            train(state, other, toy_data(), 0, progress=False)
    assert same(weights(state), before) and len(state.history) == 3


def test_images_of_another_shape_than_the_supernets_are_refused():
    for space in (SearchSpace(TINY, classes=3), SearchSpace(TINY, classes=4, in_channels=1),
                  SearchSpace(TINY, classes=4, resolution=64)):  # fmt: skip
        state = start(space, PLAIN, 0)
        with pytest.raises(InputError, match="32 pixels a side, 4 classes, the supernet takes"):
            train(state, PLAIN, toy_data(), 0, progress=False)
        with pytest.raises(InputError, match="32 pixels a side, 4 classes, the supernet takes"):
            evaluate_population(state.supernet, [(8.0, space.middle)], toy_data(), progress=False)


def test_every_step_has_the_rate_of_its_stage(spy):
    method = shortened("ofa", *[2] * 6)
    run(method, toy_data(20))
    expected = [s.rate(epoch, step, 2) for s in method.stages for epoch in range(2) for step in range(2)]
    assert len(set(expected)) == 16  # depth and width have the same rates
    assert [rates for *_, rates in spy] == [[rate, rate] for rate in expected]


def test_history_has_a_row_for_every_epoch(monkeypatch):
    losses = iter(range(100))
    monkeypatch.setattr(EagerSteps, "train_step", lambda *arguments: torch.tensor(float(next(losses))))
    stages = (Stage("one", 1, 0.2, Widening()), Stage("two", 2, 0.1, Successive(("largest",))))
    state = run(Method("both", stages, batch_size=16))
    for clock in ("seconds", "processor_seconds"):
        total, seconds = getattr(state, clock), [row.pop(clock) for row in state.history]
        assert total == sum(seconds) and all(0 < s < 60 for s in seconds)
    reference = SearchSpace(TINY)  # sizes are those for 100 classes
    pair = [SPACE.uniform(3, 3, 2), SPACE.middle] * 3
    del pair[3]
    mflops = np.mean([reference.macs(arch) for arch in pair]) / 1e6
    largest = reference.macs(SPACE.largest) / 1e6
    assert state.history == [
        {"stage": "one", "epoch": 1, "learning_rate": 0.2, "mflops": pytest.approx(mflops), "loss": 1.0, "images": 40},
        {"stage": "two", "epoch": 2, "learning_rate": 0.1, "mflops": largest, "loss": 4.0, "images": 40},
        {"stage": "two", "epoch": 3, "learning_rate": 0.05, "mflops": largest, "loss": 7.0, "images": 40},
    ]


def test_seconds_are_those_of_the_epochs_without_what_comes_after_them(monkeypatch):
    clock = itertools.count()  # each look at the clock takes a second
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    state = run(one_stage("rss", 3, Uniform(), batch_size=16), after_epoch=lambda state: next(clock) and None)
    assert [row["seconds"] for row in state.history] == [1.0, 1.0, 1.0]


def test_processor_seconds_do_not_count_waiting_nor_what_other_threads_do():
    def busy(seconds):
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pass

    assert torch.get_num_threads() == 1  # as the suite sets it
    clock = training.processor_clock(torch.device("cpu"))
    began, other = clock(), threading.Thread(target=busy, args=(0.3,))
    other.start()
    time.sleep(0.1)
    other.join()
    waited = clock() - began
    busy(0.2)
    assert waited < 0.1 and clock() - began - waited == pytest.approx(0.2, abs=0.05)
    try:
        torch.set_num_threads(2)  # whose work is then the run's
        clock = training.processor_clock(torch.device("cpu"))
    finally:
        torch.set_num_threads(1)
    began, other = clock(), threading.Thread(target=busy, args=(0.2,))
    other.start()
    other.join()
    assert clock() - began >= 0.2


# --- stages of progressive shrinking


def step_of(method, subnets, x, y, supernet=None, share=1.0):
    """The supernet after one step of a method with these subnets, in float64, its gradients and its loss."""
    supernet = start(SPACE, method, 0).supernet.double() if supernet is None else supernet
    state = TrainingState(supernet, new_optimizer(supernet))
    for group in state.optimizer.param_groups:
        group["lr"] = 0.1
    steps = single_steps(state, method, distill=method.teacher is not None)
    loss = steps.train_step(x, y, subnets, share).item()
    return state, {n: p.grad for n, p in state.supernet.named_parameters() if p.grad is not None}, loss


def test_averaged_gradients_are_summed_ones_divided_by_their_number():
    x, y, archs = torch.randn(8, 3, 32, 32).double(), torch.arange(8) % 4, tuple(random_archs(SPACE, 3))
    (_, total, loss), (_, mean, same_loss) = (
        step_of(replace(PLAIN, gradients=gradients), archs, x, y) for gradients in ("sum", "mean")
    )
    assert loss == same_loss and total.keys() == mean.keys()
    for name, gradient in total.items():
        torch.testing.assert_close(3 * mean[name], gradient, atol=1e-9, rtol=1e-7, msg=name)


def test_the_same_subnet_twice_has_twice_its_gradient():
    x, y, arch = torch.randn(8, 3, 32, 32).double(), torch.arange(8) % 4, SPACE.middle
    (_, once, _), (_, twice, _) = (step_of(PLAIN, subnets, x, y) for subnets in ((arch,), (arch, arch)))
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], 2 * gradient, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_largest_subnet_teaches_the_others_of_its_step(share):
    """Against autograd through extracted networks: labels for the largest, its soft labels alone for the others."""
    x, y = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8) % 4
    archs = (SPACE.largest, SPACE.smallest, *random_archs(SPACE, 1))
    supernet = random_supernet(SPACE, dtype=torch.float64)
    plain = copy.deepcopy(supernet).train()
    logits = [plain(x, arch) for arch in archs]
    soft_labels = logits[0].detach().softmax(1)
    losses = [F.cross_entropy(logits[0], y), *(-(soft_labels * z.log_softmax(1)).sum(1).mean() for z in logits[1:])]
    (losses[0] + share * sum(losses[1:])).backward()
    method = replace(PLAIN, teacher="largest")
    _, gradients, loss = step_of(method, archs, x, y, supernet, share)
    assert loss == pytest.approx(sum(x.item() for x in losses) / 3, rel=4 * EPS)  # a step sums them in float32
    for name, parameter in plain.named_parameters():
        assert (name in gradients) == (parameter.grad is not None)
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("student_dropout", [True, False])
def test_students_have_dropout_unless_the_method_says_otherwise(student_dropout):
    x, y = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8) % 4
    teacher, student = SPACE.largest, SPACE.smallest
    supernet = random_supernet(SPACE, dtype=torch.float64)
    parameters = dict(supernet.named_parameters())
    generator = torch.Generator().manual_seed(0)  # as the step's
    norm = batch_norm_training()
    taught = supernet.run(x, teacher, supernet.subnet(teacher, parameters), norm, 0.5, generator)
    own = supernet.subnet(student, parameters)
    learned = supernet.run(x, student, own, norm, 0.5 * student_dropout, generator)
    losses = F.cross_entropy(taught, y), F.cross_entropy(learned, taught.softmax(1))
    method = replace(PLAIN, teacher="largest", dropout=0.5, student_dropout=student_dropout)
    assert step_of(method, (teacher, student), x, y, supernet)[2] == pytest.approx(sum(losses).item() / 2, rel=1e-6)


def test_the_teacher_of_ofa_is_the_largest_subnet_as_trained_in_the_first_stage():
    seen = []

    def after_epoch(state):
        if len(state.history) == 1:
            assert state.teacher is None
            seen.append(dict(state.supernet.extract(SPACE.largest).named_parameters()))
        else:
            seen.append(copy.deepcopy(state.teacher))

    run(shortened("ofa"), after_epoch=after_epoch)
    assert len(seen) == 6
    for teacher in seen[1:]:
        assert same(teacher, seen[0])
        assert not any(t.requires_grad for t in teacher.values())


def test_the_teacher_uses_the_statistics_of_the_batch():
    state = start(SPACE, shortened("ofa"), 0)
    state.supernet.double()
    training.enter_stage(state, shortened("ofa"), shortened("ofa").stages[1], 0)
    teacher, x = state.supernet.extract(SPACE.largest).train(), torch.randn(8, 3, 32, 32).double()
    before = copy.deepcopy(dict(state.supernet.named_buffers()))
    for images in (x, x[:4]):
        with torch.no_grad():
            torch.testing.assert_close(state.ask_teacher(images), teacher(images).softmax(1))
    assert not torch.allclose(state.ask_teacher(x)[:4], state.ask_teacher(x[:4]), atol=1e-4)
    assert same(dict(state.supernet.named_buffers()), before)


def entered_distillation(space, seed):
    """`ofa-released`, as it stands when distillation begins."""
    method = build("ofa-released", 180, 410)
    state = start(space, method, seed)
    before = torch.get_rng_state()
    for stage in method.stages[:2]:
        training.enter_stage(state, method, stage, seed)
    assert torch.equal(torch.get_rng_state(), before)
    return state


def test_the_released_teacher_is_an_untrained_network_with_nearly_uniform_soft_labels(mobilenet):
    state = entered_distillation(mobilenet, 0)
    torch.manual_seed(0)
    assert same(state.teacher, dict(Network(mobilenet, mobilenet.largest).named_parameters()))
    soft_labels = state.ask_teacher(torch.randn((64, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    entropy = -(soft_labels * soft_labels.log()).sum(1).mean()
    assert entropy == pytest.approx(4.600, abs=0.003)


def test_the_released_teacher_never_changes():
    seen = []
    run(shortened("ofa-released"), after_epoch=lambda state: seen.append(copy.deepcopy(state.teacher)))
    assert seen[0] is None
    expected = entered_distillation(SPACE, 0).teacher
    for teacher in seen[1:]:
        assert same(teacher, expected)
    assert not same(entered_distillation(SPACE, 1).teacher, expected)


@pytest.mark.parametrize(("name", "expected"), [("ofa", {4: (), 5: (4,)}), ("ofa-released", {})])
def test_channels_are_sorted_before_the_width_stages_of_ofa_only(name, expected, monkeypatch):
    sorts = {}
    sort, epochs = SuperNet.sort_channels, []

    def sort_channels(self, boundaries=()):
        sorts[len(epochs)] = boundaries
        sort(self, boundaries)

    monkeypatch.setattr(SuperNet, "sort_channels", sort_channels)
    run(shortened(name), after_epoch=lambda state: epochs.append(1) and None)
    assert sorts == expected


# --- reproducing and resuming


@pytest.mark.parametrize(("name", "epochs"), [("rss", (2,)), ("ofa", (1, 1, 0, 0, 0, 1))])
def test_one_seed_gives_the_same_weights_bit_for_bit_and_another_does_not(name, epochs):
    method = shortened(name, *epochs)
    first, second, other = (run(method, toy_data(20), seed) for seed in (5, 5, 6))
    assert same(weights(first), weights(second))
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    for key, tensor in weights(first).items():
        if tensor.ndim > 1 and "kernel" not in key:
            assert not torch.equal(tensor, weights(other)[key]), key


@pytest.mark.parametrize(
    "ambient", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)]
)
def test_training_does_not_depend_on_the_callers_modes(ambient):
    expected = weights(run(PLAIN))
    with ambient():
        found = weights(run(PLAIN))
    assert same(expected, found)


@pytest.mark.parametrize("dtype, device", [("float64", "cpu"), ("float16", "cpu"), ("float32", "meta")])
def test_other_defaults_of_pytorch_are_refused(dtype, device):
    state, data = start(SPACE, PLAIN, 0), toy_data()
    calls = (
        lambda: start(SPACE, PLAIN, 0),
        lambda: train(state, PLAIN, data, 0, progress=False),
        lambda: evaluate_population(state.supernet, [(0, SPACE.smallest)], data, progress=False),
        lambda: deployable(state.supernet, SPACE.smallest, data),
    )
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            for call in calls:
                with pytest.raises(InputError, match=f"defaults are torch.{dtype} on {device}"):
                    call()
    finally:
        torch.set_default_dtype(torch.float32)


def test_training_does_not_depend_on_global_random_state():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(weights(run(shortened("ofa-released", 1, 1, 0, 0, 0, 0), toy_data(20))))
    assert same(*results)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "epochs", "stop"),
    [
        ("rss", (3,), "return"),
        ("rss", (3,), "raise"),
        ("ofa", (1, 2, 0, 1, 0, 1), "return"),
        ("ofa-released", (2, 1, 1, 0, 1, 1), "raise"),
    ],
)
def test_resumed_training_reaches_the_same_weights(name, epochs, stop, tmp_path):
    method, data = shortened(name, *epochs), toy_data(20)
    whole = run(method, data)
    state, starts = start(SPACE, method, 0), 0

    def after_epoch(state):
        save_checkpoint(state, tmp_path)
        if stop == "raise":
            raise Stopped
        return True

    while len(state.history) < method.epochs:  # stops after every single epoch
        state = start(SPACE, method, 0)
        if starts:
            load_checkpoint(state, tmp_path)
        try:
            train(state, method, data, 0, after_epoch, progress=False)
        except Stopped:
            pass
        starts += 1
        assert len(state.history) == starts
    assert starts == method.epochs
    assert same(weights(state), weights(whole))
    for mine, expected in zip(state.history, whole.history, strict=True):
        assert mine | TIMELESS == expected | TIMELESS


def test_finished_training_is_left_as_it_is():
    method = shortened("rss", 2)
    state = run(method)
    before, history = weights(state), list(state.history)
    train(state, method, toy_data(), 0, progress=False)
    assert same(weights(state), before) and state.history == history


def test_training_learns():
    data = toy_data(train=128, test=100, classes=4)
    method = one_stage("rss", 10, Uniform(per="batch"), batch_size=16)
    method = replace(method, stages=(replace(method.stages[0], learning_rate=0.1),))
    state = run(method, data)
    losses = [row["loss"] for row in state.history]
    assert losses[-1] < 0.7 * losses[0]
    population = [(1, arch) for arch in (SPACE.smallest, SPACE.middle, SPACE.largest)]
    table = evaluate_population(state.supernet.eval(), population, data, progress=False)
    assert (table.accuracy > 75).all()


def test_a_loss_that_is_not_finite_ends_training_and_is_located(monkeypatch):
    losses = iter([1.0, 1.0, 1.0, 1.0, float("nan"), 1.0])
    monkeypatch.setattr(EagerSteps, "train_step", lambda *arguments: torch.tensor(next(losses)))
    method, data, epochs = one_stage("rss", 3, Uniform(), batch_size=16), toy_data(), []
    with pytest.raises(FloatingPointError, match="nan in stage 'rss', epoch 2, step 2"):
        train(start(SPACE, method, 0), method, data, 0, lambda state: epochs.append(len(state.history)), progress=False)
    assert epochs == [1]
