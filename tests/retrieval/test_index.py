"""An index on disk: what is added stays, whatever kills the process, and only what has changed is read again."""

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
from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, writing
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
    """Updates the index in `folder` from files; returns what was done and how many images were embedded."""
    model = ColourModel()
    with writing(folder, 3, MODEL) as index:
        records = [Record(Path(path), (), str(path)) for path in paths]
        changes = update_index(index, records, model, Preprocessing(8), **options)
    return changes, model.embedded


def captions(folder: Path) -> dict[str, str | None]:
    """File name -> caption, checked against the vectors that stand in the same rows."""
    index = ImageIndex(folder)
    entries = list(index.entries())
    assert len(entries) == len(index) == len(index.vectors)
    for entry, vector in zip(entries, index.vectors, strict=True):
        right = ColourModel().embed_images([np.array(Image.open(entry.path).convert("RGB"))])[0]
        np.testing.assert_allclose(vector, right, atol=1e-6)
    return {Path(entry.path).name: entry.caption for entry in entries}


def test_images_are_added_once(tmp_path, photographs):
    files = sorted(photographs.iterdir())
    changes, embedded = update(tmp_path / "index", files[:2])
    assert (changes.added, embedded) == (2, 2)
    changes, embedded = update(tmp_path / "index", [*files, files[2], photographs / "../photographs/red.png"])
    assert (changes.added, changes.unchanged, embedded) == (1, 2, 1)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green", "red.png": "red"}


def test_the_files_are_as_the_document_says(tmp_path, photographs):
    update(tmp_path / "index", sorted(photographs.iterdir()))
    header = json.loads((tmp_path / "index" / "index.json").read_text())
    wanted = {"format", "version", "dimension", "count", "generation", "entries_bytes", "model", "vectors", "entries"}
    assert set(header) == wanted and header["count"] == 3
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


def test_changed_images_are_renewed_and_only_those(tmp_path, photographs):
    files = sorted(photographs.iterdir())
    update(tmp_path / "index", files)
    paint(photographs / "green.png", "white")
    os.utime(photographs / "green.png", ns=(1, 1))
    changes, embedded = update(tmp_path / "index", files)
    assert (changes.added, changes.updated, changes.unchanged, embedded) == (0, 1, 2, 1)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "red.png": "red", "green.png": "white"}


def test_images_whose_files_are_gone_are_kept_or_dropped(tmp_path, photographs):
    update(tmp_path / "index", sorted(photographs.iterdir()))
    (photographs / "green.png").unlink()
    changes, _ = update(tmp_path / "index", [photographs / "red.png"])
    assert changes.missing == [str(photographs / "green.png")] and len(ImageIndex(tmp_path / "index")) == 3
    changes, embedded = update(tmp_path / "index", [photographs / "red.png"], missing="drop")
    assert changes.missing == [str(photographs / "green.png")] and embedded == 0
    assert captions(tmp_path / "index") == {"blue.png": "blue", "red.png": "red"}  # blue was not named, but is there
    assert len(list((tmp_path / "index").iterdir())) == 4  # no old files are left


def test_a_broken_image_is_told_and_the_rest_goes_on(tmp_path, photographs):
    (photographs / "broken.png").write_bytes(b"no image")
    told = []
    files = [photographs / "none.png", *sorted(photographs.iterdir())]
    changes, _ = update(tmp_path / "index", files, on_error=lambda error: told.append(error.name))
    assert told == [str(photographs / "none.png"), str(photographs / "broken.png")]
    assert len(changes.failures) == 2 and changes.added == 3
    assert len(captions(tmp_path / "index")) == 3
    (photographs / "red.png").write_bytes(b"no image any more")
    changes, _ = update(tmp_path / "index", files)
    assert len(changes.failures) == 3 and changes.updated == 0
    assert set(captions(tmp_path / "index")) == {"blue.png", "green.png"}


def test_captions_can_be_left_out(tmp_path, photographs):
    update(tmp_path / "index", photographs.iterdir(), captions="none")
    assert set(captions(tmp_path / "index").values()) == {None}
    with pytest.raises(ValueError, match="captions is 'all'; expected one of generated, none"):
        update(tmp_path / "index", [], captions="all")


def test_images_that_lie_in_no_file_go_by_their_id(tmp_path, photographs):
    content = (photographs / "red.png").read_bytes()
    records = [Record(lambda: content, ("A red square.",), 7), Record(lambda: content, (), "seven")]
    for _ in range(2):
        model = ColourModel()
        with writing(tmp_path / "index", 3, MODEL) as index:
            changes = update_index(index, records, model, Preprocessing(8), missing="drop")
    assert (changes.unchanged, changes.missing, model.embedded) == (2, [], 0)
    assert [(e.id, e.path, e.caption) for e in index.entries()] == [(7, None, "red"), ("seven", None, "red")]


class Killed(BaseException):
    """Ends a run where it stands, as a signal would."""


@pytest.mark.parametrize("moment", ["vectors", "entries", "header"])
@pytest.mark.parametrize("change", ["add", "renew"])
def test_a_killed_run_leaves_an_index_that_can_be_used_and_gone_on_with(
    tmp_path, photographs, monkeypatch, moment, change
):
    files = sorted(photographs.iterdir())
    update(tmp_path / "index", files[:2])
    if change == "renew":
        os.utime(files[0], ns=(1, 1))
    write = index_module._write

    def write_and_die(file, parts):
        write(file, parts)
        if moment in file.name:
            raise Killed

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_write", write_and_die)
        if moment == "header":
            patch.setattr(os, "replace", die)  # written, and not yet in its place
        with pytest.raises(Killed):
            update(tmp_path / "index", files)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green"}
    update(tmp_path / "index", files)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green", "red.png": "red"}
    assert (tmp_path / "index" / ImageIndex(tmp_path / "index")._header.vectors).stat().st_size == 3 * 3 * 4


def test_what_a_killed_run_had_added_stays(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(index_builder, "_CHUNK", 2)
    files = sorted(photographs.iterdir())

    def die_at_the_end(done, total):
        raise Killed

    with pytest.raises(Killed):
        update(tmp_path / "index", files, progress=die_at_the_end)
    assert captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green"}
    assert update(tmp_path / "index", files)[1] == 1


def test_another_model_is_refused_and_both_are_named(tmp_path):
    with writing(tmp_path / "index", 3, MODEL):
        pass
    other = ModelIdentity(31, "cd" * 32)
    names = r"\(step 930, weights abababababab\).*\(step 31, weights cdcdcdcdcdcd\)"
    with pytest.raises(ValueError, match=names), writing(tmp_path / "index", 3, other):
        pass


def test_one_process_at_a_time_writes(tmp_path):
    def refused():
        return pytest.raises(BlockingIOError, match="another process is writing")

    with writing(tmp_path / "index", 3, MODEL), refused(), writing(tmp_path / "index", 3, MODEL):
        pass
    with writing(tmp_path / "index", 3, MODEL):
        pass


def test_what_is_no_index_or_a_damaged_one_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no index in .* Build one with --mode=index"):
        ImageIndex(tmp_path)
    with writing(tmp_path, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32), [Entry(n) for n in range(3)])
    os.truncate(tmp_path / "vectors-0.f32", 24)
    with pytest.raises(ValueError, match=r"vectors-0\.f32 has 24 of 36 bytes: the index is damaged"):
        ImageIndex(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(ValueError, match="version 2; this release reads"):
        ImageIndex(tmp_path)


def test_vectors_that_do_not_fit_are_refused(tmp_path):
    with writing(tmp_path, 3, MODEL) as index:
        for vectors in (np.zeros((1, 2)), np.zeros((2, 3)), np.full((1, 3), np.nan)):
            with pytest.raises(ValueError, match=r"1 images require finite vectors of shape \(1, 3\)"):
                index.append(vectors, [Entry("a")])
    assert len(ImageIndex(tmp_path)) == 0


def test_entries_of_some_rows_come_in_the_order_asked_for(tmp_path):
    with writing(tmp_path, 3, MODEL) as index:
        index.append(np.ones((5, 3), np.float32), [Entry(n, caption=f"ä{n}\udce9") for n in range(5)])
    assert [entry.caption for entry in index.at([4, 1, 3, 1])] == ["ä4\udce9", "ä1\udce9", "ä3\udce9", "ä1\udce9"]
    assert index.at([]) == []
