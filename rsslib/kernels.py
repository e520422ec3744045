"""A loop that PyTorch's operator takes several times as long for, compiled by numba for a CPU's training step.

Import this module where it is needed alone: that takes a second and, once a machine, a few more to compile. The code is
kept beside this file, or in the user's cache where that is read-only.
"""

from typing import Any

import numba
from numba import float32


def _compiled(function):
    images = float32[:, :, :, ::1]
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}}
    signatures: Any = [(images, images, float32[:, :, ::1], numba.int64)]
    try:
        return numba.njit(signatures, cache=True, **options)(function)
    except RuntimeError:  # no folder can be written
        return numba.njit(signatures, **options)(function)


@_compiled
def depthwise_weight_gradient(x, gradient, result, stride):
    """Fill `result` [k, k, C] with the gradient of the weight of a depthwise convolution with "same" padding.

    `x` [N, H, W, C] is the convolution's input, `gradient` [N, H', W', C] that of its output. The innermost loop runs
    along the channels, which lie side by side.
    """
    images, height, width, channels = x.shape
    kernel, padding = result.shape[0], result.shape[0] // 2
    result[:] = 0
    for n in range(images):
        for i in range(gradient.shape[1]):
            top = i * stride - padding
            for j in range(gradient.shape[2]):
                left, g = j * stride - padding, gradient[n, i, j]
                for k in range(max(0, -top), min(kernel, height - top)):
                    for m in range(max(0, -left), min(kernel, width - left)):
                        pixel, tap = x[n, top + k, left + m], result[k, m]
                        for c in range(channels):
                            tap[c] += pixel[c] * g[c]
