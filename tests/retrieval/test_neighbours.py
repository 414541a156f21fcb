"""An image's neighbours are the nearest images in an index, excluding its copies. Outdated files are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from colour_model import COLOURS, MODEL, ColourModel, write_image

from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.index_builder import update_index
from caption_jax.retrieval.neighbours import ImageNeighbours, find_neighbours, read_neighbours, write_neighbours
from input_pipeline.images import Preprocessing
from input_pipeline.records import DataError, Record

PREPROCESSING = Preprocessing(8)


@pytest.fixture
def image_folder(tmp_path, monkeypatch) -> Path:
    """A folder with a red image, a copy of it, and an orange, a green and a blue image."""
    monkeypatch.setitem(COLOURS, "orange", (250, 120, 0))
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("red", "red"), ("copy", "red"), ("orange", "orange"), ("green", "green"), ("blue", "blue")):
        write_image(folder / f"{name}.png", colour)
    return folder


def make_records(folder: Path, *names: str) -> list[Record]:
    return [Record(folder / f"{name}.png", (), name) for name in names]


def make_index(folder: Path, images: list[Record]) -> ImageIndex:
    with open_for_writing(folder, 3, MODEL) as index:
        update_index(index, images, ColourModel(), PREPROCESSING, captions="none")
    return ImageIndex(folder)


def get_neighbours_by_id(results: list[ImageNeighbours]) -> dict:
    return {result.id: result.neighbours for result in results}


def test_neighbours_exclude_the_image_and_its_copies(tmp_path, image_folder):
    names = ("red", "copy", "orange", "green", "blue")
    index, model = make_index(tmp_path / "index", make_records(image_folder, *names)), ColourModel()
    results = find_neighbours(index, make_records(image_folder, *names), model, PREPROCESSING, 2)
    assert get_neighbours_by_id(results)["red"] == get_neighbours_by_id(results)["copy"] == ["orange", "green"]
    assert get_neighbours_by_id(results)["orange"][:1] == ["red"]
    assert set(get_neighbours_by_id(results)["green"]) == {"orange", "red"}
    assert model.num_embedded == 0, "all images are in the index"
    assert results[0].scores == sorted(results[0].scores, reverse=True)
    red, orange = ColourModel().embed_images([np.full((2, 2, 3), COLOURS[name]) for name in ("red", "orange")])
    assert results[0].scores[0] == pytest.approx(red @ orange, abs=1e-5)
    all_neighbours = find_neighbours(index, make_records(image_folder, "blue"), model, PREPROCESSING, 9)
    assert len(all_neighbours[0].neighbours) == 4


def test_an_image_is_identified_by_its_id_or_its_file(tmp_path, image_folder):
    """The indexed vectors do not match the images, so only the id or the file can identify an image."""
    red, green = make_records(image_folder, "red", "green")
    vectors = np.array([[0, 0.6, 0.8], [0.8, 0, 0.6], [0, 0, 1]], np.float32)
    with open_for_writing(tmp_path / "index", 3, MODEL) as index:
        index.append(vectors, [Entry(1), Entry("other", str(green.image)), Entry(3)])
    images = [Record(red.image, (), 1), green]
    results = find_neighbours(ImageIndex(tmp_path / "index"), images, ColourModel(), PREPROCESSING, 3)
    neighbours = get_neighbours_by_id(results)
    assert set(neighbours[1]) == {"other", 3} and set(neighbours["green"]) == {1, 3}


def test_images_outside_the_index_are_embedded_and_broken_images_have_no_neighbours(tmp_path, image_folder):
    index = make_index(tmp_path / "index", make_records(image_folder, "red", "copy", "green"))
    (image_folder / "broken.png").write_bytes(b"not an image")
    errors, model = [], ColourModel()
    images = make_records(image_folder, "orange", "broken", "green", "blue")
    results = find_neighbours(index, images, model, PREPROCESSING, 1, errors.append)
    neighbours = get_neighbours_by_id(results)
    assert list(neighbours) == ["orange", "broken", "green", "blue"], "results are in the order of the input"
    assert neighbours["orange"][0] in ("red", "copy")
    assert neighbours["broken"] == [] and len(neighbours["green"]) == 1
    assert model.num_embedded == 2 and len(errors) == 1 and "broken.png" in str(errors[0])


def test_many_copies_of_an_image_do_not_hide_its_neighbours(tmp_path):
    vectors = np.zeros((30, 3), np.float32)
    vectors[:25, 0] = 1
    vectors[25:] = [0.6, 0.8, 0]
    with open_for_writing(tmp_path, 3, MODEL) as index:
        index.append(vectors, [Entry(number) for number in range(30)])
    results = find_neighbours(ImageIndex(tmp_path), [Record(lambda: b"", (), 0)], ColourModel(), PREPROCESSING, 3)
    assert results == [ImageNeighbours(0, [25, 26, 27], [pytest.approx(0.6)] * 3)]


@pytest.fixture
def index_with_neighbours(tmp_path) -> ImageIndex:
    """An index for which neighbours of the validation images have been written."""
    with open_for_writing(tmp_path, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32), [Entry("a"), Entry("b\u2028"), Entry(3)])
    index = ImageIndex(tmp_path)
    neighbours = [
        ImageNeighbours("a", ["b\u2028", 3], [0.5, 0.25]),
        ImageNeighbours("\udce9", [], []),
        ImageNeighbours(7, [], []),
    ]
    write_neighbours(index, "val", 2, neighbours)
    return index


def test_written_neighbours_are_read_back_unchanged(index_with_neighbours):
    neighbours = read_neighbours(index_with_neighbours.folder, "val", at_least=2)
    assert neighbours == {"a": ["b\u2028", 3], "\udce9": [], 7: []}
    header, line, *_ = (index_with_neighbours.folder / "neighbours-val.jsonl").read_text().split("\n")
    assert json.loads(header)["split"] == "val" and json.loads(header)["index"]["count"] == 3
    assert json.loads(line)["scores"] == [0.5, 0.25]
    assert [path.name for path in index_with_neighbours.folder.glob("neighbours*")] == ["neighbours-val.jsonl"]


def test_neighbours_of_a_changed_index_are_rejected(index_with_neighbours):
    with open_for_writing(index_with_neighbours.folder, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32)[:1], [Entry("d")])
    with pytest.raises(DataError, match=r"val\.jsonl is out of date .*run --mode=neighbours --index="):
        read_neighbours(index_with_neighbours.folder, "val")
    write_neighbours(ImageIndex(index_with_neighbours.folder), "val", 2, [])
    assert read_neighbours(index_with_neighbours.folder, "val") == {}
    header = json.loads((index_with_neighbours.folder / "index.json").read_text())
    header["model"] = vars(ModelIdentity(931, "cd" * 32))
    (index_with_neighbours.folder / "index.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match="is out of date"):
        read_neighbours(index_with_neighbours.folder, "val")


def test_missing_or_too_few_neighbours_are_rejected(index_with_neighbours):
    with pytest.raises(FileNotFoundError, match=r"neighbours-train\.jsonl is missing: run .* --split=train"):
        read_neighbours(index_with_neighbours.folder, "train")
    with pytest.raises(DataError, match="has 2 neighbours per image, 3 are required"):
        read_neighbours(index_with_neighbours.folder, "val", at_least=3)
    with pytest.raises(FileNotFoundError, match="there is no index in"):
        read_neighbours(index_with_neighbours.folder / "other", "val")


@pytest.mark.parametrize("count", ["x" * 10_000, True, 10**30, None, [2]])
def test_a_damaged_number_of_neighbours_is_rejected_without_quoting_it(index_with_neighbours, count):
    path = index_with_neighbours.folder / "neighbours-val.jsonl"
    header, *lines = path.read_text().split("\n")
    path.write_text("\n".join([json.dumps({**json.loads(header), "neighbours": count}), *lines]))
    with pytest.raises(DataError, match=r"neighbours-val\.jsonl is damaged: run") as error:
        read_neighbours(index_with_neighbours.folder, "val")
    assert len(str(error.value)) < 500
