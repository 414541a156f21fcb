"""The collection of files that users of captioners report in public, in ../shared/cases."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from test_folder import make_data_spec

from input_pipeline.errors import DataError
from input_pipeline.sources import open_splits

BY_NAME = {"a.jpg": ["a red kite"], "b.jpg": ["an old bridge"]}
READABLE = {
    "column_names/results.csv": {
        "a.jpg": ["A red kite , high above a field .", "A kite flies ."],
        "b.jpg": ["An old bridge ."],
    },
    "column_names/filepath_title.tsv": BY_NAME,
    "column_names/image_path.csv": BY_NAME,
    "column_names/by_name.json": {**BY_NAME, "a.jpg": ["a red kite", "a kite"]},
    "names/ok.csv": {"x/y/deep.jpg": ["a red kite"], "a.jpg": ["a bridge"]},
    "names/blank_first_line.csv": {"a.jpg": ["a red kite"]},
    "json_types/captions.csv": {"a.jpg": ["a red kite"], "1.jpg": ["a bridge"]},
    "json_types/plain_sentences.json": {"a.jpg": ["a red kite", "a kite"]},
}
# How the names in these files differ from those of the images, as the log reports it.
MATCHED = {
    "names/case.csv": ({"a.jpg": ["a red kite"]}, "1 in another case (A.JPG for a.jpg)"),
    "names/no_ending.csv": ({"a.jpg": ["a red kite"]}, "1 without the extension (a for a.jpg)"),
    "names/backslash.csv": (
        {"x/y/deep.jpg": ["a red kite"]},
        r"1 with backslashes (x\y\deep.jpg for x/y/deep.jpg)",
    ),
    "names/deep.csv": (
        {"x/y/deep.jpg": ["a red kite"], "a.jpg": ["a bridge"]},
        "1 in a subfolder (deep.jpg for x/y/deep.jpg)",
    ),
    "json_types/number_as_file_name.json": ({"1.jpg": ["a red kite"]}, "1 without the extension (1 for 1.jpg)"),
}
INVALID = {
    "json_types/images_as_names.json": "record 1 of annotations: image id 1, but the images are plain names ('a.jpg'); "
    'wanted objects {"id": 1, "file_name": "a.jpg"}',
    "json_types/list_as_image_id.json": "record 1: image_id is [7] (a list); wanted a number or text",
}


def open_case(cases: Path, name: str, **changes) -> dict[str, list[str]]:
    """Returns the captions of a case by the path of the image."""
    folder, _, file = name.partition("/")
    root = cases / folder / "data"
    (split,) = open_splits(make_data_spec(root, file, **changes)).values()
    return {record.image.relative_to(root / "images").as_posix(): list(record.captions) for record in split}


@pytest.mark.parametrize("name", READABLE)
def test_files_are_read_as_they_are(shared_cases, name, caplog):
    caplog.set_level(logging.INFO)
    assert open_case(shared_cases, name) == READABLE[name]
    assert not caplog.messages


@pytest.mark.parametrize("name", MATCHED)
def test_names_are_matched_with_one_line_of_the_log(shared_cases, name, caplog):
    caplog.set_level(logging.INFO)
    captions, message = MATCHED[name]
    assert open_case(shared_cases, name) == captions
    assert caplog.messages == [f"image names: 1 matched with differences: {message}"]


@pytest.mark.parametrize("name", INVALID)
def test_wrong_json_types_are_reported_in_one_line(shared_cases, name):
    with pytest.raises(DataError) as error:
        open_case(shared_cases, name)
    folder, _, file = name.partition("/")
    assert f"\n    {shared_cases / folder / 'data' / file}, {INVALID[name]}\n" in str(error.value)


def test_a_split_file_in_utf_16_is_read(shared_cases):
    files = {"train": "train_utf16.txt"}
    assert open_case(shared_cases, "json_types/captions.csv", split_files=files) == {"a.jpg": ["a red kite"]}


def test_words_are_joined_with_one_line_of_the_log(shared_cases, caplog):
    caplog.set_level(logging.INFO)
    assert open_case(shared_cases, "word_lists/captions.jsonl") == {
        "a.jpg": ["two children play chess"],
        "b.jpg": ["a red kite"],
        "c.jpg": ["an old bridge"],
        "d.jpg": ["a boat"],
    }
    (message,) = caplog.messages
    assert "captions.jsonl: 4 captions are lists of words and were joined with blanks" in message


def test_every_file_of_these_folders_is_tested(shared_cases):
    tested = {*READABLE, *MATCHED, *INVALID, "json_types/train_utf16.txt", "word_lists/captions.jsonl"}
    for folder in {name.partition("/")[0] for name in tested}:
        files = (path for path in (shared_cases / folder / "data").iterdir() if path.is_file())
        assert {f"{folder}/{path.name}" for path in files} <= tested
