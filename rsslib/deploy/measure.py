"""Measure the models in this folder in onnxruntime: python measure.py. It needs onnxruntime and NumPy alone."""

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

RUNS, ROUNDS, WARM_UP = 100, 5, 10
FOLDER = Path(__file__).parent


def milliseconds(path: Path) -> float:
    """Return the median time of a model for one image on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (place,) = session.get_inputs()
    kind = np.uint8 if place.type == "tensor(uint8)" else np.float32
    noise = np.random.default_rng(0).integers(0, 256, (1, *place.shape[1:])).astype(kind)
    seconds = []
    for _ in range(WARM_UP + RUNS):
        began = time.perf_counter()
        session.run(None, {place.name: noise})
        seconds.append(time.perf_counter() - began)
    return 1000 * float(np.median(seconds[WARM_UP:]))


if __name__ == "__main__":
    times: dict[str, float] = {}
    for number in range(ROUNDS):  # the least counts, which leaves out what other programs add
        for model in sorted(FOLDER.glob("*.onnx")):
            times[model.stem] = min(milliseconds(model), times.get(model.stem, np.inf))
        print(f"round {number + 1} of {ROUNDS} is done", flush=True)
    (FOLDER / "times.json").write_text(json.dumps(times, indent=1))
    print(f"copy {FOLDER / 'times.json'} back into the kit")
