"""The compiled operators of a CPU's training step against PyTorch's own in float64.

The numbers are small integers. float32 holds all their products and sums, so results are equal to the last bit in any
order of the sums, on every processor.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rsslib import operators
from rsslib.evaluate import recalibrate
from rsslib.operators import Depthwise, Pointwise, has_kernels, kernels
from rsslib.space import SearchSpace
from rsslib.supernet import SuperNet, depthwise, pointwise

# every size of map, kernel and stride that the networks have, and odd ones
SIZES = [1, 2, 3, 4, 5, 8, 16]


def integers(shape, largest, generator=None):
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


def agree(compiled, plain, *shapes, seed=0):
    """Outputs, and gradients for a random direction, of a float32 function and of its float64 model."""
    generator = torch.Generator().manual_seed(seed)
    # 511 has 9 bits, which bfloat16 would round; sums of up to 768 products with 15 stay below float32's 2 ** 24
    exact = [integers(shape, 15 if i else 511, generator) for i, shape in enumerate(shapes)]
    exact[0] = exact[0].to(memory_format=torch.channels_last)
    rounded = [t.float().requires_grad_() for t in exact]
    ours, theirs = compiled(*rounded), plain(*(t.requires_grad_() for t in exact))
    direction = integers(theirs.shape, 15, generator)
    results = [ours, *torch.autograd.grad(ours, rounded, direction.float())]
    expected = [theirs, *torch.autograd.grad(theirs, exact, direction)]
    for a, b in zip(results, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a.double(), b)


def test_a_cpu_has_kernels_for_float32_alone():
    assert kernels() is not None
    assert has_kernels(torch.zeros(1)) and not has_kernels(torch.zeros(1, dtype=torch.float64))
    assert not has_kernels(torch.zeros(1, dtype=torch.bfloat16)) and not has_kernels(torch.zeros(1, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not has_kernels(torch.zeros(1))


# --- depthwise convolutions


def padded(stride):
    return lambda x, w: F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2, groups=len(w))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", SIZES)
def test_depthwise_agrees(size, kernel, stride):
    shapes = (3, 24, size, size), (24, 1, kernel, kernel)
    agree(lambda x, w: Depthwise.apply(x, w, stride), padded(stride), *shapes)
    agree(lambda x, w: depthwise(x, w, stride), padded(stride), *shapes)


@given(
    st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3),
    st.integers(0, 99),
)  # fmt: skip
def test_depthwise_agrees_for_any_shape(n, channels, size, kernel, stride, seed):
    shapes = (n, channels, size, size), (channels, 1, kernel, kernel)
    agree(lambda x, w: Depthwise.apply(x, w, stride), padded(stride), *shapes, seed=seed)


def test_depthwise_of_a_strided_kernel_and_without_a_gradient_for_its_input():
    x, w = integers((2, 8, 8, 8), 511).float(), integers((16, 1, 7, 7), 15).float()
    part = w[:8, :, 1:6, 1:6].requires_grad_()
    ours, plain = depthwise(x, part, 1), padded(1)(x, part)
    assert type(ours.grad_fn).__name__ == "DepthwiseBackward"
    direction = integers(plain.shape, 15).float()
    for mine, theirs in zip(*(torch.autograd.grad(y, part, direction) for y in (ours, plain)), strict=True):
        assert torch.equal(mine, theirs)


# --- 1x1 convolutions


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_pointwise_agrees(bias, size):
    shapes = ((3, 24, size, size), (40, 24, 1, 1), (40,))[: 2 + bias]
    for function in (lambda x, w, b=None: Pointwise.apply(x, w, b), pointwise):
        agree(function, lambda x, w, b=None: F.conv2d(x, w, b), *shapes)


def test_pointwise_adds_to_the_gradient_that_its_weight_has():
    x, weight = integers((5, 8, 2, 2), 15).float(), integers((12, 16, 1, 1), 15).float()
    total = torch.ones_like(weight)
    leaf = weight[:, :8].detach().requires_grad_()
    leaf.grad = total[:, :8]
    for _ in range(2):
        pointwise(x, leaf).square().sum().backward()
    other = weight[:, :8].clone().requires_grad_()
    F.conv2d(x, other).square().sum().backward()
    assert torch.equal(total[:, :8], 1 + 2 * other.grad)
    assert (total[:, 8:] == 1).all()


# --- without the compiled loops


def test_without_numba_pytorch_does_the_same(monkeypatch):
    def step():
        torch.manual_seed(0)
        x, w = integers((4, 8, 4, 4), 3).float(), [integers(s, 1).float() for s in ((8, 1, 5, 5), (8, 8, 1, 1))]
        for leaf in w:
            leaf.requires_grad_()
        y = pointwise(depthwise(x, w[0], 1), w[1])
        return [y, *torch.autograd.grad(y.square().sum(), w)]

    compiled = step()
    monkeypatch.setattr(operators, "kernels", lambda: None)
    for mine, plain in zip(compiled, step(), strict=True):
        assert torch.equal(mine, plain)


def test_kernels_load_in_two_processes_at_once_and_where_nothing_can_be_kept(tmp_path):
    """Neither of the two finds compiled code; the third has no folder to look in."""
    nowhere = "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
    load = "from rsslib import kernels; print(kernels.depthwise_weight_gradient.nopython_signatures != [])"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for code in (load, load, nowhere + load)
    ]
    assert [p.communicate(timeout=300)[0].strip() for p in processes] == ["True"] * 3
    assert any(tmp_path.rglob("*.nbc"))


@torch.no_grad()
def test_evaluation_does_not_load_kernels(monkeypatch):
    def fail():
        raise AssertionError("numba would be loaded")

    monkeypatch.setattr(operators, "kernels", fail)
    space = SearchSpace("mobilenet_v3")
    supernet, x = SuperNet(space).eval(), torch.randn(2, 3, 32, 32)
    supernet(x, space.smallest)
    recalibrate(supernet, space.smallest, x)
