"""Cross-attention over the image for captions of a split, for visualisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from caption_jax.inference.captioning import encode_batch
from caption_jax.inference.image_attention import attend_to_image
from caption_jax.runs.description import RunDescription
from input_pipeline.context import ContextCaptions
from input_pipeline.records import Record

PyTree = Any


def teacher_forced_attention(
    description: RunDescription,
    variables: PyTree,
    pixels: UInt8[np.ndarray, "images size size 3"],
    tokens: Int[np.ndarray, "images length"],
    context: Int[np.ndarray, "images texts text_length"] | None = None,
) -> Float[np.ndarray, "images length memory"]:
    """Computes the cross-attention over the image when predicting each token, averaged over layers and heads.

    The tokens are teacher-forced, so the result does not depend on the decoding method.

    Args:
        description: the run description, from which the model is built.
        variables: the variables of the model.
        pixels: images as returned by `description.preprocessing.load`.
        tokens: token ids of the captions without <s>, padded.
        context: token ids of the context captions, as in a batch.
    """
    model = description.model()

    @jax.jit
    def compute_attention(
        variables: PyTree, pixels: jax.Array, tokens: jax.Array, context: jax.Array | None
    ) -> jax.Array:
        features = encode_batch(model, variables, {"image": pixels, "context": context}, description)
        return attend_to_image(model, variables, features, tokens)

    return jax.device_get(compute_attention(variables, pixels, tokens, context))


def stack_context(
    context: ContextCaptions | None, records: Sequence[Record]
) -> Int32[np.ndarray, "images texts text_length"] | None:
    """Returns the context token ids of the records, as in a batch; None if there is no context or no record."""
    if context is None or not records:
        return None
    return np.stack([context.load(record.image_id) for record in records])
