"""Where the decoder attends in an image while it generates the words of a caption."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from caption_jax.inference.caption_program import locate_programs
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.parameters.stored_dtypes import restore
from caption_jax.runs.description import RunDescription
from caption_jax.runtime.cached_program import CachedProgram
from input_pipeline.special_tokens import BOS, PAD
from input_pipeline.tokenizer import Vocabulary

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.image_encoder import ImageFeatures

PyTree = Any


@dataclass(frozen=True)
class WordAttention:
    """Cross-attention over the grid of the image for each word of a caption.

    Attributes:
        words: the words.
        weights: the attention when the word is generated, averaged over its tokens, the layers and the heads. The
            weights of a word sum to one, less its attention to an image vector.
    """

    words: tuple[str, ...]
    weights: Float[np.ndarray, "words rows columns"]


def attend_to_image(
    model: ImageCaptioningModel, variables: PyTree, features: ImageFeatures, tokens: Int[jax.Array, "batch length"]
) -> Float[jax.Array, "batch length memory"]:
    """Computes the cross-attention over the image when predicting each token, averaged over layers and heads.

    A pure function to be traced by `jax.jit`. The tokens are teacher-forced, so the result does not depend on the
    decoding method.

    Args:
        model: the model of the run.
        variables: `params` and `batch_stats`.
        features: output of `encode_for_decoding` or `encode_batch`.
        tokens: token ids of the captions without <s>, padded.
    """
    from caption_jax.decoding.predictor import Predictor  # imports Flax, which cached programs do not need

    attention = Predictor(model, variables, features).compute_attention(tokens[:, None], BOS, PAD)[:, 0]
    return attention[..., : features.image_memory_length]


def make_attention_program(description: RunDescription, workdir: str | os.PathLike[str] | None) -> CachedProgram:
    """Makes the program that computes `attend_to_image`. It is compiled for each batch size when first called.

    Its arguments are the variables of the model, the images [batch, size, size, 3] uint8, the token ids of their
    captions without <s> [batch, length], padded, and their context (see `encode_for_decoding`) or None. It returns the
    attention [batch, length, memory].

    Args:
        description: description of the model.
        workdir: the workdir, for the cache of compiled programs.
    """

    def compute_attention(
        variables: PyTree, pixels: jax.Array, tokens: jax.Array, context: jax.Array | None
    ) -> jax.Array:
        model, variables = description.model(), restore(variables)
        features = encode_for_decoding(model, variables, pixels, context, description)
        return attend_to_image(model, variables, features, tokens)

    folder = locate_programs(workdir)
    return CachedProgram(compute_attention, "attention", description.cache_key(), default_folder=folder)


def find_grid_side(variables: Mapping[str, Any]) -> int:
    """Returns the number of rows and columns of the grid that the decoder attends to; 0 if there is no square grid.

    Args:
        variables: the variables of a model, or their shapes.
    """
    grid = variables["params"].get("image_encoder", {}).get("grid")
    cells = 0 if grid is None else grid["position"].shape[0]
    side = math.isqrt(cells)
    return side if side * side == cells else 0


def attention_per_word(
    vocabulary: Vocabulary, tokens: Int[np.ndarray, " length"], attention: Float[np.ndarray, "length memory"]
) -> tuple[list[str], Float[np.ndarray, "words memory"]]:
    """Returns the words of a caption and their attention, averaged over the tokens of each word."""
    spans = vocabulary.words_with_spans(tokens)
    per_word = np.empty((len(spans), attention.shape[1]), attention.dtype)
    for i, (_, start, end) in enumerate(spans):
        per_word[i] = attention[start:end].mean(axis=0)
    return [word for word, _, _ in spans], per_word
