"""Datasets in a bucket equal those in a local folder. The bucket is in memory; tests/test_s3_run.py has a server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from memory_bucket import MemoryBucket
from synthetic_splits import make_data_spec, make_png
from written_shards import FORMATS, write_shards

from caption_jax.specs import DataSpec
from input_pipeline import buckets
from input_pipeline.errors import ConfigError, DataError
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import Record
from input_pipeline.sources import open_splits, webdataset

pytest.importorskip("gcsfs")


@pytest.fixture
def upload(bucket):
    """Copies a local folder to the bucket, and returns its URL."""

    def copy(folder: Path) -> str:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            (bucket / folder.name / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
        return str(bucket / folder.name)

    return copy


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of images, in several forms of captions."""
    folder = tmp_path / "birds"
    (folder / "images" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "deep/c.png", "deep/d.png")):
        (folder / "images" / name).write_bytes(make_png(number))
        (folder / "images" / name).with_suffix(".txt").write_text(f"a text of {name}\nanother\n")
    names = ["a.png", "deep/../b.png", "c", "DEEP/D.PNG"]  # the last two do not exist as they are written
    (folder / "captions.csv").write_text("image,caption\n" + "".join(f"{name},a caption of {name}\n" for name in names))
    (folder / "val.txt").write_text("b.png\n")
    (folder / "train.txt").write_text("a.png\nc\nd.png\n")
    return folder


def read_all(spec: DataSpec) -> dict[str, list]:
    """Returns the ids, captions and images of each split of a dataset."""
    return {
        name: [(record.image_id, record.captions, read_image(record)) for record in split]
        for name, split in open_splits(spec).items()
    }


def read_image(record: Record) -> bytes:
    source = record.source()
    return source if isinstance(source, bytes) else source.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"split_files": {"train": "train.txt", "val": "val.txt"}}, {"captions": ("*.txt",), "images": "images"}],
    ids=["csv", "texts"],
)
def test_a_folder_in_a_bucket_equals_a_local_one(folder, upload, changes):
    url = upload(folder)
    local, remote = (read_all(make_data_spec(source="folder", root=str(root), **changes)) for root in (folder, url))
    assert sum(map(len, local.values())) == 4
    assert remote == local


@pytest.mark.parametrize("patterns", [{}, {"train": "train-{0000..0001}.*", "val": "val-0000.*"}], ids=["all", "named"])
@pytest.mark.parametrize("source", FORMATS)
def test_shards_in_a_bucket_equal_local_ones(tmp_path, bucket, upload, source, patterns):
    if source == "parquet":
        pytest.importorskip("pyarrow")
    spec = write_shards(tmp_path / "shards", source)
    local = read_all(spec)
    url = upload(tmp_path / "shards")
    remote = dataclasses.replace(spec, root=url + "/", shards=dataclasses.replace(spec.shards, **patterns))
    assert read_all(remote) == local
    assert read_all(remote) == local  # from the stored index
    assert (bucket / "shards" / "caption_index" / "val-0000.tar.json").exists() == (source == "webdataset")


def test_tar_files_are_downloaded_only_to_index_them(tmp_path, upload, monkeypatch):
    spec = write_shards(tmp_path / "shards", "webdataset")
    spec = dataclasses.replace(spec, root=upload(tmp_path / "shards"))
    downloads = []
    monkeypatch.setattr(webdataset, "download", lambda *paths: downloads.append(paths[0]) or buckets.download(*paths))
    for _ in range(2):
        read_all(spec)
    assert len(downloads) == 3


@pytest.mark.parametrize("source", ["folder", *FORMATS])
def test_a_folder_that_does_not_exist_is_named(bucket, source):
    with pytest.raises(DataError, match=r"^no such folder: gs://bucket/nothing; set config.data.root to the folder"):
        open_splits(make_data_spec(source=source, root="gs://bucket/nothing"))


def test_a_bucket_without_access_is_named_in_one_line(bucket, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(403, "Forbidden\nfor you")

    monkeypatch.setattr(MemoryBucket, "ls", deny)
    with pytest.raises(ConfigError) as error:
        open_splits(make_data_spec(source="folder", root="gs://bucket/birds"))
    message = str(error.value)
    assert message.startswith("config.data.root=gs://bucket/birds: gcsfs cannot access the bucket (PermissionError: ")
    assert "permissions of roles/storage.objectViewer" in message and "\n" not in message


def test_an_image_that_cannot_be_read_is_an_error_of_that_image(folder, bucket, upload):
    spec = make_data_spec(source="folder", root=upload(folder))
    split, limited = (open_splits(spec, limits)["train"] for limits in (DEFAULT_LIMITS, Limits(image_file_bytes=9)))
    assert len(limited[0].source()) == 10  # one byte more than the limit, by which the decoder recognises it
    (bucket / "birds" / "images" / "a.png").unlink()
    with pytest.raises(OSError, match=r"^gs://bucket/birds/images/a.png cannot be read \(FileNotFoundError"):
        split[0].source()


def test_names_that_leave_the_folder_are_refused(folder, upload):
    (folder / "captions.csv").write_text("image,caption\na.png,a\n../../other/x.png,b\n")
    with pytest.raises(DataError, match="paths that leave the folder of the dataset: 1"):
        open_splits(make_data_spec(source="folder", root=upload(folder)))


def test_the_image_of_a_tar_file_that_became_shorter_is_an_error(tmp_path, bucket, upload):
    spec = write_shards(tmp_path / "shards", "webdataset")
    split = open_splits(dataclasses.replace(spec, root=upload(tmp_path / "shards")))["val"]
    file = bucket / "shards" / "val-0000.tar"
    file.write_bytes(file.read_bytes()[: split[1].image.offset + 1])
    with pytest.raises(OSError, match=r"val-0000.tar ends within the image"):
        split[1].source()
