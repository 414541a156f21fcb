"""Cross-attention over the image for each word of a caption, for visualisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from caption_jax.decoding.predictor import Predictor
from caption_jax.inference.captioning import encode_batch
from caption_jax.runs.description import RunDescription
from input_pipeline.context import ContextCaptions
from input_pipeline.records import Record
from input_pipeline.special_tokens import BOS, PAD
from input_pipeline.tokenizer import Vocabulary

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
        attention = Predictor(model, variables, features).compute_attention(tokens[:, None], BOS, PAD)[:, 0]
        return attention[..., : features.image_memory_length]

    return jax.device_get(compute_attention(variables, pixels, tokens, context))


def attention_per_word(
    vocabulary: Vocabulary, tokens: Int[np.ndarray, " length"], attention: Float[np.ndarray, "length memory"]
) -> tuple[list[str], Float[np.ndarray, "words memory"]]:
    """Returns the words of a caption and their attention, averaged over the tokens of each word."""
    spans = vocabulary.words_with_spans(tokens)
    per_word = np.empty((len(spans), attention.shape[1]), attention.dtype)
    for i, (_, start, end) in enumerate(spans):
        per_word[i] = attention[start:end].mean(axis=0)
    return [word for word, _, _ in spans], per_word


def stack_context(
    context: ContextCaptions | None, records: Sequence[Record]
) -> Int32[np.ndarray, "images texts text_length"] | None:
    """Returns the context token ids of the records, as in a batch; None if there is no context or no record."""
    if context is None or not records:
        return None
    return np.stack([context.load(record.image_id) for record in records])
