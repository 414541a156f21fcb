"""Starting from another run's weights: what fits is taken, what does not is fresh, and both are listed."""

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
Rows = tuple[np.ndarray, np.ndarray]

_TEXT_EMBEDDINGS = "params/text_encoder/roberta/embeddings"
_TEXT_WORDS = f"{_TEXT_EMBEDDINGS}/word_embeddings/embedding"
_PER_TOKEN = ("params/decoder/embedding", "params/decoder/output_bias", _TEXT_WORDS)
_POSITIONS = ("params/decoder/position", f"{_TEXT_EMBEDDINGS}/position_embeddings/embedding")
_PARTS = ("params/image_encoder/backbone/", "params/decoder/layer_")


def transfer_weights(fresh: PyTree, source: str, vocabulary: Vocabulary) -> PyTree:
    """Copies into `fresh` every array of the run in `source` whose path and shape agree.

    Arrays with one row a token of the vocabulary (embeddings, the output bias) are matched token by token, so that a
    model moves to another vocabulary: a token that both know keeps its row, others stay as initialised. Of learned
    positions, those are taken that both have.

    Args:
        fresh: initial variables of the new model.
        source: workdir of the run to start from, or a model's own folder.
        vocabulary: of the new model.

    Raises:
        FileNotFoundError: `source` is no workdir, or has no checkpoint.
        ValueError: it is another model: neither its image encoder nor its decoder's layers fit as a whole.
    """
    model = read_model(source)
    old_vocabulary = model.description.vocabulary
    old = traverse_util.flatten_dict(model.weights.variables, sep="/")
    new = traverse_util.flatten_dict(fresh, sep="/")
    taken, partly, kept = [], [], {}
    for path, value in new.items():
        given = old.get(path)
        rows = None if given is None else _rows(path, value, given, old_vocabulary, vocabulary)
        if rows is not None:
            new[path] = jnp.asarray(value).at[rows[0]].set(jnp.asarray(given)[rows[1]])
            partly.append(f"{path} ({len(rows[0])} of {len(value)} rows)")
        elif given is not None and given.shape == value.shape:
            new[path] = jnp.asarray(given)
            taken.append(path)
        else:
            kept[path] = path if given is None else f"{path} (shape {given.shape} there, {value.shape} here)"
    if not any(_fits(part, new, kept) for part in _PARTS):
        raise ConfigError(
            f"config.init_from={source} is a run of another model: neither its image encoder nor its decoder's layers "
            f"fit config.model. Among what does not fit: {'; '.join(list(kept.values())[:5])}"
        )
    logging.info("init_from %s: %d arrays taken", source, len(taken))
    for name, paths in (("taken row by row", partly), ("fresh", list(kept.values()))):
        if paths:
            logging.info("init_from: %d arrays %s: %s", len(paths), name, ", ".join(paths))
    return traverse_util.unflatten_dict(new, sep="/")


def _shared_rows(old: Vocabulary, new: Vocabulary) -> Rows:
    """Row numbers (in the new, in the old vocabulary) of the tokens that both hold."""
    where = {token: row for row, token in enumerate(old.tokens)}
    pairs = [(row, where[token]) for row, token in enumerate(new.tokens) if token in where]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def _rows(path: str, value: jax.Array, given: jax.Array, old: Vocabulary, new: Vocabulary) -> Rows | None:
    """Which rows an array takes from which, where it is not taken as a whole; None where it is, or does not fit."""
    if value.shape[1:] != given.shape[1:]:
        return None
    # A text encoder that reads its tokenizer's full ids has other rows than the vocabulary, and is taken as a whole.
    per_token = path in _PER_TOKEN and (len(value), len(given)) == (new.size, old.size)
    if per_token and old.tokens != new.tokens:
        return _shared_rows(old, new)
    if path in _POSITIONS and len(value) != len(given):
        common = np.arange(min(len(value), len(given)))
        return common, common
    return None


def _fits(part: str, new: dict[str, jax.Array], kept: dict[str, str]) -> bool:
    return not any(path in kept for path in new if path.startswith(part))
