"""Files are replaced atomically: readers see the old or the new content."""

from __future__ import annotations

import os
import stat

import pytest

from input_pipeline.files import is_on_bucket, write_atomically


def fail(file) -> None:
    file.write(b"half of it")
    raise OSError("No space left on device")


@pytest.mark.parametrize("content", ["größer\n", "größer\n".encode(), lambda file: file.write("größer\n".encode())])
def test_text_bytes_and_functions_are_written(tmp_path, content):
    write_atomically(tmp_path / "a", "before")
    write_atomically(str(tmp_path / "a"), content)
    assert (tmp_path / "a").read_bytes() == b"gr\xc3\xb6\xc3\x9fer\n"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    write_atomically(tmp_path / "a", "before")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_appears_when_it_is_complete(tmp_path):
    def look(file) -> None:
        file.write(b"all of ")
        file.flush()
        assert not (tmp_path / "a").exists()
        file.write(b"it")

    write_atomically(tmp_path / "a", look)
    assert (tmp_path / "a").read_text() == "all of it"


def test_two_writers_do_not_disturb_each_other(tmp_path):
    def write_another(file) -> None:
        file.write(b"first, ")
        write_atomically(tmp_path / "a", "second")
        file.write(b"and the last to be complete")

    write_atomically(tmp_path / "a", write_another)
    assert (tmp_path / "a").read_text() == "first, and the last to be complete"


def test_the_mode_of_the_file_follows_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_an_object_on_a_bucket_is_written_without_a_rename(bucket):
    write_atomically(bucket / "a", "before")
    write_atomically(bucket / "a", lambda file: file.write(b"after"))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(bucket / "a", fail)
    assert (bucket / "a").read_text() == "after"
    assert [path.name for path in bucket.iterdir()] == ["a"]


@pytest.mark.parametrize(("path", "expected"), [("gs://b/run", True), ("runs/b", False), ("/gs:/b", False)])
def test_buckets_are_recognised_by_their_scheme(path, expected):
    assert is_on_bucket(path) is expected
