"""rsstudy: runs are planned, trained once each, gone on with after interruptions, and read as tables."""

import gc
import itertools
import json
import shutil
import signal
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from helpers import TINY, sentence, tables, toy_data
from small_runs import FILES, PROFILE, complete, tiny

from rsslib import device as machine
from rsslib import evaluate
from rsslib import steps as single_steps
from rsslib.cuda.graphs import GraphedSteps
from rsslib.device import choose_device
from rsslib.errors import InputError, Stopped
from rsslib.methods import Method, Stage, one_stage, override
from rsslib.population import sample_bucket, sample_population
from rsslib.progress import in_words
from rsslib.samplers import Successive, Uniform
from rsslib.space import SearchSpace
from rsslib.steps import EagerSteps
from rsslib.supernet import SuperNet
from rsstudy import engine, job, supernets, workers
from rsstudy import engine as engine_module
from rsstudy import tables as tables_module
from rsstudy.catalogue import TABLE_1, Alone, build
from rsstudy.engine import RunsFailed
from rsstudy.measurement import Measurement
from rsstudy.plan import PROFILES, Profile, Settings, by_worth, output_folder, plan, scaled
from rsstudy.store import overview, overview_words, read_record, write_record
from rsstudy.supernets import trained_supernet
from rsstudy.tables import anchor_tables, finished, histories, populations, times

TINY_BUCKETS = len(TINY.buckets)


def never(*arguments, **settings):
    raise AssertionError("this should not have been called")


def contents(folder):
    """Every file below `folder`: its bytes and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A results folder with the finished runs of two methods, and the runs; read only."""
    results = tmp_path_factory.mktemp("results")
    made = tiny("ofa", "rss", "ofa-released")
    complete(made, results)
    return made, results


@pytest.fixture
def results(done, tmp_path):
    """A copy of that folder, to be changed."""
    shutil.copytree(done[1], tmp_path / "results")
    return tmp_path / "results"


# --- a finished run


def test_a_finished_run_is_a_folder_of_its_files(done):
    made, results = done
    names = [f"test/digits/tiny/{method}/seed0" for method in ("ofa", "rss", "ofa-released")]
    assert [run.name for run in made] == names
    for run in made:
        assert run.folder(results) == results / run.name
        assert sorted(path.name for path in run.folder(results).iterdir()) == FILES  # nothing temporary, no checkpoint


def test_a_subnet_trained_alone_is_evaluated_on_that_one_subnet(tmp_path):
    bucket, number = TINY.buckets[-1], 1
    (run,) = tiny(one_stage("alone-last-1", 2, Alone(bucket, number)))
    complete([run], tmp_path)
    table = populations([run], tmp_path)
    assert table[["bucket", "subnet"]].to_numpy().tolist() == [[bucket, number]]
    supernet, images = trained_supernet(run, Settings(tmp_path, device="cpu"))
    whole = evaluate.evaluate_population(supernet, sample_population(supernet.space, 2), images, progress=False)
    same = whole[(whole["bucket"] == bucket) & (whole["subnet"] == number)].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[same.columns], same, check_dtype=False)
    assert len(anchor_tables([run], tmp_path)) == 3


def test_run_json_says_what_was_run_where_and_how_long(done):
    (ofa, *_), results = done
    record = json.loads((ofa.folder(results) / "run.json").read_text())
    assert record["status"] == "finished" and record["executor"] == "eager, compiled loops"
    assert record["versions"]["torch"] == torch.__version__ and "threads" in record["hardware"]
    assert record["started"] <= record["finished"]
    training, evaluation = record["config"]["training"], record["config"]["evaluation"]
    for key, value in {
        "profile": "test", "dataset": "digits", "backbone": "tiny", "seed": 0, "train_images": 80, "precision": "fp32"
    }.items():  # fmt: skip
        assert training[key] == value
    assert len(training["dataset_sha256"]) == 64
    assert [stage["name"] for stage in training["method"]["stages"]] == [stage.name for stage in ofa.method.stages]
    assert evaluation == {
        "test_images": 60, "subnets_per_bucket": 2, "population_seed": 0, "recalibration_images": 2000
    }  # fmt: skip
    history = pd.read_csv(ofa.folder(results) / "history.csv")
    assert record["training_seconds"] == pytest.approx(history.seconds.sum()) and record["evaluation_seconds"] > 0
    processor = record["training_processor_seconds"]
    assert processor == pytest.approx(history.processor_seconds.sum()) and 0 < processor


def test_every_evaluation_has_the_three_anchors_in_a_table_of_their_own(done, tmp_path):
    table = anchor_tables(*done)
    assert list(table.columns) == list(populations(*done).columns)
    space, rows = SearchSpace("tiny"), table[table.method == "ofa"]
    for (_, row), arch in zip(rows.iterrows(), (space.smallest, space.middle, space.largest), strict=True):
        assert (row.kernel, row.expand, row.depth) == tuple("-".join(map(str, s)) for s in astuple(arch))
        assert row.bucket == row.mflops == space.reference.macs(arch) / 1e6
    copy = shutil.copytree(done[1], tmp_path / "results")
    for run in done[0][1:]:  # as from a version that did not evaluate them
        record = read_record(run.folder(copy))
        del record["sha256"]["anchors.csv"]
        write_record(run.folder(copy), record)
        (run.folder(copy) / "anchors.csv").unlink()
    assert set(anchor_tables(done[0], copy).method) == {"ofa"} and anchor_tables(done[0][1:], copy).empty
    assert tables_module.finished(done[0], copy) == done[0]


def test_methods_are_evaluated_on_the_same_subnets(done):
    made, results = done
    ofa, rss, _ = (pd.read_csv(run.folder(results) / "population.csv").drop(columns="accuracy") for run in made)
    pd.testing.assert_frame_equal(ofa, rss)
    expected = ["-".join(map(str, arch.kernel)) for _, arch in sample_population(SearchSpace("tiny"), 2)]
    assert ofa.kernel.tolist() == expected


def test_what_is_finished_is_not_run_again_and_needs_no_weights(results, monkeypatch):
    for run in tiny("ofa", "rss"):
        (run.folder(results) / "weights.safetensors").unlink()
    before = contents(results)
    monkeypatch.setattr(job, "train", never)
    monkeypatch.setattr(job, "evaluate_population", never)
    complete(tiny("ofa", "rss"), results)
    assert contents(results) == before


def test_weights_that_stayed_elsewhere_are_an_input_error(results):
    run = tiny("rss")[0]
    (run.folder(results) / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="to its end with `rsslib run`"):
        trained_supernet(run, Settings(results))


# --- going on after an interruption


def calls_of(monkeypatch, module, name):
    """Counts calls of a function, also by several threads; those after `last` raise `error`."""
    count, function = SimpleNamespace(made=0, last=10**9, error=KeyboardInterrupt()), getattr(module, name)
    lock = threading.Lock()

    def counting(*arguments):
        with lock:
            if count.made == count.last:
                raise count.error
            count.made += 1
        return function(*arguments)

    monkeypatch.setattr(module, name, counting)
    return count


@pytest.fixture
def steps(monkeypatch):
    return calls_of(monkeypatch, single_steps.EagerSteps, "train_step")


@pytest.fixture
def counted(monkeypatch):
    return calls_of(monkeypatch, evaluate, "correct_answers")


def tick(patch):
    """Patch `time.time` so that each look at the clock advances it by a second."""
    clock = itertools.count()
    ticking = SimpleNamespace(**{**vars(time), "time": lambda: next(clock)})
    for module in (engine, job):
        patch.setattr(module, "time", ticking)


@pytest.mark.parametrize(  # in the first epoch, in the third, between the fourth and the fifth
    ("method", "last"), [("rss", 1), ("rss", 5), ("ofa", 5), ("ofa", 8), ("ofa-released", 5)]
)
def test_an_interrupted_run_goes_on_to_the_same_result(method, last, done, tmp_path, steps):
    (run,), folder = tiny(method), tmp_path / tiny(method)[0].name
    steps.last = last
    with pytest.raises(KeyboardInterrupt):
        complete([run], tmp_path, checkpoint_seconds=0)
    kept = sorted(path.name for path in folder.iterdir() if path.suffix != ".safetensors")
    assert kept == ["live.csv"] * (last > 1) + ["run.json", "run.lock"]
    assert len(list(folder.glob("checkpoint-*"))) == min(2, last // 2)
    assert json.loads((folder / "run.json").read_text())["status"] == "training"
    steps.made, steps.last = 0, 10**9
    complete([run], tmp_path)
    assert steps.made == 2 * (run.method.epochs - last // 2)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert tables(folder) == tables(run.folder(done[1]))


def test_no_checkpoint_is_written_before_its_time(tmp_path, steps):
    run = tiny("rss")[0]
    steps.last = 9
    with pytest.raises(KeyboardInterrupt):
        complete([run], tmp_path, checkpoint_seconds=1000)
    assert not list(run.folder(tmp_path).glob("*.safetensors"))


def same_tables(run, results, done) -> bool:
    """Whether all tables of a run are those of the one that was never interrupted."""
    here, there = run.folder(results), run.folder(done[1])
    csv = ("population.csv", "anchors.csv")
    return tables(here) == tables(there) and all((here / n).read_bytes() == (there / n).read_bytes() for n in csv)


def counted_so_far(run, results) -> int:
    correct = read_record(run.folder(results))["evaluated"]["correct"]
    return sum(count is not None for count in correct)


SUBNETS = 2 * TINY_BUCKETS + 3  # and the anchors


@pytest.mark.parametrize(
    ("last", "error", "seconds", "kept"),
    [
        (0, KeyboardInterrupt(), 1000, 0),
        (1, KeyboardInterrupt(), 1000, 1),
        (SUBNETS - 2, KeyboardInterrupt(), 1000, SUBNETS - 2),  # among the anchors
        (3, SystemExit(), 0, 3),
    ],
)
def test_an_interrupted_evaluation_goes_on_to_the_same_result(
    last, error, seconds, kept, done, tmp_path, monkeypatch, counted
):
    run, counted.last, counted.error = tiny("rss")[0], last, error
    with pytest.raises(type(error) if isinstance(error, SystemExit) else Stopped):
        complete([run], tmp_path, checkpoint_seconds=seconds)
    assert overview([run], tmp_path).status.tolist() == ["interrupted"]
    assert counted_so_far(run, tmp_path) == kept
    monkeypatch.setattr(job, "train", never)
    counted.made, counted.last = 0, 10**9
    complete([run], tmp_path)
    assert counted.made == SUBNETS - kept
    assert same_tables(run, tmp_path, done) and "evaluated" not in read_record(run.folder(tmp_path))
    history = pd.read_csv(run.folder(tmp_path) / "history.csv")
    assert times([run], tmp_path).training_seconds[0] == pytest.approx(history.seconds.sum())


def test_what_was_counted_of_other_weights_images_or_hardware_is_counted_anew(done, tmp_path, counted):
    (run,), counted.last = tiny("rss"), 5
    with pytest.raises(Stopped):
        complete([run], tmp_path)
    folder = run.folder(tmp_path)
    record = read_record(folder)
    record["evaluated"] = {"of": record["evaluated"]["of"][::-1], "correct": [0] * 5, "seconds": 3.0}
    write_record(folder, record)
    counted.made, counted.last = 0, 10**9
    complete([run], tmp_path)
    assert counted.made == SUBNETS and same_tables(run, tmp_path, done)


def test_a_time_budget_stops_an_evaluation_between_subnets(done, tmp_path, monkeypatch):
    run = tiny("rss")[0]
    with monkeypatch.context() as patch:
        tick(patch)
        complete([run], tmp_path, time_budget=1.5 + run.method.epochs + 3)  # one look before training, one an epoch
    assert counted_so_far(run, tmp_path) == 3
    seconds = read_record(run.folder(tmp_path))["evaluated"]["seconds"]
    complete([run], tmp_path)
    assert same_tables(run, tmp_path, done)
    assert read_record(run.folder(tmp_path))["evaluation_seconds"] > seconds > 0


def test_a_time_budget_stops_training_between_epochs(done, tmp_path, monkeypatch, steps):
    run = tiny("rss")[0]
    with monkeypatch.context() as patch:
        tick(patch)
        complete([run], tmp_path, time_budget=3.5)  # one look before training, then one an epoch
    assert steps.made == 2 * 3
    assert overview([run], tmp_path).status.tolist() == ["interrupted"]
    complete([run], tmp_path, time_budget=1000)
    assert steps.made == 2 * 7
    assert tables(run.folder(tmp_path)) == tables(run.folder(done[1]))


@pytest.mark.parametrize(
    ("first", "then"),
    [({"gradients": "mean"}, {}), ({"teacher": "random"}, {}),
     ({"stages": (Stage("", 1, 0.1, Uniform(), schedule_epochs=10, sort_channels=()),)}, {})],
)  # fmt: skip
def test_a_method_that_no_longer_has_a_setting_is_another(first, then, tmp_path):
    def run(**changes):
        stages = (Stage("", 1, 0.1, Uniform()),)
        return tiny(Method(**({"name": "mine", "stages": stages} | changes)))

    complete(run(**first), tmp_path)
    for changes in (then, {"dropout": 0.2}):
        with pytest.raises(InputError, match="another configuration"):
            complete(run(**changes), tmp_path)
    complete(run(**first), tmp_path)


def test_a_checkpoint_whose_record_is_lost_is_gone_on_from(done, tmp_path):
    (run,) = tiny("rss")
    folder = run.folder(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        tick(patch)
        complete([run], tmp_path, time_budget=2.5, checkpoint_seconds=0)
    assert list(folder.glob("checkpoint-*"))
    (folder / "run.json").unlink()
    complete([run], tmp_path)
    assert tables(folder) == tables(run.folder(done[1]))


def test_a_supernet_of_another_configuration_is_not_taken(done, tmp_path):
    shutil.copytree(done[1], tmp_path, dirs_exist_ok=True)
    (run,) = tiny("rss", profile=replace(PROFILE, learning_rate_scale=2.0))
    with pytest.raises(InputError, match="another configuration"):
        trained_supernet(run, Settings(tmp_path, device="cpu"))
    (more,) = tiny("rss", profile=replace(PROFILE, subnets_per_bucket=PROFILE.subnets_per_bucket + 1))
    assert trained_supernet(more, Settings(tmp_path, device="cpu"))  # whose evaluation alone differs


def test_one_training_image_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RunsFailed, match="1 training images: expected at least 2"):
        complete(tiny("rss", profile=replace(PROFILE, train_images=1)), tmp_path)


@dataclass(frozen=True)
class Broken:
    """A sampler with a mistake."""

    def subnets(self, space, rng, epoch, epochs, steps):
        raise ZeroDivisionError("a mistake")


def test_a_run_that_fails_stops_no_other(tmp_path):
    broken, sound = tiny(one_stage("broken", 1, Broken()), "rss-short")
    with pytest.raises(RunsFailed, match="a mistake") as error:
        complete([broken, sound], tmp_path)
    assert list(error.value.failures) == [broken.name]
    assert isinstance(error.value.failures[broken.name], ZeroDivisionError)
    assert overview([broken, sound], tmp_path).status.tolist() == ["interrupted", "finished"]


@pytest.mark.long  # each process imports PyTorch
def test_several_runs_at_once_finish_like_one_after_the_other(tmp_path):
    profile = replace(PROFILE, supernet_epochs=1, subnets_per_bucket=1, train_images=64, test_images=10)
    made = plan(profile, methods=("rss-short", "rss-short-largest"))
    complete(made, tmp_path, jobs=2)
    assert overview(made, tmp_path).status.tolist() == ["finished"] * 2
    assert {read_record(run.folder(tmp_path))["jobs"] for run in made} == {2}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_several_runs_in_threads_finish_like_one_after_the_other(device, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "in_processes", workers.in_threads)  # as on CUDA
    planned = tiny("rss-2-per-batch", "ofa-released", seeds=[0, 1])
    complete(planned, tmp_path / "together", device=device, jobs=3, progress=True)
    complete(planned, tmp_path / "alone", device=device)
    if device == "cpu":
        for run in planned:
            assert tables(run.folder(tmp_path / "together")) == tables(run.folder(tmp_path / "alone"))


@contextmanager
def interrupted_once(condition):
    """Interrupt the main thread, as Ctrl-C does, once `condition()` holds."""

    def watch():
        while not condition():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_an_interrupt_stops_runs_in_threads_with_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "in_processes", workers.in_threads)

    endless = tiny(profile=replace(PROFILE, shrinking_epochs=100_000), seeds=[0, 1])
    with interrupted_once(lambda: all(list(run.folder(tmp_path).glob("run.json")) for run in endless)):
        with pytest.raises(Stopped, match="resumes from the last checkpoints"):
            complete(endless, tmp_path, jobs=2)
    for run in endless:
        assert list(run.folder(tmp_path).glob("checkpoint*"))


def test_an_interrupt_ends_an_evaluation_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "in_processes", workers.in_threads)
    evaluated, began = [], threading.Event()

    def slow(evaluator, arch):
        began.set()
        evaluated.append(arch)
        time.sleep(0.05)
        return torch.tensor(0)

    monkeypatch.setattr(evaluate, "correct_answers", slow)
    planned = tiny("rss-short", profile=replace(PROFILE, subnets_per_bucket=100), seeds=[0, 1])
    with interrupted_once(began.is_set), pytest.raises(Stopped):
        complete(planned, tmp_path, jobs=2)
    assert len(evaluated) < 100
    assert "finished" not in overview(planned, tmp_path).status.tolist()


def test_an_interrupt_ends_waiting_for_another_process_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "in_processes", workers.in_threads)
    planned = tiny("rss-short", seeds=[0, 1])
    locks = [FileLock(run.folder(tmp_path) / "run.lock", thread_local=False) for run in planned]
    for lock, run in zip(locks, planned, strict=True):
        run.folder(tmp_path).mkdir(parents=True)
        lock.acquire()
    late = threading.Timer(20, lambda: [lock.release(force=True) for lock in locks])  # or a failure would never end
    late.start()
    began = time.monotonic()
    with interrupted_once(lambda: time.monotonic() - began > 1), pytest.raises(Stopped):  # while the threads wait
        complete(planned, tmp_path, jobs=2)
    late.cancel()
    assert time.monotonic() - began < 10


def test_the_error_of_a_failed_run_keeps_no_network_and_no_images(tmp_path):
    alive = []

    class Failing:
        def subnets(self, space, rng, epoch, epochs, steps):
            alive.extend(weakref.ref(thing) for thing in gc.get_objects() if type(thing) in (SuperNet, EagerSteps))
            raise ZeroDivisionError("a mistake")

    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if type(thing) in (SuperNet, EagerSteps)}
    with pytest.raises(RunsFailed) as error:
        complete(tiny(one_stage("failing", 1, Failing())), tmp_path)
    gc.collect()
    assert len(alive) >= 2
    assert [thing() for thing in alive if thing() is not None and id(thing()) not in before] == []
    assert len(error.value.failures) == 1


@pytest.mark.parametrize(("room", "expected"), [(1, 1), (3, 2)])
def test_without_a_number_of_jobs_there_are_as_many_as_the_device_has_room_for(room, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "in_processes", workers.in_threads)
    monkeypatch.setattr(engine, "free_jobs", lambda device, runs: room)
    planned = tiny(seeds=[0, 1])
    complete(planned, tmp_path, jobs=None)
    assert {read_record(run.folder(tmp_path))["jobs"] for run in planned} == {expected}


# --- folders that hold something else


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: replace(run, method=override(run.method, learning_rate_scale=2.0)), "learning_rate"),
        (lambda run: replace(run, method=override(run.method, dropout=0.2)), "training.method.dropout is 0.1"),
        (lambda run: replace(run, profile=replace(run.profile, train_images=70)), "training.train_images is 80"),
        (lambda run: replace(run, method=replace(run.method, stages=one_stage("rss", 7, Broken()).stages)), "sampler"),
    ],
)
def test_another_configuration_is_named_and_nothing_touched(change, named, results):
    before = contents(results)
    run = change(tiny("rss")[0])
    with pytest.raises(InputError) as error:
        complete([run], results)
    assert str(run.folder(results)) in sentence(error) and " here)" in sentence(error)
    assert named.removeprefix("training.") in sentence(error)
    assert contents(results) == before
    assert overview([run], results).status.tolist() == ["other"]


def test_more_subnets_are_evaluated_without_training(results, monkeypatch):
    monkeypatch.setattr(job, "train", never)
    made = tiny("rss", subnets_per_bucket=3)
    folder = made[0].folder(results)
    before, history = pd.read_csv(folder / "population.csv"), (folder / "history.csv").read_bytes()
    complete(made, results)
    after = pd.read_csv(folder / "population.csv")
    assert len(after) == 3 * TINY_BUCKETS
    pd.testing.assert_frame_equal(after[after.subnet < 2].reset_index(drop=True), before)
    assert (folder / "history.csv").read_bytes() == history
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_more_subnets_of_weights_that_are_gone_are_an_input_error(results):
    made = tiny("rss", subnets_per_bucket=3)
    (made[0].folder(results) / "weights.safetensors").unlink()
    before = contents(results)
    with pytest.raises(InputError, match="subnets_per_bucket is 2 there and 3 here"):
        complete(made, results)
    assert contents(results) == before


def test_a_mistake_in_the_last_run_costs_nothing(tmp_path, results, monkeypatch):
    monkeypatch.setattr(job, "train", never)
    wrong = replace(tiny("rss")[0], method=override(build("rss", 2, 5), dropout=0.2))
    with pytest.raises(InputError):
        complete([*tiny("rss", seeds=(5,)), wrong], results)
    assert not tiny("rss", seeds=(5,))[0].folder(results).exists()


# --- input


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"profile": "smokey"}, "unknown profile 'smokey' (did you mean 'smoke'?)"),
        ({"backbone": "mobilenet_v2"}, "unknown backbone 'mobilenet_v2' (did you mean 'mobilenet_v3'?)"),
        ({"methods": ["rss", "rss-shrt"]}, "unknown method 'rss-shrt' (did you mean 'rss-short'?)"),
        ({"methods": "rss"}, "unknown group of methods 'rss' (did you mean 'rates'?): expected one of interference,"),
        ({"datasets": []}, "datasets is []: expected a list of different entries, at least one"),
        ({"seeds": [0, -1]}, "seeds is [0, -1]: expected a list"),
        ({"seeds": [0, 1, 0]}, "seeds is [0, 1, 0]: expected a list of different entries"),
        ({"methods": ["rss", "ofa", "rss"]}, "methods is ['rss', 'ofa', 'rss']: expected"),
        ({"datasets": ["../digits"]}, "'../digits' cannot name a profile, backbone, dataset or method"),
        ({"methods": [one_stage("my/rss", 1, Successive(("smallest",)))]}, "'my/rss' cannot name a"),
        ({"subnets_per_bucket": 0}, "subnets_per_bucket is 0"),
        ({"subnets_per_bucket": 10**9}, "subnets_per_bucket is 1000000000: expected a whole number of at least 1 and"),
        ({"seeds": [2**63]}, "seeds is [9223372036854775808]"),
        ({"profile": Profile("../mine", ("digits",), 1)}, "'../mine' cannot name a profile"),
    ],
)
def test_a_plan_that_cannot_be_is_an_input_error(settings, said):
    with pytest.raises(InputError) as error:
        plan(**settings)
    assert said in sentence(error)


@pytest.mark.parametrize(
    ("planned", "settings", "said"),
    [
        ({"datasets": ["digit"]}, {}, "unknown dataset 'digit' (did you mean 'digits'?)"),
        ({}, {"device": "cuda:99"}, "device 'cuda:99' was asked for, but PyTorch finds"),
        ({}, {"precision": "fp16"}, "unknown precision 'fp16' (did you mean 'bf16'?)"),
        ({}, {"precision": "bf16", "device": "cpu"}, "precision bf16 is for CUDA"),
        ({}, {"jobs": 0}, "jobs is 0"),
        ({"profile": replace(PROFILE, train_images=10**6)}, {}, "train_images is 1000000"),
        ({"subnets_per_bucket": 10_000}, {}, "different subnets"),
    ],
)
def test_what_cannot_be_run_is_an_input_error_before_anything_is_written(
    planned, settings, said, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample_bucket, "__defaults__", (0.5, 10_000))  # give up soon
    made = tiny("rss", **planned)
    with pytest.raises(InputError) as error:
        complete(made, tmp_path / "results", data=tmp_path / "data", **settings)
    assert said in sentence(error)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("results", [7, "", "file", "file/below"])
def test_results_that_cannot_be_a_folder_are_an_input_error(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"results is {results!r}.*expected a folder") as error:
        complete(tiny("rss"), results)
    assert sentence(error)


def test_two_different_runs_of_one_name_are_an_input_error(tmp_path):
    other = replace(tiny("rss")[0], method=override(build("rss", 2, 5), dropout=0.2))
    with pytest.raises(InputError, match="two different runs are called test/digits/tiny/rss/seed0"):
        complete([*tiny("rss"), other], tmp_path)


def test_a_run_that_is_asked_for_twice_is_trained_once(tmp_path, steps):
    complete([*tiny("rss"), *tiny("rss")], tmp_path)
    assert steps.made == 2 * 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_missed_where_it_is_asked_for_or_needed(tmp_path):
    for device in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match=f"device '{device}' was asked for, but PyTorch finds 0"):
            complete(tiny("rss"), tmp_path / "results", device=device)
    with pytest.raises(InputError, match="meant for a CUDA device"):
        engine_module.complete(plan("paper"), Settings(tmp_path / "results", progress=False))
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_not_missed_for_what_is_finished(tmp_path, monkeypatch):
    finished, other = tiny("rss", "rss-short", profile=replace(PROFILE, needs_cuda=True))
    complete([finished], tmp_path)
    engine_module.complete([finished], Settings(tmp_path, progress=False))
    monkeypatch.setattr(engine, "images_of", never)
    with pytest.raises(InputError, match="meant for a CUDA device"):
        engine_module.complete([finished, other], Settings(tmp_path, progress=False))


@pytest.mark.parametrize("graphs, steps, words", [(None, GraphedSteps, "CUDA graphs"), (False, EagerSteps, "eager")])
def test_steps_on_cuda_are_graphs_unless_settings_say_otherwise(graphs, steps, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    settings, device = Settings(device="cuda", graphs=graphs), torch.device("cuda")
    assert job.executor_for(settings, device) is steps
    assert job.environment(device, settings)["executor"] == words
    assert job.executor_for(settings, torch.device("cpu")) is EagerSteps


# --- plans


def test_a_plan_goes_over_datasets_then_methods_then_seeds():
    made = plan("paper", datasets=["mnist", "cifar100"], methods=["ofa", "rss"], seeds=(0, 7))
    assert [(run.dataset, run.method.name, run.seed) for run in made] == [
        (dataset, method, seed) for dataset in ("mnist", "cifar100") for method in ("ofa", "rss") for seed in (0, 7)
    ]
    assert [run.method.epochs for run in made[::2]] == [37, 37, 590, 590]
    assert {run.name for run in made[:1]} == {"paper/mnist/mobilenet_v3/ofa/seed0"}


def test_a_profile_gives_what_is_not_asked_for():
    profile = Profile("own", ("mnist", "my_images"), 3, learning_rate_scale=2.0)
    made = plan(profile, methods=("rss",))
    assert [(run.dataset, run.profile.subnets_per_bucket) for run in made] == [("mnist", 3), ("my_images", 3)]
    assert [run.method.epochs for run in made] == [sum(TABLE_1["mnist"]), sum(TABLE_1["cifar100"])]
    assert made[0].method.stages[0].learning_rate == 0.02
    assert [run.dataset for run in plan(profile, "hardest")] == ["my_images"] * 3
    assert plan(profile, subnets_per_bucket=9)[0].profile.subnets_per_bucket == 9


def test_a_method_of_ones_own_gets_the_learning_rate_of_the_profile_as_the_study_s_do():
    method = one_stage("mine", 3, Successive(("smallest",)))
    mine, rss = plan(Profile("own", ("mnist",), 3, learning_rate_scale=2.0), methods=[method, "rss"])
    assert mine.method == override(method, learning_rate_scale=2.0)
    assert mine.method.stages[0].learning_rate == rss.method.stages[0].learning_rate == 0.02
    assert mine.name == "own/mnist/mobilenet_v3/mine/seed0"


class OfNotebook(Successive):
    __module__ = "__main__"


@pytest.mark.parametrize("where", ["notebook", "function"])
def test_sampler_that_cannot_be_sent_to_other_processes_is_refused(where, tmp_path, monkeypatch):
    class Local(Successive):
        pass

    monkeypatch.setattr(sys.modules["__main__"], "OfNotebook", OfNotebook, raising=False)
    kind = OfNotebook if where == "notebook" else Local
    methods = [one_stage(name, 1, kind(("smallest",))) for name in ("one", "two")]
    with pytest.raises(InputError, match=f"cannot be sent to other processes .*{kind.__name__}.*give jobs=1") as error:
        engine_module.complete(plan("smoke", methods=methods), Settings(tmp_path, device="cpu", jobs=2, progress=False))
    assert sentence(error)


@pytest.mark.parametrize("what", ["precision", "dataset_sha256"])
def test_runs_that_do_not_compare_make_no_table(what, done, tmp_path):
    made = done[0]
    for run in made:
        shutil.copytree(run.folder(done[1]), run.folder(tmp_path))
    record = read_record(made[1].folder(tmp_path))
    record["config"]["training"][what] = "another"
    write_record(made[1].folder(tmp_path), record)
    with pytest.raises(InputError, match="does not compare") as error:
        populations(made, tmp_path)
    assert made[1].name in sentence(error)


def test_by_worth_keeps_all_runs_and_puts_first_seeds_and_main_results_first():
    made = plan("paper", methods=["rss-largest", "ofa-released", "ofa", "rss-short-lr-0.02", "rss"], seeds=(1, 0))
    made += plan("paper", "hardest", methods=["rss"], backbone="proxylessnas", seeds=(0,))
    order = by_worth(made)
    assert sorted(run.name for run in order) == sorted(run.name for run in made)
    first = [run for run in order if run.seed == 0]
    assert order[: len(first)] == first
    assert [(run.dataset, run.method.name) for run in first[:4]] == [
        ("cifar100", "rss"), ("cifar100", "ofa"), ("cifar100", "ofa-released"), ("cifar100", "rss-largest")
    ]  # fmt: skip
    assert {run.method.name for run in first[-5:]} == {"rss-short-lr-0.02", "rss"}


# --- tables


def test_tables_say_which_run_each_row_is_of(done):
    made, results = done
    for read, file in ((populations, "population.csv"), (histories, "history.csv")):
        table = read(made, results)
        assert list(table.columns[:4]) == ["dataset", "backbone", "method", "seed"]
        for run in made:
            own = table[table.method == run.method.name].reset_index(drop=True)
            assert set(own.dataset) == {"digits"} and set(own.backbone) == {"tiny"} and set(own.seed) == {0}
            pd.testing.assert_frame_equal(own.iloc[:, 4:], pd.read_csv(run.folder(results) / file))
        assert table.index.is_unique


def test_runs_that_are_not_there_are_an_input_error(done, tmp_path):
    for read in (populations, histories, times):
        with pytest.raises(InputError) as error:
            read(done[0], tmp_path)
        assert done[0][0].name in sentence(error)


def test_finished_leaves_out_the_others_and_says_so(done, capsys):
    made, results = done
    missing = tiny("rss", seeds=(8,))
    assert finished([*missing, *made], results) == made
    assert missing[0].name in capsys.readouterr().out
    with pytest.raises(InputError, match="is finished in"):
        finished(missing, results)


def test_overview_tells_what_is_finished_running_interrupted_and_missing(results, steps):
    done_, other, missing = tiny("rss")[0], tiny("rss", seeds=(3,))[0], tiny("rss", seeds=(4,))[0]
    steps.last = 3
    with pytest.raises(KeyboardInterrupt):
        complete([other], results)
    (other.folder(results) / "live.csv").write_text("epoch,loss,seconds\n1,2,3\n2,1.5,5\n")
    table = overview([done_, other, missing], results)
    assert table.status.tolist() == ["finished", "interrupted", "missing"]
    assert table.epoch.tolist() == [7, 2, 0] and table.epochs.tolist() == [7, 7, 7]
    an_epoch = (times([done_], results).training_seconds[0] / 7 + 8 / 2) / 2  # the median of two
    assert table.seconds_left.tolist() == pytest.approx([0, 5 * an_epoch, 7 * an_epoch])
    words = overview_words(table).split("\n")
    assert words[2].split()[1:5] == ["interrupted", "2", "7", "1.50"] and len({len(line) for line in words[:4]}) == 1
    assert words[-1] == f"1 of 3 runs are finished; training left, one run at a time: {in_words(12 * an_epoch)}"
    assert list(overview([], results)) == list(table) and overview_words(overview([], results))  # of a notebook without
    unknown = overview_words(overview([missing], results))
    assert "unknown" in unknown
    with FileLock(other.folder(results) / "run.lock"):
        assert overview([other], results).status.tolist() == ["running"]


def test_finished_runs_are_told_at_once_and_trained_in_the_order_given(done, results):
    new, told = tiny("rss", seeds=(5, 6)), []
    engine_module.complete([new[1], done[0][0], new[0]], Settings(results, device="cpu", progress=False), told.append)
    assert told == [done[0][0], new[1], new[0]]


def test_finished_runs_need_no_dataset(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    arrays = {f"x_{split}": generator.integers(0, 256, (40, 8, 8), dtype=np.uint8) for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(40) % 2 for split in ("train", "test")}
    np.savez(tmp_path / "toy.npz", **arrays)
    profile = replace(PROFILE, datasets=("toy",), train_images=None, test_images=None)
    planned = tiny("rss-short", profile=profile)
    complete(planned, tmp_path / "results", data=tmp_path)
    (tmp_path / "toy.npz").unlink()
    complete(planned, tmp_path / "results", data=tmp_path)
    assert len(populations(planned, tmp_path / "results")) == 2 * TINY_BUCKETS
    with pytest.raises(InputError, match="toy"):
        complete([*planned, *tiny("rss", profile=profile)], tmp_path / "results", data=tmp_path)
    with pytest.raises(InputError, match="toy"):  # to measure one they are needed
        complete(planned, tmp_path / "results", data=tmp_path, measure=Measurement(["rss-short"]))


def test_what_cannot_be_downloaded_is_told_and_left_out_beside_finished_runs(tmp_path, capsys, monkeypatch):
    def unreachable(*arguments, **settings):
        raise OSError("no network")

    profile = replace(PROFILE, datasets=("mnist",))
    (finished,), (other,) = tiny("rss", profile=profile), tiny("rss-short", profile=profile)
    images = toy_data(train=80, test=60, channels=1, classes=10)
    with monkeypatch.context() as patch:
        patch.setattr(supernets, "cached_dataset", lambda *arguments: images)
        complete([finished], tmp_path / "results", data=tmp_path)
    monkeypatch.setattr("torchvision.datasets.MNIST", unreachable)
    told = []
    settings = Settings(tmp_path / "results", tmp_path, "cpu", progress=False)
    engine_module.complete([other, finished], settings, told.append)
    said = capsys.readouterr().out
    assert told == [finished] and f"not trained: {other.name}" in said and "no network" in said
    with pytest.raises(InputError, match="no network"):  # with nothing to show, it is an error
        complete([other], tmp_path / "results", data=tmp_path)


def test_a_run_goes_on_with_as_many_threads_as_it_was_begun_with(done, tmp_path, steps, monkeypatch):
    (run,), used = tiny("rss"), []
    steps.last = 5
    with pytest.raises(KeyboardInterrupt):
        complete([run], tmp_path, checkpoint_seconds=0, threads=2)
    steps.last = 10**9
    train = job.train
    monkeypatch.setattr(job, "train", lambda *arguments: used.append(torch.get_num_threads()) or train(*arguments))
    complete([run], tmp_path, threads=1)
    assert used == [2] and torch.get_num_threads() == 1
    assert read_record(run.folder(tmp_path))["threads"] == 2


# --- one run at another scale, images of one's own, figures of one's own


def test_a_changed_profile_has_a_name_that_says_what_was_changed():
    profile = scaled(PROFILE, supernet_epochs=3, learning_rate_scale=2.0, subnets_per_bucket=2)  # the last is the same
    assert profile.name == "test_supernet-epochs-3_learning-rate-scale-2"
    assert profile == replace(PROFILE, supernet_epochs=3, learning_rate_scale=2.0, name=profile.name)
    assert scaled(PROFILE) == PROFILE
    for changes in ({"supernet_epochs": 0}, {"learning_rate_scale": -1.0}, {"train_images": 1.5}):
        with pytest.raises(InputError, match=next(iter(changes))):
            scaled(PROFILE, **changes)


def own_images(folder, n):
    labels = np.arange(n) % 2
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    np.savez(folder / "own.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])


@pytest.mark.parametrize(
    ("profile", "images", "expected"),
    [
        ("quick", 4_000, (24, 54)),  # of which 3,200 are left to train with, half of what 12 + 27 are for
        ("quick", 20, (120, 270)),
        ("quick", 50_000, (12, 27)),
        ("smoke", 560, (120, 60)),  # 448 left
        ("paper", 719, TABLE_1["cifar100"]),
    ],
)
def test_small_datasets_of_ones_own_get_more_epochs_so_that_as_many_images_are_seen(
    profile, images, expected, tmp_path
):
    own_images(tmp_path, images)
    short, rss = plan(profile, ["own"], ["rss-short", "rss"], data=tmp_path)
    assert (short.method.epochs, rss.method.epochs) == (expected[0], sum(expected))
    assert short.profile.describe("own").startswith(f"{expected[0]} + {expected[1]} epochs")
    assert short.name == f"{profile}/own/mobilenet_v3/rss-short/seed0"
    (usual,) = plan(profile, ["digits"], ["rss"], data=tmp_path)
    assert usual.profile == PROFILES[profile]


def test_a_finished_run_on_images_of_ones_own_is_found_without_them(tmp_path):
    own_images(tmp_path, 100)
    profile = replace(PROFILE, datasets=("own",), train_images=None, epochs_for=200)
    (run,) = tiny(profile=profile, data=tmp_path)
    assert run.method.epochs == round(2 * 2.5) + round(5 * 2.5)
    complete([run], tmp_path / "results", data=tmp_path)
    (unknown,) = tiny(profile=profile, data=tmp_path / "elsewhere")
    table = overview([unknown], tmp_path / "results")
    assert table[["status", "epoch", "epochs"]].values.tolist() == [["finished", 17, 17]]
    assert table["seconds_left"].tolist() == [0] and len(histories([unknown], tmp_path / "results")) == 17
    (other,) = tiny(profile=replace(profile, epochs_for=None))
    assert overview([other], tmp_path / "results")["status"].tolist() == ["other"]
    with pytest.raises(InputError, match="was planned without its images: give plan the same folder as `data`"):
        complete([unknown], tmp_path / "anew", data=tmp_path)


def test_weights_of_a_run_that_is_not_trained_name_what_it_lacks(tmp_path, steps):
    (run,) = tiny("rss")
    settings = Settings(tmp_path, device="cpu")
    with pytest.raises(InputError, match="train .*/rss/seed0 to its end with `rsslib run`"):
        trained_supernet(run, settings)
    steps.last = 5
    with pytest.raises(KeyboardInterrupt):
        complete([run], tmp_path, checkpoint_seconds=0)
    with pytest.raises(InputError, match="train .*/rss/seed0 to its end with `rsslib run`"):
        trained_supernet(run, settings)


def test_a_step_that_does_not_fit_into_memory_is_one_sentence(tmp_path, monkeypatch):
    (run,) = tiny(resolution=224)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * 2**30))
    assert engine.free_jobs(torch.device("cpu"), [run]) == 1
    with pytest.raises(RunsFailed) as failed:
        complete([run], tmp_path)
    (error,) = failed.value.failures.values()
    assert isinstance(error, InputError) and "\n" not in str(error)
    assert "steps on 64 images of 224 pixels need 8.6 GiB of memory, of which 8 are free: choose a lower" in str(error)


def test_figures_of_other_runs_than_the_studys_have_folders_of_their_own(tmp_path):
    def folder(*arguments, **settings):
        return output_folder("quick", tmp_path, plan("quick", *arguments, **settings)).name

    mine = one_stage("growing", 1, Successive(("smallest",)))
    assert folder() == folder(seeds=[0, 1]) == output_folder("quick", tmp_path).name == "quick"
    assert folder(["digits"]) == "quick-digits"
    assert folder(methods=["rss", mine]) == "quick-growing"
    assert folder(["digits", "mnist"], [mine]) == "quick-digits-mnist-growing"
