"""Shapes of packed captions for a run whose data is unknown."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from caption_jax.specs import RunSpec
from caption_jax.training.batch_placer import choose_packing, list_block_lengths
from input_pipeline.block_layout import BlockLayout

ASSUMED_CAPTIONS = 5  # captions per image if `data.captions_per_image` is 0, as in COCO and Flickr
_ASSUMED_FRACTION = 1 / 3  # mean length of a caption as a fraction of `data.max_length`
_IMAGES_PER_EXTRA_BLOCK = 32


def assume_layout(spec: RunSpec, mesh: jax.sharding.Mesh, images: int) -> BlockLayout | None:
    """Returns the assumed blocks of a row with `images` images; None if captions are not packed into blocks."""
    if choose_packing(spec, mesh) != "blocks":
        return None
    captions = spec.data.captions_per_image or ASSUMED_CAPTIONS
    padded = captions * (spec.data.max_length - 1)
    length = list_block_lengths(spec, mesh, math.ceil(padded * _ASSUMED_FRACTION))[-1]
    layout = BlockLayout(length, math.ceil(images / _IMAGES_PER_EXTRA_BLOCK))
    return None if spec.train.packing == "auto" and layout.count_tokens(images) >= images * padded else layout


def packed_shapes(layout: BlockLayout, rows: int, images: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the arrays of `input_pipeline.packing.pack_blocks`, for `images` images per row."""
    shape = jax.ShapeDtypeStruct((rows, images + layout.extra, layout.length), jnp.int32)
    return dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), shape)


def describe_packing(spec: RunSpec, mesh: jax.sharding.Mesh, images: int) -> str:
    """Returns the assumption about packing for a report; "" if captions are not packed.

    Args:
        spec: spec of the run.
        mesh: the device mesh.
        images: number of images per device.
    """
    if choose_packing(spec, mesh) == "always":
        return "none: includes computation on padding that the run avoids"
    layout = assume_layout(spec, mesh, max(images // spec.optimizer.grad_accum_steps, 1))
    if layout is None:
        return ""
    return (
        f"blocks of {layout.length} tokens, and {layout.extra} more of them per device than images; "
        "a run counts the tokens of its captions"
    )
