"""The subnets on which every method is evaluated: buckets of sizes, and three anchors beside them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from rsslib.errors import Count, InputError, Natural, checked, shortened
from rsslib.space import RESOLUTION, Arch, SearchSpace

if TYPE_CHECKING:  # pandas takes a while to import
    import pandas as pd

RECALIBRATION_IMAGES = 2000  # training images from which a subnet's batch norm statistics are recomputed


@lru_cache
def _at_study(space: SearchSpace) -> SearchSpace:
    return replace(space.reference, resolution=RESOLUTION)


def _ends(space: SearchSpace) -> tuple[int, int]:
    """Return the MACs of the smallest and the largest subnet."""
    return space.macs(space.smallest), space.macs(space.largest)


def _moved(buckets: Iterable[float], origin: SearchSpace, space: SearchSpace) -> list[float]:
    """Return sizes between the ends of `space` that correspond to `buckets` between the ends of `origin`."""
    (low, high), (own_low, own_high) = _ends(origin), _ends(space)
    growth = (own_high - own_low) / (high - low)
    return [(own_low + growth * (1e6 * bucket - low)) / 1e6 for bucket in buckets]


def get_buckets(space: SearchSpace) -> tuple[float, ...]:
    """Return the sizes of the population's subnets, in millions of MACs (section 6.1).

    A backbone without buckets has six, placed between its smallest and largest subnet as MobileNetV3's are. At a higher
    resolution, buckets keep their relative places and are rounded.
    """
    study = _at_study(space)
    if space.resolution != RESOLUTION:
        sizes = _moved(get_buckets(study), study, space.reference)
        return tuple(round(size) if size >= 10 else round(size, 1) for size in sizes)
    usual = SearchSpace()
    return space.backbone.buckets or tuple(round(size, 2) for size in _moved(usual.backbone.buckets, usual, study))


def half_bucket(space: SearchSpace) -> float:
    """Return the half-width of a bucket in millions of MACs: a quarter of the smallest distance between two buckets.

    It is 0.5 in the study, and more at a higher resolution.
    """
    study = _at_study(space)
    (low, high), (own_low, own_high) = _ends(study), _ends(space.reference)
    distances = np.diff(sorted(get_buckets(study)))
    return min(distances, default=(high - low) / 1e6) / 4 * ((own_high - own_low) / (high - low))


def sample_bucket(
    space: SearchSpace,
    mflops: float,
    n: int,
    rng: np.random.Generator,
    tolerance: float | None = None,
    max_draws: int = 50_000_000,
) -> np.ndarray:
    """Draw `n` different subnets of `mflops` +- `tolerance` million MACs, inclusive, by rejection (section 6.1).

    `tolerance` defaults to `half_bucket(space)`. The width of every layer is locked to its minimum for the lowest
    bucket of the space, and to its maximum for the highest. The first m of n subnets are the same for every n >= m.

    Returns int8 [n, 2 * layers + stages]. Raises InputError if no subnet can have this size, or if `max_draws` draws
    give fewer than `n` subnets.
    """
    tolerance = half_bucket(space) if tolerance is None else tolerance
    bucket = f"bucket {mflops:g} +- {tolerance:g} MFLOPs of {space.backbone.name}"
    buckets, expands = get_buckets(space), space.expands
    if mflops in (min(buckets), max(buckets)):
        expands = (min(expands) if mflops == min(buckets) else max(expands),)
    low, high = round((mflops - tolerance) * 1e6), round((mflops + tolerance) * 1e6)
    choices = space.kernels, expands, space.depths
    smallest = space.reference.macs(space.uniform(*map(min, choices)))
    largest = space.reference.macs(space.uniform(*map(max, choices)))
    if high < smallest or low > largest:
        ends = f"{smallest / 1e6:.2f} and {largest / 1e6:.2f}"
        raise InputError(f"{bucket} holds no subnet: expected a size between {ends}")
    found: dict[bytes, np.ndarray] = {}
    draws, chunk = 0, 1024
    while draws < max_draws:
        rows = space.sample(chunk, rng, expands=expands)
        macs = space.reference.macs(rows)
        rows = rows[(macs >= low) & (macs <= high)]
        for network, row in zip(np.where(space.used(rows), rows, 0), rows, strict=True):
            found.setdefault(network.tobytes(), row)
        if len(found) >= n:
            return np.stack(list(found.values())[:n])
        draws, chunk = draws + chunk, min(2 * chunk, 131_072)
    raise InputError(
        f"{bucket} gave {len(found)} different subnets in {draws:,} draws, {n} were asked for: "
        "ask for fewer or widen the tolerance"
    )


@checked
def sample_population(
    space: SearchSpace, subnets_per_bucket: Count, buckets: Sequence[float] | None = None, seed: Natural = 0
) -> list[tuple[float, Arch]]:
    """Draw the subnets on which every method is evaluated: (bucket in millions of MACs, architecture), all different.

    Each bucket has its own random stream, so its first subnets depend neither on other buckets nor on their number.
    """
    population = []
    for bucket in get_buckets(space) if buckets is None else buckets:
        rng = np.random.default_rng([seed, round(bucket * 1000)])
        rows = sample_bucket(space, bucket, subnets_per_bucket, rng)
        population += [(bucket, space.to_arch(row)) for row in rows]
    return population


def anchors(space: SearchSpace) -> list[tuple[float, Arch]]:
    """Return the smallest, the middle and the largest subnet, each with its size in millions of MACs as its bucket.

    The paper's single-subnet schemes train these (section 6.3.2). Every run evaluates them, to compare shared weights
    with weights trained alone.
    """
    archs = (space.smallest, space.middle, space.largest)
    return [(space.reference.macs(arch) / 1e6, arch) for arch in archs]


@checked
def archs_from_table(table: "pd.DataFrame") -> list[Arch]:
    """Return the architectures in the columns kernel, expand and depth of a table, as `evaluate_population` returns."""
    cells = table[["kernel", "expand", "depth"]].map(str)
    for column in cells:
        for cell in cells[column]:
            if not re.fullmatch("[0-9]{1,2}(-[0-9]{1,2})*", str(cell)):
                raise InputError(f"{column} is {shortened(repr(cell))}: expected choices joined by -, such as 3-5-7")
    archs = []
    for row in cells.itertuples(index=False):
        choices = [tuple(map(int, cell.split("-"))) for cell in row]
        archs.append(Arch(*choices))
    return archs
