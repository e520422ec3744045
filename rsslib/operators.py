"""Convolutions of the supernet, faster than PyTorch's on small feature maps, forward and backward.

Tensors are [N, C, H, W] in channels-last memory.
"""

import pickle
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def pooled(x: Tensor) -> Tensor:
    """Mean over each feature map, [N, C, 1, 1]."""
    if x.shape[2:] == (1, 1):
        return x
    return x.mean((2, 3), keepdim=True)


def centre(weight: Tensor, size: int) -> Tensor:
    """Central taps [C, 1, size, size] of a kernel [C, 1, k, k], or all taps if k <= size; both sizes are odd."""
    excess = (weight.shape[-1] - size) // 2
    return F.pad(weight, [-excess] * 4) if excess > 0 else weight  # takes half the time of two slices backward


# --- 1x1 convolutions


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution of x by `weight` [outputs, C, 1, 1] as a matrix product.

    On a CPU it takes a third to a half less time than `F.conv2d`. The gradient of a leaf with `adds_in_place`
    is added to its `grad` while it is computed, which saves one kernel on a GPU.
    """
    if _adds_in_place(x, weight):
        return Pointwise.apply(x, weight, bias)
    y = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return y.permute(0, 3, 1, 2)


def _adds_in_place(x: Tensor, weight: Tensor) -> bool:
    if not (getattr(weight, "adds_in_place", False) and torch.is_grad_enabled()):
        return False
    kind = x.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return weight.grad is not None and weight.dtype == x.dtype and not cast


class Pointwise(torch.autograd.Function):
    """1x1 convolution that adds the weight's gradient to `weight.grad` while computing it, and returns no gradient.

    Use it only for leaves with `adds_in_place`: for other tensors, `torch.autograd.grad` must not change `grad`.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        n, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        matrix = weight.flatten(1)
        ctx.save_for_backward(rows, weight)
        ctx.shape = n, height, width
        y = rows @ matrix.T if bias is None else torch.addmm(bias, rows, matrix.T)
        return y.view(n, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        wants_x, _, wants_bias = ctx.needs_input_grad
        gradient = gradient.permute(0, 2, 3, 1).reshape(len(rows), -1)
        weight.grad.flatten(1).addmm_(gradient.T, rows)
        dx = dbias = None
        if wants_x:
            dx = gradient @ weight.flatten(1)
            dx = dx.view(*ctx.shape, -1).permute(0, 3, 1, 2)
        if wants_bias:
            dbias = gradient.sum(0)
        return dx, None, dbias


# --- depthwise convolutions


def depthwise(x: Tensor, weight: Tensor, stride: int, bias: Tensor | None = None) -> Tensor:
    """Depthwise convolution of x by `weight` [C, 1, k, k], k odd, with "same" padding.

    Taps farther from the centre than the map is wide meet only padding and have no gradient, so they are cut off. On
    maps of 2 x 2 or 1 x 1 pixels, where most layers work, 9 taps or 1 tap of a 7 x 7 kernel touch data.
    """
    weight = centre(weight, 2 * x.shape[-1] - 1)
    slow = weight.shape[-1] > 3 or x.shape[-1] < 8  # where PyTorch's gradient of the weight is
    if slow and bias is None and weight.requires_grad and takes_compiled_loop(x):
        return Depthwise.apply(x, weight, stride)
    return _convolve(x, weight, stride, bias)


def _convolve(x: Tensor, weight: Tensor, stride: int, bias: Tensor | None = None) -> Tensor:
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))


def takes_compiled_loop(x: Tensor) -> bool:
    """Return whether the compiled loop can use x: float32 on a CPU, with gradients and numba, without torch.func."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and not torch._C._are_functorch_transforms_active()
    recorded = torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return plain and recorded and compiled_loop() is not None


class Depthwise(torch.autograd.Function):
    """Depthwise convolution whose weight gradient is computed by the compiled loop."""

    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _convolve(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        channels, _, kernel, _ = weight.shape
        stride, padding = [ctx.stride] * 2, [kernel // 2] * 2
        geometry = (stride, padding, [1, 1], False, [0, 0], channels)
        wanted = [ctx.needs_input_grad[0], False, False]
        dx, _, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, wanted)
        dweight = torch.empty(kernel, kernel, channels)
        compiled_loop()(_to_numpy(x), _to_numpy(gradient), dweight.numpy(), ctx.stride)
        return dx, dweight.permute(2, 0, 1)[:, None], None


def _to_numpy(images: Tensor) -> np.ndarray:
    """Return the values as a NumPy array [N, H, W, C]."""
    return images.detach().permute(0, 2, 3, 1).contiguous().numpy()


@cache
def compiled_loop() -> Any:
    """Return `_weight_gradient` compiled by numba; None if numba cannot be imported, or its compiler is disabled.

    The first call imports numba, which takes a second, and on a new machine compiles for a few seconds more. The code
    is kept beside this file, or in the user's cache if that folder is read-only.
    """
    try:
        import numba
    except ImportError:
        return None
    if getattr(numba.config, "DISABLE_JIT", 0):
        return None
    images, taps = numba.float32[:, :, :, ::1], numba.float32[:, :, ::1]
    signature = (images, images, taps, numba.int64)
    compiler: Any = partial(numba.njit, [signature], nogil=True, fastmath={"contract"})
    try:
        return compiler(cache=True)(_weight_gradient)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):  # no folder, or a damaged file
        return compiler()(_weight_gradient)


def _weight_gradient(x, gradient, result, stride):
    """Fill `result` [k, k, C] with the weight gradient of a depthwise convolution with "same" padding.

    `x` [N, H, W, C] is the input, `gradient` [N, H', W', C] that of the output. The innermost loop runs over channels,
    which are contiguous, for four images at once, so that each tap is read and written once for all four.
    """
    images, height, width, channels = x.shape
    kernel = result.shape[0]
    padding, last = kernel // 2, images - 1
    nothing = np.zeros(channels, np.float32)  # stands for images beyond the last
    result[:] = 0
    for a in range(0, images, 4):
        b = min(a + 1, last)
        c = min(a + 2, last)
        d = min(a + 3, last)
        for i in range(gradient.shape[1]):
            top = i * stride - padding
            for j in range(gradient.shape[2]):
                left = j * stride - padding
                ga = gradient[a, i, j]
                gb = gradient[b, i, j] if b > a else nothing
                gc = gradient[c, i, j] if c > b else nothing
                gd = gradient[d, i, j] if d > c else nothing
                for k in range(max(0, -top), min(kernel, height - top)):
                    taps = result[k]
                    row = top + k
                    xa, xb = x[a, row], x[b, row]
                    xc, xd = x[c, row], x[d, row]
                    for m in range(max(0, -left), min(kernel, width - left)):
                        tap = np.uint64(m)  # unsigned is faster: it never counts from the end
                        p = np.uint64(left + m)
                        for s in range(channels):
                            taps[tap, s] += xa[p, s] * ga[s] + xb[p, s] * gb[s] + xc[p, s] * gc[s] + xd[p, s] * gd[s]
