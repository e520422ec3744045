"""Quantise an exported file to int8; refused if accuracy falls by more than a bound."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from rsslib.data.dataset import Dataset
from rsslib.deploy.latency import latency
from rsslib.deploy.predicting import Model, accuracy_interval, add_metadata, open_model
from rsslib.errors import InputError, checked, needed
from rsslib.files import check_output, read_regular, write

CALIBRATION_IMAGES = 500
LARGEST_LOSS = 1.0  # points of accuracy on the validation images


@checked
def quantise(path: str | Path, images: Dataset, largest_loss: Annotated[float, 0, None] = LARGEST_LOSS) -> dict:
    """Write `<name>.int8.onnx` beside an exported file: the same network with 8-bit weights and activations.

    Quantisation is static, per channel, in ONNX's QDQ format, calibrated on 500 training images (or on all if there are
    fewer). Weights use 7 of the 8 bits, because sums of 8-bit products can saturate on x86 processors without VNNI.

    Returns the path, the agreement (percent of test images with the same prediction as the float32 file), and for
    "float32" and "int8" the accuracy on the test images with its 95 % interval, bytes and `latency`.

    Raises InputError, and writes no file, if the model loses more than `largest_loss` points of accuracy on the
    validation images, if `path` is not an exported file, or if the extra [export] is not installed.
    """
    path = Path(path)
    target = path.with_suffix(".int8.onnx")
    check_output(target, "the model's folder")
    before = open_model(path)
    content = quantised(path, pixels(images.x_train[:CALIBRATION_IMAGES]))
    models = (before, Model.of(content))

    labels = images.y_val.cpu().numpy()
    floats, ints = (100 * np.mean(model.logits(pixels(images.x_val)).argmax(1) == labels) for model in models)
    if floats - ints > largest_loss:
        raise InputError(
            f"int8 costs {floats - ints:.2f} points of accuracy on {len(labels)} validation images, allowed is "
            f"{largest_loss:g}: no file was written; use the float32 file, or allow more"
        )
    predicted = [model.logits(pixels(images.x_test)).argmax(1) for model in models]
    found = [accuracy_interval(classes == images.y_test.cpu().numpy()) for classes in predicted]
    changed = {"accuracy": found[1]["accuracy"], "precision": "int8"}
    write(target, add_metadata(content, before.metadata | changed))
    rows: dict[str, Any] = {"path": target, "agreement": 100 * float(np.mean(predicted[0] == predicted[1]))}
    for name, file, row in zip(("float32", "int8"), (path, target), found, strict=True):
        rows[name] = row | {"bytes": file.stat().st_size, "latency": latency(file)}
    return rows


def pixels(images: Tensor) -> np.ndarray:
    return images.cpu().contiguous().numpy()


def quantised(path: Path, images: np.ndarray) -> bytes:
    """Return the content of the quantised file, without metadata."""
    onnx, tools = needed("onnx", "export"), needed("onnxruntime.quantization", "export")
    model = onnx.load_from_string(read_regular(path))
    left = ({"images": image[None]} for image in images)
    logging.disable(logging.WARNING)  # hides advice to simplify a model that is simple
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            tools.quantize_static(
                model,
                file,
                SimpleNamespace(get_next=lambda: next(left, None)),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
            )
            return file.read_bytes()
    finally:
        logging.disable(logging.NOTSET)
