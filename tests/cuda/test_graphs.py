"""rsslib.cuda.graphs: the same training as step by step. On a CPU, what would be captured runs as it is."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import TINY, random_archs, random_supernet, toy_data
from helpers import shortened as of_the_study
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsslib import trainer
from rsslib.cuda import graphs
from rsslib.data import augmentation
from rsslib.device import own_stream
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, new_optimizer, teacher_weights
from rsslib.supernet import SuperNet
from rsslib.trainer import start

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SPACE = SearchSpace(TINY, classes=4)
shortened = partial(of_the_study, dropout=0.0)
METHODS = ["ofa", "ofa-released", "rss", "rss-per-batch", "rss-2-per-batch", "rss-alternating", "rss-max-then-min"]


def data_on(device, images=40):
    data = toy_data(images)
    return replace(data, **{name: t.to(device) for name, t in vars(data).items() if isinstance(t, torch.Tensor)})


def run(method, device, with_graphs, dtype=torch.float32, seed=0):
    state = start(SPACE, method, seed, device)
    if dtype != torch.float32:
        state = TrainingState(state.supernet.to(dtype), new_optimizer(state.supernet))
    return trainer.train(
        state,
        method,
        data_on(device),
        seed,
        progress=False,
        executor=graphs.GraphedSteps if with_graphs else EagerSteps,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", METHODS)
def test_graphs_train_as_single_steps_do(name, device, double):
    # 40 images make a last batch of 8, which also meets weights for the first time
    eager, graphed = (run(shortened(name), device, with_graphs, torch.float64) for with_graphs in (False, True))
    for a, b in zip(eager.history, graphed.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6), a  # losses are kept in float32
    for name, tensor in eager.supernet.state_dict().items():
        torch.testing.assert_close(graphed.supernet.state_dict()[name], tensor, atol=1e-9, rtol=1e-9, msg=name)
    for mine, theirs in zip(*(state.supernet.parameters() for state in (graphed, eager)), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)


class InTurn:
    """Steps that differ, though the first and the last train the same subnet; every other epoch one throughout."""

    def subnets(self, space, rng, epoch, epochs, steps):
        two = [(space.smallest,), (space.largest,)]
        return [two[step % 2 * (epoch % 2 == 0)] for step in range(steps)]


@pytest.mark.parametrize("device", DEVICES)
def test_samplers_of_ones_own_train_what_they_say(device, double):
    method = one_stage("in turn", 3, InTurn(), batch_size=16, dropout=0.0)
    eager, graphed = (run(method, device, with_graphs, torch.float64) for with_graphs in (False, True))
    sizes = [SPACE.reference.macs(arch) / 1e6 for arch in (SPACE.smallest, SPACE.largest)]
    assert eager.history[0]["mflops"] == pytest.approx((2 * sizes[0] + sizes[1]) / 3)
    assert eager.history[1]["mflops"] == pytest.approx(sizes[0])
    for a, b in zip(eager.history, graphed.history, strict=True):
        assert (b["loss"], b["mflops"]) == pytest.approx((a["loss"], a["mflops"]), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["ofa", "rss", "rss-2-per-batch"])
def test_in_single_precision_and_with_dropout_the_first_losses_agree(name, device):
    method = shortened(name, batch_size=8, dropout=0.1)
    method = replace(method, stages=(replace(method.stages[0], epochs=1),))  # later, rounding grows with every step
    eager, graphed = (run(method, device, with_graphs) for with_graphs in (False, True))
    assert graphed.history[0]["loss"] == pytest.approx(eager.history[0]["loss"], rel=1e-3)


def graphed_steps(space, sampler, device, supernet, dropout=0.0):
    """The executor of one stage with steps of 8 images, before the first epoch."""
    method = one_stage("test", 1, sampler, batch_size=8, dropout=dropout)
    state = TrainingState(supernet, new_optimizer(supernet))
    generator = torch.Generator(device).manual_seed(0)
    return graphs.GraphedSteps(state, method, method.stages[0], data_on(device, 32), generator)


def prepare(steps, subnets, rate=0.0):
    """What `epoch` does before its first step."""
    order = torch.randperm(32, generator=steps.generator, device=steps.data.device)
    for group in steps.state.optimizer.param_groups:
        group["lr"] = steps.rate
    steps.prepare(subnets, False, order, augmentation.draw_augmentation(32, steps.generator), [rate] * 4)
    for archs in subnets:
        steps.wake(archs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backbone, count", [(TINY, 50), ("mobilenet_v3", 5), ("proxylessnas", 5)])
def test_masked_subnets_have_the_gradients_and_statistics_of_slices(backbone, count, device, double):
    space = SearchSpace(backbone, classes=4)
    archs = [space.smallest, space.largest, *random_archs(space, count - 2)]
    supernet = random_supernet(space, dtype=torch.float64).to(device)
    steps = graphed_steps(space, Uniform("batch"), device, supernet)
    prepare(steps, [(arch,) for arch in archs])
    statistics = {name: t.clone() for name, t in steps.buffers.items()}
    steps.load()
    for arch in archs:
        results, losses = [], []
        for compute in (partial(steps.sliced, arch, 1), partial(steps.masked, 1)):
            torch._foreach_zero_([*steps.gradients.values(), steps.losses])
            for name, t in statistics.items():
                steps.buffers[name].copy_(t)
            compute()
            tensors = {f"gradient of {name}": t for name, t in steps.gradients.items()} | steps.buffers
            results.append({name: t.clone() for name, t in tensors.items()})
            losses.append(steps.losses[0].item())
        sliced, masked = results
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        for name in sliced:
            torch.testing.assert_close(masked[name], sliced[name], atol=1e-9, rtol=1e-9, msg=f"{name} of {arch}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_differs_from_replay_to_replay(dropout, device):
    supernet = random_supernet(SPACE).to(device)
    steps = graphed_steps(SPACE, Uniform(), device, supernet, dropout)
    prepare(steps, [(SPACE.largest,)] * 4)
    losses = []
    with own_stream(steps.data.device):
        if device == "cuda":
            steps.warm_up(same=True)
        for _ in range(4):
            steps.run("step", steps.whole_step, (SPACE.largest,))
            losses.append(steps.losses[0].item())
            steps.rows.sub_(8)  # the same images again, at a learning rate of 0
            steps.step.zero_()
            steps.losses.zero_()
    assert len(set(losses)) == (4 if dropout else 1)


@pytest.mark.parametrize("device", DEVICES)
def test_every_step_has_its_learning_rate_and_every_image_is_used_once(device, monkeypatch):
    rates, rows = [], []
    update = graphs.GraphedSteps.update

    def spy(steps):
        rates.append(steps.rate.clone())
        rows.append(steps.rows.clone())
        update(steps)

    monkeypatch.setattr(graphs.GraphedSteps, "update", spy)
    monkeypatch.setattr(graphs.GraphedSteps, "run", lambda steps, key, function, *args: function(*args))
    run(one_stage("rss", 1, Uniform(), batch_size=8), device, True)
    expected = [0.005 * (1 + np.cos(np.pi * step / 5)) for step in range(5)]
    np.testing.assert_allclose(torch.cat(rates).cpu(), expected, rtol=1e-6)
    assert torch.cat(rows).tolist() == list(range(40))


class OnOneDevice(TorchDispatchMode):
    """Refuses tensors of a CPU, which a CUDA graph would copy once, or not at all."""

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        for tensor in tree_leaves((arguments, settings, result)):
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, function.overloadpacket.__name__
        return result


@pytest.mark.parametrize("backbone", [TINY, "mobilenet_v3", "proxylessnas"])
def test_what_is_captured_makes_and_meets_no_tensor_elsewhere(backbone):
    space, data = SearchSpace(backbone, classes=4), data_on("meta", 32)  # a device that needs no hardware
    supernet, method = SuperNet(space).to("meta"), shortened("ofa", batch_size=8, dropout=0.1)
    state = TrainingState(supernet, new_optimizer(supernet))
    state.teacher = teacher_weights(supernet, dict(supernet.named_parameters()))
    executor = graphs.GraphedSteps(state, method, method.stages[-1], data, torch.Generator())
    crops = augmentation.draw_augmentation(32, executor.generator)
    crops = augmentation.Augmentation(**{name: t.to("meta") for name, t in vars(crops).items()})
    archs, order = random_archs(space, 4), torch.empty(32, dtype=torch.int64, device="meta")
    executor.prepare([(arch,) for arch in archs], False, order, crops, [0.0] * 4)
    with OnOneDevice():
        executor.load()
        for arch in archs:
            executor.sliced(arch, 1)
            executor.masked(1)


@pytest.mark.parametrize("device", DEVICES)
def test_runs_in_several_threads_are_the_runs_alone(device):
    jobs = [(name, seed) for name in ("rss", "rss-2-per-batch") for seed in (0, 1)]
    alone = [run(shortened(name), device, True, seed=seed) for name, seed in jobs]
    together = [None] * len(jobs)

    def work(i):
        name, seed = jobs[i]
        together[i] = run(shortened(name), device, True, seed=seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a.history, b.history, strict=True):
            # gradients of convolutions need not be the same from run to run on CUDA
            assert y["loss"] == pytest.approx(x["loss"], rel=1e-5 if device == "cpu" else 1e-3)


@pytest.mark.cuda
def test_captures_of_ever_new_subnets_do_not_use_ever_more_memory():
    method = replace(one_stage("rss", 40, Uniform()), batch_size=8)
    reserved = []
    state = start(SearchSpace("mobilenet_v3", classes=4), method, 0, "cuda")
    trainer.train(
        state,
        method,
        data_on("cuda"),
        0,
        lambda state: reserved.append(torch.cuda.memory_reserved()),
        progress=False,
        executor=graphs.GraphedSteps,
    )
    assert max(reserved[20:]) <= reserved[19] + 64 * 2**20  # larger subnets need more, in pieces of 20 MB
