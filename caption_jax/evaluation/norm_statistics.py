"""Batch-norm statistics of averaged weights.

The running statistics of a batch norm describe the activations of one network. If networks with different statistics
are averaged, those of the average network are not the average of their statistics, because its activations are not the
averages of theirs: averaging weights reduces the variance of activations. They are therefore computed again from
training images, as for averages along one run (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
Better Generalization", https://arxiv.org/abs/1803.05407). The statistics of frozen norms are those of the pretrained
weights in all models, so they are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from caption_jax.errors import ConfigError
from caption_jax.parameters.sharding import batch_sharding, put_batch, replicated
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.loading import put_on_devices
from input_pipeline.batches import eval_batches
from input_pipeline.records import Split

PyTree = Any

MAX_IMAGES = 1024
# Settings of an image encoder for which the statistics after a batch are those of all images in it.
_SETTINGS = {"norm_momentum": 0.0, "norm_group_size": 0, "drop_path": 0.0}


def find_differences(first: PyTree, second: PyTree) -> frozenset[str]:
    """Returns the module paths of norms whose statistics differ between two models."""
    here, there = (
        traverse_util.flatten_dict(variables.get("batch_stats", {}), sep="/") for variables in (first, second)
    )
    return frozenset(path.rpartition("/")[0] for path in here if not np.array_equal(here[path], there[path]))


class NormStatistics:
    """Computes the statistics of the norms of an image encoder from training images, without augmentation.

    Args:
        experiment: the run, with a training split.
        norms: paths of the norms; the others keep their statistics.

    Raises:
        ConfigError: the image encoder has no setting `norm_momentum`.
        DataError: the data has no training split.
    """

    def __init__(self, experiment: Experiment, norms: frozenset[str]):
        self._experiment, self._norms = experiment, norms
        train = experiment.split("train")
        size = experiment.spec.data.eval_batch_size
        count = min(len(train), MAX_IMAGES)
        count -= count % size if count > size else 0  # all batches have the same weight
        indices = np.linspace(0, len(train) - 1, count).round().astype(int)
        self.images = count
        self._split = Split(train.name, [train[int(index)] for index in indices])
        self._step: Callable | None = None

    def update(self, variables: PyTree) -> PyTree:
        """Returns the variables with the statistics of the norms of these weights.

        Args:
            variables: NumPy arrays, as returned.
        """
        mesh = self._experiment.mesh
        if self._step is None:
            step = _make_step(self._experiment, variables, self._norms)
            self._step = jax.jit(step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
        description, data = self._experiment.description, self._experiment.spec.data
        batches = eval_batches(
            self._split,
            description.preprocessing,
            description.vocabulary,
            data,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        on_devices = put_on_devices(variables, replicated(mesh))
        collected = []
        with self._experiment.display.phase("computing norm statistics", self.images, "images") as phase:
            for batch in batches:
                images = put_batch({"image": batch["image"]}, mesh)["image"]
                collected.append(jax.device_get(self._step(on_devices, images)))
                phase.advance(data.eval_batch_size)
        flat = [traverse_util.flatten_dict(stats, sep="/") for stats in collected]
        stats = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
        for norm in self._norms:
            mean, var = combine([batch[f"{norm}/mean"] for batch in flat], [batch[f"{norm}/var"] for batch in flat])
            stats |= {f"{norm}/mean": mean, f"{norm}/var": var}
        return {**variables, "batch_stats": traverse_util.unflatten_dict(stats, sep="/")}


def combine(means: list[np.ndarray], variances: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the biased variance over all batches, given those of batches of equal size."""
    means, variances = np.asarray(means, np.float64), np.asarray(variances, np.float64)
    return means.mean(0).astype(np.float32), (variances.mean(0) + means.var(0)).astype(np.float32)


def _make_step(
    experiment: Experiment, variables: Mapping[str, PyTree], norms: frozenset[str]
) -> Callable[[PyTree, jax.Array], PyTree]:
    """Builds `(variables, pixels) -> batch_stats` with the statistics of a batch in each of the norms."""
    description = experiment.description
    spec = description.spec
    fields = {field.name for field in dataclasses.fields(spec.model.encoder)}
    if "norm_momentum" not in fields:
        raise ConfigError(
            f"the norm statistics of the models differ, and the image encoder {type(spec.model.encoder).__name__} has "
            "no setting norm_momentum to compute them again: freeze its norms (config.optimizer.rules), or add it"
        )
    settings = {name: value for name, value in _SETTINGS.items() if name in fields}
    model_spec = dataclasses.replace(spec.model, encoder=dataclasses.replace(spec.model.encoder, **settings))
    description = dataclasses.replace(description, spec=dataclasses.replace(spec, model=model_spec))
    stats = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    kept = {path.rpartition("/")[0] for path in stats} - norms
    model = description.model(frozenset(kept))

    def step(variables: PyTree, pixels: jax.Array) -> PyTree:
        images = description.preprocessing.normalise(pixels)
        options = {"train": True, "method": "encode_images", "rngs": {"dropout": jax.random.key(0)}}
        return model.apply(variables, images, mutable=["batch_stats"], **options)[1]["batch_stats"]

    return step
