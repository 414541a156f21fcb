"""Shapes of the constants of objectives, for compiling programs without the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from caption_jax.errors import ConfigError
from caption_jax.objectives.constants import load_constants
from caption_jax.objectives.objective import Objective
from caption_jax.planning.assumed import AssumedVocabulary
from caption_jax.runs.description import RunDescription
from input_pipeline.sources import get_split, open_splits

PyTree = Any


def constant_shapes(
    objectives: Mapping[str, Objective], description: RunDescription, workdir: epath.Path
) -> dict[str, PyTree]:
    """Returns the shapes and dtypes of the constants of all objectives that have any, by label.

    Constants stored in the workdir are used if the vocabulary is the one of that run. Others are prepared from the
    training captions with the vocabulary of the description, which may be an assumed one.

    Args:
        objectives: objectives by label.
        description: description of the run.
        workdir: workdir of the run, which need not exist.

    Raises:
        ConfigError: constants that are not stored cannot be prepared.
    """
    assumed = isinstance(description.vocabulary, AssumedVocabulary)
    constants = {} if assumed else load_constants(objectives, workdir)
    for label, objective in objectives.items():
        if label not in constants and _has_prepare(objective) and (tree := _prepare(label, objective, description)):
            constants[label] = tree
    return jax.tree.map(_shape, constants)


def _has_prepare(objective: Objective) -> bool:
    return getattr(type(objective), "prepare", Objective.prepare) is not Objective.prepare


def _prepare(label: str, objective: Objective, description: RunDescription) -> PyTree:
    try:
        train = get_split(open_splits(description.spec.data), "train")
        return objective.prepare(train, description.vocabulary)
    except Exception as error:  # user code may fail on an assumed vocabulary with any exception type
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"config.objective.terms.{label} has constants made from the training captions, and they cannot be made "
            f"here ({reason}): start the run once in the same workdir, which stores them, and plan without "
            "--vocabulary, or plan without the term"
        ) from error


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), jax.dtypes.canonicalize_dtype(np.asarray(array).dtype))
