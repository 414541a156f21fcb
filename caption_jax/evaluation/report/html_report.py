"""Evaluator that writes the HTML report of a run's best weights."""

from __future__ import annotations

import dataclasses

from absl import logging

from caption_jax.errors import MissingPackageError
from caption_jax.evaluation.evaluator import Evaluator, FinalEvaluation
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import make_examples
from caption_jax.telemetry.metrics_file import read_metrics
from input_pipeline.extras import require


@dataclasses.dataclass(frozen=True)
class HtmlReport(Evaluator):
    """Writes `report_<split>.html`, except for evaluations with non-default images or context.

    Logs a warning instead if the `train` extra is not installed.
    """

    def write(self, final: FinalEvaluation) -> None:
        """Writes the report with metrics, examples and the training curves of the run."""
        if final.non_default_inputs:
            return
        try:
            require(f"report_{final.suffix}.html", "jinja2")
        except MissingPackageError as error:  # not raised, because the scores have already been written
            logging.warning("%s", error)
            return
        workdir = final.experiment.workdir
        examples = make_examples(
            final.split, final.scored_evaluation, final.experiment.description, final.variables, final.context
        )
        metrics_file = workdir / "metrics.jsonl"
        rows = read_metrics(metrics_file) if metrics_file.exists() else []
        write_report(workdir / f"report_{final.suffix}.html", workdir.name, final.scored_evaluation, examples, rows)
