"""Measure the models in this folder in onnxruntime: python measure.py. It needs only onnxruntime and NumPy."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

RUNS, ROUNDS, WARM_UP = 100, 5, 10
FOLDER = Path(__file__).parent


def open_session(model: str | bytes) -> Any:
    """Open a file or its content as a session on one thread of a CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def milliseconds(session: Any, runs: int = RUNS, options: Any = None) -> np.ndarray:
    """Return the times of a model for one image of noise, float64 [runs], after a warm-up."""
    (place,) = session.get_inputs()
    kind = np.uint8 if place.type == "tensor(uint8)" else np.float32
    noise = np.random.default_rng(0).integers(0, 256, (1, *place.shape[1:])).astype(kind)
    seconds = []
    for _ in range(WARM_UP + runs):
        began = time.perf_counter()
        session.run(None, {place.name: noise}, options)
        seconds.append(time.perf_counter() - began)
    return 1000 * np.array(seconds[WARM_UP:])


if __name__ == "__main__":
    times: dict[str, float] = {}
    for number in range(ROUNDS):  # the lowest counts, to exclude the effect of other programs
        for model in sorted(FOLDER.glob("*.onnx")):
            median = float(np.median(milliseconds(open_session(str(model)))))
            times[model.stem] = min(median, times.get(model.stem, median))
        print(f"round {number + 1} of {ROUNDS} is done", flush=True)
    (FOLDER / "times.json").write_text(json.dumps(times, indent=1))
    print(f"copy {FOLDER / 'times.json'} back into the kit")
