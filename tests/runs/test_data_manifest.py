"""A resumed run names what changed in its data, and ignores where the data is and when it was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from caption_jax.errors import WorkdirError
from caption_jax.runs.data_manifest import FILE_NAME, find_changes, make_manifest, read_manifest, write_manifest
from input_pipeline.data_spec import DataSpec
from input_pipeline.records import Record, Split
from input_pipeline.sources import open_splits


def read_splits(folder: Path) -> dict[str, Split]:
    return open_splits(DataSpec(source="folder", root=str(folder)))


@pytest.fixture
def data(tmp_path, small_images) -> Path:
    return Path(shutil.copytree(small_images, tmp_path / "data"))


@pytest.fixture
def changes(data, tmp_path) -> Callable[[], list[str]]:
    """A function that returns what changed since the start of the test."""
    workdir = epath.Path(tmp_path)
    write_manifest(workdir, make_manifest(read_splits(data)))
    return lambda: find_changes(read_manifest(workdir), make_manifest(read_splits(data)))


def edit_captions(data: Path, old: str, new: str, count: int = -1) -> None:
    path = data / "captions.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_copies_of_the_data_are_the_same(data, changes, tmp_path):
    assert changes() == []
    for path in (data / "images").iterdir():
        os.utime(path, (1, 1))
    moved = shutil.move(data, tmp_path / "elsewhere")
    shutil.copytree(moved, data)
    assert changes() == []


def test_changes_are_named_with_their_images(data, changes):
    edit_captions(data, "00.png,A red box", "00.png,A green box")
    (data / "images" / "08.png").write_bytes((data / "images" / "08.png").read_bytes() + b"\0")
    content = bytearray((data / "images" / "01.png").read_bytes())
    content[60] ^= 1  # the same size
    (data / "images" / "01.png").write_bytes(content)
    assert changes() == [
        "train: 1 image has other captions: 00.png",
        "train: 1 image was replaced (its contents differ): 01.png",
        "val: 1 image was replaced (its size differs): 08.png",
    ]


def test_missing_new_and_moved_images_are_named(data, changes):
    edit_captions(data, '00.png,A red box on the left.,train\n00.png,"on the left, a red box",train\n', "")
    edit_captions(data, '09.png,A green box on the right.,val\n09.png,"on the right, a green box",val\n', "")
    edit_captions(data, ",test", ",train")
    assert changes() == [
        "train: 1 image is missing: 00.png",
        "train: 2 images are new: 10.png, 11.png",
        "val: 1 image is missing: 09.png",
    ]
    edit_captions(data, ",val", ",train")
    assert changes()[-1] == "the split val is missing"


def test_long_lists_are_shortened_and_orders_compared():
    def split(ids: list[int], caption: str = "a dog") -> dict[str, Split]:
        return {"train": Split("train", [Record(lambda: b"pixels", (caption,), image_id) for image_id in ids])}

    old = make_manifest(split(list(range(1000))))
    assert find_changes(old, make_manifest(split(list(range(1000))))) == []
    assert find_changes(old, make_manifest(split(list(range(1000)), "a cat"))) == [
        "train: 1,000 images have other captions: 0, 1, 2, ..."
    ]
    assert find_changes(old, make_manifest(split([1, 0, *range(2, 1000)]))) == [
        "train: the order of the images changed"
    ]


def test_changes_of_the_test_split_do_not_matter(data, changes):
    (data / "images" / "10.png").write_bytes(b"")
    assert changes() == []


def test_a_damaged_manifest_is_named(tmp_path, data):
    workdir = epath.Path(tmp_path)
    assert read_manifest(workdir) is None
    write_manifest(workdir, make_manifest(read_splits(data)))
    content = (tmp_path / FILE_NAME).read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], b"\0" * len(content)):
        (tmp_path / FILE_NAME).write_bytes(damaged)
        with pytest.raises(WorkdirError, match=f"{FILE_NAME} is damaged .* delete it to resume"):
            read_manifest(workdir)
