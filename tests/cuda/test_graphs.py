"""rsslib.cuda.graphs: the same training as step by step, on a simulated CUDA device and on a real one."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, random_archs, random_supernet, sentence, toy_data
from helpers import shortened as of_the_study
from simulator import SimulatedGraph, simulated_graphs
from small_runs import complete, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsslib import trainer
from rsslib.checkpoint import load_checkpoint, save_checkpoint
from rsslib.cuda import graphs
from rsslib.data import augmentation
from rsslib.device import CAPTURING, own_stream
from rsslib.errors import CaptureFailed, InputError
from rsslib.evaluate import evaluate_population
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, new_optimizer, teacher_weights
from rsslib.supernet import SuperNet
from rsslib.trainer import start
from rsstudy import engine, job, workers
from rsstudy.catalogue import CONTROLS, INTERVALS, METHODS, SAMPLERS
from rsstudy.samplers import Sandwich
from rsstudy.store import overview

SPACE = SearchSpace(TINY, classes=4)
shortened = partial(of_the_study, batch_size=4, dropout=0.0)
# one of each kind: others differ in epochs, rates, batch size or dropout alone
KINDS = [name for name in METHODS if not any(word in name for word in ("short", "batch-128", "dropout-", "lr-"))]
BEYOND = (*CONTROLS, *INTERVALS, *SAMPLERS)


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """A device whose steps can be captured: the CPU, within the simulator, or CUDA."""
    with simulated_graphs() if request.param == "simulated" else nullcontext():
        yield "cpu" if request.param == "simulated" else "cuda"


def data_on(device, images=11):
    data = toy_data(images)
    return replace(data, **{name: t.to(device) for name, t in vars(data).items() if isinstance(t, torch.Tensor)})


def new_state(method, device="cpu", space=SPACE, dtype=torch.float64, seed=0):
    supernet = start(space, method, seed, device).supernet.to(dtype)
    return TrainingState(supernet, new_optimizer(supernet))


def train(state, method, data, with_graphs, after_epoch=lambda state: None, seed=0):
    executor = graphs.GraphedSteps if with_graphs else EagerSteps
    return trainer.train(state, method, data, seed, after_epoch, progress=False, executor=executor)


def run(method, device, with_graphs, images=11, **settings):
    return train(new_state(method, device, **settings), method, data_on(device, images), with_graphs)


def assert_same(eager, graphed, tolerance=1e-9):
    for a, b in zip(eager.history, graphed.history, strict=True):
        assert (b["loss"], b["mflops"]) == pytest.approx((a["loss"], a["mflops"]), rel=1e-6)  # losses are in float32

    def close(mine, theirs, what):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance, msg=lambda m: f"{what}: {m}")

    for name, tensor in eager.supernet.state_dict().items():
        close(graphed.supernet.state_dict()[name], tensor, name)
    for (name, p), q in zip(eager.supernet.named_parameters(), graphed.supernet.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        momentum = (s.optimizer.state[r]["momentum_buffer"] for s, r in ((graphed, q), (eager, p)))
        close(*momentum, f"momentum of {name}")


def assert_graphs_train_as_single_steps(method, device, images=11):
    assert_same(*(run(method, device, with_graphs, images) for with_graphs in (False, True)))


# --- graphs against single steps


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", [*KINDS, *BEYOND])
def test_graphs_train_every_method_as_single_steps_do(name, device):
    assert_graphs_train_as_single_steps(shortened(name), device)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["rss", "rss-2-per-batch", "ofa", "sandwich-rule"])
def test_graphs_draw_the_dropout_that_single_steps_do(name, device):
    assert_graphs_train_as_single_steps(shortened(name, dropout=0.3), device)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("images, batch", [(8, 4), (9, 4), (4, 4), (6, 4), (5, 8), (9, 8)])
@pytest.mark.parametrize("name", ["rss", "rss-per-batch", "rss-2-per-batch"])
def test_graphs_take_last_batches_of_every_size_and_fewer_images_than_a_batch(name, images, batch, device):
    assert_graphs_train_as_single_steps(shortened(name, batch_size=batch), device, images)


@dataclass(frozen=True)
class Listed:
    """The subnets of each epoch's steps by name, over and over."""

    epochs: tuple

    def subnets(self, space, rng, epoch, epochs, steps):
        chosen = self.epochs[epoch % len(self.epochs)]
        return [tuple(getattr(space, name) for name in chosen[step % len(chosen)].split()) for step in range(steps)]


LISTED = {
    "one and many in turn": (("smallest",), ("smallest", "largest"), ("largest",), ("largest", "smallest")),
    "what a graph updates grows": (("smallest", "middle"), ("smallest",), ("smallest", "largest"), ("smallest",)),
    "counts differ": (("smallest", "largest smallest"), ("largest smallest", "smallest")),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("what", LISTED)
def test_graphs_train_the_subnets_of_custom_samplers(what, device):
    method = one_stage("custom", 4, Listed(LISTED[what]), batch_size=4, dropout=0.0)
    assert_graphs_train_as_single_steps(method, device)


def test_runs_in_several_threads_are_the_runs_alone(device):
    jobs = [(name, seed) for name in ("rss", "rss-2-per-batch") for seed in (0, 1)]

    def work(name, seed):
        return run(shortened(name, batch_size=16), device, True, 40, dtype=torch.float32, seed=seed)

    alone = [work(*job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(work, *zip(*jobs, strict=True)))
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a.history, b.history, strict=True):
            # gradients of convolutions need not be the same from run to run on CUDA
            assert y["loss"] == pytest.approx(x["loss"], rel=1e-5 if device == "cpu" else 1e-3)


# --- the parts of a step


def graphed_steps(space, sampler, device, supernet, dropout=0.0, batch=8):
    """The executor of one stage with four steps an epoch, before the first."""
    method = one_stage("test", 1, sampler, batch_size=batch, dropout=dropout)
    state = TrainingState(supernet, new_optimizer(supernet))
    generator = torch.Generator(device).manual_seed(0)
    return graphs.GraphedSteps(state, method, method.stages[0], data_on(device, 4 * batch), generator)


def prepare(steps, subnets):
    """What `epoch` does before its first step; the learning rate is 0."""
    n = len(steps.images)
    order = torch.randperm(n, generator=steps.generator, device=steps.device)
    for group in steps.state.optimizer.param_groups:
        group["lr"] = steps.rate
    steps.prepare(subnets, False, order, augmentation.draw_augmentation(n, steps.generator), [0.0] * 4, [1.0] * 4)
    for archs in subnets:
        steps.wake(archs)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("backbone, count", [(TINY, 50), ("mobilenet_v3", 5), ("proxylessnas", 5)])
def test_masked_subnets_have_the_gradients_and_statistics_of_slices(backbone, count, device):
    space = SearchSpace(backbone, classes=4)
    archs = [space.smallest, space.largest, *random_archs(space, count - 2)]
    supernet = random_supernet(space, dtype=torch.float64).to(device)
    with own_stream(torch.device(device)):
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


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("subnet", ["largest", "drawn"])
def test_gradients_in_single_precision_are_those_of_float64(subnet, where, monkeypatch):
    # Smooth activations: where ReLU's input is within rounding of 0, its gradient may be anything from 0 to 1.
    for name, smooth in (("relu", F.softplus), ("hardswish", F.softplus), ("hardsigmoid", torch.sigmoid)):
        monkeypatch.setattr(F, name, lambda x, inplace=False, smooth=smooth: smooth(x))
    space = SearchSpace("mobilenet_v3", classes=4)
    arch = space.largest if subnet == "largest" else random_archs(space, 1)[0]
    supernet = random_supernet(space).to(where)
    exact = copy.deepcopy(supernet).cpu().double()
    with own_stream(torch.device(where)):
        steps = graphed_steps(space, Uniform(), where, supernet, batch=64)
        prepare(steps, [(arch,)] * 4)
        if where == "cuda":
            steps.warm_up(same=True)
        steps.load()
        steps.run("part of a step", steps.sliced, arch, 1)
        found = {name: gradient.cpu().double() for name, gradient in steps.gradients.items()}
    x, y = steps.batch_images.cpu().double().permute(0, 3, 1, 2), steps.batch_labels.cpu()
    F.cross_entropy(exact.train()(x, arch), y).backward()
    expected = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    assert len(expected) > 150
    for name, gradient in expected.items():
        scale = gradient.norm()
        if name.endswith("bn3.bias"):  # zero, since the next batch norm takes away what it adds
            scale = expected[name.replace("bias", "weight")].norm()
        assert (found[name] - gradient).norm() < 1e-4 * scale, name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_differs_from_replay_to_replay(dropout, device):
    supernet, losses = random_supernet(SPACE).to(device), []
    with own_stream(torch.device(device)):
        steps = graphed_steps(SPACE, Uniform(), device, supernet, dropout)
        prepare(steps, [(SPACE.largest,)] * 4)
        steps.warm_up(same=True)
        for _ in range(4):
            steps.run("step", steps.whole_step, (SPACE.largest,))
            losses.append(steps.losses[0].item())
            steps.rows.sub_(8)  # the same images again, at a learning rate of 0
            steps.step.zero_()
            steps.losses.zero_()
    assert len(set(losses)) == (4 if dropout else 1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["rss", "rss-2-per-batch"])
def test_batches_augmented_a_few_at_once_are_those_of_the_epoch(name, monkeypatch):
    eager = run(shortened(name), "cpu", False, 27)
    monkeypatch.setattr(augmentation, "AUGMENTED_AT_ONCE", 10)  # two batches of the seven
    with simulated_graphs():
        assert_same(eager, run(shortened(name), "cpu", True, 27))


def test_every_step_has_its_learning_rate_and_every_image_is_used_once(device, monkeypatch):
    rates, rows, replay = [], [], graphs.GraphedSteps.run

    def spy(steps, *arguments):
        rows.append(steps.rows.clone())
        replay(steps, *arguments)
        rates.append(steps.rate.clone())

    monkeypatch.setattr(graphs.GraphedSteps, "run", spy)
    run(one_stage("rss", 1, Uniform(), batch_size=8), device, True, 40)
    expected = [0.005 * (1 + np.cos(np.pi * step / 5)) for step in range(5)]
    np.testing.assert_allclose(torch.cat(rates).cpu(), expected, rtol=1e-6)
    assert torch.cat(rows).tolist() == list(range(40))


def test_steps_wait_for_the_device_without_occupying_a_core(monkeypatch):
    monkeypatch.setattr(graphs, "QUEUED_STEPS", 2)
    with simulated_graphs():  # whose events refuse to spin
        run(shortened("rss"), "cpu", True, 32)


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
    crops = augmentation.draw_augmentation(32, executor.generator).to("meta")
    archs, order = random_archs(space, 4), torch.empty(32, dtype=torch.int64, device="meta")
    executor.prepare([(arch,) for arch in archs], False, order, crops, [0.0] * 4, [1.0] * 4)
    with OnOneDevice():
        executor.load()
        for arch in archs:
            executor.sliced(arch, 1)
            executor.masked(1)


# --- memory


@pytest.mark.cuda
def test_captures_of_new_subnets_do_not_use_more_and_more_memory():
    method = replace(one_stage("rss", 40, Uniform()), batch_size=8)
    state, reserved = start(SearchSpace("mobilenet_v3", classes=4), method, 0, "cuda"), []
    train(state, method, data_on("cuda", 40), True, lambda state: reserved.append(torch.cuda.memory_reserved()))
    assert max(reserved[20:]) <= reserved[19] + 64 * 2**20  # larger subnets need more, in pieces of 20 MB


def test_every_stage_gives_back_its_graphs_and_images_before_the_next(monkeypatch):
    executors, seen = [], []
    made, release = graphs.GraphedSteps.__init__, graphs.release_memory

    def init(executor, *arguments):
        gc.collect()
        seen.append([executor() for executor in executors if executor() is not None and vars(executor())])
        executors.append(weakref.ref(executor))
        made(executor, *arguments)

    def released(device):
        assert not CAPTURING.locked()
        given_back.append(simulated.alive.total())
        release(device)

    given_back = []
    monkeypatch.setattr(graphs.GraphedSteps, "__init__", init)
    monkeypatch.setattr(graphs, "release_memory", released)
    method = shortened("ofa")
    with simulated_graphs() as simulated:
        run(method, "cpu", True)
    assert len(simulated.captured) > 12
    assert seen == [[]] * 6  # no executor is alive when the next is made
    assert given_back == [0] * 6  # and no graph when memory is given back, after the last stage too


def test_an_executor_that_an_error_keeps_holds_nothing(monkeypatch):
    kept = []

    def failing(executor, *arguments):
        kept.append(executor)
        raise RuntimeError("the device is tired")

    monkeypatch.setattr(graphs.GraphedSteps, "smaller_step", failing)
    with simulated_graphs() as simulated, pytest.raises(RuntimeError, match="tired"):
        run(shortened("rss"), "cpu", True)
    assert len(simulated.captured) == 2 and simulated.alive.total() == 0
    assert vars(kept[0]) == {}


# --- captures that fail


@pytest.mark.parametrize("at", ["capture_begin", "replay", "capture_end"])
@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate 2 MB", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_memory_that_runs_out_in_a_capture_is_known_as_that(at, message, monkeypatch):
    function = getattr(SimulatedGraph, at)

    def failing(graph, **settings):
        if at == "capture_end":  # which ends the capture all the same
            function(graph)
        raise RuntimeError(message)

    monkeypatch.setattr(SimulatedGraph, at, failing)
    with simulated_graphs(), pytest.raises(RuntimeError, match=message):
        run(shortened("rss"), "cpu", True)


@pytest.fixture
def reads_a_number(monkeypatch):
    """Steps read a number back from the device, which a capture does not take."""
    load = graphs.GraphedSteps.load

    def load_and_read(executor):
        load(executor)
        executor.step.item()

    monkeypatch.setattr(graphs.GraphedSteps, "load", load_and_read)


def test_a_capture_that_fails_says_so_in_a_sentence(reads_a_number):
    with simulated_graphs() as simulated, pytest.raises(CaptureFailed) as caught:
        run(shortened("rss"), "cpu", True)
    assert "'whole_step'" in sentence(caught) and "--no-graphs" in sentence(caught)
    assert "_local_scalar_dense" in sentence(caught)
    assert simulated.alive.total() == 0 and not CAPTURING.locked()


def test_after_a_capture_that_failed_nothing_is_trained_or_evaluated_in_the_process(reads_a_number):
    method, data = shortened("rss"), toy_data(11)
    state = new_state(method, dtype=torch.float32)
    with simulated_graphs():
        with pytest.raises(CaptureFailed):
            run(method, "cpu", True)
        for use in (lambda: train(state, method, data, False), lambda: evaluate_population(state.supernet, [], data)):
            with pytest.raises(CaptureFailed, match="earlier capture .* --no-graphs"):
                use()
    assert state.history == []
    train(state, method, data, False)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_capture_that_fails_ends_the_campaign_in_one_sentence(
    jobs, reads_a_number, tiny_backbone, tmp_path, monkeypatch
):
    if jobs > 1:  # as on CUDA
        monkeypatch.setattr(engine, "in_processes", workers.in_threads)
    monkeypatch.setattr(job, "executor_for", lambda settings, device: graphs.GraphedSteps)
    runs = tiny("rss", "rss-per-batch", "rss-2-per-batch", "ofa", seeds=[0, 1])
    with simulated_graphs() as simulated, pytest.raises(CaptureFailed) as caught:
        complete(runs, tmp_path, jobs=jobs)
    assert "--no-graphs" in sentence(caught)
    assert not simulated.usable and not list(tmp_path.rglob("history.csv")) and not list(tmp_path.rglob("checkpoint*"))
    assert sum(overview(runs, tmp_path)["status"] == "missing") >= len(runs) - 2 * jobs  # most were not begun


def test_an_epoch_of_images_that_does_not_fit_is_one_sentence(monkeypatch):
    monkeypatch.setattr(graphs, "free_memory", lambda device: 2**20)
    with simulated_graphs(), pytest.raises(InputError) as error:
        run(shortened("rss"), "cpu", True, 100)
    assert "augmented images as floats need 0.0023 GiB of memory" in sentence(error)


# --- on the simulated device alone


@pytest.mark.usefixtures("double")
def test_every_subnet_replays_the_same_graph():
    method = one_stage("many", 2, Uniform("batch", count=2), batch_size=2, dropout=0.0)
    with simulated_graphs() as device:
        run(method, "cpu", True, 12)
    kinds = [graph.operators() for graph in device.captured]
    convolutions = [counts["convolution"] for counts in kinds if counts["convolution"]]
    assert convolutions == [2 + SPACE.n_layers]  # one graph with a network in it, and that is the largest


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("backbone", ["mobilenet_v3", "proxylessnas"])
@pytest.mark.parametrize("name", ["rss", "ofa"])
def test_replays_compute_what_the_captured_functions_do(name, backbone):
    # Bit for bit, on the study's networks. Batches so small make deep networks chaotic: eager training whose weights
    # start off by 1e-15 ends elsewhere too, and is no measure here.
    method = shortened(name, *((1, 0, 0, 0, 0, 1) if name == "ofa" else (1,)), dropout=0.1)
    space = SearchSpace(backbone, classes=4)
    direct = run(method, "cpu", True, 10, space=space)
    with simulated_graphs(lazy_loading=True):
        graphed = run(method, "cpu", True, 10, space=space)
    assert [row["loss"] for row in graphed.history] == [row["loss"] for row in direct.history]
    for name, tensor in direct.supernet.state_dict().items():
        assert torch.equal(graphed.supernet.state_dict()[name], tensor), name


@pytest.mark.usefixtures("double")
def test_no_kernel_is_first_launched_in_a_capture_where_every_step_has_the_largest_and_the_smallest_subnet():
    method = one_stage("sandwich", 1, Sandwich(0), teacher="largest", batch_size=4)
    with simulated_graphs(lazy_loading=True) as device:
        run(method, "cpu", True, 8)
    assert len(device.captured) == 2  # one beside the pool's


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["rss", "ofa", "ofa-released", "rss-2-per-batch"])
def test_training_that_is_stopped_after_every_epoch_goes_on_to_the_same_weights(name, tmp_path):
    method, data = shortened(name, *[3] * name.startswith("rss"), dropout=0.3), toy_data(11)
    eager, state = run(method, "cpu", False), new_state(method)
    for _ in range(method.epochs):
        with simulated_graphs():
            train(state, method, data, True, lambda state: True)
        save_checkpoint(state, tmp_path)
        state = new_state(method)
        assert load_checkpoint(state, tmp_path)
    assert_same(eager, state)
