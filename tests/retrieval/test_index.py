"""An index on disk: it survives a killed process, and an update only processes images that have changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from colour_model import MODEL, ColourModel, paint
from PIL import Image

from caption_jax.retrieval import index as index_module
from caption_jax.retrieval import index_builder
from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.index_builder import update_index
from input_pipeline.images import Preprocessing
from input_pipeline.records import Record


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        paint(folder / f"{name}.png", name)
    return folder


def update(folder: Path, paths, **options):
    """Updates the index in `folder` from files. Returns the changes and the number of embedded images."""
    model = ColourModel()
    with open_for_writing(folder, 3, MODEL) as index:
        records = [Record(Path(path), (), str(path)) for path in paths]
        changes = update_index(index, records, model, Preprocessing(8), **options)
    return changes, model.embedded


def captions(folder: Path) -> dict[str, str | None]:
    """Returns file name -> caption, after checking the vectors of the same rows."""
    index = ImageIndex(folder)
    entries = list(index.entries())
    assert len(entries) == len(index) == len(index.vectors)
    for entry, vector in zip(entries, index.vectors, strict=True):
        expected = ColourModel().embed_images([np.array(Image.open(entry.path).convert("RGB"))])[0]
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    return {Path(entry.path).name: entry.caption for entry in entries}


def test_each_image_is_added_once(tmp_path, photographs):
    files = sorted(photographs.iterdir())
    changes, embedded = update(tmp_path / "index", files[:2])
    assert (changes.added, embedded) == (2, 2)
    changes, embedded = update(tmp_path / "index", [*files, files[2], photographs / "../photographs/red.png"])
    assert (changes.added, changes.unchanged, embedded) == (1, 2, 1)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green", "red.png": "red"}


def test_files_have_the_documented_format(tmp_path, photographs):
    update(tmp_path / "index", sorted(photographs.iterdir()))
    header = json.loads((tmp_path / "index" / "index.json").read_text())
    keys = {"format", "version", "dimension", "count", "generation", "entries_bytes", "model", "vectors", "entries"}
    assert set(header) == keys and header["count"] == 3
    vectors = np.fromfile(tmp_path / "index" / header["vectors"], "<f4").reshape(-1, header["dimension"])
    assert vectors[0].argmax() == 2  # blue
    lines = [json.loads(line) for line in (tmp_path / "index" / header["entries"]).read_text().splitlines()]
    status = (photographs / "blue.png").stat()
    assert lines[0] == {
        "id": str(photographs / "blue.png"),
        "path": str(photographs / "blue.png"),
        "caption": "blue",
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def test_only_changed_images_are_updated(tmp_path, photographs):
    files = sorted(photographs.iterdir())
    update(tmp_path / "index", files)
    paint(photographs / "green.png", "white")
    os.utime(photographs / "green.png", ns=(1, 1))
    changes, embedded = update(tmp_path / "index", files)
    assert (changes.added, changes.updated, changes.unchanged, embedded) == (0, 1, 2, 1)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "red.png": "red", "green.png": "white"}


def test_images_with_missing_files_are_kept_or_dropped(tmp_path, photographs):
    update(tmp_path / "index", sorted(photographs.iterdir()))
    (photographs / "green.png").unlink()
    changes, _ = update(tmp_path / "index", [photographs / "red.png"])
    assert changes.missing == [str(photographs / "green.png")] and len(ImageIndex(tmp_path / "index")) == 3
    changes, embedded = update(tmp_path / "index", [photographs / "red.png"], missing="drop")
    assert changes.missing == [str(photographs / "green.png")] and embedded == 0
    assert captions(tmp_path / "index") == {
        "blue.png": "blue",
        "red.png": "red",
    }  # blue was not listed, but its file exists
    assert len(list((tmp_path / "index").iterdir())) == 4  # old files are deleted


def test_broken_images_are_reported_and_skipped(tmp_path, photographs):
    (photographs / "broken.png").write_bytes(b"no image")
    errors = []
    files = [photographs / "none.png", *sorted(photographs.iterdir())]
    changes, _ = update(tmp_path / "index", files, on_error=lambda error: errors.append(error.name))
    assert errors == [str(photographs / "none.png"), str(photographs / "broken.png")]
    assert len(changes.failures) == 2 and changes.added == 3
    assert len(captions(tmp_path / "index")) == 3
    (photographs / "red.png").write_bytes(b"no longer an image")
    changes, _ = update(tmp_path / "index", files)
    assert len(changes.failures) == 3 and changes.updated == 0
    assert set(captions(tmp_path / "index")) == {"blue.png", "green.png"}


def test_captions_are_optional(tmp_path, photographs):
    update(tmp_path / "index", photographs.iterdir(), captions="none")
    assert set(captions(tmp_path / "index").values()) == {None}
    with pytest.raises(ValueError, match="captions is 'all'; expected one of generated, none"):
        update(tmp_path / "index", [], captions="all")


def test_images_without_a_file_are_identified_by_their_id(tmp_path, photographs):
    content = (photographs / "red.png").read_bytes()
    records = [Record(lambda: content, ("A red square.",), 7), Record(lambda: content, (), "seven")]
    for _ in range(2):
        model = ColourModel()
        with open_for_writing(tmp_path / "index", 3, MODEL) as index:
            changes = update_index(index, records, model, Preprocessing(8), missing="drop")
    assert (changes.unchanged, changes.missing, model.embedded) == (2, [], 0)
    assert [(e.id, e.path, e.caption) for e in index.entries()] == [(7, None, "red"), ("seven", None, "red")]


class Killed(BaseException):
    """Ends a run at an arbitrary point, as a signal does."""


@pytest.mark.parametrize("moment", ["vectors", "entries", "header"])
@pytest.mark.parametrize("change", ["add", "update"])
def test_a_killed_run_leaves_a_valid_index(tmp_path, photographs, monkeypatch, moment, change):
    files = sorted(photographs.iterdir())
    update(tmp_path / "index", files[:2])
    if change == "update":
        os.utime(files[0], ns=(1, 1))
    write = index_module._write

    def write_and_raise(file, parts):
        write(file, parts)
        if moment in file.name:
            raise Killed

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_write", write_and_raise)
        if moment == "header":
            patch.setattr(os, "replace", killed)  # after writing the header, before moving it into place
        with pytest.raises(Killed):
            update(tmp_path / "index", files)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green"}
    update(tmp_path / "index", files)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green", "red.png": "red"}
    assert (tmp_path / "index" / ImageIndex(tmp_path / "index")._header.vectors).stat().st_size == 3 * 3 * 4


def test_chunks_added_before_a_kill_are_kept(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(index_builder, "_CHUNK", 2)
    files = sorted(photographs.iterdir())

    def kill_after_the_chunk(done, total):
        raise Killed

    with pytest.raises(Killed):
        update(tmp_path / "index", files, progress=kill_after_the_chunk)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green"}
    assert update(tmp_path / "index", files)[1] == 1


def test_another_model_is_rejected(tmp_path):
    with open_for_writing(tmp_path / "index", 3, MODEL):
        pass
    other = ModelIdentity(31, "cd" * 32)
    message = r"\(step 930, weights abababababab\).*\(step 31, weights cdcdcdcdcdcd\)"
    with pytest.raises(ValueError, match=message), open_for_writing(tmp_path / "index", 3, other):
        pass


def test_only_one_process_can_write(tmp_path):
    def blocked():
        return pytest.raises(BlockingIOError, match="another process is writing")

    with open_for_writing(tmp_path / "index", 3, MODEL), blocked(), open_for_writing(tmp_path / "index", 3, MODEL):
        pass
    with open_for_writing(tmp_path / "index", 3, MODEL):
        pass


def test_missing_and_corrupt_indexes_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no index in .* Build one with --mode=index"):
        ImageIndex(tmp_path)
    with open_for_writing(tmp_path, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32), [Entry(n) for n in range(3)])
    os.truncate(tmp_path / "vectors-0.f32", 24)
    with pytest.raises(ValueError, match=r"vectors-0\.f32 has 24 of 36 bytes: the index is damaged"):
        ImageIndex(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(ValueError, match="version 2; this release reads"):
        ImageIndex(tmp_path)


def test_invalid_vectors_are_rejected(tmp_path):
    with open_for_writing(tmp_path, 3, MODEL) as index:
        for vectors in (np.zeros((1, 2)), np.zeros((2, 3)), np.full((1, 3), np.nan)):
            with pytest.raises(ValueError, match=r"1 images require finite vectors of shape \(1, 3\)"):
                index.append(vectors.astype(np.float32), [Entry("a")])
    assert len(ImageIndex(tmp_path)) == 0


def test_entries_are_returned_in_the_requested_order(tmp_path):
    with open_for_writing(tmp_path, 3, MODEL) as index:
        index.append(np.ones((5, 3), np.float32), [Entry(n, caption=f"ä{n}\udce9") for n in range(5)])
    assert [entry.caption for entry in index.at([4, 1, 3, 1])] == ["ä4\udce9", "ä1\udce9", "ä3\udce9", "ä1\udce9"]
    assert index.at([]) == []
