"""Differentiable operators of a training step, where they are faster than PyTorch's."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@cache
def kernels():
    """The module of compiled loops, loaded when first needed; None where numba cannot be imported."""
    try:
        from rsslib import kernels
    except ImportError:
        return None
    return kernels


def has_kernels(x: Tensor) -> bool:
    """Whether compiled loops take x: float32 numbers on a CPU, while gradients are recorded."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return plain and torch.is_grad_enabled() and kernels() is not None


def adds_in_place(x: Tensor, weight: Tensor) -> bool:
    """Whether `Pointwise` on x can add to the gradient of `weight`: one is there, and no autocast changes types."""
    if not (weight.requires_grad and weight.is_leaf and weight.grad is not None and torch.is_grad_enabled()):
        return False
    kind = x.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.dtype == weight.dtype and not cast


class Pointwise(torch.autograd.Function):
    """1x1 convolution as matrix products; adds the weight's gradient to its `grad`, if it has one, as it is computed.

    So neither a tensor for the gradient is made, nor read again to be added.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        n, channels, height, width = x.shape
        x, matrix = x.permute(0, 2, 3, 1).reshape(-1, channels), weight.flatten(1)
        ctx.save_for_backward(x, weight)
        ctx.shape = n, height, width
        y = x @ matrix.T if bias is None else torch.addmm(bias, x, matrix.T)
        return y.view(n, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, _, wants_bias = ctx.needs_input_grad
        gradient = gradient.permute(0, 2, 3, 1).reshape(len(x), -1)
        dx = (gradient @ weight.flatten(1)).view(*ctx.shape, -1).permute(0, 3, 1, 2) if wants_x else None
        dbias = gradient.sum(0) if wants_bias else None
        if weight.is_leaf and weight.grad is not None:
            weight.grad.flatten(1).addmm_(gradient.T, x)
            return dx, None, dbias
        return dx, (gradient.T @ x)[:, :, None, None], dbias


class Depthwise(torch.autograd.Function):
    """Depthwise convolution with "same" padding, on whose weight's gradient PyTorch spends a fifth of a step."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        channels, kernel, stride = len(weight), weight.shape[-1], ctx.stride
        settings = [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], channels
        wanted = [ctx.needs_input_grad[0], False, False]
        dx = torch.ops.aten.convolution_backward(gradient, x, weight, None, *settings, wanted)[0]
        dweight = torch.empty(kernel, kernel, channels)
        images = (tensor.permute(0, 2, 3, 1).contiguous().numpy() for tensor in (x, gradient))
        kernels().depthwise_weight_gradient(*images, dweight.numpy(), stride)
        return dx, dweight.permute(2, 0, 1)[:, None], None
