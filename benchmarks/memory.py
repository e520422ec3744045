"""Peak memory of ten training steps on 64 images, each case in a process of its own, imports and dataset included."""

import resource
import subprocess
import sys

import torch
from common import CUDA, SPACE, Ours, report

CASES = ("smallest", "middle", "largest", "imports alone")


def peak(who: str, size: str) -> float:
    """MB in this process after ten steps: resident on a CPU, allocated on a GPU."""
    steps = 10
    if size != "imports alone":
        arch = getattr(SPACE, size)
        if who == "ours":
            Ours(steps).seconds([(arch,)] * steps)
        else:
            from official import Official

            official = Official()
            for _ in range(steps):
                official.seconds((arch,))
    used = torch.cuda.max_memory_allocated() if CUDA else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6


def main() -> None:
    rows = []
    for size in CASES:
        row = {"subnet": size}
        for who in ("ours", "official"):
            output = subprocess.run([sys.executable, __file__, who, size], capture_output=True, text=True, check=True)
            row[f"{who} MB"] = float(output.stdout)
        rows.append(row)
    report(__doc__, rows)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(peak(*sys.argv[1:]))
    else:
        main()
