"""Files are replaced atomically, so readers get either the old or the new content."""

from __future__ import annotations

import os
import stat

import pytest

from caption_jax.evaluation.external_data import open_external_data
from caption_jax.pretrained.roberta_weights import load_roberta
from caption_jax.pretrained.weight_sources import locate_weights
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError
from input_pipeline.files import absolute_path, delete_stale_temporaries, is_on_bucket, storage_path, write_atomically


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


def test_temporary_files_of_killed_processes_are_deleted_but_not_those_of_running_ones(tmp_path):
    names = [f".a.{character * 32}.part" for character in "abcd"]
    old, deep, deeper, young = tmp_path / names[0], tmp_path / "1" / names[1], tmp_path / "1" / "2" / names[2], None
    deeper.parent.mkdir(parents=True)
    young = tmp_path / names[3]
    kept = [tmp_path / "b.part", tmp_path / ".hidden.part", deeper, young]
    for file in (old, deep, *kept):
        file.touch()
        if file != young:
            os.utime(file, (0, 0))
    delete_stale_temporaries(tmp_path, depth=2)
    delete_stale_temporaries(tmp_path / "missing")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


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


def test_local_paths_become_absolute_and_bucket_urls_do_not_change(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    assert str(absolute_path("runs/a")) == str(tmp_path / "runs/a")
    for url in ("gs://bucket/runs/a", "s3://bucket/runs/a"):
        assert str(absolute_path(url)) == url
        assert str(absolute_path(storage_path(url)) / "b") == f"{url}/b"


def test_a_scheme_without_a_client_is_rejected():
    with pytest.raises(
        ConfigError, match="hdfs://host/run: there is no client for hdfs://; use a local path, gs:// or"
    ):
        storage_path("hdfs://host/run")


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda url: open_external_data(url, DataSpec()), "--data"),
        (lambda url: locate_weights(url, (), "any"), "config.model.encoder.weights"),
        (load_roberta, "RoBERTa weights"),
    ],
)
def test_buckets_are_rejected_where_files_must_be_local(read, name):
    with pytest.raises(
        ConfigError, match=rf"^{name}=gs://b/x is on a bucket, but must be a local path: copy the files"
    ):
        read("gs://b/x")
