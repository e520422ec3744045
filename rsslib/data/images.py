"""Open image files, for datasets and for predictions. Nothing else opens images; PyTorch is not needed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, UnidentifiedImageError

from rsslib.data.pixels import FORMATS, pixels_of
from rsslib.errors import InputError, one_line
from rsslib.files import open_regular

OTHER_SUFFIXES = (
    ".heic .heif .hif .avif .jxl .svg .dng .cr2 .cr3 .nef .arw .raf .rw2 .orf .pef .srw".split()
)  # besides the formats that Pillow knows
LARGEST_FILE = 2**28  # bytes
LARGEST_IMAGE = 60_000_000  # pixels; a small file may decode to gigabytes
OPENING = Lock()  # all threads share the filters of warnings
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding it; errors become InputError, including those in the block."""
    try:
        with open_regular(path, LARGEST_FILE) as file:
            with OPENING, warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                image = Image.open(file, formats=FORMATS)
            if image.width * image.height > LARGEST_IMAGE:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"it has {size} pixels, expected at most {LARGEST_IMAGE:,} in all")
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: name the images in it") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a readable image ({', '.join(FORMATS)}): convert or remove it") from None
    except Exception as error:  # Pillow raises many types on damaged files
        raise InputError(f"{path} is not a readable image ({one_line(error)}): repair or remove it") from None


def read_image(path: Path, grey: bool) -> np.ndarray:
    """Read an image as `pixels_of` describes."""
    with open_image(path) as image:
        return pixels_of(image, grey)


def is_grey(path: Path) -> bool:
    with open_image(path) as image:
        return image.mode in GREY_MODES


def is_image(path: Path) -> bool:
    """Return whether to read a file as an image, by its suffix, or by its content if the suffix says nothing.

    Raises InputError for a picture in another format, because it would be skipped silently otherwise.
    """
    Image.init()
    suffix = path.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind in FORMATS or path.is_dir():
        return True
    if kind in Image.OPEN or suffix in OTHER_SUFFIXES:
        raise InputError(f"{path} is in the format {suffix[1:].upper()}, which is not read: convert it to JPEG or PNG")
    try:
        with open_image(path):
            return True
    except InputError:
        return False


def resize_with_torch(x: np.ndarray, resolution: int) -> np.ndarray:
    """Resize uint8 [N, H, W, C] to [N, R, R, C]: bilinear with antialias."""
    import torch  # here, because predictions do not need it

    size = (resolution, resolution)
    result = np.empty((len(x), *size, x.shape[-1]), np.uint8)
    for i in range(0, len(x), 100):  # few at a time: the images may be large
        planes = torch.from_numpy(x[i : i + 100]).permute(0, 3, 1, 2)
        planes = planes.contiguous().float()
        planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
        planes = planes.round_().to(torch.uint8)
        result[i : i + 100] = planes.permute(0, 2, 3, 1).numpy()
    return result
