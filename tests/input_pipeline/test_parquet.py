"""The `parquet` source: columns, rows that cannot be used, damaged files, and the cache of row groups."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from synthetic_splits import make_png
from written_shards import TRAIN, make_shard_spec, write_parquet

from input_pipeline.errors import DataError
from input_pipeline.sources import open_splits, parquet, row_groups
from input_pipeline.sources.row_groups import RowGroupCache

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")

KEYS = [*TRAIN][:6]
SAMPLES = {key: TRAIN[key] for key in KEYS}


def report_and_ids(folder: Path, **changes) -> tuple[str, list]:
    """Returns the report of the problems of the shards of a folder, and the ids of the samples that can be used."""
    with pytest.raises(DataError) as error:
        open_splits(make_shard_spec(folder, "parquet", **changes))
    splits = open_splits(make_shard_spec(folder, "parquet", on_error="skip", **changes))
    return str(error.value), splits["train"].image_ids


def test_columns_are_found_by_name_and_type(tmp_path):
    columns = {
        "image": [f"{key}.png" for key in KEYS],  # names, not bytes
        "jpg": [make_png(int(key)) for key in KEYS],
        "caption": None,
        "text": pyarrow.array([f"text {key}" for key in KEYS]).dictionary_encode(),
        "image_id": None,
    }
    write_parquet(tmp_path / "a.parquet", SAMPLES, **columns)
    train = open_splits(make_shard_spec(tmp_path, "parquet"))["train"]
    assert train.references == {f"a.parquet/{row}": [f"text {key}"] for row, key in enumerate(KEYS)}
    assert [record.source() for record in train] == columns["jpg"]
    assert train[5].name == "a.parquet[5]"


def test_columns_can_be_named(tmp_path):
    columns = {"photo": [make_png(9)] * 6, "legend": ["this"] * 6, "number": list(range(6)), "id": ["same"] * 6}
    write_parquet(tmp_path / "a.parquet", SAMPLES, **columns)
    names = {"image_column": "photo", "caption_column": "legend", "id_column": "number"}
    train = open_splits(make_shard_spec(tmp_path, "parquet", **names))["train"]
    assert train.references == {number: ["this"] for number in range(6)} and train[3].source() == make_png(9)


@pytest.mark.parametrize(
    ("changes", "columns", "problem"),
    [
        ({}, {"image": None}, r"no column of images \(config\.data\.image_column\); its columns are caption \(list"),
        ({}, {"caption": [1] * 6}, r"no column of captions \(config\.data\.caption_column\).*caption \(int64\)"),
        ({"image_column": "x"}, {}, r"no column of images named 'x' \(config\.data\.image_column\)"),
        ({"id_column": "x"}, {}, r"no column of ids named 'x' \(config\.data\.id_column\)"),
    ],
)
def test_missing_columns_are_one_line_with_the_columns(changes, columns, problem, tmp_path):
    write_parquet(tmp_path / "a.parquet", SAMPLES, **columns)
    with pytest.raises(DataError, match=problem):
        open_splits(make_shard_spec(tmp_path, "parquet", **changes))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"image": [None, *({"bytes": make_png(1), "path": None} for _ in KEYS[1:])]}, "rows without an image: 1"),
        (
            {"image": [{"bytes": None, "path": "x"}, *({"bytes": make_png(1), "path": None} for _ in KEYS[1:])]},
            "rows without an image: 1",
        ),
        ({"image": None, "png": [None, *[make_png(1)] * 5]}, "rows without an image: 1"),
        ({"caption": [None, *["text"] * 5]}, "images without captions: 1"),
        ({"caption": [[], *[["text"]] * 5]}, "images without captions: 1"),
        ({"caption": [["text", None], *[["text"]] * 5]}, "unreadable captions: 1"),
        ({"image_id": [None, *KEYS[1:]]}, "rows without an id: 1"),
        ({"image_id": [KEYS[1], *KEYS[1:]]}, "duplicate ids: 1"),
    ],
)
def test_rows_that_cannot_be_used_are_named_counted_and_skipped(columns, problem, tmp_path):
    write_parquet(tmp_path / "a.parquet", SAMPLES, **columns)
    message, ids = report_and_ids(tmp_path)
    assert f"{problem}\n    " in message and "a.parquet[" in message and ids == KEYS[1:]


def test_text_that_is_not_utf8_is_reported(tmp_path):
    raw = pyarrow.array([b"caf\xe9", *[b"text"] * 5])
    texts = pyarrow.StringArray.from_buffers(6, raw.buffers()[1], raw.buffers()[2])
    write_parquet(tmp_path / "a.parquet", SAMPLES, caption=texts)
    message, ids = report_and_ids(tmp_path)
    assert "a.parquet[0]: 'caption' is not UTF-8" in message and ids == KEYS[1:]


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"no Parquet file"])
def test_files_without_a_footer_are_reported(damage, tmp_path):
    good = write_parquet(tmp_path / "a.parquet", SAMPLES)
    (tmp_path / "b.parquet").write_bytes(damage(good.read_bytes()))
    message, ids = report_and_ids(tmp_path)
    assert "unreadable shards: 1\n" in message and "b.parquet is not a Parquet file, or is truncated" in message
    assert ids == KEYS


def test_other_row_groups_of_a_damaged_file_are_used(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", SAMPLES, rows_per_group=2)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1)
    offsets = {group.column(index).path_in_schema: group.column(index).data_page_offset for index in range(4)}
    content = bytearray(path.read_bytes())
    start = min(offset for name, offset in offsets.items() if name.startswith("caption"))
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    message, ids = report_and_ids(tmp_path)
    assert "unreadable row groups: 1\n" in message and "a.parquet, rows 2 to 3: " in message
    assert ids == KEYS[:2] + KEYS[4:]


def test_a_damaged_image_column_is_an_error_of_its_images(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", SAMPLES, rows_per_group=2)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1)
    content = bytearray(path.read_bytes())
    start = next(
        group.column(index).data_page_offset for index in range(4) if "bytes" in group.column(index).path_in_schema
    )
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    train = open_splits(make_shard_spec(tmp_path, "parquet"))["train"]
    assert train[0].source() == make_png(0) and train[5].source() == make_png(5)
    with pytest.raises(OSError, match=r"a\.parquet, row group 1: "):
        train[2].source()


@pytest.mark.parametrize(("cached_bytes", "is_logged"), [(0, True), (2**30, False)])
def test_the_cost_of_large_row_groups_is_logged(cached_bytes, is_logged, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 10)
    monkeypatch.setattr(parquet, "CACHED_BYTES", cached_bytes)
    write_parquet(tmp_path / "a.parquet", SAMPLES)
    open_splits(make_shard_spec(tmp_path, "parquet"))
    assert ("Each image is read with its row group" in caplog.text) == is_logged


def test_a_row_group_is_read_once_for_all_threads_and_old_ones_are_dropped(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", SAMPLES, rows_per_group=2)
    train = open_splits(make_shard_spec(tmp_path, "parquet"))["train"]
    read, read_group = [], row_groups._read_group

    def record_read(column, group):
        read.append(group)
        return read_group(column, group)

    monkeypatch.setattr(row_groups, "_read_group", record_read)
    monkeypatch.setattr(row_groups, "_CACHE", RowGroupCache(max_bytes=0))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda record: record.source(), train[:2] * 4)) == [make_png(0), make_png(1)] * 4
    assert read == [0]
    for row in (2, 3, 0, 1):
        train[row].source()
    assert read == [0, 1, 0]
