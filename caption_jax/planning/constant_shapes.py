"""Shapes of the objectives' constants, for programs that are compiled without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from caption_jax.errors import ConfigError
from caption_jax.objectives.constants import stored_constants
from caption_jax.objectives.objective import Objective
from caption_jax.planning.assumed import AssumedVocabulary
from caption_jax.runs.description import RunDescription
from input_pipeline.sources import get_split, open_splits

PyTree = Any


def constant_shapes(
    objectives: Mapping[str, Objective], description: RunDescription, workdir: epath.Path
) -> dict[str, PyTree]:
    """Shapes and types of the constants of the objectives that have any, by label.

    Those that a run in the workdir has stored are taken where the vocabulary is that run's, too. Others are prepared
    from the training captions, if they are here, in the words of an assumed vocabulary.

    Args:
        objectives: by label.
        description: of the run.
        workdir: of the run, which need not be there.

    Raises:
        ConfigError: constants that are not stored cannot be prepared.
    """
    assumed = isinstance(description.vocabulary, AssumedVocabulary)
    found = {} if assumed else stored_constants(objectives, workdir)
    for label, objective in objectives.items():
        if label not in found and _prepares(objective) and (prepared := _prepared(label, objective, description)):
            found[label] = prepared
    return jax.tree.map(_shape, found)


def _prepares(objective: Objective) -> bool:
    return getattr(type(objective), "prepare", Objective.prepare) is not Objective.prepare


def _prepared(label: str, objective: Objective, description: RunDescription) -> PyTree:
    try:
        train = get_split(open_splits(description.spec.data), "train")
        return objective.prepare(train, description.vocabulary)
    except Exception as error:  # a user's own code, which may not be content with an assumed vocabulary: any type
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"config.objective.terms.{label} makes constants of the training captions, whose shapes a plan needs, and "
            f"they cannot be made here ({reason}): start the run once in the same workdir, which stores them, and plan "
            "without --vocabulary, or leave the term out of the plan"
        ) from error


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), jax.dtypes.canonicalize_dtype(np.asarray(array).dtype))
