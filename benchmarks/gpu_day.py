"""Everything that wants a GPU, in one go: versions, tests, graphs against single steps, benchmarks, a campaign.

Each step is a process of its own with a time limit; what it found is written as it ends, and one that fails stops no
other. After each, OUT.tar.gz holds all tables and records so far. The campaign takes what is left of the time budget
and goes on from its checkpoints if called again. `--rehearse` does all of it in tiny, on the CPU.
"""

import argparse
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve()
PROJECT = HERE.parent.parent
CAMPAIGN = ("rss-short", "rss", "ofa-released", "ofa")  # on CIFAR-100, what is worth most first
ENDING = 20  # seconds before the end at which the campaign stops by itself, to keep what it has
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "numba", "triton", "pytest", "ofa")


@dataclass(frozen=True)
class Part:
    """A step of the day: what is run, and in how many seconds it should end."""

    name: str
    command: tuple[str, ...]
    limit: float


def parts(out: Path, rehearse: bool) -> list[Part]:
    """The steps before the campaign, in order."""
    own = (str(HERE), "--out", str(out), *(["--rehearse"] if rehearse else []), "--only")
    result = [Part("installed", (*own, "installed"), 120)]
    if rehearse:
        files, chosen = ["tests/cuda/test_streams.py"], "not cuda"
        benchmarks = {"profile_step": ("--steps", "1"), "kernels": ()}
    else:
        paths = sorted((PROJECT / "tests").rglob("test_*.py"))
        files = [str(path.relative_to(PROJECT)) for path in paths if "mark.cuda" in path.read_text(encoding="utf-8")]
        chosen = "cuda"
        benchmarks = {"training_step": (), "concurrency": (), "scaling": (), "memory": (), "evaluation": (),
                      "kernels": (), "profile_step": ("--steps", "100", "--top", "200")}  # fmt: skip
    pytest = ("-m", "pytest", "-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "-rs", "-m", chosen)
    result += [Part(f"tests {Path(file).stem}", (*pytest, file), 900) for file in files]
    result.append(Part("graphs against single steps", (*own, "graphs"), 1800))
    result += [
        Part(f"benchmark {name}", (str(HERE.parent / f"{name}.py"), *arguments), 1200)
        for name, arguments in benchmarks.items()
    ]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PROJECT / "gpu-day", help="folder (default: %(default)s)")
    parser.add_argument("--time-budget", default="2h", metavar="2h", help="for all of it (default: %(default)s)")
    parser.add_argument("--data", help="folder with datasets (default: the project's)")
    parser.add_argument("--rehearse", action="store_true", help="in tiny, on the CPU")
    parser.add_argument("--only", choices=("installed", "graphs", "campaign"), help="one step, in this process")
    parser.add_argument("--method", help="of the campaign, with --only")
    options = parser.parse_args()
    out = options.out.resolve()
    if options.only == "installed":
        write(out / "installed.json", installed())
    elif options.only == "graphs":
        compare(out / "graphs.csv", options.rehearse)
    elif options.only == "campaign":
        campaign(out, options.method, options.data, options.time_budget, options.rehearse)
    else:
        return day(out, options)
    return 0


def day(out: Path, options: argparse.Namespace) -> int:
    """Take all steps, as far as there is time; returns 0, or 1 if one failed."""
    sys.path.insert(0, str(PROJECT))  # a machine with the packages alone will do
    from rsstudy.cli import seconds

    end, results = time.time() + seconds(options.time_budget), []
    out.mkdir(parents=True, exist_ok=True)

    def take(part: Part, number: int) -> None:
        limit = min(part.limit, end - time.time())
        if limit < 1:
            result = {"name": part.name, "status": "no time left"}
        else:
            print(f"--- {part.name}", flush=True)
            result = run(part, limit)
        results.append(result)
        write(out / f"{number:02}-{part.name.replace(' ', '-')}.json", result)
        write(out / "summary.json", [{key: r.get(key) for key in ("name", "status", "seconds")} for r in results])
        pack(out)
        print(f"    {result['status']}", flush=True)

    todo = parts(out, options.rehearse)
    for number, part in enumerate(todo):
        take(part, number)
    for number, method in enumerate(CAMPAIGN, len(todo)):
        left = max(1, end - time.time() - ENDING)
        own = (str(HERE), "--out", str(out), "--only", "campaign", "--method", method, "--time-budget", f"{left:.0f}s")
        own += ("--data", options.data) if options.data else ()
        own += ("--rehearse",) if options.rehearse else ()
        take(Part(f"campaign {method}", own, math.inf), number)
    print(f"all of it is in {out}.tar.gz")
    return int(any(result["status"].startswith("failed") for result in results))


def run(part: Part, limit: float) -> dict:
    """What became of a step: its status, seconds and the end of its output."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    began = time.time()
    try:
        done = subprocess.run(
            [sys.executable, *part.command], cwd=PROJECT, env=environment, timeout=limit, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        status, output = "done" if done.returncode == 0 else f"failed with exit status {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as error:
        status = f"failed to end in {limit:.0f} s" if limit == part.limit else f"ended with the day after {limit:.0f} s"
        output = error.stdout or ""
        output = output.decode(errors="replace") if isinstance(output, bytes) else output
    return {"name": part.name, "status": status, "seconds": round(time.time() - began, 1), "output": output[-30_000:]}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def pack(out: Path) -> None:
    """Tables and records in one file beside the folder, which is there whole or as it was."""
    new = out.with_name(f"{out.name}.tar.gz.new")
    with tarfile.open(new, "w:gz") as tar:
        for path in sorted(out.rglob("*")):
            if path.suffix in (".csv", ".json"):
                tar.add(path, Path(out.name) / path.relative_to(out))
    new.replace(out.with_name(f"{out.name}.tar.gz"))


def installed() -> dict:
    """Versions, hardware, driver, and whether a CUDA device runs a kernel."""
    import torch

    from rsslib.device import why_not_cuda

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    result = {"python": sys.version, "packages": versions, "cuda": torch.version.cuda, "fault": why_not_cuda()}
    result["cudnn"] = torch.backends.cudnn.version()
    result["architectures"] = torch.cuda.get_arch_list()
    if result["fault"] is None:
        properties = torch.cuda.get_device_properties(0)
        result |= {"device": properties.name, "memory": torch.cuda.mem_get_info(0)}
        result["capability"] = [properties.major, properties.minor]
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60)
        result["driver"] = asked.stdout + asked.stderr
    return result


def compare(path: Path, rehearse: bool) -> None:
    """Train every method with graphs and with single steps from one seed; a row each, written as it is known.

    Without dropout, at fp32 and a hundredth of the learning rates, at which rounding does not grow.
    Raises RuntimeError, at the end, if a method failed or the loss of its last epoch is off by more than 1e-3 of it.
    """
    import pandas as pd

    sys.path.insert(0, str(HERE.parent))
    from common import random_data

    from rsslib.cuda.graphs import GraphedSteps
    from rsslib.device import choose_device, set_precision
    from rsslib.methods import override
    from rsslib.space import SearchSpace
    from rsslib.steps import EagerSteps
    from rsslib.trainer import start, train
    from rsstudy.catalogue import METHODS, build

    device = choose_device("cpu" if rehearse else "cuda")
    set_precision("fp32")
    space, images = SearchSpace("mobilenet_v3"), 20 if rehearse else 2020
    data = random_data(images, device=device)
    rows, off = [], []
    for name in ("rss-short", "rss-short-2-per-batch") if rehearse else METHODS:
        method = override(build(name, 1, 5), learning_rate_scale=0.01)
        stages = tuple(replace(stage, epochs=1 if rehearse else 2, schedule_epochs=None) for stage in method.stages)
        method = replace(method, stages=stages, dropout=0.0, batch_size=8 if rehearse else method.batch_size)
        row = {"method": name}
        try:
            for what, executor in (("single", EagerSteps), ("graphs", GraphedSteps)):
                state = train(start(space, method, 0, device), method, data, 0, progress=False, executor=executor)
                row |= {f"{which} loss, {what}": state.history[i]["loss"] for which, i in (("first", 0), ("last", -1))}
                row[f"seconds, {what}"] = state.seconds
            if abs(row["last loss, graphs"] / row["last loss, single"] - 1) > 1e-3:
                off.append(name)
        except Exception as error:  # whatever it is, the next method is tried
            row["error"] = f"{type(error).__name__}: {error}"
            off.append(name)
        rows.append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(path, index=False)
    print(pd.DataFrame(rows).to_string(index=False))
    if off:
        raise RuntimeError(f"graphs and single steps differ, or failed, for {', '.join(off)}")


def campaign(out: Path, method: str, data: str | None, budget: str, rehearse: bool) -> None:
    """Train and evaluate one method on CIFAR-100 at the paper's scale, for as long as there is time."""
    from rsstudy.cli import seconds
    from rsstudy.engine import complete
    from rsstudy.plan import PROFILES, Profile, Settings, plan
    from rsstudy.store import overview

    profile, dataset = PROFILES["paper"], "cifar100"
    if rehearse:
        profile = Profile("rehearsal", ("digits",), 1, supernet_epochs=1, shrinking_epochs=5, train_images=8,
                          test_images=10)  # fmt: skip
        dataset = "digits"
    runs = plan(profile, datasets=(dataset,), methods=(method,))
    device = "cpu" if rehearse else "cuda"
    complete(runs, Settings(out / "results", data, device, time_budget=seconds(budget), progress=False))
    print(overview(runs, out / "results").to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
