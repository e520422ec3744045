"""What an exported model says of an image, by Pillow and onnxruntime: this needs no PyTorch.

Any program can do the same: the file takes uint8 [N, C, R, R] and gives logits, and its metadata name the classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsslib.data.readers import fit_with_pillow, read_image
from rsslib.errors import InputError, needed, one_line

FORMAT = "rsslib"  # the metadata's key that says which files are ours; its value is the version


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image."""

    path: Path
    label: str
    probability: float


@dataclass(frozen=True)
class Model:
    """An exported file, opened: its session and its metadata, see `rsslib.deploy.exporting.export`."""

    session: Any  # onnxruntime.InferenceSession
    metadata: dict

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, classes] of uint8 images [N, C, R, R]."""
        return self.session.run(None, {"images": images})[0]

    def predict(self, path: str | Path) -> Prediction:
        """The most probable class of an image file; raises InputError for one that is no image. See `predict`."""
        pixels = fit_with_pillow(
            read_image(Path(path), grey=self.metadata["channels"] == 1), self.metadata["resolution"]
        )
        logits = self.logits(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0].astype(float)
        weights = np.exp(logits - logits.max())
        best = int(weights.argmax())
        return Prediction(Path(path), self.metadata["classes"][best], float(weights[best] / weights.sum()))


def session_of(model: bytes):
    """An onnxruntime session on one thread of a CPU."""
    runtime = needed("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_model(path: str | Path) -> Model:
    """Open an exported file; raises InputError if it cannot be read, or is another program's."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: expected a model that `rsslib export` wrote")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected what `rsslib export` wrote") from None
    try:
        session = session_of(content)
        words = session.get_modelmeta().custom_metadata_map
    except InputError:
        raise
    except Exception as error:  # onnxruntime has a type for each cause
        raise InputError(f"{path} is damaged or no ONNX file ({one_line(error)}): export it again") from None
    try:
        metadata = {name: json.loads(value) for name, value in words.items() if name != FORMAT}
        images, logits = session.get_inputs(), session.get_outputs()
        shape = [metadata[name] for name in ("channels", "resolution", "resolution")]
        told = [words[FORMAT], [x.name for x in images], images[0].type, images[0].shape[1:], logits[0].shape[1:]]
        ours = told == ["1", ["images"], "tensor(uint8)", shape, [len(metadata["classes"])]]
    except (KeyError, ValueError, IndexError, TypeError):
        ours = False
    if not ours:
        raise InputError(
            f"{path} is an ONNX file, but not one that this version of `rsslib export` wrote: its metadata do not "
            "say what its input and its classes are"
        )
    return Model(session, metadata)


def predict(model: str | Path, images: Sequence[str | Path]) -> list[Prediction]:
    """The most probable class of each image file, which may have any colours and up to 25 million pixels.

    Images are read as the training's are (grey if the model is) and fitted to the model's size by Pillow; the
    training's come to the same pixels up to one grey level of rounding. Raises InputError for a file that is not an
    exported model and for one that is no image.
    """
    opened = open_model(model)
    return [opened.predict(path) for path in images]
