"""`config.data.shuffle_window`: the images of a window are shuffled, and each row group is read once per epoch."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from synthetic_splits import make_split
from written_shards import (
    assert_processes_continue,
    make_batches,
    make_shard_spec,
    read_batches,
    write_parquet,
    write_shards,
)

from caption_jax.config import default_config
from caption_jax.specs import DataSpec, RunSpec
from caption_jax.training.batch_placer import _iterate_epochs
from input_pipeline.errors import DataError
from input_pipeline.image_order import ShuffledEpochs, count_blocks, make_train_order, shuffle_epoch, shuffle_windows
from input_pipeline.sources import open_splits, row_groups
from input_pipeline.sources.row_groups import RowGroupCache

BLOCKS = np.array([5, 3, 8, 1, 5, 5, 2, 7])


def find_blocks(order: np.ndarray) -> np.ndarray:
    """Returns the block of each image of an order."""
    return np.repeat(np.arange(len(BLOCKS)), BLOCKS)[order]


def test_the_order_of_a_window_is_the_same_on_all_machines():
    assert shuffle_windows(np.array([2, 3, 1, 2]), 4, 0, 0).tolist() == [5, 2, 3, 4, 6, 0, 1, 7]


@pytest.mark.parametrize("window", [1, 6, 12, 1000])
def test_windows_contain_whole_blocks_of_about_their_size(window):
    for epoch in range(20):
        order = shuffle_windows(BLOCKS, window, 3, epoch)
        assert sorted(order) == list(range(BLOCKS.sum()))
        blocks = find_blocks(order)
        positions = [np.flatnonzero(blocks == block) for block in range(len(BLOCKS))]
        # The images of a block are in a window, which exceeds its size by less than a block.
        assert all(rows[-1] - rows[0] < window - 1 + BLOCKS.max() for rows in positions)


def test_images_of_different_blocks_of_a_window_are_mixed():
    blocks = find_blocks(shuffle_windows(BLOCKS, 1000, 0, 0))
    runs = len(list(itertools.groupby(blocks)))
    assert runs > 2 * len(BLOCKS)
    assert len(list(itertools.groupby(find_blocks(shuffle_windows(BLOCKS, 1, 0, 0))))) == len(BLOCKS)


def test_the_order_depends_on_the_seed_and_the_epoch():
    orders = {tuple(shuffle_windows(BLOCKS, 12, seed, epoch)) for seed in (0, 1, 2**40) for epoch in range(3)}
    assert len(orders) == 9


def test_images_that_are_stored_on_their_own_are_blocks_of_one_image():
    records = make_split(7).records
    assert count_blocks(records).tolist() == [1] * 7
    assert sorted(ShuffledEpochs(records, 0, 3).indices(0)) == list(range(7))


def test_without_a_window_the_order_is_that_of_earlier_releases():
    order = make_train_order(make_split(7), 0, 3)
    assert [order[position].index for position in range(7)] == shuffle_epoch(7, 3, 0).tolist()
    assert [order[position].epoch for position in (0, 6, 7, 14)] == [0, 0, 1, 2] and not order.fingerprint


@pytest.mark.parametrize(("source", "blocks"), [("webdataset", [7, 3]), ("parquet", [4, 3, 3])])
def test_blocks_are_shards_or_row_groups(source, blocks, tmp_path):
    if source == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    assert count_blocks(open_splits(write_shards(tmp_path, source))["train"]).tolist() == blocks


@pytest.fixture
def windowed(tmp_path) -> DataSpec:
    """The spec of twelve row groups, each of five images, with windows of three of them."""
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    samples = {f"{number:03d}": (f"{number} a", f"{number} b") for number in range(60)}
    write_parquet(tmp_path / "train.parquet", samples, rows_per_group=5)
    return make_shard_spec(tmp_path, "parquet", shuffle_window=15)


def take_epochs(spec: DataSpec, count: int) -> list[int]:
    """Reads epochs of 15 batches; returns the indices of the images."""
    batches = make_batches(spec)
    indices = [index for _ in range(15 * count) for index in next(batches)["index"].tolist()]
    batches.close()
    return indices


@pytest.mark.parametrize("workers", [0, 2])
def test_each_row_group_is_read_once_per_epoch(windowed, workers, monkeypatch):
    read, read_group = [], row_groups._read_group

    def count_read(column, group):
        read.append(group)
        return read_group(column, group)

    image = open_splits(windowed)["train"][0].image
    group_bytes = read_group(image.column, image.group).nbytes
    monkeypatch.setattr(row_groups, "_read_group", count_read)
    spec = dataclasses.replace(windowed, workers=workers)
    for window, most in ((15, 3), (0, 60)):
        monkeypatch.setattr(row_groups, "_CACHE", RowGroupCache(6 * group_bytes))
        read.clear()
        indices = take_epochs(dataclasses.replace(spec, shuffle_window=window), 3)
        assert all(sorted(indices[60 * epoch : 60 * (epoch + 1)]) == list(range(60)) for epoch in range(3))
        reads = np.bincount(read, minlength=12)
        # Threads read images of the next epoch ahead.
        assert (reads > 1).all() and reads.max() <= most + (workers > 0)
        assert window or reads.sum() > 1.5 * 3 * 12


def test_windowed_batches_resume_and_do_not_depend_on_the_number_of_processes(windowed):
    assert_processes_continue(windowed, read_batches(windowed, 20), start=7)


def test_a_state_of_another_window_is_rejected(windowed):
    state = make_batches(windowed).get_state()
    for window in (0, 10):
        with pytest.raises(DataError, match=r"different data \(order: saved "):
            make_batches(dataclasses.replace(windowed, shuffle_window=window)).set_state(state)


def test_captions_are_packed_for_the_order_of_the_run(windowed):
    train = open_splits(windowed)["train"]
    config = default_config()
    config.data.update(dataclasses.asdict(windowed))
    config.train.steps = 15
    spec = RunSpec.from_config(config)
    indices = np.concatenate(list(_iterate_epochs(spec, train)))
    order = make_train_order(train, windowed.shuffle_window, spec.seed)
    assert indices.tolist() == [order[position].index for position in range(len(indices))] and len(indices) == 120
