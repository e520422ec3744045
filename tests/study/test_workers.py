"""rsstudy.workers: calls in threads and processes, and what happens when one of them is ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsstudy.workers import in_processes, in_threads, one_by_one


def square(item):
    return item**2


def end(how, item):
    os.kill(os.getpid(), how) if how else os._exit(3)


def wait_after_the_first(item):
    time.sleep(100 * item)
    return item


class Stubborn(Exception):
    def __init__(self, a, b):
        super().__init__("stubborn")


def stubborn(item):
    return Stubborn(1, 2)


@pytest.mark.parametrize("several", [one_by_one, pytest.param(in_processes, marks=pytest.mark.long)])
def test_every_item_comes_with_its_result(several):
    assert sorted(several(2, square, [2, 3, 4])) == [(2, 4), (3, 9), (4, 16)]


@pytest.mark.long
def test_error_that_cannot_be_sent_arrives_as_its_text():
    ((_, error),) = in_processes(1, stubborn, ["item"])
    assert isinstance(error, RuntimeError) and str(error) == "Stubborn: stubborn"


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, 0])
def test_worker_that_ends_is_an_input_error(how):
    with pytest.raises(InputError, match="choose fewer jobs at once than 2") as error:
        list(in_processes(2, partial(end, how), ["item"]))
    assert "resumes from the last checkpoints" in sentence(error)


def test_items_that_cannot_be_sent_are_an_input_error():
    with pytest.raises(InputError, match="define their samplers in a module, or give jobs=1"):
        list(in_processes(1, square, [threading.Lock()]))


@pytest.mark.long
def test_processes_end_when_their_results_are_no_longer_wanted():
    began = time.monotonic()
    results = in_processes(2, wait_after_the_first, [0, 1])
    assert next(results) == (0, 0)
    results.close()
    assert time.monotonic() - began < 60


def test_threads_are_asked_to_stop_when_their_results_are_no_longer_wanted():
    stopped = []

    def wait(item, stop):
        if item:
            stopped.append(stop.wait(60))

    results = in_threads(3, wait, [0, 1, 2])
    assert next(results) == (0, None)
    results.close()
    assert stopped == [True, True]


TOOLS = """
import time
def square(item):
    return item ** 2
def sleep(item):
    time.sleep(100)
"""
SCRIPT = """
import tools
from rsstudy.workers import in_processes
print("executed", flush=True)
print(*in_processes(1, tools.square, [3]))
"""


@pytest.mark.long
def test_script_needs_no_guard(tmp_path):
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "executed\n(3, 9)\n", "")


CTRL_C = """
import os, signal, threading, tools
from rsstudy.workers import in_processes
threading.Timer(1, lambda: os.killpg(0, signal.SIGINT)).start()  # as a terminal does, while the workers import
try:
    list(in_processes(2, tools.sleep, [0, 1]))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.long
def test_ctrl_c_reaches_the_caller_alone(tmp_path):
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
