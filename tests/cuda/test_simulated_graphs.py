"""Training with simulated CUDA graphs against eager training: whole runs of every kind, in double precision."""

import gc
import weakref
from dataclasses import dataclass
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import TINY, double_measurements, sentence, toy_data
from helpers import shortened as of_the_study
from simulator import CannotCapture, SimulatedGraph, UsedAfterFree, simulated_graphs

from rsslib import trainer
from rsslib.checkpoint import load_checkpoint, save_checkpoint
from rsslib.cuda import graphs
from rsslib.device import CAPTURING
from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.samplers import Sandwich, Uniform
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps, TrainingState, new_optimizer
from rsslib.trainer import start
from rsstudy.catalogue import CONTROLS, INTERVALS, METHODS, SAMPLERS, Alone
from rsstudy.interference import Effort, measure

pytestmark = pytest.mark.usefixtures("double")
SPACE = SearchSpace(TINY, classes=4)
shortened = partial(of_the_study, batch_size=4, dropout=0.0)
# one of each kind: others differ in epochs, rates, batch size or dropout alone
KINDS = [name for name in METHODS if not any(word in name for word in ("short", "batch-128", "dropout-", "lr-"))]


def new_state(method, space=SPACE):
    state = start(space, method, 0)
    return TrainingState(state.supernet.double(), new_optimizer(state.supernet))


def train(method, data, with_graphs, space=SPACE, state=None, after_epoch=lambda state: None):
    state = new_state(method, space) if state is None else state
    return trainer.train(
        state, method, data, 0, after_epoch, progress=False, executor=graphs.GraphedSteps if with_graphs else EagerSteps
    )


def both(method, images=11):
    """The states after eager training and after training with simulated graphs."""
    data = toy_data(images)
    eager = train(method, data, False)
    with simulated_graphs():
        return eager, train(method, data, True)


def assert_same(eager, graphed, tolerance=1e-9):
    for a, b in zip(eager.history, graphed.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6), a  # losses are kept in float32

    def close(mine, theirs, what):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance, msg=lambda m: f"{what}: {m}")

    for name, tensor in eager.supernet.state_dict().items():
        close(graphed.supernet.state_dict()[name], tensor, name)
    for (name, p), q in zip(eager.supernet.named_parameters(), graphed.supernet.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        momentum = (s.optimizer.state[r]["momentum_buffer"] for s, r in ((graphed, q), (eager, p)))
        close(*momentum, f"momentum of {name}")


@pytest.mark.parametrize("name", KINDS)
def test_every_method_trains_as_single_steps_do(name):
    assert_same(*both(shortened(name, dropout=0.3)))


BEYOND = (*CONTROLS, *INTERVALS, *SAMPLERS)


@pytest.mark.parametrize("name", BEYOND)
def test_every_method_beyond_the_papers_trains_as_single_steps_do(name):
    assert_same(*both(shortened(name, dropout=0.3)))


def test_a_subnet_alone_trains_as_single_steps_do():
    assert_same(*both(one_stage("alone", 2, Alone(1.5, 0), batch_size=4, dropout=0.3)))


@pytest.mark.parametrize("name, epochs", [("rss", (1,)), ("ofa", (1, 1, 0, 0, 0, 0))])
def test_what_graphs_trained_is_measured_as_what_single_steps_did(name, epochs, monkeypatch):
    double_measurements(monkeypatch)
    method, data = shortened(name, *epochs), toy_data(11)
    effort = Effort(batches=1, gradients=3, images=2, recalibration=8)
    expected, found = (measure(state, method, data, 0, effort, progress=False) for state in both(method))
    for table, other in zip(expected, found, strict=True):
        assert len(table)
        pd.testing.assert_frame_equal(other, table, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("images, batch", [(8, 4), (9, 4), (4, 4), (6, 4)])
@pytest.mark.parametrize("name", ["rss", "rss-2-per-batch"])
def test_last_batches_of_every_size(name, images, batch):
    assert_same(*both(shortened(name, batch_size=batch), images))


def test_every_subnet_replays_the_same_graph():
    method = one_stage("many", 2, Uniform("batch", count=2), batch_size=2, dropout=0.0)
    with simulated_graphs() as device:
        train(method, toy_data(12), True)
    kinds = [graph.operators() for graph in device.captured]
    convolutions = [counts["convolution"] for counts in kinds if counts["convolution"]]
    assert convolutions == [2 + SPACE.n_layers]  # one graph with a network in it, and that is the largest


@pytest.mark.parametrize("backbone", ["mobilenet_v3", "proxylessnas"])
@pytest.mark.parametrize("name", ["rss", "ofa"])
def test_replays_compute_what_the_captured_functions_do(name, backbone):
    # Bit for bit, on the study's networks. Batches so small make deep networks chaotic: eager training whose weights
    # start off by 1e-15 ends elsewhere too, and is no measure here.
    method = shortened(name, *((1, 0, 0, 0, 0, 1) if name == "ofa" else (1,)), dropout=0.1)
    space, data = SearchSpace(backbone, classes=4), toy_data(10)
    direct = train(method, data, True, space)
    with simulated_graphs(lazy_loading=True):
        graphed = train(method, data, True, space)
    assert [row["loss"] for row in graphed.history] == [row["loss"] for row in direct.history]
    for name, tensor in direct.supernet.state_dict().items():
        assert torch.equal(graphed.supernet.state_dict()[name], tensor), name


def test_no_kernel_is_first_launched_in_a_capture_where_every_step_has_the_largest_and_the_smallest_subnet():
    method = one_stage("sandwich", 1, Sandwich(0), teacher="largest", batch_size=4)
    with simulated_graphs(lazy_loading=True) as device:
        train(method, toy_data(8), True)
    assert len(device.captured) == 2  # one beside the pool's


@pytest.mark.parametrize("name", ["rss", "ofa", "ofa-released", "rss-2-per-batch"])
def test_training_that_is_stopped_after_every_epoch_goes_on_to_the_same_weights(name, tmp_path):
    method, data = shortened(name, *[3] * name.startswith("rss"), dropout=0.3), toy_data(11)
    eager, state = train(method, data, False), new_state(method)
    for _ in range(method.epochs):
        with simulated_graphs():
            train(method, data, True, state=state, after_epoch=lambda state: True)
        save_checkpoint(state, tmp_path)
        state = new_state(method)
        assert load_checkpoint(state, tmp_path)
    assert_same(eager, state)


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


@pytest.mark.parametrize("what", LISTED)
def test_samplers_of_ones_own_train_what_they_say(what):
    assert_same(*both(one_stage("own", 4, Listed(LISTED[what]), batch_size=4, dropout=0.0)))


@pytest.mark.parametrize("sampler", [Uniform(), Uniform("batch")])
@pytest.mark.parametrize("images", [5, 8, 9])
def test_fewer_images_than_a_batch(sampler, images):
    assert_same(*both(one_stage("few", 2, sampler, batch_size=8, dropout=0.0), images))


# --- whose the graphs are


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
        train(method, toy_data(11), True)
    assert len(simulated.captured) > 12
    assert seen == [[]] * 6  # no executor is alive when the next is made
    assert given_back == [0] * 6  # and no graph when memory is given back, after the last stage too


def test_an_executor_that_an_error_keeps_holds_nothing(monkeypatch):
    kept = []

    def failing(executor, archs, rate):
        kept.append(executor)
        raise RuntimeError("the device is tired")

    monkeypatch.setattr(graphs.GraphedSteps, "smaller_step", failing)
    with simulated_graphs() as simulated, pytest.raises(RuntimeError, match="tired"):
        train(shortened("rss"), toy_data(11), True)
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
        train(shortened("rss"), toy_data(11), True)


def test_a_capture_that_fails_says_so_in_a_sentence(monkeypatch):
    load = graphs.GraphedSteps.load

    def reads_a_number(executor):
        load(executor)
        executor.step.item()

    monkeypatch.setattr(graphs.GraphedSteps, "load", reads_a_number)
    with simulated_graphs() as simulated, pytest.raises(InputError) as caught:
        train(shortened("rss"), toy_data(11), True)
    assert "'whole_step'" in str(caught.value) and "--no-graphs" in str(caught.value)
    assert "\n" not in str(caught.value) and "_local_scalar_dense" in str(caught.value)
    assert simulated.alive.total() == 0 and not CAPTURING.locked()


def test_an_epoch_of_images_that_does_not_fit_is_one_sentence(monkeypatch):
    monkeypatch.setattr(graphs, "free_memory", lambda device: 2**20)
    with simulated_graphs(), pytest.raises(InputError) as error:
        train(shortened("rss"), toy_data(100), True)
    assert "an epoch's images as floats need 0.0023 GiB of memory" in sentence(error)


# --- the simulator finds what it is for


def captured(function, generator=None):
    graph = simulated.graph()
    graph.register_generator_state(generator)
    with CAPTURING:
        graph.capture_begin(pool=0, capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
    return graph


with simulated_graphs() as simulated:
    pass


def test_numbers_are_baked_in():
    x, factor = torch.ones(3), {"f": 2.0}
    graph = captured(lambda: x.mul_(factor["f"]))
    assert x.tolist() == [1, 1, 1]  # capturing changes nothing
    factor["f"] = 5.0
    graph.replay()
    assert x.tolist() == [2, 2, 2]


def test_memory_that_is_gone_is_found():
    x, held = torch.ones(3), [torch.ones(3)]
    graph = captured(lambda: x.add_(held[0]))
    held[0] = torch.zeros(3)
    with pytest.raises(UsedAfterFree):
        graph.replay()


def test_the_memory_of_a_graph_is_not_the_callers():
    kept, x = [], torch.ones(3)
    captured(lambda: kept.append(x + 1)).replay()
    assert kept[0].isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: torch.ones(1).sum().item(),
        lambda: torch.rand(2),
        lambda: torch.ones(2)[torch.ones(2) > 0],
        lambda: torch.ones(3) + torch.tensor([1.0, 2, 3]),
    ],
)
def test_what_waits_for_the_host_cannot_be_captured(wrong):
    with pytest.raises(CannotCapture):
        captured(wrong)


def test_a_kernel_whose_first_launch_is_in_a_capture_is_found():
    x = torch.ones(3)
    with simulated_graphs(lazy_loading=True) as lazy:
        x.add_(0)
        for function, loads in ((x.add_, False), (x.mul_, True)):
            graph = lazy.graph()
            with CAPTURING:
                graph.capture_begin(pool=0, capture_error_mode="thread_local")
                try:
                    if loads:
                        with pytest.raises(CannotCapture, match="loaded"):
                            function(1)
                    else:
                        function(1)
                finally:
                    graph.capture_end()
