"""Indexes on disk remain valid if a process is killed, and updates process only changed images."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from colour_model import MODEL, ColourModel, write_image
from PIL import Image

from caption_jax.errors import WorkdirError
from caption_jax.retrieval import index as index_module
from caption_jax.retrieval import index_builder
from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.index_builder import update_index
from caption_jax.telemetry.progress import Display, Phase
from input_pipeline.images import Preprocessing
from input_pipeline.records import Record


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with a red, a green and a blue image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        write_image(folder / f"{name}.png", name)
    return folder


def update_from_files(folder: Path, paths, **options):
    """Updates the index in `folder` and returns the changes and the number of embedded images."""
    model = ColourModel()
    with open_for_writing(folder, 3, MODEL) as index:
        records = [Record(Path(path), (), str(path)) for path in paths]
        changes = update_index(index, records, model, Preprocessing(8), **options)
    return changes, model.num_embedded


def read_captions(folder: Path) -> dict[str, str | None]:
    """Checks the vectors of the index, and returns the captions by file name."""
    index = ImageIndex(folder)
    entries = list(index.entries())
    assert len(entries) == len(index) == len(index.vectors)
    for entry, vector in zip(entries, index.vectors, strict=True):
        expected = ColourModel().embed_images([np.array(Image.open(entry.path).convert("RGB"))])[0]
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    return {Path(entry.path).name: entry.caption for entry in entries}


def test_each_image_is_added_once(tmp_path, images):
    files = sorted(images.iterdir())
    changes, num_embedded = update_from_files(tmp_path / "index", files[:2])
    assert (changes.added, num_embedded) == (2, 2)
    changes, num_embedded = update_from_files(tmp_path / "index", [*files, files[2], images / "../images/red.png"])
    assert (changes.added, changes.unchanged, num_embedded) == (1, 2, 1)
    assert read_captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green", "red.png": "red"}


def test_files_have_the_documented_format(tmp_path, images):
    update_from_files(tmp_path / "index", sorted(images.iterdir()))
    header = json.loads((tmp_path / "index" / "index.json").read_text())
    keys = {"format", "version", "dimension", "count", "generation", "entries_bytes", "model", "vectors", "entries"}
    assert set(header) == keys and header["count"] == 3
    vectors = np.fromfile(tmp_path / "index" / header["vectors"], "<f4").reshape(-1, header["dimension"])
    assert vectors[0].argmax() == 2  # blue
    lines = [json.loads(line) for line in (tmp_path / "index" / header["entries"]).read_text().splitlines()]
    status = (images / "blue.png").stat()
    assert lines[0] == {
        "id": str(images / "blue.png"),
        "path": str(images / "blue.png"),
        "caption": "blue",
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def test_updates_embed_only_changed_images(tmp_path, images):
    files = sorted(images.iterdir())
    update_from_files(tmp_path / "index", files)
    write_image(images / "green.png", "white")
    os.utime(images / "green.png", ns=(1, 1))
    changes, num_embedded = update_from_files(tmp_path / "index", files)
    assert (changes.added, changes.updated, changes.unchanged, num_embedded) == (0, 1, 2, 1)
    assert read_captions(tmp_path / "index") == {"blue.png": "blue", "red.png": "red", "green.png": "white"}


def test_entries_of_missing_files_are_kept_or_dropped(tmp_path, images):
    update_from_files(tmp_path / "index", sorted(images.iterdir()))
    (images / "green.png").unlink()
    changes, _ = update_from_files(tmp_path / "index", [images / "red.png"])
    assert changes.missing == [str(images / "green.png")] and len(ImageIndex(tmp_path / "index")) == 3
    changes, num_embedded = update_from_files(tmp_path / "index", [images / "red.png"], missing="drop")
    assert changes.missing == [str(images / "green.png")] and num_embedded == 0
    # The entry of blue.png is kept, because its file exists.
    assert read_captions(tmp_path / "index") == {"blue.png": "blue", "red.png": "red"}
    assert len(list((tmp_path / "index").iterdir())) == 4  # replaced files are deleted


def test_broken_images_are_reported_and_skipped(tmp_path, images):
    (images / "broken.png").write_bytes(b"not an image")
    errors = []
    files = [images / "missing.png", *sorted(images.iterdir())]
    changes, _ = update_from_files(tmp_path / "index", files, on_error=lambda error: errors.append(error.name))
    assert errors == [str(images / "missing.png"), str(images / "broken.png")]
    assert len(changes.failures) == 2 and changes.added == 3
    assert len(read_captions(tmp_path / "index")) == 3
    (images / "red.png").write_bytes(b"no longer an image")
    changes, _ = update_from_files(tmp_path / "index", files)
    assert len(changes.failures) == 3 and changes.updated == 0
    assert set(read_captions(tmp_path / "index")) == {"blue.png", "green.png"}


def test_captions_are_optional(tmp_path, images):
    update_from_files(tmp_path / "index", images.iterdir(), captions="none")
    assert set(read_captions(tmp_path / "index").values()) == {None}
    with pytest.raises(ValueError, match="captions is 'all'; expected one of generated, none"):
        update_from_files(tmp_path / "index", [], captions="all")


def test_images_without_a_file_are_identified_by_their_id(tmp_path, images):
    content = (images / "red.png").read_bytes()
    records = [Record(lambda: content, ("A red square.",), 7), Record(lambda: content, (), "seven")]
    for _ in range(2):
        model = ColourModel()
        with open_for_writing(tmp_path / "index", 3, MODEL) as index:
            changes = update_index(index, records, model, Preprocessing(8), missing="drop")
    assert (changes.unchanged, changes.missing, model.num_embedded) == (2, [], 0)
    expected = [(7, None, "red"), ("seven", None, "red")]
    assert [(entry.id, entry.path, entry.caption) for entry in index.entries()] == expected


class Killed(BaseException):
    """Simulates a process that is killed by a signal."""


@pytest.mark.parametrize("last_write", ["vectors", "entries", "header"])
@pytest.mark.parametrize("change", ["add", "update"])
def test_a_killed_process_leaves_a_valid_index(tmp_path, images, monkeypatch, last_write, change):
    files = sorted(images.iterdir())
    update_from_files(tmp_path / "index", files[:2])
    if change == "update":
        os.utime(files[0], ns=(1, 1))
    write = index_module._write

    def write_and_raise(file, chunks):
        write(file, chunks)
        if last_write in file.name:
            raise Killed

    def raise_killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_write", write_and_raise)
        if last_write == "header":
            patch.setattr(os, "replace", raise_killed)  # after the new header is written and before it is renamed
        with pytest.raises(Killed):
            update_from_files(tmp_path / "index", files)
    assert read_captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green"}
    update_from_files(tmp_path / "index", files)
    assert read_captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green", "red.png": "red"}
    assert (tmp_path / "index" / ImageIndex(tmp_path / "index")._header.vectors_name).stat().st_size == 3 * 3 * 4


class KillingDisplay(Display):
    """Raises `Killed` after the first chunk."""

    @contextlib.contextmanager
    def phase(self, *args, **kwargs):
        yield KillingPhase(*args, **kwargs)


class KillingPhase(Phase):
    def advance(self, count=1, text=None):
        assert count == 2
        raise Killed


def test_chunks_appended_before_a_kill_are_kept(tmp_path, images, monkeypatch):
    monkeypatch.setattr(index_builder, "_CHUNK", 2)
    files = sorted(images.iterdir())

    with pytest.raises(Killed):
        update_from_files(tmp_path / "index", files, display=KillingDisplay())
    assert read_captions(tmp_path / "index") == {"blue.png": "blue", "green.png": "green"}
    assert update_from_files(tmp_path / "index", files)[1] == 1


def test_a_different_model_is_rejected(tmp_path):
    with open_for_writing(tmp_path / "index", 3, MODEL):
        pass
    other = ModelIdentity(31, "cd" * 32)
    message = r"\(step 930, weights abababababab\).*\(step 31, weights cdcdcdcdcdcd\)"
    with pytest.raises(ValueError, match=message), open_for_writing(tmp_path / "index", 3, other):
        pass


def test_concurrent_writers_are_rejected(tmp_path):
    folder = tmp_path / "index"
    rejected = pytest.raises(BlockingIOError, match="another process is writing")
    with open_for_writing(folder, 3, MODEL), rejected, open_for_writing(folder, 3, MODEL):
        pass
    with open_for_writing(folder, 3, MODEL):
        pass


def test_missing_damaged_and_newer_indexes_are_rejected(tmp_path):
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


def make_index(folder: Path) -> dict:
    """Writes an index of three images, and returns its header."""
    with open_for_writing(folder, 3, MODEL) as index:
        index.append(np.eye(3, dtype=np.float32), [Entry(n) for n in range(3)])
    return json.loads((folder / "index.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1},
        {"count": "3"},
        {"dimension": None},
        {"generation": [0]},
        {"model": 3},
        {"model": {}},
        {"format": 1},
    ],
)
def test_headers_with_wrong_values_are_rejected(tmp_path, change):
    header = make_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({**header, **change}))
    with pytest.raises(WorkdirError, match=r"index\.json: the index is damaged \(.*\); rebuild it$"):
        ImageIndex(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\x00" * 9, '{"count": ' + "1" * 5000 + "}"])
def test_damaged_headers_are_rejected(tmp_path, content):
    make_index(tmp_path)
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"index\.json: the index is damaged"):
        ImageIndex(tmp_path)


@pytest.mark.parametrize("line", ["{}", "[]", "x", '{"id": null}', '{"id": [1]}', '{"id": 1, "path": 2}', "[" * 20_000])
def test_damaged_entries_are_rejected_with_their_line(tmp_path, line):
    make_index(tmp_path)
    first, _, last = (tmp_path / "entries-0.jsonl").read_text().splitlines()
    (tmp_path / "entries-0.jsonl").write_text("\n".join([first, line.ljust(200), last, ""]))
    index = ImageIndex(tmp_path)
    assert index.at([0, 2])[1].id == 2
    for read in (lambda: list(index.entries()), lambda: index.at([1])):
        with pytest.raises(WorkdirError, match=r"entries-0\.jsonl, line 2: the index is damaged"):
            read()


def test_an_index_with_too_few_or_endless_lines_is_rejected(tmp_path):
    make_index(tmp_path)
    for content, reason in ((b"{}" + b" " * 500, "it is not an entry"), (b"x" * (3 << 20), "the line is too long")):
        (tmp_path / "entries-0.jsonl").write_bytes(content)
        with pytest.raises(WorkdirError, match=reason):
            list(ImageIndex(tmp_path).entries())


@pytest.mark.parametrize("name", ["vectors-0.f32", "entries-0.jsonl", "lock"])
def test_an_index_with_links_does_not_change_other_files(tmp_path, name):
    make_index(tmp_path / "index")
    other = tmp_path / "other"
    (tmp_path / "index" / name).rename(other)
    other.write_bytes(content := other.read_bytes() + b"the end of another file")
    (tmp_path / "index" / name).symlink_to(other)
    with pytest.raises(WorkdirError, match=f"{name} is a link"), open_for_writing(tmp_path / "index", 3, MODEL):
        pass
    assert other.read_bytes() == content


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
