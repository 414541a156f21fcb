from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program_stats import compute_stats

from caption_jax.augment import augment
from caption_jax.parameters.sharding import batch_sharding, make_mesh, put_batch
from caption_jax.specs import AugmentSpec, MeshSpec

ALL_AUGMENTATIONS = {
    "flip": True,
    "min_crop_scale": 0.4,
    "max_aspect": 1.4,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
}


def make_images(count: int = 8, size: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def make_gradient_images(count: int, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return np.broadcast_to(np.stack([255 * x, 255 * y, 127 * (x + y)], -1), (count, size, size, 3)).astype(np.float32)


def run_augment(key, images, spec: AugmentSpec, rows=None) -> np.ndarray:
    return np.asarray(jax.jit(lambda key, images, rows: augment(key, images, spec, rows))(key, images, rows))


def test_without_augmentation_pixels_are_unchanged():
    images = make_images()
    out = run_augment(jax.random.key(0), images, AugmentSpec())
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, images.astype(np.float32))


def test_flip_mirrors_about_half_of_the_images_exactly():
    images = make_images(64, 6)
    out = run_augment(jax.random.key(1), images, AugmentSpec(flip=True))
    unchanged = np.array([np.array_equal(a, b) for a, b in zip(out, images, strict=True)])
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(out, images, strict=True)])
    assert np.all(unchanged ^ mirrored)
    assert 16 < mirrored.sum() < 48


def test_crops_respect_the_limits_on_area_and_aspect_ratio():
    size, spec = 64, AugmentSpec(min_crop_scale=0.5, max_aspect=1.25)
    # Red encodes the column and green the row, so their ranges are the width and height of the crop.
    images = make_gradient_images(200, size)
    out = run_augment(jax.random.key(3), images, spec)
    extent = np.ptp(out, axis=(1, 2)) / np.ptp(images[0], axis=(0, 1))
    width, height = np.minimum(extent[:, 0], 1), np.minimum(extent[:, 1], 1)
    assert (width * height).min() > 0.44 and (width * height).max() <= 1
    assert (width * height).max() > 0.9 > (width * height).min() + 0.3
    assert (width / height).max() < 1.3 and (width / height).min() > 1 / 1.3
    assert np.ptp(out.mean((1, 2))[:, 0]) > 20  # crops have different positions


def test_crops_of_a_uniform_image_are_uniform():
    images = np.full((16, 12, 12, 3), 200, np.uint8)
    out = run_augment(jax.random.key(0), images, AugmentSpec(min_crop_scale=0.1, max_aspect=3.0, flip=True))
    np.testing.assert_allclose(out, 200, atol=1e-3)


def test_brightness_scales_each_image_by_its_own_factor():
    images = np.full((64, 4, 4, 3), 100, np.uint8)
    factors = run_augment(jax.random.key(0), images, AugmentSpec(brightness=0.2))[:, 0, 0, 0] / 100
    assert factors.min() >= 0.8 and factors.max() <= 1.2
    assert np.ptp(factors) > 0.3 and len(np.unique(factors)) > 60


def test_contrast_preserves_the_mean_brightness():
    grey = np.repeat(make_images(16, 8)[..., :1] // 2 + 64, 3, -1)
    out = run_augment(jax.random.key(0), grey, AugmentSpec(contrast=0.4))
    np.testing.assert_allclose(out.mean((1, 2, 3)), grey.mean((1, 2, 3)), rtol=1e-4)
    ratio = out.std((1, 2, 3)) / grey.std((1, 2, 3))
    assert ratio.min() >= 0.6 and ratio.max() <= 1.4 and np.ptp(ratio) > 0.4


def test_saturation_preserves_grey_pixels_and_luma():
    grey = np.repeat(make_images(8)[..., :1], 3, -1)
    np.testing.assert_allclose(run_augment(jax.random.key(0), grey, AugmentSpec(saturation=0.5)), grey, atol=1e-3)
    colours = make_images(8) // 2 + 64
    out = run_augment(jax.random.key(0), colours, AugmentSpec(saturation=0.5))
    luma_weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(out @ luma_weights, colours @ luma_weights, atol=1e-2)
    assert np.abs(out - colours).max() > 5


def test_pixels_are_clipped_to_their_range():
    out = run_augment(jax.random.key(0), make_images(32), AugmentSpec(brightness=1.0, contrast=1.0, saturation=1.0))
    assert float(out.min()) >= 0 and float(out.max()) <= 255


def test_the_augmentation_of_an_image_depends_only_on_the_key_and_its_row():
    images, spec, key = make_images(), AugmentSpec(**ALL_AUGMENTATIONS), jax.random.key(5)
    full = run_augment(key, images, spec)
    subset = run_augment(key, images[3:5], spec, rows=jnp.array([3, 4]))
    np.testing.assert_allclose(subset, full[3:5], atol=1e-3)
    others = np.concatenate([images[:1], 255 - images[1:]])
    np.testing.assert_allclose(run_augment(key, others, spec)[0], full[0], atol=1e-3)
    assert np.abs(run_augment(jax.random.key(6), images, spec) - full).max() > 1
    duplicates = run_augment(key, np.stack([images[0]] * 2), spec)
    assert np.abs(duplicates[0] - duplicates[1]).max() > 1


def test_eight_devices_give_the_result_of_one_without_communication():
    images, key = make_images(16), jax.random.key(2)
    mesh = make_mesh(MeshSpec())
    assert mesh.shape["data"] == 8
    step = jax.jit(lambda key, x: augment(key, x, AugmentSpec(**ALL_AUGMENTATIONS)))
    placed = put_batch(images, mesh)
    sharded = step(key, placed)
    assert sharded.sharding.is_equivalent_to(batch_sharding(mesh), 4)
    np.testing.assert_allclose(sharded, step(key, images), atol=1e-3)
    lowered = step.lower(key, placed)
    assert not compute_stats(lowered, lowered.compile(), mesh, images=2)["collectives"]


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"min_crop_scale": 0.0}, "min_crop_scale"), ({"max_aspect": 0.5}, "max_aspect"), ({"contrast": 1.5}, "contrast")],
)
def test_settings_out_of_range_are_rejected(settings, key):
    with pytest.raises(ValueError, match=key):
        AugmentSpec(**settings)
