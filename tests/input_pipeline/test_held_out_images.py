"""`config.data.held_out_images`: training images become the validation split."""

from __future__ import annotations

from pathlib import Path

import pytest

from input_pipeline.data_spec import DataSpec
from input_pipeline.records import DataError, Record, Split
from input_pipeline.sources import hold_out, open_splits


def make_split(name: str, ids: list[str]) -> Split:
    return Split(name, [Record(Path(f"{image_id}.jpg"), ("a dog",), image_id) for image_id in ids])


TRAIN, DEV = [f"train{number}" for number in range(30)], [f"dev{number}" for number in range(10)]


def test_held_out_images_replace_the_validation_split():
    splits = hold_out({"train": make_split("train", TRAIN), "val": make_split("val", DEV)}, 8)
    sizes = {name: (split.name, len(split)) for name, split in splits.items()}
    assert sizes == {"train": ("train", 22), "val": ("val", 8), "test": ("test", 10)}
    assert splits["test"].image_ids == DEV
    assert sorted(splits["train"].image_ids + splits["val"].image_ids) == sorted(TRAIN)
    assert splits["val"].image_ids != TRAIN[:8]


def test_the_selection_does_not_depend_on_the_order_or_the_number():
    few, many = (set(hold_out({"train": make_split("train", TRAIN)}, count)["val"].image_ids) for count in (5, 9))
    reordered = hold_out({"train": make_split("train", TRAIN[::-1])}, 9)
    assert few < many == set(reordered["val"].image_ids)
    assert "test" not in reordered


def test_impossible_selections_are_rejected():
    train, dev = make_split("train", TRAIN), make_split("val", DEV)
    with pytest.raises(DataError, match=r"held_out_images=30 must be less than the 30 training images"):
        hold_out({"train": train, "val": dev}, 30)
    with pytest.raises(DataError, match=r"held_out_images=8 must be less than the 0 training images"):
        hold_out({"val": dev}, 8)
    with pytest.raises(DataError, match=r"held_out_images=20 names the validation split .* it has a test split"):
        open_splits(DataSpec(source="shapes", shapes="tiny", held_out_images=20))


def test_the_test_split_of_a_dataset_without_validation_split_is_kept():
    splits = hold_out({"train": make_split("train", TRAIN), "test": make_split("test", DEV)}, 3)
    assert splits["test"].image_ids == DEV and len(splits["val"]) == 3
