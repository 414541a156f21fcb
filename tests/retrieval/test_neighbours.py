"""Neighbours of images in an index: nearest images except copies, and a file that is rejected if out of date."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from colour_model import COLOURS, MODEL, ColourModel, paint

from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.index_builder import update_index
from caption_jax.retrieval.neighbours import ImageNeighbours, find_neighbours, read_neighbours, write_neighbours
from input_pipeline.images import Preprocessing
from input_pipeline.records import DataError, Record

SIZE = Preprocessing(8)


@pytest.fixture
def photographs(tmp_path, monkeypatch) -> Path:
    """Red, a copy of it, orange, green and blue."""
    monkeypatch.setitem(COLOURS, "orange", (250, 120, 0))
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, colour in (("red", "red"), ("copy", "red"), ("orange", "orange"), ("green", "green"), ("blue", "blue")):
        paint(folder / f"{name}.png", colour)
    return folder


def records(folder: Path, *names: str) -> list[Record]:
    return [Record(folder / f"{name}.png", (), name) for name in names]


def make_index(folder: Path, images: list[Record]) -> ImageIndex:
    with open_for_writing(folder, 3, MODEL) as index:
        update_index(index, images, ColourModel(), SIZE, captions="none")
    return ImageIndex(folder)


def ids(results: list[ImageNeighbours]) -> dict:
    return {result.id: result.neighbours for result in results}


def test_neighbours_exclude_the_image_and_its_copies(tmp_path, photographs):
    names = ("red", "copy", "orange", "green", "blue")
    index, model = make_index(tmp_path / "index", records(photographs, *names)), ColourModel()
    results = find_neighbours(index, records(photographs, *names), model, SIZE, 2)
    assert ids(results)["red"] == ids(results)["copy"] == ["orange", "green"]
    assert ids(results)["orange"][:1] == ["red"] and set(ids(results)["green"]) == {"orange", "red"}
    assert model.embedded == 0, "all images are in the index"
    assert results[0].scores == sorted(results[0].scores, reverse=True)
    red, orange = ColourModel().embed_images([np.full((2, 2, 3), COLOURS[name]) for name in ("red", "orange")])
    assert results[0].scores[0] == pytest.approx(red @ orange, abs=1e-5)
    all_neighbours = find_neighbours(index, records(photographs, "blue"), model, SIZE, 9)
    assert len(all_neighbours[0].neighbours) == 4


def test_an_image_is_recognised_by_its_id_or_its_file(tmp_path, photographs):
    """Even if its vector has changed."""
    red, green = records(photographs, "red", "green")
    vectors = np.array([[0, 0.6, 0.8], [0.8, 0, 0.6], [0, 0, 1]], np.float32)
    with open_for_writing(tmp_path / "index", 3, MODEL) as index:
        index.append(vectors, [Entry(1), Entry("other", str(green.image)), Entry(3)])
    images = [Record(red.image, (), 1), green]
    results = find_neighbours(ImageIndex(tmp_path / "index"), images, ColourModel(), SIZE, 3)
    assert set(ids(results)[1]) == {"other", 3} and set(ids(results)["green"]) == {1, 3}


def test_images_outside_the_index_are_embedded_and_broken_ones_have_no_neighbours(tmp_path, photographs):
    index = make_index(tmp_path / "index", records(photographs, "red", "copy", "green"))
    (photographs / "broken.png").write_bytes(b"no image")
    errors, model = [], ColourModel()
    images = records(photographs, "orange", "broken", "green", "blue")
    results = find_neighbours(index, images, model, SIZE, 1, errors.append)
    assert list(ids(results)) == ["orange", "broken", "green", "blue"], "in the order of the input"
    assert (
        ids(results)["orange"][0] in ("red", "copy")
        and ids(results)["broken"] == []
        and len(ids(results)["green"]) == 1
    )
    assert model.embedded == 2 and len(errors) == 1 and "broken.png" in str(errors[0])


def test_many_copies_of_an_image_do_not_hide_its_neighbours(tmp_path):
    vectors = np.zeros((30, 3), np.float32)
    vectors[:25, 0] = 1
    vectors[25:] = [0.6, 0.8, 0]
    with open_for_writing(tmp_path, 3, MODEL) as index:
        index.append(vectors, [Entry(number) for number in range(30)])
    results = find_neighbours(ImageIndex(tmp_path), [Record(lambda: b"", (), 0)], ColourModel(), SIZE, 3)
    assert results == [ImageNeighbours(0, [25, 26, 27], [pytest.approx(0.6)] * 3)]


@pytest.fixture
def stored(tmp_path) -> ImageIndex:
    with open_for_writing(tmp_path, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32), [Entry("a"), Entry("b\u2028"), Entry(3)])
    index = ImageIndex(tmp_path)
    write_neighbours(
        index,
        "val",
        2,
        [
            ImageNeighbours("a", ["b\u2028", 3], [0.5, 0.25]),
            ImageNeighbours("\udce9", [], []),
            ImageNeighbours(7, [], []),
        ],
    )
    return index


def test_neighbours_round_trip(stored):
    assert read_neighbours(stored.folder, "val", at_least=2) == {"a": ["b\u2028", 3], "\udce9": [], 7: []}
    header, line, *_ = (stored.folder / "neighbours-val.jsonl").read_text().split("\n")
    assert json.loads(header)["split"] == "val" and json.loads(header)["index"]["count"] == 3
    assert json.loads(line)["scores"] == [0.5, 0.25]
    assert [path.name for path in stored.folder.glob("neighbours*")] == ["neighbours-val.jsonl"]


def test_neighbours_of_a_changed_index_are_rejected(stored):
    with open_for_writing(stored.folder, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32)[:1], [Entry("d")])
    with pytest.raises(DataError, match=r"val\.jsonl is out of date .*run --mode=neighbours --index="):
        read_neighbours(stored.folder, "val")
    write_neighbours(ImageIndex(stored.folder), "val", 2, [])
    assert read_neighbours(stored.folder, "val") == {}
    header = json.loads((stored.folder / "index.json").read_text())
    header["model"] = vars(ModelIdentity(931, "cd" * 32))
    (stored.folder / "index.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match="is out of date"):
        read_neighbours(stored.folder, "val")


def test_missing_or_too_few_neighbours_are_rejected(stored):
    with pytest.raises(FileNotFoundError, match=r"neighbours-train\.jsonl is missing: run .* --split=train"):
        read_neighbours(stored.folder, "train")
    with pytest.raises(DataError, match="has 2 neighbours per image, 3 are required"):
        read_neighbours(stored.folder, "val", at_least=3)
    with pytest.raises(FileNotFoundError, match="there is no index in"):
        read_neighbours(stored.folder / "other", "val")
