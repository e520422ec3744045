"""A subnet selected by multiplication: masks for channels, matrices for kernels."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rsslib.space import Arch, SearchSpace


class Masks:
    """Selects a subnet by multiplication, so that one computation serves all subnets.

    With gamma and beta of a layer's first two batch norms zeroed beyond the subnet's width, these channels are zero
    from there on (ReLU, ReLU6 and h-swish map 0 to 0), and so are the gradients of all weights that only they use.
    The same goes for squeeze-excite's middle channels. A layer that the subnet does not have is one of width 0 whose
    last batch norm is zeroed too, so that its residual connection alone is left. A smaller kernel is a linear map of
    the largest one's taps, so that embedded in the largest size it is a product with one matrix [49, 49].
    """

    def __init__(self, space: SearchSpace, like: Tensor):
        self.space = space
        self.dtype = like.dtype
        device = like.device
        self.kernels = sorted(space.kernels, reverse=True)
        self.expands = sorted(space.expands)
        tables: tuple[list[list[int]], ...] = ([], [], [])
        for layer in space.layers:
            hidden = [layer.hidden(expand) for expand in self.expands]
            squeezed = [layer.squeezed(expand) * layer.squeeze_excite for expand in self.expands]
            outputs = [layer.out_channels] * len(self.expands)
            for table, row in zip(tables, (hidden, squeezed, outputs), strict=True):
                table.append([0, *row])
        self.tables = [torch.tensor(table, device=device) for table in tables]  # channels in use, by layer and width
        self.sizes = [[max(row) for row in table] for table in tables]
        self.numbers = [torch.arange(max(sizes), device=device) for sizes in self.sizes]
        self.kernel_numbers = torch.arange(len(self.kernels), device=device)
        self.centres = [self._centre(large, small).to(device) for large, small in pairwise(self.kernels)]
        largest = self.kernels[0]
        taps = torch.eye(largest**2, dtype=self.dtype, device=device)
        # [s * s, 49]: where the taps of each size lie among those of the largest
        self.embedded = [taps[self._centre(largest, small).to(device)] for small in self.kernels]

    @staticmethod
    def _centre(large: int, small: int) -> Tensor:
        """int64 [small * small]: the flat positions of the central taps of a larger kernel."""
        cut = (large - small) // 2
        taps = torch.arange(large**2).view(large, large)
        inside = slice(cut, large - cut)
        return taps[inside, inside].flatten()

    def choices(self, archs: list[Arch]) -> Tensor:
        """int64 [archs, 2, layers]: numbers of kernel sizes, from the largest, and of widths, from the smallest.

        Widths count from 1; 0 stands for a layer that is not there.
        """
        rows, n = self.space.to_rows(archs), self.space.n_layers
        kernels = (rows[:, :n, None] == self.kernels).argmax(-1)
        widths = 1 + (rows[:, n : 2 * n, None] == self.expands).argmax(-1)
        chosen = np.stack([kernels, widths], 1)
        return torch.from_numpy(chosen * self.space.active_mask(rows)[:, None])

    def channels(self, widths: Tensor) -> list[list[Tensor]]:
        """For widths [layers]: masks of each layer's hidden channels, of its squeeze-excite's middle and its output."""
        masks = []
        for table, sizes, numbers in zip(self.tables, self.sizes, self.numbers, strict=True):
            used = table.gather(1, widths[:, None])
            rows = (numbers < used).to(self.dtype)
            masks.append([row[:n] for row, n in zip(rows, sizes, strict=True)])
        return masks

    def taps(self, kernels: Tensor, matrices: list[Tensor]) -> Tensor:
        """[layers, 49, 49]: what multiplies each layer's largest kernel, given kernels [layers].

        `matrices` are the layers' learned ones, stacked, for each next smaller size: [layers, 25, 25], [layers, 9, 9].
        """
        chosen = (kernels[:, None] == self.kernel_numbers).to(self.dtype)
        chosen = chosen[:, :, None, None]
        chain = self.embedded[0].expand(len(kernels), -1, -1)
        total = chosen[:, 0] * chain
        for i, (centre, matrix) in enumerate(zip(self.centres, matrices, strict=True), 1):
            chain = chain.index_select(2, centre) @ matrix.mT
            total = total + chosen[:, i] * (chain @ self.embedded[i])
        return total
