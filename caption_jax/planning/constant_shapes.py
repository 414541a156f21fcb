"""Shapes of the objectives' constants, for compiling programs without the values."""

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

_IMAGES, _CAPTIONS_PER_IMAGE = 113_287, 5  # assumed: COCO, with Karpathy's splits


def get_constant_shapes(
    objectives: Mapping[str, Objective], description: RunDescription, workdir: epath.Path
) -> dict[str, PyTree]:
    """Returns the shapes and dtypes of the objectives' constants by label, omitting objectives that have none.

    Constants stored in the workdir are used unless the vocabulary is an assumed one. In this case, objectives may
    assume the shapes for a dataset of the size of COCO. All others are prepared from the training captions and the
    vocabulary of the description.

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
        if assumed and (shapes := _assume(objective, description)):
            constants[label] = shapes
        if label not in constants and _has_constants(objective) and (tree := _prepare(label, objective, description)):
            constants[label] = tree
    return jax.tree.map(_get_shape, constants)


def describe_assumptions(
    constants: Mapping[str, PyTree], objectives: Mapping[str, Objective], description: RunDescription
) -> str:
    """Describes what `get_constant_shapes` has assumed in addition to the vocabulary."""
    assumed = {label: bool(_assume(objectives[label], description)) for label in constants}
    made = [label for label, is_assumed in assumed.items() if not is_assumed]
    typical = [label for label, is_assumed in assumed.items() if is_assumed]
    parts = [f"of {', '.join(made)}: made with the assumed vocabulary"] if made else []
    if typical:
        parts.append(f"of {', '.join(typical)}: for {_IMAGES:,} images with {_CAPTIONS_PER_IMAGE} captions each")
    return "; ".join(parts)


def _has_constants(objective: Objective) -> bool:
    return getattr(type(objective), "prepare", Objective.prepare) is not Objective.prepare


def _assume(objective: Objective, description: RunDescription) -> PyTree:
    assume = getattr(objective, "assume_constants", lambda *_: {})  # an objective need not be a subclass
    return assume(_IMAGES, _IMAGES * _CAPTIONS_PER_IMAGE, description.vocabulary.size)


def _prepare(label: str, objective: Objective, description: RunDescription) -> PyTree:
    try:
        train = get_split(open_splits(description.spec.data, description.spec.limits), "train")
        return objective.prepare(train, description.vocabulary)
    except Exception as error:  # user code may fail on an assumed vocabulary with any exception type
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"config.objective.terms.{label} has constants that cannot be computed from the training captions "
            f"({reason}): start the run once in the same workdir, which stores them, and plan without --vocabulary, or "
            "plan without the term"
        ) from error


def _get_shape(array: Any) -> jax.ShapeDtypeStruct:
    if isinstance(array, jax.ShapeDtypeStruct):
        return array
    return jax.ShapeDtypeStruct(np.shape(array), jax.dtypes.canonicalize_dtype(np.asarray(array).dtype))
