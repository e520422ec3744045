"""rsslib.files: only regular files are read, and only regular files are replaced."""

import os
import socket

import pytest
from helpers import sentence

from rsslib.errors import InputError
from rsslib.files import check_output, open_regular, read_regular, write


@pytest.fixture(params=["pipe", "device", "socket", "link to a device", "sparse"])
def special(request, tmp_path):
    """A path that must not be read."""
    path = tmp_path / "file"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif request.param == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    elif request.param == "link to a device":
        path.symlink_to("/dev/zero")
    return "/dev/zero" if request.param == "device" else path


def test_special_file_is_refused(special):
    for read in (open_regular, read_regular):
        with pytest.raises(InputError, match="is not a regular file of at most 1,000 bytes") as error:
            read(special, 1000)
        assert str(special) in sentence(error)


def test_regular_file_is_read_also_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(InputError, match="at most 4 bytes"):
        read_regular(tmp_path / "link", 4)


def test_file_of_the_kernel_is_read_up_to_the_limit():
    assert len(read_regular("/proc/self/maps", 10)) == 10  # its size is reported as 0


def test_errors_of_the_system_are_left_to_the_caller(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent", 10)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 10)


@pytest.mark.parametrize("kind", ["pipe", "link", "broken link", "folder", "long name"])
def test_output_that_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / ("x" * 240 if kind == "long name" else "out")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif "link" in kind:
        path.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_text("kept") if kind == "link" else None
    with pytest.raises(InputError) as error:
        check_output(path, "the output's folder")
    assert sentence(error)


@pytest.mark.parametrize("name", ["front.csv", "photo.png", "data.npz", "run/a.onnx", "handed on/a.onnx"])
def test_output_replaces_no_file_of_another_kind_and_none_of_a_run(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("kept")
    for parent, record in (("run", "run.json"), ("handed on", "card.json")):
        if path.parent.name == parent:
            (path.parent / record).touch()
    with pytest.raises(InputError, match="is there and not an earlier output") as error:
        check_output(path, "the output's folder", ".onnx")
    assert sentence(error) and path.read_text() == "kept"


def test_output_may_replace_a_regular_file(tmp_path):
    path = tmp_path / ("x" * 236)
    for content in (b"1", b"2"):
        check_output(path, "the output's folder")
        write(path, content)
    assert path.read_bytes() == b"2" and list(tmp_path.iterdir()) == [path]
