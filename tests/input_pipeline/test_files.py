"""Files are replaced atomically, so readers get either the old or the new content."""

from __future__ import annotations

import os
import stat

import pytest

from input_pipeline.files import is_on_bucket, write_atomically


def write_and_fail(file) -> None:
    file.write(b"partial content")
    raise OSError("No space left on device")


@pytest.mark.parametrize("content", ["größer\n", "größer\n".encode(), lambda file: file.write("größer\n".encode())])
def test_content_may_be_text_bytes_or_a_function(tmp_path, content):
    write_atomically(tmp_path / "a", "before")
    write_atomically(str(tmp_path / "a"), content)
    assert (tmp_path / "a").read_bytes() == b"gr\xc3\xb6\xc3\x9fer\n"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path):
    write_atomically(tmp_path / "a", "before")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", write_and_fail)
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def test_an_incomplete_file_is_not_visible_under_its_final_name(tmp_path):
    def write_in_two_parts(file) -> None:
        file.write(b"first part, ")
        file.flush()
        assert not (tmp_path / "a").exists()
        file.write(b"second part")

    write_atomically(tmp_path / "a", write_in_two_parts)
    assert (tmp_path / "a").read_text() == "first part, second part"


def test_concurrent_writes_do_not_interfere(tmp_path):
    def write_during_another_write(file) -> None:
        file.write(b"started first, ")
        write_atomically(tmp_path / "a", "started second, completed first")
        file.write(b"completed second")

    write_atomically(tmp_path / "a", write_during_another_write)
    assert (tmp_path / "a").read_text() == "started first, completed second"


def test_the_file_mode_follows_the_umask(tmp_path):
    original_umask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", "")
    finally:
        os.umask(original_umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_bucket_objects_are_replaced_only_by_complete_writes(bucket):
    write_atomically(bucket / "a", "before")
    write_atomically(bucket / "a", lambda file: file.write(b"after"))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(bucket / "a", write_and_fail)
    assert (bucket / "a").read_text() == "after"
    assert [path.name for path in bucket.iterdir()] == ["a"]


@pytest.mark.parametrize(("path", "expected"), [("gs://b/run", True), ("runs/b", False), ("/gs:/b", False)])
def test_buckets_are_recognised_by_their_scheme(path, expected):
    assert is_on_bucket(path) is expected
