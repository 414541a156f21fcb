"""Image names that differ from the files: they are matched if exactly one file fits, and reported otherwise."""

from __future__ import annotations

import json
import logging
import unicodedata

import pytest
from test_folder import make_data_spec, make_images, write_file

from input_pipeline.errors import DataError
from input_pipeline.sources import open_splits
from input_pipeline.sources.name_index import NameIndex

FILES = ("a.jpg", "x/y/deep.jpg", "x/Photo 1.JPG", "v1.2.jpg", "twice/one.jpg", "twice/one.png")


def open_names(root, names, files=FILES, **changes):
    make_images(root / "images", files)
    write_file(root / "captions.csv", "image,caption\n" + "".join(f'"{name}",text\n' for name in names))
    return open_splits(make_data_spec(root, "captions.csv", **changes))


@pytest.mark.parametrize(
    ("name", "file", "difference"),
    [
        ("A.jpg", "a.jpg", "in another case"),
        ("a.JPG", "a.jpg", "in another case"),
        ("a", "a.jpg", "without the extension"),
        ("v1.2", "v1.2.jpg", "without the extension"),
        ("deep.jpg", "x/y/deep.jpg", "in a subfolder"),
        ("y/deep.jpg", "x/y/deep.jpg", "in a subfolder"),
        (r"x\y\deep.jpg", "x/y/deep.jpg", "with backslashes"),
        ("./images/a.jpg", "a.jpg", "relative to the caption file"),
        ("images/x/y/deep.jpg", "x/y/deep.jpg", "relative to the caption file"),
        ("photos/x/y/deep.jpg", "x/y/deep.jpg", "with other leading folders"),
        ("/home/me/data/images/a.jpg", "a.jpg", "with other leading folders"),
        (r"C:\Users\me\images\x\y\deep.jpg", "x/y/deep.jpg", "with other leading folders"),
        ("/data/photos/deep.jpg", "x/y/deep.jpg", "in a subfolder"),
        ("https://example.org/images/a.jpg", "a.jpg", "with other leading folders"),
        ("photo 1", "x/Photo 1.JPG", "without the extension"),
        (r"images\X\PHOTO 1", "x/Photo 1.JPG", "in another case"),
    ],
)
def test_names_match_the_only_file_that_fits(tmp_path, caplog, name, file, difference):
    caplog.set_level(logging.INFO)
    (record,) = open_names(tmp_path, [name])["train"]
    assert record.image == tmp_path / "images" / file and record.image_id == name
    (line,) = [message for message in caplog.messages if "image names" in message]
    assert f"1 {difference} ({name} for {file})" in line


def test_unicode_forms_match(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    composed, decomposed = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    (record,) = open_names(tmp_path, [composed], [decomposed])["train"]
    assert record.image.name == decomposed and "1 in another Unicode form" in caplog.text


def test_one_line_counts_all_differences(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"{number}.JPG" for number in range(5)] + ["5", r"images\6"]
    open_names(tmp_path, [*names, "7.jpg"], [f"{number}.jpg" for number in range(8)])
    (line,) = [message for message in caplog.messages if "image names" in message]
    assert line == (
        r"image names: 7 matched with differences: 5 in another case (0.JPG for 0.jpg), 2 without the extension (5 "
        r"for 5.jpg), 1 with backslashes (images\6 for 6.jpg), 1 with other leading folders (images\6 for 6.jpg)"
    )
    caplog.clear()
    open_names(tmp_path, ["7.jpg"])
    assert not [message for message in caplog.messages if "image names" in message]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("b.jpg", "missing images: 1\n    b.jpg (the nearest file is a.jpg)"),
        ("val/a.jpg", "a.jpg"),  # matches, see above
        ("z/deep.jpg", "missing images: 1\n    z/deep.jpg (the nearest file is x/y/deep.jpg)"),
        ("deep.png", "missing images: 1\n    deep.png (the nearest file is x/y/deep.jpg)"),
        ("photo_1.jpg", "missing images: 1\n    photo_1.jpg (the nearest file is x/Photo 1.JPG)"),
        ("one", "names that fit several files: 1\n    one: twice/one.jpg, twice/one.png"),
    ],
)
def test_other_names_are_reported_with_the_nearest_file(tmp_path, name, problem):
    if name == "val/a.jpg":
        assert open_names(tmp_path, [name])["train"][0].image.name == problem
        return
    with pytest.raises(DataError) as error:
        open_names(tmp_path, [name])
    assert f"\n  {problem}\n" in str(error.value)


def test_names_in_several_folders_or_cases_are_reported(tmp_path):
    with pytest.raises(DataError, match=r"images in several folders: 1\n    A: x, y/z\n"):
        open_names(tmp_path, ["A"], ["x/a.jpg", "y/z/a.jpg"])
    # The folder decides if it is in the name, also for absolute paths.
    names = ["/data/y/z/a.jpg", "x/A.jpg"]
    records = open_names(tmp_path, names, ["x/a.jpg", "y/z/a.jpg"])["train"]
    assert [record.image.relative_to(tmp_path / "images").as_posix() for record in records] == ["y/z/a.jpg", "x/a.jpg"]


def test_two_names_for_one_file_are_reported(tmp_path):
    with pytest.raises(DataError, match=r"two names for one file: 1\n    a\.jpg: 'A\.jpg' and 'a\.jpg'"):
        open_names(tmp_path, ["A.jpg", "a.jpg"])
    (record,) = open_names(tmp_path, ["A.jpg", "a.jpg"], on_error="skip")["train"]
    assert record.image_id == "a.jpg"  # the name that is written as the file


def test_hidden_files_and_texts_are_no_images(tmp_path):
    make_images(tmp_path / "images", ["x/a.jpg", "x/._a.jpg", ".cache/b.jpg"])
    write_file(tmp_path / "images" / "x" / "a.txt", "text")
    assert [record.image.name for record in open_names(tmp_path, ["a"], [])["train"]] == ["a.jpg"]
    with pytest.raises(DataError, match=r"b\.jpg \(the nearest file is x/a\.jpg\)"):
        open_names(tmp_path, ["b.jpg"], [])


def test_images_are_found_without_an_image_folder_and_beside_their_caption_file(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for split in ("train", "valid"):  # file names and ids restart in each folder
        make_images(tmp_path / split, ["1.jpg"])
        content = {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 1, "caption": f"the image of {split}"}],
        }
        write_file(tmp_path / split / "captions.json", content)
    spec = make_data_spec(tmp_path, "train=train/captions.json", "val=valid/captions.json")
    splits = open_splits(spec)
    assert {name: split[0].captions for name, split in splits.items()} == {
        "train": ("the image of train",),
        "val": ("the image of valid",),
    }
    assert splits["val"].image_ids == ["valid/1.jpg"] and splits["val"][0].image == tmp_path / "valid" / "1.jpg"
    assert f"images are searched for in {tmp_path} (config.data.images)" in caplog.text


def test_the_nearest_name_is_searched_in_large_folders():
    index = NameIndex(f"{number:06}.jpg" for number in range(5000))
    assert index.find_nearest("4321.jpg") != "" and index.find_nearest("004321.png") == "004321.jpg"
    assert index.find_nearest("") and NameIndex([]).find_nearest("a.jpg") == ""


# --- split files ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_split_files_match_names_in_the_same_ways(tmp_path, caplog, encoding):
    caplog.set_level(logging.INFO)
    names = ["a.jpg", "b", r"x\c.jpg", "deep.jpg"]
    lines = ["", "A.JPG", "b.jpg", "images/x/c.jpg", r"x\y\deep"]
    (tmp_path / "train.txt").write_bytes("\r\n".join(lines).encode(encoding))
    files = ["a.jpg", "b.jpg", "x/c.jpg", "x/y/deep.jpg"]
    splits = open_names(tmp_path, names, files, split_files={"train": "train.txt"})
    assert splits["train"].image_ids == names
    (line,) = [message for message in caplog.messages if "split files" in message]
    assert "1 in another case (A.JPG for a.jpg)" in line and "not in any split file" not in caplog.text


def test_names_in_split_files_that_fit_no_image_or_several_are_reported(tmp_path):
    write_file(tmp_path / "train.txt", "a.jpg\none\nmissing\n")
    names = ["a.jpg", "twice/one.jpg", "twice/one.png"]
    with pytest.raises(DataError) as error:
        open_names(tmp_path, names, split_files={"train": "train.txt"})
    listed = "\n    one (train.txt)\n    missing (train.txt)\n"
    assert f"images in a split file without captions: 2{listed}" in str(error.value)


# --- ids ---


def write_coco(path, names, first_id=1) -> None:
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names, first_id)],
        "annotations": [{"image_id": number, "caption": name} for number, name in enumerate(names, first_id)],
    }
    write_file(path, content)


def test_ids_of_coco_files_count_within_their_file(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make_images(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"])
    write_coco(tmp_path / "captions_train.json", ["a.jpg", "b.jpg"])
    write_coco(tmp_path / "captions_val.json", ["c.jpg", "d.jpg"])
    write_coco(tmp_path / "captions_test.json", ["e.jpg"], first_id=100)
    files = [f"captions_{split}.json" for split in ("train", "val", "test")]
    splits = open_splits(make_data_spec(tmp_path, *files))
    assert {name: split.references for name, split in splits.items()} == {
        "train": {"a.jpg": ["a.jpg"], "b.jpg": ["b.jpg"]},
        "val": {"c.jpg": ["c.jpg"], "d.jpg": ["d.jpg"]},
        "test": {100: ["e.jpg"]},  # these ids occur in no other file
    }
    assert "ids in captions_train.json and captions_val.json restart from file to file" in caplog.text


def test_captions_of_one_image_in_several_files_are_merged(tmp_path):
    make_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    write_coco(tmp_path / "english.json", ["a.jpg", "b.jpg"])
    write_coco(tmp_path / "german.json", ["b.jpg", "a.jpg"], first_id=7)
    write_file(tmp_path / "french.csv", "image,caption\nA.JPG,a aussi\n")
    splits = open_splits(make_data_spec(tmp_path, "english.json", "german.json", "french.csv"))
    assert splits["train"].references == {1: ["a.jpg", "a.jpg", "a aussi"], 2: ["b.jpg", "b.jpg"]}
    with pytest.raises(DataError, match=r"images in two splits: 2\n    b\.jpg: caption files of train and val"):
        open_splits(make_data_spec(tmp_path, "train=english.json", "val=german.json"))


def test_two_ids_for_one_file_are_reported(tmp_path):
    make_images(tmp_path / "images", ["a.jpg"])
    write_coco(tmp_path / "coco.json", ["a.jpg", "a.jpg"])
    with pytest.raises(DataError, match=r"images listed twice: 1\n    a\.jpg: ids 1 and 2"):
        open_splits(make_data_spec(tmp_path, "coco.json"))


def test_one_id_for_two_names_within_a_file_is_reported(tmp_path):
    make_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    lines = [{"image": name, "image_id": 1, "caption": "x"} for name in ("a.jpg", "b.jpg")]
    write_file(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"one image id for two files: 1\n    1: a\.jpg and b\.jpg"):
        open_splits(make_data_spec(tmp_path, "a.jsonl"))


# --- splits without images ---


def test_a_split_file_without_usable_images_is_an_error(tmp_path):
    write_file(tmp_path / "train.txt", "a.jpg\n")
    write_file(tmp_path / "val.txt", "missing.jpg\n")
    files = {"train": "train.txt", "val": "val.txt"}
    with pytest.raises(DataError) as error:
        open_names(tmp_path, ["a.jpg", "missing.jpg"], split_files=files, on_error="skip")
    assert str(error.value) == (
        f"{tmp_path}: the split 'val' is empty: no usable image is in it, but it is defined by val.txt "
        "(config.data.split_files.val); the dataset has train (1). Add images to it, or remove its definition"
    )
    write_file(tmp_path / "val.txt", "\n \n")
    with pytest.raises(DataError, match=r"val\.txt is empty \(config\.data\.split_files\.val\); it must list one"):
        open_names(tmp_path, ["a.jpg"], split_files=files)


@pytest.mark.parametrize("value", ["val", "test"])
def test_a_split_field_without_usable_images_is_an_error(tmp_path, value):
    make_images(tmp_path / "images", ["a.jpg"])
    write_file(tmp_path / "captions.csv", f"image,caption,split\na.jpg,x,train\nmissing.jpg,x,{value}\n")
    with pytest.raises(DataError, match=rf"the split '{value}' is empty.* the field 'split' of the caption files"):
        open_splits(make_data_spec(tmp_path, "captions.csv", on_error="skip"))


@pytest.mark.parametrize("content", ["image,caption\n", "image,caption\nmissing.jpg,x\n", "image,caption\nb.jpg,\n"])
def test_a_caption_file_of_a_split_without_usable_images_is_an_error(tmp_path, content):
    make_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    write_file(tmp_path / "captions.csv", "image,caption\na.jpg,x\n")
    write_file(tmp_path / "other.csv", content)
    with pytest.raises(DataError, match=r"the split 'val' is empty.* defined by other\.csv \(config\.data\.captions\)"):
        open_splits(make_data_spec(tmp_path, "captions.csv", "val=other.csv", on_error="skip"))


def test_fractions_that_leave_no_training_images_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"the split 'train' is empty.* config\.data\.split_fractions"):
        open_names(tmp_path, ["a.jpg"], split_fractions={"val": 0.5})
