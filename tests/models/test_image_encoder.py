"""The image encoder: memory for the decoder, and its dependence on the contents and positions of image cells."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.image_encoder import ImageEncoder

FEATURES = jnp.asarray(np.random.RandomState(0).randn(2, 3, 4, 16), jnp.float32)


def project(features=FEATURES, train=False, **settings):
    encoder = ImageEncoder(EfficientNet("micro"), width=8, **settings)

    def run(features):
        variables = encoder.init(jax.random.key(0), FEATURES, train=False, method="project")
        return encoder.apply(variables, features, train=train, rngs={"dropout": jax.random.key(1)}, method="project")

    return jax.jit(run)(features)


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
@pytest.mark.parametrize(("memory", "length"), [("grid", 12), ("vector", 1), ("both", 13)])
def test_memory_length_and_vector_match_the_settings(memory, length, pooling):
    out = project(image_memory=memory, vector=pooling)
    assert out.memory.shape == (2, length, 8)
    if memory == "grid":
        assert out.vector is None
    else:
        assert out.vector.shape == (2, 8)
        np.testing.assert_array_equal(out.memory[:, -1], out.vector)


def test_memory_positions_are_cells_in_row_major_order():
    changed = project(FEATURES.at[0, 1, 2].add(1.0)).memory != project().memory
    assert np.flatnonzero(np.asarray(changed).any(-1)).tolist() == [1 * 4 + 2]


def test_equal_cells_differ_by_position():
    memory = project(jnp.ones_like(FEATURES)).memory[0]
    assert len(np.unique(np.asarray(memory).round(5), axis=0)) == 12


def test_the_flattened_vector_depends_on_positions_unlike_the_mean():
    mirrored = FEATURES[:, :, ::-1]
    for pooling, is_equal in (("mean", True), ("flatten", False)):
        original, changed = (
            project(features, image_memory="vector", vector=pooling).vector for features in (FEATURES, mirrored)
        )
        assert np.allclose(original, changed, atol=1e-5) == is_equal


def test_memory_dropout_is_active_in_training_only():
    np.testing.assert_array_equal(project(memory_dropout=0.5).memory, project().memory)
    dropped = np.asarray(project(train=True, memory_dropout=0.5).memory)
    assert 0.3 < (dropped == 0).mean() < 0.7


def test_cell_dropout_keeps_some_unchanged_cells_of_each_image_in_training():
    whole = np.asarray(project().memory)
    np.testing.assert_array_equal(project(cell_dropout=0.5).memory, whole)
    kept = np.asarray(project(train=True, cell_dropout=0.5, image_memory="both").memory)
    assert kept.shape == (2, 6 + 1, 8)  # the vector is always kept
    cells = [[int(np.abs(whole[i] - cell).max(-1).argmin()) for cell in kept[i, :-1]] for i in range(2)]
    np.testing.assert_allclose(kept[:, :-1], np.stack([whole[i, cells[i]] for i in range(2)]), rtol=1e-5, atol=1e-6)
    assert all(row == sorted(set(row)) for row in cells)
    assert cells[0] != cells[1]


def test_cell_dropout_keeps_at_least_one_cell():
    assert project(train=True, cell_dropout=0.99).memory.shape == (2, 1, 8)


def test_the_encoder_has_the_expected_outputs_and_parameters():
    encoder = ImageEncoder(EfficientNet("micro", norm_group_size=2), width=8, image_memory="both")
    images = jax.ShapeDtypeStruct((4, 32, 48, 3), jnp.float32)
    init = functools.partial(encoder.init_with_output, train=False)
    out, variables = jax.eval_shape(init, jax.random.key(0), images)
    assert out.memory.shape == (4, 4 * 6 + 1, 8)
    assert set(variables["params"]) == {"backbone", "grid", "pooled"}
    assert set(variables["batch_stats"]) == {"backbone"}
    assert jax.tree.structure(out).num_leaves == 2


@pytest.mark.parametrize("settings", [{"image_memory": "cells"}, {"vector": "max"}])
def test_invalid_settings_are_rejected(settings):
    with pytest.raises(ValueError, match=f"model.{next(iter(settings))} is"):
        project(**settings)
