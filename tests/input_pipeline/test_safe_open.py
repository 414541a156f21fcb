"""Files that are not safe to open, opened in the process. `tests/faults/test_hostile_files.py` uses child processes."""

from __future__ import annotations

import os
import socket

import pytest

from input_pipeline.errors import MissingFileError
from input_pipeline.safe_open import DataRoot, UnreadableFileError, check_file, open_file, read_file, read_start


@pytest.fixture(params=["pipe", "socket", "device", "folder", "link to a device"])
def special_file(request, tmp_path):
    """A file that is not a regular one, and what it is in the message."""
    path = tmp_path / "file"
    kind = request.param
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        request.addfinalizer(server.close)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = "/dev/zero"
    else:
        path.symlink_to("/dev/zero")
    return path, {"pipe": "a named pipe", "link to a device": "a device"}.get(kind, f"a {kind}")


@pytest.mark.parametrize(
    "read", [lambda path: read_file(path, 100), lambda path: read_start(path, 8), open_file, check_file]
)
def test_only_regular_files_are_opened(special_file, read):
    path, kind = special_file
    with pytest.raises(UnreadableFileError) as error:
        read(path)
    assert str(error.value) == f"{path} is {kind}, not a regular file"


def test_files_up_to_the_limit_are_read(tmp_path):
    file = tmp_path / "file"
    for content in (b"", b"x", b"x" * 100):
        file.write_bytes(content)
        assert read_file(file, 100) == content and read_start(file, 1) == content[:1]
    file.write_bytes(b"x" * 101)
    with pytest.raises(UnreadableFileError, match=r"has 101 bytes, more than the limit of 100 \(config\.limits\.x\)$"):
        read_file(file, 100, "config.limits.x")


def test_files_that_declare_no_size_are_read_up_to_the_limit():
    assert read_file("/proc/self/status", 100_000).startswith(b"Name:")
    with pytest.raises(UnreadableFileError, match="more than the limit of 20"):
        read_file("/proc/self/status", 20)


def test_names_that_cannot_exist_are_reported(tmp_path):
    with pytest.raises(MissingFileError, match="no such file: "):
        read_file(tmp_path / "missing", 100)
    with pytest.raises(UnreadableFileError, match="null character"):
        read_file("a\0b", 100)
    with pytest.raises(UnreadableFileError, match="name too long"):
        read_file("a" * 5000, 100)


def test_objects_in_a_bucket_are_read_up_to_the_limit(bucket):
    from input_pipeline.files import write_atomically

    write_atomically(f"{bucket}/file", b"x" * 10)
    assert read_file(f"{bucket}/file", 10) == b"x" * 10
    with pytest.raises(UnreadableFileError, match="has 10 bytes, more than the limit of 9"):
        read_file(f"{bucket}/file", 9)
    with pytest.raises(MissingFileError):
        read_file(f"{bucket}/missing", 9)


def make_root(tmp_path, outside="follow") -> DataRoot:
    """A dataset with a link to a folder, a link to a file, and a file, and other files next to it."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("data/images/a.jpg", "elsewhere/b.jpg"):
        (tmp_path / path).touch()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "images" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "data" / "images" / "inner.jpg").symlink_to("a.jpg")
    return DataRoot(tmp_path / "data", outside=outside)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("data/images/a.jpg", ""),
        ("data/images/inner.jpg", ""),
        ("data/images/b.jpg", "links"),
        ("data/linked/b.jpg", "links"),
        ("elsewhere/b.jpg", "absolute paths"),
    ],
)
def test_paths_that_leave_a_folder(tmp_path, path, kind):
    assert make_root(tmp_path).find_exit(tmp_path / path) == kind


def test_files_outside_of_a_folder_are_counted_in_one_line(tmp_path):
    root = make_root(tmp_path)
    assert not root.has_outside_files
    for name in ("images/a.jpg", "images/b.jpg", "linked/b.jpg"):
        assert root.admits(name, tmp_path / "data" / name)
    assert root.admits("elsewhere", tmp_path / "elsewhere" / "b.jpg")
    assert str(root) == (
        f"absolute paths and links lead to 3 files outside of {tmp_path / 'data'}, such as images/b.jpg, which is "
        f"{tmp_path / 'elsewhere' / 'b.jpg'}"
    )


def test_files_outside_of_a_folder_can_be_refused(tmp_path):
    root = make_root(tmp_path, "refuse")
    assert root.admits("a", tmp_path / "data" / "images" / "a.jpg")
    assert not root.admits("b", tmp_path / "data" / "images" / "b.jpg") and not root.has_outside_files


def test_dots_are_removed_from_the_text_of_a_path(tmp_path):
    root = make_root(tmp_path)
    assert root.normalise(tmp_path / "data/images/../images/a.jpg") == tmp_path / "data" / "images" / "a.jpg"
    assert root.normalise(tmp_path / "data/linked/../images/a.jpg") == tmp_path / "data" / "images" / "a.jpg"
    for path in ("data/../elsewhere/b.jpg", "data/images/../../../etc/passwd", "data/../data2/x"):
        assert root.normalise(tmp_path / path) is None
