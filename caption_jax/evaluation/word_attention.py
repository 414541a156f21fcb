"""Cross-attention over the image for each word of a caption, for people to look at."""

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
    context: Int[np.ndarray, "images texts length"] | None = None,
) -> Float[np.ndarray, "images length slots"]:
    """Attention over the image while each token was predicted, averaged over layers and heads.

    The tokens are teacher forced, so it does not matter which decoding method chose them.

    Args:
        description: the run, from which the model is built.
        variables: the model's variables.
        pixels: images as `description.preprocessing.load` returns them.
        tokens: captions without <s>, padded.
        context: token ids of the captions used as context, as a batch holds them.
    """
    model = description.model()

    @jax.jit
    def run(variables: PyTree, pixels: jax.Array, tokens: jax.Array, context: jax.Array | None) -> jax.Array:
        features = encode_batch(model, variables, {"image": pixels, "context": context}, description)
        attention = Predictor(model, variables, features).attention(tokens[:, None], BOS, PAD)[:, 0]
        return attention[..., : features.image_slots]

    return jax.device_get(run(variables, pixels, tokens, context))


def attention_per_word(
    vocabulary: Vocabulary, tokens: Int[np.ndarray, " length"], attention: Float[np.ndarray, "length slots"]
) -> tuple[list[str], Float[np.ndarray, "words slots"]]:
    """The words of a caption and the attention of each: the mean over the word's tokens."""
    spans = vocabulary.words_with_spans(tokens)
    return [word for word, _, _ in spans], np.array([attention[start:end].mean(axis=0) for _, start, end in spans])


def stack_context(
    context: ContextCaptions | None, records: Sequence[Record]
) -> Int32[np.ndarray, "images slots length"] | None:
    """The context of some images, as a batch holds it; None without context or images."""
    if context is None or not records:
        return None
    return np.stack([context.load(record.image_id) for record in records])
