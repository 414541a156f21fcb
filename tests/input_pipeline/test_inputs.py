"""Batches contain the stored features of each image. All views occur equally often, even after resuming."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_split

from input_pipeline import inputs
from input_pipeline.batches import train_batches
from input_pipeline.examples import choose_captions
from input_pipeline.inputs import FeatureFiles, StoredFeatures, choose_view, fingerprint
from input_pipeline.records import DataError, Record, Split

IMAGES, VIEWS = 11, 3


@pytest.fixture
def files(tmp_path, monkeypatch) -> FeatureFiles:
    """Features with the values (image index, view) in blocks of four images. The sixth image is unreadable."""
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 4 * VIEWS * 2 * 4)
    files = FeatureFiles(tmp_path, IMAGES, VIEWS, (1, 2), np.dtype(np.float32))
    for block in files.blocks:
        indices = files.image_indices(block)
        features = np.array([[[[index, view]] for view in range(VIEWS)] for index in indices], np.float32)
        assert not files.has_block(block)
        files.write(block, features, {5: "is truncated"} if 5 in indices else {})
        assert files.has_block(block)
    assert list(files.blocks) == [0, 1, 2] and list(files.image_indices(2)) == [8, 9, 10]
    return files


def make_batches(files: FeatureFiles):
    split, data = make_split(IMAGES), make_data_spec(batch_size=IMAGES)
    features = StoredFeatures(files, split, seed=0)
    return train_batches(split, PREPROCESSING, CharacterVocabulary(), data, 0, stored=features)


def test_batches_pair_features_with_captions(files):
    iterator = make_batches(files)
    for batch in itertools.islice(iterator, 3):
        assert batch["features"].shape == (IMAGES, 1, 2) and "image" not in batch
        for row, index in enumerate(batch["index"]):
            assert batch["mask"][row] == (index != 5)
            assert batch["features"][row, 0, 0] == index or index == 5
            assert CharacterVocabulary().decode(batch["tokens"][row, 0]).split("/")[0] == str(index)
    iterator.close()
    assert iterator.problems == {"image 1005": "image 1005: is truncated"}


def test_epochs_cycle_through_the_views_of_each_image(files):
    iterator = make_batches(files)
    counts = np.zeros((IMAGES, VIEWS), int)
    first_epoch_views = set()
    for epoch, batch in enumerate(itertools.islice(iterator, 2 * VIEWS)):
        for index, features in zip(batch["index"], batch["features"], strict=True):
            if index != 5:
                view = int(features[0, 1])
                counts[index, view] += 1
                first_epoch_views |= {view} if epoch == 0 else set()
    iterator.close()
    assert (np.delete(counts, 5, 0) == 2).all()
    assert first_epoch_views == set(range(VIEWS)), "images have different views in the same epoch"


def test_views_and_captions_are_chosen_independently():
    epochs_and_images = itertools.product(range(5), range(200))
    pairs = {
        (choose_view(5, 0, epoch, image), *choose_captions(5, 1, 0, epoch, image)) for epoch, image in epochs_and_images
    }
    assert len(pairs) == 25


def test_resumed_batches_have_the_same_features(files):
    uninterrupted, resumed = make_batches(files), make_batches(files)
    next(uninterrupted)
    resumed.set_state(uninterrupted.get_state())
    for expected, actual in zip(itertools.islice(uninterrupted, 3), resumed, strict=False):
        assert_equal_batches(actual, expected)
    uninterrupted.close()
    resumed.close()


def test_a_missing_block_is_rejected(files):
    (files.folder / "block_00001.npy").unlink()
    with pytest.raises(DataError, match=r"block_00001\.npy is missing: set config\.data\.feature_cache\.folder"):
        make_batches(files)


def test_block_size_grows_with_the_number_of_images():
    small, large = (FeatureFiles(Path(), images, 4, (14, 14, 112), np.dtype(np.float16)) for images in (6_000, 600_000))
    assert small.images_per_block * small.bytes_per_image <= inputs.BLOCK_BYTES
    assert len(large.blocks) <= inputs.MAX_BLOCKS
    for files in (small, large):
        first_indices = [files.image_indices(block)[0] for block in files.blocks]
        last_indices = [files.image_indices(block)[-1] for block in files.blocks]
        assert first_indices[0] == 0 and last_indices[-1] == files.images - 1
        assert [index + 1 for index in last_indices[:-1]] == first_indices[1:]


def test_the_fingerprint_depends_on_the_images_and_their_order(tmp_path):
    split = make_split(9)
    assert fingerprint(split) == fingerprint(make_split(9, num_captions=2))
    different_splits = [
        make_split(8),
        make_split(9, unreadable=(4,)),
        Split("train", split.records[::-1]),
        Split("train", [*split.records[:8], Record(Path(tmp_path / "absent"), ("a",), 1008)]),
    ]
    assert len(set(map(fingerprint, (split, *different_splits)))) == 5
