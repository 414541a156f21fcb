"""Starting from another run's weights: what fits is taken, what does not is fresh, and both are listed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from caption_jax import workdir as workdir_files
from caption_jax.checkpoints import read_weights
from input_pipeline.tokenizer import Vocabulary

PyTree = Any


def transfer_weights(fresh: PyTree, source: str, vocabulary: Vocabulary) -> PyTree:
    """Copies into `fresh` every array of the run in `source` whose path and shape agree.

    Arrays with one row a token (the embedding, the output bias) are matched token by token, so that a model moves to
    another vocabulary: a token that both know keeps its row, others stay as initialised.

    Args:
        fresh: initial variables of the new model.
        source: workdir of the run to start from.
        vocabulary: of the new model.

    Raises:
        FileNotFoundError: `source` is no workdir, or has no checkpoint.
        ValueError: nothing fits.
    """
    old_vocabulary = workdir_files.read_description(source).vocabulary
    old = traverse_util.flatten_dict(read_weights(source).variables, sep="/")
    new = traverse_util.flatten_dict(fresh, sep="/")
    rows = _shared_rows(old_vocabulary, vocabulary)
    taken, partly, kept = [], [], []
    for path, value in new.items():
        given = old.get(path)
        if given is not None and _is_per_token(path, value, given, vocabulary, old_vocabulary):
            if old_vocabulary.tokens == vocabulary.tokens:
                new[path] = given
                taken.append(path)
            else:
                new[path] = _copy_rows(value, given, rows)
                partly.append(f"{path} ({len(rows[0])} of {vocabulary.size} tokens)")
        elif given is not None and given.shape == value.shape:
            new[path] = given
            taken.append(path)
        else:
            kept.append(path if given is None else f"{path} (shape {given.shape} there, {value.shape} here)")
    if not taken:
        raise ValueError(f"config.init_from={source}: none of its {len(old)} arrays fits: is config.model another one?")
    logging.info("init_from %s: %d arrays taken", source, len(taken))
    for name, paths in (("taken row by row", partly), ("fresh", kept)):
        if paths:
            logging.info("init_from: %d arrays %s: %s", len(paths), name, ", ".join(paths))
    return traverse_util.unflatten_dict(new, sep="/")


def _shared_rows(old: Vocabulary, new: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (in the new, in the old vocabulary) of the tokens that both hold."""
    where = {token: row for row, token in enumerate(old.tokens)}
    pairs = [(row, where[token]) for row, token in enumerate(new.tokens) if token in where]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def _is_per_token(path: str, value: jax.Array, given: jax.Array, vocabulary: Vocabulary, old: Vocabulary) -> bool:
    rows_fit = value.shape[:1] == (vocabulary.size,) and given.shape[:1] == (old.size,)
    return path.startswith("params/decoder/") and rows_fit and value.shape[1:] == given.shape[1:]


def _copy_rows(value: jax.Array, given: jax.Array, rows: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    return jnp.asarray(value).at[rows[0]].set(jnp.asarray(given)[rows[1]])
