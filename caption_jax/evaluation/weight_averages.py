"""Averages of models' weights, and the checks that the models can be averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from caption_jax.errors import ConfigError
from caption_jax.inference.ensemble import check_same_inputs
from caption_jax.runs.artifact import MANIFEST, artifact_folder, artifact_steps
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import Model, read_model
from caption_jax.runs.model_source import ALL, ModelSource, parse_source
from caption_jax.runs.weights import flatten_arrays
from caption_jax.specs import differences
from caption_jax.specs.conversion import flatten
from input_pipeline.files import storage_path

PyTree = Any

# Keys of config.model that affect only training, by their last part.
_TRAINING_KEYS = {
    *(
        "weights",
        "dropout",
        "token_dropout",
        "dropout_bits",
        "drop_path",
        "cell_dropout",
        "memory_dropout",
        "norm_group_size",
        "norm_momentum",
    ),
    *("ops", "remat", "temperature", "min_temperature"),
}


def find_sources(names: Sequence[str]) -> list[ModelSource]:
    """Returns the models that the arguments name; `FOLDER@all` stands for all models that a run has retained.

    Raises:
        ConfigError: a run with `@all` has no model.
    """
    sources: list[ModelSource] = []
    for name in names:
        source = parse_source(name, allow_all=True)
        if source.which != ALL:
            sources.append(source)
            continue
        steps = _find_steps(source.folder)
        if not steps:
            raise ConfigError(f"{name}: {source.folder} has no saved weights: name the workdir of a trained model")
        sources += [ModelSource(source.folder, str(step)) for step in steps]
    return sources


def _find_steps(folder: str) -> list[int]:
    """Returns the steps of all models and checkpoints in a workdir."""
    from caption_jax.runs.checkpoint_choice import BEST, LAST, list_steps  # imports Orbax

    workdir = storage_path(folder)
    complete = {step for step in artifact_steps(workdir) if (artifact_folder(workdir, step) / MANIFEST).exists()}
    checkpoints = {step for kind in (BEST, LAST) for step in list_steps(workdir / "checkpoints" / kind)}
    return sorted(complete | checkpoints)


def check_same_model(first: RunDescription, second: RunDescription, name: str, other: str) -> None:
    """Checks that two models compute the same function of their weights, so that the weights can be averaged.

    Args:
        first: description of a model.
        second: description of another model.
        name: name of the first model.
        other: name of the second model.

    Raises:
        ConfigError: they do not; the message names the key and both models.
    """
    check_same_inputs(first, second, name, other, "soup")
    changes = {
        f"config.model.{key}": values
        for key, values in differences(first.spec.model, second.spec.model).items()
        if key.rpartition(".")[2] not in _TRAINING_KEYS
    }
    for file, values in (
        ("preprocessing.json", [model.preprocessing.settings() for model in (first, second)]),
        ("model.json", [dataclasses.asdict(model.model_settings) for model in (first, second)]),
    ):
        here, there = map(flatten, values)
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                changes[f"{key} in {file}"] = here.get(key), there.get(key)
    if changes:
        key, (value, other_value) = next(iter(changes.items()))
        raise ConfigError(
            f"soup averages the weights of one architecture, but {key} is {value!r} in {name} and {other_value!r} in "
            f"{other}: use models that were trained with the same config.model"
        )


def check_same_shapes(first: PyTree, second: PyTree, name: str, other: str) -> None:
    """Raises ConfigError if the weights of two models differ in their paths or shapes."""
    shapes = [{path: array.shape for path, array in flatten_arrays(tree).items()} for tree in (first, second)]
    for path in [*shapes[0], *shapes[1]]:
        here, there = shapes[0].get(path), shapes[1].get(path)
        if here != there:
            raise ConfigError(
                f"soup averages the weights of one architecture, but {path} has the shape {here} in {name} and "
                f"{there} in {other}: use models that were trained with the same config.model"
            )


class WeightAverages:
    """Averages of models' weights, summed in float64, so that the average of equal weights is exact.

    Models are read when they are needed, so memory does not grow with their number.

    Args:
        read: reads the weights of a model, by its index.
    """

    def __init__(self, read: Callable[[int], PyTree]):
        self._read = read
        self._sums: dict[tuple[int, ...], PyTree] = {}  # the last two sums, by the indices of their models

    def mean(self, indices: tuple[int, ...]) -> PyTree:
        """Returns the mean of the weights of models, in float32.

        Args:
            indices: the models. If those before the last are the same as in an earlier call, only the last one is read.
        """
        known = max((key for key in self._sums if indices[: len(key)] == key), key=len, default=())
        total = self._sums.get(known)
        for index in indices[len(known) :]:
            weights = self._read(index)
            total = weights if total is None else jax.tree.map(_add_in_float64, total, weights)
        self._sums = {key: value for key, value in self._sums.items() if key == known} | {indices: total}
        return jax.tree.map(lambda array: (array / len(indices)).astype(np.float32), total)


def _add_in_float64(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.add(first, second, dtype=np.float64)


def read_source(source: ModelSource) -> Model:
    """Reads a model into NumPy arrays; see `read_model` for the errors."""
    return read_model(source.folder, source.which)
