"""Evaluation of a run's best weights, in `--mode=evaluate` and at the end of training."""

from __future__ import annotations

import dataclasses
import json

import jax

from caption_jax.errors import DataError
from caption_jax.evaluation.evaluator import FinalEvaluation
from caption_jax.evaluation.external_data import ExternalData
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation, as_json, score_evaluation
from caption_jax.evaluation.split_evaluator import SplitEvaluator
from caption_jax.metrics import write_results
from caption_jax.parameters.sharding import replicated
from caption_jax.parameters.stored_dtypes import STORED, restore
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.loading import load_weights
from input_pipeline.disk_faults import OptionalOutput
from input_pipeline.extras import require
from input_pipeline.files import write_atomically


def evaluate_split(
    experiment: Experiment,
    split: str,
    image_input: str = "real",
    context: str = "",
    external_data: ExternalData | None = None,
    checkpoint: str = "best",
    weights: str = STORED,
) -> ScoredEvaluation:
    """Evaluates the weights of a run on a split.

    Writes eval_<split>.json, captions_<split>.json and report_<split>.html, or eval_<data>_<split>.json etc. for an
    external dataset. If the image input or context is not the default, the file names contain its label, and no HTML
    report is written. The file names of the last weights end in "_last", and those of a step in "_step_<step>". With
    `weights`, they end in "_bfloat16", for example.

    Args:
        experiment: the run.
        split: name of the split.
        image_input: see `SplitEvaluator`.
        context: see `SplitEvaluator`.
        external_data: the dataset that contains the split; None for the dataset of the run.
        checkpoint: "best", "last" or a step.
        weights: dtype of the large arrays; see `read_model`.

    Raises:
        MissingPackageError: the `train` extra, which is required to read batches of images, is not installed.
    """
    require("evaluation", "grain")
    data = {} if external_data is None else {"data": str(external_data)}
    evaluator = SplitEvaluator(experiment, split, image_input=image_input, context=context, data=data, weights=weights)
    names = [split] if external_data is None else [external_data.name, split]
    names += evaluator.non_default_inputs
    if checkpoint != "best":
        names.append(f"step_{checkpoint}" if checkpoint.isdigit() else checkpoint)
    if weights != STORED:
        names.append(weights)
    return evaluate_weights(experiment, evaluator, "_".join(names), checkpoint=checkpoint, dtype=weights)


def evaluate_weights(
    experiment: Experiment,
    evaluator: SplitEvaluator,
    suffix: str,
    *,
    java: bool = True,
    checkpoint: str = "best",
    requires_images: bool = True,
    dtype: str = STORED,
) -> ScoredEvaluation:
    """Evaluates the weights of a run with `evaluator`.

    Args:
        experiment: the run.
        evaluator: evaluator of the split.
        suffix: suffix of the output file names.
        java: whether to run METEOR and SPICE if they are installed.
        checkpoint: "best", "last" or a step.
        dtype: dtype of the large arrays; see `read_model`.
    """
    with experiment.display.phase("loading the weights"):
        weights = load_weights(experiment.workdir, checkpoint, replicated(experiment.mesh), dtype)
    evaluation = evaluator(weights.variables, weights.step)
    if requires_images and len(evaluation.unreadable) == len(evaluator.split):
        image_id, reason = next(iter(evaluation.unreadable.items()))
        raise DataError(
            f"none of the {len(evaluator.split)} images of the split {evaluator.split.name} could be read, such as "
            f"{image_id}: {reason}"
        )
    is_main_process = jax.process_index() == 0
    train_split = experiment.splits.get("train")
    training_captions = train_split.captions if train_split is not None else None
    with experiment.display.phase("computing confidence intervals"):
        scored_evaluation = score_evaluation(
            evaluation,
            evaluator.split.references,
            training_captions,
            java=java and is_main_process,
            tokenizer=experiment.spec.metrics.tokenizer,
        )
    if is_main_process:
        workdir = experiment.workdir
        write_atomically(workdir / f"eval_{suffix}.json", json.dumps(as_json(scored_evaluation), indent=2) + "\n")
        write_results(workdir / f"captions_{suffix}.json", evaluation.captions)
        final = FinalEvaluation(
            experiment,
            suffix,
            scored_evaluation,
            evaluator.split,
            restore(weights.variables),
            evaluator.context,
            evaluator.non_default_inputs,
        )
        with experiment.display.phase("writing the report"), OptionalOutput("the report is not written") as output:
            evaluator.write(final)
        report = workdir / f"report_{suffix}.html"
        if report.exists() and not output.has_failed:
            scored_evaluation = dataclasses.replace(scored_evaluation, report=report)
    return scored_evaluation
