"""Predict the class of image files with an exported model, using Pillow and onnxruntime, without PyTorch.

Any program can do the same: the file takes uint8 [N, C, R, R] and returns logits. Its metadata list the classes.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsslib.data.images import is_image, read_image
from rsslib.data.packing import listed
from rsslib.data.pixels import network_input
from rsslib.deploy.measure import open_session
from rsslib.deploy.predict import most_probable
from rsslib.errors import InputError, checked, choose, needed, one_line
from rsslib.files import read_regular
from rsslib.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "rsslib"  # key in the metadata of exported files; its value is the version
LARGEST_MODEL = 2**30  # bytes
BATCH = 100


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image."""

    path: Path
    label: str
    probability: float


@dataclass(frozen=True)
class Model:
    """An opened model: its session and its metadata, which `rsslib.deploy.exporting.export` lists."""

    session: Any  # onnxruntime.InferenceSession
    metadata: dict

    @classmethod
    def of(cls, content: bytes) -> "Model":
        """Open the content of a file, ignoring its metadata."""
        return cls(session_of(content), {})

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits, float32 [N, classes], of uint8 images [N, C, R, R]."""
        parts = np.split(images, range(BATCH, len(images), BATCH))
        found = interruptible(lambda how: [self.session.run(None, {"images": part}, how)[0] for part in parts])
        return np.concatenate(found)

    @checked
    def predict(self, path: str | Path) -> Prediction:
        """Return the most probable class of an image file, in any colour mode, with up to 60 million pixels.

        Images are read like training images (in grey if the model is grey) and resized by Pillow. The pixels equal
        those in training, up to one grey level of rounding. Raises InputError for a file that is not an image.
        """
        pixels = read_image(Path(path), grey=self.metadata["channels"] == 1)
        pixels = network_input(pixels, self.metadata["resolution"])
        classes = self.metadata["classes"]
        try:
            logits = self.logits(pixels)
        except Exception as error:  # onnxruntime has a type per cause
            raise InputError(f"the model cannot be run ({one_line(error)}): export it again") from None
        if logits.shape != (1, len(classes)) or not np.isfinite(logits).all():
            raise InputError(f"the model gives no finite logits for {path}: export it again")
        best, probability = most_probable(logits[0])
        return Prediction(Path(path), classes[best], probability)


@checked
def predict_folder(model: Model, folder: str | Path, progress: bool = True) -> "pd.DataFrame":
    """Predict the images in the class folders of `folder`; returns a row per image: path, label and predicted.

    Raises InputError if there are no images or a folder is not a class of the model, and as `Model.predict` does.
    """
    import pandas as pd

    places = [place for place in listed(Path(folder)) if place.is_dir()]
    for place in places:
        choose(place.name, model.metadata["classes"], f"class in {folder}")
    files = [path for place in places for path in listed(place) if is_image(path)]
    if not files:
        raise InputError(f"{folder} holds no images: put image files in {folder}/<class>/")
    bar = progress_bar(files, progress, desc="predict", unit="image")
    rows = [(path, path.parent.name, model.predict(path).label) for path in bar]
    return pd.DataFrame(rows, columns=["path", "label", "predicted"])


def interruptible(work: Callable[[Any], Any]) -> Any:
    """Return `work(run_options)`, which runs a session in a thread, so that Ctrl-C can end a model that never ends."""
    options = needed("onnxruntime", "export").RunOptions()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work, options)
        try:
            return running.result()
        except BaseException:
            options.terminate = True
            raise


def accuracy_interval(right: np.ndarray) -> dict[str, float]:
    """Return the accuracy in percent of bool [n], with the bounds low and high of Wilson's 95 % interval."""
    n, share, z = len(right), float(np.mean(right)), 1.96
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return {"accuracy": 100 * share, "low": 100 * (centre - margin), "high": 100 * (centre + margin)}


def add_metadata(model: Any, metadata: dict) -> bytes:
    """Return the content of a file from an onnx.ModelProto, or its content, with metadata that `open_model` reads."""
    onnx = needed("onnx", "export")
    if isinstance(model, bytes):
        model = onnx.load_from_string(model)
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, {FORMAT: "1", **texts})
    return model.SerializeToString()


def session_of(model: bytes) -> Any:
    """Return an onnxruntime session on one thread of a CPU."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    needed("onnxruntime", "export")
    return open_session(model)


@checked
def open_model(path: str | Path) -> Model:
    """Open an exported file; raises InputError if it cannot be read or was not written by `export`."""
    try:
        content = read_regular(path, LARGEST_MODEL)
        session = session_of(content)
        words = session.get_modelmeta().custom_metadata_map
    except InputError:
        raise
    except OSError as error:
        why = error.strerror
        raise InputError(f"{path} cannot be read ({why}): expected a model that `rsslib export` wrote") from None
    except Exception as error:  # onnxruntime has a type for each cause
        if is_image(Path(path)):
            raise InputError(f"{path} is an image: the model comes first") from None
        raise InputError(f"{path} is damaged or no ONNX file ({one_line(error)}): export it again") from None
    try:
        metadata = {name: json.loads(value) for name, value in words.items() if name != FORMAT}
        channels, side, classes = (metadata[name] for name in ("channels", "resolution", "classes"))
        (images,), (logits,) = session.get_inputs(), session.get_outputs()
        ours = (
            words[FORMAT] == "1"
            and (images.name, images.type) == ("images", "tensor(uint8)")
            and images.shape[1:] == [channels, side, side]
            and (logits.type, logits.shape[1:]) == ("tensor(float)", [len(classes)])
            and type(side) is int
            and channels in (1, 3)
            and side in range(32, 225)
            and isinstance(classes, list)
            and all(isinstance(name, str) for name in classes)
        )
    except (KeyError, ValueError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(
            f"{path} is an ONNX file, but not one that this version of `rsslib export` wrote: its metadata do not "
            "describe its input and its classes"
        )
    return Model(session, metadata)
