"""The compiled programs that embed images and texts, for `Captioner` and for serving."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax

from caption_jax.inference.caption_program import locate_programs
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.parameters.stored_dtypes import restore
from caption_jax.runs.description import RunDescription
from caption_jax.runtime.cached_program import CachedProgram
from input_pipeline.special_tokens import PAD

PyTree = Any


class EmbeddingPrograms(NamedTuple):
    """Programs that return unit vectors [batch, width] of the joint embedding. Each batch size is compiled separately.

    Attributes:
        images: takes the variables of the model, and images [batch, size, size, 3] uint8.
        texts: takes the variables of the model, and ids of the text encoder [batch, length], padded with <pad>.
    """

    images: CachedProgram
    texts: CachedProgram


def make_embedding_programs(description: RunDescription, workdir: str | os.PathLike[str] | None) -> EmbeddingPrograms:
    """Makes the programs of a model. The model must have a joint embedding when they are called.

    Args:
        description: description of the model.
        workdir: the workdir, for the cache of compiled programs.
    """

    def embed_images(variables: PyTree, pixels: jax.Array) -> jax.Array:
        model, variables = description.model(), restore(variables)
        features = encode_for_decoding(model, variables, pixels, None, description)
        return model.apply(variables, features, method="embed_images")

    def embed_texts(variables: PyTree, ids: jax.Array) -> jax.Array:
        return description.model().apply(restore(variables), ids, ids != PAD, train=False, method="embed_texts")

    cache_key, folder = description.cache_key(), locate_programs(workdir)
    return EmbeddingPrograms(
        CachedProgram(embed_images, "embed_images", cache_key, default_folder=folder),
        CachedProgram(embed_texts, "embed_texts", cache_key, default_folder=folder),
    )
