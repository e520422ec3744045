"""rsslib.supernet: elastic layers, extraction, and what a call may change."""

from dataclasses import replace

import pytest
import torch
from helpers import assert_close, corners, idle_from, random_archs, random_supernet, sentence
from scipy import stats
from torch import nn

from rsslib.backbones import BACKBONES
from rsslib.errors import InputError
from rsslib.space import SearchSpace
from rsslib.supernet import Network, SuperNet, batch_norm_training, kernel_weight

SPACES = {name: SearchSpace(name) for name in BACKBONES}

by_name = pytest.mark.parametrize("name", SPACES)


@pytest.fixture(scope="module")
def supernets():
    return {name: random_supernet(space, dtype=torch.float64) for name, space in SPACES.items()}


@pytest.fixture
def supernet(supernets, name):
    """A supernet in eval mode, with every weight and statistic moved; the test gets it as it was made."""
    state = {key: tensor.clone() for key, tensor in supernets[name].state_dict().items()}
    yield supernets[name].eval()
    supernets[name].load_state_dict(state)


@pytest.fixture
def images():
    return torch.randn((8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).double()


def changed(before, module):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# --- extraction


@by_name
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_an_extracted_network_gives_the_logits_of_the_subnet(name, supernet, images, training):
    supernet.train(training)
    for arch in [*corners(supernet.space), *random_archs(supernet.space, 10)]:
        network = supernet.extract(arch)
        assert network.training == training
        assert_close(network(images), supernet(images, arch), arch)


@by_name
def test_an_extracted_network_is_plain(name, supernet):
    arch = random_archs(supernet.space, 1)[0]
    network = supernet.extract(arch, dropout=0.25)
    assert type(network) is Network and network.dropout.p == 0.25
    assert not any("kernel_" in key for key in network.state_dict())
    used = [i for i, *_ in supernet.space.active(arch)]
    assert list(network.blocks) == [str(i) for i in used]
    for i, block in zip(used, network.blocks.values(), strict=True):
        assert isinstance(block.conv_dw, nn.Conv2d) and block.conv_dw.kernel_size == (arch.kernel[i],) * 2
        hidden = supernet.space.layers[i].hidden(arch.expand[i])
        assert block.conv_pw.out_channels == block.conv_dw.groups == block.conv_pwl.in_channels == hidden


@by_name
def test_an_extracted_network_shares_no_memory_with_the_supernet(name, supernet, images):
    network = supernet.extract(supernet.space.largest)
    before = copy_of(supernet)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    assert not changed(before, supernet)


def test_a_space_of_other_settings_extracts_as_well(images):
    space = SearchSpace(kernels=(7, 3), expands=(6, 2), depths=(3, 1), classes=7)
    supernet = random_supernet(space, dtype=torch.float64)
    assert "blocks.0.kernel_7to3" in dict(supernet.named_parameters())
    with torch.no_grad():
        for arch in [*corners(space), *random_archs(space, 3)]:
            assert_close(supernet.extract(arch)(images), supernet(images, arch), arch)


# --- weights of a subnet


@pytest.fixture
def layer_weights():
    generator = torch.Generator().manual_seed(1)
    shapes = {"conv_dw.weight": (6, 1, 7, 7), "kernel_7to5": (25, 25), "kernel_5to3": (9, 9)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def test_small_kernels_are_transformed_centres_of_the_next_larger(layer_weights):
    w7, m75, m53 = (layer_weights[n].numpy() for n in ("conv_dw.weight", "kernel_7to5", "kernel_5to3"))
    w7 = w7[:, 0]
    w5 = (m75 @ w7[:, 1:6, 1:6].reshape(6, 25, 1)).reshape(6, 5, 5)
    w3 = (m53 @ w5[:, 1:4, 1:4].reshape(6, 9, 1)).reshape(6, 3, 3)
    for kernel, expected in ((7, w7), (5, w5), (3, w3)):
        result = kernel_weight(layer_weights, "", kernel, (3, 5, 7))
        assert result.shape == (6, 1, kernel, kernel)
        torch.testing.assert_close(result[:, 0], torch.from_numpy(expected))


def test_width_takes_the_first_channels_of_every_tensor(mobilenet):
    supernet = SuperNet(mobilenet)
    tensors = dict(supernet.named_parameters()) | dict(supernet.named_buffers())
    part = supernet.subnet(mobilenet.uniform(3, 4, 4), tensors)
    for key, shape in {  # layer 5 has 40 input channels, 160 of 240 hidden ones, 40 of 64 squeezed ones
        "conv_pw.weight": (160, 40, 1, 1), "conv_pwl.weight": (40, 160, 1, 1),
        "bn1.weight": (160,), "bn2.running_var": (160,), "bn3.bias": (40,),
        "se.conv_reduce.weight": (40, 160, 1, 1), "se.conv_reduce.bias": (40,),
        "se.conv_expand.weight": (160, 40, 1, 1), "se.conv_expand.bias": (160,),
    }.items():  # fmt: skip
        whole, taken = tensors[f"blocks.5.{key}"], part[f"blocks.5.{key}"]
        assert taken.shape == shape and taken.data_ptr() == whole.data_ptr()
        assert torch.equal(taken, whole[tuple(map(slice, shape))])


@by_name
def test_layers_beyond_the_depth_influence_nothing(name, supernet, images):
    space = supernet.space
    for arch, other in zip(random_archs(space, 4), random_archs(space, 4, seed=1), strict=True):
        with torch.no_grad():
            expected = supernet(images, arch)
            assert torch.equal(supernet(images, idle_from(space, arch, other)), expected)
            used = {str(i) for i, *_ in space.active(arch)}
            state = copy_of(supernet)
            for key, tensor in supernet.state_dict().items():
                if key.startswith("blocks.") and key.split(".")[1] not in used and tensor.is_floating_point():
                    tensor.fill_(torch.nan)
            assert torch.equal(supernet(images, arch), expected)
            supernet.load_state_dict(state)


@by_name
def test_a_subnet_depends_on_each_of_its_settings(name, supernet, images):
    space = supernet.space
    arch = space.uniform(5, 4, 4)
    with torch.no_grad():
        images = images[:2]
        expected = supernet(images, arch)
        for what, value in (("kernel", 3), ("kernel", 7), ("expand", 3), ("expand", 6), ("depth", 3)):
            settings = getattr(arch, what)
            for i in range(len(settings)):
                other = replace(arch, **{what: settings[:i] + (value,) + settings[i + 1 :]})
                distance = (supernet(images, other) - expected).abs().max()
                assert distance > 1e-3, (what, i, value)


@by_name
@pytest.mark.parametrize("wrong", ["kernel", "expand", "depth"])
def test_an_architecture_outside_the_space_is_an_input_error(name, supernet, images, wrong):
    arch = replace(supernet.space.largest, **{wrong: (1,) * len(getattr(supernet.space.largest, wrong))})
    for use in (lambda: supernet(images, arch), lambda: supernet.extract(arch)):
        with pytest.raises(InputError) as error:
            use()
        assert f"{wrong} is (1, " in sentence(error)


# --- traces


@by_name
def test_eval_mode_leaves_no_trace(name, supernet, images):
    before = copy_of(supernet)
    for arch in corners(supernet.space):
        supernet(images, arch)
        supernet.extract(arch)
    assert not changed(before, supernet)


# --- convolutions


# --- dropout


@pytest.fixture(scope="module")
def bare():
    """A supernet whose logits are the features that dropout acts on."""
    space = SearchSpace("proxylessnas", classes=1280)
    supernet = SuperNet(space, 0.3, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        supernet.classifier.weight.copy_(torch.eye(1280))
    return supernet


@torch.no_grad()
def test_dropout_zeroes_its_share_and_scales_the_rest(bare, images):
    arch = bare.space.middle
    weights = bare.subnet(arch, dict(bare.named_parameters()))
    norm = batch_norm_training(bare.subnet(arch, {k: b.clone() for k, b in bare.named_buffers()}))
    features = bare.run(images, arch, weights, norm)
    seen = bare.run(images, arch, weights, norm, 0.3, torch.Generator().manual_seed(0))
    alive = features > 1e-6
    dropped = alive & (seen == 0)
    torch.testing.assert_close(seen[alive & ~dropped], features[alive & ~dropped] / 0.7)
    assert stats.binomtest(int(dropped.sum()), int(alive.sum()), 0.3).pvalue > 1e-3
    again = bare.run(images, arch, weights, norm, 0.3, torch.Generator().manual_seed(0))
    other = bare.run(images, arch, weights, norm, 0.3, torch.Generator().manual_seed(1))
    assert torch.equal(seen, again) and not torch.equal(seen, other)


# --- initial weights


@by_name
def test_weights_start_as_cai_et_al_start_them(name):
    supernet = SuperNet(SPACES[name], generator=torch.Generator().manual_seed(0))
    normal = []
    for key, parameter in supernet.named_parameters():
        values = parameter.detach().flatten()
        if "kernel_" in key:
            assert torch.equal(parameter, torch.eye(len(parameter)))
        elif key.endswith(".bias"):
            assert not values.any()
        elif ".bn" in key:
            assert (values == 1).all()
        elif key == "classifier.weight":
            bound = parameter.shape[1] ** -0.5
            assert stats.kstest(values.numpy() / bound, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        else:
            channels, _, height, width = parameter.shape
            normal.append(values / (2 / (height * width * channels)) ** 0.5)
            assert float(normal[-1].square().mean()) == pytest.approx(1, abs=5 * (2 / len(values)) ** 0.5), key
    some = torch.cat([values[:400] for values in normal]).numpy()
    assert stats.kstest(some, "norm").pvalue > 1e-3
    for key, buffer in supernet.named_buffers():
        assert key.endswith("num_batches_tracked") or (buffer == key.endswith("var")).all()


# --- normalisation by given statistics
