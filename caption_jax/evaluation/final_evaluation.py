"""Judging a run's best weights: everything that `--mode=evaluate` and the end of a training leave in the workdir."""

from __future__ import annotations

import json

import jax

from caption_jax.evaluation.assessment import Assessment, as_results, assess
from caption_jax.evaluation.evaluator import FinalEvaluation
from caption_jax.evaluation.other_data import OtherData
from caption_jax.evaluation.split_evaluator import SplitEvaluator
from caption_jax.metrics import write_results
from caption_jax.parameters.sharding import replicated
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.loading import load_weights
from input_pipeline.files import write_atomically


def evaluate_split(
    experiment: Experiment, split: str, images: str = "real", context: str = "", other_data: OtherData | None = None
) -> Assessment:
    """Judges a run's best weights on a split; writes eval_<split>.json, captions_<split>.json and report_<split>.html.

    Of other data than the run's own they are called eval_<data>_<split>.json, and so on.

    Args:
        experiment: the run.
        split: name of the split.
        images: see `SplitEvaluator`.
        context: see `SplitEvaluator`. What comes of unusual images or context has a name of its own and no HTML report.
        other_data: where the split is of another data set, that.
    """
    data = {} if other_data is None else {"data": f"{other_data.name} ({other_data.captions.name})"}
    evaluator = SplitEvaluator(experiment, split, images=images, context=context, data=data)
    names = [split] if other_data is None else [other_data.name, split]
    return evaluate_best(experiment, evaluator, "_".join([*names, *evaluator.unusual]))


def evaluate_best(experiment: Experiment, evaluator: SplitEvaluator, suffix: str, *, java: bool = True) -> Assessment:
    """Judges a run's best weights with `evaluator`; `suffix` stands in the names of the files written."""
    weights = load_weights(experiment.workdir, sharding=replicated(experiment.mesh))
    found = evaluator(weights.variables, weights.step)
    main_process = jax.process_index() == 0
    training = experiment.splits.get("train")
    captions = training.captions if training is not None else None
    assessment = assess(found, evaluator.split.references, captions, java=java and main_process)
    if main_process:
        workdir = experiment.workdir
        write_atomically(workdir / f"eval_{suffix}.json", json.dumps(as_results(assessment), indent=2) + "\n")
        write_results(workdir / f"captions_{suffix}.json", found.captions)
        evaluator.write(
            FinalEvaluation(
                experiment,
                suffix,
                assessment,
                evaluator.split,
                weights.variables,
                evaluator.context,
                evaluator.unusual,
            )
        )
    return assessment
