"""Context texts of images as token ids, for models that are trained with context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from caption_jax.errors import ConfigError
from caption_jax.runs.description import RunDescription
from input_pipeline.special_tokens import PAD


def encode_context_texts(
    description: RunDescription, texts: Sequence[Sequence[str]]
) -> Int32[np.ndarray, "images texts text_length"]:
    """Returns the token ids of the context texts of images, for the text encoder.

    Args:
        description: the description of a model.
        texts: the texts of each image. Rows without a text, or with an empty one, contain only <pad>.

    Raises:
        ConfigError: an image has more texts than the model accepts, which is 0 for a model trained without context.
    """
    max_texts = description.spec.model.context.max_texts
    for image_texts in texts:
        if len(image_texts) > max_texts:
            raise ConfigError(
                f"an image has {len(image_texts)} context texts, but this run's model accepts at most {max_texts} "
                "(config.model.context.max_texts)"
            )
    tokenizer = description.text_tokenizer
    ids = np.full((len(texts), max_texts, tokenizer.max_length), PAD, np.int32)
    for image_ids, image_texts in zip(ids, texts, strict=True):
        non_empty = [text for text in image_texts if text.strip()]
        image_ids[: len(non_empty)] = tokenizer.encode(non_empty)
    return ids
