"""An index that is served: only images in its folder, and only of the model that built it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from colour_model import MODEL
from PIL import Image

from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.serving.embedding_request import ThumbnailError
from caption_jax.serving.served_index import ServedIndex
from caption_jax.serving.stored_images import StoredImages
from input_pipeline.limits import Limits

LIMITS = Limits(image_pixels=1_000_000)
WIDTH = 4


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of images, with links out of it, and a secret image beside it."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (800, 200), (250, 0, 0)).save(folder / "sub" / "wide.png")
    Image.new("RGB", (1100, 1000)).save(folder / "large.png")
    (folder / "text.jpg").write_text("no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "inside.png").symlink_to(folder / "sub" / "wide.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def make_index(folder: Path, paths: list[Path | str | None], width: int = WIDTH) -> Path:
    entries = [
        Entry(str(path or row), None if path is None else str(path), f"caption {row}") for row, path in enumerate(paths)
    ]
    vectors = np.eye(width, dtype=np.float32)[np.arange(len(paths)) % width]
    with open_for_writing(folder, width, MODEL) as index:
        index.append(vectors, entries)
    return folder


def test_thumbnails_are_small_and_have_tags_of_their_file(folder, tmp_path):
    images = StoredImages(str(folder), LIMITS)
    for name in ("sub/wide.png", "inside.png", "outside/images/sub/wide.png"):
        entry = Entry(name, str(folder / name))
        thumbnail = images.make_thumbnail(entry)
        with Image.open(io.BytesIO(thumbnail.content)) as image:
            assert (image.format, image.size) == ("JPEG", (320, 80))
        assert images.get_name(images.resolve(entry)) == "sub/wide.png"
    assert images.make_thumbnail(entry, thumbnail.tag).content is None
    Image.new("RGB", (16, 16)).save(folder / "sub" / "wide.png")
    changed = images.make_thumbnail(entry, thumbnail.tag)
    assert changed.content is not None and changed.tag != thumbnail.tag


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("link.png", "is not in the folder of images"),
        ("outside/secret.png", "is not in the folder of images"),
        ("../secret.png", "is not in the folder of images"),
        ("sub/../../secret.png", "is not in the folder of images"),
        ("/etc/passwd", "is not in the folder of images"),
        ("", "is not in the folder of images"),
        ("null\0.png", "is not in the folder of images"),
        ("../images_of_others/a.png", "is not in the folder of images"),
        ("missing.png", "the image cannot be read: No such file"),
        ("text.jpg", "the image cannot be read: "),
        ("pipe.png", "the image cannot be read: is a named pipe"),
        ("sub", "the image cannot be read: is a folder"),
        ("large.png", r"the image cannot be read: declares 1,100 x 1,000 pixels.*config\.limits\.image_pixels"),
    ],
)
def test_nothing_else_is_read_and_messages_contain_no_paths(folder, name, message):
    path = name if name.startswith("/") else f"{folder}/{name}"
    with pytest.raises(ThumbnailError, match=message) as error:
        StoredImages(str(folder), LIMITS).make_thumbnail(Entry(name, path))
    assert str(folder.parent) not in str(error.value) and "\n" not in str(error.value)


def test_images_without_a_file_are_not_served(folder):
    with pytest.raises(ThumbnailError, match="is not in the folder"):
        StoredImages(str(folder), LIMITS).make_thumbnail(Entry(17))


def test_folders_that_cannot_be_served_are_reported(folder, tmp_path):
    for path, kind, message in (
        (tmp_path / "missing", MissingFileError, "no such folder"),
        (tmp_path / "secret.png", ConfigError, "is a file"),
        ("gs://bucket/images", ConfigError, "must be on a local disk"),
    ):
        with pytest.raises(kind, match=rf"^--image_folder={path}: .*{message}"):
            StoredImages(str(path), LIMITS)
    for paths, message in (([tmp_path / "secret.png"], "the first is .*secret.png"), ([None], "not separate files")):
        index = make_index(tmp_path / f"index{message[:3]}", paths)
        with pytest.raises(ConfigError, match=rf"--image_folder=.*none of the indexed images .*{message}"):
            ServedIndex(index, MODEL, WIDTH, StoredImages(str(folder), LIMITS))


def test_an_index_of_another_model_or_dimension_is_refused(tmp_path):
    index = make_index(tmp_path / "index", ["/a.png"])
    with pytest.raises(WorkdirError, match=r"built with a model .*step 930.* other than the current one .*step 31"):
        ServedIndex(index, ModelIdentity(31, "cd" * 32), WIDTH)
    with pytest.raises(WorkdirError, match="dimension 4, those of the model 5"):
        ServedIndex(index, MODEL, WIDTH + 1)
    with pytest.raises(MissingFileError, match="there is no index in"):
        ServedIndex(tmp_path / "nothing", MODEL, WIDTH)
    (index / "entries-0.jsonl").write_text("x" * (index / "entries-0.jsonl").stat().st_size)
    with pytest.raises(WorkdirError, match="the index is damaged"):
        ServedIndex(index, MODEL, WIDTH)


def test_searches_find_the_nearest_images_although_the_index_changes(folder, tmp_path):
    paths = [folder / "sub" / "wide.png", tmp_path / "secret.png", None]
    index = make_index(tmp_path / "index", paths)
    served = ServedIndex(index, MODEL, WIDTH, StoredImages(str(folder), LIMITS))
    with open_for_writing(index, WIDTH, MODEL) as writer:
        writer.drop(np.array([True, False, False]))  # rewrites the files
    assert len(ImageIndex(index)) == 2
    queries = np.eye(WIDTH, dtype=np.float32)[:2]
    first, second = served.search(queries)
    assert ([match.row for match in first], first[0].score) == ([0, 1, 2], 1.0) and second[0].row == 1
    described = [served.get(row) for row in range(3)]
    assert [image.name for image in described] == ["sub/wide.png", "secret.png", "2"]
    assert [image.is_served for image in described] == [True, False, False]
    assert described[1].caption == "caption 1"
    assert served.describe() == {"images": 3, "captions": True, "thumbnails": True, "max_results": 100}
    assert served.make_thumbnail(0).content
    for row in (1, 2, 3, -1):
        with pytest.raises(ThumbnailError):
            served.make_thumbnail(row)
    with pytest.raises(ThumbnailError, match="serves no images"):
        ServedIndex(index, MODEL, WIDTH).make_thumbnail(0)


def test_an_empty_index_has_no_results(tmp_path):
    served = ServedIndex(make_index(tmp_path / "index", []), MODEL, WIDTH)
    served.warm_up(WIDTH)
    assert served.search(np.eye(WIDTH, dtype=np.float32)[:1]) == [()]
    assert not served.describe()["captions"]
