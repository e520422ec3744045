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
from rsslib.operators import Depthwise, compiled_loop, depthwise, pointwise, takes_compiled_loop
from rsslib.space import SearchSpace
from rsslib.supernet import SuperNet


def integers(shape, largest, generator=None):
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


def agree(compiled, plain, *shapes, seed=0):
    """Outputs, and gradients for a random direction, of a float32 function and of its float64 model."""
    generator = torch.Generator().manual_seed(seed)
    # 511 has 9 bits, which bfloat16 would round; sums of up to 1,280 products with 15 stay below float32's 2 ** 24
    exact = [integers(shape, 15 if i else 511, generator) for i, shape in enumerate(shapes)]
    exact[0] = exact[0].to(memory_format=torch.channels_last)
    rounded = [t.float().requires_grad_() for t in exact]
    ours, theirs = compiled(*rounded), plain(*(t.requires_grad_() for t in exact))
    direction = integers(theirs.shape, 15, generator)
    results = [ours, *torch.autograd.grad(ours, rounded, direction.float())]
    expected = [theirs, *torch.autograd.grad(theirs, exact, direction)]
    for a, b in zip(results, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a.double(), b)


def test_the_compiled_loop_takes_float32_on_a_cpu_only():
    assert compiled_loop() is not None
    assert takes_compiled_loop(torch.zeros(1)) and not takes_compiled_loop(torch.zeros(1, dtype=torch.float64))
    assert not takes_compiled_loop(torch.zeros(1, dtype=torch.bfloat16))
    assert not takes_compiled_loop(torch.zeros(1, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_compiled_loop(torch.zeros(1))


# --- depthwise convolutions


def padded(stride):
    return lambda x, w: F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2, groups=len(w))


@given(
    st.integers(1, 5), st.integers(1, 70), st.integers(1, 16), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3),
    st.integers(0, 99),
)  # fmt: skip
def test_depthwise_agrees_for_any_shape(n, channels, size, kernel, stride, seed):
    shapes = (n, channels, size, size), (channels, 1, kernel, kernel)
    for function in (Depthwise.apply, depthwise):
        agree(lambda x, w, function=function: function(x, w, stride), padded(stride), *shapes, seed=seed)


def test_depthwise_agrees_for_strided_weights_and_constant_inputs():
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
    agree(pointwise, lambda x, w, b=None: F.conv2d(x, w, b), *shapes)


def test_pointwise_adds_to_the_gradient_of_a_weight_that_says_so():
    x, weight = integers((5, 8, 2, 2), 15).float(), integers((12, 16, 1, 1), 15).float()
    total, bias = torch.ones_like(weight), integers((12,), 15).float().requires_grad_()
    leaf = weight[:, :8].detach().requires_grad_()
    leaf.grad, leaf.adds_in_place = total[:, :8], True
    x.requires_grad_()
    for _ in range(2):
        pointwise(x, leaf, bias).square().sum().backward()
    others = [tensor.detach().clone().requires_grad_() for tensor in (x, weight[:, :8], bias)]
    F.conv2d(*others).square().sum().backward()
    assert torch.equal(total[:, :8], 1 + 2 * others[1].grad)
    assert (total[:, 8:] == 1).all()
    for mine, other in ((x, others[0]), (bias, others[2])):
        assert torch.equal(mine.grad, 2 * other.grad)


def test_gradient_that_is_asked_for_changes_no_other():
    x, weight = integers((5, 8, 2, 2), 15).float(), integers((12, 8, 1, 1), 15).float().requires_grad_()
    pointwise(x, weight).sum().backward()
    before = weight.grad.clone()
    (found,) = torch.autograd.grad(pointwise(x, weight).sum(), [weight])
    assert torch.equal(found, before) and torch.equal(weight.grad, before)


# --- the compiled loop


def test_results_agree_without_numba(monkeypatch):
    def step():
        torch.manual_seed(0)
        x, w = integers((4, 8, 4, 4), 3).float(), [integers(s, 1).float() for s in ((8, 1, 5, 5), (8, 8, 1, 1))]
        for leaf in w:
            leaf.requires_grad_()
        y = pointwise(depthwise(x, w[0], 1), w[1])
        return [y, *torch.autograd.grad(y.square().sum(), w)]

    compiled = step()
    monkeypatch.setattr(operators, "compiled_loop", lambda: None)
    for mine, plain in zip(compiled, step(), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.long
def test_the_loop_compiles_in_two_processes_at_once_and_without_a_cache_folder(tmp_path):
    """Neither of the first two finds compiled code; the third has no folder to look in."""
    nowhere = "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
    load = "from rsslib.operators import compiled_loop; print(compiled_loop().nopython_signatures != [])"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for code in (load, load, nowhere + load)
    ]
    assert [p.communicate(timeout=300)[0].strip() for p in processes] == ["True"] * 3
    assert any(tmp_path.rglob("*.nbc"))


@torch.no_grad()
def test_evaluation_does_not_load_numba(monkeypatch):
    def fail():
        raise AssertionError("numba would be loaded")

    monkeypatch.setattr(operators, "compiled_loop", fail)
    space = SearchSpace("mobilenet_v3")
    supernet, x = SuperNet(space).eval(), torch.randn(2, 3, 32, 32)
    supernet(x, space.smallest)
    recalibrate(supernet, space.smallest, x)
