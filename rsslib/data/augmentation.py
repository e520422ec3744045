"""Augment and normalise images with batched tensor code on the device. Every image has its own parameters."""

import math

import torch
from torch import Tensor

from rsslib.errors import InputError
from rsslib.space import RESOLUTION

AUGMENTED_AT_ONCE = 8_000  # images of 32 pixels
GREY = {1: (1.0,), 3: (0.2989, 0.587, 0.114)}  # weights of the channels, as in torchvision

# Rows of the augmentation parameters, float32 [8, images]. The first four are the crop, in pixels. `flip` is 1 if left
# and right are mirrored. Brightness and saturation are factors. Brightness comes first if `brightness_first` is 1, and
# second if it is 0.
PARAMETERS = ("top", "left", "height", "width", "flip", "brightness", "saturation", "brightness_first")

Channels = tuple[float, ...] | None  # one number per channel


def normalise(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Scale uint8 images [N, C, R, R] to 0..1 and, unless `mean` is None, to (x - mean) / std.

    Returns float32 of the same shape in channels-last memory format. This is all that validation and test images get.
    Raises InputError if the images are not uint8.
    """
    return _standardise(_unit_range(images), mean, std)


def draw_augmentation(
    n: int,
    generator: torch.Generator,
    resolution: int = RESOLUTION,
    strength: float = 1.0,
) -> Tensor:
    """Draw the `PARAMETERS` of n square images of `resolution` pixels per side, on the generator's device.

    The crop covers a uniform 0.08 to 1 of the area, and its ratio of width to height is log-uniform in 3/4 to 4/3; both
    sides are rounded to pixels. The first of ten draws that fits is placed uniformly; if none fits, the crop is the
    whole image (torchvision's RandomResizedCrop). Half of the images are flipped. The brightness factor is uniform in
    1 - 32/255 to 1 + 32/255 and the saturation factor in 0.5 to 1.5; either comes first with equal probability.
    (Released code of Cai et al. 2020 and Shipard et al. 2022.) A `strength` below 1 weakens all of these; 0 changes
    nothing. A seed gives different numbers on different kinds of device.
    """

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, device=generator.device)

    u_area, u_ratio = uniform(2, 10, n)
    area = resolution * resolution * (1 - 0.92 * strength + 0.92 * strength * u_area)
    ratio = torch.exp(strength * math.log(4 / 3) * (2 * u_ratio - 1))
    widths = torch.sqrt(area * ratio).round()
    heights = torch.sqrt(area / ratio).round()
    fits = (widths <= resolution) & (heights <= resolution)
    fitting = fits.any(0)
    first = fits.int().argmax(0, keepdim=True)  # of equal values, argmax takes the first

    def choose(sides: Tensor) -> Tensor:
        chosen = sides.gather(0, first)[0]
        return torch.where(fitting, chosen, resolution)

    height = choose(heights)
    width = choose(widths)
    u_top, u_left, u_flip, u_brightness, u_saturation, u_order = uniform(6, n)
    top = (u_top * (resolution - height + 1)).floor()
    left = (u_left * (resolution - width + 1)).floor()
    flip = u_flip < 0.5 * strength
    brightness = 1 + strength * 32 / 255 * (2 * u_brightness - 1)
    saturation = 1 - 0.5 * strength + strength * u_saturation
    return torch.stack([top, left, height, width, flip, brightness, saturation, u_order < 0.5])


def parts(n: int, resolution: int) -> list[slice]:
    """Split `n` images into parts to augment at once: 8,000 of 32 pixels, or larger ones of as many bytes."""
    at_once = max(1, AUGMENTED_AT_ONCE * RESOLUTION**2 // resolution**2)
    return [slice(start, start + at_once) for start in range(0, n, at_once)]


def augment(
    images: Tensor,
    parameters: Tensor,
    mean: Channels,
    std: Channels,
    resolution: int | None = None,
) -> Tensor:
    """Crop, flip, jitter and normalise uint8 images [n, C, S, S], each by its own `PARAMETERS` [8, n].

    Returns float32 [n, C, R, R] in channels-last memory format, where R is `resolution`, by default S. Pixels are
    clipped to 0..1 after brightness and after saturation. Saturation leaves grey images unchanged. The function never
    synchronises, and no shape depends on data, so a CUDA graph can capture it. Raises InputError if the images are not
    uint8.
    """
    top, left, height, width, flip, brightness, saturation, brightness_first = parameters
    x = _unit_range(images)
    channels, side = x.shape[1:3]
    size = resolution or side

    # Crop, resize and flip are linear and separable: rows @ image @ columns^T for each channel.
    rows = _interpolation(top, height, torch.zeros_like(flip), size, side)
    columns = _interpolation(left, width, flip, size, side)
    x = x.flatten(1, 2) @ columns.mT
    x = rows[:, None] @ x.view(-1, channels, side, size)

    # Brightness and saturation are both factor * x + rest * grey(x), that is, a matrix that mixes the channels.
    same = torch.eye(channels, device=x.device)
    grey = _per_channel(GREY[channels], x.device)

    def jitter(x: Tensor, brighten: Tensor) -> Tensor:
        factor = torch.where(brighten, brightness, saturation)
        rest = (1 - saturation).masked_fill(brighten, 0)
        mix = factor[:, None, None] * same
        mix = mix + rest[:, None, None] * grey
        return (mix @ x).clamp_(0, 1)

    x = x.flatten(2)
    x = jitter(x, brightness_first > 0)
    x = jitter(x, brightness_first == 0)
    return _standardise(x.view(-1, channels, size, size), mean, std)


def _interpolation(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int) -> Tensor:
    """Return matrices [n, size, side] that resize `length` of `side` pixels from `start` to `size`, mirrored if `flip`.

    Resizing is bilinear with antialiasing. If no crop can be larger than the output, this is plain bilinear
    interpolation.
    """
    start = start[:, None]
    length = length[:, None]
    centre = torch.arange(size, device=start.device) + 0.5
    centre = torch.where(flip[:, None] > 0, size - centre, centre)
    source = centre * (length / size) - 0.5
    pixel = torch.arange(side, device=start.device)
    if side <= size:
        source = source.clamp_(min=0).minimum(length - 1)
        source = source + start
        distance = (pixel - source[:, :, None]).abs_()
        return (1 - distance).clamp_(min=0)
    reach = (length / size).clamp_(min=1)[:, :, None]
    distance = (pixel - (source + start)[:, :, None]).abs_()
    inside = (pixel >= start) & (pixel < start + length)
    weights = (1 - distance / reach).clamp_(min=0) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def _unit_range(images: Tensor) -> Tensor:
    """Convert uint8 [N, C, H, W] to float32 in 0..1, one plane per channel."""
    if images.dtype != torch.uint8:
        raise InputError(f"images are {images.dtype}, expected torch.uint8: pass those of a Dataset")
    planes = images.contiguous()  # faster than rearranging floats
    return planes.to(torch.float32).div_(255)


def _standardise(x: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Compute (x - mean) / std in place, unless `mean` is None; returns it in channels-last memory format."""
    if mean is not None and std is not None:
        x -= _per_channel(mean, x.device)[:, None, None]
        x /= _per_channel(std, x.device)[:, None, None]
    # x.contiguous() would keep the strides of a single channel, for which convolutions choose channels-first
    result = torch.empty_like(x, memory_format=torch.channels_last)
    return result.copy_(x)


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # torch.tensor would copy from the host, which a CUDA graph cannot capture
    numbers = [torch.full((1,), value, device=device) for value in values]
    return torch.cat(numbers)
