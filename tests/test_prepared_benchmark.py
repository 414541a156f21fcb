"""The sides of `benchmarks.prepared_input` load the same pixels, and each ratio compares ours with a peer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_run

from benchmarks import prepared_input
from benchmarks.alternate import Seconds
from benchmarks.peers import prepared_loaders

pytest.importorskip("array_record", reason="array_record reads and writes shards")
SIZE, BATCH = 16, 4


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[str]:
    """Four JPEG files, each of which is listed twice."""
    folder = tmp_path_factory.mktemp("photographs")
    for colour in small_run.COLOURS:
        small_run.box_image(colour).resize((480, 360)).save(folder / f"{colour}.jpg")
    return sorted(map(str, folder.iterdir())) * 2


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepared_input.write_prepared(photographs, SIZE, folder)
    return folder


@pytest.mark.parametrize("kind", prepared_input.SIDES)
def test_our_sides_load_batches(kind, photographs, prepared):
    load_batches = prepared_input.make_side(kind, photographs, SIZE, BATCH, prepared)
    load_batches()
    load_batches()


@pytest.mark.slow
@pytest.mark.parametrize("kind", prepared_loaders.KINDS)
def test_peers_load_the_prepared_pixels(kind, photographs, prepared, tmp_path):
    pytest.importorskip("webdataset" if kind == "webdataset" else "tensorflow", reason="one of the peers")
    prepared_loaders.make_loader(kind, prepared, tmp_path, len(photographs), SIZE, BATCH)()
    if kind == "webdataset":
        batches = prepared_loaders.make_webdataset_batches(str(tmp_path / kind), SIZE, BATCH)
    else:
        batches = prepared_loaders.make_tf_data_batches(str(tmp_path / kind), SIZE, BATCH, kind == "tf-batched")
    images = np.concatenate([np.asarray(next(batches)["image"]) for _ in range(2 * len(photographs) // BATCH)])
    records = prepared_loaders.open_records(prepared, SIZE)
    expected = {record.image.read_pixels().tobytes() for record in records}
    assert {image.tobytes() for image in images} == expected and len(expected) == len(photographs) / 2


def test_ratios_are_those_of_cpu_time_and_the_faster_variant():
    seconds = {
        "prepared": Seconds(9, 0.5),
        "jpeg": Seconds(1, 10),
        "tf": Seconds(1, 2),
        "tf-batched": Seconds(1, 1),
        "webdataset": Seconds(1, 3),
    }
    cells = prepared_input.make_cells(seconds, 100)
    assert {name: cell["ratio"] for name, cell in cells.items()} == {
        "prepared, JPEG files": 20,
        "prepared, tf.data": 2,
        "prepared, webdataset": 6,
    }
    assert cells["prepared, tf.data"]["ours"] == 200 and cells["prepared, tf.data"]["peer"] == 100
