"""Judging a run's best weights: everything that `--mode=evaluate` and the end of a training leave in the workdir."""

from __future__ import annotations

import json

import jax

from caption_jax.evaluation.assessment import Assessment, as_results, assess
from caption_jax.evaluation.evaluator import Evaluator
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import make_examples
from caption_jax.metrics import write_results
from caption_jax.parameters.sharding import replicated
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.experiment import Experiment
from caption_jax.telemetry.metrics_file import read_metrics
from input_pipeline.files import write_atomically


def evaluate_split(experiment: Experiment, split: str, images: str = "real", context: str = "") -> Assessment:
    """Judges a run's best weights on a split; writes eval_<split>.json, captions_<split>.json and report_<split>.html.

    Args:
        experiment: the run.
        split: name of the split.
        images: see `Evaluator`.
        context: see `Evaluator`. What comes of unusual images or context has a name of its own and no HTML report.
    """
    evaluator = Evaluator(experiment, split, images=images, context=context)
    return evaluate_best(experiment, evaluator, "_".join([split, *evaluator.unusual]))


def evaluate_best(experiment: Experiment, evaluator: Evaluator, suffix: str, *, java: bool = True) -> Assessment:
    """Judges a run's best weights with `evaluator`; `suffix` stands in the names of the files written."""
    weights = read_weights(experiment.workdir, "best", replicated(experiment.mesh))
    found = evaluator(weights.variables, weights.step)
    main_process = jax.process_index() == 0
    training = experiment.splits.get("train")
    captions = training.captions if training is not None else None
    assessment = assess(found, evaluator.split.references, captions, java=java and main_process)
    if main_process:
        workdir = experiment.workdir
        write_atomically(workdir / f"eval_{suffix}.json", json.dumps(as_results(assessment), indent=2) + "\n")
        write_results(workdir / f"captions_{suffix}.json", found.captions)
        if not evaluator.unusual:
            examples = make_examples(
                evaluator.split, assessment, experiment.description, weights.variables, evaluator.context
            )
            metrics = workdir / "metrics.jsonl"
            rows = read_metrics(metrics) if metrics.exists() else []
            write_report(workdir / f"report_{suffix}.html", workdir.name, assessment, examples, rows)
    return assessment
