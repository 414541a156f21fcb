"""Averages of trained models' weights, chosen by their score on a split (`--mode=soup`).

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (https://arxiv.org/abs/2203.05482). The models must have a common start: several checkpoints of one run,
or several runs from the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.evaluation.norm_statistics import NormStatistics, find_differences
from caption_jax.evaluation.split_evaluator import SplitEvaluator
from caption_jax.evaluation.weight_averages import WeightAverages, check_same_model, check_same_shapes, read_source
from caption_jax.parameters.sharding import replicated
from caption_jax.runs.artifact import POINTER, write_artifact, write_pointer
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.loading import put_on_devices
from caption_jax.runs.lock import lock_workdir
from caption_jax.runs.model_source import ModelSource
from caption_jax.runs.soup_record import FILE_NAME, Ingredient, SoupRecord, Trial, write_record
from caption_jax.runs.weights import Weights, fingerprint
from caption_jax.runs.workdir import write_description
from input_pipeline.extras import require

PyTree = Any
ScoreAverage = Callable[[tuple[int, ...]], float]  # indices of models -> score of the average of their weights

RECIPES = ("greedy", "uniform")


def check_new(workdir: epath.Path) -> None:
    """Raises WorkdirError if a workdir holds a run or a complete soup."""
    is_run = (workdir / "config.json").exists() and not (workdir / FILE_NAME).exists()
    if is_run or (workdir / POINTER).exists() or (workdir / "checkpoints").exists():
        raise WorkdirError(f"--workdir={workdir} already holds a run: set --workdir to a new folder for the soup")


def make_soup(
    experiment: Experiment,
    sources: Sequence[ModelSource],
    workdir: epath.Path,
    *,
    recipe: str,
    split_name: str,
    context: str = "",
) -> SoupRecord:
    """Averages the weights of models, and writes the average as a run without checkpoints.

    Args:
        experiment: the run of the first model, whose data and config are used.
        sources: the models.
        workdir: a new workdir for the average.
        recipe: "uniform" for the average of all models, or "greedy" to add the models one by one, from the best to the
            worst, and to keep those that do not lower the score of the average.
        split_name: split on which `config.train.best_metric` judges the models.
        context: see `open_context`; "" for the kind of context used in training.

    Raises:
        ConfigError: the models cannot be averaged, or the split is the test split.
        MissingFileError: a model does not exist.
        WorkdirError: a model is damaged, or the workdir already holds a run.
        MissingPackageError: the `train` extra, which is required to read batches of images, is not installed.
    """
    require("soup", "grain")
    check_new(workdir)
    if split_name == "test":
        raise ConfigError(
            "cannot choose models on the test split, because its scores would no longer be unbiased: use --split=val, "
            "and then evaluate --split=test"
        )
    experiment.spec.decode.check_no_ensemble("soup")
    start_time = time.time()
    models, norms = _read_models(experiment, sources)
    judge = _Judge(experiment, sources, [step for step, _ in models], norms, split_name, context)
    scores = [judge.score((index,)) for index in range(len(sources))]
    if recipe == "uniform":
        trials, used = (), tuple(range(len(sources)))
    else:
        trials, used = choose_greedily(scores, judge.score)
    score = judge.score(used)
    ingredients = tuple(
        Ingredient(str(source), step, sha256, scores[index], index in used)
        for index, (source, (step, sha256)) in enumerate(zip(sources, models, strict=True))
    )
    protocol = {**judge.protocol, "wall_seconds": round(time.time() - start_time, 1)}
    record = SoupRecord(
        *(recipe, judge.metric, score, judge.describe_norms(), ingredients),
        tuple(Trial(str(sources[index]), value, is_kept) for index, value, is_kept in trials),
        protocol,
    )
    _write(experiment, workdir, Weights(judge.average(used), judge.step(used)), record)
    return record


def choose_greedily(
    scores: Sequence[float], score_average: ScoreAverage
) -> tuple[tuple[tuple[int, float, bool], ...], tuple[int, ...]]:
    """Chooses models greedily: from the best to the worst, each is kept if it does not lower the score of the average.

    Args:
        scores: score of each model; the first of equal models is tried first.
        score_average: returns the score of an average.

    Returns:
        The trials in order, as (index, score of the average with this model, whether it is kept), and the indices of
        the models to average.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept, best = (order[0],), scores[order[0]]
    trials = [(order[0], best, True)]
    for index in order[1:]:
        score = score_average((*kept, index))
        trials.append((index, score, score >= best))
        if score >= best:
            kept, best = (*kept, index), score
    return tuple(trials), kept


def _read_models(
    experiment: Experiment, sources: Sequence[ModelSource]
) -> tuple[list[tuple[int, str]], frozenset[str]]:
    """Returns the step and fingerprint of each model, and the norms whose statistics differ; checks the models."""
    models: list[tuple[int, str]] = []
    norms: frozenset[str] = frozenset()
    names: dict[str, str] = {}
    first = None
    with experiment.display.phase("reading the models", len(sources), "models") as phase:
        for source in sources:
            model = read_source(source)
            first = first or model
            name, other = str(sources[0]), str(source)
            check_same_model(first.description, model.description, name, other)
            check_same_shapes(first.weights.variables, model.weights.variables, name, other)
            norms |= find_differences(first.weights.variables, model.weights.variables)
            sha256 = fingerprint(model.weights.variables)
            if sha256 in names:
                raise ConfigError(f"{names[sha256]} and {other} have the same weights: name each model once")
            names[sha256] = other
            models.append((model.weights.step, sha256))
            phase.advance()
    return models, norms


class _Judge:
    """Scores averages of models on a split."""

    def __init__(
        self,
        experiment: Experiment,
        sources: Sequence[ModelSource],
        steps: Sequence[int],
        norms: frozenset[str],
        split_name: str,
        context: str,
    ):
        self.metric = experiment.spec.train.best_metric
        self.protocol: dict[str, Any] = {}
        self._experiment, self._sources, self._steps = experiment, sources, steps
        self._evaluator = SplitEvaluator(experiment, split_name, context=context)
        self._evaluator.check_metric(self.metric)
        self._averages = WeightAverages(lambda index: read_source(sources[index]).weights.variables)
        self._norms = NormStatistics(experiment, norms) if norms else None
        self._norm_count = len(norms)
        self._scores: dict[frozenset[int], float] = {}

    def average(self, indices: tuple[int, ...]) -> PyTree:
        """Returns the averaged weights of models, with the statistics of their norms."""
        variables = self._averages.mean(indices)
        return self._norms.update(variables) if self._norms is not None and len(indices) > 1 else variables

    def step(self, indices: tuple[int, ...]) -> int:
        """Returns the step that identifies an average: the largest one of its models."""
        return max(self._steps[index] for index in indices)

    def score(self, indices: tuple[int, ...]) -> float:
        """Returns the score of an average."""
        key = frozenset(indices)
        if key not in self._scores:
            variables = put_on_devices(self.average(indices), replicated(self._experiment.mesh))
            evaluation = self._evaluator(variables, self.step(indices))
            self._scores[key] = float(evaluation.metrics[self.metric])
            self.protocol = {name: value for name, value in evaluation.protocol.items() if name != "step"}
            names = " + ".join(str(self._sources[index]) for index in indices)
            logging.info("%s: %s %.4f", names, self.metric, self._scores[key])
        return self._scores[key]

    def describe_norms(self) -> str:
        """Describes what was done with the norm statistics."""
        if self._norms is None:
            return "the statistics of batch norms, if any, are equal in all models"
        return f"statistics of {self._norm_count} batch norms computed from {self._norms.images} training images"


def _write(experiment: Experiment, workdir: epath.Path, weights: Weights, record: SoupRecord) -> None:
    """Writes the workdir; the pointer to the model comes last, so that a killed soup can be started again."""
    with lock_workdir(workdir):
        if jax.process_index() == 0:
            check_new(workdir)
            write_record(workdir, record)
            write_description(workdir, experiment.description)
            write_pointer(workdir, write_artifact(workdir, experiment.description, weights))
