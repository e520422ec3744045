"""Export a subnet as a module from uint8 images to logits, and as an ONNX file that is checked against it.

An exported file needs neither this package nor PyTorch. `rsslib.deploy.predicting` runs it.
"""

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rsslib.data.dataset import Dataset, check_images
from rsslib.deploy.predicting import Model, add_metadata, open_model
from rsslib.device import isolated, use_threads
from rsslib.errors import InputError, checked, needed, one_line
from rsslib.evaluate import recalibrate, recalibration_images
from rsslib.files import check_output, make_folder, write
from rsslib.network import Network
from rsslib.space import Arch, SearchSpace
from rsslib.supernet import SuperNet, centre

TOLERANCE = 1e-4  # of the largest logit
CHECKED_IMAGES = 256
EXPORTING = threading.Lock()  # PyTorch's exporter serves one thread at a time


class Normalise(nn.Module):
    """Map uint8 images to (pixel / 255 - mean) / std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        centre, spread = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * spread)).view(1, -1, 1, 1))
        self.register_buffer("shift", (-centre / spread).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise InputError(f"images are {images.dtype}: expected uint8, the pixels as they are, 0 to 255")
        return images.to(self.scale.dtype) * self.scale + self.shift


@checked
class Deployable(nn.Module):
    """Map uint8 images [N, C, R, R] to logits [N, classes]: normalisation inside, batch norm folded, in eval mode.

    `network` is subnet `arch`, and is modified: its batch norms become the identity, and depthwise taps that meet only
    padding are cut off, as in `supernet.depthwise`. In `metadata`, mflops are the millions of multiply-accumulates of
    this network, with its channels, classes and resolution; parameters are those of the subnet before batch norm is
    folded.
    """

    def __init__(self, network: Network, space: SearchSpace, arch: Arch, images: Dataset | None = None):
        super().__init__()
        self.metadata = {
            "backbone": space.backbone.name,
            "arch": {"kernel": arch.kernel, "expand": arch.expand, "depth": arch.depth},
            "dataset": images.name if images else "",
            "classes": images.classes if images else (),
            "channels": space.in_channels,
            "resolution": space.resolution,
            "mflops": space.macs(arch) / 1e6,
            "parameters": space.parameters(arch),
        }
        self.normalise = Normalise(images and images.mean or (0.0,), images and images.std or (1.0,))
        self.network = network.eval()
        fold(self.network)
        for i, layer, _, _ in space.active(arch):
            block: Any = network.blocks[str(i)]
            cut(block.conv_dw, layer.in_size)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))

    def __repr__(self) -> str:
        described = "{backbone} for {dataset}, {mflops:.2f} MFLOPs, {parameters:,} parameters"
        return f"Deployable({described.format(**self.metadata)})"


@checked
@isolated()
def deployable(supernet: SuperNet, arch: Arch | None = None, images: Dataset | None = None) -> Deployable:
    """Return subnet `arch` of a supernet, by default the middle one, as a module on the CPU.

    Its batch norm statistics are recomputed from the training images of `images`. Raises InputError without images, for
    images that do not fit the supernet, and for an architecture outside the space.
    """
    if images is None:
        raise InputError("images is None: give the dataset to recompute batch norm statistics from")
    check_images(supernet.space, images)
    arch = arch or supernet.space.middle
    network = supernet.extract(arch)
    statistics = recalibrate(supernet, arch, recalibration_images(images))
    network.load_state_dict(statistics, strict=False)
    return Deployable(network.cpu(), supernet.space, arch, images)


def fold(network: Network) -> None:
    """Fold the affine map of every batch norm into the convolution before it."""
    pairs = (("conv", "bn"), ("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
    for module, (conv, norm) in product(list(network.modules()), pairs):
        if hasattr(module, norm):
            fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
            setattr(module, conv, fused)
            setattr(module, norm, nn.Identity())


def cut(conv: Any, size: int) -> None:
    """Cut off the taps of a depthwise convolution that lie outside feature maps of this size at every position."""
    weight = centre(conv.weight.detach(), 2 * size - 1)
    conv.weight = nn.Parameter(weight.clone(), requires_grad=False)
    conv.kernel_size = tuple(weight.shape[-2:])
    conv.padding = tuple(k // 2 for k in conv.kernel_size)


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_model(module: nn.Module, example: Tensor) -> Any:
    """Return `module` as an onnx.ModelProto from `images` [N, ...] to `logits`, for any N.

    `example` must have a batch of 2 or more, because the exporter would treat a batch of 1 as a constant.
    """
    for name in ("onnx", "onnxscript"):
        needed(name, "export")
    with EXPORTING, torch.no_grad(), one_precision(), warnings.catch_warnings(action="ignore"):
        program: Any = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    model = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # stack traces with paths on this machine
    return model


@contextmanager
def one_precision() -> Iterator[None]:
    """Set convolutions to the precision of all of cuDNN, because torch.export reads one switch for both."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


@checked
@isolated()
@use_threads(1)
def export(supernet: SuperNet, arch: Arch, images: Dataset, path: str | Path) -> dict:
    """Write subnet `arch` as an ONNX file: uint8 `images` [N, C, R, R] to `logits` [N, classes], for any N.

    Batch norm statistics are recomputed from the training images and folded; normalisation is part of the file. The
    file is written only if it passes ONNX's checker, and if onnxruntime's logits on 256 real images (or on all images
    if there are fewer; test images first) are within 1e-4 of PyTorch's, relative to the largest logit. Predictions with
    a wider margin than that must be the same.

    Returns the metadata of the file: backbone, arch, dataset, classes, channels, resolution, mflops, parameters,
    accuracy (percent of the test images, in onnxruntime), test_images, checked_images and difference (the largest,
    relative to the largest logit).

    Raises InputError, and writes no file, if the extra [export] is not installed, the file cannot be written, the
    images do not fit the supernet, or the model does not compute the same as PyTorch.
    """
    path = Path(path)
    check_output(path, "the model's folder", ".onnx")
    needed("onnx", "export")
    subnet = deployable(supernet, arch, images)
    test = images.x_test.cpu().contiguous()
    real = torch.cat([test, images.x_val.cpu(), images.x_train[:CHECKED_IMAGES].cpu()])
    real = real[:CHECKED_IMAGES].contiguous()
    model = onnx_model(subnet, real[:2])
    opened, difference = verify(subnet, model, real)
    predicted = opened.logits(test.numpy()).argmax(1)
    right = int((predicted == images.y_test.cpu().numpy()).sum())
    metadata = subnet.metadata | {
        "accuracy": 100 * right / max(len(test), 1),
        "test_images": len(test),
        "checked_images": len(real),
        "difference": difference,
    }
    make_folder(path.parent)
    write(path, add_metadata(model, metadata))
    return open_model(path).metadata


@torch.no_grad()
def verify(subnet: nn.Module, model: Any, images: Tensor) -> tuple[Model, float]:
    """Compare an ONNX model with its PyTorch module on uint8 images [N, C, R, R].

    The module is evaluated in float64, because its rounding in float32 may exceed that of the model. Returns the opened
    model and the largest difference of logits, relative to the largest logit. Raises InputError unless ONNX's checker
    accepts the model and its logits pass `compare`, both one image at a time and in batches.
    """
    onnx = needed("onnx", "export")
    try:
        onnx.checker.check_model(model, full_check=True)
        opened = Model.of(model.SerializeToString())
        parts = images.numpy()[:1], images.numpy()[1:]
        found = np.concatenate([opened.logits(part) for part in parts])
    except Exception as error:  # the checker, protobuf and onnxruntime have their own types
        raise InputError(f"the export failed ({one_line(error)}): no file was written") from None
    exact = copy.deepcopy(subnet).double()
    expected = torch.cat([exact(part) for part in images.split(100)]).numpy()
    return opened, compare(found, expected)


def compare(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of logits [N, classes], divided by the largest logit.

    Raises InputError if it exceeds `TOLERANCE`, or if predictions differ whose margin exceeds `TOLERANCE`.
    """
    if found.shape != expected.shape:
        raise InputError(f"the export gives {found.shape} logits, expected {expected.shape}: no file was written")
    largest = np.abs(expected).max()
    difference = float(np.abs(found - expected).max() / largest)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > TOLERANCE * largest
    differ = int((clear & (found.argmax(1) != expected.argmax(1))).sum())
    if differ or not difference <= TOLERANCE:  # which also holds if it is not a number
        raise InputError(
            f"the export differs from PyTorch by {difference:.1e} of the largest logit and in {differ} clear "
            f"predictions of {len(found)}, allowed is {TOLERANCE:g}: no file was written"
        )
    return difference
