"""rsstudy.workers: what becomes of worker processes when one of them is ended."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsstudy.workers import in_processes, in_threads


def take(report, failed, items):
    """Report every item that no other worker has taken; the first that fails is marked."""
    for index, item in enumerate(items):
        report(index, ValueError(item) if item == "bad" else None)


def end(report, failed, items, number):
    os.kill(os.getpid(), number) if number else os._exit(3)


def wait_for_end(report, failed, items):
    report(0, None)
    time.sleep(100)


class Stubborn(Exception):
    def __init__(self, a, b):
        super().__init__("stubborn")


def raise_stubborn(report, failed, items):
    report(0, Stubborn(1, 2))


def test_every_worker_reports_and_errors_arrive_as_they_are():
    events = list(in_processes(2, take, ["good", "bad"]))
    assert sorted(index for index, _ in events) == [0, 0, 1, 1]
    assert {str(error) for index, error in events if index == 1} == {"bad"}


def test_an_error_that_cannot_be_sent_arrives_as_its_text():
    ((_, error),) = in_processes(1, raise_stubborn, ["item"])
    assert isinstance(error, RuntimeError) and str(error) == "Stubborn: stubborn"


def test_a_worker_that_gets_sigterm_stops_everything_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt):
        list(in_processes(2, end, ["item"], signal.SIGTERM))


def test_a_worker_that_is_killed_speaks_of_memory():
    with pytest.raises(InputError, match="choose fewer jobs at once than 2") as error:
        list(in_processes(2, end, ["item"], signal.SIGKILL))
    assert "resumes from the last checkpoints" in sentence(error)


def test_a_worker_that_ends_by_itself_does_not_speak_of_memory():
    with pytest.raises(InputError, match="ended with exit status 3") as error:
        list(in_processes(2, end, ["item"], 0))
    assert "memory" not in sentence(error)


def test_workers_end_when_their_reports_are_no_longer_wanted():
    began = time.monotonic()
    events = in_processes(2, wait_for_end, ["item"])
    assert next(events) == (0, None)
    events.close()
    assert time.monotonic() - began < 60


def test_threads_are_asked_to_stop_when_their_reports_are_no_longer_wanted():
    stopped = []

    def wait(report, failed, items, stop):
        report(0, None)
        stopped.append(stop.wait(60))

    events = in_threads(2, wait, ["item"])
    assert next(events) == (0, None)
    events.close()
    assert stopped == [True, True]


TOOLS = """
def square(report, failed, items):
    report(0, ValueError(items[0] ** 2))
def sleep(report, failed, items):
    import time
    time.sleep(100)
"""
SCRIPT = """
import tools
from rsstudy.workers import in_processes
print("executed", flush=True)
for _, error in in_processes(1, tools.square, [3]):
    print(error)
"""


def test_a_script_needs_no_guard(tmp_path):
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "executed\n9\n", "")


CTRL_C = """
import os, signal, threading, tools
from rsstudy.workers import in_processes
threading.Timer(1, lambda: os.killpg(0, signal.SIGINT)).start()  # as a terminal does, while the workers import
try:
    list(in_processes(2, tools.sleep, [0]))
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_reaches_this_process_alone(tmp_path):
    (tmp_path / "tools.py").write_text(TOOLS)
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C],
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
