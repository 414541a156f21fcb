"""Initialisation of all matching parameters from the weights of another run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from caption_jax.errors import ConfigError
from caption_jax.runs.loading import read_model
from input_pipeline.tokenizer import Vocabulary

PyTree = Any
RowIndices = tuple[np.ndarray, np.ndarray]  # in the new array and in the old array

_TEXT_EMBEDDINGS = "params/text_encoder/roberta/embeddings"
_TEXT_TOKEN_EMBEDDING = f"{_TEXT_EMBEDDINGS}/word_embeddings/embedding"
_PER_TOKEN = ("params/decoder/embedding", "params/decoder/output_bias", _TEXT_TOKEN_EMBEDDING)
_PER_POSITION = ("params/decoder/position", f"{_TEXT_EMBEDDINGS}/position_embeddings/embedding")
_PREFIXES = ("params/image_encoder/backbone/", "params/decoder/layer_")


def transfer_weights(initial: PyTree, source: str, vocabulary: Vocabulary) -> PyTree:
    """Copies arrays of the same path and shape from another run into a copy of `initial`, and logs the others.

    Arrays with one row per token (embeddings, output bias) are copied token by token, so that a model can be
    transferred to another vocabulary. The rows of tokens that are not in both vocabularies retain their initial values.
    Position embeddings of different lengths are copied up to the shorter length.

    Args:
        initial: initial variables of the new model.
        source: workdir of the run to start from, or an artifact.
        vocabulary: vocabulary of the new model.

    Raises:
        FileNotFoundError: `source` is not a workdir, or has no checkpoint.
        ConfigError: neither the image encoder nor the decoder layers match completely.
    """
    model = read_model(source)
    old_vocabulary = model.description.vocabulary
    old = traverse_util.flatten_dict(model.weights.variables, sep="/")
    new = traverse_util.flatten_dict(initial, sep="/")
    copied, partially_copied, mismatched = [], [], {}
    for path, value in new.items():
        stored = old.get(path)
        rows = None if stored is None else _match_rows(path, value, stored, old_vocabulary, vocabulary)
        if rows is not None:
            new[path] = jnp.asarray(value).at[rows[0]].set(jnp.asarray(stored)[rows[1]])
            partially_copied.append(f"{path} ({len(rows[0])} of {len(value)} rows)")
        elif stored is not None and stored.shape == value.shape:
            new[path] = jnp.asarray(stored)
            copied.append(path)
        else:
            mismatched[path] = path if stored is None else f"{path} (stored shape {stored.shape}, not {value.shape})"
    if not any(_all_match(prefix, new, mismatched) for prefix in _PREFIXES):
        raise ConfigError(
            f"config.init_from={source} is a run of another model: neither its image encoder nor its decoder layers "
            f"match config.model. Mismatches include {'; '.join(list(mismatched.values())[:5])}"
        )
    logging.info("init_from %s: %d arrays copied", source, len(copied))
    for outcome, paths in (("partially copied", partially_copied), ("not copied", list(mismatched.values()))):
        if paths:
            logging.info("init_from: %d arrays %s: %s", len(paths), outcome, ", ".join(paths))
    return traverse_util.unflatten_dict(new, sep="/")


def _match_tokens(old: Vocabulary, new: Vocabulary) -> RowIndices:
    """Returns the row indices of the tokens that are in both vocabularies."""
    old_rows = {token: row for row, token in enumerate(old.tokens)}
    pairs = [(row, old_rows[token]) for row, token in enumerate(new.tokens) if token in old_rows]
    return np.array([new_row for new_row, _ in pairs]), np.array([old_row for _, old_row in pairs])


def _match_rows(path: str, value: jax.Array, stored: jax.Array, old: Vocabulary, new: Vocabulary) -> RowIndices | None:
    """Returns the rows to copy from `stored` to `value`, or None if the array is copied entirely or not at all."""
    if value.shape[1:] != stored.shape[1:]:
        return None
    # The embedding of a text encoder that takes full ids has one row per tokenizer entry and is copied entirely.
    is_per_token = path in _PER_TOKEN and (len(value), len(stored)) == (new.size, old.size)
    if is_per_token and old.tokens != new.tokens:
        return _match_tokens(old, new)
    if path in _PER_POSITION and len(value) != len(stored):
        rows = np.arange(min(len(value), len(stored)))
        return rows, rows
    return None


def _all_match(prefix: str, new: dict[str, jax.Array], mismatched: dict[str, str]) -> bool:
    return not any(path in mismatched for path in new if path.startswith(prefix))
