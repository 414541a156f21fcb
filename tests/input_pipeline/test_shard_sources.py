"""Tar and Parquet shards give the same splits and batches as a folder with the same images and captions."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches
from written_shards import (
    FORMATS,
    TRAIN,
    VAL,
    assert_processes_continue,
    make_batches,
    make_members,
    make_shard_spec,
    read_batches,
    write_folder,
    write_shards,
    write_tar,
)

from caption_jax.specs import SplitFractions
from input_pipeline.batches import train_batches
from input_pipeline.data_spec import SplitFiles, SplitShards
from input_pipeline.errors import ConfigError, DataError
from input_pipeline.inputs import fingerprint
from input_pipeline.sources import open_splits
from input_pipeline.sources.shard_names import expand_braces


@pytest.fixture(params=FORMATS)
def source(request) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    return request.param


def test_splits_and_images_are_those_of_the_folder(source, tmp_path):
    expected = open_splits(write_folder(tmp_path / "folder"))
    actual = open_splits(write_shards(tmp_path / "shards", source))
    assert list(actual) == list(expected) == ["train", "val"]
    for name, split in expected.items():
        assert actual[name].references == split.references
        assert actual[name].image_ids == split.image_ids
        assert [record.source() for record in actual[name]] == [record.source().read_bytes() for record in split]


def test_batches_are_those_of_the_folder_and_resume_with_any_number_of_processes(source, tmp_path):
    expected = read_batches(write_folder(tmp_path / "folder"), 6)
    assert_processes_continue(write_shards(tmp_path / "shards", source), expected, start=3)


@pytest.mark.slow
def test_decoding_processes_give_the_same_batches(source, tmp_path):
    spec = write_shards(tmp_path / "shards", source)
    expected, actual = make_batches(spec), make_batches(dataclasses.replace(spec, worker_type="processes"))
    for _ in range(3):
        assert_equal_batches(next(actual), next(expected))
    expected.close()
    actual.close()


def test_fractions_and_held_out_images_are_those_of_the_folder(source, tmp_path):
    fractions = SplitFractions(val=0.2, test=0.1)
    folder = write_folder(tmp_path / "folder")
    captions = tmp_path / "folder" / "captions.jsonl"
    captions.write_text(
        "".join(line for line in captions.open() if '"train"' in line).replace(', "split": "train"', "")
    )
    shards = dataclasses.replace(write_shards(tmp_path / "shards", source), shards=SplitShards(train="train-*"))
    for changes in ({"split_fractions": fractions}, {"held_out_images": 3}):
        expected, actual = (open_splits(dataclasses.replace(spec, **changes)) for spec in (folder, shards))
        assert {name: split.image_ids for name, split in actual.items()} == {
            name: split.image_ids for name, split in expected.items()
        }
        assert len(expected["val"]) == changes.get("held_out_images", 2)


def test_patterns_select_the_shards_of_each_split(source, tmp_path):
    spec = write_shards(tmp_path, source)
    suffix = "tar" if source == "webdataset" else "parquet"
    patterns = SplitShards(train=f"train-{{0001..0001}}.{suffix}", test=f"{{val,unused}}-*.{suffix}")
    splits = open_splits(dataclasses.replace(spec, shards=patterns))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": [*TRAIN][7:], "test": [*VAL]}
    assert splits["train"][0].name.startswith(f"train-0001.{suffix}")


def test_records_can_be_pickled(source, tmp_path):
    record = open_splits(write_shards(tmp_path, source))["train"][8]
    assert pickle.loads(pickle.dumps(record)).source() == record.source()


def test_a_shard_that_changes_or_disappears_is_an_error_of_its_images(source, tmp_path):
    spec = write_shards(tmp_path, source)
    train = open_splits(spec)["train"]
    first, last = next(tmp_path.glob("train-0000.*")), next(tmp_path.glob("train-0001.*"))
    first.write_bytes(first.read_bytes() + b"x")
    last.unlink()
    for record, message in ((train[0], "has changed"), (train[9], "no such file")):
        with pytest.raises(OSError, match=message):
            record.source()
    assert len(fingerprint(train)) == 64
    batches = train_batches(train, PREPROCESSING, CharacterVocabulary(), spec, 3)
    assert not next(batches)["mask"].any()
    batches.close()


def write_repeated_ids(folder: Path) -> None:
    keys = [*TRAIN]
    for name, chosen in (("train-0", keys[:3]), ("train-1", keys[2:4]), ("val-0", [keys[1], *VAL])):
        write_tar(folder / f"{name}.tar", make_members({key: {**TRAIN, **VAL}[key] for key in chosen}))


def test_repeated_ids_are_reported_and_skipped(tmp_path):
    write_repeated_ids(tmp_path)
    with pytest.raises(DataError) as error:
        open_splits(make_shard_spec(tmp_path, "webdataset"))
    message = str(error.value)
    assert "duplicate ids: 1\n    002: train-0.tar/002.png and train-1.tar/002.png" in message
    assert "ids in two splits: 1\n    001: train-0.tar/001.png (train) and val-0.tar/001.png (val)" in message
    splits = open_splits(make_shard_spec(tmp_path, "webdataset", on_error="skip"))
    assert splits["train"].image_ids == ["000", "002", "003"] and splits["val"].image_ids == [*VAL]


def test_the_shard_can_be_part_of_the_ids(tmp_path):
    write_repeated_ids(tmp_path)
    splits = open_splits(make_shard_spec(tmp_path, "webdataset", id_column="__url__"))
    assert splits["train"].image_ids[2:4] == ["train-0.tar/002", "train-1.tar/002"]
    assert len(splits["val"]) == len(VAL) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shards": SplitShards(train="x-*.tar")},
            r"no file in .* matches 'x-\*\.tar' \(config\.data\.sha",
        ),
        ({"shards": SplitShards(train="train-*.tar", val="train-0000.tar")}, "shard of both train and val"),
        ({"shards": SplitShards(train="train-{0000..0002}.tar")}, r"missing shards: 1\n.*train-0002\.tar"),
        ({"split_fractions": SplitFractions(val=0.1)}, "defined by both the shards and config.data.split_fractions"),
        ({"split_files": SplitFiles(train="train.txt")}, r"config\.data\.split_files applies to the folder source"),
        ({"root": "nowhere"}, "no such folder: nowhere; set config.data.root"),
    ],
)
def test_wrong_settings_are_one_line_with_their_key(changes, message, tmp_path):
    spec = write_shards(tmp_path, "webdataset")
    with pytest.raises((DataError, ConfigError), match=message):
        open_splits(dataclasses.replace(spec, **changes))


def test_a_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.tar files in .*; set config\.data\.root or config\.data\.shards"):
        open_splits(make_shard_spec(tmp_path, "webdataset"))


def test_links_that_leave_the_folder_can_be_refused(tmp_path):
    write_shards(tmp_path / "outside", "webdataset")
    (tmp_path / "root").mkdir()
    for shard in (tmp_path / "outside").glob("*.tar"):
        (tmp_path / "root" / shard.name).symlink_to(shard)
    assert len(open_splits(make_shard_spec(tmp_path / "root", "webdataset"))["train"]) == len(TRAIN)
    with pytest.raises(DataError, match=r"shards outside of the folder .*config\.data\.outside_files\): 3"):
        open_splits(make_shard_spec(tmp_path / "root", "webdataset", outside_files="refuse"))


def test_braces_stand_for_names():
    assert expand_braces("a-{008..010}{,x}.tar", "key") == [
        *("a-008.tar", "a-008x.tar", "a-009.tar", "a-009x.tar", "a-010.tar", "a-010x.tar")
    ]
    assert expand_braces("{a,b{1..2}}", "key") == ["a", "b1", "a", "b2"]
    for pattern in ("a-{0..2.tar", "a-{5..2}.tar", "{0..9999999}", "{0..999}{0..9999}"):
        with pytest.raises(ConfigError, match=r"config\.data\.shards\.train is"):
            expand_braces(pattern, "config.data.shards.train")
