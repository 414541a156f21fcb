"""The HTML report of an evaluation: one file that opens anywhere, without a network and without a script."""

from __future__ import annotations

from typing import Any

from etils import epath

from caption_jax.evaluation.assessment import Assessment
from caption_jax.evaluation.report.html.examples import make_examples
from caption_jax.evaluation.report.html.page import render
from caption_jax.runs.experiment import Experiment
from caption_jax.telemetry.metrics_file import read_metrics
from input_pipeline.context import ContextCaptions
from input_pipeline.files import write_atomically
from input_pipeline.records import Split


def write_report(
    experiment: Experiment,
    split: Split,
    assessment: Assessment,
    variables: Any,
    context: ContextCaptions | None = None,
) -> epath.Path:
    """Writes report_<split>.html to the run's workdir and returns its path.

    Args:
        experiment: the run.
        split: the images that were judged.
        assessment: what was found.
        variables: the weights that were judged, to see where the decoder looked.
        context: what stood beside the images.
    """
    metrics = experiment.workdir / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() else []
    examples = make_examples(experiment, split, assessment, variables, context)
    path = experiment.workdir / f"report_{assessment.protocol['split']}.html"
    write_atomically(path, render(experiment.workdir.name, assessment, examples, rows))
    return path
