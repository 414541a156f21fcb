"""Image augmentation on the device, inside the training step: random crops, horizontal flips and colour jitter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32

from caption_jax.ops.implementations import FAST, Ops
from caption_jax.specs import AugmentSpec

# Weights of red, green and blue in greyscale (ITU-R BT.601), as in PIL.
_GREY_WEIGHTS = (0.299, 0.587, 0.114)


def augment(
    key: Key[Array, ""] | UInt32[Array, "2"],
    images: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"],
    spec: AugmentSpec,
    rows: Int[Array, " batch"] | None = None,
    ops: Ops = FAST,
) -> Float[Array, "batch height width 3"]:
    """Augments each image independently, and returns float32 pixels in [0, 255].

    The augmentation of an image depends only on `key` and its row index, so neither sharding nor the other images of
    the batch affect it. If all augmentations are disabled, the result is the input cast to float32.

    A crop covers a fraction of the image's area between `min_crop_scale` and 1. Its aspect ratio relative to the image
    is log-uniform between 1 / `max_aspect` and `max_aspect`. It is resized to the size of the image with bilinear
    interpolation. Crops are never larger than the image, so resizing only upsamples and needs no antialiasing. `flip`
    mirrors images horizontally with probability 0.5. `brightness`, `contrast` (around the mean grey level of the image)
    and `saturation` are applied in this order, each with a factor in [1 - x, 1 + x] for a setting of x. This is the
    same as torchvision's ColorJitter, except that pixels are clipped to [0, 255] only once, at the end.

    Args:
        key: typed or raw PRNG key of this step.
        images: pixels in [0, 255], uint8 or float.
        spec: the `augment` section of a run's spec.
        rows: index of each image in the whole batch, if `images` is a slice of it; 0, 1, ... if None.
        ops: implementation of the operations.
    """
    rows = jnp.arange(images.shape[0]) if rows is None else rows
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    crop_keys, flip_keys, colour_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
    flips = jax.vmap(jax.random.bernoulli)(flip_keys) if spec.flip else jnp.zeros(len(rows), bool)
    pixels = _jitter_colours(colour_keys, images, spec) if spec.has_jitter else images.astype(jnp.float32)
    if spec.has_crops:
        pixels = _random_crop(crop_keys, pixels, flips, spec, ops)
    elif spec.flip:
        pixels = jnp.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
    return jnp.clip(pixels, 0, 255) if spec.has_jitter else pixels


def _random_crop(keys, pixels, flips, spec, ops):
    samples = jax.vmap(lambda k: jax.random.uniform(k, (4,)))(keys)
    area = spec.min_crop_scale + (1 - spec.min_crop_scale) * samples[:, 0]
    root_aspect = jnp.exp((samples[:, 1] - 0.5) * jnp.log(spec.max_aspect))
    height = jnp.minimum(jnp.sqrt(area) / root_aspect, 1.0)  # as a fraction of the image height
    width = jnp.minimum(jnp.sqrt(area) * root_aspect, 1.0)
    top, left = (1 - height) * samples[:, 2], (1 - width) * samples[:, 3]
    # Flipped crops read columns from right to left, which avoids a separate pass over the image.
    left, width = jnp.where(flips, left + width, left), jnp.where(flips, -width, width)
    return ops.resample(pixels, (top, height), (left, width))


def _jitter_colours(keys, images, spec):
    """Jitters colours without clipping. This is affine in the pixels, so it commutes with interpolation."""
    limits = jnp.array([spec.brightness, spec.contrast, spec.saturation], jnp.float32)
    factors = jax.vmap(lambda k: jax.random.uniform(k, (3,), minval=-1, maxval=1))(keys) * limits + 1
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    pixels = images.astype(jnp.float32) * brightness
    if spec.contrast:
        centre = _convert_to_grey(_compute_mean_colour(images)) * brightness
        pixels = centre + contrast * (pixels - centre)
    if spec.saturation:
        grey = _convert_to_grey(pixels)
        pixels = grey + saturation * (pixels - grey)
    return pixels


def _compute_mean_colour(images):
    """Returns the mean of each channel, [batch, 1, 1, 3].

    Integers are summed as int32, so the order of summation has no effect. Summing whole rows of pixels first is much
    faster on a CPU.
    """
    batch, height, width, channels = images.shape
    pixels = images.astype(jnp.int32 if jnp.issubdtype(images.dtype, jnp.integer) else jnp.float32)
    column_sums = pixels.reshape(batch, height, width * channels).sum(1)
    return column_sums.reshape(batch, 1, width, channels).sum(2, keepdims=True) / (height * width)


def _convert_to_grey(pixels):
    # This is an explicit sum because XLA would compile a product with a vector into a matrix multiplication.
    red, green, blue = (weight * pixels[..., i : i + 1] for i, weight in enumerate(_GREY_WEIGHTS))
    return red + green + blue
