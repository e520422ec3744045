"""benchmarks/gpu_day.py: parts that hang, fail or lack something cost the others little, and nothing that is known."""

import importlib.util
import json
import tarfile

import pytest

from rsslib.files import project_folder

SCRIPT = project_folder() / "benchmarks" / "gpu_day.py"


@pytest.fixture(scope="module")
def gpu_day():
    spec = importlib.util.spec_from_file_location("gpu_day", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def day(gpu_day, tmp_path):
    """Takes parts of Python code in a folder, on hardware of a name; returns the exit status and what was found."""
    out = tmp_path / "out"

    def take(codes, last=None, minutes=1.0, hardware="gpu", limit=600, needs=()):
        found = json.dumps({"hardware": [hardware]})
        installed = f"from pathlib import Path; Path({str(out / 'installed.json')!r}).write_text({found!r})"
        parts = [gpu_day.Part(name, limit, ("-c", code), needs) for name, code in codes.items()]
        parts.insert(0, gpu_day.Part("installed", 60, ("-c", installed), ()))
        last = [gpu_day.Part(name, float("inf"), ("-c", code), ()) for name, code in (last or {}).items()]
        status = gpu_day.day(out, parts, last, minutes)
        summary = json.loads((out / "summary.json").read_text())
        return status, {row["name"]: row["status"] for row in summary[1:]}

    take.out = out
    return take


HANGS = "import subprocess; print('so far', flush=True); subprocess.run(['sleep', '600'])"


def test_a_part_that_hangs_is_ended_with_what_it_printed_and_the_next_is_taken(day):
    status, found = day({"hangs": HANGS, "works": "print('fine')"}, limit=3)
    assert status == 1 and found == {"hangs": "failed to end in 3 s", "works": "done"}
    assert (day.out / "01-hangs.txt").read_text() == "so far\n"
    with tarfile.open(f"{day.out}.tar.gz") as packed:
        assert {"out/summary.json", "out/01-hangs.txt", "out/02-works.json"} <= set(packed.getnames())
    result = json.loads((day.out / "02-works.json").read_text())
    assert result["hardware"] == ["gpu"] and result["seconds"] >= 0


def test_no_part_takes_more_than_a_third_of_the_time_left(day):
    _, found = day({"hangs": HANGS, "late": "print()"}, minutes=0.35)
    assert found["hangs"].startswith("cut after ") and 5 <= int(found["hangs"].split()[2]) <= 7
    assert found["late"] == "no time left"


def test_a_part_whose_packages_are_missing_is_skipped_in_a_sentence(day):
    status, found = day({"lacks": "raise SystemExit(1)"}, needs=("torch", "no_such_package"))
    assert (status, found) == (0, {"lacks": "skipped, since no_such_package cannot be imported"})


def test_a_part_may_say_that_it_lacks_something(day, gpu_day):
    status, found = day({"lacks": f"raise SystemExit({gpu_day.SKIPPED})"})
    assert status == 0 and found["lacks"].startswith("skipped")


def test_the_last_parts_get_the_time_that_is_left(day):
    day({}, {"campaign": "import sys; print(sys.argv[1:])"}, minutes=2)
    _, minutes = json.loads((day.out / "01-campaign.txt").read_text().replace("'", '"'))
    assert 1 < float(minutes) < 2


def test_the_same_call_goes_on_with_what_is_new_then_with_what_failed(day, tmp_path):
    order = tmp_path / "order"
    codes = {name: f"open({str(order)!r}, 'a').write({name!r})" for name in "abc"}
    assert day({"a": codes["a"] + "; raise SystemExit(3)", "b": codes["b"]})[0] == 1
    status, found = day({name: codes[name] for name in "abc"})
    assert status == 0 and found == dict.fromkeys("abc", "done")
    assert order.read_text() == "ab" + "ca"


def test_other_hardware_repeats_all(day, tmp_path):
    calls = tmp_path / "calls"
    for hardware in ("gpu", "gpu", "another"):
        day({"part": f"open({str(calls)!r}, 'a').write('x')"}, hardware=hardware)
    assert calls.read_text() == "xx"


def test_without_a_device_nothing_else_is_taken(gpu_day, tmp_path):
    parts = [gpu_day.Part(name, 60, ("-c", code), ()) for name, code in (("installed", "1 / 0"), ("next", "print()"))]
    assert gpu_day.day(tmp_path / "out", parts, [], 1) == 1
    assert [path.name for path in (tmp_path / "out").glob("*next*")] == []
