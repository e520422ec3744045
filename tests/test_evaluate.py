"""rsslib.evaluate: statistics and accuracy of subnets."""

import copy
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import (
    AUGMENT_ERROR,
    TINY,
    assert_close,
    corners,
    double_images,
    random_archs,
    random_supernet,
    sentence,
    toy_data,
)
from torch import nn

from rsslib import evaluate
from rsslib.backbones import BACKBONES
from rsslib.data import augmentation
from rsslib.errors import InputError
from rsslib.evaluate import (
    Evaluator,
    LabelledBatches,
    evaluate_each,
    evaluate_population,
    recalibrate,
    recalibration_images,
)
from rsslib.population import archs_from_table
from rsslib.space import SearchSpace
from rsslib.supernet import FIRST, SuperNet, batch_norm_with, fold_batch_norm, no_norm

SPACE = SearchSpace(TINY, classes=4)
COLUMNS = ["bucket", "subnet", "mflops", "kernel", "expand", "depth", "accuracy"]


@pytest.fixture(scope="module")
def supernet():
    return random_supernet(SPACE, dropout=0.5).eval()


@pytest.fixture
def exact(supernet, monkeypatch):
    """The supernet in float64, where rounding hides no mistake; `evaluate` then makes its images in float64."""
    double_images(monkeypatch, (evaluate, "normalise"), (evaluate, "recalibration_images"))
    return copy.deepcopy(supernet).double()


@torch.no_grad()
def plain_statistics(supernet, arch, images):
    """The statistics by hooks on the extracted network: {BN name.running_mean / .running_var: [C]}."""
    network, seen = supernet.extract(arch).train(), {}

    def look(name):
        def hook(module, inputs):
            mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
            for key, value in (("running_mean", mean), ("running_var", var)):
                seen.setdefault(f"{name}.{key}", []).append(value)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(look(name))
    for batch in images.split(200):
        network(batch)
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


def plain_answers(supernet, arch, images, labels, recalibration):
    """Extract, set the statistics, predict: the number of right answers."""
    network = supernet.extract(arch).eval()
    network.load_state_dict(plain_statistics(supernet, arch, recalibration), strict=False)
    with torch.no_grad():
        logits = network(images)
    first, second = logits.topk(2).values.T
    assert (first - second > 1e-9 * logits.abs().max()).all()  # else rounding could decide an answer
    return int((logits.argmax(1) == labels).sum())


def normalised(data):
    """The numbers that `normalise` returns in float32, to the last bit, as float64."""
    return ((data.x_test / 255 - 0.5) / 0.5).double().contiguous(memory_format=torch.channels_last)


def spy_on(function, results):
    """The function, which then keeps what it returns."""

    def spying(*arguments, **settings):
        results.append(function(*arguments, **settings))
        return results[-1]

    return spying


# --- recalibration


@pytest.mark.parametrize("n", [400, 90])
def test_statistics_are_means_over_batches_of_mean_and_biased_variance(exact, n):
    images = torch.randn((n, 3, 32, 32), generator=torch.Generator().manual_seed(0)).double()
    for arch in [*corners(SPACE), *random_archs(SPACE, 2)]:
        result, expected = recalibrate(exact, arch, images), plain_statistics(exact, arch, images)
        assert result.keys() == expected.keys()
        for name, value in result.items():
            assert_close(value, expected[name], name)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_folded_batch_norm_gives_the_same_logits(name):
    supernet = random_supernet(SearchSpace(name, classes=4), dtype=torch.float64)
    images = torch.randn(30, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for arch in corners(supernet.space):
        weights = supernet.subnet(arch, dict(supernet.named_parameters()))
        statistics = recalibrate(supernet, arch, images)
        expected = supernet.run(images, arch, weights, batch_norm_with(statistics))
        assert_close(supernet.run(images, arch, fold_batch_norm(weights, statistics), no_norm), expected, arch)


@pytest.mark.parametrize("n, at_once", [(600, 600), (600, 400), (120, 600)])
def test_several_batches_per_pass_give_the_same_statistics(n, at_once, exact, monkeypatch):
    images = torch.randn(n, 3, 32, 32, dtype=torch.float64)
    alone = recalibrate(exact, SPACE.middle, images)
    monkeypatch.setitem(evaluate.IMAGES_AT_ONCE, "cpu", at_once)
    together = recalibrate(exact, SPACE.middle, images)
    assert alone.keys() == together.keys()
    for name, expected in alone.items():
        assert_close(together[name], expected, name)


@pytest.mark.parametrize("training", [False, True])
def test_recalibration_changes_nothing_and_records_no_gradients(supernet, training):
    mine = copy.deepcopy(supernet).train(training)
    images = torch.randn(30, 3, 32, 32)
    statistics = recalibrate(mine, SPACE.middle, images)
    assert mine.training == training
    assert not any(value.requires_grad for value in statistics.values())
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, supernet.state_dict()[name]), name


@pytest.mark.parametrize(
    ("n", "used"), [(2500, 2000), (2000, 2000), (450, 400), (399, 200), (200, 200), (199, 199), (3, 3)]
)
def test_recalibration_takes_up_to_2000_training_images_in_whole_batches(n, used, monkeypatch):
    data, taken = toy_data(train=n, channels=1), []
    numbers = torch.arange(n)
    x = torch.zeros(n, 1, 32, 32, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = numbers % 256, numbers // 256

    def augment(images, parameters, mean, std, resolution):
        taken.append((images[:, 0, 0, 0].int() + 256 * images[:, 0, 0, 1].int()).tolist())
        assert parameters.shape[1] == len(images) and (mean, std) == (data.mean, data.std)
        return images.float()

    monkeypatch.setattr(evaluate, "augment", augment)
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert recalibration_images(replace(data, x_train=x)).shape == (used, 1, 32, 32)
    first, second = taken
    assert len(set(first)) == used and first == second
    assert used == n < 10 or first != sorted(first)


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_recalibration_images_are_drawn_by_a_cpu_on_every_device(device, monkeypatch):
    data, seen = toy_data(train=450), []
    monkeypatch.setattr(torch, "randperm", spy_on(torch.randperm, seen))
    monkeypatch.setattr(evaluate, "draw_augmentation", spy_on(evaluate.draw_augmentation, seen))
    images = recalibration_images(replace(data, x_train=data.x_train.to(device), y_train=data.y_train.to(device)))
    generator = torch.Generator().manual_seed(0)
    rows, crops = torch.randperm(450, generator=generator), augmentation.draw_augmentation(400, generator)
    assert torch.equal(seen[0], rows) and torch.equal(seen[1], crops)
    assert images.device.type == device and images.shape == (400, 3, 32, 32)
    if device != "meta":  # which computes nothing
        expected = augmentation.augment(data.x_train[rows[:400]], crops, data.mean, data.std)
        error = 0 if device == "cpu" else 2 * AUGMENT_ERROR / data.std[0]
        torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=error)


# --- accuracy


@pytest.fixture(scope="module")
def data():
    return toy_data(train=250, test=230)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.usefixtures("exact")
def test_accuracy_on_a_real_backbone(name):
    data = toy_data(train=60, test=50)
    supernet = random_supernet(SearchSpace(name, classes=4), dtype=torch.float64)
    population = [(8, arch) for arch in random_archs(supernet.space, 2)]
    table = evaluate_population(supernet, population, data, progress=False)
    recalibration = recalibration_images(data).double()
    for (_, arch), accuracy in zip(population, table.accuracy, strict=True):
        right = plain_answers(supernet, arch, normalised(data), data.y_test, recalibration)
        assert accuracy == 100 * right / 50


def test_the_table_has_one_row_per_subnet(exact, data):
    archs = random_archs(SPACE, 5)
    population = list(zip([2, 1, 2, 1.5, 2], archs, strict=True))
    table = evaluate_population(exact, population, data, progress=False)
    assert list(table.columns) == COLUMNS and list(table.index) == list(range(5))
    assert table.bucket.tolist() == [2.0, 1.0, 2.0, 1.5, 2.0]
    assert table.subnet.tolist() == [0, 0, 1, 0, 2]
    assert table.mflops.tolist() == [SearchSpace(TINY).macs(arch) / 1e6 for arch in archs]
    assert archs_from_table(table) == archs
    images, recalibration = normalised(data), recalibration_images(data).double()
    for arch, accuracy in zip(archs, table.accuracy, strict=True):
        right = plain_answers(exact, arch, images, data.y_test, recalibration)
        assert accuracy == 100 * right / 230


@pytest.mark.parametrize("most_bytes", [2**30, 10])
def test_kept_maps_change_no_number(supernet, data, monkeypatch, most_bytes):
    monkeypatch.setattr(evaluate, "MOST_BYTES", most_bytes)
    archs = random_archs(SPACE, 30)
    recalibration, test = recalibration_images(data), LabelledBatches(data.x_test, data.y_test, data)

    def logits(evaluator, arch):
        return torch.cat([x for x, _ in evaluator.logits_and_labels(arch)])

    alone = [logits(Evaluator(supernet, test, recalibration), arch) for arch in archs]
    order = sorted(range(30), key=lambda i: (archs[i].kernel, archs[i].expand))
    for numbers in (order, range(30)):
        evaluator = Evaluator(supernet, test, recalibration)
        assert all(torch.equal(logits(evaluator, archs[i]), alone[i]) for i in numbers)


def test_first_layers_in_common_are_run_once(supernet, data, monkeypatch):
    archs, begins, run = random_archs(SPACE, 30), [], SuperNet.run
    monkeypatch.setattr(SuperNet, "run", lambda *a, **k: begins.append(k["part"] == FIRST) or run(*a, **k))
    evaluate_population(supernet, [(1, arch) for arch in archs], data, progress=False)
    begun = {(arch.kernel[:2], arch.expand[:2]) for arch in archs}
    assert 1 < len(begun) < 30 and sum(begins) == len(begun) * (1 + 2)  # 200 images to recalibrate, 230 to test


@pytest.mark.parametrize("threads", [2, 3])
def test_evaluation_gives_the_same_numbers_on_several_threads(supernet, data, threads):
    population = [(1, arch) for arch in random_archs(SPACE, 12)]
    alone = evaluate_population(supernet, population, data, progress=False)
    counts = {3: torch.tensor(7), 8: torch.tensor(0)}
    again = evaluate_population(supernet, population, data, progress=False, counts=counts, threads=threads)
    new = [number for number in range(12) if number not in (3, 8)]
    pd.testing.assert_frame_equal(again.loc[new], alone.loc[new])
    assert again.accuracy[3] == 100 * 7 / 230 and again.accuracy[8] == 0 and len(counts) == 12


@pytest.fixture
def images(data):
    return LabelledBatches(data.x_test, data.y_test, data), recalibration_images(data)


@pytest.mark.parametrize("fails", ["the judge", "the block"])
def test_an_error_ends_all_threads(supernet, images, fails):
    archs, begun = random_archs(SPACE, 100), []

    def judge(evaluator, arch):
        begun.append(arch)
        time.sleep(0.01)
        if fails == "the judge" and len(begun) > 5:
            raise RuntimeError("enough")

    at_once = evaluate_each(supernet, images, archs, judge, threads=3)
    with pytest.raises(RuntimeError, match="enough"), at_once as judged:
        for seen, _ in enumerate(judged):
            if fails == "the block" and seen == 5:
                raise RuntimeError("enough")
    there = len(begun)
    assert there < 50
    time.sleep(0.05)
    assert len(begun) == there


def test_larger_images_are_run_in_smaller_parts_with_the_same_numbers(data, monkeypatch):
    bytes_of_a_pass = []
    for resolution in (32, 64, 224):
        x = torch.zeros((450, 1, 1, 1), dtype=torch.uint8).expand(450, 3, resolution, resolution)
        bytes_of_a_pass.append(4 * evaluate.images_at_once(x) * x[0].numel())
    assert bytes_of_a_pass[0] == 4 * 200 * 3 * 32 * 32 and max(bytes_of_a_pass) == bytes_of_a_pass[0]
    expected = recalibration_images(data), torch.cat([x for x, _ in LabelledBatches(data.x_test, data.y_test, data)])
    monkeypatch.setattr(augmentation, "AUGMENTED_AT_ONCE", 37)
    monkeypatch.setattr(evaluate, "IMAGES_AT_ONCE", {"cpu": 50})
    assert torch.equal(recalibration_images(data), expected[0])
    batches = list(LabelledBatches(data.x_test, data.y_test, data))
    assert max(len(x) for x, _ in batches) == 50 and torch.equal(torch.cat([x for x, _ in batches]), expected[1])


def test_no_test_images_are_an_input_error(supernet, data):
    empty = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    with pytest.raises(InputError) as error:
        evaluate_population(supernet, [(1, SPACE.middle)], empty, progress=False)
    assert "no test images" in sentence(error)
