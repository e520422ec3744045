"""Turn any image into the pixels that a network takes. Needs only NumPy and Pillow; part of every device kit."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # for other formats, Pillow may start programs
DECODED = 448  # pixels of the shorter side, from which JPEG files are decoded at a half, a quarter or an eighth


def pixels_of(image: Image.Image, grey: bool) -> np.ndarray:
    """Return an image as uint8 [H, W, 1 or 3], turned upright, with transparent pixels in white.

    Of 16-bit grey values, the high byte is kept; 32-bit and floating-point values raise ValueError. Large JPEG files
    are decoded at the smallest scale that leaves 448 pixels or more on each side, which is several times as fast.
    """
    image.draft(None, (DECODED, DECODED))
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if image.mode in ("I", "F") and not deep:
        raise ValueError("its grey values have 32 bits, expected 8 or 16")
    image = ImageOps.exif_transpose(image)
    if deep:
        values = np.asarray(image)
        transparent = values == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(transparent, 255, values >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels.reshape(image.height, image.width, -1)


def resize_with_pillow(x: np.ndarray, resolution: int) -> np.ndarray:
    """Resize uint8 [N, H, W, C] to [N, R, R, C]: bilinear with antialias."""

    def resize(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(plane.astype(np.float32))
        return np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR))

    planes = [[resize(plane) for plane in image] for image in x.transpose(0, 3, 1, 2)]
    result = np.array(planes).transpose(0, 2, 3, 1)
    return result.round().clip(0, 255).astype(np.uint8)


def fit(x: np.ndarray, resolution: int, resize: Callable = resize_with_pillow) -> np.ndarray:
    """Convert uint8 [N, H, W, C] to [N, R, R, C]: pad grey 28 x 28 images to 32, otherwise crop and resize.

    The crop is the largest square in the middle, so the aspect is kept.
    """
    if x.shape[1:3] == (resolution, resolution):
        return x
    if (*x.shape[1:], resolution) == (28, 28, 1, 32):
        return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    height, width = x.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(x[:, top : top + side, left : left + side], resolution)


def network_input(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """Return one image [H, W, C] as a batch [1, C, R, R]."""
    images = fit(pixels[None], resolution)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
