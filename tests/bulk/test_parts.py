"""Parquet files hold one row per image, for readers of Parquet and for the index."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from caption_jax.bulk.output_folder import Manifest, locked_folder
from caption_jax.bulk.parquet_index import index_parts
from caption_jax.bulk.parts import Counts, Row, count_rows, list_parts, make_schema, part_path, read_rows, write_part
from caption_jax.bulk.work_units import IMAGES, Unit
from caption_jax.errors import WorkdirError
from caption_jax.retrieval.index import ImageIndex, ModelIdentity

parquet = pytest.importorskip("pyarrow.parquet")
MODEL = ModelIdentity(930, "ab" * 32)
VECTORS = np.eye(3, dtype=np.float32)
ROWS = (
    Row("/a.png", "", "a dog", -1.5, vector=VECTORS[0], size=10, mtime_ns=1),
    Row("/s.tar", "x/1.png", "a cat", -2.5, vector=VECTORS[1]),
    Row("/s.tar", "x/2.png", error="is damaged"),
)


def write(folder, rows=ROWS, number=0, alternatives=0, width=3) -> None:
    write_part(str(folder), number, rows, make_schema(alternatives, width))


def test_the_columns_of_a_file(tmp_path):
    rows = [dataclasses.replace(row, alternatives=[("two dogs", -3.5)]) for row in ROWS[:1]] + [*ROWS[2:]]
    write(tmp_path, rows, alternatives=1)
    first, second = parquet.read_table(tmp_path / "part-00000.parquet").to_pylist()
    assert first == {
        **{"source": "/a.png", "key": "", "caption": "a dog", "log_prob": -1.5, "error": None},
        **{"alternatives": [{"caption": "two dogs", "log_prob": -3.5}], "vector": [1, 0, 0], "size": 10, "mtime_ns": 1},
    }
    assert second["error"] == "is damaged" and second["caption"] is second["vector"] is second["alternatives"] is None
    write(tmp_path, [Row("/a\udce9.png", caption="b")], number=1, width=0)
    table = parquet.read_table(tmp_path / "part-00001.parquet")
    assert "vector" not in table.column_names and table["source"].to_pylist() == ["/a\\udce9.png"]


def test_rows_are_counted_and_read_with_their_vectors(tmp_path):
    write(tmp_path)
    write(tmp_path, (), number=12)
    (tmp_path / ".part-00003.parquet.0.part").touch()
    assert list_parts(str(tmp_path)) == [0, 12]
    assert count_rows(str(tmp_path), [0, 12]) == [Counts(3, 1), Counts(0, 0)]
    rows = list(read_rows(str(tmp_path), 0, ("key", "vector")))
    np.testing.assert_array_equal(rows[1]["vector"], VECTORS[1])
    assert [row["key"] for row in rows] == ["", "x/1.png", "x/2.png"] and rows[2]["vector"] is None
    (tmp_path / "part-00012.parquet").write_bytes(b"PAR1")
    with pytest.raises(WorkdirError, match=r"part-00012.parquet is damaged .*delete it"):
        count_rows(str(tmp_path), [12])


def test_files_in_a_bucket(bucket):
    (bucket / "out").mkdir(parents=True)
    write("gs://bucket/out")
    assert part_path("gs://bucket/out", 0) == "gs://bucket/out/part-00000.parquet"
    assert list_parts("gs://bucket/out") == [0] and count_rows("gs://bucket/out", [0]) == [Counts(3, 1)]


@pytest.fixture
def output(tmp_path):
    """A complete output folder with two files."""
    folder = tmp_path / "out"
    units = [Unit(IMAGES, ("/a.png",)), Unit("tar", ("/s.tar",))]
    with locked_folder(str(folder), Manifest.create(MODEL, {"--vectors": True}, units)):
        write(folder, ROWS[:1], 0)
        write(folder, ROWS[1:], 1)
    return folder


def test_an_index_of_the_files(output, tmp_path):
    size, changes = index_parts(str(output), tmp_path / "index", MODEL)
    assert (size, changes.added, changes.unchanged) == (2, 2, 0)
    index = ImageIndex(tmp_path / "index")
    np.testing.assert_array_equal(index.vectors, VECTORS[:2])
    entries = [(entry.id, entry.path, entry.caption, entry.stamp) for entry in index.entries()]
    assert entries == [("/a.png", "/a.png", "a dog", (10, 1)), ("/s.tar/x/1.png", None, "a cat", (None, None))]
    size, changes = index_parts(str(output), tmp_path / "index", MODEL)
    assert (size, changes.added, changes.updated, changes.unchanged) == (2, 0, 0, 2)
    write(output, [dataclasses.replace(ROWS[0], vector=VECTORS[2], size=11)], 0)
    size, changes = index_parts(str(output), tmp_path / "index", MODEL)
    assert (size, changes.added, changes.updated, changes.unchanged) == (2, 0, 1, 1)
    np.testing.assert_array_equal(ImageIndex(tmp_path / "index").vectors, VECTORS[[1, 2]])


def test_what_cannot_be_indexed_is_refused(output, tmp_path):
    with pytest.raises(WorkdirError, match=r"written with a model \(step 930"):
        index_parts(str(output), tmp_path / "index", ModelIdentity(5, "00" * 32))
    (output / "part-00001.parquet").unlink()
    with pytest.raises(WorkdirError, match="lacks 1 Parquet files: run the command that writes it again"):
        index_parts(str(output), tmp_path / "index", MODEL)
    with locked_folder(str(tmp_path / "other"), Manifest.create(MODEL, {"--vectors": False}, [])):
        pass
    with pytest.raises(WorkdirError, match="has no vectors: write them with caption-many --vectors"):
        index_parts(str(tmp_path / "other"), tmp_path / "index", MODEL)
