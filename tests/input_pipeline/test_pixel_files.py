"""Batches with stored pixels equal those with decoded images. Blocks are written in place, in any order."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_split

from input_pipeline import inputs
from input_pipeline.batches import train_batches
from input_pipeline.images import ImageError
from input_pipeline.inputs import Pixels
from input_pipeline.pixel_files import PixelFiles, StoredPixels
from input_pipeline.records import DataError

IMAGES, UNREADABLE = 11, 5
SPLIT = make_split(IMAGES, unreadable=(UNREADABLE,))


@pytest.fixture
def files(tmp_path, monkeypatch) -> PixelFiles:
    """An empty file of pixels with blocks of four images."""
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 4 * 4 * 4 * 3)
    files = PixelFiles(tmp_path, IMAGES, 4)
    files.create()
    return files


def write_block(files: PixelFiles, block: int) -> None:
    pixels, problems = np.zeros((len(files.image_indices(block)), *files.shape), np.uint8), {}
    decoded = Pixels(SPLIT, PREPROCESSING)
    for row, index in enumerate(files.image_indices(block)):
        try:
            pixels[row] = decoded.load(index)
        except ImageError as error:
            problems[index] = error.reason
    files.write(block, pixels, problems)


def write_all(files: PixelFiles) -> StoredPixels:
    for block in reversed(files.blocks):
        assert not files.has_block(block)
        write_block(files, block)
        assert files.has_block(block)
    return StoredPixels(files, SPLIT)


def make_batches(stored: StoredPixels | None = None, batch_size: int = 4, workers: int = 2, **processes):
    data = make_data_spec(batch_size=batch_size, workers=workers, captions_per_image=2)
    return train_batches(SPLIT, PREPROCESSING, CharacterVocabulary(), data, 0, stored=stored, **processes)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("process", [{}, {"process_index": 1, "process_count": 2}])
def test_batches_equal_those_without_the_cache(files, workers, process):
    stored, decoded = make_batches(write_all(files), workers=workers, **process), make_batches(**process)
    for _ in range(8):  # several epochs, and batches across their boundaries
        assert_equal_batches(next(stored), next(decoded))
    assert stored.get_state() == decoded.get_state()
    assert stored.problems == decoded.problems and list(stored.problems) == ["image 1005"]
    assert stored.problem_count == decoded.problem_count
    stored.close()
    decoded.close()


def test_a_run_can_continue_with_or_without_the_cache(files):
    decoded, stored, resumed = make_batches(), make_batches(write_all(files)), make_batches()
    next(decoded)
    stored.set_state(decoded.get_state())
    for _ in range(3):
        assert_equal_batches(next(stored), next(decoded))
    resumed.set_state(stored.get_state())
    assert_equal_batches(next(resumed), next(decoded))
    for batches in (decoded, stored, resumed):
        batches.close()


def test_stored_batches_are_not_overwritten_and_do_not_refer_to_the_file(files):
    batches = make_batches(write_all(files))
    first = next(batches)
    copy = {key: value.copy() for key, value in first.items()}
    next(batches)
    first["image"][:] = 0
    assert copy["image"].any() and StoredPixels(files, SPLIT).load(1).any()
    batches.close()


def test_unreadable_images_raise_the_error_of_decoding(files):
    stored = write_all(files)
    errors = []
    for pixels in (stored, Pixels(SPLIT, PREPROCESSING)):
        with pytest.raises(ImageError) as error:
            pixels.load(UNREADABLE)
        errors.append(str(error.value))
    assert errors[0] == errors[1] and "image 1005" in errors[0]


def test_the_file_has_its_full_size_but_allocates_no_space(files):
    assert np.load(files.path, mmap_mode="r").shape == (IMAGES, 4, 4, 3)
    large = PixelFiles(files.folder / "large", 100_000, 64)
    large.folder.mkdir()
    large.create()
    assert np.load(large.path, mmap_mode="r").shape == (100_000, 64, 64, 3)
    assert large.path.stat().st_blocks * 512 < 2**20


def test_creating_the_file_again_keeps_its_blocks(files):
    write_block(files, 1)
    before = files.path.read_bytes()
    files.create()
    assert files.has_block(1) and files.path.read_bytes() == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 200)])
def test_the_blocks_of_a_file_that_was_deleted_or_truncated_are_missing(files, damage):
    write_block(files, 0)
    damage(files.path)
    assert not files.has_block(0)
    files.create()
    assert not files.has_block(0)


def test_incomplete_pixels_are_rejected(files):
    write_block(files, 0)
    with pytest.raises(DataError, match=r"incomplete .*block_00001\.json.*: set config\.data\.pixel_cache\.folder"):
        StoredPixels(files, SPLIT)


def test_a_block_whose_write_fails_is_missing(files, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_block(files, 0)
    assert not files.has_block(0)
    write_all(files)
