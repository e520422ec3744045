"""The supernet against the official package of Cai et al. (2020), with the same weights."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import EPS, assert_close, corners, random_archs, random_supernet, sentence
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3, OFAProxylessNASNets
from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics
from ofa.utils import init_models

from rsslib.checkpoint import warm_start
from rsslib.errors import InputError
from rsslib.evaluate import recalibrate
from rsslib.official import load_official, to_official
from rsslib.space import SearchSpace
from rsslib.supernet import SuperNet

OFFICIAL = {"mobilenet_v3": OFAMobileNetV3, "proxylessnas": OFAProxylessNASNets}

by_name = pytest.mark.parametrize("name", OFFICIAL)


def official(name, classes=100):
    return OFFICIAL[name](
        classes, (0.1, 1e-5), 0.0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
    )


def activate(theirs, arch):
    depth = [*arch.depth, 1] if isinstance(theirs, OFAProxylessNASNets) else [*arch.depth]
    theirs.set_active_subnet(ks=[*arch.kernel], e=[*arch.expand], d=depth)
    return theirs


def pair(name, dtype):
    """Our supernet and the official one with the same, arbitrary weights and statistics."""
    ours = random_supernet(SearchSpace(name), dtype=dtype)
    theirs = official(name).to(dtype)
    theirs.load_state_dict(to_official(ours))
    return ours, theirs


@pytest.fixture(scope="module")
def pairs():
    return {name: pair(name, torch.float64) for name in OFFICIAL}


@pytest.fixture
def models(pairs, name):
    """Copies of the pair in float64, where rounding hides no mistake."""
    return copy.deepcopy(pairs[name])


def images(n):
    return torch.randn((n, 3, 32, 32), generator=torch.Generator().manual_seed(0)).double()


# --- the forward pass, and what training makes of it


@by_name
@torch.no_grad()
def test_logits_agree_in_eval_mode(name, models):
    ours, theirs = (model.eval() for model in models)
    x = images(2)
    for arch in [*corners(ours.space), *random_archs(ours.space, 50, seed=1)]:
        assert_close(ours(x, arch), activate(theirs, arch)(x), arch)


@by_name
@pytest.mark.parametrize("part", range(4))
def test_training_agrees(name, models, part):
    """Logits, gradients, which parameters have one, and running statistics of a pass in train mode."""
    ours, theirs = (model.train() for model in models)
    name_of = dict(zip(to_official(ours), ours.state_dict(), strict=True))
    parameters = dict(ours.named_parameters()), {name_of[key]: p for key, p in theirs.named_parameters()}
    x, y = images(4), torch.tensor([3, 14, 15, 92])
    for arch in [*corners(ours.space), *random_archs(ours.space, 49)][part::4]:
        logits = ours(x, arch), activate(theirs, arch)(x)
        assert_close(*logits, arch)
        mine, other = (
            dict(zip(p, torch.autograd.grad(F.cross_entropy(z, y), p.values(), allow_unused=True), strict=True))
            for p, z in zip(parameters, logits, strict=True)
        )
        scale = max(gradient.abs().max() for gradient in other.values() if gradient is not None)
        for key, gradient in mine.items():
            assert (gradient is None) == (other[key] is None), (key, arch)
            if gradient is not None:  # shifts before a batch norm have none at all but for rounding, hence the floor
                floor = 1e-10 * scale
                assert (gradient - other[key]).abs().max() <= 1e-3 * other[key].abs().max() + floor, (key, arch)
        for key, tensor in theirs.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                torch.testing.assert_close(ours.state_dict()[name_of[key]], tensor, msg=key)


@by_name
@pytest.mark.parametrize("batches", [(200, 200), (60,)])
def test_recalibration_agrees(name, models, batches):
    ours, theirs = models
    x = images(sum(batches))
    names = dict(zip(to_official(ours), ours.state_dict(), strict=True))
    for arch in random_archs(ours.space, 2):
        statistics = recalibrate(ours, arch, x)
        set_running_statistics(activate(theirs, arch), [(batch, None) for batch in x.split(batches)])
        expected = {names[key]: tensor for key, tensor in theirs.state_dict().items() if names[key] in statistics}
        assert len(expected) == len(statistics)
        for key, value in statistics.items():
            assert_close(value, expected[key][: len(value)], (key, arch))


# --- sorting channels


def importances(block):
    return block.conv_pwl.weight.detach().double().abs().sum((0, 2, 3))


@by_name
@pytest.mark.parametrize(("stage", "boundaries"), [(0, ()), (1, (4,))])
def test_channels_are_sorted_as_the_official_code_sorts_them(name, models, stage, boundaries):
    """In double precision, which the official keys of the second stage need to be exact."""
    ours, theirs = models
    before = to_official(ours)["blocks.1.conv.point_linear.conv.conv.weight"].clone()
    ours.sort_channels(boundaries)
    theirs.re_organize_middle_weights(expand_ratio_stage=stage)
    state = theirs.state_dict()
    for key, tensor in to_official(ours).items():
        assert torch.equal(tensor, state[key]), key
    assert not torch.equal(before, state["blocks.1.conv.point_linear.conv.conv.weight"])


@by_name
def test_the_second_sort_differs_from_the_official_one_by_its_rounding_alone(name):
    ours, theirs = pair(name, torch.float32)
    ours.sort_channels((4,))
    theirs.re_organize_middle_weights(expand_ratio_stage=1)
    back = SuperNet(ours.space)
    load_official(back, theirs.state_dict())
    for i, layer in enumerate(ours.space.layers):
        mine, other = (importances(model.blocks[str(i)]) for model in (ours, back))
        cut = layer.hidden(4)
        rounding = layer.out_channels * EPS * mine.max()  # at most, of the two sums by which channels are sorted
        for section in (mine[:cut], mine[cut:], other[:cut]):
            assert (section.diff() <= rounding).all()
        assert (other[cut:].diff() <= 2**-6 + rounding).all()  # the spacing of single precision at 200,000
        torch.testing.assert_close(mine[cut:].sort().values, other[cut:].sort().values)


@by_name
@pytest.mark.parametrize("boundaries", [(), (4,)])
@torch.no_grad()
def test_sorting_leaves_the_largest_subnet_as_it_was(name, models, boundaries):
    (before, _), x = models, images(4)
    after = copy.deepcopy(before)
    after.sort_channels(boundaries)
    largest, smallest = before.space.largest, before.space.smallest
    for training in (False, True):
        assert_close(after.train(training)(x, largest), before.train(training)(x, largest))
        assert (after(x, smallest) - before(x, smallest)).abs().max() > 1e-3


# --- state dicts


def with_older_names(theirs):
    old = partial(re.sub, r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.")
    return {old(key): tensor for key, tensor in theirs.state_dict().items()}


def test_the_documented_way_there_and_back(tmp_path, monkeypatch):
    """docs/faithfulness.md, on a file with the names of the released one."""
    theirs = OFAMobileNetV3(ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": with_older_names(theirs)}, "ofa_mbv3_d234_e346_k357_w1.0")
    page = Path(__file__).parent.parent / "docs" / "faithfulness.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    namespace = {}
    exec(compile(example, page.name, "exec"), namespace)
    for key, tensor in namespace["official"].state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key]), key


@by_name
def test_wrong_state_dicts_are_input_errors(name):
    ours = SuperNet(SearchSpace(name))
    before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    good = official(name).state_dict()
    other = next(OFFICIAL[o] for o in OFFICIAL if o != name)(100, ks_list=[3, 5, 7]).state_dict()
    lacking = {key: tensor for key, tensor in good.items() if key != "classifier.linear.bias"}
    for state, said in (
        (other, "tensor"),
        (lacking, "'classifier.linear.bias' is missing"),
        (good | {"extra.weight": torch.zeros(1)}, "'extra.weight' is unexpected"),
        ({}, "missing"),
        (official(name, classes=10).state_dict(), "expected finite numbers, torch.float32 of shape (100, 1280)"),
    ):
        with pytest.raises(InputError) as error:
            load_official(ours, state)
        assert said in sentence(error)
    assert all(torch.equal(tensor, before[key]) for key, tensor in ours.state_dict().items())


# --- a warm start


@by_name
@pytest.mark.parametrize(("channels", "theirs"), [(3, 3), (1, 3), (3, 1)])
def test_warm_start_computes_what_the_origin_does_on_grey_images(name, channels, theirs, tmp_path):
    origin = random_supernet(SearchSpace(name, in_channels=theirs), dtype=torch.float64).eval()
    ours = SuperNet(SearchSpace(name, in_channels=channels)).double().eval()
    state = origin.state_dict()
    if theirs == 3:  # the released files' form
        network = official(name).double()
        network.load_state_dict(to_official(origin))
        state = {key.replace(".conv.", ".mobile_inverted_conv.", 1): x for key, x in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights")
    warm_start(ours, tmp_path / "weights")
    grey = torch.rand((4, 1, 32, 32), generator=torch.Generator().manual_seed(0)).double()
    for arch in corners(ours.space):
        expected = origin(grey.repeat(1, theirs, 1, 1), arch)
        assert_close(ours(grey.repeat(1, channels, 1, 1), arch), expected)


def test_warm_start_keeps_a_classifier_of_another_size_and_refuses_other_spaces(tmp_path):
    origin, ours = random_supernet(SearchSpace()), SuperNet(SearchSpace(classes=10))
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    (tmp_path / "noise").write_bytes(b"noise")
    torch.save([1], tmp_path / "list")
    torch.save(random_supernet(SearchSpace("proxylessnas")).state_dict(), tmp_path / "other")
    torch.save({name: x for name, x in origin.state_dict().items() if "blocks.19." not in name}, tmp_path / "part")
    for file in ("noise", "list", "other", "part", "nothing"):
        with pytest.raises(InputError, match="does not fit mobilenet_v3") as error:
            warm_start(ours, tmp_path / file)
        assert sentence(error)
    assert all(torch.equal(x, before[name]) for name, x in ours.state_dict().items())
    torch.save(origin.state_dict(), tmp_path / "weights")
    warm_start(ours, tmp_path / "weights")
    for name, x in ours.state_dict().items():
        assert torch.equal(x, before[name] if "classifier" in name else origin.state_dict()[name])


# --- initial weights


@by_name
def test_initial_weights_have_the_official_spread(name):
    ours = to_official(SuperNet(SearchSpace(name), generator=torch.Generator().manual_seed(0)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = official(name)
        init_models(theirs)
    for key, parameter in theirs.named_parameters():
        mine, n = ours[key].detach(), parameter.numel()
        if parameter.ndim < 2 or "matrix" in key:
            assert torch.equal(mine, parameter), key
        else:
            ratio = (mine.square().mean() / parameter.detach().square().mean()).item()
            assert abs(ratio - 1) < 5 * 2 / n**0.5, key  # five standard deviations of a ratio of two variances
