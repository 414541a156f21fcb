"""Random crops, mirroring and colour jitter, on the device and inside the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from caption_jax.ops.forms import FAST, Ops
from caption_jax.specs import AugmentSpec

# Shares of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in PIL's grey images.
_GREY = (0.299, 0.587, 0.114)


def augment(
    key: Array,
    images: UInt8[Array, "batch height width 3"],
    spec: AugmentSpec,
    rows: Int[Array, " batch"] | None = None,
    ops: Ops = FAST,
) -> Float[Array, "batch height width 3"]:
    """Augments each image on its own; the result is float32 in 0..255.

    What happens to an image depends on `key` and its row number only, so neither sharding nor the rest of the batch
    changes it. With everything off, the result is the input as float32, bit for bit.

    A crop has `min_crop_scale` to 1 of the image's area and an aspect ratio of 1 / `max_aspect` to `max_aspect` times
    the image's (log-uniform), and is brought back to the image's size with bilinear interpolation. A crop is never
    larger than the image, so this only ever enlarges and needs no low-pass filter. `flip` mirrors every other image
    on average. `brightness`, `contrast` (around the whole image's mean grey) and `saturation` scale by a factor in
    [1 - x, 1 + x], in this order, as in torchvision's ColorJitter but clipped to 0..255 once, at the end.

    Args:
        key: typed or raw PRNG key of this step.
        images: pixels in 0..255, uint8 or float.
        spec: `augment` of a run's spec.
        rows: number of each image within the whole batch, where `images` is a slice of it; 0, 1, .. if not given.
        ops: form of the resampling.
    """
    rows = jnp.arange(images.shape[0]) if rows is None else rows
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    crop_keys, flip_keys, colour_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
    flips = jax.vmap(jax.random.bernoulli)(flip_keys) if spec.flip else jnp.zeros(len(rows), bool)
    pixels = _jitter(colour_keys, images, spec) if spec.jitters else images.astype(jnp.float32)
    if spec.crops:
        pixels = _random_crop(crop_keys, pixels, flips, spec, ops)
    elif spec.flip:
        pixels = jnp.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
    return jnp.clip(pixels, 0, 255) if spec.jitters else pixels


def _random_crop(keys, pixels, flips, spec, ops):
    draw = jax.vmap(lambda k: jax.random.uniform(k, (4,)))(keys)
    area = spec.min_crop_scale + (1 - spec.min_crop_scale) * draw[:, 0]
    root_aspect = jnp.exp((draw[:, 1] - 0.5) * jnp.log(spec.max_aspect))
    height = jnp.minimum(jnp.sqrt(area) / root_aspect, 1.0)  # as shares of the image's sides
    width = jnp.minimum(jnp.sqrt(area) * root_aspect, 1.0)
    top, left = (1 - height) * draw[:, 2], (1 - width) * draw[:, 3]
    # A mirrored crop reads its columns from right to left: no pass of its own over the image.
    left, width = jnp.where(flips, left + width, left), jnp.where(flips, -width, width)
    return ops.resample(pixels, (top, height), (left, width))


def _jitter(keys, images, spec):
    """Scaled pixels, not yet clipped: each a sum of its own image's colours, which interpolation leaves as it is."""
    limits = jnp.array([spec.brightness, spec.contrast, spec.saturation], jnp.float32)
    factors = jax.vmap(lambda k: jax.random.uniform(k, (3,), minval=-1, maxval=1))(keys) * limits + 1
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    pixels = images.astype(jnp.float32) * brightness
    if spec.contrast:
        centre = _grey(_mean_colour(images)) * brightness
        pixels = centre + contrast * (pixels - centre)
    if spec.saturation:
        grey = _grey(pixels)
        pixels = grey + saturation * (pixels - grey)
    return pixels


def _mean_colour(images):
    """Mean of each channel [batch, 1, 1, 3]; of integers in whole numbers, so that it is exact in any order."""
    batch, height, width, channels = images.shape
    wide = images.astype(jnp.int32 if jnp.issubdtype(images.dtype, jnp.integer) else jnp.float32)
    columns = wide.reshape(batch, height, width * channels).sum(1)  # long rows first: far faster on CPU
    return columns.reshape(batch, 1, width, channels).sum(2, keepdims=True) / (height * width)


def _grey(pixels):
    # Sums over three channels rather than a product with a vector, which would become a matrix product.
    red, green, blue = (share * pixels[..., i : i + 1] for i, share in enumerate(_GREY))
    return red + green + blue
