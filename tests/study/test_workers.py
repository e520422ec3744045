"""rsstudy.workers: what becomes of a pool of processes when one of them is ended."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsstudy.workers import worker_processes


def test_a_worker_that_is_told_to_end_stops_the_campaign_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt):
        with worker_processes(2) as pool:
            os.kill(pool.submit(os.getpid).result(), signal.SIGTERM)
            pool.submit(time.sleep, 100).result()


def test_a_worker_that_is_killed_speaks_of_memory():
    with pytest.raises(InputError, match="choose fewer jobs at once than 2") as error:
        with worker_processes(2) as pool:
            os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
            pool.submit(time.sleep, 100).result()
    assert "goes on from the last checkpoints" in sentence(error)


def test_a_worker_that_ends_by_itself_does_not():
    with pytest.raises(InputError, match="ended with exit status 3") as error:
        with worker_processes(2) as pool:
            pool.submit(os._exit, 3).result()
    assert "memory" not in sentence(error)


SCRIPT = """
import os, sys
print("executed", flush=True)
from rsstudy.workers import worker_processes
with worker_processes(2) as pool:
    print(pool.submit(os.path.basename, "a/b").result())
"""


def test_a_script_needs_no_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "executed\nb\n", "")


CTRL_C = """
import os, signal
from rsstudy.workers import worker_processes
try:
    with worker_processes(2) as pool:
        os.killpg(0, signal.SIGINT)  # as a terminal does, while the workers import
        pool.submit(os.getpid).result()
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_reaches_this_process_alone():
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=100, start_new_session=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_what_is_raised_beside_the_pool_comes_at_once_and_as_it_is():
    from concurrent.futures.process import BrokenProcessPool

    for error in (OSError("mine"), BrokenProcessPool("another pool's")):
        began = time.monotonic()
        with pytest.raises(type(error), match="mine|another"):
            with worker_processes(1) as pool:
                pool.submit(os.getpid).result()
                for _ in range(100):
                    pool.submit(time.sleep, 1)
                raise error
        assert time.monotonic() - began < 60
