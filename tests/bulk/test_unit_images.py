"""Each kind of shard yields all of its images, and an error for what cannot be read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random

import numpy as np
import pytest
from shards import BLUE, RED, encode, write_tar

from caption_jax.bulk.unit_images import open_images
from caption_jax.bulk.work_units import IMAGES, Unit, find_kind
from input_pipeline.images import decode_image
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.prepared.shards import encode_record
from input_pipeline.records import Record


def read(path, limits: Limits = DEFAULT_LIMITS) -> list[tuple[str, object, str]]:
    """Returns the key, the content and the error of each image of a shard."""
    images = open_images(Unit(find_kind(str(path)), (str(path),)), limits)
    return [
        (image.key, image.image() if callable(image.image) else image.image, image.error)
        for image in images
        if image.source == str(path)
    ]


def test_a_tar_file(tmp_path):
    members = {"x/0.png": encode(RED), "x/0.txt": b"a caption", "x/._0.png": b"metadata", "x/1.PNG": encode(BLUE)}
    path = write_tar(tmp_path / "a.tar", members)
    assert read(path) == [("x/0.png", encode(RED), ""), ("x/1.PNG", encode(BLUE), "")]
    limit = Limits(image_file_bytes=100)
    assert [error for *_, error in read(path, limit)] == [
        f"has {len(encode(scene)):,} bytes, above config.limits.image_file_bytes" for scene in (RED, BLUE)
    ]


def test_a_truncated_tar_file_yields_what_is_left_and_one_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": encode(RED), "1.png": encode(BLUE) + b"\0" * 20_000})
    path.write_bytes(path.read_bytes()[:4000])
    (first, content, error), (key, nothing, reason) = read(path)
    assert (first, content, error) == ("0.png", encode(RED), "")
    assert (key, nothing) == ("", None) and "truncated members: 1.png" in reason


COMPRESSORS = {"tar.gz": gzip.compress, "tgz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_tar_file_yields_what_comes_before_damage_and_the_reason(tmp_path, suffix):
    images = {f"{number}.png": encode(scene) for number, scene in enumerate((RED, BLUE))}
    tar = write_tar(tmp_path / "a.tar", images | {"2.png": random.Random(0).randbytes(300_000)}).read_bytes()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(COMPRESSORS[suffix](tar))
    items = read(path)
    assert [(key, error) for key, _, error in items] == [("0.png", ""), ("1.png", ""), ("2.png", "")]
    assert items[1][1] == encode(BLUE)
    path.write_bytes(path.read_bytes()[:250_000])
    *_, (key, image, reason) = left = read(path)
    assert (key, image) == ("", None) and "cannot be decompressed to its end" in reason
    if suffix != "tar.bz2":  # whose blocks of 900 kB are decompressed as a whole
        assert left[:2] == items[:2] and "truncated members: 2.png" in left[2][2]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.tar", "files that are not tar files"),
        ("a.tar.gz", "cannot be decompressed to its end: Not a gzipped file"),
        ("missing.tar", "no such file"),
        ("a.parquet", "cannot be read as Parquet"),
        ("a.arrow", "cannot be read as Arrow"),
        ("a.array_record", "is not an ArrayRecord file, or is truncated"),
    ],
)
def test_a_shard_that_is_none_is_one_error(tmp_path, name, reason):
    pytest.importorskip("pyarrow")
    if name != "missing.tar":
        (tmp_path / name).write_bytes(b"not a shard" * 100)
    ((key, image, error),) = read(tmp_path / name)
    assert (key, image) == ("", None) and reason in error and "\n" not in error


def make_table(column: str, values: list, **columns):
    pa = pytest.importorskip("pyarrow")
    if isinstance(values[0], dict):
        values = pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table({column: values, **columns})


def test_a_parquet_file_with_bytes_and_ids(tmp_path):
    table = make_table("jpg", [encode(RED), None, encode(BLUE)], __key__=["a", "b", None], caption=["1", "2", "3"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet", row_group_size=2)
    expected = [("a", encode(RED), ""), ("b", None, "the row has no image"), ("2", encode(BLUE), "")]
    assert read(tmp_path / "a.parquet") == expected


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_a_parquet_file_with_paths_relative_to_its_folder(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    values = pa.array(["x/1.png", "/y/2.png"])
    values = values.dictionary_encode() if kind == "dictionary" else values.cast(getattr(pa, kind)())
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"file_name": values}), tmp_path / "a.parquet")
    assert [(str(path), error) for _, path, error in read(tmp_path / "a.parquet")] == [
        (f"{tmp_path}/x/1.png", ""),
        ("/y/2.png", ""),
    ]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_an_arrow_file_of_the_datasets_library(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    table = make_table(
        "image", [{"bytes": encode(RED), "path": "0.png"}, {"bytes": None, "path": "1.png"}], label=[0, 1]
    )
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(tmp_path / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    first, second = read(tmp_path / "data.arrow")
    assert first == ("0", encode(RED), "") and str(second[1]) == str(tmp_path / "1.png")


def test_a_table_without_images_names_its_columns(tmp_path):
    table = make_table("text", ["a", "b"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [("", None, "has no column of images or paths; its columns are text")]


def write_records(path, records: list[bytes]):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_an_array_record_file_of_images(tmp_path):
    path = write_records(tmp_path / "a.array_record", [encode(RED), encode(BLUE)])
    assert read(path) == [("0", encode(RED), ""), ("1", encode(BLUE), "")]


@pytest.mark.parametrize("image_format", ["raw", "jpeg"])
def test_an_array_record_file_of_prepare(tmp_path, image_format):
    pixels = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    image = pixels.tobytes() if image_format == "raw" else encode(RED)
    record = Record(tmp_path / "a.jpg", ("a kite",), 42)
    (item,) = read(write_records(tmp_path / "a.array_record", [encode_record(record, image, image_format, 5)]))
    key, content, error = item
    assert (key, error) == ("42", "")
    if image_format == "raw":
        np.testing.assert_array_equal(decode_image(content, 5), pixels)
    else:
        assert content == image


def test_a_damaged_record_is_one_error(tmp_path):
    images = [encode(scene) for scene in (RED, BLUE, RED)]
    path = write_records(tmp_path / "a.array_record", images)
    content = path.read_bytes()
    position = content.index(images[1])
    path.write_bytes(content[:position] + b"x" + content[position + 1 :])
    first, second, third = read(path)
    assert (first, third) == (("0", images[0], ""), ("2", images[2], ""))
    assert second[:2] == ("1", None) and "record 1 cannot be read" in second[2]
    path.write_bytes(content[:-70_000])
    assert read(path) == [("", None, "is not an ArrayRecord file, or is truncated")]


@pytest.mark.slow  # imports TensorFlow
def test_an_array_record_file_of_examples(tmp_path):
    Example = pytest.importorskip("tensorflow.core.example.example_pb2").Example  # noqa: N806
    example, empty = Example(), Example()
    example.features.feature["image"].bytes_list.value.append(encode(BLUE))
    example.features.feature["image/id"].int64_list.value.append(42)  # as in coco_captions of TFDS
    empty.features.feature["text"].bytes_list.value.append(b"words")
    messages = [example.SerializeToString(), empty.SerializeToString(), b"\xff\xff\xff"]
    first, second, third = read(write_records(tmp_path / "a.array_record", messages))
    assert first == ("42", encode(BLUE), "")
    assert second[2] == "the record has no image; its features are text"
    assert third == ("2", None, "the record is neither an image nor a tf.train.Example")


def test_shards_and_images_in_a_bucket(bucket, tmp_path):
    bucket.mkdir(parents=True)
    path = write_tar(tmp_path / "a.tar", {"0.png": encode(RED)})
    (bucket / "a.tar").write_bytes(path.read_bytes())
    (bucket / "0.png").write_bytes(encode(BLUE))
    assert read("gs://bucket/a.tar") == [("0.png", encode(RED), "")]
    (image,) = open_images(Unit(IMAGES, ("gs://bucket/0.png",)), DEFAULT_LIMITS)
    assert image.image() == encode(BLUE) and (image.source, image.key) == ("gs://bucket/0.png", "")
