"""Captions in text files beside the images, and captions that are found without `config.data.captions`."""

from __future__ import annotations

import logging

import pytest
from test_folder import CAPTIONS, make_coco, make_csv, make_data_spec, make_images, write_file

from caption_jax.evaluation.external_data import open_external_data
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.sources import open_splits

EXPECTED = {"a.jpg": ["a red kite", "a kite"], "x/b.JPG": ["an old bridge"]}


def make_text_files(folder) -> None:
    make_images(folder, EXPECTED)
    write_file(folder / "a.txt", "a red kite\r\n\r\n  a kite  \n")
    (folder / "x" / "b.TXT").write_bytes("an old bridge\r\n".encode("utf-16"))


@pytest.mark.parametrize("captions", [(), ("*.txt",)])
@pytest.mark.parametrize("subfolder", ["images", "."])
def test_text_files_beside_the_images_are_captions(tmp_path, caplog, captions, subfolder):
    caplog.set_level(logging.INFO)
    make_text_files(tmp_path / subfolder)
    splits = open_splits(make_data_spec(tmp_path, *captions, split_fractions={}))
    assert {name: split.references for name, split in splits.items()} == {"train": EXPECTED}
    assert ("captions: *.txt" in caplog.text) == (not captions)


def test_text_files_are_split_like_caption_files(tmp_path):
    make_text_files(tmp_path)
    write_file(tmp_path / "val.txt", "x/b\n")
    write_file(tmp_path / "train.txt", "a.jpg\n")
    splits = open_splits(make_data_spec(tmp_path, split_files={"train": "train.txt", "val": "val.txt"}))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": ["a.jpg"], "val": ["x/b.JPG"]}
    (tmp_path / "val.txt").unlink()
    (tmp_path / "train.txt").unlink()
    for split, name in {"train": "a", "valid": "c"}.items():
        make_images(tmp_path / "parts" / split, [f"{name}.jpg"])
        write_file(tmp_path / "parts" / split / f"{name}.txt", f"the text of {name}")
    splits = open_splits(make_data_spec(tmp_path / "parts", "train=train/*.txt", "val=valid/*.txt"))
    assert {name: split.references for name, split in splits.items()} == {
        "train": {"train/a.jpg": ["the text of a"]},
        "val": {"valid/c.jpg": ["the text of c"]},
    }


def test_text_files_that_are_no_captions_are_reported(tmp_path):
    make_text_files(tmp_path)
    make_images(tmp_path, ["c.jpg", "d.jpg", "e.jpg", "a.png"])
    write_file(tmp_path / "c.txt", "\n")
    write_file(tmp_path / "d.txt", "0 0.5 0.5 0.25 0.1\n")
    write_file(tmp_path / "readme.txt", "about these photographs")
    with pytest.raises(DataError) as error:
        open_splits(make_data_spec(tmp_path))
    for problem in (
        "empty captions: 1\n    c.jpg (1 of 1)",
        "text files without words: 1\n    d.txt",
        "images without a text file: 1\n    e.jpg (expected e.txt)",
        "two images with one text file: 1\n    a.txt: a.jpg and a.png",
        "text files without an image: 1\n    readme.txt",
    ):
        assert f"\n  {problem}\n" in str(error.value)


@pytest.mark.parametrize("name", ["captions.tsv", "captions.jsonl", "metadata.csv", "results.csv", "token.txt"])
def test_caption_files_with_standard_names_are_found(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    make_images(tmp_path / "images")
    write_file(tmp_path / "images" / "a.txt", "not used, because there is a caption file")
    tokens = "".join(f"{image}#0\t{texts[0]}\n" for image, texts in CAPTIONS.items())
    write_file(tmp_path / name, tokens if name == "token.txt" else make_csv("|"))
    assert open_splits(make_data_spec(tmp_path))["train"].image_ids == list(CAPTIONS)
    assert f"captions: {name} in {tmp_path}" in caplog.text


def test_several_caption_files_are_used_if_their_names_are_splits(tmp_path):
    for number, split in enumerate(("train", "val")):
        content = make_coco()
        content["images"] = content["images"][number : number + 1]
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] == number]
        write_file(tmp_path / "annotations" / f"captions_{split}2017.json", content)
        make_images(tmp_path / f"{split}2017", [content["images"][0]["file_name"]])
    splits = open_splits(make_data_spec(tmp_path))
    assert {name: split.image_ids for name, split in splits.items()} == {"train": [0], "val": [1]}
    write_file(tmp_path / "annotations" / "captions_train2014.json", make_coco())
    with pytest.raises(
        DataError, match=r"several caption files in .*captions_train2014\.json.* config\.data\.captions"
    ):
        open_splits(make_data_spec(tmp_path))


def test_a_folder_without_captions_is_an_error(tmp_path):
    make_images(tmp_path)
    write_file(tmp_path / "notes.txt", "text")
    with pytest.raises(MissingFileError, match=r"or a text file for each image \(a\.txt for a\.jpg\)\. Set config"):
        open_splits(make_data_spec(tmp_path))


def test_other_datasets_can_have_text_files_or_several_caption_files(tmp_path):
    folder = tmp_path / "holiday"
    make_text_files(folder)
    data = open_external_data(str(folder), DataSpec(image_column="photo"))
    assert str(data) == "holiday (*.txt)" and data.split.references == EXPECTED
