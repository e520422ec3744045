"""Backbones and their elastic search spaces: which subnets exist, how large they are, how to draw them.

An architecture is a value, `Arch`. Where there are many, they are the rows of one int8 array
[n, 2 * layers + stages]: kernel sizes, then expand ratios, then depths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from rsslib.backbones import BACKBONES, Backbone, LayerSpec
from rsslib.errors import InputError, check_number, choose

RESOLUTION = 32  # pixels; the study trains and tests every dataset at 32 x 32
LARGEST_RESOLUTION = 224


@dataclass(frozen=True)
class Arch:
    """One subnet: kernel size and expand ratio for each elastic layer, depth for each elastic stage.

    Layers beyond a stage's depth keep their place in the tuples and are ignored by the network.
    """

    kernel: tuple[int, ...]
    expand: tuple[int, ...]
    depth: tuple[int, ...]


class SearchSpace:
    """All subnets of a backbone (Shipard et al. 2022, section 6.1).

    Sizes are counted for `in_channels` x `resolution` x `resolution` images and `classes` classes. The defaults are
    those of CIFAR-100, which define the study's buckets for every dataset, so that one population serves all.
    `resolution` is 32 to 224 pixels in multiples of 32. Raises InputError for a value that cannot be used.
    """

    def __init__(
        self, backbone: str | Backbone = "mobilenet_v3", kernels: Sequence[int] = (3, 5, 7),
        expands: Sequence[int] = (3, 4, 6), depths: Sequence[int] = (2, 3, 4), in_channels: int = 3,
        classes: int = 100, resolution: int = RESOLUTION,
    ):  # fmt: skip
        if not isinstance(backbone, Backbone):
            backbone = BACKBONES[choose(backbone, BACKBONES, "backbone")]
        self.backbone = backbone
        self.kernels = _settings("kernels", kernels, (3, 5, 7))
        self.expands = _settings("expands", expands, range(1, 13))
        most = max(stage.layers for stage in backbone.stages)
        self.depths = _settings("depths", depths, range(1, most + 1))
        check_number(in_channels, "in_channels", 1, whole=True)
        check_number(classes, "classes", 1, whole=True)
        self.in_channels, self.classes, self.resolution = in_channels, classes, check_resolution(resolution)
        self.layers = tuple(self._layers())
        self.n_layers = len(self.layers)
        self.n_stages = sum(stage.elastic_depth for stage in backbone.stages)

    def _layers(self) -> Iterator[LayerSpec]:
        channels, size = self.backbone.first_channels, self.resolution // 2
        for s, stage in enumerate(self.backbone.stages):
            for i in range(max(self.depths) if stage.elastic_depth else stage.layers):
                stride = stage.stride if i == 0 else 1
                yield LayerSpec(s, i, channels, stage.channels, stride, stage.act, stage.squeeze_excite, size)
                channels, size = stage.channels, -(-size // stride)

    @cached_property
    def reference(self) -> "SearchSpace":
        """The same space for 3 channels and 100 classes: the sizes by which the study names its buckets."""
        return SearchSpace(self.backbone, self.kernels, self.expands, self.depths, resolution=self.resolution)

    @cached_property
    def growth(self) -> float:
        """How many times as far apart in MACs the smallest and the largest subnet are as at the study's resolution."""
        spans = [space.macs(space.largest) - space.macs(space.smallest) for space in (self.reference, self._study)]
        return spans[0] / spans[1]

    @cached_property
    def buckets(self) -> tuple[float, ...]:
        """Population sizes in millions of MACs: the study's, and at a higher resolution those that lie as far between
        the smallest and the largest subnet, rounded."""
        if self.resolution == RESOLUTION:
            return self.backbone.buckets
        here, study = (space.macs(space.smallest) / 1e6 for space in (self.reference, self._study))
        sizes = [here + self.growth * (bucket - study) for bucket in self.backbone.buckets]
        return tuple(round(size) if size >= 10 else round(size, 1) for size in sizes)

    @property
    def half_bucket(self) -> float:
        """Millions of MACs that a bucket reaches to either side: 0.5, and more where the buckets lie farther apart."""
        return 0.5 * self.growth

    @cached_property
    def _study(self) -> "SearchSpace":
        return SearchSpace(self.backbone, self.kernels, self.expands, self.depths)

    @property
    def cardinality(self) -> int:
        """Number of distinct networks; settings of layers beyond a stage's depth do not count."""
        a_layer = len(self.kernels) * len(self.expands)
        total = 1
        for stage in self.backbone.stages:
            depths = self.depths if stage.elastic_depth else (stage.layers,)
            total *= sum(a_layer**depth for depth in depths)
        return total

    # --- single architectures

    def uniform(self, kernel: int, expand: int, depth: int) -> Arch:
        """The architecture with the same settings everywhere."""
        return Arch((kernel,) * self.n_layers, (expand,) * self.n_layers, (depth,) * self.n_stages)

    @property
    def smallest(self) -> Arch:
        return self.uniform(min(self.kernels), min(self.expands), min(self.depths))

    @property
    def middle(self) -> Arch:
        """The middle setting of each dimension (k5 e4 d3 in the study)."""
        return self.uniform(*(sorted(s)[len(s) // 2] for s in (self.kernels, self.expands, self.depths)))

    @property
    def largest(self) -> Arch:
        return self.uniform(max(self.kernels), max(self.expands), max(self.depths))

    def validate(self, arch: Arch) -> Arch:
        """Return `arch`; raise InputError if it does not lie in this space."""
        for what, values, settings, n in (
            ("kernel", arch.kernel, self.kernels, self.n_layers),
            ("expand", arch.expand, self.expands, self.n_layers),
            ("depth", arch.depth, self.depths, self.n_stages),
        ):
            if not isinstance(values, tuple):
                raise InputError(f"architecture outside the space: {what} is {values!r}, expected a tuple of {n}")
            if len(values) != n:
                raise InputError(
                    f"architecture outside the space: {what} has {len(values)} values, {self.backbone.name} needs {n}"
                )
            for i, value in enumerate(values):
                if type(value) is not int or value not in settings:  # NumPy's neither become JSON nor grow
                    kind = "" if type(value) is int else f" {type(value).__name__}"
                    raise InputError(
                        f"architecture outside the space: {what}[{i}] is{kind} {value}, expected one of "
                        f"{list(settings)}" + " as int" * bool(kind)
                    )
        return arch

    def active(self, arch: Arch) -> Iterator[tuple[int, LayerSpec, int, int]]:
        """Yield (layer number, layer, kernel size, expand ratio) of the layers that `arch` uses, in order."""
        depths = iter(arch.depth)
        depth = [next(depths) if stage.elastic_depth else stage.layers for stage in self.backbone.stages]
        for i, layer in enumerate(self.layers):
            if layer.index < depth[layer.stage]:
                yield i, layer, arch.kernel[i], arch.expand[i]

    # --- many architectures, as rows

    def to_rows(self, archs: Sequence[Arch]) -> np.ndarray:
        """int8 [n, 2 * layers + stages]; raises InputError for an architecture outside the space."""
        rows = [(*a.kernel, *a.expand, *a.depth) for a in map(self.validate, archs)]
        return np.array(rows, dtype=np.int8).reshape(len(rows), 2 * self.n_layers + self.n_stages)

    def to_arch(self, row: np.ndarray) -> Arch:
        return Arch(*(tuple(part.tolist()) for part in self._split(np.asarray(row))))

    def _split(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        n = self.n_layers
        return rows[..., :n], rows[..., n : 2 * n], rows[..., 2 * n :]

    def sample(
        self, n: int, rng: np.random.Generator, kernels: Sequence[int] | None = None,
        expands: Sequence[int] | None = None, depths: Sequence[int] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Draw `n` architectures, every setting independent and uniform (Algorithm 1), optionally from fewer values.

        Returns int8 [n, 2 * layers + stages].
        """
        columns = []
        for chosen, (own, width) in zip((kernels, expands, depths), self.columns, strict=True):
            settings = np.asarray(own if chosen is None else chosen, dtype=np.int8)
            columns.append(settings[rng.integers(len(settings), size=(n, width), dtype=np.int8)])
        return np.concatenate(columns, axis=1)

    def sample_arch(self, rng: np.random.Generator, **subsets: Sequence[int]) -> Arch:
        """Draw one architecture; see `sample`."""
        return self.to_arch(self.sample(1, rng, **subsets)[0])

    @property
    def columns(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Of a row's kernel sizes, expand ratios and depths, in this order: the settings, and how many columns."""
        return (self.kernels, self.n_layers), (self.expands, self.n_layers), (self.depths, self.n_stages)

    def used(self, rows: np.ndarray) -> np.ndarray:
        """bool [n, 2 * layers + stages]: which settings count; those of layers that a subnet does not have do not."""
        mask = self.active_mask(rows)
        return np.concatenate([mask, mask, np.ones((len(rows), self.n_stages), bool)], axis=1)

    def active_mask(self, rows: np.ndarray) -> np.ndarray:
        """bool [n, layers]: which layers each architecture uses."""
        depths = self._split(rows)[2]
        columns, elastic = [], 0
        for stage in self.backbone.stages:
            if stage.elastic_depth:
                columns.append(np.arange(max(self.depths)) < depths[:, elastic, None])
                elastic += 1
            else:
                columns.append(np.ones((len(rows), stage.layers), dtype=bool))
        return np.concatenate(columns, axis=1)

    def macs(self, archs: Arch | np.ndarray) -> Any:
        """Multiply-accumulates of convolutions and linear layers for one image ("FLOPs" in the paper).

        An `Arch` gives an int; rows [n, 2 * layers + stages] give int64 [n]. A table look-up, not a walk over modules.
        """
        return self.total(archs, self.tables[0], self._fixed[0])

    def parameters(self, archs: Arch | np.ndarray) -> Any:
        """Parameters of the extracted subnets (BN affine included, kernel matrices not); shapes as for `macs`."""
        return self.total(archs, self.tables[1], self._fixed[1])

    def total(self, archs: Arch | np.ndarray, table: np.ndarray, fixed: float) -> Any:
        """`fixed` plus the sum over each subnet's layers of `table` [layer, kernel size, expand ratio], as `macs`."""
        if isinstance(archs, Arch):
            return self.total(self.to_rows([archs]), table, fixed)[0].item()
        kernel, expand, _ = self._split(archs)
        per_layer = table[np.arange(self.n_layers), kernel, expand]
        return fixed + np.where(self.active_mask(archs), per_layer, 0).sum(1)

    @cached_property
    def tables(self) -> np.ndarray:
        """int64 [2, layers, kernel size + 1, expand ratio + 1]: MACs and parameters of each layer, indexed by the
        settings themselves."""
        tables = np.zeros((2, self.n_layers, max(self.kernels) + 1, max(self.expands) + 1), dtype=np.int64)
        for (i, layer), kernel, expand in product(enumerate(self.layers), self.kernels, self.expands):
            tables[:, i, kernel, expand] = layer.macs(kernel, expand), layer.parameters(kernel, expand)
        return tables

    @cached_property
    def _fixed(self) -> tuple[int, int]:
        """MACs and parameters of everything that is not elastic."""
        net, last = self.backbone, self.layers[-1]
        pixels = (self.resolution // 2) ** 2
        stem = 9 * self.in_channels * net.stem_channels
        first = net.stem_channels * (9 + net.first_channels)
        expand = last.out_channels * net.expand_channels
        mix = net.expand_channels * (net.mix_channels or 0)
        linear = (net.mix_channels or net.expand_channels) * self.classes
        macs = pixels * (stem + first) + last.out_size**2 * expand + mix + linear
        bn = 2 * (2 * net.stem_channels + net.first_channels + net.expand_channels)
        return macs, stem + first + expand + mix + linear + self.classes + bn

    # --- the evaluation population

    def sample_bucket(
        self, mflops: float, n: int, rng: np.random.Generator, tolerance: float | None = None,
        max_draws: int = 50_000_000,
    ) -> np.ndarray:  # fmt: skip
        """Draw `n` different subnets within `mflops` +- `tolerance` (inclusive) by rejection (section 6.1).

        The tolerance is by default the space's `half_bucket`. The width of every layer is locked to its minimum for the
        lowest of the space's buckets and to its maximum for the highest. The first m of n are the same for every
        n >= m. Returns rows; raises InputError if the bucket holds no subnet or too few are found in `max_draws` draws.
        """
        tolerance = self.half_bucket if tolerance is None else tolerance
        ends = {min(self.buckets): min(self.expands), max(self.buckets): max(self.expands)}
        locked = next(((expand,) for bucket, expand in ends.items() if bucket == mflops), None)
        low, high = round((mflops - tolerance) * 1e6), round((mflops + tolerance) * 1e6)
        smallest, largest = (
            self.reference.macs(self.uniform(pick(self.kernels), pick(locked or self.expands), pick(self.depths)))
            for pick in (min, max)
        )
        if high < smallest or low > largest:
            raise InputError(
                f"no subnet of {self.backbone.name} can reach bucket {mflops:g} +- {tolerance:g} MFLOPs: "
                f"expected a size between {smallest / 1e6:.2f} and {largest / 1e6:.2f}"
            )
        found: dict[bytes, np.ndarray] = {}
        draws, chunk = 0, 1024
        while draws < max_draws:
            rows = self.sample(chunk, rng, expands=locked)
            macs = self.reference.macs(rows)
            for row in rows[(macs >= low) & (macs <= high)]:
                found.setdefault(self._canonical(row), row)
            if len(found) >= n:
                return np.stack(list(found.values())[:n])
            draws, chunk = draws + chunk, min(2 * chunk, 131_072)
        raise InputError(
            f"bucket {mflops:g} +- {tolerance:g} MFLOPs of {self.backbone.name} gave {len(found)} different subnets "
            f"in {draws:,} draws, {n} were asked for: ask for fewer or widen the tolerance"
        )

    def _canonical(self, row: np.ndarray) -> bytes:
        """Equal for two rows exactly if they are the same network."""
        return np.where(self.used(row[None])[0], row, 0).tobytes()

    def population(
        self, subnets_per_bucket: int, buckets: Sequence[float] | None = None, seed: int = 0
    ) -> list[tuple[float, Arch]]:
        """The subnets on which every method is evaluated: (bucket in MFLOPs, architecture), no two alike.

        Each bucket has its own random stream, so neither other buckets nor a larger number changes the first subnets.
        """
        result = []
        for bucket in self.buckets if buckets is None else buckets:
            rng = np.random.default_rng([seed, round(bucket * 1000)])
            rows = self.sample_bucket(bucket, subnets_per_bucket, rng)
            result += [(bucket, self.to_arch(row)) for row in rows]
        return result


def check_resolution(resolution: int) -> int:
    """Return `resolution` in pixels; raise InputError unless images can be trained on at it."""
    check_number(resolution, "resolution", RESOLUTION, LARGEST_RESOLUTION, whole=True)
    if resolution % RESOLUTION:
        near = min(max(round(resolution / RESOLUTION), 1) * RESOLUTION, LARGEST_RESOLUTION)
        raise InputError(f"resolution is {resolution}: expected a multiple of {RESOLUTION} pixels, such as {near}")
    return resolution


def _settings(name: str, values: Sequence[int], allowed: Sequence[int]) -> tuple[int, ...]:
    values = tuple(values)
    if not values or len(set(values)) < len(values) or not set(values) <= set(allowed):
        raise InputError(f"{name} is {values}: expected different values out of {list(allowed)}")
    return values
