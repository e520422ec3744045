"""What the operating system refuses is one sentence that names the file, and costs nothing."""

import errno
import fcntl
import os

import numpy as np
import pytest
from helpers import sentence
from small_runs import PROFILE, complete, tiny

from rsslib import files
from rsslib.data.dataset import load_dataset
from rsslib.errors import InputError
from rsslib.methods import one_stage
from rsslib.samplers import Uniform
from rsstudy import cli
from rsstudy.engine import RunsFailed
from rsstudy.figures.populations import save_figure
from rsstudy.plan import Settings, output_folder, plan
from rsstudy.store import is_locked, overview
from rsstudy.tables import finished


def test_results_that_can_only_be_read_are_read_and_not_written(tmp_path, remount):
    done, more = tiny("rss-short", seeds=(0, 1))
    complete([done], tmp_path)
    (done.folder(tmp_path) / "run.lock").unlink()
    remount("ro")
    complete([done], tmp_path)
    assert overview([done, more], tmp_path).status.tolist() == ["finished", "missing"]
    with pytest.raises(InputError, match="cannot be written: choose another folder") as error:
        complete([done, more], tmp_path)
    assert str(tmp_path) in sentence(error)
    assert cli.main(["runs", "--results", str(tmp_path), "--figures", str(tmp_path.parent)]) == 0


@pytest.mark.parametrize("kind", ["folder", "link", "circle"])
def test_a_lock_that_is_something_else(kind, tmp_path):
    (run,) = tiny("rss-short")
    lock = run.folder(tmp_path) / "run.lock"
    lock.parent.mkdir(parents=True)
    lock.mkdir() if kind == "folder" else lock.symlink_to(lock if kind == "circle" else tmp_path / "elsewhere")
    assert overview([run], tmp_path).status.tolist() == ["missing"] and not is_locked(lock.parent)
    with pytest.raises(RunsFailed, match="run.lock cannot be locked") as error:
        complete([run], tmp_path)
    assert isinstance(error.value.failures[run.name], InputError) and sentence(error)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])  # the latter would make filelock use a soft lock
def test_a_file_system_that_gives_no_locks(number, tmp_path, monkeypatch):
    def none_left(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none_left)
    with pytest.raises(RunsFailed, match=f"cannot be locked .{os.strerror(number)}.") as error:
        complete(tiny("rss-short"), tmp_path)
    assert sentence(error)


def test_what_the_system_refuses_in_a_run_names_the_file(tmp_path):
    (run,) = tiny("rss-short")
    (run.folder(tmp_path) / "history.csv").mkdir(parents=True)
    with pytest.raises(RunsFailed, match="history.csv cannot be written .Is a directory") as error:
        complete([run], tmp_path)
    assert sentence(error)


def test_a_file_in_the_place_of_figures(tmp_path, capsys):
    (tmp_path / "smoke").write_text("")
    for make in (lambda: output_folder("smoke", tmp_path), lambda: save_figure(None, tmp_path / "smoke", "x")):
        with pytest.raises(InputError, match="smoke") as error:
            make()
        assert sentence(error)
    status = cli.main(["figures", "--figures", str(tmp_path), "--results", str(tmp_path / "results")])
    assert status == 2 and "smoke is a file: expected a folder" in capsys.readouterr().err


LONG = "x" * 300


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: plan(PROFILE, [LONG]),
        lambda folder: plan(PROFILE, methods=[one_stage("ü" * 150, 1, Uniform())]),
        lambda folder: complete(tiny(), folder / LONG),
        lambda folder: complete(tiny(), "a\0b"),
        lambda folder: load_dataset(LONG, folder),
        lambda folder: load_dataset("toy", folder / LONG),
        lambda folder: output_folder(LONG, folder),
        lambda folder: output_folder("smoke", folder / LONG),
        lambda folder: finished(tiny(), folder / LONG),
    ],
)
def test_names_too_long_for_a_folder(make, tmp_path):
    with pytest.raises(InputError) as error:
        make(tmp_path)
    assert len(sentence(error).replace(LONG, "")) < 500


def npz(folder, classes):
    x, y = np.random.default_rng(0).integers(0, 256, (30, 5, 5), dtype=np.uint8), np.arange(30) % 2
    np.savez(folder / "toy.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4], classes=classes)


def test_a_checksum_that_is_a_folder(tmp_path):
    npz(tmp_path, ["a", "b"])
    (tmp_path / "toy.sha256").mkdir()
    with pytest.raises(InputError, match="toy.sha256 cannot be used .Is a directory") as error:
        load_dataset("toy", tmp_path)
    assert sentence(error)


def test_names_of_classes_in_bytes(tmp_path):
    npz(tmp_path, np.array(["käse".encode(), b"wurst"]))
    assert load_dataset("toy", tmp_path).classes == ("käse", "wurst")
    npz(tmp_path, np.array(["käse".encode("latin-1"), b"wurst"]))
    with pytest.raises(InputError, match="toy.npz cannot be read .*utf-8") as error:
        load_dataset("toy", tmp_path)
    assert sentence(error)


@pytest.mark.parametrize("device", ["cuda:²", "cuda:-1", "cuda:99999", "cpu:0", None, ["cpu"], ""])
def test_unusable_device_names_are_refused(device, tmp_path):
    with pytest.raises(InputError, match="device") as error:
        Settings(tmp_path, device=device)
    assert repr(device) in sentence(error) or "''" in sentence(error)


@pytest.mark.parametrize("figures", [[], True, __file__, "a\0b"])
def test_figures_that_have_no_folder(figures):
    with pytest.raises(InputError, match="figures") as error:
        output_folder("smoke", figures)
    assert sentence(error)


def test_the_umask_is_respected(tmp_path):
    before = os.umask(0o077)
    try:
        files.write(tmp_path / "a", b"")
        os.umask(0o022)
        files.write(tmp_path / "b", b"")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o600, 0o644]
