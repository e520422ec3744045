"""Quantise an exported file to 8 bits: as accurate as before, within a bound, or refused."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rsslib.data.dataset import Dataset
from rsslib.deploy.latency import latency
from rsslib.deploy.predicting import Model, accuracy_interval, add_metadata, open_model
from rsslib.errors import InputError, check_number, needed
from rsslib.files import check_output, read_regular, write

CALIBRATION_IMAGES = 500
LARGEST_LOSS = 1.0  # points of accuracy on the validation images


def quantise(path: str | Path, images: Dataset, largest_loss: float = LARGEST_LOSS) -> dict:
    """Write `<name>.int8.onnx` beside an exported file: the same function with weights and activations of 8 bits.

    Quantisation is static, per channel, in ONNX's QDQ format, calibrated on 500 training images (or all there are).
    Weights have 7 bits of the 8, because sums of products of 8 bits can saturate on x86 processors without VNNI.

    Returns the path, the agreement (percent of test images with the same prediction as before) and, for "float32" and
    "int8", the accuracy on the test images with its 95 % interval, bytes and `latency`.

    Raises InputError, and writes no file, if the model loses more than `largest_loss` points of accuracy on the
    validation images, if `path` is no exported file, or if the extra [export] is not installed.
    """
    check_number(largest_loss, "largest_loss", 0)
    path = Path(path)
    target = path.with_suffix(".int8.onnx")
    check_output(target, "the model's folder")
    before = open_model(path)
    validation, test = (x.cpu().contiguous().numpy() for x in (images.x_val, images.x_test))
    labels, test_labels = (y.cpu().numpy() for y in (images.y_val, images.y_test))
    floats = accuracy(before, validation, labels)
    content = quantised(path, images.x_train[:CALIBRATION_IMAGES].cpu().contiguous().numpy())
    model = Model.of(content)
    loss = floats - accuracy(model, validation, labels)
    if loss > largest_loss:
        raise InputError(
            f"int8 costs {loss:.2f} points of accuracy on {len(labels)} validation images, allowed is "
            f"{largest_loss:g}: no file was written; use the float32 file, or allow more"
        )
    predicted = [opened.logits(test).argmax(1) for opened in (before, model)]
    changed = {"accuracy": 100 * float(np.mean(predicted[1] == test_labels)), "precision": "int8"}
    write(target, add_metadata(content, before.metadata | changed))
    rows: dict[str, Any] = {"path": target, "agreement": 100 * float(np.mean(predicted[0] == predicted[1]))}
    for name, file, found in (("float32", path, predicted[0]), ("int8", target, predicted[1])):
        rows[name] = accuracy_interval(found == test_labels) | {"bytes": file.stat().st_size, "latency": latency(file)}
    return rows


def accuracy(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(model.logits(images).argmax(1) == labels))


class Calibration:
    """Images one at a time, as onnxruntime asks for them."""

    def __init__(self, images: np.ndarray):
        self.left = iter(images[:, None])

    def get_next(self) -> dict | None:
        image = next(self.left, None)
        return None if image is None else {"images": image}


def quantised(path: Path, images: np.ndarray) -> bytes:
    """Return the content of the quantised file, without metadata."""
    onnx, tools = needed("onnx", "export"), needed("onnxruntime.quantization", "export")

    model = onnx.load_from_string(read_regular(path))
    logging.disable(logging.WARNING)  # which advise to simplify a model that is simple
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            tools.quantize_static(
                model,
                file,
                Calibration(images),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
            )
            return file.read_bytes()
    finally:
        logging.disable(logging.NOTSET)
