"""Augmentation and normalisation as batched tensor code, on the device, each image by its own parameters."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsslib.errors import InputError
from rsslib.space import RESOLUTION

AUGMENTED_AT_ONCE = 8_000  # images of 32 pixels
_GREY_WEIGHTS = {1: (1.0,), 3: (0.2989, 0.587, 0.114)}  # torchvision's; of one channel, the channel itself


def normalise(images: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """Scale uint8 images [N, C, R, R] to 0..1 and, unless `mean` is None, to (x - mean) / std.

    Returns float32 of the same shape in channels-last memory format: all that is done to validation and
    test images. Raises InputError if the images are not uint8.
    """
    return _standardise(_unit_range(images), mean, std)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Augmentation parameters of n images, tensors of length n on one device.

    `top`, `left`, `height` and `width` (int64, pixels) are the crop; `flip` (bool) mirrors left and right;
    `brightness` and `saturation` (float32) are factors, applied in this order where `brightness_first`
    (bool) and in the other elsewhere. Indexing with `rows` (a slice or an int64 tensor) gives the
    parameters of those images.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    brightness: Tensor
    saturation: Tensor
    brightness_first: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Augmentation":
        return Augmentation(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_augmentation(n: int, generator: torch.Generator, resolution: int = RESOLUTION) -> Augmentation:
    """Draw the augmentation of n square images of that many pixels a side, on the generator's device.

    The crop's share of the area is uniform in 0.08 to 1 and the ratio of its width to its height
    log-uniform in 3/4 to 4/3, both sides rounded to pixels; the first of ten draws that fits is placed
    uniformly, and where none fits the whole image is taken (torchvision's RandomResizedCrop). Half of the
    images are flipped. The brightness factor is uniform in 1 - 32/255 to 1 + 32/255 and the saturation
    factor in 0.5 to 1.5, in either order with equal probability. (Released code of Cai et al. 2020 and
    Shipard et al. 2022.) The same seed gives other numbers on another kind of device.
    """
    u_area, u_ratio = torch.rand((2, 10, n), generator=generator, device=generator.device)
    area = resolution * resolution * (0.08 + 0.92 * u_area)
    ratio = torch.exp(math.log(4 / 3) * (2 * u_ratio - 1))
    width, height = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (width <= resolution) & (height <= resolution)  # the smallest crop drawn, a quarter, is never empty
    first = fits.int().argmax(0, keepdim=True)  # of equal values, argmax takes the first
    height, width = (torch.where(fits.any(0), s.gather(0, first)[0], resolution).long() for s in (height, width))

    u = torch.rand((6, n), generator=generator, device=generator.device)
    return Augmentation(
        top=(u[0] * (resolution - height + 1)).long(),
        left=(u[1] * (resolution - width + 1)).long(),
        height=height,
        width=width,
        flip=u[2] < 0.5,
        brightness=1 + 32 / 255 * (2 * u[3] - 1),
        saturation=0.5 + u[4],
        brightness_first=u[5] < 0.5,
    )


def parts(n: int, resolution: int) -> list[slice]:
    """`n` images in parts to augment at once: 8,000 of 32 pixels, of larger ones as many as take their bytes."""
    at_once = max(1, AUGMENTED_AT_ONCE * RESOLUTION**2 // resolution**2)
    return [slice(start, start + at_once) for start in range(0, n, at_once)]


def augment(
    images: Tensor, parameters: Augmentation, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Tensor:
    """Crop, flip, jitter and normalise a batch, each image by its own parameters, without a loop over images.

    `images` are uint8 [n, C, R, R] and `parameters` those of n images of this size on the same device; returns float32
    [n, C, R, R] in channels-last memory format, as `normalise` does. Pixels are clipped to 0..1 after
    brightness and after saturation, which leaves grey images as they are. Nothing here synchronises or has
    a shape that depends on data, so a CUDA graph can capture it. Raises InputError if the images are not
    uint8.
    """
    x = _unit_range(images)
    n, channels = x.shape[:2]
    p = parameters

    # Crop, resize and flip are linear and separable: out = rows @ image @ columns^T for each channel.
    rows = _interpolation(p.top, p.height, torch.zeros_like(p.flip), x.shape[-2])
    columns = _interpolation(p.left, p.width, p.flip, x.shape[-1])
    x = (x.flatten(1, 2) @ columns.mT).view(x.shape)
    x = rows[:, None] @ x

    # Brightness and saturation are both f * x + g * grey(x), that is, one matrix that mixes the channels.
    brightness, saturation = (p.brightness, torch.zeros_like(p.brightness)), (p.saturation, 1 - p.saturation)
    eye = torch.eye(channels, device=x.device)
    grey = _channels(_GREY_WEIGHTS[channels], x.device)
    x = x.flatten(2)
    for jitters in ((brightness, saturation), (saturation, brightness)):
        f, g = (torch.where(p.brightness_first, *pair)[:, None, None] for pair in zip(*jitters, strict=True))
        x = ((f * eye + g * grey) @ x).clamp_(0, 1)
    return _standardise(x.view(images.shape), mean, std)


def _interpolation(start: Tensor, length: Tensor, flip: Tensor, size: int) -> Tensor:
    """Matrices [n, size, size] that stretch `length` pixels from `start` to `size` pixels, mirrored where `flip`.

    A crop is never larger than the output, so that antialiased bilinear interpolation is the plain one.
    """
    pixel = torch.arange(size, device=start.device)
    centre = pixel + 0.5
    centre = torch.where(flip[:, None], size - centre, centre)
    last = (length - 1)[:, None]
    source = (centre * (length / size)[:, None] - 0.5).clamp_(min=0).minimum(last) + start[:, None]
    return (1 - (pixel - source[:, :, None]).abs_()).clamp_(min=0)


def _unit_range(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 in 0..1, one plane a channel."""
    if images.dtype != torch.uint8:
        raise InputError(f"images are {images.dtype}, expected torch.uint8: pass those of a Dataset")
    return images.contiguous().to(torch.float32).div_(255)  # faster than rearranging floats


def _standardise(x: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """(x - mean) / std in place, unless `mean` is None; then to channels-last."""
    if mean is not None and std is not None:
        x = x.sub_(_channels(mean, x.device)[:, None, None]).div_(_channels(std, x.device)[:, None, None])
    # x.contiguous() would keep the strides of a single channel, by which convolutions choose channels-first
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # torch.tensor would copy from the host, which a CUDA graph cannot capture
    return torch.cat([torch.full((1,), value, device=device) for value in values])
