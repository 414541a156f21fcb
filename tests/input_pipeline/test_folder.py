"""All caption formats give the same records. Problems are reported and stop the run, or are skipped."""

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


def config_for(root: Path, *captions: str, **changes):
    data = default_config().data
    data.source = "folder"
    data.root = str(root)
    data.captions = captions
    for key, value in changes.items():
        if isinstance(value, dict):
            data[key].update(value)
        else:
            data[key] = value
    return build_spec(DataSpec, data, "data")


def write(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path.name


def as_csv(delimiter=",") -> str:
    lines = [f"image{delimiter}caption"]
    for name, captions in CAPTIONS.items():
        lines += [name + delimiter + '"' + caption.replace('"', '""') + '"' for caption in captions]
    return "\n".join(lines)


def as_coco() -> dict:
    images = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    annotations = [
        {"image_id": number, "id": 10 * number + index, "caption": caption}
        for number, captions in enumerate(CAPTIONS.values())
        for index, caption in enumerate(captions)
    ]
    return {"images": images, "annotations": annotations}


def as_karpathy(split="train") -> dict:
    return {
        "dataset": "mine",
        "images": [
            {"filename": name, "imgid": number, "split": split, "sentences": [{"raw": text} for text in captions]}
            for number, (name, captions) in enumerate(CAPTIONS.items())
        ],
    }


def as_jsonl(one_per_line=True) -> str:
    if one_per_line:
        rows = [{"image": name, "caption": text} for name, captions in CAPTIONS.items() for text in captions]
    else:
        rows = [{"file_name": name, "captions": captions} for name, captions in CAPTIONS.items()]
    return "\n".join(map(json.dumps, rows))


FORMATS = {
    "captions.csv": as_csv(),
    "excel.csv": "\ufeff" + as_csv(";").replace("\n", "\r\n").replace("Three\r\n", "Three\n"),
    "captions.tsv": as_csv("\t"),
    "one.jsonl": as_jsonl(),
    "many.jsonl": as_jsonl(one_per_line=False),
    "list.json": [{"image": name, "captions": captions} for name, captions in CAPTIONS.items()],
    "coco.json": as_coco(),
    "karpathy.json": as_karpathy(),
    "a_form_is_known_by_its_content.txt": as_coco(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(tmp_path, name):
    make_images(tmp_path / "images")
    write(tmp_path / name, FORMATS[name])
    splits = open_splits(config_for(tmp_path, name))
    assert list(splits) == ["train"]
    assert {record.image.name: list(record.captions) for record in splits["train"]} == CAPTIONS
    expected_ids = [0, 1, 2] if isinstance(FORMATS[name], dict) and "annotations" in FORMATS[name] else list(CAPTIONS)
    assert splits["train"].image_ids == expected_ids
    assert all(record.image.is_file() for record in splits["train"])


def test_flickr8k_token_file(tmp_path):
    make_images(tmp_path / "images")
    lines = [
        f"{name}#{n}\t{text}" for name, texts in CAPTIONS.items() for n, text in enumerate(texts) if "\n" not in text
    ]
    write(tmp_path / "token.txt", "\n".join(lines) + "\n")
    splits = open_splits(config_for(tmp_path, "token.txt"))
    assert splits["train"].references == {**CAPTIONS, "c.jpg": ["A café."]}


@pytest.mark.parametrize(
    "content",
    ["", "picture,words\na.jpg,hi\n", "hello world", '{"images": 3}', "[1, 2", "\x00\x01"],
    ids=["empty", "header", "prose", "json", "broken json", "binary"],
)
def test_an_unknown_format_is_an_error_that_lists_the_formats(tmp_path, content):
    make_images(tmp_path / "images")
    write(tmp_path / "odd.txt", content)
    with pytest.raises(DataError, match=r"odd\.txt") as error:
        open_splits(config_for(tmp_path, "odd.txt"))
    for form in ("CSV", "JSON lines", "COCO", "Karpathy", "token.txt"):
        assert form in str(error.value)


def test_latin_1_is_reported_with_its_position(tmp_path):
    make_images(tmp_path / "images")
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"captions\.csv is not UTF-8 text \(byte 23\)"):
        open_splits(config_for(tmp_path, "captions.csv"))


def test_missing_files_name_their_keys(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.root"):
        open_splits(config_for(tmp_path / "nowhere", "captions.csv"))
    with pytest.raises(DataError, match=r"no such file: .*captions\.csv.*config\.data\.captions"):
        open_splits(config_for(tmp_path, "captions.csv"))
    write(tmp_path / "captions.csv", as_csv())
    with pytest.raises(DataError, match=r"config\.data\.images"):
        open_splits(config_for(tmp_path, "captions.csv"))
    make_images(tmp_path / "images")
    with pytest.raises(DataError, match=r"config\.data\.split_files\.val"):
        open_splits(config_for(tmp_path, "captions.csv", split_files={"val": "val.txt"}))
    with pytest.raises(ValueError, match=r"config\.data\.source"):
        open_splits(config_for(tmp_path, "captions.csv", source="web"))


# --- splits ---


def test_split_files(tmp_path):
    make_images(tmp_path / "images")
    write(tmp_path / "captions.csv", as_csv())
    write(tmp_path / "train.txt", "a.jpg\n")
    write(tmp_path / "val.txt", "c.jpg\n\n")
    splits = open_splits(config_for(tmp_path, "captions.csv", split_files={"train": "train.txt", "val": "val.txt"}))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": ["a.jpg"], "val": ["c.jpg"]}


def test_split_files_take_precedence_over_caption_files(tmp_path):
    make_images(tmp_path / "images")
    write(tmp_path / "captions.csv", "image,caption,split\na.jpg,one,val\na.jpg,two,train\nb.jpg,x,fold 3\n")
    write(tmp_path / "train.txt", "a.jpg\nb.jpg\n")
    splits = open_splits(config_for(tmp_path, "captions.csv", split_files={"train": "train.txt"}))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": ["a.jpg", "b.jpg"]}


def test_training_images_without_captions_are_reported_whatever_the_source(tmp_path, monkeypatch, caplog):
    records = [Record(tmp_path / "a.jpg", ("one",), 0), Record(tmp_path / "b.jpg", (), 1, "b of a data set")]
    monkeypatch.setattr(shapes, "open_shapes", lambda data_config: {"train": Split("train", records)})
    with pytest.raises(DataError, match="images without captions: 1\n    b of a data set"):
        open_splits(config_for(tmp_path, source="shapes"))
    assert open_splits(config_for(tmp_path, source="shapes", on_error="skip"))["train"].image_ids == [0]
    assert "b of a data set" in caplog.text


def test_split_column_and_field(tmp_path):
    make_images(tmp_path / "images")
    write(
        tmp_path / "captions.csv",
        "image,caption,split\na.jpg,one,train\nb.jpg,two,dev\nc.jpg,three,TEST\na.jpg,x,train\n",
    )
    splits = open_splits(config_for(tmp_path, "captions.csv"))
    assert {name: split.image_ids for name, split in splits.items()} == {
        "train": ["a.jpg"],
        "val": ["b.jpg"],
        "test": ["c.jpg"],
    }
    write(tmp_path / "captions.jsonl", '{"image": "a.jpg", "caption": "one", "part": "val"}\n')
    splits = open_splits(config_for(tmp_path, "captions.jsonl", split_field="part"))
    assert splits["val"].image_ids == ["a.jpg"]
    with pytest.raises(DataError, match=r"no column 'part'.*image, caption, split"):
        open_splits(config_for(tmp_path, "captions.csv", split_field="part"))


def test_coco_folders_with_a_file_for_each_split(tmp_path):
    coco = as_coco()
    for split, numbers in {"train": (0, 1), "val": (2,)}.items():
        part = {
            "images": [coco["images"][number] for number in numbers],
            "annotations": [item for item in coco["annotations"] if item["image_id"] in numbers],
        }
        write(tmp_path / "annotations" / f"captions_{split}2017.json", part)
        make_images(tmp_path / f"{split}2017", [image["file_name"] for image in part["images"]])
    files = ("annotations/captions_train2017.json", "annotations/captions_val2017.json")
    splits = open_splits(config_for(tmp_path, *files, images="."))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": [0, 1], "val": [2]}
    assert splits["val"][0].image == tmp_path / "val2017" / "c.jpg"
    # The split can also be explicit.
    named = open_splits(config_for(tmp_path, f"test={files[0]}", files[1], images="."))
    assert {name: len(split) for name, split in named.items()} == {"val": 1, "test": 2}


def test_karpathys_coco(tmp_path):
    """restval is part of training, ids are those of COCO, and the file names the folder of each image."""
    content = as_karpathy()
    for number, (image, split) in enumerate(zip(content["images"], ("restval", "val", "test"), strict=True)):
        image.update(split=split, filepath="val2014", cocoid=100 + number)
    write(tmp_path / "dataset_coco.json", content)
    make_images(tmp_path / "val2014")
    make_images(tmp_path / "train2014")  # other folders may contain the same names
    splits = open_splits(config_for(tmp_path, "dataset_coco.json", images=""))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": [100], "val": [101], "test": [102]}
    assert splits["train"][0].image == tmp_path / "val2014" / "a.jpg"


def test_split_by_fraction_depends_on_the_image_alone(tmp_path):
    names = [f"{number}.jpg" for number in range(50)]
    make_images(tmp_path / "images", names)
    fractions = {"val": 0.2, "test": 0.1}
    write(tmp_path / "one.csv", "image,caption\n" + "".join(f"{name},text\n" for name in names))
    write(tmp_path / "two.csv", "image,caption\n" + "".join(f"{name},other\n" for name in reversed(names)) * 2)
    one = open_splits(config_for(tmp_path, "one.csv", split_fractions=fractions))
    two = open_splits(config_for(tmp_path, "two.csv", split_fractions=fractions))
    assert {name: len(split) for name, split in one.items()} == {"train": 35, "val": 10, "test": 5}
    assert {k: set(s.image_ids) for k, s in one.items()} == {k: set(s.image_ids) for k, s in two.items()}
    assert set().union(*(split.image_ids for split in one.values())) == set(names)
    with pytest.raises(ConfigError, match="split_fractions"):
        open_splits(config_for(tmp_path, "one.csv", split_fractions={"val": 0.6, "test": 0.5}))


def test_two_rules_for_splits_are_rejected(tmp_path):
    make_images(tmp_path / "images")
    write(tmp_path / "captions.csv", as_csv())
    write(tmp_path / "train.txt", "a.jpg\n")
    with pytest.raises(DataError, match=r"split_files.*split_fractions"):
        open_splits(
            config_for(tmp_path, "captions.csv", split_files={"train": "train.txt"}, split_fractions={"val": 0.5})
        )


def test_an_unknown_split_lists_the_available_ones(tmp_path):
    make_images(tmp_path / "images")
    write(tmp_path / "captions.csv", as_csv())
    with pytest.raises(DataError, match=r"no split 'val'; the dataset has train \(3\)"):
        get_split(open_splits(config_for(tmp_path, "captions.csv")), "val")


def test_an_image_in_two_splits_is_rejected_when_opened():
    record = Record(Path("a.jpg"), ("text",), 7)
    with pytest.raises(DataError, match=r"7 \(train and val\)"):
        check_splits({"train": Split("train", [record]), "val": Split("val", [record])})
    with pytest.raises(DataError, match=r"7 \(twice in train\)"):
        check_splits({"train": Split("train", [record, record])})


# --- problems ---


def problem_folder(root: Path) -> dict:
    """A data set with one of each problem and two valid images."""
    make_images(root / "images", ["good.jpg", "fine.jpg", "blank.jpg", "torn.jpg", "bare.jpg"])
    rows = ["good.jpg,one,train", "fine.jpg,two,val", "gone.jpg,three,train", 'blank.jpg,"  ",train']
    rows += ["torn.jpg,four,train", "torn.jpg,five,val", "good.jpg,a, b,train", "good.jpg,,train", "bare.jpg,six,"]
    write(root / "captions.csv", "image,caption,split\n" + "\n".join(rows) + "\n")
    return config_for(root, "captions.csv")


def test_problems_are_reported_and_stop_the_run(tmp_path):
    with pytest.raises(DataError) as error:
        open_splits(problem_folder(tmp_path))
    text = str(error.value)
    for expected in (
        "missing images: 1\n    gone.jpg",
        "empty captions: 2",
        "blank.jpg (1 of 1)",
        "good.jpg (1 of 2)",
        "images in two splits: 1\n    torn.jpg: train and val",
        "line 8: expected 3 fields, got 4",
        "images without a split: 1\n    bare.jpg",
        "config.data.on_error=skip",
    ):
        assert expected in text, text


def test_problems_are_skipped_on_request(tmp_path, caplog):
    data = dataclasses.replace(problem_folder(tmp_path), on_error="skip")
    with caplog.at_level(logging.WARNING):
        splits = open_splits(data)
    assert {name: split.references for name, split in splits.items()} == {
        "train": {"good.jpg": ["one"]},
        "val": {"fine.jpg": ["two"]},
    }
    assert "gone.jpg" in caplog.text


def test_the_report_lists_ten_problems_and_counts_all(tmp_path):
    make_images(tmp_path / "images")
    gone = "".join(f"gone{number:02}.jpg,text\n" for number in range(25))
    write(tmp_path / "captions.csv", as_csv() + "\n" + gone)
    with pytest.raises(DataError) as error:
        open_splits(config_for(tmp_path, "captions.csv"))
    assert "missing images: 25" in str(error.value)
    assert "gone09.jpg" in str(error.value) and "gone10.jpg" not in str(error.value)
    assert "and 15 more" in str(error.value)


def test_coco_captions_of_unknown_images_and_images_listed_twice(tmp_path):
    make_images(tmp_path / "images")
    content = as_coco()
    content["annotations"].append({"image_id": 99, "id": 99, "caption": "nobody"})
    content["images"].append({"id": 0, "file_name": "b.jpg"})
    write(tmp_path / "coco.json", content)
    with pytest.raises(DataError) as error:
        open_splits(config_for(tmp_path, "coco.json"))
    assert "captions of unknown images: 1" in str(error.value) and "image id 99" in str(error.value)
    assert "images listed twice: 1" in str(error.value)


def test_split_files_may_list_images_without_captions(tmp_path):
    make_images(tmp_path / "images")
    write(tmp_path / "captions.csv", as_csv())
    write(tmp_path / "train.txt", "a.jpg\nz.jpg\n")
    with pytest.raises(DataError, match=r"z\.jpg \(train\.txt\)"):
        open_splits(config_for(tmp_path, "captions.csv", split_files={"train": "train.txt"}))


def test_ambiguous_names_in_two_folders_are_rejected(tmp_path):
    make_images(tmp_path / "images" / "one")
    make_images(tmp_path / "images" / "two", ["a.jpg"])
    write(tmp_path / "captions.csv", as_csv())
    with pytest.raises(DataError, match=r"images in several folders: 1\n    a\.jpg: one, two"):
        open_splits(config_for(tmp_path, "captions.csv"))


def test_repeated_captions_are_allowed(tmp_path):
    make_images(tmp_path / "images", ["a.jpg"])
    write(tmp_path / "captions.csv", "image,caption\na.jpg,same\na.jpg,same\n")
    assert open_splits(config_for(tmp_path, "captions.csv"))["train"].captions == ["same", "same"]


def test_no_valid_images_is_an_error_even_when_skipping(tmp_path):
    make_images(tmp_path / "images")
    write(tmp_path / "captions.csv", "image,caption\ngone.jpg,text\n")
    with pytest.raises(DataError, match="no usable image"):
        open_splits(config_for(tmp_path, "captions.csv", on_error="skip"))
    with pytest.raises(ValueError, match="on_error"):
        open_splits(config_for(tmp_path, "captions.csv", on_error="ignore"))


# --- real photographs ---


def test_flickr8k(shared_data):
    files = {"train": "train_images.txt", "val": "dev_images.txt"}
    splits = open_splits(config_for(shared_data / "flickr8k", "captions.csv", split_files=files))
    assert {name: (len(split), len(split.captions)) for name, split in splits.items()} == {
        "train": (6000, 30000),
        "val": (1000, 5000),
    }


def test_coco_mini(shared_data):
    splits = open_splits(config_for(shared_data / "coco_mini", "captions.json", split_fractions={"val": 0.25}))
    assert {name: (len(split), len(split.captions)) for name, split in splits.items()} == {
        "train": (60, 300),
        "val": (20, 100),
    }
    assert all(isinstance(image_id, int) for image_id in splits["val"].image_ids)
