"""Predict the class of images: python predict.py model.onnx photo.jpg ...

This needs only onnxruntime, NumPy and Pillow. In a device's kit, `measure.py` and `pixels.py` are beside it.
"""

import argparse
import json
import sys

import numpy as np
from PIL import Image

from rsslib.data.pixels import FORMATS, network_input, pixels_of
from rsslib.deploy.measure import open_session


def most_probable(logits: np.ndarray) -> tuple[int, float]:
    """Return the class with the largest of logits [classes], as a number, and its probability."""
    weights = np.exp(logits.astype(float) - logits.max())
    best = int(weights.argmax())
    return best, float(weights[best] / weights.sum())


def main() -> int:
    """Print the class of each image; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="file that `rsslib export` wrote")
    parser.add_argument("images", nargs="+", help="image files")
    options, status = parser.parse_args(), 0
    try:
        session = open_session(options.model)
        words = session.get_modelmeta().custom_metadata_map
        channels, side, classes = (json.loads(words[name]) for name in ("channels", "resolution", "classes"))
    except Exception as error:  # the runtime raises many types
        parser.error(f"{options.model} is not a file that `rsslib export` wrote ({type(error).__name__})")
    for path in options.images:
        try:
            with Image.open(path, formats=FORMATS) as image:
                images = network_input(pixels_of(image, grey=channels == 1), side)
        except Exception as error:  # Pillow raises many types
            print(f"{path} is not a readable image: {error}", file=sys.stderr)
            status = 2
            continue
        (logits,) = session.run(None, {"images": images})[0]
        best, probability = most_probable(logits)
        print(f"{path}: {classes[best]} ({100 * probability:.1f} %)")
    return status


if __name__ == "__main__":
    sys.exit(main())
