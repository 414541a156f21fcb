"""Result files and annotations: supported formats, validation and errors."""

from __future__ import annotations

import json

import pytest

from caption_jax.metrics import (
    ImageSetError,
    ResultsError,
    check_image_set,
    read_annotations,
    read_results,
    write_results,
)

COCO = {
    "images": [{"id": 7, "file_name": "seven.jpg"}, {"id": 8, "file_name": "eight.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 8, "caption": "a cat"},
        {"id": 2, "image_id": 7, "caption": "a dog"},
        {"id": 3, "image_id": 8, "caption": "the cat"},
    ],
}
KARPATHY = {
    "images": [
        {"cocoid": 7, "filename": "seven.jpg", "split": "test", "sentences": [{"raw": "a dog"}]},
        {"cocoid": 8, "filename": "eight.jpg", "split": "train", "sentences": [{"raw": "a cat"}, {"raw": "the cat"}]},
    ]
}


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_results_round_trip(tmp_path):
    captions = {3: "a café ☕", 1: "", "name.jpg": 'with "quotes"'}
    write_results(tmp_path / "captions.json", captions)
    assert json.loads((tmp_path / "captions.json").read_text())[0] == {"image_id": 3, "caption": "a café ☕"}
    assert list(read_results(tmp_path / "captions.json").items()) == list(captions.items())
    assert [path.name for path in tmp_path.iterdir()] == ["captions.json"]


def test_duplicates_are_rejected(tmp_path):
    rows = [{"image_id": i // 2, "caption": "x"} for i in range(30)]
    with pytest.raises(ResultsError, match=r"r\.json: 15 images have more than one caption: 0, 1, .*, 9 and 5 more"):
        read_results(write_json(tmp_path / "r.json", rows))


@pytest.mark.parametrize(
    "content", [{"a": 1}, [1], [{"image_id": 1}], [{"caption": "x"}], [{"image_id": None, "caption": "x"}]]
)
def test_invalid_results_are_rejected(tmp_path, content):
    with pytest.raises(ResultsError, match=r"r\.json"):
        read_results(write_json(tmp_path / "r.json", content))
    (tmp_path / "r.json").write_text('[{"image_id": 1, "caption"')
    with pytest.raises(ResultsError, match=r"r\.json, line 1: not valid JSON"):
        read_results(tmp_path / "r.json")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.json"):
        read_results(tmp_path / "none.json")


def test_coco_annotations_are_read(tmp_path):
    path = write_json(tmp_path / "a.json", COCO)
    assert read_annotations(path) == {8: ["a cat", "the cat"], 7: ["a dog"]}
    assert read_annotations(path, ids="file_name") == {"eight.jpg": ["a cat", "the cat"], "seven.jpg": ["a dog"]}


def test_karpathy_annotations_are_read(tmp_path):
    path = write_json(tmp_path / "a.json", KARPATHY)
    assert read_annotations(path) == {8: ["a cat", "the cat"], 7: ["a dog"]}
    assert read_annotations(path, split="test", ids="file_name") == {"seven.jpg": ["a dog"]}
    with pytest.raises(ResultsError, match="no image with captions in split 'val'"):
        read_annotations(path, split="val")


@pytest.mark.parametrize("content", [[], {}, {"annotations": [{}]}, {"images": [{"id": 1}]}])
def test_annotations_in_an_unknown_format_are_rejected(tmp_path, content):
    with pytest.raises(ResultsError, match=r"a\.json"):
        read_annotations(write_json(tmp_path / "a.json", content))


def test_csv_annotations_are_read(tmp_path):
    path, names = tmp_path / "captions.csv", tmp_path / "dev.txt"
    path.write_text('image,caption\na.jpg,"a dog, red"\nb.jpg,a cat\na.jpg,the dog\n')
    names.write_text("a.jpg\n")
    assert read_annotations(path) == {"a.jpg": ["a dog, red", "the dog"], "b.jpg": ["a cat"]}
    assert read_annotations(path, split=str(names)) == {"a.jpg": ["a dog, red", "the dog"]}
    names.write_text("c.jpg\n")
    with pytest.raises(ResultsError, match=r"captions\.csv: no image with captions among those listed in .*dev\.txt"):
        read_annotations(path, split=str(names))
    path.write_text("photo,words\na.jpg,a dog\n")
    with pytest.raises(ResultsError, match=r"captions\.csv: no column known to hold image names.*'photo', 'words'"):
        read_annotations(path)


CAPTIONS = {"a.jpg": ["a dog runs"], "b.jpg": ["a cat"]}
FORMATS = {
    "columns.csv": "Image,Caption\na.jpg,a dog runs\nb.jpg,a cat\n",
    "semicolons.csv": "file_name;text\na.jpg;a dog runs\nb.jpg;a cat\n",
    "tabs.tsv": "image\tcaption\na.jpg\ta dog runs\nb.jpg\ta cat\n",
    "token.txt": "a.jpg#0\ta dog runs\nb.jpg#0\ta cat\n",
    "lines.jsonl": '{"image": "a.jpg", "captions": ["a dog runs"]}\n{"image": "b.jpg", "caption": "a cat"}\n',
    "lines.csv": '{"image_id": "a.jpg", "caption": "a dog runs"}\n{"image_id": "b.jpg", "caption": "a cat"}\n',
    "list.json": '\ufeff[{"image_id": "a.jpg", "caption": ["a dog runs"]}, {"image": "b.jpg", "caption": "a cat"}]',
}


@pytest.mark.parametrize("name", FORMATS)
def test_references_and_results_accept_the_formats_of_training_data(name, tmp_path):
    (tmp_path / name).write_text(FORMATS[name], encoding="utf-8")
    assert read_annotations(tmp_path / name, ids="file_name") == CAPTIONS
    assert read_results(tmp_path / name) == {image: caption for image, (caption,) in CAPTIONS.items()}


def test_splits_are_selected_by_field_or_by_a_list_of_names(tmp_path):
    path, names = tmp_path / "captions.csv", tmp_path / "dev.txt"
    path.write_text("image,caption,split\na.jpg,a dog,dev\nb.jpg,a cat,train\n")
    names.write_text("b.jpg\n")
    assert read_annotations(path, split="dev") == {"a.jpg": ["a dog"]}
    assert read_annotations(path, split=str(names)) == {"b.jpg": ["a cat"]}


def test_file_names_are_optional(tmp_path):
    without_images = {"annotations": COCO["annotations"]}
    assert read_annotations(write_json(tmp_path / "a.json", without_images)) == {8: ["a cat", "the cat"], 7: ["a dog"]}
    without_coco_ids = {"images": [{"imgid": 3, "filename": "a.jpg", "sentences": [{"raw": "a dog"}]}]}
    path = write_json(tmp_path / "k.json", without_coco_ids)
    assert read_annotations(path) == {3: ["a dog"]} and read_annotations(path, ids="file_name") == {"a.jpg": ["a dog"]}


def test_the_order_of_coco_annotations_is_preserved(tmp_path):  # seeded intervals depend on it
    assert list(read_annotations(write_json(tmp_path / "a.json", COCO))) == [8, 7]


def test_unreadable_entries_are_rejected(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\na.jpg,a dog, red\nb.jpg,a cat\n")
    message = r"captions\.csv, line 2: expected 2 fields, got 3"
    with pytest.raises(ResultsError, match=message):
        read_annotations(path)


def test_an_image_set_mismatch_is_reported():
    check_image_set([1, 2], {2: "", 1: ""})
    with pytest.raises(ImageSetError) as error:
        check_image_set(range(20), [*range(5), "5", 99])
    message = str(error.value)
    assert "have 20 images, the results 7" in message
    assert "15 without a result: 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 5 more" in message
    assert "2 without references: '5', 99" in message
    assert "a number in one and text in the other" in message
