"""rsslib.__main__: what stops a command ends it in a sentence, whatever it is at and however often it is told."""

import signal
import subprocess
import sys

import pytest

from rsslib.__main__ import STOPPED

IMPORTING = """
import os, signal, sys

class Hook:  # sends the signals while the module is imported
    def find_spec(self, name, *_):
        if name == NAME:
            for _ in range(3):
                os.kill(os.getpid(), signal.NUMBER)

sys.meta_path.insert(0, Hook())
from rsslib.__main__ import entry
entry()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("name", ["rsstudy.cli", "pandas._libs.tslibs", "torch._C"])
def test_while_modules_are_imported(name, number, tmp_path):
    code = IMPORTING.replace("NAME", repr(name), 1).replace("NUMBER", number)
    arguments = ["run", "--device", "cpu", "--results", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", STOPPED)


WORKING = """
import os, signal, sys, time, types
from rsslib.__main__ import entry

def main():
    try:
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(50)
    except KeyboardInterrupt:
        for _ in range(20):
            os.kill(os.getpid(), signal.NUMBER)
            time.sleep(0.01)
        print("put away")
        raise

sys.modules["rsstudy.cli"] = types.SimpleNamespace(main=main)
import atexit
atexit.register(os.kill, os.getpid(), signal.NUMBER)
entry()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_key_that_is_held_disturbs_nothing_that_is_put_away(number):
    code = WORKING.replace("NUMBER", number)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "put away\n", STOPPED)


def test_one_that_is_stuck_can_be_ended():
    endless = "__main__.PATIENCE = 0.5\n        while True"
    code = "from rsslib import __main__" + WORKING.replace("NUMBER", "SIGINT").replace("for _ in range(20)", endless)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", STOPPED)


def test_who_reads_may_stop_reading(tmp_path):
    command = [sys.executable, "-m", "rsslib", "runs", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
