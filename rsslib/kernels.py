"""A loop that PyTorch's operator takes several times as long for, compiled by numba for a CPU's training step.

Import this module where it is needed alone: that takes a second and, once a machine, a few more to compile. The code is
kept beside this file, or in the user's cache where that is read-only.
"""

from typing import Any

import numba
import numpy as np
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
    along the channels, which lie side by side, for four images at once, so that a tap is read and written once for all.
    """
    images, height, width, channels = x.shape
    kernel, padding, last = result.shape[0], result.shape[0] // 2, images - 1
    nothing = np.zeros(channels, np.float32)  # in place of images behind the last
    result[:] = 0
    for a in range(0, images, 4):
        b, c, d = min(a + 1, last), min(a + 2, last), min(a + 3, last)
        for i in range(gradient.shape[1]):
            top = i * stride - padding
            for j in range(gradient.shape[2]):
                left, ga = j * stride - padding, gradient[a, i, j]
                gb = gradient[b, i, j] if b > a else nothing
                gc = gradient[c, i, j] if c > b else nothing
                gd = gradient[d, i, j] if d > c else nothing
                for k in range(max(0, -top), min(kernel, height - top)):
                    xa, xb, xc, xd = x[a, top + k], x[b, top + k], x[c, top + k], x[d, top + k]
                    taps = result[k]
                    for m in range(max(0, -left), min(kernel, width - left)):
                        tap, p = np.uint64(m), np.uint64(left + m)  # unsigned is faster: it never counts from the end
                        for s in range(channels):
                            taps[tap, s] += xa[p, s] * ga[s] + xb[p, s] * gb[s] + xc[p, s] * gc[s] + xd[p, s] * gd[s]
