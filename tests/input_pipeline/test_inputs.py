"""Stored features in batches: those of each image, all views equally often, and equal after a resume."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, Letters, assert_same_batch, data_config, make_split

from input_pipeline import inputs
from input_pipeline.batches import choose_captions, train_batches
from input_pipeline.inputs import FeatureFiles, StoredFeatures, choose_view, fingerprint
from input_pipeline.records import DataError, Record, Split

IMAGES, VIEWS = 11, 3


@pytest.fixture
def files(tmp_path, monkeypatch) -> FeatureFiles:
    """Features with values (image number, view) in blocks of four images. The sixth image is unreadable."""
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 4 * VIEWS * 2 * 4)
    files = FeatureFiles(tmp_path, IMAGES, VIEWS, (1, 2), np.dtype(np.float32))
    for block in files.blocks:
        rows = files.image_indices(block)
        features = np.array([[[[row, view]] for view in range(VIEWS)] for row in rows], np.float32)
        assert not files.has_block(block)
        files.write(block, features, {5: "is torn"} if 5 in rows else {})
        assert files.has_block(block)
    assert list(files.blocks) == [0, 1, 2] and list(files.image_indices(2)) == [8, 9, 10]
    return files


def batches(files: FeatureFiles):
    split = make_split(IMAGES)
    features = StoredFeatures(files, split, seed=0)
    return train_batches(split, PREPROCESSING, Letters(), data_config(batch_size=IMAGES), 0, features=features)


def test_batches_pair_features_with_captions(files):
    iterator = batches(files)
    for batch in itertools.islice(iterator, 3):
        assert batch["features"].shape == (IMAGES, 1, 2) and "image" not in batch
        for row, index in enumerate(batch["index"]):
            assert batch["mask"][row] == (index != 5)
            assert batch["features"][row, 0, 0] == index or index == 5
            assert Letters().decode(batch["tokens"][row, 0]).split("/")[0] == str(index)
    iterator.close()
    assert iterator.problems == {"image 1005": "image 1005: is torn"}


def test_epochs_cycle_through_the_views_of_an_image(files):
    iterator = batches(files)
    counts = np.zeros((IMAGES, VIEWS), int)
    firsts = set()
    for epoch, batch in enumerate(itertools.islice(iterator, 2 * VIEWS)):
        for index, features in zip(batch["index"], batch["features"], strict=True):
            if index != 5:
                counts[index, int(features[0, 1])] += 1
                firsts |= {int(features[0, 1])} if epoch == 0 else set()
    iterator.close()
    assert (np.delete(counts, 5, 0) == 2).all()
    assert firsts == set(range(VIEWS))  # images have different views in an epoch


def test_views_are_independent_of_captions():
    epochs_and_images = itertools.product(range(5), range(200))
    pairs = {
        (choose_view(5, 0, epoch, image), *choose_captions(5, 1, 0, epoch, image)) for epoch, image in epochs_and_images
    }
    assert len(pairs) == 25


def test_resuming_at_any_step_gives_equal_features(files):
    uninterrupted, resumed = batches(files), batches(files)
    next(uninterrupted)
    resumed.set_state(uninterrupted.get_state())
    for one, two in zip(itertools.islice(uninterrupted, 3), resumed, strict=False):
        assert_same_batch(one, two)
    uninterrupted.close()
    resumed.close()


def test_a_missing_block_is_reported(files):
    (files.folder / "block_00001.npy").unlink()
    with pytest.raises(DataError, match=r"block_00001\.npy is missing: set config\.data\.feature_cache\.folder"):
        batches(files)


def test_a_large_cache_has_larger_blocks():
    small, large = (FeatureFiles(Path(), images, 4, (14, 14, 112), np.dtype(np.float16)) for images in (6_000, 600_000))
    assert small.images_per_block * small.bytes_per_image <= inputs.BLOCK_BYTES
    assert len(large.blocks) <= inputs.MAX_BLOCKS
    for files in (small, large):
        indices = [files.image_indices(block) for block in files.blocks]
        assert indices[0][0] == 0 and indices[-1][-1] == files.images - 1
        assert all(after[0] == before[-1] + 1 for before, after in itertools.pairwise(indices))


def test_the_fingerprint_depends_on_the_images_and_their_order(tmp_path):
    split = make_split(9)
    assert fingerprint(split) == fingerprint(make_split(9, captions=2))
    others = [
        make_split(8),
        make_split(9, bad=(4,)),
        Split("train", split.records[::-1]),
        Split("train", [*split.records[:8], Record(Path(tmp_path / "absent"), ("a",), 1008)]),
    ]
    assert len({fingerprint(one) for one in (split, *others)}) == 5
