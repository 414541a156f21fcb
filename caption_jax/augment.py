"""Random crops, mirroring and colour jitter, on the device and inside the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from caption_jax.specs import AugmentSpec

# Shares of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in PIL's grey images.
_GREY = (0.299, 0.587, 0.114)


def augment(
    key: Array,
    images: UInt8[Array, "batch height width 3"],
    spec: AugmentSpec,
    rows: Int[Array, " batch"] | None = None,
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
    """
    rows = jnp.arange(images.shape[0]) if rows is None else rows
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    crop_keys, flip_keys, colour_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
    flips = jax.vmap(jax.random.bernoulli)(flip_keys) if spec.flip else jnp.zeros(len(rows), bool)
    pixels = _jitter(colour_keys, images, spec) if spec.jitters else images.astype(jnp.float32)
    if spec.crops:
        pixels = _random_crop(crop_keys, pixels, flips, spec)
    elif spec.flip:
        pixels = jnp.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
    return jnp.clip(pixels, 0, 255) if spec.jitters else pixels


def _random_crop(keys, pixels, flips, spec):
    draw = jax.vmap(lambda k: jax.random.uniform(k, (4,)))(keys)
    area = spec.min_crop_scale + (1 - spec.min_crop_scale) * draw[:, 0]
    root_aspect = jnp.exp((draw[:, 1] - 0.5) * jnp.log(spec.max_aspect))
    height = jnp.minimum(jnp.sqrt(area) / root_aspect, 1.0)  # as shares of the image's sides
    width = jnp.minimum(jnp.sqrt(area) * root_aspect, 1.0)
    top, left = (1 - height) * draw[:, 2], (1 - width) * draw[:, 3]
    # A mirrored crop reads its columns from right to left: no pass of its own over the image.
    left, width = jnp.where(flips, left + width, left), jnp.where(flips, -width, width)
    return resample(pixels, (top, height), (left, width))


def resample(
    pixels: Float[Array, "batch height width channels"],
    vertical: tuple[Float[Array, " batch"], Float[Array, " batch"]],
    horizontal: tuple[Float[Array, " batch"], Float[Array, " batch"]],
) -> Float[Array, "batch height width channels"]:
    """Enlarges a window of each image to the image's own size, bilinearly with half-pixel centres and held edges.

    Args:
        pixels: the images.
        vertical: start and extent of the window as shares of the height; a negative extent reads backwards.
        horizontal: the same for the width.
    """
    rows = _taps(*vertical, pixels.shape[1])
    columns = _taps(*horizontal, pixels.shape[2])
    # Two taps an output pixel: gathered on CPU; matrix units prefer two small products.
    return jax.lax.platform_dependent(pixels, rows, columns, cpu=_resample_gather, default=_resample_matmul)


def _taps(start, extent, size):
    """Lower source index [batch, size] of each output pixel, and the share [batch, size] of the pixel after it."""
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    source = jnp.clip((start[:, None] + extent[:, None] * centres) * size - 0.5, 0, size - 1)
    lower = jnp.clip(jnp.floor(source), 0, max(size - 2, 0))
    return lower.astype(jnp.int32), source - lower


def _resample_gather(pixels, rows, columns):
    def along(image, taps, axis):
        lower, share = taps
        share = share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        upper = jnp.minimum(lower + 1, image.shape[axis] - 1)
        # Indices are in bounds by construction; checking each of them costs more than the interpolation itself.
        index = (slice(None),) * axis
        low = image.at[(*index, lower)].get(mode="promise_in_bounds")
        high = image.at[(*index, upper)].get(mode="promise_in_bounds")
        return low * (1 - share) + high * share

    return jax.vmap(lambda image, r, c: along(along(image, r, 0), c, 1))(pixels, rows, columns)


def _resample_matmul(pixels, rows, columns):
    def matrix(taps, size):
        lower, share = taps
        distance = jnp.arange(size) - (lower + share)[..., None]
        return jnp.maximum(1 - jnp.abs(distance), 0)

    down = matrix(rows, pixels.shape[1])
    across = matrix(columns, pixels.shape[2])
    pixels = jnp.einsum("bsh,bhwc->bswc", down, pixels)
    return jnp.einsum("btw,bswc->bstc", across, pixels)


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
