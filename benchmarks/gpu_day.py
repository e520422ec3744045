"""Everything that wants a GPU, in one go, what decides most first: rates, steps, graphs, tests, a campaign.

Each part is a process with a limit: its own, and a third of the time that is left. One that fails or hangs stops no
other, and one whose packages are missing is skipped. What a part prints is kept as it prints it; after each,
OUT.tar.gz holds all results. 15 minutes reach as far as runs at once, 120 train a good part of the campaign. The same
command goes on: what is done is not done again on the same hardware, and what failed is tried again after the rest.
`--rehearse` does all of it in tiny, on the CPU.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve()
PROJECT = HERE.parent.parent
CAMPAIGN = ("rss-short", "rss", "ofa-released", "ofa")  # on CIFAR-100, what is worth most first
KINDS = ("rss-short", "rss-2-per-batch", "ofa", "ofa-released", "sandwich")  # of steps: others combine these
ENDING = 20  # seconds before the end at which the campaign stops by itself, to keep what it has
SKIPPED = 77  # exit status of a part that finds that it lacks something
TRAINING = ("torch", "numpy", "pandas", "PIL", "filelock", "psutil", "tqdm")  # see docs/cuda.md
TESTING = (*TRAINING, "pytest", "hypothesis", "safetensors")
OFFICIAL = (*TRAINING, "torchvision", "ofa")
CAMPAIGNING = (*TRAINING, "torchvision", "safetensors", "msgspec")
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "numba", "triton", "pytest", "ofa", "msgspec")


@dataclass(frozen=True)
class Part:
    """What is run, in how many seconds it should end, and which modules it imports."""

    name: str
    limit: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = TRAINING


def parts(out: Path, rehearse: bool) -> list[Part]:
    """The parts before the campaign, what decides most first."""
    own = (str(HERE), "--out", str(out), *(["--rehearse"] if rehearse else []), "--only")

    def benchmark(name: str, limit: float, arguments: str = "", tiny: str = "", needs=TRAINING, called="") -> Part:
        command = str(HERE.parent / f"{name}.py"), *(tiny if rehearse else arguments).split()
        return Part(called or name.replace("_", " "), limit, command, needs)

    def graphs(name: str, limit: float, methods: tuple[str, ...]) -> Part:
        chosen = ("rss-short",) if rehearse else methods
        return Part(name, limit, (*own, "graphs", *(("--methods", *chosen) if chosen else ())))

    rss, ps = "--at-once 1 4 8 --methods rss --epochs 3", "--at-once 1 4 --methods ofa --epochs 2"
    result = [
        Part("installed", 60, (*own, "installed"), ("torch",)),
        benchmark("rates", 40),
        benchmark("depthwise", 45),
        benchmark("depthwise", 45, "--benchmark 1", "--benchmark 1 --most 1", called="depthwise benchmarked"),
        benchmark("steps", 180),
        benchmark("profile_step", 60, "--steps 100 --top 200", "--steps 1"),
        graphs("graphs of five kinds", 120, KINDS),
        *tests(rehearse),
        benchmark("batch_norm", 60),
        benchmark("workspaces", 30),
        benchmark("concurrency", 180, rss, "--at-once 1 --methods rss --images 64"),
        graphs("graphs of every method", 900, ()),
        benchmark("concurrency", 300, ps, "--help", called="concurrency of PS"),
        benchmark("training_step", 300, "--rounds 5", "--help", OFFICIAL),
        benchmark("evaluation", 300, "", "--help", OFFICIAL),
    ]
    return [replace(part, limit=600) for part in result] if rehearse else result  # of a busy machine, too


def tests(rehearse: bool) -> list[Part]:
    """Each file with tests that need a GPU."""
    if rehearse:
        files, chosen = ["tests/cuda/test_simulator.py"], "not cuda"
    else:
        paths = sorted((PROJECT / "tests").rglob("test_*.py"), key=lambda path: (path.parent.name != "cuda", path))
        files = [str(path.relative_to(PROJECT)) for path in paths if "mark.cuda" in path.read_text(encoding="utf-8")]
        chosen = "cuda"
    pytest = ("-m", "pytest", "-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "-v", "-rs", "-m", chosen)
    return [
        Part(f"tests {Path(file).stem}", 120, (*pytest, file), CAMPAIGNING + TESTING if "campaign" in file else TESTING)
        for file in files
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder (default: the project's gpu-day)")
    parser.add_argument("--data", help="folder with datasets (default: the project's)")
    parser.add_argument("--rehearse", action="store_true", help="in tiny, on the CPU")
    parser.add_argument("--only", choices=("installed", "graphs", "campaign"), help="one part, in this process")
    parser.add_argument("--methods", nargs="+", help="of graphs or the campaign, with --only")
    options = parser.parse_args()
    out = (options.out or PROJECT / ("build/gpu-day" if options.rehearse else "gpu-day")).resolve()
    if options.only == "installed":
        found = installed()
        write(out / "installed.json", found)
        print(json.dumps(found, indent=1))
        return int("fault" in found and not options.rehearse)
    elif options.only == "graphs":
        compare(options.methods, options.rehearse)
    elif options.only == "campaign":
        return campaign(out, options.methods, options.data, options.minutes, options.rehearse)
    else:
        if options.rehearse:
            shutil.rmtree(out, ignore_errors=True)
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        own = (str(HERE), "--out", str(out), *(("--data", options.data) if options.data else ()), "--only", "campaign")
        own += ("--rehearse",) if options.rehearse else ()
        last = [Part(f"campaign {name}", math.inf, (*own, "--methods", name), CAMPAIGNING) for name in CAMPAIGN]
        return day(out, parts(out, options.rehearse), last, 120 if options.rehearse else options.minutes)
    return 0


def day(out: Path, todo: list[Part], last: list[Part], minutes: float) -> int:
    """Take all parts, as far as there is time, then the `last` ones; returns 0, or 1 if one failed.

    The first finds out what the hardware is; each of the last gets all time that is left, as `--minutes`.
    """
    end, numbers = time.time() + 60 * minutes, {part.name: i for i, part in enumerate([*todo, *last])}
    out.mkdir(parents=True, exist_ok=True)
    results = {name: result for name in numbers if (result := read(result_of(out, numbers[name], name)))}

    def take(part: Part) -> None:
        print(f"--- {part.name}", flush=True)
        left = end - time.time()
        limit = min(part.limit, left if part in last else left / 3)
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if missing:
            result = {"status": f"skipped, since {' and '.join(missing)} cannot be imported"}
        elif limit < min(5, part.limit):
            result = {"status": "no time left"}
        else:
            more = ("--minutes", f"{max(1, left - ENDING) / 60:.2f}") if part in last else ()
            log = result_of(out, numbers[part.name], part.name).with_suffix(".txt")
            result = run(replace(part, command=(*part.command, *more)), limit, log)
        result = results[part.name] = {"name": part.name, **result, "hardware": hardware(out)}
        write(result_of(out, numbers[part.name], part.name), result)
        ordered = [results[name] for name in numbers if name in results]
        write(out / "summary.json", [{key: r.get(key) for key in ("name", "status", "seconds")} for r in ordered])
        pack(out)
        print(f"    {result['status']}", flush=True)

    take(todo[0])
    if results[todo[0].name]["status"] != "done":
        print(f"no CUDA device works here, as {out / 'installed.json'} says")
        return 1
    for name in [name for name, result in results.items() if result["hardware"] != hardware(out)]:
        del results[name]
    status = {part.name: results.get(part.name, {}).get("status", "") for part in todo}
    again = sorted(todo[1:], key=lambda part: status[part.name].startswith(("failed", "cut")))
    for part in [*(part for part in again if status[part.name] != "done"), *last]:
        take(part)
    print(f"all of it is in {out}.tar.gz")
    return int(any(result["status"].startswith("failed") for result in results.values()))


def run(part: Part, limit: float, log: Path) -> dict:
    """What became of a part, which prints into `log`: its status, seconds and command."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    began = time.time()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=PROJECT, env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=output, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            status = {0: "done", SKIPPED: "skipped, as its output says"}.get(code, f"failed with exit status {code}")
        except subprocess.TimeoutExpired:
            status = f"failed to end in {limit:.0f} s" if limit == part.limit else f"cut after {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it started
            with suppress(subprocess.TimeoutExpired):  # of a process that hangs in the driver
                process.wait(5)
    return {"status": status, "seconds": round(time.time() - began, 1), "command": part.command}


def result_of(out: Path, number: int, name: str) -> Path:
    return out / f"{number:02}-{name.replace(' ', '-')}.json"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def hardware(out: Path) -> list | None:
    return read(out / "installed.json").get("hardware")


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def pack(out: Path) -> None:
    """Tables and records in one file beside the folder, which is there whole or as it was."""
    new = out.with_name(f"{out.name}.tar.gz.new")
    with tarfile.open(new, "w:gz") as tar:
        for path in sorted(out.rglob("*")):
            if path.suffix in (".csv", ".json", ".txt"):
                tar.add(path, Path(out.name) / path.relative_to(out))
    new.replace(out.with_name(f"{out.name}.tar.gz"))


def installed() -> dict:
    """Versions, hardware, driver, and what is wrong with the CUDA device, if anything."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    result = {"python": sys.version, "packages": versions, "cuda": torch.version.cuda}
    result["cudnn"], result["architectures"] = torch.backends.cudnn.version(), torch.cuda.get_arch_list()
    result["hardware"] = [platform.machine(), torch.__version__, torch.version.cuda, result["cudnn"]]
    try:
        torch.ones(1, device="cuda").add_(1).item()
        device = torch.cuda.get_device_properties(0)
        result["hardware"] += [device.name, f"{device.major}.{device.minor}"]
        result["memory"] = torch.cuda.mem_get_info(0)
    except (RuntimeError, AssertionError) as error:
        result["fault"] = str(error).splitlines()[0]
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30)
        result["driver"] = asked.stdout + asked.stderr
    return result


def compare(methods: list[str] | None, rehearse: bool) -> None:
    """Train methods, or all of the study, with graphs and with single steps from one seed, and print a row for each.

    Without dropout, at fp32 and a hundredth of the learning rates, at which rounding does not grow.
    Raises RuntimeError, at the end, if a method failed or the loss of its last epoch is off by more than 1e-3 of it.
    """
    sys.path.insert(0, str(HERE.parent))
    from common import DEVICE, SPACE, random_data, report, say, simulated_where_needed

    from rsslib.cuda.graphs import GraphedSteps
    from rsslib.methods import override
    from rsslib.steps import EagerSteps
    from rsslib.trainer import start, train
    from rsstudy.catalogue import METHODS, build

    data, rows, off = random_data(20 if rehearse else 2020), [], []
    for name in methods or METHODS:
        method = override(build(name, 1, 5), learning_rate_scale=0.01)
        stages = tuple(replace(stage, epochs=1 if rehearse else 2, schedule_epochs=None) for stage in method.stages)
        method = replace(method, stages=stages, dropout=0.0, batch_size=8 if rehearse else method.batch_size)
        row = {"method": name}
        try:
            for what, executor in (("single", EagerSteps), ("graphs", GraphedSteps)):
                with simulated_where_needed():
                    state = train(start(SPACE, method, 0, DEVICE), method, data, 0, progress=False, executor=executor)
                row |= {f"{which} loss, {what}": state.history[i]["loss"] for which, i in (("first", 0), ("last", -1))}
                row[f"seconds, {what}"] = state.seconds
            if not abs(row["last loss, graphs"] / row["last loss, single"] - 1) <= 1e-3:
                off.append(name)
        except Exception as error:  # whatever it is, the next method is tried
            row["error"] = f"{type(error).__name__}: {error}"
            off.append(name)
        rows.append(say(row))
    report("Losses with graphs and with single steps", rows)
    if off:
        raise RuntimeError(f"graphs and single steps differ, or failed, for {', '.join(off)}")


def campaign(out: Path, methods: list[str], data: str | None, minutes: float, rehearse: bool) -> int:
    """Train and evaluate methods on CIFAR-100 at the paper's scale, for as long as there is time."""
    from rsslib.errors import NoImages
    from rsstudy.engine import complete
    from rsstudy.plan import PROFILES, Profile, Settings, plan
    from rsstudy.store import overview

    profile, dataset = PROFILES["paper"], "cifar100"
    if rehearse:
        profile = Profile("rehearsal", ("digits",), 1, supernet_epochs=1, shrinking_epochs=5, train_images=8,
                          test_images=10)  # fmt: skip
        dataset = "digits"
    runs = plan(profile, datasets=(dataset,), methods=tuple(methods))
    device = "cpu" if rehearse else "cuda"
    try:
        complete(runs, Settings(out / "results", data, device, time_budget=60 * minutes, progress=False))
    except NoImages as error:
        print(f"no campaign: {error}")
        return SKIPPED
    print(overview(runs, out / "results").to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
