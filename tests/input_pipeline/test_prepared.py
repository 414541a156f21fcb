"""Prepared datasets have the splits and the batches of the dataset that they were written from."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, make_data_spec
from written_shards import (
    FORMATS,
    TRAIN,
    VAL,
    assert_processes_continue,
    make_batches,
    read_batches,
    write_folder,
    write_shards,
)

from caption_jax.specs import DataSpec, SplitFractions
from input_pipeline.errors import ConfigError, DataError, MissingFileError
from input_pipeline.images import decode_image
from input_pipeline.pixel_readers import make_pixels
from input_pipeline.prepared.card import Card
from input_pipeline.prepared.preparation import Request, prepare
from input_pipeline.prepared.prepared_pixels import PreparedPixels
from input_pipeline.prepared.shards import decode_record, read_record
from input_pipeline.sources import open_splits, read_splits

pytest.importorskip("array_record", reason="array_record reads and writes shards")

SIZE = PREPROCESSING.size
SUFFIXES = ("array_record", "json")
SHARDS = [f"train-{number:05d}-of-00003" for number in range(3)] + ["val-00000-of-00001"]


def write_prepared(spec: DataSpec, folder: Path, **changes) -> Card:
    """Writes a dataset to shards of four images, in this process. Returns its card."""
    spec = dataclasses.replace(spec, image_size=SIZE, workers=0)
    request = Request(folder, spec, shard_bytes=4 * 3 * SIZE**2, **changes)
    return prepare(request, read_splits(spec))[0]


def make_prepared_spec(folder: Path, **changes) -> DataSpec:
    return make_data_spec(source="prepared", root=str(folder), image_size=SIZE, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> DataSpec:
    """The spec of a folder of images. Tests must not modify it."""
    return write_folder(tmp_path_factory.mktemp("folder") / "data")


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory) -> DataSpec:
    """The spec of the prepared folder. Tests must not modify it."""
    root = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, root)
    return make_prepared_spec(root)


def test_the_card_counts_images_and_bytes(folder, tmp_path):
    card = write_prepared(folder, tmp_path)
    assert json.loads((tmp_path / "card.json").read_text()) == json.loads(card.to_json())
    assert card.splits == {
        "train": {"images": len(TRAIN), "captions": 2 * len(TRAIN), "skipped": 0, "shards": SHARDS[:3]},
        "val": {"images": len(VAL), "captions": len(VAL), "skipped": 0, "shards": SHARDS[3:]},
    }
    assert card.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.array_record")) and not card.skipped
    assert card.settings["preprocessing"]["image_size"] == SIZE and card.settings["image_format"] == "raw"
    assert card.source == {"source": "folder", "root": folder.root}
    names = {f"{shard}.{suffix}" for shard in SHARDS for suffix in SUFFIXES}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "card.json", "settings.json"}


def test_the_contents_do_not_depend_on_where_they_are_written(folder, tmp_path):
    assert write_prepared(folder, tmp_path / "a").sha256 == write_prepared(folder, tmp_path / "b").sha256


def test_a_record_holds_the_image_and_its_captions(folder, prepared):
    header, image = decode_record(read_record(f"{prepared.root}/{SHARDS[1]}.array_record", 2))
    fields = {"id": "006", "name": "006.png", "captions": ["6 a", "6 b"]}
    assert header == {**fields, "format": "raw", "height": SIZE, "width": SIZE}
    original = open_splits(folder)["train"][6]
    np.testing.assert_array_equal(
        np.frombuffer(image, np.uint8).reshape(SIZE, SIZE, 3), PREPROCESSING.load(original.image)
    )


def test_splits_are_those_of_the_folder(folder, prepared):
    expected, actual = open_splits(folder), open_splits(prepared)
    assert list(actual) == list(expected)
    for name, split in expected.items():
        assert actual[name].image_ids == split.image_ids and actual[name].references == split.references
    assert actual["train"][5].name == f"{SHARDS[1]}.array_record[1] (005.png)"


def test_raw_pixels_are_read_without_decoding_and_equal_those_of_the_files(folder, prepared):
    expected, actual = open_splits(folder)["train"], open_splits(prepared)["train"]
    pixels = make_pixels(actual, PREPROCESSING, prepared)
    assert isinstance(pixels, PreparedPixels)
    rows, problems = pixels.load_rows([7, 0, 9], [0, 0, 0])
    assert not problems
    for row, index in zip(rows, (7, 0, 9), strict=True):
        wanted = PREPROCESSING.load(expected[index].image)
        np.testing.assert_array_equal(row, wanted)
        np.testing.assert_array_equal(PREPROCESSING.load(actual[index].source()), wanted)  # by other readers
    assert decode_image(actual[0].source(), 2 * SIZE).shape == (2 * SIZE, 2 * SIZE, 3)
    assert pickle.loads(pickle.dumps(actual[3])).source() == actual[3].source()


@pytest.mark.parametrize("source", ["folder", *FORMATS])
def test_batches_are_those_of_the_source_and_resume_with_any_number_of_processes(source, folder, tmp_path):
    if source == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    original = folder if source == "folder" else write_shards(tmp_path / "shards", source)
    write_prepared(original, tmp_path / "prepared")
    spec = make_prepared_spec(tmp_path / "prepared")
    assert_processes_continue(spec, read_batches(folder, 6), start=3)


def test_jpegs_are_close_to_the_pixels(folder, tmp_path):
    card = write_prepared(folder, tmp_path, image_format="jpeg", quality=95)
    assert card.settings["jpeg_quality"] == 95 and card.settings["images_per_shard"] == 17
    actual, expected = open_splits(make_prepared_spec(tmp_path))["train"], open_splits(folder)["train"]
    assert actual[3].source().startswith(b"\xff\xd8")
    for record, original in zip(actual, expected, strict=True):
        difference = PREPROCESSING.load(record.source()).astype(int) - PREPROCESSING.load(original.image)
        assert np.abs(difference).max() <= 3


def test_held_out_images_are_those_of_the_folder(folder, prepared):
    changes = {"held_out_images": 3}
    expected, actual = (open_splits(dataclasses.replace(spec, **changes)) for spec in (folder, prepared))
    assert len(expected["val"]) == 3 and list(actual) == ["train", "val", "test"]
    assert {name: split.image_ids for name, split in actual.items()} == {
        name: split.image_ids for name, split in expected.items()
    }


def test_images_are_held_out_when_a_prepared_dataset_is_opened(folder, prepared, tmp_path):
    card = write_prepared(dataclasses.replace(folder, held_out_images=3), tmp_path)
    assert card.sha256 == json.loads(Path(prepared.root, "card.json").read_text())["sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 5}, r"config\.data\.image_size is 5, but the images in .* were prepared with 4: set config"),
        ({"resize": "crop"}, r"config\.data\.resize is 'crop', but the images in .* were prepared with 'stretch'"),
        ({"interpolation": "area"}, r"config\.data\.interpolation is 'area', but"),
        ({"split_fractions": SplitFractions(val=0.1)}, r"config\.data\.split_fractions differs from the config with"),
    ],
)
def test_another_config_is_one_line_with_its_key(changes, message, prepared):
    with pytest.raises(ConfigError, match=message) as error:
        open_splits(dataclasses.replace(prepared, **changes))
    assert "\n" not in str(error.value)


def test_the_rules_of_the_splits_may_be_those_of_the_preparation(folder, tmp_path):
    root = tmp_path / "folder"
    write_folder(root)
    captions = root / "captions.jsonl"
    captions.write_text(captions.read_text().replace(', "split": "train"', "").replace(', "split": "val"', ""))
    fractions = {"split_fractions": SplitFractions(val=0.25)}
    spec = dataclasses.replace(folder, root=str(root), **fractions)
    write_prepared(spec, tmp_path / "prepared")
    expected = open_splits(spec)
    for changes in ({}, fractions):
        actual = open_splits(dataclasses.replace(make_prepared_spec(tmp_path / "prepared"), **changes))
        assert actual["val"].image_ids == expected["val"].image_ids


def test_a_folder_without_a_card_is_an_error_with_the_command(tmp_path):
    with pytest.raises(MissingFileError, match=r"card\.json is missing: `prepare --config=NAME --out="):
        open_splits(make_prepared_spec(tmp_path))


def test_a_damaged_record_is_masked_and_named(folder, tmp_path):
    write_prepared(folder, tmp_path)
    path = tmp_path / f"{SHARDS[1]}.array_record"
    content = path.read_bytes()
    position = content.index(read_record(str(path), 2)[-20:])
    path.write_bytes(content[:position] + b"x" + content[position + 1 :])
    batches = make_batches(make_prepared_spec(tmp_path, batch_size=len(TRAIN)))
    batch = next(batches)
    batches.close()
    assert batch["index"][~batch["mask"]].tolist() == [6]
    (name,) = batches.problems
    assert name == f"{path.name}[2] (006.png)" and "hash mismatch" in batches.problems[name]


def test_truncated_and_missing_shards_are_reported_and_skipped(folder, tmp_path):
    write_prepared(folder, tmp_path)
    truncated, missing = (tmp_path / f"{name}.array_record" for name in SHARDS[:2])
    truncated.write_bytes(truncated.read_bytes()[:-100])
    missing.unlink()
    with pytest.raises(DataError) as error:
        open_splits(make_prepared_spec(tmp_path))
    message = str(error.value)
    assert "unusable shards: 2" in message and f"{missing}: No such file" in message
    assert f"{truncated} has " in message and "--config.data.on_error=skip" in message
    assert open_splits(make_prepared_spec(tmp_path, on_error="skip"))["train"].image_ids == ["008", "009"]


@pytest.fixture
def damaged_folder(tmp_path) -> tuple[DataSpec, Path]:
    """A folder whose seventh image cannot be read, and the path of that image."""
    spec = write_folder(tmp_path / "folder")
    path = tmp_path / "folder" / "images" / "006.png"
    path.write_bytes(path.read_bytes()[:30])
    return spec, path


def test_an_unreadable_image_stops_and_the_same_command_continues(damaged_folder, tmp_path):
    spec, path = damaged_folder
    root = tmp_path / "prepared"
    with pytest.raises(DataError, match=r"006\.png: .* skip such images with --config\.data\.on_error=skip"):
        write_prepared(spec, root)
    assert sorted(file.name for file in root.iterdir()) == [
        "settings.json",
        *(f"{SHARDS[0]}.{end}" for end in SUFFIXES),
    ]
    before = (root / f"{SHARDS[0]}.array_record").stat()
    card = write_prepared(dataclasses.replace(spec, on_error="skip"), root)
    after = (root / f"{SHARDS[0]}.array_record").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    (skipped,) = card.skipped
    assert skipped["split"] == "train" and skipped["name"] == str(path) and "damaged or incomplete" in skipped["reason"]
    assert (card.splits["train"]["images"], card.splits["train"]["skipped"]) == (9, 1)
    assert open_splits(make_prepared_spec(root))["train"].image_ids == [key for key in TRAIN if key != "006"]


def test_a_damaged_shard_is_found_before_the_card_is_written(damaged_folder, tmp_path):
    spec, _ = damaged_folder
    root = tmp_path / "prepared"
    with pytest.raises(DataError, match=r"006\.png"):
        write_prepared(spec, root)
    path = root / f"{SHARDS[0]}.array_record"
    path.write_bytes(path.read_bytes()[:-70_000])
    spec = dataclasses.replace(spec, on_error="skip")
    with pytest.raises(DataError, match=rf"{SHARDS[0]}\.array_record is damaged .*: delete .*{SHARDS[0]}\.json"):
        write_prepared(spec, root)
    assert not (root / "card.json").exists()
    (root / f"{SHARDS[0]}.json").unlink()
    assert write_prepared(spec, root).splits["train"]["images"] == 9


def test_a_finished_folder_is_left_as_it_is(folder, tmp_path):
    write_prepared(folder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    request = Request(tmp_path, dataclasses.replace(folder, image_size=SIZE), shard_bytes=4 * 3 * SIZE**2)
    assert not prepare(request, read_splits(folder))[1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match=r"holds a dataset with other settings \(image_format, jpeg_quality, images"):
        write_prepared(folder, tmp_path, image_format="jpeg")
    with pytest.raises(ConfigError, match=r"holds a dataset with other settings \(preprocessing in settings\.json\)"):
        write_prepared(dataclasses.replace(folder, resize="crop"), tmp_path)


def test_a_folder_with_other_files_is_refused(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty and holds no prepared dataset: set --out to a new folder"):
        write_prepared(folder, tmp_path)
