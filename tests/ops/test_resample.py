"""All implementations of resampling compared with the reference and `jax.image`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from caption_jax.ops import resample as module
from caption_jax.ops.resample import resample, resample_reference


def make_images(count: int = 8, size: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_a_negative_extent_mirrors_the_crop():
    images = jnp.asarray(make_images(4))
    vertical = (jnp.full(4, 0.1), jnp.full(4, 0.7))
    crop = resample(images.astype(jnp.float32), vertical, (jnp.full(4, 0.2), jnp.full(4, 0.5)))
    mirrored = resample(images.astype(jnp.float32), vertical, (jnp.full(4, 0.7), jnp.full(4, -0.5)))
    np.testing.assert_allclose(mirrored, crop[:, :, ::-1], atol=1e-2)


def test_a_crop_of_the_whole_image_is_the_image():
    images = jnp.asarray(make_images(2), jnp.float32)
    out = resample(images, (jnp.zeros(2), jnp.ones(2)), (jnp.zeros(2), jnp.ones(2)))
    np.testing.assert_allclose(out, images, atol=1e-2)


def test_an_enlarged_crop_matches_jax_image():
    images = make_images(1, 20)
    out = resample(jnp.asarray(images, jnp.float32), (jnp.array([0.2]), jnp.array([0.5])), (jnp.zeros(1), jnp.ones(1)))
    scale = jnp.array([1 / 0.5, 1.0])
    shift = -jnp.array([0.2 * 20, 0.0]) * scale
    expected = jax.image.scale_and_translate(images[0].astype(np.float32), (20, 20, 3), (0, 1), scale, shift, "linear")
    np.testing.assert_allclose(out[0], expected, atol=1e-2)


def test_every_implementation_matches_the_reference():
    images = jnp.asarray(make_images(5, 17), jnp.float32)
    uniform = jax.random.uniform(jax.random.key(0), (4, 5))
    windows = (uniform[0] * 0.5, uniform[1] * 0.5), (uniform[2] * 0.5 + 0.5, -uniform[3] * 0.5)
    reference = resample_reference(images, *windows)
    taps = [module._compute_taps(*window, 17) for window in windows]
    np.testing.assert_allclose(module._gather(images, *taps), reference, atol=1e-2)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(module._multiply(images, *taps), reference, atol=1e-2)
