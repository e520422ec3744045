"""Elastic search spaces: which subnets exist, how large they are, and how to draw them at random.

An architecture is a value, `Arch`. Many architectures are the rows of an int8 array [n, 2 * layers + stages]: kernel
sizes, then expand ratios, then depths. The values that an architecture may take are the choices of a space.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Annotated, Any

import numpy as np

from rsslib.backbones import BACKBONES, Backbone, LayerSpec, backbone_from
from rsslib.errors import InputError, check_type, checked, choose, shortened

RESOLUTION = 32  # pixels; the study trains and tests every dataset at 32 x 32
LARGEST_RESOLUTION = 224


@dataclass(frozen=True)
class Arch:
    """One subnet: kernel size and expand ratio of each elastic layer, depth of each elastic stage.

    Layers beyond a stage's depth keep their place in the tuples, but the network ignores them.
    """

    kernel: tuple[int, ...]
    expand: tuple[int, ...]
    depth: tuple[int, ...]

    def __post_init__(self):
        for name, values in vars(self).items():
            if type(values) is not tuple or {*map(type, values)} != {int}:  # from JSON, or NumPy integers
                vars(self)[name] = check_type(values, name, tuple[int, ...])


@checked
@dataclass(frozen=True)
class SearchSpace:
    """All subnets of a backbone (Shipard et al. 2022, section 6.1). Spaces with equal fields are equal.

    `backbone` is a name in `BACKBONES`, a `Backbone`, or the dictionary of its fields. `kernels`, `expands` and
    `depths` are the choices of each layer and stage. Sizes are counted for one image [in_channels, resolution,
    resolution] and `classes` classes; the defaults are those of CIFAR-100. `resolution` is 32 to 224 pixels, in
    multiples of 32. Raises InputError for an invalid value.
    """

    backbone: Any = "mobilenet_v3"  # a name becomes its Backbone
    kernels: tuple[int, ...] = (3, 5, 7)
    expands: tuple[int, ...] = (3, 4, 6)
    depths: tuple[int, ...] = (2, 3, 4)
    in_channels: Annotated[int, 1, 1000] = 3
    classes: Annotated[int, 1, 1_000_000] = 100
    resolution: int = RESOLUTION

    def __post_init__(self):
        own = vars(self)  # a frozen dataclass does not allow setting attributes
        if isinstance(self.backbone, dict):
            own["backbone"] = backbone_from(self.backbone)
        elif not isinstance(self.backbone, Backbone):
            own["backbone"] = BACKBONES[choose(self.backbone, BACKBONES, "backbone")]
        most = max(stage.layers for stage in self.backbone.stages)
        allowed = {
            "kernels": (3, 5, 7, 9),
            "expands": range(1, 13),
            "depths": range(1, most + 1),
        }
        for name, possible in allowed.items():
            values = own[name]
            if not values or sorted({*possible}.intersection(values)) != sorted(values):
                raise InputError(f"{name} is {values}: expected different values out of {list(possible)}")
        check_resolution(self.resolution)

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Return the elastic layers of the largest subnet, in order."""
        layers: list[LayerSpec] = []
        channels, size = self.backbone.first_channels, self.resolution // 2
        for number, stage in enumerate(self.backbone.stages):
            for index in range(max(self.depths) if stage.elastic_depth else stage.layers):
                stride = 1 if index else stage.stride
                shape = (channels, stage.channels, stride)
                layers.append(LayerSpec(number, index, *shape, stage.act, stage.squeeze_excite, size))
                channels, size = stage.channels, layers[-1].out_size
        return tuple(layers)

    @property
    def first(self) -> LayerSpec:
        """Return the block before the elastic layers, which has no expansion."""
        net = self.backbone
        size = self.resolution // 2
        return LayerSpec(-1, 0, net.stem_channels, net.first_channels, 1, net.first_act, False, size)

    @property
    def name(self) -> str:
        """Return the backbone's name with choices that differ from the study's, such as mobilenet_v3_kernels-3-5."""
        parts = [self.backbone.name]
        for name in ("kernels", "expands", "depths"):
            values = getattr(self, name)
            if values != getattr(SearchSpace, name):  # the default
                parts.append("-".join(map(str, [name, *values])))
        return "_".join(parts)

    def record(self) -> dict[str, Any]:
        """Return the arguments that make an equal space, as JSON values; a backbone of the study is given by name."""
        known = BACKBONES.get(self.backbone.name) == self.backbone
        return asdict(self) | ({"backbone": self.backbone.name} if known else {})

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def n_stages(self) -> int:
        """Number of stages with elastic depth."""
        return sum(stage.elastic_depth for stage in self.backbone.stages)

    @cached_property
    def reference(self) -> "SearchSpace":
        """Return the same space for 3 channels and 100 classes. Its sizes name the buckets on every dataset."""
        return replace(self, in_channels=3, classes=100)

    @property
    def cardinality(self) -> int:
        """Return the number of distinct networks; choices of layers beyond a stage's depth do not count."""
        total, per_layer = 1, len(self.kernels) * len(self.expands)
        for stage in self.backbone.stages:
            depths = self.depths if stage.elastic_depth else (stage.layers,)
            total *= sum(per_layer**depth for depth in depths)
        return total

    # --- single architectures

    def uniform(self, kernel: int, expand: int, depth: int) -> Arch:
        """Return the architecture with the same choice everywhere."""
        layers, stages = self.n_layers, self.n_stages
        return Arch((kernel,) * layers, (expand,) * layers, (depth,) * stages)

    @property
    def smallest(self) -> Arch:
        return self.uniform(*map(min, self.choices))

    @property
    def middle(self) -> Arch:
        """Return the middle choice everywhere: kernel size 5, expand ratio 4 and depth 3 in the study."""
        return self.uniform(*(sorted(values)[len(values) // 2] for values in self.choices))

    @property
    def largest(self) -> Arch:
        return self.uniform(*map(max, self.choices))

    def validate(self, arch: Arch) -> Arch:
        """Return `arch`; raises InputError if it is not in this space."""
        if not isinstance(arch, Arch):
            raise InputError(f"architecture is {shortened(repr(arch))}: expected an Arch")
        for what, (choices, n) in zip(("kernel", "expand", "depth"), self.columns, strict=True):
            values = getattr(arch, what)
            if len(values) != n or not {*values} <= {*choices}:
                raise InputError(
                    f"architecture outside the space: {what} is {shortened(repr(values))}, expected {n} numbers out of "
                    f"{list(choices)} for {self.backbone.name}"
                )
        return arch

    def active(self, arch: Arch) -> Iterator[tuple[int, LayerSpec, int, int]]:
        """Yield (layer number, layer, kernel size, expand ratio) of the layers that `arch` uses, in order."""
        depths = self._depths(arch.depth)
        for i, layer in enumerate(self.layers):
            if layer.index < depths[layer.stage]:
                yield i, layer, arch.kernel[i], arch.expand[i]

    def _depths(self, elastic: Iterable) -> list:
        """Return the depths of all stages, given those of the elastic stages."""
        depths = iter(elastic)
        return [next(depths) if stage.elastic_depth else stage.layers for stage in self.backbone.stages]

    # --- many architectures, as rows

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Kernel sizes, expand ratios and depths."""
        return self.kernels, self.expands, self.depths

    @property
    def columns(self) -> list[tuple[tuple[int, ...], int]]:
        """Return (choices, number of columns) of a row's kernel sizes, expand ratios and depths, in this order."""
        widths = (self.n_layers, self.n_layers, self.n_stages)
        return [*zip(self.choices, widths, strict=True)]

    def to_rows(self, archs: Sequence[Arch]) -> np.ndarray:
        """Return int8 [n, 2 * layers + stages]; raises InputError for an architecture outside the space."""
        rows = [(*a.kernel, *a.expand, *a.depth) for a in map(self.validate, archs)]
        return np.array(rows, dtype=np.int8).reshape(-1, 2 * self.n_layers + self.n_stages)

    def to_arch(self, row: np.ndarray) -> Arch:
        """Return the architecture of one row, with Python integers."""
        parts = self._split(np.asarray(row))
        return Arch(*(tuple(part.tolist()) for part in parts))

    def _split(self, rows: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, [self.n_layers, 2 * self.n_layers], axis=-1)

    def sample(
        self,
        n: int,
        rng: np.random.Generator,
        kernels: Sequence[int] | None = None,
        expands: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Draw `n` architectures with independent, uniform choices (Algorithm 1), optionally from fewer values.

        Returns int8 [n, 2 * layers + stages].
        """
        parts = []
        for subset, (choices, width) in zip((kernels, expands, depths), self.columns, strict=True):
            values = np.asarray(choices if subset is None else subset, dtype=np.int8)
            drawn = rng.integers(len(values), size=(n, width), dtype=np.int8)
            parts.append(values[drawn])
        return np.concatenate(parts, axis=1)

    def sample_arch(self, rng: np.random.Generator, **subsets: Sequence[int]) -> Arch:
        """Draw one architecture; see `sample`."""
        return self.to_arch(self.sample(1, rng, **subsets)[0])

    def active_mask(self, rows: np.ndarray) -> np.ndarray:
        """Return bool [n, layers]: which layers each architecture uses."""
        depths = self._depths(self._split(rows)[2].T)
        columns = [np.broadcast_to(layer.index < depths[layer.stage], len(rows)) for layer in self.layers]
        return np.stack(columns, axis=1)

    def used(self, rows: np.ndarray) -> np.ndarray:
        """Return bool [n, 2 * layers + stages]: which choices matter. Choices of layers beyond the depth do not."""
        mask = self.active_mask(rows)
        depths = np.ones((len(rows), self.n_stages), bool)
        return np.concatenate([mask, mask, depths], axis=1)

    def macs(self, archs: Arch | np.ndarray) -> Any:
        """Return the multiply-accumulates of convolutions and linear layers for one image ("FLOPs" in the paper).

        An `Arch` gives an int; rows [n, 2 * layers + stages] give int64 [n]. This is a table look-up, not a walk over
        modules.
        """
        return self.total(archs, self.tables[0], self._fixed[0])

    def parameters(self, archs: Arch | np.ndarray) -> Any:
        """Return the parameters of extracted subnets (with BN affine, without kernel matrices), shaped as in `macs`."""
        return self.total(archs, self.tables[1], self._fixed[1])

    def total(self, archs: Arch | np.ndarray, table: np.ndarray, fixed: float) -> Any:
        """Return `fixed` plus the sum of `table` [layer, kernel size, expand ratio] over the layers, as `macs`."""
        if isinstance(archs, Arch):
            return self.total(self.to_rows([archs]), table, fixed)[0].item()
        kernel, expand, _ = self._split(archs)
        per_layer = table[np.arange(self.n_layers), kernel, expand]
        return fixed + np.where(self.active_mask(archs), per_layer, 0).sum(1)

    @cached_property
    def tables(self) -> np.ndarray:
        """Return MACs and parameters of layers by choice, int64 [2, layers, largest kernel + 1, largest expand + 1]."""
        shape = (2, self.n_layers, max(self.kernels) + 1, max(self.expands) + 1)
        tables = np.zeros(shape, dtype=np.int64)
        for i, layer in enumerate(self.layers):
            for kernel, expand in product(self.kernels, self.expands):
                tables[0, i, kernel, expand] = layer.macs(kernel, expand)
                tables[1, i, kernel, expand] = layer.parameters(kernel, expand)
        return tables

    @cached_property
    def _fixed(self) -> tuple[int, int]:
        """Return MACs and parameters of everything that is not elastic."""
        net, last = self.backbone, self.layers[-1]
        first = net.stem_channels * (9 * self.in_channels + 9 + net.first_channels)  # stem and first block
        expand = last.out_channels * net.expand_channels
        features = net.mix_channels or net.expand_channels
        head = net.expand_channels * (net.mix_channels or 0) + features * self.classes
        bn = 2 * (2 * net.stem_channels + net.first_channels + net.expand_channels)
        macs = (self.resolution // 2) ** 2 * first + last.out_size**2 * expand + head
        return macs, first + expand + head + self.classes + bn


@checked
def as_space(backbone: str | Backbone | SearchSpace) -> SearchSpace:
    """Return a search space unchanged, or the space of a backbone with the study's choices."""
    return backbone if isinstance(backbone, SearchSpace) else SearchSpace(backbone)


def check_resolution(resolution: int) -> int:
    """Return `resolution` in pixels; raises InputError unless networks can train on images of that size."""
    if resolution not in range(RESOLUTION, LARGEST_RESOLUTION + 1, RESOLUTION):
        expected = f"a multiple of {RESOLUTION} pixels from {RESOLUTION} to {LARGEST_RESOLUTION}"
        raise InputError(f"resolution is {resolution!r}: expected {expected}")
    return resolution
