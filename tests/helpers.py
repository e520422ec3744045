"""Functions that several suites use."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from rsslib import evaluate, steps
from rsslib.backbones import Backbone, StageSpec
from rsslib.data.dataset import Dataset
from rsslib.methods import Method
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet
from rsstudy import interference
from rsstudy.catalogue import build

EPS = torch.finfo(torch.float32).eps  # rounding to float32 changes a number by at most half of this share

# The largest error of `augment` without normalisation. Each of its some 20 roundings changes a number of at most 2;
# their errors add up to less than 12 EPS, in any order of the sums.
AUGMENT_ERROR = 16 * EPS

# A network with every kind of layer that trains in milliseconds: for what does not depend on size.
TINY = Backbone(
    name="tiny",
    stem_channels=8,
    stem_act="hardswish",
    first_channels=8,
    first_act="relu",
    stages=(StageSpec(16, 2, "relu"), StageSpec(24, 2, "hardswish", squeeze_excite=True)),
    expand_channels=32,
    mix_channels=40,
    head_act="hardswish",
    buckets=(1, 1.5, 2),
)


def random_archs(space: SearchSpace, n: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [space.sample_arch(rng) for _ in range(n)]


def corners(space: SearchSpace) -> list[Arch]:
    return [space.smallest, space.middle, space.largest]


def network_of(space: SearchSpace, arch: Arch) -> tuple:
    """Layers in use with their choices: equal exactly for equal networks."""
    return tuple((i, kernel, expand) for i, _, kernel, expand in space.active(arch))


def any_arch(space: SearchSpace) -> st.SearchStrategy[Arch]:
    """All architectures of a space."""
    seeds = st.integers(0, 2**64 - 1)
    return st.sampled_from(corners(space)) | seeds.map(lambda seed: random_archs(space, 1, seed)[0])


@torch.no_grad()
def random_supernet(space: SearchSpace, dropout: float = 0.0, dtype=torch.float32, seed: int = 0) -> SuperNet:
    """A supernet with every parameter and statistic off its initial value, so that nothing is an identity by chance.

    Statistics are those of training on noise: with arbitrary ones the image would hardly reach the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    supernet = SuperNet(space, dropout, generator).to(dtype)

    def noise(tensor):
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    for name, parameter in supernet.named_parameters():
        if ".bn" in name or name.endswith(".bias") or "kernel_" in name:
            parameter.add_(0.1 * noise(parameter))
    buffers = dict(supernet.named_buffers())
    x = noise(torch.empty(16, space.in_channels, 32, 32, dtype=dtype))

    def norm(x, name, weights):
        var, mean = torch.var_mean(x, (0, 2, 3))
        buffers[f"{name}.running_mean"].copy_(mean)
        buffers[f"{name}.running_var"].copy_(var)
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    supernet.run(x, space.largest, dict(supernet.named_parameters()), norm)
    supernet.train()
    for arch in random_archs(space, 6, seed):
        supernet(x, arch)
    return supernet


def toy_data(train: int = 40, test: int = 30, channels: int = 3, classes: int = 4, seed: int = 0) -> Dataset:
    """Images whose brightness tells their class, on noise."""
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        y = torch.randint(classes, (n,), generator=generator)
        noise = torch.rand((n, 32, 32, channels), generator=generator)
        x = 30 + y[:, None, None, None] * (180 / (classes - 1)) + 40 * noise
        return x.to(torch.uint8).permute(0, 3, 1, 2), y

    normalisation = (0.5,) * channels if channels == 3 else None
    return Dataset(
        "toy", *split(train), *split(2), *split(test), tuple(map(str, range(classes))),
        normalisation, normalisation, checksum="toy",
    )  # fmt: skip


def double_images(monkeypatch, *functions):
    """Images in float64 wherever one of the functions, each a module and a name, makes them."""
    for module, name in functions:
        made = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, made=made: made(*arguments).double())


def double_measurements(monkeypatch):
    """The same for all that `rsstudy.interference` measures."""
    double_images(monkeypatch, *((module, "augment") for module in (interference, steps, evaluate)))
    double_images(monkeypatch, (interference, "recalibration_images"), (evaluate, "normalise"))


def shortened(name: str, *epochs: int, **settings) -> Method:
    """A method of the study on small batches, with so many epochs in its stages: by default one in each, two in a
    single one. `settings` are those of `Method`."""
    method = build(name, 180, 410)
    epochs = epochs or ((1,) * len(method.stages) if len(method.stages) > 1 else (2,))
    stages = tuple(replace(stage, epochs=n) for stage, n in zip(method.stages, epochs, strict=True))
    return replace(method, stages=stages, **{"batch_size": 16} | settings)


def sentence(error) -> str:
    """The message of an InputError that pytest caught, after checking that it is one line about the user's input."""
    text = str(error.value)
    assert text and "\n" not in text and len(text) < 600
    return text


def damaged(content, positions=80, cuts=20):
    """Copies with one bit flipped, in each of the first bytes and at steps through the rest, and copies cut short."""
    size = len(content)
    for i in sorted({*range(min(16, size)), *range(0, size, max(1, size // positions)), size - 1}):
        yield content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :]
    for length in range(0, size, max(1, size // cuts)):
        yield content[:length]
    yield content + b"\0"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def payloads(path):
    """Pickles that would run code, alone and in the formats that hide them."""
    yield pickle.dumps(Payload(path))
    torch.save({"weights": Payload(path)}, path.with_suffix(".pt"))
    yield path.with_suffix(".pt").read_bytes()
    np.savez(path.with_suffix(".npz"), x_train=np.array([Payload(path)], dtype=object))
    yield path.with_suffix(".npz").read_bytes()


def idle_from(space: SearchSpace, arch: Arch, other: Arch) -> Arch:
    """`arch`, with the settings of `other` in the layers that it does not use."""
    used = {i for i, *_ in space.active(arch)}

    def merge(a, b):
        return tuple(a[i] if i in used else b[i] for i in range(space.n_layers))

    return Arch(merge(arch.kernel, other.kernel), merge(arch.expand, other.expand), arch.depth)


def assert_close(result: torch.Tensor, expected: torch.Tensor, what: object = "", tolerance: float = 1e-9) -> None:
    """No element is farther off than `tolerance` times the largest expected element, which is in float64.

    The default is for a result in float64, whose rounding in a whole network adds up to some 1e-12. In float32 it would
    be 1e-4 on some processors, as much as a mistake.
    """
    assert result.shape == expected.shape and expected.dtype == torch.float64, what
    error = (result - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{what} off by {error:.1e} of the largest element"


def tables(folder):
    """The results as bytes, without the times."""
    history = pd.read_csv(folder / "history.csv", dtype=str).drop(columns=["seconds", "processor_seconds"])
    return (folder / "population.csv").read_bytes(), history.to_csv()
