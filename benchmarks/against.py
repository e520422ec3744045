"""Training and evaluation on a CPU against another commit: a process for each side, in turn.

Each side runs this file in a process that imports its own commit's packages. `--commit` must have this file's
`Ours`, `subnets_of_sizes`, `Evaluator` and `correct_answers`, as all since 8715e25 have.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", default="8715e25", help="default: %(default)s")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the other commit's requirements")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", nargs="+", default=["uniform", "four", "evaluation"])
    parser.add_argument("--images", type=int, default=2000, help="test images of an evaluation; the study has 10,000")
    parser.add_argument("--tunables", default="", help="GLIBC_TUNABLES of this side")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.threads, chosen.images)
        return
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(before), chosen.commit], check=True)
        try:
            compare({"before": before, "now": HERE}, chosen)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)


def compare(roots: dict[str, Path], chosen: argparse.Namespace) -> None:
    sides = {
        "before": side(chosen.python, roots["before"], chosen),
        "now": side(sys.executable, roots["now"], chosen, chosen.tunables),
    }
    for work in chosen.work:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(chosen.rounds + 1):
            for name in list(sides)[:: 1 if i % 2 else -1]:
                row = ask(sides[name], work)
                seconds[name] += [row["seconds"]] if i else []  # the first round is to warm up
        pairs = zip(seconds["before"], seconds["now"], strict=True)
        ratios = sorted(now / before for before, now in pairs)
        medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(json.dumps({"work": work} | medians | {"now / before": round(statistics.median(ratios), 3)}), spread)
    for name, process in sides.items():
        print(name, json.dumps(ask(process, "memory")), flush=True)
        process.stdin.close()
        process.wait()


def side(python: str, root: Path, chosen: argparse.Namespace, tunables: str = "") -> subprocess.Popen:
    """A process that imports the packages and `benchmarks/common.py` of `root`."""
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")]), "GLIBC_TUNABLES": tunables}
    command = [python, "-P", str(Path(__file__).resolve()), "--serve"]
    command += ["--threads", str(chosen.threads), "--images", str(chosen.images)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | paths, **pipes)


def ask(process: subprocess.Popen, work: str) -> dict:
    process.stdin.write(work + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(threads: int, images: int) -> None:
    """Answer each line of stdin, the name of some work, by a line of JSON with the seconds that it took."""
    import numpy as np
    import torch
    from common import SPACE, Ours, random_data, subnets_of_sizes, timed

    from rsslib.evaluate import Evaluator, LabelledBatches, correct_answers, recalibration_images
    from rsslib.supernet import SuperNet

    torch.set_num_threads(threads)
    rng = np.random.default_rng(1)
    one, four = Ours(20), Ours(5, distill=True)
    subnets = subnets_of_sizes()["uniform"]
    draws = [tuple(SPACE.sample_arch(rng) for _ in range(4)) for _ in range(5)]
    data = random_data(2000, images)
    evaluator = Evaluator(
        SuperNet(SPACE).eval(), LabelledBatches(data.x_test, data.y_test, data), recalibration_images(data)
    )

    def uniform() -> float:
        return statistics.mean(one.seconds([(arch,)] * 20) for arch in subnets)

    def evaluation() -> float:
        return statistics.mean(timed(lambda arch=arch: correct_answers(evaluator, arch)) for arch in subnets)

    works = {"uniform": uniform, "four": lambda: four.seconds(draws), "evaluation": evaluation}
    for line in sys.stdin:
        work, usage = line.strip(), resource.getrusage(resource.RUSAGE_SELF)
        if work == "memory":
            answer = {"peak MB": usage.ru_maxrss / 1024, "minor faults": usage.ru_minflt}
        else:
            answer = {"seconds": works[work]()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
