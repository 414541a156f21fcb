"""All caption formats are read into the same records. Invalid entries are errors, or are skipped on request."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from caption_jax.config import default_config
from caption_jax.specs import DataSpec, build_spec
from input_pipeline.errors import ConfigError
from input_pipeline.records import DataError, Record, Split, check_splits
from input_pipeline.sources import get_split, open_splits, shapes

CAPTIONS = {
    "a.jpg": ["A dog, running.", 'It says "woof".'],
    "b.jpg": ["Two cats."],
    "c.jpg": ["A café.", "Three\nlines of text"],
}


def make_images(folder: Path, names=tuple(CAPTIONS)) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "JPEG")


def make_data_spec(root: Path, *captions: str, **changes) -> DataSpec:
    config = default_config().data
    config.source = "folder"
    config.root = str(root)
    config.captions = captions
    for key, value in changes.items():
        if isinstance(value, dict):
            config[key].update(value)
        else:
            config[key] = value
    return build_spec(DataSpec, config, "data")


def write_file(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def make_csv(delimiter=",") -> str:
    lines = [f"image{delimiter}caption"]
    for name, captions in CAPTIONS.items():
        lines += [name + delimiter + '"' + caption.replace('"', '""') + '"' for caption in captions]
    return "\n".join(lines)


def make_coco() -> dict:
    images = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    annotations = [
        {"image_id": number, "id": 10 * number + index, "caption": caption}
        for number, captions in enumerate(CAPTIONS.values())
        for index, caption in enumerate(captions)
    ]
    return {"images": images, "annotations": annotations}


def make_karpathy(split="train") -> dict:
    return {
        "dataset": "custom",
        "images": [
            {"filename": name, "imgid": number, "split": split, "sentences": [{"raw": text} for text in captions]}
            for number, (name, captions) in enumerate(CAPTIONS.items())
        ],
    }


def make_jsonl(one_caption_per_line=True) -> str:
    if one_caption_per_line:
        lines = [{"image": name, "caption": text} for name, captions in CAPTIONS.items() for text in captions]
    else:
        lines = [{"file_name": name, "captions": captions} for name, captions in CAPTIONS.items()]
    return "\n".join(map(json.dumps, lines))


FORMATS = {
    "captions.csv": make_csv(),
    "excel.csv": "\ufeff" + make_csv(";").replace("\n", "\r\n").replace("Three\r\n", "Three\n"),
    "captions.tsv": make_csv("\t"),
    "one_caption_per_line.jsonl": make_jsonl(),
    "one_image_per_line.jsonl": make_jsonl(one_caption_per_line=False),
    "list.json": [{"image": name, "captions": captions} for name, captions in CAPTIONS.items()],
    "coco.json": make_coco(),
    "karpathy.json": make_karpathy(),
    "format_detected_from_content.txt": make_coco(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_are_read_into_the_same_records(tmp_path, name):
    make_images(tmp_path / "images")
    write_file(tmp_path / name, FORMATS[name])
    splits = open_splits(make_data_spec(tmp_path, name))
    assert list(splits) == ["train"]
    assert {record.image.name: list(record.captions) for record in splits["train"]} == CAPTIONS
    expected_ids = [0, 1, 2] if isinstance(FORMATS[name], dict) and "annotations" in FORMATS[name] else list(CAPTIONS)
    assert splits["train"].image_ids == expected_ids
    assert all(record.image.is_file() for record in splits["train"])


def test_flickr8k_token_files_are_read(tmp_path):
    make_images(tmp_path / "images")
    lines = [
        f"{name}#{number}\t{caption}"
        for name, captions in CAPTIONS.items()
        for number, caption in enumerate(captions)
        if "\n" not in caption
    ]
    write_file(tmp_path / "token.txt", "\n".join(lines) + "\n")
    splits = open_splits(make_data_spec(tmp_path, "token.txt"))
    assert splits["train"].references == {**CAPTIONS, "c.jpg": ["A café."]}


@pytest.mark.parametrize(
    "content",
    ["", "photo,title\na.jpg,hi\n", "hello world", '{"images": 3}', "[1, 2"],
    ids=["empty", "header", "prose", "json", "invalid json"],
)
def test_the_error_for_an_unknown_format_lists_the_supported_formats(tmp_path, content):
    make_images(tmp_path / "images")
    write_file(tmp_path / "unknown.txt", content)
    with pytest.raises(DataError, match=r"unknown\.txt") as error:
        open_splits(make_data_spec(tmp_path, "unknown.txt"))
    for supported in ("CSV", "JSON lines", "COCO", "Karpathy", "token.txt"):
        assert supported in str(error.value)


def test_the_error_for_invalid_utf_8_names_the_byte(tmp_path):
    make_images(tmp_path / "images")
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"captions\.csv is not UTF-8 text \(byte 23\)"):
        open_splits(make_data_spec(tmp_path, "captions.csv"))


def test_errors_for_missing_files_name_the_config_key(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.root"):
        open_splits(make_data_spec(tmp_path / "missing", "captions.csv"))
    with pytest.raises(DataError, match=r"no such file: .*captions\.csv.*config\.data\.captions"):
        open_splits(make_data_spec(tmp_path, "captions.csv"))
    write_file(tmp_path / "captions.csv", make_csv())
    with pytest.raises(DataError, match=r"config\.data\.images"):
        open_splits(make_data_spec(tmp_path, "captions.csv"))
    make_images(tmp_path / "images")
    with pytest.raises(DataError, match=r"config\.data\.split_files\.val"):
        open_splits(make_data_spec(tmp_path, "captions.csv", split_files={"val": "val.txt"}))
    with pytest.raises(ValueError, match=r"config\.data\.source"):
        open_splits(make_data_spec(tmp_path, "captions.csv", source="web"))


# --- splits ---


def test_split_files_select_the_images_of_each_split(tmp_path):
    make_images(tmp_path / "images")
    write_file(tmp_path / "captions.csv", make_csv())
    write_file(tmp_path / "train.txt", "a.jpg\n")
    write_file(tmp_path / "val.txt", "c.jpg\n\n")
    splits = open_splits(make_data_spec(tmp_path, "captions.csv", split_files={"train": "train.txt", "val": "val.txt"}))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": ["a.jpg"], "val": ["c.jpg"]}


def test_split_files_take_precedence_over_caption_files(tmp_path):
    make_images(tmp_path / "images")
    write_file(tmp_path / "captions.csv", "image,caption,split\na.jpg,one,val\na.jpg,two,train\nb.jpg,x,fold 3\n")
    write_file(tmp_path / "train.txt", "a.jpg\nb.jpg\n")
    splits = open_splits(make_data_spec(tmp_path, "captions.csv", split_files={"train": "train.txt"}))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": ["a.jpg", "b.jpg"]}


def test_training_images_without_captions_are_rejected_or_skipped_for_any_source(tmp_path, monkeypatch, caplog):
    records = [Record(tmp_path / "a.jpg", ("one",), 0), Record(tmp_path / "b.jpg", (), 1, "b of a data set")]
    monkeypatch.setattr(shapes, "open_shapes", lambda data_config: {"train": Split("train", records)})
    with pytest.raises(DataError, match="images without captions: 1\n    b of a data set"):
        open_splits(make_data_spec(tmp_path, source="shapes"))
    assert open_splits(make_data_spec(tmp_path, source="shapes", on_error="skip"))["train"].image_ids == [0]
    assert "b of a data set" in caplog.text


def test_splits_are_read_from_the_split_field(tmp_path):
    make_images(tmp_path / "images")
    write_file(
        tmp_path / "captions.csv",
        "image,caption,split\na.jpg,one,train\nb.jpg,two,dev\nc.jpg,three,TEST\na.jpg,x,train\n",
    )
    splits = open_splits(make_data_spec(tmp_path, "captions.csv"))
    assert {name: split.image_ids for name, split in splits.items()} == {
        "train": ["a.jpg"],
        "val": ["b.jpg"],
        "test": ["c.jpg"],
    }
    write_file(tmp_path / "captions.jsonl", '{"image": "a.jpg", "caption": "one", "part": "val"}\n')
    splits = open_splits(make_data_spec(tmp_path, "captions.jsonl", split_field="part"))
    assert splits["val"].image_ids == ["a.jpg"]
    with pytest.raises(DataError, match=r"no column 'part'.*image, caption, split"):
        open_splits(make_data_spec(tmp_path, "captions.csv", split_field="part"))


def test_coco_splits_are_inferred_from_file_names(tmp_path):
    coco = make_coco()
    for split, image_ids in {"train": (0, 1), "val": (2,)}.items():
        content = {
            "images": [coco["images"][image_id] for image_id in image_ids],
            "annotations": [item for item in coco["annotations"] if item["image_id"] in image_ids],
        }
        write_file(tmp_path / "annotations" / f"captions_{split}2017.json", content)
        make_images(tmp_path / f"{split}2017", [image["file_name"] for image in content["images"]])
    files = ("annotations/captions_train2017.json", "annotations/captions_val2017.json")
    splits = open_splits(make_data_spec(tmp_path, *files, images="."))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": [0, 1], "val": [2]}
    assert splits["val"][0].image == tmp_path / "val2017" / "c.jpg"
    # An explicit split takes precedence over the file name.
    splits = open_splits(make_data_spec(tmp_path, f"test={files[0]}", files[1], images="."))
    assert {name: len(split) for name, split in splits.items()} == {"val": 1, "test": 2}


def test_the_karpathy_file_of_coco_is_read(tmp_path):
    """Images in restval are training images, ids are COCO ids, and `filepath` is the folder of an image."""
    content = make_karpathy()
    for number, (image, split) in enumerate(zip(content["images"], ("restval", "val", "test"), strict=True)):
        image.update(split=split, filepath="val2014", cocoid=100 + number)
    write_file(tmp_path / "dataset_coco.json", content)
    make_images(tmp_path / "val2014")
    make_images(tmp_path / "train2014")  # another folder with the same file names
    splits = open_splits(make_data_spec(tmp_path, "dataset_coco.json", images=""))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": [100], "val": [101], "test": [102]}
    assert splits["train"][0].image == tmp_path / "val2014" / "a.jpg"


def test_splitting_by_fraction_depends_only_on_the_image(tmp_path):
    names = [f"{number}.jpg" for number in range(50)]
    make_images(tmp_path / "images", names)
    fractions = {"val": 0.2, "test": 0.1}
    write_file(tmp_path / "one.csv", "image,caption\n" + "".join(f"{name},text\n" for name in names))
    write_file(tmp_path / "two.csv", "image,caption\n" + "".join(f"{name},other\n" for name in reversed(names)) * 2)
    one, two = (
        open_splits(make_data_spec(tmp_path, file, split_fractions=fractions)) for file in ("one.csv", "two.csv")
    )
    assert {name: len(split) for name, split in one.items()} == {"train": 35, "val": 10, "test": 5}
    assert all(set(one[name].image_ids) == set(two[name].image_ids) for name in ("train", "val", "test"))
    assert set().union(*(split.image_ids for split in one.values())) == set(names)
    with pytest.raises(ConfigError, match="split_fractions"):
        open_splits(make_data_spec(tmp_path, "one.csv", split_fractions={"val": 0.6, "test": 0.5}))


def test_split_files_with_split_fractions_are_rejected(tmp_path):
    make_images(tmp_path / "images")
    write_file(tmp_path / "captions.csv", make_csv())
    write_file(tmp_path / "train.txt", "a.jpg\n")
    rules = {"split_files": {"train": "train.txt"}, "split_fractions": {"val": 0.5}}
    with pytest.raises(DataError, match=r"split_files.*split_fractions"):
        open_splits(make_data_spec(tmp_path, "captions.csv", **rules))


def test_the_error_for_an_unknown_split_lists_the_available_splits(tmp_path):
    make_images(tmp_path / "images")
    write_file(tmp_path / "captions.csv", make_csv())
    with pytest.raises(DataError, match=r"no split 'val'; the dataset has train \(3\)"):
        get_split(open_splits(make_data_spec(tmp_path, "captions.csv")), "val")


def test_repeated_images_are_rejected():
    record = Record(Path("a.jpg"), ("text",), 7)
    with pytest.raises(DataError, match=r"7 \(train and val\)"):
        check_splits({"train": Split("train", [record]), "val": Split("val", [record])})
    with pytest.raises(DataError, match=r"7 \(twice in train\)"):
        check_splits({"train": Split("train", [record, record])})


# --- invalid entries ---


def make_invalid_folder(root: Path) -> DataSpec:
    """Writes a dataset with two valid images and one entry for each kind of problem."""
    make_images(root / "images", ["a.jpg", "b.jpg", "blank.jpg", "two_splits.jpg", "no_split.jpg"])
    lines = ["a.jpg,one,train", "b.jpg,two,val", "missing.jpg,three,train", 'blank.jpg,"  ",train']
    lines += ["two_splits.jpg,four,train", "two_splits.jpg,five,val", "a.jpg,a, b,train", "a.jpg,,train"]
    lines += ["no_split.jpg,six,"]
    write_file(root / "captions.csv", "image,caption,split\n" + "\n".join(lines) + "\n")
    return make_data_spec(root, "captions.csv")


def test_the_error_lists_all_invalid_entries(tmp_path):
    with pytest.raises(DataError) as error:
        open_splits(make_invalid_folder(tmp_path))
    message = str(error.value)
    for expected in (
        "missing images: 1\n    missing.jpg",
        "empty captions: 2",
        "blank.jpg (1 of 1)",
        "a.jpg (1 of 2)",
        "images in two splits: 1\n    two_splits.jpg: train and val",
        "line 8: expected 3 fields, got 4",
        "images without a split: 1\n    no_split.jpg",
        "config.data.on_error=skip",
    ):
        assert expected in message, message


def test_invalid_entries_are_skipped_on_request(tmp_path, caplog):
    data = dataclasses.replace(make_invalid_folder(tmp_path), on_error="skip")
    with caplog.at_level(logging.WARNING):
        splits = open_splits(data)
    assert {name: split.references for name, split in splits.items()} == {
        "train": {"a.jpg": ["one"]},
        "val": {"b.jpg": ["two"]},
    }
    assert "missing.jpg" in caplog.text


def test_the_error_lists_ten_problems_of_a_kind_and_counts_the_others(tmp_path):
    make_images(tmp_path / "images")
    missing = "".join(f"missing{number:02}.jpg,text\n" for number in range(25))
    write_file(tmp_path / "captions.csv", make_csv() + "\n" + missing)
    with pytest.raises(DataError) as error:
        open_splits(make_data_spec(tmp_path, "captions.csv"))
    assert "missing images: 25" in str(error.value)
    assert "missing09.jpg" in str(error.value) and "missing10.jpg" not in str(error.value)
    assert "and 15 more" in str(error.value)


def test_coco_files_with_unknown_or_repeated_images_are_rejected(tmp_path):
    make_images(tmp_path / "images")
    content = make_coco()
    content["annotations"].append({"image_id": 99, "id": 99, "caption": "unknown"})
    content["images"].append({"id": 0, "file_name": "b.jpg"})
    write_file(tmp_path / "coco.json", content)
    with pytest.raises(DataError) as error:
        open_splits(make_data_spec(tmp_path, "coco.json"))
    assert "captions of unknown images: 1" in str(error.value) and "image id 99" in str(error.value)
    assert "images listed twice: 1" in str(error.value)


def test_split_files_with_images_without_captions_are_rejected(tmp_path):
    make_images(tmp_path / "images")
    write_file(tmp_path / "captions.csv", make_csv())
    write_file(tmp_path / "train.txt", "a.jpg\nz.jpg\n")
    with pytest.raises(DataError, match=r"z\.jpg \(train\.txt\)"):
        open_splits(make_data_spec(tmp_path, "captions.csv", split_files={"train": "train.txt"}))


def test_image_names_in_several_folders_are_rejected(tmp_path):
    make_images(tmp_path / "images" / "one")
    make_images(tmp_path / "images" / "two", ["a.jpg"])
    write_file(tmp_path / "captions.csv", make_csv())
    with pytest.raises(DataError, match=r"images in several folders: 1\n    a\.jpg: one, two"):
        open_splits(make_data_spec(tmp_path, "captions.csv"))


def test_repeated_captions_are_allowed(tmp_path):
    make_images(tmp_path / "images", ["a.jpg"])
    write_file(tmp_path / "captions.csv", "image,caption\na.jpg,same\na.jpg,same\n")
    assert open_splits(make_data_spec(tmp_path, "captions.csv"))["train"].captions == ["same", "same"]


def test_a_dataset_without_valid_images_is_rejected_even_if_invalid_entries_are_skipped(tmp_path):
    make_images(tmp_path / "images")
    write_file(tmp_path / "captions.csv", "image,caption\nmissing.jpg,text\n")
    with pytest.raises(DataError, match="no usable image"):
        open_splits(make_data_spec(tmp_path, "captions.csv", on_error="skip"))
    with pytest.raises(ValueError, match="on_error"):
        open_splits(make_data_spec(tmp_path, "captions.csv", on_error="ignore"))


# --- published datasets ---


def test_flickr8k_has_the_published_splits(shared_data):
    files = {"train": "train_images.txt", "val": "dev_images.txt"}
    splits = open_splits(make_data_spec(shared_data / "flickr8k", "captions.csv", split_files=files))
    assert {name: (len(split), len(split.captions)) for name, split in splits.items()} == {
        "train": (6000, 30000),
        "val": (1000, 5000),
    }


def test_a_subset_of_coco_is_split_by_fraction(shared_data):
    splits = open_splits(make_data_spec(shared_data / "coco_mini", "captions.json", split_fractions={"val": 0.25}))
    assert {name: (len(split), len(split.captions)) for name, split in splits.items()} == {
        "train": (60, 300),
        "val": (20, 100),
    }
    assert all(isinstance(image_id, int) for image_id in splits["val"].image_ids)
