"""A subnet as a product: one module from uint8 images to logits, and an ONNX file that was checked against it.

What has been exported needs neither this package nor PyTorch: see `rsslib.deploy.predicting`.
"""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rsslib.data.dataset import Dataset, check_images
from rsslib.deploy.predicting import FORMAT, Model, session_of
from rsslib.device import use_threads
from rsslib.errors import InputError, needed, one_line
from rsslib.evaluate import recalibrate, recalibration_images
from rsslib.files import atomic_path, check_output, make_folder
from rsslib.network import Network
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet, centre

TOLERANCE = 1e-4  # of the largest logit
CHECKED_IMAGES = 256


@dataclass(frozen=True)
class Card:
    """What a deployable subnet is: where its numbers come from and how large it is.

    `mflops` are the millions of multiply-accumulates of this very network, with its channels, classes and resolution;
    `parameters` are those of the subnet before batch norm is folded.
    """

    backbone: str
    arch: Arch
    dataset: str
    classes: tuple[str, ...]
    channels: int
    resolution: int
    mflops: float
    parameters: int


class Deployable(nn.Module):
    """Maps uint8 images [N, C, R, R] to logits [N, classes]: normalisation inside, batch norm folded, in eval mode.

    `card` says what it is. `network` is an ordinary `Network` whose batch norms are the identity. Depthwise taps that
    only ever meet padding are cut off, as `supernet.depthwise` does: the numbers are the same.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, space: SearchSpace, card: Card, mean=None, std=None):
        super().__init__()
        self.card = card
        mean, std = (torch.tensor(values or default) for values, default in ((mean, (0.0,)), (std, (1.0,))))
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1))
        self.network = network.eval()
        _fold(self.network)
        blocks: dict[str, Any] = dict(self.network.blocks)
        for name, block in blocks.items():
            _cut(block.conv_dw, space.layers[int(name)].in_size)
        self.requires_grad_(False)

    @classmethod
    def of(cls, supernet: SuperNet, arch: Arch, images: Dataset) -> "Deployable":
        """Subnet `arch` of a supernet, its statistics recomputed from the training images of `images`.

        Raises InputError for an architecture outside the space, and for images that the supernet does not take.
        """
        space = supernet.space
        check_images(space, images)
        network = supernet.extract(arch)
        network.load_state_dict(recalibrate(supernet, arch, recalibration_images(images)), strict=False)
        return cls(network.cpu(), space, card_of(space, arch, images.name, images.classes), images.mean, images.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise InputError(f"images are {images.dtype}: expected uint8, the pixels as they are, 0 to 255")
        return images.to(self.scale.dtype) * self.scale + self.shift

    def __repr__(self) -> str:
        c = self.card
        return (
            f"Deployable({c.backbone} for {c.dataset}: uint8 [N, {c.channels}, {c.resolution}, {c.resolution}] to "
            f"logits of {len(c.classes)} classes, {c.mflops:.2f} MFLOPs, {c.parameters:,} parameters)"
        )


def card_of(space: SearchSpace, arch: Arch, dataset: str, classes: tuple[str, ...]) -> Card:
    return Card(
        space.backbone.name, arch, dataset, classes, space.in_channels, space.resolution,
        space.macs(arch) / 1e6, space.parameters(arch),
    )  # fmt: skip


def _fold(network: Network) -> None:
    """Put every batch norm's affine map into the convolution before it."""
    pairs: list[tuple[Any, str, str]] = [(network.stem, "conv", "bn"), (network.head_expand, "conv", "bn")]
    for block in (network.first, *network.blocks.values()):
        pairs += [(block, "conv_pw", "bn1"), (block, "conv_dw", "bn2"), (block, "conv_pwl", "bn3")]
    for module, conv, norm in pairs:
        if getattr(module, conv, None) is not None:
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())


def _cut(conv: nn.Conv2d, size: int) -> None:
    conv.weight = nn.Parameter(centre(conv.weight.detach(), 2 * size - 1).clone(), requires_grad=False)
    conv.kernel_size = tuple(conv.weight.shape[-2:])
    conv.padding = tuple(k // 2 for k in conv.kernel_size)


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_model(module: nn.Module, example: Tensor):
    """`module` as an onnx.ModelProto from `images` [N, ...] to `logits`, for any N; `example` has a batch of 2 or more.

    (With a single image the tracer would take the batch for a constant.)
    """
    for name in ("onnx", "onnxscript"):
        needed(name, "export")
    with torch.no_grad(), _one_precision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        program = torch.onnx.export(
            module.eval(), (example,), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )  # fmt: skip
    assert program is not None  # so it is with dynamo=True
    return program.model_proto


@contextmanager
def _one_precision() -> Iterator[None]:
    """torch.export reads a switch that PyTorch refuses to tell while convolutions have a precision of their own."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


@use_threads(1)
def export(supernet: SuperNet, arch: Arch, images: Dataset, path: str | Path) -> dict:
    """Write subnet `arch` as an ONNX file: uint8 `images` [N, C, R, R] to `logits` [N, classes], for any N.

    Statistics are recomputed from the training images and folded; normalisation is inside. Before the file appears it
    passes ONNX's checker, and onnxruntime's logits of 256 real images (fewer if there are no more; test images first)
    lie within 1e-4 of PyTorch's, relative to the largest, with the same prediction wherever the margin exceeds that.
    Returns what the file says of itself in its metadata: backbone, arch, dataset, classes, channels, resolution,
    mflops, parameters, accuracy (percent of the test images, in onnxruntime) and test_images; also checked_images and
    difference (the largest, relative to the largest logit).

    Raises InputError if the extra [export] is not installed, the folder cannot be written, the images are not the
    supernet's, or the file does not compute what PyTorch does: then there is none.
    """
    path = Path(path)
    check_output(path, "the model's folder")
    onnx, _ = needed("onnx", "export"), needed("onnxruntime", "export")
    subnet = Deployable.of(supernet, arch, images)
    test = images.x_test.cpu().contiguous()
    real = torch.cat([test, images.x_val.cpu(), images.x_train[:CHECKED_IMAGES].cpu()])[:CHECKED_IMAGES].contiguous()
    model = onnx_model(subnet, real[:2])
    opened, difference = verify(subnet, model, real)
    right = sum(
        int((opened.logits(x.numpy()).argmax(1) == y.cpu().numpy()).sum())
        for x, y in zip(test.split(100), images.y_test.split(100), strict=True)
    )
    card = subnet.card
    settings = {"kernel": card.arch.kernel, "expand": card.arch.expand, "depth": card.arch.depth}
    words = vars(card) | {
        "arch": settings, "accuracy": 100 * right / max(len(test), 1), "test_images": len(test),
        "checked_images": len(real), "difference": difference,
    }  # fmt: skip
    onnx.helper.set_model_props(model, {FORMAT: "1", **{name: json.dumps(value) for name, value in words.items()}})
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return json.loads(json.dumps(words))


@torch.no_grad()
def verify(subnet: nn.Module, model, images: Tensor) -> tuple[Model, float]:
    """Compare an ONNX model with the PyTorch module that it was made of, on uint8 images [N, C, R, R].

    The module is evaluated in float64: in float32 its own rounding may be larger than that of the model.

    Returns the model, opened, and the largest difference of logits, relative to the largest. Raises InputError, with
    what differs, unless ONNX's checker accepts it, the logits agree to `TOLERANCE` of the largest one, one by one and
    in batches alike, and so do the predictions wherever the margin between the two best classes exceeds that.
    """
    onnx = needed("onnx", "export")
    try:
        onnx.checker.check_model(model, full_check=True)
        opened = Model(session_of(model.SerializeToString()), {})  # which has no metadata yet
        found = np.concatenate([opened.logits(x.numpy()) for x in images.split(100)])
        alone = opened.logits(images[:1].numpy())
    except Exception as error:  # of the checker, of protobuf and of onnxruntime, each of its own types
        raise InputError(f"the export failed ({one_line(error)}): no file was written") from None
    exact = copy.deepcopy(subnet).double()
    expected = torch.cat([exact(x) for x in images.split(100)]).numpy()
    difference = compare(found, expected)
    compare(alone, expected[:1])
    return opened, difference


def compare(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of logits [N, classes] over the largest of them; raises InputError if it is too large."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise InputError(
            f"the export gives logits of shape {found.shape}, finite: {bool(np.isfinite(found).all())}, expected "
            f"{expected.shape}: no file was written"
        )
    largest = np.abs(expected).max()
    difference = float(np.abs(found - expected).max() / largest)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > TOLERANCE * largest
    differ = int((clear & (found.argmax(1) != expected.argmax(1))).sum())
    if difference > TOLERANCE or differ:
        raise InputError(
            f"the export differs from PyTorch by {difference:.1e} of the largest logit and in {differ} clear "
            f"predictions of {len(found)}, allowed is {TOLERANCE:g}: no file was written"
        )
    return difference
