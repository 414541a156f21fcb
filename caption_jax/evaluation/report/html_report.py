"""Evaluator that writes the HTML report of a run's best weights."""

from __future__ import annotations

import dataclasses

from caption_jax.evaluation.evaluator import Evaluator, FinalEvaluation
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import make_examples
from caption_jax.telemetry.metrics_file import read_metrics


@dataclasses.dataclass(frozen=True)
class HtmlReport(Evaluator):
    """Writes `report_<split>.html`, except for evaluations with non-default images or context."""

    def write(self, final: FinalEvaluation) -> None:
        """Writes the report with metrics, examples and the training curves of the run."""
        if final.non_default_inputs:
            return
        workdir = final.experiment.workdir
        examples = make_examples(
            final.split, final.assessment, final.experiment.description, final.variables, final.context
        )
        metrics_file = workdir / "metrics.jsonl"
        rows = read_metrics(metrics_file) if metrics_file.exists() else []
        write_report(workdir / f"report_{final.suffix}.html", workdir.name, final.assessment, examples, rows)
