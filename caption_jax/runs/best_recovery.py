"""The best model of a resumed run: its artifact, or the same weights from a checkpoint, or what is intact instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from caption_jax.runs.artifact_writer import ArtifactWriter
from caption_jax.runs.checkpoint_choice import in_process_0
from caption_jax.runs.checkpoints import find_best, find_step, read_weights
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.weights import Weights


def resume_best(
    experiment: Experiment,
    artifacts: ArtifactWriter,
    progress: Mapping[str, Any],
    step: int,
    current: Callable[[], Weights],
    sharding: jax.sharding.Sharding,
) -> dict[str, Any]:
    """Makes the best model of the workdir the one that a checkpoint records.

    If neither the model nor a checkpoint of its step is intact, the best of the intact weights takes its place.

    Args:
        experiment: the run.
        artifacts: writes the model.
        progress: the best validation score, its step and the evaluations since then, as in the checkpoint.
        step: step of the checkpoint.
        current: returns the weights of the checkpoint, which are the best before the first evaluation.
        sharding: sharding of the weights that are read.

    Returns:
        `progress`, with another best score and step if the best weights are lost.
    """
    progress = dict(progress)
    if progress["best"] is not None:
        workdir, best_step = experiment.workdir, progress["best_step"]
        if not in_process_0(lambda: artifacts.has_intact(best_step) or find_step(workdir, best_step)):
            progress |= _replace_best(experiment, best_step, step)
    if progress["best"] is None:
        artifacts.resume(step, step, current)
    else:
        best_step = progress["best_step"]
        artifacts.resume(step, best_step, lambda: read_weights(experiment.workdir, str(best_step), sharding))
    return progress


def _replace_best(experiment: Experiment, lost: int, step: int) -> dict[str, Any]:
    """Returns the best score and step of the newest intact best weights, and warns about the loss."""
    metric = experiment.spec.train.best_metric
    found = in_process_0(lambda: find_best(experiment.workdir, step))
    if found is None or not isinstance(found[1].get(metric), int | float):
        logging.warning(
            "the best weights, of step %d, are damaged, and no others were saved: until the next evaluation, the best "
            "model is that of step %d, with which training resumes",
            *(lost, step),
        )
        return {"best": None, "best_step": 0}
    best_step, metrics = found
    logging.warning(
        "the best weights, of step %d, are damaged: the best model is now that of step %d, with a validation %s of "
        "%.4f. Later evaluations are compared with this score",
        *(lost, best_step, metric, metrics[metric]),
    )
    return {"best": metrics[metric], "best_step": best_step}
