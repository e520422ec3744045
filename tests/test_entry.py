"""rsslib.__main__: a command that is stopped, or cannot write, ends in a sentence."""

import os
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
def test_signals_during_an_import_end_the_command_at_once(name, number, tmp_path):
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
def test_held_key_does_not_disturb_the_cleaning_up(number):
    code = WORKING.replace("NUMBER", number)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "put away\n", STOPPED)


def test_command_that_is_stuck_can_be_ended():
    endless = "__main__.PATIENCE = 0.5\n        while True"
    code = "from rsslib import __main__" + WORKING.replace("NUMBER", "SIGINT").replace("for _ in range(20)", endless)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", STOPPED)


def test_reader_may_stop_reading(tmp_path):
    command = [sys.executable, "-m", "rsslib", "runs", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


RUN = r"""
import sys, types
def main():
    print("caf\udce9 \xfc")
    MORE
    return 3
sys.modules["rsstudy.cli"] = types.SimpleNamespace(main=main)
from rsslib.__main__ import entry
entry()
"""


def test_text_that_the_terminal_cannot_show_is_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", RUN.replace("MORE", "")], capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"caf\\udce9 \\xfc\n", b"")


def test_command_without_standard_output_has_its_status():
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, RUN.replace("MORE", "")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_missing_package_names_the_extra():
    code = RUN.replace("MORE", "import papermill_of_another_name")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "rsslib: papermill_of_another_name is not installed: pip install 'rsslib[study]'\n"
